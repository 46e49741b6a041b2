//! What people and programs may ask of a machine, and the answers as plain data.
//!
//! Not here: sentences (`cli::render`), decisions (`lifecycle`). Rule: the command line and every later interface ask
//! with these types and nothing else, so that they cannot differ in what they do.

use serde::Serialize;
use switchback_bootloader::boot_state::SlotBoot;
use switchback_partitions::slot::Slot;

use crate::config::service::Name;
use crate::digest::Digest;
use crate::engine::costs::Costs;
use crate::health::{CheckResult, HealthReport};
use crate::install::{ReleaseName, Stages, Traffic};
use crate::lifecycle;
use crate::logs::StartLog;
use crate::reason::Reason;
use crate::registry::meter::Network;
use crate::schedule::report::Report;
use crate::services::orders::ServiceMoved;

/// How far an update or rollback goes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Change nothing; say what would be done.
    DryRun,
    /// Write and prove the slot.
    Stage,
    /// … and arm it; the next reboot is the trial.
    Arm,
    /// … and reboot now.
    Reboot,
}

/// A request to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// What runs, what is in the other slot, what happens next.
    Status,
    /// Is there a release to move to?
    Check {
        /// A tag, digest or reference instead of the configured one.
        to: Option<String>,
    },
    /// Move to a release.
    Update {
        /// A tag, digest or reference instead of the configured one; naming one is an operator's explicit wish.
        to: Option<String>,
        /// How far.
        reach: Reach,
    },
    /// Go back to the other slot.
    Rollback {
        /// How far ([`Reach::Stage`] is not used).
        reach: Reach,
        /// Allow a security version below the floor.
        below_floor: bool,
    },
    /// What happened.
    History {
        /// The newest so many.
        limit: usize,
    },
    /// What is kept of starts that failed.
    Logs {
        /// Only those of this release: a version, a digest, or the beginning of one.
        release: Option<String>,
    },
    /// Which releases failed here; with a name, that one may be tried again from now on.
    Quarantine {
        /// A version, a digest or the beginning of one.
        release: Option<String>,
    },
    /// Read all of the slots and compare it with what was signed.
    Scrub {
        /// Only this one.
        slot: Option<Slot>,
    },
    /// Run the health checks now.
    Health,
    /// Observe and settle after a boot.
    BootCheck {
        /// Leave the reboot of a return to the caller.
        no_reboot: bool,
    },
}

/// An answer. Serialised as it is by `--json`, with `answer` naming the kind.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Check`].
    Check(Check),
    /// To [`Request::Update`].
    Update(Update),
    /// To [`Request::Rollback`].
    Rollback(Update),
    /// To [`Request::History`].
    History(History),
    /// To [`Request::Logs`].
    Logs(Logs),
    /// To [`Request::Quarantine`].
    Quarantine(Quarantine),
    /// To [`Request::Scrub`].
    Scrub(Scrubbed),
    /// To [`Request::Health`].
    Health(HealthReport),
    /// To [`Request::BootCheck`].
    BootCheck(BootCheck),
}

impl Answer {
    /// True when the machine is other than before: exit code 2 under `--detailed-exitcode`.
    pub fn changed(&self) -> bool {
        match self {
            Answer::Status(_)
            | Answer::Check(_)
            | Answer::History(_)
            | Answer::Logs(_)
            | Answer::Scrub(_)
            | Answer::Health(_) => false,
            Answer::Quarantine(answer) => answer.released.is_some(),
            Answer::Update(update) | Answer::Rollback(update) => {
                !matches!(update.outcome, Outcome::Unchanged | Outcome::WouldUpdate | Outcome::WouldMove)
            }
            Answer::BootCheck(check) => check.verdict != BootVerdict::Nothing,
        }
    }
}

/// What a slot holds, as far as it can be told without reading all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// Nothing, and nothing counts on it.
    Empty,
    /// An install writes it, or was interrupted; the next one goes on there.
    HalfWritten,
    /// A release whose documents verify and whose boot files are there.
    Release,
    /// Something of what it should hold is gone or not to be believed.
    Damaged,
    /// Documents that nobody can judge: the trusted keys cannot be used.
    Unknown,
}

/// One slot, as it is.
#[derive(Debug, Clone, Serialize)]
pub struct SlotStatus {
    /// Which slot.
    pub slot: Slot,
    /// True when it runs now.
    pub running: bool,
    /// The boot record's word.
    pub boot: SlotBoot,
    /// What it holds, in a word.
    pub content: Content,
    /// The release its verified passport names.
    pub release: Option<ReleaseName>,
    /// `security_version` of that release.
    pub security_version: Option<u64>,
    /// True when that release is quarantined.
    pub quarantined: bool,
    /// What is wrong with it, when it is damaged.
    pub problem: Option<String>,
}

/// The answer to `status`.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Slot a, slot b.
    pub slots: [SlotStatus; 2],
    /// When the running release was confirmed last; absent where it came with the disk, or the records were lost.
    pub confirmed_at: Option<jiff::Timestamp>,
    /// True when one of the two copies of the durable facts is damaged or behind.
    pub records_degraded: bool,
    /// True when both copies are gone although something was recorded once: floor, quarantine, hold and history of before
    /// are not known.
    pub records_lost: bool,
    /// The witness of the running slot.
    pub running_by: String,
    /// The bootloader backend.
    pub bootloader: &'static str,
    /// The life's state: `idle`, `staged`, `armed`, …
    pub state: &'static str,
    /// What happens next, in a sentence.
    pub next: String,
    /// What stands in the way of an update, each in a sentence; empty when nothing does.
    pub blocked_by: Vec<String>,
    /// The security version below which nothing is installed.
    pub floor: u64,
    /// The digest an operator's rollback holds back.
    pub held: Option<Digest>,
    /// What that release calls itself.
    pub held_version: Option<String>,
    /// Quarantined releases.
    pub quarantine: Vec<Quarantined>,
    /// The newest outcome in the history.
    pub last: Option<HistoryEntry>,
    /// Where releases come from.
    pub source: Option<String>,
    /// True when a watchdog is held: a hang ends by itself.
    pub watchdog: bool,
    /// The services of the running slot and what serves each; empty where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceLine>,
    /// The release that the services follow without a restart, where it is not the one that lies in the slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services_follow: Option<lifecycle::Release>,
    /// What writing a slot did cost the last time; absent where none was written, or that is not known any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_written: Option<Costs>,
    /// What the daemon does by the schedule, as it wrote it down last; absent without a schedule or a daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Report>,
}

/// A service in a line.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceLine {
    /// Its name.
    pub name: Name,
    /// What it serves; `None`: nothing.
    pub release: Option<lifecycle::Release>,
    /// The image that the release binds it to, where that is another one.
    pub drift: Option<Digest>,
}

/// A release that failed its trial.
#[derive(Debug, Clone, Serialize)]
pub struct Quarantined {
    /// Its digest.
    pub digest: Digest,
    /// Its version.
    pub version: String,
    /// Why.
    pub reason: Reason,
}

/// The answer to `check`.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What the source offers.
    pub release: ReleaseName,
    /// What runs.
    pub running: Option<ReleaseName>,
    /// True when `update` would move to it.
    pub available: bool,
    /// Why not, when not.
    pub reason: Option<Reason>,
    /// The same for people.
    pub detail: String,
}

/// How an update or rollback ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing to do.
    Unchanged,
    /// Only a plan was asked for.
    WouldUpdate,
    /// Written and proven, not armed.
    Staged,
    /// Armed: the next reboot is the trial.
    Armed,
    /// Not armed any more: the next reboot stays where it is.
    Disarmed,
    /// Armed, and the reboot was ordered.
    Rebooting,
    /// The OS is the same: the services moved, and nothing restarts.
    Moved,
    /// The same, only planned.
    WouldMove,
    /// The same: the images are here, and nothing moved.
    Fetched,
}

/// The answer to `update` and `rollback`.
#[derive(Debug, Clone, Serialize)]
pub struct Update {
    /// How it ended.
    pub outcome: Outcome,
    /// The release.
    pub release: ReleaseName,
    /// The slot it is in or goes to.
    pub slot: Slot,
    /// What it cost; what it would cost at most, for a plan.
    pub traffic: Traffic,
    /// What really came over the network, documents and whatever came twice included; absent where nothing does, as from
    /// a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Where the time of writing the slot went; absent where nothing was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<Stages>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Starts the trial has.
    pub tries: u8,
    /// For people: why nothing was done, or what comes next.
    pub detail: String,
    /// The services that moved with it, without a restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceMoved>,
}

/// One entry of the history.
#[derive(Debug, Clone, Serialize)]
pub struct HistoryEntry {
    /// When, by the machine's clock.
    pub at: jiff::Timestamp,
    /// What happened: `provisioned`, `armed`, `confirmed`, `returned`, …
    pub what: String,
    /// The release.
    pub version: String,
    /// Its digest.
    pub digest: Option<Digest>,
    /// The slot.
    pub slot: Option<Slot>,
    /// Why, for a return or a refusal.
    pub reason: Option<Reason>,
    /// The same for people: the failed check and its words.
    pub detail: String,
    /// True when a log of it is kept.
    pub log: bool,
}

/// The answer to `logs`.
#[derive(Debug, Serialize)]
pub struct Logs {
    /// Oldest first.
    pub logs: Vec<StartLog>,
}

/// The answer to `quarantine`.
#[derive(Debug, Serialize)]
pub struct Quarantine {
    /// What was to be taken off the list, as it was typed.
    pub asked: Option<String>,
    /// What was taken off.
    pub released: Option<Quarantined>,
    /// What is on it now.
    pub quarantine: Vec<Quarantined>,
    /// True when the records were lost: what failed before is not known.
    pub records_lost: bool,
}

/// What a slot turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Soundness {
    /// Every byte is what was signed.
    Sound,
    /// It holds nothing.
    Empty,
    /// An install writes it, or was interrupted: it holds nothing whole yet, and nothing is wrong with that.
    HalfWritten,
    /// Something is not what was signed.
    Damaged,
    /// An update wrote to it meanwhile: nothing was judged.
    Changed,
}

/// One slot, read.
#[derive(Debug, Clone, Serialize)]
pub struct SlotScrub {
    /// Which slot.
    pub slot: Slot,
    /// True when it runs now.
    pub running: bool,
    /// The release that its documents name.
    pub release: Option<ReleaseName>,
    /// What it turned out to be.
    pub soundness: Soundness,
    /// The first thing that is wrong.
    pub detail: String,
}

/// The answer to `verify`.
#[derive(Debug, Serialize)]
pub struct Scrubbed {
    /// Slot a, slot b, as far as they were asked for.
    pub slots: Vec<SlotScrub>,
}

impl Scrubbed {
    /// True when a slot is damaged.
    pub fn is_damaged(&self) -> bool {
        self.slots.iter().any(|slot| slot.soundness == Soundness::Damaged)
    }

    /// True when a slot changed while it was read, so that nothing was judged of it.
    pub fn is_unjudged(&self) -> bool {
        self.slots.iter().any(|slot| slot.soundness == Soundness::Changed)
    }
}

/// The answer to `history`.
#[derive(Debug, Clone, Serialize)]
pub struct History {
    /// Oldest first.
    pub entries: Vec<HistoryEntry>,
    /// True when the records were lost: what happened before is not known.
    pub records_lost: bool,
}

/// What `boot-check` found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootVerdict {
    /// No trial was under way.
    Nothing,
    /// The trial is confirmed.
    Confirmed,
    /// The trial failed; the machine goes back.
    Returning,
    /// The machine came back from a failed trial.
    Returned,
    /// The release that was armed never started.
    NotStarted,
    /// Unfit, with nowhere to return to: the machine stays up.
    Stranded,
}

/// The answer to `boot-check`.
#[derive(Debug, Serialize)]
pub struct BootCheck {
    /// What was decided.
    pub verdict: BootVerdict,
    /// The running slot.
    pub slot: Slot,
    /// The running release, when its passport verifies.
    pub release: Option<ReleaseName>,
    /// The checks that were run.
    pub health: Option<HealthReport>,
    /// What `logs` calls the log that is kept of a trial that failed.
    pub log: Option<String>,
    /// What the scripts of greenboot's `green.d` or `red.d` made of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<CheckResult>,
    /// Why, for a return.
    pub reason: Option<Reason>,
    /// The same for people.
    pub detail: String,
}
