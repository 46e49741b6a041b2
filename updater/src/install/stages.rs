//! How long each stage of writing a slot was at work, and which of them the others waited for.
//!
//! Not here: bytes (`pipeline::Traffic`). Rule: time at work is wall time, so that a stage which waits for a processor counts as
//! at work: it is what holds the others up.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Adds up the time of one stage.
#[derive(Debug, Default)]
pub struct Clock(Duration);

impl Clock {
    /// Does some of the stage's work.
    pub fn work<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        self.add(began.elapsed());
        done
    }

    /// Counts time that was measured elsewhere.
    pub fn add(&mut self, time: Duration) {
        self.0 += time;
    }

    /// Seconds at work.
    pub fn seconds(&self) -> f64 {
        self.0.as_secs_f64()
    }
}

/// A stage, by what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Waiting for bytes from the registry.
    Network,
    /// Unpacking and comparing: the processors.
    Unpack,
    /// Writing and flushing: the disk.
    Write,
    /// Reading back and hashing.
    ReadBack,
}

impl Limit {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Limit::Network => "the network",
            Limit::Unpack => "unpacking and comparing",
            Limit::Write => "writing",
            Limit::ReadBack => "reading back",
        }
    }
}

/// Where the time of writing a slot went, in seconds. The stages overlap.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stages {
    /// From the first request to the last byte read back.
    pub seconds: f64,
    /// Waiting for the registry.
    pub network: f64,
    /// Unpacking and comparing, mean of the workers.
    pub unpack: f64,
    /// Writing and flushing.
    pub write: f64,
    /// Reading back and hashing.
    pub read_back: f64,
    /// The stage that was at work longest, which the others waited for.
    pub limit: Limit,
}

impl Stages {
    /// One slot.
    pub fn new(seconds: f64, network: &Clock, workers: &[Clock], write: &Clock, read_back: &Clock) -> Stages {
        let unpack = workers.iter().map(Clock::seconds).sum::<f64>() / workers.len().max(1) as f64;
        let times = [seconds, network.seconds(), unpack, write.seconds(), read_back.seconds()];
        Stages::of(times)
    }

    /// Both, one after the other.
    pub fn and(self, other: Stages) -> Stages {
        Stages::of([
            self.seconds + other.seconds,
            self.network + other.network,
            self.unpack + other.unpack,
            self.write + other.write,
            self.read_back + other.read_back,
        ])
    }

    fn of(times: [f64; 5]) -> Stages {
        let [seconds, network, unpack, write, read_back] = times.map(|time| (time * 1000.0).round() / 1000.0);
        let stages = [
            (network, Limit::Network),
            (unpack, Limit::Unpack),
            (write, Limit::Write),
            (read_back, Limit::ReadBack),
        ];
        let longest = stages.into_iter().max_by(|one, other| one.0.total_cmp(&other.0));
        let limit = longest.map_or(Limit::Network, |(_, limit)| limit);
        Stages { seconds, network, unpack, write, read_back, limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stage_that_was_longest_at_work_is_the_limit() {
        let clock = |seconds| Clock(Duration::from_secs(seconds));
        let one = Stages::new(9.0, &clock(1), &[clock(2), clock(6)], &clock(3), &clock(2));
        assert_eq!((one.unpack, one.limit), (4.0, Limit::Unpack));
        let other = Stages::new(7.0, &clock(1), &[clock(2)], &clock(6), &clock(2));
        let both = one.and(other);
        assert_eq!((both.seconds, both.unpack, both.write, both.limit), (16.0, 6.0, 9.0, Limit::Write));
    }
}
