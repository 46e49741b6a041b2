//! The step function as a page of the book: every state with every kind of event, written by this test.

use super::*;

const INTRO: &str = "\
# The life of an update

This page is written by a test from the function that decides (`updater/src/lifecycle`): `UPDATE_GOLDEN=1 make test`
rewrites it, and a difference fails.

```text
          update             written, verified          order or window             restart
 Idle ─────────────▶ Installing ─────────▶ Staged ─────────────────▶ Armed ─────────────────▶ OnTrial
  ▲                                           ▲                         │                     │     │
  │                                           └── the reboot never came ┘             healthy │     │ unfit
  ├─────────────────────────────── confirmed ─────────────────────────────────────────────────┘     ▼
  └─────────────────────────────── back on the old slot ◀────────────────────────────────────  RollingBack
```

Whatever drives it observes, decides, stores the new state durably, does the one action and feeds the result back.
Every action may be repeated, so a crash at any point is answered by looking anew (`Started`). When the witnesses
disagree, the running kernel is believed before the boot record, that before the content of the slots, that before the
state file: a lost state file costs a look, never a boot and never a downgrade.

Slot `a` runs release 1.0, which is confirmed; release 1.1 is the one that is updated to, in slot `b`. *Record* makes an
outcome durable: `confirmed` raises the floor, `returned` quarantines the release, a rollback holds what was left.

## Which version is newer

A leading `v` and what follows `+` are ignored. Runs of digits compare as numbers, runs of letters as text, other signs
only separate; a missing part counts as `0`, and letters go after every number (`1.0` < `1.0a`). What follows the first
`-` or `~` is a pre-release (`1.0-rc.2` < `1.0-rc.10` < `1.0`). By itself the machine moves only to a newer version.

## What a trial died of

Starts of a trial leave marks: initramfs, root mounted, health checks begun. A crash repeats itself, so it is believed
when at least two starts were made and all ended at the same stage. A kernel's crash record and a reset by the watchdog are
believed at once: no power cut leaves them behind.
Everything else, such as three power cuts, is *inconclusive*: it is repeated at most twice, with a back-off that
doubles, and then quarantined too.
";

fn release(version: &str, security_version: u64) -> Release {
    Release { digest: Digest::of(version.as_bytes()), version: version.into(), security_version }
}

fn moment(boot_id: &str) -> Moment {
    Moment { boot_id: boot_id.into(), uptime_secs: 100, unix_secs: 1000 }
}

fn phases() -> Vec<(&'static str, Phase)> {
    let (slot, purpose, goal, attempts) = (Slot::B, Purpose::Update, Goal::Trial, 0);
    let (new, since) = (|| release("1.1", 1), || moment("now"));
    vec![
        ("Idle", Phase::Idle),
        ("Installing", Phase::Installing { release: new(), slot, purpose: purpose.clone(), goal }),
        (
            "Staged",
            Phase::Staged {
                release: new(),
                slot,
                purpose: purpose.clone(),
                goal,
                attempts,
                not_before_unix_secs: None,
            },
        ),
        ("Armed", Phase::Armed { release: new(), slot, purpose: purpose.clone(), attempts, since: since() }),
        (
            "OnTrial",
            Phase::OnTrial { release: Some(new()), slot, purpose, attempts, since: since(), way_back: true },
        ),
        (
            "RollingBack",
            Phase::RollingBack { release: Some(new()), slot, boot_id: "now".into(), boots: 1, tried: true },
        ),
    ]
}

fn trial(tries_left: u8, tries_done: u8) -> SlotBoot {
    SlotBoot::Trial { tries_left, tries_done }
}

fn seen(running: Slot, a: SlotBoot, b: SlotBoot) -> Observation {
    Observation {
        running,
        boot: BootState { slots: [a, b], wanted: Slot::B }.normalise(),
        slots: [Some(release("1.0", 1)), Some(release("1.1", 1))],
        now: moment("now"),
        known: Known::default(),
    }
}

/// What can be seen at a start, in words.
fn starts() -> Vec<(&'static str, Observation)> {
    use Slot::{A, B};
    use SlotBoot::{Bad, Empty, Good};
    let later = |seen: Observation| Observation { now: moment("next"), ..seen };
    let mut marked = seen(A, Good, Bad);
    marked.known.marks.insert("t1".into(), (B, Stage::BootCheck));
    let mut quarantined = seen(B, Good, trial(1, 2));
    let why = Reason::HealthFailed.into();
    quarantined.known.quarantine.insert(release("1.1", 1).digest, Quarantined { version: "1.1".into(), why });
    let mut nothing = seen(A, Good, Empty);
    nothing.slots[1] = None;
    vec![
        ("a runs; b is empty", nothing),
        ("a runs; b holds 1.1, no entry", seen(A, Good, Empty)),
        ("a runs; b holds 1.1, no entry, a later boot", later(seen(A, Good, Empty))),
        ("a runs; b is good", seen(A, Good, Good)),
        ("a runs; b is armed, the boot that armed", seen(A, Good, trial(3, 0))),
        ("a runs; b is armed, no try used, a later boot", later(seen(A, Good, trial(3, 0)))),
        ("a runs; b used one try of three", later(seen(A, Good, trial(2, 1)))),
        ("a runs; b is bad, no start left a mark", later(seen(A, Good, Bad))),
        ("a runs; b is bad, one of three starts left a mark", later(marked)),
        ("b runs, on trial", later(seen(B, Good, trial(2, 1)))),
        ("b runs, on its last try", later(seen(B, Good, Bad))),
        ("b runs, somebody else called it good", later(seen(B, Good, Good))),
        ("b runs, on trial; a is bad", later(seen(B, Bad, trial(2, 1)))),
        ("b runs, on trial, and is quarantined", later(quarantined)),
    ]
}

/// What can be ordered, in words, seen from the slot that runs in this phase.
fn orders(phase: &Phase) -> Vec<(&'static str, Event)> {
    let trial_runs = matches!(phase, Phase::OnTrial { .. } | Phase::RollingBack { .. });
    let mut here = match trial_runs {
        true => seen(Slot::B, SlotBoot::Good, trial(2, 1)),
        false => seen(Slot::A, SlotBoot::Good, SlotBoot::Good),
    };
    here.slots[1] = Some(release("1.1", 1));
    let order = |candidate: Release| Order { candidate, named: false, below_floor: false, goal: Goal::Trial };
    let update =
        |order: Order, seen: &Observation| Event::UpdateOrdered(Box::new(order), Box::new(seen.clone()));
    let rollback = |below_floor: bool, seen: &Observation| Event::RollbackOrdered {
        below_floor,
        seen: Box::new(seen.clone()),
    };
    let mut orders = vec![
        ("update to 1.2", update(order(release("1.2", 1)), &here)),
        ("update to 1.1, which b holds", update(order(release("1.1", 1)), &here)),
        ("rollback", rollback(false, &here)),
    ];
    if *phase != Phase::Idle {
        return orders;
    }
    let why: Why = Reason::HealthFailed.into();
    let with = |change: &dyn Fn(&mut Observation)| {
        let mut changed = here.clone();
        change(&mut changed);
        changed
    };
    let (new, old) = (release("1.2", 1), release("0.9", 1));
    let quarantined =
        |release: &Release| (release.digest, Quarantined { version: "1.2".into(), why: why.clone() });
    let bad_new = with(&|seen| seen.known.quarantine.extend([quarantined(&new)]));
    let bad_other = with(&|seen| seen.known.quarantine.extend([quarantined(&release("1.1", 1))]));
    let held = with(&|seen| seen.known.hold = Some(Hold { release: new.clone() }));
    let floor = with(&|seen| seen.known.floor = 5);
    let empty = with(&|seen| seen.slots[1] = None);
    let on_trial = with(&|seen| seen.boot.slots[0] = trial(1, 1));
    let named = |candidate: &Release| Order { named: true, ..order(candidate.clone()) };
    orders.extend([
        ("update to 1.0, which runs", update(order(release("1.0", 1)), &here)),
        ("update to 1.2, stage only", update(Order { goal: Goal::Stage, ..order(new.clone()) }, &here)),
        ("update to 0.9", update(order(old.clone()), &here)),
        ("update to 0.9, named", update(named(&old), &here)),
        ("update to 1.2, quarantined", update(named(&new), &bad_new)),
        ("update to 1.2, held", update(order(new.clone()), &held)),
        ("update to 1.2, held, named", update(named(&new), &held)),
        ("update to 1.2, below the floor", update(named(&new), &floor)),
        (
            "update to 1.2, below the floor, accepted",
            update(Order { below_floor: true, ..named(&new) }, &floor),
        ),
        ("update to 1.2 while a is unconfirmed", update(order(new.clone()), &on_trial)),
        ("rollback, b is empty", rollback(false, &empty)),
        ("rollback, b's release is quarantined", rollback(false, &bad_other)),
        ("rollback, b's release is below the floor", rollback(false, &floor)),
        ("rollback, below the floor, accepted", rollback(true, &floor)),
        ("rollback while a is unconfirmed", rollback(false, &on_trial)),
    ]);
    orders
}

fn results() -> Vec<(&'static str, Event)> {
    let why = || Why::from(Reason::WriteFailed);
    vec![
        ("Cancelled", Event::Cancelled),
        ("Installed", Event::Installed),
        ("InstallFailed", Event::InstallFailed(why())),
        ("Armed", Event::Armed(moment("now"))),
        ("ArmFailed", Event::ArmFailed(why())),
        ("RebootBegun", Event::RebootBegun),
        ("RebootFailed", Event::RebootFailed(why())),
        ("DeadlinePassed", Event::DeadlinePassed),
        ("HealthPassed", Event::HealthPassed),
        ("HealthFailed", Event::HealthFailed(Reason::HealthFailed.into())),
        ("Confirmed", Event::Confirmed),
        ("ConfirmFailed", Event::ConfirmFailed(Reason::BootRecordFailed.into())),
        ("Reverted", Event::Reverted),
        ("RevertFailed", Event::RevertFailed(why())),
        ("Disarmed", Event::Disarmed),
        ("DisarmFailed", Event::DisarmFailed(why())),
        ("Recorded", Event::Recorded),
        ("RecordFailed", Event::RecordFailed(why())),
    ]
}

fn phase_in_words(phase: &Phase) -> String {
    match phase {
        Phase::Idle => "Idle".into(),
        Phase::Installing { release, purpose, goal, .. } => {
            format!("Installing {}{}{}", release.version, back(purpose), stage_only(*goal))
        }
        Phase::Staged { release, purpose, goal, attempts, not_before_unix_secs, .. } => {
            let again = if *attempts > 0 { format!(", repetition {attempts}") } else { String::new() };
            let wait = if not_before_unix_secs.is_some() { " after back-off" } else { "" };
            format!("Staged {}{}{}{again}{wait}", release.version, back(purpose), stage_only(*goal))
        }
        Phase::Armed { release, purpose, .. } => format!("Armed {}{}", release.version, back(purpose)),
        Phase::OnTrial { release, way_back, .. } => {
            let nowhere = if *way_back { "" } else { ", no way back" };
            format!("OnTrial {}{nowhere}", release.as_ref().map_or("?", |release| &release.version))
        }
        Phase::RollingBack { boots, .. } => format!("RollingBack, boot {boots}"),
    }
}

fn back(purpose: &Purpose) -> &'static str {
    if matches!(purpose, Purpose::Rollback { .. }) { " (back)" } else { "" }
}

fn stage_only(goal: Goal) -> &'static str {
    if goal == Goal::Stage { ", waits for an order" } else { "" }
}

fn action_in_words(action: &Action) -> String {
    match action {
        Action::Nothing => "–".into(),
        Action::Ignored => "ignored".into(),
        Action::Refuse(why) => format!("Refuse: `{}`", why.reason),
        Action::Install { release, slot } => format!("Install {} into {slot}", release.version),
        Action::Arm { slot, tries, .. } => format!("Arm {slot} with {tries} tries"),
        Action::Reboot => "Reboot".into(),
        Action::RunHealth { .. } => "Run the health checks".into(),
        Action::Confirm(slot) => format!("Confirm {slot}"),
        Action::Revert(slot) => format!("Mark {slot} bad"),
        Action::Disarm(slot) => format!("Disarm {slot}"),
        Action::Record(outcome) => {
            let verdict = serde_json::to_value(outcome.verdict).unwrap();
            let why = outcome.why.as_ref().map(|why| format!(", `{}`", why.reason)).unwrap_or_default();
            format!("Record {}{why}", verdict.as_str().unwrap())
        }
        Action::Wait(_) => "Wait".into(),
    }
}

fn section(name: &str, phase: &Phase) -> String {
    let state = State { phase: phase.clone(), ..State::default() };
    let policy = Policy::default();
    let mut text = format!("\n## {name}\n\n| event | next state | action |\n|---|---|---|\n");
    let mut ignored = Vec::new();
    let started = starts()
        .into_iter()
        .map(|(words, seen)| (format!("Started: {words}"), State::default(), Event::Started(Box::new(seen))));
    let ordered =
        orders(phase).into_iter().map(|(words, event)| (format!("Order: {words}"), State::default(), event));
    let results = results().into_iter().map(|(words, event)| {
        // A record is only awaited where an outcome is due.
        let outcome = Outcome {
            seq: 0,
            verdict: Verdict::Returned,
            release: None,
            slot: Slot::B,
            why: None,
            left: None,
        };
        let recording = matches!(event, Event::Recorded | Event::RecordFailed(_))
            && matches!(phase, Phase::Idle | Phase::Staged { .. } | Phase::RollingBack { .. });
        let last = recording.then_some(outcome);
        (words.to_owned(), State { unrecorded: recording, last, ..State::default() }, event)
    });
    for (words, extra, event) in started.chain(ordered).chain(results) {
        let state = State { phase: state.phase.clone(), ..extra };
        let (next, action) = step(&state, event, &policy);
        if action == Action::Ignored {
            assert_eq!(next, state, "{name}, {words}: an ignored event changes nothing");
            ignored.push(words);
            continue;
        }
        let (next, action) = (phase_in_words(&next.phase), action_in_words(&action));
        text.push_str(&format!("| {words} | {next} | {action} |\n"));
    }
    text.push_str(&format!("\nIgnored here: {}.\n", ignored.join(", ")));
    text
}

#[test]
fn the_page_shows_every_state_with_every_kind_of_event() {
    let sections: String = phases().iter().map(|(name, phase)| section(name, phase)).collect();
    crate::golden::compare("lifecycle.md", &format!("{INTRO}{sections}"));
}

fn state(phase: Phase) -> State {
    State { phase, ..State::default() }
}

fn start(state: &State, seen: &Observation) -> (State, Action) {
    step(state, Event::Started(Box::new(seen.clone())), &Policy::default())
}

#[test]
fn an_outcome_that_a_power_cut_kept_from_the_facts_is_recorded_at_the_next_start() {
    let on_trial = phases().remove(4).1;
    let (judged, _) = step(&state(on_trial), Event::Confirmed, &Policy::default());
    let mut seen = seen(Slot::B, SlotBoot::Good, SlotBoot::Good);
    let (_, action) = start(&judged, &seen);
    assert_eq!(action_in_words(&action), "Record confirmed");
    seen.known.next_seq = 1;
    let (settled, action) = start(&judged, &seen);
    assert_eq!((settled.unrecorded, action), (false, Action::Nothing), "it is among the facts already");
}

#[test]
fn an_outcome_that_the_facts_lost_is_recorded_again_so_that_a_failure_stays_known() {
    let failed = Reason::HealthFailed.into();
    let (judged, _) = step(&state(phases().remove(4).1), Event::HealthFailed(failed), &Policy::default());
    let (judged, _) = step(&judged, Event::Recorded, &Policy::default());
    let back = State { phase: Phase::Idle, ..judged };
    let mut seen = seen(Slot::A, SlotBoot::Good, SlotBoot::Bad);
    seen.known.next_seq = 1;
    assert_eq!(start(&back, &seen).1, Action::Nothing, "it is among the facts");
    // Both copies were unreadable: nothing is known any more.
    seen.known = Known { lost: true, ..Known::default() };
    let (again, action) = start(&back, &seen);
    assert_eq!(action_in_words(&action), "Record returned, `health-failed`");
    seen.known.learn(again.last.as_ref().unwrap());
    assert!(seen.known.quarantine.contains_key(&release("1.1", 1).digest));
}

#[test]
fn a_slot_that_cannot_be_left_is_not_restarted_for_ever() {
    let mut now = state(phases().remove(5).1);
    let mut reboots = 0;
    for boot in 0..10 {
        let mut seen = seen(Slot::B, SlotBoot::Good, SlotBoot::Bad);
        seen.now.boot_id = format!("boot {boot}");
        let (mut next, mut action) = start(&now, &seen);
        while let Some(event) = match &action {
            Action::Revert(_) => Some(Event::Reverted),
            Action::Record(_) => Some(Event::Recorded),
            _ => None,
        } {
            (next, action) = step(&next, event, &Policy::default());
        }
        reboots += u32::from(action == Action::Reboot);
        now = next;
    }
    assert_eq!(reboots, 2, "boots 2 and 3; boot 1 was the trial's own");
    assert_eq!(now.last.unwrap().verdict, Verdict::Stranded);
}

#[test]
fn power_cuts_on_the_way_out_are_no_attempts_to_leave() {
    let on_trial = phases().remove(4).1;
    let (mut now, _) =
        step(&state(on_trial), Event::HealthFailed(Reason::HealthFailed.into()), &Policy::default());
    for boot in 0..10 {
        let mut seen = seen(Slot::B, SlotBoot::Good, trial(1, 2));
        seen.now.boot_id = format!("boot {boot}");
        // The power goes before the slot is marked bad.
        let (next, action) = start(&now, &seen);
        assert_eq!(action_in_words(&action), "Record returned, `health-failed`", "boot {boot}");
        now = next;
    }
}

#[test]
fn an_unfit_slot_with_nowhere_to_return_to_stays_up_and_is_checked_again_at_the_next_start() {
    let seen = seen(Slot::B, SlotBoot::Bad, trial(1, 2));
    let (on_trial, _) = start(&State::default(), &seen);
    let (stranded, action) =
        step(&on_trial, Event::HealthFailed(Reason::HealthFailed.into()), &Policy::default());
    assert_eq!(action_in_words(&action), "Record stranded, `health-failed`");
    let (stranded, action) = step(&stranded, Event::Recorded, &Policy::default());
    assert_eq!(action, Action::Nothing);
    assert!(matches!(start(&stranded, &seen).1, Action::RunHealth { .. }));
}

#[test]
fn a_trial_that_is_still_unconfirmed_at_its_deadline_returns_whoever_looks() {
    let mut seen = seen(Slot::B, SlotBoot::Good, trial(2, 1));
    let (on_trial, action) = start(&State::default(), &seen);
    assert_eq!(action, Action::RunHealth { deadline_uptime_secs: 700 });
    seen.now.uptime_secs = 650;
    assert_eq!(start(&on_trial, &seen).1, action, "a restarted updater gets no new deadline");
    seen.now.uptime_secs = 700;
    assert_eq!(action_in_words(&start(&on_trial, &seen).1), "Record returned, `deadline-missed`");
    seen.now = Moment { boot_id: "another".into(), ..seen.now };
    assert!(matches!(start(&on_trial, &seen).1, Action::RunHealth { .. }), "each start has its own");
}

#[test]
fn an_inconclusive_trial_is_repeated_twice_with_a_back_off_that_a_wrong_clock_cannot_stretch() {
    let policy = Policy::default();
    let mut waits = Vec::new();
    let mut now = state(phases().remove(3).1);
    let mut seen = seen(Slot::A, SlotBoot::Good, SlotBoot::Bad);
    seen.known.marks.insert("t1".into(), (Slot::B, Stage::BootCheck));
    loop {
        seen.now = Moment { boot_id: format!("boot {}", waits.len()), ..moment("") };
        let (next, _) = start(&now, &seen);
        let Phase::Staged { release, slot, purpose, attempts, not_before_unix_secs, .. } = next.phase.clone()
        else {
            assert_eq!(next.last.unwrap().why.unwrap().reason, Reason::Inconclusive);
            break;
        };
        waits.push(not_before_unix_secs.unwrap() - seen.now.unix_secs);
        let (next, wait) = step(&next, Event::Recorded, &policy);
        assert!(matches!(wait, Action::Wait(Until::UnixSecs(_))));
        seen.known.next_seq = next.next_seq;
        assert_eq!(start(&next, &seen).1, wait, "not yet");
        let mut at_1970 = seen.clone();
        at_1970.now.unix_secs = 0;
        assert!(matches!(start(&next, &at_1970).1, Action::Arm { .. }), "the clock went backwards");
        now = state(Phase::Armed { release, slot, purpose, attempts, since: moment("before") });
    }
    assert_eq!(waits, [3600, 7200]);
}

#[test]
fn what_a_trial_died_of_is_read_from_its_marks() {
    use Reason::*;
    use Stage::{BootCheck, DeadlinePassed, Initramfs, RootMounted};
    for (marks, reason, why) in [
        (&[][..], DiedEarly, "three starts, no mark"),
        (&[Initramfs; 3][..], DiedInInitramfs, "always there"),
        (&[RootMounted; 3], DiedAfterRoot, "always there"),
        (&[BootCheck; 3], DiedInBootCheck, "always there"),
        (&[RootMounted; 2], Inconclusive, "one start ended elsewhere, before its mark"),
        (&[RootMounted, BootCheck, RootMounted], Inconclusive, "as power cuts do"),
        (&[RootMounted, Stage::Panicked], Panicked, "a crash record is believed at once"),
        (&[RootMounted, DeadlinePassed], DeadlineMissed, "ended on purpose"),
        (&[Stage::WatchdogReset], WatchdogReset, "the watchdog's word is believed at once"),
        (&[Stage::WatchdogReset, Stage::Panicked], Panicked, "a panic that the watchdog ended"),
        (&[DeadlinePassed, Stage::WatchdogReset], DeadlineMissed, "a restart that the watchdog ended"),
    ] {
        let mut seen = seen(Slot::A, SlotBoot::Good, SlotBoot::Bad);
        for (at, stage) in marks.iter().enumerate() {
            seen.known.marks.insert(format!("t{at}"), (Slot::B, *stage));
        }
        let armed = state(phases().remove(3).1);
        let found = |seen: &Observation| start(&armed, seen).0.last.unwrap().why.unwrap().reason;
        assert_eq!(found(&seen), reason, "{why}");
        seen.known.lost = true;
        assert!(marks.len() > 2 || found(&seen) != DiedEarly, "lost facts prove nothing");
    }
}

#[test]
fn a_rollback_holds_what_was_left_until_it_is_named_or_a_newer_one_is_confirmed() {
    let mut known = Known::default();
    let outcome = |verdict, version: &str, left: Option<Release>| Outcome {
        seq: 0,
        verdict,
        release: Some(release(version, 1)),
        slot: Slot::A,
        why: None,
        left,
    };
    known.learn(&outcome(Verdict::RolledBack, "1.0", Some(release("1.2", 1))));
    assert_eq!(known.hold.as_ref().unwrap().release.version, "1.2");
    known.learn(&outcome(Verdict::Confirmed, "1.1", None));
    assert!(known.hold.is_some(), "1.1 is older than what is held");
    known.learn(&outcome(Verdict::Confirmed, "1.3", None));
    assert!(known.hold.is_none());
}
