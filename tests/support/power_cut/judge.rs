//! What becomes of an image when the power comes back, and whether every promise held.
//!
//! Not here: which images there are. Rule: a judgement depends on the image alone, so that it may stand for every image
//! that agrees with it on all that was read.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use anyhow::Result;
use regex::Regex;
use switchback::engine::answers::{Answer, Outcome, Reach, Request};
use switchback::facts::{Facts, state_file};
use switchback::reason::Reason;
use switchback_bootloader::boot_state::{BootState, SlotBoot};
use switchback_bootloader::systemd_boot::{look, pe};
use switchback_partitions::slot::Slot;

use super::broken::Broken;
use super::image::Image;
use super::machine::{Fitness, TRIES, World};
use super::promise::{Promise, Violation};
use super::recorder::{Domain, Op};
use super::site::Site;

/// An order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// An update to this version.
    Update(&'static str),
    /// The disk made anew; before that it may be one that nothing starts from.
    Provision,
}

/// What a scenario expects of the end.
#[derive(Debug, Clone)]
pub struct Expected {
    /// How release 1.1 behaves.
    pub fitness: Fitness,
    /// Versions that the machine may run in the end.
    pub rests: Vec<&'static str>,
    /// An order that must succeed in the end, whatever was cut.
    pub then: Option<Then>,
    /// An operator asked for an older security version.
    pub below_floor: bool,
    /// The state folder may be gone, and with it how often a release was tried.
    pub folder_lost: bool,
}

/// What one image came to.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// Each durable record as it was found: boot record, facts, state file.
    pub records: [String; 3],
    /// True when facts or state file could not be read although a file was there.
    pub unreadable: bool,
    /// Where the machine came to rest: slot and version.
    pub rest: Option<(Slot, String)>,
    /// How often it was started.
    pub starts: u32,
    /// The recovery's own steps, for the next cut.
    pub ops: Arc<Vec<Op>>,
    /// What tells this recovery from those that go another way; the same for two that differ in times and boot ids alone.
    pub shape: u64,
    /// What was read of the disk: row and digest.
    pub seen: Vec<(u64, u128)>,
}

/// Powers on with `image`, which so many power cuts led to, and looks until the machine rests; `order`: and then whether
/// the story's order can be given again.
pub fn judge(
    site: &Site,
    scratch: &Path,
    image: Image,
    expected: &Expected,
    broken: Option<Broken>,
    cuts: usize,
    order: bool,
) -> Result<Judgement> {
    clean(scratch)?;
    let world = World::new(site, scratch, image, expected.fitness, broken, None, cuts)?;
    let mut judgement = Judgement {
        violations: Vec::new(),
        records: Default::default(),
        unreadable: false,
        rest: None,
        starts: 0,
        ops: Arc::default(),
        shape: 0,
        seen: Vec::new(),
    };
    let looked = catch_unwind(AssertUnwindSafe(|| look_at(&world, expected, order, &mut judgement)));
    looked.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map_or("no words", String::as_str);
        world.recorder.broken(Promise::Settles, format!("the updater panicked: {words}"));
        Ok(())
    })?;
    judgement.violations = world.recorder.violations();
    judgement.violations.dedup();
    judgement.seen = world.recorder.seen();
    judgement.shape = shape(&judgement);
    Ok(judgement)
}

/// Boot ids, seconds, and the numbers that only count on: they differ from one power cut to the next for ever.
#[expect(clippy::expect_used, reason = "the pattern is a constant")]
static COUNTERS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\d{8}-0000-4000-8000-\d{12}|\d{9,}|seq: \d+").expect("a sound pattern"));

fn shape(judgement: &Judgement) -> u64 {
    let mut shape = DefaultHasher::new();
    for record in &judgement.records {
        COUNTERS.replace_all(record, "#").hash(&mut shape);
    }
    (&judgement.rest, judgement.starts).hash(&mut shape);
    let mut files = BTreeMap::new();
    let mut known = |file: u32| {
        let next = files.len();
        *files.entry(file).or_insert(next)
    };
    for op in &*judgement.ops {
        std::mem::discriminant(op).hash(&mut shape);
        match op {
            Op::Rows(Domain::File(file), _) | Op::Len(file, _) | Op::Flush(Domain::File(file)) => {
                known(*file).hash(&mut shape);
            }
            Op::Rows(_, rows) => rows.iter().for_each(|(row, _)| row.hash(&mut shape)),
            Op::Link(name, file) => (name, known(*file)).hash(&mut shape),
            Op::Rename(from, to) => (from, to).hash(&mut shape),
            Op::Unlink(name) => name.hash(&mut shape),
            Op::Flush(domain) => domain.hash(&mut shape),
            Op::Start | Op::Death => {}
        }
    }
    shape.finish()
}

/// Powers on, waits for the rest, looks at it, and gives the order again.
fn look_at(world: &World<'_>, expected: &Expected, order: bool, judgement: &mut Judgement) -> Result<()> {
    let (records, unreadable, floor) = records(world);
    (judgement.records, judgement.unreadable) = (records, unreadable);
    let broke = |promise, words: String| world.recorder.broken(promise, words);
    let rest = match world.settle() {
        Ok(Some(slot)) => Some((slot, world.running_version(slot).to_owned())),
        Ok(None) => {
            if expected.then != Some(Then::Provision) {
                broke(Promise::AlwaysBootable, "the firmware finds nothing of ours to start".into());
            }
            None
        }
        Err(error) => {
            broke(Promise::AlwaysBootable, format!("{error:#}"));
            None
        }
    };
    judgement.ops = Arc::new(world.recorder.ops());
    judgement.starts = world.starts();
    judgement.rest.clone_from(&rest);
    if let Some((slot, version)) = &rest {
        at_rest(world, expected, *slot, version, floor, judgement.starts)?;
    }
    match (expected.then, rest) {
        (Some(Then::Update(wanted)), Some((slot, _))) if order => {
            ordered_again(world, expected, slot, wanted)
        }
        (Some(Then::Provision), None) if order => provisioned_again(world),
        _ => Ok(()),
    }
}

/// Nothing is carried over that the image does not hold.
pub fn clean(scratch: &Path) -> Result<()> {
    for entry in std::fs::read_dir(scratch)? {
        let path = entry?.path();
        if path.is_file() {
            std::fs::remove_file(path)?;
        } else {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

fn records(world: &World<'_>) -> ([String; 3], bool, u64) {
    let boot =
        world.boot().map_or_else(|error| format!("unreadable: {error:#}"), |state| format!("{state:?}"));
    let folder = world.folder();
    let (facts, lost, floor) = match Facts::read(&*folder) {
        Ok(facts) => (format!("{:?}", facts.known()), facts.known().lost, facts.known().floor),
        Err(error) => (format!("unreadable: {error}"), true, 0),
    };
    let state = state_file::load(&*folder);
    // One of a later version is whole, and not understood here.
    let torn = matches!(&state, state_file::Loaded::Unreadable(why) if !why.starts_with("it has format"));
    ([boot, facts, format!("{state:?}")], lost || torn, floor)
}

/// What holds of a machine that was left alone until it rests.
fn at_rest(
    world: &World<'_>,
    expected: &Expected,
    slot: Slot,
    version: &str,
    floor: u64,
    starts: u32,
) -> Result<()> {
    let broke = |promise, words: String| world.recorder.broken(promise, words);
    let state = world.boot()?;
    if state.slot(slot) != SlotBoot::Good {
        broke(Promise::Settles, format!("at rest on slot {slot}, which is not confirmed: {state:?}"));
    }
    if let SlotBoot::Trial { .. } = state.slot(slot.other()) {
        broke(Promise::Settles, format!("at rest, and the next restart would begin a trial: {state:?}"));
    }
    if !expected.rests.contains(&version) {
        let promise =
            if expected.fitness == Fitness::Well { Promise::OldOrNew } else { Promise::UnattendedReturn };
        broke(promise, format!("at rest on {version}, which is none of {:?}", expected.rests));
    }
    if starts > u32::from(TRIES) + 2 {
        broke(Promise::UnattendedReturn, format!("it took {starts} starts"));
    }
    let found = look::look(&*world.esp()?, pe::Machine::host())?;
    if !found.torn.is_empty() {
        broke(Promise::OldOrNew, format!("two names for one entry are left: {:?}", found.torn));
    }
    let facts = Facts::read(&*world.folder())?;
    let known = facts.known();
    let running = world.site.release(if version.is_empty() { "1.0" } else { version });
    if known.floor < floor || (known.floor > floor && running.security_version < known.floor) {
        broke(Promise::NoStealthDowngrade, format!("the floor went from {floor} to {}", known.floor));
    }
    if running.security_version < known.floor && !expected.below_floor {
        broke(Promise::NoStealthDowngrade, format!("{version} runs below the floor {}", known.floor));
    }
    steady(world, slot, &state)
}

/// Asked again and started again, the machine does nothing more.
fn steady(world: &World<'_>, slot: Slot, state: &BootState) -> Result<()> {
    let broke = |promise, words: String| world.recorder.broken(promise, words);
    let before = (world.recorder.count(), world.recorder.sum());
    let (_, reboots) = world.ask(slot, "1.1", Request::BootCheck { no_reboot: false })?;
    let after = (world.recorder.count(), world.recorder.sum());
    if reboots || before != after {
        broke(Promise::Settles, "asked once more, it went on changing something".into());
    }
    match world.settle() {
        Ok(Some(again)) if again == slot && world.boot()? == *state => {}
        Ok(other) => broke(Promise::Settles, format!("started once more, it is elsewhere: {other:?}")),
        Err(error) => broke(Promise::Settles, format!("started once more: {error:#}")),
    }
    Ok(())
}

/// A disk that was begun is made anew by the same order, whatever is on it.
fn provisioned_again(world: &World<'_>) -> Result<()> {
    let broke = |promise, words: String| world.recorder.broken(promise, words);
    if let Err(failure) = world.provision() {
        broke(Promise::Settles, format!("the disk cannot be provisioned again: {failure}"));
        return Ok(());
    }
    match world.settle() {
        Ok(Some(slot)) if world.running_version(slot) == "1.0" => {}
        Ok(other) => broke(Promise::AlwaysBootable, format!("provisioned again, it starts {other:?}")),
        Err(error) => broke(Promise::AlwaysBootable, format!("provisioned again: {error:#}")),
    }
    Ok(())
}

/// As many cuts as tries, each at the same stage of a trial's start, are what a release leaves that dies there: nobody can
/// tell them apart, and it is quarantined. With fewer cuts than tries that would be a mistake.
fn looks_dead(world: &World<'_>, expected: &Expected) -> Result<bool> {
    let facts = Facts::read(&*world.folder())?;
    let mut reasons = facts.known().quarantine.values().map(|entry| entry.why.reason);
    let died = [Reason::DiedEarly, Reason::DiedInInitramfs, Reason::DiedAfterRoot, Reason::DiedInBootCheck];
    // A trial without a verdict is repeated, but not when nobody knows how often it was already.
    let unknown = |reason| expected.folder_lost && reason == Reason::Inconclusive;
    let excused = reasons.all(|reason| died.contains(&reason) || unknown(reason));
    Ok(world.cuts >= usize::from(TRIES) && excused)
}

/// The same order again has to lead to where the first one would have led.
fn ordered_again(world: &World<'_>, expected: &Expected, slot: Slot, wanted: &str) -> Result<()> {
    let broke = |promise, words: String| world.recorder.broken(promise, words);
    if world.running_version(slot) == wanted {
        return Ok(());
    }
    let mut answer = world.update(slot, wanted, Reach::Reboot)?;
    // After an inconclusive trial an order in passing waits; one that names the release does not.
    if matches!(&answer, Ok(Answer::Update(update)) if update.outcome == Outcome::Unchanged) {
        let named = Request::Update { to: Some(wanted.to_owned()), reach: Reach::Reboot };
        answer = world.ask(slot, wanted, named)?.0;
    }
    match answer {
        Ok(_) => {}
        Err(failure) if failure.why.reason == Reason::Quarantined && looks_dead(world, expected)? => {
            return Ok(());
        }
        Err(failure) => {
            broke(Promise::Settles, format!("the order given again fails: {failure}"));
            return Ok(());
        }
    }
    match world.settle() {
        Ok(Some(slot)) if world.running_version(slot) == wanted => {}
        Ok(other) => {
            let versions: BTreeSet<&str> = Slot::ALL.map(|slot| world.running_version(slot)).into();
            broke(Promise::Settles, format!("ordered again, it rests on {other:?} of {versions:?}"));
        }
        Err(error) => broke(Promise::AlwaysBootable, format!("ordered again: {error:#}")),
    }
    Ok(())
}
