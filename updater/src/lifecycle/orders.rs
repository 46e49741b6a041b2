//! What an order to update or to go back leads to.
//!
//! Rule: an order is refused with the reason that a person can act on, checked in the order in which it matters:
//! first what protects the way back, then what was learnt of this release, then whether it is newer.

use super::step::arm;
use super::*;

/// An update was ordered; the candidate's signature, product, hardware and size were accepted before.
pub(super) fn update(state: &State, order: Order, seen: &Observation, policy: &Policy) -> (State, Action) {
    let refuse = |why: Why| (state.clone(), Action::Refuse(why));
    if let Some(why) = unconfirmed(state, seen) {
        return refuse(why);
    }
    if seen.running_release().is_some_and(|running| running.digest == order.candidate.digest) {
        return (state.clone(), Action::Nothing);
    }
    if let Some(why) = unwanted(&order, seen) {
        return refuse(why);
    }
    if let Phase::Armed { release, .. } = &state.phase
        && release.digest == order.candidate.digest
        && order.goal == Goal::Trial
    {
        return (state.clone(), Action::Reboot);
    }
    let (slot, purpose) = (seen.running.other(), purpose(&order.candidate, seen));
    if seen.other_release().is_some_and(|held| held.digest == order.candidate.digest) {
        return in_the_other_slot(state, order, purpose, seen, policy);
    }
    let Order { candidate, goal, .. } = order;
    let next = state.with(Phase::Installing { release: candidate.clone(), slot, purpose, goal });
    (next, Action::Install { release: candidate, slot })
}

/// The release is already there: nothing is fetched or written, it is only armed.
fn in_the_other_slot(
    state: &State,
    order: Order,
    purpose: Purpose,
    seen: &Observation,
    policy: &Policy,
) -> (State, Action) {
    let slot = seen.running.other();
    let Order { candidate: release, goal, named, .. } = order;
    let (attempts, waits_for) = match &state.phase {
        Phase::Staged { release: staged, attempts, not_before_unix_secs, .. }
            if staged.digest == release.digest =>
        {
            (*attempts, not_before_unix_secs.filter(|_| !named))
        }
        _ => (0, None),
    };
    let action = match (goal, waits_for.filter(|second| still_waits(*second, attempts, seen, policy))) {
        (Goal::Trial, Some(second)) => Action::Wait(Until::UnixSecs(second)),
        (Goal::Trial, None) => arm(&release, slot, policy),
        (Goal::Stage, _) if matches!(state.phase, Phase::Armed { .. }) => Action::Disarm(slot),
        (Goal::Stage, _) => Action::Nothing,
    };
    let not_before_unix_secs = waits_for;
    (state.with(Phase::Staged { release, slot, purpose, goal, attempts, not_before_unix_secs }), action)
}

/// Going to an older release is going back: what is left is held, or the next scheduled update would undo it.
fn purpose(candidate: &Release, seen: &Observation) -> Purpose {
    match seen.running_release() {
        Some(running) if version::compare(&candidate.version, &running.version).is_lt() => {
            Purpose::Rollback { left: Some(running.clone()) }
        }
        _ => Purpose::Update,
    }
}

/// True while the back-off lasts. A clock that went backwards (a dead battery says 1970) must not make it last for
/// years: more than one back-off ahead counts as over.
pub(super) fn still_waits(second: u64, attempts: u8, seen: &Observation, policy: &Policy) -> bool {
    let remaining = second.saturating_sub(seen.now.unix_secs);
    remaining > 0 && remaining <= backoff_secs(attempts, policy)
}

/// Seconds to wait after the given number of inconclusive trials.
pub(super) fn backoff_secs(attempts: u8, policy: &Policy) -> u64 {
    policy.backoff_secs.saturating_mul(1 << attempts.saturating_sub(1).min(16))
}

/// An operator wants the other slot, or the end of the trial that runs.
pub(super) fn rollback(
    state: &State,
    below_floor: bool,
    seen: &Observation,
    policy: &Policy,
) -> (State, Action) {
    let refuse = |reason: Reason, detail: String| (state.clone(), Action::Refuse(Why::new(reason, detail)));
    match state.phase {
        Phase::OnTrial { slot, way_back: true, .. } if slot == seen.running => {
            return state.leave(Reason::EndedByOperator.into());
        }
        Phase::OnTrial { slot, .. } if slot == seen.running => {
            let detail =
                format!("slot {slot} runs unconfirmed, and slot {} is not good to return to", slot.other());
            return refuse(Reason::NoWayBack, detail);
        }
        _ => {}
    }
    if let Some(why) = unconfirmed(state, seen) {
        return (state.clone(), Action::Refuse(why));
    }
    let slot = seen.running.other();
    match &state.phase {
        Phase::Armed { purpose: Purpose::Rollback { .. }, .. } => return (state.clone(), Action::Reboot),
        Phase::Installing { release, .. } => {
            let detail = format!("slot {slot} is being overwritten with {}", release.version);
            return refuse(Reason::NoWayBack, detail);
        }
        // "Back" from an update that has not begun is to stay where one is.
        Phase::Armed { purpose: Purpose::Update, .. } => {
            return (state.with(state.phase.unarmed()), Action::Disarm(slot));
        }
        Phase::Staged { release, purpose: Purpose::Update, .. } => {
            let detail = format!("slot {slot} already holds {}, which was not tried yet", release.version);
            return refuse(Reason::NoWayBack, detail);
        }
        _ => {}
    }
    let Some(target) = seen.other_release() else {
        return refuse(Reason::NoWayBack, format!("slot {slot} is empty or its documents do not verify"));
    };
    if let Some(quarantined) = seen.known.quarantine.get(&target.digest) {
        let detail = format!("slot {slot} holds {}, which failed here: {}", target.version, quarantined.why);
        return refuse(Reason::Quarantined, detail);
    }
    if target.security_version < seen.floor() && !below_floor {
        return refuse(Reason::BelowFloor, below_floor_detail(target, seen));
    }
    let phase = Phase::Staged {
        release: target.clone(),
        slot,
        purpose: Purpose::Rollback { left: seen.running_release().cloned() },
        goal: Goal::Trial,
        attempts: 0,
        not_before_unix_secs: None,
    };
    (state.with(phase), arm(target, slot, policy))
}

/// While the running slot is unconfirmed, nothing touches the other slot: it is the only way back.
fn unconfirmed(state: &State, seen: &Observation) -> Option<Why> {
    let judging = matches!(state.phase, Phase::OnTrial { .. } | Phase::RollingBack { .. });
    let boot = seen.boot.slot(seen.running);
    let good = boot == SlotBoot::Good;
    let found = match boot {
        SlotBoot::Empty => "has no entry in the boot record",
        SlotBoot::Good => "is confirmed in the boot record, but not judged yet",
        SlotBoot::Trial { .. } => "is on trial",
        SlotBoot::Bad => "is marked bad in the boot record",
    };
    let detail = || format!("slot {} runs and {found}", seen.running);
    (judging || !good).then(|| Why::new(Reason::RunningSlotUnconfirmed, detail()))
}

/// Why this machine does not want this release.
fn unwanted(order: &Order, seen: &Observation) -> Option<Why> {
    let candidate = &order.candidate;
    if let Some(quarantined) = seen.known.quarantine.get(&candidate.digest) {
        let detail = format!("{} failed its trial here: {}", candidate.version, quarantined.why);
        return Some(Why::new(Reason::Quarantined, detail));
    }
    if candidate.security_version < seen.floor() && !order.below_floor {
        return Some(Why::new(Reason::BelowFloor, below_floor_detail(candidate, seen)));
    }
    if order.named {
        return None;
    }
    if seen.known.hold.as_ref().is_some_and(|hold| hold.release.digest == candidate.digest) {
        return Some(Why::new(Reason::Held, format!("{} was left by a rollback", candidate.version)));
    }
    // An unknown running release has no version to be newer than: an operator names the first one.
    let running = seen.running_release().map(|running| running.version.as_str());
    if !running.is_some_and(|running| version::compare(&candidate.version, running).is_gt()) {
        let running = running.unwrap_or("an unknown release");
        return Some(Why::new(Reason::NotNewer, format!("{} is offered, {running} runs", candidate.version)));
    }
    None
}

fn below_floor_detail(release: &Release, seen: &Observation) -> String {
    format!(
        "{} has security version {}, the floor is {}",
        release.version,
        release.security_version,
        seen.floor()
    )
}
