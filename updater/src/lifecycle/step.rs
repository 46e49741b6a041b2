//! What follows from the result of an action; orders and starts are beside this file.
//!
//! Rule: a result that does not belong to the state is ignored, so that a late or doubled answer changes nothing.

use super::*;
use super::{orders, started};

/// Boots in which leaving an unfit slot is tried before the machine stays up where it is.
pub(super) const LEAVING_BOOTS_MAX: u8 = 3;

/// The one next action, and the state to store before it is done.
pub fn step(state: &State, event: Event, policy: &Policy) -> (State, Action) {
    match event {
        Event::Started(seen) => started::decide(state, &seen, policy),
        Event::UpdateOrdered(order, seen) => orders::update(state, *order, &seen, policy),
        Event::RollbackOrdered { below_floor, seen } => orders::rollback(state, below_floor, &seen, policy),
        result => follow(state, result, policy),
    }
}

/// What follows from a result; a table of phase and event.
fn follow(state: &State, event: Event, policy: &Policy) -> (State, Action) {
    match (&state.phase, event) {
        // The outcome is durable, or cannot be made so: settle either way.
        (phase, Event::Recorded) if state.unrecorded => {
            let next = State { unrecorded: false, ..state.clone() };
            let action = after_record(phase, policy);
            (next, action)
        }
        (phase, Event::RecordFailed(_)) if state.unrecorded => {
            let action = after_record(phase, policy);
            (state.clone(), action)
        }

        (Phase::Installing { release, slot, purpose, goal }, Event::Installed) => {
            let phase = Phase::Staged {
                release: release.clone(),
                slot: *slot,
                purpose: purpose.clone(),
                goal: *goal,
                attempts: 0,
                not_before_unix_secs: None,
            };
            let action = match goal {
                Goal::Stage => Action::Nothing,
                Goal::Trial => arm(release, *slot, policy),
            };
            (state.with(phase), action)
        }
        (Phase::Installing { release, slot, .. }, Event::InstallFailed(why)) => {
            state.conclude(Verdict::NotInstalled, Some(release), *slot, Some(why), None)
        }
        (Phase::Installing { .. }, Event::Cancelled) => (state.with(Phase::Idle), Action::Nothing),

        (Phase::Staged { release, slot, purpose, attempts, .. }, Event::Armed(since)) => {
            let (release, purpose) = (release.clone(), purpose.clone());
            let phase = Phase::Armed { release, slot: *slot, purpose, attempts: *attempts, since };
            (state.with(phase), Action::Reboot)
        }
        (Phase::Staged { release, slot, .. }, Event::ArmFailed(why)) => {
            // The write may have reached the disk although it was reported as failed.
            let (next, _) = state.conclude(Verdict::NotInstalled, Some(release), *slot, Some(why), None);
            (next, Action::Disarm(*slot))
        }
        (Phase::Staged { .. }, Event::Cancelled) => (state.with(Phase::Idle), Action::Nothing),

        (Phase::Armed { since, .. }, Event::RebootBegun) => {
            (state.clone(), Action::Wait(Until::UptimeSecs(since.uptime_secs + policy.armed_secs)))
        }
        (Phase::Armed { slot, .. }, Event::RebootFailed(_) | Event::DeadlinePassed) => {
            (state.with(state.phase.unarmed()), Action::Disarm(*slot))
        }
        (Phase::Armed { slot, .. }, Event::Cancelled) => (state.with(Phase::Idle), Action::Disarm(*slot)),

        (
            Phase::Idle | Phase::Installing { .. } | Phase::Staged { .. },
            Event::Disarmed | Event::DisarmFailed(_),
        ) => match &state.last {
            Some(outcome) if state.unrecorded => (state.clone(), Action::Record(outcome.clone())),
            _ => (state.clone(), Action::Nothing),
        },

        (Phase::OnTrial { slot, .. }, Event::HealthPassed) => (state.clone(), Action::Confirm(*slot)),
        (Phase::OnTrial { release, slot, purpose, .. }, Event::Confirmed) => {
            let (verdict, left) = match purpose {
                Purpose::Update => (Verdict::Confirmed, None),
                Purpose::Rollback { left } => (Verdict::RolledBack, left.clone()),
            };
            state.conclude(verdict, release.as_ref(), *slot, None, left)
        }
        (Phase::OnTrial { .. }, Event::HealthFailed(why) | Event::ConfirmFailed(why)) => state.leave(why),
        (Phase::OnTrial { .. }, Event::DeadlinePassed) => state.leave(Reason::DeadlineMissed.into()),

        // When the slot cannot be marked bad, the restarts use up its tries: the firmware leaves it without help.
        (Phase::RollingBack { .. }, Event::Reverted | Event::RevertFailed(_)) => {
            (state.with(state.phase.clone().leaving()), Action::Reboot)
        }
        (Phase::RollingBack { .. }, Event::RebootBegun | Event::RebootFailed(_)) => {
            (state.clone(), Action::Nothing)
        }

        _ => (state.clone(), Action::Ignored),
    }
}

/// Where a recorded outcome leads: only two phases still have something to do.
fn after_record(phase: &Phase, policy: &Policy) -> Action {
    match phase {
        Phase::RollingBack { slot, boots, .. } if *boots <= LEAVING_BOOTS_MAX => Action::Revert(*slot),
        Phase::Staged { not_before_unix_secs: Some(second), goal: Goal::Trial, .. } if policy.carry_on => {
            Action::Wait(Until::UnixSecs(*second))
        }
        _ => Action::Nothing,
    }
}

pub(super) fn arm(release: &Release, slot: Slot, policy: &Policy) -> Action {
    Action::Arm { release: release.clone(), slot, tries: policy.tries }
}

impl Phase {
    /// The restart that leaves the slot comes next.
    fn leaving(self) -> Phase {
        match self {
            Phase::RollingBack { release, slot, boot_id, boots, .. } => {
                Phase::RollingBack { release, slot, boot_id, boots, tried: true }
            }
            other => other,
        }
    }

    /// An armed slot whose reboot did not come: staged again, waiting for another order.
    pub(super) fn unarmed(&self) -> Phase {
        match self.clone() {
            Phase::Armed { release, slot, purpose, attempts, .. } => Phase::Staged {
                release,
                slot,
                purpose,
                goal: Goal::Stage,
                attempts,
                not_before_unix_secs: None,
            },
            other => other,
        }
    }
}

impl State {
    /// This state in another phase.
    pub(super) fn with(&self, phase: Phase) -> State {
        State { phase, ..self.clone() }
    }

    /// The end of an update: idle, with an outcome to record.
    pub(super) fn conclude(
        &self,
        verdict: Verdict,
        release: Option<&Release>,
        slot: Slot,
        why: Option<Why>,
        left: Option<Release>,
    ) -> (State, Action) {
        let outcome = Outcome { seq: self.next_seq, verdict, release: release.cloned(), slot, why, left };
        let next = State {
            phase: Phase::Idle,
            last: Some(outcome.clone()),
            unrecorded: true,
            next_seq: self.next_seq + 1,
        };
        (next, Action::Record(outcome))
    }

    /// The trial is unfit: record why, *then* mark it bad and restart. In this order a power cut in between starts
    /// the trial once more, finds it judged and leaves at once; the other order could lose the reason.
    pub(super) fn leave(&self, why: Why) -> (State, Action) {
        let Phase::OnTrial { release, slot, since, way_back, .. } = &self.phase else {
            return (self.clone(), Action::Ignored);
        };
        if !way_back {
            return self.conclude(Verdict::Stranded, release.as_ref(), *slot, Some(why), None);
        }
        let (next, record) = self.conclude(Verdict::Returned, release.as_ref(), *slot, Some(why), None);
        let phase = Phase::RollingBack {
            release: release.clone(),
            slot: *slot,
            boot_id: since.boot_id.clone(),
            boots: 1,
            tried: false,
        };
        (next.with(phase), record)
    }
}
