//! The rules that the life of an update must hold, each by its name, with the real program on a machine in a file.
//!
//! Not here: the ordinary life (`update`), bad input (`bad_input`). Rule: a story disturbs one thing that the machine
//! relies on (the boot record, its records, a slot) and asserts that it neither goes back nor tries twice nor loops.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "rules/lost_state.rs"]
mod lost_state;
#[path = "rules/versions.rs"]
mod versions;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use switchback_bootloader::esp::{EspDir as _, FatEsp};
use switchback_partitions::device::disk::Disk as _;
use switchback_partitions::slot::Slot;
use switchback_tests::machine::{Machine, text, tool};
use switchback_tests::scene::Scene;
use switchback_tests::small_release::SmallRelease;
use switchback_tests::small_state::{FILL, SmallState};
use switchback_tests::story::{
    ROOT_BYTES, ask, boot_of, configured_machine, history, machine_with_1_0, publish, publish_image, status,
};

/// Does something on the machine's boot partition, as another program would.
fn on_the_esp<T>(machine: &Machine, work: impl FnOnce(&FatEsp) -> T) -> T {
    let (disk, layout) = (machine.image().unwrap(), machine.layout().unwrap());
    let device = disk.partition(&layout.esp).unwrap();
    let done = work(&FatEsp::new(Arc::clone(&device)));
    device.flush().unwrap();
    done
}

/// Gives the entry of a slot another counter, as `systemd-bless-boot` or a loader does: `""` is good, `+0-3` bad.
fn set_counter(machine: &Machine, slot: Slot, counter: &str) {
    on_the_esp(machine, |esp| {
        let folder = "loader/entries";
        let ours = format!("switchback-{slot}-");
        let entries = esp.list(folder).unwrap();
        let old = entries.iter().find(|entry| entry.name.starts_with(&ours)).unwrap();
        let stem = old.name.trim_end_matches(".conf").split('+').next().unwrap();
        let new = format!("{folder}/{stem}{counter}.conf");
        esp.rename(&format!("{folder}/{}", old.name), &new).unwrap();
    });
}

/// The machine after an armed update to a release, started once: B runs on trial, nobody judged it.
fn on_trial(healthy: bool) -> (Scene, Machine, String) {
    let (scene, mut machine) = machine_with_1_0();
    let digest = publish(&scene, "1.1", healthy);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.start().unwrap(), Some(Slot::B));
    (scene, machine, digest)
}

#[test]
fn loader_refused_is_disarmed_and_said() {
    let (scene, mut machine) = machine_with_1_0();
    let refused = publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(boot_of(&machine, Slot::B), "trial");
    // The machine restarted and no try was used: the loader skipped the entry.
    machine.pretend(Slot::A).unwrap();
    let check = ask(&machine, &["boot-check"], 0);
    assert_eq!(
        (&check.said["verdict"], &check.said["reason"]),
        (&"not-started".into(), &"loader-refused".into()),
        "{}",
        check.said
    );
    assert_eq!(boot_of(&machine, Slot::B), "empty", "disarmed: no restart can start it by itself");
    assert_eq!(history(&machine), [["returned-from", "1.1", "b", "loader-refused"]]);
    assert_eq!(status(&machine)["quarantine"][0]["digest"], refused);
    ask(&machine, &["update"], 16);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
}

#[test]
fn good_recorded_by_someone_else_during_a_trial_is_judged_all_the_same() {
    let (_scene, machine, _) = on_trial(true);
    set_counter(&machine, Slot::B, "");
    assert_eq!(boot_of(&machine, Slot::B), "good");
    ask(&machine, &["update"], 43);
    let check = ask(&machine, &["boot-check"], 0);
    assert_eq!(check.said["verdict"], "confirmed");
    assert!(!check.said["health"]["checks"].as_array().unwrap().is_empty(), "the checks were run");
    assert_eq!(history(&machine), [["confirmed", "1.1", "b", ""]]);

    let (_scene, mut machine, bad) = on_trial(false);
    set_counter(&machine, Slot::B, "");
    let check = machine.ask(&["boot-check"]).unwrap();
    assert_eq!((check.code, &check.said["verdict"]), (50, &"returning".into()), "{}", check.said);
    assert_eq!(boot_of(&machine, Slot::B), "bad", "marked bad, so that the loader leaves it");
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    assert_eq!(history(&machine), [["returned-from", "1.1", "b", "health-failed"]]);
    assert_eq!(status(&machine)["quarantine"][0]["digest"], bad);
}

#[test]
fn armed_and_no_reboot_in_time_is_staged_again() {
    let (scene, mut machine) = configured_machine("[boot]\narmed = \"1s\"");
    publish(&scene, "1.1", true);
    ask(&machine, &["update"], 0);
    assert_eq!((boot_of(&machine, Slot::B), &status(&machine)["state"]), ("trial".into(), &"armed".into()));
    std::thread::sleep(Duration::from_secs(2));
    ask(&machine, &["boot-check"], 0);
    assert_eq!((boot_of(&machine, Slot::B), &status(&machine)["state"]), ("empty".into(), &"staged".into()));
    assert_eq!(machine.power_on().unwrap().slot, Slot::A, "an unplanned restart starts no trial");
    let again = ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(again.number("/traffic/fetched").unwrap(), 0, "it lies there");
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
}

#[test]
fn only_one_slot_filled_and_not_well_never_loops() {
    let (_scene, mut machine) = machine_with_1_0();
    std::fs::write(machine.config(), break_health(&machine)).unwrap();
    set_counter(&machine, Slot::A, "+0-3");
    for _ in 0..3 {
        let boot = machine.power_on().unwrap();
        assert_eq!((boot.slot, boot.starts), (Slot::A, 1), "it stays up: {:?}", boot.said);
    }
    assert!(history(&machine).iter().all(|entry| entry[0] == "stranded"), "{:?}", history(&machine));
    ask(&machine, &["rollback"], 44);
}

#[test]
fn neither_slot_good_never_loops() {
    let (scene, mut machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    std::fs::write(machine.config(), break_health(&machine)).unwrap();
    set_counter(&machine, Slot::A, "+0-3");
    set_counter(&machine, Slot::B, "+0-3");
    let mut slots = Vec::new();
    for _ in 0..3 {
        let boot = machine.power_on().unwrap();
        assert_eq!(boot.starts, 1, "it stays up: {:?}", boot.said);
        slots.push(boot.slot);
    }
    assert!(slots.windows(2).all(|pair| pair[0] == pair[1]), "one and the same slot: {slots:?}");
    assert_eq!(history(&machine).last().unwrap()[0], "stranded");
    // Well again, the machine confirms itself and can be updated.
    let config = std::fs::read_to_string(machine.config()).unwrap();
    std::fs::write(machine.config(), config.split("[[health.check]]").next().unwrap()).unwrap();
    machine.power_on().unwrap();
    assert_eq!(boot_of(&machine, slots[0]), "good");
    ask(&machine, &["update", "--to", "1.1", "--dry-run"], 0);
}

/// The machine's configuration with a check that fails.
fn break_health(machine: &Machine) -> String {
    let config = std::fs::read_to_string(machine.config()).unwrap();
    format!(
        "{config}\n[[health.check]]\nname = \"never\"\nkind = \"command\"\ncommand = [\"false\"]\nretries = 0\n"
    )
}

#[test]
fn rollback_holds_what_was_left_until_it_is_named_or_a_newer_release_comes() {
    let (scene, mut machine) = machine_with_1_0();
    let left = publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    machine.power_on().unwrap();
    ask(&machine, &["rollback", "--reboot"], 0);
    machine.power_on().unwrap();
    // The hold survives restarts, a lost state file and a damaged copy of the facts.
    for spoil in ["nothing", "state.json", "facts-1", "facts-2"] {
        let path = machine.state_dir().join(spoil);
        match spoil {
            "nothing" => {}
            "state.json" => std::fs::remove_file(path).unwrap(),
            _ => damage(&path),
        }
        assert_eq!(machine.power_on().unwrap().slot, Slot::A);
        assert_eq!(status(&machine)["held"], left.clone(), "without {spoil}");
        ask(&machine, &["update"], 17);
    }
    publish(&scene, "1.2", true);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    assert_eq!(status(&machine)["held"], Value::Null, "a newer one was confirmed");
}

/// Flips a bit of what a file begins with.
fn damage(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[70] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn without_a_configured_check_the_built_in_one_decides() {
    for (writable, slot) in [(true, Slot::B), (false, Slot::A)] {
        let (scene, mut machine) = machine_with_1_0();
        let release = SmallRelease { version: "1.1", healthy: true, root_bytes: ROOT_BYTES };
        let image = scene.desk.root_image(&release).unwrap();
        let without = "rm usr/lib/switchback/health.d/web.toml";
        let edited = tool("debugfs")
            .unwrap()
            .args(["-w", "-R", without])
            .arg(scene.desk.path(&image))
            .output()
            .unwrap();
        assert!(edited.status.success(), "{}", text(&edited.stderr));
        publish_image(&scene, "1.1", &image, &[]);
        ask(&machine, &["update", "--reboot"], 0);
        assert_eq!(machine.start().unwrap(), Some(Slot::B));
        if !writable {
            // In the way of the file that the check writes.
            std::fs::create_dir(machine.state_dir().join("can-write.new")).unwrap();
        }
        let check = machine.ask(&["boot-check"]).unwrap();
        let checks = check.said["health"]["checks"].as_array().unwrap().clone();
        assert_eq!(checks.len(), 1, "{}", check.said);
        assert_eq!(checks[0]["name"], "can-update-again");
        assert_eq!(check.said["verdict"], if writable { "confirmed" } else { "returning" }, "{}", check.said);
        assert_eq!(machine.power_on().unwrap().slot, slot);
    }
}

#[test]
fn a_slots_passport_is_verified_again_when_it_is_used() {
    let (scene, mut machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    machine.power_on().unwrap();
    on_the_esp(&machine, |esp| {
        let path = "switchback/a/config.json";
        let text = String::from_utf8(esp.read(path, 1 << 20).unwrap()).unwrap();
        let bent = text.replace("\"security_version\":0", "\"security_version\":9");
        assert_ne!(text, bent);
        esp.write_tmp(path, &mut bent.as_bytes()).unwrap();
    });
    let now = status(&machine);
    assert!(now["slots"][0]["problem"].as_str().unwrap().contains("config"), "{}", now["slots"][0]);
    assert_eq!(now["floor"], 0, "what does not verify teaches nothing");
    let refused = ask(&machine, &["rollback"], 44);
    assert!(refused.said["detail"].as_str().unwrap().contains("do not verify"), "{}", refused.said);
}

#[test]
fn a_full_state_folder_ends_a_trial_on_the_old_slot_and_is_recorded_when_there_is_room() {
    let (_scene, mut machine, full) = on_trial(true);
    let folder = tempfile::tempdir().unwrap();
    let state = SmallState::new(&machine.state_dir(), folder.path(), "600k", FILL).unwrap();
    for start in 2..=4 {
        let check = state.command(machine.command(&["boot-check", "--json"]).env("SWITCHBACK_LOG", "off"));
        let output = { check }.output().unwrap();
        assert_eq!(output.status.code(), Some(76), "{}{}", text(&output.stdout), text(&output.stderr));
        let runs = machine.start().unwrap();
        assert_eq!(runs, Some(if start <= 3 { Slot::B } else { Slot::A }), "start {start}");
    }
    let boot = machine.power_on().unwrap();
    assert_eq!((boot.slot, boot.starts), (Slot::A, 1));
    assert_eq!(history(&machine)[0][..3], ["returned-from", "1.1", "b"]);
    assert_eq!(status(&machine)["quarantine"][0]["digest"], full);
    ask(&machine, &["update"], 16);
}
