//! Which bootloader there is, whether it is the configured one, and whether its record is sound.
//!
//! Not here: room on the boot partition (`esp`). Rule: everything that could start a bad slot again, or keep a good one
//! from being started, is named.

use rustix::fs::{Access, AtFlags, CWD, accessat};
use switchback_bootloader::boot_state::{BootState, SlotBoot};
use switchback_bootloader::esp::EspDir;
use switchback_bootloader::record::BootFileKind;
use switchback_bootloader::slot_folder;
use switchback_bootloader::systemd_boot::look::{Look, look};
use switchback_bootloader::systemd_boot::pe::Machine;
use switchback_partitions::slot::Slot;

use super::finding::{Finding, Group};
use super::place::Seen;
use crate::config::{Boot, BootBackend};
use crate::engine::chain;
use crate::host::loader::{
    LoaderSettings, REBOOT_ON_ERROR_SINCE, SYSTEMD_BOOT, crashes_over_an_initrd, gives_up,
};
use crate::host::{backend, firmware};

/// Protocol, loader, entries, state.
pub fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    let mut findings = match seen.config.boot.backend {
        BootBackend::Custom => vec![custom(seen)],
        BootBackend::SystemdBoot => systemd_boot(seen),
    };
    findings.push(state(seen));
    findings
}

fn custom(seen: &Seen<'_>) -> Finding {
    let program = seen.config.boot.custom.command.clone().unwrap_or_default();
    let subject = Group::Boot.at("protocol", program.display());
    match accessat(CWD, &program, Access::EXEC_OK, AtFlags::empty()) {
        Ok(()) => subject.ok("speaks for the bootloader, as `backend = \"custom\"` asks"),
        Err(error) => subject.problem(
            format!("cannot be run: {error}"),
            "Correct `command` under [boot.custom]: it has to be an executable file.",
        ),
    }
}

fn systemd_boot(seen: &Seen<'_>) -> Vec<Finding> {
    let settings = LoaderSettings::read(&seen.place.efivars());
    let looked = match &seen.esp {
        Ok(esp) => look(&*esp.dir, Machine::host()).map_err(|error| chain(&error)),
        Err(why) => Err(why.clone()),
    };
    let started = settings.info.as_deref().filter(|_| !seen.is_image());
    let on_disk =
        looked.as_ref().ok().and_then(|look| look.loaders.iter().find_map(|(_, info)| info.as_deref()));
    let mut findings = vec![protocol(seen, started, looked.as_ref())];
    findings.push(version(seen, started.or(on_disk)));
    findings.push(defaults(seen, &settings, looked.as_ref()));
    findings.extend(entries(seen, looked.as_ref()));
    findings
}

fn protocol(seen: &Seen<'_>, started: Option<&str>, looked: Result<&Look, &String>) -> Finding {
    let remedy = "Start it by UEFI with systemd-boot, which `switchback provision` puts on a disk, or name a program of the \
                  board under [boot.custom].";
    let installed = looked.is_ok_and(|look| !look.loaders.is_empty());
    if seen.is_image() {
        let subject = Group::Boot.at("protocol", "the boot partition");
        return match installed {
            true => subject.ok("systemd-boot is there, where firmware looks for it"),
            false => subject.problem("no loader is where firmware looks for it", remedy),
        };
    }
    let firmware = Group::Boot.at("protocol", "/sys/firmware/efi");
    if !seen.place.path("sys/firmware/efi").exists() {
        return firmware.problem("this machine did not start by UEFI, and systemd-boot needs it", remedy);
    }
    match started {
        Some(info) if info.starts_with(SYSTEMD_BOOT) => {
            firmware.ok(format!("UEFI; {info} started this system"))
        }
        Some(info) => firmware.problem(format!("UEFI, but {info} started this system"), remedy),
        None if installed => firmware.warning(
            "UEFI; systemd-boot is installed and left no variables",
            "Mount efivarfs on /sys/firmware/efi/efivars: the loader's word checks which slot runs.",
        ),
        None => firmware.problem("UEFI, and nothing tells of systemd-boot", remedy),
    }
}

fn version(seen: &Seen<'_>, info: Option<&str>) -> Finding {
    let subject = Group::Boot.at("loader-version", "what the loader calls itself");
    let Some(info) = info else { return subject.note("it does not say, or it was not found") };
    let Boot { tries, firmware_options, .. } = seen.config.boot;
    match gives_up(info) {
        None => subject.note(format!("{info}: not understood")),
        Some(false) => subject.ok(format!("{info}: restarts when a kernel cannot be loaded")),
        Some(true) if crashes_over_an_initrd(info) && !unified(seen) => subject.warning(
            format!("{info}: crashes when a kernel with an initrd beside it is there and cannot be loaded"),
            format!(
                "Use systemd-boot {REBOOT_ON_ERROR_SINCE} or newer, or releases whose boot files are one unified kernel image."
            ),
        ),
        // The firmware here is not that of the machine in an image file.
        Some(true) if !seen.is_image() && firmware::is_registered(&seen.place.efivars(), tries) == Some(true) => {
            subject.ok(format!("{info}: hands back when a kernel cannot be loaded, and the firmware starts it again"))
        }
        Some(true) if firmware_options => subject.note(format!(
            "{info}: hands back when a kernel cannot be loaded. The next update has the firmware start it again"
        )),
        Some(true) => subject.warning(
            format!("{info}: a kernel that is there and cannot be loaded ends in the firmware"),
            format!(
                "Use systemd-boot {REBOOT_ON_ERROR_SINCE} or newer, or allow `firmware_options` under [boot]: then the next \
                 update registers boot options to start the loader again."
            ),
        ),
    }
}

/// True when no slot has an initrd beside its kernel.
fn unified(seen: &Seen<'_>) -> bool {
    let beside = |dir: &dyn EspDir, slot: Slot| {
        dir.file_bytes(&format!("{}/{}", slot_folder(slot), BootFileKind::Initrd.file_name()))
    };
    seen.esp
        .as_ref()
        .is_ok_and(|esp| Slot::ALL.into_iter().all(|slot| matches!(beside(&*esp.dir, slot), Ok(None))))
}

/// A default that is set is started again and again, whatever its counter says.
fn defaults(seen: &Seen<'_>, settings: &LoaderSettings, looked: Result<&Look, &String>) -> Finding {
    let subject = Group::Boot.at("loader-defaults", "loader.conf and the loader's variables");
    let mut fixed: Vec<String> = looked.map(|look| look.fixed.clone()).unwrap_or_default();
    if !seen.is_image() {
        fixed.extend(settings.fixed.iter().map(|(name, entry)| format!("{name} = {entry}")));
    }
    match fixed.is_empty() {
        true if looked.is_err() && settings.info.is_none() => subject.note("not looked at: no loader was found"),
        true => subject.ok("no entry is set to be started whatever its counter says"),
        false => subject.warning(
            format!("set: {}. A bad slot that is named so is started for ever", fixed.join(", ")),
            "Take the line out of loader.conf; `bootctl set-default \"\"` and `bootctl set-oneshot \"\"` clear the variables.",
        ),
    }
}

fn entries(seen: &Seen<'_>, looked: Result<&Look, &String>) -> Vec<Finding> {
    let subject = |name| Group::Boot.at(name, "loader/entries");
    let look = match looked {
        Ok(look) => look,
        Err(why) => {
            let remedy =
                "Mount or repair the boot partition; `esp` under [machine] names where it is mounted.";
            return match seen.esp {
                Ok(_) => vec![subject("boot-entries").problem(why.clone(), remedy)],
                Err(_) => vec![subject("boot-entries").note(format!("not looked at: {}", short(why)))],
            };
        }
    };
    let mut findings = Vec::new();
    if !look.torn.is_empty() {
        findings.push(subject("boot-entry-twice").warning(
            format!("an entry has a plain and a counted name: {}", look.torn.join(", ")),
            "A power cut tore a rename. The next `switchback update` or `rollback` moves the second name aside; until then \
             systemd-bless-boot confirms nothing.",
        ));
    }
    for (slot, file) in &look.hidden {
        let subject = subject("boot-entry-hidden");
        let found = format!("the loader does not show {file}: its text or its kernel is gone");
        findings.push(match seen.running.as_ref().is_ok_and(|running| running.slot == *slot) {
            true => {
                subject.problem(found, "Update to the other slot before the next restart, or provision anew.")
            }
            false => subject.warning(found, "`switchback update` writes that slot and its entry anew."),
        });
    }
    if !look.first.is_empty() {
        findings.push(subject("foreign-entries").problem(
            format!("started before any slot: {}", look.first.join(", ")),
            "Remove them, or give them a `sort-key` behind `switchback`: an armed slot would never be started.",
        ));
    } else if !look.behind.is_empty() {
        findings.push(subject("foreign-entries").note(format!("behind ours: {}", look.behind.join(", "))));
    }
    if !look.ukis.is_empty() {
        findings.push(Group::Boot.at("foreign-ukis", "EFI/Linux").warning(
            format!("the loader makes entries of its own from {}", look.ukis.join(", ")),
            "Move them out of EFI/Linux: their names and versions decide whether they are started before a slot.",
        ));
    }
    if findings.is_empty() {
        findings.push(
            subject("boot-entries").ok("one name for each entry, each with its kernel, and ours go first"),
        );
    }
    findings
}

/// The boot record, as the backend reads it.
fn state(seen: &Seen<'_>) -> Finding {
    let subject = Group::Boot.at("boot-state", "the boot record");
    let read = match &seen.esp {
        Ok(esp) => backend(&seen.config.boot, esp.dir.clone())
            .map_err(|error| chain(&error))
            .and_then(|bootloader| bootloader.read().map_err(|error| chain(&error))),
        Err(why) => return subject.note(format!("not looked at: {}", short(why))),
    };
    match read {
        Ok(state) => judge(subject, &state, seen.running.as_ref().ok().map(|running| running.slot)),
        Err(why) => subject
            .problem(why, "Check that the boot partition is mounted and whole, or the board's program."),
    }
}

fn judge(subject: super::finding::Subject, state: &BootState, running: Option<Slot>) -> Finding {
    let words = |slot| match state.slot(slot) {
        SlotBoot::Empty => format!("slot {slot} has no entry"),
        SlotBoot::Good => format!("slot {slot} is confirmed"),
        SlotBoot::Trial { tries_left, .. } => {
            format!("slot {slot} is on trial with {tries_left} starts left")
        }
        SlotBoot::Bad => format!("slot {slot} is marked bad"),
    };
    let next =
        state.choose().map_or("nothing starts next".to_owned(), |slot| format!("slot {slot} starts next"));
    let found = format!("{}, {}; {next}", words(Slot::A), words(Slot::B));
    match running.map(|slot| state.slot(slot)) {
        _ if state.choose().is_none() => subject
            .problem(found, "Before a restart: `switchback provision` the disk anew, or restore an entry."),
        Some(SlotBoot::Good) => subject.ok(found),
        Some(SlotBoot::Trial { .. }) => subject.note(format!(
            "{found}. The running slot is not confirmed yet: `switchback boot-check` does that"
        )),
        Some(SlotBoot::Bad) => subject.warning(
            found,
            "The running slot is on its last start: `switchback boot-check` confirms it, if it is well.",
        ),
        Some(SlotBoot::Empty) => subject.problem(
            found,
            "The running slot would not be started again: restore its entry before a restart.",
        ),
        None => subject.note(found),
    }
}

/// The first part of a chain of sentences: the whole stands in the finding it belongs to.
pub(super) fn short(why: &str) -> &str {
    why.split(';').next().unwrap_or(why)
}
