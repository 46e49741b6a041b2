//! How much of the processor this thread claims.
//!
//! Not here: what it works on. Rule: who unpacks an image beside a service that answers steps back, and what is started later does
//! not inherit that.

/// As `nice` counts: the higher, the less.
const LOW: i32 = 15;

/// This thread steps back until the value is dropped.
#[derive(Debug)]
pub struct StepBack {
    before: Option<i32>,
}

impl StepBack {
    /// From now on. Where the kernel says no, all goes on as before.
    pub fn begin() -> StepBack {
        // On Linux "process 0" is the calling thread (setpriority(2), "C library/kernel differences").
        let before = rustix::process::getpriority_process(None).ok();
        let before =
            before.filter(|before| *before < LOW && rustix::process::setpriority_process(None, LOW).is_ok());
        StepBack { before }
    }
}

impl Drop for StepBack {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = rustix::process::setpriority_process(None, before)
        {
            tracing::warn!(%error, "this process stays behind others");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_steps_back_for_a_while() {
        let now = || rustix::process::getpriority_process(None).unwrap();
        let before = now();
        let back = StepBack::begin();
        assert!(now() >= LOW);
        drop(back);
        // Only root may come back; without that a test's thread stays behind, which nobody notices.
        if nix::unistd::geteuid().is_root() {
            assert_eq!(now(), before);
        }
    }
}
