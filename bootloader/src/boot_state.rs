//! The boot state of a machine with two slots, and the pure functions that change it.
//!
//! Not here: files, variables, partitions. Rule: no I/O; the simulated firmware uses the same `choose` and `spend`.

use serde::{Deserialize, Serialize};
use switchback_partitions::slot::Slot;

/// What the boot record says of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum SlotBoot {
    /// No boot entry: nothing was installed, or an install removed it (step 1).
    Empty,
    /// Confirmed: booted for ever, no counter is spent.
    Good,
    /// On trial: `tries_left` starts remain; `tries_done` were used up.
    Trial {
        /// Starts that remain, 0–9. Zero left = the firmware picks the other slot.
        tries_left: u8,
        /// Starts used up so far.
        tries_done: u8,
    },
    /// Marked bad, or every try was spent: picked only when nothing else is there.
    Bad,
}

/// The boot record of the whole machine, as every backend reads and writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootState {
    /// Slot A's and slot B's part, in that order (`Slot::index`).
    pub slots: [SlotBoot; 2],
    /// The slot that goes first in the loader's order, if it may be started at all.
    pub wanted: Slot,
}
