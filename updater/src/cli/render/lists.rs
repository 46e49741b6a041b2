//! What failed here, and what lies in the slots, as text.

use std::fmt::Write as _;

use super::{release, short, table, whole};
use crate::engine::answers::{Quarantine, Scrubbed, Soundness};
use crate::reason::Reason;

/// The answer to `quarantine`.
pub(super) fn quarantine(answer: &Quarantine) -> String {
    let mut out = match (&answer.asked, &answer.released) {
        (Some(_), Some(entry)) => format!(
            "{} {} is not quarantined any more: `switchback update` may take it again. If it fails again, it is back here.\n",
            entry.version, entry.digest
        ),
        (Some(asked), None) => format!("Nothing changed. No quarantined release is called `{asked}`.\n"),
        (None, _) => String::new(),
    };
    if answer.records_lost {
        out.push_str(
            "The records were lost: what failed here before is not known. Nothing has to be done; a release that fails \
             again is quarantined again.\n",
        );
    }
    if answer.quarantine.is_empty() && answer.records_lost {
        out.push_str("Nothing is known to be quarantined.\n");
        return out;
    }
    if answer.quarantine.is_empty() {
        out.push_str("Nothing is quarantined.\n");
        return out;
    }
    let mut table = table();
    table.set_header(["version", "digest", "why"]);
    for entry in &answer.quarantine {
        table.add_row([&entry.version, &short(entry.digest), entry.reason.description()]);
    }
    whole(&mut table, &[1]);
    // Writing to a string does not fail.
    let _ = writeln!(out, "{}", table.trim_fmt());
    out
}

/// The answer to `verify`.
pub(super) fn scrub(answer: &Scrubbed) -> String {
    let mut out = String::new();
    for slot in &answer.slots {
        let mark = if slot.running { "*" } else { " " };
        let name = slot.release.as_ref().map_or_else(|| "no release".to_string(), release);
        let words = match slot.soundness {
            Soundness::Sound => format!("{name}: every byte is what was signed"),
            Soundness::Empty => "empty".to_string(),
            Soundness::HalfWritten => {
                "half written: an update is at work, or `switchback update` goes on there".to_string()
            }
            Soundness::Changed => {
                "NOT JUDGED, an update wrote to it while it was read; ask again when that is done".to_string()
            }
            Soundness::Damaged => format!("{name}: DAMAGED, {}", slot.detail),
        };
        let _ = writeln!(out, "{mark} slot {}     {words}", slot.slot);
    }
    out.push_str("Nothing was changed.\n");
    if answer.is_damaged() {
        let _ = writeln!(out, "{}", Reason::SlotDamaged.remedy());
    }
    out
}
