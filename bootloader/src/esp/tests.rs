//! Both implementations do the same, and `fsck.vfat` finds nothing wrong afterwards.

use std::path::Path;
use std::process::Command;

use super::*;
use crate::test_disk::{blank_fat, fat_esp, fsck};

fn on_both(check: impl Fn(&dyn EspDir)) {
    let folder = tempfile::tempdir().unwrap();
    check(&MountedEsp::new(folder.path()));
    for sector_bytes in [512, 4096] {
        let (_folder, image) = blank_fat(sector_bytes);
        check(&fat_esp(&image, sector_bytes));
        fsck(&image);
    }
}

fn put(esp: &dyn EspDir, path: &str, bytes: &[u8]) {
    assert_eq!(esp.write_tmp(path, &mut &bytes[..]).unwrap(), bytes.len() as u64);
}

#[test]
fn what_is_written_is_read_back_under_its_new_name() {
    on_both(|esp| {
        esp.mkdir("loader/entries").unwrap();
        esp.mkdir("loader/entries").unwrap();
        put(esp, "loader/entries/switchback-b-12.prepared", b"title x\n");
        esp.rename("loader/entries/switchback-b-12.prepared", "loader/entries/switchback-b-12+3-0.conf")
            .unwrap();
        let names: Vec<_> = esp.list("loader/entries").unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["switchback-b-12+3-0.conf"]);
        assert_eq!(esp.read("loader/entries/switchback-b-12+3-0.conf", 100).unwrap(), b"title x\n");
        assert_eq!(esp.file_bytes("loader/entries/switchback-b-12+3-0.conf").unwrap(), Some(8));
        assert_eq!(esp.file_bytes("loader/entries").unwrap(), None, "a directory is no file");
    });
}

#[test]
fn a_rename_replaces_and_a_rewrite_shrinks() {
    on_both(|esp| {
        let long = vec![7u8; 300_000];
        put(esp, "big file with a long name", &long);
        put(esp, "big file with a long name", b"short");
        put(esp, "other", &long);
        esp.rename("other", "big file with a long name").unwrap();
        assert_eq!(esp.read("big file with a long name", 300_000).unwrap(), long);
        assert_eq!(esp.list("").unwrap().len(), 1);
        esp.remove("big file with a long name").unwrap();
        assert_eq!(esp.list("").unwrap(), []);
    });
}

#[test]
fn what_is_missing_or_too_large_or_outside_is_refused() {
    on_both(|esp| {
        put(esp, "ten", b"0123456789");
        assert_eq!(esp.read("ten", 9).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(esp.read("ten", 10).unwrap().len(), 10);
        assert_eq!(esp.read("none", 9).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(esp.file_bytes("none/at/all").unwrap(), None);
        assert_eq!(esp.remove("none").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(esp.rename("none", "ten").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(esp.read("ten", 10).unwrap(), b"0123456789", "a failed rename replaces nothing");
        assert_eq!(esp.list("none").unwrap(), []);
        for path in ["../ten", "/ten", "a//b", "a\\b", "./ten"] {
            assert_eq!(esp.read(path, 10).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    });
}

#[test]
fn fat_names_are_found_in_upper_and_lower_case() {
    let (_folder, image) = blank_fat(512);
    let esp = fat_esp(&image, 512);
    esp.mkdir("EFI/BOOT").unwrap();
    put(&esp, "EFI/BOOT/BOOTX64.EFI", b"MZ");
    assert_eq!(esp.read("efi/boot/bootx64.efi", 2).unwrap(), b"MZ");
    assert_eq!(esp.file_bytes("efi/Boot/BootX64.efi").unwrap(), Some(2));
}

#[test]
fn a_full_fat_stays_sound_and_counts_its_space() {
    let (_folder, image) = blank_fat(512);
    let esp = fat_esp(&image, 512);
    let before = esp.space().unwrap();
    assert_eq!(before.rounded(1), before.cluster_bytes);
    let full = esp.write_tmp("huge", &mut io::Read::take(io::repeat(1), before.free_bytes + 1));
    assert!(full.is_err());
    fsck(&image);
    assert_eq!(esp.space().unwrap().free_bytes, 0);
    esp.remove("huge").unwrap();
    assert_eq!(esp.space().unwrap(), before);
    assert_eq!(
        esp.write_tmp("huge", &mut io::Read::take(io::repeat(1), before.free_bytes)).unwrap(),
        before.free_bytes
    );
    fsck(&image);
}

#[test]
fn fsck_finds_nothing_wrong_after_hundreds_of_calls() {
    let (_folder, image) = blank_fat(512);
    let esp = fat_esp(&image, 512);
    let mut seed = 1u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for dir in ["loader/entries", "switchback/a", "switchback/b"] {
        esp.mkdir(dir).unwrap();
    }
    let name = |random: &mut dyn FnMut(u64) -> u64| {
        let dir = ["loader/entries", "switchback/a", "switchback/b"][random(3) as usize];
        format!("{dir}/switchback-name-{}+{}-0.conf", random(9), random(4))
    };
    for step in 0..400 {
        let path = name(&mut random);
        match random(3) {
            0 => put(&esp, &path, &vec![1; random(20_000) as usize]),
            1 if esp.file_bytes(&path).unwrap().is_some() => esp.remove(&path).unwrap(),
            _ if esp.file_bytes(&path).unwrap().is_some() => esp.rename(&path, &name(&mut random)).unwrap(),
            _ => {}
        }
        if step % 100 == 99 {
            fsck(&image);
        }
    }
}

#[test]
fn every_name_has_a_date_that_a_firmware_accepts() {
    let (_folder, image) = blank_fat(512);
    let esp = fat_esp(&image, 512);
    esp.mkdir("loader").unwrap();
    put(&esp, "loader/one", b"1");
    esp.rename("loader/one", "loader/two").unwrap();
    let fat =
        fatfs::FileSystem::new(std::fs::File::open(&image).map(ReadOnly).unwrap(), fatfs::FsOptions::new())
            .unwrap();
    let loader = fat.root_dir().open_dir("loader").unwrap();
    let dates: Vec<_> = fat.root_dir().iter().chain(loader.iter()).map(Result::unwrap).collect();
    assert_eq!(dates.len(), 4, "loader, ., .., two");
    for entry in dates {
        for date in [entry.created().date, entry.modified().date, entry.accessed()] {
            assert!(
                (1..=12).contains(&date.month) && (1..=31).contains(&date.day),
                "{}: {date:?}",
                entry.file_name()
            );
        }
    }
}

/// A file that fatfs only reads.
struct ReadOnly(std::fs::File);

impl io::Read for ReadOnly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}
impl io::Seek for ReadOnly {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}
impl io::Write for ReadOnly {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        panic!("a read-only look must not write")
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn another_program_reads_what_was_written() {
    let (_folder, image) = blank_fat(512);
    let esp = fat_esp(&image, 512);
    esp.mkdir("loader/entries").unwrap();
    put(&esp, "loader/entries/switchback-a-1+3-0.conf", b"title seen\n");
    let seen = mtype(&image, "::/loader/entries/switchback-a-1+3-0.conf");
    assert_eq!(seen, "title seen\n");
}

fn mtype(image: &Path, path: &str) -> String {
    let output = Command::new("mtype").arg("-i").arg(image).arg(path).output();
    let output = output.expect("mtype is missing: apt-get install mtools");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
