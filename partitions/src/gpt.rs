//! The GUID partition table (UEFI specification 2.10, chapter 5): bytes ↔ table, both copies.
//!
//! Not here: what partitions mean (`layout`). Rule: one copy is always whole: the backup is written and flushed before the
//! primary is touched, and a bad copy is restored from the good one before anything changes. Numbers are kept, gaps included.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Cursor, Write};

use gpt::disk::LogicalBlockSize;
use gpt::header::{Header, HeaderBuilder, HeaderError};
use gpt::mbr::{MBRError, ProtectiveMBR};
use gpt::partition::Partition;
use gpt::partition_types::Type;
use uuid::Uuid;

use crate::device::{BlockDevice, DeviceStream};
use crate::layout::Extent;

/// Longest label, in UTF-16 code units.
pub const LABEL_UNITS_MAX: usize = 36;
/// Attribute bit: read-only (UAPI.2).
pub const ATTRIBUTE_READ_ONLY: u64 = 1 << 60;
/// Attribute bit: never mounted by discovery alone (UAPI.2).
pub const ATTRIBUTE_NO_AUTO: u64 = 1 << 63;
/// Attribute bit: the file system may grow to the partition's size (UAPI.2).
pub const ATTRIBUTE_GROW: u64 = 1 << 59;

/// Most entries a table may have. 128 is usual; the array is read into memory, so a broken header must not choose its size.
const ENTRIES_MAX: u32 = 1024;
/// The one entry size in use; the specification allows others and nobody makes them.
const ENTRY_BYTES: u32 = 128;
/// Where the primary header and, when it is lost, its entries are (UEFI 5.3.1).
const PRIMARY_LBA: u64 = 1;
const PRIMARY_ENTRIES_LBA: u64 = 2;

/// One used entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Number, from 1.
    pub number: u32,
    /// What the partition is for.
    pub type_guid: Uuid,
    /// Which one it is (PARTUUID).
    pub guid: Uuid,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Attribute bits.
    pub attributes: u64,
    /// Label; unpaired surrogates read as U+FFFD.
    pub label: String,
}

impl Entry {
    /// Where it lies.
    pub fn extent(&self) -> Extent {
        Extent { number: self.number, offset: self.offset, len: self.len, guid: self.guid }
    }
}

/// One of the two places a table is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableCopy {
    /// At the start of the disk.
    Primary,
    /// At its end.
    Backup,
}

impl fmt::Display for TableCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TableCopy::Primary => "primary",
            TableCopy::Backup => "backup",
        })
    }
}

/// A copy that was not usable when the table was read. The other one was used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which copy.
    pub copy: TableCopy,
    /// What is wrong with it.
    pub reason: String,
}

/// Why a table could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    /// Neither copy is usable.
    #[error("while reading the partition table: no usable copy (primary: {primary}; backup: {backup})")]
    NoUsableCopy {
        /// What is wrong with the primary.
        primary: String,
        /// What is wrong with the backup.
        backup: String,
    },
    /// The device did not do what it was asked.
    #[error("while {action} the partition table")]
    Io {
        /// Reading, writing, flushing.
        action: &'static str,
        /// The device's error.
        #[source]
        source: io::Error,
    },
    /// The `gpt` crate refused.
    #[error("while writing the {copy} partition table header")]
    Header {
        /// Which copy.
        copy: TableCopy,
        /// The crate's reason.
        #[source]
        source: HeaderError,
    },
    /// The protective MBR could not be written.
    #[error("while writing the protective MBR")]
    Mbr(#[source] MBRError),
    /// No such partition.
    #[error("while changing the partition table: there is no partition {number}")]
    NoPartition {
        /// The number asked for.
        number: u32,
    },
    /// A label the format cannot hold.
    #[error(
        "while changing the partition table: label `{label}` is longer than 36 UTF-16 units or holds a NUL"
    )]
    BadLabel {
        /// The label.
        label: String,
    },
    /// A partition that does not fit in.
    #[error("while adding partition {number} to the table: {reason}")]
    BadPartition {
        /// Its number.
        number: u32,
        /// Why not.
        reason: String,
    },
    /// A device or disk size the format does not know.
    #[error("while laying out a partition table: {reason}")]
    Unsupported {
        /// What.
        reason: String,
    },
}

/// A partition table in memory. Changes reach the disk only by [`write`](Table::write).
#[derive(Debug, Clone)]
pub struct Table {
    sector: LogicalBlockSize,
    primary: Header,
    backup: Header,
    /// The entry array as the good copy on the disk has it; bytes of unchanged entries are kept to the bit.
    stored: Vec<u8>,
    /// The same with our changes.
    array: Vec<u8>,
    partitions: BTreeMap<u32, Partition>,
    on_disk: OnDisk,
}

/// What the disk holds, compared with `stored`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum OnDisk {
    Nothing,
    BothCopies,
    OneCopy(Damage),
}

impl Table {
    /// An empty table for a disk of `disk_bytes`, to be written to a disk that has none.
    pub fn new(disk_bytes: u64, sector_bytes: u32, disk_guid: Uuid) -> Result<Table, GptError> {
        let unsupported = |reason: String| GptError::Unsupported { reason };
        let sector = sector_size(sector_bytes)?;
        let sectors = disk_bytes / sector.as_u64();
        let mut builder = HeaderBuilder::new();
        builder.disk_guid(disk_guid).backup_lba(sectors.saturating_sub(1));
        let mut build = |primary| {
            builder
                .primary(primary)
                .build(sector)
                .map_err(|error| unsupported(format!("{disk_bytes} bytes: {error}")))
        };
        let (primary, backup) = (build(true)?, build(false)?);
        let array = vec![0; array_bytes(&primary)];
        Ok(Table {
            sector,
            primary,
            backup,
            stored: array.clone(),
            array,
            partitions: BTreeMap::new(),
            on_disk: OnDisk::Nothing,
        })
    }

    /// Reads the table: the primary copy when it is whole, else the backup.
    pub fn read(device: &dyn BlockDevice) -> Result<Table, GptError> {
        let sector = sector_size(device.sector_bytes())?;
        let last_lba = (device.len() / sector.as_u64()).saturating_sub(1);
        let primary = read_copy(device, sector, TableCopy::Primary, PRIMARY_LBA)?;
        // After a disk grew, the backup still lies where the primary says, not at the end.
        let backup_lba = primary.as_ref().map_or(last_lba, |good| good.header.backup_lba);
        let backup = read_copy(device, sector, TableCopy::Backup, backup_lba)?;
        let (good, backup_header, on_disk) = match (primary, backup) {
            (Ok(primary), Ok(backup)) if primary.array == backup.array => {
                (primary, Some(backup.header), OnDisk::BothCopies)
            }
            // A cut fell between the two writes of a change. The primary still has the table of before.
            (Ok(primary), Ok(backup)) => {
                let damage =
                    Damage { copy: TableCopy::Backup, reason: "differs from the primary".to_owned() };
                (primary, Some(backup.header), OnDisk::OneCopy(damage))
            }
            (Ok(primary), Err(reason)) => {
                (primary, None, OnDisk::OneCopy(Damage { copy: TableCopy::Backup, reason }))
            }
            (Err(reason), Ok(backup)) => {
                let header = backup.header.clone();
                (backup, Some(header), OnDisk::OneCopy(Damage { copy: TableCopy::Primary, reason }))
            }
            (Err(primary), Err(backup)) => return Err(GptError::NoUsableCopy { primary, backup }),
        };
        let (primary, backup) = header_pair(&good.header, backup_header, sector);
        let GoodCopy { array, partitions, .. } = good;
        Ok(Table { sector, primary, backup, stored: array.clone(), array, partitions, on_disk })
    }

    /// Logical sector size in bytes.
    pub fn sector_bytes(&self) -> u32 {
        self.sector.as_u64() as u32
    }

    /// The disk's own GUID.
    pub fn disk_guid(&self) -> Uuid {
        self.primary.disk_guid
    }

    /// The first byte that a partition may use and the first behind the last such byte.
    pub fn usable(&self) -> std::ops::Range<u64> {
        self.primary.first_usable * self.sector.as_u64()
            ..(self.primary.last_usable + 1) * self.sector.as_u64()
    }

    /// The copy that was bad when the table was read, if one was.
    pub fn damage(&self) -> Option<&Damage> {
        match &self.on_disk {
            OnDisk::OneCopy(damage) => Some(damage),
            OnDisk::Nothing | OnDisk::BothCopies => None,
        }
    }

    /// The used entries, by number.
    pub fn entries(&self) -> Vec<Entry> {
        self.partitions.iter().map(|(number, partition)| self.entry_of(*number, partition)).collect()
    }

    /// One entry.
    pub fn entry(&self, number: u32) -> Option<Entry> {
        self.partitions.get(&number).map(|partition| self.entry_of(number, partition))
    }

    /// Adds an entry. Refuses what is not aligned to sectors, passes the usable range, or overlaps.
    pub fn add(&mut self, entry: Entry) -> Result<(), GptError> {
        let sector = self.sector.as_u64();
        let bad = |reason: &str| GptError::BadPartition { number: entry.number, reason: reason.to_owned() };
        if entry.number == 0
            || entry.number > self.primary.num_parts
            || self.partitions.contains_key(&entry.number)
        {
            return Err(bad("its number is taken or passes the table"));
        }
        if entry.type_guid.is_nil()
            || entry.len == 0
            || !entry.offset.is_multiple_of(sector)
            || !entry.len.is_multiple_of(sector)
        {
            return Err(bad("it has no type, no length, or is not aligned to sectors"));
        }
        let end = entry.offset.checked_add(entry.len).ok_or_else(|| bad("it passes 64 bits"))?;
        let partition = Partition {
            part_type_guid: type_of(entry.type_guid),
            part_guid: entry.guid,
            first_lba: entry.offset / sector,
            last_lba: end / sector - 1,
            flags: entry.attributes,
            name: checked_label(&entry.label)?,
        };
        let mut partitions = self.partitions.clone();
        partitions.insert(entry.number, partition);
        check_places(&partitions, &self.primary).map_err(|reason| bad(&reason))?;
        self.partitions = partitions;
        self.render(entry.number)
    }

    /// Changes a label.
    pub fn set_label(&mut self, number: u32, label: &str) -> Result<(), GptError> {
        let label = checked_label(label)?;
        self.change(number, |partition| partition.name = label)
    }

    /// Changes a partition's unique GUID.
    pub fn set_guid(&mut self, number: u32, guid: Uuid) -> Result<(), GptError> {
        self.change(number, |partition| partition.part_guid = guid)
    }

    /// Changes the attribute bits, all at once.
    pub fn set_attributes(&mut self, number: u32, attributes: u64) -> Result<(), GptError> {
        self.change(number, |partition| partition.flags = attributes)
    }

    /// Makes the change durable: repair, then backup → flush → primary → flush. A power cut at any point leaves one whole
    /// table, the old or the new. Writes nothing and returns false when nothing changed.
    pub fn write(&mut self, device: &dyn BlockDevice) -> Result<bool, GptError> {
        // When only the backup is good, writing it first could lose both.
        let repaired = self.repair(device)?;
        if self.on_disk == OnDisk::BothCopies && self.array == self.stored {
            return Ok(repaired);
        }
        if self.on_disk == OnDisk::Nothing {
            self.write_protective_mbr(device)?;
        }
        let array = self.array.clone();
        self.write_copy(device, TableCopy::Backup, &array)?;
        self.write_copy(device, TableCopy::Primary, &array)?;
        self.stored = array;
        self.on_disk = OnDisk::BothCopies;
        Ok(true)
    }

    /// Restores the bad copy from the good one, without pending changes. Returns true when there was one.
    pub fn repair(&mut self, device: &dyn BlockDevice) -> Result<bool, GptError> {
        let Some(copy) = self.damage().map(|damage| damage.copy) else { return Ok(false) };
        let stored = self.stored.clone();
        self.write_copy(device, copy, &stored)?;
        self.on_disk = OnDisk::BothCopies;
        Ok(true)
    }

    fn write_copy(
        &mut self,
        device: &dyn BlockDevice,
        copy: TableCopy,
        array: &[u8],
    ) -> Result<(), GptError> {
        let sector = self.sector;
        let header = match copy {
            TableCopy::Primary => &mut self.primary,
            TableCopy::Backup => &mut self.backup,
        };
        let array_offset = header.part_start * sector.as_u64();
        device.write_at(array_offset, array).map_err(|source| GptError::Io { action: "writing", source })?;
        let mut stream = DeviceStream::new(device);
        let written = match copy {
            TableCopy::Primary => header.write_primary(&mut stream, sector),
            TableCopy::Backup => header.write_backup(&mut stream, sector),
        };
        written.map_err(|source| GptError::Header { copy, source })?;
        device.flush().map_err(|source| GptError::Io { action: "flushing", source })
    }

    fn write_protective_mbr(&self, device: &dyn BlockDevice) -> Result<(), GptError> {
        // Covers the disk without the MBR itself, or as much as 32 bits can say (UEFI 5.2.3).
        let sectors = u32::try_from(self.primary.backup_lba).unwrap_or(u32::MAX);
        ProtectiveMBR::with_lb_size(sectors)
            .overwrite_lba0(&mut DeviceStream::new(device))
            .map(|_| ())
            .map_err(GptError::Mbr)
    }

    fn change(&mut self, number: u32, edit: impl FnOnce(&mut Partition)) -> Result<(), GptError> {
        let partition = self.partitions.get_mut(&number).ok_or(GptError::NoPartition { number })?;
        let before = partition.clone();
        edit(partition);
        // Unchanged means untouched: rendering would replace what a label holds behind its NUL.
        if *partition == before { Ok(()) } else { self.render(number) }
    }

    /// Puts one entry's bytes into `array`.
    fn render(&mut self, number: u32) -> Result<(), GptError> {
        let partition = self.partitions.get(&number).ok_or(GptError::NoPartition { number })?;
        let mut bytes = Cursor::new(&mut self.array[..]);
        partition
            .write_to_device(&mut bytes, u64::from(number - 1), 0, self.sector, ENTRY_BYTES)
            .and_then(|()| bytes.flush())
            .map_err(|source| GptError::Io { action: "rendering", source })
    }

    fn entry_of(&self, number: u32, partition: &Partition) -> Entry {
        let sector = self.sector.as_u64();
        Entry {
            number,
            type_guid: partition.part_type_guid.guid,
            guid: partition.part_guid,
            offset: partition.first_lba * sector,
            len: (partition.last_lba - partition.first_lba + 1) * sector,
            attributes: partition.flags,
            label: partition.name.clone(),
        }
    }
}

struct GoodCopy {
    header: Header,
    array: Vec<u8>,
    partitions: BTreeMap<u32, Partition>,
}

/// Reads one copy. The outer error is the device's, which says nothing about the table; the inner one is what is wrong.
fn read_copy(
    device: &dyn BlockDevice,
    sector: LogicalBlockSize,
    copy: TableCopy,
    lba: u64,
) -> Result<Result<GoodCopy, String>, GptError> {
    let failed = |source| GptError::Io { action: "reading", source };
    let sectors = device.len() / sector.as_u64();
    if lba == 0 || lba >= sectors {
        return Ok(Err(format!("sector {lba} lies outside the disk")));
    }
    // The crate reads a header from sector 1 of a stream only; so it gets a stream with nothing else in it.
    let mut two_sectors = vec![0; 2 * sector.as_usize()];
    device.read_at(lba * sector.as_u64(), &mut two_sectors[sector.as_usize()..]).map_err(failed)?;
    let header = gpt::header::read_header_from_arbitrary_device(&mut Cursor::new(two_sectors), sector);
    let header = match header.map_err(|error| error.to_string()).and_then(|header| {
        check_header(&header, copy, lba, sectors, sector)?;
        Ok(header)
    }) {
        Ok(header) => header,
        Err(reason) => return Ok(Err(reason)),
    };
    let mut array = vec![0; array_bytes(&header)];
    device.read_at(header.part_start * sector.as_u64(), &mut array).map_err(failed)?;
    Ok(parse_array(&header, &array, sector).map(|partitions| GoodCopy { header, array, partitions }))
}

/// What the crate leaves unchecked, and panics or allocates by later (UEFI 5.3.2).
fn check_header(
    header: &Header,
    copy: TableCopy,
    lba: u64,
    sectors: u64,
    sector: LogicalBlockSize,
) -> Result<(), String> {
    let ensure = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    ensure(header.current_lba == lba, "the header says that it lies elsewhere")?;
    ensure(header.header_size_le == 92, "the header has an unknown length")?;
    ensure(header.part_size == ENTRY_BYTES, "the entries are not 128 bytes long")?;
    ensure((1..=ENTRIES_MAX).contains(&header.num_parts), "the number of entries is out of range")?;
    ensure(
        header.first_usable <= header.last_usable && header.last_usable < sectors,
        "the usable range is empty",
    )?;
    let array_sectors = array_sectors(header.num_parts, sector);
    let array_end = header.part_start.checked_add(array_sectors).ok_or("the entries lie outside the disk")?;
    // The other copy's place as well: repairing it must not write into a partition.
    let in_place = match copy {
        TableCopy::Primary => {
            let other_start =
                header.backup_lba.checked_sub(array_sectors).ok_or("the backup has no place")?;
            header.part_start > lba && array_end <= header.first_usable && other_start > header.last_usable
        }
        TableCopy::Backup => {
            let other_end = PRIMARY_ENTRIES_LBA + array_sectors;
            header.part_start > header.last_usable
                && array_end <= lba
                && header.backup_lba == PRIMARY_LBA
                && other_end <= header.first_usable
        }
    };
    ensure(in_place, "the entries lie outside their place")
}

fn parse_array(
    header: &Header,
    array: &[u8],
    sector: LogicalBlockSize,
) -> Result<BTreeMap<u32, Partition>, String> {
    let at_start = Header { part_start: 0, ..header.clone() };
    let mut partitions = gpt::partition::file_read_partitions(&mut Cursor::new(array), &at_start, sector)
        .map_err(|error| error.to_string())?;
    // The type alone says whether an entry is used (UEFI 5.3.3); its other bytes may be leftovers.
    partitions.retain(|_, partition| partition.is_used());
    check_places(&partitions, header)?;
    Ok(partitions)
}

/// Every partition inside the usable range and clear of every other: else writing one slot could write into the other.
fn check_places(partitions: &BTreeMap<u32, Partition>, header: &Header) -> Result<(), String> {
    let mut by_place: Vec<(u64, u64, u32)> = partitions
        .iter()
        .map(|(number, partition)| (partition.first_lba, partition.last_lba, *number))
        .collect();
    by_place.sort_unstable();
    for &(first, last, number) in &by_place {
        if first > last || first < header.first_usable || last > header.last_usable {
            return Err(format!("partition {number} lies outside the usable range"));
        }
    }
    match by_place.windows(2).find(|pair| pair[1].0 <= pair[0].1) {
        Some(pair) => Err(format!("partitions {} and {} overlap", pair[0].2, pair[1].2)),
        None => Ok(()),
    }
}

/// Both headers from the good one; the other copy's header, where it was read, knows best where its entries lie.
fn header_pair(good: &Header, backup: Option<Header>, sector: LogicalBlockSize) -> (Header, Header) {
    let array_sectors = array_sectors(good.num_parts, sector);
    let good_is_primary = good.current_lba < good.backup_lba;
    let (first, last) = if good_is_primary {
        (good.current_lba, good.backup_lba)
    } else {
        (good.backup_lba, good.current_lba)
    };
    let primary_entries = if good_is_primary { good.part_start } else { PRIMARY_ENTRIES_LBA };
    let backup_entries = match &backup {
        Some(backup) if backup.num_parts == good.num_parts => backup.part_start,
        _ => last - array_sectors,
    };
    let primary =
        Header { current_lba: first, backup_lba: last, part_start: primary_entries, ..good.clone() };
    let backup = Header { current_lba: last, backup_lba: first, part_start: backup_entries, ..good.clone() };
    (primary, backup)
}

fn array_bytes(header: &Header) -> usize {
    header.num_parts as usize * header.part_size as usize
}

fn array_sectors(entries: u32, sector: LogicalBlockSize) -> u64 {
    (u64::from(entries) * u64::from(ENTRY_BYTES)).div_ceil(sector.as_u64())
}

fn sector_size(bytes: u32) -> Result<LogicalBlockSize, GptError> {
    LogicalBlockSize::try_from(u64::from(bytes)).map_err(|_| GptError::Unsupported {
        reason: format!("sectors of {bytes} bytes; only 512 and 4096 are known"),
    })
}

fn type_of(guid: Uuid) -> Type {
    Type { guid, os: gpt::partition_types::OperatingSystem::None }
}

fn checked_label(label: &str) -> Result<String, GptError> {
    if label.encode_utf16().count() > LABEL_UNITS_MAX || label.contains('\0') {
        return Err(GptError::BadLabel { label: label.to_owned() });
    }
    Ok(label.to_owned())
}

#[cfg(test)]
mod tests;
