//! Orders about services: from a name to a verified image, a moved slot and an answer.
//!
//! Not here: the steps of a move (`life`), sentences (`cli::render`). Rule: one process at a time changes services; an image is
//! in the store only after trusted keys vouched for its digest.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Serialize;
use switchback_bootloader::boot_state::SlotBoot;
use switchback_partitions::slot::Slot;

use super::host::{Host, Member, SlotError};
use super::life::{Done, Life, Records};
use super::refused::{self, Refused};
use super::set::{Held, Record, Set, Which};
use crate::config::Config;
use crate::config::service::{Mode, Name, Service, in_order};
use crate::container::{ContainerError, ContainerRequest, ImageConfig, Platform};
use crate::digest::Digest;
use crate::engine::source::{self, policy_of, resolve};
use crate::engine::{Failure, chain, host_reason};
use crate::facts::Facts;
use crate::host::clock::Clock;
use crate::host::lock::InstanceLock;
use crate::host::priority::StepBack;
use crate::host::state_dir::{Folder, StateDir};
use crate::install::{registry_reason, trust_reason};
use crate::lifecycle::{Outcome, Release};
use crate::progress::Progress;
use crate::reason::{Reason, Why};
use crate::registry::{Registry, evidence, reference::Reference};
use crate::trust;

/// What an image calls its version, and how its security version counts.
const VERSION_LABEL: &str = "org.opencontainers.image.version";
const SECURITY_LABEL: &str = "io.switchback.security-version";
/// What raises the bound of an image.
pub(super) const SIZE_KNOB: &str = "`image_size_max` of the service";
/// How long an order waits for another one, or for the daemon, which looks once a second and may be starting what ended.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How often the daemon looks whether every service runs.
const LOOK: Duration = Duration::from_secs(1);
/// The longest pause before a service that ended is started again.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// One service, as it is.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: Name,
    /// Whether two slots of it may run at once.
    pub mode: Mode,
    /// The slot that clients are led to; `None`: it never ran.
    pub serving: Option<Slot>,
    /// Slot a, slot b.
    pub slots: [ServiceSlot; 2],
    /// Where its life is: `idle`, `on-trial`, …
    pub state: &'static str,
    /// Releases that failed here.
    pub quarantine: Vec<Digest>,
    /// How its last update ended.
    pub last: Option<Outcome>,
}

/// One slot of a service.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceSlot {
    /// Which.
    pub slot: Slot,
    /// The record's word.
    pub boot: SlotBoot,
    /// What it holds.
    pub release: Option<Release>,
    /// Its first process, while it runs.
    pub pid: Option<i32>,
}

/// How an order about a service ended.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceMoved {
    /// Which service.
    pub name: Name,
    /// True when it serves from another image than before.
    pub changed: bool,
    /// The slot that serves.
    pub slot: Slot,
    /// What it serves from.
    pub release: Option<Release>,
    /// From the start of the new slot until clients were led there, in seconds.
    pub activation_seconds: Option<f64>,
    /// How long all of it took, in seconds.
    pub seconds: f64,
}

/// The services of this machine, while this process may change them.
pub struct Services<'a> {
    pub(super) config: &'a Config,
    pub(super) progress: &'a dyn Progress,
    pub(super) host: Host,
    pub(super) folder: Folder,
    pub(super) os: Slot,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Services<'a> {
    /// Opens store, runtime and network.
    pub fn open(config: &'a Config, progress: &'a dyn Progress) -> Result<Services<'a>, Failure> {
        let folder = Folder::new(&config.machine.state_dir);
        folder.make().map_err(|error| Failure::before(Reason::StateUnreadable, error))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| Failure::before(Reason::Internal, error))?;
        let os = os_slot(config, &folder)?;
        let host = Host::open(config).map_err(failed)?;
        Ok(Services { config, progress, host, folder, os, runtime })
    }

    /// Moves a service to the image that its declaration names, or to `to`.
    pub fn update(&self, name: &Name, to: Option<&str>) -> Result<ServiceMoved, Failure> {
        let (began, service) = (Instant::now(), self.declared(name)?);
        let _lock = lock(&self.folder)?;
        let held = self.fetch(name, service, to)?;
        let mut life = self.life(name, service)?;
        let done = life.update(held)?;
        self.collect()?;
        self.moved(name, &done, began)
    }

    /// Goes back to what the service's other slot holds.
    pub fn rollback(&self, name: &Name) -> Result<ServiceMoved, Failure> {
        let (began, service) = (Instant::now(), self.declared(name)?);
        let _lock = lock(&self.folder)?;
        let done = self.life(name, service)?.rollback()?;
        self.moved(name, &done, began)
    }

    /// Runs what is declared and was ordered once, and starts again what ends, until `stopped`.
    pub fn supervise(&self) -> Result<(), Failure> {
        let order = in_order(&self.config.service)
            .map_err(|(_, why)| Failure::refused(Why::new(Reason::ConfigInvalid, why)))?;
        let mut watches = Vec::new();
        for name in order {
            watches.push((name, self.declared(name)?, Watch::default()));
        }
        while !self.progress.stopped() {
            // An order in another process has the lock: it brings the services to where they belong itself.
            match try_lock(&self.folder) {
                Ok(_lock) => {
                    for (name, service, watch) in &mut watches {
                        if let Err(failure) = self.look_after(name, service, watch) {
                            tracing::error!(service = %name, why = %failure.why, "not as it should be");
                        }
                    }
                }
                Err(failure) => tracing::debug!(why = %failure.why, "nothing is looked after meanwhile"),
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn look_after(&self, name: &'a Name, service: &'a Service, watch: &mut Watch) -> Result<(), Failure> {
        let mut life = self.life(name, service)?;
        life.bound_logs().map_err(failed)?;
        let may_start = life.may_start().map_err(failed)?;
        if !watch.settled && may_start {
            life.settle()?;
        }
        if !watch.settled || !may_start {
            watch.settled = true;
            return Ok(());
        }
        if life.serves().map_err(failed)? {
            watch.went_well();
            return Ok(());
        }
        if watch.is_due() {
            watch.ended();
            tracing::warn!(service = %name, pause = ?watch.pause, "it has ended and is started again");
            life.settle()?;
        }
        Ok(())
    }

    pub(super) fn life<'b>(&'b self, name: &'b Name, service: &'b Service) -> Result<Life<'b>, Failure> {
        let records = Records { folder: &self.folder, os: self.os };
        Life::open(&self.host, (name, service), &records, self.progress, &self.runtime)
    }

    pub(super) fn declared(&self, name: &Name) -> Result<&'a Service, Failure> {
        declared(self.config, name)
    }

    /// What `update` would do: true when it would move the service. Nothing is fetched but what tells that.
    pub fn plan(&self, name: &Name, to: Option<&str>) -> Result<bool, Failure> {
        let service = self.declared(name)?;
        let named = self.named(name, service, to)?;
        self.vouch(name, service, &named)?;
        let set = Set::load(&self.folder, Which::Of(self.os)).map_err(|e| Failure::before(e.reason(), e))?;
        let serving = set.services.get(name).and_then(|record| record.held(record.serving()));
        Ok(serving.is_none_or(|held| held.release.digest != named.digest))
    }

    /// The image, vouched for and unpacked. A refusal is remembered, and forgotten when the same digest is taken.
    fn fetch(&self, name: &Name, service: &Service, to: Option<&str>) -> Result<Held, Failure> {
        let named = self.named(name, service, to)?;
        let taken = self.vouch(name, service, &named).and_then(|()| self.admit(service, &named));
        let (own, digest) = (own_folder(&self.folder, name), named.digest);
        let remembered = match &taken {
            Ok(_) => refused::lift(&own, &digest),
            Err(failure) if refused::is_the_images_fault(failure.why.reason) => {
                let (at_unix_secs, version, why) = (Clock::now().unix_secs, named.tag, failure.why.clone());
                refused::remember(&own, Refused { at_unix_secs, digest, version, why, stands: true })
            }
            Err(_) => Ok(()),
        };
        // What becomes of the order is what the person has to hear.
        if let Err(error) = remembered {
            tracing::warn!(service = %name, error = chain(&error), "the list of refusals could not be written");
        }
        taken
    }

    fn admit(&self, service: &Service, named: &Named) -> Result<Held, Failure> {
        let request = ContainerRequest {
            digest: named.digest,
            platform: Platform::host(),
            bytes_max: service.image_size_max.0,
            knob: SIZE_KNOB,
        };
        // Unpacking takes all of a processor that a service may need for its answers.
        let _back = StepBack::begin();
        let image = self.host.store.admit(&*named.registry, &request, self.progress);
        let image = self.runtime.block_on(image).map_err(not_taken)?;
        Ok(held(named.digest, &image.config, image.digest, named.tag.clone()))
    }

    /// What an order names now.
    fn named(&self, name: &Name, service: &Service, to: Option<&str>) -> Result<Named, Failure> {
        let reference = reference(name, service, to)?;
        let registry = source::open_mirrored(self.config, &reference, &source::access(self.config))?;
        let digest: Digest = self.runtime.block_on(resolve(&*registry, &reference))?;
        let tag = reference.tag().map_or_else(|| digest.short(), str::to_owned);
        Ok(Named { registry, digest, tag })
    }

    /// Refuses what too few trusted keys vouch for.
    fn vouch(&self, name: &Name, service: &Service, named: &Named) -> Result<(), Failure> {
        let policy = service.trust.as_ref().or(self.config.trust.policy.service.as_ref());
        let policy = policy.ok_or_else(|| {
            let detail = format!("neither [service.{name}.trust] nor [trust.policy.service] names a key");
            Failure::refused(Why::new(Reason::NoPolicy, detail))
        })?;
        let policy = policy_of(&policy.keys, policy.threshold)?;
        let evidence = self.runtime.block_on(evidence::collect(&*named.registry, &named.digest));
        let evidence = evidence.map_err(|e| Failure::before(registry_reason(&e), e))?;
        trust::verify(&policy, &named.digest, &evidence).map_err(|e| Failure::before(trust_reason(&e), e))?;
        Ok(())
    }

    /// Images that no slot counts on any more.
    pub(super) fn collect(&self) -> Result<(), Failure> {
        let mut sets = Vec::new();
        for which in Which::ALL {
            sets.push(Set::load(&self.folder, which).map_err(|e| Failure::before(e.reason(), e))?);
        }
        let kept: BTreeSet<Digest> = sets.iter().flat_map(Set::images).collect();
        for (name, service) in &self.config.service {
            let records: Vec<&Record> = sets.iter().filter_map(|set| set.services.get(name)).collect();
            if let Err(error) = self.host.keep_volumes(service, &records) {
                tracing::warn!(service = %name, error = chain(&error), "old volumes could not be removed");
            }
        }
        if let Err(error) = self.host.store.keep_only(&kept) {
            tracing::warn!(error = chain(&error), "old images could not be removed");
        }
        Ok(())
    }

    pub(super) fn moved(&self, name: &Name, done: &Done, began: Instant) -> Result<ServiceMoved, Failure> {
        let set = Set::load(&self.folder, Which::Of(self.os)).map_err(|e| Failure::before(e.reason(), e))?;
        let record = &set.services[name];
        let slot = record.serving();
        Ok(ServiceMoved {
            name: name.clone(),
            changed: done.outcome.is_some(),
            slot,
            release: record.held(slot).map(|held| held.release.clone()),
            activation_seconds: done.activation.map(rounded),
            seconds: rounded(began.elapsed()),
        })
    }
}

/// What an order names: where it is, and its version where the image says none.
struct Named {
    registry: Box<dyn Registry>,
    digest: Digest,
    tag: String,
}

/// What a slot holds after it: what was ordered by `digest`, and its image. `unnamed` is its version where it does not say one.
pub(super) fn held(digest: Digest, config: &ImageConfig, image: Digest, unnamed: String) -> Held {
    let security_version = config.label(SECURITY_LABEL).and_then(|text| text.parse().ok()).unwrap_or(0);
    let version = config.label(VERSION_LABEL).map_or(unnamed, str::to_owned);
    Held { release: Release { digest, version, security_version }, image }
}

/// The right to change services, once whoever has it lets go.
pub(super) fn lock(state: &dyn StateDir) -> Result<InstanceLock, Failure> {
    let began = Instant::now();
    loop {
        match try_lock(state) {
            Err(failure) if failure.why.reason == Reason::Busy && began.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_PAUSE);
            }
            other => return other,
        }
    }
}

fn try_lock(state: &dyn StateDir) -> Result<InstanceLock, Failure> {
    let folder = state.path().join("services");
    std::fs::create_dir_all(&folder).map_err(|error| Failure::before(Reason::StateUnreadable, error))?;
    InstanceLock::take(&folder).map_err(|error| Failure::before(host_reason(&error), error))
}

pub(crate) fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// When a service that keeps ending is started again: after a pause that doubles.
#[derive(Debug, Default)]
struct Watch {
    settled: bool,
    pause: Duration,
    since: Option<Instant>,
}

impl Watch {
    fn is_due(&self) -> bool {
        self.since.is_none_or(|since| since.elapsed() >= self.pause)
    }

    fn ended(&mut self) {
        self.pause = (self.pause * 2).clamp(LOOK, BACKOFF_MAX);
        self.since = Some(Instant::now());
    }

    /// Ran for longer than its pause: whatever ended it is over.
    fn went_well(&mut self) {
        if self.since.is_some_and(|since| since.elapsed() > 2 * self.pause + LOOK) {
            (self.pause, self.since) = (Duration::ZERO, None);
        }
    }
}

/// Looks at services and changes nothing: one, or all that are declared.
pub fn status(config: &Config, name: Option<&Name>) -> Result<Vec<ServiceStatus>, Failure> {
    let wanted: Vec<&Name> = match name {
        Some(name) => declared(config, name).map(|_| vec![name])?,
        None => config.service.keys().collect(),
    };
    let folder = Folder::new(&config.machine.state_dir);
    let os = os_slot(config, &folder)?;
    let set = Set::load(&folder, Which::Of(os)).map_err(|e| Failure::before(e.reason(), e))?;
    let host = Host::look(config).map_err(failed)?;
    wanted.into_iter().map(|name| one(config, name, &set, &folder, &host)).collect()
}

fn one(
    config: &Config,
    name: &Name,
    set: &Set,
    folder: &Folder,
    host: &Host,
) -> Result<ServiceStatus, Failure> {
    let service = declared(config, name)?;
    let own = own_folder(folder, name);
    let facts = Facts::read(&own).map_err(|e| Failure::before(e.reason(), e))?;
    let state = crate::facts::state_file::load(&own).into_state();
    let record = set.services.get(name);
    let slot_of = |slot: Slot| -> Result<ServiceSlot, Failure> {
        let member = record.map(|record| Member { host, name, service, index: record.index });
        let pid = member.map_or(Ok(None), |member| member.pid(slot)).map_err(failed)?;
        let held = record.and_then(|record| record.held(slot));
        let boot = record.map_or(SlotBoot::Empty, |record| record.boot.slot(slot));
        Ok(ServiceSlot { slot, boot, release: held.map(|held| held.release.clone()), pid })
    };
    Ok(ServiceStatus {
        name: name.clone(),
        mode: service.mode,
        serving: record
            .map(|record| record.serving())
            .filter(|slot| record.is_some_and(|r| r.held(*slot).is_some())),
        slots: [slot_of(Slot::A)?, slot_of(Slot::B)?],
        state: state.phase.name(),
        quarantine: facts.known().quarantine.keys().copied().collect(),
        last: state.last,
    })
}

pub(super) fn declared<'a>(config: &'a Config, name: &Name) -> Result<&'a Service, Failure> {
    config.service.get(name).ok_or_else(|| {
        let names: Vec<&str> = config.service.keys().map(Name::as_str).collect();
        let known = if names.is_empty() { "none is".to_owned() } else { names.join(", ") };
        Failure::refused(Why::new(
            Reason::ServiceUnknown,
            format!("`{name}` is not declared; declared: {known}"),
        ))
    })
}

/// Where a service's own records are.
pub(super) fn own_folder(folder: &Folder, name: &Name) -> Folder {
    Folder::new(folder.path().join("services").join(name.as_str()))
}

/// Where there are no OS slots, there is one set, of slot a; where there are, none is guessed.
pub(super) fn os_slot(config: &Config, folder: &Folder) -> Result<Slot, Failure> {
    match crate::host::open(config).and_then(|machine| machine.running()) {
        Ok(witness) => Ok(witness.slot),
        Err(error) if Set::exists(folder, Which::Of(Slot::B)) => {
            Err(Failure::before(host_reason(&error), error))
        }
        Err(_) => Ok(Slot::A),
    }
}

fn reference(name: &Name, service: &Service, to: Option<&str>) -> Result<Reference, Failure> {
    let invalid = |error: String| Failure::refused(Why::new(Reason::ConfigInvalid, error));
    let configured = service.image.as_deref().map(str::parse::<Reference>).transpose();
    let configured = configured.map_err(|error| invalid(error.to_string()))?;
    if configured.is_none() && to.is_none() {
        let detail = format!(
            "[service.{name}] names no `image`: it comes with a release (`switchback update`), or name one with --to"
        );
        return Err(invalid(detail));
    }
    source::named(configured, to)
}

pub(super) fn not_taken(error: ContainerError) -> Failure {
    Failure::before(error.reason(), error)
}

fn failed(error: SlotError) -> Failure {
    Failure::before(Reason::ServiceFailed, error)
}
