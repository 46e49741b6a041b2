//! What ends a hang or a panic, so that a bad trial comes back without a hand.
//!
//! Not here: units (`systemd`). Rule: the watchdog is never opened: opening one starts it.

use std::fs;
use std::path::Path;

use super::finding::{Finding, Group};
use super::place::{Place, Seen};
use super::systemd;
use crate::host::sysfs::{Watchdog, read_attribute};

/// How many processes are asked whether they hold the watchdog.
const PROCESSES_MAX: usize = 65_536;

/// Watchdog, panic, crash records.
pub fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    if seen.is_image() {
        let subject = Group::Return.at("watchdog", "the simulated machine");
        return vec![subject.note("a machine in a file neither hangs nor panics; not looked at")];
    }
    vec![watchdog(seen), panic(seen.place), pstore(seen.place)]
}

fn watchdog(seen: &Seen<'_>) -> Finding {
    let place = seen.place;
    let dogs = place.sysfs().watchdogs();
    let Some(dog) = dogs.first() else {
        return Group::Return.at("watchdog", "/sys/class/watchdog").warning(
            "there is none: a hang does not end by itself",
            "Load the driver of the hardware watchdog, or at least `softdog`.",
        );
    };
    let subject = Group::Return.at("watchdog", format!("/dev/{}", dog.name));
    let attribute =
        |name: &str| read_attribute(&place.path("sys/class/watchdog").join(&dog.name).join(name)).ok();
    let mut words = vec![if dog.identity.is_empty() { "no name".to_owned() } else { dog.identity.clone() }];
    words.extend(attribute("timeout").map(|secs| format!("{secs} s")));
    if attribute("nowayout").is_some_and(|value| value == "1") {
        words.push("cannot be stopped".to_owned());
    }
    let holder = holder(place, dog);
    words.push(match &holder {
        Some(who) => format!("held by {who}"),
        None if dog.active => "running".to_owned(),
        None => "held by nobody".to_owned(),
    });
    let found = words.join(", ");
    if !dog.active && holder.is_none() {
        return subject.warning(
            format!("{found}: a hang does not end by itself"),
            "With systemd, set `RuntimeWatchdogSec=`; without it, `switchback init` keeps the watchdog.",
        );
    }
    match dog.is_software() {
        true => subject.warning(
            format!("{found}: a kernel that is dead feeds no timer"),
            "Use a hardware watchdog where the machine has one.",
        ),
        false => subject.ok(found),
    }
}

/// Who has the device open. `/dev/watchdog` is the first device under another name.
fn holder(place: &Place, dog: &Watchdog) -> Option<String> {
    let names = [format!("/dev/{}", dog.name), "/dev/watchdog".to_owned()];
    let processes = fs::read_dir(place.path("proc")).ok()?.take(PROCESSES_MAX).flatten();
    let mut numbered = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbered.find_map(|pid| {
        let files = fs::read_dir(place.path(&format!("proc/{pid}/fd"))).ok()?;
        let holds = files.flatten().any(|file| {
            fs::read_link(file.path()).is_ok_and(|target| names.iter().any(|name| target == Path::new(name)))
        });
        holds.then(|| {
            format!("{} (process {pid})", place.text(&format!("proc/{pid}/comm")).unwrap_or_default())
        })
    })
}

fn panic(place: &Place) -> Finding {
    let subject = Group::Return.at("panic", "/proc/sys/kernel/panic");
    let remedy = "Put `panic=30` on the kernel command line (`image build --cmdline`), or set the sysctl `kernel.panic`.";
    match place.text("proc/sys/kernel/panic").map(|text| (text.parse::<i64>(), text)) {
        Some((Ok(0), _)) => subject.warning("0: the machine stays in a panic for ever", remedy),
        Some((Ok(secs), _)) if secs < 0 => subject.ok("restarts at once after a panic"),
        Some((Ok(secs), _)) => subject.ok(format!("restarts {secs} s after a panic")),
        Some((Err(_), text)) => subject.note(format!("not understood: {text}")),
        None => subject.note("cannot be read: /proc is not mounted"),
    }
}

fn pstore(place: &Place) -> Finding {
    let subject = Group::Return.at("pstore", "/sys/fs/pstore");
    let backend = place
        .text("sys/module/pstore/parameters/backend")
        .filter(|name| !name.is_empty() && name != "(null)");
    let Some(backend) = backend else {
        return subject.note("the kernel keeps no crash records: a panic leaves no reason behind");
    };
    let records = fs::read_dir(place.path("sys/fs/pstore")).map_or(0, |records| records.count());
    let archive = match systemd::is_installed(place, "systemd-pstore.service") {
        true => "; systemd-pstore moves them to /var/lib/systemd/pstore",
        false => "",
    };
    subject.ok(format!("crash records go to {backend}, {records} of them there{archive}"))
}
