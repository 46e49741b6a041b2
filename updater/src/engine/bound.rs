//! A release that binds services to its OS: what of it has to be done beside the OS slot.
//!
//! Not here: the services themselves (`services`). Rule: another OS image is a trial of the OS, and its services come and go with
//! its slot; the same OS image needs no restart, and only the services move.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use switchback_partitions::slot::Slot;

use super::answers::{Answer, Outcome, Reach, ServiceLine, Update};
use super::observe::{Seen, summary};
use super::{Engine, Failure, chain};
use crate::config::service::Name;
use crate::facts::Fact;
use crate::install::Release;
use crate::lifecycle::{self, State, Verdict, version};
use crate::reason::{Reason, Why};
use crate::registry::Registry;
use crate::services::follow::{self, Fetching};
use crate::services::orders::{ServiceMoved, Services};
use crate::services::set::{Followed, Held, Set, Which};

/// What a failed move of the services leaves.
const SERVICES_BACK: &str =
    "The OS was not touched; the services that had moved were taken back to the images before.";

/// The same, when one of those could not be taken back.
const SERVICES_MIXED: &str = "The OS was not touched. Not every service that had moved could be taken back: `switchback status` shows which; \
                              name the release before with `switchback update --to`.";

impl Engine<'_> {
    /// True when `release` has the OS image that runs: nothing of it needs a restart.
    pub(super) fn has_the_running_os(&self, release: &Release, seen: &Seen) -> bool {
        let running = seen.releases[seen.observation.running.index()].as_ref();
        release.bound.is_some() && running.is_some_and(|running| running.image == release.image)
    }

    /// Brings the services' images that come with `release` to this machine. Nothing is moved, and no slot is touched.
    pub(super) fn fetch_services(
        &self,
        release: &Release,
        registry: &dyn Registry,
        running: Slot,
    ) -> Result<BTreeMap<Name, Held>, Failure> {
        let fetching = Fetching {
            config: self.config,
            folder: self.machine.state_dir(),
            registry,
            runtime: self.runtime.handle(),
            progress: self.progress,
        };
        fetching.fetch(&follow::followed(release)?, running)
    }

    /// Gives the slot that is about to be armed its services.
    pub(super) fn settle_services(&self, slot: Slot, release: &Release) -> Result<(), Why> {
        let follows = follow::followed(release).map_err(|failure| failure.why)?;
        let settled = follow::settle_set(self.machine.state_dir(), slot, &follows);
        settled.map_err(|error| Why::new(error.reason(), chain(&error)))
    }

    /// What serves, as the running slot's set has it.
    pub(super) fn service_lines(&self, seen: &Seen) -> Vec<ServiceLine> {
        let set = Set::load(self.machine.state_dir(), Which::Of(seen.observation.running));
        let Ok(set) = set else { return Vec::new() };
        let drift = set.drift();
        let line = |name: &Name| {
            let record = set.services.get(name);
            ServiceLine {
                name: name.clone(),
                release: record.and_then(|r| r.held(r.serving())).map(|held| held.release.clone()),
                drift: drift.iter().find(|drift| drift.service == *name).map(|drift| drift.bound),
            }
        };
        // One that a release binds and that never ran here is missing from the set's own.
        let names: BTreeSet<&Name> =
            set.services.keys().chain(drift.iter().map(|drift| &drift.service)).collect();
        names.into_iter().map(line).collect()
    }

    /// The release that the services follow, where it is not the one in the slot.
    pub(super) fn services_follow(&self, seen: &Seen) -> Option<lifecycle::Release> {
        let running = seen.observation.running;
        let own = seen.releases[running.index()].as_ref()?;
        let follows = follow::follows_instead(self.machine.state_dir(), running, &own.image)?;
        (follows.digest != own.digest).then_some(follows)
    }

    /// Moves the services to `release`, whose OS image runs already.
    pub(super) fn move_services(
        &mut self,
        (release, registry): (&Release, &dyn Registry),
        seen: &Seen,
        reach: Reach,
        began: Instant,
    ) -> Result<Answer, Failure> {
        let running = seen.observation.running;
        let mut answer = self.blank(release.name(), running);
        let follows = follow::followed(release)?;
        if reach == Reach::DryRun {
            let names: Vec<&str> = follows.services.keys().map(Name::as_str).collect();
            answer.outcome = Outcome::WouldMove;
            answer.detail =
                format!("Of {} those move that serve something else. Nothing was changed.", names.join(", "));
            return Ok(Answer::Update(answer));
        }
        let images = self.fetch_services(release, registry, running)?;
        answer.network = registry.network();
        if reach == Reach::Stage {
            answer.outcome = Outcome::Fetched;
            answer.detail = "Run `switchback update` again to move the services.".into();
            return Ok(Answer::Update(answer));
        }
        self.lead_services(&follows, &images, seen)?.finish(answer, began).map(Answer::Update)
    }

    /// The way back from a move of the services alone, when there was one on this OS; needs no network.
    pub(super) fn services_rollback(
        &mut self,
        seen: &Seen,
        reach: Reach,
        began: Instant,
    ) -> Result<Option<Answer>, Failure> {
        let running = seen.observation.running;
        let set = Set::load(self.machine.state_dir(), Which::Of(running));
        let set = set.map_err(|error| Failure::before(error.reason(), error))?;
        let own = seen.releases[running.index()].as_ref().map(|release| release.digest);
        let (Some(before), Some(follows)) = (&set.before, &set.follows) else { return Ok(None) };
        // The slot's own release is where one began: behind it lies the other slot.
        if own == Some(follows.release.digest) {
            return Ok(None);
        }
        let images = follow::kept_images(&set, before).ok_or_else(|| {
            let detail =
                format!("not every image of {} is here any more; name it with --to", before.release.version);
            Failure::refused(Why::new(Reason::NoWayBack, detail))
        })?;
        let name = seen.releases[running.index()].as_ref().map(|release| release.config.name.clone());
        let name = crate::install::ReleaseName {
            name: name.unwrap_or_default(),
            version: before.release.version.clone(),
            digest: before.release.digest,
        };
        let mut answer = self.blank(name, running);
        if reach == Reach::DryRun {
            answer.outcome = Outcome::WouldMove;
            answer.detail = "The services go back to their images of before. Nothing was changed.".into();
            return Ok(Some(Answer::Rollback(answer)));
        }
        let led = self.lead_services(before, &images, seen)?;
        led.finish(answer, began).map(|answer| Some(Answer::Rollback(answer)))
    }

    fn lead_services(
        &mut self,
        follows: &Followed,
        images: &BTreeMap<Name, Held>,
        seen: &Seen,
    ) -> Result<Led, Failure> {
        let left = self.left_behind(seen)?;
        let services = Services::open(self.config, self.progress)?;
        let back = version::compare(&follows.release.version, &left.release.version).is_lt();
        let is_news = left.release.digest != follows.release.digest;
        let followings = services.follow((left.clone(), follows), images)?;
        let (verdict, why) = match (&followings.failed, back) {
            (Some(failure), _) => (Verdict::Returned, Some(failure.why.clone())),
            (None, true) => (Verdict::RolledBack, None),
            (None, false) => (Verdict::Confirmed, None),
        };
        // A person who interrupts, or a full disk, says nothing against the release: it must not be banned for that.
        let is_verdict = why.as_ref().is_none_or(|why| why.reason == Reason::HealthFailed);
        if is_news && is_verdict {
            let held_back = (verdict == Verdict::RolledBack).then_some(left.release);
            self.record_services(verdict, (&follows.release, held_back), seen.observation.running, why)?;
        }
        let untouched = if followings.whole { SERVICES_BACK } else { SERVICES_MIXED };
        let failed = followings.failed.map(|failure| Failure { untouched, ..failure });
        Ok(Led { moved: followings.moved, is_news, failed })
    }

    /// What the services follow until now; where that is only what the slot itself says, with what serves beside it.
    fn left_behind(&self, seen: &Seen) -> Result<Followed, Failure> {
        let running = seen.observation.running;
        let set = Set::load(self.machine.state_dir(), Which::Of(running));
        let set = set.map_err(|error| Failure::before(error.reason(), error))?;
        let release = seen.releases[running.index()].as_ref();
        let image = release.map(|release| release.image);
        if let Some(follows) = set.follows.filter(|follows| Some(follows.image) == image) {
            return Ok(follows);
        }
        let Some(release) = release else {
            let detail = format!("what slot {running} holds is not known");
            return Err(Failure::refused(Why::new(Reason::RunningSlotUnknown, detail)));
        };
        let serving = set.services.iter().filter_map(|(name, record)| {
            record.held(record.serving()).map(|held| (name.clone(), held.release.digest))
        });
        Ok(Followed { release: summary(release), image: release.image, services: serving.collect() })
    }

    fn record_services(
        &mut self,
        verdict: Verdict,
        (release, left): (&lifecycle::Release, Option<lifecycle::Release>),
        slot: Slot,
        why: Option<Why>,
    ) -> Result<(), Failure> {
        let seq = self.state.next_seq;
        let outcome = lifecycle::Outcome { seq, verdict, release: Some(release.clone()), slot, why, left };
        let added = self.facts.add(&Fact::Outcome(outcome.clone()), self.machine.clock().unix_secs);
        added.map_err(|error| Failure {
            untouched: follow::MOVED_UNNOTED,
            ..Failure::before(error.reason(), error)
        })?;
        self.adopt(State { last: Some(outcome), next_seq: seq + 1, ..self.state.clone() })
    }
}

/// How a move of the services ended.
struct Led {
    moved: Vec<ServiceMoved>,
    is_news: bool,
    failed: Option<Failure>,
}

impl Led {
    fn finish(self, mut answer: Update, began: Instant) -> Result<Update, Failure> {
        if let Some(failure) = self.failed {
            return Err(failure);
        }
        answer.seconds = crate::services::orders::rounded(began.elapsed());
        let names: Vec<String> = self.moved.iter().map(|moved| moved.name.to_string()).collect();
        (answer.outcome, answer.detail) = match (self.moved.is_empty(), self.is_news) {
            (true, false) => (Outcome::Unchanged, "It runs already, its services too.".into()),
            (true, true) => (Outcome::Moved, "No service had to be moved.".into()),
            (false, _) => (Outcome::Moved, format!("Moved: {}.", names.join(", "))),
        };
        answer.services = self.moved;
        Ok(answer)
    }
}
