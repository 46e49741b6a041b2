//! Find or fetch, verify, write, read back: one slot partition from one layer, in ascending order, in bounded memory.
//!
//! Not here: which slot, whether it may be written, arming; the stages themselves (`fetch`, `work`, `write`, `prove`). Rule: a chunk
//! reaches the device only after its SHA-256 matched the signed index, and nothing is buffered beyond the segments under way.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use switchback_partitions::device::BlockDevice;
use switchback_partitions::verity::{RootHash, TreeWriter};

use super::InstallError;
use super::fetch::Fetcher;
use super::journal::Journal;
use super::layer::LayerReader;
use super::luck::Luck;
use super::patches::Offered;
use super::prove::{prove, why};
use super::stages::{Clock, Stages};
use super::survey::Surveyed;
use super::work::Worker;
use super::write::{STEPS_AHEAD, write};
use crate::image::frame::chunks_match;
use crate::image::index::{FrameBody, Outline};
use crate::image::lookup::Lookup;
use crate::image::manifest::Descriptor;
use crate::progress::{Phase, Progress, until_stopped};
use crate::registry::Registry;

/// Parcels before and behind each worker. One has about 256 KiB raw, at most twice that.
const PARCELS_IN_FLIGHT: usize = 4;
/// More workers than this wait for the one writer.
const WORKERS_MAX: usize = 4;
/// After this many bytes the journal says what was flushed: what a power cut can cost.
pub(super) const JOURNAL_EVERY_BYTES: u64 = 64 * 1024 * 1024;

/// What one slot cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    /// Writes the whole partition, and its hash tree from what the medium gives back; the tree's root is to be `expected`.
    pub fn run(
        &self,
        runtime: &tokio::runtime::Handle,
        mut tree: TreeWriter,
        expected: RootHash,
    ) -> Result<(Traffic, Stages), InstallError> {
        let kept = self.compare()?;
        self.progress.begin(Phase::Write, self.outline().raw_bytes());
        let (luck, began) = (Luck::default(), Instant::now());
        let (mut network, mut writing, mut proving) = (Clock::default(), Clock::default(), Clock::default());
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        let workers: Result<Vec<Worker<'_>>, InstallError> =
            (0..workers).map(|_| Worker::new(self, &luck, runtime.clone())).collect();
        let workers = workers?;
        let (fetched, worked, written, proven) = std::thread::scope(|scope| {
            let (mut to_work, mut to_write, mut working) = (Vec::new(), Vec::new(), Vec::new());
            for worker in workers {
                let (parcels, from) = tokio::sync::mpsc::channel(PARCELS_IN_FLIGHT);
                let (made, results) = sync_channel(PARCELS_IN_FLIGHT);
                to_work.push(parcels);
                to_write.push(results);
                working.push(scope.spawn(move || worker.run(from, made)));
            }
            let (to_prove, flushed) = sync_channel(STEPS_AHEAD);
            let writer = scope.spawn(|| write(self, &{ to_write }, to_prove, &mut writing));
            let prover = scope.spawn(|| prove(self, &{ flushed }, &mut tree, &mut proving));
            let fetcher = Fetcher::new(self, &kept, &luck);
            let fetching = until_stopped(self.progress, fetcher.run(&to_work, &mut network));
            let fetched = runtime.block_on(fetching).unwrap_or(Err(InstallError::Interrupted));
            // The workers end when nothing can come any more, the writer after them, and who reads back after it.
            drop(to_work);
            let written = writer.join().unwrap_or(Err(InstallError::Worker));
            let worked: Result<Vec<Clock>, _> = working.into_iter().map(|worker| worker.join()).collect();
            let proven = prover.join().unwrap_or(Err(InstallError::Worker));
            (fetched, worked.map_err(|_| InstallError::Worker), written, proven)
        });
        self.progress.end();
        // A stage that fails closes its channels, and its neighbours see only that: the one behind it ends as broken, the ones
        // before it well. The cause is the last that is no such end.
        let mut traffic = match (written, proven) {
            (Err(InstallError::Worker), proven) => return Err(proven.err().unwrap_or(InstallError::Worker)),
            (written, proven) => written.and_then(|traffic| proven.map(|()| traffic))?,
        };
        fetched?;
        let workers = worked?;
        (traffic.fetched, traffic.requests) = luck.cost();
        let found = tree.finish().map_err(InstallError::tree)?;
        if found != expected {
            return Err(why(self, found, expected));
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok((traffic, Stages::new(seconds, &network, &workers, &writing, &proving)))
    }

    /// Which frames an interrupted run left in place: read back and compared, never believed. Empty when there was none.
    fn compare(&self) -> Result<Vec<bool>, InstallError> {
        if !self.journal.is_resumed() {
            return Ok(Vec::new());
        }
        let (outline, mut layer) = (self.outline(), self.layer()?);
        let mut kept = vec![false; outline.frame_count()];
        // A run that was killed wrote up to one step beyond its last mark; only a power cut loses that.
        let reach = (self.journal.done_bytes() + JOURNAL_EVERY_BYTES).min(outline.raw_bytes());
        self.progress.begin(Phase::Compare, reach);
        let mut buffer = Vec::new();
        for (number, kept) in kept.iter_mut().enumerate() {
            let frame = layer.frame(number)?;
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

    /// Where the layer's frames and chunks lie.
    pub fn outline(&self) -> &'a Outline {
        self.surveyed.layer.outline()
    }

    /// Reads the hashes of the layer's chunks.
    pub fn layer(&self) -> Result<LayerReader<'a>, InstallError> {
        self.surveyed.layer.reader()
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
