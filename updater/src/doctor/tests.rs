//! One machine that is well, and what is found when one thing on it is broken: that finding, and no other.

use std::collections::BTreeMap;
use std::fs;

use switchback_bootloader::esp::EspDir as _;
use switchback_partitions::device::BlockDevice as _;

use super::fixture::{ENTRIES, Fixture, NOW, key};
use super::*;

/// Name → result; of several findings of one name the worst.
fn results(report: &Report) -> BTreeMap<&'static str, Level> {
    let mut results = BTreeMap::new();
    for finding in &report.findings {
        let worst = results.entry(finding.name).or_insert(finding.result);
        *worst = finding.result.max(*worst);
    }
    results
}

/// What nobody signed is all that a machine without an author has to complain of.
const UNSIGNED: [&str; 2] = ["slot-a", "slot-b"];

#[test]
fn on_a_machine_that_is_well_nothing_but_its_missing_passports_is_found() {
    let report = Fixture::healthy().examine();
    let unwell: Vec<_> = report.findings.iter().filter(|finding| finding.result > Level::Note).collect();
    let names: Vec<_> = unwell.iter().map(|finding| finding.name).collect();
    let notes = results(&report).into_iter().filter(|(_, level)| *level == Level::Note).map(|(name, _)| name);
    assert_eq!(names, UNSIGNED, "{unwell:#?}");
    assert_eq!(notes.collect::<Vec<_>>(), ["bless-boot"]);
    assert!(report.findings.len() >= 30, "{} findings", report.findings.len());
    assert!(report.findings.iter().all(|finding| (finding.result > Level::Note) == finding.remedy.is_some()));
}

#[test]
fn what_services_need_is_asked_where_there_are_services() {
    let machine = Fixture::healthy();
    let service_names = |report: &Report| {
        report
            .findings
            .iter()
            .filter(|finding| finding.group == Group::Services)
            .map(|f| f.name)
            .collect::<Vec<_>>()
    };
    assert!(service_names(&machine.examine()).is_empty(), "no services");
    machine.edit("etc/switchback/config.toml", "[source]", "[service.dns]\n[source]");
    let report = machine.examine();
    let names = service_names(&report);
    assert_eq!(
        names,
        ["oci-runtime", "service-network", "service-network", "service-network", "service-trust"]
    );
    assert_eq!(results(&report)["service-trust"], Level::Note, "nobody may sign for it alone");
    machine.edit("etc/switchback/config.toml", "[machine]", "[machine]\nruntime = \"/nowhere/crun\"");
    let report = machine.examine();
    assert_eq!(results(&report).get("oci-runtime"), Some(&Level::Problem), "{:#?}", report.findings);
}

struct Case {
    broken: fn(&mut Fixture),
    /// Every finding that is other than on the well machine.
    other: &'static [(&'static str, Level)],
    /// Words of the first of them.
    says: &'static str,
}

use Level::{Note, Ok as Well, Problem, Warning};

#[rustfmt::skip]
const CASES: &[Case] = &[
    // Program and settings.
    Case { broken: |m| m.edit("etc/switchback/config.toml", "[source]", "[source]\nimages = 1"),
           other: &[("configuration", Problem), ("contract", Warning), ("health-checks", Note), ("state-folder", Problem),
                    ("trust-policy", Problem), ("source", Problem)], says: "config.toml, line 2: unknown field `images`" },
    Case { broken: |m| m.remove("usr/lib/switchback/contract"), other: &[("contract", Warning)], says: "nothing says that this root" },
    Case { broken: |m| m.write("usr/lib/switchback/contract", "contract = 9"), other: &[("contract", Warning)], says: "contract 9; this updater keeps 1" },
    Case { broken: |m| m.remove("usr/lib/switchback/health.d"), other: &[("health-checks", Note)], says: "no check" },
    Case { broken: |m| m.write("usr/lib/switchback/health.d/web.toml", "[[chek]]"), other: &[("health-checks", Problem)], says: "web.toml, line 1: unknown field `chek`" },
    // Slots.
    Case { broken: |m| m.variable("LoaderEntrySelected", "switchback-b-2+2-1.conf"), other: &[("running-witnesses", Warning)], says: "the loader says slot b; slot a is believed" },
    Case { broken: |m| m.write("proc/cmdline", "rauc.slot=B"), other: &[("running-witnesses", Warning)], says: "the kernel command line says slot b" },
    // Boot.
    Case { broken: |m| m.remove("sys/firmware"), other: &[("protocol", Problem)], says: "did not start by UEFI" },
    Case { broken: |m| m.variable("LoaderInfo", "GRUB 2.12"), other: &[("protocol", Problem), ("loader-version", Note)], says: "UEFI, but GRUB 2.12 started this system" },
    Case { broken: |m| m.variable("LoaderInfo", "systemd-boot 252.39-1~deb12u2"), other: &[("loader-version", Note)], says: "The next update has the firmware start it again" },
    Case { broken: |m| m.variable("LoaderInfo", "systemd-boot 257.9-1"), other: &[("loader-version", Note)], says: "The next update has the firmware start it again" },
    Case { broken: |m| { m.variable("LoaderInfo", "systemd-boot 257.9-1"); m.esp_write("switchback/b/initrd", b"x") },
           other: &[("loader-version", Warning)], says: "crashes when a kernel with an initrd" },
    Case { broken: |m| { m.variable("LoaderInfo", "systemd-boot 252.39-1~deb12u2");
                         m.edit("etc/switchback/config.toml", "[source]", "[boot]\nfirmware_options = false\n[source]") },
           other: &[("loader-version", Warning)], says: "ends in the firmware" },
    Case { broken: |m| m.variable("LoaderEntryDefault", "switchback-b-2.conf"), other: &[("loader-defaults", Warning)], says: "LoaderEntryDefault = switchback-b-2.conf" },
    Case { broken: |m| m.variable("LoaderEntryOneShot", "debian.conf"), other: &[("loader-defaults", Warning)], says: "LoaderEntryOneShot" },
    Case { broken: |m| m.esp_write("loader/loader.conf", b"timeout 0\ndefault debian.conf\n"), other: &[("loader-defaults", Warning)], says: "default debian.conf" },
    Case { broken: both_names, other: &[("boot-entry-twice", Warning)], says: "a plain and a counted name: switchback-b-2+3-0.conf" },
    Case { broken: |m| m.esp().remove("switchback/b/linux").unwrap(), other: &[("boot-entry-hidden", Warning), ("slot-b", Note)], says: "does not show switchback-b-2+3-0.conf" },
    Case { broken: |m| m.esp_write("loader/entries/debian.conf", b"sort-key debian\nlinux /switchback/a/linux\n"), other: &[("foreign-entries", Problem)], says: "started before any slot: debian.conf" },
    Case { broken: |m| m.esp_write("loader/entries/zeta.conf", b"sort-key zeta\nlinux /switchback/a/linux\n"), other: &[("foreign-entries", Note)], says: "behind ours: zeta.conf" },
    Case { broken: |m| m.esp_write("EFI/Linux/debian.efi", b"MZ"), other: &[("foreign-ukis", Warning)], says: "debian.efi" },
    Case { broken: |m| rename(m, ENTRIES[0], "loader/entries/switchback-a-1+2-1.conf"), other: &[("boot-state", Note)], says: "not confirmed yet" },
    Case { broken: |m| rename(m, ENTRIES[0], "loader/entries/switchback-a-1+0-3.conf"), other: &[("boot-state", Warning)], says: "slot a is marked bad" },
    Case { broken: |m| m.esp().remove(ENTRIES[0]).unwrap(), other: &[("boot-state", Problem)], says: "slot a has no entry" },
    Case { broken: fill, other: &[("esp-space", Problem)], says: "do not fit once more" },
    Case { broken: |m| m.esp_device().write_at(0x41, &[1]).unwrap(), other: &[("esp-clean", Warning)], says: "not unmounted in order" },
    // State.
    Case { broken: |m| m.remove("state"), other: &[("state-folder", Problem)], says: "no such folder" },
    Case { broken: |m| m.place.root_device = None, other: &[("state-partition", Problem)], says: "file system of /" },
    Case { broken: |m| m.write("sys/devices/pci0/virtio0/block/vda/vda6/dev", "253:6"), other: &[("state-partition", Warning)], says: "not on the partition `state`, vda6" },
    Case { broken: |m| damage(m, "state/facts-2"), other: &[("facts", Warning)], says: "facts-1 is whole, generation 1, facts-2 is damaged" },
    Case { broken: |m| { damage(m, "state/facts-1"); damage(m, "state/facts-2") }, other: &[("facts", Warning)], says: "history are lost" },
    Case { broken: |m| m.remove("state/facts-1"), other: &[("facts", Warning)], says: "facts-1 is not there" },
    Case { broken: |m| m.write("state/state.json", "{"), other: &[("state-file", Warning)], says: "cannot be used" },
    // The way back.
    Case { broken: |m| m.remove("sys/class/watchdog/watchdog0"), other: &[("watchdog", Warning)], says: "there is none" },
    Case { broken: |m| { m.remove("proc/1/fd/5"); m.write("sys/class/watchdog/watchdog0/state", "inactive") }, other: &[("watchdog", Warning)], says: "held by nobody: a hang does not end" },
    Case { broken: |m| m.write("sys/class/watchdog/watchdog0/identity", "Software Watchdog\n"), other: &[("watchdog", Warning)], says: "feeds no timer" },
    Case { broken: |m| m.write("proc/sys/kernel/panic", "0\n"), other: &[("panic", Warning)], says: "for ever" },
    Case { broken: |m| m.remove("sys/module"), other: &[("pstore", Note)], says: "no crash records" },
    Case { broken: |m| m.remove("usr/lib/systemd/system/switchback-boot-check.service"), other: &[("boot-check", Problem)], says: "not installed" },
    Case { broken: |m| m.link("etc/systemd/system/switchback-boot-check.service", "/dev/null"), other: &[("boot-check", Problem)], says: "masked" },
    Case { broken: |m| { m.remove("etc/systemd/system/multi-user.target.wants"); m.remove("etc/systemd/system/boot-complete.target.requires") }, other: &[("boot-check", Problem)], says: "not enabled" },
    Case { broken: |m| m.remove("etc/systemd/system/boot-complete.target.requires"), other: &[("boot-check", Warning)], says: "not required by boot-complete.target" },
    Case { broken: |m| m.remove("etc/systemd/system/sysinit.target.wants"), other: &[("trial-deadline", Warning)], says: "installed and not enabled" },
    Case { broken: |m| m.write("etc/systemd/system.conf.d/99-off.conf", "[Manager]\nRuntimeWatchdogSec=0\n"), other: &[("systemd-watchdog", Warning)], says: "RuntimeWatchdogSec=0" },
    Case { broken: |m| m.remove("usr/lib/systemd/system.conf.d"), other: &[("systemd-watchdog", Warning)], says: "not set" },
    // Trust.
    Case { broken: |m| m.remove("usr/lib/switchback/trust/os.pub"), other: &[("trust-policy", Problem), ("slot-a", Well)], says: "nothing can be accepted" },
    Case { broken: |m| m.write("usr/lib/switchback/trust/zz.pub", "-----BEGIN"), other: &[("trust-key", Problem), ("slot-a", Well)], says: "zz.pub: it is no PEM file" },
    // Source and clock.
    Case { broken: |m| m.edit("etc/switchback/config.toml", "image =", "# image ="), other: &[("source", Problem)], says: "nothing is configured" },
    Case { broken: |m| m.edit("etc/switchback/config.toml", ":stable", ":absent"), other: &[("registry-tag", Problem)], says: "it is not there" },
    Case { broken: |m| m.place.now_unix_secs = 0, other: &[("clock", Warning)], says: "1970-01-01T00:00:00Z, which is before this updater was built" },
    Case { broken: |m| m.place.now_unix_secs = 4_102_444_800, other: &[("clock", Problem)], says: "2100-01-01T00:00:00Z, which is too far" },
    Case { broken: |m| m.edit("etc/switchback/config.toml", "[source]", "[schedule]\ndownload = \"window\"\ntime_zone = \"Europe/Berln\"\n\
                              [[schedule.window]]\nstart = \"02:30\"\nlength = \"2h\"\n[source]"),
           other: &[("time-zone", Warning)], says: "`Europe/Berln` is not known, so no window opens" },
    Case { broken: |m| m.remove("run/systemd/timesync"), other: &[("clock-synchronised", Note)], says: "no time service" },
];

fn both_names(machine: &mut Fixture) {
    let text = machine.esp().read(ENTRIES[1], 1000).unwrap();
    machine.esp_write("loader/entries/switchback-b-2.conf", &text);
}

/// Leaves a few clusters: less than the names and entries of an update take.
fn fill(machine: &mut Fixture) {
    let space = machine.esp().space().unwrap();
    let bytes = vec![1; usize::try_from(space.free_bytes - 3 * space.cluster_bytes).unwrap()];
    machine.esp_write("EFI/full", &bytes);
}

fn rename(machine: &Fixture, from: &str, to: &str) {
    machine.esp().rename(from, to).unwrap();
}

fn damage(machine: &Fixture, path: &str) {
    let mut bytes = fs::read(machine.path(path)).unwrap();
    bytes[70] ^= 1;
    fs::write(machine.path(path), bytes).unwrap();
}

#[test]
fn each_thing_that_is_broken_is_found_and_hides_nothing_of_the_rest() {
    let well = results(&Fixture::healthy().examine());
    for case in CASES {
        let mut machine = Fixture::healthy();
        (case.broken)(&mut machine);
        let before = machine.shot();
        let report = machine.examine();
        assert_eq!(machine.shot(), before, "{}: something was written", case.says);
        let (first, level) = case.other[0];
        let found: Vec<_> = report.findings.iter().filter(|finding| finding.name == first).collect();
        assert!(
            found.iter().any(|finding| finding.result == level
                && format!("{}: {}", finding.looked_at, finding.found).contains(case.says)),
            "{first} does not say {:?}: {found:#?}",
            case.says
        );
        let expected: BTreeMap<_, _> = case.other.iter().copied().collect();
        for (name, level) in results(&report) {
            let unexpected =
                !expected.contains_key(name) && well.get(name).is_some_and(|before| *before != level);
            assert!(!unexpected, "{:?} changed {name} as well: {level:?}", case.says);
        }
        for (name, level) in expected {
            if let Some(found) = results(&report).get(name) {
                assert_eq!(*found, level, "{name} after {:?}", case.says);
            }
        }
    }
    println!("{} ways to break a machine, each found", CASES.len());
}

#[test]
fn a_folder_with_nothing_in_it_gets_an_answer_from_every_part() {
    let mut machine = Fixture::healthy();
    for folder in ["dev", "sys", "proc", "usr", "etc", "run", "state", "images"] {
        machine.remove(folder);
    }
    machine.write(
        "etc/switchback/config.toml",
        format!("[machine]\nroot = \"{0}\"\nstate_dir = \"{0}/state\"\n", machine.path("").display()),
    );
    machine.place.now_unix_secs = NOW;
    let before = machine.shot();
    let report = machine.examine();
    assert_eq!(machine.shot(), before, "not even the state folder is made");
    let problems: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.result == Problem)
        .map(|finding| finding.name)
        .collect();
    assert_eq!(problems, ["layout", "running-slot", "protocol", "state-folder", "trust-policy", "source"]);
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.name == "boot-check" && finding.found.contains("no systemd here"))
    );
}

#[test]
fn a_threshold_above_the_keys_that_differ_can_never_be_met() {
    let machine = Fixture::healthy();
    for name in ["one", "two"] {
        machine.write(&format!("etc/switchback/{name}.pub"), key(1));
    }
    let policy = "[trust.policy.os]\nkeys = ['one.pub', 'two.pub']\nthreshold = 2\n[source]";
    machine.edit("etc/switchback/config.toml", "[source]", policy);
    let policy = machine.finding("trust-policy");
    assert_eq!(policy.result, Problem);
    assert!(policy.found.contains("its threshold is 2, and it has 1 different key(s)"), "{}", policy.found);
    assert_eq!(machine.finding("trust-key").result, Well, "each key by itself is good");
}

#[test]
fn the_holder_of_the_watchdog_and_the_mounted_boot_partition_are_named() {
    let machine = Fixture::healthy();
    assert!(machine.finding("watchdog").found.ends_with("60 s, held by systemd (process 1)"));
    assert_eq!(machine.finding("esp-clean").found, "unmounted in order");
    // Mounted somewhere: its files are looked at there, and what lies on the disk is not judged.
    fs::create_dir(machine.path("efi")).unwrap();
    let efi = machine.path("efi").display().to_string();
    machine.write("proc/self/mountinfo", format!("40 21 253:1 / {efi} rw - vfat /dev/vda1 rw\n"));
    assert!(machine.finding("esp-clean").found.starts_with("mounted"));
    let state = machine.finding("boot-state");
    assert!(state.found.contains("nothing starts next"), "the mounted folder is empty: {}", state.found);
}

#[test]
fn a_boards_own_program_is_looked_at_when_it_is_configured() {
    let machine = Fixture::healthy();
    let program = machine.path("boot-control").display().to_string();
    let custom = format!("[boot]\nbackend = 'custom'\n[boot.custom]\ncommand = '{program}'\n[source]");
    machine.edit("etc/switchback/config.toml", "[source]", &custom);
    assert_eq!(machine.finding("protocol").result, Problem, "it is not there");
    machine.write("boot-control", "#!/bin/sh\n");
    assert_eq!(machine.finding("protocol").result, Problem, "it is not executable");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(machine.path("boot-control"), mode).unwrap();
    assert_eq!(machine.finding("protocol").result, Well);
    assert_eq!(machine.finding("boot-state").result, Problem, "it answers nothing");
}

#[test]
fn names_are_kebab_case() {
    for finding in Fixture::healthy().examine().findings {
        assert!(finding.name.bytes().all(|c| c.is_ascii_lowercase() || c == b'-'), "{}", finding.name);
    }
}

#[test]
fn a_loader_that_gives_up_is_no_worry_where_the_firmware_starts_it_again() {
    let machine = Fixture::healthy();
    machine.variable("LoaderInfo", "systemd-boot 252.39-1~deb12u2");
    let efivars = machine.path("sys/firmware/efi/efivars");
    crate::host::firmware::fixture::fill(&efivars, 1, &[1, 4]);
    let before = machine.shot();
    assert_eq!(machine.finding("loader-version").result, Note);
    assert_eq!(machine.shot(), before, "looking registers nothing");
    crate::host::firmware::start_again(&efivars, 3).unwrap();
    let finding = machine.finding("loader-version");
    assert_eq!(finding.result, Well, "{finding:?}");
    assert!(finding.found.contains("the firmware starts it again"), "{finding:?}");
}
