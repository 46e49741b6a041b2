//! The two copies as files whose space is reserved once: a full file system cannot stop a fact.
//!
//! Rule: only an absent or too short file is ever extended; existing bytes change through `write_at` alone.

use std::io;
use std::path::PathBuf;

use super::format::Image;
use super::{COPY_BYTES, CopyState, FactsError, Store};
use crate::host::state_dir::StateDir;

const NAMES: [&str; 2] = ["facts-1", "facts-2"];
/// The most that is read of a copy, in bytes: a later version may reserve more.
const COPY_BYTES_MAX: u64 = 4 * COPY_BYTES;

/// Opens or makes both files.
pub(super) fn open(folder: &dyn StateDir) -> Result<[Box<dyn Store>; 2], FactsError> {
    let mut made = false;
    let mut store = |name: &str| {
        let (store, extended) = reserve(folder, name)?;
        made |= extended;
        Ok(store)
    };
    let stores = [store(NAMES[0])?, store(NAMES[1])?];
    if made {
        folder.sync_folder().map_err(|source| FactsError::Io {
            doing: "flushing the folder",
            path: folder.path().to_path_buf(),
            source,
        })?;
    }
    Ok(stores)
}

/// Both files as they are, for reading only; makes nothing. One that is absent reads as one that nobody wrote to yet.
pub(super) fn read(folder: &dyn StateDir) -> Result<[LookOnly; 2], FactsError> {
    let store = |name: &str| {
        let bytes = folder.read(name, COPY_BYTES_MAX).map_err(failed(folder, "opening", name))?;
        Ok(LookOnly(bytes.unwrap_or_default()))
    };
    Ok([store(NAMES[0])?, store(NAMES[1])?])
}

/// What each copy reads as. Opens for reading only and makes nothing.
pub(super) fn look(folder: &dyn StateDir) -> [(PathBuf, CopyState); 2] {
    NAMES.map(|name| {
        let state = match folder.read(name, COPY_BYTES_MAX) {
            Ok(Some(bytes)) => CopyState::of(&Image::read(&LookOnly(bytes))),
            Ok(None) => CopyState::Absent,
            Err(error) => CopyState::Unreadable(error.to_string()),
        };
        (folder.path().join(name), state)
    })
}

fn failed(folder: &dyn StateDir, doing: &'static str, name: &str) -> impl FnOnce(io::Error) -> FactsError {
    let path = folder.path().join(name);
    move |source| FactsError::Io { doing, path, source }
}

/// The file with all of its space, and whether it had to be made or extended. As it is where it may only be read, so
/// that `status` works for everyone.
fn reserve(folder: &dyn StateDir, name: &str) -> Result<(Box<dyn Store>, bool), FactsError> {
    let failed = |doing| failed(folder, doing, name);
    let found = folder.open(name).map_err(failed("opening"))?;
    let len = match &found {
        Some(store) => store.len().map_err(failed("reading the size of"))?,
        None => 0,
    };
    if let Some(store) = found {
        if len >= COPY_BYTES {
            return Ok((store, false));
        }
        let zeros = vec![0; (COPY_BYTES - len) as usize];
        return match store.write_at(len, &zeros) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok((store, false)),
            Err(source) => Err(failed("reserving space for")(source)),
            Ok(()) => Ok((store, true)),
        };
    }
    // Written, not only declared: a hole would need space later, when there may be none. Not flushed: the first fact is, and
    // what a power cut takes before that is reserved again.
    folder.write(name, &vec![0; COPY_BYTES as usize]).map_err(failed("reserving space for"))?;
    let store = folder.open(name).map_err(failed("opening"))?;
    let store = store.ok_or(io::ErrorKind::NotFound.into()).map_err(failed("opening"))?;
    Ok((store, true))
}

/// One copy for those who only look. What is not there yet reads as the zeros that a writer would reserve.
pub(super) struct LookOnly(Vec<u8>);

impl Store for LookOnly {
    fn len(&self) -> io::Result<u64> {
        Ok(COPY_BYTES)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = self.0.get(offset as usize..).unwrap_or_default();
        let there = from.len().min(buffer.len());
        buffer[..there].copy_from_slice(&from[..there]);
        buffer[there..].fill(0);
        Ok(())
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
