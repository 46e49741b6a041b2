//! How far an interrupted install came, so that the next run pays for no byte twice.
//!
//! Not here: the bytes themselves. Rule: the journal is a hint. What it claims is read back and compared with the
//! signed index before it counts; a lost or torn journal costs a download, never a wrong slot.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use switchback_partitions::slot::Slot;

use super::InstallError;
use crate::digest::Digest;

const JOURNAL_BYTES_MAX: u64 = 64 * 1024;

/// The journal of one install.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    entry: Mutex<Entry>,
    resumed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    release: Digest,
    slot: Slot,
    /// Flushed bytes of the slot partition, from its start.
    done_bytes: u64,
}

impl Journal {
    /// Continues the journal in `state_dir` when it is of the same release and slot, else begins at zero.
    pub fn open(state_dir: &Path, release: Digest, slot: Slot) -> Result<Journal, InstallError> {
        let path = state_dir.join("journal.json");
        let old = read(&path).filter(|old| old.release == release && old.slot == slot);
        let resumed = old.is_some();
        let entry = old.unwrap_or(Entry { release, slot, done_bytes: 0 });
        let journal = Journal { path, entry: Mutex::new(entry), resumed };
        // Begun is worth writing down: bytes behind the last mark may lie in the slot all the same.
        journal.store(&journal.lock())?;
        Ok(journal)
    }

    /// True when an earlier run of the same release began on this slot.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Bytes from the slot's start that were flushed by an earlier run of the same release.
    pub fn done_bytes(&self) -> u64 {
        self.lock().done_bytes
    }

    /// The flushed bytes now reach to `bytes`. Durable on return.
    pub fn reached(&self, bytes: u64) -> Result<(), InstallError> {
        let mut entry = self.lock();
        if bytes > entry.done_bytes {
            entry.done_bytes = bytes;
            self.store(&entry)?;
        }
        Ok(())
    }

    /// The install is complete; the next one starts afresh.
    pub fn finish(&self) -> Result<(), InstallError> {
        match std::fs::remove_file(&self.path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => self.failed(source),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entry> {
        self.entry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn store(&self, entry: &Entry) -> Result<(), InstallError> {
        let text = serde_json::to_vec(entry).map_err(|e| e.into());
        text.and_then(|text| crate::host::durable::replace(&self.path, &text))
            .or_else(|source| self.failed(source))
    }

    fn failed<T>(&self, source: std::io::Error) -> Result<T, InstallError> {
        Err(InstallError::State { path: self.path.clone(), source })
    }
}

fn read(path: &Path) -> Option<Entry> {
    let bytes = crate::host::durable::read_bounded(path, JOURNAL_BYTES_MAX).ok()??;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_counts_only_for_the_same_release_and_slot_and_a_torn_one_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        Journal::open(dir.path(), one, Slot::B).unwrap().reached(4096).unwrap();
        assert_eq!(Journal::open(dir.path(), one, Slot::B).unwrap().done_bytes(), 4096);
        assert_eq!(Journal::open(dir.path(), one, Slot::A).unwrap().done_bytes(), 0);
        assert_eq!(Journal::open(dir.path(), two, Slot::B).unwrap().done_bytes(), 0);
        std::fs::write(dir.path().join("journal.json"), b"{\"release\":\"sha2").unwrap();
        assert_eq!(Journal::open(dir.path(), one, Slot::B).unwrap().done_bytes(), 0);
    }

    #[test]
    fn the_mark_never_goes_back_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), Digest::of(b"1"), Slot::B).unwrap();
        journal.reached(8192).unwrap();
        journal.reached(4096).unwrap();
        assert_eq!(journal.done_bytes(), 8192);
        journal.finish().unwrap();
        assert_eq!(Journal::open(dir.path(), Digest::of(b"1"), Slot::B).unwrap().done_bytes(), 0);
    }
}
