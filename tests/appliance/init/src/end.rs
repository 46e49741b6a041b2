//! The orderly end: supervisor, then everybody else, then the disks, then the machine.
//!
//! Not here: who asks for it. Rule: every step has its deadline, so that nothing which hangs keeps the machine from going down.

use std::time::{Duration, Instant};

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::child::Child;
use crate::{mounts, say};

/// How long the supervisor may take to end, and everybody else.
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(10);
/// How long those may take who cannot refuse.
const KILL_PATIENCE: Duration = Duration::from_secs(3);
/// How often the dead are looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Everybody but PID 1.
const EVERYBODY: Pid = Pid::from_raw(-1);

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It starts again.
    Reboot,
    /// It is switched off.
    PowerOff,
    /// It stands still.
    Halt,
}

impl End {
    /// What a signal to PID 1 asks for: the words of busybox's `reboot`, `poweroff` and `halt`, and the kernel's for Ctrl-Alt-Del.
    pub fn asked_by(signal: i32) -> Option<End> {
        match signal {
            SIGTERM | SIGINT => Some(End::Reboot),
            SIGUSR2 => Some(End::PowerOff),
            SIGUSR1 => Some(End::Halt),
            _ => None,
        }
    }

    /// For the console.
    pub fn words(self) -> &'static str {
        match self {
            End::Reboot => "the machine restarts",
            End::PowerOff => "the machine is switched off",
            End::Halt => "the machine halts",
        }
    }

    fn mode(self) -> RebootMode {
        match self {
            End::Reboot => RebootMode::RB_AUTOBOOT,
            End::PowerOff => RebootMode::RB_POWER_OFF,
            End::Halt => RebootMode::RB_HALT_SYSTEM,
        }
    }
}

/// Ends all processes, puts the disks in order, and the machine ends. Returns only when the kernel refuses.
pub fn end(end: End, supervisor: &Child) {
    // First and alone: it would start again the services that end.
    if let Some(pid) = supervisor.pid() {
        let _ = kill(pid, Signal::SIGTERM);
        if !gone(Some(pid), SUPERVISOR_PATIENCE) {
            say("the supervisor does not end; it is killed with the rest");
        }
    }
    // Services too: they are children here since the runtime that made them has ended.
    let _ = kill(EVERYBODY, Signal::SIGTERM);
    if !gone(None, PATIENCE) {
        say("somebody does not end and is killed");
        let _ = kill(EVERYBODY, Signal::SIGKILL);
        gone(None, KILL_PATIENCE);
    }
    mounts::leave_disks();
    let Err(errno) = reboot(end.mode());
    say(&format!("the kernel refuses: {errno}"));
}

/// Buries until that child is gone, or all are; false when they are not in time.
fn gone(wanted: Option<Pid>, patience: Duration) -> bool {
    let began = Instant::now();
    while began.elapsed() < patience {
        match waitpid(EVERYBODY, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(LOOK),
            Ok(status) if wanted.is_some() && status.pid() == wanted => return true,
            Ok(_) => {}
            // There is no child any more.
            Err(_) => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_mean_what_busybox_means_by_them() {
        use signal_hook::consts::{SIGCHLD, SIGHUP};
        for (signal, end) in [
            (SIGTERM, Some(End::Reboot)),
            (SIGINT, Some(End::Reboot)),
            (SIGUSR2, Some(End::PowerOff)),
            (SIGUSR1, Some(End::Halt)),
            (SIGHUP, None),
            (SIGCHLD, None),
        ] {
            assert_eq!(End::asked_by(signal), end, "{signal}");
        }
    }
}
