//! The bill of a run: every body byte that comes over the network is counted, held to a pace and to a budget.
//!
//! Not here: what is fetched and whether it is any good. Rule: a byte counts when it came, wanted or not: what is
//! repeated after a broken body, what is skipped in an answer that holds everything, documents and blobs alike; and no
//! question is asked any more once the budget is spent. So it lies beneath the requests, not around `Registry`: there
//! only the wanted bytes are seen. Heads, TLS and TCP come on top, some hundredths.
//!
//! The bucket is our own: one instant is all its state, where `governor` brings maps, clocks and 32-bit cells that a
//! piece of a body may not fit into, and its size in a binary that is near its limit.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::RegistryError;

/// What a pause is made up for by: after it, so much of the pace may come at once. Short, so that no second brings much
/// more than the pace; not nothing, since timers wake late.
const CREDIT: Duration = Duration::from_millis(100);

/// What came over the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Bytes of bodies, those included that were not wanted or came again.
    pub bytes: u64,
    /// Questions that were sent, those to token services included.
    pub requests: u64,
}

/// How much may come, and how fast. The default: all of it, at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// The pace, on the average over a second.
    pub bytes_per_sec: Option<NonZeroU64>,
    /// The most that may come in all.
    pub budget_bytes: Option<u64>,
}

/// Counts and holds back; clones share everything, so that source, mirrors and token services are one bill.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    limits: Limits,
    bytes: AtomicU64,
    requests: AtomicU64,
    /// When the bytes so far are paid off at the pace.
    due: Mutex<Option<Instant>>,
}

impl Meter {
    /// A meter at zero.
    pub fn new(limits: Limits) -> Meter {
        Meter(Arc::new(Shared { limits, ..Shared::default() }))
    }

    /// What came so far.
    pub fn so_far(&self) -> Network {
        Network {
            bytes: self.0.bytes.load(Ordering::Relaxed),
            requests: self.0.requests.load(Ordering::Relaxed),
        }
    }

    /// Whether a plan fits into the budget.
    ///
    /// # Errors
    /// `planned` bytes more would pass it.
    pub fn affords(&self, planned: u64) -> Result<(), RegistryError> {
        let came = self.so_far().bytes;
        match self.0.limits.budget_bytes {
            Some(budget) if came.saturating_add(planned) > budget => Err(RegistryError::OverBudget {
                detail: format!("the update would fetch {planned} bytes beside the {came} that came already"),
                budget,
            }),
            _ => Ok(()),
        }
    }

    /// Counts a question that is about to be sent.
    pub(super) fn asks(&self, what: &str) -> Result<(), RegistryError> {
        let came = self.so_far().bytes;
        match self.0.limits.budget_bytes {
            Some(budget) if came >= budget => Err(spent(what, came, budget)),
            _ => {
                self.0.requests.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Counts bytes that came, and waits as long as the pace wants.
    pub(super) async fn came(&self, bytes: u64, what: &str) -> Result<(), RegistryError> {
        let came = self.0.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if let Some(budget) = self.0.limits.budget_bytes.filter(|budget| came > *budget) {
            return Err(spent(what, came, budget));
        }
        if let Some(pace) = self.0.limits.bytes_per_sec {
            let wait = self.wait(Instant::now(), bytes, pace);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
        Ok(())
    }

    /// How long `bytes` that came at `now` have to be waited for: a leaky bucket by its virtual schedule.
    fn wait(&self, now: Instant, bytes: u64, pace: NonZeroU64) -> Duration {
        let mut due = self.0.due.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let from = due.map_or(earliest, |due| due.max(earliest));
        let next = from + Duration::from_secs_f64(bytes as f64 / pace.get() as f64);
        *due = Some(next);
        next.saturating_duration_since(now)
    }
}

fn spent(what: &str, came: u64, budget: u64) -> RegistryError {
    let detail = format!("while asking for {what}, {came} bytes had come, what came twice included");
    RegistryError::OverBudget { detail, budget }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn paced(bytes_per_sec: u64) -> (Meter, NonZeroU64) {
        let pace = NonZeroU64::new(bytes_per_sec).unwrap();
        (Meter::new(Limits { bytes_per_sec: Some(pace), budget_bytes: None }), pace)
    }

    #[test]
    fn every_second_brings_about_the_pace_however_large_the_pieces() {
        for piece in [1000, 64 << 10, MB, 3 * MB] {
            let (meter, pace) = paced(2 * MB);
            let began = Instant::now();
            let (mut now, mut came) = (began, 0);
            while now < began + Duration::from_secs(10) {
                now += meter.wait(now, piece, pace);
                came += piece;
            }
            // The last piece may end beyond the tenth second, and the credit came first.
            let most = 20 * MB + piece + 2 * MB / 10;
            assert!((20 * MB..=most).contains(&came), "{came} bytes in pieces of {piece}");
        }
    }

    #[test]
    fn a_pause_is_no_right_to_a_flood() {
        let (meter, pace) = paced(MB);
        let began = Instant::now();
        meter.wait(began, MB, pace);
        let later = began + Duration::from_secs(3600);
        let wait = meter.wait(later, MB, pace);
        assert_eq!(wait, Duration::from_secs(1) - CREDIT);
    }

    #[test]
    fn connections_at_once_share_one_pace() {
        let (meter, pace) = paced(MB);
        let now = Instant::now();
        let waits: Vec<_> = (0..4).map(|_| meter.clone().wait(now, MB / 4, pace)).collect();
        assert!(waits.is_sorted() && waits[3] == Duration::from_secs(1) - CREDIT, "{waits:?}");
    }

    #[tokio::test]
    async fn a_budget_ends_the_plan_the_transfer_and_the_next_question() {
        let meter = Meter::new(Limits { budget_bytes: Some(1000), ..Limits::default() });
        meter.asks("x").unwrap();
        meter.came(400, "x").await.unwrap();
        meter.affords(600).unwrap();
        let error = meter.affords(601).unwrap_err().to_string();
        assert!(error.contains("601") && error.contains("400") && error.contains("1000"), "{error}");
        meter.came(600, "x").await.unwrap();
        let refused = meter.asks("the rest").unwrap_err().to_string();
        assert!(refused.contains("the rest") && refused.contains("1000"), "{refused}");
        assert!(meter.came(1, "x").await.is_err());
        assert_eq!(meter.so_far(), Network { bytes: 1001, requests: 1 });
    }

    #[tokio::test]
    async fn without_limits_it_only_counts() {
        let meter = Meter::default();
        meter.clone().came(u64::MAX / 2, "x").await.unwrap();
        meter.asks("x").unwrap();
        meter.affords(u64::MAX).unwrap();
        assert_eq!(meter.so_far(), Network { bytes: u64::MAX / 2, requests: 1 });
    }
}
