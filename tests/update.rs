//! The life of updates on one machine, from order to confirmation or return, by the real program on a disk image.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Instant;

use serde_json::Value;
use switchback_bootloader::esp::{EspDir as _, FatEsp};
use switchback_partitions::device::disk::Disk as _;
use switchback_partitions::slot::Slot;
use switchback_tests::disk_shot::{DiskShot, read};
use switchback_tests::machine::{Machine, text};
use switchback_tests::scene::sha256;
use switchback_tests::story::{ROOT_BYTES, ask, boot_of, history, machine_with_1_0, publish, status};

/// What the machine grants a trial unless configured otherwise.
const TRIES: u32 = 3;

#[test]
fn a_release_is_tried_confirmed_left_taken_again_and_a_bad_one_comes_back_for_ever() {
    let began = Instant::now();
    let (scene, mut machine) = machine_with_1_0();
    let good = publish(&scene, "1.1", true);
    let check = ask(&machine, &["check"], 0);
    assert_eq!(
        (&check.said["available"], &check.said["release"]["digest"]),
        (&true.into(), &good.clone().into())
    );

    // Forward: every byte of the root is written or zero, and the program says that something changed.
    let update = ask(&machine, &["update", "--reboot", "--detailed-exitcode"], 2);
    assert_eq!(update.said["outcome"], "rebooting");
    assert_eq!(
        update.number("/traffic/written").unwrap() + update.number("/traffic/zero").unwrap(),
        ROOT_BYTES
    );
    let fetched = update.number("/traffic/fetched").unwrap();
    assert!(fetched >= ROOT_BYTES / 2, "half of the root is noise: {fetched}");
    let boot = machine.power_on().unwrap();
    assert_eq!((boot.slot, boot.starts), (Slot::B, 1));
    assert_eq!(boot_of(&machine, Slot::B), "good");
    assert_eq!(ask(&machine, &["update", "--detailed-exitcode"], 0).said["outcome"], "unchanged");

    // Back: not one byte is fetched; what was left is held.
    let back = ask(&machine, &["rollback", "--reboot", "--detailed-exitcode"], 2);
    assert_eq!((back.number("/traffic/fetched").unwrap(), back.number("/traffic/written").unwrap()), (0, 0));
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    assert_eq!(status(&machine)["held"], good.clone());
    assert_eq!(ask(&machine, &["update"], 17).said["reason"], "held");
    assert_eq!(ask(&machine, &["check"], 0).said["reason"], "held");

    // Forward again, named: not one byte is fetched or written.
    let again = ask(&machine, &["update", "--to", "1.1", "--reboot"], 0);
    assert_eq!(
        (again.number("/traffic/fetched").unwrap(), again.number("/traffic/written").unwrap()),
        (0, 0)
    );
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    assert_eq!(status(&machine)["held"], Value::Null, "a confirmed release is not held");

    // A bad one comes back by itself and is never taken again.
    let bad = publish(&scene, "1.2", false);
    ask(&machine, &["update", "--reboot"], 0);
    let boot = machine.power_on().unwrap();
    assert_eq!((boot.slot, boot.starts), (Slot::B, 2), "{:?}", boot.said);
    let now = status(&machine);
    let quarantine = now["quarantine"].as_array().unwrap();
    assert_eq!(quarantine.len(), 1);
    assert_eq!(
        (&quarantine[0]["digest"], &quarantine[0]["reason"]),
        (&bad.clone().into(), &"health-failed".into())
    );
    assert_eq!(now["slots"][0]["quarantined"], true);
    assert_eq!(ask(&machine, &["update"], 16).said["reason"], "quarantined");
    assert_eq!(ask(&machine, &["update", "--to", "1.2"], 16).said["reason"], "quarantined");
    let refused = ask(&machine, &["rollback"], 16);
    assert!(refused.said["detail"].as_str().unwrap().contains("1.2"), "{}", refused.said);
    let told = ask(&machine, &["history"], 0);
    let last = told.said["entries"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["digest"], bad);
    assert!(last["detail"].as_str().unwrap().contains("cannot find its database"), "{last}");
    let rows: [[&str; 4]; 4] = [
        ["confirmed", "1.1", "b", ""],
        ["rolled-back-to", "1.0", "a", ""],
        ["confirmed", "1.1", "b", ""],
        ["returned-from", "1.2", "a", "health-failed"],
    ];
    assert_eq!(history(&machine), rows);

    // Nothing moves backwards unasked, and nonsense is told from refusal.
    scene.desk.publish("1.0").unwrap();
    assert_eq!(ask(&machine, &["update"], 18).said["reason"], "not-newer");
    for nonsense in [&["update", "--sideways"][..], &["upgrade"], &["update", "--stage", "--reboot"], &[]] {
        assert_eq!(machine.run(nonsense).unwrap().status.code(), Some(64), "{nonsense:?}");
    }
    assert_eq!(machine.run(&["update", "--help"]).unwrap().status.code(), Some(0));
    println!("the whole life: {fetched} bytes fetched for 1.1, {:.1} s", began.elapsed().as_secs_f64());
}

#[test]
fn a_dry_run_changes_no_byte() {
    let (scene, machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    let records = || {
        let names = ["facts-1", "facts-2", "state.json"].map(|name| machine.state_dir().join(name));
        names.map(|path| std::fs::read(path).ok())
    };
    let before = (sha256(&machine.disk()).unwrap(), records());
    let plan = ask(&machine, &["update", "--dry-run", "--detailed-exitcode"], 0);
    assert_eq!(plan.said["outcome"], "would-update");
    assert_eq!(ask(&machine, &["rollback", "--dry-run"], 44).said["reason"], "no-way-back");
    ask(&machine, &["status"], 0);
    ask(&machine, &["check"], 0);
    assert!(before == (sha256(&machine.disk()).unwrap(), records()), "something was written");
    let real = ask(&machine, &["update"], 0);
    for what in ["/traffic/fetched", "/traffic/written", "/traffic/zero", "/traffic/requests"] {
        assert_eq!(plan.number(what).unwrap(), real.number(what).unwrap(), "{what}: planned, done");
    }
    println!("the plan is what is done: {}", plan.said["traffic"]);
}

#[test]
fn a_staged_release_waits_for_an_order_through_any_restart() {
    let (scene, mut machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    let staged = ask(&machine, &["update", "--stage", "--detailed-exitcode"], 2);
    assert_eq!(staged.said["outcome"], "staged");
    assert_eq!(boot_of(&machine, Slot::B), "empty");
    assert_eq!(machine.power_on().unwrap().slot, Slot::A, "an unplanned restart starts no trial");
    assert_eq!(status(&machine)["state"], "staged");
    assert_eq!(ask(&machine, &["update", "--stage", "--detailed-exitcode"], 2).said["outcome"], "staged");
    let armed = ask(&machine, &["update"], 0);
    assert_eq!(armed.said["outcome"], "armed");
    assert_eq!(
        (armed.number("/traffic/fetched").unwrap(), armed.number("/traffic/written").unwrap()),
        (0, 0)
    );
    assert_eq!(boot_of(&machine, Slot::B), "trial");
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    assert_eq!(history(&machine), [["confirmed", "1.1", "b", ""]]);
}

#[test]
fn nothing_is_written_while_the_running_slot_is_unconfirmed() {
    let (scene, mut machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.start().unwrap(), Some(Slot::B));
    publish(&scene, "1.2", true);
    let before = sha256(&machine.disk()).unwrap();
    for order in
        [&["update"][..], &["update", "--to", "1.2"], &["update", "--stage"], &["update", "--dry-run"]]
    {
        let refused = ask(&machine, order, 43);
        assert_eq!(refused.said["reason"], "running-slot-unconfirmed", "{order:?}");
    }
    assert_eq!(before, sha256(&machine.disk()).unwrap(), "the only way back is byte-identical");
    assert!(!status(&machine)["blocked_by"].as_array().unwrap().is_empty());
    ask(&machine, &["boot-check"], 0);
    assert_eq!(boot_of(&machine, Slot::B), "good");
    ask(&machine, &["update"], 0);
}

#[test]
fn an_operator_ends_a_trial_before_anybody_judged_it() {
    let (scene, mut machine) = machine_with_1_0();
    let left = publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.start().unwrap(), Some(Slot::B));
    let back = ask(&machine, &["rollback", "--reboot"], 0);
    assert_eq!(
        (&back.said["outcome"], &back.said["slot"]),
        (&"rebooting".into(), &"a".into()),
        "{}",
        back.said
    );
    assert!(machine.reboot_requested());
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    assert_eq!(history(&machine), [["returned-from", "1.1", "b", "ended-by-operator"]]);
    let now = status(&machine);
    assert_eq!(
        (&now["held"], &now["quarantine"]),
        (&left.into(), &Value::Array(vec![])),
        "held, not at fault"
    );
    ask(&machine, &["update"], 17);
    ask(&machine, &["update", "--to", "1.1", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
}

#[test]
fn an_operator_takes_an_armed_update_back_before_the_reboot_and_arms_it_again() {
    let (scene, mut machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    ask(&machine, &["update"], 0);
    assert_eq!(boot_of(&machine, Slot::B), "trial");
    assert_eq!(ask(&machine, &["rollback", "--detailed-exitcode"], 2).said["outcome"], "disarmed");
    assert_eq!((boot_of(&machine, Slot::B), &status(&machine)["state"]), ("empty".into(), &"staged".into()));
    assert_eq!(machine.power_on().unwrap().slot, Slot::A, "what was disarmed does not start");
    let again = ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(
        (again.number("/traffic/fetched").unwrap(), again.number("/traffic/written").unwrap()),
        (0, 0)
    );
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    assert_eq!(history(&machine), [["confirmed", "1.1", "b", ""]]);
}

#[test]
fn a_staged_slot_that_rotted_is_not_armed_and_is_written_anew_by_the_next_update() {
    let (scene, mut machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    ask(&machine, &["update", "--stage"], 0);
    let root = machine.layout().unwrap().slot(Slot::B).root.clone();
    machine.image().unwrap().partition(&root).unwrap().write_at(0, &[0xff; 4096]).unwrap();
    assert_eq!(ask(&machine, &["update"], 41).said["reason"], "read-back-mismatch");
    assert_eq!(boot_of(&machine, Slot::B), "empty");
    assert!(ask(&machine, &["update", "--reboot"], 0).number("/traffic/written").unwrap() > 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
}

#[test]
fn a_slot_that_lost_its_entry_or_a_boot_file_is_written_anew_by_the_same_order() {
    let (scene, mut machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    ask(&machine, &["update", "--stage"], 0);
    let layout = machine.layout().unwrap();
    let esp = FatEsp::new(machine.image().unwrap().partition(&layout.esp).unwrap());
    let entries = esp.list("loader/entries").unwrap();
    let prepared = entries.iter().find(|entry| entry.name.starts_with("switchback-b-")).unwrap();
    for file in [format!("loader/entries/{}", prepared.name), "switchback/b/linux".to_owned()] {
        esp.remove(&file).unwrap();
        assert_eq!(status(&machine)["slots"][1]["content"], "damaged", "{file}");
        let written = ask(&machine, &["update", "--stage"], 0);
        assert!(
            written.told.contains("is gone: the slot is written anew"),
            "{file}: {} {}",
            written.said,
            written.told
        );
        assert_eq!(status(&machine)["slots"][1]["content"], "release", "{file}");
    }
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
}

#[test]
fn a_machine_without_keys_can_be_looked_at_and_not_be_moved() {
    let (scene, machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    let config = std::fs::read_to_string(machine.config()).unwrap();
    let without: Vec<&str> =
        config.lines().filter(|line| !line.contains("trust.policy") && !line.starts_with("keys")).collect();
    std::fs::write(machine.config(), without.join("\n")).unwrap();
    without_keys(&machine, "it has no key");
    let before = sha256(&machine.disk()).unwrap();
    assert_eq!(ask(&machine, &["update"], 11).said["reason"], "no-policy");
    assert_eq!(before, sha256(&machine.disk()).unwrap());
    // A key that is named and not there, or no key at all.
    let key = scene.folder().join("lost.pub");
    std::fs::write(machine.config(), config.replace("os.pub", "../lost.pub")).unwrap();
    without_keys(&machine, "lost.pub: it does not exist");
    std::fs::write(key, "-----BEGIN").unwrap();
    without_keys(&machine, "lost.pub: it is no PEM file");
    std::fs::write(machine.config(), config).unwrap();
    let again = status(&machine);
    assert_eq!(
        (&again["slots"][0]["content"], &again["blocked_by"]),
        (&"release".into(), &Value::Array(vec![]))
    );
}

/// Said once, of the keys: no slot is blamed, and none with documents is called empty.
fn without_keys(machine: &Machine, why: &str) {
    let seen = status(machine);
    let blocked: Vec<&str> =
        seen["blocked_by"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(blocked.len(), 1, "{blocked:?}");
    assert!(
        blocked[0].starts_with("the trusted keys cannot be used") && blocked[0].contains(why),
        "{blocked:?}"
    );
    for (slot, content) in [(0, "unknown"), (1, "empty")] {
        let slot = &seen["slots"][slot];
        assert_eq!((&slot["content"], &slot["problem"]), (&content.into(), &Value::Null), "{why}");
    }
    let printed = text(&machine.run(&["status"]).unwrap().stdout);
    assert!(printed.contains("slot a     unknown: confirmed, running"), "{printed}");
    assert_eq!(printed.matches(why).count(), 1, "{printed}");
}

#[test]
fn five_times_back_and_forth_fetches_and_writes_nothing() {
    let (scene, mut machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    let before = DiskShot::take(&machine).unwrap().slots;
    for cycle in 1..=5 {
        for (order, slot) in
            [(&["rollback", "--reboot"][..], Slot::A), (&["update", "--to", "1.1", "--reboot"], Slot::B)]
        {
            let answer = ask(&machine, order, 0);
            let cost = ["/traffic/fetched", "/traffic/written"].map(|what| answer.number(what).unwrap());
            assert_eq!(cost, [0, 0], "cycle {cycle}");
            let boot = machine.power_on().unwrap();
            assert_eq!((boot.slot, boot.starts), (slot, 1), "cycle {cycle}");
        }
    }
    let shot = DiskShot::take(&machine).unwrap();
    assert!(before == shot.slots, "the slots are byte-identical");
    let entries = shot.esp.keys().filter(|path| path.starts_with("loader/entries/")).count();
    assert_eq!(entries, 2, "no entry is left behind: {:?}", shot.esp.keys());
    assert_eq!(history(&machine).len(), 11);
    println!("ten trials, {entries} entries on the ESP");
}

#[test]
fn a_trial_that_nobody_judges_ends_when_its_tries_are_spent() {
    let (scene, mut machine) = machine_with_1_0();
    let silent = publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    for start in 1..=TRIES {
        assert_eq!(machine.start().unwrap(), Some(Slot::B), "start {start}");
    }
    let boot = machine.power_on().unwrap();
    assert_eq!((boot.slot, boot.starts), (Slot::A, 1));
    assert_eq!(history(&machine), [["returned-from", "1.1", "b", "died-early"]]);
    assert_eq!(status(&machine)["quarantine"][0]["digest"], silent);
    ask(&machine, &["update"], 16);
    println!("{TRIES} starts without a verdict, then the old slot");
}

#[test]
fn a_deadline_that_left_its_mark_is_told_from_a_death() {
    let (scene, mut machine) = machine_with_1_0();
    let silent = publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    for start in 1..=TRIES {
        assert_eq!(machine.start().unwrap(), Some(Slot::B), "start {start}");
        // What the deadline's unit asks for before it restarts the machine.
        let marked = ask(&machine, &["boot-check", "--deadline-passed"], 0);
        assert_eq!((&marked.said["answer"], &marked.said["slot"]), (&"deadline-passed".into(), &"b".into()));
        assert_ne!(boot_of(&machine, Slot::B), "good", "a mark is no verdict");
    }
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    assert_eq!(history(&machine), [["returned-from", "1.1", "b", "deadline-missed"]]);
    assert_eq!(status(&machine)["quarantine"][0]["digest"], silent);
}

#[test]
fn a_trial_whose_root_does_not_verify_ends_on_the_old_slot() {
    let (scene, mut machine) = machine_with_1_0();
    let damaged = publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    {
        let layout = machine.layout().unwrap();
        let root = machine.image().unwrap().partition(&layout.slot(Slot::B).root).unwrap();
        let mut sector = read(&*root, 1 << 20, 512).unwrap();
        sector[7] ^= 1;
        root.write_at(1 << 20, &sector).unwrap();
        root.flush().unwrap();
    }
    let boot = machine.power_on().unwrap();
    assert_eq!(boot.slot, Slot::A);
    assert!(boot.starts <= TRIES + 1, "{} starts", boot.starts);
    assert_eq!(history(&machine), [["returned-from", "1.1", "b", "died-early"]]);
    assert_eq!(status(&machine)["quarantine"][0]["digest"], damaged);
    println!("one flipped byte after arming: back on slot a at start {}", boot.starts);
}
