//! What a dead start left behind: the kernel's crash records and the watchdog's boot status.
//!
//! Not here: what follows from it (`lifecycle`), where it is read (`host::kernel`). Rule: it is evidence about the other
//! slot only while that one was being tried; and the crash records go from the kernel's memory, which is small, only once
//! their words are kept.

use switchback_bootloader::boot_state::SlotBoot;
use switchback_partitions::slot::Slot;

use super::Engine;
use super::observe::Seen;
use crate::host::kernel::{CrashRecord, tail};
use crate::lifecycle::{Outcome, Stage, Verdict};
use crate::logs::{self, StartLog, TEXT_BYTES_MAX};
use crate::reason::Reason;

/// The crash records of the starts before this one.
pub(super) struct Autopsy {
    records: Vec<CrashRecord>,
}

impl Autopsy {
    /// Their words as far as a log keeps them, the newest crash first.
    fn text(&self) -> String {
        let mut text = String::new();
        for record in self.records.iter().filter(|record| !record.text.is_empty()) {
            if text.len() + record.text.len() >= TEXT_BYTES_MAX {
                let room = TEXT_BYTES_MAX - text.len();
                text.push_str(tail(&record.text, room));
                break;
            }
            text.push_str(&record.text);
            text.push('\n');
        }
        text.trim_end().to_owned()
    }

    /// Frees the kernel's memory for the next crash.
    fn bury(&self) {
        for record in &self.records {
            if let Err(error) = std::fs::remove_file(&record.path) {
                tracing::warn!(path = %record.path.display(), %error, "a crash record could not be removed");
            }
        }
    }
}

impl Engine<'_> {
    /// Looks for crash records and adds what they and the watchdog say to what is known of the other slot's starts.
    pub(super) fn autopsy(&self, seen: &mut Seen) -> Autopsy {
        let kernel = self.machine.kernel();
        let records = kernel.crash_records();
        let other = seen.observation.running.other();
        let tried = match seen.observation.boot.slot(other) {
            SlotBoot::Trial { tries_done, .. } => tries_done > 0,
            SlotBoot::Bad => true,
            SlotBoot::Empty | SlotBoot::Good => false,
        };
        let found = [
            ("crash record", records.iter().any(|record| record.panic), Stage::Panicked),
            ("watchdog", kernel.watchdog_reset(), Stage::WatchdogReset),
        ];
        for (witness, speaks, stage) in found {
            if tried && speaks {
                // No boot id is known of these; a name of their own keeps them apart from the marks.
                seen.observation.known.marks.insert(witness.to_owned(), (other, stage));
            }
        }
        Autopsy { records }
    }

    /// Keeps the words of the dead start: with the trial that it ended, or by themselves. A log that cannot be kept leaves
    /// the crash records where they are.
    pub(super) fn keep_last_words(&self, autopsy: &Autopsy, seen: &Seen, ended: Option<&Outcome>) {
        let without_verdict = |outcome: &&Outcome| {
            let refused = outcome.why.as_ref().is_some_and(|why| why.reason == Reason::LoaderRefused);
            let ended = matches!(outcome.verdict, Verdict::Returned | Verdict::Inconclusive);
            ended && !refused && self.run.health.is_none()
        };
        let ended = ended.filter(without_verdict);
        let crash = autopsy.text();
        let before = ended.and_then(|outcome| self.log_of(outcome));
        let journal = match (ended, &before) {
            (Some(_), None) => self.journal("-1", seen),
            _ => String::new(),
        };
        if crash.is_empty() && journal.is_empty() {
            return autopsy.bury();
        }
        // Kept already, and the power went before the record was removed; or it cannot be.
        if !crash.is_empty()
            && logs::all(self.machine.state_dir().path()).iter().any(|log| log.crash == crash)
        {
            return autopsy.bury();
        }
        // The verdict's own log knows more than the journal that was left on the way down.
        let log = match (before, ended) {
            (Some(log), _) => StartLog { crash, ..log },
            (None, Some(outcome)) => StartLog { crash, journal, ..self.blank_log(outcome) },
            (None, None) => {
                let slot = seen.observation.running;
                let release = seen.observation.running_release();
                let version = release.map(|release| release.version.clone()).unwrap_or_default();
                let digest = release.map(|release| release.digest);
                let mut log = self.new_log(slot);
                (log.version, log.digest, log.crash) = (version, digest, crash);
                log
            }
        };
        match logs::keep(self.machine.state_dir().path(), log) {
            Ok(()) => autopsy.bury(),
            Err(error) => tracing::warn!(%error, "the log of the dead start could not be kept"),
        }
    }

    /// The log of this outcome that is kept already.
    pub(super) fn log_of(&self, outcome: &Outcome) -> Option<StartLog> {
        logs::all(self.machine.state_dir().path()).into_iter().find(|log| log.outcome == Some(outcome.seq))
    }

    /// A log of this outcome with nothing in it yet.
    pub(super) fn blank_log(&self, outcome: &Outcome) -> StartLog {
        let release = outcome.release.as_ref();
        StartLog {
            outcome: Some(outcome.seq),
            version: release.map(|release| release.version.clone()).unwrap_or_default(),
            digest: release.map(|release| release.digest),
            why: outcome.why.clone(),
            ..self.new_log(outcome.slot)
        }
    }

    fn new_log(&self, slot: Slot) -> StartLog {
        StartLog::blank(slot, self.machine.clock().timestamp())
    }
}
