//! What is signed by whom, and what is bent on the way: taken or refused by the real program, from a real registry with
//! signatures by real signers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::{Path, PathBuf};

use switchback::digest::Digest;
use switchback::image::index::{FrameBody, FrameRef, Index};
use switchback::image::manifest::OsManifest;
use switchback::registry::layout_dir::LayoutDir;
use switchback_partitions::device::disk::Disk as _;
use switchback_partitions::slot::Slot;
use switchback_tests::disk_shot::{DiskShot, read};
use switchback_tests::lab::registry::Registry;
use switchback_tests::machine::{Answer, Machine};
use switchback_tests::scene::{SMALL_DISK, Scene, sha256};
use switchback_tests::signers::{Cosign, Signers};

const ROOT_BYTES: u64 = 8 << 20;

/// A scene with a registry beside it.
struct Stage {
    scene: Scene,
    registry: Registry,
}

impl Stage {
    fn set() -> Stage {
        let scene = Scene::new().unwrap();
        let registry = Registry::start(&scene.folder().join("registry")).unwrap();
        Stage { scene, registry }
    }

    fn repository(&self) -> String {
        format!("{}/os", self.registry.host())
    }

    /// Builds a release, signs it in the layout with the desk's key where `signed`, and pushes it with the tag `stable`.
    fn push(&self, version: &str, signed: bool) -> Digest {
        let host = self.registry.host();
        let mut more = vec!["--plain-http", &host, "--tag", "stable"];
        if signed {
            self.scene.release(version, true, ROOT_BYTES).unwrap();
            more.push("--with-signatures");
        } else {
            let release = switchback_tests::small_release::SmallRelease {
                version,
                healthy: true,
                root_bytes: ROOT_BYTES,
            };
            self.scene.desk.build(&release).unwrap();
        }
        self.scene.desk.push(version, &self.repository(), &more).unwrap()
    }

    /// A machine provisioned with 1.0 from the registry, and started.
    fn machine(&self, key: &Path) -> Machine {
        let (host, stable) = (self.registry.host(), format!("{}:stable", self.repository()));
        let plain = format!("plain_http = [\"{host}\"]");
        let mut machine = self.scene.machine(&stable, &[key], &plain).unwrap();
        let mut sizes = SMALL_DISK.to_vec();
        sizes.extend(["--plain-http", &host]);
        self.scene.provision(&machine, &format!("{}:1.0", self.repository()), key, &sizes).unwrap();
        assert_eq!(machine.power_on().unwrap().slot, Slot::A);
        machine
    }

    /// Where the registry keeps the bytes of a digest.
    fn stored(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let blobs = self.scene.folder().join("registry/blobs/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(&hex).join("data")
    }

    fn manifest(&self, digest: &Digest) -> OsManifest {
        OsManifest::parse(&std::fs::read(self.stored(digest)).unwrap()).unwrap()
    }
}

fn ask(machine: &Machine, arguments: &[&str], code: i32) -> Answer {
    let answer = machine.ask(arguments).unwrap();
    assert_eq!(answer.code, code, "switchback {}: {} {}", arguments.join(" "), answer.said, answer.told);
    answer
}

/// Flips one bit in the middle of a file and gives what was there.
fn flip(file: &Path) -> Vec<u8> {
    let bytes = std::fs::read(file).unwrap();
    flip_at(file, bytes.len() / 2);
    bytes
}

fn flip_at(file: &Path, place: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[place] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn what_cosign_signed_is_taken_and_what_another_key_signed_is_not() {
    let stage = Stage::set();
    let signers = Signers::new(stage.scene.folder()).unwrap();
    let (ours, others) = (signers.p256("ours").unwrap(), signers.p256("others").unwrap());
    let sign = |cosign, key, digest: Digest| {
        signers.sign(cosign, key, &format!("{}@{digest}", stage.repository())).unwrap();
    };
    sign(Cosign::Two, &ours, stage.push("1.0", false));
    let mut machine = stage.machine(&ours.public);
    for (version, cosign, slot) in [("1.1", Cosign::Two, Slot::B), ("1.2", Cosign::Three, Slot::A)] {
        let digest = stage.push(version, false);
        let before = sha256(&machine.disk()).unwrap();
        let unsigned = ask(&machine, &["update"], 10);
        assert_eq!(unsigned.said["reason"], "signature-refused", "{version}");
        for other in [Cosign::Two, Cosign::Three] {
            sign(other, &others, digest);
            let foreign = ask(&machine, &["update"], 10);
            assert!(foreign.said["detail"].as_str().unwrap().contains("trusted key"), "{}", foreign.said);
        }
        assert_eq!(before, sha256(&machine.disk()).unwrap(), "the disk is byte-identical");
        sign(cosign, &ours, digest);
        let taken = ask(&machine, &["update", "--reboot"], 0);
        assert_eq!(taken.said["release"]["digest"], digest.to_string());
        assert_eq!(machine.power_on().unwrap().slot, slot);
        println!("{version}, signed by cosign {cosign:?}: {}", taken.said["traffic"]);
    }
}

#[test]
fn one_flipped_byte_in_a_document_is_refused_and_the_disk_stays_byte_identical() {
    let stage = Stage::set();
    stage.push("1.0", true);
    let machine = stage.machine(&stage.scene.desk.path("os.pub"));
    let digest = stage.push("1.1", true);
    let manifest = stage.manifest(&digest);
    let layout = LayoutDir::new(stage.scene.desk.path("images"));
    let before = sha256(&machine.disk()).unwrap();
    let (by_digest, from_layout) = (format!("@{digest}"), stage.scene.desk.reference("1.1"));
    let (config, index) = (manifest.config.digest, manifest.slots[0].index.digest);
    let cases = [
        ("manifest in the registry", stage.stored(&digest), by_digest.as_str(), 34),
        // Under a tag, other bytes are another release, and nobody signed that one.
        ("manifest in the registry, by tag", stage.stored(&digest), "1.1", 10),
        ("manifest in the layout", layout.blob_path(&digest), &from_layout, 34),
        ("config in the registry", stage.stored(&config), "1.1", 34),
        ("config in the layout", layout.blob_path(&config), &from_layout, 34),
        ("index in the registry", stage.stored(&index), "1.1", 34),
        ("index in the layout", layout.blob_path(&index), &from_layout, 34),
    ];
    for (what, file, to, code) in cases {
        let good = flip(&file);
        let refused = ask(&machine, &["update", "--to", to], code);
        assert_eq!(before, sha256(&machine.disk()).unwrap(), "{what}");
        println!("{what}: {}", refused.said["detail"]);
        std::fs::write(file, good).unwrap();
    }
    ask(&machine, &["update", "--to", &from_layout], 0);
}

/// The frame of the slot layer in which the blob's byte `place` lies, and the layer's whole index.
fn frame_at(index: &Index, place: u64) -> FrameRef<'_> {
    let inside = |frame: &FrameRef<'_>| {
        matches!(frame.body, FrameBody::Chunks(_))
            && (frame.blob_offset..frame.blob_offset + u64::from(frame.blob_bytes)).contains(&place)
    };
    index.frames().find(inside).unwrap()
}

#[test]
fn one_flipped_byte_in_a_chunk_is_not_written_and_only_the_other_slot_is_given_up() {
    let stage = Stage::set();
    stage.push("1.0", true);
    let mut machine = stage.machine(&stage.scene.desk.path("os.pub"));
    stage.push("1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    ask(&machine, &["rollback", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A, "now B holds 1.1, confirmed, the fallback");

    let layer = stage.manifest(&stage.push("1.2", true)).slots[0].clone();
    let index = std::fs::read(stage.stored(&layer.index.digest)).unwrap();
    let index = Index::parse(&index, ROOT_BYTES, layer.blob.size).unwrap();
    let frame = frame_at(&index, layer.blob.size / 2);
    let blob = stage.stored(&layer.blob.digest);
    flip_at(&blob, (frame.blob_offset + u64::from(frame.blob_bytes) / 2) as usize);
    let chunk = |machine: &Machine| {
        let root = machine.layout().unwrap().slot(Slot::B).root.clone();
        let root = machine.image().unwrap().partition(&root).unwrap();
        read(&*root, frame.raw_offset, frame.raw_bytes).unwrap()
    };
    let (shot, old, status) =
        (DiskShot::take(&machine).unwrap(), chunk(&machine), ask(&machine, &["status"], 0).said);
    assert_eq!(status["slots"][1]["boot"]["state"], "good");

    let refused = ask(&machine, &["update"], 35);
    assert_eq!(refused.said["reason"], "corrupt-chunk");
    let (after, now) = (DiskShot::take(&machine).unwrap(), ask(&machine, &["status"], 0).said);
    assert!(old == chunk(&machine), "the chunk's place is as it was");
    assert!(shot.slots[1] != after.slots[1], "what came before it was written");
    assert_eq!(now["slots"][1]["boot"]["state"], "empty", "the other slot is disarmed");
    assert_eq!(after.of(Slot::B).1.len(), 0, "its entry, boot files and passport are gone");
    assert!(shot.of(Slot::A) == after.of(Slot::A), "the running slot, its boot files and its entry");
    for (what, before, after) in [
        ("slot a", &status["slots"][0], &now["slots"][0]),
        ("floor", &status["floor"], &now["floor"]),
        ("quarantine", &status["quarantine"], &now["quarantine"]),
        ("held", &status["held"], &now["held"]),
    ] {
        assert_eq!(before, after, "{what}");
    }
    assert_eq!(now["last"]["reason"], "corrupt-chunk", "{}", now["last"]);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);

    // Mended, the same order goes on where it stopped.
    flip_at(&blob, (frame.blob_offset + u64::from(frame.blob_bytes) / 2) as usize);
    let mended = ask(&machine, &["update", "--reboot"], 0);
    let kept = mended.number("/traffic/kept").unwrap();
    assert!(kept > ROOT_BYTES / 8, "{}", mended.said);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    println!("one bad chunk at {}: {kept} bytes before it were kept", frame.raw_offset);
}
