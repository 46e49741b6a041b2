//! One run of the target that the base lacks → the entries that make it in the fewest bytes.
//!
//! Several sets of windows are tried at a quick level, whole and in halves; what is best there is compressed at the
//! release's level. What is not shorter than the release's own frames is left to them.
//!
//! Not here: which runs there are (`super`). Rule: an entry leaves only after the device's own decoder made the run of it;
//! the outcome depends on nothing but both images.

use std::io;
use std::ops::Range;

use zstd::zstd_safe::{CCtx, CParameter, compress_bound};

use super::sketch::Sketch;
use super::windows::WindowSet;
use super::{PatchError, Side};
use crate::image::patch::{self, Window};

/// The level at which sets of windows are compared: it finds the same matches but for the short ones.
const QUICK_LEVEL: i32 = 3;
/// What an entry costs beside its frame: its share of the header.
const ENTRY_COST: usize = 16;
/// An entry has to save more than one part in so many, too: each piece that is patched is one less that comes in one row
/// with its neighbours.
const SAVING_MIN: u64 = 128;
/// A half is halved again while that gains more than one part in so many.
const GAIN_MIN: usize = 64;
/// Runs are halved down to this many raw bytes.
const HALF_BYTES_MIN: u64 = 16 * 1024;
/// Two sets are both compressed at the release's level when the quick one tells them apart by less than one part in so many.
const CLOSE: usize = 16;
/// What a window around anchors has before and behind them.
const AROUND_BYTES: i64 = 16 * 1024;

/// Compresses runs against one base.
pub(super) struct Coder<'a> {
    pub(super) target: Side<'a>,
    pub(super) base: Side<'a>,
    pub(super) sketch: &'a Sketch,
    pub(super) level: i32,
}

/// Frames of the target that the base lacks, with what is known about where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// Frames of the target's index.
    pub(super) frames: Range<usize>,
    /// How far the chunks before and behind it moved: see [`WindowSet::along`].
    pub(super) diagonals: Vec<i64>,
}

/// An entry with its frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Encoded {
    /// Frames of the target's index.
    pub(super) frames: Range<usize>,
    /// Windows of the base.
    pub(super) windows: Vec<Window>,
    /// The zstd frame.
    pub(super) compressed: Vec<u8>,
}

/// A part of a run with the sets of windows that are worth compressing well.
struct Choice {
    frames: Range<usize>,
    sets: Vec<WindowSet>,
    /// What it costs at the quick level.
    bytes: usize,
}

impl Coder<'_> {
    /// The entries for `run`; parts that its own frames make in fewer bytes are left out.
    pub(super) fn encode(&self, run: &Run) -> Result<Vec<Encoded>, PatchError> {
        let whole = self.raw_range(&run.frames);
        let raw = self.target.raw.read(whole).map_err(PatchError::reading)?;
        let mut entries = Vec::new();
        for choice in self.divide(run, &raw, run.frames.clone())? {
            let part = self.part(run, &raw, &choice.frames);
            let entry = self.best(part, choice)?;
            let plain: u64 = entry.frames.clone().map(|frame| self.blob_bytes(frame)).sum();
            let cost = (entry.compressed.len() + ENTRY_COST) as u64;
            if cost + plain / SAVING_MIN >= plain {
                continue;
            }
            self.check(part, &entry)?;
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Whole, or in two parts where that is cheaper, and these again.
    fn divide(&self, run: &Run, raw: &[u8], frames: Range<usize>) -> Result<Vec<Choice>, PatchError> {
        let whole = self.choose(run, raw, frames.clone())?;
        let range = self.raw_range(&frames);
        if frames.len() < 2 || range.end - range.start < 2 * HALF_BYTES_MIN {
            return Ok(vec![whole]);
        }
        let middle = self.middle(&frames, range.start + (range.end - range.start) / 2);
        let left = self.choose(run, raw, frames.start..middle)?;
        let right = self.choose(run, raw, middle..frames.end)?;
        let gain = whole.bytes.saturating_sub(left.bytes + right.bytes);
        if gain <= whole.bytes / GAIN_MIN {
            return Ok(vec![whole]);
        }
        let mut parts = self.divide(run, raw, left.frames)?;
        parts.extend(self.divide(run, raw, right.frames)?);
        Ok(parts)
    }

    /// The frame border nearest behind `raw_offset`, with a frame at least on both sides.
    fn middle(&self, frames: &Range<usize>, raw_offset: u64) -> usize {
        let begins = |frame: &usize| self.target.index.frame(*frame).map_or(0, |frame| frame.raw_offset);
        let behind = (frames.start + 1..frames.end).find(|frame| begins(frame) >= raw_offset);
        behind.unwrap_or(frames.end - 1)
    }

    /// Compares the sets of windows for a part of a run.
    fn choose(&self, run: &Run, raw: &[u8], frames: Range<usize>) -> Result<Choice, PatchError> {
        let part = self.part(run, raw, &frames);
        let mut tried = Vec::new();
        for set in self.candidates(run, part, &frames) {
            let prefix = self.prefix(&set.windows())?;
            tried.push((compress(&prefix, part, QUICK_LEVEL)?.len(), set));
        }
        // A stable sort: of equals the simplest, which comes first.
        tried.sort_by_key(|(bytes, _)| *bytes);
        let best = tried.first().map_or(0, |(bytes, _)| *bytes);
        let close = tried.into_iter().take(2).filter(|(bytes, _)| *bytes <= best + best / CLOSE);
        let sets = close.map(|(_, set)| set).collect();
        Ok(Choice { frames, sets, bytes: best + ENTRY_COST })
    }

    /// Sets of windows that may hold the earlier self of a part, the simplest first.
    fn candidates(&self, run: &Run, part: &[u8], frames: &Range<usize>) -> Vec<WindowSet> {
        let base_bytes = self.base.index.raw_bytes();
        let range = self.raw_range(frames);
        let along = |diagonals: &[i64]| WindowSet::along(base_bytes, &range, diagonals);
        let found = self.sketch.find(part, range.start);
        let (mut both, mut scattered) = (along(&run.diagonals), WindowSet::new(base_bytes));
        for piece in &found.pieces {
            let around = piece.start - AROUND_BYTES..piece.end + AROUND_BYTES;
            scattered.add(around.clone());
            both.add(around);
        }
        let mut all = vec![WindowSet::new(base_bytes), along(&run.diagonals)];
        all.extend((1..=found.diagonals.len()).map(|count| along(&found.diagonals[..count])));
        all.extend([scattered, both]);
        let mut different = Vec::new();
        for set in all {
            if !different.contains(&set) {
                different.push(set);
            }
        }
        different
    }

    /// Compresses a part at the release's level with each of its sets and keeps the shortest.
    fn best(&self, part: &[u8], choice: Choice) -> Result<Encoded, PatchError> {
        let mut best: Option<Encoded> = None;
        for set in choice.sets {
            let windows = set.windows();
            let compressed = compress(&self.prefix(&windows)?, part, self.level)?;
            if best.as_ref().is_none_or(|best| compressed.len() < best.compressed.len()) {
                best = Some(Encoded { frames: choice.frames.clone(), windows, compressed });
            }
        }
        best.ok_or(PatchError::Worker)
    }

    /// Makes the part of the entry, as a device does it.
    fn check(&self, part: &[u8], entry: &Encoded) -> Result<(), PatchError> {
        let prefix = self.prefix(&entry.windows)?;
        let mut made = Vec::new();
        let decoded = patch::decode(&prefix, &entry.compressed, part.len(), &mut made);
        if decoded.is_err() || made != part {
            return Err(PatchError::RoundTrip { raw_offset: self.raw_range(&entry.frames).start });
        }
        Ok(())
    }

    fn prefix(&self, windows: &[Window]) -> Result<Vec<u8>, PatchError> {
        let mut prefix = Vec::new();
        for Window { offset, bytes } in windows {
            let range = *offset..*offset + u64::from(*bytes);
            prefix.extend(self.base.raw.read(range).map_err(PatchError::reading)?);
        }
        Ok(prefix)
    }

    fn blob_bytes(&self, frame: usize) -> u64 {
        self.target.index.frame(frame).map_or(0, |frame| u64::from(frame.blob_bytes))
    }

    /// Where frames lie in the target's raw image.
    fn raw_range(&self, frames: &Range<usize>) -> Range<u64> {
        let place =
            |frame| self.target.index.frame(frame).map_or(0..0, |f| f.raw_offset..f.raw_offset + f.raw_bytes);
        place(frames.start).start..place(frames.end - 1).end
    }

    /// The bytes of `frames`, of those of the whole run.
    fn part<'r>(&self, run: &Run, raw: &'r [u8], frames: &Range<usize>) -> &'r [u8] {
        let (all, part) = (self.raw_range(&run.frames), self.raw_range(frames));
        &raw[(part.start - all.start) as usize..(part.end - all.start) as usize]
    }
}

/// Compresses `raw` behind `prefix`. Both lie in one buffer: zstd then sees one window, and its outcome does not depend on
/// where two buffers happen to lie. The window is made as long as both by zstd itself.
fn compress(prefix: &[u8], raw: &[u8], level: i32) -> Result<Vec<u8>, PatchError> {
    let failed =
        |code| PatchError::Compress { source: io::Error::other(zstd::zstd_safe::get_error_name(code)) };
    let mut both = Vec::with_capacity(prefix.len() + raw.len());
    both.extend_from_slice(prefix);
    both.extend_from_slice(raw);
    let (prefix, raw) = both.split_at(prefix.len());
    let mut context = CCtx::create();
    context.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
    context.ref_prefix(prefix).map_err(failed)?;
    let mut compressed = Vec::with_capacity(compress_bound(raw.len()));
    context.compress2(&mut compressed, raw).map_err(failed)?;
    compressed.shrink_to_fit();
    Ok(compressed)
}
