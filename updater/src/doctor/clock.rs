//! Can the clock be right?
//!
//! Not here: setting it. Rule: a clock before this program was built is wrong.

use super::finding::{Finding, Group};
use super::place::{Place, Seen};
use crate::config::Config;
use crate::host::clock::built_unix_secs;
use crate::schedule::Zone;

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
    let mut findings = if seen.is_image() { vec![time] } else { vec![time, synchronised(seen.place)] };
    findings.extend(time_zone(seen.config));
    findings
}

/// A name that nobody knows is no error of the configuration, as it would stop every verb; so it is told here.
fn time_zone(config: &Config) -> Option<Finding> {
    let schedule = config.schedule.as_ref().filter(|schedule| !schedule.windows.is_empty())?;
    let subject = Group::Source.at("time-zone", "the zone of the windows");
    Some(match schedule.find_zone() {
        Zone::Known(zone) => subject.ok(zone.iana_name().unwrap_or("the machine's").to_owned()),
        Zone::Unknown { name, why } => subject.warning(
            format!("`{name}` is not known, so no window opens: {why}"),
            "Correct `time_zone` under [schedule], or bring the rules of time zones into the image: tzdata.",
        ),
    })
}

fn time(now: i64) -> Finding {
    let subject = Group::Source.at("clock", "the system clock");
    let words =
        |secs| jiff::Timestamp::from_second(secs).map_or_else(|_| secs.to_string(), |at| at.to_string());
    let remedy = "Set it: `timedatectl set-time`, or a service that does.";
    let built = i64::try_from(built_unix_secs()).unwrap_or(0);
    match now {
        // Certificates are judged by the build's time then, so that an update is still to be had.
        _ if now < built => subject.warning(
            format!("{}, which is before this updater was built; history and back-off go by it", words(now)),
            remedy,
        ),
        _ if now > built + AGE_SECS_MAX => subject
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
