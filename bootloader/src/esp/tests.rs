//! Both implementations do the same, and `fsck.vfat` finds nothing wrong afterwards.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use switchback_partitions::device::{BlockDevice, MemDevice};

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

/// A write: where, and what. None where the caches were emptied.
type Event = Option<(u64, Vec<u8>)>;

/// What is in a folder: names and contents.
type Seen = Vec<(String, Vec<u8>)>;

/// A medium, and what reached it: each write, and where the caches were emptied.
struct Logged {
    medium: MemDevice,
    log: Mutex<Vec<Event>>,
}

impl BlockDevice for Logged {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.medium.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.log.lock().unwrap().push(Some((offset, data.to_vec())));
        self.medium.write_at(offset, data)
    }
    fn flush(&self) -> io::Result<()> {
        self.log.lock().unwrap().push(None);
        Ok(())
    }
    fn len(&self) -> u64 {
        self.medium.len()
    }
    fn sector_bytes(&self) -> u32 {
        self.medium.sector_bytes()
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; len as usize])
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn drop_caches(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A file system whose every free cluster is full of what would be read as names.
fn fat_with_leavings() -> Vec<u8> {
    let (_folder, image) = blank_fat(512);
    let esp = fat_esp(&image, 512);
    esp.mkdir("loader/entries").unwrap();
    let room = esp.space().unwrap().free_bytes;
    esp.write_tmp("leavings", &mut io::Read::take(io::repeat(b'A'), room)).unwrap();
    esp.remove("leavings").unwrap();
    std::fs::read(&image).unwrap()
}

/// What is in the folder, by the file system's own word, after each write that a call leads to: with the caches emptied
/// after each, these are all the states that a power cut can leave.
fn states_of(device: &Arc<Logged>, call: impl FnOnce(&FatEsp)) -> Vec<Seen> {
    let before = device.medium.to_bytes();
    device.log.lock().unwrap().clear();
    call(&FatEsp::new(device.clone()));
    let replayed = Arc::new(MemDevice::from_bytes(before, 512));
    let esp = FatEsp::new(replayed.clone());
    let look = || {
        let names = esp.list("loader/entries").unwrap();
        let read = |name: &str| esp.read(&format!("loader/entries/{name}"), 100).unwrap_or_default();
        names.into_iter().map(|entry| (entry.name.clone(), read(&entry.name))).collect()
    };
    let mut states = vec![look()];
    for (offset, data) in device.log.lock().unwrap().iter().flatten() {
        replayed.write_at(*offset, data).unwrap();
        states.push(look());
    }
    states
}

#[test]
fn a_rename_across_two_sectors_never_leaves_neither_name() {
    let (old, new) = ("switchback-b-2.prepared", "switchback-b-2+3-0.conf");
    let path = |name: &str| format!("loader/entries/{name}");
    let leavings = fat_with_leavings();
    // Each takes the place of two parts of a name; a sector has sixteen: ours lie everywhere across its border.
    for others in 0..=9 {
        let medium = MemDevice::from_bytes(leavings.clone(), 512);
        let device = Arc::new(Logged { medium, log: Mutex::default() });
        let names: Vec<String> = (0..others).map(|number| format!("other{number}.conf")).collect();
        let esp = FatEsp::new(device.clone());
        for name in &names {
            put(&esp, &path(name), b"other");
        }
        for state in states_of(&device, |esp| put(esp, &path(old), b"title x")) {
            let ours = state.iter().filter(|(name, _)| !names.contains(name)).collect::<Vec<_>>();
            assert!(ours.is_empty() || ours[..] == [&(old.into(), ours[0].1.clone())], "{others}: {state:?}");
            assert_eq!(state.len(), others + ours.len(), "{others}: {state:?}");
        }
        for state in states_of(&device, |esp| esp.rename(&path(old), &path(new)).unwrap()) {
            let ours: Vec<&str> =
                state.iter().filter(|(_, text)| text == b"title x").map(|(name, _)| &name[..]).collect();
            let wanted = [&[old][..], &[new], &[new, old]];
            assert!(wanted.contains(&&ours[..]), "{others}: {state:?}");
            assert_eq!(state.len(), others + ours.len(), "{others}: {state:?}");
        }
        let log = device.log.lock().unwrap().clone();
        let together = log.windows(2).any(|pair| pair.iter().all(Option::is_some));
        assert!(!together, "{others}: two sectors of a rename were under way at once");
        for state in states_of(&device, |esp| esp.remove(&path(new)).unwrap()) {
            let ours = state.iter().find(|(name, _)| name == new);
            // As long as there is a name, its clusters are its own.
            assert!(ours.is_none_or(|(_, text)| text == b"title x"), "{others}: {state:?}");
            assert_eq!(state.len(), others + usize::from(ours.is_some()), "{others}: {state:?}");
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
