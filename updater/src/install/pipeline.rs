//! Find or fetch, verify, write: one slot partition from one layer, in ascending order, in bounded memory.
//!
//! Not here: which slot, whether it may be written, arming; the stages themselves (`fetch`, `work`, `write`). Rule: a chunk
//! reaches the device only after its SHA-256 matched the signed index, and nothing is buffered beyond the segments under way.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use switchback_partitions::device::BlockDevice;
use switchback_partitions::verity::TreeWriter;

use super::InstallError;
use super::fetch::Fetcher;
use super::journal::Journal;
use super::luck::Luck;
use super::patches::Offered;
use super::survey::Surveyed;
use super::work::Worker;
use super::write::write;
use crate::image::frame::chunks_match;
use crate::image::index::{FrameBody, Index};
use crate::image::manifest::Descriptor;
use crate::image::plan::Lookup;
use crate::progress::{Phase, Progress, until_stopped};
use crate::registry::Registry;

/// Segments before and behind each worker. One has at most 256 KiB raw, usually 16 KiB.
const SEGMENTS_IN_FLIGHT: usize = 8;
/// More workers than this wait for the one writer.
const WORKERS_MAX: usize = 4;
/// After this many bytes the device is flushed and the journal says so: what a power cut can cost.
pub(super) const JOURNAL_EVERY_BYTES: u64 = 64 * 1024 * 1024;

/// What one slot cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Bytes written to slot partitions.
    pub written: u64,
    /// Those of them that were taken from elsewhere on the machine.
    pub copied: u64,
    /// Bytes that were already in place, verified there.
    pub kept: u64,
    /// Bytes that read as zero and were only punched.
    pub zero: u64,
    /// Range requests made.
    pub requests: u64,
}

impl Traffic {
    /// Adds what another layer cost.
    pub fn add(&mut self, other: Traffic) {
        self.fetched += other.fetched;
        self.written += other.written;
        self.copied += other.copied;
        self.kept += other.kept;
        self.zero += other.zero;
        self.requests += other.requests;
    }
}

/// Everything one slot partition is written from and to.
pub struct SlotJob<'a> {
    /// Where the bytes come from.
    pub registry: &'a dyn Registry,
    /// The layer's blob.
    pub blob: &'a Descriptor,
    /// Its verified index, and what the machine has of it.
    pub surveyed: &'a Surveyed,
    /// The slot partition.
    pub device: Arc<dyn BlockDevice>,
    /// Remembers how far the flushed bytes reach.
    pub journal: &'a Journal<'a>,
    /// Who waits.
    pub progress: &'a dyn Progress,
}

impl<'a> SlotJob<'a> {
    /// Writes the whole partition and feeds the hash tree with every block.
    pub fn run(
        &self,
        runtime: &tokio::runtime::Handle,
        tree: &mut TreeWriter,
    ) -> Result<Traffic, InstallError> {
        let kept = self.compare()?;
        self.progress.begin(Phase::Write, self.index().raw_bytes());
        let luck = Luck::default();
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        let workers: Result<Vec<Worker<'_>>, InstallError> =
            (0..workers).map(|_| Worker::new(self, &luck, runtime.clone())).collect();
        let workers = workers?;
        let (fetched, written) = std::thread::scope(|scope| {
            let (mut to_work, mut to_write, mut working) = (Vec::new(), Vec::new(), Vec::new());
            for worker in workers {
                let (segments, from) = tokio::sync::mpsc::channel(SEGMENTS_IN_FLIGHT);
                let (made, results) = sync_channel(SEGMENTS_IN_FLIGHT);
                to_work.push(segments);
                to_write.push(results);
                working.push(scope.spawn(move || worker.run(from, made)));
            }
            let writer = scope.spawn(move || write(self, &to_write, tree));
            let fetcher = Fetcher::new(self, &kept, &luck);
            let fetching = until_stopped(self.progress, fetcher.run(&to_work));
            let fetched = runtime.block_on(fetching).unwrap_or(Err(InstallError::Interrupted));
            // The workers end when nothing can come any more, and the writer after them.
            drop(to_work);
            let written = writer.join().unwrap_or(Err(InstallError::Worker));
            let whole = working.into_iter().all(|worker| worker.join().is_ok());
            (fetched, if whole { written } else { written.and(Err(InstallError::Worker)) })
        });
        self.progress.end();
        // A stage that fails closes its channel, and the stages before it see only that: the last one has the cause.
        let mut traffic = written?;
        fetched?;
        (traffic.fetched, traffic.requests) = luck.cost();
        Ok(traffic)
    }

    /// Which frames an interrupted run left in place: read back and compared, never believed. Empty when there was none.
    fn compare(&self) -> Result<Vec<bool>, InstallError> {
        if !self.journal.is_resumed() {
            return Ok(Vec::new());
        }
        let index = self.index();
        let mut kept = vec![false; index.frames().len()];
        // A run that was killed wrote up to one step beyond its last mark; only a power cut loses that.
        let reach = (self.journal.done_bytes() + JOURNAL_EVERY_BYTES).min(index.raw_bytes());
        self.progress.begin(Phase::Compare, reach);
        let mut buffer = Vec::new();
        for (frame, kept) in index.frames().zip(&mut kept) {
            if frame.raw_offset + frame.raw_bytes > reach || self.progress.stopped() {
                break;
            }
            if let FrameBody::Chunks(_) = frame.body {
                buffer.resize(frame.raw_bytes as usize, 0);
                self.device.read_at(frame.raw_offset, &mut buffer).map_err(InstallError::reading_slot)?;
                *kept = chunks_match(&frame, &buffer).is_ok();
            }
            self.progress.advance(frame.raw_bytes);
        }
        self.progress.end();
        Ok(kept)
    }

    /// The layer's index.
    pub fn index(&self) -> &'a Index {
        &self.surveyed.index
    }

    /// What lies on the machine.
    pub fn lookup(&self) -> &Lookup {
        &self.surveyed.lookup
    }

    /// The running slot's root partition.
    pub fn running(&self) -> Option<&dyn BlockDevice> {
        self.surveyed.running.as_deref()
    }

    /// The patch that builds on the running slot.
    pub fn patch(&self) -> Option<&Offered> {
        self.surveyed.patch.as_ref()
    }
}
