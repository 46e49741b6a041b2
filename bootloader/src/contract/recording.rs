//! A boot partition that writes down what changes it, and that can lose its power between two steps.
//!
//! Not here: any file system. Rule: after the cut nothing reaches the partition beneath, and every call fails.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::esp::{EspDir, EspEntry, Space};

/// Wraps a boot partition and records every step that changes it, in order.
pub struct RecordingEsp {
    inner: Arc<dyn EspDir>,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    events: Vec<String>,
    steps_left: Option<usize>,
}

impl RecordingEsp {
    /// Records what reaches `inner`.
    pub fn new(inner: Arc<dyn EspDir>) -> RecordingEsp {
        RecordingEsp { inner, log: Mutex::default() }
    }

    /// What was done since the last call: `write PATH`, `rename FROM TO`, `remove PATH`, `mkdir DIR`.
    pub fn take_events(&self) -> Vec<String> {
        std::mem::take(&mut self.log().events)
    }

    /// How many steps were recorded since the last `take_events`.
    pub fn steps(&self) -> usize {
        self.log().events.len()
    }

    /// After `steps` more steps the power is gone; `None` brings it back.
    pub fn cut_power_after(&self, steps: Option<usize>) {
        self.log().steps_left = steps;
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, event: String) -> io::Result<()> {
        let mut log = self.log();
        match &mut log.steps_left {
            Some(0) => return Err(io::Error::other("the power is gone")),
            Some(left) => *left -= 1,
            None => {}
        }
        log.events.push(event);
        Ok(())
    }
}

impl EspDir for RecordingEsp {
    fn read_into(&self, path: &str, limit: u64, sink: &mut dyn io::Write) -> io::Result<u64> {
        self.inner.read_into(path, limit, sink)
    }

    fn file_bytes(&self, path: &str) -> io::Result<Option<u64>> {
        self.inner.file_bytes(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<EspEntry>> {
        self.inner.list(dir)
    }

    fn write_tmp(&self, path: &str, source: &mut dyn io::Read) -> io::Result<u64> {
        self.step(format!("write {path}"))?;
        self.inner.write_tmp(path, source)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step(format!("rename {from} {to}"))?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.step(format!("remove {path}"))?;
        self.inner.remove(path)
    }

    fn mkdir(&self, dir: &str) -> io::Result<()> {
        // Nothing happens to a folder that is there, so there is nothing to record.
        let (above, name) = dir.rsplit_once('/').unwrap_or(("", dir));
        if !self.inner.list(above)?.iter().any(|entry| entry.is_dir && entry.name.eq_ignore_ascii_case(name))
        {
            self.step(format!("mkdir {dir}"))?;
        }
        self.inner.mkdir(dir)
    }

    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }

    fn drop_caches(&self, path: &str) -> io::Result<()> {
        self.inner.drop_caches(path)
    }
}
