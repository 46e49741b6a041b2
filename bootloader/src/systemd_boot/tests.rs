//! What systemd-boot alone promises: names, order of effects, power cuts, foreign and damaged entries.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::firmware::SimulatedFirmware;
use super::*;
use crate::boot_state::SlotBoot;
use crate::contract::{self, RecordingEsp, Rig, sample_release};
use crate::esp::MountedEsp;
use crate::test_disk::{blank_fat, fat_esp, fsck};

/// A machine with systemd-boot, its partition a directory or a FAT image.
struct LoaderRig {
    esp: Arc<RecordingEsp>,
    image: Option<PathBuf>,
    folder: tempfile::TempDir,
}

impl LoaderRig {
    fn mounted() -> LoaderRig {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("esp");
        std::fs::create_dir(&root).unwrap();
        LoaderRig::on(Arc::new(MountedEsp::new(root)), None, folder)
    }

    fn fat() -> LoaderRig {
        let (folder, image) = blank_fat(512);
        LoaderRig::on(Arc::new(fat_esp(&image, 512)), Some(image), folder)
    }

    fn on(esp: Arc<dyn EspDir>, image: Option<PathBuf>, folder: tempfile::TempDir) -> LoaderRig {
        esp.mkdir(ENTRIES).unwrap();
        LoaderRig { esp: Arc::new(RecordingEsp::new(esp)), image, folder }
    }

    fn systemd_boot(&self) -> SystemdBoot {
        SystemdBoot::new(self.esp.clone(), Machine::host())
    }

    fn release(&self, version: &str) -> BootFiles {
        sample_release(self.folder.path(), version)
    }

    fn stage(&self, slot: Slot, version: &str) -> BootFiles {
        let files = self.release(version);
        self.systemd_boot().forget(slot).unwrap();
        self.systemd_boot().prepare(slot, &files).unwrap();
        files
    }

    fn step(&self, change: impl FnOnce(BootState) -> BootState) {
        let boot = self.systemd_boot();
        boot.write(&change(boot.read().unwrap())).unwrap();
    }

    /// A confirmed, B staged.
    fn staged() -> LoaderRig {
        let machine = LoaderRig::mounted();
        machine.stage(Slot::A, "1.0");
        machine.step(|state| state.confirm(Slot::A));
        machine.stage(Slot::B, "1.1");
        machine.esp.take_events();
        machine
    }

    fn names(&self) -> Vec<String> {
        self.esp.list(ENTRIES).unwrap().into_iter().map(|entry| entry.name).collect()
    }

    fn put(&self, file_name: &str, text: &str) {
        self.esp.write_tmp(&path(file_name), &mut text.as_bytes()).unwrap();
    }
}

impl Rig for LoaderRig {
    fn bootloader(&self) -> Box<dyn Bootloader> {
        Box::new(self.systemd_boot())
    }
    fn power_on(&self) -> Option<Slot> {
        if let Some(image) = &self.image {
            fsck(image);
        }
        let start = SimulatedFirmware.power_on(&*self.esp).unwrap()?;
        for path in start.entry.paths() {
            assert!(self.esp.file_bytes(path).unwrap().is_some(), "{path} is named but missing");
        }
        start.slot
    }
    fn writes(&self) -> usize {
        self.esp.steps()
    }
    fn scratch(&self) -> &Path {
        self.folder.path()
    }
}

#[test]
fn the_contract_holds_on_a_mounted_partition() {
    contract::check(&mut || Box::new(LoaderRig::mounted()));
}

#[test]
fn the_contract_holds_on_fat_in_an_image() {
    contract::check(&mut || Box::new(LoaderRig::fat()));
}

#[test]
fn the_names_tell_the_story_of_an_update_and_a_rollback() {
    let machine = LoaderRig::staged();
    assert_eq!(machine.names(), ["switchback-a-1.conf", "switchback-b-2.prepared"]);
    machine.step(|state| state.arm(Slot::B, 3));
    assert_eq!(machine.names(), ["switchback-a-1.conf", "switchback-b-2+3-0.conf"]);
    machine.power_on();
    assert_eq!(machine.names(), ["switchback-a-1.conf", "switchback-b-2+2-1.conf"]);
    machine.step(|state| state.confirm(Slot::B));
    assert_eq!(machine.names(), ["switchback-a-1.conf", "switchback-b-2.conf"]);
    machine.step(|state| state.arm(Slot::A, 3));
    assert_eq!(machine.names(), ["switchback-a-1.conf", "switchback-a-3+3-0.conf", "switchback-b-2.conf"]);
    machine.power_on();
    machine.step(|state| state.revert(Slot::A));
    assert_eq!(machine.names(), ["switchback-a-1.conf", "switchback-a-3+0-1.conf", "switchback-b-2.conf"]);
    machine.step(|state| state.arm(Slot::A, 2));
    machine.power_on();
    machine.step(|state| state.confirm(Slot::A));
    assert_eq!(
        machine.names(),
        ["switchback-a-3.conf", "switchback-b-2.conf"],
        "older ones go after the confirm"
    );
}

#[test]
fn each_change_of_state_is_one_rename() {
    let machine = LoaderRig::staged();
    let one_rename = |from: &str, to: &str| [format!("rename {ENTRIES}/{from} {ENTRIES}/{to}")];
    machine.step(|state| state.arm(Slot::B, 3));
    assert_eq!(machine.esp.take_events(), one_rename("switchback-b-2.prepared", "switchback-b-2+3-0.conf"));
    machine.step(|state| state.revert(Slot::B));
    assert_eq!(machine.esp.take_events(), one_rename("switchback-b-2+3-0.conf", "switchback-b-2+0-0.conf"));
    machine.step(|state| state.arm(Slot::B, 3));
    assert_eq!(machine.esp.take_events(), one_rename("switchback-b-2+0-0.conf", "switchback-b-2+3-0.conf"));
    machine.step(|state| state.confirm(Slot::B));
    assert_eq!(machine.esp.take_events(), one_rename("switchback-b-2+3-0.conf", "switchback-b-2.conf"));
}

#[test]
fn an_install_writes_each_file_before_its_name_and_the_entry_last() {
    let machine = LoaderRig::staged();
    let boot = machine.systemd_boot();
    boot.forget(Slot::B).unwrap();
    let forgotten = machine.esp.take_events();
    assert_eq!(forgotten[0], format!("remove {ENTRIES}/switchback-b-2.prepared"));
    assert!(forgotten.len() > 1);
    assert!(forgotten[1..].iter().all(|event| event.starts_with("remove switchback/b/")));

    boot.prepare(Slot::B, &machine.release("1.2")).unwrap();
    let mut expected = Vec::new();
    let mut file = |path: &str, temporary: &str| {
        expected.extend([format!("write {temporary}"), format!("rename {temporary} {path}")]);
    };
    for name in ["linux", "initrd", "manifest.json", "signatures.json"] {
        file(&format!("switchback/b/{name}"), &format!("switchback/b/{name}.tmp"));
    }
    file(&path("switchback-b-2.prepared"), &path("switchback-b-2.tmp"));
    assert_eq!(machine.esp.take_events(), expected);
}

/// Cuts the power after each step of `work`: the record then reads as before or as after, the machine starts, and
/// the same work done again succeeds.
fn survives_cuts(before: impl Fn() -> LoaderRig, work: impl Fn(&SystemdBoot) -> Result<(), BootError>) {
    let whole = before();
    let old = whole.systemd_boot().read().unwrap();
    work(&whole.systemd_boot()).unwrap();
    let (steps, new) = (whole.esp.steps(), whole.systemd_boot().read().unwrap());
    assert!(steps > 0, "there is nothing to cut");
    for step in 0..steps {
        let machine = before();
        machine.esp.cut_power_after(Some(step));
        assert!(work(&machine.systemd_boot()).is_err(), "cut after {step} of {steps}");
        machine.esp.cut_power_after(None);
        let found = machine.systemd_boot().read().unwrap();
        assert!(found == old || found == new, "cut after {step}: {found:?} is neither {old:?} nor {new:?}");
        work(&machine.systemd_boot()).unwrap();
        assert_eq!(machine.systemd_boot().read().unwrap(), new);
        assert_eq!(machine.names(), whole.names(), "cut after {step}: nothing is left over");
        assert_eq!(machine.power_on(), new.choose());
    }
}

fn to(change: impl Fn(BootState) -> BootState) -> impl Fn(&SystemdBoot) -> Result<(), BootError> {
    move |boot| boot.write(&change(boot.read()?))
}

/// Both confirmed, B runs.
fn updated() -> LoaderRig {
    let machine = LoaderRig::staged();
    machine.step(|state| state.arm(Slot::B, 3));
    machine.step(|state| state.confirm(Slot::B));
    machine.esp.take_events();
    machine
}

#[test]
fn a_power_cut_between_any_two_steps_leaves_the_old_or_the_new_state() {
    survives_cuts(LoaderRig::staged, to(|state| state.arm(Slot::B, 3)));
    survives_cuts(updated, to(|state| state.arm(Slot::A, 3)));
    survives_cuts(updated, to(|state| BootState { wanted: Slot::A, ..state }));
    let trial = || {
        let machine = updated();
        machine.step(|state| state.arm(Slot::A, 3));
        machine.power_on();
        machine.esp.take_events();
        machine
    };
    survives_cuts(trial, to(|state| state.confirm(Slot::A)));
    survives_cuts(trial, to(|state| state.revert(Slot::A)));
    survives_cuts(updated, |boot| boot.forget(Slot::A));
    survives_cuts(trial, |boot| boot.forget(Slot::A));
}

#[test]
fn an_install_cut_anywhere_is_completed_by_a_second_run() {
    let scratch = tempfile::tempdir().unwrap();
    let files = sample_release(scratch.path(), "1.2");
    survives_cuts(LoaderRig::staged, |boot| {
        boot.forget(Slot::B)?;
        boot.prepare(Slot::B, &files)?;
        boot.verify(Slot::B, &files)
    });
}

/// Any order of steps, sensible or not, with the power cut in the middle of some.
#[test]
fn whatever_is_done_the_names_follow_the_model() {
    let mut seed = 11u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let scratch = tempfile::tempdir().unwrap();
    let files = sample_release(scratch.path(), "1.2");
    let machine = LoaderRig::staged();
    let (mut story, mut done, mut cut) = (Vec::new(), 0, 0);
    for _ in 0..700 {
        let before = machine.systemd_boot().read().unwrap();
        let slot = Slot::ALL[random(2) as usize];
        let (step, after) = match random(7) {
            0 | 1 => ("arm", before.arm(slot, 1 + random(4) as u8)),
            2 => ("confirm", before.confirm(slot)),
            3 => ("revert", before.revert(slot)),
            4 => ("prefer", BootState { wanted: slot, ..before }.normalise()),
            5 => ("install", before.forget(slot)),
            _ => ("start", before.spend()),
        };
        let work = || match step {
            "install" => {
                machine.systemd_boot().forget(slot)?;
                machine.systemd_boot().prepare(slot, &files)
            }
            "start" => SimulatedFirmware.power_on(&*machine.esp).map(drop),
            _ => machine.systemd_boot().write(&after),
        };
        story.push(format!("{step} {slot} from {before:?}: {:?}", machine.names()));
        let told = |what: &str| format!("{what}\n{}", story[story.len().saturating_sub(6)..].join("\n"));
        let is_cut = random(3) == 0;
        machine.esp.cut_power_after(is_cut.then(|| random(4) as usize));
        let result = work();
        machine.esp.cut_power_after(None);
        let found = machine.systemd_boot().read().unwrap();
        match &result {
            Ok(()) => done += 1,
            Err(_) => cut += usize::from(is_cut),
        }
        match result {
            // A slot that was never installed here has no entry to change.
            Err(BootError::NoEntry { .. } | BootError::BadFiles { .. }) => assert_eq!(found, before),
            Err(e) if !is_cut => panic!("{}", told(&format!("{e:?}"))),
            Err(_) => assert!(
                found.means_the_same_as(&before) || found.means_the_same_as(&after),
                "{}",
                told(&format!("neither old nor {after:?}: {found:?}"))
            ),
            Ok(()) => {
                assert!(found.means_the_same_as(&after), "{}", told(&format!("{found:?} is not {after:?}")))
            }
        }
    }
    assert!(done > 400 && cut > 50, "{done} steps done, {cut} cut: the walk went nowhere");
}

#[test]
fn both_names_of_a_torn_rename_read_as_one_state_and_one_is_moved_aside() {
    for (second, state, why) in [
        (
            "switchback-b-2.prepared",
            SlotBoot::Trial { tries_left: 3, tries_done: 0 },
            "arming was cut: armed",
        ),
        (
            "switchback-b-2+2-1.conf",
            SlotBoot::Trial { tries_left: 3, tries_done: 0 },
            "the loader was cut: not counted",
        ),
        ("switchback-b-2.conf", SlotBoot::Good, "confirming was cut: confirmed"),
        (
            "switchback-b-2+0-0.conf",
            SlotBoot::Trial { tries_left: 3, tries_done: 0 },
            "reverting was cut: on trial",
        ),
    ] {
        let machine = LoaderRig::staged();
        machine.step(|state| state.arm(Slot::B, 3));
        let text = machine.esp.read(&path("switchback-b-2+3-0.conf"), ENTRY_BYTES_MAX).unwrap();
        machine.put(second, &String::from_utf8(text).unwrap());
        assert_eq!(machine.systemd_boot().read().unwrap().slot(Slot::B), state, "{why}");
        machine.step(|state| state);
        let live = machine
            .names()
            .iter()
            .filter(|name| name.starts_with("switchback-b-2") && name.ends_with(".conf"))
            .count();
        assert_eq!(live, 1, "{why}: {:?}", machine.names());
        assert!(
            machine.names().contains(&"switchback-b-2.torn0".to_string()),
            "{why}: {:?}",
            machine.names()
        );
        assert_eq!(machine.systemd_boot().read().unwrap().slot(Slot::B), state, "{why}");
    }
}

#[test]
fn entries_and_files_of_others_are_left_alone() {
    let machine = LoaderRig::staged();
    let foreign = ["debian-6.1.conf", "README", "switchback-a-old.conf", "switchback-c-1.conf"];
    for name in foreign {
        machine.put(name, "title Debian\nlinux /vmlinuz\n");
    }
    machine.esp.write_tmp("vmlinuz", &mut &b"MZ"[..]).unwrap();
    machine.step(|state| state.arm(Slot::B, 3));
    machine.systemd_boot().forget(Slot::B).unwrap();
    machine.systemd_boot().forget(Slot::A).unwrap();
    let mut left = foreign.to_vec();
    left.sort();
    assert_eq!(machine.names(), left);
    let start = SimulatedFirmware.power_on(&*machine.esp).unwrap().unwrap();
    assert_eq!((start.slot, start.entry.file_name.as_str()), (None, "switchback-c-1.conf"));
}

#[test]
fn an_entry_whose_kernel_is_missing_does_not_exist_for_the_loader_nor_for_us() {
    let machine = LoaderRig::staged();
    machine.step(|state| state.arm(Slot::B, 3));
    machine.esp.remove("switchback/b/linux").unwrap();
    assert_eq!(
        machine.systemd_boot().read().unwrap(),
        BootState { slots: [SlotBoot::Good, SlotBoot::Empty], wanted: Slot::A }
    );
    assert_eq!(machine.power_on(), Some(Slot::A));
    assert!(machine.names().contains(&"switchback-b-2+3-0.conf".to_string()), "no try was spent");
}

#[test]
fn a_slot_with_a_kernel_that_cannot_be_loaded_is_not_armed() {
    let machine = LoaderRig::staged();
    machine.esp.write_tmp("switchback/b/linux", &mut &b"\x7fELF no PE"[..]).unwrap();
    let boot = machine.systemd_boot();
    let before = boot.read().unwrap();
    assert!(matches!(boot.write(&before.arm(Slot::B, 3)), Err(BootError::NotBootable { .. })));
    assert_eq!(boot.read().unwrap(), before);
    let mut files = machine.release("1.2");
    std::fs::write(&files.files[0].source, b"no kernel").unwrap();
    files.files[0].bytes = 9;
    boot.forget(Slot::B).unwrap();
    assert!(matches!(boot.prepare(Slot::B, &files), Err(BootError::NotBootable { .. })));
}

#[test]
fn damaged_and_hostile_entries_are_no_entries() {
    let machine = LoaderRig::staged();
    let expected = machine.systemd_boot().read().unwrap();
    machine.put("switchback-b-9.conf", "linux ../../etc/passwd\nversion 9\n");
    machine.put("switchback-b-10.conf", "");
    machine.put("switchback-b-11+3-0.conf", &"x".repeat(ENTRY_BYTES_MAX as usize + 1));
    machine.esp.write_tmp(&path("switchback-b-12.conf"), &mut &[0xff, 0xfe, 0x00][..]).unwrap();
    assert_eq!(machine.systemd_boot().read().unwrap(), expected);
    machine.systemd_boot().forget(Slot::B).unwrap();
    assert_eq!(machine.names(), ["switchback-a-1.conf"], "and an install clears them away");
}

#[test]
fn preflight_refuses_what_does_not_fit_and_what_it_accepts_fits() {
    let machine = LoaderRig::fat();
    machine.stage(Slot::A, "1.0");
    machine.step(|state| state.confirm(Slot::A));
    machine.stage(Slot::B, "1.1");
    let boot = machine.systemd_boot();
    let mut files = machine.release("1.2");
    let rest = files.sizes()[1..].to_vec();
    let preflight = |kernel: u64| boot.preflight(Slot::B, &[&[kernel], rest.as_slice()].concat());
    let (mut fits, mut too_large) = (0, 1 << 30);
    while too_large - fits > 1 {
        let middle = (fits + too_large) / 2;
        if preflight(middle).is_ok() {
            fits = middle;
        } else {
            too_large = middle;
        }
    }
    let Err(BootError::NoSpace { needed, available, .. }) = preflight(too_large) else {
        panic!("{too_large}")
    };
    assert!(needed > available && needed - available <= 512, "to the cluster: {needed} of {available}");

    let headers = pe::sample(Machine::host(), b"").len();
    let kernel = pe::sample(Machine::host(), &vec![0; fits as usize - headers]);
    std::fs::write(&files.files[0].source, &kernel).unwrap();
    files.files[0].bytes = fits;
    files.files[0].sha256 = Sha256::digest(&kernel).into();
    boot.forget(Slot::B).unwrap();
    boot.prepare(Slot::B, &files).unwrap();
    boot.verify(Slot::B, &files).unwrap();
    machine.step(|state| state.arm(Slot::B, 3));
    machine.step(|state| state.confirm(Slot::B));
    machine.step(|state| state.arm(Slot::A, 3));
    fsck(machine.image.as_ref().unwrap());
}

#[test]
fn a_source_that_changed_since_it_was_verified_never_gets_its_name() {
    let machine = LoaderRig::staged();
    let files = machine.release("1.2");
    let mut bytes = std::fs::read(&files.files[1].source).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&files.files[1].source, bytes).unwrap();
    machine.systemd_boot().forget(Slot::B).unwrap();
    let refused = machine.systemd_boot().prepare(Slot::B, &files);
    assert!(matches!(refused, Err(BootError::Mismatch { ref file, .. }) if file == "initrd"), "{refused:?}");
    assert_eq!(machine.esp.file_bytes("switchback/b/initrd").unwrap(), None);
    assert_eq!(machine.systemd_boot().read().unwrap().slot(Slot::B), SlotBoot::Empty);
}

#[test]
fn a_uki_is_one_line_and_odd_sets_of_files_are_refused() {
    let machine = LoaderRig::staged();
    let kernel_and_initrd = machine.release("1.2");
    let mut uki = kernel_and_initrd.clone();
    uki.files.truncate(1);
    uki.files[0].kind = BootFileKind::Uki;
    uki.cmdline = None;
    let text = entry_text(Slot::B, &uki).unwrap().render(5);
    assert_eq!(text, "title Example OS 1.2\nsort-key switchback\nversion 5\nlinux /switchback/b/uki.efi\n");

    let with = |change: &dyn Fn(&mut BootFiles)| {
        let mut files = kernel_and_initrd.clone();
        change(&mut files);
        files
    };
    machine.systemd_boot().forget(Slot::B).unwrap();
    for (files, why) in [
        (
            with(&|files| files.files[0].kind = BootFileKind::Uki),
            "a UKI with an initrd and a command line beside it",
        ),
        (with(&|files| files.files[1].kind = BootFileKind::Linux), "two kernels"),
        (with(&|files| files.files.truncate(0)), "nothing to start"),
        (with(&|files| files.title = "x\nlinux /evil".to_string()), "a title that adds a line"),
        (
            with(&|files| files.cmdline = Some("a\nefi /evil.efi".to_string())),
            "a command line that adds a line",
        ),
        (with(&|files| files.cmdline = Some("x".repeat(5000))), "a command line without end"),
        (with(&|files| files.passport[0].0 = "../x".to_string()), "a document outside of the folder"),
        (with(&|files| files.passport[0].0 = "linux".to_string()), "a document in place of the kernel"),
        (with(&|files| files.passport[0].0 = files.passport[1].0.clone()), "two documents of one name"),
    ] {
        machine.esp.take_events();
        let refused = machine.systemd_boot().prepare(Slot::B, &files);
        assert!(matches!(refused, Err(BootError::BadFiles { .. })), "{why}: {refused:?}");
        assert_eq!(machine.esp.steps(), 0, "{why}: nothing was written");
    }
}

#[test]
fn a_slot_that_somebody_chose_by_hand_can_still_fall_back() {
    // A is first, but B was picked in the loader's menu, runs, and A goes on trial: after its tries B must be first.
    let machine = updated();
    machine.step(|state| BootState { wanted: Slot::A, ..state });
    assert_eq!(machine.power_on(), Some(Slot::A));
    machine.step(|state| state.arm(Slot::A, 1));
    assert_eq!(machine.power_on(), Some(Slot::A));
    assert_eq!(machine.power_on(), Some(Slot::B));
}
