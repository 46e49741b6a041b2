//! Disks made in image files, judged by the tools that everyone else uses.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::device::disk::{ImageDisk, PlainDisk};
use crate::device::{Access, FileDevice, MemDevice};
use crate::testing::tool;

const GIB: u64 = 1 << 30;

fn request(disk_bytes: u64, sector_bytes: u32) -> Request {
    Request { slot_bytes: 512 * MIB, esp_bytes: 96 * MIB, ..Request::usual(disk_bytes, sector_bytes) }
}

fn image(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

/// Runs a checker and returns what it said; it must be content.
fn run(program: &str, package: &str, arguments: &[&std::ffi::OsStr]) -> String {
    let output = Command::new(tool(program, package)).args(arguments).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {said}");
    said
}

/// A partition of an image as a file of its own: not every checker takes an offset.
fn extract(image: &Path, extent: &Extent, to: &Path) {
    let (from, to) = (File::open(image).unwrap(), File::create(to).unwrap());
    let mut buffer = vec![0; MIB as usize];
    to.set_len(extent.len).unwrap();
    for at in (0..extent.len).step_by(MIB as usize) {
        from.read_exact_at(&mut buffer, extent.offset + at).unwrap();
        if buffer.iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer, at).unwrap();
        }
    }
}

#[test]
fn a_provisioned_image_satisfies_sgdisk_fsck_vfat_and_e2fsck() {
    let esp_of = |sector_bytes| if sector_bytes == 4096 { 264 * MIB } else { 96 * MIB };
    for sector_bytes in [512, 4096] {
        let file = image(2 * GIB);
        let plan = Plan::new(&Request { esp_bytes: esp_of(sector_bytes), ..request(2 * GIB, sector_bytes) })
            .unwrap();
        let disk = ImageDisk::open(file.path(), sector_bytes).unwrap();
        let layout = plan.execute(&disk, Existing::Refuse).unwrap();
        assert_eq!(layout.sector_bytes, sector_bytes);

        if sector_bytes == 512 {
            let said = run("sgdisk", "gdisk", &["-v".as_ref(), file.path().as_os_str()]);
            assert!(said.contains("No problems found"), "{said}");
        }
        // sgdisk takes every image for one of 512-byte sectors, so for the others a second reader must do.
        let sector = gpt::disk::LogicalBlockSize::try_from(u64::from(sector_bytes)).unwrap();
        let second = gpt::GptConfig::new().logical_block_size(sector).open(file.path()).unwrap();
        let (primary, backup) = (second.primary_header().unwrap(), second.backup_header().unwrap());
        assert_eq!((primary.current_lba, primary.backup_lba), (backup.backup_lba, backup.current_lba));
        assert_eq!(primary.crc32_parts, backup.crc32_parts);
        assert_eq!(second.partitions().len(), 7);

        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join("part");
        extract(file.path(), &layout.esp, &part);
        let said = run("fsck.vfat", "dosfstools", &["-n".as_ref(), "-v".as_ref(), part.as_os_str()]);
        assert!(said.contains("32 bit entries"), "{said}");
        for extent in [layout.state.unwrap(), layout.data.unwrap()] {
            extract(file.path(), &extent, &part);
            run("e2fsck", "e2fsprogs", &["-f".as_ref(), "-n".as_ref(), part.as_os_str()]);
        }
    }
}

#[test]
fn the_plan_is_what_is_found_on_the_disk() {
    let file = image(2 * GIB);
    let plan = Plan::new(&request(2 * GIB, 512)).unwrap();
    let names: Vec<String> = plan.summary().into_iter().map(|part| part.name).collect();
    assert_eq!(names, ["esp", "root-a", "verity-a", "root-b", "verity-b", "state", "data"]);
    let layout = plan.execute(&ImageDisk::open(file.path(), 512).unwrap(), Existing::Refuse).unwrap();
    let device = FileDevice::open(file.path(), Access::Read).unwrap();
    let table = Table::read(&device).unwrap();
    assert_eq!(table.damage(), None);
    for (planned, entry) in plan.summary().into_iter().zip(table.entries()) {
        let found = PlannedPartition {
            number: entry.number,
            name: entry.label,
            offset: entry.offset,
            bytes: entry.len,
        };
        assert_eq!(planned, found);
        assert!(entry.offset.is_multiple_of(MIB) && entry.len.is_multiple_of(MIB));
    }
    assert_eq!(layout, DiskLayout::discover(&table).unwrap());
    assert_eq!(layout.slot(Slot::A).root.len, 512 * MIB);
    assert_eq!(layout.slot(Slot::A).verity.len, 5 * MIB);
}

#[test]
fn what_does_not_fit_is_refused_before_the_first_write() {
    let base = request(2 * GIB, 512);
    let cases = [
        ("slots fill the disk", Request { slot_bytes: 950 * MIB, ..base.clone() }),
        ("a slot larger than the disk", Request { slot_bytes: u64::MAX, ..base.clone() }),
        ("no slot", Request { slot_bytes: 0, ..base.clone() }),
        ("ESP too small for FAT32", Request { esp_bytes: 32 * MIB, ..base.clone() }),
        ("state too small for a journal", Request { state_bytes: MIB, ..base.clone() }),
        ("a disk smaller than its table", Request { disk_bytes: 4096, ..base.clone() }),
        ("no disk", Request { disk_bytes: 0, ..base.clone() }),
        ("a disk beyond 64 bits", Request { disk_bytes: u64::MAX, ..base.clone() }),
        ("sectors of 520 bytes", Request { sector_bytes: 520, ..base.clone() }),
        ("ESP too small for FAT32 of 4096-byte sectors", Request { sector_bytes: 4096, ..base }),
    ];
    for (why, request) in cases {
        let Err(error) = Plan::new(&request) else { panic!("{why}: planned") };
        assert!(error.to_string().starts_with("while "), "{why}: {error}");
    }
}

#[test]
fn a_disk_that_holds_anything_is_left_alone_unless_told() {
    for at in [0, 510, 1 << 19, 2 * GIB - 512, 2 * GIB - 1] {
        let file = image(2 * GIB);
        file.as_file().write_all_at(&[1], at).unwrap();
        let disk = ImageDisk::open(file.path(), 512).unwrap();
        let plan = Plan::new(&request(2 * GIB, 512)).unwrap();
        let error = plan.execute(&disk, Existing::Refuse).unwrap_err();
        assert!(matches!(error, ProvisionError::NotBlank { at: found } if found == at), "{error}");
        assert!(Table::read(&*disk.whole().unwrap()).is_err(), "a table was written");
    }
}

#[test]
fn overwriting_leaves_no_superblock_of_before() {
    let file = image(2 * GIB);
    let disk = ImageDisk::open(file.path(), 512).unwrap();
    let plan = Plan::new(&request(2 * GIB, 512)).unwrap();
    let layout = plan.execute(&disk, Existing::Refuse).unwrap();
    let verity = disk.partition(&layout.slot(Slot::A).verity).unwrap();
    verity.write_at(0, b"verity\0\0").unwrap();
    assert!(matches!(plan.execute(&disk, Existing::Refuse), Err(ProvisionError::NotBlank { .. })));
    let again = Plan::new(&request(2 * GIB, 512)).unwrap().execute(&disk, Existing::Overwrite).unwrap();
    assert_ne!(again.esp.guid, layout.esp.guid);
    let mut start = [1; 8];
    verity.read_at(0, &mut start).unwrap();
    assert_eq!(start, [0; 8]);
}

#[test]
fn a_plan_for_another_disk_is_refused() {
    let plan = Plan::new(&request(2 * GIB, 512)).unwrap();
    for (bytes, sector_bytes) in [(2 * GIB + MIB, 512), (2 * GIB, 4096)] {
        let file = image(bytes);
        let disk = ImageDisk::open(file.path(), sector_bytes).unwrap();
        assert!(matches!(plan.execute(&disk, Existing::Overwrite), Err(ProvisionError::OtherDisk { .. })));
        assert!(Table::read(&*disk.whole().unwrap()).is_err());
    }
}

#[test]
fn a_disk_without_a_path_gets_no_ext4_and_says_so() {
    let memory = Arc::new(MemDevice::new(200 << 20, 512));
    let small = Request { esp_bytes: 34 * MIB, slot_bytes: 16 * MIB, ..request(200 * MIB, 512) };
    let error = Plan::new(&small).unwrap().execute(&PlainDisk::new(memory), Existing::Refuse).unwrap_err();
    assert!(matches!(error, ProvisionError::Io { .. }), "{error}");
}

proptest! {
    #[test]
    fn whatever_is_planned_is_aligned_complete_and_without_overlap(
        disk_mib in 1u64..100_000, esp_mib in 1u64..1000, slot_bytes in 1u64..(20 * GIB), state_mib in 1u64..1000,
        large_sectors in any::<bool>(),
    ) {
        let request = Request {
            disk_bytes: disk_mib * MIB + 12_288,
            sector_bytes: if large_sectors { 4096 } else { 512 },
            architecture: Architecture::Arm64,
            esp_bytes: esp_mib * MIB,
            slot_bytes,
            state_bytes: state_mib * MIB,
        };
        if let Ok(plan) = Plan::new(&request) {
            let parts = plan.summary();
            prop_assert_eq!(parts.len(), 7);
            let mut end = MIB;
            for part in &parts {
                prop_assert_eq!(part.offset, end);
                prop_assert!(part.offset.is_multiple_of(MIB) && part.bytes.is_multiple_of(MIB) && part.bytes > 0);
                end += part.bytes;
            }
            prop_assert!(end <= request.disk_bytes - 5 * 4096, "no room for the backup table");
            prop_assert!(parts[1].bytes >= slot_bytes && parts[1].bytes == parts[3].bytes);
            prop_assert!(parts[6].bytes >= DATA_BYTES_MIN);
            prop_assert!(DiskLayout::discover(&plan.table).is_ok());
        }
    }
}
