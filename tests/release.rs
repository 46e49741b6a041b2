//! What others make of ours: oras, zstd, sgdisk, fdisk, fsck and veritysetup on releases and disks made by the program.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use switchback_partitions::device::BlockDevice;
use switchback_partitions::device::disk::{Disk as _, ImageDisk};
use switchback_partitions::gpt::Table;
use switchback_partitions::layout::{DiskLayout, Extent};
use switchback_partitions::slot::Slot;
use switchback_tests::disk_shot::read;
use switchback_tests::lab::registry::Registry;
use switchback_tests::lab::tools;
use switchback_tests::machine::Machine;
use switchback_tests::scene::{Scene, sha256};

const ROOT_BYTES: u64 = 24 << 20;
const MIB: u64 = 1 << 20;

#[test]
fn oras_and_zstd_give_back_the_very_bytes_that_the_slot_was_built_from() {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    scene.release("1.0", true, ROOT_BYTES).unwrap();
    let (host, pulled) = (registry.host(), scene.folder().join("pulled"));
    scene.desk.push("1.0", &format!("{host}/os"), &["--plain-http", &host]).unwrap();
    let oras = tools::fetched("oras").unwrap();
    let mut pull = Command::new(oras);
    pull.args(["pull", "--plain-http", &format!("{host}/os:1.0"), "--output"]).arg(&pulled);
    tools::run(pull.env("HOME", scene.folder())).unwrap();
    let raw = scene.folder().join("root.img");
    let mut zstd = Command::new(tools::program("zstd", "zstd").unwrap());
    tools::run(zstd.args(["-q", "-d", "-o"]).arg(&raw).arg(pulled.join("root.img.zst"))).unwrap();
    let built_from = scene.desk.path("root-1.0.img");
    assert_eq!(sha256(&raw).unwrap(), sha256(&built_from).unwrap());
    for (pulled_as, input) in [("linux", "vmlinuz"), ("initrd", "initrd")] {
        let pair = [pulled.join(pulled_as), scene.desk.path(input)];
        assert_eq!(sha256(&pair[0]).unwrap(), sha256(&pair[1]).unwrap(), "{pulled_as}");
    }
    let (there, here) =
        (pulled.join("root.img.zst").metadata().unwrap().len(), built_from.metadata().unwrap().len());
    println!("oras pull: {there} bytes in the registry, {here} bytes after zstd -d, identical");
}

/// Copies a partition into a file of its own, as sparse as it is empty.
fn extract(disk: &ImageDisk, extent: &Extent, to: &Path) {
    let device = disk.partition(extent).unwrap();
    let mut file = std::fs::File::create(to).unwrap();
    file.set_len(extent.len).unwrap();
    for offset in (0..extent.len).step_by(MIB as usize) {
        let bytes = read(&*device, offset, MIB.min(extent.len - offset)).unwrap();
        if bytes.iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.write_all(&bytes).unwrap();
        }
    }
}

fn layout(disk: &ImageDisk) -> DiskLayout {
    DiskLayout::discover(&Table::read(&*disk.whole().unwrap()).unwrap()).unwrap()
}

/// No program finds a fault in the ESP.
fn fsck_esp(disk: &ImageDisk, folder: &Path) {
    let esp = folder.join("esp.img");
    extract(disk, &layout(disk).esp, &esp);
    let fsck = tools::program("fsck.vfat", "dosfstools").unwrap();
    let said = tools::run(Command::new(fsck).args(["-n", "-v"]).arg(&esp)).unwrap();
    // Only FAT32 has its root directory in a cluster.
    assert!(said.contains("Root directory start at cluster"), "{said}");
    for complaint in ["rror", "differ", "dirty", "orphan", "Reclaimed", "Auto-"] {
        assert!(!said.contains(complaint), "{said}");
    }
    std::fs::remove_file(esp).unwrap();
}

fn veritysetup(disk: &ImageDisk, slot: Slot, root_hash: &str, folder: &Path) -> bool {
    let parts = layout(disk).slot(slot).clone();
    let files: [PathBuf; 2] = ["data.img", "hash.img"].map(|name| folder.join(name));
    for (extent, file) in [&parts.root, &parts.verity].into_iter().zip(&files) {
        extract(disk, extent, file);
    }
    let mut verify = Command::new(tools::program("veritysetup", "cryptsetup-bin").unwrap());
    verify.arg("verify").args(&files).arg(root_hash).output().unwrap().status.success()
}

/// The root hash that a release's kernel command line carries.
fn root_hash(scene: &Scene, version: &str) -> String {
    let inspection =
        scene.desk.run(&["image", "inspect", &scene.desk.reference(version)]).unwrap().to_string();
    let word = "switchback.roothash=";
    let start = inspection.find(word).unwrap_or_else(|| panic!("{inspection}")) + word.len();
    inspection[start..start + 64].to_string()
}

#[test]
fn a_blank_2_gib_file_becomes_a_disk_in_which_no_tool_finds_a_fault() {
    let scene = Scene::new().unwrap();
    scene.release("1.0", true, ROOT_BYTES).unwrap();
    scene.release("1.1", true, ROOT_BYTES).unwrap();
    let key = scene.desk.path("os.pub");
    let mut machine = scene.machine(&scene.desk.reference("1.1"), &[&key], "").unwrap();
    std::fs::File::create(machine.disk()).unwrap().set_len(2 << 30).unwrap();
    let made = scene.provision(&machine, &scene.desk.reference("1.0"), &key, &[]).unwrap();
    println!("partitions of a 2 GiB file: {}", made["partitions"]);
    let sgdisk = tools::program("sgdisk", "gdisk").unwrap();
    let check = |machine: &Machine, when: &str| {
        let said = tools::run(Command::new(&sgdisk).arg("-v").arg(machine.disk())).unwrap();
        assert!(said.contains("No problems found"), "{when}: {said}");
        fsck_esp(&machine.image().unwrap(), scene.folder());
    };
    check(&machine, "provisioned");
    // No start is needed for what is looked at here, and a quarter of the disk would have to be unpacked for one.
    machine.pretend(Slot::A).unwrap();
    let update = machine.ask(&["update"]).unwrap();
    assert_eq!(update.code, 0, "{}", update.said);
    check(&machine, "updated");
    let disk = machine.image().unwrap();
    let hashes = ["1.0", "1.1"].map(|version| root_hash(&scene, version));
    for (slot, hash) in Slot::ALL.into_iter().zip(&hashes) {
        assert!(veritysetup(&disk, slot, hash, scene.folder()), "slot {slot}, {hash}");
    }
    assert!(!veritysetup(&disk, Slot::A, &hashes[1], scene.folder()), "veritysetup tells them apart");
    println!("sgdisk, fsck.vfat and veritysetup agree before and after an update");
}

#[test]
fn a_disk_with_4096_byte_sectors_is_as_sound() {
    let scene = Scene::new().unwrap();
    scene.release("1.0", true, ROOT_BYTES).unwrap();
    let key = scene.desk.path("os.pub");
    let machine = scene.machine(&scene.desk.reference("1.0"), &[&key], "").unwrap();
    let sizes = ["--size", "2G", "--sector-size", "4096"];
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &sizes).unwrap();
    let disk = ImageDisk::open(machine.disk(), 4096).unwrap();
    assert_eq!(disk.whole().unwrap().sector_bytes(), 4096);
    fsck_esp(&disk, scene.folder());
    // sgdisk takes every file for a disk of 512-byte sectors; fdisk can be told.
    let fdisk = tools::program("fdisk", "fdisk").unwrap();
    let mut list = Command::new(fdisk);
    let output =
        list.args(["--bytes", "-b", "4096", "-l"]).arg(machine.disk()).env("LC_ALL", "C").output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("Disklabel type: gpt"), "{said}");
    for complaint in ["corrupt", "rror", "mismatch", "not on", "invalid"] {
        assert!(!said.contains(complaint), "{said}");
    }
    assert_eq!(said.matches(&format!("{}1", machine.disk().display())).count(), 1, "{said}");
    assert!(veritysetup(&disk, Slot::A, &root_hash(&scene, "1.0"), scene.folder()));
    println!("{said}");
}
