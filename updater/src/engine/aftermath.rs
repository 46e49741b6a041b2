//! What follows a verdict beside the boot record: the image's own scripts for good and bad news.
//!
//! Not here: the verdict and the way back (`lifecycle`). Rule: nothing here can stop either; a script that fails or hangs
//! is told, cut off, and changes nothing, and a slot is marked bad before its scripts run.

use super::Engine;
use super::observe::Seen;
use crate::health::greenboot::{Hooks, run_hooks};
use crate::health::{self, CheckResult};
use crate::lifecycle::{Outcome, Phase, Verdict};
use crate::reason::Reason;

impl Engine<'_> {
    /// After the trial is confirmed.
    pub(super) fn after_confirmation(&mut self) {
        self.run.hooks = self.hooks(Hooks::Green);
    }

    /// After a verdict of failure, before the restart. Once a run; nothing when the machine restarts for another reason.
    pub(super) fn after_failure(&mut self) {
        if self.failed_trial().is_some() && !std::mem::replace(&mut self.run.failure_told, true) {
            self.run.hooks = self.hooks(Hooks::Red);
        }
    }

    /// The verdict that this slot is unfit, while the machine is still on it.
    fn failed_trial(&self) -> Option<&Outcome> {
        let last = self.state.last.as_ref()?;
        let by_operator = last.why.as_ref().is_some_and(|why| why.reason == Reason::EndedByOperator);
        let leaving = matches!(self.state.phase, Phase::RollingBack { .. });
        let stranded = last.verdict == Verdict::Stranded && self.run.health.is_some();
        ((leaving && last.verdict == Verdict::Returned && !by_operator) || stranded).then_some(last)
    }

    fn hooks(&self, hooks: Hooks) -> Vec<CheckResult> {
        match self.observe() {
            Ok(seen) => self.runtime.block_on(run_hooks(hooks, &self.context(&seen))),
            Err(failure) => {
                tracing::warn!(error = %failure, ?hooks, "the scripts are left out: the machine cannot be looked at");
                Vec::new()
            }
        }
    }

    /// What programs of the image are told.
    pub(super) fn context(&self, seen: &Seen) -> health::Context {
        let slot = seen.observation.running;
        let version = seen.releases[slot.index()].as_ref().map(|release| release.config.version.clone());
        health::Context {
            slot,
            version: version.unwrap_or_default(),
            root: self.machine.root().to_path_buf(),
        }
    }
}
