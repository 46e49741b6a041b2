//! The loop: observe → `step` → store the state → act → feed the result back.
//!
//! Not here: any decision; those are `lifecycle::step`'s. Rule: the new state is durable before its action begins, so
//! that a crash between the two only repeats an action, and every action may be repeated.

mod act;
mod aftermath;
pub mod answers;
mod ask;
mod autopsy;
mod bound;
mod can_update;
pub mod costs;
mod held;
mod observe;
pub mod provision;
pub(crate) mod quarantine;
mod records;
mod scrub;
pub mod source;
pub(crate) mod words;

use std::time::Instant;

use switchback_partitions::slot::Slot;

pub(crate) use self::held::{Fault, Held, Look};
pub(crate) use self::observe::summary;

use self::answers::{Answer, Reach, Request};
use self::observe::Seen;
use crate::config::Config;
use crate::facts::{Facts, state_file};
use crate::health::{CheckResult, HealthReport};
use crate::host::lock::InstanceLock;
use crate::host::{Machine, make_state_dir};
use crate::init::stage::{Mark, Stage};
use crate::install::{Install, InstallError, Proven, Release, Stages, Surveyed, Traffic};
use crate::lifecycle::{Action, Event, Policy, State, step};
use crate::progress::{Progress, until_stopped};
use crate::reason::{Reason, Why};
use crate::registry::meter::Network;
use crate::trust;

/// More steps than any update takes; a loop that passes this is a mistake of ours and must not spin for ever.
const STEPS_MAX: usize = 64;

/// What was asked could not be done.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .why.detail)]
pub struct Failure {
    /// The closed reason, and the words of this case.
    pub why: Why,
    /// What was left as it was.
    pub untouched: &'static str,
}

/// Nothing on the disk is other than before.
pub const NOTHING_CHANGED: &str = "Nothing on the disk was changed.";
/// An install had begun.
pub const RUNNING_UNTOUCHED: &str =
    "The running slot, its boot files and its boot entry were not touched; the other slot is not armed.";

impl Failure {
    /// A failure before anything was written.
    pub fn before(reason: Reason, error: impl std::error::Error) -> Failure {
        Failure { why: Why::new(reason, chain(&error)), untouched: NOTHING_CHANGED }
    }

    /// A refusal in words of our own.
    pub fn refused(why: Why) -> Failure {
        Failure { why, untouched: NOTHING_CHANGED }
    }
}

/// An error with its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        // A transparent error repeats its cause's words.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = source.source();
    }
    text
}

/// One instance at work on one machine.
pub struct Engine<'a> {
    machine: &'a dyn Machine,
    config: &'a Config,
    progress: &'a dyn Progress,
    runtime: tokio::runtime::Runtime,
    /// Whose signatures are believed. Without any, a machine can be looked at and not be moved. Boxed on both sides, so that a tag tells
    /// them apart: laid out in place the compiler asks the overflow flag (`neg`, `seto`), and under QEMU 7.2's emulation a failed trial
    /// then took a reference eight bytes off, and died of it more often than not (boot::failing_health_check_comes_back).
    trust: Result<Box<trust::Policy>, Box<Failure>>,
    facts: Facts,
    state: State,
    /// Held until the end; `None` for requests that only look.
    _lock: Option<InstanceLock>,
    /// What this run did so far.
    run: Run<'a>,
}

/// A release that an order is about, accepted by trust.
struct Candidate {
    release: Release,
    registry: Box<dyn crate::registry::Registry>,
    /// Of each slot layer, once its index was read and found true: what the machine has of it.
    surveyed: Vec<Surveyed>,
}

/// What one run of the loop gathered, for the answer.
#[derive(Default)]
struct Run<'a> {
    /// The release that an order is about.
    candidate: Option<Candidate>,
    /// Read back in this run, so that arming need not read it back again.
    proven: Option<Install<'a, Proven>>,
    traffic: Traffic,
    /// What came over the network for it.
    network: Option<Network>,
    /// Where the time of writing it went.
    stages: Option<Stages>,
    health: Option<HealthReport>,
    /// What the image's scripts for after the verdict made of it.
    hooks: Vec<CheckResult>,
    /// A verdict of failure was followed by what follows it.
    failure_told: bool,
    /// The first failure of an action; what `step` makes of it follows.
    failure: Option<Failure>,
    armed: bool,
    /// The reboot out of a trial was ordered.
    leaving: bool,
}

/// Where the loop came to rest.
enum Rest {
    /// Nothing more to do.
    Steady,
    /// The order is refused.
    Refused(Why),
    /// Armed; the reboot is left to the caller.
    BeforeReboot,
    /// The reboot was ordered.
    Rebooting,
    /// It goes on later.
    Waiting,
}

impl<'a> Engine<'a> {
    /// Opens the machine's facts and state. `exclusive` makes what is missing and takes the lock that keeps a second
    /// instance out; without it nothing is written, and a missing state folder stays missing.
    pub fn open(
        machine: &'a dyn Machine,
        config: &'a Config,
        progress: &'a dyn Progress,
        exclusive: bool,
    ) -> Result<Engine<'a>, Failure> {
        let host = |e: crate::host::HostError| Failure::before(host_reason(&e), e);
        let lock = match exclusive {
            true => {
                make_state_dir(machine).map_err(host)?;
                Some(InstanceLock::take(machine.state_dir().path()).map_err(host)?)
            }
            false => None,
        };
        let trust = source::policy(config, machine.root()).map(Box::new).map_err(Box::new);
        let facts = match exclusive {
            true => Facts::open(machine.state_dir()),
            false => Facts::read(machine.state_dir()),
        };
        let facts = facts.map_err(|e| Failure::before(e.reason(), e))?;
        let state = state_file::load(machine.state_dir()).into_state();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| Failure::before(Reason::Internal, e))?;
        Ok(Engine {
            machine,
            config,
            progress,
            runtime,
            trust,
            facts,
            state,
            _lock: lock,
            run: Run::default(),
        })
    }

    /// Answers a request.
    pub fn handle(&mut self, request: Request) -> Result<Answer, Failure> {
        let began = Instant::now();
        match request {
            Request::Status => self.status(),
            Request::Check { to } => self.check(to.as_deref()),
            Request::Update { to, reach } => self.update(to.as_deref(), reach, began),
            Request::Rollback { reach, below_floor } => self.rollback(reach, below_floor, began),
            Request::History { limit } => Ok(Answer::History(self.history(limit))),
            Request::Logs { release } => Ok(Answer::Logs(self.logs(release.as_deref()))),
            Request::Quarantine { release } => self.quarantine(release.as_deref()),
            Request::Scrub { slot } => self.scrub(slot),
            Request::Health => self.health(),
            Request::BootCheck { no_reboot } => self.boot_check(no_reboot),
        }
    }

    /// Runs the loop from `event` until it rests.
    fn drive(&mut self, event: Event, reach: Reach, policy: &Policy) -> Result<Rest, Failure> {
        let mut event = event;
        for _ in 0..STEPS_MAX {
            tracing::debug!(?event, state = ?self.state.phase, "step");
            let (next, action) = step(&self.state, event, policy);
            tracing::debug!(?action, "action");
            self.adopt(next)?;
            if action == Action::Reboot {
                self.after_failure();
            }
            event = match action {
                Action::Nothing | Action::Ignored if self.run.leaving => return Ok(Rest::Rebooting),
                Action::Nothing | Action::Ignored => return Ok(Rest::Steady),
                Action::Refuse(why) => return Ok(Rest::Refused(why)),
                Action::Wait(_) => return Ok(if self.run.armed { Rest::Rebooting } else { Rest::Waiting }),
                Action::Reboot if reach != Reach::Reboot => return Ok(Rest::BeforeReboot),
                action => self.act(action)?,
            };
        }
        Err(Failure {
            why: Why::new(Reason::Internal, format!("no rest after {STEPS_MAX} steps")),
            untouched: RUNNING_UNTOUCHED,
        })
    }

    /// Waits for the network, as long as the person does.
    fn fetch<T>(&self, work: impl Future<Output = Result<T, InstallError>>) -> Result<T, InstallError> {
        self.runtime.block_on(until_stopped(self.progress, work)).unwrap_or(Err(InstallError::Interrupted))
    }

    /// The state that `step` decided on, durable on return.
    fn adopt(&mut self, next: State) -> Result<(), Failure> {
        if next != self.state {
            state_file::store(self.machine.state_dir(), &next).map_err(|e| Failure::before(e.reason(), e))?;
            self.state = next;
        }
        Ok(())
    }

    /// What can be seen of the machine now.
    fn observe(&self) -> Result<Seen, Failure> {
        observe::observe(self.machine, self.trusted(), &self.facts)
    }

    /// Whose signatures are believed, or why nobody's are.
    fn trusted(&self) -> Result<&trust::Policy, &Failure> {
        self.trust.as_deref().map_err(|failure| &**failure)
    }

    fn policy(&self, carry_on: bool) -> Policy {
        self.config.boot.policy(carry_on)
    }
}

/// Leaves the mark that tells a missed deadline from a death, and nothing else; returns the slot that runs.
pub fn mark_deadline_passed(machine: &dyn Machine) -> Result<Slot, Failure> {
    let running = machine.running().map_err(|e| Failure::before(host_reason(&e), e))?;
    let (slot, boot_id) = (running.slot, running.boot_id);
    let mark = Mark { slot, boot_id, root_hash: String::new(), stage: Stage::DeadlinePassed };
    mark.write(machine.state_dir()).map_err(|e| Failure::before(Reason::StateUnreadable, e))?;
    Ok(slot)
}

/// The reason of a host error.
pub fn host_reason(error: &crate::host::HostError) -> Reason {
    use crate::host::HostError;
    match error {
        HostError::NoWitness { .. } => Reason::RunningSlotUnknown,
        HostError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Reason::NotPermitted
        }
        HostError::Io { source, .. } if source.raw_os_error() == Some(16) => Reason::SlotInUse,
        HostError::Io { source, .. } if crate::facts::is_full(source) => Reason::StateFull,
        HostError::Io { .. } => Reason::StateUnreadable,
        HostError::Layout(_) => Reason::LayoutUnknown,
        HostError::Busy { .. } => Reason::Busy,
        HostError::NotConfigured { .. } => Reason::ConfigInvalid,
        HostError::Reboot(_) => Reason::RebootFailed,
    }
}
