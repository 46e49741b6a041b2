//! Finds where in the base something like a run of the target lies: anchors sampled by content, counted along diagonals.
//!
//! An anchor is a hash of 32 bytes that begins with enough zero bits: the same bytes are an anchor wherever they lie. A
//! diagonal is how far behind its place in the target an anchor lies in the base; where many anchors agree on one, the
//! run's earlier self lies. Where a run is put together from several pieces, they lie where the base has many anchors close
//! to each other.
//!
//! Not here: windows (`windows`). Rule: bounded memory for a base of any size, and the same answer in every run.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::super::raw_image::RawImage;
use crate::image::BLOCK_BYTES;
use crate::image::index::{FrameBody, Index};
use crate::image::patch::WINDOWS_MAX;

/// The bytes that one anchor's hash covers: shorter than what lies between two relocated addresses of a program, mostly.
const SHINGLE_BYTES: u64 = 32;
/// One place in 2^this is an anchor, at least.
const BITS_MIN: u32 = 6;
/// About this many anchors are kept of a base at most; 8 bytes each.
const ROWS_MAX: u64 = 8 << 20;
/// Bytes that repeat more often than this say nothing about where a run comes from.
const REPEATS_MAX: usize = 8;
/// A place is kept in units of this many bytes, so that 32 bits reach through the largest image.
const PLACE_BYTES: u64 = 256;
/// The most diagonals that a run is told of.
const DIAGONALS_MAX: usize = 2;
/// Anchors with no more bytes than this between them in the base lie in one piece.
const GAP_BYTES: i64 = 32 * 1024;
/// How much of the base is read at once.
const READ_BYTES: u64 = 1 << 20;

/// The anchors of a base.
pub(super) struct Sketch {
    bits: u32,
    /// Hash and place, sorted.
    rows: Vec<(u32, u32)>,
}

/// Where in the base something like a run lies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// How far behind its place in the target it lies in the base, in bytes, to whole blocks; the likeliest first.
    pub(super) diagonals: Vec<i64>,
    /// Pieces of the base with anchors of the run in them, first to last; those with the most first.
    pub(super) pieces: Vec<Range<i64>>,
}

impl Sketch {
    /// Reads the whole base but for its zero runs.
    pub(super) fn new(index: &Index, raw: &RawImage) -> io::Result<Sketch> {
        let data: u64 = index.placed_chunks().map(|(_, chunk)| u64::from(chunk.raw_bytes)).sum();
        let mut bits = BITS_MIN;
        while data >> bits > ROWS_MAX {
            bits += 1;
        }
        let mut rows = Vec::new();
        let mut roll = Roll::new(bits);
        for extent in extents(index) {
            roll.restart();
            for start in extent.clone().step_by(READ_BYTES as usize) {
                let bytes = raw.read(start..extent.end.min(start + READ_BYTES))?;
                roll.feed(&bytes, |key, at| rows.push((key, ((start + at) / PLACE_BYTES) as u32)));
                // Some content has far more anchors than chance would have it.
                rows.truncate(2 * ROWS_MAX as usize);
            }
        }
        rows.sort_unstable();
        rows.dedup();
        Ok(Sketch { bits, rows: rare(&rows) })
    }

    /// Looks for the anchors of `raw`, which lies at byte `raw_offset` of the target.
    pub(super) fn find(&self, raw: &[u8], raw_offset: u64) -> Found {
        let (mut votes, mut places) = (BTreeMap::<i64, u32>::new(), Vec::new());
        Roll::new(self.bits).feed(raw, |key, at| {
            let from = self.rows.partition_point(|row| row.0 < key);
            for (_, place) in self.rows[from..].iter().take_while(|row| row.0 == key) {
                let place = i64::from(*place) * PLACE_BYTES as i64;
                // To the nearest block, from the middle of the place's unit: most of what moves does so by whole blocks.
                let moved = place + PLACE_BYTES as i64 / 2 - (raw_offset + at) as i64;
                *votes.entry((moved + BLOCK / 2).div_euclid(BLOCK) * BLOCK).or_default() += 1;
                places.push(place);
            }
        });
        Found { diagonals: likeliest(&votes), pieces: pieces(places) }
    }
}

const BLOCK: i64 = BLOCK_BYTES as i64;

/// The diagonals with the most votes; with each also count the two beside it, which are not told of again.
fn likeliest(votes: &BTreeMap<i64, u32>) -> Vec<i64> {
    let around = |diagonal: i64| {
        votes.range(diagonal - BLOCK..=diagonal + BLOCK).map(|(_, votes)| *votes).sum::<u32>()
    };
    let mut sorted: Vec<i64> = votes.keys().copied().collect();
    sorted.sort_by_key(|diagonal| (Reverse(around(*diagonal)), Reverse(votes[diagonal]), *diagonal));
    let mut likeliest: Vec<i64> = Vec::new();
    for diagonal in sorted {
        let apart = likeliest.iter().all(|other| (diagonal - other).abs() > BLOCK);
        if apart && likeliest.len() < DIAGONALS_MAX {
            likeliest.push(diagonal);
        }
    }
    likeliest
}

/// The pieces with the most anchors.
fn pieces(mut places: Vec<i64>) -> Vec<Range<i64>> {
    places.sort_unstable();
    let pieces = places.chunk_by(|a, b| b - a <= GAP_BYTES);
    let mut counted: Vec<(usize, Range<i64>)> = pieces
        .filter_map(|piece| Some((piece.len(), *piece.first()?..*piece.last()? + PLACE_BYTES as i64)))
        .collect();
    counted.sort_by_key(|(anchors, piece)| (Reverse(*anchors), piece.start));
    counted.into_iter().take(WINDOWS_MAX).map(|(_, piece)| piece).collect()
}

/// Runs of the raw image between zero runs.
fn extents(index: &Index) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for frame in index.frames().filter(|frame| frame.body != FrameBody::Zero) {
        let end = frame.raw_offset + frame.raw_bytes;
        match out.last_mut() {
            Some(last) if last.end == frame.raw_offset => last.end = end,
            _ => out.push(frame.raw_offset..end),
        }
    }
    out
}

/// Leaves out what repeats too often.
fn rare(rows: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let same = rows.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() <= REPEATS_MAX);
    same.flatten().copied().collect()
}

/// A rolling hash over the last [`SHINGLE_BYTES`] bytes: each step moves what it holds up by two bits and out at the top.
struct Roll {
    bits: u32,
    hash: u64,
    seen: u64,
    last_key: Option<u32>,
}

impl Roll {
    fn new(bits: u32) -> Roll {
        Roll { bits, hash: 0, seen: 0, last_key: None }
    }

    /// Forgets what went before.
    fn restart(&mut self) {
        *self = Roll::new(self.bits);
    }

    /// Tells `found` of each anchor: its key, and the place of its last byte in `bytes`.
    fn feed(&mut self, bytes: &[u8], mut found: impl FnMut(u32, u64)) {
        for (at, byte) in bytes.iter().enumerate() {
            self.hash = (self.hash << 2).wrapping_add(GEAR[usize::from(*byte)]);
            self.seen += 1;
            if self.hash >> (64 - self.bits) != 0 || self.seen < SHINGLE_BYTES {
                continue;
            }
            // All bits into the upper half: the lower ones of the hash know only the last bytes.
            let key = (self.hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
            // In a run of one byte every place would be an anchor.
            if self.last_key.replace(key) != Some(key) {
                found(key, at as u64);
            }
        }
    }
}

/// A number for each byte, from SplitMix64.
static GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut state = 0u64;
    let mut n = 0;
    while n < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[n] = mixed ^ (mixed >> 31);
        n += 1;
    }
    table
};
