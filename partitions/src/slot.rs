//! The two places an operating system can live in, and what is known of the one that runs.
//!
//! Not here: how they are found on a disk (`layout`). Rule: two slots, never three; `other` is total.

use serde::{Deserialize, Serialize};

/// One of the two slots. Displayed and stored as `a` / `b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// Slot A: partitions `root-a` and `verity-a`.
    A,
    /// Slot B: partitions `root-b` and `verity-b`.
    B,
}

impl Slot {
    /// Both slots, A first.
    pub const ALL: [Slot; 2] = [Slot::A, Slot::B];

    /// The slot that this one is not.
    pub fn other(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }

    /// 0 for A, 1 for B: the place in a two-element array.
    pub fn index(self) -> usize {
        match self {
            Slot::A => 0,
            Slot::B => 1,
        }
    }

    /// `a` or `b`, as in labels, folder names and entry ids.
    pub fn letter(self) -> &'static str {
        match self {
            Slot::A => "a",
            Slot::B => "b",
        }
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.letter())
    }
}

impl std::str::FromStr for Slot {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "a" | "A" => Ok(Slot::A),
            "b" | "B" => Ok(Slot::B),
            _ => Err(format!("`{text}` is no slot: a or b")),
        }
    }
}

/// The running slot as its witness saw it (sysfs beneath `/`, or the simulated machine), with whether the boot
/// record calls it confirmed. An unconfirmed running slot means that the other slot is the only way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningSlot {
    /// The slot that runs.
    pub slot: Slot,
    /// True when the boot record marks it good: only then may the other slot be written.
    pub confirmed: bool,
}
