//! The lock that everyone takes who changes a disk's partition table (systemd's block-device locking: `flock` on the
//! whole-disk node; udev honours it).
//!
//! Not here: the table. Rule: waiting for a lock ends with an error, never with a hang.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long another holder may keep the disk. udev holds it for the length of a probe.
const WAIT_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// An exclusive lock on a whole disk, given back when dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub struct DiskLock(#[expect(dead_code, reason = "closing the file gives the lock back")] Option<File>);

impl DiskLock {
    /// Locks the whole-disk node (or image file) at `path`. `WouldBlock` when somebody holds it for 30 seconds.
    pub fn acquire(path: &Path) -> io::Result<DiskLock> {
        Self::acquire_within(path, WAIT_LIMIT)
    }

    /// For a disk that only this process can see.
    pub fn not_needed() -> DiskLock {
        DiskLock(None)
    }

    fn acquire_within(path: &Path, limit: Duration) -> io::Result<DiskLock> {
        // Read-only: closing a node that was open for writing makes udev probe the whole disk again.
        let file = OpenOptions::new().read(true).open(path)?;
        let deadline = Instant::now() + limit;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(DiskLock(Some(file))),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    let message = format!("{}: locked by another program", path.display());
                    return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(POLL),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_waits_fails_and_succeeds_once_the_first_is_gone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = DiskLock::acquire(file.path()).unwrap();
        let error = DiskLock::acquire_within(file.path(), Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(first);
        assert!(DiskLock::acquire_within(file.path(), Duration::ZERO).is_ok());
    }
}
