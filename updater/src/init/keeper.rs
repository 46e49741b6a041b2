//! Who pets the watchdog when no systemd does, and ends a trial that nobody judges.
//!
//! Not here: the judgement (`boot_check`). Rule: one owner of the watchdog at any time, and letting go is the safe side:
//! whatever goes wrong in here, the machine restarts and the loader counts the try.
//!
//! The keeper is a child of PID 1 that `switchback init` starts on the new root, with the watchdog as its standard
//! input. It outlives the switch, is no service that the system could forget to start, and if it is killed, the open
//! watchdog restarts the machine.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use switchback_partitions::device::watchdog::Watchdog;
use switchback_partitions::slot::Slot;

use super::console::complain;

/// The word that makes `switchback init` the keeper.
pub const WORD: &str = "--keep-watchdog";

/// Where the state partition is mounted on the root.
const STATE_DIR: &str = "/var/lib/switchback";

/// This file is there when the running slot is confirmed: the deadline no longer counts.
pub const CONFIRMED: &str = "/run/switchback/confirmed";

/// Ends the deadline of this start: `switchback boot-check` calls it once the running slot is confirmed in the boot
/// record, on every start, trial or not. `root` is the root of the running system, so that a machine in a file marks
/// its own.
pub fn mark_confirmed(root: &Path) -> std::io::Result<()> {
    let path = root.join(CONFIRMED.trim_start_matches('/'));
    std::fs::create_dir_all(path.parent().unwrap_or(root))?;
    std::fs::write(path, "")
}

/// How often the watchdog is petted.
pub const PET_EVERY: Duration = Duration::from_secs(5);

/// What the watchdog is set to: long enough for a loaded machine, short against any deadline.
pub const WATCHDOG_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the file systems get to flush before the forced restart.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the keeper was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// How long the trial may last from now; `None` when this start is no trial.
    pub deadline: Option<Duration>,
    /// The slot that was started.
    pub slot: Slot,
    /// True when standard input is an open watchdog.
    pub watchdog: bool,
}

impl Order {
    /// As words of a command line, for `from_arguments`.
    pub fn to_arguments(self) -> [String; 3] {
        let deadline = self.deadline.map_or("none".to_owned(), |deadline| deadline.as_secs().to_string());
        let watchdog = if self.watchdog { "watchdog" } else { "no-watchdog" };
        [deadline, self.slot.to_string(), watchdog.to_owned()]
    }

    /// The order in these words; `None` when they are no order.
    pub fn from_arguments(words: &[String]) -> Option<Order> {
        let [deadline, slot, watchdog] = words else { return None };
        let deadline = match deadline.as_str() {
            "none" => None,
            seconds => Some(Duration::from_secs(seconds.parse().ok()?)),
        };
        let watchdog = match watchdog.as_str() {
            "watchdog" => true,
            "no-watchdog" => false,
            _ => return None,
        };
        Some(Order { deadline, slot: slot.parse().ok()?, watchdog })
    }
}

/// Pets the watchdog until the machine goes down, or until a trial's deadline passes without confirmation.
pub fn keep(order: &Order) -> ! {
    // The kernel must not choose this process when memory runs out: that would be a restart.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let dog = if order.watchdog { watchdog_on_standard_input() } else { None };
    let start = Instant::now();
    while judge(order.deadline, Path::new(CONFIRMED).exists(), start.elapsed()) == Verdict::Pet {
        if let Some(Err(error)) = dog.as_ref().map(Watchdog::keep_alive) {
            complain(&format!("while petting the watchdog: {error}"));
        }
        std::thread::sleep(PET_EVERY);
    }
    complain("the trial's deadline passed and nobody confirmed this start; restarting the machine");
    let slot = order.slot;
    // In a thread of its own: with a dead disk the mark may hang, and the restart must not.
    let marking = std::thread::Builder::new();
    drop(marking.spawn(move || super::mark_deadline_passed(Path::new(STATE_DIR), slot)));
    std::thread::sleep(LAST_WORDS);
    restart_by_force()
}

fn watchdog_on_standard_input() -> Option<Watchdog> {
    match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => Some(Watchdog::from(fd)),
        Err(error) => {
            complain(&format!("while taking over the watchdog: {error}"));
            None
        }
    }
}

/// What the keeper does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Pet the watchdog and look again.
    Pet,
    /// The trial is over and nobody confirmed it: restart.
    Restart,
}

/// Decides from what is known. `deadline` is `None` for a start that is no trial.
pub fn judge(deadline: Option<Duration>, confirmed: bool, elapsed: Duration) -> Verdict {
    match deadline {
        Some(deadline) if !confirmed && elapsed >= deadline => Verdict::Restart,
        _ => Verdict::Pet,
    }
}

/// Restarts the machine without asking anybody: neither PID 1, which may hang, nor the disks, which may hang too.
///
/// Emergency sync and remount are requests that the kernel works on by itself; `b` follows whether they end or not.
pub fn restart_by_force() -> ! {
    for (key, pause) in [("s", LAST_WORDS), ("u", Duration::from_secs(1)), ("b", Duration::from_secs(5))] {
        sysrq(key);
        std::thread::sleep(pause);
    }
    // Without sysrq in this kernel: the system call, and then the watchdog that nobody pets any more.
    let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
    loop {
        std::thread::sleep(PET_EVERY);
    }
}

fn sysrq(key: &str) {
    let trigger = OpenOptions::new().write(true).open(Path::new("/proc/sysrq-trigger"));
    let _ = trigger.and_then(|mut file| file.write_all(key.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_its_way_over_the_command_line() {
        for order in [
            Order { deadline: Some(Duration::from_secs(300)), slot: Slot::B, watchdog: true },
            Order { deadline: None, slot: Slot::A, watchdog: false },
        ] {
            assert_eq!(Order::from_arguments(&order.to_arguments()), Some(order));
        }
        for words in
            [&["300", "b"][..], &["soon", "a", "watchdog"], &["1", "c", "watchdog"], &["1", "a", "dog"]]
        {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(Order::from_arguments(&words), None, "{words:?}");
        }
    }

    #[test]
    fn the_mark_of_confirmation_lies_beneath_the_root_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        mark_confirmed(dir.path()).unwrap();
        mark_confirmed(dir.path()).unwrap();
        assert!(dir.path().join("run/switchback/confirmed").exists());
    }

    #[test]
    fn only_an_unconfirmed_trial_past_its_deadline_is_ended() {
        let deadline = Some(Duration::from_secs(300));
        let at = Duration::from_secs;
        for (deadline, confirmed, elapsed, verdict, why) in [
            (deadline, false, at(299), Verdict::Pet, "time is left"),
            (deadline, false, at(300), Verdict::Restart, "the deadline passed"),
            (deadline, true, at(9999), Verdict::Pet, "confirmed in time"),
            (None, false, at(9999), Verdict::Pet, "no trial"),
        ] {
            assert_eq!(judge(deadline, confirmed, elapsed), verdict, "{why}");
        }
    }
}
