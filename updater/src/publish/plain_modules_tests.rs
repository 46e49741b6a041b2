//! Roots with packed modules, and what `depmod` makes of them.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::publish::rootfs::{Modules, RootOptions, make_root};

/// The least that is a module to `depmod`: a relocatable ELF file of 64 bits with its name in `.modinfo`.
fn module(name: &str) -> Vec<u8> {
    let (info, names) = (format!("name={name}\0"), b"\0.shstrtab\0.modinfo\0");
    let mut elf = vec![0; 64];
    elf[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\x3e\0");
    elf[20] = 1;
    elf.extend_from_slice(info.as_bytes());
    elf.extend_from_slice(names);
    elf.resize(elf.len().next_multiple_of(8), 0);
    let table = elf.len() as u64;
    for (name, kind, at, bytes) in
        [(0, 0, 0, 0), (1, 3, 64 + info.len(), names.len()), (11, 1, 64, info.len())]
    {
        let mut header = [0; 64];
        header[0] = name;
        header[4] = kind;
        header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(bytes as u64).to_le_bytes());
        header[48] = 1;
        elf.extend_from_slice(&header);
    }
    elf[40..48].copy_from_slice(&table.to_le_bytes());
    // Lengths of this header and of a section's, number of sections, the one with their names.
    for (at, value) in [(52, 64), (58, 64), (60, 3), (62, 1)] {
        elf[at] = value;
    }
    elf
}

fn packed(name: &str, ending: &str) -> Vec<u8> {
    let bytes = module(name);
    match ending {
        "ko.xz" => {
            let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::default()).unwrap();
            xz.write_all(&bytes).unwrap();
            xz.finish().unwrap()
        }
        "ko.zst" => zstd::encode_all(&bytes[..], 3).unwrap(),
        "ko.gz" => {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            gz.write_all(&bytes).unwrap();
            gz.finish().unwrap()
        }
        _ => bytes,
    }
}

/// A root with one kernel's modules in `place`, and a file that has nothing to do with them.
fn root(place: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join(place).join("6.1.0-test");
    fs::create_dir_all(dir.join("kernel/fs")).unwrap();
    let mut order = String::new();
    for (name, ending) in [("b", "ko.xz"), ("fs/a", "ko.zst"), ("c", "ko.gz"), ("d", "ko")] {
        let file = format!("kernel/{name}.{ending}");
        fs::write(dir.join(&file), packed(name.rsplit('/').next().unwrap(), ending)).unwrap();
        order += &format!("{file}\n");
    }
    for (name, text) in [
        ("modules.order", order.as_str()),
        ("modules.builtin", "kernel/fs/ext4.ko\n"),
        ("modules.dep", "kernel/b.ko.xz:\n"),
        ("kernel/readme", "about these"),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    fs::set_permissions(dir.join("kernel/b.ko.xz"), Permissions::from_mode(0o640)).unwrap();
    fs::write(root.path().join("other"), "of the root").unwrap();
    root
}

/// Every path below, with mode and contents.
fn all_of(folder: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let entries = WalkDir::new(folder).into_iter().map(|entry| {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().mode();
        let bytes = if entry.file_type().is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        (entry.path().strip_prefix(folder).unwrap().to_owned(), (mode, bytes))
    });
    entries.collect()
}

#[test]
fn packed_modules_are_plain_and_indexed_in_the_copy_and_the_original_is_as_it_was() {
    let (root, work) = (root("lib/modules"), tempfile::tempdir().unwrap());
    let before = all_of(root.path());
    let plain = unpack(root.path(), work.path()).expect("apt-get install kmod").unwrap();
    assert_eq!((plain.modules, &plain.releases[..]), (3, &["6.1.0-test".to_owned()][..]));
    let dir = plain.path().join("lib/modules/6.1.0-test");
    for (name, module_name, mode) in
        [("b", "b", 0o640), ("fs/a", "a", 0o644), ("c", "c", 0o644), ("d", "d", 0o644)]
    {
        let file = dir.join(format!("kernel/{name}.ko"));
        assert_eq!(fs::read(&file).unwrap(), module(module_name), "{name}");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, mode, "{name}");
    }
    let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(text("modules.order"), "kernel/b.ko\nkernel/fs/a.ko\nkernel/c.ko\nkernel/d.ko\n");
    let mut indexed: Vec<String> = text("modules.dep").lines().map(str::to_owned).collect();
    indexed.sort();
    assert_eq!(indexed, ["kernel/b.ko:", "kernel/c.ko:", "kernel/d.ko:", "kernel/fs/a.ko:"]);
    for name in ["modules.dep", "modules.dep.bin", "modules.alias.bin", "modules.builtin.bin"] {
        assert_eq!(fs::metadata(dir.join(name)).unwrap().mode() & 0o777, 0o644, "{name}");
    }
    let names: Vec<PathBuf> = all_of(&dir.join("kernel")).into_keys().collect();
    assert_eq!(names, ["", "b.ko", "c.ko", "d.ko", "fs", "fs/a.ko", "readme"].map(PathBuf::from));
    assert_eq!(fs::read(plain.path().join("other")).unwrap(), b"of the root");
    drop(plain);
    assert!(all_of(root.path()) == before, "the author's folder is as it was");
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn depmod_is_led_by_no_link_of_the_root_to_the_modules_of_the_machine() {
    let (root, work) = (root("usr/lib/modules"), tempfile::tempdir().unwrap());
    let machine = tempfile::tempdir().unwrap();
    fs::create_dir_all(machine.path().join("modules/6.1.0-test")).unwrap();
    symlink(machine.path(), root.path().join("lib")).unwrap();
    let plain = unpack(root.path(), work.path()).expect("apt-get install kmod").unwrap();
    let dep = plain.path().join("usr/lib/modules/6.1.0-test/modules.dep");
    assert_eq!(fs::read_to_string(dep).unwrap().lines().count(), 4);
    assert_eq!(fs::read_dir(machine.path().join("modules/6.1.0-test")).unwrap().count(), 0);
}

#[test]
fn the_configuration_of_the_root_counts_and_decides_which_of_two_modules_is_meant() {
    let (root, work) = (root("lib/modules"), tempfile::tempdir().unwrap());
    let dir = root.path().join("lib/modules/6.1.0-test");
    fs::create_dir(dir.join("ours")).unwrap();
    fs::write(dir.join("ours/b.ko.xz"), packed("b", "ko.xz")).unwrap();
    let first = |root: &Path| {
        let plain = unpack(root, work.path()).unwrap().unwrap();
        let dep = fs::read_to_string(plain.path().join("lib/modules/6.1.0-test/modules.dep")).unwrap();
        dep.lines().filter(|line| line.contains("b.ko")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(first(root.path()), ["kernel/b.ko:"]);
    fs::create_dir_all(root.path().join("etc/depmod.d")).unwrap();
    fs::write(root.path().join("etc/depmod.d/ours.conf"), "search ours built-in\n").unwrap();
    assert_eq!(first(root.path()), ["ours/b.ko:"]);
}

#[test]
fn a_root_without_packed_modules_needs_no_copy_and_no_tool() {
    let (root, work) = (root("lib/modules"), tempfile::tempdir().unwrap());
    for name in ["b.ko.xz", "fs/a.ko.zst", "c.ko.gz"] {
        fs::remove_file(root.path().join("lib/modules/6.1.0-test/kernel").join(name)).unwrap();
    }
    // This is none of a kernel's, and that lies behind a link.
    fs::write(root.path().join("x.ko.xz"), "").unwrap();
    fs::create_dir_all(root.path().join("opt/lib/modules/6.2")).unwrap();
    fs::write(root.path().join("opt/lib/modules/6.2/x.ko.xz"), "").unwrap();
    symlink("opt", root.path().join("usr")).unwrap();
    assert!(unpack(root.path(), work.path()).unwrap().is_none());
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
}

#[test]
fn what_is_in_the_way_is_told_with_the_cure_and_leaves_nothing_behind() {
    type Break = fn(&Path);
    let table: [(&str, Break, &str); 3] = [
        ("a link", |d| symlink("/elsewhere/x.ko.xz", d.join("kernel/x.ko.xz")).unwrap(), "it is a link"),
        ("both", |d| fs::write(d.join("kernel/b.ko"), "").unwrap(), "remove one of the two"),
        ("damaged", |d| fs::write(d.join("kernel/c.ko.gz"), "no gzip").unwrap(), "while unpacking"),
    ];
    for (why, break_it, expected) in table {
        let (root, work) = (root("lib/modules"), tempfile::tempdir().unwrap());
        break_it(&root.path().join("lib/modules/6.1.0-test"));
        let before = all_of(root.path());
        let error = unpack(root.path(), work.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{why}: {error}");
        assert!(all_of(root.path()) == before, "{why}");
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0, "{why}");
    }
}

#[test]
fn an_image_has_plain_modules_unless_it_is_to_keep_them_or_they_cannot_be_unpacked() {
    let (root, work) = (root("lib/modules"), tempfile::tempdir().unwrap());
    let image = work.path().join("root.erofs");
    let has = |name: &str| {
        let bytes = fs::read(&image).unwrap();
        let erofs = erofs_rs::EroFS::new(erofs_rs::backend::SliceImage::new(&bytes)).unwrap();
        erofs.open(format!("/lib/modules/6.1.0-test/kernel/{name}")).is_ok()
    };
    let made = make_root(root.path(), &image, &RootOptions::default()).unwrap();
    assert!(matches!(made.modules, Modules::Unpacked { modules: 3, .. }), "{made:?}");
    assert_eq!((has("b.ko"), has("b.ko.xz"), made.bytes), (true, false, fs::metadata(&image).unwrap().len()));
    let again = fs::read(&image).unwrap();
    make_root(root.path(), &image, &RootOptions::default()).unwrap();
    assert!(again == fs::read(&image).unwrap(), "made twice, it is the same");

    let keep = RootOptions { keep_compressed_modules: true, ..RootOptions::default() };
    let made = make_root(root.path(), &image, &keep).unwrap();
    assert!(matches!(made.modules, Modules::AsTheyAre), "{made:?}");
    assert_eq!((has("b.ko"), has("b.ko.xz")), (false, true));

    fs::write(root.path().join("lib/modules/6.1.0-test/kernel/c.ko.gz"), "no gzip").unwrap();
    let made = make_root(root.path(), &image, &RootOptions::default()).unwrap();
    assert!(matches!(made.modules, Modules::LeftPacked(_)), "{made:?}");
    assert_eq!((has("b.ko"), has("b.ko.xz")), (false, true));
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 1, "only the image is left");
}
