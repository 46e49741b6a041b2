//! How far an interrupted install came, so that the next run pays for no byte twice.
//!
//! Not here: the bytes themselves. Rule: the journal is a hint. What it claims is read back and compared with the
//! signed index before it counts; a lost or torn journal costs a download, never a wrong slot.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use switchback_partitions::slot::Slot;

use super::InstallError;
use crate::digest::Digest;
use crate::host::state_dir::StateDir;

const FILE: &str = "journal.json";
const JOURNAL_BYTES_MAX: u64 = 64 * 1024;

/// The journal of one install.
pub struct Journal<'a> {
    state_dir: &'a dyn StateDir,
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

impl<'a> Journal<'a> {
    /// Continues the journal in `state_dir` when it is of the same release and slot, else begins at zero.
    pub fn open(
        state_dir: &'a dyn StateDir,
        release: Digest,
        slot: Slot,
    ) -> Result<Journal<'a>, InstallError> {
        let old = read(state_dir).filter(|old| old.release == release && old.slot == slot);
        let resumed = old.is_some();
        let entry = old.unwrap_or(Entry { release, slot, done_bytes: 0 });
        let journal = Journal { state_dir, entry: Mutex::new(entry), resumed };
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
        self.state_dir.remove(FILE).or_else(|source| self.failed(source))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entry> {
        self.entry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn store(&self, entry: &Entry) -> Result<(), InstallError> {
        let text = serde_json::to_vec(entry).map_err(|e| e.into());
        text.and_then(|text| self.state_dir.replace(FILE, &text)).or_else(|source| self.failed(source))
    }

    fn failed<T>(&self, source: std::io::Error) -> Result<T, InstallError> {
        Err(InstallError::State { path: self.state_dir.path().join(FILE), source })
    }
}

fn read(state_dir: &dyn StateDir) -> Option<Entry> {
    let bytes = state_dir.read(FILE, JOURNAL_BYTES_MAX).ok()??;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::state_dir::Folder;

    #[test]
    fn a_journal_counts_only_for_the_same_release_and_slot_and_a_torn_one_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        Journal::open(&folder, one, Slot::B).unwrap().reached(4096).unwrap();
        assert_eq!(Journal::open(&folder, one, Slot::B).unwrap().done_bytes(), 4096);
        assert_eq!(Journal::open(&folder, one, Slot::A).unwrap().done_bytes(), 0);
        assert_eq!(Journal::open(&folder, two, Slot::B).unwrap().done_bytes(), 0);
        std::fs::write(dir.path().join(FILE), b"{\"release\":\"sha2").unwrap();
        assert_eq!(Journal::open(&folder, one, Slot::B).unwrap().done_bytes(), 0);
    }

    #[test]
    fn the_mark_never_goes_back_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        let journal = Journal::open(&folder, Digest::of(b"1"), Slot::B).unwrap();
        journal.reached(8192).unwrap();
        journal.reached(4096).unwrap();
        assert_eq!(journal.done_bytes(), 8192);
        journal.finish().unwrap();
        assert_eq!(Journal::open(&folder, Digest::of(b"1"), Slot::B).unwrap().done_bytes(), 0);
    }
}
