//! Answers: what is open until when, and what blocks.
//!
//! Rule: a name, once shipped, never changes its meaning; programs compare names, people read the sentence.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{Inhibitor, Session};

/// What a machine may do by itself now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Fetch a release and write it to the other slot.
    pub download: Gate,
    /// Restart into it.
    pub reboot: Gate,
    /// True when a lock is held, or may be, that the machine cannot use now: others wait for it.
    pub give_lock_back: bool,
}

/// One thing that a machine may do, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    Open {
        /// The first moment at which it may not any more; for windows that are open longer than a week, when to ask again. None:
        /// the clock does not end it.
        until: Option<Timestamp>,
    },
    /// Only the lock is missing: ask for it, and then here again. Everything else is open until then.
    AskLock {
        /// The first moment at which more than the lock is missing, as for `Open`.
        until: Option<Timestamp>,
    },
    /// It may not.
    Closed {
        /// All that blocks: at least one.
        blocks: Vec<Block>,
    },
}

/// Something that blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What.
    pub cause: Cause,
    /// The moment from which it blocks no more, where the clock alone decides that.
    pub until: Option<Timestamp>,
}

/// What can block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Only a person begins it.
    Manual,
    /// No window is open.
    Window {
        /// The windows' zone, to tell the next opening in.
        zone: TimeZone,
    },
    /// The clock is behind what has certainly passed, so nobody knows whether a window is open.
    Clock {
        /// What it shows.
        shows: Timestamp,
        /// What has certainly passed.
        passed: Timestamp,
    },
    /// The windows' zone is not known on this machine.
    TimeZone {
        /// As it is configured.
        name: String,
        /// Why not.
        why: String,
    },
    /// The link is metered.
    Metered,
    /// Somebody is logged in.
    Sessions(Vec<Session>),
    /// It cannot be seen who is logged in.
    SessionsUnseen(String),
    /// A program asks for no restart.
    Inhibitors(Vec<Inhibitor>),
    /// It cannot be seen who asks for no restart.
    InhibitorsUnseen(String),
    /// What is offered is held.
    Held {
        /// Its version.
        version: String,
    },
    /// What is offered is not what the machine is pinned to.
    Pinned {
        /// The version that it is pinned to.
        version: String,
    },
    /// It is not this machine's turn.
    Lock(String),
}

impl Answer {
    /// The earliest moment at which this answer changes by the clock alone; until then only a new observation can change it.
    pub fn wake(&self) -> Option<Timestamp> {
        [&self.download, &self.reboot].into_iter().filter_map(Gate::changes_at).min()
    }
}

impl Gate {
    /// True when it may be done without another question.
    pub fn is_open(&self) -> bool {
        matches!(self, Gate::Open { .. })
    }

    /// What blocks; nothing when it is open or only the lock is missing.
    pub fn blocks(&self) -> &[Block] {
        match self {
            Gate::Closed { blocks } => blocks,
            Gate::Open { .. } | Gate::AskLock { .. } => &[],
        }
    }

    fn changes_at(&self) -> Option<Timestamp> {
        match self {
            Gate::Open { until } | Gate::AskLock { until } => *until,
            Gate::Closed { blocks } => blocks.iter().filter_map(|block| block.until).min(),
        }
    }
}

impl Block {
    /// The stable name, in kebab-case.
    pub fn name(&self) -> &'static str {
        match self.cause {
            Cause::Manual => "manual",
            Cause::Window { .. } => "window",
            Cause::Clock { .. } => "clock",
            Cause::TimeZone { .. } => "time-zone",
            Cause::Metered => "metered",
            Cause::Sessions(_) | Cause::SessionsUnseen(_) => "sessions",
            Cause::Inhibitors(_) | Cause::InhibitorsUnseen(_) => "inhibitors",
            Cause::Held { .. } => "held",
            Cause::Pinned { .. } => "pinned",
            Cause::Lock(_) => "lock",
        }
    }
}

/// The sentence for people.
impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.cause, self.until) {
            (Cause::Manual, _) => write!(f, "only an operator begins it"),
            (Cause::Window { zone }, Some(until)) => {
                let opens = until.to_zoned(zone.clone());
                write!(
                    f,
                    "no window is open; the next one opens on {}",
                    opens.strftime("%a %Y-%m-%d %H:%M %Z")
                )
            }
            (Cause::Window { .. }, None) => write!(f, "no window is configured"),
            (Cause::Clock { shows, passed }, _) => write!(
                f,
                "the clock shows {}, and {} has certainly passed: until it is set, no window is known to be open",
                shows.strftime("%Y-%m-%d %H:%M"),
                passed.strftime("%Y-%m-%d %H:%M"),
            ),
            (Cause::TimeZone { name, why }, _) => {
                write!(f, "the time zone `{name}` is not known on this machine, so no window opens: {why}")
            }
            (Cause::Metered, _) => write!(f, "the link is metered"),
            (Cause::Sessions(sessions), _) => {
                let users: Vec<&str> = sessions.iter().map(|session| session.user.as_str()).collect();
                write!(f, "logged in: {}", users.join(", "))
            }
            (Cause::SessionsUnseen(why), _) => write!(f, "it cannot be seen who is logged in: {why}"),
            (Cause::Inhibitors(inhibitors), _) => {
                let all: Vec<String> =
                    inhibitors.iter().map(|one| format!("{} ({})", one.who, one.why)).collect();
                write!(f, "inhibited by {}", all.join(", "))
            }
            (Cause::InhibitorsUnseen(why), _) => {
                write!(f, "it cannot be seen what inhibits a restart: {why}")
            }
            (Cause::Held { version }, _) => {
                write!(f, "{version} is held: an operator rolled back from it")
            }
            (Cause::Pinned { version }, _) => write!(f, "the machine is pinned to {version}"),
            (Cause::Lock(why), _) => write!(f, "it is not this machine's turn: {why}"),
        }
    }
}
