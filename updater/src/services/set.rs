//! Which image each slot of each service holds, and which slot serves: the services' own boot record.
//!
//! Not here: the OS boot record, history and quarantine (`facts`). Rule: one file for each OS slot, replaced in one durable
//! step, so that the OS slot that starts brings its own services with it; what `choose` names is what serves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use switchback_bootloader::boot_state::{BootState, SlotBoot};
use switchback_partitions::slot::Slot;

use crate::config::service::Name;
use crate::digest::Digest;
use crate::facts::FactsError;
use crate::host::state_dir::StateDir;
use crate::lifecycle::Release;

/// The longest set that is read, in bytes.
const SET_BYTES_MAX: u64 = 1 << 20;
/// The version of the format.
const SCHEMA: u32 = 1;

/// The services of one OS slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    /// By name.
    pub services: BTreeMap<Name, Record>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    schema: u32,
    services: BTreeMap<Name, Record>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number among the services: its network addresses are made of it.
    pub index: u8,
    /// What each slot is, as for an OS: good, on trial, bad, empty.
    pub boot: BootState,
    /// What each slot holds.
    pub slots: [Option<Held>; 2],
}

/// An image in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What was ordered: the signed digest, and what it calls itself.
    pub release: Release,
    /// The manifest in the store; another digest where an index was signed.
    pub image: Digest,
}

impl Record {
    /// A service that never ran. To go "back" from its first image is to run nothing: that is what slot b holds, and it is good.
    fn new(index: u8) -> Record {
        let boot = BootState { slots: [SlotBoot::Empty, SlotBoot::Good], wanted: Slot::B };
        Record { index, boot, slots: [None, None] }
    }

    /// The slot that serves when nothing is being tried.
    pub fn serving(&self) -> Slot {
        let wanted = self.boot.wanted;
        let good = [wanted, wanted.other()].into_iter().find(|slot| self.boot.slot(*slot) == SlotBoot::Good);
        good.unwrap_or(wanted)
    }

    /// What a slot holds.
    pub fn held(&self, slot: Slot) -> Option<&Held> {
        self.slots[slot.index()].as_ref()
    }
}

impl Set {
    /// The set of the OS slot; none yet is an empty one.
    ///
    /// # Errors
    /// A file that is there and cannot be used: what serves is not guessed.
    pub fn load(folder: &dyn StateDir, os: Slot) -> Result<Set, FactsError> {
        let name = file_name(os);
        let failed = |source| FactsError::Io { doing: "reading", path: folder.path().join(&name), source };
        let Some(bytes) = folder.read(&name, SET_BYTES_MAX).map_err(failed)? else {
            return Ok(Set::default());
        };
        let broken = |what: String| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        let document: Document = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        if document.schema != SCHEMA {
            return Err(broken(format!("it has format {}, known here is {SCHEMA}", document.schema)));
        }
        Ok(Set { services: document.services })
    }

    /// True when the OS slot has a set of its own.
    pub fn exists(folder: &dyn StateDir, os: Slot) -> bool {
        folder.path().join(file_name(os)).exists()
    }

    /// Makes the set durable: at every instant it reads as the old one or the new one.
    pub fn store(&self, folder: &dyn StateDir, os: Slot) -> Result<(), FactsError> {
        let (name, document) = (file_name(os), Document { schema: SCHEMA, services: self.services.clone() });
        let written = serde_json::to_vec_pretty(&document).map_err(std::io::Error::other);
        let written = written.and_then(|bytes| folder.replace(&name, &bytes));
        written.map_err(|source| FactsError::Io { doing: "writing", path: folder.path().join(&name), source })
    }

    /// The service's record, made with the lowest free number when there is none. None when all numbers are taken.
    pub fn record(&mut self, name: &Name) -> Option<&mut Record> {
        if !self.services.contains_key(name) {
            let is_free = |index: &u8| self.services.values().all(|record| record.index != *index);
            let index = (0..=u8::MAX).find(is_free)?;
            self.services.insert(name.clone(), Record::new(index));
        }
        self.services.get_mut(name)
    }
}

fn file_name(os: Slot) -> String {
    format!("services-{os}.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::state_dir::Folder;

    #[test]
    fn a_set_is_one_file_for_each_os_slot_and_numbers_are_not_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        let mut set = Set::load(&folder, Slot::A).unwrap();
        let (dns, ntp) = ("dns".parse().unwrap(), "ntp".parse().unwrap());
        assert_eq!(set.record(&dns).unwrap().index, 0);
        assert_eq!(set.record(&ntp).unwrap().index, 1);
        set.services.remove(&dns);
        assert_eq!((set.record(&ntp).unwrap().index, set.record(&dns).unwrap().index), (1, 0));
        set.store(&folder, Slot::A).unwrap();
        assert_eq!(Set::load(&folder, Slot::A).unwrap(), set);
        assert_eq!(Set::load(&folder, Slot::B).unwrap(), Set::default());
    }

    #[test]
    fn a_set_that_cannot_be_read_is_no_empty_set() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        for text in ["", "{", "{\"schema\":2,\"services\":{}}"] {
            std::fs::write(dir.path().join("services-a.json"), text).unwrap();
            assert!(Set::load(&folder, Slot::A).is_err(), "{text}");
        }
    }

    #[test]
    fn what_serves_is_good_and_a_trial_is_not_yet() {
        let mut record = Record::new(0);
        assert_eq!(record.serving(), Slot::B, "nothing serves, in slot b");
        record.boot = record.boot.arm(Slot::A, 1);
        assert_eq!(record.serving(), Slot::B);
        record.boot = record.boot.confirm(Slot::A);
        assert_eq!(record.serving(), Slot::A);
    }
}
