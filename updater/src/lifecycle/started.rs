//! Every start is a recovery: from what can be seen now to the one thing to do.
//!
//! Rule: the running kernel is believed before the boot record, that before the slots' content, that before the state
//! file; so a lost state file still ends a trial with a verdict, and a restored one cannot start anything by itself.

use super::orders::{backoff_secs, still_waits};
use super::step::{LEAVING_BOOTS_MAX, arm};
use super::*;

/// What to do, as seen now.
pub(super) fn decide(state: &State, seen: &Observation, policy: &Policy) -> (State, Action) {
    let state = &synchronised(state, &seen.known);
    let confirmed = seen.boot.slot(seen.running) == SlotBoot::Good;
    let under_judgement = state.phase.judged_slot() == Some(seen.running);
    if confirmed && !under_judgement {
        on_the_old_slot(state, seen, policy)
    } else {
        on_the_trial_slot(state, seen, policy)
    }
}

/// The state, with what the durable facts know better: outcomes are numbered, and one that they have is recorded. One that
/// they lost is recorded again: with it goes a quarantine, or a hold.
fn synchronised(state: &State, known: &Known) -> State {
    State {
        unrecorded: state.last.as_ref().is_some_and(|last| last.seq >= known.next_seq),
        next_seq: state.next_seq.max(known.next_seq),
        ..state.clone()
    }
}

/// The running slot is not confirmed, or it is the one under judgement although somebody else called it good.
fn on_the_trial_slot(state: &State, seen: &Observation, policy: &Policy) -> (State, Action) {
    let slot = seen.running;
    let way_back = seen.boot.slot(slot.other()) == SlotBoot::Good;
    let release = seen.running_release();
    let judged = release.is_some_and(|release| seen.known.quarantine.contains_key(&release.digest));
    match &state.phase {
        Phase::RollingBack { slot: leaving, boot_id, boots, tried, .. } if *leaving == slot && way_back => {
            let same_boot = *boot_id == seen.now.boot_id;
            leave_again(state, seen, boots + u8::from(*tried && !same_boot), *tried && same_boot)
        }
        // Judged before, and the state file was lost: no second trial.
        _ if judged && way_back => leave_again(state, seen, 1, false),
        _ => run_health(state, seen, way_back, policy),
    }
}

/// The verdict stands; the machine is still (or again) on the slot that it leaves.
fn leave_again(state: &State, seen: &Observation, boots: u8, tried: bool) -> (State, Action) {
    let (slot, release) = (seen.running, seen.running_release());
    if boots > LEAVING_BOOTS_MAX {
        let why = Why::new(
            Reason::NoWayBack,
            format!("marked bad {LEAVING_BOOTS_MAX} times, yet slot {slot} starts"),
        );
        match &state.last {
            Some(last) if state.unrecorded => return (state.clone(), Action::Record(last.clone())),
            Some(last) if last.verdict == Verdict::Stranded => return (state.clone(), Action::Nothing),
            _ => {}
        }
        let phase = state.phase.clone();
        let (stranded, record) = state.conclude(Verdict::Stranded, release, slot, Some(why), None);
        // Stays in this phase: a later start must neither judge the slot anew nor restart again.
        return (stranded.with(phase.with_boots(boots)), record);
    }
    let boot_id = seen.now.boot_id.clone();
    let phase = Phase::RollingBack { release: release.cloned(), slot, boot_id, boots, tried };
    let action = match &state.last {
        Some(last) if state.unrecorded => Action::Record(last.clone()),
        _ => Action::Revert(slot),
    };
    (state.with(phase), action)
}

/// A trial (or a slot that nobody confirmed): its health decides, within the deadline of this boot.
fn run_health(state: &State, seen: &Observation, way_back: bool, policy: &Policy) -> (State, Action) {
    let slot = seen.running;
    let release = seen.running_release().cloned();
    let (purpose, attempts, since) = match &state.phase {
        Phase::OnTrial { slot: tried, purpose, attempts, since, .. } if *tried == slot => {
            let same_boot = since.boot_id == seen.now.boot_id;
            (purpose.clone(), *attempts, if same_boot { since.clone() } else { seen.now.clone() })
        }
        // `Staged`: the power went between the write of the boot record and that of the state file.
        Phase::Armed { slot: tried, purpose, attempts, .. }
        | Phase::Staged { slot: tried, purpose, attempts, .. }
            if *tried == slot =>
        {
            (purpose.clone(), *attempts, seen.now.clone())
        }
        // The state file was lost: no more repetitions, and an older release means that somebody went back to it.
        _ => (guessed_purpose(seen), policy.retries, seen.now.clone()),
    };
    let deadline_uptime_secs = since.uptime_secs.saturating_add(policy.trial_deadline_secs);
    let next = state.with(Phase::OnTrial { release, slot, purpose, attempts, since, way_back });
    if seen.now.uptime_secs >= deadline_uptime_secs {
        return next.leave(Reason::DeadlineMissed.into());
    }
    (next, Action::RunHealth { deadline_uptime_secs })
}

fn guessed_purpose(seen: &Observation) -> Purpose {
    match (seen.running_release(), seen.other_release()) {
        (Some(running), Some(other)) if version::compare(&running.version, &other.version).is_lt() => {
            Purpose::Rollback { left: Some(other.clone()) }
        }
        _ => Purpose::Update,
    }
}

/// A confirmed slot runs: was there a trial in the other one, and how did it end?
fn on_the_old_slot(state: &State, seen: &Observation, policy: &Policy) -> (State, Action) {
    let slot = seen.running.other();
    let other = seen.boot.slot(slot);
    let armed_now = matches!(other, SlotBoot::Trial { .. });
    match &state.phase {
        Phase::RollingBack { .. } => returned(state, slot, other),
        Phase::Armed { slot: tried, since, .. } if *tried == slot => match other {
            SlotBoot::Trial { tries_done: 0, .. } if since.boot_id == seen.now.boot_id => {
                still_armed(state, since, seen, policy)
            }
            SlotBoot::Trial { tries_done: 0, .. } => loader_refused(state, seen),
            // Somebody else disarmed it.
            SlotBoot::Empty | SlotBoot::Good => settle(state, seen, policy),
            SlotBoot::Trial { .. } | SlotBoot::Bad => trial_ended(state, seen, policy),
        },
        Phase::OnTrial { slot: tried, .. } if *tried == slot => trial_ended(state, seen, policy),
        // The power went between the write of the boot record and that of the state file: armed once more.
        Phase::Staged { goal: Goal::Trial, not_before_unix_secs: None, .. } | Phase::Installing { .. }
            if matches!(other, SlotBoot::Trial { tries_done: 0, .. }) && policy.carry_on =>
        {
            settle(state, seen, policy)
        }
        // Armed, and nothing here says why: an unplanned restart must not start it.
        _ if armed_now => match other {
            SlotBoot::Trial { tries_done: 1.., .. } if unjudged(state, seen) => {
                trial_ended(state, seen, policy)
            }
            _ => (state.disarmed(seen), Action::Disarm(slot)),
        },
        // `Staged`: it was armed and tried, and the power went before the state file said so.
        Phase::Idle | Phase::Staged { .. } | Phase::OnTrial { .. } | Phase::Armed { .. }
            if other == SlotBoot::Bad && unjudged(state, seen) =>
        {
            trial_ended(state, seen, policy)
        }
        _ => settle(state, seen, policy),
    }
}

/// Back on the old slot, as decided: make sure that the slot that was left cannot start by itself.
fn returned(state: &State, slot: Slot, other: SlotBoot) -> (State, Action) {
    let idle = state.with(Phase::Idle);
    match (&state.last, other) {
        (_, SlotBoot::Trial { .. } | SlotBoot::Good) => (idle, Action::Disarm(slot)),
        (Some(last), _) if state.unrecorded => (idle, Action::Record(last.clone())),
        _ => (idle, Action::Nothing),
    }
}

/// The reboot has not come yet, in the boot that armed.
fn still_armed(state: &State, since: &Moment, seen: &Observation, policy: &Policy) -> (State, Action) {
    let until = since.uptime_secs.saturating_add(policy.armed_secs);
    match seen.now.uptime_secs >= until {
        true => (state.with(state.phase.unarmed()), Action::Disarm(seen.running.other())),
        false if policy.carry_on => (state.clone(), Action::Reboot),
        false => (state.clone(), Action::Wait(Until::UptimeSecs(until))),
    }
}

/// The machine restarted, the old slot runs and no try was used: arming it again would only repeat this.
fn loader_refused(state: &State, seen: &Observation) -> (State, Action) {
    let slot = seen.running.other();
    let why =
        Why::new(Reason::LoaderRefused, format!("slot {slot} was armed, slot {} started", seen.running));
    let (next, _) = state.conclude(Verdict::Returned, seen.other_release(), slot, Some(why), None);
    (next, Action::Disarm(slot))
}

/// The old slot runs after tries of the other one, and nobody gave a verdict.
fn trial_ended(state: &State, seen: &Observation, policy: &Policy) -> (State, Action) {
    let slot = seen.running.other();
    let boot = seen.boot.slot(slot);
    let (purpose, attempts) = match &state.phase {
        Phase::OnTrial { purpose, attempts, .. }
        | Phase::Armed { purpose, attempts, .. }
        | Phase::Staged { purpose, attempts, .. } => (purpose.clone(), *attempts),
        // Without a state file nobody knows how often it was tried: no more.
        _ => (Purpose::Update, policy.retries),
    };
    let why = evidence(state, seen, policy);
    let again = why.reason == Reason::Inconclusive && attempts < policy.retries;
    let verdict = if again { Verdict::Inconclusive } else { Verdict::Returned };
    let (mut next, record) = state.conclude(verdict, seen.other_release(), slot, Some(why), None);
    if let (true, Some(release)) = (again, seen.other_release()) {
        let attempts = attempts + 1;
        next.phase = Phase::Staged {
            release: release.clone(),
            slot,
            purpose,
            goal: Goal::Trial,
            attempts,
            not_before_unix_secs: Some(seen.now.unix_secs.saturating_add(backoff_secs(attempts, policy))),
        };
    }
    match boot {
        SlotBoot::Trial { .. } | SlotBoot::Good => (next, Action::Disarm(slot)),
        SlotBoot::Empty | SlotBoot::Bad => (next, record),
    }
}

/// Why a trial ended without a verdict, from the marks that its starts left. A crash repeats itself: it is believed
/// when every start ended at the same stage, at least two of them; power cuts end at any stage. What no power cut leaves
/// behind (a crash record, a reset by the watchdog) is believed at once.
fn evidence(state: &State, seen: &Observation, policy: &Policy) -> Why {
    let slot = seen.running.other();
    let starts = match seen.boot.slot(slot) {
        SlotBoot::Trial { tries_done, .. } => usize::from(tries_done),
        SlotBoot::Bad => usize::from(policy.tries),
        SlotBoot::Empty | SlotBoot::Good => 0,
    };
    let mut marks = seen.known.marks.clone();
    if let Phase::OnTrial { slot, since, .. } = &state.phase {
        marks.entry(since.boot_id.clone()).or_insert((*slot, Stage::BootCheck));
    }
    let all = marks.values().filter(|(marked, _)| *marked == slot).map(|(_, stage)| *stage);
    // What was found afterwards belongs to a start that is counted already, if that left a mark.
    let (ends, stages): (Vec<Stage>, Vec<Stage>) = all.partition(|stage| *stage >= Stage::WatchdogReset);
    let detail = format!("{starts} starts, {} of them left a mark", stages.len());
    // In the order of belief: a panic may end by the watchdog, and so may a restart at the deadline.
    for (stage, reason) in [
        (Stage::Panicked, Reason::Panicked),
        (Stage::DeadlinePassed, Reason::DeadlineMissed),
        (Stage::WatchdogReset, Reason::WatchdogReset),
    ] {
        if ends.contains(&stage) || stages.contains(&stage) {
            return Why::new(reason, detail);
        }
    }
    let all_alike = stages.windows(2).all(|pair| pair[0] == pair[1]);
    let reason = match stages.first() {
        _ if starts < 2 || seen.known.lost || !all_alike => Reason::Inconclusive,
        None => Reason::DiedEarly,
        Some(_) if stages.len() < starts => Reason::Inconclusive,
        Some(Stage::Initramfs) => Reason::DiedInInitramfs,
        Some(Stage::RootMounted) => Reason::DiedAfterRoot,
        Some(Stage::BootCheck | Stage::DeadlinePassed | Stage::WatchdogReset | Stage::Panicked) => {
            Reason::DiedInBootCheck
        }
    };
    Why::new(reason, detail)
}

/// True when the other slot is bad in the boot record and no outcome tells why: the state was lost.
fn unjudged(state: &State, seen: &Observation) -> bool {
    let told = |release: &Release| {
        seen.known.quarantine.contains_key(&release.digest)
            || seen.known.released.contains(&release.digest)
            || seen.known.hold.as_ref().is_some_and(|hold| hold.release.digest == release.digest)
            || matches!(&state.last, Some(last) if last.release.as_ref() == Some(release))
    };
    seen.other_release().is_some_and(|release| !told(release))
}

/// Nothing was on trial: finish what is pending, or go on where it is allowed.
fn settle(state: &State, seen: &Observation, policy: &Policy) -> (State, Action) {
    if let (true, Some(last)) = (state.unrecorded, &state.last) {
        return (state.clone(), Action::Record(last.clone()));
    }
    let slot = seen.running.other();
    let holds = |release: &Release| seen.other_release().is_some_and(|held| held.digest == release.digest);
    match &state.phase {
        Phase::Installing { release, slot: target, .. } if *target == slot => {
            let install = Action::Install { release: release.clone(), slot };
            (state.clone(), if policy.carry_on { install } else { Action::Nothing })
        }
        Phase::Staged { release, slot: target, goal, attempts, not_before_unix_secs, .. }
            if *target == slot && holds(release) =>
        {
            let waits = not_before_unix_secs.filter(|second| still_waits(*second, *attempts, seen, policy));
            let action = match (goal, waits) {
                (Goal::Trial, Some(second)) if policy.carry_on => Action::Wait(Until::UnixSecs(second)),
                (Goal::Trial, None) if policy.carry_on => arm(release, slot, policy),
                _ => Action::Nothing,
            };
            (state.clone(), action)
        }
        // The loader hides an entry whose kernel is gone: it starts the old slot at once, and no try is spent. The release
        // is not at fault; the next update finds what is missing when it reads the slot back.
        Phase::Armed { release, slot: target, since, .. }
            if *target == slot && since.boot_id != seen.now.boot_id =>
        {
            let detail = format!(
                "slot {slot} was armed, and slot {} started: its entry or a boot file is gone",
                seen.running
            );
            let why = Why::new(Reason::LoaderRefused, detail);
            state.conclude(Verdict::NotInstalled, Some(release), slot, Some(why), None)
        }
        // Disarmed by the time the state could be stored.
        Phase::Armed { slot: target, release, .. } if *target == slot && holds(release) => {
            (state.with(state.phase.unarmed()), Action::Nothing)
        }
        // The slots do not hold what the state file says: they are believed.
        _ => (state.with(Phase::Idle), Action::Nothing),
    }
}

impl Phase {
    /// The slot whose fitness is being decided, if any.
    fn judged_slot(&self) -> Option<Slot> {
        match self {
            // `Staged` and running: it was armed, and the power went before the state file said so.
            Phase::Staged { slot, .. }
            | Phase::Armed { slot, .. }
            | Phase::OnTrial { slot, .. }
            | Phase::RollingBack { slot, .. } => Some(*slot),
            _ => None,
        }
    }

    fn with_boots(self, count: u8) -> Phase {
        match self {
            Phase::RollingBack { release, slot, boot_id, tried, .. } => {
                Phase::RollingBack { release, slot, boot_id, boots: count, tried }
            }
            other => other,
        }
    }
}

impl State {
    /// This state once the other slot is out of the boot record: a stage that fits stays, all else is idle.
    fn disarmed(&self, seen: &Observation) -> State {
        match &self.phase {
            Phase::Staged { release, .. } | Phase::Installing { release, .. }
                if matches!(self.phase, Phase::Installing { .. })
                    || seen.other_release().is_some_and(|held| held.digest == release.digest) =>
            {
                self.clone()
            }
            _ => self.with(Phase::Idle),
        }
    }
}
