//! The contract that every bootloader backend keeps, as checks that run against any of them.
//!
//! Not here: what one backend alone promises; that is tested beside it. Rule: a check drives the trait and the power
//! button and nothing else, so what holds for the simulated machine is what the updater relies on.

use std::fs;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use switchback_partitions::slot::Slot;

use crate::boot_state::{BootState, SlotBoot};
use crate::record::{BootError, BootFile, BootFileKind, BootFiles, Bootloader};
use crate::systemd_boot::pe::{self, Machine};

mod recording;

pub use recording::RecordingEsp;

/// One blank machine under test.
pub trait Rig {
    /// The backend as a program finds it that starts now: nothing remembered but what is on the medium.
    fn bootloader(&self) -> Box<dyn Bootloader>;
    /// The power comes on: the firmware takes a slot, pays a try if it must, and starts it.
    fn power_on(&self) -> Option<Slot>;
    /// How many times the medium was written to so far.
    fn writes(&self) -> usize;
    /// A folder for the releases' files.
    fn scratch(&self) -> &Path;
    /// False where only the firmware knows how many tries are left.
    fn shows_tries(&self) -> bool {
        true
    }
}

/// A clause of the contract: its sentence and its check. A check panics where the clause is broken.
pub type Clause = (&'static str, fn(&dyn Rig));

/// Every clause.
pub const CLAUSES: &[Clause] = &[
    ("a blank machine has nothing to start", nothing_to_start),
    ("a provisioned slot is good and starts for ever", provisioned_starts_for_ever),
    ("a prepared slot is not started before it is armed", prepared_is_not_started),
    ("an armed slot is tried, and confirmed it stays", armed_tried_confirmed),
    ("tries that nobody confirms end on the other slot", tries_end_on_the_other_slot),
    ("the last try can still be confirmed", last_try_can_be_confirmed),
    ("a reverted slot is left at the next start", reverted_is_left),
    ("rollback arms the other slot again, there and back five times", rollback_there_and_back),
    ("a rollback that fails ends where it began", failed_rollback_ends_where_it_began),
    ("a forgotten slot is never started and has no passport", forgotten_is_gone),
    ("the same state again writes nothing", same_state_writes_nothing),
    ("preparing the same files again writes nothing", same_files_write_nothing),
    ("a slot that can be started is not overwritten", startable_is_not_overwritten),
    ("verify finds other files, and a passport document of another text", verify_finds_other_files),
    ("a boot file that is gone or cut short is told, and nothing is written", what_is_gone_is_told),
    ("what is more than one step is refused and changes nothing", two_steps_are_refused),
];

/// Runs every clause on a machine of its own.
///
/// # Panics
/// Where the backend breaks a clause; the clause's sentence is printed before.
pub fn check(blank: &mut dyn FnMut() -> Box<dyn Rig>) {
    for (sentence, clause) in CLAUSES {
        println!("{}: {sentence}", blank().bootloader().name());
        clause(&*blank());
    }
}

/// The files of a made-up release, written below `scratch`: a kernel that passes the checks but runs nowhere, an
/// initrd, and a passport of two documents.
///
/// # Panics
/// When `scratch` cannot be written.
#[expect(clippy::expect_used, reason = "a test fixture: without its files no check can say anything")]
pub fn sample_release(scratch: &Path, version: &str) -> BootFiles {
    let file = |kind: BootFileKind, bytes: Vec<u8>| {
        let source = scratch.join(format!("{version}-{}", kind.file_name()));
        fs::write(&source, &bytes).expect("the scratch folder can be written");
        BootFile { kind, source, sha256: Sha256::digest(&bytes).into(), bytes: bytes.len() as u64 }
    };
    let kernel = pe::sample(Machine::host(), format!("kernel of {version}").repeat(500).as_bytes());
    let initrd = format!("initrd of {version}").repeat(2000).into_bytes();
    BootFiles {
        files: vec![file(BootFileKind::Linux, kernel), file(BootFileKind::Initrd, initrd)],
        cmdline: Some(format!("quiet switchback.version={version}")),
        title: format!("Example OS {version}"),
        passport: vec![
            ("manifest.json".to_string(), format!("{{\"version\":\"{version}\"}}").into_bytes()),
            ("signatures.json".to_string(), b"[]".to_vec()),
        ],
    }
}

const A: Slot = Slot::A;
const B: Slot = Slot::B;
const TRIES: u8 = 3;

fn state(rig: &dyn Rig) -> BootState {
    unwrap(rig.bootloader().read(), "read")
}

fn write(rig: &dyn Rig, state: BootState) {
    unwrap(rig.bootloader().write(&state), "write");
}

fn unwrap<T>(result: Result<T, BootError>, what: &str) -> T {
    result.unwrap_or_else(|e| panic!("{what}: {e:#?}"))
}

/// Steps 1 to 3 of an install.
fn stage(rig: &dyn Rig, slot: Slot, version: &str) -> BootFiles {
    let files = sample_release(rig.scratch(), version);
    let bootloader = rig.bootloader();
    unwrap(bootloader.preflight(slot, &files.sizes()), "preflight");
    unwrap(bootloader.forget(slot), "forget");
    unwrap(bootloader.prepare(slot, &files), "prepare");
    unwrap(rig.bootloader().verify(slot, &files), "verify");
    files
}

fn provision(rig: &dyn Rig) {
    unwrap(rig.bootloader().forget(B), "forget");
    stage(rig, A, "1.0");
    write(rig, state(rig).confirm(A));
    assert_eq!(state(rig), BootState { slots: [SlotBoot::Good, SlotBoot::Empty], wanted: A });
}

fn arm(rig: &dyn Rig, slot: Slot) {
    write(rig, state(rig).arm(slot, TRIES));
    assert_eq!(state(rig).slot(slot), SlotBoot::Trial { tries_left: TRIES, tries_done: 0 });
    assert_eq!(state(rig).wanted, slot);
}

/// The next start takes `slot`, and what the record says of it afterwards is what `spend` says.
fn starts(rig: &dyn Rig, slot: Slot) {
    let expected = state(rig).spend();
    assert_eq!(rig.power_on(), Some(slot), "started from {:?}", state(rig));
    if rig.shows_tries() {
        assert!(state(rig).means_the_same_as(&expected), "{:?} instead of {expected:?}", state(rig));
    }
}

fn nothing_to_start(rig: &dyn Rig) {
    unwrap(rig.bootloader().forget(A), "forget");
    unwrap(rig.bootloader().forget(B), "forget");
    assert_eq!(state(rig), BootState::EMPTY);
    assert_eq!(unwrap(rig.bootloader().passport(A, "manifest.json", 100), "passport"), None);
}

fn provisioned_starts_for_ever(rig: &dyn Rig) {
    provision(rig);
    let writes = rig.writes();
    for _ in 0..12 {
        starts(rig, A);
    }
    assert_eq!(rig.writes(), writes, "the start of a confirmed slot was paid for");
}

fn prepared_is_not_started(rig: &dyn Rig) {
    provision(rig);
    stage(rig, B, "1.1");
    assert_eq!(state(rig), BootState { slots: [SlotBoot::Good, SlotBoot::Empty], wanted: A });
    starts(rig, A);
}

fn armed_tried_confirmed(rig: &dyn Rig) {
    provision(rig);
    stage(rig, B, "1.1");
    arm(rig, B);
    starts(rig, B);
    write(rig, state(rig).confirm(B));
    assert_eq!(state(rig), BootState { slots: [SlotBoot::Good; 2], wanted: B });
    for _ in 0..12 {
        starts(rig, B);
    }
}

fn tries_end_on_the_other_slot(rig: &dyn Rig) {
    provision(rig);
    stage(rig, B, "1.1");
    arm(rig, B);
    for _ in 0..TRIES {
        starts(rig, B);
    }
    starts(rig, A);
    starts(rig, A);
    assert_eq!(state(rig), BootState { slots: [SlotBoot::Good, SlotBoot::Bad], wanted: A });
}

fn last_try_can_be_confirmed(rig: &dyn Rig) {
    provision(rig);
    stage(rig, B, "1.1");
    arm(rig, B);
    for _ in 0..TRIES {
        starts(rig, B);
    }
    write(rig, state(rig).confirm(B));
    assert_eq!(state(rig), BootState { slots: [SlotBoot::Good; 2], wanted: B });
    starts(rig, B);
}

fn reverted_is_left(rig: &dyn Rig) {
    provision(rig);
    stage(rig, B, "1.1");
    arm(rig, B);
    starts(rig, B);
    write(rig, state(rig).revert(B));
    assert_eq!(state(rig), BootState { slots: [SlotBoot::Good, SlotBoot::Bad], wanted: A });
    starts(rig, A);
}

fn rollback_there_and_back(rig: &dyn Rig) {
    provision(rig);
    stage(rig, B, "1.1");
    for slot in [B, A].into_iter().cycle().take(10) {
        arm(rig, slot);
        starts(rig, slot);
        write(rig, state(rig).confirm(slot));
        starts(rig, slot);
        assert_eq!(state(rig), BootState { slots: [SlotBoot::Good; 2], wanted: slot });
    }
}

fn failed_rollback_ends_where_it_began(rig: &dyn Rig) {
    provision(rig);
    stage(rig, B, "1.1");
    arm(rig, B);
    starts(rig, B);
    write(rig, state(rig).confirm(B));
    arm(rig, A);
    for _ in 0..TRIES {
        starts(rig, A);
    }
    starts(rig, B);
    assert_eq!(state(rig), BootState { slots: [SlotBoot::Bad, SlotBoot::Good], wanted: B });
    // And the bad slot takes the next release as any other.
    stage(rig, A, "1.2");
    arm(rig, A);
    starts(rig, A);
}

fn forgotten_is_gone(rig: &dyn Rig) {
    provision(rig);
    let files = stage(rig, B, "1.1");
    arm(rig, B);
    let document = |slot| unwrap(rig.bootloader().passport(slot, "manifest.json", 100), "passport");
    assert_eq!(document(B).as_ref(), Some(&files.passport[0].1));
    unwrap(rig.bootloader().forget(B), "forget");
    assert_eq!(document(B), None);
    assert!(document(A).is_some(), "the other slot's passport stays");
    assert_eq!(state(rig), BootState { slots: [SlotBoot::Good, SlotBoot::Empty], wanted: A });
    starts(rig, A);
    assert!(rig.bootloader().passport(A, "manifest.json", 3).is_err(), "more than the limit");
}

fn same_state_writes_nothing(rig: &dyn Rig) {
    provision(rig);
    stage(rig, B, "1.1");
    arm(rig, B);
    let (writes, now) = (rig.writes(), state(rig));
    write(rig, now);
    assert_eq!(rig.writes(), writes);
}

fn same_files_write_nothing(rig: &dyn Rig) {
    provision(rig);
    let files = stage(rig, B, "1.1");
    let writes = rig.writes();
    unwrap(rig.bootloader().prepare(B, &files), "prepare again");
    assert_eq!(rig.writes(), writes);
}

fn startable_is_not_overwritten(rig: &dyn Rig) {
    provision(rig);
    let files = sample_release(rig.scratch(), "1.1");
    let writes = rig.writes();
    let refused = rig.bootloader().prepare(A, &files);
    assert!(matches!(refused, Err(BootError::NotForgotten { slot: Slot::A, .. })), "{refused:?}");
    assert_eq!(rig.writes(), writes);
    starts(rig, A);
}

fn verify_finds_other_files(rig: &dyn Rig) {
    provision(rig);
    let files = stage(rig, B, "1.1");
    let verify = |files: &BootFiles| rig.bootloader().verify(B, files);
    unwrap(verify(&files), "verify");
    let mut other = files.clone();
    other.files[1].sha256[0] ^= 1;
    assert!(matches!(verify(&other), Err(BootError::Mismatch { slot: Slot::B, .. })));
    let mut other = files.clone();
    other.passport[0].1.push(b' ');
    assert!(matches!(verify(&other), Err(BootError::Mismatch { slot: Slot::B, .. })));
}

fn what_is_gone_is_told(rig: &dyn Rig) {
    provision(rig);
    let files = stage(rig, B, "1.1");
    let missing = |files: &[BootFile]| unwrap(rig.bootloader().missing(B, files), "missing");
    let writes = rig.writes();
    assert_eq!(missing(&files.files), None, "prepared");
    let mut longer = files.files.clone();
    longer[1].bytes += 1;
    assert!(missing(&longer).is_some_and(|words| words.contains(longer[1].kind.file_name())));
    assert_eq!(rig.writes(), writes);
    arm(rig, B);
    assert_eq!(missing(&files.files), None, "armed");
    unwrap(rig.bootloader().forget(B), "forget");
    assert!(missing(&files.files).is_some_and(|words| words.contains("is gone")));
}

fn two_steps_are_refused(rig: &dyn Rig) {
    provision(rig);
    stage(rig, B, "1.1");
    let (writes, now) = (rig.writes(), state(rig));
    let both = BootState { slots: [SlotBoot::Bad, SlotBoot::Good], wanted: B };
    assert!(matches!(rig.bootloader().write(&both), Err(BootError::NotOneStep(_))));
    assert_eq!((rig.writes(), state(rig)), (writes, now));
}
