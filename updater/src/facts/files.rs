//! The two copies as files whose space is reserved once: a full file system cannot stop a fact.
//!
//! Rule: only an absent or too short file is ever extended; existing bytes change through `write_at` alone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::format::Image;
use super::{COPY_BYTES, CopyState, FactsError, Store};

const NAMES: [&str; 2] = ["facts-1", "facts-2"];

/// Opens or makes both files.
pub(super) fn open(folder: &Path) -> Result<[FileStore; 2], FactsError> {
    let mut made = false;
    let mut store = |name: &str| {
        let path = folder.join(name);
        let (file, extended) = reserve(&path)?;
        made |= extended;
        Ok(FileStore(file))
    };
    let stores = [store(NAMES[0])?, store(NAMES[1])?];
    if made {
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| failed("flushing the folder", folder, source))?;
    }
    Ok(stores)
}

/// Both files as they are, for reading only; makes nothing. One that is absent reads as one that nobody wrote to yet.
pub(super) fn read(folder: &Path) -> Result<[LookOnly; 2], FactsError> {
    let store = |name: &str| {
        let path = folder.join(name);
        match File::open(&path) {
            Ok(file) => Ok(LookOnly(Some(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(LookOnly(None)),
            Err(source) => Err(failed("opening", &path, source)),
        }
    };
    Ok([store(NAMES[0])?, store(NAMES[1])?])
}

/// What each copy reads as. Opens for reading only and makes nothing.
pub(super) fn look(folder: &Path) -> [(PathBuf, CopyState); 2] {
    NAMES.map(|name| {
        let path = folder.join(name);
        let state = match File::open(&path) {
            Ok(file) => CopyState::of(&Image::read(&FileStore(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => CopyState::Absent,
            Err(error) => CopyState::Unreadable(error.to_string()),
        };
        (path, state)
    })
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> FactsError {
    FactsError::Io { doing, path: PathBuf::from(path), source }
}

/// The file with all of its space, and whether it had to be made or extended. Read-only where nothing else is
/// allowed, so that `status` works for everyone.
fn reserve(path: &Path) -> Result<(File, bool), FactsError> {
    let writable = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = match writable {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            let file = File::open(path).map_err(|source| failed("opening", path, source))?;
            return Ok((file, false));
        }
        Err(source) => return Err(failed("opening", path, source)),
    };
    let len = file.metadata().map_err(|source| failed("reading the size of", path, source))?.len();
    if len >= COPY_BYTES {
        return Ok((file, false));
    }
    // Written, not only declared: a hole would need space later, when there may be none.
    let zeros = vec![0; (COPY_BYTES - len) as usize];
    let reserved = file.write_all_at(&zeros, len).and_then(|()| file.sync_all());
    reserved.map_err(|source| failed("reserving space for", path, source))?;
    Ok((file, true))
}

/// One copy as a file.
pub(super) struct FileStore(File);

impl Store for FileStore {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// One copy for those who only look. What is not there yet reads as the zeros that a writer would reserve.
pub(super) struct LookOnly(Option<File>);

impl Store for LookOnly {
    fn len(&self) -> io::Result<u64> {
        Ok(COPY_BYTES)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        if let Some(file) = &self.0 {
            while filled < buffer.len() {
                match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        buffer[filled..].fill(0);
        Ok(())
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
