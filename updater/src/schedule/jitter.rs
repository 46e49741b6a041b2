//! When to look at the source next, spread so that a fleet does not ask as one.
//!
//! Rule: the same seed gives the same wait, each wait up to the bound is as likely as any other, and none is longer.

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use super::Schedule;

/// What a wait is drawn from: other on each machine, and other each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    /// From what names the machine (its machine id) and a count of what was drawn before, over restarts: a machine that drew a
    /// long wait at its start must not draw the same one at each.
    pub fn new(machine: &str, count: u64) -> Seed {
        let mut hash = Sha256::new_with_prefix("switchback check jitter\0");
        hash.update(count.to_be_bytes());
        hash.update(machine);
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
        Seed(u64::from_be_bytes(bytes))
    }

    /// A part of `bound`, to the millisecond, both ends included.
    pub fn part_of(self, bound: SignedDuration) -> SignedDuration {
        let choices = u128::try_from(bound.as_millis()).unwrap_or(0) + 1;
        // The high half of the product: a remainder would make the small waits likelier.
        let millis = (u128::from(self.0) * choices) >> 64;
        SignedDuration::from_millis(i64::try_from(millis).unwrap_or(0))
    }
}

/// When to look at the source next.
///
/// `last` is the last look, `started` when whoever asks began to run. After a start a machine waits its part of the jitter even
/// when a look is overdue: a site whose power comes back would ask as one. A time that is still to come is a clock that was put
/// back; it counts as `now`, or a clock that once ran a year ahead would keep the machine from looking for a year.
pub fn next_check(
    schedule: &Schedule,
    last: Option<Timestamp>,
    started: Timestamp,
    now: Timestamp,
    seed: Seed,
) -> Timestamp {
    let part = seed.part_of(schedule.jitter);
    let after = |at: Timestamp, wait: SignedDuration| at.checked_add(wait).unwrap_or(Timestamp::MAX);
    let at_start = if started <= now { after(started, part) } else { now };
    match last {
        Some(last) if last <= now => after(last, schedule.check.saturating_add(part)).max(at_start),
        _ => at_start,
    }
}
