//! Can the clock be right?
//!
//! Not here: setting it. Rule: a clock before this program was made is wrong; TLS would refuse every certificate.

use super::finding::{Finding, Group};
use super::place::{Place, Seen};

/// 2026-11-01: this version was not written before. A build that sets `SOURCE_DATE_EPOCH` knows better.
const WRITTEN_UNIX_SECS: i64 = 1_793_491_200;
/// Nobody runs the same updater for that long.
const AGE_SECS_MAX: i64 = 20 * 365 * 24 * 60 * 60;
/// What services leave when the clock is set, or while they look after it.
const SYNCHRONISED: [(&str, &str); 3] = [
    ("run/systemd/timesync/synchronized", "systemd-timesyncd has set it"),
    ("run/chrony/chronyd.pid", "chrony looks after it"),
    ("run/ntpd.pid", "ntpd looks after it"),
];

/// Time and who keeps it.
pub fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    let time = time(seen.place.now_unix_secs);
    // A machine in a file has the clock of whatever simulates it.
    if seen.is_image() { vec![time] } else { vec![time, synchronised(seen.place)] }
}

/// When this program was built, as far as it knows.
fn built_unix_secs() -> i64 {
    let said = option_env!("SOURCE_DATE_EPOCH").and_then(|text| text.parse().ok());
    said.unwrap_or(WRITTEN_UNIX_SECS).max(WRITTEN_UNIX_SECS)
}

fn time(now: i64) -> Finding {
    let subject = Group::Source.at("clock", "the system clock");
    let words =
        |secs| jiff::Timestamp::from_second(secs).map_or_else(|_| secs.to_string(), |at| at.to_string());
    let remedy = "Set it: `timedatectl set-time`, or a service that does; certificates are judged by it.";
    match now {
        _ if now < built_unix_secs() => {
            subject.problem(format!("{}, which is before this updater was built", words(now)), remedy)
        }
        _ if now > built_unix_secs() + AGE_SECS_MAX => subject
            .problem(format!("{}, which is too far from when this updater was built", words(now)), remedy),
        _ => subject.ok("can be right"),
    }
}

fn synchronised(place: &Place) -> Finding {
    let found = SYNCHRONISED.iter().find(|(path, _)| place.path(path).exists());
    match found {
        Some((path, words)) => Group::Source.at("clock-synchronised", format!("/{path}")).ok(*words),
        None => Group::Source
            .at("clock-synchronised", "/run")
            .note("no time service left a sign there; a clock that nobody sets drifts"),
    }
}
