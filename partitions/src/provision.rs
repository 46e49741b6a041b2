//! Makes a blank disk bootable: partition table, FAT32 ESP, two empty slots, `state` and `data` as ext4.
//!
//! Not here: what goes into the ESP and the slots (the bootloader crate and the installer write it afterwards). Rule: every
//! size is checked, and every tool found, before the first write; a disk that holds anything is left alone unless told.

mod ext4;
mod fat;

use std::io;
use std::sync::Arc;

use uuid::Uuid;

use crate::device::disk::Disk;
use crate::device::{BlockDevice, Window};
use crate::gpt::{ATTRIBUTE_GROW, ATTRIBUTE_NO_AUTO, ATTRIBUTE_READ_ONLY, Entry, GptError, Table};
use crate::layout::{
    Architecture, DiskLayout, ESP_TYPE, Extent, LINUX_DATA_TYPE, LayoutError, root_label, verity_label,
};
use crate::slot::Slot;
use crate::verity::{BLOCK_BYTES, VerityError, VerityParams, tree_bytes};

const MIB: u64 = 1 << 20;
/// Partitions begin and end at multiples of this.
pub const ALIGNMENT_BYTES: u64 = MIB;
/// Below this ext4 has no room for a journal.
pub const STATE_BYTES_MIN: u64 = 16 * MIB;
/// Below this a data partition is of no use.
pub const DATA_BYTES_MIN: u64 = 16 * MIB;
/// No slot larger than this unless asked for.
const DEFAULT_SLOT_BYTES_MAX: u64 = 8 << 30;
/// How much of each end of the disk, and of each partition's start, must be blank or is made so: all signatures that
/// tools look for lie there.
const WIPE_BYTES: u64 = MIB;

/// What the disk shall look like. Sizes are in bytes and rounded up to whole MiB; `data` gets what is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Logical sector size: 512 or 4096.
    pub sector_bytes: u32,
    /// What the root partitions are for.
    pub architecture: Architecture,
    /// EFI system partition: holds the boot files of both slots.
    pub esp_bytes: u64,
    /// Each root partition; the verity partitions follow from it.
    pub slot_bytes: u64,
    /// The updater's own memory.
    pub state_bytes: u64,
}

impl Request {
    /// Usual sizes for a disk: ESP 128 MiB (288 MiB with 4096-byte sectors), state 64 MiB, and a quarter of the rest, at
    /// most 8 GiB, for each slot.
    pub fn usual(disk_bytes: u64, sector_bytes: u32) -> Request {
        let esp_bytes = if sector_bytes == 4096 { 288 * MIB } else { 128 * MIB };
        let state_bytes = 64 * MIB;
        let rest = disk_bytes.saturating_sub(esp_bytes + state_bytes);
        let slot_bytes = (rest / 4 / MIB * MIB).min(DEFAULT_SLOT_BYTES_MAX);
        Request {
            disk_bytes,
            sector_bytes,
            architecture: Architecture::native(),
            esp_bytes,
            slot_bytes,
            state_bytes,
        }
    }
}

/// One partition of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPartition {
    /// Number in the table, from 1.
    pub number: u32,
    /// Label.
    pub name: String,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// What to do with a disk that is not blank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it alone and say so.
    Refuse,
    /// Replace it.
    Overwrite,
}

/// Makes an empty ext4 with that label in a partition of the disk.
pub type MakeExt4<'a> = dyn Fn(&dyn Disk, &Extent, &'static str) -> Result<(), ProvisionError> + 'a;

/// A layout that was checked and fits.
#[derive(Debug, Clone)]
pub struct Plan {
    disk_bytes: u64,
    table: Table,
}

/// Why a disk cannot be planned or was not provisioned.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The parts do not fit on the disk.
    #[error("while planning the disk: it has {available} bytes, the partitions need {needed}")]
    DiskTooSmall {
        /// Bytes needed.
        needed: u64,
        /// Bytes the disk has.
        available: u64,
    },
    /// A partition would be too small, or too large, for what goes into it.
    #[error("while planning the disk: {name} of {bytes} bytes: {reason}")]
    BadSize {
        /// Which partition.
        name: &'static str,
        /// The size asked for.
        bytes: u64,
        /// Why it does not do.
        reason: String,
    },
    /// The plan was made for another disk.
    #[error(
        "while provisioning: the plan is for {planned} bytes in sectors of {planned_sector}, the disk has {found} in {found_sector}"
    )]
    OtherDisk {
        /// Disk size of the plan.
        planned: u64,
        /// Its sector size.
        planned_sector: u32,
        /// Size of this disk.
        found: u64,
        /// Its sector size.
        found_sector: u32,
    },
    /// The disk holds something.
    #[error("while provisioning: the disk is not blank (byte {at} is in use); nothing was written")]
    NotBlank {
        /// First byte that is not zero.
        at: u64,
    },
    /// The disk is in use.
    #[error("while provisioning: the disk, or a partition of it, is mounted or held; nothing was written")]
    InUse,
    /// A program is missing.
    #[error(
        "while provisioning: `{program}` is not installed (Debian package {package}); nothing was written"
    )]
    MissingProgram {
        /// The program.
        program: &'static str,
        /// Where Debian has it.
        package: &'static str,
    },
    /// A program failed.
    #[error("while provisioning: {program} for {name} failed: {message}")]
    ProgramFailed {
        /// The program.
        program: &'static str,
        /// The partition.
        name: &'static str,
        /// Its last words.
        message: String,
    },
    /// The table could not be made or written.
    #[error("while provisioning: the partition table")]
    Table(#[from] GptError),
    /// What was written is not found again.
    #[error("while provisioning: the new layout")]
    Layout(#[from] LayoutError),
    /// The size of a verity partition could not be computed.
    #[error("while planning the disk: the verity partitions")]
    Verity(#[from] VerityError),
    /// A device did not do what it was asked.
    #[error("while {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl Plan {
    /// Checks every size and places every partition.
    pub fn new(request: &Request) -> Result<Plan, ProvisionError> {
        let sizes = Sizes::checked(request)?;
        let mut table = Table::new(request.disk_bytes, request.sector_bytes, Uuid::new_v4())?;
        let mut offset = ALIGNMENT_BYTES;
        let end = table.usable().end / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
        let needed = offset + sizes.all_but_data() + DATA_BYTES_MIN;
        if needed > end {
            return Err(ProvisionError::DiskTooSmall {
                // What the table itself takes at the end of the disk is part of the need.
                needed: needed.saturating_add(request.disk_bytes.saturating_sub(end)),
                available: request.disk_bytes,
            });
        }
        let data_bytes = end - offset - sizes.all_but_data();
        let slot_attributes = ATTRIBUTE_READ_ONLY | ATTRIBUTE_NO_AUTO;
        let (root, verity) = (request.architecture.root_type(), request.architecture.verity_type());
        let parts = [
            ("esp".to_owned(), ESP_TYPE, sizes.esp, 0),
            (root_label(Slot::A), root, sizes.slot, slot_attributes),
            (verity_label(Slot::A), verity, sizes.verity, slot_attributes),
            (root_label(Slot::B), root, sizes.slot, slot_attributes),
            (verity_label(Slot::B), verity, sizes.verity, slot_attributes),
            ("state".to_owned(), LINUX_DATA_TYPE, sizes.state, 0),
            ("data".to_owned(), LINUX_DATA_TYPE, data_bytes, ATTRIBUTE_GROW),
        ];
        for (number, (label, type_guid, len, attributes)) in (1..).zip(parts) {
            table.add(Entry { number, type_guid, guid: Uuid::new_v4(), offset, len, attributes, label })?;
            offset += len;
        }
        Ok(Plan { disk_bytes: request.disk_bytes, table })
    }

    /// The partitions in order, for people to read before they say yes.
    pub fn summary(&self) -> Vec<PlannedPartition> {
        let entries = self.table.entries().into_iter();
        entries
            .map(|Entry { number, label, offset, len, .. }| PlannedPartition {
                number,
                name: label,
                offset,
                bytes: len,
            })
            .collect()
    }

    /// Writes the plan to `disk` and returns the layout as read back from it. The table goes last but for the ext4 file
    /// systems, so an interrupted run leaves a disk that no firmware boots, and that needs [`Existing::Overwrite`].
    pub fn execute(&self, disk: &dyn Disk, existing: Existing) -> Result<DiskLayout, ProvisionError> {
        let mkfs = ext4::find_program()?;
        self.execute_with(disk, existing, &|disk, extent, name| ext4::format(&mkfs, disk, extent, name))
    }

    /// [`Plan::execute`] with another maker of file systems, for disks that no program can open.
    pub fn execute_with(
        &self,
        disk: &dyn Disk,
        existing: Existing,
        make_ext4: &MakeExt4<'_>,
    ) -> Result<DiskLayout, ProvisionError> {
        let _lock = disk.lock().map_err(io_error("locking the disk"))?;
        {
            let whole = disk.claim().map_err(|source| match source.kind() {
                io::ErrorKind::ResourceBusy => ProvisionError::InUse,
                _ => io_error("opening the disk")(source),
            })?;
            self.check_disk(&*whole, existing)?;
            self.write_table_and_esp(whole)?;
            // The claim ends here: while it is held, no partition can be opened.
        }
        disk.reread_partitions().map_err(io_error("telling the kernel about the new partitions"))?;
        let whole = disk.whole().map_err(io_error("opening the disk"))?;
        let layout = DiskLayout::discover(&Table::read(&*whole)?)?;
        for (name, extent) in [("state", &layout.state), ("data", &layout.data)] {
            if let Some(extent) = extent {
                make_ext4(disk, extent, name)?;
            }
        }
        whole.flush().map_err(io_error("flushing the disk"))?;
        Ok(layout)
    }

    fn check_disk(&self, whole: &dyn BlockDevice, existing: Existing) -> Result<(), ProvisionError> {
        let planned = (self.disk_bytes, self.table.sector_bytes());
        let found = (whole.len(), whole.sector_bytes());
        if planned != found {
            return Err(ProvisionError::OtherDisk {
                planned: planned.0,
                planned_sector: planned.1,
                found: found.0,
                found_sector: found.1,
            });
        }
        if existing == Existing::Overwrite {
            return Ok(());
        }
        match first_used_byte(whole).map_err(io_error("looking whether the disk is blank"))? {
            Some(at) => Err(ProvisionError::NotBlank { at }),
            None => Ok(()),
        }
    }

    fn write_table_and_esp(&self, whole: Arc<dyn BlockDevice>) -> Result<(), ProvisionError> {
        // The old table goes first: from here on nobody finds partitions in a disk that is half changed.
        let ends = [0, whole.len() - WIPE_BYTES];
        let starts = self.table.entries().into_iter().map(|entry| entry.offset);
        for offset in ends.into_iter().chain(starts) {
            whole.zero(offset, WIPE_BYTES).map_err(io_error("wiping what was on the disk"))?;
        }
        whole.flush().map_err(io_error("flushing the disk"))?;
        let esp = self.table.entries().into_iter().find(|entry| entry.type_guid == ESP_TYPE);
        if let Some(Extent { offset, len, .. }) = esp.map(|entry| entry.extent()) {
            let window = Window::new(whole.clone(), offset, len).map_err(io_error("opening the ESP"))?;
            fat::format(&window).map_err(io_error("making the ESP's file system"))?;
        }
        whole.flush().map_err(io_error("flushing the disk"))?;
        self.table.clone().write(&*whole)?;
        Ok(())
    }
}

/// The sizes, rounded and checked.
struct Sizes {
    esp: u64,
    slot: u64,
    verity: u64,
    state: u64,
}

impl Sizes {
    fn checked(request: &Request) -> Result<Sizes, ProvisionError> {
        let esp = rounded("esp", request.esp_bytes, request.disk_bytes)?;
        let slot = rounded("root-a and root-b", request.slot_bytes, request.disk_bytes)?;
        let state = rounded("state", request.state_bytes, request.disk_bytes)?;
        fat::check_size(esp, request.sector_bytes).map_err(|reason| ProvisionError::BadSize {
            name: "esp",
            bytes: esp,
            reason,
        })?;
        if state < STATE_BYTES_MIN {
            let reason = format!("at least {STATE_BYTES_MIN} are needed");
            return Err(ProvisionError::BadSize { name: "state", bytes: state, reason });
        }
        let verity = tree_bytes(&VerityParams {
            salt: Vec::new(),
            uuid: Uuid::nil(),
            data_block_bytes: BLOCK_BYTES,
            hash_block_bytes: BLOCK_BYTES,
            data_blocks: slot / u64::from(BLOCK_BYTES),
        })?;
        Ok(Sizes { esp, slot, verity: verity.next_multiple_of(ALIGNMENT_BYTES), state })
    }

    fn all_but_data(&self) -> u64 {
        self.esp + 2 * (self.slot + self.verity) + self.state
    }
}

/// Up to whole MiB. Nothing may be empty or larger than the disk, which also keeps every sum below 64 bits.
fn rounded(name: &'static str, bytes: u64, disk_bytes: u64) -> Result<u64, ProvisionError> {
    let bad = |reason: &str| ProvisionError::BadSize { name, bytes, reason: reason.to_owned() };
    if bytes == 0 {
        return Err(bad("it may not be empty"));
    }
    if bytes > disk_bytes || disk_bytes > i64::MAX as u64 / 8 {
        return Err(bad("it is larger than the disk, or the disk is larger than any disk"));
    }
    Ok(bytes.next_multiple_of(ALIGNMENT_BYTES))
}

fn first_used_byte(whole: &dyn BlockDevice) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; WIPE_BYTES as usize];
    for offset in [0, whole.len() - WIPE_BYTES] {
        whole.read_at(offset, &mut buffer)?;
        if let Some(at) = buffer.iter().position(|byte| *byte != 0) {
            return Ok(Some(offset + at as u64));
        }
    }
    Ok(None)
}

fn io_error(action: &'static str) -> impl Fn(io::Error) -> ProvisionError {
    move |source| ProvisionError::Io { action, source }
}

#[cfg(test)]
mod tests;
