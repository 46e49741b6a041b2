//! The power-cut simulator: is there any instant at which a cut breaks a promise?
//!
//! Not here: the simulator (`support/power_cut`). Rules: `cargo test` runs a sample of every story, `--all` every step of all of
//! them and prints the table, `--selftest` the broken updaters, `--replay STORY GEOMETRY K/KIND,…` one cut again, aloud; `--fail-fast` ends with
//! the first that fails.

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use switchback_tests::power_cut::broken::Broken;
use switchback_tests::power_cut::cuts::Effort;
use switchback_tests::power_cut::promise::Promise;
use switchback_tests::power_cut::run::{FULL, PLAYED, SAMPLE, replay, run};
use switchback_tests::power_cut::scenario::{SCENARIOS, Scenario};
use switchback_tests::power_cut::site::Site;
use switchback_tests::power_cut::sweep::{Depth, Figures};
use switchback_tests::summary::summary;

/// Stories at once: one for each core of the smallest host.
const WORKERS: usize = 2;
/// The first stories have everything that a mistake could break: a good release, bad ones, one ordered twice.
const STORIES_FOR_MISTAKES: usize = 6;
/// Bytes of a sector.
const GEOMETRIES: [usize; 2] = [512, 4096];

/// One thing to do.
#[derive(Clone, Copy)]
enum Job {
    Story(&'static Scenario, usize),
    Mistake(Broken, Promise),
}

impl Job {
    fn name(&self) -> String {
        match self {
            Job::Story(scenario, sector_bytes) => format!("power_cut::{}_{sector_bytes}", scenario.name),
            Job::Mistake(broken, _) => format!("power_cut::selftest::{}", broken.name().replace(' ', "_")),
        }
    }
}

/// How one job ended.
struct Outcome {
    job: Job,
    figures: Figures,
    took: Duration,
    failure: Option<String>,
}

fn main() -> ExitCode {
    // A panic of a broken updater is a finding, told where it was caught.
    std::panic::set_hook(Box::new(|_| {}));
    let words: Vec<String> = std::env::args().skip(1).collect();
    let says = |flag: &str| words.iter().any(|word| word == flag);
    let names: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    if says("--replay") {
        return ended(again(&names));
    }
    let (all, selftest) = (says("--all"), says("--selftest"));
    let mut jobs: Vec<Job> = Vec::new();
    if !selftest {
        // The sample of `make test` has one geometry for most stories; each is in it.
        let wanted =
            |scenario: &&Scenario, sector_bytes: usize| all || sector_bytes == 512 || in_both(scenario);
        for sector_bytes in GEOMETRIES {
            let stories = SCENARIOS.iter().filter(|scenario| wanted(scenario, sector_bytes));
            jobs.extend(stories.map(|scenario| Job::Story(scenario, sector_bytes)));
        }
    }
    if selftest || !all {
        jobs.extend(Broken::ALL.iter().map(|(broken, promise)| Job::Mistake(*broken, *promise)));
    }
    if says("--list") {
        if !says("--ignored") {
            jobs.iter().for_each(|job| println!("{}: test", job.name()));
        }
        return ExitCode::SUCCESS;
    }
    let known = jobs.len();
    let exact = says("--exact");
    jobs.retain(|job| {
        let full = job.name();
        names.is_empty() || names.iter().any(|name| if exact { **name == full } else { full.contains(*name) })
    });
    let began = Instant::now();
    println!("\nrunning {} tests", jobs.len());
    let outcomes = run_all(&jobs, if all { FULL } else { SAMPLE }, says("--fail-fast"));
    if all && !outcomes.is_empty() {
        table(&outcomes);
    }
    let outcomes: Vec<(String, Option<&str>)> =
        outcomes.iter().map(|outcome| (outcome.job.name(), outcome.failure.as_deref())).collect();
    summary(&outcomes, known - jobs.len(), began.elapsed())
}

/// Stories whose sample is taken on both kinds of disk.
fn in_both(scenario: &Scenario) -> bool {
    ["update", "without-first-table"].contains(&scenario.name)
}

fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One cut, seen again.
fn again(names: &[&String]) -> Result<()> {
    let [story, geometry, path] = names else { bail!("--replay STORY SECTOR-BYTES K/KIND[,K/KIND…]") };
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == *story);
    let scenario = scenario.with_context(|| format!("there is no story `{story}`"))?;
    let (told, judgement) = replay(&Site::new(geometry.parse()?)?, scenario, path)?;
    told.iter().for_each(|line| println!("{line}"));
    println!(
        "boot record  {}\nfacts        {}\nstate file   {}",
        judgement.records[0], judgement.records[1], judgement.records[2]
    );
    println!("at rest      {:?} after {} starts", judgement.rest, judgement.starts);
    for violation in &judgement.violations {
        println!("BROKEN       {violation}");
    }
    match judgement.violations.len() {
        0 => Ok(()),
        count => bail!("{count} promises are broken"),
    }
}

fn run_all(jobs: &[Job], depth: Depth, fail_fast: bool) -> Vec<Outcome> {
    // Made before the workers begin: a program that is started meanwhile would hold their locks for a moment.
    let needed = |sector_bytes: usize| {
        jobs.iter().any(|job| match job {
            Job::Story(_, wanted) => *wanted == sector_bytes,
            Job::Mistake(..) => sector_bytes == 512,
        })
    };
    let sites: BTreeMap<usize, Result<Site>> = GEOMETRIES
        .into_iter()
        .filter(|bytes| needed(*bytes))
        .map(|bytes| (bytes, Site::new(bytes)))
        .collect();
    let queue: Mutex<VecDeque<Job>> = Mutex::new(jobs.iter().copied().collect());
    let outcomes = Mutex::new(Vec::new());
    let site = |sector_bytes: usize| match sites.get(&sector_bytes) {
        Some(Ok(site)) => Ok(site),
        Some(Err(error)) => Err(anyhow!("{error:#}")),
        None => Err(anyhow!("there is no disk with sectors of {sector_bytes} bytes")),
    };
    std::thread::scope(|threads| {
        for _ in 0..WORKERS {
            threads.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(job) = next else { break };
                    let outcome = run_one(job, depth, &site);
                    if fail_fast && outcome.failure.is_some() {
                        queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    }
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn run_one<'s>(job: Job, depth: Depth, site: &dyn Fn(usize) -> Result<&'s Site>) -> Outcome {
    let began = Instant::now();
    let result = match job {
        Job::Story(scenario, sector_bytes) => {
            site(sector_bytes).and_then(|site| story(site, scenario, depth))
        }
        Job::Mistake(broken, promise) => site(512).and_then(|site| mistake(site, broken, promise)),
    };
    let (figures, failure) = match result {
        Ok((figures, failure)) => (figures, failure),
        Err(error) => (Figures::default(), Some(format!("{error:#}"))),
    };
    let word = if failure.is_none() { "ok" } else { "FAILED" };
    println!("test {} ... {word}", job.name());
    failure.iter().for_each(|failure| println!("{failure}"));
    Outcome { job, figures, took: began.elapsed(), failure }
}

fn story(site: &Site, scenario: &'static Scenario, depth: Depth) -> Result<(Figures, Option<String>)> {
    let figures = run(site, scenario, depth, None)?;
    let told: Vec<String> = figures
        .violations
        .iter()
        .map(|(path, violation)| {
            let test = "cargo test -p switchback-tests --test power_cut --";
            // What was broken before any cut, or by other trouble than a cut, shows when the whole story is played.
            let command = match scenario.trouble.is_none() && path != PLAYED {
                true => format!("{test} --replay {} {} {path}", scenario.name, site.sector_bytes),
                false => format!("{test} {}", Job::Story(scenario, site.sector_bytes).name()),
            };
            format!("{violation}\n  cut: {path}\n  again: {command}")
        })
        .collect();
    let failure = (!told.is_empty()).then(|| told.join("\n"));
    Ok((figures, failure))
}

/// A broken updater is caught when the promise named for it is among those that it breaks.
fn mistake(site: &Site, broken: Broken, promise: Promise) -> Result<(Figures, Option<String>)> {
    let mut seen = BTreeMap::new();
    for scenario in SCENARIOS.iter().take(STORIES_FOR_MISTAKES) {
        let effort = Effort { samples: 0, sectors: 1, singles: 1, tears: 1, folder_lost: false };
        let depth = Depth { effort, steps: 90, violations: 100_000, until: Some(promise), ..SAMPLE };
        let figures = run(site, scenario, depth, Some(broken))?;
        for (path, violation) in &figures.violations {
            if violation.promise == promise {
                println!("caught: {} by {violation} ({}, {path})", broken.name(), scenario.name);
                return Ok((figures, None));
            }
            seen.insert(violation.promise, format!("{} {path}: {}", scenario.name, violation.words));
        }
    }
    Ok((Figures::default(), Some(format!("{} was not caught by {promise}; seen: {seen:#?}", broken.name()))))
}

fn table(outcomes: &[Outcome]) {
    println!(
        "\n{:<28} {:>6} {:>10} {:>12} {:>10} {:>8} {:>5} {:>5} {:>5} {:>10} {:>6}",
        "story",
        "sector",
        "operations",
        "crash images",
        "distinct",
        "judged",
        "runs",
        "left",
        "cuts",
        "violations",
        "s"
    );
    let (mut images, mut distinct, mut violations) = (0, 0, 0);
    let mut rows: Vec<&Outcome> = outcomes.iter().collect();
    rows.sort_by_key(|outcome| match outcome.job {
        Job::Story(scenario, sector_bytes) => {
            (sector_bytes, SCENARIOS.iter().position(|other| other.name == scenario.name))
        }
        Job::Mistake(..) => (0, None),
    });
    for outcome in rows {
        let Job::Story(scenario, sector_bytes) = outcome.job else { continue };
        let figures = &outcome.figures;
        println!(
            "{:<28} {:>6} {:>10} {:>12} {:>10} {:>8} {:>5} {:>5} {:>5} {:>10} {:>6.1}",
            scenario.name,
            sector_bytes,
            figures.operations,
            figures.images,
            figures.distinct,
            figures.judged,
            figures.runs,
            figures.left,
            figures.lives,
            figures.violations.len(),
            outcome.took.as_secs_f64(),
        );
        images += figures.images;
        distinct += figures.distinct;
        violations += figures.violations.len();
    }
    println!("total: {images} crash images, {distinct} distinct disks, {violations} violations");
}
