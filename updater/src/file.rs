//! Reading files of others: bounded, with the path in the error.
//!
//! Not here: what the files mean. Rule: nothing is read whole before its length is known to be under the caller's cap.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use sha2::{Digest as _, Sha256};

/// A file that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("while {doing} {path}")]
pub struct FileError {
    /// What was being done: `reading`, `writing`, …
    pub doing: &'static str,
    /// Which file.
    pub path: PathBuf,
    /// The system's word.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: keeps what was being done and to which file beside the system's word.
    pub fn of(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
        move |source| FileError { doing, path: path.to_owned(), source }
    }
}

/// Where a program is installed. An ordinary user's PATH leaves out the folders where some distributions put `mkfs.*` and `nft`.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(more).map(|folder| folder.join(name));
    places.find(|place| place.is_file())
}

/// Opens a file of a root as the booted root would see it: a symbolic link in it, absolute or climbing, must not lead to
/// the build machine's own files.
pub fn open_inside(root: &Path, path: &Path) -> io::Result<File> {
    let folder = File::open(root)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(&folder, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?.into())
}

/// The whole file, refused when it is longer than `bytes_max`.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FileError> {
    read_inside(None, path, bytes_max)
}

/// The same for a file below `root`, when there is one, with links followed inside it alone.
pub fn read_inside(root: Option<&Path>, path: &Path, bytes_max: u64) -> Result<Vec<u8>, FileError> {
    let open = || match root {
        Some(root) => open_inside(root, path.strip_prefix(root).map_err(io::Error::other)?),
        None => File::open(path),
    };
    let read = || {
        let mut bytes = Vec::new();
        open()?.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("longer than {bytes_max} bytes"),
            ));
        }
        Ok(bytes)
    };
    read().map_err(FileError::of("reading", path))
}

/// The SHA-256 of all that `reader` gives.
pub fn sha256(mut reader: impl Read) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(bytes) => hash.update(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An error with all its causes, as a user reads it.
    pub(crate) fn chain(error: &dyn std::error::Error) -> String {
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
    }

    #[test]
    fn a_file_at_the_cap_is_read_and_one_byte_more_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [7; 10]).unwrap();
        assert_eq!(read(&path, 10).unwrap(), [7; 10]);
        let error = chain(&read(&path, 9).unwrap_err());
        assert!(error.contains(path.to_str().unwrap()) && error.contains("9 bytes"), "{error}");
    }
}
