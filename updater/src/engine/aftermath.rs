//! What follows a verdict beside the boot record: the image's own scripts for good and bad news, and the log of a failure.
//!
//! Not here: the verdict and the way back (`lifecycle`). Rule: nothing here can stop either; a script that fails or hangs
//! is told, cut off, and changes nothing, and a slot is marked bad before its scripts run.

use std::time::Duration;

use super::observe::Seen;
use super::{Engine, Failure};
use crate::health::greenboot::{Hooks, run_hooks};
use crate::health::{self, CheckResult, command};
use crate::lifecycle::{Outcome, Phase, Verdict};
use crate::logs::{self, StartLog, TEXT_BYTES_MAX};
use crate::reason::Reason;

/// The journal of a machine that is not well may not answer; the way back does not wait for it.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(10);

impl Engine<'_> {
    /// After the trial is confirmed.
    pub(super) fn after_confirmation(&mut self) {
        self.run.hooks = self.observe().map_or_else(left_out, |seen| self.hooks(Hooks::Green, &seen));
    }

    /// After a verdict of failure, before the restart. Once a run; nothing when the machine restarts for another reason.
    pub(super) fn after_failure(&mut self) {
        let Some(failed) = self.failed_trial().cloned() else { return };
        if std::mem::replace(&mut self.run.failure_told, true) {
            return;
        }
        self.run.hooks = match self.observe() {
            Ok(seen) => {
                let hooks = self.hooks(Hooks::Red, &seen);
                self.keep_log(&failed, &hooks, &seen);
                hooks
            }
            Err(failure) => left_out(failure),
        };
    }

    /// Keeps what is known of the failure, while the machine that failed still runs.
    fn keep_log(&self, failed: &Outcome, hooks: &[CheckResult], seen: &Seen) {
        // Left a second time, because the loader did not listen: the first log is the one with the checks.
        if self.log_of(failed).is_some() {
            return;
        }
        let log = StartLog {
            checks: self.run.health.as_ref().map(|report| report.checks.clone()).unwrap_or_default(),
            hooks: hooks.to_vec(),
            kernel: self.machine.kernel().log_tail(TEXT_BYTES_MAX),
            journal: self.journal("0", seen),
            ..self.blank_log(failed)
        };
        if let Err(error) = logs::keep(self.machine.state_dir().path(), log) {
            tracing::warn!(%error, "the log of the failed trial could not be kept");
        }
    }

    /// The end of systemd's journal: of this start (`0`), or of the one before (`-1`).
    pub(super) fn journal(&self, boot: &str, seen: &Seen) -> String {
        if !self.machine.kernel().journal {
            return String::new();
        }
        let boot = format!("--boot={boot}");
        let argv = ["journalctl", "--no-pager", "--quiet", "--output=short-monotonic", "--lines=400", &boot];
        let (argv, context) = (argv.map(str::to_owned), self.context(seen));
        let words = command::last_words(&argv, &context, TEXT_BYTES_MAX);
        let ended = self.runtime.block_on(async { tokio::time::timeout(JOURNAL_TIMEOUT, words).await });
        ended.unwrap_or_default()
    }

    /// The verdict that this slot is unfit, while the machine is still on it.
    fn failed_trial(&self) -> Option<&Outcome> {
        let last = self.state.last.as_ref()?;
        let by_operator = last.why.as_ref().is_some_and(|why| why.reason == Reason::EndedByOperator);
        let leaving = matches!(self.state.phase, Phase::RollingBack { .. });
        let stranded = last.verdict == Verdict::Stranded && self.run.health.is_some();
        ((leaving && last.verdict == Verdict::Returned && !by_operator) || stranded).then_some(last)
    }

    fn hooks(&self, hooks: Hooks, seen: &Seen) -> Vec<CheckResult> {
        self.runtime.block_on(run_hooks(hooks, &self.context(seen)))
    }

    /// What programs of the image are told.
    pub(super) fn context(&self, seen: &Seen) -> health::Context {
        let slot = seen.observation.running;
        let version = seen.releases[slot.index()].as_ref().map(|release| release.version().to_owned());
        health::Context {
            slot,
            version: version.unwrap_or_default(),
            root: self.machine.root().to_path_buf(),
        }
    }
}

fn left_out(failure: Failure) -> Vec<CheckResult> {
    tracing::warn!(error = %failure, "what follows a verdict is left out: the machine cannot be looked at");
    Vec::new()
}
