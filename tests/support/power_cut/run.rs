//! One story, swept.
//!
//! Not here: the table (`tests/power_cut.rs`). Rule: a figure is what was done, and a violation names how to see it again.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};

use super::broken::Broken;
use super::cuts::{Effort, Kind, Walk};
use super::image::Image;
use super::judge::{Judgement, clean, judge};
use super::machine::World;
use super::promise::{Promise, Violation};
use super::recorder::{BOOT_BEGINS_BYTES, Fault, Op};
use super::scenario::{Begin, Scenario, Trouble};
use super::site::Site;
use super::sweep::{Depth, Figures, Sweep};

/// In place of cuts, where a promise was broken without any.
pub const PLAYED: &str = "played";

/// A fair sample: seconds for each story.
pub const SAMPLE: Depth = Depth {
    effort: Effort { samples: 2, sectors: 2, singles: 4, tears: 2, folder_lost: false },
    lives: 1,
    steps: 40,
    judgements: u64::MAX,
    violations: 3,
    until: None,
};

/// Every step; then every recovery that goes a new way, until none does or the share of one story is used up.
pub const FULL: Depth = Depth {
    effort: Effort { samples: 700, sectors: 400, singles: 200, tears: 1_024, folder_lost: false },
    lives: 8,
    steps: 1_000_000,
    judgements: 12_000,
    violations: 10,
    until: None,
};

/// Plays a story and cuts it.
pub fn run(site: &Site, scenario: &Scenario, depth: Depth, broken: Option<Broken>) -> Result<Figures> {
    let mut effort = Effort { folder_lost: scenario.folder_lost, ..depth.effort };
    if scenario.begin == Begin::Blank {
        // Hundreds of unflushed writes at a time, whose order nothing depends on until the table is written.
        for (count, most) in [
            (&mut effort.samples, 20),
            (&mut effort.sectors, 20),
            (&mut effort.singles, 8),
            (&mut effort.tears, 8),
        ] {
            *count = (*count).min(most);
        }
    }
    // The two sectors of a rename are under way at one step alone: a sample may leave none out.
    let steps = if scenario.begin == Begin::Crowded { usize::MAX } else { depth.steps };
    let depth = Depth { effort, steps, ..depth };
    let image = scenario.begin.image(site)?;
    let scratch = site.scratch()?;
    let world = World::new(site, scratch.path(), image.clone(), scenario.fitness, broken, None, 0)?;
    let played = (scenario.story)(&world);
    let ops = Arc::new(world.recorder.ops());
    let ended = played.and_then(|()| scenario.check_end(&world));
    let found = world.recorder.violations();
    drop(world);
    let mut sweep = Sweep::new(scenario.name, site, scratch.path(), scenario.expected(), broken, depth);
    sweep.figures.violations.extend(found.into_iter().map(|violation| (PLAYED.to_owned(), violation)));
    match (ended, broken) {
        (Ok(()), _) => {}
        (Err(error), None) => return Err(error),
        (Err(error), Some(_)) => {
            let violation = Violation { promise: Promise::Settles, words: format!("{error:#}") };
            sweep.figures.violations.push((PLAYED.to_owned(), violation));
        }
    }
    if depth.is_enough(&sweep.figures) {
        return Ok(sweep.figures);
    }
    match scenario.trouble {
        None => {
            sweep.run(image, ops, 0)?;
            Ok(sweep.figures)
        }
        Some(trouble) => troubles(site, scenario, depth, (&image, &ops), trouble),
    }
}

/// Plays the story once for each step, with one thing going wrong there; then the power goes, and comes back.
fn troubles(
    site: &Site,
    scenario: &Scenario,
    depth: Depth,
    (image, ops): (&Image, &[Op]),
    trouble: Trouble,
) -> Result<Figures> {
    let scratch = site.scratch()?;
    let mut figures = Figures { operations: ops.len(), lives: 1, ..Figures::default() };
    let mut known = std::collections::HashSet::new();
    let stride = ops.len().div_ceil(depth.steps).max(1);
    for at in (0..ops.len()).step_by(stride) {
        let fault = match trouble {
            Trouble::Errors => Fault::FailsOnce(at),
            Trouble::Gone => Fault::FailsFrom(at),
            Trouble::Full => Fault::FullFrom(at),
            Trouble::Flips if is_content(site, &ops[at])? => Fault::FlipsBit(at),
            Trouble::Flips => continue,
        };
        clean(scratch.path())?;
        let world = World::new(site, scratch.path(), image.clone(), scenario.fitness, None, Some(fault), 0)?;
        // Where it ends is the trouble's affair; what it left is judged.
        let _ = (scenario.story)(&world);
        let found = world.recorder.violations();
        let (left, steps) = (world.recorder.now(), Arc::new(world.recorder.ops()));
        drop(world);
        let mut walk = Walk::new(image.clone(), steps);
        while walk.step() {}
        let cut = walk.with_cut(|cut| cut.image(&Kind::None));
        let mut found: Vec<(String, Violation)> =
            found.into_iter().map(|violation| (format!("{at}/{trouble:?}"), violation)).collect();
        for (end, image) in [("on", left), ("cut", cut)] {
            figures.images += 1;
            if !known.insert(image.sum()) {
                continue;
            }
            figures.distinct += 1;
            figures.judged += 1;
            let judged = judge(site, scratch.path(), image, &scenario.expected(), None, 1, true)?;
            let path = format!("{at}/{trouble:?}/{end}");
            found.extend(judged.violations.into_iter().map(|violation| (path.clone(), violation)));
        }
        figures.violations.extend(found);
        if depth.is_enough(&figures) {
            break;
        }
    }
    Ok(figures)
}

/// True for a write whose every bit the read-back has to see: slots, kernel, initramfs.
fn is_content(site: &Site, op: &Op) -> Result<bool> {
    let Op::Rows(_, rows) = op else { return Ok(false) };
    let guard = site.guard()?;
    let in_slot = |row: &u64| guard.content.iter().flatten().any(|range| range.contains(row));
    let of_a_file = |bytes: &[u8]| guard.boot.contains(&bytes[..BOOT_BEGINS_BYTES]);
    Ok(rows.last().is_some_and(|(row, content)| in_slot(row) || of_a_file(&content.bytes)))
}

/// Looks at one cut again, aloud: `path` is `k/kind` for each power cut, separated by commas.
pub fn replay(site: &Site, scenario: &Scenario, path: &str) -> Result<(Vec<String>, Judgement)> {
    ensure!(scenario.trouble.is_none(), "a story with trouble is played again as a whole");
    let scratch = site.scratch()?;
    let mut image = scenario.begin.image(site)?;
    let world = World::new(site, scratch.path(), image.clone(), scenario.fitness, None, None, 0)?;
    (scenario.story)(&world)?;
    let mut ops = Arc::new(world.recorder.ops());
    drop(world);
    let mut told = Vec::new();
    let mut judged = None;
    for (life, step) in path.split(',').enumerate() {
        let (at, kind) = step.split_once('/').with_context(|| format!("`{step}` is not k/kind"))?;
        let (at, kind): (usize, Kind) = (at.parse()?, kind.parse().map_err(anyhow::Error::msg)?);
        let mut walk = Walk::new(image.clone(), ops.clone());
        while walk.at() < at {
            if !walk.step() {
                bail!("life {life} has {} steps, not {at}", ops.len());
            }
        }
        told.extend(log(&ops, at));
        told.push(format!("--- the power is cut after step {at}: {kind}"));
        image = walk.with_cut(|cut| cut.image(&kind));
        let judgement =
            judge(site, scratch.path(), image.clone(), &scenario.expected(), None, life + 1, true)?;
        ops = judgement.ops.clone();
        judged = Some(judgement);
    }
    Ok((told, judged.context("no cut was named")?))
}

/// The steps before `at` that are worth reading: the last forty.
fn log(ops: &[Op], at: usize) -> Vec<String> {
    let from = at.saturating_sub(40);
    let words = |op: &Op| match op {
        Op::Rows(domain, rows) => {
            let first = rows.first().map_or(0, |(row, _)| *row);
            format!("write {domain:?}: {} rows from {first}", rows.len())
        }
        other => format!("{other:?}"),
    };
    (from..at).map(|step| format!("{:>6}  {}", step + 1, words(&ops[step]))).collect()
}
