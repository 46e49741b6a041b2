//! The boot lab's scenarios: does the machine come back?
//!
//! Not here: the machine (`support/lab`). Rules: `cargo test` runs the sample, `--all` all of them, a name those that
//! contain it; one line for each; a scenario that fails leaves its serial log and its disk in `.lab/failed/NAME`.

#[path = "boot/book.rs"]
mod book;
#[path = "boot/damaged.rs"]
mod damaged;
#[path = "boot/demo.rs"]
mod demo;
#[path = "boot/good.rs"]
mod good;
#[path = "boot/kills.rs"]
mod kills;
#[path = "boot/power.rs"]
mod power;
#[path = "boot/recipes.rs"]
mod recipes;
#[path = "boot/returns.rs"]
mod returns;
#[path = "boot/scene.rs"]
mod scene;
#[path = "boot/systemd.rs"]
mod systemd;
#[path = "boot/witness.rs"]
mod witness;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, anyhow};
use switchback_tests::lab::fixtures::Lab;
use switchback_tests::summary::summary;

use scene::Scene;

/// One row of the table.
struct Scenario {
    name: &'static str,
    /// Part of every `make test`; the others of `make boot-test` only.
    sample: bool,
    run: fn(&mut Scene) -> Result<()>,
}

const fn row(name: &'static str, sample: bool, run: fn(&mut Scene) -> Result<()>) -> Scenario {
    Scenario { name, sample, run }
}

/// Longest first, so that two at a time end together.
const SCENARIOS: &[Scenario] = &[
    row("systemd_failing_unit_comes_back_with_bless_boot", false, systemd::with_bless_boot),
    row("systemd_failing_unit_comes_back_without_bless_boot", false, systemd::without_bless_boot),
    row("systemd_trial_that_nobody_judges_comes_back", false, systemd::deadline_timer),
    row("freeze_ends_by_the_watchdog", false, returns::freezes),
    row("rollback_and_update_again_five_times", false, good::five_cycles),
    row("hang_ends_by_the_deadline", false, returns::hangs),
    row("release_without_updater_comes_back", false, returns::without_updater),
    row("hang_before_the_watchdog_driver_comes_back", false, returns::hangs_early),
    row("wrong_root_hash_comes_back", false, damaged::root_hash_wrong),
    row("second_bad_release_comes_back_too", false, returns::twice),
    row("power_cut_at_every_start_is_no_verdict", false, power::cut_at_every_start),
    row("disk_error_while_writing_is_survived", false, power::disk_fails_while_writing),
    row("kernel_panic_comes_back", true, returns::panics),
    row("kernel_panic_comes_back_under_systemd_boot_257", false, returns::panics_under_the_newer_loader),
    row("failing_health_check_comes_back", true, returns::unhealthy),
    row("the_book_gets_a_newcomer_started", false, book::get_started),
    row("init_that_exits_comes_back", false, returns::exits),
    row("broken_root_comes_back", false, damaged::root_broken),
    row("release_without_network_comes_back", false, returns::offline),
    row("missing_kernel_comes_back", false, damaged::kernel_missing),
    row("kernel_that_does_not_load_comes_back", true, damaged::kernel_garbage),
    row("uki_that_does_not_load_comes_back_under_systemd_boot_257", false, damaged::uki_garbage_on_257),
    row("kernel_that_does_not_load_comes_back_under_systemd_boot_262", false, damaged::kernel_garbage_on_262),
    row("container_recipe_boots", false, recipes::container),
    row("good_update_is_confirmed", true, good::update),
    row("unified_kernel_image_is_confirmed", false, good::unified),
    row("killed_while_checking", false, kills::checking),
    row("killed_while_writing", true, kills::writing),
    row("killed_while_writing_boot_files", false, kills::boot_files),
    row("killed_while_arming", false, kills::arming),
    row("killed_on_trial", false, kills::on_trial),
];

/// Machines at once: one for each core of the smallest host.
const WORKERS: usize = 2;

/// What the command line asks for.
struct Wish {
    all: bool,
    names: Vec<String>,
    exact: bool,
}

impl Wish {
    fn wants(&self, scenario: &Scenario) -> bool {
        if self.names.is_empty() {
            return self.all || scenario.sample;
        }
        let full = full_name(scenario);
        self.names.iter().any(|name| if self.exact { *name == full } else { full.contains(name.as_str()) })
    }
}

/// How one scenario ended.
struct Outcome {
    name: &'static str,
    failure: Option<String>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let says = |flag: &str| words.iter().any(|word| word == flag);
    let names = words.iter().filter(|word| !word.starts_with('-')).cloned().collect();
    let wish = Wish { all: says("--all"), names, exact: says("--exact") };
    if says("--list") {
        list(says("--ignored"));
        return ExitCode::SUCCESS;
    }
    if says("--demo") {
        return demo();
    }
    let wanted: Vec<&Scenario> = SCENARIOS.iter().filter(|scenario| wish.wants(scenario)).collect();
    let began = Instant::now();
    println!("\nrunning {} tests", wanted.len());
    let outcomes = match (wanted.is_empty(), Lab::open()) {
        (true, _) => Vec::new(),
        (false, Ok(lab)) => run_all(&lab, &wanted),
        (false, Err(error)) => {
            let failure = format!("while opening the lab: {error:#}");
            wanted.iter().map(|s| Outcome { name: s.name, failure: Some(failure.clone()) }).collect()
        }
    };
    let outcomes: Vec<(String, Option<&str>)> = outcomes
        .iter()
        .map(|outcome| (format!("boot::{}", outcome.name), outcome.failure.as_deref()))
        .collect();
    summary(&outcomes, SCENARIOS.len() - wanted.len(), began.elapsed())
}

/// As `cargo nextest` asks for it.
fn list(ignored: bool) {
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.sample && !ignored) {
        println!("{}: test", full_name(scenario));
    }
}

fn demo() -> ExitCode {
    let told = Lab::open().and_then(|lab| {
        let mut scene = Scene::open(&lab, "demo", true)?;
        demo::tell(&mut scene)
    });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn full_name(scenario: &Scenario) -> String {
    format!("boot::{}", scenario.name)
}

fn run_all(lab: &Lab, wanted: &[&Scenario]) -> Vec<Outcome> {
    let queue: Mutex<VecDeque<&Scenario>> = Mutex::new(wanted.iter().copied().collect());
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..WORKERS {
            threads.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(scenario) = next else { break };
                    let outcome = run_one(lab, scenario);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn run_one(lab: &Lab, scenario: &Scenario) -> Outcome {
    let began = Instant::now();
    let mut scene = match Scene::open(lab, scenario.name, false) {
        Ok(scene) => scene,
        Err(error) => return Outcome { name: scenario.name, failure: Some(format!("{error:#}")) },
    };
    let result = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&mut scene)));
    let result = result.unwrap_or_else(|_| Err(anyhow!("the scenario panicked; its words are above")));
    let (boots, seconds) = (scene.boots(), began.elapsed().as_secs());
    let reason = scene.reason().map_or(String::new(), |reason| format!(" reason={reason}"));
    let failure = result.err().map(|error| match scene.keep_evidence() {
        Ok(folder) => format!("{error:#}\nserial log, commands and disk: {}", folder.display()),
        Err(kept) => format!("{error:#}\nand the evidence could not be kept: {kept:#}"),
    });
    if failure.is_none() {
        scene.strike();
    }
    // One write for each scenario, so that two that end together do not mix.
    let (verdict, word) = if failure.is_none() { ("ok", "PASS") } else { ("FAILED", "FAIL") };
    println!(
        "test {} ... {verdict}\n{word} {} boots={boots} seconds={seconds}{reason}",
        full_name(scenario),
        scenario.name
    );
    Outcome { name: scenario.name, failure }
}
