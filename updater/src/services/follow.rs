//! Services that a release binds to an OS: fetched with it, made its slot's own when it is armed, moved with it where the OS
//! stays the same, and asked whether they are well when it is judged.
//!
//! Not here: the OS (`engine`), one service's move (`life`). Rule: the set of the OS slot that starts is the only word on its
//! services, so that the flip of the OS flips them all; a set is written before its slot is armed and never after.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use switchback_partitions::slot::Slot;

use super::host::{Host, Member};
use super::orders::{SIZE_KNOB, ServiceMoved, Services, held, lock, not_taken};
use super::set::{Followed, Held, Set, Which};
use super::store::Store;
use crate::config::Config;
use crate::config::service::{Name, Service};
use crate::container::{self, ContainerRequest, Platform};
use crate::digest::Digest;
use crate::engine::Failure;
use crate::facts::FactsError;
use crate::host::priority::StepBack;
use crate::host::state_dir::StateDir;
use crate::install;
use crate::lifecycle::Release;
use crate::progress::Progress;
use crate::reason::{Reason, Why};
use crate::registry::Registry;

/// On top of a probe's own time: what the daemon needs to start a service after a start of the machine.
const STARTING: Duration = Duration::from_secs(60);
/// The shortest pause between two questions: nobody is waiting behind it, and a slow machine has other things to start.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// What is left when the services are the release's and only the word on it is missing.
pub const MOVED_UNNOTED: &str = "The OS was not touched; the services serve from the release, and only the records miss it: the same order completes them.";

/// What `release` says of the services: its own bindings, or none.
pub fn followed(release: &install::Release) -> Result<Followed, Failure> {
    let named = |(name, image): (&String, &crate::image::manifest::Descriptor)| {
        let name: Name = name.parse().map_err(|error| {
            Failure::refused(Why::new(Reason::FormatRefused, format!("in the release index: {error}")))
        })?;
        Ok((name, image.digest))
    };
    let services = release.services().map(named).collect::<Result<_, Failure>>()?;
    Ok(Followed { release: crate::engine::summary(release), image: release.image, services })
}

/// Where images for a release come from and go to.
pub struct Fetching<'a> {
    /// The machine's configuration.
    pub config: &'a Config,
    /// Where the sets are.
    pub folder: &'a dyn StateDir,
    /// The release's repository: all of it lies there.
    pub registry: &'a dyn Registry,
    /// Of several threads.
    pub runtime: &'a tokio::runtime::Handle,
    /// Who waits.
    pub progress: &'a dyn Progress,
}

impl Fetching<'_> {
    /// Brings every image that the release binds into the store, beside the services of `os`, and writes down the set that they
    /// make: from then on they are kept. Gives the images. Nothing is moved.
    pub fn fetch(&self, follows: &Followed, os: Slot) -> Result<BTreeMap<Name, Held>, Failure> {
        let unreadable = |error: FactsError| Failure::before(error.reason(), error);
        let running = Set::load(self.folder, Which::Of(os)).map_err(unreadable)?;
        if follows.services.is_empty() && running.services.is_empty() {
            return Ok(BTreeMap::new());
        }
        let images =
            follows.services.iter().map(|(name, digest)| Ok((name.clone(), self.describe(name, digest)?)));
        let images = images.collect::<Result<BTreeMap<_, _>, Failure>>()?;
        let next = running.with_release(follows.clone(), &images).map_err(|name| {
            let detail = format!("there is no room for the service `{name}`: 256 are all there can be");
            Failure::refused(Why::new(Reason::NotSupported, detail))
        })?;
        let _lock = lock(self.folder)?;
        next.store(self.folder, Which::Next).map_err(unreadable)?;
        let store = Store::at(&self.config.machine.data_dir.join("store"));
        store.make().map_err(|error| Failure::before(Reason::WriteFailed, error))?;
        // Unpacking takes all of a processor that a service may need for its answers.
        let _back = StepBack::begin();
        for (name, digest) in &follows.services {
            self.progress.say(&format!("Fetching the image of the service {name}."));
            let request = self.request(name, digest);
            self.runtime.block_on(store.admit(self.registry, &request, self.progress)).map_err(not_taken)?;
        }
        Ok(images)
    }

    fn describe(&self, name: &Name, digest: &Digest) -> Result<Held, Failure> {
        let request = self.request(name, digest);
        let image = self.runtime.block_on(container::describe(self.registry, &request, self.progress));
        let image = image.map_err(not_taken)?;
        Ok(held(*digest, &image.config, image.digest, digest.short()))
    }

    fn request(&self, name: &Name, digest: &Digest) -> ContainerRequest {
        let declared = self.config.service.get(name);
        let bytes_max = declared.map_or_else(Service::image_size_default, |service| service.image_size_max);
        ContainerRequest {
            digest: *digest,
            platform: Platform::host(),
            bytes_max: bytes_max.0,
            knob: SIZE_KNOB,
        }
    }
}

/// Makes the set of `slot`, which is about to be armed with `release`, what belongs to that release: what was fetched with it;
/// or what it had when it ran there before; or, where it says nothing of services, those of the slot that runs.
pub fn settle_set(folder: &dyn StateDir, slot: Slot, follows: &Followed) -> Result<(), FactsError> {
    let is_its =
        |set: &Set| set.follows.as_ref().is_some_and(|other| other.release.digest == follows.release.digest);
    let next = Set::load(folder, Which::Next)?;
    if is_its(&next) {
        next.store(folder, Which::Of(slot))?;
        // Left there, a later way back to this release would begin with it and not with what the slot had last.
        return Set::remove(folder, Which::Next);
    }
    // Services that were ordered one by one follow no release. An update of the slot would have brought a set for it, above.
    let own = Set::load(folder, Which::Of(slot))?;
    if is_its(&own) || (own.follows.is_none() && !own.services.is_empty()) {
        return Ok(());
    }
    let running = Set::load(folder, Which::Of(slot.other()))?;
    if running.services.is_empty() && !Set::exists(folder, Which::Of(slot)) {
        return Ok(());
    }
    let alone = Followed { services: BTreeMap::new(), ..follows.clone() };
    let carried = running.with_release(alone, &BTreeMap::new()).unwrap_or(running);
    carried.store(folder, Which::Of(slot))
}

/// Waits until every service of the running OS slot is well, each as long as its probe allows. `None`: it has no services.
pub async fn well(config: &Config, folder: &dyn StateDir, os: Slot) -> Option<Result<(), String>> {
    let set = match Set::load(folder, Which::Of(os)) {
        Ok(set) if set.services.values().all(|record| record.held(record.serving()).is_none()) => {
            return None;
        }
        Ok(set) => set,
        Err(error) => return Some(Err(crate::engine::chain(&error))),
    };
    let host = match Host::look(config) {
        Ok(host) => host,
        Err(error) => return Some(Err(crate::engine::chain(&error))),
    };
    let serving = set.services.iter().filter(|(_, record)| record.held(record.serving()).is_some());
    let asked = serving.map(|(name, record)| {
        let host = &host;
        async move {
            let Some(service) = config.service.get(name) else {
                return Err(format!(
                    "the release has a service {name}, and no [service.{name}] says how it runs"
                ));
            };
            let member = Member { host, name, service, index: record.index };
            becomes_well(&member, record.serving()).await.map_err(|words| format!("{name}: {words}"))
        }
    });
    let failures: Vec<String> =
        futures_util::future::join_all(asked).await.into_iter().filter_map(Result::err).collect();
    Some(if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) })
}

async fn becomes_well(member: &Member<'_>, slot: Slot) -> Result<(), String> {
    let (began, probe, mut passes) = (Instant::now(), &member.service.probe, 0);
    loop {
        match member.ask(slot).await {
            Ok(()) => passes += 1,
            Err(words) if began.elapsed() >= probe.timeout + STARTING => return Err(words),
            Err(_) => passes = 0,
        }
        if passes >= probe.passes.max(1) {
            return Ok(());
        }
        tokio::time::sleep(probe.every.max(PAUSE_MIN)).await;
    }
}

/// How a move of several services ended.
pub struct Followings {
    /// True unless one of them failed and another could not be taken back then.
    pub whole: bool,
    /// Each that moved.
    pub moved: Vec<ServiceMoved>,
    /// Why they went back again, when one of them failed.
    pub failed: Option<Failure>,
}

impl Services<'_> {
    /// Moves each service from the release `left` to its image in `follows`, one after the other; when one fails, those that
    /// moved go back.
    pub fn follow(
        &self,
        (left, follows): (Followed, &Followed),
        images: &BTreeMap<Name, Held>,
    ) -> Result<Followings, Failure> {
        for name in images.keys() {
            self.declared(name)?;
        }
        let _lock = lock(&self.folder)?;
        let mut moved = Vec::new();
        for (name, image) in images {
            let (began, service) = (Instant::now(), self.declared(name)?);
            let done = self.life(name, service).and_then(|mut life| life.update(image.clone()));
            match done {
                Ok(done) if done.outcome.is_some() => moved.push(self.moved(name, &done, began)?),
                Ok(_) => {}
                Err(failure) => {
                    let why = Why::new(failure.why.reason, format!("{name}: {}", failure.why.detail));
                    let whole = self.go_back(&moved);
                    return Ok(Followings { whole, moved, failed: Some(Failure { why, ..failure }) });
                }
            }
        }
        // The services moved one by one; that all of them are the release's is one step.
        let unnoted = |error: FactsError| Failure {
            untouched: MOVED_UNNOTED,
            ..Failure::before(error.reason(), error)
        };
        let mut set = Set::load(&self.folder, Which::Of(self.os)).map_err(unnoted)?;
        if left.release.digest != follows.release.digest {
            set.before = Some(left);
        }
        set.follows = Some(follows.clone());
        set.store(&self.folder, Which::Of(self.os)).map_err(unnoted)?;
        self.collect()?;
        Ok(Followings { whole: true, moved, failed: None })
    }

    /// True when each of them serves from its image of before again.
    fn go_back(&self, moved: &[ServiceMoved]) -> bool {
        let mut all = true;
        for ServiceMoved { name, .. } in moved.iter().rev() {
            let back = self.declared(name).and_then(|service| self.life(name, service)?.rollback());
            if let Err(failure) = back {
                tracing::error!(service = %name, why = %failure.why, "it could not be taken back");
                all = false;
            }
        }
        all
    }
}

/// The images that the services had under `before`, where each still lies in a slot of its service.
pub fn kept_images(set: &Set, before: &Followed) -> Option<BTreeMap<Name, Held>> {
    let find = |name: &Name, digest: &Digest| {
        let record = set.services.get(name)?;
        record.slots.iter().flatten().find(|held| held.release.digest == *digest).cloned()
    };
    before.services.iter().map(|(name, digest)| Some((name.clone(), find(name, digest)?))).collect()
}

/// What the services of an OS slot follow, where that is not what lies in the slot itself: another release with the same OS image.
pub fn follows_instead(folder: &dyn StateDir, os: Slot, image: &Digest) -> Option<Release> {
    let set = Set::load(folder, Which::Of(os)).ok()?;
    set.follows.filter(|follows| follows.image == *image).map(|follows| follows.release)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::state_dir::Folder;

    fn followed(version: &str) -> Followed {
        let digest = Digest::of(version.as_bytes());
        let release = Release { digest, version: version.into(), security_version: 0 };
        Followed { release, image: digest, services: BTreeMap::new() }
    }

    /// A set that follows a release and has one service.
    fn set(version: &str) -> Set {
        let mut set = Set { follows: Some(followed(version)), ..Set::default() };
        let release = followed(version).release;
        let record = set.record(&"dns".parse().unwrap()).unwrap();
        record.slots[0] = Some(Held { image: release.digest, release });
        record.boot = record.boot.arm(Slot::A, 1).confirm(Slot::A);
        set
    }

    fn served(folder: &Folder, os: Slot) -> Option<String> {
        let set = Set::load(folder, Which::Of(os)).unwrap();
        let record = set.services.values().next()?;
        record.held(record.serving()).map(|held| held.release.version.clone())
    }

    #[test]
    fn a_slot_is_armed_with_what_belongs_to_its_release_and_the_running_one_keeps_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        settle_set(&folder, Slot::B, &followed("2")).unwrap();
        assert!(!Set::exists(&folder, Which::Of(Slot::B)), "no services, nothing to write down");

        set("1").store(&folder, Which::Of(Slot::A)).unwrap();
        set("2").store(&folder, Which::Next).unwrap();
        settle_set(&folder, Slot::B, &followed("2")).unwrap();
        assert_eq!(served(&folder, Slot::B).unwrap(), "2", "what was fetched with it");
        assert!(!Set::exists(&folder, Which::Next), "used up");

        set("3").store(&folder, Which::Next).unwrap();
        settle_set(&folder, Slot::B, &followed("2")).unwrap();
        assert_eq!(served(&folder, Slot::B).unwrap(), "2", "what it had, whatever was fetched since");

        let alone = Set { follows: None, ..set("0") };
        alone.store(&folder, Which::Of(Slot::B)).unwrap();
        settle_set(&folder, Slot::B, &followed("0")).unwrap();
        assert_eq!(
            Set::load(&folder, Which::Of(Slot::B)).unwrap(),
            alone,
            "ordered one by one when it ran there"
        );
        set("2").store(&folder, Which::Of(Slot::B)).unwrap();

        settle_set(&folder, Slot::B, &followed("4")).unwrap();
        assert_eq!(served(&folder, Slot::B).unwrap(), "1", "nothing is said of services: those that run");
        assert_eq!(Set::load(&folder, Which::Of(Slot::B)).unwrap().follows, Some(followed("4")));
        assert_eq!(Set::load(&folder, Which::Of(Slot::A)).unwrap(), set("1"));
    }

    #[test]
    fn the_way_back_without_a_restart_needs_every_image_of_before() {
        let now = set("2");
        let before = |digest| Followed {
            services: BTreeMap::from([("dns".parse().unwrap(), digest)]),
            ..followed("1")
        };
        assert!(kept_images(&now, &before(Digest::of(b"gone"))).is_none());
        assert_eq!(kept_images(&now, &before(Digest::of(b"2"))).unwrap().len(), 1);
    }
}
