//! The third stage: writes in ascending order, flushes, journals, and hands over what may be read back.
//!
//! Not here: the bytes' origin, the hash tree (`prove`). Rule: what lies there already is not written again, and the journal says only what was flushed.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender};

use switchback_partitions::device::AlignedBuffer;

use super::fetch::Parcel;
use super::pipeline::{JOURNAL_EVERY_BYTES, SlotJob};
use super::stages::Clock;
use super::work::Made;
use super::{InstallError, Traffic};
use crate::image::plan::Segment;

/// The device gets pieces of at most this many bytes, and of so many wherever there is no gap.
const WRITE_BYTES: usize = 1024 * 1024;

/// After this many bytes the device is flushed and they are read back. Short, as nothing is read back before the first are there and
/// nothing is written any more while the last are.
const PROVE_EVERY_BYTES: u64 = 16 * 1024 * 1024;
/// Steps that the writer may be ahead of who reads back.
pub const STEPS_AHEAD: usize = 4;

/// What each worker hands over, in the order in which it was dealt out to it.
pub type Results = Receiver<Result<Parcel<Made>, InstallError>>;

/// Takes the segments from the workers in turn and writes them. What is on the medium goes `to_prove`.
pub fn write(
    job: &SlotJob<'_>,
    from: &[Results],
    to_prove: SyncSender<Range<u64>>,
    clock: &mut Clock,
) -> Result<Traffic, InstallError> {
    let pending = AlignedBuffer::new(WRITE_BYTES);
    let mut out = Writer { job, to_prove, clock, pending, filled: 0, at: 0, flushed: 0, marked: 0 };
    let mut traffic = Traffic::default();
    for from in from.iter().cycle() {
        let Ok(parcel) = from.recv() else { break };
        for (segment, made) in parcel? {
            out.segment(&segment, made, &mut traffic)?;
        }
    }
    out.drain()?;
    out.flush(true)?;
    Ok(traffic)
}

/// Collects segments into large writes.
struct Writer<'a> {
    job: &'a SlotJob<'a>,
    to_prove: SyncSender<Range<u64>>,
    clock: &'a mut Clock,
    pending: AlignedBuffer,
    /// Bytes of `pending` that wait to be written.
    filled: usize,
    /// First byte that is neither written nor pending.
    at: u64,
    /// First byte that is not on the medium yet.
    flushed: u64,
    /// First byte that the journal does not know of.
    marked: u64,
}

impl Writer<'_> {
    fn segment(&mut self, segment: &Segment, made: Made, traffic: &mut Traffic) -> Result<(), InstallError> {
        let bytes = segment.raw.end - segment.raw.start;
        // Segments come without a gap: the index was checked for that, this catches a mistake of ours before it is written.
        if segment.raw.start != self.at {
            return Err(InstallError::Worker);
        }
        match made {
            Made::Zeros => {
                self.zero(bytes)?;
                traffic.zero += bytes;
            }
            Made::InPlace => {
                self.keep(bytes)?;
                traffic.kept += bytes;
            }
            Made::Copied(raw) => {
                self.bytes(&raw)?;
                traffic.copied += bytes;
                traffic.written += bytes;
            }
            Made::Fetched(raw) => {
                self.bytes(&raw)?;
                traffic.written += bytes;
            }
        }
        self.job.progress.advance(bytes);
        Ok(())
    }

    fn bytes(&mut self, raw: &[u8]) -> Result<(), InstallError> {
        let mut rest = raw;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(WRITE_BYTES - self.filled));
            self.pending[self.filled..][..now.len()].copy_from_slice(now);
            self.filled += now.len();
            self.at += now.len() as u64;
            rest = later;
            if self.filled == WRITE_BYTES {
                self.drain()?;
            }
        }
        Ok(())
    }

    fn zero(&mut self, bytes: u64) -> Result<(), InstallError> {
        self.drain()?;
        let (device, at) = (&self.job.device, self.at);
        self.clock.work(|| device.zero(at, bytes)).map_err(InstallError::writing_slot)?;
        self.at += bytes;
        self.step()
    }

    /// What is in place counts like what is written: a mark that waited for 64 MiB of new bytes would lie more than one step
    /// behind after the second kill, and the run after that would pay for the difference again.
    fn keep(&mut self, bytes: u64) -> Result<(), InstallError> {
        self.drain()?;
        self.at += bytes;
        self.step()
    }

    fn drain(&mut self) -> Result<(), InstallError> {
        let pending = &self.pending[..std::mem::take(&mut self.filled)];
        if pending.is_empty() {
            return Ok(());
        }
        let (device, start) = (&self.job.device, self.at - pending.len() as u64);
        self.clock.work(|| device.write_past_cache(start, pending)).map_err(InstallError::writing_slot)?;
        self.step()
    }

    fn step(&mut self) -> Result<(), InstallError> {
        if self.at - self.flushed >= PROVE_EVERY_BYTES { self.flush(false) } else { Ok(()) }
    }

    /// What is written so far is on the medium; then the journal says so, now and then and at the end, and it is read back.
    fn flush(&mut self, end: bool) -> Result<(), InstallError> {
        let device = &self.job.device;
        self.clock.work(|| device.flush()).map_err(InstallError::writing_slot)?;
        if end || self.at - self.marked >= JOURNAL_EVERY_BYTES {
            self.job.journal.reached(self.at)?;
            self.marked = self.at;
        }
        // Who reads back and ends early has its own error to tell.
        let done = std::mem::replace(&mut self.flushed, self.at)..self.at;
        self.to_prove.send(done).map_err(|_| InstallError::Worker)
    }
}
