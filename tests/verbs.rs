//! The verbs beside update and rollback, by the real program: quarantine, verify, apply, completions, manual pages.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::Command;

use serde_json::Value;
use switchback_bootloader::esp::{EspDir as _, FatEsp};
use switchback_partitions::device::disk::Disk as _;
use switchback_partitions::inactive_slot::InactiveSlot;
use switchback_partitions::slot::{RunningSlot, Slot};
use switchback_tests::lab::tools;
use switchback_tests::machine::{Machine, text};
use switchback_tests::scene::sha256;
use switchback_tests::small_release::{Desk, SmallRelease};
use switchback_tests::story::{ask, boot_of, history, machine_with_1_0, publish, status};

/// The first column of help's list of commands.
fn verbs() -> Vec<String> {
    let help = Command::new(tools::switchback().unwrap()).arg("--help").output().unwrap();
    let help = text(&help.stdout);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = commands.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_string).collect()
}

#[test]
fn an_operator_takes_a_release_out_of_quarantine_and_a_second_failure_puts_it_back() {
    let (scene, mut machine) = machine_with_1_0();
    assert_eq!(ask(&machine, &["quarantine", "list"], 0).said["quarantine"], Value::Array(vec![]));
    let bad = publish(&scene, "1.1", false);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    ask(&machine, &["update"], 16);
    let listed = ask(&machine, &["quarantine", "list"], 0);
    assert_eq!(listed.said["quarantine"][0]["digest"], bad.clone());
    assert_eq!(listed.said["quarantine"][0]["reason"], "health-failed");

    // What is not there need not be taken off, and nothing changes.
    for mistyped in ["9.9", &bad["sha256:".len()..][..1]] {
        let unchanged = ask(&machine, &["quarantine", "release", mistyped, "--detailed-exitcode"], 0);
        assert_eq!(unchanged.said["released"], Value::Null, "{mistyped}");
    }
    let released = ask(&machine, &["quarantine", "release", "1.1", "--detailed-exitcode"], 2);
    assert_eq!(released.said["released"]["digest"], bad.clone());
    assert_eq!(released.said["quarantine"], Value::Array(vec![]));
    ask(&machine, &["quarantine", "release", "1.1", "--detailed-exitcode"], 0);
    assert_eq!(history(&machine).last().unwrap()[..2], ["released", "1.1"]);

    // It is taken again without being fetched, fails again and is back on the list; by digest it goes off again.
    let again = ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(again.number("/traffic/fetched").unwrap(), 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    ask(&machine, &["update"], 16);
    let prefix = &bad["sha256:".len()..][..12];
    assert_eq!(ask(&machine, &["quarantine", "release", prefix], 0).said["released"]["version"], "1.1");
}

#[test]
fn a_name_that_means_two_quarantined_releases_is_refused_with_both_digests() {
    let (scene, mut machine) = machine_with_1_0();
    let mut digests = Vec::new();
    for salt in ["00", "01"] {
        let release = switchback_tests::small_release::SmallRelease {
            version: "1.1",
            healthy: false,
            root_bytes: 8 << 20,
        };
        let image = scene.desk.root_image(&release).unwrap();
        scene.desk.build_partition("1.1", &image, &["--verity-salt", salt]).unwrap();
        scene.desk.sign(&scene.desk.reference("1.1"), &[]).unwrap();
        digests.push(scene.desk.publish("1.1").unwrap().to_string());
        ask(&machine, &["update", "--reboot"], 0);
        assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    }
    let refused = ask(&machine, &["quarantine", "release", "1.1"], 80);
    assert_eq!(refused.said["reason"], "ambiguous");
    let detail = refused.said["detail"].as_str().unwrap();
    assert!(digests.iter().all(|digest| detail.contains(digest)), "{detail}");
    let listed = ask(&machine, &["quarantine", "list"], 0);
    assert_eq!(listed.said["quarantine"].as_array().unwrap().len(), 2, "both are still there");
    ask(&machine, &["quarantine", "release", &digests[0]], 0);
}

#[test]
fn verify_reads_every_byte_changes_none_and_names_the_damaged_slot() {
    let (scene, mut machine) = machine_with_1_0();
    let sound = ask(&machine, &["verify"], 0).said["slots"].clone();
    assert_eq!((&sound[0]["soundness"], &sound[1]["soundness"]), (&"sound".into(), &"empty".into()));
    publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    let before = sha256(&machine.disk()).unwrap();
    let sound = ask(&machine, &["verify"], 0).said["slots"].clone();
    assert_eq!((&sound[0]["soundness"], &sound[1]["soundness"]), (&"sound".into(), &"sound".into()));
    assert_eq!(sound[1]["running"], true);

    // One bit in the last block of each part that is signed.
    let layout = machine.layout().unwrap();
    let root = layout.slot(Slot::A).root.clone();
    for (what, partition, place) in
        [("root", &root, (8 << 20) - 1), ("hash tree", &layout.slot(Slot::A).verity.clone(), 4096 + 17)]
    {
        let device = machine.image().unwrap().partition(partition).unwrap();
        let mut byte = [0];
        device.read_at(place, &mut byte).unwrap();
        device.write_at(place, &[byte[0] ^ 1]).unwrap();
        device.flush().unwrap();
        let damaged = sha256(&machine.disk()).unwrap();
        let found = machine.ask(&["verify"]).unwrap();
        assert_eq!(found.code, 49, "{what}: {}", found.said);
        assert_eq!(found.said["slots"][0]["soundness"], "damaged", "{what}");
        assert_eq!(found.said["slots"][1]["soundness"], "sound", "{what}: the other one is not blamed");
        println!("{what}: {}", found.said["slots"][0]["detail"]);
        assert_eq!(machine.ask(&["verify", "b"]).unwrap().code, 0, "only b was asked for");
        assert_eq!(damaged, sha256(&machine.disk()).unwrap(), "verify wrote to the disk");
        device.write_at(place, &byte).unwrap();
        device.flush().unwrap();
    }
    assert_eq!(before, sha256(&machine.disk()).unwrap());
    ask(&machine, &["verify", "a"], 0);

    // The same for what lies on the boot partition.
    let esp = FatEsp::new(machine.image().unwrap().partition(&layout.esp).unwrap());
    for (file, code) in [("switchback/a/linux", 49), ("switchback/a/config.json", 49)] {
        let mut bytes = Vec::new();
        esp.read_into(file, 16 << 20, &mut bytes).unwrap();
        let good = bytes.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        esp.write_tmp(file, &mut &bytes[..]).unwrap();
        let found = machine.ask(&["verify"]).unwrap();
        assert_eq!(found.code, code, "{file}: {}", found.said);
        assert_eq!(found.said["slots"][0]["soundness"], "damaged", "{file}: {}", found.said);
        assert_eq!(found.said["slots"][1]["soundness"], "sound", "{file}");
        println!("{file}: {}", found.said["slots"][0]["detail"]);
        esp.write_tmp(file, &mut &good[..]).unwrap();
    }
    // A file that is gone is no empty slot, on neither side.
    for (slot, folder) in [(0, "switchback/a"), (1, "switchback/b")] {
        for name in ["manifest.json", "config.json", "signatures.json", "linux", "initrd"] {
            let file = format!("{folder}/{name}");
            let mut good = Vec::new();
            esp.read_into(&file, 16 << 20, &mut good).unwrap();
            esp.remove(&file).unwrap();
            let found = machine.ask(&["verify"]).unwrap();
            assert_eq!(found.code, 49, "{file}: {}", found.said);
            assert_eq!(found.said["slots"][slot]["soundness"], "damaged", "{file}: {}", found.said);
            assert_eq!(found.said["slots"][1 - slot]["soundness"], "sound", "{file}");
            // `status` tells the same of it, without reading the slot.
            let seen = status(&machine)["slots"][slot].clone();
            assert_eq!(seen["content"], "damaged", "{file}: {seen}");
            assert_eq!(seen["problem"], found.said["slots"][slot]["detail"], "{file}");
            assert!(seen["problem"].as_str().unwrap().contains(name), "{file}: {seen}");
            let printed = text(&machine.run(&["status"]).unwrap().stdout);
            assert!(printed.contains("DAMAGED (its ") && !printed.contains("empty:"), "{printed}");
            assert_eq!(doctor_on(&machine, slot)["result"], "warning", "{file}");
            esp.write_tmp(&file, &mut &good[..]).unwrap();
        }
    }
    // Nor is one whose entry is gone.
    let entries = esp.list("loader/entries").unwrap();
    let entry = entries.iter().find(|entry| entry.name.starts_with("switchback-a-")).unwrap();
    let entry = format!("loader/entries/{}", entry.name);
    let mut good = Vec::new();
    esp.read_into(&entry, 1 << 20, &mut good).unwrap();
    esp.remove(&entry).unwrap();
    assert_eq!(machine.ask(&["verify"]).unwrap().code, 49);
    let seen = status(&machine)["slots"][0].clone();
    assert_eq!((&seen["content"], &seen["problem"]), (&"damaged".into(), &"its boot entry is gone".into()));
    esp.write_tmp(&entry, &mut &good[..]).unwrap();
    ask(&machine, &["verify"], 0);
    assert_eq!(status(&machine)["slots"][0]["content"], "release");
}

/// What doctor says of a slot's content.
fn doctor_on(machine: &Machine, slot: usize) -> Value {
    let answer = machine.ask(&["doctor", "--offline"]).unwrap();
    let findings = answer.said["findings"].as_array().unwrap();
    let name = ["slot-a", "slot-b"][slot];
    findings.iter().find(|finding| finding["name"] == name).unwrap().clone()
}

#[test]
fn a_slot_that_an_update_left_unfinished_is_half_written_and_not_damaged() {
    let (scene, machine) = machine_with_1_0();
    assert_eq!(status(&machine)["slots"][1]["content"], "empty");
    publish(&scene, "1.1", true);
    ask(&machine, &["update", "--stage"], 0);
    assert_eq!(status(&machine)["slots"][1]["content"], "release", "staged");
    // What a power cut leaves while the documents are written: the partition's mark and some of the files.
    let layout = machine.layout().unwrap();
    let release = status(&machine)["slots"][1]["release"].clone();
    let disk: std::sync::Arc<dyn switchback_partitions::device::disk::Disk> =
        std::sync::Arc::new(machine.image().unwrap());
    let running = RunningSlot { slot: Slot::A, confirmed: true };
    let open = InactiveSlot::open(disk.clone(), &layout, running).unwrap();
    open.mark_partial(None).unwrap();
    drop(open);
    let esp = FatEsp::new(machine.image().unwrap().partition(&layout.esp).unwrap());
    for gone in [None, Some("switchback/b/signatures.json"), Some("switchback/b/linux")] {
        if let Some(gone) = gone {
            esp.remove(gone).unwrap();
        }
        let seen = status(&machine)["slots"][1].clone();
        assert_eq!((&seen["content"], &seen["problem"]), (&"half-written".into(), &Value::Null), "{gone:?}");
        assert_eq!(seen["release"] == release, gone.is_none(), "{gone:?}: {seen}");
        let verified = ask(&machine, &["verify"], 0);
        assert_eq!(verified.said["slots"][1]["soundness"], "half-written", "{gone:?}");
        assert_eq!(doctor_on(&machine, 1)["result"], "note", "{gone:?}");
    }
    let printed = text(&machine.run(&["status"]).unwrap().stdout);
    assert!(printed.contains("slot b     half written: no boot entry"), "{printed}");
    ask(&machine, &["update"], 0);
    assert_eq!(status(&machine)["slots"][1]["content"], "release");
}

#[test]
fn a_slot_that_an_update_writes_while_it_is_read_is_not_called_damaged() {
    let (scene, mut machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    machine.power_on().unwrap();
    publish(&scene, "1.2", true);
    // Over and over, while the update clears, writes and proves slot a.
    let mut update = machine.command(&["update"]).spawn().unwrap();
    let mut answers = Vec::new();
    while update.try_wait().unwrap().is_none() {
        let found = machine.ask(&["verify", "a"]).unwrap();
        assert!(found.code != 49, "an update in its course is taken for damage: {}", found.said);
        let soundness = found.said["slots"][0]["soundness"].clone();
        // Not judged is no success.
        assert_eq!(found.code, if soundness == "changed" { 70 } else { 0 }, "{}", found.said);
        answers.push(soundness);
    }
    answers.dedup();
    println!("while slot a was written: {answers:?}");
    assert!(update.wait().unwrap().success());
    assert_eq!(ask(&machine, &["verify", "a"], 0).said["slots"][0]["release"]["version"], "1.2");
}

#[test]
fn looking_makes_neither_the_state_folder_nor_a_file_in_it() {
    let (scene, machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    let looks: &[(&[&str], i32)] = &[
        (&["status"], 0),
        (&["history"], 0),
        (&["verify"], 0),
        (&["quarantine", "list"], 0),
        (&["check"], 0),
        (&["logs"], 0),
    ];
    let look = || {
        let (before, disk) = (tree(&machine), sha256(&machine.disk()).unwrap());
        for (verb, code) in looks {
            assert_eq!(machine.ask(verb).unwrap().code, *code, "{verb:?}");
            assert!(tree(&machine) == before, "{verb:?} wrote something");
        }
        let health = machine.ask(&["health"]).unwrap();
        assert!(tree(&machine) == before, "health wrote something");
        assert_eq!(sha256(&machine.disk()).unwrap(), disk);
        health
    };
    std::fs::remove_dir_all(machine.state_dir()).unwrap();
    assert_eq!(look().code, 0);
    assert!(!machine.state_dir().exists());
    // The folder alone, as a fresh partition has it.
    std::fs::create_dir(machine.state_dir()).unwrap();
    assert_eq!(look().code, 0);
    assert_eq!(std::fs::read_dir(machine.state_dir()).unwrap().count(), 0);
    // Whoever changes something makes all of it.
    std::fs::remove_dir(machine.state_dir()).unwrap();
    ask(&machine, &["update"], 0);
    for name in ["facts-1", "facts-2", "state.json"] {
        assert!(machine.state_dir().join(name).is_file(), "{name}");
    }
}

/// Every file and folder of the machine, the files with what is in them; of the disk, which is large, when it was written.
fn tree(machine: &Machine) -> Vec<(String, String)> {
    let folder = machine.config().parent().unwrap().to_path_buf();
    let entries = walkdir::WalkDir::new(&folder).sort_by_file_name().into_iter().map(Result::unwrap);
    let content = |entry: &walkdir::DirEntry| match entry.file_type().is_file() {
        true if entry.path() == machine.disk() => {
            format!("{:?}", entry.metadata().unwrap().modified().unwrap())
        }
        true => sha256(entry.path()).unwrap(),
        false => String::new(),
    };
    entries.map(|entry| (entry.path().display().to_string(), content(&entry))).collect()
}

#[test]
fn a_disk_image_that_is_not_there_is_no_fault_of_the_records() {
    let (_scene, machine) = machine_with_1_0();
    std::fs::rename(machine.disk(), machine.disk().with_extension("away")).unwrap();
    for verb in ["status", "verify", "update"] {
        let refused = ask(&machine, &[verb], 46);
        assert_eq!(refused.said["reason"], "layout-unknown");
        assert!(
            refused.said["detail"].as_str().unwrap().contains("there is no disk image"),
            "{}",
            refused.said
        );
        assert!(refused.said["remedy"].as_str().unwrap().contains("`disk` under [machine]"), "{verb}");
    }
}

#[test]
fn apply_is_done_once_and_a_second_run_changes_nothing() {
    let (scene, mut machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    let file = scene.folder().join("desired.toml");
    let file = file.to_str().unwrap();
    let apply =
        |more: &[&'static str]| -> Vec<&str> { [&["apply", file, "--detailed-exitcode"], more].concat() };
    std::fs::write(file, "release = \"1.0\"\n").unwrap();
    assert_eq!(ask(&machine, &apply(&[]), 0).said["outcome"], "unchanged", "it runs");

    std::fs::write(file, "release = \"1.1\"\n").unwrap();
    let before = sha256(&machine.disk()).unwrap();
    assert_eq!(ask(&machine, &apply(&["--dry-run"]), 0).said["outcome"], "would-update");
    assert_eq!(before, sha256(&machine.disk()).unwrap());
    assert_eq!(ask(&machine, &apply(&[]), 2).said["outcome"], "armed");
    let armed = sha256(&machine.disk()).unwrap();
    assert_eq!(ask(&machine, &apply(&[]), 0).said["outcome"], "unchanged", "it is armed");
    assert_eq!(armed, sha256(&machine.disk()).unwrap());
    assert_eq!(boot_of(&machine, Slot::B), "trial");
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    assert_eq!(ask(&machine, &apply(&[]), 0).said["outcome"], "unchanged", "it runs now");

    // Naming a release is an operator's wish: back is as good as forward. A mistake names its line.
    std::fs::write(file, "release = \"1.0\"\nreboot = true\n").unwrap();
    assert_eq!(ask(&machine, &apply(&[]), 2).said["outcome"], "rebooting");
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    std::fs::write(file, "release = \"1.0\"\nrebot = true\n").unwrap();
    let refused = ask(&machine, &apply(&[]), 72);
    assert!(
        refused.said["detail"].as_str().unwrap().contains("line 2: unknown field `rebot`"),
        "{}",
        refused.said
    );
}

#[test]
fn a_table_fits_a_narrow_terminal_says_the_same_on_a_wide_one_and_has_no_colours_in_a_pipe() {
    let (scene, mut machine) = machine_with_1_0();
    publish(&scene, "1.1", false);
    ask(&machine, &["update", "--reboot"], 0);
    machine.power_on().unwrap();
    for verb in [&["history"][..], &["health"], &["quarantine", "list"]] {
        let printed = |columns: &str| {
            let output = machine.command(verb).env("COLUMNS", columns).env("TERM", "xterm-256color").output();
            text(&output.unwrap().stdout)
        };
        let (narrow, wide) = (printed("80"), printed("160"));
        for (page, columns) in [(&narrow, 80), (&wide, 160)] {
            assert!(!page.contains('\u{1b}'), "{verb:?}: {page:?}");
            let widest = page.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= columns, "{verb:?} is {widest} columns wide in {columns}:\n{page}");
        }
        // Wrapped, the words come in another order; none is lost.
        let letters = |page: &str| {
            let mut letters: Vec<char> = page.chars().filter(|c| c.is_alphanumeric()).collect();
            letters.sort_unstable();
            letters
        };
        // The check's milliseconds differ from run to run.
        if verb[0] != "health" {
            assert_eq!(letters(&narrow), letters(&wide), "{verb:?}");
        }
        println!("{narrow}");
    }
}

#[test]
fn every_verb_has_a_manual_page_that_man_reads_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let switchback = tools::switchback().unwrap();
    let write = || {
        let mut command = Command::new(&switchback);
        command.args(["man", "--detailed-exitcode", "--output"]).arg(folder.path()).output().unwrap()
    };
    assert_eq!(write().status.code(), Some(2));
    let again = write();
    assert_eq!(again.status.code(), Some(0), "the same pages are no change: {}", text(&again.stdout));
    std::fs::write(folder.path().join("switchback-status.1"), "other").unwrap();
    assert_eq!(write().status.code(), Some(2), "a page that is other is written");

    let verbs = verbs();
    assert!(verbs.len() > 12, "{verbs:?}");
    for verb in verbs.iter().filter(|verb| *verb != "help") {
        assert!(folder.path().join(format!("switchback-{verb}.1")).is_file(), "{verb} has no page");
    }
    let groff = tools::program("groff", "groff-base").unwrap();
    let mut pages: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|page| page.unwrap().path()).collect();
    pages.sort();
    for verb in ["switchback.1", "switchback-image-build.1", "switchback-quarantine-release.1"] {
        assert!(pages.contains(&folder.path().join(verb)), "no {verb} in {pages:?}");
    }
    for page in &pages {
        let read =
            Command::new(&groff).args(["-Kutf8", "-man", "-ww", "-Tutf8", "-z"]).arg(page).output().unwrap();
        let told = text(&read.stderr);
        assert!(read.status.success() && told.is_empty(), "{}: {told}", page.display());
        let content = std::fs::read_to_string(page).unwrap();
        assert!(
            content.contains(".SH SYNOPSIS") && content.contains(".SH DESCRIPTION"),
            "{}",
            page.display()
        );
        assert!(content.contains("Changes"), "{} does not say what the verb changes", page.display());
    }
    let printed = Command::new(&switchback).arg("man").output().unwrap();
    let main = std::fs::read(folder.path().join("switchback.1")).unwrap();
    assert!(printed.status.success() && printed.stdout == main, "without a folder the main page is printed");
}

#[test]
fn the_completion_scripts_are_sound_to_their_shells() {
    let switchback = tools::switchback().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let made = Command::new(&switchback).args(["completions", shell]).output().unwrap();
        let script = folder.path().join(shell);
        std::fs::write(&script, &made.stdout).unwrap();
        assert!(text(&made.stdout).contains("quarantine"), "{shell}: {}", text(&made.stderr));
        let program = tools::program(shell, shell).unwrap();
        let read = Command::new(program).arg(check).arg(&script).output().unwrap();
        let told = format!("{}{}", text(&read.stdout), text(&read.stderr));
        assert!(read.status.success() && told.is_empty(), "{shell}: {told}");
    }
}

#[test]
fn bash_completes_a_verb_and_the_name_of_a_flag() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("switchback.bash");
    let switchback = tools::switchback().unwrap();
    let made = Command::new(&switchback).args(["completions", "bash"]).output().unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    std::fs::write(&script, &made.stdout).unwrap();
    for (typed, index, expected) in
        [("switchback quar", 1, "quarantine"), ("switchback update --dr", 2, "--dry-run")]
    {
        let ask = format!(
            "set -e; . {}; COMP_WORDS=({typed}); COMP_CWORD={index}; COMP_LINE='{typed}'; COMP_POINT=${{#COMP_LINE}}; \
             _switchback switchback \"${{COMP_WORDS[{index}]}}\" \"${{COMP_WORDS[{index}-1]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let bash = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
        let offered = text(&bash.stdout);
        assert!(offered.lines().any(|word| word == expected), "{typed}: {offered}{}", text(&bash.stderr));
    }
}

#[test]
fn a_release_like_an_earlier_one_with_a_patch_from_it_costs_an_update_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::new(folder.path(), &tools::switchback().unwrap()).unwrap();
    desk.build(&SmallRelease { version: "1.0", healthy: true, root_bytes: 8 << 20 }).unwrap();
    let mut root = std::fs::read(desk.path("root-1.0.img")).unwrap();
    // Sixteen bytes in every 200 KiB of what is not zero.
    let full: Vec<usize> = (0..root.len()).step_by(200 << 10).filter(|at| root[*at] != 0).collect();
    assert!(full.len() > 10, "{full:?}");
    full.iter().for_each(|at| root[*at..*at + 16].iter_mut().for_each(|byte| *byte ^= 0x55));
    std::fs::write(desk.path("root-1.1.img"), root).unwrap();
    let built = desk.build_partition("1.1", "root-1.1.img", &["--like", "oci:images:1.0"]).unwrap();

    let push = ["image", "push", "oci:images:1.1", "oci:public", "--tag", "stable", "--patch-from"];
    let refused = desk.command(&[&push[..], &["oci:images:1.1"]].concat()).output().unwrap();
    assert_eq!(refused.status.code(), Some(74), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("the same OS image"), "{}", text(&refused.stderr));
    assert!(desk.run(&["image", "inspect", "oci:public:stable"]).is_err(), "no tag was moved");

    let pushed = desk.run(&[&push[..], &["oci:images:1.0"]].concat()).unwrap();
    assert_eq!(pushed["digest"], built.to_string());
    let patch = &pushed["patches"][0];
    assert_eq!((&patch["from"], pushed["patches"].as_array().unwrap().len()), (&Value::from("1.0"), 1));
    let patch_bytes = patch["bytes"].as_u64().unwrap();
    assert!(patch_bytes < 150 * full.len() as u64, "{patch}");

    let compare = ["image", "diff", "oci:images:1.0", "oci:public:stable"];
    let difference = desk.run(&compare).unwrap();
    let slot = &difference["slots"][0];
    let fetched =
        |cost: &Value| cost["fetch_bytes"].as_u64().unwrap() + cost["patch_bytes"].as_u64().unwrap();
    let patched = fetched(&slot["patch"]["cost"]) + slot["patch"]["header_bytes"].as_u64().unwrap();
    assert_eq!((patched, &difference["boot_bytes"]), (patch_bytes, &Value::from(0)));
    assert!(fetched(&slot["chunks"]) > 50 * patched && fetched(&slot["whole"]) > 4 << 20, "{slot}");
    let shown = text(&desk.command(&compare).output().unwrap().stdout);
    for line in
        ["demo-os 1.0 to demo-os 1.1", "  slot root", "    whole ", "    patch ", "  boot files         0 B"]
    {
        assert!(shown.contains(line), "{line}: {shown}");
    }
}
