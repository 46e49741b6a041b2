//! The time that dates are judged by, on machines whose clock may be wrong.
//!
//! Not here: deadlines and waits, which count the kernel's monotonic clock. Rule: it is never earlier than what is known
//! to have happened already: this program was built, a trusted key signed. So a clock that begins at 1970 neither locks
//! the machine out (every certificate would be "not valid yet") nor lets in what has expired since.

use std::time::{SystemTime, UNIX_EPOCH};

/// The time on a machine, in both ways that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Seconds since this boot (`CLOCK_BOOTTIME`): it never jumps and counts a suspended machine's time too.
    pub uptime_secs: u64,
    /// Seconds since 1970 by the wall clock, which may be wrong.
    pub unix_secs: u64,
}

impl Clock {
    /// The running machine's.
    pub fn now() -> Clock {
        let uptime_secs = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .map_or(0, |time| u64::try_from(time.tv_sec()).unwrap_or(0));
        Clock { uptime_secs, unix_secs: u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0) }
    }

    /// The wall clock as a date.
    pub fn timestamp(self) -> jiff::Timestamp {
        let at = i64::try_from(self.unix_secs).ok().and_then(|secs| jiff::Timestamp::from_second(secs).ok());
        at.unwrap_or(jiff::Timestamp::MAX)
    }
}

/// When this program was built, in seconds since 1970.
pub fn built_unix_secs() -> u64 {
    env!("SWITCHBACK_BUILT_UNIX_SECS").parse().unwrap_or(0)
}

/// Now, in seconds since 1970: the system's clock, this program's build or `signed`, the newest time that a trusted key
/// signed, whichever is latest.
pub fn judged_unix_secs(signed: u64) -> u64 {
    let system = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    latest(system, built_unix_secs(), signed)
}

fn latest(system: u64, built: u64, signed: u64) -> u64 {
    system.max(built).max(signed)
}

/// A moment for people, in UTC.
pub fn in_words(unix_secs: u64) -> String {
    Clock { uptime_secs: 0, unix_secs }.timestamp().strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judged_time_is_never_before_the_build_or_a_signature_and_follows_a_clock_that_is_ahead() {
        let (built, signed, year_2100) = (1_700_000_000, 1_800_000_000, 4_102_444_800);
        assert_eq!(latest(0, built, 0), built, "a clock at 1970, nothing signed yet");
        assert_eq!(latest(0, built, signed), signed, "a clock at 1970");
        assert_eq!(latest(signed + 5, built, signed), signed + 5, "a good clock");
        assert_eq!(latest(year_2100, built, signed), year_2100, "a clock ahead only freezes");
        assert!(judged_unix_secs(0) >= built_unix_secs() && built_unix_secs() > 1_700_000_000);
        assert_eq!(in_words(year_2100), "2100-01-01 00:00:00");
    }
}
