//! `switchback doctor` by the real program: on a machine that is well, on machines that are not, and on a Debian that was
//! never made for Switchback.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use switchback::doctor::Level;
use switchback_bootloader::esp::{EspDir as _, FatEsp};
use switchback_partitions::device::disk::Disk as _;
use switchback_partitions::slot::Slot;
use switchback_tests::lab::registry::Registry;
use switchback_tests::lab::tools;
use switchback_tests::machine::{Answer, Machine, text};
use switchback_tests::scene::{SMALL_DISK, Scene, sha256};

const ROOT_BYTES: u64 = 8 << 20;
/// The exit code of `not-updatable`.
const NOT_UPDATABLE: i32 = 77;

/// A machine that runs 1.0 and follows `source`, started once.
fn machine(scene: &Scene, source: &str, more: &str) -> Machine {
    scene.release("1.0", true, ROOT_BYTES).unwrap();
    scene.desk.publish("1.0").unwrap();
    let key = scene.desk.path("os.pub");
    let mut machine = scene.machine(source, &[&key], more).unwrap();
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &SMALL_DISK).unwrap();
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    machine
}

/// Asks the doctor, and proves that nothing was written meanwhile.
fn examine(machine: &Machine, arguments: &[&str]) -> Answer {
    let (disk, state) = (sha256(&machine.disk()).unwrap(), listing(&machine.state_dir()));
    let answer = machine.ask(&[&["doctor"], arguments].concat()).unwrap();
    assert_eq!(sha256(&machine.disk()).unwrap(), disk, "the disk is other than before");
    assert_eq!(listing(&machine.state_dir()), state, "the state folder is other than before");
    answer
}

/// Every file of a folder with its length and time.
fn listing(folder: &Path) -> Vec<String> {
    let output = Command::new("find").arg(folder).args(["-printf", "%P %s %T@ %C@\n"]).output().unwrap();
    let mut lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn findings(answer: &Answer) -> Vec<&Value> {
    answer.said["findings"].as_array().unwrap().iter().collect()
}

/// The names of the findings with this result.
fn named(answer: &Answer, level: Level) -> Vec<&str> {
    let level = serde_json::to_value(level).unwrap();
    let of_level = findings(answer).into_iter().filter(|finding| finding["result"] == level);
    of_level.map(|finding| finding["name"].as_str().unwrap()).collect()
}

fn found<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let finding = findings(answer).into_iter().find(|finding| finding["name"] == name);
    finding.unwrap_or_else(|| panic!("no {name} in {}", answer.said))["found"].as_str().unwrap()
}

#[test]
fn a_machine_that_is_well_has_no_problem_and_is_left_as_it_was() {
    let scene = Scene::new().unwrap();
    let machine = machine(&scene, &scene.desk.reference("stable"), "");
    let answer = examine(&machine, &[]);
    assert_eq!(answer.code, 0, "{}", answer.said);
    assert_eq!(answer.said["answer"], "doctor");
    assert_eq!(answer.said["reason"], Value::Null);
    assert_eq!(named(&answer, Level::Problem), [""; 0]);
    assert_eq!(named(&answer, Level::Warning), [""; 0], "{}", answer.said);
    assert_eq!(found(&answer, "slot-a"), "demo-os 1.0");
    assert!(found(&answer, "slot-b").starts_with("empty"));
    assert!(
        found(&answer, "boot-state")
            .starts_with("slot a is confirmed, slot b has no entry; slot a starts next")
    );
    assert!(found(&answer, "facts").contains("nothing was ever recorded"), "{}", found(&answer, "facts"));
    assert!(found(&answer, "trust-key").contains(", id "));
    assert!(found(&answer, "esp-space").contains("fit twice"));
}

#[test]
fn every_thing_that_is_broken_is_named_and_the_exit_code_tells() {
    let scene = Scene::new().unwrap();
    let mut machine = machine(&scene, &scene.desk.reference("stable"), "");
    scene.release("1.1", true, ROOT_BYTES).unwrap();
    scene.desk.publish("1.1").unwrap();
    assert_eq!(machine.ask(&["update", "--reboot"]).unwrap().code, 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    let config = std::fs::read_to_string(machine.config()).unwrap();
    let set = |text: String| std::fs::write(machine.config(), text).unwrap();
    let expect = |what: &str, names: &[&str], words: &str| {
        let answer = examine(&machine, &[]);
        assert_eq!(answer.code, NOT_UPDATABLE, "{what}: {}", answer.said);
        assert_eq!(answer.said["reason"], "not-updatable");
        assert_eq!(named(&answer, Level::Problem), names, "{what}: {}", answer.said);
        assert!(found(&answer, names[0]).contains(words), "{what}: {}", found(&answer, names[0]));
    };

    set(config.replace("[trust.policy.os]\nkeys", "[trust.policy.os]\nkey"));
    expect(
        "no policy",
        &[
            "configuration",
            "layout",
            "running-slot",
            "protocol",
            "state-folder",
            "boot-check",
            "trust-policy",
            "source",
        ],
        "unknown field `key`",
    );
    set(config.split("[trust.policy.os]").next().unwrap().to_owned()
        + "[machine]"
        + config.split("[machine]").nth(1).unwrap());
    expect("no keys", &["trust-policy"], "there is no key");
    set(config.replace("os.pub", "vmlinuz"));
    expect("a key that is none", &["trust-policy", "trust-key"], "no key can be read");
    scene.desk.run(&["image", "keygen", "other"]).unwrap();
    set(config.replace("os.pub", "other.pub"));
    expect("a key of somebody else", &["slot-b"], "does not accept what runs here");
    set(config.replace(":stable", ":absent"));
    expect("no such tag", &["registry-tag"], "it is not there");
    set(config.clone());

    // What is no problem, and has to be said all the same: the facts of one copy, an entry with two names.
    let copy = machine.state_dir().join("facts-1");
    let mut bytes = std::fs::read(&copy).unwrap();
    bytes[70] ^= 1;
    std::fs::write(&copy, bytes).unwrap();
    let esp = || FatEsp::new(machine.image().unwrap().partition(&machine.layout().unwrap().esp).unwrap());
    let entry = esp().read("loader/entries/switchback-b-2.conf", 4096).unwrap();
    esp().write_tmp("loader/entries/switchback-b-2+2-1.conf", &mut &*entry).unwrap();
    let answer = examine(&machine, &[]);
    assert_eq!(answer.code, 0, "{}", answer.said);
    assert_eq!(named(&answer, Level::Warning), ["boot-entry-twice", "facts"]);
    assert!(found(&answer, "facts").contains("facts-1 is damaged"));
    esp().remove("loader/entries/switchback-b-2+2-1.conf").unwrap();

    let space = esp().space().unwrap();
    let rest = vec![0; usize::try_from(space.free_bytes - 2 * space.cluster_bytes).unwrap()];
    esp().write_tmp("full", &mut &*rest).unwrap();
    expect("a full boot partition", &["esp-space"], "do not fit once more");
    esp().remove("full").unwrap();
    assert_eq!(examine(&machine, &[]).code, 0, "all of it is mended");
}

#[test]
fn a_registry_is_asked_once_and_what_it_refuses_is_told_apart() {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let host = registry.host();
    let machine = machine(&scene, &format!("{host}/os:stable"), &format!("plain_http = [\"{host}\"]"));
    let absent = examine(&machine, &[]);
    assert_eq!((absent.code, named(&absent, Level::Problem)), (NOT_UPDATABLE, vec!["registry-tag"]));
    scene.desk.push("1.0", &format!("{host}/os"), &["--plain-http", &host, "--tag", "stable"]).unwrap();
    let there = examine(&machine, &[]);
    assert_eq!(there.code, 0, "{}", there.said);
    assert!(found(&there, "registry-tag").starts_with("is sha256:"));
    drop(registry);
    let gone = examine(&machine, &[]);
    assert_eq!((gone.code, named(&gone, Level::Problem)), (NOT_UPDATABLE, vec!["registry-reachable"]));
    let offline = examine(&machine, &["--offline"]);
    assert_eq!(offline.code, 0, "{}", offline.said);
    assert_eq!(found(&offline, "registry-reachable"), "not asked: --offline");
    let config = std::fs::read_to_string(machine.config()).unwrap();
    std::fs::write(machine.config(), config.replace("plain_http", "auth_file = \"absent.json\"\nplain_http"))
        .unwrap();
    let credentials = examine(&machine, &["--offline"]);
    assert_eq!(named(&credentials, Level::Problem), ["registry-credentials"], "{}", credentials.said);
    assert!(found(&credentials, "registry-credentials").contains("absent.json"));
}

#[test]
fn mirrors_are_asked_and_one_that_is_away_stops_no_update() {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let host = registry.host();
    let gone = "127.0.0.1:1";
    let more = format!(
        "plain_http = [\"{host}\", \"{gone}\"]\nmirrors = [\"{host}/cache\", \"{gone}/os\", \"oci:stick\"]"
    );
    let machine = machine(&scene, &format!("{host}/os:stable"), &more);
    scene.desk.push("1.0", &format!("{host}/os"), &["--plain-http", &host, "--tag", "stable"]).unwrap();
    let answer = examine(&machine, &[]);
    assert_eq!(answer.code, 0, "{}", answer.said);
    let mirrors: Vec<[&str; 2]> = findings(&answer)
        .into_iter()
        .filter(|finding| finding["name"] == "mirror-reachable")
        .map(|finding| ["result", "found"].map(|field| finding[field].as_str().unwrap()))
        .collect();
    assert_eq!((mirrors[0], mirrors[2]), (["ok", "answers"], ["note", "is not there now"]));
    assert!(mirrors[1][0] == "warning" && mirrors[1][1].contains("no answer"), "{mirrors:?}");

    let config = std::fs::read_to_string(machine.config()).unwrap();
    std::fs::write(machine.config(), config.replace("/cache\"", "/cache:stable\"")).unwrap();
    let tagged = examine(&machine, &["--offline"]);
    assert_eq!((tagged.code, named(&tagged, Level::Problem)), (NOT_UPDATABLE, vec!["mirror-reachable"]));
    assert!(found(&tagged, "mirror-reachable").contains("without tag or digest"), "{}", tagged.said);
}

/// A private mount table in which this machine is a Debian root with nothing of ours: no state folder, an empty `/etc`.
fn plain_debian(script: &str) -> Command {
    let mut command = Command::new(tools::program("unshare", "util-linux").unwrap());
    let namespace = match nix::unistd::geteuid().is_root() {
        true => ["--mount", "--propagation=private"].as_slice(),
        false => ["--user", "--map-root-user", "--mount"].as_slice(),
    };
    command.args(namespace).args(["--", "sh", "-euc", script, "sh"]).arg(tools::switchback().unwrap());
    command
}

#[test]
fn a_plain_debian_without_slots_is_told_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let before = folder.path().join("before");
    // Whatever this machine has of Switchback is hidden; /sys is that of a machine without disks.
    let script = format!(
        "mount -t tmpfs none /etc; mount -t tmpfs none /var; mount -t tmpfs none /sys; mkdir /var/lib\n\
         find /etc /var /sys >{0}; code=0; \"$1\" doctor --json || code=$?\n\
         find /etc /var /sys | cmp - {0} >&2; exit $code",
        before.display()
    );
    let output = plain_debian(&script).output().unwrap();
    let answer = Answer::of(&output).unwrap();
    assert_eq!(answer.code, NOT_UPDATABLE, "{}{}", answer.said, answer.told);
    assert_eq!(answer.told, "", "it left something behind");
    let problems = named(&answer, Level::Problem);
    for missing in ["layout", "running-slot", "protocol", "state-folder", "trust-policy", "source"] {
        assert!(problems.contains(&missing), "{missing} is not missed: {problems:?}");
    }
    for finding in findings(&answer) {
        let needs_remedy = finding["result"] == "problem" || finding["result"] == "warning";
        assert_eq!(needs_remedy, finding["remedy"].is_string(), "{finding}");
    }
}

#[test]
fn the_text_fits_a_narrow_terminal_and_has_no_colour() {
    let nowhere = PathBuf::from("/nonexistent/config.toml");
    let mut command = Command::new(tools::switchback().unwrap());
    let output = command.args(["doctor", "--offline", "--config"]).arg(&nowhere).output().unwrap();
    assert_eq!(output.status.code(), Some(NOT_UPDATABLE));
    let said = text(&output.stdout);
    assert!(said.lines().all(|line| line.chars().count() <= 80 && line == line.trim_end()), "{said}");
    assert!(!said.contains('\u{1b}'), "a file gets no colour");
    assert!(said.starts_with("Program and settings\nPROBLEM  configuration  "), "{said}");
    assert!(said.contains("; nothing was changed.\nThis machine cannot be updated"), "{said}");
}
