//! The folder of the updater's own records, with every flush spelled out.
//!
//! Not here: what the records mean. Rule: nothing is durable before its `sync` returned, a name only after
//! `sync_folder`; what is replaced is replaced by temporary name → `sync` → `rename` → `sync_folder`. Everything durable
//! in the folder goes through this trait, so that a simulator can take the power away between any two of its calls.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::bounded::read_bounded;

/// Behind the name of a file that is being replaced.
const UNFINISHED: &str = ".new";

/// The folder. Names are plain: no `/`.
pub trait StateDir: Send + Sync {
    /// Where it lies: for messages, and for what need not survive a power cut (the lock, downloads, logs).
    fn path(&self) -> &Path;

    /// Makes the folder when it is missing.
    fn make(&self) -> io::Result<()>;

    /// The content of a file, or `None` when it does not exist. A file of more than `limit` bytes is an error of kind
    /// `InvalidData`.
    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>>;

    /// Creates or empties a file and writes `bytes`; its content is durable after `sync`, its name after `sync_folder`.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Returns when the file's content is on the medium.
    fn sync(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name; a file that has it is replaced. Durable after `sync_folder`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; none is no error. Durable after `sync_folder`.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Returns when new, changed and removed names are on the medium.
    fn sync_folder(&self) -> io::Result<()>;

    /// A file to overwrite in place, opened for reading alone where writing is not allowed; `None` when there is none.
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Store>>>;

    /// Replaces a file in one durable step: at every instant it reads as the old content or the new one.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let unfinished = format!("{name}{UNFINISHED}");
        self.write(&unfinished, bytes)?;
        self.sync(&unfinished)?;
        self.rename(&unfinished, name)?;
        self.sync_folder()
    }
}

/// The bytes of one file that is overwritten in place.
pub trait Store: Send + Sync {
    /// Size in bytes.
    fn len(&self) -> io::Result<u64>;
    /// True when there is no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `buffer` from `offset`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`, growing the file where needed; durable only after `flush`. `PermissionDenied` where
    /// the file may only be read.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Returns only when everything written before is on the medium.
    fn flush(&self) -> io::Result<()>;
}

/// A folder of a mounted file system.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Folder {
        Folder(path.into())
    }
}

impl StateDir for Folder {
    fn path(&self) -> &Path {
        &self.0
    }

    fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.0)
    }

    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        read_bounded(&self.0.join(name), limit)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        fs::write(self.0.join(name), bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        File::open(self.0.join(name))?.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Store>>> {
        let path = self.0.join(name);
        let refused =
            |kind| matches!(kind, io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(Some(Box::new(FileStore { file, writable: true }))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if refused(error.kind()) => {
                Ok(Some(Box::new(FileStore { file: File::open(&path)?, writable: false })))
            }
            Err(error) => Err(error),
        }
    }
}

struct FileStore {
    file: File,
    writable: bool,
}

impl Store for FileStore {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.writable {
            self.file.write_all_at(data, offset)
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_reads_as_the_new_content_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        folder.replace("record", b"old").unwrap();
        folder.replace("record", b"new").unwrap();
        assert_eq!(folder.read("record", 3).unwrap().as_deref(), Some(&b"new"[..]));
        assert!(folder.read("record", 2).is_err(), "over its bound");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        folder.remove("record").unwrap();
        folder.remove("record").unwrap();
        assert!(folder.read("record", 3).unwrap().is_none() && folder.open("record").unwrap().is_none());
    }

    #[test]
    fn a_file_is_overwritten_in_place_and_grows_where_needed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        folder.write("record", b"abc").unwrap();
        let store = folder.open("record").unwrap().unwrap();
        store.write_at(2, b"xyz").unwrap();
        store.flush().unwrap();
        let mut bytes = [0; 5];
        store.read_at(0, &mut bytes).unwrap();
        assert_eq!((&bytes, store.len().unwrap()), (b"abxyz", 5));
        assert!(store.read_at(1, &mut bytes).is_err(), "past the end");
    }
}
