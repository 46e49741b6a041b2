//! The life of one update as a pure function: `step(&State, Event, &Policy) -> (State, Action)`.
//!
//! Not here: a clock, a file, a process; whoever drives `step` observes, stores the state, acts and feeds the result
//! back as the next event. Rule: one next action, never a list; every action may be repeated; belief goes running
//! kernel > boot record > slot content > state file. `docs/src/lifecycle.md` is this function as a table.

mod orders;
#[cfg(test)]
mod simulated;
mod started;
mod step;
#[cfg(test)]
mod table;
pub mod version;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use switchback_bootloader::boot_state::{BootState, SlotBoot};
use switchback_partitions::slot::Slot;

use crate::digest::Digest;
use crate::reason::{Reason, Why};

pub use step::step;

/// A release, as its signed documents name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The digest of its manifest: its identity.
    pub digest: Digest,
    /// Its version; ordered as [`version::compare`] says.
    pub version: String,
    /// Compared with the floor; rises when older releases have a hole.
    pub security_version: u64,
}

/// A moment, in the two ways that a machine knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The kernel's boot id: moments of different boots have no common uptime.
    pub boot_id: String,
    /// Seconds since this boot (never jumps); deadlines within a boot count by it.
    pub uptime_secs: u64,
    /// Seconds since 1970 by the wall clock, which may be wrong; only back-off across boots counts by it.
    pub unix_secs: u64,
}

/// Why the other slot is being started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Purpose {
    /// Forward, to a newer release.
    Update,
    /// Back to an older one, by an operator's order; what is left behind is held when the trial is confirmed.
    Rollback {
        /// The release that the operator leaves.
        left: Option<Release>,
    },
}

/// How far an order goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// Written and verified; the trial waits for another order.
    Stage,
    /// Armed and rebooted into.
    Trial,
}

/// What the machine is at, with only the data that this needs. Survives a reboot in the state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "at")]
pub enum Phase {
    /// Nothing is under way.
    Idle,
    /// The other slot is being written.
    Installing {
        /// What is written.
        release: Release,
        /// Where.
        slot: Slot,
        /// Forward, or back.
        purpose: Purpose,
        /// How far to go.
        goal: Goal,
    },
    /// The other slot holds a release, written and verified, not armed: an unplanned restart does not start it.
    Staged {
        /// What it holds.
        release: Release,
        /// Where.
        slot: Slot,
        /// Forward, or back.
        purpose: Purpose,
        /// How far to go.
        goal: Goal,
        /// Inconclusive trials of this release so far.
        attempts: u8,
        /// Back-off after an inconclusive trial: not armed by itself before this wall-clock second.
        not_before_unix_secs: Option<u64>,
    },
    /// The boot record puts the other slot first; the reboot is due.
    Armed {
        /// What will be tried.
        release: Release,
        /// Where.
        slot: Slot,
        /// Forward, or back.
        purpose: Purpose,
        /// Inconclusive trials of this release so far.
        attempts: u8,
        /// When it was armed.
        since: Moment,
    },
    /// The slot runs for the first time(s), not confirmed.
    OnTrial {
        /// What runs; `None` when its passport cannot be read.
        release: Option<Release>,
        /// Where.
        slot: Slot,
        /// Forward, or back.
        purpose: Purpose,
        /// Inconclusive trials of this release before this one.
        attempts: u8,
        /// When this boot was first seen.
        since: Moment,
        /// True when the other slot is confirmed, so that there is somewhere to return to.
        way_back: bool,
    },
    /// Judged unfit: the outcome is recorded, the slot is marked bad, the machine restarts into the old one.
    RollingBack {
        /// What failed.
        release: Option<Release>,
        /// Where.
        slot: Slot,
        /// The boot in which the machine was last on the slot that it leaves.
        boot_id: String,
        /// The attempt to leave that this boot is, from 1; bounded, so that a deaf loader makes no loop.
        boots: u8,
        /// True once this boot came as far as a restart. A boot that lost its power before that was no attempt: counted, three
        /// power cuts kept an unfit release running.
        #[serde(default = "tried")]
        tried: bool,
    },
}

/// What a state file says that was written before there was a word for it.
fn tried() -> bool {
    true
}

/// How an update or a trial ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Healthy and confirmed.
    Confirmed,
    /// An operator's way back: healthy and confirmed; what was left is held.
    RolledBack,
    /// The trial failed; the machine returns to the old slot and the release is quarantined (held, when an
    /// operator ended the trial).
    Returned,
    /// The trial ended without a verdict; it is tried again.
    Inconclusive,
    /// Unfit, but there is nowhere to return to: the machine stays up.
    Stranded,
    /// The release never got as far as a trial.
    NotInstalled,
}

/// An ended update, as history keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Counts outcomes of this machine; recording one twice changes nothing.
    pub seq: u64,
    /// How it ended.
    pub verdict: Verdict,
    /// Which release; `None` when its passport could not be read.
    pub release: Option<Release>,
    /// In which slot.
    pub slot: Slot,
    /// Why, unless it ended well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// After a rollback: the release that was left, which is held from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Release>,
}

/// All that survives in the state file. Losing it costs a re-check, never a boot and never a downgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What the machine is at.
    pub phase: Phase,
    /// How the last update ended.
    pub last: Option<Outcome>,
    /// True until `last` is among the durable facts.
    #[serde(default)]
    pub unrecorded: bool,
    /// The number that the next outcome gets.
    #[serde(default)]
    pub next_seq: u64,
}

impl Default for State {
    fn default() -> Self {
        State { phase: Phase::Idle, last: None, unrecorded: false, next_seq: 0 }
    }
}

/// A held release: left by an operator's rollback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The release that was left.
    pub release: Release,
}

/// How far a start on trial got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// `switchback init` began.
    Initramfs,
    /// The root was found, verified and mounted.
    RootMounted,
    /// The health checks began.
    BootCheck,
    /// The trial's deadline passed without a verdict, and the start was ended on purpose.
    DeadlinePassed,
    /// The watchdog reset the machine (its boot status, as the next boot found it).
    WatchdogReset,
    /// The kernel panicked (from a crash record that the next boot found).
    Panicked,
}

/// What the durable facts say, as `step` needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// The stored floor of `security_version`.
    pub floor: u64,
    /// Releases that failed their trial.
    pub quarantine: BTreeMap<Digest, Quarantined>,
    /// Releases that an operator took out of quarantine and that did not fail since.
    pub released: BTreeSet<Digest>,
    /// The release that an operator rolled back from.
    pub hold: Option<Hold>,
    /// Marks left by the starts of the present trial: boot id → slot and furthest stage. Marks of an earlier release in
    /// that slot must not be among them: they would make a crash look like power cuts.
    pub marks: BTreeMap<String, (Slot, Stage)>,
    /// The number that the next outcome gets.
    pub next_seq: u64,
    /// True when both copies of the facts were unreadable: what is missing here proves nothing.
    pub lost: bool,
}

/// A quarantined release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Its version, for people.
    pub version: String,
    /// Why it failed.
    pub why: Why,
}

/// What can be seen of the machine now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The running slot, by its witness: believed first.
    pub running: Slot,
    /// The boot record: believed second.
    pub boot: BootState,
    /// What each slot holds by its re-verified passport (`Slot::index`); `None` = empty or not verifiable. Third.
    pub slots: [Option<Release>; 2],
    /// Now, and in which boot.
    pub now: Moment,
    /// The durable facts.
    pub known: Known,
}

impl Observation {
    /// What the running slot holds.
    pub fn running_release(&self) -> Option<&Release> {
        self.slots[self.running.index()].as_ref()
    }

    /// What the other slot holds.
    pub fn other_release(&self) -> Option<&Release> {
        self.slots[self.running.other().index()].as_ref()
    }

    /// The floor that counts: the stored one or the running release's, whichever is higher.
    pub fn floor(&self) -> u64 {
        self.running_release().map_or(0, |release| release.security_version).max(self.known.floor)
    }
}

/// An order to go to a release whose signature, product and hardware were accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The release offered.
    pub candidate: Release,
    /// True when an operator named this release (`update --to`): an older or held one is accepted.
    pub named: bool,
    /// True when an operator accepts a release below the floor.
    pub below_floor: bool,
    /// How far to go.
    pub goal: Goal,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The updater started (after a boot, a crash, or for the next order), or a `Wait` is over: look at everything anew.
    Started(Box<Observation>),
    /// An update was ordered.
    UpdateOrdered(Box<Order>, Box<Observation>),
    /// An operator wants the other slot, or the end of this trial.
    RollbackOrdered {
        /// True when a release below the floor is accepted.
        below_floor: bool,
        /// What can be seen now.
        seen: Box<Observation>,
    },
    /// An operator gives up what is under way.
    Cancelled,
    /// `Install`: written, flushed, read back, verified.
    Installed,
    /// `Install` failed. Interruption is no failure: the next `Started` or order goes on.
    InstallFailed(Why),
    /// `Arm`: read back, and the boot record reads as armed.
    Armed(Moment),
    /// `Arm` failed.
    ArmFailed(Why),
    /// `Reboot`: the order was given, the machine goes down.
    RebootBegun,
    /// `Reboot` was refused.
    RebootFailed(Why),
    /// The moment that a `Wait` or `RunHealth` named has passed.
    DeadlinePassed,
    /// `RunHealth`: every check passed.
    HealthPassed,
    /// `RunHealth`: the checks that failed are in the detail.
    HealthFailed(Why),
    /// `Confirm`: the boot record reads as confirmed.
    Confirmed,
    /// `Confirm` failed.
    ConfirmFailed(Why),
    /// `Revert`: the slot is marked bad.
    Reverted,
    /// `Revert` failed.
    RevertFailed(Why),
    /// `Disarm`: the other slot is not started by itself any more.
    Disarmed,
    /// `Disarm` failed.
    DisarmFailed(Why),
    /// `Record`: the outcome is among the durable facts.
    Recorded,
    /// `Record` failed: the machine settles all the same.
    RecordFailed(Why),
}

/// The one thing to do next. Each may be repeated after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing: the state is steady.
    Nothing,
    /// Nothing: the event has no meaning in this state.
    Ignored,
    /// The order is refused; the state is unchanged.
    Refuse(Why),
    /// Write the release into the slot, flush, read all of it back, verify.
    Install {
        /// What.
        release: Release,
        /// Where.
        slot: Slot,
    },
    /// Read the slot back once more, then put it on trial by one write of the boot record.
    Arm {
        /// What the slot must hold.
        release: Release,
        /// Where.
        slot: Slot,
        /// Starts that the trial gets, 1–9.
        tries: u8,
    },
    /// Restart the machine.
    Reboot,
    /// Mark the start ([`Stage::BootCheck`]), then run the health checks.
    RunHealth {
        /// The uptime in seconds at which the trial has failed, whatever the checks say.
        deadline_uptime_secs: u64,
    },
    /// Mark the running slot good by one write of the boot record.
    Confirm(Slot),
    /// Mark the running slot bad by one write of the boot record.
    Revert(Slot),
    /// Take the *other* slot out of the boot record (`Empty`, never `Bad`: its content is not at fault).
    Disarm(Slot),
    /// Append the outcome to the durable facts; raises the floor, quarantines or holds as its verdict says.
    Record(Outcome),
    /// Nothing before that moment; then `Started` (or `DeadlinePassed` in the state `Armed`).
    Wait(Until),
}

/// The end of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Seconds since this boot.
    UptimeSecs(u64),
    /// Seconds since 1970.
    UnixSecs(u64),
}

/// What the configuration decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Starts that a trial gets, 1–9.
    pub tries: u8,
    /// Seconds from the first look at a trial boot until it has failed.
    pub trial_deadline_secs: u64,
    /// Seconds that a slot stays armed before a reboot has begun.
    pub armed_secs: u64,
    /// How often an inconclusive trial is repeated.
    pub retries: u8,
    /// Seconds before the first repetition; doubles with each.
    pub backoff_secs: u64,
    /// True where `Started` goes on with an interrupted install or a due repetition (daemon, `update`); false where
    /// it only settles what is (`boot-check` must neither download nor restart a healthy machine).
    pub carry_on: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            tries: 3,
            trial_deadline_secs: 600,
            armed_secs: 3600,
            retries: 2,
            backoff_secs: 3600,
            carry_on: true,
        }
    }
}

impl Known {
    /// Adds what an outcome teaches. The one place where floor, quarantine and hold change by themselves.
    pub fn learn(&mut self, outcome: &Outcome) {
        self.next_seq = self.next_seq.max(outcome.seq.saturating_add(1));
        self.marks.clear();
        let Some(release) = &outcome.release else { return };
        match outcome.verdict {
            Verdict::Confirmed => {
                self.floor = self.floor.max(release.security_version);
                // The held one itself, by name, or a newer one: an older one leaves the hold in force.
                self.hold.take_if(|hold| version::compare(&release.version, &hold.release.version).is_ge());
            }
            Verdict::RolledBack => {
                self.floor = self.floor.max(release.security_version);
                self.hold = outcome.left.clone().map(|release| Hold { release });
            }
            Verdict::Returned => {
                let why = outcome.why.clone().unwrap_or_else(|| Reason::Internal.into());
                if why.reason == Reason::EndedByOperator {
                    self.hold = Some(Hold { release: release.clone() });
                } else {
                    self.released.remove(&release.digest);
                    self.quarantine
                        .insert(release.digest, Quarantined { version: release.version.clone(), why });
                }
            }
            Verdict::Inconclusive | Verdict::Stranded | Verdict::NotInstalled => {}
        }
    }
}
