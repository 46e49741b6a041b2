//! Pairs of releases: what is written between them, and that every reader still finds the same.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use super::read::{SUPERBLOCK_BYTES, checksum, field};
use super::*;
use crate::publish::rootfs::{SUPERBLOCK_AT, make_erofs, make_erofs_like};

/// Bytes that compress and repeat as little as a program does.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..bytes.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(bytes).collect()
}

/// A root folder and the images made of it.
struct Stage {
    dir: tempfile::TempDir,
    images: std::cell::Cell<u32>,
}

impl Stage {
    /// A small system: configuration, libraries, a folder longer than a block, links of both kinds, devices' kin.
    fn new() -> Stage {
        let stage = Stage { dir: tempfile::tempdir().unwrap(), images: std::cell::Cell::new(0) };
        fs::create_dir(stage.folder()).unwrap();
        for n in 0..120 {
            stage.write(&format!("etc/d{}/f{n}", n % 7), &noise(n as u64, n * 37 % 5000));
        }
        for n in 0..150 {
            stage.write(
                &format!("usr/share/zoneinfo/a-rather-long-name-of-a-zone-{n}"),
                &noise(n + 1000, 900),
            );
        }
        for n in 0..30 {
            stage.write(&format!("usr/lib/lib{n}.so.{n}.1"), &noise(n + 2000, 20_000 + n as usize * 5000));
        }
        stage.write("usr/lib/libssl.so.3", &noise(1, 500_000));
        stage.write("usr/bin/tool", &noise(2, 1_500_000));
        stage.write("usr/bin/empty", b"");
        stage.write("usr/bin/aligned", &noise(3, 8192));
        symlink("tool", stage.at("usr/bin/link")).unwrap();
        symlink("x".repeat(3000), stage.at("usr/bin/long-link")).unwrap();
        fs::hard_link(stage.at("usr/bin/tool"), stage.at("usr/bin/again")).unwrap();
        fs::set_permissions(stage.at("usr/bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
        stage
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), bytes).unwrap();
    }

    fn image_path(&self) -> PathBuf {
        self.images.set(self.images.get() + 1);
        self.dir.path().join(format!("{}.erofs", self.images.get()))
    }

    /// As `mkfs.erofs` lays it out.
    fn image(&self) -> PathBuf {
        let image = self.image_path();
        make_erofs(&self.folder(), &image).unwrap();
        image
    }

    /// With the places of `previous`, looked at by readers that are not ours.
    fn image_like(&self, previous: &Path) -> (PathBuf, Kept) {
        let (fresh, image) = (self.image(), self.image_path());
        let kept = keep_offsets(&fresh, previous, &image).unwrap();
        self.check(&image);
        (image, kept)
    }

    /// `fsck.erofs` unpacks the image, and `erofs-rs` reads each file.
    fn check(&self, image: &Path) {
        let unpacked = tempfile::tempdir().unwrap();
        let to = unpacked.path().join("to");
        let mut fsck = Command::new("fsck.erofs");
        fsck.arg(format!("--extract={}", to.display())).arg(image);
        let fsck = fsck.output().expect("apt-get install erofs-utils");
        assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stderr));
        let bytes = fs::read(image).unwrap();
        let erofs = erofs_rs::EroFS::new(erofs_rs::backend::SliceImage::new(&bytes)).unwrap();
        let mut files = 0;
        for entry in walkdir::WalkDir::new(self.folder()) {
            let entry = entry.unwrap();
            let name = entry.path().strip_prefix(self.folder()).unwrap();
            let (meta, found) = (
                entry.metadata().unwrap(),
                fs::symlink_metadata(to.join(name)).unwrap_or_else(|e| panic!("{name:?}: {e}")),
            );
            // It takes setuid bits away.
            assert_eq!(meta.mode() & !0o7000, found.mode() & !0o7000, "{name:?}");
            if meta.is_symlink() {
                assert_eq!(fs::read_link(entry.path()).unwrap(), fs::read_link(to.join(name)).unwrap());
            } else if meta.is_file() {
                let contents = fs::read(entry.path()).unwrap();
                assert!(contents == fs::read(to.join(name)).unwrap(), "{name:?}");
                let mut read = Vec::new();
                let file = erofs.open(format!("/{}", name.display()));
                std::io::Read::read_to_end(&mut file.unwrap(), &mut read).unwrap();
                assert!(contents == read, "{name:?}");
                files += 1;
            }
        }
        let unpacked =
            walkdir::WalkDir::new(&to).into_iter().filter(|e| e.as_ref().unwrap().file_type().is_file());
        assert_eq!(unpacked.count(), files, "nothing is there that is not in the folder");
    }
}

/// Bytes of blocks that differ from `previous`, and of those the ones that are written: zeros are not, they are discarded.
fn differing(image: &Path, previous: &Path) -> (u64, u64) {
    let (ours, theirs) = (fs::read(image).unwrap(), fs::read(previous).unwrap());
    let theirs = theirs.chunks(BLOCK_BYTES as usize).map(Some).chain(std::iter::repeat(None));
    let differ =
        ours.chunks(BLOCK_BYTES as usize).zip(theirs).filter(|(ours, theirs)| Some(*ours) != *theirs);
    let differ: Vec<&[u8]> = differ.map(|(ours, _)| ours).collect();
    let written = differ.iter().filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64;
    (differ.len() as u64 * BLOCK_BYTES, written * BLOCK_BYTES)
}

fn written(image: &Path, previous: &Path) -> u64 {
    differing(image, previous).1
}

fn blocks_of(image: &Path) -> u64 {
    fs::metadata(image).unwrap().len() / BLOCK_BYTES
}

#[test]
fn the_same_folder_again_is_the_same_image_byte_by_byte() {
    let stage = Stage::new();
    let first = stage.image();
    let (again, kept) = stage.image_like(&first);
    assert!(fs::read(&first).unwrap() == fs::read(again).unwrap());
    let inodes = Tree::read(&first).unwrap().inodes.len() as u64;
    assert_eq!(kept, Kept { files: inodes, bytes_in_place: blocks_of(&first) * BLOCK_BYTES, bytes_moved: 0 });
}

#[test]
fn an_update_writes_little_more_than_what_changed() {
    let stage = Stage::new();
    let first = stage.image();
    // A library rebuilt, a line of configuration, a package that came, one that went, one renamed with its version.
    stage.write("usr/lib/libssl.so.3", &noise(77, 510_000));
    stage.write("etc/d3/f10", &noise(78, 900));
    stage.write("etc/d0/a-new-one", &noise(79, 3000));
    fs::remove_dir_all(stage.at("etc/d5")).unwrap();
    fs::rename(stage.at("usr/lib/lib7.so.7.1"), stage.at("usr/lib/lib7.so.7.2")).unwrap();
    let (image, kept) = stage.image_like(&first);
    let (by_us, by_mkfs) = (written(&image, &first), written(&stage.image(), &first));
    let changed = 510_000 + 900 + 3000;
    assert!(by_us <= changed * 3 / 2, "{by_us} bytes written of {changed} changed");
    assert!(by_mkfs > by_us * 4, "mkfs.erofs alone writes {by_mkfs}, we {by_us}");
    let bytes = blocks_of(&image) * BLOCK_BYTES;
    assert_eq!(kept.bytes_in_place, bytes - differing(&image, &first).0);
    assert!(kept.files > 290, "{kept:?}");
}

#[test]
fn what_can_happen_to_a_file_is_read_alike_and_keeps_the_others_in_place() {
    type Change = fn(&Stage);
    let table: [(&str, Change, u64); 12] = [
        ("grown by a byte", |s| s.write("usr/lib/lib3.so.3.1", &noise(2003, 35_001)), 4),
        ("grown over its neighbour", |s| s.write("usr/lib/lib3.so.3.1", &noise(2003, 45_000)), 14),
        ("shrunk", |s| s.write("usr/lib/lib3.so.3.1", &noise(2003, 9_000)), 3),
        ("emptied", |s| s.write("usr/lib/lib3.so.3.1", b""), 3),
        (
            "one block changed",
            |s| {
                let mut bytes = noise(2, 1_500_000);
                bytes[700_000] ^= 1;
                s.write("usr/bin/tool", &bytes);
            },
            2,
        ),
        (
            "moved to another folder",
            |s| {
                fs::rename(s.at("usr/lib/libssl.so.3"), s.at("usr/bin/libssl.so.3")).unwrap();
            },
            6,
        ),
        ("removed", |s| fs::remove_file(s.at("usr/bin/tool")).unwrap(), 4),
        ("one name less", |s| fs::remove_file(s.at("usr/bin/again")).unwrap(), 4),
        ("a folder more", |s| s.write("a/b/c/d", b"e"), 8),
        (
            "a file became a folder",
            |s| {
                fs::remove_file(s.at("usr/bin/empty")).unwrap();
                s.write("usr/bin/empty/x", b"y");
            },
            8,
        ),
        (
            "a link leads elsewhere",
            |s| {
                fs::remove_file(s.at("usr/bin/link")).unwrap();
                symlink("aligned", s.at("usr/bin/link")).unwrap();
            },
            4,
        ),
        (
            "a mode",
            |s| {
                fs::set_permissions(s.at("etc/d1/f1"), fs::Permissions::from_mode(0o600)).unwrap();
            },
            2,
        ),
    ];
    for (why, change, blocks_max) in table {
        let stage = Stage::new();
        let first = stage.image();
        change(&stage);
        let (image, _) = stage.image_like(&first);
        let blocks = written(&image, &first) / BLOCK_BYTES;
        assert!(blocks <= blocks_max, "{why}: {blocks} blocks written, expected at most {blocks_max}");
    }
}

#[test]
fn the_result_follows_from_the_folder_and_the_earlier_release_alone() {
    let (one, other) = (Stage::new(), Stage::new());
    let first = one.image();
    let mut images = Vec::new();
    for stage in [&one, &other] {
        stage.write("etc/d3/new", &noise(5, 3000));
        stage.write("usr/lib/lib9.so.9.1", &noise(6, 300_000));
        images.push(fs::read(stage.image_like(&first).0).unwrap());
    }
    assert!(images[0] == images[1]);
}

#[test]
fn releases_made_from_releases_do_not_grow_without_limit() {
    let stage = Stage::new();
    let mut previous = stage.image();
    for round in 0..12_u64 {
        for n in 0..12_u64 {
            let number = (round * 7 + n * 5) % 30;
            let bytes = 10_000 + (round * 31_337 + n * 7919) % 150_000;
            stage.write(
                &format!("usr/lib/lib{number}.so.{number}.1"),
                &noise(round * 100 + n, bytes as usize),
            );
            stage.write(&format!("etc/d{}/r{round}-{n}", n % 7), &noise(n, bytes as usize % 3000));
            let _none_yet =
                fs::remove_file(stage.at(&format!("etc/d{}/r{}-{n}", n % 7, round.wrapping_sub(3))));
        }
        let (image, _) = stage.image_like(&previous);
        let (ours, fresh) = (blocks_of(&image), blocks_of(&stage.image()));
        assert!(ours <= fresh + fresh / 4 + 64, "round {round}: {ours} blocks, {fresh} by mkfs.erofs");
        previous = image;
    }
}

#[test]
fn attributes_of_one_file_and_shared_ones_are_kept_and_keep_their_numbers() {
    let stage = Stage::new();
    let set = |name: &str, key: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(stage.at(name), key, value, flags)
            .unwrap_or_else(|e| panic!("{e}: TMPDIR must be on a file system with extended attributes"));
    };
    for n in 0..120 {
        set(
            &format!("etc/d{}/f{n}", n % 7),
            "user.label",
            format!("system_u:object_r:t{}", n % 20).as_bytes(),
        );
    }
    set("usr/bin/tool", "user.own", &noise(9, 2000));
    let first = stage.image();
    let (second, _) = stage.image_like(&first);
    // A label that sorts before all others, and one that nobody has any more.
    for n in [1, 8, 15, 22, 29] {
        set(&format!("etc/d{}/f{n}", n % 7), "user.label", b"a_new:label");
    }
    let (third, _) = stage.image_like(&second);
    let (blocks, all) = (written(&third, &second) / BLOCK_BYTES, blocks_of(&third));
    assert!(blocks <= 12, "{blocks} of {all} blocks written");
    let bytes = fs::read(&third).unwrap();
    let erofs = erofs_rs::EroFS::new(erofs_rs::backend::SliceImage::new(&bytes)).unwrap();
    let attribute = |name: &str, key: &str| erofs.xattrs(format!("/{name}")).unwrap()[key.as_bytes()].clone();
    assert_eq!(attribute("usr/bin/tool", "user.own"), noise(9, 2000));
    for (n, label) in [(0, "system_u:object_r:t0"), (8, "a_new:label"), (119, "system_u:object_r:t19")] {
        assert_eq!(attribute(&format!("etc/d{}/f{n}", n % 7), "user.label"), label.as_bytes());
    }
    let tree = Tree::read(&third).unwrap();
    let labels = tree.shared.values().filter(|bytes| bytes.windows(11).any(|part| part == b"a_new:label"));
    assert_eq!(labels.count(), 1, "the new one is shared");
}

/// The image with the checksum that belongs to it.
fn sealed(mut image: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&image[..BLOCK_BYTES as usize]).to_le_bytes();
    image[SUPERBLOCK_AT as usize + field::CHECKSUM..][..4].copy_from_slice(&sum);
    image
}

#[test]
fn an_earlier_release_that_is_damaged_or_not_known_is_refused_and_the_build_goes_on_without_it() {
    const AT: usize = SUPERBLOCK_AT as usize;
    type Damage = fn(&mut Vec<u8>, &Tree);
    let table: [(&str, Damage, &str); 10] = [
        ("nothing", |i, _| i.clear(), "behind its end"),
        ("another file system", |i, _| i.fill(0), "it is none"),
        ("cut off", |i, _| i.truncate(i.len() - 4096), "cut off"),
        ("larger blocks", |i, _| i[AT + 12] = 16, "4096"),
        ("compression", |i, _| i[AT + 80] |= 2, "features"),
        ("a root far away", |i, _| i[AT + field::META_BLOCK + 3] = 0x7f, "behind its end"),
        (
            "a root that is a file",
            |i, t| {
                let mode = t.inodes[0].at as usize + 4;
                i[mode + 1] = 0x81;
            },
            "root is no folder",
        ),
        (
            "a compressed file",
            |i, t| i[t.inodes[t.paths[&b"usr/bin/tool"[..]]].at as usize] |= 2,
            "compressed",
        ),
        (
            "data behind the end",
            |i, t| {
                let tool = t.inodes[t.paths[&b"usr/bin/tool"[..]]].at as usize;
                i[tool + field::INODE_RUN + 3] = 1;
            },
            "behind the image's end",
        ),
        ("a wrong checksum", |i, _| i[AT + 5] ^= 1, "checksum"),
    ];
    let stage = Stage::new();
    let first = stage.image();
    let (good, tree) = (fs::read(&first).unwrap(), Tree::read(&first).unwrap());
    stage.write("etc/more", b"more");
    let fresh = fs::read(stage.image()).unwrap();
    for (why, damage, expected) in table {
        let mut bytes = good.clone();
        damage(&mut bytes, &tree);
        if bytes.len() > BLOCK_BYTES as usize && why != "a wrong checksum" {
            bytes = sealed(bytes);
        }
        let (previous, image) = (stage.image_path(), stage.image_path());
        fs::write(&previous, bytes).unwrap();
        let (length, offsets) = make_erofs_like(&stage.folder(), &image, Some(&previous)).unwrap();
        let crate::publish::rootfs::Offsets::NotKept(error) = offsets else { panic!("{why}: {offsets:?}") };
        assert!(error.to_string().contains(expected), "{why}: {error}");
        assert!(fs::read(&image).unwrap() == fresh, "{why}: the image is the one of mkfs.erofs");
        assert_eq!(length, fresh.len() as u64);
    }
}

#[test]
fn no_byte_of_an_earlier_release_can_spoil_the_new_one() {
    let stage = Stage { dir: tempfile::tempdir().unwrap(), images: std::cell::Cell::new(0) };
    for n in 0..40 {
        stage.write(&format!("d{}/f{n}", n % 3), &noise(n, n as usize * 400));
    }
    let first = stage.image();
    let good = fs::read(&first).unwrap();
    stage.write("d1/f1", &noise(99, 9000));
    let (fresh, previous, image) = (stage.image(), stage.image_path(), stage.image_path());
    let wanted = Tree::read(&fresh).unwrap();
    let (mut refused, mut kept) = (0, 0);
    let inodes: Vec<usize> =
        Tree::read(&first).unwrap().inodes.iter().map(|inode| inode.at as usize).collect();
    let superblock = SUPERBLOCK_AT as usize..SUPERBLOCK_AT as usize + SUPERBLOCK_BYTES;
    let places = superblock.chain(inodes.iter().flat_map(|at| *at..*at + 60)).step_by(7);
    for at in places {
        for value in [0xff, good[at] ^ 1, good[at].wrapping_add(32)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            fs::write(&previous, sealed(bytes)).unwrap();
            match keep_offsets(&fresh, &previous, &image) {
                Ok(_) => {
                    check::same(&wanted, &Tree::read(&image).unwrap()).unwrap();
                    kept += 1;
                }
                Err(LayoutError::Odd { path, .. }) if path == previous => refused += 1,
                Err(error) => panic!("byte {at} as {value}: {error}"),
            }
        }
    }
    assert!(refused > 100 && kept > 100, "{refused} refused, {kept} kept");
}

#[test]
fn two_images_that_do_not_read_alike_are_told_apart() {
    let stage = Stage::new();
    let first = Tree::read(&stage.image()).unwrap();
    type Change = fn(&Stage);
    let table: [(&str, Change); 4] = [
        ("contents", |s| s.write("etc/d1/f1", &noise(8, 37))),
        ("a path", |s| s.write("etc/new", b"")),
        ("a mode", |s| fs::set_permissions(s.at("etc/d1/f8"), fs::Permissions::from_mode(0o600)).unwrap()),
        ("a link of its own", |s| {
            fs::remove_file(s.at("usr/bin/again")).unwrap();
            fs::copy(s.at("usr/bin/tool"), s.at("usr/bin/again")).unwrap();
        }),
    ];
    check::same(&first, &Tree::read(&stage.image()).unwrap()).unwrap();
    for (why, change) in table {
        let stage = Stage::new();
        change(&stage);
        let other = Tree::read(&stage.image()).unwrap();
        assert!(check::same(&first, &other).is_err(), "{why}");
    }
}
