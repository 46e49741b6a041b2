//! The last stage: writes in ascending order, hashes for dm-verity, flushes and journals.
//!
//! Not here: the bytes' origin. Rule: what lies there already is not written again, and the journal says only what was flushed.

use std::sync::mpsc::Receiver;

use switchback_partitions::verity::TreeWriter;

use super::pipeline::{JOURNAL_EVERY_BYTES, SlotJob};
use super::work::Made;
use super::{InstallError, Traffic};
use crate::image::BLOCK_BYTES;
use crate::image::plan::Segment;

/// The device gets pieces of at least this many bytes.
const WRITE_BYTES: usize = 1024 * 1024;

/// What each worker hands over, in the order in which it was dealt out to it.
pub type Results = Receiver<Result<(Segment, Made), InstallError>>;

/// Takes the segments from the workers in turn and writes them.
pub fn write(job: &SlotJob<'_>, from: &[Results], tree: &mut TreeWriter) -> Result<Traffic, InstallError> {
    let mut out = Writer { job, tree, pending: Vec::with_capacity(WRITE_BYTES), at: 0, unmarked: 0 };
    let mut traffic = Traffic::default();
    for from in from.iter().cycle() {
        let Ok(made) = from.recv() else { break };
        let (segment, made) = made?;
        let bytes = segment.raw.end - segment.raw.start;
        // Segments come without a gap: the index was checked for that, this catches a mistake of ours before it is written.
        if segment.raw.start != out.at {
            return Err(InstallError::Worker);
        }
        match made {
            Made::Zeros => {
                out.zero(bytes)?;
                traffic.zero += bytes;
            }
            Made::InPlace(raw) => {
                out.keep(&raw)?;
                traffic.kept += bytes;
            }
            Made::Copied(raw) => {
                out.bytes(&raw)?;
                traffic.copied += bytes;
                traffic.written += bytes;
            }
            Made::Fetched(raw) => {
                out.bytes(&raw)?;
                traffic.written += bytes;
            }
        }
        job.progress.advance(bytes);
    }
    out.drain()?;
    out.mark()?;
    Ok(traffic)
}

/// Collects segments into large writes and whole verity blocks.
struct Writer<'a, 'b> {
    job: &'a SlotJob<'a>,
    tree: &'b mut TreeWriter,
    pending: Vec<u8>,
    /// First byte that is neither written nor pending.
    at: u64,
    /// Bytes in place since the journal's last mark.
    unmarked: u64,
}

impl Writer<'_, '_> {
    fn bytes(&mut self, raw: &[u8]) -> Result<(), InstallError> {
        self.pending.extend_from_slice(raw);
        self.at += raw.len() as u64;
        if self.pending.len() >= WRITE_BYTES {
            self.drain()?;
        }
        Ok(())
    }

    fn zero(&mut self, bytes: u64) -> Result<(), InstallError> {
        self.drain()?;
        self.job.device.zero(self.at, bytes).map_err(InstallError::writing_slot)?;
        self.tree.push_zeros(bytes / u64::from(BLOCK_BYTES)).map_err(InstallError::tree)?;
        self.at += bytes;
        self.journal(bytes)
    }

    fn keep(&mut self, raw: &[u8]) -> Result<(), InstallError> {
        self.drain()?;
        self.tree.push(raw).map_err(InstallError::tree)?;
        self.at += raw.len() as u64;
        // What is in place counts like what is written: a mark that waited for 64 MiB of new bytes would lie more than
        // one step behind after the second kill, and the run after that would pay for the difference again.
        self.journal(raw.len() as u64)
    }

    fn drain(&mut self) -> Result<(), InstallError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let bytes = self.pending.len() as u64;
        let start = self.at - bytes;
        self.job.device.write_at(start, &self.pending).map_err(InstallError::writing_slot)?;
        self.tree.push(&self.pending).map_err(InstallError::tree)?;
        self.pending.clear();
        self.journal(bytes)
    }

    fn journal(&mut self, bytes: u64) -> Result<(), InstallError> {
        self.unmarked += bytes;
        if self.unmarked >= JOURNAL_EVERY_BYTES { self.mark() } else { Ok(()) }
    }

    /// What is written so far is on the medium; then the journal says so.
    fn mark(&mut self) -> Result<(), InstallError> {
        self.job.device.flush().map_err(InstallError::writing_slot)?;
        self.job.journal.reached(self.at)?;
        self.unmarked = 0;
        Ok(())
    }
}
