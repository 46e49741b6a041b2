//! An update that is stopped, killed or met by a second one: what was paid for is kept, and the next run goes on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::BufRead as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use switchback_partitions::slot::Slot;
use switchback_tests::lab::registry::Registry;
use switchback_tests::machine::{Answer, Machine};
use switchback_tests::scene::{Scene, sha256};
use switchback_tests::slow_line::SlowLine;
use switchback_tests::small_release::noise;

const MIB: u64 = 1 << 20;
/// Bytes of the slot, noise first, then zeros: well above two flushes of the journal.
const ROOT_BYTES: u64 = 288 * MIB;
const NOISE_BYTES: u64 = 256 * MIB;
/// The program flushes and journals once in so many bytes: what a kill may cost.
const JOURNAL_EVERY_BYTES: u64 = 64 * MIB;
/// Bytes that may be on the line when the program dies: socket buffers and frames between its stages.
const UNDER_WAY_BYTES: u64 = 24 * MIB;
const FAST: u64 = 4 << 30;

struct Stage {
    _scene: Scene,
    _registry: Registry,
    line: SlowLine,
    machine: Machine,
}

/// A machine in front of a registry at the end of a slow line; 1.1 is large and not installed yet. Nothing is started
/// here, so the roots need no file system.
fn stage() -> Stage {
    stage_of(NOISE_BYTES, ROOT_BYTES)
}

fn stage_of(noise_bytes: u64, root_bytes: u64) -> Stage {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let line = SlowLine::to(&registry.host(), FAST).unwrap();
    for (version, noise_bytes, bytes) in [("1.0", MIB, 4 * MIB), ("1.1", noise_bytes, root_bytes)] {
        let image = scene.desk.path("root.img");
        scene.desk.boot_files(noise_bytes).unwrap();
        std::fs::write(&image, noise(noise_bytes, noise_bytes as usize)).unwrap();
        std::fs::File::options().write(true).open(&image).unwrap().set_len(bytes).unwrap();
        scene.desk.build_partition(version, "root.img", &["--foreign"]).unwrap();
        let reference = scene.desk.reference(version);
        scene.desk.sign(&reference, &[]).unwrap();
        let host = registry.host();
        let more = ["--plain-http", &host, "--with-signatures"];
        scene.desk.push(version, &format!("{host}/os"), &more).unwrap();
        std::fs::remove_file(image).unwrap();
    }
    let key = scene.desk.path("os.pub");
    let source = format!("{}/os:1.1", line.host());
    let plain = format!("plain_http = [\"{}\"]", line.host());
    let mut machine = scene.machine(&source, &[&key], &plain).unwrap();
    let sizes = ["--size", "1G", "--slot-size", "288M", "--esp-size", "64M", "--state-size", "16M"];
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &sizes).unwrap();
    machine.pretend(Slot::A).unwrap();
    Stage { _scene: scene, _registry: registry, line, machine }
}

fn begin(machine: &Machine) -> Child {
    let mut update = machine.command(&["update", "--json", "--progress", "json"]);
    update.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(child: Child) -> Answer {
    Answer::of(&child.wait_with_output().unwrap()).unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

/// Waits until the line carried `bytes` since `from`.
fn wait_for(line: &SlowLine, from: u64, bytes: u64) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while line.carried() - from < bytes {
        assert!(Instant::now() < deadline, "{} bytes came in two minutes", line.carried() - from);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that the journal promises to the next run.
fn journaled(machine: &Machine) -> u64 {
    let Ok(text) = std::fs::read(machine.state_dir().join("journal.json")) else { return 0 };
    serde_json::from_slice::<Value>(&text).unwrap()["done_bytes"].as_u64().unwrap()
}

fn boot_states(machine: &Machine) -> [Value; 2] {
    let status = machine.ask(&["status"]).unwrap();
    assert_eq!(status.code, 0, "{}", status.said);
    [0, 1].map(|slot: usize| status.said["slots"][slot]["boot"]["state"].clone())
}

#[test]
fn a_stopped_update_says_so_and_the_next_run_fetches_only_the_rest() {
    let stage = stage();
    let (line, machine) = (&stage.line, &stage.machine);
    let before = sha256(&machine.disk()).unwrap();
    line.set_pace(64 * MIB);
    let from = line.carried();
    let update = begin(machine);
    wait_for(line, from, 100 * MIB);

    // Meanwhile nobody else changes anything, and everybody may look.
    let second = machine.ask(&["update"]).unwrap();
    assert_eq!((second.code, &second.said["reason"]), (70, &"busy".into()), "{}", second.said);
    assert_eq!(boot_states(machine), ["good", "empty"]);

    signal(&update, Signal::SIGINT);
    let asked = Instant::now();
    let stopped = end(update);
    let latency = asked.elapsed();
    assert_eq!((stopped.code, &stopped.said["reason"]), (73, &"interrupted".into()), "{}", stopped.said);
    assert!(latency < Duration::from_secs(10), "{latency:?}");
    let (first, kept) = (line.carried() - from, journaled(machine));
    assert_ne!(before, sha256(&machine.disk()).unwrap(), "it had begun");
    assert_eq!(boot_states(machine), ["good", "empty"]);
    assert!(kept + UNDER_WAY_BYTES >= first, "a stop loses nothing: {first} came, {kept} are kept");

    line.set_pace(FAST);
    let from = line.carried();
    let second = machine.ask(&["update"]).unwrap();
    assert_eq!((second.code, &second.said["outcome"]), (0, &"armed".into()), "{}", second.said);
    let (fetched, rest) = (second.number("/traffic/fetched").unwrap(), line.carried() - from);
    assert!(
        second.number("/traffic/kept").unwrap() >= kept - 2 * MIB,
        "{} of {kept}",
        second.said["traffic"]
    );
    assert!(rest < NOISE_BYTES - kept + UNDER_WAY_BYTES, "{rest}");
    println!(
        "stopped {latency:?} after Ctrl-C at {} MiB; {} MiB kept, {} MiB fetched by the second run ({rest} bytes on the line)",
        first / MIB,
        kept / MIB,
        fetched / MIB
    );
}

#[test]
fn an_update_killed_again_and_again_pays_for_little_twice_and_ends_well() {
    let stage = stage();
    let (line, machine) = (&stage.line, &stage.machine);
    let seed =
        std::env::var("SWITCHBACK_SEED").map_or_else(|_| std::process::id(), |seed| seed.parse().unwrap());
    // Where in the download each kill comes, in MiB of that run. Two are beyond what one flush covers, and all of them end
    // well before the image does: a run that has everything before it is killed proves nothing of kills.
    let kills = [3 + seed % 20, 30 + seed % 17, 68 + seed % 13, 66 + seed % 11].map(u64::from);
    println!("kills after {kills:?} MiB (repeat with SWITCHBACK_SEED={seed})");
    assert!(kills.iter().sum::<u64>() * MIB + UNDER_WAY_BYTES <= NOISE_BYTES);
    let whole_from = line.carried();
    let mut reach = 0;
    for kill_at in kills {
        line.set_pace(96 * MIB);
        let from = line.carried();
        let mut update = begin(machine);
        wait_for(line, from, kill_at * MIB);
        signal(&update, Signal::SIGKILL);
        assert!(!update.wait().unwrap().success());
        let now = journaled(machine);
        assert!(now >= reach, "the journal never goes back: {reach}, {now}");
        let came = line.carried() - from;
        assert!(
            now - reach + JOURNAL_EVERY_BYTES + UNDER_WAY_BYTES >= came,
            "{came} bytes came, {reach} → {now} journaled"
        );
        reach = now;
        assert_eq!(boot_states(machine), ["good", "empty"], "half a slot is never armed");
    }
    assert!(reach >= JOURNAL_EVERY_BYTES, "some of it was kept: {reach}");
    line.set_pace(FAST);
    let last = machine.ask(&["update"]).unwrap();
    assert_eq!((last.code, &last.said["outcome"]), (0, &"armed".into()), "{}", last.said);
    let all = line.carried() - whole_from;
    let fetched = last.number("/traffic/fetched").unwrap();
    // The journal counts the slot's bytes; what of them is zero was never on the line.
    let kept = last.number("/traffic/kept").unwrap() + last.number("/traffic/zero").unwrap();
    assert!(kept + 2 * MIB >= reach, "{reach} were journaled, {}", last.said["traffic"]);
    assert!(
        fetched + reach <= NOISE_BYTES + UNDER_WAY_BYTES,
        "{reach} were journaled, {}",
        last.said["traffic"]
    );
    assert_eq!(boot_states(machine), ["good", "trial"]);
    // Besides the image itself: what was under way at each kill and never reached the slot, and the boot files.
    let lost = all - NOISE_BYTES;
    assert!(lost <= kills.len() as u64 * UNDER_WAY_BYTES + 16 * MIB, "{lost} bytes were paid for twice");
    println!(
        "{} kills: {} MiB on the line for {} MiB, {} MiB of them by the last run",
        kills.len(),
        all / MIB,
        NOISE_BYTES / MIB,
        fetched / MIB
    );
}

#[test]
fn a_kill_while_reading_back_leaves_the_slot_unarmed_and_nothing_to_fetch() {
    let stage = stage();
    let machine = &stage.machine;
    // A slot that lies there is read back as a whole; one that was just written was read behind the writer.
    let staged = machine.ask(&["update", "--stage"]).unwrap();
    assert_eq!(staged.code, 0, "{}", staged.said);
    let mut ends = Vec::new();
    for millis in [0, 100, 300] {
        let mut update = begin(machine);
        let mut told = std::io::BufReader::new(update.stderr.take().unwrap()).lines().map_while(Result::ok);
        told.find(|line| line.contains("\"prove\"")).expect("the reading back is announced");
        std::thread::sleep(Duration::from_millis(millis));
        signal(&update, Signal::SIGKILL);
        update.wait().unwrap();
        let states = boot_states(machine);
        assert!(states[0] == "good" && states[1] != "good", "{states:?}");
        // Reading all of it back takes longer than nothing at all.
        assert!(millis > 0 || states[1] == "empty", "{states:?}");
        ends.push(states[1].as_str().unwrap().to_owned());
        if states[1] != "empty" {
            break;
        }
    }
    let last = machine.ask(&["update"]).unwrap();
    assert_eq!(last.code, 0, "{}", last.said);
    assert_eq!(last.number("/traffic/fetched").unwrap(), 0, "{}", last.said);
    assert_eq!(boot_states(machine), ["good", "trial"]);
    println!("killed while reading back: then {ends:?}; the last run fetched nothing");
}

#[test]
fn a_stop_is_heard_while_the_registry_is_silent() {
    let stage = stage_of(32 * MIB, 32 * MIB);
    let (line, machine) = (&stage.line, &stage.machine);
    for (moment, bytes) in
        [("before the first answer", 0), ("in the slot", 12 * MIB), ("in the boot files", 34 * MIB)]
    {
        line.set_pace(24 * MIB);
        let from = line.carried();
        if bytes == 0 {
            line.set_pace(0);
        }
        let update = begin(machine);
        wait_for(line, from, bytes.saturating_sub(journaled(machine)));
        line.set_pace(0);
        std::thread::sleep(Duration::from_millis(500));
        signal(&update, Signal::SIGINT);
        let asked = Instant::now();
        let stopped = end(update);
        let latency = asked.elapsed();
        assert_eq!(
            (stopped.code, &stopped.said["reason"]),
            (73, &"interrupted".into()),
            "{moment}: {}",
            stopped.said
        );
        assert!(latency < Duration::from_secs(5), "{moment}: {latency:?}");
        assert_eq!(boot_states(machine), ["good", "empty"]);
        println!("silence {moment}: stopped after {latency:?}, {} bytes journaled", journaled(machine));
    }
    line.set_pace(FAST);
    let last = machine.ask(&["update"]).unwrap();
    assert_eq!((last.code, &last.said["outcome"]), (0, &"armed".into()), "{}", last.said);
    assert!(last.number("/traffic/kept").unwrap() >= 30 * MIB, "{}", last.said);
}
