//! What the program makes of a machine's health and of how its starts ended, on a machine in a file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use serde_json::Value;
use switchback_partitions::slot::Slot;
use switchback_tests::lab::registry::Registry;
use switchback_tests::machine::{Machine, text};
use switchback_tests::scene::{SMALL_DISK, Scene};

const ROOT_BYTES: u64 = 8 << 20;

/// The built-in check's outcome and words; the machine's root brings no other.
fn built_in(machine: &Machine) -> (i32, String) {
    let answer = machine.ask(&["health"]).unwrap();
    let checks = answer.said["checks"].as_array().unwrap();
    assert_eq!((checks.len(), &checks[0]["name"]), (1, &"can-update-again".into()), "{}", answer.said);
    (answer.code, checks[0]["detail"].as_str().unwrap_or_default().to_owned())
}

fn well() -> (i32, String) {
    (0, String::new())
}

#[test]
fn a_machine_without_checks_is_well_when_it_can_take_a_release_as_it_could_before() {
    let scene = Scene::new().unwrap();
    let registry = Registry::start(&scene.folder().join("registry")).unwrap();
    let host = registry.host();
    let plain = ["--plain-http", &host, "--with-signatures", "--tag", "stable"];
    for version in ["1.0", "1.1"] {
        scene.release(version, true, ROOT_BYTES).unwrap();
        scene.desk.push(version, &format!("{host}/os"), &plain).unwrap();
    }
    let key = scene.desk.path("os.pub");
    let more = format!("plain_http = [\"{host}\"]\n[health]\ndeadline = \"4s\"");
    let source = format!("{host}/os:stable");
    let mut machine = scene.machine(&source, &[&key], &more).unwrap();
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &SMALL_DISK).unwrap();
    assert_eq!(machine.start().unwrap(), Some(Slot::A));
    let root = machine.state_dir().with_file_name("root");
    std::fs::remove_dir_all(root.join("usr/lib/switchback/health.d")).unwrap();
    assert_eq!(built_in(&machine), well());
    let configured = std::fs::read_to_string(machine.config()).unwrap();
    let with = |from: &str, to: &str| {
        assert!(configured.contains(from), "{configured}");
        std::fs::write(machine.config(), configured.replace(from, to)).unwrap();
    };

    // A registry that never answered is not missed.
    with(&source, "127.0.0.1:1/os:stable");
    assert_eq!(built_in(&machine), well());
    // Looking is no proof; an update is.
    with("", "");
    assert_eq!(machine.ask(&["check"]).unwrap().code, 0);
    assert!(!machine.state_dir().join("registry-reached").exists());
    assert_eq!(machine.ask(&["update", "--stage"]).unwrap().said["outcome"], "staged");
    assert_eq!(built_in(&machine), well());
    // It answers that the tag is gone: nothing that this release could be blamed for.
    with(&source, &format!("{host}/os:gone"));
    assert_eq!(built_in(&machine), well());

    with("", "");
    drop(registry);
    let (code, said) = built_in(&machine);
    assert_eq!(code, 50);
    let expected = format!("{host}/os gave this machine a release before, and cannot be used now: ");
    assert!(said.starts_with(&expected) && said.contains("refused"), "{said}");
    // Another registry, or a folder, was not there before.
    for other in
        ["127.0.0.1:1/os:stable".to_owned(), format!("oci:{}:1.0", scene.folder().join("no").display())]
    {
        with(&source, &other);
        assert_eq!(built_in(&machine), well(), "{other}");
    }

    // What every update needs.
    with(&key.display().to_string(), "/no/such/key.pub");
    let (code, said) = built_in(&machine);
    assert!(code == 50 && said.starts_with("no release could be accepted: while reading the key"), "{said}");
    with(&source, "127.0.0.1:1/os:stable");
    std::fs::create_dir(machine.state_dir().join("can-write.new")).unwrap();
    let (code, said) = built_in(&machine);
    assert!(code == 50 && said.starts_with("the state folder cannot be written"), "{said}");
}

/// What the kernel of an unlucky machine leaves.
const PANIC: &str = "Panic#1 Part1\n<0>Kernel panic - not syncing: sysrq triggered crash\n";
/// `WDIOF_CARDRESET`, and one flag more.
const CARD_RESET: &str = "33\n";

/// A machine that runs 1.0 from slot A, confirmed, with 1.1 published, well or not.
fn machine_before_1_1(healthy: bool) -> (Scene, Machine) {
    let scene = Scene::new().unwrap();
    scene.release("1.0", true, ROOT_BYTES).unwrap();
    scene.release("1.1", healthy, ROOT_BYTES).unwrap();
    scene.desk.publish("1.1").unwrap();
    let key = scene.desk.path("os.pub");
    let mut machine = scene.machine(&scene.desk.reference("stable"), &[&key], "").unwrap();
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &SMALL_DISK).unwrap();
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    (scene, machine)
}

/// A file of what stands for the kernel.
fn kernel(machine: &Machine, path: &str, content: &str) -> std::path::PathBuf {
    let path = machine.state_dir().with_file_name("kernel").join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path
}

/// Spends every try of 1.1 without a verdict; the machine is on 1.0 again.
fn spend_all_tries(machine: &mut Machine) {
    assert_eq!(machine.ask(&["update", "--reboot"]).unwrap().code, 0);
    for _ in 0..3 {
        assert_eq!(machine.start().unwrap(), Some(Slot::B));
    }
    assert_eq!(machine.start().unwrap(), Some(Slot::A));
}

fn logs(machine: &Machine) -> Vec<Value> {
    machine.ask(&["logs"]).unwrap().said["logs"].as_array().unwrap().clone()
}

#[test]
fn a_crash_record_or_the_watchdog_tells_why_a_trial_came_back_and_nothing_is_guessed_without() {
    for (pstore, watchdog, reason) in [
        (Some(PANIC), None, "panicked"),
        (Some(PANIC), Some(CARD_RESET), "panicked"),
        (None, Some(CARD_RESET), "watchdog-reset"),
        (Some("Oops#1 Part1\n<1>a bad pointer\n"), Some("0\n"), "died-early"),
        (None, None, "died-early"),
    ] {
        let (_scene, mut machine) = machine_before_1_1(true);
        spend_all_tries(&mut machine);
        let record = pstore.map(|text| kernel(&machine, "pstore/dmesg-efi_pstore-1", text));
        watchdog.map(|text| kernel(&machine, "sys/class/watchdog/watchdog0/bootstatus", text));
        let check = machine.ask(&["boot-check"]).unwrap();
        assert_eq!(
            (&check.said["verdict"], &check.said["reason"]),
            (&"returned".into(), &reason.into()),
            "{}",
            check.said
        );
        let status = machine.ask(&["status"]).unwrap().said;
        assert_eq!(status["quarantine"][0]["reason"], reason);
        let history = machine.ask(&["history"]).unwrap().said["entries"][0].clone();
        assert_eq!((&history["reason"], &history["log"]), (&reason.into(), &pstore.is_some().into()));
        if let (Some(record), Some(text)) = (record, pstore) {
            assert!(!record.exists(), "the kernel's memory is free for the next crash");
            let logs = logs(&machine);
            assert_eq!(logs.len(), 1);
            assert_eq!(
                (&logs[0]["version"], &logs[0]["slot"], &logs[0]["crash"]),
                (&"1.1".into(), &"b".into(), &text.trim_end().into())
            );
            assert_eq!(check.said["log"], "1.1");
        }
        // The watchdog's word stays for this start, and is about no trial any more.
        assert_eq!(machine.ask(&["boot-check"]).unwrap().said["verdict"], "nothing");
        println!("{pstore:?} {watchdog:?}: {reason}: {}", history["detail"]);
    }
}

#[test]
fn a_failed_trial_leaves_its_checks_and_the_kernels_log() {
    let (_scene, mut machine) = machine_before_1_1(false);
    kernel(
        &machine,
        "kmsg",
        "6,1,1500000,-;demo: starting\n SUBSYSTEM=x\n3,2,2500000,-;demo: disk is slow\n",
    );
    assert_eq!(machine.ask(&["update", "--reboot"]).unwrap().code, 0);
    let boot = machine.power_on().unwrap();
    assert_eq!((boot.slot, boot.starts), (Slot::A, 2));
    let pointer = "`switchback logs 1.1` shows the log of the trial.\n";
    assert!(boot.said.iter().all(|said| said.contains(pointer)), "{:?}", boot.said);
    let kept = logs(&machine);
    assert_eq!(kept.len(), 1, "one for the trial, not one for each start");
    assert_eq!(
        (&kept[0]["checks"][0]["outcome"], &kept[0]["why"]["reason"]),
        (&"failed".into(), &"health-failed".into())
    );
    assert_eq!(kept[0]["kernel"], "[    1.500000] demo: starting\n[    2.500000] demo: disk is slow");
    let shown = |arguments: &[&str]| {
        let output = machine.run(arguments).unwrap();
        assert_eq!(output.status.code(), Some(0));
        text(&output.stdout)
    };
    let digest = kept[0]["digest"].as_str().unwrap();
    for named in [None, Some("1.1"), Some(digest), Some(&digest[..19]), Some(&digest[7..19])] {
        let shown = shown(&[&["logs"][..], named.as_slice()].concat());
        for part in ["failed its trial", "cannot find its database", "[    2.500000] demo: disk is slow"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
    assert_eq!(shown(&["logs", "1.0"]), "No log is kept of such a start.\n");
    assert!(shown(&["history"]).ends_with("`switchback logs 1.1` shows the log of its trial.\n"));

    // A crash that ended no trial is kept by itself.
    let record = kernel(&machine, "pstore/dmesg-efi_pstore-2", PANIC);
    assert_eq!(machine.ask(&["boot-check"]).unwrap().said["verdict"], "nothing");
    assert!(!record.exists());
    let kept = logs(&machine);
    assert_eq!(kept.len(), 2);
    assert_eq!((&kept[1]["outcome"], &kept[1]["version"]), (&Value::Null, &"1.0".into()));
    assert!(shown(&["logs"]).starts_with("also kept: 1.1 (sha256:"));
    let no_changes = machine.ask(&["logs", "--detailed-exitcode"]).unwrap();
    assert_eq!(no_changes.code, 0);
}

#[test]
fn a_log_that_cannot_be_written_costs_only_the_log() {
    let (_scene, mut machine) = machine_before_1_1(false);
    std::fs::write(machine.state_dir().join("logs"), "in the way").unwrap();
    assert_eq!(machine.ask(&["update", "--reboot"]).unwrap().code, 0);
    let record = kernel(&machine, "pstore/dmesg-efi_pstore-1", PANIC);
    let boot = machine.power_on().unwrap();
    assert_eq!((boot.slot, boot.starts), (Slot::A, 2), "{:?}", boot.said);
    assert!(boot.said[0].contains("the log of the failed trial could not be kept"), "{:?}", boot.said);
    assert!(boot.said[1].contains("The machine came back"), "{:?}", boot.said);
    assert!(record.exists(), "what was not kept is not thrown away");
    assert_eq!(logs(&machine).len(), 0);
}
