//! A child that is started again when it ends, and the burial of all that end.
//!
//! Not here: what the child does. Rule: one that keeps ending is started ever more slowly, never given up.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The first pause, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// One that ran for so long has nothing to do with what ended it before.
const RAN_WELL: Duration = Duration::from_secs(60);
/// How long one may wait where nothing is due.
const LONG: Duration = Duration::from_secs(3600);

/// The child.
pub struct Child {
    command: Command,
    pid: Option<Pid>,
    since: Instant,
    pause: Duration,
}

impl Child {
    /// Not started yet.
    pub fn new(command: Command) -> Child {
        Child { command, pid: None, since: Instant::now(), pause: Duration::ZERO }
    }

    /// Starts it. One that cannot be started counts as one that ended at once.
    pub fn start(&mut self, now: Instant) -> Result<()> {
        if self.pid.is_some() {
            return Ok(());
        }
        self.since = now;
        match self.command.spawn() {
            Ok(child) => self.pid = Some(Pid::from_raw(child.id().cast_signed())),
            Err(error) => {
                self.ended(now);
                return Err(error).with_context(|| format!("while starting {:?}", self.command));
            }
        }
        Ok(())
    }

    /// True for its process.
    pub fn is(&self, pid: Pid) -> bool {
        self.pid == Some(pid)
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// It has ended; returns the pause until it is started again.
    pub fn ended(&mut self, now: Instant) -> Duration {
        let ran = now.saturating_duration_since(self.since);
        self.pause = pause_after(self.pause, ran);
        (self.pid, self.since) = (None, now);
        self.pause
    }

    /// How long until it has to be started.
    pub fn due_in(&self, now: Instant) -> Duration {
        match self.pid {
            Some(_) => LONG,
            None => self.pause.saturating_sub(now.saturating_duration_since(self.since)),
        }
    }
}

/// The next pause of a child that ran for so long after the last one.
fn pause_after(last: Duration, ran: Duration) -> Duration {
    if ran >= RAN_WELL { PAUSE_MIN } else { (last * 2).clamp(PAUSE_MIN, PAUSE_MAX) }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(Signal),
}

impl How {
    /// True when it did what it was for.
    pub fn is_success(self) -> bool {
        self == How::Code(0)
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            How::Code(code) => write!(f, "code {code}"),
            How::Signal(signal) => write!(f, "{signal}"),
        }
    }
}

/// All children that have ended and were not buried yet, orphans of others among them.
pub fn buried() -> Vec<(Pid, How)> {
    let mut dead = Vec::new();
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => dead.push((pid, How::Code(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => dead.push((pid, How::Signal(signal))),
            // No child, or none that has ended.
            Ok(WaitStatus::StillAlive) | Err(_) => return dead,
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_ending_is_started_ever_more_slowly_and_who_ran_well_at_once() {
        let short = Duration::from_secs(1);
        let mut pauses = vec![pause_after(Duration::ZERO, short)];
        for _ in 0..9 {
            pauses.push(pause_after(pauses[pauses.len() - 1], short));
        }
        let millis: Vec<u128> = pauses.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000]);
        assert_eq!(pause_after(PAUSE_MAX, RAN_WELL), PAUSE_MIN);
    }

    #[test]
    fn a_child_is_due_at_once_then_never_while_it_runs_then_after_its_pause() {
        let mut child = Child::new(Command::new("true"));
        let now = Instant::now();
        assert_eq!(child.due_in(now), Duration::ZERO);
        child.pid = Some(Pid::from_raw(4_000_000));
        assert!(child.is(Pid::from_raw(4_000_000)));
        assert_eq!(child.due_in(now), LONG);
        assert_eq!(child.ended(now), PAUSE_MIN);
        assert_eq!(child.due_in(now), PAUSE_MIN);
        assert_eq!(child.due_in(now + PAUSE_MIN), Duration::ZERO);
    }

    #[test]
    fn one_that_cannot_be_started_is_tried_again() {
        let mut child = Child::new(Command::new("/nonexistent/program"));
        let now = Instant::now();
        let error = format!("{:#}", child.start(now).unwrap_err());
        assert!(error.contains("/nonexistent/program"), "{error}");
        assert_eq!((child.pid(), child.due_in(now)), (None, PAUSE_MIN));
    }
}
