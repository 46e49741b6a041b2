//! Each action of `lifecycle`, done on the machine, and the event that reports it.
//!
//! Not here: which action comes when. Rule: an action that fails is an event like any other; only what leaves nothing
//! to decide (an interruption, a state that cannot be stored) ends the loop.

use std::sync::Arc;

use switchback_bootloader::boot_state::BootState;
use switchback_bootloader::record::Bootloader;
use switchback_partitions::device::{BlockDevice, Window};
use switchback_partitions::gpt::Table;
use switchback_partitions::inactive_slot::InactiveSlot;
use switchback_partitions::layout::DiskLayout;
use switchback_partitions::slot::{RunningSlot, Slot};

use super::costs::Costs;
use super::observe::moment;
use super::{Candidate, Engine, Failure, NOTHING_CHANGED, RUNNING_UNTOUCHED, chain, host_reason};
use crate::facts::Fact;
use crate::host::firmware::StartsAgain;
use crate::init::stage::{Mark, Stage};
use crate::install::{
    self, Ground, Install, InstallError, Offer, Release, Survey, Surveyed, Target, Written, preflight,
};
use crate::lifecycle::{self, Action, Event, Outcome};
use crate::reason::{Reason, Why};
use crate::registry::Registry;

/// A failure as `step` gets it, and as the person gets it.
type Failed = (Why, &'static str);

impl<'a> Engine<'a> {
    pub(super) fn act(&mut self, action: Action) -> Result<Event, Failure> {
        let event = match action {
            Action::Install { release, slot } => match self.install(&release, slot) {
                Ok(()) => Event::Installed,
                Err((why, untouched)) if why.reason == Reason::Interrupted => {
                    return Err(Failure { why, untouched });
                }
                Err(failed) => Event::InstallFailed(self.remember(failed)),
            },
            Action::Arm { release, slot, tries } => match self.arm(&release, slot, tries) {
                Ok(moment) => Event::Armed(moment),
                Err((why, untouched)) if why.reason == Reason::Interrupted => {
                    return Err(Failure { why, untouched });
                }
                Err(failed) => Event::ArmFailed(self.remember(failed)),
            },
            Action::Reboot => match self.restart() {
                Ok(()) => {
                    self.run.leaving = !self.run.armed;
                    Event::RebootBegun
                }
                Err(error) => Event::RebootFailed(
                    self.remember((Why::new(host_reason(&error), chain(&error)), RUNNING_UNTOUCHED)),
                ),
            },
            Action::RunHealth { deadline_uptime_secs } => self.judge(deadline_uptime_secs),
            Action::Confirm(slot) => match self.write_record(|state| state.confirm(slot)) {
                Ok(()) => Event::Confirmed,
                Err(failed) => Event::ConfirmFailed(self.remember(failed)),
            },
            Action::Revert(slot) => match self.write_record(|state| state.revert(slot)) {
                Ok(()) => Event::Reverted,
                Err((why, _)) => Event::RevertFailed(why),
            },
            Action::Disarm(slot) => match self.write_record(|state| state.forget(slot)) {
                Ok(()) => Event::Disarmed,
                Err((why, _)) => Event::DisarmFailed(why),
            },
            Action::Record(outcome) => self.record(&outcome),
            // The loop answers these itself.
            Action::Nothing | Action::Ignored | Action::Refuse(_) | Action::Wait(_) => Event::Cancelled,
        };
        Ok(event)
    }

    /// Restarts. The call may not return, so what a person at the console has to know of a trial is said before it.
    fn restart(&self) -> Result<(), crate::host::HostError> {
        let last = self.state.last.as_ref().and_then(|last| last.why.as_ref());
        if let (false, Some(why)) = (self.run.armed, last) {
            let why = why.to_string();
            let why = why.trim_end_matches('.');
            self.progress.say(&format!("The trial is over: {why}. Restarting into the other slot."));
        }
        self.machine.reboot()
    }

    fn remember(&mut self, (why, untouched): Failed) -> Why {
        self.run.failure.get_or_insert(Failure { why: why.clone(), untouched });
        why
    }

    fn install(&mut self, wanted: &lifecycle::Release, slot: Slot) -> Result<(), Failed> {
        let Some(Candidate { release, registry, surveyed }) = self.run.candidate.take() else {
            return Err((
                Why::new(Reason::Internal, format!("nothing fetched for {}", wanted.version)),
                NOTHING_CHANGED,
            ));
        };
        let target = self.target(slot)?;
        // An empty slot, or one that an earlier run began to write, holds nothing that could be lost.
        let lost =
            self.observe().ok().and_then(|seen| seen.releases[slot.index()].as_ref().map(Release::name));
        let lost = lost.map(|lost| format!("; {} {}, which it holds, is given up", lost.name, lost.version));
        self.progress.say(&format!(
            "Writing {} {} to slot {slot}{}.",
            release.config.name,
            release.version(),
            lost.unwrap_or_default()
        ));
        let written = self.write((&release, &surveyed), &*registry, target);
        self.run.network = registry.network();
        let proven = written?.prove(self.progress).map_err(|error| {
            // Kept as "already there", the next order would only read the same wrong bytes again.
            self.disown(slot, &error);
            (why(&error), RUNNING_UNTOUCHED)
        })?;
        (self.run.traffic, self.run.stages) = (proven.traffic(), proven.stages());
        let costs = Costs {
            release: release.name(),
            at: self.machine.clock().timestamp(),
            traffic: self.run.traffic,
            network: self.run.network,
            seconds: self.run.stages.map_or(0.0, |stages| stages.seconds),
        };
        costs.keep(self.machine.state_dir());
        self.run.proven = Some(proven);
        Ok(())
    }

    /// Writes the slot. Wrong bytes of a mirror are no wrong release: the rest is fetched from whoever else is left, and what
    /// was right stays in place.
    fn write(
        &self,
        (release, surveyed): (&Release, &[Surveyed]),
        registry: &dyn Registry,
        mut target: Target<'a>,
    ) -> Result<Install<'a, Written>, Failed> {
        let slot = target.slot.slot();
        loop {
            let written = Install::clear(release.clone(), target)
                .and_then(|cleared| cleared.write(registry, surveyed, self.runtime.handle(), self.progress));
            match written {
                Err(error) if error.is_wrong_bytes() && registry.disown_mirrors() => {
                    self.progress
                        .say("A mirror gave wrong bytes and is not asked any more; going on without it.");
                    target = self.target(slot)?;
                }
                other => return other.map_err(|error| (why(&error), RUNNING_UNTOUCHED)),
            }
        }
    }

    fn arm(
        &mut self,
        wanted: &lifecycle::Release,
        slot: Slot,
        tries: u8,
    ) -> Result<lifecycle::Moment, Failed> {
        let after = |error: InstallError| (why(&error), RUNNING_UNTOUCHED);
        let proven = match self.run.proven.take() {
            Some(proven) => proven,
            None => {
                let seen = self.observe().map_err(|failure| (failure.why, RUNNING_UNTOUCHED))?;
                let held = seen.releases[slot.index()].clone().filter(|held| held.digest == wanted.digest);
                let Some(release) = held else {
                    let detail = format!("slot {slot} does not hold {} any more", wanted.version);
                    return Err((Why::new(Reason::ReadBackMismatch, detail), RUNNING_UNTOUCHED));
                };
                self.progress.say(&format!(
                    "{} {} lies in slot {slot} already; nothing is fetched or written, it is read back.",
                    release.config.name,
                    release.version()
                ));
                let proven = Install::present(release, self.target(slot)?).prove(self.progress);
                proven.map_err(|error| {
                    self.disown(slot, &error);
                    after(error)
                })?
            }
        };
        // Marks of earlier trials would be taken for starts of this one.
        Mark::forget(self.machine.state_dir(), slot)
            .map_err(|e| (Why::new(Reason::StateUnreadable, chain(&e)), RUNNING_UNTOUCHED))?;
        self.have_firmware_start_again(tries);
        // The flip of the OS flips its services: they are written down before it, and never after.
        self.settle_services(slot, proven.release()).map_err(|why| (why, RUNNING_UNTOUCHED))?;
        proven.arm(tries).map_err(after)?;
        self.run.armed = true;
        Ok(moment(self.machine, self.boot_id()?))
    }

    /// Some loaders hand back to the firmware when a kernel does not load. That is rare, and a machine whose firmware
    /// cannot be told is no worse than before: a warning, and the update goes on.
    fn have_firmware_start_again(&self, tries: u8) {
        match self.machine.start_again(tries) {
            Ok(StartsAgain::Registered) => self.progress.say(&format!(
                "The firmware has {tries} boot options more, all to the same loader: it comes back from a kernel that \
                 does not load."
            )),
            Ok(StartsAgain::NotNeeded | StartsAgain::Ready) => (),
            Err(error) => tracing::warn!(
                error = chain(&error),
                "the firmware could not be told to start the loader again; a kernel that does not load would end there"
            ),
        }
    }

    /// A slot that is not what its passport says loses the passport: with it, the same release would be "already there"
    /// for ever and never be written again.
    fn disown(&self, slot: Slot, error: &InstallError) {
        if error.reason() == Reason::ReadBackMismatch
            && let Ok(bootloader) = self.machine.bootloader()
            && let Err(error) = bootloader.forget(slot)
        {
            tracing::warn!(%error, "the broken slot's documents could not be removed");
        }
    }

    /// The slot as something that can be written: only possible while the running slot is another and confirmed.
    fn target(&self, slot: Slot) -> Result<Target<'a>, Failed> {
        let host =
            |error: crate::host::HostError| (Why::new(host_reason(&error), chain(&error)), NOTHING_CHANGED);
        let disk = self.machine.disk().map_err(host)?;
        let bootloader = self.machine.bootloader().map_err(host)?;
        let running = self.machine.running().map_err(host)?.slot;
        let boot = bootloader
            .read()
            .map_err(|e| (Why::new(Reason::BootRecordFailed, chain(&e)), NOTHING_CHANGED))?;
        let confirmed = boot.slot(running) == switchback_bootloader::boot_state::SlotBoot::Good;
        let (_, layout) = self.layout()?;
        let failed =
            |reason| move |error: &dyn std::error::Error| (Why::new(reason, chain(error)), NOTHING_CHANGED);
        let running = RunningSlot { slot: running, confirmed };
        let opened = InactiveSlot::open(disk, &layout, running).map_err(|e| failed(Reason::SlotInUse)(&e))?;
        if opened.slot() != slot {
            return Err((Why::new(Reason::Internal, format!("slot {slot} is running")), NOTHING_CHANGED));
        }
        Ok(Target { slot: opened, bootloader, state_dir: self.machine.state_dir() })
    }

    /// The whole disk, and where its partitions lie.
    pub(super) fn layout(&self) -> Result<(Arc<dyn BlockDevice>, DiskLayout), Failed> {
        let unknown =
            |error: &dyn std::error::Error| (Why::new(Reason::LayoutUnknown, chain(error)), NOTHING_CHANGED);
        let disk =
            self.machine.disk().map_err(|e| (Why::new(host_reason(&e), chain(&e)), NOTHING_CHANGED))?;
        let whole = disk.whole().map_err(|e| unknown(&e))?;
        let table = Table::read(&*whole).map_err(|e| unknown(&e))?;
        let layout = DiskLayout::discover(&table).map_err(|e| unknown(&e))?;
        Ok((whole, layout))
    }

    /// Refuses a release that does not fit; gives the room that is left in the state folder.
    fn fits(&self, release: &Release, target: &Target<'_>) -> Result<u64, InstallError> {
        let offer = Offer {
            slot: target.slot.slot(),
            root_bytes: target.slot.root().len(),
            verity_bytes: target.slot.verity().len(),
            ram_bytes: self.machine.ram_bytes(),
            bootloader: &*target.bootloader,
            state_dir: target.state_dir.path(),
        };
        preflight(release, &offer)
    }

    /// What the machine has of a release that was compared with its chunk indexes and with this machine: the last that is
    /// refused without a trace. Nothing is written here but, with `keep`, a copy of the indexes; not even that it was tried.
    pub(super) fn cleared_for(
        &self,
        release: &Release,
        registry: &dyn Registry,
        keep: bool,
    ) -> Result<Vec<Surveyed>, Failure> {
        let failed = |error: InstallError| Failure::before(error.reason(), error);
        let refused = |(why, untouched): Failed| Failure { why, untouched };
        let seen = self.observe()?;
        let running = seen.observation.running;
        let target = self.target(running.other()).map_err(refused)?;
        let room = self.fits(release, &target).map_err(failed)?;
        let (whole, layout) = self.layout().map_err(refused)?;
        let ground = |slot: Slot| {
            let extent = &layout.slot(slot).root;
            let root = Window::new(whole.clone(), extent.offset, extent.len).ok()?;
            let holds = seen.releases[slot.index()].as_ref();
            let holds = holds.and_then(|held| Some((held.image, held.config.slots.first()?.bytes)));
            Some(Ground { slot, root: Arc::new(root), holds })
        };
        let index_bytes: u64 = release.manifest.slots.iter().map(|layer| layer.index.size).sum();
        let survey = Survey {
            state_dir: self.machine.state_dir(),
            target: running.other(),
            grounds: Slot::ALL.into_iter().filter_map(ground).collect(),
            // A copy that took the room of the boot files would cost the update.
            keep: keep && index_bytes < room,
        };
        let surveyed = survey.of(release, registry, self.runtime.handle(), self.progress).map_err(failed)?;
        let planned = install::plan(release, &surveyed, &seen.boot_files()).fetched;
        let spent: u64 = surveyed.iter().map(Surveyed::fetched).sum();
        registry.affords(planned - spent).map_err(|error| failed(error.into()))?;
        Ok(surveyed)
    }

    fn judge(&mut self, deadline_uptime_secs: u64) -> Event {
        if let Err(failure) = &self.trust {
            // It could never take another release: not a machine to stay on.
            return Event::HealthFailed(failure.why.clone());
        }
        let seen = match self.observe() {
            Ok(seen) => seen,
            Err(failure) => return Event::HealthFailed(failure.why),
        };
        let slot = seen.observation.running;
        let boot_id = seen.observation.now.boot_id.clone();
        // A mark that cannot be left only makes a later reason less exact.
        let mark = Mark { slot, boot_id, root_hash: String::new(), stage: Stage::BootCheck };
        if let Err(error) = mark.write(self.machine.state_dir()) {
            tracing::warn!(%error, "the stage mark could not be written");
        }
        let left = deadline_uptime_secs.saturating_sub(seen.observation.now.uptime_secs);
        let report = self.run_checks(&seen, std::time::Duration::from_secs(left));
        let why = report.why();
        self.run.health = Some(report);
        let _ = Mark { stage: Stage::Judged, ..mark }.write(self.machine.state_dir());
        match why {
            None => Event::HealthPassed,
            Some(why) => Event::HealthFailed(why),
        }
    }

    /// One durable step of the boot record.
    fn write_record(&self, change: impl Fn(&BootState) -> BootState) -> Result<(), Failed> {
        let failed = |error: &dyn std::error::Error| {
            (Why::new(Reason::BootRecordFailed, chain(error)), RUNNING_UNTOUCHED)
        };
        let bootloader: Arc<dyn Bootloader> = self.machine.bootloader().map_err(|e| failed(&e))?;
        let state = bootloader.read().map_err(|e| failed(&e))?;
        bootloader.write(&change(&state)).map_err(|e| failed(&e))
    }

    fn record(&mut self, outcome: &Outcome) -> Event {
        match self.facts.add(&Fact::Outcome(outcome.clone()), self.machine.clock().unix_secs) {
            Ok(()) => Event::Recorded,
            Err(error) => Event::RecordFailed(Why::new(Reason::StateUnreadable, chain(&error))),
        }
    }

    fn boot_id(&self) -> Result<String, Failed> {
        let witness = self.machine.running();
        witness
            .map(|witness| witness.boot_id)
            .map_err(|e| (Why::new(host_reason(&e), chain(&e)), RUNNING_UNTOUCHED))
    }
}

fn why(error: &InstallError) -> Why {
    Why::new(error.reason(), chain(error))
}
