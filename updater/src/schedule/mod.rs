//! When a machine may look for a release, fetch it and restart by itself: `next(&Schedule, Now, &Seen) -> Answer`.
//!
//! Not here: a clock, a sleep, the questions to the machine and to a lock server; whoever drives `next` observes, acts on the
//! answer and asks again at [`Answer::wake`]. Rules: an answer names everything that blocks, not the first of it; a lock is
//! asked for last, so that none is held while something else is waited for; what cannot be known blocks.

mod days;
mod gate;
mod jitter;
mod next;
pub mod report;
#[cfg(test)]
mod tests;
mod window;

use jiff::SignedDuration;
use jiff::tz::TimeZone;

use crate::lifecycle;

pub use days::{Day, Days};
pub use gate::{Answer, Block, Cause, Gate};
pub use jitter::{Seed, next_check};
pub use next::{Now, next};
pub use window::{LENGTH_MAX, Window};

/// What the owner of a machine allows it to do by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Between two looks at the source.
    pub check: SignedDuration,
    /// The most that is added to `check`, drawn anew for each look.
    pub jitter: SignedDuration,
    /// When a release may be fetched and written to the other slot.
    pub download: Allow,
    /// When the machine may restart into it.
    pub reboot: Allow,
    /// Whether a metered link is used.
    pub metered: Metered,
    /// The zone that the windows are written in.
    pub zone: Zone,
    /// The windows; one of them is enough.
    pub windows: Vec<Window>,
}

/// Who begins something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allow {
    /// A person only.
    Manual,
    /// The machine, once each of these is open; at any time when there is none.
    Gates(Gates),
}

/// Which gates have to be open, all of them at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gates {
    /// One of the windows.
    pub window: bool,
    /// Nobody is logged in.
    pub sessions: bool,
    /// No program inhibits it.
    pub inhibitors: bool,
    /// The lock server granted this machine its turn.
    pub lock: bool,
}

/// What a metered link is used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Metered {
    /// Nothing is fetched over it.
    #[default]
    Wait,
    /// It is a link like any other.
    Use,
}

/// A time zone, as far as this machine knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Zone {
    /// Its rules were found.
    Known(TimeZone),
    /// They were not. Windows are closed then: another zone in its place would open them at hours that nobody wrote.
    Unknown {
        /// As it is configured.
        name: String,
        /// Why it could not be found.
        why: String,
    },
}

/// What has been observed of the machine and its surroundings since it was last decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Who is logged in.
    pub sessions: Observed<Vec<Session>>,
    /// Who asks for no restart now.
    pub inhibitors: Observed<Vec<Inhibitor>>,
    /// True on a metered link. A machine that cannot tell is on none: most have nothing that would know.
    pub metered: bool,
    /// What is known of this machine's turn.
    pub lock: Lock,
    /// Set when what is offered is the release that is held.
    pub hold: Option<lifecycle::Hold>,
    /// Set when what is offered is not what the machine is pinned to.
    pub pin: Option<Pin>,
}

/// What was looked for, or why it could not be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed<T> {
    /// This was there.
    Seen(T),
    /// It could not be looked at, for this reason; that is not the same as nothing being there.
    Unseen(String),
}

impl<T: Default> Default for Observed<T> {
    fn default() -> Observed<T> {
        Observed::Seen(T::default())
    }
}

/// A person who is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The user's name.
    pub user: String,
}

/// A program that asks for no restart now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inhibitor {
    /// Which program.
    pub who: String,
    /// Its reason, in its own words.
    pub why: String,
}

/// What is known of this machine's turn at a lock server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Lock {
    /// It was not asked yet, or it is time to ask again.
    #[default]
    NotAsked,
    /// It is this machine's turn.
    Held,
    /// Asked, and it is not; when to ask again is the asker's to know, on a clock that never jumps.
    Refused(
        /// The server's words.
        String,
    ),
    /// Asked, and no answer came: the server may count this machine among the holders. To ask again is safe, as whoever
    /// holds the lock is granted it once more; to restart is not.
    HolderUnknown(
        /// What went wrong.
        String,
    ),
}

/// The one release that an operator wants on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Its version.
    pub version: String,
}
