//! A table of scenarios in the boot lab, and a test program that runs what is asked of it.
//!
//! Not here: the scenarios. Rules: `cargo test` runs the sample, `--all` all of them, a name those that contain it; one line for each; a
//! scenario that fails leaves its serial log and its disk in `.lab/failed/NAME`.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::fixtures::Lab;
use super::scene::Scene;
use crate::summary::summary;

/// One row of the table.
pub struct Scenario {
    name: &'static str,
    /// Part of every run; the others are asked for.
    sample: bool,
    run: fn(&mut Scene) -> Result<()>,
}

/// A row.
pub const fn row(name: &'static str, sample: bool, run: fn(&mut Scene) -> Result<()>) -> Scenario {
    Scenario { name, sample, run }
}

/// The table of one test program.
pub struct Table {
    /// What all names begin with.
    pub group: &'static str,
    /// The rows.
    pub scenarios: &'static [Scenario],
    /// Machines at once.
    pub workers: usize,
}

/// What the command line asks for.
pub struct Wish {
    words: Vec<String>,
}

impl Wish {
    /// The command line of this program.
    pub fn of_command_line() -> Wish {
        Wish { words: std::env::args().skip(1).collect() }
    }

    /// True when the flag is among the words.
    pub fn says(&self, flag: &str) -> bool {
        self.words.iter().any(|word| word == flag)
    }

    fn wants(&self, scenario: &Scenario, full: &str) -> bool {
        let mut names = self.words.iter().filter(|word| !word.starts_with('-')).peekable();
        if names.peek().is_none() {
            return self.says("--all") || scenario.sample;
        }
        let exact = self.says("--exact");
        names.any(|name| if exact { name == full } else { full.contains(name.as_str()) })
    }
}

/// How one scenario ended.
struct Outcome {
    name: &'static str,
    failure: Option<String>,
}

impl Table {
    /// Runs what is asked for, and prints how it ended.
    pub fn run(&self, wish: &Wish) -> ExitCode {
        if wish.says("--list") {
            self.list(wish.says("--ignored"));
            return ExitCode::SUCCESS;
        }
        let is_wanted = |scenario: &&Scenario| wish.wants(scenario, &self.full_name(scenario.name));
        let wanted: Vec<&Scenario> = self.scenarios.iter().filter(is_wanted).collect();
        let began = Instant::now();
        println!("\nrunning {} tests", wanted.len());
        let outcomes = match (wanted.is_empty(), Lab::open()) {
            (true, _) => Vec::new(),
            (false, Ok(lab)) => self.run_all(&lab, &wanted),
            (false, Err(error)) => {
                let failure = format!("while opening the lab: {error:#}");
                wanted.iter().map(|s| Outcome { name: s.name, failure: Some(failure.clone()) }).collect()
            }
        };
        let outcomes: Vec<(String, Option<&str>)> = outcomes
            .iter()
            .map(|outcome| (self.full_name(outcome.name), outcome.failure.as_deref()))
            .collect();
        summary(&outcomes, self.scenarios.len() - wanted.len(), began.elapsed())
    }

    /// As `cargo nextest` asks for it.
    fn list(&self, ignored: bool) {
        for scenario in self.scenarios.iter().filter(|scenario| scenario.sample && !ignored) {
            println!("{}: test", self.full_name(scenario.name));
        }
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}::{name}", self.group)
    }

    fn run_all(&self, lab: &Lab, wanted: &[&Scenario]) -> Vec<Outcome> {
        let queue: Mutex<VecDeque<&Scenario>> = Mutex::new(wanted.iter().copied().collect());
        let outcomes = Mutex::new(Vec::new());
        std::thread::scope(|threads| {
            for _ in 0..self.workers {
                threads.spawn(|| {
                    loop {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                        let Some(scenario) = next else { break };
                        let outcome = self.run_one(lab, scenario);
                        outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                    }
                });
            }
        });
        outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_one(&self, lab: &Lab, scenario: &Scenario) -> Outcome {
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
            self.full_name(scenario.name),
            scenario.name
        );
        Outcome { name: scenario.name, failure }
    }
}

/// Tells a story on a scene of its own; with `echo` the console is shown as it comes.
pub fn tell(name: &str, echo: bool, story: impl FnOnce(&mut Scene) -> Result<()>) -> ExitCode {
    let told = Lab::open().and_then(|lab| story(&mut Scene::open(&lab, name, echo)?));
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the {name} stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}
