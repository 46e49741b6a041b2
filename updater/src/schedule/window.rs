//! A window: the days, the local time at which it opens, and for how long.
//!
//! Not here: what is allowed in it. Rules, where clocks are put forward or back:
//! - each of its days opens it exactly once, so no day is lost and none counts twice;
//! - a start that the clock leaps over is the moment of the leap: the first at which the clock shows the start or later;
//! - a start that the clock shows twice is the second one: after the first, the clock would show an hour before the start
//!   once more while the window is open;
//! - the length is what passes on a stopwatch, whatever the clock on the wall does meanwhile.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp};

use super::Days;

/// The longest window: a week. What is longer is always open, and needs no window.
pub const LENGTH_MAX: SignedDuration = SignedDuration::from_hours(7 * 24);

/// How far ahead every opening is known: each day of the week comes again within a week, and the day more is for clocks that are
/// changed meanwhile.
const AHEAD: SignedDuration = SignedDuration::from_hours(8 * 24);

/// How many dates ahead are looked at for that: two more, as clocks have been put forward by a whole day (Samoa, 2011).
const AHEAD_DAYS: i32 = 10;

/// How many days back a window that is still open can have begun.
const BACK_DAYS: i32 = 9;

/// When something is allowed, week by week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    days: Days,
    start: Time,
    length: SignedDuration,
}

/// One time that a window is open: from `opens` to just before `closes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Opening {
    opens: Timestamp,
    closes: Timestamp,
}

impl Opening {
    fn holds(self, at: Timestamp) -> bool {
        self.opens <= at && at < self.closes
    }
}

impl Window {
    /// A window that opens on `days` at `start` for `length`; none when that is not above 0 and up to [`LENGTH_MAX`].
    pub fn new(days: Days, start: Time, length: SignedDuration) -> Option<Window> {
        (length.is_positive() && length <= LENGTH_MAX).then_some(Window { days, start, length })
    }

    fn openings(&self, around: Timestamp, zone: &TimeZone) -> impl Iterator<Item = Opening> {
        let today = zone.to_datetime(around).date();
        (-BACK_DAYS..=AHEAD_DAYS).filter_map(move |days| {
            let date = today.checked_add(Span::new().days(days)).ok()?;
            self.opening(date, zone)
        })
    }

    fn opening(&self, date: Date, zone: &TimeZone) -> Option<Opening> {
        if !self.days.has(date.weekday()) {
            return None;
        }
        let opens = moment(date.to_datetime(self.start), zone)?;
        Some(Opening { opens, closes: opens.checked_add(self.length).ok()? })
    }
}

/// The moment at which a clock on the wall shows `local`, as the rules above have it. None at the end of all time only.
fn moment(local: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(local).ok(),
        AmbiguousOffset::Fold { after, .. } => after.to_timestamp(local).ok(),
        AmbiguousOffset::Gap { before, after } => {
            // Read with the offset of the other side, a time that was leapt over lies just before or just after the leap.
            let (early, late) = (after.to_timestamp(local).ok()?, before.to_timestamp(local).ok()?);
            let changes = zone.following(early).map(|change| change.timestamp());
            let leap = changes.take_while(|at| *at <= late).find(|at| zone.to_datetime(*at) >= local);
            Some(leap.unwrap_or(late))
        }
    }
}

/// Whether one of `windows` is open at `at`, and until when.
///
/// `Ok` is the moment at which none is open any more, as one may begin where another ends; [`AHEAD`] when that is later, and then
/// it has to be asked again. `Err` is the next opening; none when there is no window.
pub(super) fn open(
    windows: &[Window],
    at: Timestamp,
    zone: &TimeZone,
) -> Result<Timestamp, Option<Timestamp>> {
    let mut openings: Vec<Opening> =
        windows.iter().flat_map(|window| window.openings(at, zone)).filter(|one| one.closes > at).collect();
    openings.sort_by_key(|one| one.opens);
    if !openings.iter().any(|one| one.holds(at)) {
        return Err(openings.first().map(|one| one.opens));
    }
    let end = openings.iter().fold(at, |end, one| if one.opens <= end { end.max(one.closes) } else { end });
    Ok(end.min(at.checked_add(AHEAD).unwrap_or(Timestamp::MAX)))
}
