//! The watchdog's owner from the start of the initramfs to the start of the root's init.
//!
//! Not here: the device (`partitions::device::watchdog`), the time after the hand-over (`keeper`, or systemd's
//! `RuntimeWatchdogSec`). Rule: one owner at a time, and between two owners it keeps running.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use switchback_partitions::device::watchdog::Watchdog;

use super::console::{complain, say};
use super::keeper::{self, Order};
use super::{Doing, InitError};
use crate::host::sysfs::Sysfs;

/// Opens the best watchdog there is, which starts it. A machine without one still starts: only a hang of its kernel
/// then needs a hand.
pub fn open(sysfs: &Sysfs) -> Option<Watchdog> {
    for found in sysfs.watchdogs() {
        match Watchdog::open(Path::new("/dev").join(&found.name)) {
            Ok(dog) => {
                // A driver that cannot be set keeps its own timeout; all that matters is that it is petted in time.
                if let Err(error) = dog.set_timeout(keeper::WATCHDOG_TIMEOUT.as_secs() as u32) {
                    say(&format!("{} keeps its own timeout: {error}", found.name));
                }
                say(&format!("holding {} ({})", found.name, found.identity));
                return Some(dog);
            }
            Err(error) => say(&format!("cannot hold {} ({}): {error}", found.name, found.identity)),
        }
    }
    say("this machine has no watchdog");
    None
}

/// Starts the countdown again. An error is only said: the countdown that goes on is the safe side.
pub fn pet(dog: &Option<Watchdog>) {
    if let Some(Err(error)) = dog.as_ref().map(Watchdog::keep_alive) {
        complain(&format!("while petting the watchdog: {error}"));
    }
}

/// Gives the watchdog to whoever owns it on the root: nobody here when systemd follows, else a keeper.
pub fn hand_over(dog: Option<Watchdog>, order: Order, init: &Path) -> Result<(), InitError> {
    if is_systemd(init) {
        // Stopped, not only closed: an image whose systemd has no `RuntimeWatchdogSec` would be reset after a minute.
        return dog.map_or(Ok(()), Watchdog::disarm).doing(|| "giving the watchdog to systemd".into());
    }
    if dog.is_none() && order.deadline.is_none() {
        return Ok(());
    }
    let order = Order { watchdog: dog.is_some(), ..order };
    let input = dog.map_or_else(Stdio::null, |dog| Stdio::from(OwnedFd::from(dog)));
    // `/proc/self/exe` is this program even though its file went with the initramfs.
    let mut keeper = Command::new("/proc/self/exe");
    keeper.arg("init").arg(keeper::WORD).args(order.to_arguments()).stdin(input);
    let _outlives_this_program = keeper.spawn().doing(|| "starting the keeper of the watchdog".into())?;
    Ok(())
}

/// Looks at the program that really is started: `/sbin/init` is a link to it.
fn is_systemd(init: &Path) -> bool {
    let real = std::fs::canonicalize(init);
    real.is_ok_and(|path| path.file_name() == Some("systemd".as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_known_behind_the_links_that_lead_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (systemd, busybox) = (dir.path().join("systemd"), dir.path().join("busybox"));
        let (init, linuxrc) = (dir.path().join("init"), dir.path().join("linuxrc"));
        std::fs::write(&systemd, "").unwrap();
        std::fs::write(&busybox, "").unwrap();
        std::os::unix::fs::symlink(&systemd, &init).unwrap();
        std::os::unix::fs::symlink(&busybox, &linuxrc).unwrap();
        assert!(is_systemd(&init));
        assert!(!is_systemd(&linuxrc));
        assert!(!is_systemd(&dir.path().join("missing")));
    }
}
