//! The stage behind the writer: what was flushed is read back from the medium, and the hash tree is made of that.
//!
//! Not here: what a slot's content is worth later (`read_back`). Rule: the tree never sees the bytes that were to be written, only
//! those that the medium gives back, so that its root, compared with the signed one, proves the slot.

use std::ops::Range;
use std::sync::mpsc::Receiver;

use switchback_partitions::device::AlignedBuffer;
use switchback_partitions::verity::{RootHash, TreeWriter, VerityError};

use super::InstallError;
use super::pipeline::SlotJob;
use super::stages::Clock;
use crate::image::frame::chunks_match;
use crate::image::index::FrameBody;

/// Reads back ranges of the slot that were flushed, in order, until there are no more.
pub fn prove(
    job: &SlotJob<'_>,
    flushed: &Receiver<Range<u64>>,
    tree: &mut TreeWriter,
    clock: &mut Clock,
) -> Result<(), InstallError> {
    for range in flushed {
        if job.progress.stopped() {
            return Err(InstallError::Interrupted);
        }
        clock.work(|| tree.push_from(&*job.device, range)).map_err(|error| match error {
            VerityError::ReadData { .. } => InstallError::read_back(error),
            _ => InstallError::tree(error),
        })?;
    }
    Ok(())
}

/// Why the root of what was read back is not the signed one: the medium gave other bytes than were written, or the signed config
/// and the index contradict each other.
pub fn why(job: &SlotJob<'_>, found: RootHash, expected: RootHash) -> InstallError {
    let mut buffer = AlignedBuffer::new(0);
    let mut layer = match job.layer() {
        Ok(layer) => layer,
        Err(error) => return error,
    };
    for number in 0..job.outline().frame_count() {
        let frame = match layer.frame(number) {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        let bytes = frame.raw_bytes as usize;
        if matches!(frame.body, FrameBody::Zero) {
            continue;
        }
        if buffer.len() < bytes {
            buffer = AlignedBuffer::new(bytes);
        }
        let raw = &mut buffer[..bytes];
        if let Err(error) = job.device.read_past_cache(frame.raw_offset, raw) {
            return InstallError::reading_slot(error);
        }
        if let Err(error) = chunks_match(&frame, raw) {
            return InstallError::read_back(error);
        }
    }
    InstallError::RootHash { expected: expected.to_string(), found: found.to_string() }
}
