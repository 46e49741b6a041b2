//! The life of one service's update: the same `step` as the OS, with a start beside and a flip in place of a reboot.
//!
//! Not here: decisions (`lifecycle`), what one slot can do (`host`). Rule: the set says what serves, and changes in one durable
//! step; whatever ends this process, the next start finds one good slot and leads clients there.

use std::time::{Duration, Instant};

use switchback_bootloader::boot_state::{BootState, SlotBoot};
use switchback_partitions::slot::Slot;
use uuid::Uuid;

use super::host::{Host, Member, SlotError};
use super::set::{Held, Record, Set};
use super::store::Stored;
use super::volume::FAILED;
use crate::config::service::{Mode, Name, Service};
use crate::digest::Digest;
use crate::engine::{Failure, NOTHING_CHANGED, chain};
use crate::facts::{Fact, Facts, state_file};
use crate::host::clock::Clock;
use crate::host::state_dir::{Folder, StateDir};
use crate::lifecycle::{
    Action, Event, Goal, Moment, Observation, Order, Outcome, Policy, State, Verdict, step,
};
use crate::progress::Progress;
use crate::reason::{Reason, Why};

/// More steps than any update takes.
const STEPS_MAX: usize = 64;
/// What a failed update leaves.
pub const STILL_SERVING: &str = "The slot that served before serves still; the other one does not run.";
/// On top of probes and soak: what starting and stopping may take.
const MARGIN: Duration = Duration::from_secs(60);

/// What an update came to.
#[derive(Debug, Clone)]
pub struct Done {
    /// How it ended; `None`: there was nothing to do.
    pub outcome: Option<Outcome>,
    /// From the order to start the new slot until clients were led there; `None`: they were not.
    pub activation: Option<Duration>,
}

/// One service and its records.
pub struct Life<'a> {
    member: Member<'a>,
    set: Set,
    os: Slot,
    set_folder: &'a dyn StateDir,
    folder: Folder,
    facts: Facts,
    state: State,
    progress: &'a dyn Progress,
    runtime: &'a tokio::runtime::Runtime,
    /// The slot that counts as running: what serves, or what is being tried.
    running: Slot,
    /// New with each "start": what tells one from the next.
    boot_id: String,
    /// What an order brings.
    candidate: Option<Held>,
    activation: Option<Duration>,
}

/// Where a service's life is written down.
pub struct Records<'a> {
    /// The folder of the sets.
    pub folder: &'a dyn StateDir,
    /// The OS slot whose set counts.
    pub os: Slot,
}

impl<'a> Life<'a> {
    /// Opens the records of a service; makes them where there are none.
    pub fn open(
        host: &'a Host,
        (name, service): (&'a Name, &'a Service),
        records: &Records<'a>,
        progress: &'a dyn Progress,
        runtime: &'a tokio::runtime::Runtime,
    ) -> Result<Life<'a>, Failure> {
        let unreadable = |error: crate::facts::FactsError| Failure::before(error.reason(), error);
        let mut set = Set::load(records.folder, records.os).map_err(unreadable)?;
        let Some(record) = set.record(name) else {
            return Err(Failure::refused(Why::new(
                Reason::NotSupported,
                "256 services are all there can be",
            )));
        };
        let (index, running) = (record.index, record.serving());
        let folder = Folder::new(records.folder.path().join("services").join(name.as_str()));
        folder.make().map_err(|error| Failure::before(Reason::StateUnreadable, error))?;
        let facts = Facts::open(&folder).map_err(unreadable)?;
        let state = state_file::load(&folder).into_state();
        Ok(Life {
            member: Member { host, name, service, index },
            set,
            os: records.os,
            set_folder: records.folder,
            folder,
            facts,
            state,
            progress,
            runtime,
            running,
            boot_id: Uuid::new_v4().to_string(),
            candidate: None,
            activation: None,
        })
    }

    /// Brings the machine to what the records say, and settles what an interrupted update left.
    pub fn settle(&mut self) -> Result<(), Failure> {
        self.member.settle(self.record()).map_err(failed)?;
        let other = self.running.other();
        if let SlotBoot::Trial { tries_done: 0, .. } = self.record().boot.slot(other) {
            // Cut off between the record and the start. A machine on which that happens has a loader that refuses the slot; here
            // nobody refused anything.
            let forgotten = self.change_boot(|boot| boot.forget(other));
            forgotten.map_err(|why| Failure { why, untouched: STILL_SERVING })?;
        }
        let started = Event::Started(Box::new(self.observe()));
        self.drive(started).map(drop)
    }

    /// Moves to a verified image that is in the store.
    pub fn update(&mut self, held: Held) -> Result<Done, Failure> {
        self.settle()?;
        let (before, release) = (self.state.next_seq, held.release.clone());
        self.candidate = Some(held);
        // An operator names the image in the declaration: an older one is as welcome as a newer.
        let order = Order { candidate: release, named: true, below_floor: false, goal: Goal::Trial };
        self.drive(Event::UpdateOrdered(Box::new(order), Box::new(self.observe())))?;
        self.done(before)
    }

    /// Goes back to what the other slot holds.
    pub fn rollback(&mut self) -> Result<Done, Failure> {
        self.settle()?;
        let before = self.state.next_seq;
        let seen = Box::new(self.observe());
        self.drive(Event::RollbackOrdered { below_floor: false, seen })?;
        self.done(before)
    }

    fn done(&self, before: u64) -> Result<Done, Failure> {
        let outcome = self.state.last.clone().filter(|last| last.seq >= before);
        if let Some(Outcome { verdict, why: Some(why), .. }) = &outcome
            && !matches!(verdict, Verdict::Confirmed | Verdict::RolledBack)
        {
            return Err(Failure { why: why.clone(), untouched: STILL_SERVING });
        }
        Ok(Done { outcome, activation: self.activation })
    }

    fn record(&self) -> &Record {
        // `open` made it.
        &self.set.services[self.member.name]
    }

    fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), Why> {
        let mut set = self.set.clone();
        if let Some(record) = set.record(self.member.name) {
            change(record);
        }
        set.store(self.set_folder, self.os).map_err(|error| Why::new(error.reason(), chain(&error)))?;
        self.set = set;
        Ok(())
    }

    fn change_boot(&mut self, change: impl FnOnce(&BootState) -> BootState) -> Result<(), Why> {
        self.change(|record| record.boot = change(&record.boot))
    }

    fn now(&self) -> Moment {
        let Clock { uptime_secs, unix_secs } = Clock::now();
        Moment { boot_id: self.boot_id.clone(), uptime_secs, unix_secs }
    }

    fn observe(&self) -> Observation {
        let record = self.record();
        Observation {
            running: self.running,
            boot: record.boot,
            slots: record.slots.clone().map(|held| held.map(|held| held.release)),
            now: self.now(),
            known: self.facts.known().clone(),
        }
    }

    fn policy(&self) -> Policy {
        let service = self.member.service;
        let deadline = service.probe.timeout + service.soak + service.drain + MARGIN;
        // An image cannot end its updater: what an interruption leaves says nothing against it, however often. The next order
        // tries it again, at once; nothing is tried that nobody ordered.
        Policy {
            tries: 2,
            retries: u8::MAX,
            backoff_secs: 0,
            trial_deadline_secs: deadline.as_secs(),
            carry_on: false,
            ..Policy::default()
        }
    }

    fn drive(&mut self, event: Event) -> Result<(), Failure> {
        let (mut event, policy) = (event, self.policy());
        for _ in 0..STEPS_MAX {
            let (next, action) = step(&self.state, event, &policy);
            tracing::debug!(service = %self.member.name, ?action, "step");
            if next != self.state {
                state_file::store(&self.folder, &next).map_err(|e| Failure::before(e.reason(), e))?;
                self.state = next;
            }
            event = match action {
                Action::Nothing | Action::Ignored | Action::Wait(_) => return Ok(()),
                Action::Refuse(why) => return Err(Failure { why, untouched: NOTHING_CHANGED }),
                action => self.act(action)?,
            };
        }
        let detail = format!("no rest after {STEPS_MAX} steps");
        Err(Failure { why: Why::new(Reason::Internal, detail), untouched: STILL_SERVING })
    }

    fn act(&mut self, action: Action) -> Result<Event, Failure> {
        Ok(match action {
            Action::Install { slot, .. } => match self.install(slot) {
                Ok(()) => Event::Installed,
                Err(why) => Event::InstallFailed(why),
            },
            Action::Arm { slot, tries, .. } => match self.change_boot(|boot| boot.arm(slot, tries)) {
                Ok(()) => Event::Armed(self.now()),
                Err(why) => Event::ArmFailed(why),
            },
            Action::Reboot => self.start_anew()?,
            Action::RunHealth { .. } => match self.runtime.block_on(self.try_slot()) {
                Ok(activation) => {
                    self.activation = activation;
                    Event::HealthPassed
                }
                Err(why) => Event::HealthFailed(why),
            },
            Action::Confirm(slot) => match self.change_boot(|boot| boot.confirm(slot)) {
                Ok(()) => {
                    self.leave();
                    Event::Confirmed
                }
                Err(why) => {
                    // Nothing durable says that it serves: the old one has to.
                    self.lead_back(slot);
                    Event::ConfirmFailed(why)
                }
            },
            Action::Revert(slot) => match self.change_boot(|boot| boot.revert(slot)) {
                Ok(()) => Event::Reverted,
                Err(why) => Event::RevertFailed(why),
            },
            Action::Disarm(slot) => match self.change_boot(|boot| boot.forget(slot)) {
                Ok(()) => Event::Disarmed,
                Err(why) => Event::DisarmFailed(why),
            },
            Action::Record(outcome) => match self.facts.add(&Fact::Outcome(outcome), self.now().unix_secs) {
                Ok(()) => Event::Recorded,
                Err(error) => Event::RecordFailed(Why::new(error.reason(), chain(&error))),
            },
            Action::Nothing | Action::Ignored | Action::Refuse(_) | Action::Wait(_) => Event::Cancelled,
        })
    }

    fn install(&mut self, slot: Slot) -> Result<(), Why> {
        let Some(held) = self.candidate.clone() else {
            return Err(Why::new(Reason::Internal, "nothing was fetched"));
        };
        // The old image of this slot is given up first: a slot whose record and image differ must never be armed.
        self.change_boot(|boot| boot.forget(slot))?;
        self.change(|record| record.slots[slot.index()] = Some(held))
    }

    /// What a restart is to a machine: the slot that the record chooses counts as running from now on, its try is spent.
    fn start_anew(&mut self) -> Result<Event, Failure> {
        let leaves = self.running;
        let chosen = self.record().boot.choose().unwrap_or(self.running);
        let spent = self.change_boot(|boot| boot.spend());
        spent.map_err(|why| Failure { why, untouched: STILL_SERVING })?;
        self.boot_id = Uuid::new_v4().to_string();
        self.running = chosen;
        if chosen == self.record().serving() && chosen != leaves {
            self.member.settle(self.record()).map_err(failed)?;
        }
        Ok(Event::Started(Box::new(self.observe())))
    }

    /// Starts the slot on trial, leads clients to it once it is well, and watches it. Whatever goes wrong, clients are led to
    /// the old slot again before this returns.
    async fn try_slot(&self) -> Result<Option<Duration>, Why> {
        let (slot, old) = (self.running, self.record().serving());
        let unfit = |words: String| Why::new(Reason::HealthFailed, words);
        let image = self.image(slot).map_err(unfit)?;
        let began = Instant::now();
        if self.member.service.mode == Mode::Recreate && old != slot {
            self.stop_old(old).await.map_err(unfit)?;
        }
        let mut raised = Vec::new();
        let tried = async {
            raised = self.raise_volumes(&image)?;
            self.member.start(slot, &image).map_err(|error| chain(&error))?;
            self.becomes_well(slot).await?;
            self.member.lead(Some(slot)).map_err(|error| chain(&error))?;
            let activation = began.elapsed();
            self.progress.say(&format!(
                "{} is led to slot {slot} after {:.1} s.",
                self.member.name,
                activation.as_secs_f64()
            ));
            self.stays_well(slot).await?;
            Ok::<_, String>(activation)
        };
        match tried.await {
            Ok(activation) => Ok(Some(activation)),
            Err(words) => {
                self.lead_back(slot);
                let kept =
                    |name: &&Name| format!("; what it made of the volume {name} is kept as {name}@{FAILED}");
                Err(unfit(words + &raised.iter().map(kept).collect::<String>()))
            }
        }
    }

    fn raise_volumes(&self, image: &Stored) -> Result<Vec<&'a Name>, String> {
        let raise = || self.member.raise_volumes(image, self.member.serving(self.record())?.as_ref());
        raise().map_err(|error| chain(&error))
    }

    /// Clients to the slot that served before; it is started again where it had to end.
    fn lead_back(&self, from: Slot) {
        if let Err(error) = self.member.settle(self.record()) {
            tracing::error!(service = %self.member.name, %from, error = chain(&error), "could not be led back");
        }
    }

    async fn stop_old(&self, old: Slot) -> Result<(), String> {
        self.member.lead(None).map_err(|error| chain(&error))?;
        self.member.stop(old).map_err(|error| chain(&error))
    }

    async fn becomes_well(&self, slot: Slot) -> Result<(), String> {
        let probe = &self.member.service.probe;
        let (began, mut passes) = (Instant::now(), 0);
        loop {
            let asked = self.member.ask(slot).await;
            passes = if asked.is_ok() { passes + 1 } else { 0 };
            if passes >= probe.passes.max(1) {
                return Ok(());
            }
            if let Err(words) = asked {
                let ended = !self.member.runs(slot).map_err(|error| chain(&error))?;
                if ended || began.elapsed() >= probe.timeout {
                    return Err(format!("slot {slot} did not become well: {words}"));
                }
            }
            tokio::time::sleep(probe.every).await;
        }
    }

    async fn stays_well(&self, slot: Slot) -> Result<(), String> {
        let service = self.member.service;
        let (began, mut failures) = (Instant::now(), 0);
        while began.elapsed() < service.soak {
            tokio::time::sleep(service.probe.every.min(service.soak)).await;
            if let Err(words) = self.member.ask(slot).await {
                failures += 1;
                let ended = !self.member.runs(slot).map_err(|error| chain(&error))?;
                if ended || failures > service.soak_failures_max {
                    return Err(format!("slot {slot} did not stay well: {words}"));
                }
            }
        }
        Ok(())
    }

    /// After a confirmation: the old slot's flows end, then it does. Its image stays, as the way back.
    fn leave(&self) {
        if let Err(error) = self.member.leave(self.record()) {
            tracing::warn!(service = %self.member.name, error = chain(&error), "the old slot could not be ended");
        }
    }

    fn image(&self, slot: Slot) -> Result<Stored, String> {
        let Some(held) = self.record().held(slot) else { return Err(format!("slot {slot} holds nothing")) };
        let found = self.member.host.store.find(&held.image).map_err(|error| chain(&error))?;
        found.ok_or_else(|| format!("the image {} is not in the store", held.image))
    }

    /// False when what should serve has ended by itself and its declaration leaves it at that.
    pub fn may_start(&self) -> Result<bool, SlotError> {
        self.member.may_start(self.record().serving())
    }

    /// Keeps the slots' logs from filling the disk.
    pub fn bound_logs(&self) -> Result<(), SlotError> {
        self.member.bound_logs()
    }

    /// Removes what the volumes were in schemas that no slot uses any more; `others` are the service's records for other OS slots.
    pub fn keep_volumes(&self, others: &[&Record]) -> Result<(), SlotError> {
        let Member { host, service, .. } = self.member;
        let held = [self.record()]
            .into_iter()
            .chain(others.iter().copied())
            .flat_map(|record| record.slots.iter().flatten());
        let mut images = Vec::new();
        for held in held {
            // What is used by an image that cannot be asked is not known.
            let Some(image) = host.store.find(&held.image)? else { return Ok(()) };
            images.push(image);
        }
        for volume in &service.volumes {
            let schemas: Result<Vec<u32>, _> =
                images.iter().map(|image| image.schema(&volume.name)).collect();
            host.volumes.keep_only(&volume.name, &schemas?)?;
        }
        Ok(())
    }

    /// True while the slot that should serve runs; always where none should.
    pub fn serves(&self) -> Result<bool, SlotError> {
        let serving = self.record().serving();
        match self.record().held(serving) {
            Some(_) => self.member.runs(serving),
            None => Ok(true),
        }
    }

    /// Every image that a slot of a service counts on.
    pub fn images(&self) -> impl Iterator<Item = Digest> + '_ {
        self.set.services.values().flat_map(|record| record.slots.iter().flatten()).map(|held| held.image)
    }
}

fn failed(error: SlotError) -> Failure {
    Failure { why: Why::new(Reason::ServiceFailed, chain(&error)), untouched: STILL_SERVING }
}
