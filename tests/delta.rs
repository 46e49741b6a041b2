//! What an update fetches when most of the release is on the machine: the change, and never a wrong byte where the machine
//! is not what it remembers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use switchback_partitions::device::BlockDevice;
use switchback_partitions::device::disk::Disk as _;
use switchback_partitions::slot::Slot;
use switchback_tests::lab::registry::Registry;
use switchback_tests::machine::{Answer, Machine};
use switchback_tests::scene::Scene;
use switchback_tests::slow_line::SlowLine;
use switchback_tests::small_release::noise;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// Content of the root; the rest of the slot is zero.
const CONTENT: u64 = 24 * MIB;
const ROOT: u64 = 32 * MIB;
/// What is changed in it: six runs of three blocks, each of which costs a chunk or two of at most 64 KiB.
const CHANGES: usize = 6;
const CHANGED_MAX: u64 = CHANGES as u64 * 3 * 64 * KIB;
/// Manifests, signatures and what HTTP adds.
const WORDS: u64 = 128 * KIB;

struct Stage {
    scene: Scene,
    _registry: Registry,
    line: SlowLine,
    machine: Machine,
}

/// The root of a version: each is the one before with blocks put in at its beginning and others changed.
fn content(version: usize) -> Vec<u8> {
    let mut content = noise(7, CONTENT as usize);
    for step in 1..=version {
        let seed = step as u64 * 100;
        content.splice(64 * BLOCK..64 * BLOCK, noise(seed, 3 * BLOCK));
        for change in 1..CHANGES {
            let at = (content.len() / BLOCK * change / CHANGES) * BLOCK;
            content[at..at + 3 * BLOCK].copy_from_slice(&noise(seed + change as u64, 3 * BLOCK));
        }
    }
    content.resize(ROOT as usize, 0);
    content
}

/// A machine on 1.0 whose registry also has 1.1 and 1.2; with `patches` from each to the next.
fn stage_with(patches: bool) -> Stage {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let line = SlowLine::to(&registry.host(), 1 << 40).unwrap();
    for version in 0..3 {
        let name = format!("1.{version}");
        fs::write(scene.desk.path("root.img"), content(version)).unwrap();
        scene.desk.build_partition(&name, "root.img", &["--foreign"]).unwrap();
        scene.desk.sign(&scene.desk.reference(&name), &[]).unwrap();
        let (host, before) = (registry.host(), scene.desk.reference(&format!("1.{}", version.max(1) - 1)));
        let mut more = vec!["--plain-http", &host, "--with-signatures"];
        if patches && version > 0 {
            more.extend(["--patch-from", &before]);
        }
        scene.desk.push(&name, &format!("{host}/os"), &more).unwrap();
    }
    let key = scene.desk.path("os.pub");
    let plain = format!("plain_http = [\"{}\"]", line.host());
    let mut machine = scene.machine(&format!("{}/os:1.1", line.host()), &[&key], &plain).unwrap();
    let sizes = ["--size", "256M", "--slot-size", "48M", "--esp-size", "64M", "--state-size", "16M"];
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &sizes).unwrap();
    machine.pretend(Slot::A).unwrap();
    Stage { scene, _registry: registry, line, machine }
}

fn stage() -> Stage {
    stage_with(false)
}

impl Stage {
    /// The files in which the registry keeps blobs that begin as a patch does, with their lengths.
    fn patch_files(&self) -> Vec<(PathBuf, u64)> {
        let found = std::process::Command::new("find")
            .arg(self.scene.folder().join("registry"))
            .args(["-name", "data"])
            .output();
        let found = String::from_utf8(found.unwrap().stdout).unwrap();
        let patches = found.lines().filter(|path| {
            let mut beginning = Vec::new();
            let frame =
                zstd::Decoder::new(fs::File::open(path).unwrap()).map(|decoder| decoder.single_frame());
            frame.is_ok_and(|frame| frame.take(8).read_to_end(&mut beginning).is_ok())
                && beginning == *b"SWBPATCH"
        });
        patches.map(|path| (path.into(), fs::metadata(path).unwrap().len())).collect()
    }

    /// This machine, and the line that it is asked over.
    fn here(&self) -> Here<'_> {
        Here { line: &self.line, machine: Held::Shared(&self.machine) }
    }

    /// Another machine that is as this one is now.
    fn copied(&self, name: &str) -> Here<'_> {
        let config = fs::read_to_string(self.machine.config()).unwrap();
        let settings = config.split("\n[machine]").next().unwrap();
        let machine = self.machine.copy(&self.scene.folder().join(name), settings).unwrap();
        Here { line: &self.line, machine: Held::Own(machine) }
    }

    /// 1.1 is staged in slot b, and runs from now on, confirmed.
    fn move_to_1_1(&mut self) {
        let armed = self.machine.ask(&["update", "--to", "1.1"]).unwrap();
        assert_eq!((armed.code, &armed.said["outcome"]), (0, &"armed".into()), "{}", armed.said);
        self.machine.pretend(Slot::B).unwrap();
        let check = self.machine.ask(&["boot-check"]).unwrap();
        assert_eq!((check.code, &check.said["verdict"]), (0, &"confirmed".into()), "{}", check.said);
    }
}

/// One machine on the line.
struct Here<'a> {
    line: &'a SlowLine,
    machine: Held<'a>,
}

enum Held<'a> {
    Shared(&'a Machine),
    Own(Machine),
}

impl Here<'_> {
    fn machine(&self) -> &Machine {
        match &self.machine {
            Held::Shared(machine) => machine,
            Held::Own(machine) => machine,
        }
    }

    /// An update to `version`, staged; what it said, and the bytes that the registry sent.
    fn stage(&self, version: usize) -> (Answer, u64) {
        let before = self.line.carried();
        let answer = self.machine().ask(&["update", "--stage", "--to", &format!("1.{version}")]).unwrap();
        assert_eq!(answer.code, 0, "{}{}", answer.said, answer.told);
        let carried = self.line.carried() - before;
        println!("1.{version}: {carried} bytes came, {}", answer.said["traffic"]);
        (answer, carried)
    }

    /// The slot holds that version, byte for byte.
    fn holds(&self, slot: Slot, version: usize) {
        let mut found = vec![0; ROOT as usize];
        self.root(slot).read_at(0, &mut found).unwrap();
        assert!(found == content(version), "slot {slot} is not 1.{version}");
    }

    /// Bytes of a slot's root become others.
    fn damage(&self, slot: Slot, offset: u64, bytes: usize) {
        self.root(slot).write_at(offset, &noise(99, bytes)).unwrap();
    }

    fn root(&self, slot: Slot) -> Arc<dyn BlockDevice> {
        let layout = self.machine().layout().unwrap();
        self.machine().image().unwrap().partition(&layout.slot(slot).root).unwrap()
    }

    /// The index of what lies in a slot, as the machine keeps it.
    fn stored(&self, slot: Slot) -> PathBuf {
        self.machine().state_dir().join(format!("index-{slot}-root"))
    }
}

fn moved(answer: &Answer, what: &str) -> u64 {
    answer.number(&format!("/traffic/{what}")).unwrap()
}

#[test]
fn an_update_fetches_the_change_and_takes_the_rest_from_the_running_slot() {
    let mut stage = stage();
    let plan = stage.machine.ask(&["update", "--dry-run"]).unwrap();
    let (first, carried) = stage.here().stage(1);
    stage.here().holds(Slot::B, 1);
    assert!(carried < CHANGED_MAX + WORDS + ROOT / 64, "{carried}");
    assert!(moved(&first, "copied") > CONTENT - CHANGED_MAX, "{}", first.said);
    assert_eq!(plan.said["traffic"], first.said["traffic"], "the plan is what is done");

    // The second one knows the indexes of both slots: of the new index only what differs is fetched, and what the slot that
    // is written holds already in its place is left there.
    stage.move_to_1_1();
    assert!(stage.here().stored(Slot::B).exists());
    let (second, carried) = stage.here().stage(2);
    stage.here().holds(Slot::A, 2);
    assert!(carried < CHANGED_MAX + WORDS, "{carried}");
    assert!(moved(&second, "kept") >= 60 * BLOCK as u64, "the first blocks are in 1.0, too: {}", second.said);
    assert!(stage.here().stored(Slot::A).exists());
    let again = stage.machine.ask(&["update", "--to", "1.2", "--stage"]).unwrap();
    assert_eq!((moved(&again, "fetched"), moved(&again, "written")), (0, 0), "{}", again.said);
}

#[test]
fn a_lost_or_torn_index_costs_a_scan_and_no_download() {
    let mut stage = stage();
    stage.here().stage(1);
    stage.move_to_1_1();
    let stored = fs::read(stage.here().stored(Slot::B)).unwrap();
    for (name, torn) in [
        ("lost", None),
        ("empty", Some(Vec::new())),
        ("cut", Some(stored[..stored.len() / 2].to_vec())),
        ("noise", Some(noise(5, stored.len()))),
        ("with a wrong page", Some([&stored[..stored.len() - 9], &[0; 9]].concat())),
    ] {
        let copy = stage.copied(name);
        match torn {
            None => fs::remove_file(copy.stored(Slot::B)).unwrap(),
            Some(bytes) => fs::write(copy.stored(Slot::B), bytes).unwrap(),
        }
        println!("{name}");
        let (answer, carried) = copy.stage(2);
        copy.holds(Slot::A, 2);
        assert!(carried < CHANGED_MAX + WORDS + ROOT / 64, "{name}: {carried}");
        assert!(moved(&answer, "copied") > CONTENT - CHANGED_MAX, "{name}: {}", answer.said);
    }
}

#[test]
fn what_is_not_where_the_index_says_is_fetched() {
    let mut stage = stage();
    stage.here().stage(1);
    stage.move_to_1_1();
    let (_, whole) = stage.copied("whole").stage(2);

    // One block of the running slot is worn: its chunk comes from the registry, and nothing else.
    let worn = stage.copied("worn");
    worn.damage(Slot::B, 10 * MIB, BLOCK);
    let (_, carried) = worn.stage(2);
    worn.holds(Slot::A, 2);
    assert!(carried > whole && carried < whole + 64 * KIB + 16 * KIB, "{carried}, {whole} without");

    // All of it is something else: found out soon, and asked for in large pieces.
    let other = stage.copied("other");
    other.damage(Slot::B, 0, CONTENT as usize);
    let (answer, carried) = other.stage(2);
    other.holds(Slot::A, 2);
    assert!(carried < CONTENT + ROOT / 16, "{carried}");
    assert!(moved(&answer, "requests") < 150, "{}", answer.said);
}

#[test]
fn a_killed_update_goes_on_with_the_indexes_of_before() {
    let mut stage = stage();
    stage.here().stage(1);
    stage.move_to_1_1();
    let (_, whole) = stage.copied("whole").stage(2);
    stage.line.set_pace(MIB / 2);
    let before = stage.line.carried();
    let mut update = stage.machine.command(&["update", "--stage", "--to", "1.2"]).spawn().unwrap();
    while stage.line.carried() - before < whole / 2 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    update.kill().unwrap();
    update.wait().unwrap();
    stage.line.set_pace(1 << 40);
    let (answer, carried) = stage.here().stage(2);
    stage.here().holds(Slot::A, 2);
    assert!(carried < whole + WORDS, "{carried} after a kill, {whole} in one go");
    assert!(moved(&answer, "copied") > 0, "{}", answer.said);
}

#[test]
fn a_patch_makes_most_of_the_change_out_of_what_runs() {
    let (_, chunks) = {
        let mut stage = stage();
        stage.here().stage(1);
        stage.move_to_1_1();
        stage.here().stage(2)
    };
    let mut stage = stage_with(true);
    stage.here().stage(1);
    stage.here().holds(Slot::B, 1);
    stage.move_to_1_1();
    let (_, patched) = stage.copied("patched").stage(2);
    assert!(patched < chunks * 3 / 4, "{patched} bytes with a patch, {chunks} without");

    // One block that it builds on is worn: what it makes of it is fetched, no more.
    let worn = stage.copied("worn");
    let at = content(1).len() as u64 / 6 / BLOCK as u64 * BLOCK as u64;
    worn.damage(Slot::B, at.min(CONTENT / 6) - 8 * BLOCK as u64, 4 * BLOCK);
    let (_, carried) = worn.stage(2);
    worn.holds(Slot::A, 2);
    assert!(carried < chunks + 128 * KIB, "{carried}, {chunks} by chunks");

    // The patch itself is damaged, cut short or gone behind its header: the chunks are fetched, from the frames of the release.
    let files = stage.patch_files();
    assert_eq!(files.len(), 2, "one patch to each version");
    let kept: Vec<Vec<u8>> = files.iter().map(|(path, _)| fs::read(path).unwrap()).collect();
    for name in ["noise behind the header", "cut in the middle", "gone"] {
        for ((path, bytes), kept) in files.iter().zip(&kept) {
            match name {
                "gone" => fs::remove_file(path).unwrap(),
                "cut in the middle" => fs::write(path, &kept[..kept.len() / 2]).unwrap(),
                _ => fs::write(
                    path,
                    [&kept[..*bytes as usize / 2], &noise(3, *bytes as usize - *bytes as usize / 2)].concat(),
                )
                .unwrap(),
            }
        }
        println!("{name}");
        let broken = stage.copied(name);
        let (_, carried) = broken.stage(2);
        broken.holds(Slot::A, 2);
        assert!(carried < chunks + patched + WORDS, "{name}: {carried} bytes, {chunks} by chunks alone");
        for ((path, _), kept) in files.iter().zip(&kept) {
            fs::write(path, kept).unwrap();
        }
    }
}
