//! From what is allowed and what was seen to what may be done now.

use jiff::Timestamp;

use super::window;
use super::{Allow, Answer, Block, Cause, Gate, Gates, Lock, Metered, Observed, Schedule, Seen, Zone};

/// The time, and how far it can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What the system's clock shows.
    pub shows: Timestamp,
    /// The latest moment that has certainly passed: this program was built, a trusted key signed.
    pub passed: Timestamp,
}

impl Now {
    /// False for a clock that begins at 1970 and was not set yet. A clock that is ahead cannot be told from a good one.
    fn is_believable(self) -> bool {
        self.shows >= self.passed
    }
}

/// What the machine may do by itself now, and all that blocks what it may not.
pub fn next(schedule: &Schedule, now: Now, seen: &Seen) -> Answer {
    let download = gathered(&schedule.download, schedule, now, seen).and_also(metered(schedule, seen));
    let reboot = gathered(&schedule.reboot, schedule, now, seen);
    let wants_lock = matches!(schedule.reboot, Allow::Gates(Gates { lock: true, .. }));
    let may_hold = matches!(seen.lock, Lock::Held | Lock::HolderUnknown(_));
    // Whoever may hold the lock and waits for anything else keeps all others waiting.
    let give_lock_back = may_hold && (!wants_lock || !reboot.blocks.is_empty());
    Answer {
        download: download.gate(),
        reboot: if wants_lock { reboot.behind_lock(&seen.lock) } else { reboot.gate() },
        give_lock_back,
    }
}

/// All gates but the lock: what blocks, and until when what is open stays so.
struct Gathered {
    blocks: Vec<Block>,
    open_until: Option<Timestamp>,
}

impl Gathered {
    fn and_also(mut self, block: Option<Block>) -> Gathered {
        self.blocks.extend(block);
        self
    }

    fn gate(self) -> Gate {
        match self.blocks.is_empty() {
            true => Gate::Open { until: self.open_until },
            false => Gate::Closed { blocks: self.blocks },
        }
    }

    /// The lock comes last: it is asked for when nothing else is missing, and not before.
    fn behind_lock(self, lock: &Lock) -> Gate {
        let all_else_is_open = self.blocks.is_empty();
        match lock {
            Lock::NotAsked | Lock::HolderUnknown(_) if all_else_is_open => {
                Gate::AskLock { until: self.open_until }
            }
            Lock::Refused(why) => self.and_also(Some(blocked(Cause::Lock(why.clone())))).gate(),
            Lock::NotAsked | Lock::Held | Lock::HolderUnknown(_) => self.gate(),
        }
    }
}

fn blocked(cause: Cause) -> Block {
    Block { cause, until: None }
}

fn gathered(allow: &Allow, schedule: &Schedule, now: Now, seen: &Seen) -> Gathered {
    let (mut blocks, mut open_until) = (Vec::new(), None);
    match allow {
        Allow::Manual => blocks.push(blocked(Cause::Manual)),
        Allow::Gates(gates) => {
            if gates.window {
                match window_gate(schedule, now) {
                    Ok(until) => open_until = Some(until),
                    Err(block) => blocks.push(block),
                }
            }
            blocks.extend(sessions(seen).filter(|_| gates.sessions));
            blocks.extend(inhibitors(seen).filter(|_| gates.inhibitors));
        }
    }
    blocks.extend(unwanted(seen));
    Gathered { blocks, open_until }
}

fn window_gate(schedule: &Schedule, now: Now) -> Result<Timestamp, Block> {
    let zone = match &schedule.zone {
        Zone::Known(zone) => zone,
        Zone::Unknown { name, why } => {
            return Err(blocked(Cause::TimeZone { name: name.clone(), why: why.clone() }));
        }
    };
    if !now.is_believable() {
        return Err(blocked(Cause::Clock { shows: now.shows, passed: now.passed }));
    }
    window::open(&schedule.windows, now.shows, zone)
        .map_err(|until| Block { cause: Cause::Window { zone: zone.clone() }, until })
}

fn sessions(seen: &Seen) -> Option<Block> {
    match &seen.sessions {
        Observed::Seen(sessions) if sessions.is_empty() => None,
        Observed::Seen(sessions) => Some(blocked(Cause::Sessions(sessions.clone()))),
        Observed::Unseen(why) => Some(blocked(Cause::SessionsUnseen(why.clone()))),
    }
}

fn inhibitors(seen: &Seen) -> Option<Block> {
    match &seen.inhibitors {
        Observed::Seen(inhibitors) if inhibitors.is_empty() => None,
        Observed::Seen(inhibitors) => Some(blocked(Cause::Inhibitors(inhibitors.clone()))),
        Observed::Unseen(why) => Some(blocked(Cause::InhibitorsUnseen(why.clone()))),
    }
}

/// What an operator said of the release that is offered.
fn unwanted(seen: &Seen) -> impl Iterator<Item = Block> {
    let held = seen.hold.as_ref().map(|hold| Cause::Held { version: hold.release.version.clone() });
    let pinned = seen.pin.as_ref().map(|pin| Cause::Pinned { version: pin.version.clone() });
    held.into_iter().chain(pinned).map(blocked)
}

fn metered(schedule: &Schedule, seen: &Seen) -> Option<Block> {
    (seen.metered && schedule.metered == Metered::Wait).then(|| blocked(Cause::Metered))
}
