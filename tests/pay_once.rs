//! An install of 1 GiB that is killed at twenty points taken at random: how many bytes the registry sends in all.
//!
//! Too long for every run of the tests: `make pay-once`.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use switchback_partitions::device::BlockDevice as _;
use switchback_partitions::device::disk::Disk as _;
use switchback_partitions::slot::Slot;
use switchback_tests::lab::registry::Registry;
use switchback_tests::scene::Scene;
use switchback_tests::slow_line::SlowLine;
use switchback_tests::small_release::noise;

const MIB: u64 = 1 << 20;
const ROOT: u64 = 1024 * MIB;
const KILLS: u64 = 20;
/// What the updater flushes and writes down at a time.
const JOURNAL_INTERVAL: u64 = 64 * MIB;

#[test]
fn every_byte_is_paid_for_about_once_however_often_the_updater_dies() {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let line = SlowLine::to(&registry.host(), 256 * MIB).unwrap();
    let image = scene.desk.path("root.img");
    for (version, bytes) in [("1.0", 4 * MIB), ("1.1", ROOT)] {
        let mut content = Vec::new();
        // No chunk of it is like another.
        for part in 0..bytes / (4 * MIB) {
            content.extend(noise(part + bytes, (4 * MIB) as usize));
        }
        fs::write(&image, content).unwrap();
        scene.desk.build_partition(version, "root.img", &["--foreign"]).unwrap();
        scene.desk.sign(&scene.desk.reference(version), &[]).unwrap();
        let host = registry.host();
        let more = ["--plain-http", &host, "--with-signatures"];
        scene.desk.push(version, &format!("{host}/os"), &more).unwrap();
    }
    let key = scene.desk.path("os.pub");
    let plain = format!("plain_http = [\"{}\"]", line.host());
    let mut machine = scene.machine(&format!("{}/os:1.1", line.host()), &[&key], &plain).unwrap();
    let sizes = ["--size", "3G", "--slot-size", "1G", "--esp-size", "64M", "--state-size", "16M"];
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &sizes).unwrap();
    machine.pretend(Slot::A).unwrap();

    // The seed is printed, so that a run which fails can be had again.
    let seed = std::env::var("SWITCHBACK_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| std::process::id().into());
    println!("SWITCHBACK_SEED={seed}");
    let points = noise(seed, 8 * KILLS as usize);
    let points = points.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes) % (ROOT / 8));
    let order = |machine: &switchback_tests::machine::Machine| -> Command {
        let mut order = machine.command(&["update", "--stage", "--json"]);
        order.stdout(Stdio::null()).stderr(Stdio::null());
        order
    };
    let begin = line.carried();
    let mut killed = 0;
    for point in points {
        let from = line.carried();
        let mut update = order(&machine).spawn().unwrap();
        while line.carried() - from < point && update.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        killed += u64::from(update.try_wait().unwrap().is_none());
        update.kill().unwrap();
        update.wait().unwrap();
    }
    let last = machine.ask(&["update", "--stage"]).unwrap();
    assert_eq!(last.code, 0, "{} {}", last.said, last.told);
    let served = line.carried() - begin;
    let blob = fs::metadata(&image).unwrap().len();
    println!(
        "{killed} kills in an install of {} MiB: {} MiB served in all, {:.2} journal intervals more than once",
        blob / MIB,
        served / MIB,
        served.saturating_sub(blob) as f64 / JOURNAL_INTERVAL as f64
    );
    assert!(served <= ROOT + KILLS * JOURNAL_INTERVAL, "{served}");
    let layout = machine.layout().unwrap();
    let root = machine.image().unwrap().partition(&layout.slot(Slot::B).root).unwrap();
    let (expected, mut found) = (fs::read(&image).unwrap(), vec![0; ROOT as usize]);
    root.read_at(0, &mut found).unwrap();
    assert!(found == expected, "the slot is what was built");
    assert!(killed >= KILLS / 2, "only {killed} runs were killed: the points lie too far");
}
