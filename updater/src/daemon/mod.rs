//! The machine that acts by itself: look, decide, act, wait.
//!
//! Not here: when something is allowed (`schedule`), what an update does (`engine`), services (`services`). Rule: each turn begins with
//! what can be seen; what is remembered beyond that is a file that may be lost. So a daemon that is killed anywhere goes on where it was.

mod look;
mod memory;

use std::time::{Duration, Instant};

use jiff::Timestamp;

use self::memory::Memory;
use crate::config::Config;
use crate::config::schedule::Schedule as Written;
use crate::engine::answers::{Answer, Check, Outcome, Reach, Request, Status, Update};
use crate::engine::{Engine, Failure, chain, host_reason, source};
use crate::fleet::NodeId;
use crate::fleet::lock::{LockClient, Patience};
use crate::host::Machine;
use crate::host::clock::built_unix_secs;
use crate::progress::Progress;
use crate::reason::{Reason, Why};
use crate::schedule::report::{GateReport, Offer, Report};
use crate::schedule::{Gate, Lock, Now, Schedule, Seed, Seen, next, next_check};
use crate::services::orders::Services;

/// Between two looks at the machine while something waits for a gate that no clock opens.
const POLL: Duration = Duration::from_secs(15);
/// Between two looks at the machine while nothing waits.
const REST: Duration = Duration::from_secs(300);
/// How soon a wish to stop is heard.
const HEARD_WITHIN: Duration = Duration::from_millis(200);
/// Between two questions for this machine's turn, and between two attempts to give it back.
const ASK_AGAIN: Duration = Duration::from_secs(300);
/// After an update that failed; twice as long after each further one, up to the longest.
const RETRY_FIRST: Duration = Duration::from_secs(60);
const RETRY_LONGEST: Duration = Duration::from_secs(3600);

/// Looks after services, where some are declared, and acts by the schedule, where there is one, until it is asked to stop.
pub fn run(config: &Config, progress: &dyn Progress) -> Result<(), Failure> {
    let Some(written) = &config.schedule else {
        return Services::open(config, progress)?.supervise();
    };
    let machine = crate::host::open(config).map_err(|error| Failure::before(host_reason(&error), error))?;
    let mut driver = Driver::new(config, written, &*machine, progress)?;
    std::thread::scope(|scope| {
        if !config.service.is_empty() {
            scope.spawn(|| look_after_services(config, progress));
        }
        driver.run();
    });
    Ok(())
}

/// Until it is asked to stop. Without a schedule a failure ends the daemon, and who started it starts it again; here updates have to
/// go on, as one may bring the cure.
fn look_after_services(config: &Config, progress: &dyn Progress) {
    while let Err(failure) = Services::open(config, progress).and_then(|services| services.supervise()) {
        tracing::error!(why = %failure.why, untouched = failure.untouched, "services are not looked after; it is tried again");
        rest(POLL, progress);
        if progress.stopped() {
            return;
        }
    }
}

/// Waits, unless it is asked to stop.
fn rest(pause: Duration, progress: &dyn Progress) {
    let began = Instant::now();
    while began.elapsed() < pause && !progress.stopped() {
        std::thread::sleep(HEARD_WITHIN.min(pause.saturating_sub(began.elapsed())));
    }
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Nothing.
    Nothing,
    /// Fetch what is offered and write it.
    Download,
    /// Restart into what is staged.
    Restart,
    /// A trial or a way back is under way: its own clock decides.
    Leave,
}

/// Acts by the schedule.
struct Driver<'a> {
    config: &'a Config,
    machine: &'a dyn Machine,
    progress: &'a dyn Progress,
    schedule: Schedule,
    lock_server: Option<LockClient>,
    runtime: tokio::runtime::Runtime,
    node: String,
    memory: Memory,
    started: Timestamp,
    /// Nothing of an update that was under way was taken up again yet.
    is_new: bool,
    offer: Option<Check>,
    lock: Lock,
    /// When the lock server was asked last.
    asked: Option<Instant>,
    /// After updates that failed in a row: how long the next one waits, and since when.
    retry: Option<(Duration, Instant)>,
    trouble: Option<String>,
    /// What was logged of the gates last: told once, not at every turn.
    told: Option<(GateReport, GateReport)>,
}

impl<'a> Driver<'a> {
    fn new(
        config: &'a Config,
        written: &Written,
        machine: &'a dyn Machine,
        progress: &'a dyn Progress,
    ) -> Result<Driver<'a>, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::before(Reason::Internal, error))?;
        let node = NodeId::in_root(machine.root());
        let lock_server = match (&written.lock, &node) {
            (None, _) => None,
            (Some(server), Ok(node)) => {
                let http = crate::registry::http::client(&source::access(config))
                    .map_err(|error| Failure::before(Reason::ConfigInvalid, error))?;
                Some(LockClient::new(http, server, node, Patience::default()))
            }
            (Some(_), Err(error)) => {
                let detail = format!(
                    "the lock server knows machines by their id, and this one has none: {}",
                    chain(error)
                );
                return Err(Failure::refused(Why::new(Reason::ConfigInvalid, detail)));
            }
        };
        let memory = Memory::load(machine.state_dir());
        let lock = match (&lock_server, memory.may_hold_lock) {
            (Some(_), true) => Lock::HolderUnknown("the run before this one may have been granted it".into()),
            _ => Lock::NotAsked,
        };
        Ok(Driver {
            config,
            machine,
            progress,
            schedule: written.in_zone(written.find_zone()),
            lock_server,
            runtime,
            node: node.map_or_else(|_| String::new(), |node| node.as_str().to_owned()),
            memory,
            started: machine.clock().timestamp(),
            is_new: true,
            offer: None,
            lock,
            asked: None,
            retry: None,
            trouble: None,
            told: None,
        })
    }

    fn run(&mut self) {
        while !self.progress.stopped() {
            let pause = match self.turn() {
                Ok(pause) => pause,
                // An order of a person has the machine meanwhile.
                Err(failure) if failure.why.reason == Reason::Busy => POLL,
                Err(failure) => {
                    let told = failure.why.to_string();
                    if self.trouble.as_ref() != Some(&told) {
                        tracing::error!(why = %failure.why, untouched = failure.untouched, "a turn of the schedule failed");
                    }
                    self.trouble = Some(told);
                    POLL
                }
            };
            rest(pause, self.progress);
        }
    }

    /// One turn; how long the next one may wait.
    fn turn(&mut self) -> Result<Duration, Failure> {
        let status = self.status()?;
        // What the run before this one began goes on at once, and not with the next look.
        let under_way = self.memory.pending || status.state == "installing";
        if self.now() >= self.next_check() || (std::mem::take(&mut self.is_new) && under_way) {
            self.check()?;
        }
        let wish = wish(&status, self.offer.as_ref());
        if matches!(self.lock, Lock::Refused(_)) && !self.asked_lately() {
            self.lock = Lock::NotAsked;
        }
        let seen = self.look(wish);
        let now = Now { shows: self.now(), passed: passed() };
        let answer = next(&self.schedule, now, &seen);
        self.report(&answer.download, &answer.reboot);
        if wish != Wish::Leave && (wish != Wish::Restart || answer.give_lock_back) {
            self.give_lock_back();
        }
        let failed_lately = self.retry.is_some_and(|(pause, since)| since.elapsed() < pause);
        match (wish, &answer.download, &answer.reboot) {
            _ if failed_lately => {}
            (Wish::Download, Gate::Open { .. }, _) => {
                self.download()?;
                return Ok(Duration::ZERO);
            }
            (Wish::Restart, _, Gate::AskLock { .. }) if !self.asked_lately() => {
                self.ask_lock()?;
                return Ok(Duration::ZERO);
            }
            (Wish::Restart, _, Gate::Open { .. }) => self.restart()?,
            _ => {}
        }
        let waits = matches!(wish, Wish::Restart | Wish::Download | Wish::Leave);
        Ok(self.until([Some(self.next_check()), answer.wake()], if waits { POLL } else { REST }))
    }

    /// The time until the first of these moments, and `most` at the most.
    fn until(&self, moments: [Option<Timestamp>; 2], most: Duration) -> Duration {
        let now = self.now();
        let left =
            |moment: Timestamp| Duration::try_from(moment.duration_since(now)).unwrap_or(Duration::ZERO);
        moments.into_iter().flatten().map(left).fold(most, Duration::min).max(HEARD_WITHIN)
    }

    fn now(&self) -> Timestamp {
        self.machine.clock().timestamp()
    }

    fn next_check(&self) -> Timestamp {
        let seed = Seed::new(&self.node, self.memory.checks);
        next_check(&self.schedule, self.memory.last_check, self.started, self.now(), seed)
    }

    fn engine(&self, exclusive: bool) -> Result<Engine<'a>, Failure> {
        Engine::open(self.machine, self.config, self.progress, exclusive)
    }

    fn status(&self) -> Result<Status, Failure> {
        match self.engine(false)?.handle(Request::Status)? {
            Answer::Status(status) => Ok(*status),
            _ => Err(unexpected()),
        }
    }

    /// Looks at the source. The look counts although it fails: a registry that is down is not asked every few seconds.
    fn check(&mut self) -> Result<(), Failure> {
        self.memory.last_check = Some(self.now());
        self.memory.checks += 1;
        self.memory.store(self.machine.state_dir())?;
        match self.engine(false)?.handle(Request::Check { to: None })? {
            Answer::Check(check) => {
                let known = self.offer.as_ref().map(|offer| (offer.release.digest, offer.available));
                if known != Some((check.release.digest, check.available)) {
                    let (version, available) = (&check.release.version, check.available);
                    tracing::info!(version, available, detail = check.detail, "the source offers");
                }
                let pending = check.available;
                (self.offer, self.trouble) = (Some(check), None);
                self.remember_pending(pending)
            }
            _ => Err(unexpected()),
        }
    }

    fn remember_pending(&mut self, pending: bool) -> Result<(), Failure> {
        if std::mem::replace(&mut self.memory.pending, pending) == pending {
            return Ok(());
        }
        self.memory.store(self.machine.state_dir())
    }

    fn look(&self, wish: Wish) -> Seen {
        let mut seen = Seen { lock: self.lock.clone(), ..Seen::default() };
        // Asked only when it matters: each question is a program that runs.
        if let (Wish::Restart, crate::schedule::Allow::Gates(gates)) = (wish, &self.schedule.reboot) {
            if gates.sessions {
                seen.sessions = look::sessions();
            }
            if gates.inhibitors {
                seen.inhibitors = look::inhibitors();
            }
        }
        seen
    }

    /// An update as far as `reach`. After one that fails the next waits, so that a source which is down, or a release that cannot
    /// be written, is not tried every few seconds.
    fn update(&mut self, reach: Reach) -> Result<Update, Failure> {
        let updated =
            self.engine(true).and_then(|mut engine| engine.handle(Request::Update { to: None, reach }));
        match updated {
            Ok(Answer::Update(update)) => {
                tracing::info!(version = update.release.version, outcome = ?update.outcome, "{}", update.detail);
                (self.retry, self.trouble) = (None, None);
                Ok(update)
            }
            Ok(_) => Err(unexpected()),
            Err(failure) => {
                if failure.why.reason != Reason::Busy {
                    let pause = self.retry.map_or(RETRY_FIRST, |(pause, _)| (pause * 2).min(RETRY_LONGEST));
                    self.retry = Some((pause, Instant::now()));
                }
                Err(failure)
            }
        }
    }

    fn download(&mut self) -> Result<(), Failure> {
        let update = self.update(Reach::Stage)?;
        // What is not staged now was not wanted after all, or moved services alone: offered once more it would be tried without end.
        if let (Some(offer), true) = (&mut self.offer, update.outcome != Outcome::Staged) {
            (offer.available, offer.detail) = (false, update.detail);
        }
        self.remember_pending(false)
    }

    fn restart(&mut self) -> Result<(), Failure> {
        let restarted = self.update(Reach::Reboot);
        // There is no restart to hold a turn for: it failed, or what was staged is not what the source offers now.
        if !restarted.as_ref().is_ok_and(|update| update.outcome == Outcome::Rebooting) {
            self.give_lock_back();
        }
        restarted.map(|_| ())
    }

    fn asked_lately(&self) -> bool {
        self.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN)
    }

    fn ask_lock(&mut self) -> Result<(), Failure> {
        let Some(server) = &self.lock_server else { return Ok(()) };
        // Killed in the middle, the next run must know that the server may count this machine.
        self.memory.may_hold_lock = true;
        self.memory.store(self.machine.state_dir())?;
        self.lock = self.runtime.block_on(server.ask());
        self.asked = Some(Instant::now());
        match &self.lock {
            Lock::Held => tracing::info!("it is this machine's turn to restart"),
            Lock::Refused(why) => {
                tracing::info!(why, "it is not this machine's turn to restart");
                self.memory.may_hold_lock = false;
                self.memory.store(self.machine.state_dir())?;
            }
            Lock::HolderUnknown(why) => tracing::warn!(why, "the lock server may count this machine"),
            Lock::NotAsked => {}
        }
        Ok(())
    }

    /// Gives this machine's turn back, where it may have one. The server has to have heard it; until then it is said again.
    fn give_lock_back(&mut self) {
        let Some(server) = &self.lock_server else { return };
        // One that is held is given back at once; what failed is tried again now and then.
        if !self.memory.may_hold_lock || (self.lock != Lock::Held && self.asked_lately()) {
            return;
        }
        match self.runtime.block_on(server.give_back()) {
            Ok(()) => {
                (self.lock, self.asked) = (Lock::NotAsked, None);
                self.memory.may_hold_lock = false;
                if let Err(failure) = self.memory.store(self.machine.state_dir()) {
                    tracing::warn!(why = %failure.why, "that the turn was given back could not be written down");
                }
                tracing::info!("this machine's turn was given back");
            }
            Err(error) => {
                tracing::warn!(%error, "this machine's turn could not be given back; others wait for it");
                self.lock = Lock::HolderUnknown(error.to_string());
                self.asked = Some(Instant::now());
            }
        }
    }

    fn report(&mut self, download: &Gate, reboot: &Gate) {
        let gates = (GateReport::from(download), GateReport::from(reboot));
        if self.told.as_ref() != Some(&gates) {
            for (name, gate) in [("download", &gates.0), ("reboot", &gates.1)] {
                let blocks: Vec<&str> = gate.blocked_by.iter().map(|block| block.detail.as_str()).collect();
                tracing::info!(gate = name, open = gate.open, "{}", blocks.join("; "));
            }
            self.told = Some(gates.clone());
        }
        let report = Report {
            at: self.now(),
            next_check: self.next_check(),
            offer: self.offer.as_ref().map(offer),
            download: gates.0,
            reboot: gates.1,
            trouble: self.trouble.clone(),
        };
        let file = self.config.machine.schedule_report();
        let written = file.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
            let unfinished = file.with_extension("new");
            std::fs::write(&unfinished, serde_json::to_vec(&report)?)?;
            std::fs::rename(&unfinished, &file)
        });
        if let Err(error) = written {
            tracing::debug!(%error, "what the schedule does could not be written down for `status`");
        }
    }
}

/// What is left to be done, by the machine's state and what the source offers.
fn wish(status: &Status, offer: Option<&Check>) -> Wish {
    match status.state {
        "armed" | "on-trial" | "rolling-back" => Wish::Leave,
        // Another release than the staged one takes its place; that one is downloaded first.
        "staged" => match offer {
            Some(offer) if offer.available && !status.slots.iter().any(|slot| holds(slot, offer)) => {
                Wish::Download
            }
            _ => Wish::Restart,
        },
        _ if offer.is_some_and(|offer| offer.available) => Wish::Download,
        _ => Wish::Nothing,
    }
}

fn holds(slot: &crate::engine::answers::SlotStatus, offer: &Check) -> bool {
    slot.release.as_ref().is_some_and(|release| release.digest == offer.release.digest)
}

fn offer(check: &Check) -> Offer {
    Offer {
        name: check.release.name.clone(),
        version: check.release.version.clone(),
        digest: check.release.digest.to_string(),
        available: check.available,
        detail: check.detail.clone(),
    }
}

/// The build of this program has certainly passed.
fn passed() -> Timestamp {
    let built = i64::try_from(built_unix_secs()).unwrap_or(0);
    Timestamp::from_second(built).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn unexpected() -> Failure {
    Failure::refused(Why::new(Reason::Internal, "an answer to another question came"))
}
