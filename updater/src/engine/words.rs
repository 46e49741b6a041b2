//! What is seen and known, put into the answers' words.
//!
//! Not here: decisions. Rule: every sentence follows from the observation and the state alone.

use switchback_bootloader::boot_state::SlotBoot;
use switchback_partitions::slot::Slot;

use super::answers::{HistoryEntry, SlotStatus};
use super::observe::Seen;
use super::{Failure, Fault, chain};
use crate::facts::{self, Happened};
use crate::install::Release;
use crate::lifecycle::{Phase, Purpose, Verdict};
use crate::logs::StartLog;

const BOOT_CHECK_JUDGES: &str = "`switchback boot-check` judges the running slot";

/// One slot's line of `status`.
pub(super) fn slot_status(seen: &Seen, slot: Slot) -> SlotStatus {
    let release = seen.releases[slot.index()].as_ref();
    let quarantine = &seen.observation.known.quarantine;
    SlotStatus {
        slot,
        running: seen.observation.running == slot,
        boot: seen.observation.boot.slot(slot),
        content: seen.contents[slot.index()],
        release: release.map(Release::name),
        security_version: release.map(|release| release.config.security_version),
        quarantined: release.is_some_and(|release| quarantine.contains_key(&release.digest)),
        problem: seen.problems[slot.index()].as_ref().map(ToString::to_string),
    }
}

/// What stands in the way of an update. `keyless` is why the trusted keys cannot be used.
pub(super) fn blockers(seen: &Seen, keyless: Option<&Failure>) -> Vec<String> {
    let running = seen.observation.running;
    let mut blockers = Vec::new();
    if seen.observation.boot.slot(running) != SlotBoot::Good {
        blockers
            .push(format!("slot {running} runs and is not confirmed: the other slot is the only way back"));
    }
    // Said once, and not of each slot: their documents are not at fault.
    if let Some(failure) = keyless {
        blockers.push(format!(
            "the trusted keys cannot be used, so no release is accepted and what the slots hold is not known: {}",
            failure.why.detail
        ));
    }
    // What is only gone comes back with the next release; documents that do not verify mean that the keys are others.
    if let Some(Fault::Unverified(error)) = &seen.problems[running.index()] {
        blockers.push(format!("the running slot's documents do not verify: {}", chain(error)));
    }
    blockers
}

/// What happens next, if nobody does anything.
pub(super) fn next_sentence(phase: &Phase, seen: &Seen) -> String {
    let trial = |purpose: &Purpose| match purpose {
        Purpose::Update => "the trial of",
        Purpose::Rollback { .. } => "the way back to",
    };
    match phase {
        Phase::Idle if seen.observation.boot.slot(seen.observation.running) != SlotBoot::Good => {
            BOOT_CHECK_JUDGES.into()
        }
        Phase::Idle => "nothing; `switchback check` asks for a newer release".into(),
        Phase::Installing { release, slot, .. } => {
            format!("{} is not whole in slot {slot}; `switchback update` continues", release.version)
        }
        Phase::Staged { release, slot, not_before_unix_secs: Some(second), .. } => {
            format!(
                "{} waits in slot {slot} after a trial without a verdict; it is tried again by `switchback update` after {}",
                release.version,
                crate::host::clock::in_words(*second)
            )
        }
        Phase::Staged { release, slot, .. } => {
            format!("{} waits in slot {slot}; `switchback update` arms it", release.version)
        }
        // The start is this one, and `boot-check` has not looked yet.
        Phase::Armed { slot, .. } if *slot == seen.observation.running => BOOT_CHECK_JUDGES.into(),
        Phase::Armed { release, slot, purpose, .. } => {
            format!("the next reboot starts {} {} in slot {slot}", trial(purpose), release.version)
        }
        Phase::OnTrial { .. } => BOOT_CHECK_JUDGES.into(),
        Phase::RollingBack { .. } => "the next reboot returns to the other slot".into(),
    }
}

/// The phase as it is seen: an armed slot that runs is on trial, also before `boot-check` has written that down.
pub(super) fn phase_name(phase: &Phase, seen: &Seen) -> &'static str {
    match phase {
        Phase::Armed { slot, .. } if *slot == seen.observation.running => "on-trial",
        _ => phase.name(),
    }
}

impl Phase {
    /// The phase in a word, for `status` and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Idle => "idle",
            Phase::Installing { .. } => "installing",
            Phase::Staged { .. } => "staged",
            Phase::Armed { .. } => "armed",
            Phase::OnTrial { .. } => "on-trial",
            Phase::RollingBack { .. } => "rolling-back",
        }
    }
}

/// The newest lines of history, oldest first.
pub(crate) fn newest(history: &[facts::Entry], logs: &[StartLog], limit: usize) -> Vec<HistoryEntry> {
    let newest = &history[history.len().saturating_sub(limit)..];
    newest.iter().map(|entry| history_entry(entry, logs)).collect()
}

/// Seconds since 1970, as a time; one that cannot be is 1970 itself.
pub(crate) fn timestamp(unix_secs: u64) -> jiff::Timestamp {
    let at = i64::try_from(unix_secs).ok().and_then(|secs| jiff::Timestamp::from_second(secs).ok());
    at.unwrap_or_default()
}

/// One line of history.
fn history_entry(entry: &facts::Entry, logs: &[StartLog]) -> HistoryEntry {
    let at = timestamp(entry.at_unix_secs);
    let outcome = match &entry.what {
        Happened::Outcome(outcome) => outcome,
        Happened::Released { digest, version } => {
            return HistoryEntry {
                at,
                what: "released".into(),
                version: version.clone(),
                digest: Some(*digest),
                slot: None,
                reason: None,
                detail: "taken out of quarantine by an operator".into(),
                log: false,
            };
        }
    };
    let what = match outcome.verdict {
        Verdict::Confirmed => "confirmed",
        Verdict::RolledBack => "rolled-back-to",
        Verdict::Returned => "returned-from",
        Verdict::Inconclusive => "inconclusive",
        Verdict::Stranded => "stranded",
        Verdict::NotInstalled => "not-installed",
    };
    let left = outcome.left.as_ref().map(|left| format!("{} is held back", left.version));
    HistoryEntry {
        at,
        what: what.into(),
        version: outcome.release.as_ref().map_or_else(|| "unknown".into(), |release| release.version.clone()),
        digest: outcome.release.as_ref().map(|release| release.digest),
        slot: Some(outcome.slot),
        reason: outcome.why.as_ref().map(|why| why.reason),
        detail: outcome.why.as_ref().map(|why| why.detail.clone()).or(left).unwrap_or_default(),
        log: logs.iter().any(|log| log.outcome == Some(outcome.seq)),
    }
}
