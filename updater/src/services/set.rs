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

/// Which set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one of an OS slot.
    Of(Slot),
    /// The one that an OS slot gets when the release that is being installed there is armed.
    Next,
}

/// The services of one OS slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    /// By name.
    pub services: BTreeMap<Name, Record>,
    /// The release that they follow; `None`: no release says anything about them.
    pub follows: Option<Followed>,
    /// What they followed before, on the same OS: the way back without a restart.
    pub before: Option<Followed>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    schema: u32,
    services: BTreeMap<Name, Record>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    follows: Option<Followed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Followed>,
}

/// A release and what it says of the services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// The release.
    pub release: Release,
    /// Its OS image: what the OS slot must hold.
    pub image: Digest,
    /// The image that it binds each service to; a service that is not named is its operator's.
    pub services: BTreeMap<Name, Digest>,
}

/// A service that serves from another image than the release binds it to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// Which service.
    pub service: Name,
    /// The image in the release.
    pub bound: Digest,
    /// What serves; `None`: nothing does.
    pub serving: Option<Release>,
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
    /// A set; none yet is an empty one.
    ///
    /// # Errors
    /// A file that is there and cannot be used: what serves is not guessed.
    pub fn load(folder: &dyn StateDir, which: Which) -> Result<Set, FactsError> {
        let name = which.file_name();
        let failed = |source| FactsError::Io { doing: "reading", path: folder.path().join(&name), source };
        let Some(bytes) = folder.read(&name, SET_BYTES_MAX).map_err(failed)? else {
            return Ok(Set::default());
        };
        let broken = |what: String| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        let document: Document = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        if document.schema != SCHEMA {
            return Err(broken(format!("it has format {}, known here is {SCHEMA}", document.schema)));
        }
        let Document { services, follows, before, .. } = document;
        Ok(Set { services, follows, before })
    }

    /// True when there is such a set.
    pub fn exists(folder: &dyn StateDir, which: Which) -> bool {
        folder.path().join(which.file_name()).exists()
    }

    /// Makes the set durable: at every instant it reads as the old one or the new one.
    pub fn store(&self, folder: &dyn StateDir, which: Which) -> Result<(), FactsError> {
        let name = which.file_name();
        let Set { services, follows, before } = self.clone();
        let document = Document { schema: SCHEMA, services, follows, before };
        let written = serde_json::to_vec_pretty(&document).map_err(std::io::Error::other);
        let written = written.and_then(|bytes| folder.replace(&name, &bytes));
        written.map_err(|source| FactsError::Io { doing: "writing", path: folder.path().join(&name), source })
    }

    /// There is no such set afterwards.
    pub fn remove(folder: &dyn StateDir, which: Which) -> Result<(), FactsError> {
        let name = which.file_name();
        let removed = folder.remove(&name);
        removed.map_err(|source| FactsError::Io {
            doing: "removing",
            path: folder.path().join(&name),
            source,
        })
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

    /// The set that another OS slot gets with a release: these services as they serve now, those that the release binds from
    /// its images. What is being tried here is not taken along. Fails with the name of a service for which no number is free.
    pub fn with_release(&self, follows: Followed, images: &BTreeMap<Name, Held>) -> Result<Set, Name> {
        let mut next = Set { services: self.services.clone(), follows: Some(follows), before: None };
        for record in next.services.values_mut() {
            let other = record.serving().other();
            if matches!(record.boot.slot(other), SlotBoot::Trial { .. }) {
                record.boot = record.boot.forget(other);
            }
        }
        for (name, held) in images {
            let record = next.record(name).ok_or_else(|| name.clone())?;
            let serving = record.serving();
            if record.held(serving).is_some_and(|serves| serves.release.digest == held.release.digest) {
                continue;
            }
            // What served is the way back of this service alone, without the OS.
            let slot = serving.other();
            record.slots[slot.index()] = Some(held.clone());
            record.boot = record.boot.forget(slot).arm(slot, 1).confirm(slot);
        }
        Ok(next)
    }

    /// The services that do not serve what the release binds them to.
    pub fn drift(&self) -> Vec<Drift> {
        let bound = self.follows.iter().flat_map(|follows| &follows.services);
        let serves = |name: &Name| {
            let record = self.services.get(name)?;
            record.held(record.serving()).map(|held| held.release.clone())
        };
        let drift =
            bound.map(|(name, bound)| Drift { service: name.clone(), bound: *bound, serving: serves(name) });
        drift
            .filter(|drift| drift.serving.as_ref().is_none_or(|serves| serves.digest != drift.bound))
            .collect()
    }

    /// Every image that a slot of a service counts on.
    pub fn images(&self) -> impl Iterator<Item = Digest> + '_ {
        self.services.values().flat_map(|record| record.slots.iter().flatten()).map(|held| held.image)
    }
}

impl Which {
    /// Every set that images are kept for.
    pub const ALL: [Which; 3] = [Which::Of(Slot::A), Which::Of(Slot::B), Which::Next];

    fn file_name(self) -> String {
        match self {
            Which::Of(os) => format!("services-{os}.json"),
            Which::Next => "services-next.json".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::state_dir::Folder;

    #[test]
    fn a_set_is_one_file_for_each_os_slot_and_numbers_are_not_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        let mut set = Set::load(&folder, Which::Of(Slot::A)).unwrap();
        let (dns, ntp) = ("dns".parse().unwrap(), "ntp".parse().unwrap());
        assert_eq!(set.record(&dns).unwrap().index, 0);
        assert_eq!(set.record(&ntp).unwrap().index, 1);
        set.services.remove(&dns);
        assert_eq!((set.record(&ntp).unwrap().index, set.record(&dns).unwrap().index), (1, 0));
        set.store(&folder, Which::Of(Slot::A)).unwrap();
        assert_eq!(Set::load(&folder, Which::Of(Slot::A)).unwrap(), set);
        assert_eq!(Set::load(&folder, Which::Of(Slot::B)).unwrap(), Set::default());
    }

    #[test]
    fn a_set_that_cannot_be_read_is_no_empty_set() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        for text in ["", "{", "{\"schema\":2,\"services\":{}}"] {
            std::fs::write(dir.path().join("services-a.json"), text).unwrap();
            assert!(Set::load(&folder, Which::Of(Slot::A)).is_err(), "{text}");
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

    fn held(text: &str) -> Held {
        let digest = Digest::of(text.as_bytes());
        Held { release: Release { digest, version: text.into(), security_version: 0 }, image: digest }
    }

    #[test]
    fn a_release_moves_what_it_binds_and_leaves_the_rest_as_it_serves() {
        let [dns, ntp, log]: [Name; 3] = ["dns", "ntp", "log"].map(|name| name.parse().unwrap());
        let mut set = Set::default();
        for (name, image) in [(&dns, "dns-1"), (&ntp, "ntp-1")] {
            let record = set.record(name).unwrap();
            record.slots[0] = Some(held(image));
            record.boot = record.boot.arm(Slot::A, 1).confirm(Slot::A);
        }
        let on_trial = set.record(&ntp).unwrap();
        on_trial.slots[1] = Some(held("ntp-2"));
        on_trial.boot = on_trial.boot.arm(Slot::B, 2);
        let images = BTreeMap::from([(dns.clone(), held("dns-2")), (log.clone(), held("log-1"))]);
        let services = images.iter().map(|(name, held)| (name.clone(), held.release.digest)).collect();
        let follows = Followed { release: held("2.0").release, image: Digest::of(b"os"), services };
        let next = set.with_release(follows.clone(), &images).unwrap();
        let serves = |set: &Set, name: &Name| {
            let record = &set.services[name];
            record.held(record.serving()).unwrap().release.version.clone()
        };
        assert_eq!([&dns, &ntp, &log].map(|name| serves(&next, name)), ["dns-2", "ntp-1", "log-1"]);
        assert_eq!(next.services[&ntp].boot.slot(Slot::B), SlotBoot::Empty, "no trial goes along");
        assert_eq!(next.services[&dns].held(Slot::A), Some(&held("dns-1")), "the way back of dns alone");
        assert_eq!(next.services[&dns].index, set.services[&dns].index);
        assert!(next.drift().is_empty());
        let again = next.with_release(follows, &images).unwrap();
        assert_eq!(again, next, "once more changes nothing");
    }

    #[test]
    fn what_serves_something_else_than_the_release_says_has_drifted() {
        let dns: Name = "dns".parse().unwrap();
        let services = BTreeMap::from([(dns.clone(), Digest::of(b"dns-2"))]);
        let follows = Followed { release: held("2.0").release, image: Digest::of(b"os"), services };
        let mut set = Set { follows: Some(follows), ..Set::default() };
        let bound = Digest::of(b"dns-2");
        assert_eq!(set.drift(), [Drift { service: dns.clone(), bound, serving: None }]);
        let record = set.record(&dns).unwrap();
        record.slots = [Some(held("dns-1")), None];
        record.boot = record.boot.arm(Slot::A, 1).confirm(Slot::A);
        assert_eq!(set.drift()[0].serving, Some(held("dns-1").release));
        set.record(&dns).unwrap().slots[0] = Some(held("dns-2"));
        assert!(set.drift().is_empty());
    }
}
