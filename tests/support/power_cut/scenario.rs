//! The stories whose every step is cut.
//!
//! Not here: cutting. Rule: a story that is not cut has to end as it says here: one in which nothing happens proves nothing.

use anyhow::{Context as _, Result, bail, ensure};
use switchback::engine::answers::{Reach, Request};
use switchback::facts::Facts;
use switchback::reason::Reason;
use switchback_bootloader::boot_state::SlotBoot;
use switchback_partitions::slot::Slot;

use super::image::{Image, Row};
use super::judge::{Expected, Then};
use super::machine::{Fitness, Start, World};
use super::site::Site;

/// What a machine was through before the story begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Begin {
    /// A disk with nothing on it.
    Blank,
    /// Just provisioned: 1.0 in A.
    Fresh,
    /// Updated once: 1.1 runs from B, 1.0 is in A.
    OnB,
    /// Updated twice: 1.2 runs from A, 1.1 is in B.
    BackOnA,
    /// The first copy of the partition table is gone.
    WithoutFirstTable,
    /// The second copy is.
    WithoutSecondTable,
    /// Others' boot entries stand in front of the ones to come, so that a rename's two names lie in two sectors.
    Crowded,
    /// An updater of a later version was here: its state file, and a record of a kind that is unknown here.
    AfterNewer,
}

/// What goes wrong besides the power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Each step in turn reports an error, once.
    Errors,
    /// From each step on, the device is gone.
    Gone,
    /// From each step on, the state folder is full.
    Full,
    /// One bit of each write to the slot or of a boot file is wrong on the medium.
    Flips,
}

/// A story.
#[derive(Clone)]
pub struct Scenario {
    /// Its name in the table.
    pub name: &'static str,
    /// How it begins.
    pub begin: Begin,
    /// How release 1.1 behaves.
    pub fitness: Fitness,
    /// What happens.
    pub story: fn(&World<'_>) -> Result<()>,
    /// What runs in the end when nothing was cut.
    pub ends: &'static str,
    /// Why release 1.1 is in quarantine in the end when nothing was cut.
    pub why: Option<Reason>,
    /// What may run in the end of any cut.
    pub rests: &'static [&'static str],
    /// An order that must succeed after any cut.
    pub then: Option<Then>,
    /// An operator asked for what is below the floor.
    pub below_floor: bool,
    /// The state folder is lost as well, at each step.
    pub folder_lost: bool,
    /// Instead of power cuts.
    pub trouble: Option<Trouble>,
}

const GOOD: Scenario = Scenario {
    name: "update",
    begin: Begin::Fresh,
    fitness: Fitness::Well,
    story: update,
    ends: "1.1",
    why: None,
    rests: &["1.0", "1.1"],
    then: Some(Then::Update("1.1")),
    below_floor: false,
    folder_lost: false,
    trouble: None,
};

/// A release that is not well: the machine stays on the old one, and takes the next.
const fn bad(name: &'static str, fitness: Fitness) -> Scenario {
    let why = match fitness {
        Fitness::Well => None,
        Fitness::Unhealthy => Some(Reason::HealthFailed),
        Fitness::Panics => Some(Reason::DiedAfterRoot),
        Fitness::Hangs => Some(Reason::DiedInInitramfs),
    };
    Scenario { name, fitness, why, ends: "1.0", rests: &["1.0"], then: Some(Then::Update("1.2")), ..GOOD }
}

/// Every story.
pub const SCENARIOS: &[Scenario] = &[
    GOOD,
    bad("update-unhealthy", Fitness::Unhealthy),
    bad("update-panics", Fitness::Panics),
    bad("update-hangs", Fitness::Hangs),
    Scenario { name: "bad-release-ordered-again", story: ordered_twice, ..bad("", Fitness::Unhealthy) },
    Scenario {
        name: "update-b-to-a",
        begin: Begin::OnB,
        story: update_to_1_2,
        ends: "1.2",
        rests: &["1.1", "1.2"],
        then: Some(Then::Update("1.2")),
        ..GOOD
    },
    Scenario {
        name: "provision",
        begin: Begin::Blank,
        story: provision,
        ends: "1.0",
        rests: &["1.0"],
        then: Some(Then::Provision),
        ..GOOD
    },
    Scenario { name: "staged-then-armed", story: staged_then_armed, ..GOOD },
    Scenario { name: "armed-and-cancelled", story: armed_and_cancelled, ends: "1.0", ..GOOD },
    Scenario {
        name: "second-release-on-trial",
        story: second_release,
        ends: "1.2",
        rests: &["1.0", "1.1", "1.2"],
        then: Some(Then::Update("1.2")),
        ..GOOD
    },
    Scenario {
        name: "rollback",
        begin: Begin::BackOnA,
        story: rollback,
        ends: "1.1",
        rests: &["1.1", "1.2"],
        then: None,
        ..GOOD
    },
    Scenario {
        name: "rollback-below-floor",
        begin: Begin::OnB,
        story: rollback_below_floor,
        ends: "1.0",
        rests: &["1.0", "1.1"],
        then: None,
        below_floor: true,
        ..GOOD
    },
    Scenario { name: "without-first-table", begin: Begin::WithoutFirstTable, ..GOOD },
    Scenario { name: "without-second-table", begin: Begin::WithoutSecondTable, ..GOOD },
    Scenario { name: "crowded", begin: Begin::Crowded, ..GOOD },
    Scenario { name: "crowded-unhealthy", begin: Begin::Crowded, ..bad("", Fitness::Unhealthy) },
    Scenario { name: "after-newer-updater", begin: Begin::AfterNewer, story: update_keeps_foreign, ..GOOD },
    Scenario { name: "state-lost", folder_lost: true, ..GOOD },
    Scenario {
        name: "state-lost-unhealthy",
        folder_lost: true,
        then: None,
        rests: &["1.0"],
        ..bad("", Fitness::Unhealthy)
    },
    Scenario {
        name: "state-lost-rollback",
        folder_lost: true,
        begin: Begin::BackOnA,
        story: rollback,
        ends: "1.1",
        rests: &["1.1", "1.2"],
        then: None,
        ..GOOD
    },
    Scenario { name: "write-error", trouble: Some(Trouble::Errors), ..GOOD },
    Scenario { name: "write-error-unhealthy", trouble: Some(Trouble::Errors), ..bad("", Fitness::Unhealthy) },
    Scenario {
        name: "write-error-rollback",
        trouble: Some(Trouble::Errors),
        begin: Begin::BackOnA,
        story: rollback,
        ends: "1.1",
        rests: &["1.1", "1.2"],
        then: None,
        ..GOOD
    },
    Scenario { name: "device-gone", trouble: Some(Trouble::Gone), ..GOOD },
    Scenario { name: "state-full", trouble: Some(Trouble::Full), ..GOOD },
    Scenario { name: "wrong-bytes", trouble: Some(Trouble::Flips), ..GOOD },
];

impl Scenario {
    /// What a judge has to know.
    pub fn expected(&self) -> Expected {
        Expected {
            fitness: self.fitness,
            rests: self.rests.to_vec(),
            then: self.then,
            below_floor: self.below_floor,
            folder_lost: self.folder_lost,
        }
    }

    /// Holds a story that nobody cut to its end.
    pub fn check_end(&self, world: &World<'_>) -> Result<()> {
        let slot = world.settle()?.context("nothing runs in the end")?;
        let version = world.running_version(slot);
        ensure!(version == self.ends, "{}: it ends on {version}, not on {}", self.name, self.ends);
        let state = world.boot()?;
        ensure!(state.slot(slot) == SlotBoot::Good, "{}: it ends with {state:?}", self.name);
        let facts = Facts::read(&*world.folder())?;
        let why = facts.known().quarantine.values().map(|entry| entry.why.reason).next();
        ensure!(why == self.why, "{}: it ends with {why:?} in quarantine, not {:?}", self.name, self.why);
        Ok(())
    }
}

impl Begin {
    /// The machine before the story.
    pub fn image(self, site: &Site) -> Result<Image> {
        if self == Begin::Blank {
            return Ok(site.blank.clone());
        }
        let scratch = site.scratch()?;
        let after = |orders: &[&str]| -> Result<Image> {
            let world =
                World::new(site, scratch.path(), site.fresh.clone(), Fitness::Well, None, None, 9_000)?;
            let mut slot = up(&world)?;
            for version in orders {
                ordered(&world, slot, version, Reach::Reboot)?;
                slot = up(&world)?;
                ensure!(world.running_version(slot) == *version, "{version} does not run");
            }
            Ok(world.recorder.now())
        };
        let mut fresh = after(&[])?;
        let last = fresh.disk_bytes() / fresh.sector_bytes() as u64 - 1;
        let nothing = Row::new(&vec![0; fresh.sector_bytes()]);
        Ok(match self {
            Begin::Blank | Begin::Fresh => fresh,
            Begin::OnB => after(&["1.1"])?,
            Begin::BackOnA => after(&["1.1", "1.2"])?,
            Begin::WithoutFirstTable => {
                fresh.set(1, nothing);
                fresh
            }
            Begin::WithoutSecondTable => {
                fresh.set(last, nothing);
                fresh
            }
            Begin::Crowded => {
                let world = World::new(site, scratch.path(), fresh, Fitness::Well, None, None, 9_000)?;
                let esp = world.esp()?;
                // Names of 2 parts of 32 bytes each, so many that ours then lie across a sector's border (the mutants show it);
                // a large sector is filled with names of 14 parts, for many names are slow.
                let long = (site.sector_bytes - 512) / 32 / 14;
                for (number, width) in (0..4 + long).map(|number| (number, if number < 4 { 1 } else { 150 }))
                {
                    let path = format!("loader/entries/other{number:0width$}.conf");
                    esp.write_tmp(&path, &mut &b"title other\n"[..])?;
                }
                world.recorder.now()
            }
            Begin::AfterNewer => {
                fresh.put_file("state.json", b"{\"schema\": 2, \"phase\": {\"at\": \"dancing\"}}\n");
                for name in ["facts-1", "facts-2"] {
                    let facts = fresh.file(name).context("no facts")?;
                    fresh.put_file(name, &with_foreign_record(facts));
                }
                fresh
            }
        })
    }
}

/// The body of a record whose kind this version does not know: so long that the facts fill several sectors, and can tear.
fn foreign() -> Vec<u8> {
    format!("{{\"of\":\"a later version\",\"text\":\"{}\"}}", "so it goes ".repeat(150)).into_bytes()
}

/// The same facts with a record of kind 900 in front; the format is frozen (`updater::facts::format`).
fn with_foreign_record(facts: Vec<u8>) -> Vec<u8> {
    use sha2::{Digest as _, Sha256};
    let written = u64::from_le_bytes(facts[16..24].try_into().unwrap_or_default()) as usize;
    let records = if facts.starts_with(b"SWBFACTS") { facts[64..64 + written].to_vec() } else { Vec::new() };
    let foreign = foreign();
    let mut all =
        [900_u16.to_le_bytes().as_slice(), &[0, 0], &(foreign.len() as u32).to_le_bytes(), &foreign].concat();
    all.extend(records);
    let mut head =
        [b"SWBFACTS".as_slice(), &7_u64.to_le_bytes(), &(all.len() as u64).to_le_bytes(), &[0; 8]].concat();
    let hash = Sha256::new().chain_update(&head).chain_update(&all).finalize();
    head.extend_from_slice(&hash);
    head.extend(all);
    head.resize(facts.len().max(head.len()), 0);
    head
}

fn up(world: &World<'_>) -> Result<Slot> {
    world.settle()?.context("nothing runs")
}

fn ordered(world: &World<'_>, slot: Slot, version: &str, reach: Reach) -> Result<()> {
    match world.update(slot, version, reach)? {
        Ok(_) => Ok(()),
        Err(failure) => bail!("update to {version}: {failure}"),
    }
}

fn update(world: &World<'_>) -> Result<()> {
    move_to(world, "1.1")
}

fn provision(world: &World<'_>) -> Result<()> {
    if let Err(failure) = world.provision() {
        bail!("provisioning: {failure}");
    }
    up(world).map(drop)
}

fn ordered_twice(world: &World<'_>) -> Result<()> {
    update(world)?;
    let slot = up(world)?;
    let again = world.update(slot, "1.1", Reach::Reboot)?;
    up(world)?;
    ensure!(again.is_err(), "a release that failed its trial was taken again");
    Ok(())
}

fn update_to_1_2(world: &World<'_>) -> Result<()> {
    move_to(world, "1.2")
}

fn move_to(world: &World<'_>, version: &str) -> Result<()> {
    let slot = up(world)?;
    ordered(world, slot, version, Reach::Reboot)?;
    up(world).map(drop)
}

fn update_keeps_foreign(world: &World<'_>) -> Result<()> {
    update(world)?;
    let foreign = foreign();
    for name in ["facts-1", "facts-2"] {
        let facts = world.recorder.now().file(name).context("no facts")?;
        let kept = facts.windows(foreign.len()).any(|window| window == foreign);
        ensure!(kept, "{name} lost the record of a later version");
    }
    Ok(())
}

fn staged_then_armed(world: &World<'_>) -> Result<()> {
    let slot = up(world)?;
    ordered(world, slot, "1.1", Reach::Stage)?;
    let slot = up(world)?;
    ensure!(world.running_version(slot) == "1.0", "a staged release was started by a restart");
    ordered(world, slot, "1.1", Reach::Reboot)?;
    up(world).map(drop)
}

fn armed_and_cancelled(world: &World<'_>) -> Result<()> {
    let slot = up(world)?;
    ordered(world, slot, "1.1", Reach::Arm)?;
    let back = Request::Rollback { reach: Reach::Arm, below_floor: false };
    if let Err(failure) = world.ask(slot, "1.1", back)?.0 {
        bail!("disarming: {failure}");
    }
    up(world).map(drop)
}

fn second_release(world: &World<'_>) -> Result<()> {
    let slot = up(world)?;
    ordered(world, slot, "1.1", Reach::Reboot)?;
    let Start::Up(on_trial) = world.start()? else { bail!("the trial does not start") };
    let early = world.update(on_trial, "1.2", Reach::Reboot)?;
    ensure!(early.is_err(), "an update was taken while the running slot was unconfirmed");
    let judged = Request::BootCheck { no_reboot: false };
    if let Err(failure) = world.ask(on_trial, "1.1", judged)?.0 {
        bail!("boot-check: {failure}");
    }
    ordered(world, on_trial, "1.2", Reach::Reboot)?;
    up(world).map(drop)
}

fn rollback(world: &World<'_>) -> Result<()> {
    back(world, false)
}

fn rollback_below_floor(world: &World<'_>) -> Result<()> {
    back(world, true)
}

fn back(world: &World<'_>, below_floor: bool) -> Result<()> {
    let slot = up(world)?;
    let order = Request::Rollback { reach: Reach::Reboot, below_floor };
    if let Err(failure) = world.ask(slot, "1.1", order)?.0 {
        bail!("rollback: {failure}");
    }
    up(world).map(drop)
}
