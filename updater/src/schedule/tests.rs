//! Windows over ten years of changed clocks, composed gates, and waits; the windows against a reader of clocks on the wall that
//! knows nothing of offsets.

use std::collections::BTreeSet;

use jiff::civil::{DateTime, Time, Weekday, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use proptest::prelude::*;
use proptest::sample::select;

use super::window;
use super::*;
use crate::lifecycle::{Hold, Release};

/// Clocks are changed by an hour (in spring at night and at midnight), by half an hour, by an hour twice around Ramadan, and
/// from an offset with 45 minutes.
const ZONES: [&str; 5] =
    ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Chatham"];

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).expect("time zones: apt-get install tzdata")
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn window_on(days: Days, minute_of_day: i16, minutes: i64) -> Window {
    let start = Time::midnight().checked_add(i64::from(minute_of_day).minutes()).unwrap();
    Window::new(days, start, SignedDuration::from_mins(minutes)).unwrap()
}

fn some_days() -> impl Strategy<Value = (Vec<Weekday>, Days)> {
    (1_u8..128).prop_map(|bits| {
        let all = (0..7).filter(|day| bits & (1 << day) != 0);
        let days: Vec<Weekday> = all.map(|day| Weekday::from_monday_zero_offset(day).unwrap()).collect();
        let set = Days::of(days.iter().copied()).unwrap();
        (days, set)
    })
}

/// A clock on a wall, read once a minute for some days around a change: the oracle. It is asked for the time only, and never for
/// the moment of a time, which is what the windows are made of.
struct WallClock {
    first: Timestamp,
    shows: Vec<DateTime>,
}

const READ_DAYS_BEFORE: i64 = 4;
const READ_DAYS: i64 = 7;

impl WallClock {
    fn around(change: Timestamp, zone: &TimeZone) -> WallClock {
        let first = change - SignedDuration::from_hours(24 * READ_DAYS_BEFORE);
        let shows = (0..24 * 60 * READ_DAYS)
            .map(|minute| zone.to_datetime(first + SignedDuration::from_mins(minute)))
            .collect();
        WallClock { first, shows }
    }

    /// The minutes at which a window opens: each day at the last minute that shows its start, or, where none does, at the first
    /// that shows more. The days at both ends of what was read are left out.
    fn openings(&self, days: &[Weekday], start: Time) -> Vec<usize> {
        let dates: BTreeSet<_> = self.shows.iter().map(|shown| shown.date()).collect();
        let inner = dates.iter().skip(1).take(dates.len() - 2);
        inner
            .filter(|date| days.contains(&date.weekday()))
            .filter_map(|date| {
                let wanted = date.to_datetime(start);
                let shown = self.shows.iter().rposition(|shown| *shown == wanted);
                shown.or_else(|| self.shows.iter().position(|shown| *shown > wanted))
            })
            .collect()
    }

    fn moment(&self, minute: usize) -> Timestamp {
        self.first + SignedDuration::from_mins(minute as i64)
    }
}

/// Every moment of ten years at which the clocks of a zone are changed.
fn changes(zone: &TimeZone) -> Vec<Timestamp> {
    let (from, to) = (at("2020-01-01T00:00Z"), at("2030-01-01T00:00Z"));
    let all = zone.following(from).map(|change| change.timestamp());
    all.take_while(|change| *change < to).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Around each change: open exactly when a reader of the clock on the wall says so, to the second, and the answer's `until`
    /// is the next moment at which that reader says otherwise.
    #[test]
    fn a_window_is_open_when_the_clock_on_the_wall_says_so(
        name in select(&ZONES[..]),
        pick in any::<prop::sample::Index>(),
        // Half of the starts lie in the hours in which clocks are changed.
        windows in prop::collection::vec((some_days(), prop_oneof![0_i16..1440, 0_i16..240], 1_i64..36 * 60), 1..=3),
        seconds in prop::collection::vec(-36_i64 * 3600..36 * 3600, 24),
    ) {
        let zone = zone(name);
        let all = changes(&zone);
        let change = *pick.get(&all);
        let wall = WallClock::around(change, &zone);
        let mut open = vec![false; wall.shows.len()];
        for ((days, _), start, length) in &windows {
            let start = Time::midnight().checked_add(i64::from(*start).minutes()).unwrap();
            for opens in wall.openings(days, start) {
                open.iter_mut().skip(opens).take(*length as usize).for_each(|minute| *minute = true);
            }
        }
        let windows: Vec<Window> =
            windows.iter().map(|((_, days), start, length)| window_on(*days, *start, *length)).collect();
        let minute_of = |moment: Timestamp| moment.duration_since(wall.first).as_secs().div_euclid(60) as usize;
        let (first, last) = (minute_of(change) - 36 * 60, minute_of(change) + 36 * 60);
        let edges: Vec<usize> = (first..last).filter(|minute| open[*minute] != open[minute - 1]).collect();
        let near = edges.iter().flat_map(|edge| {
            [wall.moment(*edge), wall.moment(*edge) - SignedDuration::from_secs(1)]
        });
        let random = seconds.iter().map(|seconds| change + SignedDuration::from_secs(*seconds));
        for moment in near.chain(random) {
            let answer = window::open(&windows, moment, &zone);
            let expected = open[minute_of(moment)];
            prop_assert_eq!(answer.is_ok(), expected, "at {} in {}", moment, name);
            let next = edges.iter().map(|edge| wall.moment(*edge)).find(|edge| *edge > moment);
            if let Some(next) = next {
                let until = answer.unwrap_or_else(|opens| opens.unwrap());
                prop_assert_eq!(until, next, "at {} in {}", moment, name);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_window_opens_within_eight_days_and_until_is_exact(
        name in select(&ZONES[..]),
        second in at("2020-01-01T00:00Z").as_second()..at("2030-01-01T00:00Z").as_second(),
        windows in prop::collection::vec((some_days(), 0_i16..1440, 1_i64..=7 * 24 * 60), 1..=3),
    ) {
        let zone = zone(name);
        let windows: Vec<Window> =
            windows.iter().map(|((_, days), start, length)| window_on(*days, *start, *length)).collect();
        let now = Timestamp::from_second(second).unwrap();
        let is_open = |moment| window::open(&windows, moment, &zone).is_ok();
        let second_before = |moment: Timestamp| moment - SignedDuration::from_secs(1);
        let ahead = now + SignedDuration::from_hours(8 * 24);
        match window::open(&windows, now, &zone) {
            Ok(until) => {
                prop_assert!(now < until && until <= ahead);
                prop_assert!(is_open(second_before(until)) && (until == ahead || !is_open(until)));
            }
            Err(until) => {
                let until = until.unwrap();
                prop_assert!(now < until && until <= ahead);
                prop_assert!(!is_open(second_before(until)) && is_open(until));
            }
        }
    }

    /// A gate alone, and all that are wanted together: open when each of them is; every closed one is named, and no other.
    #[test]
    fn gates_together_are_open_when_each_alone_is_and_every_closed_one_is_named(
        wanted in any::<[bool; 4]>(),
        closed in any::<[bool; 4]>(),
        unseen in any::<bool>(),
        unwanted in any::<[bool; 2]>(),
        metered in any::<bool>(),
        lock in select(vec![
            Lock::NotAsked, Lock::Held, Lock::Refused("full".into()), Lock::HolderUnknown("no answer".into()),
        ]),
    ) {
        let [window, sessions, inhibitors, locked] = wanted;
        let seen = Seen {
            sessions: seen_or_not(closed[1], unseen, Session { user: "ada".into() }),
            inhibitors: seen_or_not(closed[2], unseen, Inhibitor { who: "backup".into(), why: "runs".into() }),
            metered,
            lock: lock.clone(),
            hold: unwanted[0].then(|| Hold { release: release() }),
            pin: unwanted[1].then(|| Pin { version: "1.0".into() }),
        };
        let now = good(if closed[0] { "2026-11-28T12:00Z" } else { "2026-11-28T02:00Z" });
        let ask = |gates| next(&nightly(gates), now, &seen);
        let together = ask(Gates { window, sessions, inhibitors, lock: locked });
        let alone = [
            (true, Gates::default()),
            (window, Gates { window, ..Gates::default() }),
            (sessions, Gates { sessions, ..Gates::default() }),
            (inhibitors, Gates { inhibitors, ..Gates::default() }),
            (locked, Gates { lock: locked, ..Gates::default() }),
        ];
        let answers = alone.map(|(wanted, gates)| (wanted, ask(gates).reboot));
        let names = |gate: &Gate| gate.blocks().iter().map(Block::name).collect::<BTreeSet<_>>();
        let each: BTreeSet<_> =
            answers.iter().filter(|(wanted, _)| *wanted).flat_map(|(_, gate)| names(gate)).collect();
        prop_assert_eq!(names(&together.reboot), each.clone());
        let each_open = answers.iter().all(|(wanted, gate)| !wanted || gate.is_open());
        prop_assert_eq!(together.reboot.is_open(), each_open);

        let asks = locked && matches!(lock, Lock::NotAsked | Lock::HolderUnknown(_)) && each.is_empty();
        prop_assert_eq!(matches!(together.reboot, Gate::AskLock { .. }), asks, "asked for last");
        let may_hold = matches!(lock, Lock::Held | Lock::HolderUnknown(_));
        prop_assert_eq!(together.give_lock_back, may_hold && !together.reboot.is_open() && !asks || may_hold && !locked);
        prop_assert_eq!(names(&together.download).contains("metered"), metered);
    }

    /// Until `wake` the clock alone changes nothing; then it does.
    #[test]
    fn nothing_changes_before_wake_and_something_does_then(
        download in any::<bool>(),
        reboot in any::<bool>(),
        minute in 0_i64..7 * 24 * 60,
        parts in prop::collection::vec(0.0_f64..1.0, 4),
    ) {
        let gates = |window| Allow::Gates(Gates { window, ..Gates::default() });
        let schedule = Schedule { download: gates(download), reboot: gates(reboot), ..nightly(Gates::default()) };
        let now = good("2026-03-26T00:00Z");
        let at = |after| Now { shows: now.shows + after, ..now };
        let now = at(SignedDuration::from_mins(minute));
        let ask = |shows| next(&schedule, Now { shows, ..now }, &Seen::default());
        let answer = ask(now.shows);
        prop_assert_eq!(answer.wake().is_some(), download || reboot);
        if let Some(wake) = answer.wake() {
            let span = wake.duration_since(now.shows).as_secs_f64();
            for part in parts {
                prop_assert_eq!(&ask(now.shows + SignedDuration::from_secs_f64(span * part)), &answer);
            }
            prop_assert_ne!(ask(wake), answer);
        }
    }

    #[test]
    fn no_clock_makes_a_decision_fail(second in any::<i64>(), passed in any::<i64>()) {
        let moment = |second: i64| {
            let (min, max) = (Timestamp::MIN.as_second(), Timestamp::MAX.as_second());
            Timestamp::from_second(second.rem_euclid(max - min) + min).unwrap()
        };
        for shows in [moment(second), Timestamp::MIN, Timestamp::MAX, Timestamp::UNIX_EPOCH] {
            let now = Now { shows, passed: moment(passed) };
            let schedule = nightly(Gates { window: true, ..Gates::default() });
            next(&schedule, now, &Seen::default());
            next_check(&schedule, Some(shows), now.passed, moment(passed), Seed::new("m", 1));
        }
    }
}

fn seen_or_not<T>(there: bool, unseen: bool, one: T) -> Observed<Vec<T>> {
    match (there, unseen) {
        (false, _) => Observed::Seen(Vec::new()),
        (true, false) => Observed::Seen(vec![one]),
        (true, true) => Observed::Unseen("nobody to ask".into()),
    }
}

fn release() -> Release {
    Release { digest: crate::digest::Digest::of(b"1.1"), version: "1.1".into(), security_version: 0 }
}

fn good(shows: &str) -> Now {
    Now { shows: at(shows), passed: at("2026-01-01T00:00Z") }
}

/// Each night in Berlin from 02:30 for two hours; fetched at any time.
fn nightly(reboot: Gates) -> Schedule {
    Schedule {
        check: SignedDuration::from_hours(6),
        jitter: SignedDuration::from_mins(30),
        download: Allow::Gates(Gates::default()),
        reboot: Allow::Gates(reboot),
        metered: Metered::Wait,
        zone: Zone::Known(zone("Europe/Berlin")),
        windows: vec![window_on(Days::EVERY, 150, 120)],
    }
}

/// Each day of two years opens a window exactly once, whatever is done to the clocks on it.
#[test]
fn no_day_is_lost_and_none_counts_twice() {
    for (name, minute) in ZONES.iter().zip([150, 90, 135, 155, 165]) {
        let (zone, windows) = (zone(name), [window_on(Days::EVERY, minute, 5)]);
        let new_year = |year: i16| date(year, 1, 1).to_zoned(zone.clone()).unwrap().timestamp();
        let (mut now, end) = (new_year(2024), new_year(2026));
        let mut opened = 0;
        while now < end {
            match window::open(&windows, now, &zone) {
                Ok(until) => now = until,
                Err(opens) => (now, opened) = (opens.unwrap(), opened + 1),
            }
        }
        // The last one is that of the new year's first day.
        assert_eq!(opened, 366 + 365 + 1, "{name}");
    }
}

/// What a window does on the days that are not like others.
#[test]
fn days_on_which_clocks_are_changed() {
    let (every, sunday) = (Days::EVERY, Days::of([Weekday::Sunday]).unwrap());
    let friday = Days::of([Weekday::Friday]).unwrap();
    for (why, name, days, start, minutes, opens, closes) in [
        ("a plain day", "Europe/Berlin", every, 150, 120, "2026-03-28T01:30Z", "2026-03-28T03:30Z"),
        // 02:00 to 03:00 does not exist: open at 03:00, the moment of the leap.
        ("a start leapt over", "Europe/Berlin", sunday, 150, 120, "2026-03-29T01:00Z", "2026-03-29T03:00Z"),
        (
            "a start at the leap's beginning",
            "Europe/Berlin",
            sunday,
            120,
            60,
            "2026-03-29T01:00Z",
            "2026-03-29T02:00Z",
        ),
        (
            "a start at the leap's end",
            "Europe/Berlin",
            sunday,
            180,
            60,
            "2026-03-29T01:00Z",
            "2026-03-29T02:00Z",
        ),
        // From 01:30 to 04:30 on the wall: two hours on a stopwatch.
        ("a leap while open", "Europe/Berlin", sunday, 90, 120, "2026-03-29T00:30Z", "2026-03-29T02:30Z"),
        // 02:30 comes at 00:30Z and at 01:30Z.
        ("a start shown twice", "Europe/Berlin", sunday, 150, 120, "2026-10-25T01:30Z", "2026-10-25T03:30Z"),
        (
            "the hour twice while open",
            "Europe/Berlin",
            sunday,
            90,
            120,
            "2026-10-24T23:30Z",
            "2026-10-25T01:30Z",
        ),
        ("across midnight", "Europe/Berlin", sunday, 1410, 120, "2026-11-29T22:30Z", "2026-11-30T00:30Z"),
        (
            "half an hour leapt over",
            "Australia/Lord_Howe",
            sunday,
            135,
            30,
            "2026-10-03T15:30Z",
            "2026-10-03T16:00Z",
        ),
        (
            "half an hour twice",
            "Australia/Lord_Howe",
            sunday,
            105,
            30,
            "2026-04-04T15:15Z",
            "2026-04-04T15:45Z",
        ),
        // Midnight itself is leapt over.
        ("midnight leapt over", "America/Sao_Paulo", sunday, 0, 60, "2018-11-04T03:00Z", "2018-11-04T04:00Z"),
        // 30 December 2011 was leapt over as a whole; its window opens as the 31st begins.
        ("a day leapt over", "Pacific/Apia", friday, 150, 60, "2011-12-30T10:00Z", "2011-12-30T11:00Z"),
        (
            "a quarter hour's offset",
            "Asia/Kathmandu",
            every,
            150,
            60,
            "2026-11-27T20:45Z",
            "2026-11-27T21:45Z",
        ),
        ("the second of its day", "UTC", every, 1439, 2, "2026-12-31T23:59Z", "2027-01-01T00:01Z"),
        ("a week", "UTC", sunday, 0, 7 * 24 * 60 - 1, "2026-11-29T00:00Z", "2026-12-05T23:59Z"),
    ] {
        let (zone, windows) = (zone(name), [window_on(days, start, minutes)]);
        let (opens, closes) = (at(opens), at(closes));
        let before = opens - SignedDuration::from_secs(1);
        assert_eq!(window::open(&windows, before, &zone), Err(Some(opens)), "{why}");
        assert_eq!(window::open(&windows, opens, &zone), Ok(closes), "{why}");
        assert!(window::open(&windows, closes, &zone).is_err(), "{why}");
    }
}

#[test]
fn windows_that_meet_or_overlap_are_one_and_a_week_on_end_is_asked_about_again() {
    let zone = zone("UTC");
    let open = |windows: &[Window], now| window::open(windows, at(now), &zone);
    let meet =
        [window_on(Days::EVERY, 60, 60), window_on(Days::EVERY, 120, 30), window_on(Days::EVERY, 140, 30)];
    assert_eq!(open(&meet, "2026-11-28T01:00Z"), Ok(at("2026-11-28T02:50Z")));
    let always = [window_on(Days::EVERY, 0, 24 * 60)];
    assert_eq!(open(&always, "2026-11-28T01:00Z"), Ok(at("2026-12-06T01:00Z")));
    assert_eq!(open(&[], "2026-11-28T01:00Z"), Err(None));
    assert!(Window::new(Days::EVERY, Time::midnight(), SignedDuration::ZERO).is_none());
    assert!(Window::new(Days::EVERY, Time::midnight(), LENGTH_MAX + SignedDuration::from_secs(1)).is_none());
    assert!(Days::of([]).is_none());
}

/// A clock that was not set yet: windows are closed with that reason; what needs no window goes on.
#[test]
fn a_clock_at_1970_closes_windows_and_nothing_else() {
    let now = Now { shows: at("1970-01-01T02:00Z"), passed: at("2026-01-01T00:00Z") };
    let answer = next(&nightly(Gates { window: true, ..Gates::default() }), now, &Seen::default());
    assert!(answer.download.is_open());
    assert_eq!((answer.reboot.blocks()[0].name(), answer.wake()), ("clock", None));
    assert!(next(&nightly(Gates::default()), now, &Seen::default()).reboot.is_open());
    let on_time = Now { passed: now.shows, ..now };
    assert!(
        next(&nightly(Gates { window: true, ..Gates::default() }), on_time, &Seen::default())
            .reboot
            .is_open()
    );
}

/// Names are for programs and never change; sentences are for people.
#[test]
fn every_block_has_a_name_and_a_sentence() {
    let everything = Gates { window: true, sessions: true, inhibitors: true, lock: true };
    let full = Seen {
        sessions: Observed::Seen(vec![Session { user: "ada".into() }, Session { user: "bob".into() }]),
        inhibitors: Observed::Seen(vec![Inhibitor { who: "backup".into(), why: "copying".into() }]),
        metered: true,
        lock: Lock::Refused("all 2 slots are taken".into()),
        hold: Some(Hold { release: release() }),
        pin: Some(Pin { version: "1.0".into() }),
    };
    let blind = Seen {
        sessions: Observed::Unseen("no logind".into()),
        inhibitors: Observed::Unseen("no logind".into()),
        ..Seen::default()
    };
    let told = |gate: &Gate| -> Vec<String> {
        gate.blocks().iter().map(|block| format!("{}: {block}", block.name())).collect()
    };
    let noon = good("2026-11-28T12:00Z");
    let answer = next(&nightly(everything), noon, &full);
    assert_eq!(
        told(&answer.reboot),
        [
            "window: no window is open; the next one opens on Sun 2026-11-29 02:30 CET",
            "sessions: logged in: ada, bob",
            "inhibitors: inhibited by backup (copying)",
            "held: 1.1 is held: an operator rolled back from it",
            "pinned: the machine is pinned to 1.0",
            "lock: it is not this machine's turn: all 2 slots are taken",
        ]
    );
    assert_eq!(told(&answer.download)[2], "metered: the link is metered");
    let answer = next(&nightly(everything), good("2026-11-28T02:00Z"), &blind);
    assert_eq!(
        told(&answer.reboot),
        [
            "sessions: it cannot be seen who is logged in: no logind",
            "inhibitors: it cannot be seen what inhibits a restart: no logind",
        ]
    );
    let unknown = Zone::Unknown { name: "Europe/Berln".into(), why: "no such file".into() };
    let lost = Schedule { zone: unknown, download: Allow::Manual, ..nightly(everything) };
    let answer = next(&lost, noon, &Seen::default());
    assert_eq!(
        told(&answer.reboot),
        [
            "time-zone: the time zone `Europe/Berln` is not known on this machine, so no window opens: no such file",
        ]
    );
    assert_eq!(told(&answer.download), ["manual: only an operator begins it"]);
    let early = Now { shows: at("1970-01-01T00:01Z"), passed: at("2026-01-01T00:00Z") };
    assert_eq!(
        told(&next(&nightly(everything), early, &Seen::default()).reboot),
        [
            "clock: the clock shows 1970-01-01 00:01, and 2026-01-01 00:00 has certainly passed: until it is set, no window \
         is known to be open",
        ]
    );
}

/// Each wait up to the bound is as likely as any other: over the machines of a fleet, and over the looks of one machine.
#[test]
fn jitter_is_spread_evenly_and_never_longer_than_its_bound() {
    const DRAWS: u64 = 20_000;
    const BUCKETS: usize = 20;
    let bound = SignedDuration::from_mins(30);
    let fleet = (0..DRAWS).map(|n| Seed::new(&format!("{n:032x}"), 7));
    let looks = (0..DRAWS).map(|n| Seed::new("0123456789abcdef0123456789abcdef", n));
    for seeds in [fleet.collect::<Vec<_>>(), looks.collect()] {
        let mut buckets = [0_f64; BUCKETS];
        for seed in seeds {
            let part = seed.part_of(bound);
            assert!(!part.is_negative() && part <= bound);
            let bucket = part.as_millis() * BUCKETS as i128 / (bound.as_millis() + 1);
            buckets[bucket as usize] += 1.0;
        }
        let expected = DRAWS as f64 / BUCKETS as f64;
        let chi_squared: f64 = buckets.iter().map(|count| (count - expected).powi(2) / expected).sum();
        // 19 degrees of freedom: evenly drawn numbers exceed 43.8 once in a thousand times. These are always the same.
        assert!(chi_squared < 43.8, "{chi_squared}: {buckets:?}");
    }
    assert_eq!(Seed::new("m", 1), Seed::new("m", 1));
    assert_eq!(Seed::new("m", 1).part_of(SignedDuration::ZERO), SignedDuration::ZERO);
    let ends: BTreeSet<_> =
        (0..100).map(|n| Seed::new("m", n).part_of(SignedDuration::from_millis(2))).collect();
    assert_eq!(ends.len(), 3, "0, 1 and 2 ms");
}

#[test]
fn the_next_look_is_neither_at_once_with_all_others_nor_put_off_by_a_wrong_clock() {
    let schedule = nightly(Gates::default());
    let seed = Seed::new("m", 3);
    let part = seed.part_of(schedule.jitter);
    for (why, last, started, now, expected) in [
        ("never looked", None, "2026-11-28T12:00Z", "2026-11-28T12:00Z", "2026-11-28T12:00Z"),
        ("it runs", Some("2026-11-28T13:00Z"), "2026-11-28T12:00Z", "2026-11-28T13:00Z", "2026-11-28T19:00Z"),
        (
            "was off for long",
            Some("2026-10-01T00:00Z"),
            "2026-11-28T12:00Z",
            "2026-11-28T12:00Z",
            "2026-11-28T12:00Z",
        ),
        (
            "was off for a minute",
            Some("2026-11-28T11:00Z"),
            "2026-11-28T12:00Z",
            "2026-11-28T12:00Z",
            "2026-11-28T17:00Z",
        ),
        (
            "the clock was put back",
            Some("2027-11-28T11:00Z"),
            "2026-11-28T12:00Z",
            "2026-11-28T13:00Z",
            "2026-11-28T12:00Z",
        ),
    ] {
        let next = next_check(&schedule, last.map(at), at(started), at(now), seed);
        assert_eq!(next, at(expected) + part, "{why}");
    }
    let (started, now) = (at("2027-11-28T12:00Z"), at("2026-11-28T13:00Z"));
    assert_eq!(
        next_check(&schedule, None, started, now, seed),
        now,
        "the clock was put back since the start"
    );
}
