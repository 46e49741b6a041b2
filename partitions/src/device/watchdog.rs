//! The hardware watchdog (`linux/Documentation/watchdog/watchdog-api.rst`).
//!
//! Not here: when it is armed and fed. Rule: it stops only by [`Watchdog::disarm`]; a dropped or crashed owner leaves it running.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use super::ioctl;

/// `WDIOF_CARDRESET`: the last reset came from the watchdog.
const CARD_RESET: i32 = 0x20;

/// An open, running watchdog: opening it starts the countdown.
#[derive(Debug)]
pub struct Watchdog {
    file: File,
}

impl Watchdog {
    /// Opens (and thereby starts) the watchdog, usually `/dev/watchdog`. `ResourceBusy` when it has another owner.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Watchdog> {
        Ok(Watchdog { file: OpenOptions::new().write(true).open(path)? })
    }

    /// Asks for a timeout in seconds; returns the one the driver chose, which may differ.
    pub fn set_timeout(&self, seconds: u32) -> io::Result<u32> {
        let wanted = i32::try_from(seconds).map_err(|_| io::ErrorKind::InvalidInput)?;
        to_seconds(ioctl::watchdog_set_timeout(&self.file, wanted)?)
    }

    /// The timeout in seconds.
    pub fn timeout(&self) -> io::Result<u32> {
        to_seconds(ioctl::watchdog_timeout(&self.file)?)
    }

    /// True when the driver reports that it caused the last reset. Many drivers cannot tell and say no.
    pub fn caused_last_reset(&self) -> io::Result<bool> {
        Ok(ioctl::watchdog_boot_status(&self.file)? & CARD_RESET != 0)
    }

    /// Starts the countdown again.
    pub fn keep_alive(&self) -> io::Result<()> {
        ioctl::watchdog_keepalive(&self.file)
    }

    /// Stops it: the magic character `V`, then close. A driver built with `nowayout` keeps running all the same.
    pub fn disarm(mut self) -> io::Result<()> {
        self.file.write_all(b"V")
    }
}

/// Takes over a watchdog that another process of ours opened.
impl From<OwnedFd> for Watchdog {
    fn from(fd: OwnedFd) -> Watchdog {
        Watchdog { file: fd.into() }
    }
}

/// Hands a running watchdog over; it keeps running.
impl From<Watchdog> for OwnedFd {
    fn from(watchdog: Watchdog) -> OwnedFd {
        watchdog.file.into()
    }
}

fn to_seconds(seconds: i32) -> io::Result<u32> {
    u32::try_from(seconds).map_err(|_| io::Error::other("the watchdog driver reports a negative timeout"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disarming_writes_the_magic_character_and_dropping_does_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        drop(Watchdog::open(file.path()).unwrap());
        assert_eq!(std::fs::read(file.path()).unwrap(), b"");
        Watchdog::open(file.path()).unwrap().disarm().unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"V");
    }

    #[test]
    fn a_watchdog_that_is_handed_over_is_neither_stopped_nor_lost() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let fd = OwnedFd::from(Watchdog::open(file.path()).unwrap());
        assert_eq!(std::fs::read(file.path()).unwrap(), b"");
        Watchdog::from(fd).disarm().unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"V");
    }

    #[test]
    fn what_is_no_watchdog_answers_with_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let watchdog = Watchdog::open(file.path()).unwrap();
        assert!(watchdog.set_timeout(30).is_err());
        assert!(watchdog.set_timeout(u32::MAX).is_err());
        assert!(watchdog.timeout().is_err());
        assert!(watchdog.keep_alive().is_err());
        assert!(watchdog.caused_last_reset().is_err());
    }
}
