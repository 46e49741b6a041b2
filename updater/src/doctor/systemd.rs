//! The units that judge a start and end a trial, and systemd's own part in it.
//!
//! Not here: running `systemctl`: units are files and links, and can be read in a root that does not run. Rule: the
//! first folder that has a unit decides, as for systemd; a link to /dev/null masks it.

use std::fs;
use std::path::{Path, PathBuf};

use super::finding::{Finding, Group};
use super::place::{Place, Seen};

/// Where units lie, the one that wins first.
const FOLDERS: [&str; 4] =
    ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
/// Where settings of systemd itself lie, the one that wins last.
const SETTINGS: [&str; 4] = ["usr/lib/systemd", "usr/local/lib/systemd", "run/systemd", "etc/systemd"];
/// The longest file of settings that is read, in bytes.
const SETTINGS_BYTES_MAX: u64 = 64 << 10;

const BOOT_CHECK: &str = "switchback-boot-check.service";
const DEADLINE: &str = "switchback-trial-deadline.timer";
const BLESS: &str = "systemd-bless-boot.service";

/// How a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Absent,
    Masked,
    Installed,
}

/// Boot check, deadline, bless-boot, runtime watchdog.
pub fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    let place = seen.place;
    if seen.is_image() {
        let subject = Group::Return.at("boot-check", "the simulated machine");
        return vec![subject.note("who simulates its starts calls `switchback boot-check`; not looked at")];
    }
    if !place.path("usr/lib/systemd/systemd").exists() && !place.path("lib/systemd/systemd").exists() {
        let subject = Group::Return.at("boot-check", "/usr/lib/systemd/systemd");
        return vec![subject.warning(
            "no systemd here, and nothing tells whether something else judges a start",
            "Call `switchback boot-check` last in the start script.",
        )];
    }
    vec![boot_check(place), deadline(place), bless(place), runtime_watchdog(place)]
}

fn boot_check(place: &Place) -> Finding {
    let subject = Group::Return.at("boot-check", BOOT_CHECK);
    let missing = "Every trial would return: install the units of Switchback and run \
                   `systemctl enable switchback-boot-check.service switchback-trial-deadline.timer`.";
    match unit(place, BOOT_CHECK) {
        Unit::Absent => subject.problem("not installed: nobody judges a start", missing),
        Unit::Masked => {
            subject.problem("masked: nobody judges a start", format!("`systemctl unmask {BOOT_CHECK}`."))
        }
        Unit::Installed => match wanted_by(place, BOOT_CHECK).as_slice() {
            [] => subject.problem(
                "installed and not enabled: nobody judges a start",
                format!("`systemctl enable {BOOT_CHECK}`."),
            ),
            [one] if one.starts_with("multi-user") => subject.warning(
                "not required by boot-complete.target: systemd could confirm a start before its checks",
                format!("`systemctl reenable {BOOT_CHECK}`."),
            ),
            targets => subject.ok(format!("enabled for {}", targets.join(", "))),
        },
    }
}

fn deadline(place: &Place) -> Finding {
    let subject = Group::Return.at("trial-deadline", DEADLINE);
    let (found, before) = match unit(place, DEADLINE) {
        Unit::Installed if !wanted_by(place, DEADLINE).is_empty() => return subject.ok("enabled"),
        Unit::Installed => ("installed and not enabled", ""),
        Unit::Masked => ("masked", "`systemctl unmask` it, and then: "),
        Unit::Absent => ("not installed", "Install the units of Switchback, and then: "),
    };
    subject.warning(
        format!("{found}: a trial whose updater never starts is not ended"),
        format!("{before}`systemctl enable {DEADLINE}`."),
    )
}

fn bless(place: &Place) -> Finding {
    let subject = Group::Return.at("bless-boot", BLESS);
    match unit(place, BLESS) {
        Unit::Absent => subject.note("not there: Switchback alone confirms"),
        Unit::Masked => subject.note("masked: Switchback alone confirms"),
        Unit::Installed => {
            subject.note("there: systemd confirms after boot-complete.target, and so after the health checks")
        }
    }
}

/// systemd feeds the watchdog only when told so.
fn runtime_watchdog(place: &Place) -> Finding {
    const REMEDY: &str =
        "Put `RuntimeWatchdogSec=60s` under `[Manager]` in a file of /etc/systemd/system.conf.d.";
    let subject = Group::Return.at("systemd-watchdog", "system.conf, system.conf.d");
    match setting(place, "RuntimeWatchdogSec") {
        Some((value, _)) if matches!(value.as_str(), "" | "0" | "off" | "infinity") => {
            subject.warning(format!("RuntimeWatchdogSec={value}: systemd feeds no watchdog"), REMEDY)
        }
        Some((value, file)) => subject.ok(format!("RuntimeWatchdogSec={value}, by {}", file.display())),
        None => subject.warning("RuntimeWatchdogSec= is not set: systemd feeds no watchdog", REMEDY),
    }
}

/// True when the unit is there and not masked.
pub(super) fn is_installed(place: &Place, name: &str) -> bool {
    unit(place, name) == Unit::Installed
}

fn unit(place: &Place, name: &str) -> Unit {
    for folder in FOLDERS {
        let path = place.path(folder).join(name);
        match fs::symlink_metadata(&path) {
            Err(_) => {}
            Ok(_) if fs::read_link(&path).is_ok_and(|target| target == Path::new("/dev/null")) => {
                return Unit::Masked;
            }
            // An empty file masks a unit as well.
            Ok(found) if found.is_file() && found.len() == 0 => return Unit::Masked,
            Ok(_) => return Unit::Installed,
        }
    }
    Unit::Absent
}

/// The units that pull this one in, by the links that `systemctl enable` makes; sorted.
fn wanted_by(place: &Place, name: &str) -> Vec<String> {
    let mut targets = Vec::new();
    for folder in FOLDERS {
        let Ok(entries) = fs::read_dir(place.path(folder)) else { continue };
        for entry in entries.flatten() {
            let file_name = entry.file_name().to_string_lossy().into_owned();
            let target = file_name.strip_suffix(".wants").or_else(|| file_name.strip_suffix(".requires"));
            if let Some(target) = target
                && fs::symlink_metadata(entry.path().join(name)).is_ok()
            {
                targets.push(target.to_owned());
            }
        }
    }
    targets.sort();
    targets.dedup();
    targets
}

/// The last value of a setting of systemd's manager, and its file. Drop-ins are read after the file, by their names.
fn setting(place: &Place, key: &str) -> Option<(String, PathBuf)> {
    let mut files: Vec<PathBuf> = SETTINGS.map(|folder| place.path(folder).join("system.conf")).into();
    let mut drop_ins: Vec<PathBuf> = SETTINGS
        .iter()
        .filter_map(|folder| fs::read_dir(place.path(folder).join("system.conf.d")).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
        .collect();
    drop_ins.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    files.extend(drop_ins);
    let mut values = files.into_iter().filter_map(|path| {
        let bytes = crate::host::bounded::read_bounded(&path, SETTINGS_BYTES_MAX).ok()??;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut lines = text.lines().filter_map(|line| line.trim().split_once('='));
        let value = lines.rfind(|(name, _)| name.trim() == key)?.1.trim().to_owned();
        Some((value, path))
    });
    values.next_back()
}
