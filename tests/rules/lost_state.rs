//! The state folder is emptied, or both copies of the facts are damaged, at every point of an update's life.

use switchback_partitions::slot::Slot;
use switchback_tests::machine::{Machine, text};
use switchback_tests::story::{ask, boot_of, history, machine_with_1_0, publish_with, status};

use crate::damage;

/// Security version of every release but 1.0: what the floor must still be when nothing is remembered.
const SECURITY: [&str; 2] = ["--security-version", "5"];

/// As after a format of the state partition.
fn lose_the_state(machine: &Machine) {
    std::fs::remove_dir_all(machine.state_dir()).unwrap();
    std::fs::create_dir(machine.state_dir()).unwrap();
}

#[test]
fn state_lost_while_idle_restores_the_floor_from_the_running_slot() {
    let (scene, mut machine) = machine_with_1_0();
    publish_with(&scene, "1.1", true, &SECURITY);
    ask(&machine, &["update", "--reboot"], 0);
    machine.power_on().unwrap();
    assert_eq!(status(&machine)["floor"], 5);
    lose_the_state(&machine);
    let boot = machine.power_on().unwrap();
    assert_eq!((boot.slot, boot.starts), (Slot::B, 1), "not a boot is lost");
    assert_eq!(status(&machine)["floor"], 5);
    assert_eq!(boot_of(&machine, Slot::B), "good");
    publish_with(&scene, "1.2", true, &["--security-version", "4"]);
    ask(&machine, &["update"], 15);
    ask(&machine, &["update", "--to", "1.0"], 15);
    ask(&machine, &["rollback"], 15);
}

#[test]
fn state_lost_while_staged_starts_nothing_and_costs_no_download() {
    let (scene, mut machine) = machine_with_1_0();
    publish_with(&scene, "1.1", true, &SECURITY);
    ask(&machine, &["update", "--stage"], 0);
    lose_the_state(&machine);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    let armed = ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(armed.number("/traffic/fetched").unwrap(), 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    assert_eq!(history(&machine), [["confirmed", "1.1", "b", ""]]);
}

#[test]
fn state_lost_while_armed_or_on_trial_still_ends_with_a_verdict() {
    for (healthy, started) in [(true, false), (true, true), (false, false), (false, true)] {
        let (scene, mut machine) = machine_with_1_0();
        let digest = publish_with(&scene, "1.1", healthy, &SECURITY);
        ask(&machine, &["update", "--reboot"], 0);
        if started {
            assert_eq!(machine.start().unwrap(), Some(Slot::B));
            lose_the_state(&machine);
            assert_eq!(machine.ask(&["boot-check"]).unwrap().code, if healthy { 0 } else { 50 });
        } else {
            lose_the_state(&machine);
        }
        let boot = machine.power_on().unwrap();
        let now = status(&machine);
        if healthy {
            assert_eq!((boot.slot, &now["floor"]), (Slot::B, &5.into()), "started: {started}");
            assert_eq!(history(&machine), [["confirmed", "1.1", "b", ""]]);
        } else {
            assert_eq!(boot.slot, Slot::A, "started: {started}: {:?}", boot.said);
            assert_eq!(now["quarantine"][0]["digest"], digest);
            assert_eq!(history(&machine), [["returned-from", "1.1", "b", "health-failed"]]);
            ask(&machine, &["update"], 16);
        }
    }
}

#[test]
fn state_lost_after_a_rollback_forgets_the_hold_and_starts_nothing_by_itself() {
    let (scene, mut machine) = machine_with_1_0();
    publish_with(&scene, "1.1", true, &[]);
    ask(&machine, &["update", "--reboot"], 0);
    machine.power_on().unwrap();
    ask(&machine, &["rollback", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    ask(&machine, &["update"], 17);
    lose_the_state(&machine);
    let boot = machine.power_on().unwrap();
    assert_eq!((boot.slot, boot.starts), (Slot::A, 1), "the machine stays where the operator went");
    assert!(history(&machine).is_empty() && status(&machine)["held"].is_null());
    // Nobody knows any more that it was left: the next order takes it, which was good here.
    ask(&machine, &["update"], 0);
}

#[test]
fn an_entry_at_zero_tries_counts_as_quarantined_when_the_state_is_lost() {
    let (scene, mut machine) = machine_with_1_0();
    let bad = publish_with(&scene, "1.1", false, &SECURITY);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    lose_the_state(&machine);
    assert_eq!(boot_of(&machine, Slot::B), "bad");
    // An order before the next start learns it as well.
    ask(&machine, &["update"], 16);
    let boot = machine.power_on().unwrap();
    assert_eq!((boot.slot, boot.starts), (Slot::A, 1));
    assert_eq!(status(&machine)["quarantine"][0]["digest"], bad);
    assert_eq!(history(&machine).len(), 1, "recorded once: {:?}", history(&machine));
    ask(&machine, &["update", "--to", "1.1"], 16);
}

#[test]
fn both_copies_of_the_facts_damaged_forget_no_failure_and_no_hold() {
    // After a return.
    let (scene, mut machine) = machine_with_1_0();
    let bad = publish_with(&scene, "1.1", false, &SECURITY);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    damage_both(&machine);
    ask(&machine, &["update"], 16);
    assert_eq!(status(&machine)["quarantine"][0]["digest"], bad);

    // After a confirmation, and after a rollback.
    let (scene, mut machine) = machine_with_1_0();
    let left = publish_with(&scene, "1.1", true, &[]);
    ask(&machine, &["update", "--reboot"], 0);
    machine.power_on().unwrap();
    damage_both(&machine);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    assert_eq!(boot_of(&machine, Slot::B), "good");
    ask(&machine, &["rollback", "--reboot"], 0);
    machine.power_on().unwrap();
    damage_both(&machine);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    assert_eq!(status(&machine)["held"], left);
    ask(&machine, &["update"], 17);
}

#[test]
fn records_that_are_gone_from_a_machine_in_use_are_told_and_never_missed_on_a_new_one() {
    let told = |machine: &Machine, lost: bool, why: &str| {
        assert_eq!(status(machine)["records_lost"], lost, "{why}");
        let listed = ask(machine, &["quarantine", "list"], 0).said;
        assert_eq!((&listed["records_lost"], listed["quarantine"].is_array()), (&lost.into(), true), "{why}");
        assert_eq!(ask(machine, &["history"], 0).said["records_lost"], lost, "{why}");
        for (verb, words) in
            [(&["status"][..], "records      lost"), (&["quarantine", "list"], "records were lost")]
        {
            let printed = text(&machine.run(verb).unwrap().stdout);
            assert_eq!(printed.contains(words), lost, "{why}: {printed}");
        }
    };
    let (scene, mut machine) = machine_with_1_0();
    told(&machine, false, "new");
    lose_the_state(&machine);
    told(&machine, false, "there was nothing to lose");
    publish_with(&scene, "1.1", true, &[]);
    ask(&machine, &["update", "--reboot"], 0);
    told(&machine, false, "armed");
    assert_eq!(machine.start().unwrap(), Some(Slot::B));
    told(&machine, false, "on trial");
    machine.power_on().unwrap();
    told(&machine, false, "confirmed");
    damage_both(&machine);
    told(&machine, true, "damaged");
    lose_the_state(&machine);
    told(&machine, true, "gone");
    ask(&machine, &["rollback", "--reboot"], 0);
    machine.power_on().unwrap();
    told(&machine, false, "recorded again");
}

fn damage_both(machine: &Machine) {
    damage(&machine.state_dir().join("facts-1"));
    damage(&machine.state_dir().join("facts-2"));
}
