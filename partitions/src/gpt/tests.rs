//! Tables damaged, cut short and changed, judged by `sgdisk` as well.

use std::process::Command;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::device::{Access, FileDevice, MemDevice};
use crate::layout::{Completeness, DiskLayout};
use crate::slot::Slot;
use crate::testing::{MEMORY_DISK_BYTES, disk_with_slots, tool};

const LAST_512: usize = MEMORY_DISK_BYTES - 512;

fn flip(device: &MemDevice, at: usize) {
    let mut byte = [0];
    device.read_at(at as u64, &mut byte).unwrap();
    device.write_at(at as u64, &[byte[0] ^ 0x40]).unwrap();
}

fn sgdisk(arguments: &[&str], device: &MemDevice) -> (String, Vec<u8>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), device.to_bytes()).unwrap();
    let output = Command::new(tool("sgdisk", "gdisk")).args(arguments).arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (String::from_utf8(output.stdout).unwrap(), std::fs::read(file.path()).unwrap())
}

fn assert_sgdisk_is_content(device: &MemDevice) {
    let (said, _) = sgdisk(&["-v"], device);
    assert!(said.contains("No problems found"), "{said}");
}

#[test]
fn a_change_keeps_numbers_with_gaps_and_every_other_byte() {
    for sector_bytes in [512, 4096] {
        let device = disk_with_slots(sector_bytes);
        let before = Table::read(&*device).unwrap();
        let mut table = before.clone();
        table.set_label(5, "PRT#root-b").unwrap();
        table.set_guid(5, Uuid::from_u128(42)).unwrap();
        table.set_attributes(9, ATTRIBUTE_GROW).unwrap();
        assert!(table.write(&*device).unwrap());

        let after = Table::read(&*device).unwrap();
        assert_eq!(after.damage(), None);
        let numbers: Vec<u32> = after.entries().iter().map(|entry| entry.number).collect();
        assert_eq!(numbers, [1, 2, 4, 5, 7, 8, 9]);
        for (old, new) in before.entries().into_iter().zip(after.entries()) {
            let expected = match old.number {
                5 => Entry { label: "PRT#root-b".to_owned(), guid: Uuid::from_u128(42), ..old },
                9 => Entry { attributes: ATTRIBUTE_GROW, ..old },
                _ => old,
            };
            assert_eq!(new, expected);
        }
        assert_eq!(after.disk_guid(), before.disk_guid());
    }
}

#[test]
fn sgdisk_sees_what_was_written_and_finds_no_fault() {
    let device = disk_with_slots(512);
    let mut table = Table::read(&*device).unwrap();
    table.set_label(5, "PRT#root-b").unwrap();
    table.set_attributes(5, ATTRIBUTE_READ_ONLY | ATTRIBUTE_NO_AUTO).unwrap();
    table.write(&*device).unwrap();
    assert_sgdisk_is_content(&device);
    let (said, _) = sgdisk(&["-i", "5"], &device);
    assert!(said.contains("'PRT#root-b'"), "{said}");
    assert!(said.contains("Attribute flags: 9000000000000000"), "{said}");
}

#[test]
fn a_table_that_sgdisk_made_is_read_and_changed() {
    let blank = MemDevice::new(MEMORY_DISK_BYTES, 512);
    let arguments =
        ["-o", "-n", "3:2048:4095", "-t", "3:8304", "-c", "3:root-a", "-n", "1:6144:0", "-c", "1:größer"];
    let (_, bytes) = sgdisk(&arguments, &blank);
    let device = MemDevice::from_bytes(bytes, 512);
    let mut table = Table::read(&device).unwrap();
    let labels: Vec<(u32, String)> =
        table.entries().into_iter().map(|entry| (entry.number, entry.label)).collect();
    assert_eq!(labels, [(1, "größer".to_owned()), (3, "root-a".to_owned())]);
    table.set_label(3, "PRT#root-a").unwrap();
    table.write(&device).unwrap();
    assert_sgdisk_is_content(&device);
}

#[test]
fn one_damaged_copy_is_noticed_and_restored_from_the_other() {
    let cases = [
        ("primary signature", 512, TableCopy::Primary),
        ("primary header", 512 + 60, TableCopy::Primary),
        ("primary entries", 1024 + 130, TableCopy::Primary),
        ("primary entries, last byte", 1024 + 128 * 128 - 1, TableCopy::Primary),
        ("backup header", LAST_512 + 60, TableCopy::Backup),
        ("backup entries", LAST_512 - 128 * 128 + 10, TableCopy::Backup),
    ];
    for (why, at, copy) in cases {
        let device = disk_with_slots(512);
        let whole = device.to_bytes();
        flip(&device, at);
        let mut table = Table::read(&*device).unwrap();
        assert_eq!(table.damage().unwrap().copy, copy, "{why}");
        assert_eq!(table.entries().len(), 7, "{why}");
        assert!(table.repair(&*device).unwrap(), "{why}");
        assert!(device.to_bytes() == whole, "{why}: not restored to the bit");
        assert!(!table.repair(&*device).unwrap(), "{why}");
        assert_sgdisk_is_content(&device);
    }
}

#[test]
fn two_damaged_copies_are_an_error_that_names_both_and_nothing_is_written() {
    let device = disk_with_slots(512);
    flip(&device, 1024);
    flip(&device, LAST_512);
    let before = device.to_bytes();
    let error = Table::read(&*device).unwrap_err();
    assert!(matches!(&error, GptError::NoUsableCopy { .. }));
    let text = error.to_string();
    assert!(
        text.contains("primary: partition table CRC") && text.contains("backup: Invalid GPT Signature"),
        "{text}"
    );
    assert!(device.to_bytes() == before);
    for blank in [0, 512, 1024, 100_000] {
        assert!(Table::read(&MemDevice::new(blank, 512)).is_err(), "{blank} bytes");
    }
}

#[test]
fn a_table_read_with_the_wrong_sector_size_is_an_error() {
    let bytes = disk_with_slots(4096).to_bytes();
    assert!(Table::read(&MemDevice::from_bytes(bytes.clone(), 512)).is_err());
    assert!(Table::read(&MemDevice::from_bytes(bytes, 4096)).is_ok());
}

#[test]
fn nothing_changed_means_nothing_written() {
    let device = disk_with_slots(512);
    let recorder = Recorder::new(&device, usize::MAX);
    let mut table = Table::read(&recorder).unwrap();
    table.set_label(5, "root-b").unwrap();
    assert!(!table.write(&recorder).unwrap());
    assert!(recorder.log().is_empty(), "{:?}", recorder.log());
}

#[test]
fn the_order_is_backup_flush_primary_flush_and_a_bad_primary_is_repaired_before() {
    let names = |log: Vec<Step>| -> Vec<&'static str> {
        let name = |step| match step {
            Step::Flush => "flush",
            Step::Write(at) if at < MEMORY_DISK_BYTES / 2 => "primary",
            Step::Write(_) => "backup",
        };
        let mut names: Vec<&str> = log.into_iter().map(name).collect();
        names.dedup();
        names
    };
    let change = |device: &MemDevice| {
        let recorder = Recorder::new(device, usize::MAX);
        let mut table = Table::read(&recorder).unwrap();
        table.set_label(5, "PRT#root-b").unwrap();
        table.write(&recorder).unwrap();
        names(recorder.log())
    };
    let device = disk_with_slots(512);
    assert_eq!(change(&device), ["backup", "flush", "primary", "flush"]);
    let device = disk_with_slots(512);
    flip(&device, 1024);
    assert_eq!(change(&device), ["primary", "flush", "backup", "flush", "primary", "flush"]);
}

#[test]
fn a_cut_after_any_number_of_bytes_leaves_the_old_table_or_the_new_one() {
    let new_label = |table: &Table| table.entry(5).unwrap().label == "PRT#root-b";
    for damaged in [None, Some(1024), Some(LAST_512)] {
        let start = disk_with_slots(512);
        if let Some(at) = damaged {
            flip(&start, at);
        }
        let mut seen_old_and_new = [false; 2];
        // Three copies at most are written: 16 KiB and one sector each. Cut in steps that fall within sectors too.
        for budget in (0..3 * (128 * 128 + 512)).step_by(333) {
            let device = MemDevice::from_bytes(start.to_bytes(), 512);
            let recorder = Recorder::new(&device, budget);
            let mut table = Table::read(&recorder).unwrap();
            table.set_label(5, "PRT#root-b").unwrap();
            let finished = table.write(&recorder).is_ok();
            let mut after =
                Table::read(&device).unwrap_or_else(|error| panic!("cut after {budget}: {error}"));
            assert!(!finished || new_label(&after));
            seen_old_and_new[usize::from(new_label(&after))] = true;
            // And the next start makes it whole.
            let kept = new_label(&after);
            after.repair(&device).unwrap();
            let repaired = Table::read(&device).unwrap();
            assert_eq!((repaired.damage(), new_label(&repaired)), (None, kept));
        }
        assert_eq!(seen_old_and_new, [true, true]);
    }
}

#[test]
fn labels_hold_thirty_six_utf16_units_and_no_more() {
    let mut table = Table::read(&*disk_with_slots(512)).unwrap();
    for good in ["", &"x".repeat(36), &"ü".repeat(36), &"🦀".repeat(18)] {
        table.set_label(5, good).unwrap();
        assert_eq!(table.entry(5).unwrap().label, good);
    }
    for bad in ["nul\0", &"x".repeat(37), &"🦀".repeat(19)] {
        assert!(matches!(table.set_label(5, bad), Err(GptError::BadLabel { .. })), "{bad}");
    }
    assert!(matches!(table.set_label(3, "x"), Err(GptError::NoPartition { number: 3 })));
}

#[test]
fn a_partition_that_overlaps_or_leaves_the_disk_is_not_added() {
    let mut table = Table::read(&*disk_with_slots(512)).unwrap();
    let free = table.entries().iter().map(|entry| entry.offset + entry.len).max().unwrap();
    let good = Entry {
        number: 3,
        type_guid: Uuid::from_u128(5),
        guid: Uuid::from_u128(6),
        offset: free,
        len: 512,
        attributes: 0,
        label: String::new(),
    };
    let cases = [
        ("number taken", Entry { number: 5, ..good.clone() }),
        ("number 0", Entry { number: 0, ..good.clone() }),
        ("number past the table", Entry { number: 129, ..good.clone() }),
        ("overlap", Entry { offset: free - 512, ..good.clone() }),
        ("in the backup table", Entry { offset: table.usable().end, ..good.clone() }),
        ("in the primary table", Entry { offset: 512, ..good.clone() }),
        ("not aligned", Entry { offset: free + 1, ..good.clone() }),
        ("empty", Entry { len: 0, ..good.clone() }),
        ("beyond 64 bits", Entry { offset: u64::MAX - 511, ..good.clone() }),
        ("no type", Entry { type_guid: Uuid::nil(), ..good.clone() }),
    ];
    for (why, entry) in cases {
        assert!(table.add(entry).is_err(), "{why}");
    }
    assert_eq!(table.entries().len(), 7);
    table.add(good).unwrap();
    assert_eq!(table.entries().len(), 8);
}

#[test]
fn after_a_disk_grew_the_backup_is_found_where_it_was() {
    let mut bytes = disk_with_slots(512).to_bytes();
    bytes.resize(2 * MEMORY_DISK_BYTES, 0);
    let device = MemDevice::from_bytes(bytes, 512);
    let mut table = Table::read(&device).unwrap();
    assert_eq!(table.damage(), None);
    table.set_label(5, "PRT#root-b").unwrap();
    table.write(&device).unwrap();
    assert_eq!(Table::read(&device).unwrap().damage(), None);
}

#[test]
fn the_layout_is_found_whole_or_not_at_all() {
    let read = |edit: &dyn Fn(&mut Table)| {
        let mut table = Table::read(&*disk_with_slots(512)).unwrap();
        edit(&mut table);
        DiskLayout::discover(&table)
    };
    let layout = read(&|_| ()).unwrap();
    assert_eq!((layout.slot(Slot::A).root.number, layout.slot(Slot::B).verity.number), (2, 8));
    assert_eq!((layout.esp.number, layout.state, layout.data.unwrap().number), (1, None, 9));
    let slot_of = [1, 2, 4, 5, 7, 8, 9].map(|number| read(&|_| ()).unwrap().slot_of(number));
    assert_eq!(slot_of, [None, Some(Slot::A), Some(Slot::A), Some(Slot::B), None, Some(Slot::B), None]);

    // Prefixes of half-written slots are understood; the worse of the two partitions counts.
    for (root, verity, expected) in [
        ("PRT#root-b", "verity-b", Completeness::Partial),
        ("PND#root-b", "PND#verity-b", Completeness::Pending),
        ("PND#root-b", "PRT#verity-b", Completeness::Partial),
        ("root-b", "PND#verity-b", Completeness::Pending),
    ] {
        let edit = |table: &mut Table| {
            table.set_label(5, root).unwrap();
            table.set_label(8, verity).unwrap();
        };
        assert_eq!(read(&edit).unwrap().slot(Slot::B).completeness, expected);
    }
    // The label alone does not make a slot (partition 7 is another's `root-b`), nor does the type alone.
    for (number, label) in
        [(2, "rooty-a"), (4, "ROOT-A"), (8, "verity-a"), (5, "root-a"), (5, "PRT#PRT#root-b")]
    {
        assert!(
            read(&|table: &mut Table| table.set_label(number, label).unwrap()).is_err(),
            "{number} {label}"
        );
    }
}

#[test]
fn a_broken_header_with_right_checksums_is_refused_before_its_sizes_are_used() {
    let cases: [(&str, usize, &[u8]); 7] = [
        ("lies about its place", 24, &[9]),
        ("a billion entries", 80, &[0, 0, 0, 0x40]),
        ("no entries", 80, &[0, 0, 0, 0]),
        ("entries of 0 bytes", 84, &[0, 0, 0, 0]),
        ("entries of 4 GiB", 84, &[0xFF, 0xFF, 0xFF, 0xFF]),
        ("entries beyond the disk", 72, &[0xFF; 8]),
        ("usable range beyond the disk", 48, &[0xFF; 8]),
    ];
    for (why, field, value) in cases {
        let device = disk_with_slots(512);
        for header_at in [512, LAST_512] {
            let mut header = [0; 92];
            device.read_at(header_at as u64, &mut header).unwrap();
            header[field..field + value.len()].copy_from_slice(value);
            header[16..20].fill(0);
            let crc = crc32(&header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            device.write_at(header_at as u64, &header).unwrap();
        }
        assert!(matches!(Table::read(&*device), Err(GptError::NoUsableCopy { .. })), "{why}");
    }
}

/// CRC-32 as UEFI uses it, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 },
        )
    })
}

#[test]
fn an_image_file_keeps_its_table() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), disk_with_slots(4096).to_bytes()).unwrap();
    let device = FileDevice::open_image(file.path(), Access::ReadWrite, 4096).unwrap();
    let mut table = Table::read(&device).unwrap();
    table.set_label(5, "PND#root-b").unwrap();
    table.write(&device).unwrap();
    device.drop_caches().unwrap();
    assert_eq!(Table::read(&device).unwrap().entry(5).unwrap().label, "PND#root-b");
    assert!(Table::read(&FileDevice::open(file.path(), Access::ReadWrite).unwrap()).is_err());
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Write(usize),
    Flush,
}

/// Records what reaches the device and cuts the power after `budget` bytes, in the middle of a write where it falls so.
struct Recorder<'a> {
    device: &'a MemDevice,
    left: Mutex<usize>,
    log: Mutex<Vec<Step>>,
}

impl<'a> Recorder<'a> {
    fn new(device: &'a MemDevice, budget: usize) -> Recorder<'a> {
        Recorder { device, left: Mutex::new(budget), log: Mutex::new(Vec::new()) }
    }

    fn log(&self) -> Vec<Step> {
        self.log.lock().unwrap().clone()
    }
}

impl BlockDevice for Recorder<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.log.lock().unwrap().push(Step::Write(offset as usize));
        let mut left = self.left.lock().unwrap();
        let written = data.len().min(*left);
        *left -= written;
        self.device.write_at(offset, &data[..written])?;
        if written == data.len() { Ok(()) } else { Err(io::Error::other("power cut")) }
    }
    fn flush(&self) -> io::Result<()> {
        self.log.lock().unwrap().push(Step::Flush);
        Ok(())
    }
    fn len(&self) -> u64 {
        self.device.len()
    }
    fn sector_bytes(&self) -> u32 {
        self.device.sector_bytes()
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.zero(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.discard(offset, len)
    }
    fn drop_caches(&self) -> io::Result<()> {
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_garbage_makes_reading_panic(
        garbage in prop::collection::vec((0usize..40_000, any::<u8>()), 0..64), tail in any::<bool>(),
    ) {
        let device = disk_with_slots(512);
        for (at, byte) in garbage {
            let at = if tail { MEMORY_DISK_BYTES - 1 - at } else { at };
            device.write_at(at as u64, &[byte]).unwrap();
        }
        // Only one end was touched, so the other copy must still serve.
        prop_assert_eq!(Table::read(&*device).unwrap().entries().len(), 7);
    }

    #[test]
    fn labels_and_identities_survive_the_way_to_the_disk_and_back(
        label in "[^\u{0}]{0,18}", guid in any::<u128>(), attributes in any::<u64>(),
    ) {
        let device = disk_with_slots(4096);
        let mut table = Table::read(&*device).unwrap();
        table.set_label(9, &label).unwrap();
        table.set_guid(9, Uuid::from_u128(guid)).unwrap();
        table.set_attributes(9, attributes).unwrap();
        table.write(&*device).unwrap();
        let entry = Table::read(&*device).unwrap().entry(9).unwrap();
        prop_assert_eq!((entry.label, entry.guid, entry.attributes), (label, Uuid::from_u128(guid), attributes));
    }
}
