//! A machine in a folder, all of it well: disk, loader, entries, kernel's view, units, keys, source.
//!
//! Not here: what a test breaks. Rule: real formats: a real partition table, real FAT, files as the kernel shows them.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::json;
use switchback_bootloader::esp::{EspDir, FatEsp};
use switchback_bootloader::systemd_boot::loader::install_loader;
use switchback_bootloader::systemd_boot::pe::{self, Machine};
use switchback_partitions::device::disk::{Disk as _, ImageDisk};
use switchback_partitions::device::{Access, FileDevice, Window};
use switchback_partitions::layout::DiskLayout;
use switchback_partitions::provision::{Existing, Plan, Request};
use tempfile::TempDir;

use super::{Finding, Place, Report, examine};
use crate::digest::Digest;
use crate::facts::{Fact, Facts};
use crate::host::loader::fixture::set;
use crate::host::state_dir::Folder;
use crate::host::sysfs::{DeviceNumber, fixture};
use crate::install::contract::CONTRACT_PATH;

const MIB: u64 = 1 << 20;
/// 2027-01-01.
pub const NOW: i64 = 1_798_761_600;
/// The dm-verity device of `/`: a number that no device has on which tests run.
const ROOT: DeviceNumber = DeviceNumber { major: 511, minor: 77 };
const DISK_BYTES: u64 = 96 * MIB;
/// What loads slot A and B in this fixture.
pub const ENTRIES: [&str; 2] =
    ["loader/entries/switchback-a-1.conf", "loader/entries/switchback-b-2+3-0.conf"];

/// The machine.
pub struct Fixture {
    dir: TempDir,
    layout: DiskLayout,
    /// Where doctor looks.
    pub place: Place,
}

impl Fixture {
    /// A machine on which everything is as it should be; nobody signed what its slots hold.
    pub fn healthy() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let model = MODEL.get_or_init(Model::make);
        model.unpack(dir.path());
        let place = Place {
            root: dir.path().to_owned(),
            root_device: Some(ROOT),
            now_unix_secs: NOW,
            offline: false,
        };
        let fixture = Fixture { dir, layout: model.layout.clone(), place };
        fixture.kernel();
        fixture.firmware();
        fixture.userland();
        fixture
    }

    /// A path in the machine's root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Writes a file, with the folders above it.
    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Removes a file or a folder.
    pub fn remove(&self, path: &str) {
        let path = self.path(path);
        match fs::symlink_metadata(&path).unwrap().is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }

    /// Replaces a text in a file that holds it.
    pub fn edit(&self, path: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(path)).unwrap();
        assert!(text.contains(from), "{path} has no {from}");
        fs::write(self.path(path), text.replace(from, to)).unwrap();
    }

    /// A link, with the folders above it.
    pub fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
    }

    /// Sets a variable of the loader.
    pub fn variable(&self, name: &str, value: &str) {
        set(&self.place.efivars(), name, value);
    }

    /// The boot partition, for writing.
    pub fn esp(&self) -> FatEsp {
        FatEsp::new(Arc::new(self.esp_device()))
    }

    /// Its bytes, for writing.
    pub fn esp_device(&self) -> Window {
        let device = FileDevice::open(self.path("dev/vda"), Access::ReadWrite).unwrap();
        Window::new(Arc::new(device), self.layout.esp.offset, self.layout.esp.len).unwrap()
    }

    /// Writes a file on the boot partition.
    pub fn esp_write(&self, path: &str, bytes: &[u8]) {
        write_to(&self.esp(), path, bytes);
    }

    /// Everything that is found.
    pub fn examine(&self) -> Report {
        examine(&self.place, Some(&self.path("etc/switchback/config.toml")))
    }

    /// The finding of that name; of several, the worst.
    pub fn finding(&self, name: &str) -> Finding {
        let findings = self.examine().findings.into_iter().filter(|finding| finding.name == name);
        findings.max_by_key(|finding| finding.result).unwrap_or_else(|| panic!("no finding {name}"))
    }

    /// Every file with its times, and its bytes unless it is the disk: two moments can be compared by it.
    pub fn shot(&self) -> Vec<(PathBuf, (i64, i64), Option<Digest>)> {
        let mut shot = Vec::new();
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let found = fs::symlink_metadata(&path).unwrap();
                let digest =
                    (found.is_file() && found.len() < MIB).then(|| Digest::of(&fs::read(&path).unwrap()));
                shot.push((path.clone(), (found.mtime(), found.mtime_nsec()), digest));
                if found.is_dir() {
                    folders.push(path);
                }
            }
        }
        shot.sort();
        shot
    }

    /// What the kernel shows: `/` on a dm-verity device over slot A.
    fn kernel(&self) {
        fixture::machine(&self.path("sys"), 7, Some([2, 3]));
        symlink(
            self.path("sys/devices/virtual/block/dm-0"),
            self.path("sys/dev/block").join(ROOT.to_string()),
        )
        .unwrap();
        fixture::watchdog(&self.path("sys"), "watchdog0", "i6300ESB timer", "active");
        self.write("sys/class/watchdog/watchdog0/timeout", "60\n");
        self.write("sys/class/watchdog/watchdog0/nowayout", "0\n");
        // The folder of the state is on whatever the test runs on: so is the partition `state`.
        let state = DeviceNumber::from_raw(fs::metadata(self.dir.path()).unwrap().dev());
        self.write("sys/devices/pci0/virtio0/block/vda/vda6/dev", state.to_string());
        self.write("sys/module/pstore/parameters/backend", "efi_pstore\n");
        self.write("sys/fs/pstore/dmesg-efi-1", "");
        self.write("proc/cmdline", "quiet switchback.roothash=00 rauc.slot=A\n");
        self.write("proc/sys/kernel/panic", "30\n");
        self.write("proc/1/comm", "systemd\n");
        self.link("proc/1/fd/5", "/dev/watchdog0");
        self.write("proc/self/mountinfo", "21 1 511:77 / / ro - erofs /dev/dm-0 ro\n");
    }

    fn firmware(&self) {
        fs::create_dir_all(self.place.efivars()).unwrap();
        self.variable("LoaderInfo", "systemd-boot 262.1");
        self.variable("LoaderEntrySelected", "switchback-a-1.conf");
    }

    fn userland(&self) {
        let root = self.dir.path().display();
        let config = format!(
            "[source]\nimage = \"oci:{root}/images:stable\"\n\n[machine]\nroot = \"{root}\"\nstate_dir = \"{root}/state\"\n"
        );
        self.write("etc/switchback/config.toml", config);
        self.write(CONTRACT_PATH, "contract = 1\n");
        self.write("usr/lib/switchback/trust/os.pub", key(7));
        self.write(
            "usr/lib/switchback/health.d/web.toml",
            "[[check]]\nname = 'web'\nkind = 'tcp'\naddress = 'localhost:80'\n",
        );
        self.write("usr/lib/systemd/systemd", "");
        for unit in
            ["switchback-boot-check.service", "switchback-trial-deadline.timer", "systemd-bless-boot.service"]
        {
            self.write(&format!("usr/lib/systemd/system/{unit}"), "[Unit]\n");
        }
        let check = "/usr/lib/systemd/system/switchback-boot-check.service";
        self.link("etc/systemd/system/boot-complete.target.requires/switchback-boot-check.service", check);
        self.link("etc/systemd/system/multi-user.target.wants/switchback-boot-check.service", check);
        let timer = "switchback-trial-deadline.timer";
        self.link(&format!("etc/systemd/system/sysinit.target.wants/{timer}"), timer);
        self.write(
            "usr/lib/systemd/system.conf.d/10-switchback-watchdog.conf",
            "[Manager]\nRuntimeWatchdogSec=60s\n",
        );
        self.write("run/systemd/timesync/synchronized", "");
        self.source();
    }

    /// An OCI layout with one empty manifest under the tag `stable`.
    fn source(&self) {
        let manifest = b"{}";
        let digest = Digest::of(manifest);
        self.write("images/oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string());
        self.write(&format!("images/blobs/sha256/{}", digest.hex()), manifest);
        let entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest, "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "stable"},
        });
        self.write("images/index.json", json!({"schemaVersion": 2, "manifests": [entry]}).to_string());
    }
}

fn mark() -> Fact {
    Fact::Mark {
        boot_id: "1".into(),
        slot: switchback_partitions::slot::Slot::A,
        stage: crate::lifecycle::Stage::BootCheck,
    }
}

/// An Ed25519 key as a PEM file.
pub fn key(seed: u8) -> String {
    let pair = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    // RFC 8410, section 4: this head, then the key.
    let head = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let der = [&head[..], pair.verifying_key().as_bytes()].concat();
    pem_rfc7468::encode_string("PUBLIC KEY", pem_rfc7468::LineEnding::LF, &der).unwrap()
}

/// The files that are made with flushes, made once: fifty machines that flush would wait for the disk most of the time.
static MODEL: OnceLock<Model> = OnceLock::new();
/// The disk and both copies of the facts.
const MODELLED: [&str; 3] = ["dev/vda", "state/facts-1", "state/facts-2"];
const PIECE_BYTES: usize = 64 << 10;

/// Bytes and their offset.
type Piece = (u64, Vec<u8>);

struct Model {
    layout: DiskLayout,
    /// Of each file its length and what is not zero in it.
    files: Vec<(u64, Vec<Piece>)>,
}

impl Model {
    fn make() -> Model {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["dev", "state"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let layout = disk(&dir.path().join("dev/vda"));
        let mut facts = Facts::open(&Folder::new(dir.path().join("state"))).unwrap();
        facts.add(&Fact::Released(Digest::of(b"")), 1).unwrap();
        facts.add(&mark(), 1).unwrap();
        let files = MODELLED.map(|path| {
            let bytes = fs::read(dir.path().join(path)).unwrap();
            let pieces = bytes
                .chunks(PIECE_BYTES)
                .enumerate()
                .filter(|(_, piece)| piece.iter().any(|byte| *byte != 0));
            let pieces = pieces.map(|(index, piece)| ((index * PIECE_BYTES) as u64, piece.to_vec()));
            (bytes.len() as u64, pieces.collect())
        });
        Model { layout, files: files.into() }
    }

    fn unpack(&self, root: &Path) {
        for (path, (len, pieces)) in MODELLED.iter().zip(&self.files) {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = fs::File::create(path).unwrap();
            file.set_len(*len).unwrap();
            for (offset, piece) in pieces {
                file.write_all_at(piece, *offset).unwrap();
            }
        }
    }
}

/// A disk of ours with a loader and an entry for each slot.
fn disk(path: &Path) -> DiskLayout {
    fs::File::create(path).unwrap().set_len(DISK_BYTES).unwrap();
    let request = Request {
        esp_bytes: 40 * MIB,
        slot_bytes: 8 * MIB,
        state_bytes: 16 * MIB,
        ..Request::usual(DISK_BYTES, 512)
    };
    let disk = ImageDisk::open(path, 512).unwrap();
    let layout = Plan::new(&request).unwrap().execute(&disk, Existing::Refuse).unwrap();
    let esp = FatEsp::new(disk.partition(&layout.esp).unwrap());
    let binary = pe::sample(Machine::host(), b"#### LoaderInfo: systemd-boot 262.1 ####");
    install_loader(&esp, &binary, Machine::host()).unwrap();
    for (slot, entry) in ["a", "b"].into_iter().zip(ENTRIES) {
        let text = format!("title {slot}\nsort-key switchback\nversion 1\nlinux /switchback/{slot}/linux\n");
        write_to(&esp, &format!("switchback/{slot}/linux"), &[7; 64 << 10]);
        write_to(&esp, entry, text.as_bytes());
    }
    layout
}

fn write_to(esp: &FatEsp, path: &str, bytes: &[u8]) {
    esp.mkdir(path.rsplit_once('/').unwrap().0).unwrap();
    esp.write_tmp(path, &mut &*bytes).unwrap();
}
