//! A bootloader backend that holds whoever changes the boot record to the promises about it.
//!
//! Not here: the record. Rule: it looks and notes, and then does what it was asked.

use std::sync::Arc;

use switchback::digest::Digest;
use switchback::facts::Facts;
use switchback_bootloader::boot_state::{BootState, Change, SlotBoot};
use switchback_bootloader::record::{BootError, BootFile, BootFiles, Bootloader};
use switchback_partitions::slot::Slot;

use super::devices::CutFolder;
use super::promise::Promise;
use super::recorder::Recorder;

/// Longest manifest that is hashed, in bytes.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// The backend beneath, watched.
pub struct Guarded {
    /// What does the work.
    pub inner: Arc<dyn Bootloader>,
    /// Where a broken promise is noted.
    pub recorder: Arc<Recorder>,
    /// The machine's records, for what is quarantined.
    pub facts: CutFolder,
    /// The slot that runs.
    pub running: Slot,
    /// True when the running release's checks pass.
    pub fit: bool,
}

impl Guarded {
    fn check(&self, to: &BootState) {
        let Ok(from) = self.inner.read() else { return };
        let way_back = from.slot(self.running) == SlotBoot::Good;
        let broken = |promise, words: String| self.recorder.broken(promise, words);
        match from.change_to(to) {
            Ok(Change::Arm { slot, .. }) => {
                if slot == self.running {
                    broken(
                        Promise::RunningUntouched,
                        format!("slot {slot} runs and its entry is counted again"),
                    );
                } else if !way_back {
                    broken(
                        Promise::FallbackKept,
                        format!("slot {slot} is armed while the running one is not confirmed"),
                    );
                }
                if !self.recorder.is_proven(slot.index()) {
                    broken(Promise::ProvenBeforeArmed, format!("slot {slot} is armed and was not read back"));
                }
                if self.is_quarantined(slot) {
                    broken(
                        Promise::TriedOnce,
                        format!("slot {slot} is armed and its release is quarantined"),
                    );
                }
            }
            Ok(Change::Confirm(slot)) => {
                if slot != self.running || !self.fit {
                    broken(Promise::HealthBeforeConfirm, format!("slot {slot} is confirmed and is not well"));
                }
            }
            Ok(Change::Forget(slot)) => self.check_forget(slot, way_back),
            Ok(Change::None | Change::Revert(_) | Change::Prefer(_)) | Err(_) => {}
        }
    }

    fn check_forget(&self, slot: Slot, way_back: bool) {
        if slot == self.running {
            self.recorder.broken(Promise::RunningUntouched, format!("slot {slot} runs and loses its entry"));
        } else if !way_back {
            let words = format!("slot {slot} loses its entry and is the only way back");
            self.recorder.broken(Promise::FallbackKept, words);
        }
    }

    fn is_quarantined(&self, slot: Slot) -> bool {
        let manifest = self.inner.passport(slot, "manifest.json", MANIFEST_BYTES_MAX).ok().flatten();
        let known = Facts::read(&self.facts).ok();
        manifest
            .zip(known)
            .is_some_and(|(manifest, facts)| facts.known().quarantine.contains_key(&Digest::of(&manifest)))
    }
}

impl Bootloader for Guarded {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn read(&self) -> Result<BootState, BootError> {
        self.inner.read()
    }

    fn write(&self, state: &BootState) -> Result<(), BootError> {
        self.check(state);
        self.inner.write(state)?;
        let confirmed = self.inner.read()?.slot(self.running) == SlotBoot::Good;
        self.recorder.runs(Some(self.running.index()), confirmed);
        Ok(())
    }

    fn preflight(&self, slot: Slot, sizes: &[u64]) -> Result<(), BootError> {
        self.inner.preflight(slot, sizes)
    }

    fn forget(&self, slot: Slot) -> Result<(), BootError> {
        if let Ok(state) = self.inner.read() {
            self.check_forget(slot, state.slot(self.running) == SlotBoot::Good);
        }
        self.inner.forget(slot)
    }

    fn prepare(&self, slot: Slot, files: &BootFiles) -> Result<(), BootError> {
        if slot == self.running {
            self.recorder
                .broken(Promise::RunningUntouched, format!("the boot files of slot {slot} are written"));
        }
        self.inner.prepare(slot, files)
    }

    fn verify(&self, slot: Slot, files: &BootFiles) -> Result<(), BootError> {
        self.inner.verify(slot, files)
    }

    fn missing(&self, slot: Slot, files: &[BootFile]) -> Result<Option<String>, BootError> {
        self.inner.missing(slot, files)
    }

    fn copy(
        &self,
        slot: Slot,
        name: &str,
        limit: u64,
        sink: &mut dyn std::io::Write,
    ) -> Result<Option<u64>, BootError> {
        self.inner.copy(slot, name, limit, sink)
    }
}
