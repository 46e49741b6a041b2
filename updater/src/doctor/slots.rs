//! The disk with its two slots, which of them runs, and what each holds.
//!
//! Not here: boot entries (`boot`). Rule: what a slot holds is what its verified passport says.

use indicatif::BinaryBytes;
use switchback_bootloader::boot_state::BootState;
use switchback_partitions::layout::DiskLayout;
use switchback_partitions::slot::Slot;

use super::finding::{Finding, Group};
use super::place::{Running, Seen};
use crate::engine::answers::Content;
use crate::engine::{Fault, Held, Look, chain, source};
use crate::host::loader::LoaderEvidence;
use crate::host::state_dir::Folder;
use crate::host::{backend, witness};
use crate::reason::Reason;

/// Layout, sizes, the running slot, contents.
pub fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    let mut findings = vec![layout(seen)];
    if let Ok((disk, layout)) = &seen.layout {
        findings.push(sizes(disk, layout));
    }
    findings.push(running(seen));
    if let (Ok(running), false) = (&seen.running, seen.is_image()) {
        findings.push(witnesses(seen, running));
    }
    findings.extend(contents(seen));
    findings
}

fn layout(seen: &Seen<'_>) -> Finding {
    match &seen.layout {
        Ok((disk, layout)) => {
            let [a, b] = &layout.slots;
            Group::Slots.at("layout", disk).ok(format!(
                "boot partition {}, slot a on {} and {}, slot b on {} and {}",
                layout.esp.number, a.root.number, a.verity.number, b.root.number, b.verity.number
            ))
        }
        Err(why) => {
            let remedy = "`switchback provision` makes a blank disk or an image file bootable with two slots; a disk that \
                          is in use has to be partitioned anew.";
            Group::Slots
                .at("layout", "partition tables")
                .problem(format!("no disk has two slots: {why}"), remedy)
        }
    }
}

fn sizes(disk: &str, layout: &DiskLayout) -> Finding {
    let subject = Group::Slots.at("slot-sizes", disk);
    let [a, b] = [0, 1].map(|index| layout.slots[index].root.len);
    let found = format!("slot a has {}, slot b {}", BinaryBytes(a), BinaryBytes(b));
    match a == b {
        true => subject.ok(found),
        // What fits into the larger one cannot follow into the smaller one.
        false => {
            subject.warning(found, "Make both as large as the larger one: a release must fit into either.")
        }
    }
}

fn running(seen: &Seen<'_>) -> Finding {
    match &seen.running {
        Ok(Running { slot, evidence }) => Group::Slots
            .at("running-slot", evidence.split(';').next().unwrap_or_default())
            .ok(format!("slot {slot} runs")),
        Err(why) => {
            let subject = Group::Slots.at("running-slot", "/, the loader and the kernel command line");
            subject.problem(
                why.clone(),
                "Start the machine from one of its slots; nothing is written without a witness.",
            )
        }
    }
}

/// Do the loader and the command line say what the kernel stands on?
fn witnesses(seen: &Seen<'_>, running: &Running) -> Finding {
    let subject = Group::Slots.at("running-witnesses", "the loader's variables and the kernel command line");
    let cmdline = seen.place.text("proc/cmdline").unwrap_or_default();
    let said = [
        ("the loader", LoaderEvidence::read(&seen.place.efivars()).slot()),
        ("the kernel command line", witness::slot_on_cmdline(&cmdline)),
    ];
    let other: Vec<String> = said
        .iter()
        .filter_map(|(who, slot)| {
            slot.filter(|slot| *slot != running.slot).map(|slot| format!("{who} says slot {slot}"))
        })
        .collect();
    match other.is_empty() {
        true if said.iter().all(|(_, slot)| slot.is_none()) => subject.note("neither names a slot"),
        true => subject.ok(format!("they agree on slot {}", running.slot)),
        false => subject.warning(
            format!("{}; slot {} is believed, because / stands on it", other.join(", "), running.slot),
            "Look for a boot entry that names the other slot's root.",
        ),
    }
}

/// What the slots hold.
fn contents(seen: &Seen<'_>) -> Vec<Finding> {
    let Ok(esp) = &seen.esp else { return Vec::new() };
    let Ok(bootloader) = backend(&seen.config.boot, esp.dir.clone()) else { return Vec::new() };
    // Without a policy there is a problem already, under `trust-policy`.
    let Ok(policy) = source::policy(seen.config, &seen.config.machine.root) else { return Vec::new() };
    // A boot record that cannot be read is told under `boot`; what lies in the slots is there all the same.
    let boot = bootloader.read().unwrap_or(BootState::EMPTY);
    let look = Look {
        bootloader: &*bootloader,
        boot,
        running: seen.running.as_ref().ok().map(|running| running.slot),
        layout: seen.layout.as_ref().ok().map(|(_, layout)| layout),
        state_dir: &Folder::new(&seen.config.machine.state_dir),
        trust: Some(&policy),
    };
    Slot::ALL.into_iter().map(|slot| content(slot, &look)).collect()
}

fn content(slot: Slot, look: &Look<'_>) -> Finding {
    let name = ["slot-a", "slot-b"][slot.index()];
    let subject = Group::Slots.at(name, format!("the passport of slot {slot}"));
    let runs = look.running == Some(slot);
    match look.at(slot) {
        Held { content: Content::HalfWritten, .. } => {
            subject.note("half written: the next `switchback update` goes on there")
        }
        Held { fault: Some(Fault::Unverified(error)), .. }
            if runs && error.reason() == Reason::SignatureRefused =>
        {
            subject.problem(
                format!("the trust policy does not accept what runs here: {}", chain(&error)),
                "Check the keys: releases of the same author will be refused too.",
            )
        }
        Held { fault: Some(Fault::Lost(gone)), .. } if runs => subject.warning(
            format!("{}, so nobody knows what runs here", Fault::Lost(gone)),
            "Make the disk with `switchback provision`, or update once: the next release brings its passport.",
        ),
        Held { fault: Some(fault), .. } if runs => {
            subject.warning(fault.to_string(), "Update: the next release is written to the other slot.")
        }
        Held { fault: Some(fault), .. } => subject.warning(
            fault.to_string(),
            "`switchback rollback` cannot use it; the next `switchback update` writes that slot anew.",
        ),
        Held { release: Some(release), .. } => {
            subject.ok(format!("{} {}", release.config.name, release.version()))
        }
        Held { .. } => subject.note("empty: until the first update there is nothing to go back to"),
    }
}
