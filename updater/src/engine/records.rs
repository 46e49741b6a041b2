//! Are the durable facts gone from a machine that has been used?
//!
//! Not here: what `lifecycle` makes of it (`Known::lost`: less is concluded from what is missing). Rule: nothing is called
//! lost on a machine that may never have had it: an outcome must have come before.

use switchback_bootloader::boot_state::{BootState, SlotBoot};

use super::Engine;
use crate::lifecycle::{Phase, State};

impl Engine<'_> {
    /// True when floor, quarantine, hold and history of earlier are not known any more. `boot` is the boot record, when it
    /// was read already.
    pub(super) fn records_lost(&self, boot: Option<BootState>) -> bool {
        if self.facts.known().lost {
            return true;
        }
        let read = || self.machine.bootloader().ok()?.read().ok();
        self.facts.is_blank() && has_been_used(&self.state, boot.or_else(read))
    }
}

/// True when an outcome was recorded once, by what else lies on the machine.
fn has_been_used(state: &State, boot: Option<BootState>) -> bool {
    // What is still to be recorded was never lost: the next `boot-check` does it.
    if state.unrecorded {
        return false;
    }
    // A new disk has one slot. The second becomes good or bad only by a trial, and the end of that is recorded.
    let judged = |slot| matches!(slot, SlotBoot::Good | SlotBoot::Bad);
    let both = boot.is_some_and(|boot| boot.slots.into_iter().all(judged));
    state.last.is_some() || (both && state.phase == Phase::Idle)
}

#[cfg(test)]
mod tests {
    use switchback_partitions::slot::Slot;

    use super::*;
    use crate::lifecycle::{Outcome, Verdict};

    #[test]
    fn only_what_an_outcome_leaves_behind_counts_as_use() {
        use SlotBoot::{Bad, Empty, Good};
        let trial = SlotBoot::Trial { tries_left: 3, tries_done: 0 };
        let boot = |b| Some(BootState { slots: [Good, b], wanted: Slot::A });
        let slot = Slot::B;
        let rolling_back =
            Phase::RollingBack { release: None, slot, boot_id: String::new(), boots: 1, tried: false };
        let outcome =
            Outcome { seq: 0, verdict: Verdict::Confirmed, release: None, slot, why: None, left: None };
        for (why, phase, last, unrecorded, boot, used) in [
            ("a new disk", Phase::Idle, None, false, boot(Empty), false),
            ("its first trial is to come", Phase::Idle, None, false, boot(trial), false),
            ("it fails now", rolling_back, None, false, boot(Bad), false),
            ("its end is not recorded yet", Phase::Idle, Some(&outcome), true, boot(Bad), false),
            ("state and facts are gone", Phase::Idle, None, false, boot(Good), true),
            ("the same after a return", Phase::Idle, None, false, boot(Bad), true),
            ("the facts alone are gone", Phase::Idle, Some(&outcome), false, boot(Empty), true),
            ("nothing can be read", Phase::Idle, None, false, None, false),
        ] {
            let state = State { phase, last: last.cloned(), unrecorded, next_seq: 0 };
            assert_eq!(has_been_used(&state, boot), used, "{why}");
        }
    }
}
