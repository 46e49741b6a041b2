//! Is this machine well: all checks at once, every failure listed.
//!
//! Not here: what follows (`lifecycle`), and any reboot. Rule: a check ends by its timeout and all of them by the
//! deadline, whatever they started; no check at all is never a silent pass.

pub mod command;
pub mod greenboot;
mod probe;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use switchback_partitions::slot::Slot;
use tokio::time::{Instant, sleep, timeout};

use self::greenboot::Scripts;
use crate::config::{Check, Config, ConfigError, checks_in};
use crate::reason::{Reason, Why};

/// Where an image keeps its own checks, beneath the root.
pub const HEALTH_DIR: &str = "usr/lib/switchback/health.d";
/// The name of the built-in check.
pub const BUILT_IN: &str = "can-update-again";
/// The name of the check of the services.
const SERVICES: &str = "services";

/// What the checks are told of the machine.
#[derive(Debug, Clone)]
pub struct Context {
    /// The running slot (`SWITCHBACK_SLOT`).
    pub slot: Slot,
    /// The running release's version, empty when unknown (`SWITCHBACK_VERSION`).
    pub version: String,
    /// The root of the running system (`SWITCHBACK_ROOT`); files are looked up beneath it.
    pub root: PathBuf,
}

/// How long all checks together may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// All checks must have passed by then.
    pub deadline: Duration,
    /// After that, everything must stay well for this long; every check then runs once more.
    pub soak: Duration,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// It passed.
    Passed,
    /// Its last attempt failed.
    Failed,
    /// The deadline of all checks came first.
    DeadlineMissed,
    /// It failed, and is one of those that never fail the machine (greenboot's `wanted.d`).
    WantedFailed,
    /// It was not run: greenboot's configuration switches it off.
    Disabled,
}

impl CheckOutcome {
    /// True when this makes the machine unhealthy.
    pub fn fails(self) -> bool {
        matches!(self, CheckOutcome::Failed | CheckOutcome::DeadlineMissed)
    }
}

/// One check's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// The check's name.
    pub name: String,
    /// How it ended.
    pub outcome: CheckOutcome,
    /// Attempts made.
    pub attempts: u32,
    /// Milliseconds from the first attempt to the end.
    pub millis: u64,
    /// What the last failure said; empty when it passed at once.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// All results, in the order of the checks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// Each check's result.
    pub checks: Vec<CheckResult>,
}

/// What a report says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Every check passed.
    Healthy,
    /// At least one did not: all of those.
    Unhealthy {
        /// The results that are no pass.
        failures: Vec<CheckResult>,
    },
}

impl HealthReport {
    /// Healthy, or every failure. An empty report is unhealthy: nothing was shown.
    pub fn health(&self) -> Health {
        let failed = |result: &&CheckResult| result.outcome.fails();
        let failures: Vec<CheckResult> = self.checks.iter().filter(failed).cloned().collect();
        match failures.is_empty() && !self.checks.is_empty() {
            true => Health::Healthy,
            false => Health::Unhealthy { failures },
        }
    }

    /// The reason for the state and the history; `None` when healthy.
    pub fn why(&self) -> Option<Why> {
        let Health::Unhealthy { failures } = self.health() else { return None };
        let missed = failures.iter().any(|failure| failure.outcome == CheckOutcome::DeadlineMissed);
        let only_missed = missed && failures.iter().all(|failure| failure.outcome != CheckOutcome::Failed);
        let reason = if only_missed { Reason::DeadlineMissed } else { Reason::HealthFailed };
        let lines: Vec<String> = failures
            .iter()
            .map(|failure| {
                let first = failure.detail.lines().next().unwrap_or_default();
                format!("{}: {first}", failure.name)
            })
            .collect();
        Some(Why::new(reason, lines.join("; ")))
    }
}

/// The checks of this machine: the image's own, then the configured ones, which replace those of the same name.
pub fn checks_of(config: &Config) -> Result<Vec<Check>, ConfigError> {
    let mut checks = checks_in(&config.machine.root.join(HEALTH_DIR))?;
    let configured = &config.health.checks;
    checks.retain(|check| !configured.iter().any(|other| other.name == check.name));
    checks.extend(configured.iter().cloned());
    Ok(checks)
}

/// Runs all checks at the same time, greenboot's among them. Where none of them decides, `built_in` is asked whether the
/// machine can be updated again.
pub async fn run(
    checks: &[Check],
    limits: Limits,
    context: &Context,
    built_in: impl Future<Output = Result<(), String>>,
) -> HealthReport {
    let scripts = Scripts::find(&context.root);
    if checks.is_empty() && !scripts.decide() {
        let by = Instant::now() + limits.deadline;
        let (result, told) = tokio::join!(built_in_result(built_in, by), scripts.run(by, context));
        return HealthReport { checks: [vec![result], told].concat() };
    }
    let first = run_once(checks, &scripts, limits.deadline, context).await;
    if limits.soak.is_zero() || first.health() != Health::Healthy {
        return first;
    }
    sleep(limits.soak).await;
    run_once(checks, &scripts, limits.deadline, context).await
}

/// Whether the services are well, as a check of its own beside all others; none where there are no services.
pub async fn services(
    asked: impl Future<Output = Option<Result<(), String>>>,
    deadline: Duration,
) -> Option<CheckResult> {
    let mut there = true;
    let asked = async {
        let answer = asked.await;
        there = answer.is_some();
        answer.unwrap_or(Ok(()))
    };
    let result = result_of(SERVICES, asked, Instant::now() + deadline).await;
    there.then_some(result)
}

async fn built_in_result(built_in: impl Future<Output = Result<(), String>>, by: Instant) -> CheckResult {
    result_of(BUILT_IN, built_in, by).await
}

async fn result_of(name: &str, asked: impl Future<Output = Result<(), String>>, by: Instant) -> CheckResult {
    let start = Instant::now();
    let (outcome, detail) = match tokio::time::timeout_at(by, asked).await {
        Ok(Ok(())) => (CheckOutcome::Passed, String::new()),
        Ok(Err(detail)) => (CheckOutcome::Failed, detail),
        Err(_) => (CheckOutcome::DeadlineMissed, "no answer within the deadline".to_owned()),
    };
    CheckResult { name: name.into(), outcome, attempts: 1, millis: millis_since(start), detail }
}

async fn run_once(
    checks: &[Check],
    scripts: &Scripts,
    deadline: Duration,
    context: &Context,
) -> HealthReport {
    let by = Instant::now() + deadline;
    let own = join_all(checks.iter().map(|check| run_check(check, by, context)));
    let (own, greenboot) = tokio::join!(own, scripts.run(by, context));
    HealthReport { checks: [own, greenboot].concat() }
}

/// One check to its end, or to the deadline.
async fn run_check(check: &Check, by: Instant, context: &Context) -> CheckResult {
    let start = Instant::now();
    let mut progress = Progress::default();
    let ended = tokio::time::timeout_at(by, attempts(check, context, &mut progress)).await;
    let outcome = match ended {
        Ok(true) => CheckOutcome::Passed,
        Ok(false) => CheckOutcome::Failed,
        Err(_) => {
            let last = std::mem::take(&mut progress.detail);
            let secs = (by - start).as_secs_f64();
            progress.detail = match last.is_empty() {
                true => format!("no answer within the deadline of {secs:.1} s"),
                false => format!("not passed within the deadline of {secs:.1} s; last: {last}"),
            };
            CheckOutcome::DeadlineMissed
        }
    };
    let Progress { attempts, detail } = progress;
    CheckResult { name: check.name.clone(), outcome, attempts, millis: millis_since(start), detail }
}

/// What is known of a check so far, also when the deadline cuts it off.
#[derive(Default)]
struct Progress {
    attempts: u32,
    detail: String,
}

/// Attempts until one passes and stays well for its soak, or the retries are used up.
async fn attempts(check: &Check, context: &Context, progress: &mut Progress) -> bool {
    for attempt in 0..=check.retries {
        if attempt > 0 {
            sleep(check.interval).await;
        }
        if one_attempt(check, context, progress).await {
            return soak(check, context, progress).await;
        }
    }
    false
}

/// No failure is forgiven while soaking: a service that restarts every minute is not well.
async fn soak(check: &Check, context: &Context, progress: &mut Progress) -> bool {
    let end = Instant::now() + check.soak;
    while Instant::now() < end {
        sleep(check.interval.max(Duration::from_millis(10)).min(end - Instant::now())).await;
        if !one_attempt(check, context, progress).await {
            progress.detail = format!("it passed, and then while soaking: {}", progress.detail);
            return false;
        }
    }
    true
}

async fn one_attempt(check: &Check, context: &Context, progress: &mut Progress) -> bool {
    progress.attempts += 1;
    let result = match timeout(check.timeout, probe::probe(&check.probe, context)).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {:?}", check.timeout)),
    };
    match result {
        Ok(()) => true,
        Err(detail) => {
            progress.detail = detail;
            false
        }
    }
}

fn millis_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
