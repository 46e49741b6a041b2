//! The updater's own memory: its folder, its partition, its durable facts.
//!
//! Not here: what the facts say (`status`). Rule: whether it can be written is asked of the kernel and never tried.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use indicatif::BinaryBytes;
use nix::sys::statvfs::statvfs;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::finding::{Finding, Group};
use super::place::Seen;
use crate::facts::state_file::{self, Loaded, STATE_FILE};
use crate::facts::{self, COPY_BYTES, CopyState};
use crate::host::state_dir::Folder;
use crate::host::sysfs::DeviceNumber;

/// What both copies of the facts, the journal and the marks take at most.
const RECORD_BYTES: u64 = 4 * COPY_BYTES;

/// Folder, partition, room, facts, state file.
pub fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    let folder = &seen.config.machine.state_dir;
    let subject = Group::State.at("state-folder", folder.display());
    let writable =
        accessat(CWD, folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK, AtFlags::empty());
    let mut findings = vec![match (folder.is_dir(), writable) {
        (true, Ok(())) => subject.ok("there, and may be written"),
        (true, Err(error)) => subject.problem(
            format!("may not be written: {error}"),
            "Mount the partition `state` there, for writing.",
        ),
        (false, _) => subject.problem(
            "there is no such folder",
            "Mount the partition `state` there; `state_dir` under [machine] names another place.",
        ),
    }];
    if !folder.is_dir() {
        return findings;
    }
    if !seen.is_image() {
        findings.push(partition(seen, folder));
    }
    findings.push(room(seen, folder));
    findings.push(copies(folder));
    findings.extend(life(folder));
    findings
}

/// Is it the partition `state`, so that both slots share it?
fn partition(seen: &Seen<'_>, folder: &Path) -> Finding {
    let subject = Group::State.at("state-partition", folder.display());
    let remedy = "Mount the partition `state` there: what lies on the root is lost with the next release.";
    let device = |path: &Path| -> io::Result<DeviceNumber> {
        Ok(DeviceNumber::from_raw(std::fs::metadata(path)?.dev()))
    };
    let here = match device(folder) {
        Ok(here) => here,
        Err(error) => return subject.problem(error.to_string(), remedy),
    };
    if seen.place.root_device().is_ok_and(|root| root == here) {
        return subject.problem("on the file system of /, which every update replaces", remedy);
    }
    let wanted = seen.layout.as_ref().ok().and_then(|(disk, layout)| {
        let sysfs = seen.place.sysfs();
        let name = sysfs.partition_name(disk, layout.state.as_ref()?.number).ok()?;
        Some((sysfs.device_number(&name).ok()?, name))
    });
    match wanted {
        Some((number, name)) if number == here => subject.ok(format!("on {name}, which both slots share")),
        Some((_, name)) => {
            subject.warning(format!("on device {here} and not on the partition `state`, {name}"), remedy)
        }
        None => subject.note(format!("on device {here}, apart from /")),
    }
}

/// Boot files are fetched to the state folder first.
fn room(seen: &Seen<'_>, folder: &Path) -> Finding {
    let subject = Group::State.at("state-space", folder.display());
    let stat = match statvfs(folder) {
        Ok(stat) => stat,
        Err(error) => {
            return subject.problem(error.to_string(), "Check the file system of the state folder.");
        }
    };
    #[expect(clippy::useless_conversion, reason = "these are 32 bits wide on some targets")]
    let free = u64::from(stat.fragment_size()).saturating_mul(u64::from(stat.blocks_available()));
    let running = seen.running.as_ref().ok().zip(seen.esp.as_ref().ok());
    let boot_files = running.and_then(|(running, esp)| {
        let files = esp.dir.list(&switchback_bootloader::slot_folder(running.slot)).ok()?;
        Some(files.iter().map(|file| file.bytes).sum::<u64>())
    });
    let needed = RECORD_BYTES + boot_files.unwrap_or(0);
    let found = format!("{} free, {} needed for the next update", BinaryBytes(free), BinaryBytes(needed));
    match free >= needed {
        true => subject.ok(found),
        false => subject
            .problem(found, "Remove what is not Switchback's from the partition `state`, or make it larger."),
    }
}

fn copies(folder: &Path) -> Finding {
    let subject = Group::State.at("facts", folder.join("facts-1, facts-2").display());
    let copies = facts::look(&Folder::new(folder));
    let words: Vec<String> = copies
        .iter()
        .map(|(path, state)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match state {
                CopyState::Absent => format!("{name} is not there"),
                CopyState::Unreadable(why) => format!("{name} cannot be read ({why})"),
                CopyState::Blank => format!("{name} is blank"),
                CopyState::Damaged => format!("{name} is damaged"),
                CopyState::Whole(generation) => format!("{name} is whole, generation {generation}"),
            }
        })
        .collect();
    let found = words.join(", ");
    let remedy = "The next update writes both anew. If it repeats, check the disk's health.";
    match [&copies[0].1, &copies[1].1] {
        [CopyState::Whole(one), CopyState::Whole(two)] if one == two => subject.ok(found),
        [CopyState::Whole(_), CopyState::Whole(_)] => subject.note(format!("{found}: the newer one counts")),
        [CopyState::Absent | CopyState::Blank, CopyState::Absent | CopyState::Blank] => {
            subject.note(format!("{found}: nothing was ever recorded"))
        }
        [CopyState::Whole(_), _] | [_, CopyState::Whole(_)] => subject.warning(found, remedy),
        [CopyState::Unreadable(_), _] | [_, CopyState::Unreadable(_)] => {
            subject.problem(found, "Run it as root; if that changes nothing, check the disk's health.")
        }
        _ => subject.warning(
            format!("{found}: floor, quarantine and history are lost"),
            "Nothing: what the slots say is enough to go on. If it repeats, check the disk's health.",
        ),
    }
}

/// Only a state file that cannot be used is worth a line.
fn life(folder: &Path) -> Option<Finding> {
    let subject = Group::State.at("state-file", folder.join(STATE_FILE).display());
    match state_file::load(&Folder::new(folder)) {
        Loaded::Found(_) | Loaded::Missing => None,
        Loaded::Unreadable(why) => Some(subject.warning(
            format!("cannot be used: {why}"),
            "Nothing: the next `switchback boot-check` or `update` recovers from what the slots say.",
        )),
    }
}
