//! The boot state of a machine with two slots, and the pure functions that change it.
//!
//! Not here: files, variables, partitions, and when to arm or return (policy: `updater::lifecycle`).
//! Rule: no I/O; what a firmware starts is decided by `choose` and paid for by `spend`, in the simulator as in the proofs.

use serde::{Deserialize, Serialize};
use switchback_partitions::slot::Slot;

/// The most tries that an entry can carry: one digit, so that counting never changes the length of a name on FAT.
pub const TRIES_MAX: u8 = 9;

/// What the boot record says of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum SlotBoot {
    /// No boot entry: nothing was installed, an install removed it (step 1), or it is prepared but not armed.
    Empty,
    /// Confirmed: booted for ever, no counter is spent.
    Good,
    /// On trial: `tries_left` starts remain; `tries_done` were used up.
    Trial {
        /// Starts that remain, 1–9. Zero is written and read as `Bad`.
        tries_left: u8,
        /// Starts used up so far.
        tries_done: u8,
    },
    /// Marked bad, or every try was spent: picked only when nothing else is there. A *running* slot that reads
    /// `Bad` is on its last try: the firmware took the last try before the start, and it can still be confirmed.
    Bad,
}

impl SlotBoot {
    /// True when a firmware starts the slot by itself: confirmed, or with a try left.
    pub fn is_startable(self) -> bool {
        match self {
            SlotBoot::Good => true,
            SlotBoot::Trial { tries_left, .. } => tries_left > 0,
            SlotBoot::Empty | SlotBoot::Bad => false,
        }
    }
}

/// The boot record of the whole machine, as every backend reads and writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootState {
    /// Slot A's and slot B's part, in that order (`Slot::index`).
    pub slots: [SlotBoot; 2],
    /// The slot that goes first in the loader's order, if it may be started at all.
    pub wanted: Slot,
}

impl BootState {
    /// A machine with nothing installed.
    pub const EMPTY: BootState = BootState { slots: [SlotBoot::Empty; 2], wanted: Slot::A };

    /// One slot's part.
    pub fn slot(&self, slot: Slot) -> SlotBoot {
        self.slots[slot.index()]
    }

    /// The slot that a firmware starts now; `None` when there is nothing to start.
    ///
    /// A startable slot goes before a bad one, then the wanted slot before the other.
    pub fn choose(&self) -> Option<Slot> {
        let state = self.normalise();
        [state.wanted, state.wanted.other()].into_iter().find(|slot| state.slot(*slot) != SlotBoot::Empty)
    }

    /// The state after a firmware started what `choose` names: a slot on trial paid one try *before* its start.
    pub fn spend(&self) -> BootState {
        let state = self.normalise();
        match state.choose().map(|slot| (slot, state.slot(slot))) {
            Some((slot, SlotBoot::Trial { tries_left, tries_done })) => state
                .with(
                    slot,
                    SlotBoot::Trial { tries_left: tries_left - 1, tries_done: tries_done.saturating_add(1) },
                )
                .normalise(),
            _ => state,
        }
    }

    /// Puts `slot` on trial with 1–9 `tries` and makes it the wanted one.
    pub fn arm(&self, slot: Slot, tries: u8) -> BootState {
        let trial = SlotBoot::Trial { tries_left: tries.clamp(1, TRIES_MAX), tries_done: 0 };
        BootState { wanted: slot, ..self.with(slot, trial) }.normalise()
    }

    /// Makes `slot` good and wanted: the end of a trial that went well, or the first slot of a new disk.
    pub fn confirm(&self, slot: Slot) -> BootState {
        BootState { wanted: slot, ..self.with(slot, SlotBoot::Good) }.normalise()
    }

    /// Marks `slot` bad: the firmware starts the other one, if that holds anything. An empty slot stays empty.
    pub fn revert(&self, slot: Slot) -> BootState {
        match self.slot(slot) {
            SlotBoot::Empty => self.normalise(),
            _ => self.with(slot, SlotBoot::Bad).normalise(),
        }
    }

    /// Removes `slot` from the record, as an install does before it writes.
    pub fn forget(&self, slot: Slot) -> BootState {
        self.with(slot, SlotBoot::Empty).normalise()
    }

    /// The same state without what cannot be: a trial without tries is bad, tries have one digit, and `wanted`
    /// names a slot that the firmware would start. Every backend reads and compares states in this form.
    pub fn normalise(&self) -> BootState {
        let slots = self.slots.map(|slot| match slot {
            SlotBoot::Trial { tries_left: 0, .. } => SlotBoot::Bad,
            SlotBoot::Trial { tries_left, tries_done } => SlotBoot::Trial {
                tries_left: tries_left.min(TRIES_MAX),
                tries_done: tries_done.min(TRIES_MAX),
            },
            other => other,
        });
        let rank = |slot: Slot| match slots[slot.index()] {
            SlotBoot::Good | SlotBoot::Trial { .. } => 2,
            SlotBoot::Bad => 1,
            SlotBoot::Empty => 0,
        };
        let other = self.wanted.other();
        let wanted = match (rank(self.wanted), rank(other)) {
            (0, 0) => Slot::A,
            (wanted, challenger) if challenger > wanted => other,
            _ => self.wanted,
        };
        BootState { slots, wanted }
    }

    /// True when a firmware would do the same with both. Between two bad slots no order is promised: a loader takes
    /// the one that its names happen to put first.
    pub fn means_the_same_as(&self, other: &BootState) -> bool {
        let (this, other) = (self.normalise(), other.normalise());
        this.slots == other.slots && (this.wanted == other.wanted || this.slots == [SlotBoot::Bad; 2])
    }

    /// The one step that leads from this state to `to`. Two slots in one step is refused: no backend can do that
    /// in one durable write, so a power cut in between would leave a state that nobody asked for.
    pub fn change_to(&self, to: &BootState) -> Result<Change, NotOneStep> {
        let (from, to) = (self.normalise(), to.normalise());
        if from.means_the_same_as(&to) {
            return Ok(Change::None);
        }
        let changed: Vec<Slot> =
            Slot::ALL.into_iter().filter(|slot| from.slot(*slot) != to.slot(*slot)).collect();
        match changed.as_slice() {
            [] => Ok(Change::Prefer(to.wanted)),
            // On trial but not first: the loader would never try it.
            [slot] if matches!(to.slot(*slot), SlotBoot::Trial { .. }) && to.wanted != *slot => {
                Err(NotOneStep { from, to })
            }
            [slot] => Ok(match to.slot(*slot) {
                SlotBoot::Empty => Change::Forget(*slot),
                SlotBoot::Good => Change::Confirm(*slot),
                SlotBoot::Trial { tries_left, tries_done } => {
                    Change::Arm { slot: *slot, tries_left, tries_done }
                }
                SlotBoot::Bad => Change::Revert(*slot),
            }),
            _ => Err(NotOneStep { from, to }),
        }
    }

    fn with(mut self, slot: Slot, boot: SlotBoot) -> BootState {
        self.slots[slot.index()] = boot;
        self
    }
}

/// The one step between two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The states are equal: nothing is written.
    None,
    /// The slot goes on trial.
    Arm {
        /// Which slot.
        slot: Slot,
        /// Starts that it has.
        tries_left: u8,
        /// Starts that count as used (0 except when a simulation writes a spent state).
        tries_done: u8,
    },
    /// The slot becomes good.
    Confirm(Slot),
    /// The slot becomes bad.
    Revert(Slot),
    /// The slot's entries go.
    Forget(Slot),
    /// Only the order changes: this slot goes first.
    Prefer(Slot),
}

/// Two states differ in more than one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("while changing the boot record: from {from:?} to {to:?} is more than one step")]
pub struct NotOneStep {
    /// What the record says now.
    pub from: BootState,
    /// What was asked for.
    pub to: BootState,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: SlotBoot = SlotBoot::Good;
    const BAD: SlotBoot = SlotBoot::Bad;
    const EMPTY: SlotBoot = SlotBoot::Empty;

    fn trial(tries_left: u8, tries_done: u8) -> SlotBoot {
        SlotBoot::Trial { tries_left, tries_done }
    }

    fn state(a: SlotBoot, b: SlotBoot, wanted: Slot) -> BootState {
        BootState { slots: [a, b], wanted }
    }

    #[test]
    fn the_firmware_starts_the_wanted_slot_unless_it_cannot() {
        use Slot::{A, B};
        for (boot, starts, why) in [
            (state(GOOD, EMPTY, A), Some(A), "only A is installed"),
            (state(GOOD, EMPTY, B), Some(A), "an empty slot is never started, even when wanted"),
            (state(GOOD, GOOD, B), Some(B), "both are good: the wanted one"),
            (state(GOOD, trial(3, 0), B), Some(B), "a trial has tries"),
            (state(GOOD, trial(0, 3), B), Some(A), "its tries are spent"),
            (state(GOOD, BAD, B), Some(A), "good goes before bad"),
            (state(EMPTY, BAD, A), Some(B), "a bad slot is better than a dead machine"),
            (state(BAD, BAD, B), Some(B), "both bad: the wanted one"),
            (state(EMPTY, EMPTY, B), None, "nothing to start"),
        ] {
            assert_eq!(boot.choose(), starts, "{why}: {boot:?}");
        }
    }

    #[test]
    fn a_change_is_named_and_two_at_once_are_refused() {
        use Slot::{A, B};
        let confirmed = state(GOOD, EMPTY, A);
        let armed = confirmed.arm(B, 3);
        for (from, to, change) in [
            (confirmed, confirmed, Change::None),
            (confirmed, armed, Change::Arm { slot: B, tries_left: 3, tries_done: 0 }),
            (armed, armed.confirm(B), Change::Confirm(B)),
            (armed.spend(), armed.revert(B), Change::Revert(B)),
            (armed, armed.forget(B), Change::Forget(B)),
            (state(GOOD, GOOD, A), state(GOOD, GOOD, B), Change::Prefer(B)),
        ] {
            assert_eq!(from.change_to(&to), Ok(change), "{from:?} to {to:?}");
        }
        assert!(confirmed.change_to(&state(BAD, GOOD, B)).is_err());
        assert!(state(GOOD, GOOD, A).change_to(&state(GOOD, trial(3, 0), A)).is_err(), "never tried");
        assert_eq!(
            state(BAD, BAD, A).change_to(&state(BAD, BAD, B)),
            Ok(Change::None),
            "no order between bad ones"
        );
    }

    #[test]
    fn the_last_try_reads_bad_and_can_still_be_confirmed() {
        let armed = state(GOOD, EMPTY, Slot::A).arm(Slot::B, 1);
        assert_eq!(armed.choose(), Some(Slot::B));
        let running = armed.spend();
        assert_eq!(running, state(GOOD, BAD, Slot::A));
        assert_eq!(running.confirm(Slot::B), state(GOOD, GOOD, Slot::B));
    }

    fn any_slot() -> impl Strategy<Value = Slot> {
        prop_oneof![Just(Slot::A), Just(Slot::B)]
    }

    fn any_boot() -> impl Strategy<Value = SlotBoot> {
        prop_oneof![
            Just(EMPTY),
            Just(GOOD),
            Just(BAD),
            (any::<u8>(), any::<u8>()).prop_map(|(left, done)| trial(left, done))
        ]
    }

    fn any_state() -> impl Strategy<Value = BootState> {
        (any_boot(), any_boot(), any_slot()).prop_map(|(a, b, wanted)| state(a, b, wanted))
    }

    proptest! {
        #[test]
        fn an_empty_slot_is_never_chosen(boot in any_state()) {
            match boot.choose() {
                Some(slot) => prop_assert_ne!(boot.slot(slot), EMPTY),
                None => prop_assert_eq!(boot.slots, [EMPTY, EMPTY]),
            }
        }

        #[test]
        fn normalise_settles_at_once_and_keeps_what_starts(boot in any_state()) {
            let normal = boot.normalise();
            prop_assert_eq!(normal.normalise(), normal);
            prop_assert_eq!(normal.choose(), boot.choose());
            if let Some(slot) = normal.choose() {
                prop_assert_eq!(normal.wanted, slot);
            }
        }

        #[test]
        fn power_cycling_never_moves_a_confirmed_slot(boot in any_state(), starts in 0usize..30) {
            let after = (0..starts).fold(boot, |state, _| state.spend());
            for slot in Slot::ALL {
                prop_assert_eq!(boot.slot(slot) == GOOD, after.slot(slot) == GOOD);
            }
        }

        #[test]
        fn a_trial_that_nobody_confirms_ends_on_the_good_slot_within_tries_plus_one_starts(
            slot in any_slot(), tries in any::<u8>(), before in any_boot(),
        ) {
            let good = state(GOOD, GOOD, slot.other()).with(slot, before);
            let mut boot = good.arm(slot, tries);
            let mut starts = 0u32;
            loop {
                let started = boot.choose();
                boot = boot.spend();
                starts += 1;
                if started == Some(slot.other()) {
                    break;
                }
            }
            prop_assert_eq!(starts, u32::from(tries.clamp(1, TRIES_MAX)) + 1);
            prop_assert_eq!(boot, state(GOOD, GOOD, slot.other()).with(slot, BAD));
        }

        #[test]
        fn every_named_change_is_one_step(boot in any_state(), slot in any_slot(), tries in 1u8..=9) {
            for next in [boot.arm(slot, tries), boot.confirm(slot), boot.revert(slot), boot.forget(slot)] {
                prop_assert!(boot.change_to(&next).is_ok());
                prop_assert_eq!(next.slot(slot.other()), boot.normalise().slot(slot.other()));
            }
        }
    }
}
