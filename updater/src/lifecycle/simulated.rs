//! The step function against a simulated machine: any order, any release, power cuts between any two effects, lost
//! state files. The firmware is `BootState::spend`; the durable facts are `Known::learn`.

use proptest::prelude::*;

use super::*;

/// What a release does when it is started.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fitness {
    Healthy,
    /// Its health checks fail.
    Unhealthy,
    /// Every start ends at this stage (`None`: before any mark).
    Dies(Option<Stage>),
    /// The loader skips it without using up a try.
    Unloadable,
}

const RELEASES: [(&str, u64, Fitness); 7] = [
    ("1.0", 1, Fitness::Healthy),
    ("1.1", 1, Fitness::Healthy),
    ("1.2", 2, Fitness::Unhealthy),
    ("1.3", 2, Fitness::Dies(None)),
    ("1.4", 2, Fitness::Dies(Some(Stage::RootMounted))),
    ("1.5", 3, Fitness::Unloadable),
    ("1.6", 3, Fitness::Healthy),
];

/// Boots and steps within which every disturbance must have settled.
const BOOTS_MAX: u32 = 12;
const STEPS_MAX: u32 = 120;

fn release(at: usize) -> Release {
    let (version, security_version, _) = RELEASES[at];
    Release { digest: Digest::of(version.as_bytes()), version: version.into(), security_version }
}

fn fitness(release: &Release) -> Fitness {
    RELEASES.iter().find(|(version, ..)| *version == release.version).unwrap().2
}

/// Where the power goes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cut {
    BeforeStoring,
    AfterStoring,
    AfterActing,
    AfterActingAndTheStateIsLost,
}

#[derive(Debug, Clone)]
enum Doing {
    Update { at: usize, named: bool, below_floor: bool, goal: Goal },
    Rollback { below_floor: bool },
    Cancel,
    Look,
    Restart,
    Pass(u64),
}

struct World {
    boot: BootState,
    slots: [Option<Release>; 2],
    running: Slot,
    boots: u32,
    uptime_secs: u64,
    unix_secs: u64,
    state: State,
    known: Known,
    policy: Policy,
    cuts: Vec<Option<Cut>>,
    /// Trials that the firmware began, per release.
    tried: BTreeMap<String, u32>,
    /// Releases with an inconclusive trial: another order may end the repetitions before a verdict.
    inconclusive: BTreeSet<String>,
}

impl World {
    fn new(policy: Policy, mut cuts: Vec<Option<Cut>>) -> World {
        cuts.reverse();
        World {
            boot: BootState::EMPTY.confirm(Slot::A),
            slots: [Some(release(0)), None],
            running: Slot::A,
            boots: 0,
            uptime_secs: 10,
            unix_secs: 1_800_000_000,
            state: State::default(),
            known: Known::default(),
            policy,
            cuts,
            tried: BTreeMap::new(),
            inconclusive: BTreeSet::new(),
        }
    }

    fn seen(&self) -> Box<Observation> {
        let boot_id = format!("boot-{}", self.boots);
        Box::new(Observation {
            running: self.running,
            boot: self.boot,
            slots: self.slots.clone(),
            now: Moment { boot_id, uptime_secs: self.uptime_secs, unix_secs: self.unix_secs },
            known: self.known.clone(),
        })
    }

    /// The firmware starts what the boot record says, again and again until something stays up.
    fn start(&mut self) {
        for _ in 0..BOOTS_MAX {
            self.boots += 1;
            self.uptime_secs = 5;
            self.unix_secs += 60;
            let chosen = self.boot.choose().unwrap();
            let on_trial = matches!(self.boot.slot(chosen), SlotBoot::Trial { .. });
            let release = self.slots[chosen.index()].clone().unwrap();
            if on_trial && fitness(&release) == Fitness::Unloadable {
                self.running = chosen.other();
                return;
            }
            self.boot = self.boot.spend();
            if on_trial {
                *self.tried.entry(release.version.clone()).or_default() += 1;
            }
            let Fitness::Dies(stage) = fitness(&release) else {
                self.running = chosen;
                return;
            };
            if let Some(stage) = stage {
                self.known.marks.insert(format!("boot-{}", self.boots), (chosen, stage));
            }
        }
        panic!("the machine never stays up: {:?}", self.boot);
    }

    /// Feeds an event and all that follows from it. False when the power went.
    fn follow(&mut self, mut event: Event) -> bool {
        for _ in 0..STEPS_MAX {
            let (next, action) = step(&self.state, event.clone(), &self.policy);
            self.check(&event, &action);
            let cut = self.cuts.pop().flatten();
            if cut != Some(Cut::BeforeStoring) {
                self.state = next;
            }
            if matches!(cut, Some(Cut::BeforeStoring | Cut::AfterStoring)) {
                return false;
            }
            let result = self.act(&action);
            match (cut, result) {
                (Some(cut), _) => {
                    // Half-written: the passport comes last.
                    if let Action::Install { slot, .. } = &action {
                        self.slots[slot.index()] = None;
                    }
                    if cut == Cut::AfterActingAndTheStateIsLost {
                        self.state = State::default();
                    }
                    return false;
                }
                (None, Some(result)) => event = result,
                (None, None) => return true,
            }
        }
        panic!("no end after {STEPS_MAX} steps: {:?}", self.state);
    }

    /// Does what an action says; the event that follows, if any.
    fn act(&mut self, action: &Action) -> Option<Event> {
        match action {
            Action::Install { release, slot } => {
                self.boot = self.boot.forget(*slot);
                self.slots[slot.index()] = Some(release.clone());
                Some(Event::Installed)
            }
            Action::Arm { slot, tries, release } => {
                assert_eq!(self.slots[slot.index()].as_ref(), Some(release));
                self.boot = self.boot.arm(*slot, *tries);
                Some(Event::Armed(self.seen().now))
            }
            Action::Reboot => {
                self.start();
                Some(Event::Started(self.seen()))
            }
            Action::RunHealth { .. } => {
                Some(match fitness(self.slots[self.running.index()].as_ref().unwrap()) {
                    Fitness::Unhealthy => Event::HealthFailed(Reason::HealthFailed.into()),
                    _ => Event::HealthPassed,
                })
            }
            Action::Confirm(slot) => {
                self.boot = self.boot.confirm(*slot);
                Some(Event::Confirmed)
            }
            Action::Revert(slot) => {
                self.boot = self.boot.revert(*slot);
                Some(Event::Reverted)
            }
            Action::Disarm(slot) => {
                self.boot = self.boot.forget(*slot);
                Some(Event::Disarmed)
            }
            Action::Record(outcome) => {
                if let (Verdict::Inconclusive, Some(release)) = (outcome.verdict, &outcome.release) {
                    self.inconclusive.insert(release.version.clone());
                }
                if outcome.seq >= self.known.next_seq {
                    self.known.learn(outcome);
                }
                Some(Event::Recorded)
            }
            Action::Nothing | Action::Ignored | Action::Refuse(_) | Action::Wait(_) => None,
        }
    }

    /// The promises that hold for every single action.
    fn check(&self, event: &Event, action: &Action) {
        let (running, other) = (self.running, self.running.other());
        match action {
            Action::Install { release, slot } | Action::Arm { release, slot, .. } => {
                assert_eq!(*slot, other, "RunningUntouched");
                assert_eq!(self.boot.slot(running), SlotBoot::Good, "FallbackKept");
                assert!(
                    !self.known.quarantine.contains_key(&release.digest),
                    "TriedOnce: {}",
                    release.version
                );
            }
            Action::Confirm(slot) => {
                assert_eq!((*slot, event), (running, &Event::HealthPassed), "HealthBeforeConfirm");
            }
            Action::Revert(slot) => {
                assert_eq!(*slot, running);
                assert_eq!(self.boot.slot(other), SlotBoot::Good, "there is somewhere to return to");
            }
            Action::Disarm(slot) => assert_eq!(*slot, other),
            _ => {}
        }
    }

    /// Lets the machine settle: starts after a cut, looks again after a wait.
    fn settle(&mut self, mut up: bool) {
        let boots = self.boots;
        for _ in 0..STEPS_MAX {
            if !up {
                self.start();
            }
            up = self.follow(Event::Started(self.seen()));
            if up {
                assert!(self.boots <= boots + 4 * BOOTS_MAX, "Settles: {} boots", self.boots - boots);
                return;
            }
        }
        panic!("does not settle: {:?}", self.state);
    }

    fn doing(&mut self, doing: &Doing) {
        self.uptime_secs += 30;
        self.unix_secs += 30;
        let up = match doing {
            Doing::Update { at, named, below_floor, goal } => {
                let (named, below_floor, goal) = (*named, *below_floor, *goal);
                let order = Order { candidate: release(*at), named, below_floor, goal };
                self.follow(Event::UpdateOrdered(Box::new(order), self.seen()))
            }
            Doing::Rollback { below_floor } => {
                self.follow(Event::RollbackOrdered { below_floor: *below_floor, seen: self.seen() })
            }
            Doing::Cancel => self.follow(Event::Cancelled),
            Doing::Look => true,
            Doing::Restart => false,
            Doing::Pass(secs) => {
                self.uptime_secs += secs;
                self.unix_secs += secs;
                true
            }
        };
        self.settle(up);
    }

    /// What holds whenever the machine has settled.
    fn settled(&mut self) {
        assert_eq!(self.boot.slot(self.running), SlotBoot::Good, "AlwaysBootable: {:?}", self.state);
        let running = self.slots[self.running.index()].clone().unwrap();
        assert_eq!(fitness(&running), Fitness::Healthy, "{} runs and is confirmed", running.version);
        assert!(
            !matches!(self.boot.slot(self.running.other()), SlotBoot::Trial { .. }),
            "settled, and an unplanned restart would start a trial: {:?}",
            self.state
        );
        assert!(!self.state.unrecorded, "an outcome is still unrecorded");
        for at in 0..RELEASES.len() {
            let release = release(at);
            if self.tried.contains_key(&release.version)
                && fitness(&release) != Fitness::Healthy
                && !self.inconclusive.contains(&release.version)
            {
                let quarantined = self.known.quarantine.contains_key(&release.digest);
                assert!(quarantined, "TriedOnce: {} was tried: {:?}", release.version, self.state);
            }
        }
        let (again, action) = step(&self.state, Event::Started(self.seen()), &self.policy);
        assert!(matches!(action, Action::Nothing | Action::Wait(_)), "not steady: {action:?}");
        assert_eq!(again, self.state, "steady");
    }
}

fn doing() -> impl Strategy<Value = Doing> {
    let goal = prop_oneof![4 => Just(Goal::Trial), 1 => Just(Goal::Stage)];
    prop_oneof![
        6 => (0..RELEASES.len(), any::<bool>(), any::<bool>(), goal)
            .prop_map(|(at, named, below_floor, goal)| Doing::Update { at, named, below_floor, goal }),
        2 => any::<bool>().prop_map(|below_floor| Doing::Rollback { below_floor }),
        1 => Just(Doing::Cancel),
        1 => Just(Doing::Look),
        2 => Just(Doing::Restart),
        1 => prop_oneof![Just(Doing::Pass(4000)), Just(Doing::Pass(100_000))],
    ]
}

fn cut() -> impl Strategy<Value = Option<Cut>> {
    use Cut::*;
    prop_oneof![
        8 => Just(None),
        1 => prop_oneof![
            Just(Some(BeforeStoring)),
            Just(Some(AfterStoring)),
            Just(Some(AfterActing)),
            Just(Some(AfterActingAndTheStateIsLost)),
        ],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_ordered_and_whenever_the_power_goes_the_machine_settles_on_a_healthy_slot(
        doings in prop::collection::vec(doing(), 1..12),
        cuts in prop::collection::vec(cut(), 0..60),
        carry_on in any::<bool>(),
        tries in 1_u8..5,
    ) {
        let mut world = World::new(Policy { carry_on, tries, ..Policy::default() }, cuts);
        for doing in &doings {
            world.doing(doing);
            world.settled();
        }
        // One trial and two repetitions of `tries` starts each; a lost state file may cost one more round.
        for (version, tried) in &world.tried {
            let (_, _, fitness) = RELEASES.iter().find(|(known, ..)| known == version).unwrap();
            if *fitness != Fitness::Healthy {
                prop_assert!(*tried <= 4 * u32::from(tries) + 60, "{version} was started {tried} times");
            }
        }
    }

    #[test]
    fn any_event_in_any_state_is_answered_without_breaking_a_promise(
        state in state(),
        seen in observation(),
        event in 0_usize..20,
        carry_on in any::<bool>(),
    ) {
        let policy = Policy { carry_on, ..Policy::default() };
        let event = any_event(event, &seen);
        let (next, action) = step(&state, event, &policy);
        prop_assert!(next.next_seq >= state.next_seq);
        if let Action::Install { slot, .. } | Action::Arm { slot, .. } = &action
            && !matches!(state.phase, Phase::Installing { .. })
        {
            prop_assert_eq!(seen.boot.slot(seen.running), SlotBoot::Good, "FallbackKept");
            prop_assert_eq!(*slot, seen.running.other(), "RunningUntouched");
        }
        if matches!(action, Action::Refuse(_)) {
            prop_assert_eq!(next, state, "a refusal changes nothing");
        }
    }
}

fn some_release() -> impl Strategy<Value = Release> {
    (0..RELEASES.len()).prop_map(release)
}

fn slot() -> impl Strategy<Value = Slot> {
    prop_oneof![Just(Slot::A), Just(Slot::B)]
}

fn moment() -> impl Strategy<Value = Moment> {
    ("[ab]", 0_u64..5000, 0_u64..5000).prop_map(|(boot_id, uptime_secs, unix_secs)| Moment {
        boot_id,
        uptime_secs,
        unix_secs,
    })
}

fn phase() -> impl Strategy<Value = Phase> {
    (0..6, some_release(), slot(), moment(), 0_u8..4, any::<bool>(), any::<bool>()).prop_map(
        |(kind, release, slot, since, attempts, trial, way_back)| {
            let purpose = Purpose::Update;
            let goal = if trial { Goal::Trial } else { Goal::Stage };
            let not_before_unix_secs = way_back.then_some(since.unix_secs);
            match kind {
                0 => Phase::Idle,
                1 => Phase::Installing { release, slot, purpose, goal },
                2 => Phase::Staged { release, slot, purpose, goal, attempts, not_before_unix_secs },
                3 => Phase::Armed { release, slot, purpose, attempts, since },
                4 => Phase::OnTrial { release: Some(release), slot, purpose, attempts, since, way_back },
                _ => Phase::RollingBack {
                    release: Some(release),
                    slot,
                    boot_id: since.boot_id,
                    boots: attempts,
                    tried: way_back,
                },
            }
        },
    )
}

fn state() -> impl Strategy<Value = State> {
    (phase(), any::<bool>(), some_release(), slot()).prop_map(|(phase, unrecorded, release, slot)| {
        let (verdict, why, left) = (Verdict::Inconclusive, None, None);
        let last = unrecorded.then_some(Outcome { seq: 3, verdict, release: Some(release), slot, why, left });
        State { phase, last, unrecorded, next_seq: 4 }
    })
}

fn slot_boot() -> impl Strategy<Value = SlotBoot> {
    prop_oneof![
        Just(SlotBoot::Empty),
        Just(SlotBoot::Good),
        Just(SlotBoot::Bad),
        (1_u8..4, 0_u8..3).prop_map(|(tries_left, tries_done)| SlotBoot::Trial { tries_left, tries_done }),
    ]
}

fn observation() -> impl Strategy<Value = Observation> {
    let content = || prop::option::of(some_release());
    (slot(), [slot_boot(), slot_boot()], [content(), content()], moment(), prop::option::of(some_release()))
        .prop_map(|(running, slots, content, now, bad)| {
            let quarantined = |release: Release| {
                (release.digest, Quarantined { version: release.version, why: Reason::Panicked.into() })
            };
            let known = Known { quarantine: bad.map(quarantined).into_iter().collect(), ..Known::default() };
            let boot = BootState { slots, wanted: running }.normalise();
            Observation { running, boot, slots: content, now, known }
        })
}

fn any_event(at: usize, seen: &Observation) -> Event {
    let why = || Why::from(Reason::WriteFailed);
    let order = |named| Order { candidate: release(1), named, below_floor: false, goal: Goal::Trial };
    let events = [
        Event::Started(Box::new(seen.clone())),
        Event::UpdateOrdered(Box::new(order(false)), Box::new(seen.clone())),
        Event::UpdateOrdered(Box::new(order(true)), Box::new(seen.clone())),
        Event::RollbackOrdered { below_floor: false, seen: Box::new(seen.clone()) },
        Event::Cancelled,
        Event::Installed,
        Event::InstallFailed(why()),
        Event::Armed(seen.now.clone()),
        Event::ArmFailed(why()),
        Event::RebootBegun,
        Event::RebootFailed(why()),
        Event::DeadlinePassed,
        Event::HealthPassed,
        Event::HealthFailed(why()),
        Event::Confirmed,
        Event::ConfirmFailed(why()),
        Event::Reverted,
        Event::RevertFailed(why()),
        Event::Disarmed,
        Event::Recorded,
    ];
    events[at].clone()
}
