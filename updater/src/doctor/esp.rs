//! Room on the boot partition, and whether it was unmounted in order.
//!
//! Not here: what its entries say (`boot`). Rule: asked is what an update will ask: does what runs fit once more?

use indicatif::BinaryBytes;
use switchback_bootloader::record::BootError;
use switchback_bootloader::slot_folder;
use switchback_partitions::slot::Slot;

use super::boot::short;
use super::finding::{Finding, Group};
use super::place::{Esp, Seen};
use crate::engine::chain;
use crate::host::backend;

/// The boot sector up to its state byte, which FAT12 and FAT16 have at 0x25 and FAT32 at 0x41.
const BOOT_SECTOR_BYTES: usize = 512;
const STATE_AT: usize = 0x25;
const STATE_AT_FAT32: usize = 0x41;
/// `BPB_FATSz16`: zero on FAT32 alone.
const FAT_SECTORS_16_AT: usize = 22;
const DIRTY: u8 = 1;

/// Room and cleanness.
pub fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    match &seen.esp {
        Ok(esp) => vec![room(seen, esp), clean(esp)],
        Err(why) => {
            let subject = Group::Boot.at("esp-space", "the boot partition");
            vec![subject.note(format!("not looked at: {}", short(why)))]
        }
    }
}

/// Would boot files as large as those of the running slot fit into the other one's folder?
fn room(seen: &Seen<'_>, esp: &Esp) -> Finding {
    let subject = Group::Boot.at("esp-space", &esp.name);
    let remedy = "Remove foreign files from the boot partition, make kernel and initramfs smaller, or provision a larger one.";
    let from = seen.running.as_ref().map_or(Slot::A, |running| running.slot);
    let asked = || -> Result<(u64, u64), String> {
        let files = esp.dir.list(&slot_folder(from)).map_err(|error| error.to_string())?;
        let sizes: Vec<u64> = files.iter().filter(|file| !file.is_dir).map(|file| file.bytes).collect();
        let free = esp.dir.space().map_err(|error| error.to_string())?.free_bytes;
        let bootloader = backend(&seen.config.boot, esp.dir.clone()).map_err(|error| chain(&error))?;
        match bootloader.preflight(from.other(), &sizes) {
            Ok(()) => Ok((sizes.iter().sum(), free)),
            Err(BootError::NoSpace { needed, available, .. }) => Err(format!(
                "the boot files of the running slot do not fit once more: {} are needed, {} can be had",
                BinaryBytes(needed),
                BinaryBytes(available)
            )),
            Err(error) => Err(chain(&error)),
        }
    };
    match asked() {
        Ok((0, free)) => {
            subject.note(format!("slot {from} has no boot files to measure by; {} free", BinaryBytes(free)))
        }
        Ok((bytes, free)) => {
            subject.ok(format!("boot files of {} fit twice; {} free", BinaryBytes(bytes), BinaryBytes(free)))
        }
        Err(why) => subject.problem(why, remedy),
    }
}

fn clean(esp: &Esp) -> Finding {
    let subject = Group::Boot.at("esp-clean", &esp.name);
    let Some(raw) = &esp.raw else {
        return subject.note("mounted: the mark of an unclean file system says nothing while it is");
    };
    let mut sector = [0; BOOT_SECTOR_BYTES];
    if let Err(error) = raw.read_at(0, &mut sector) {
        return subject.problem(error.to_string(), "Check the disk: the boot partition cannot be read.");
    }
    let at =
        if sector[FAT_SECTORS_16_AT..FAT_SECTORS_16_AT + 2] == [0, 0] { STATE_AT_FAT32 } else { STATE_AT };
    match sector[at] & DIRTY == 0 {
        true => subject.ok("unmounted in order"),
        false => subject.warning(
            "not unmounted in order: power was lost while it was mounted for writing",
            "Run `fsck.vfat -a` on it while nobody has it mounted.",
        ),
    }
}
