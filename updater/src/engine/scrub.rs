//! Is what lies in the slots still what was signed?
//!
//! Not here: mending it; the next update does. Rule: it reads and reports, takes no lock and changes nothing: an update may
//! begin meanwhile, and the slot that it writes then counts as half-written or as changed, never as sound.

use std::sync::Arc;
use std::time::Duration;

use switchback_bootloader::record::Bootloader;
use switchback_partitions::device::{BlockDevice, Window};
use switchback_partitions::layout::{DiskLayout, Extent};
use switchback_partitions::slot::Slot;

use super::answers::{Answer, Content, Scrubbed, SlotScrub, Soundness};
use super::observe::Seen;
use super::{Engine, Failure, chain, host_reason};
use crate::install::{Depth, InstallError, Place, Release, read_back};
use crate::reason::Reason;

/// Between two looks at documents that do not verify.
const A_MOMENT: Duration = Duration::from_secs(1);

impl Engine<'_> {
    /// Reads all of both slots, or of one.
    pub(super) fn scrub(&self, only: Option<Slot>) -> Result<Answer, Failure> {
        // Without keys nothing can be called sound.
        self.trusted().map_err(Failure::clone)?;
        let seen = self.observe()?;
        let host = |e: crate::host::HostError| Failure::before(host_reason(&e), e);
        let bootloader = self.machine.bootloader().map_err(host)?;
        let (whole, layout) = self.layout().map_err(|(why, untouched)| Failure { why, untouched })?;
        let wanted = Slot::ALL.into_iter().filter(|slot| only.is_none_or(|only| only == *slot));
        let slots: Result<Vec<SlotScrub>, Failure> =
            wanted.map(|slot| self.scrub_slot(slot, &seen, &whole, &layout, &*bootloader)).collect();
        Ok(Answer::Scrub(Scrubbed { slots: slots? }))
    }

    fn scrub_slot(
        &self,
        slot: Slot,
        seen: &Seen,
        whole: &Arc<dyn BlockDevice>,
        layout: &DiskLayout,
        bootloader: &dyn Bootloader,
    ) -> Result<SlotScrub, Failure> {
        let release = seen.releases[slot.index()].as_ref();
        let (soundness, detail) = match (seen.contents[slot.index()], &seen.problems[slot.index()], release) {
            (_, Some(found), _) => match self.has_the_fault_still(slot, &found.to_string())? {
                true => (Soundness::Damaged, found.to_string()),
                false => (Soundness::Changed, String::new()),
            },
            (Content::HalfWritten, ..) => (Soundness::HalfWritten, String::new()),
            (_, None, None) => (Soundness::Empty, String::new()),
            (_, None, Some(release)) => {
                self.progress.say(&format!("Reading slot {slot}, {}.", release.version()));
                let partitions = layout.slot(slot);
                let window = |extent: &Extent| {
                    let window = Window::new(whole.clone(), extent.offset, extent.len);
                    window.map_err(|e| Failure::before(Reason::LayoutUnknown, e))
                };
                let (root, tree) = (window(&partitions.root)?, window(&partitions.verity)?);
                let place = Place { slot, root: &root, tree: &tree, bootloader };
                match read_back(release, &place, Depth::Everything, self.progress) {
                    Ok(()) => (Soundness::Sound, String::new()),
                    Err(error) if !is_damage(&error) => return Err(Failure::before(error.reason(), error)),
                    Err(_) if self.holds_another(slot, release)? => (Soundness::Changed, String::new()),
                    Err(error) => (Soundness::Damaged, chain(&error)),
                }
            }
        };
        let running = seen.observation.running == slot;
        Ok(SlotScrub { slot, running, release: release.map(Release::name), soundness, detail })
    }

    /// True when the slot has the same fault a moment later: an update that writes its files is through by then.
    fn has_the_fault_still(&self, slot: Slot, found: &str) -> Result<bool, Failure> {
        std::thread::sleep(A_MOMENT);
        let now = self.observe()?;
        Ok(now.problems[slot.index()].as_ref().is_some_and(|fault| fault.to_string() == found))
    }

    /// True when the slot holds something else by now: an update began while it was read.
    fn holds_another(&self, slot: Slot, read: &Release) -> Result<bool, Failure> {
        let now = self.observe()?;
        let digest = now.releases[slot.index()].as_ref().map(|release| release.digest);
        Ok(digest != Some(read.digest) || now.contents[slot.index()] == Content::HalfWritten)
    }
}

/// Other bytes than the signed ones, a boot file or entry that is gone, or a medium that does not give them. What else can
/// fail says nothing of the slot.
fn is_damage(error: &InstallError) -> bool {
    error.reason() == Reason::ReadBackMismatch
        || matches!(error, InstallError::ReadSlot(_) | InstallError::Boot(_))
}
