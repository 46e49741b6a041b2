//! What can be seen of the machine, gathered in the order of belief.
//!
//! Not here: what follows from it; the look at one slot (`held`). Rule: a slot's content is what its re-verified passport
//! says; one that does not verify is no content at all, and its problem is told.

use switchback_bootloader::boot_state::BootState;
use switchback_partitions::slot::Slot;

use super::answers::Content;
use super::held::{Fault, Look};
use super::{Failure, host_reason};
use crate::digest::Digest;
use crate::facts::Facts;
use crate::host::Machine;
use crate::host::clock::Clock;
use crate::init::stage::{self, Mark};
use crate::install::Release;
use crate::lifecycle::{self, Moment, Observation, Stage};
use crate::reason::Reason;
use crate::services::follow::follows_instead;
use crate::trust::Policy;

/// An observation with what was seen on the way to it.
pub struct Seen {
    /// What `step` is given.
    pub observation: Observation,
    /// The verified release of each slot.
    pub releases: [Option<Release>; 2],
    /// What each slot holds, in a word.
    pub contents: [Content; 2],
    /// What is wrong with each slot.
    pub problems: [Option<Fault>; 2],
    /// The witness's words.
    pub evidence: String,
    /// The bootloader's name.
    pub bootloader: &'static str,
}

impl Seen {
    /// The newest time that the trusted keys signed, in seconds since 1970: when the releases in the slots were made.
    pub fn signed_unix_secs(&self) -> u64 {
        let made = self.releases.iter().flatten().filter_map(|release| release.manifest.created_unix_secs());
        made.max().unwrap_or(0)
    }

    /// The boot files of the running slot.
    pub fn boot_files(&self) -> Vec<Digest> {
        let running = self.releases[self.observation.running.index()].as_ref();
        let layers = running.map(|running| &*running.manifest.boot).unwrap_or_default();
        layers.iter().map(|layer| layer.blob.digest).collect()
    }

    /// As an order to update sees it: a release that has lost its entry or a boot file is not there, and is written anew. Read
    /// back, it would only be refused, and the order with it. Gives the words for the person, if there is such a release.
    pub fn for_update(&mut self) -> Option<String> {
        let other = self.observation.running.other();
        let Some(Fault::NotWhole(words)) = &self.problems[other.index()] else { return None };
        let lost = self.observation.slots[other.index()].take()?;
        Some(format!("Slot {other} holds {}, but {words}: the slot is written anew.", lost.version))
    }
}

/// Looks at everything.
pub fn observe(
    machine: &dyn Machine,
    trust: Result<&Policy, &Failure>,
    facts: &Facts,
) -> Result<Seen, Failure> {
    let witness = machine.running().map_err(|e| Failure::before(host_reason(&e), e))?;
    let bootloader = machine.bootloader().map_err(|e| Failure::before(host_reason(&e), e))?;
    let boot: BootState = bootloader.read().map_err(|e| Failure::before(Reason::BootRecordFailed, e))?;
    let layout = machine.layout().ok();
    let look = Look {
        bootloader: &*bootloader,
        boot,
        running: Some(witness.slot),
        layout: layout.as_ref(),
        state_dir: machine.state_dir(),
        trust: trust.ok(),
    };
    let [a, b] = Slot::ALL.map(|slot| look.at(slot));
    let (contents, problems) = ([a.content, b.content], [a.fault, b.fault]);
    let releases = [a.release, b.release];
    let mut known = facts.known().clone();
    for slot in Slot::ALL {
        // A mark that cannot be read is a mark that was not left: it only makes the reason less exact.
        for mark in Mark::read_all(machine.state_dir(), slot).unwrap_or_default() {
            let reached = match mark.stage {
                stage::Stage::Initramfs => Stage::Initramfs,
                stage::Stage::RootMounted => Stage::RootMounted,
                stage::Stage::DeadlinePassed => Stage::DeadlinePassed,
                _ => Stage::BootCheck,
            };
            known.marks.insert(mark.boot_id, (slot, reached));
        }
    }
    let mut slots = [0, 1].map(|index| releases[index].as_ref().map(summary));
    // Moved without a restart: the OS in the slot is the same, and what runs is another release of it.
    if let Some(running) = &releases[witness.slot.index()]
        && let Some(follows) = follows_instead(machine.state_dir(), witness.slot, &running.image)
    {
        slots[witness.slot.index()] = Some(follows);
    }
    let observation =
        Observation { running: witness.slot, boot, slots, now: moment(machine, witness.boot_id), known };
    let evidence = witness.evidence;
    Ok(Seen { observation, releases, contents, problems, evidence, bootloader: bootloader.name() })
}

/// A release as `lifecycle` knows it.
pub fn summary(release: &Release) -> lifecycle::Release {
    lifecycle::Release {
        digest: release.digest,
        version: release.version().to_owned(),
        security_version: release.config.security_version,
    }
}

/// The moment, in this boot.
pub fn moment(machine: &dyn Machine, boot_id: String) -> Moment {
    let Clock { uptime_secs, unix_secs } = machine.clock();
    Moment { boot_id, uptime_secs, unix_secs }
}
