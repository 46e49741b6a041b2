//! Each request, answered.
//!
//! Not here: the loop (`mod`), the actions (`act`). Rule: what only looks changes nothing, not even the state file.

use std::time::{Duration, Instant};

use switchback_bootloader::boot_state::SlotBoot;
use switchback_partitions::slot::Slot;

use super::answers::{
    Answer, BootCheck, BootVerdict, Check, History, HistoryEntry, Logs, Outcome, Reach, Status, Update,
};
use super::costs::Costs;
use super::observe::{Seen, summary};
use super::quarantine::listed;
use super::words::{blockers, newest, next_sentence, phase_name, slot_status};
use super::{Candidate, Engine, Failure, NOTHING_CHANGED, Rest, source};
use crate::facts::Happened;
use crate::health::{self, CheckOutcome, CheckResult, HealthReport};
use crate::host::bounded::read_bounded;
use crate::image::config::Kind;
use crate::init::keeper;
use crate::install::{Release, ReleaseName, Traffic};
use crate::lifecycle::{Action, Event, Goal, Order, Verdict, step};
use crate::logs;
use crate::progress::Phase as Work;
use crate::reason::Reason;
use crate::registry::{Registry, RegistryAccess};
use crate::schedule::report::{self, Report};
use crate::services;
use crate::trust::policy::admit;

impl Engine<'_> {
    pub(super) fn status(&self) -> Result<Answer, Failure> {
        let seen = self.observe()?;
        let known = &seen.observation.known;
        let slots = Slot::ALL.map(|slot| slot_status(&seen, slot));
        Ok(Answer::Status(Box::new(Status {
            confirmed_at: self.confirmed_at(&seen),
            records_degraded: self.facts.degraded(),
            records_lost: self.records_lost(Some(seen.observation.boot)),
            blocked_by: blockers(&seen, self.trusted().err()),
            next: next_sentence(&self.state.phase, &seen),
            state: phase_name(&self.state.phase, &seen),
            running_by: seen.evidence.clone(),
            bootloader: seen.bootloader,
            floor: seen.observation.floor(),
            held: known.hold.as_ref().map(|hold| hold.release.digest),
            held_version: known.hold.as_ref().map(|hold| hold.release.version.clone()),
            quarantine: listed(&self.facts),
            last: self.newest(1).pop(),
            source: self.config.source.image.clone(),
            watchdog: self.machine.watchdog_held(),
            services: self.service_lines(&seen),
            services_follow: self.services_follow(&seen),
            last_written: Costs::load(self.machine.state_dir()),
            schedule: self.schedule(),
            slots,
        })))
    }

    /// What a daemon wrote down.
    fn schedule(&self) -> Option<Report> {
        self.config.schedule.as_ref()?;
        serde_json::from_slice(
            &read_bounded(&self.config.machine.schedule_report(), report::BYTES_MAX).ok()??,
        )
        .ok()
    }

    /// When the running release was confirmed last, by the history.
    fn confirmed_at(&self, seen: &Seen) -> Option<jiff::Timestamp> {
        let running = seen.observation.running_release()?;
        let confirmed = |entry: &&crate::facts::Entry| match &entry.what {
            Happened::Outcome(outcome) => {
                matches!(outcome.verdict, Verdict::Confirmed | Verdict::RolledBack)
                    && outcome.release.as_ref().is_some_and(|release| release.digest == running.digest)
            }
            Happened::Released { .. } => false,
        };
        let entry = self.facts.history().iter().rev().find(confirmed)?;
        jiff::Timestamp::from_second(i64::try_from(entry.at_unix_secs).ok()?).ok()
    }

    pub(super) fn check(&self, to: Option<&str>) -> Result<Answer, Failure> {
        let mut seen = self.observe()?;
        seen.for_update();
        let (release, _) = self.candidate(to, &seen)?;
        let order = order(&release, to.is_some(), Goal::Trial);
        let event = Event::UpdateOrdered(Box::new(order), Box::new(seen.observation.clone()));
        let (_, action) = step(&self.state, event, &self.policy(true));
        let (available, why) = match action {
            Action::Refuse(why) => (false, Some(why)),
            Action::Nothing | Action::Ignored => (false, None),
            _ => (true, None),
        };
        let detail = match &why {
            Some(why) => format!("It is not taken: {} {}", why.reason.description(), why.detail),
            None if available => String::new(),
            None => "It runs already.".to_string(),
        };
        let running = seen.releases[seen.observation.running.index()].as_ref().map(Release::name);
        let reason = why.map(|why| why.reason);
        Ok(Answer::Check(Check { release: release.name(), running, available, reason, detail }))
    }

    pub(super) fn update(
        &mut self,
        to: Option<&str>,
        reach: Reach,
        began: Instant,
    ) -> Result<Answer, Failure> {
        if reach != Reach::DryRun {
            self.settle()?;
        }
        let mut seen = self.observe()?;
        let anew = seen.for_update();
        let (release, registry) = self.candidate(to, &seen)?;
        let goal = if reach == Reach::Stage { Goal::Stage } else { Goal::Trial };
        let order = Box::new(order(&release, to.is_some(), goal));
        let event = Event::UpdateOrdered(order, Box::new(seen.observation.clone()));
        let mut answer = self.blank(release.name(), seen.observation.running.other());
        let planned = step(&self.state, event.clone(), &self.policy(true)).1;
        // What an operator did to one service stays until the release is named again.
        let is_wanted = match planned {
            Action::Refuse(_) => false,
            Action::Nothing | Action::Ignored => to.is_some(),
            _ => true,
        };
        if is_wanted && self.has_the_running_os(&release, &seen) {
            return self.move_services((&release, &*registry), &seen, reach, began);
        }
        if reach == Reach::DryRun {
            return self.dry_run(planned, answer, Some((&release, &*registry))).map(Answer::Update);
        }
        // Refused here, it leaves every byte as it was, the records too.
        let surveyed = match &planned {
            Action::Install { .. } => {
                anew.iter().for_each(|words| self.progress.say(words));
                self.cleared_for(&release, &*registry, true)?
            }
            _ => Vec::new(),
        };
        if matches!(planned, Action::Install { .. } | Action::Arm { .. }) {
            self.fetch_services(&release, &*registry, seen.observation.running)?;
        }
        self.remember_registry(&*registry);
        self.run.network = registry.network();
        self.run.candidate = Some(Candidate { release, registry, surveyed });
        let rest = self.drive(event, reach, &self.policy(true))?;
        self.conclude(rest, &mut answer, began, "It runs already.")?;
        if goal == Goal::Stage && answer.outcome == Outcome::Unchanged && self.state.phase.name() == "staged"
        {
            answer.outcome = Outcome::Staged;
            answer.detail = "Run `switchback update` again to arm it.".into();
        }
        Ok(Answer::Update(answer))
    }

    pub(super) fn rollback(
        &mut self,
        reach: Reach,
        below_floor: bool,
        began: Instant,
    ) -> Result<Answer, Failure> {
        if reach != Reach::DryRun {
            self.settle()?;
        }
        let seen = self.observe()?;
        if self.state.phase.name() == "idle"
            && let Some(answer) = self.services_rollback(&seen, reach, began)?
        {
            return Ok(answer);
        }
        let slot = seen.observation.running.other();
        let unknown = || ReleaseName {
            name: "nothing".into(),
            version: String::new(),
            digest: crate::digest::Digest::of(b""),
        };
        let name = seen.releases[slot.index()].as_ref().map_or_else(unknown, Release::name);
        let mut answer = self.blank(name, slot);
        let started = Event::Started(Box::new(seen.observation.clone()));
        let event = Event::RollbackOrdered { below_floor, seen: Box::new(seen.observation) };
        if reach == Reach::DryRun {
            // As `settle` would find it: a start that nobody has judged yet is a trial.
            let state = match step(&self.state, started, &self.policy(false)) {
                (on_trial, Action::RunHealth { .. }) => on_trial,
                _ => self.state.clone(),
            };
            let (_, action) = step(&state, event, &self.policy(true));
            return self.dry_run(action, answer, None).map(Answer::Rollback);
        }
        let was_armed = self.state.phase.name() == "armed";
        let rest = self.drive(event, reach, &self.policy(true))?;
        self.conclude(rest, &mut answer, began, "There is nothing to go back to.")?;
        if was_armed && self.state.phase.name() == "staged" {
            answer.outcome = Outcome::Disarmed;
            answer.detail = "`switchback update` arms it again.".into();
        }
        Ok(Answer::Rollback(answer))
    }

    pub(super) fn history(&self, limit: usize) -> History {
        History { entries: self.newest(limit), records_lost: self.records_lost(None) }
    }

    fn newest(&self, limit: usize) -> Vec<HistoryEntry> {
        newest(self.facts.history(), &logs::all(self.machine.state_dir().path()), limit)
    }

    pub(super) fn logs(&self, release: Option<&str>) -> Logs {
        let mut logs = logs::all(self.machine.state_dir().path());
        logs.retain(|log| release.is_none_or(|release| log.is(release)));
        Logs { logs }
    }

    pub(super) fn health(&self) -> Result<Answer, Failure> {
        let seen = self.observe()?;
        Ok(Answer::Health(self.run_checks(&seen, self.config.health.deadline)))
    }

    pub(super) fn boot_check(&mut self, no_reboot: bool) -> Result<Answer, Failure> {
        self.mend_facts();
        let mut seen = self.observe()?;
        let autopsy = self.autopsy(&mut seen);
        let slot = seen.observation.running;
        let release = seen.releases[slot.index()].as_ref().map(Release::name);
        let before = self.state.next_seq;
        let was_leaving = self.state.phase.name() == "rolling-back";
        let reach = if no_reboot { Reach::Arm } else { Reach::Reboot };
        self.drive(Event::Started(Box::new(seen.observation.clone())), reach, &self.policy(false))?;
        self.release_keeper(slot);
        // The verdict was recorded before the reboot; this boot is where it led.
        let came_back = was_leaving && self.state.phase.name() == "idle";
        let outcome = self.state.last.clone().filter(|last| came_back || last.seq >= before);
        let verdict = match outcome.as_ref().map(|outcome| outcome.verdict) {
            Some(Verdict::Confirmed | Verdict::RolledBack) => BootVerdict::Confirmed,
            Some(Verdict::Returned) if self.run.health.is_some() => BootVerdict::Returning,
            Some(Verdict::Returned | Verdict::NotInstalled) if is(&outcome, Reason::LoaderRefused) => {
                BootVerdict::NotStarted
            }
            Some(Verdict::Returned | Verdict::Inconclusive) => BootVerdict::Returned,
            Some(Verdict::Stranded) => BootVerdict::Stranded,
            _ => BootVerdict::Nothing,
        };
        match verdict {
            BootVerdict::Confirmed => self.after_confirmation(),
            _ => self.after_failure(),
        }
        self.keep_last_words(&autopsy, &seen, outcome.as_ref());
        let log = outcome.as_ref().and_then(|outcome| self.log_of(outcome)).map(|log| log.name());
        let why = outcome.and_then(|outcome| outcome.why);
        Ok(Answer::BootCheck(BootCheck {
            verdict,
            slot,
            release,
            health: self.run.health.take(),
            log,
            hooks: std::mem::take(&mut self.run.hooks),
            reason: why.as_ref().map(|why| why.reason),
            detail: why.map(|why| why.to_string()).unwrap_or_default(),
        }))
    }

    /// Tells the watchdog's keeper that this start needs no deadline any more. On every confirmed start: where the
    /// firmware's variables cannot be read, the keeper takes each start for a trial.
    fn release_keeper(&self, slot: Slot) {
        let confirmed = self.machine.bootloader().ok().and_then(|bootloader| bootloader.read().ok());
        if confirmed.is_some_and(|state| state.slot(slot) == SlotBoot::Good)
            && let Err(error) = keeper::mark_confirmed(self.machine.root())
        {
            tracing::warn!(%error, "the watchdog's keeper could not be told; it will restart the machine");
        }
    }

    fn mend_facts(&mut self) {
        if let Err(error) = self.facts.repair() {
            tracing::warn!(%error, "one copy of the durable facts is damaged and could not be mended");
        }
    }

    /// Every start is a recovery: what an interrupted run or a reboot left is settled before a new order.
    fn settle(&mut self) -> Result<(), Failure> {
        self.mend_facts();
        let (seen, policy) = (self.observe()?, self.policy(false));
        let started = Event::Started(Box::new(seen.observation));
        // A trial is judged by `boot-check` alone, once the system is up: an order in passing must neither confirm it
        // nor fail it for services that still start.
        if let (on_trial, Action::RunHealth { .. }) = step(&self.state, started.clone(), &policy) {
            return self.adopt(on_trial);
        }
        self.drive(started, Reach::Stage, &policy)?;
        Ok(())
    }

    /// Fetches and verifies what `to` or the configuration names, and asks whether this machine may take it.
    fn candidate(&self, to: Option<&str>, seen: &Seen) -> Result<(Release, Box<dyn Registry>), Failure> {
        let trust = self.trusted().map_err(Failure::clone)?;
        let reference = source::reference(self.config, to)?;
        let access =
            RegistryAccess { signed_unix_secs: seen.signed_unix_secs(), ..source::access(self.config) };
        let registry = source::open_mirrored(self.config, &reference, &access)?;
        self.progress.begin(Work::Check, 0);
        let resolved = self.fetch(async { Ok(source::resolve(&*registry, &reference).await) });
        let digest = resolved.map_err(|e| Failure::before(e.reason(), e))??;
        let fetched = self.fetch(Release::fetch(&*registry, digest, trust));
        self.progress.end();
        let release = fetched.map_err(|e| Failure::before(e.reason(), e))?;
        let running = seen.releases[seen.observation.running.index()].as_ref();
        let product =
            self.config.machine.product.as_deref().or(running.map(|running| running.config.product.as_str()));
        let admitted = admit(&release.config, Kind::Os, product, &self.machine.compatible());
        admitted.map_err(|e| Failure::before(crate::install::trust_reason(&e), e))?;
        Ok((release, registry))
    }

    pub(super) fn blank(&self, release: ReleaseName, slot: Slot) -> Update {
        Update {
            outcome: Outcome::Unchanged,
            release,
            slot,
            traffic: Traffic::default(),
            network: None,
            stages: None,
            seconds: 0.0,
            tries: self.config.boot.tries,
            detail: String::new(),
            services: Vec::new(),
        }
    }

    fn dry_run(
        &self,
        action: Action,
        mut answer: Update,
        fetched: Option<(&Release, &dyn Registry)>,
    ) -> Result<Update, Failure> {
        match (action, fetched) {
            (Action::Refuse(why), _) => return Err(Failure::refused(why)),
            (Action::Install { .. }, Some((release, registry))) => {
                answer.outcome = Outcome::WouldUpdate;
                let surveyed = self.cleared_for(release, registry, false)?;
                answer.traffic = crate::install::plan(release, &surveyed, &self.observe()?.boot_files());
                answer.network = registry.network();
                answer.detail = "Nothing was changed.".into();
            }
            (Action::Arm { .. } | Action::Reboot, _) => {
                answer.outcome = Outcome::WouldUpdate;
                answer.detail =
                    "It lies there already: it is read back and armed. Nothing was changed.".into();
            }
            (Action::Disarm(slot), _) => {
                answer.detail =
                    format!("Slot {slot} would not be armed any more: the next reboot would stay here.");
            }
            // The verdict is recorded first; what follows from it is the way back.
            (Action::Record(ended), _) => {
                answer.detail = format!(
                    "The trial in slot {} would end, its release be held, and the machine return to slot {}.",
                    ended.slot,
                    ended.slot.other()
                );
            }
            _ => answer.detail = "There is nothing to do.".into(),
        }
        Ok(answer)
    }

    fn conclude(
        &mut self,
        rest: Rest,
        answer: &mut Update,
        began: Instant,
        unchanged: &str,
    ) -> Result<(), Failure> {
        if let Some(failure) = self.run.failure.take() {
            return Err(failure);
        }
        (answer.traffic, answer.network) = (self.run.traffic, self.run.network);
        answer.stages = self.run.stages;
        answer.seconds = (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        (answer.outcome, answer.detail) = match rest {
            Rest::Refused(why) => return Err(Failure { why, untouched: NOTHING_CHANGED }),
            Rest::BeforeReboot if !self.run.armed => {
                (Outcome::Unchanged, "It is armed already: the next reboot starts its trial.".into())
            }
            Rest::BeforeReboot => (Outcome::Armed, "Reboot when it suits you.".into()),
            Rest::Rebooting => (Outcome::Rebooting, String::new()),
            Rest::Waiting => (
                Outcome::Unchanged,
                "It waits after an inconclusive trial; name it with --to to go on now.".into(),
            ),
            Rest::Steady if self.run.proven.is_some() => {
                (Outcome::Staged, "Run `switchback update` again to arm it.".into())
            }
            Rest::Steady => (Outcome::Unchanged, unchanged.into()),
        };
        Ok(())
    }

    /// The machine's checks; an unreadable check is an unhealthy machine, never a check less.
    pub(super) fn run_checks(&self, seen: &Seen, deadline: Duration) -> HealthReport {
        let context = self.context(seen);
        let limits = health::Limits {
            deadline: deadline.min(self.config.health.deadline),
            soak: self.config.health.soak,
        };
        match health::checks_of(self.config) {
            Ok(checks) => {
                let built_in = self.can_update_again(limits.deadline);
                let (folder, running) = (self.machine.state_dir(), seen.observation.running);
                let services = services::follow::well(self.config, folder, running);
                self.runtime.block_on(async {
                    let services = health::services(services, limits.deadline);
                    let (mut report, services) =
                        tokio::join!(health::run(&checks, limits, &context, built_in), services);
                    report.checks.extend(services);
                    report
                })
            }
            Err(error) => HealthReport {
                checks: vec![CheckResult {
                    name: "configuration".into(),
                    outcome: CheckOutcome::Failed,
                    attempts: 1,
                    millis: 0,
                    detail: super::chain(&error),
                }],
            },
        }
    }
}

fn order(release: &Release, named: bool, goal: Goal) -> Order {
    Order { candidate: summary(release), named, below_floor: false, goal }
}

fn is(outcome: &Option<crate::lifecycle::Outcome>, reason: Reason) -> bool {
    outcome.as_ref().and_then(|outcome| outcome.why.as_ref()).is_some_and(|why| why.reason == reason)
}
