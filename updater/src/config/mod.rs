//! The typed configuration: `/etc/switchback/config.toml` and the files of `config.d` beside it.
//!
//! Not here: keys and references themselves (their modules parse them). Rule: a key that nobody reads is an error, and
//! every error names file, line and what was expected. The documented example is `docs/src/config.toml`.

mod check;
mod load;
pub mod schedule;
pub mod service;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

pub use check::{Check, Expect, Probe};
pub use load::{CONFIG_BYTES_MAX, ConfigError, checks_in};
use schedule::Schedule;
use service::{Name, Service};

use crate::byte_size::{BytePace, ByteSize};
use crate::lifecycle;

/// Where the configuration lies when nothing else is said.
pub const CONFIG_PATH: &str = "/etc/switchback/config.toml";

/// The whole configuration; every section has defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where releases come from.
    pub source: Source,
    /// What is believed.
    pub trust: Trust,
    /// What this machine is.
    pub machine: Machine,
    /// How a slot is tried.
    pub boot: Boot,
    /// What makes a machine well.
    pub health: Health,
    /// What the machine does by itself, and when; absent: nothing.
    pub schedule: Option<Schedule>,
    /// `[service.NAME]`: what runs beside the OS.
    pub service: BTreeMap<Name, Service>,
}

/// `[source]`: where releases come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// `host[:port]/repository[:tag]` or `oci:FOLDER[:tag]`; `update` may name another.
    pub image: Option<String>,
    /// Hosts (`host` or `host:port`) that may be asked over plain HTTP. Signatures are checked all the same.
    pub plain_http: Vec<String>,
    /// PEM file with further certificate authorities.
    pub ca_file: Option<PathBuf>,
    /// Credentials in Docker's format (`config.json`).
    pub auth_file: Option<PathBuf>,
    /// Repositories like `image` without a tag, or `oci:FOLDER`: where its blobs are asked for first, in this order.
    pub mirrors: Vec<String>,
    /// The most that is fetched in a second, on the average.
    pub bandwidth: Option<BytePace>,
    /// The most that one order may fetch, whatever comes twice included.
    #[serde(deserialize_with = "budget")]
    pub budget: Option<ByteSize>,
}

/// `[trust]`: whose signatures are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    /// `[trust.policy.<kind>]`.
    pub policy: Policies,
}

/// `[trust.policy]`: one policy per kind of image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policies {
    /// For operating system images. `None`: the keys in `ROOT/usr/lib/switchback/trust/*.pub`, threshold 1.
    pub os: Option<TrustPolicy>,
    /// For images of services. `None`: each service names its own, or is refused.
    pub service: Option<TrustPolicy>,
}

/// Keys and how many of them must have signed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustPolicy {
    /// PEM files with one public key each (SubjectPublicKeyInfo); at least one.
    #[serde(default)]
    pub keys: Vec<PathBuf>,
    /// How many *distinct* keys must have signed: at least 1, at most as many as there are keys.
    #[serde(default = "one")]
    pub threshold: usize,
}

/// What kind of machine is updated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineKind {
    /// The running machine with its own disk.
    #[default]
    Disk,
    /// A disk image file that stands for a machine: demonstration, simulation, image factories.
    Image,
}

/// `[machine]`: what this machine is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// The running machine, or an image file.
    pub kind: MachineKind,
    /// The disk with the slots; found from the running root when absent. Required for an image.
    pub disk: Option<PathBuf>,
    /// Sector size of an image file in bytes: 512 or 4096. A real disk knows its own.
    #[serde(deserialize_with = "sector_bytes")]
    pub sector_bytes: u32,
    /// Hardware names this machine answers to; empty: from device tree or DMI.
    pub compatible: Vec<String>,
    /// The product whose releases are accepted; absent: that of the running release.
    pub product: Option<String>,
    /// Folder for facts, state and journal.
    pub state_dir: PathBuf,
    /// Where the boot partition is mounted; absent: found by its partition type. An image needs none.
    pub esp: Option<PathBuf>,
    /// The root of the running system: trust roots and health checks lie beneath it.
    pub root: PathBuf,
    /// Image only: the file that says which slot "runs".
    pub running: Option<PathBuf>,
    /// Program and arguments that restart the machine; empty: the kernel is asked (an image: a line is printed).
    pub reboot: Vec<String>,
    /// The watchdog device whose holder ends a hang.
    pub watchdog: PathBuf,
    /// Folder for images, volumes and logs of services; shared by both OS slots.
    pub data_dir: PathBuf,
    /// Folder for what is gone with a restart: what the OCI runtime knows of its containers.
    pub run_dir: PathBuf,
    /// The OCI runtime; absent: the first of crun, runc and youki that is installed.
    pub runtime: Option<PathBuf>,
}

/// Which bootloader is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootBackend {
    /// Type-1 entries with counters on the boot partition.
    #[default]
    SystemdBoot,
    /// One executable of the board's maker.
    Custom,
}

/// `[boot]`: how a slot is tried.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Boot {
    /// Which bootloader.
    pub backend: BootBackend,
    /// Starts that a trial gets, 1–9.
    #[serde(deserialize_with = "tries")]
    pub tries: u8,
    /// Whether boot options may be registered with the firmware, where a loader needs them to come back.
    pub firmware_options: bool,
    /// `[boot.custom]`.
    pub custom: CustomBoot,
    /// How long after its start a trial must be confirmed.
    #[serde(with = "humantime_serde")]
    pub trial_deadline: Duration,
    /// How long a slot stays armed when the reboot does not come.
    #[serde(with = "humantime_serde")]
    pub armed: Duration,
    /// How often an inconclusive trial is repeated, 0–2.
    #[serde(deserialize_with = "retries")]
    pub retries: u8,
    /// How long before the first repetition; doubles with each.
    #[serde(with = "humantime_serde")]
    pub backoff: Duration,
}

/// `[boot.custom]`: the executable for `backend = "custom"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CustomBoot {
    /// Understands `get-primary`, `set-primary`, `get-state`, `set-state` and `get-current`.
    pub command: Option<PathBuf>,
}

/// `[health]`: what makes a machine well.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// By when all checks together must have passed.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// How long all of them must stay well after that.
    #[serde(with = "humantime_serde")]
    pub soak: Duration,
    /// `[[health.check]]`; beside them run those of `ROOT/usr/lib/switchback/health.d/*.toml`.
    #[serde(rename = "check")]
    pub checks: Vec<Check>,
}

impl Default for Machine {
    fn default() -> Self {
        Machine {
            kind: MachineKind::Disk,
            disk: None,
            sector_bytes: 512,
            compatible: Vec::new(),
            product: None,
            state_dir: "/var/lib/switchback".into(),
            esp: None,
            root: "/".into(),
            running: None,
            reboot: Vec::new(),
            watchdog: "/dev/watchdog".into(),
            data_dir: "/var/lib/switchback-data".into(),
            run_dir: "/run/switchback".into(),
            runtime: None,
        }
    }
}

impl Default for Boot {
    fn default() -> Self {
        let policy = lifecycle::Policy::default();
        Boot {
            backend: BootBackend::default(),
            tries: policy.tries,
            firmware_options: true,
            custom: CustomBoot::default(),
            trial_deadline: Duration::from_secs(policy.trial_deadline_secs),
            armed: Duration::from_secs(policy.armed_secs),
            retries: policy.retries,
            backoff: Duration::from_secs(policy.backoff_secs),
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Health { deadline: Duration::from_secs(300), soak: Duration::ZERO, checks: Vec::new() }
    }
}

impl Machine {
    /// Where the daemon writes down what it does by the schedule. Of a machine in a file, not where the machine that it lies on
    /// keeps its own; of a real one, where nothing wears out.
    pub fn schedule_report(&self) -> PathBuf {
        let folder = match self.kind {
            MachineKind::Disk => &self.run_dir,
            MachineKind::Image => &self.state_dir,
        };
        folder.join("schedule.json")
    }
}

impl Boot {
    /// The part that decides the life of an update.
    pub fn policy(&self, carry_on: bool) -> lifecycle::Policy {
        lifecycle::Policy {
            tries: self.tries,
            trial_deadline_secs: self.trial_deadline.as_secs(),
            armed_secs: self.armed.as_secs(),
            retries: self.retries,
            backoff_secs: self.backoff.as_secs(),
            carry_on,
        }
    }
}

fn one() -> usize {
    1
}

fn tries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let tries = u8::deserialize(deserializer)?;
    match tries {
        1..=9 => Ok(tries),
        _ => Err(serde::de::Error::custom(format!("`tries` is {tries}: expected 1 to 9"))),
    }
}

/// Two at most: a release that may be repeated without end is a loop (`TriedOnce`).
fn retries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let retries = u8::deserialize(deserializer)?;
    match retries {
        0..=2 => Ok(retries),
        _ => Err(serde::de::Error::custom(format!("`retries` is {retries}: expected 0 to 2"))),
    }
}

/// Nothing could ever come with a budget of nothing.
fn budget<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
    let budget = ByteSize::deserialize(deserializer)?;
    match budget.0 {
        0 => Err(serde::de::Error::custom(
            "`budget` is 0: nothing could be fetched; leave it out for no limit",
        )),
        _ => Ok(Some(budget)),
    }
}

fn sector_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let bytes = u32::deserialize(deserializer)?;
    match bytes {
        512 | 4096 => Ok(bytes),
        _ => Err(serde::de::Error::custom(format!("`sector_bytes` is {bytes}: expected 512 or 4096"))),
    }
}
