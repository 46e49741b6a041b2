//! The named promises, as things that can be found broken.
//!
//! Not here: the checks. Rule: a violation is charged to the promise that names it, so that a broken updater is caught by
//! the right one.

use std::fmt;

/// A promise of the product, by its name in the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// No write ever lands in the running slot.
    RunningUntouched,
    /// While the running slot is unconfirmed, nothing touches the other.
    FallbackKept,
    /// After a cut at any instant the bootloader picks a slot whose content verifies.
    AlwaysBootable,
    /// A slot is armed only after its flushed bytes were read back.
    ProvenBeforeArmed,
    /// A trial that fails ends on the old slot by itself.
    UnattendedReturn,
    /// Only the running slot is confirmed, and only after its checks passed.
    HealthBeforeConfirm,
    /// Every durable record reads as its old or its new value.
    OldOrNew,
    /// Never below the floor by itself; the floor rises only at confirm.
    NoStealthDowngrade,
    /// A steady state in a bounded number of steps.
    Settles,
    /// A release that failed is never armed again by itself.
    TriedOnce,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A promise that was broken, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// What was seen.
    pub words: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.words)
    }
}
