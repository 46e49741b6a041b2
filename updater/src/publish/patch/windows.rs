//! Sets of windows: which bytes of the base may stand before a run of the target.
//!
//! Not here: where to look (`sketch`), which set is the best (`coder`). Rule: a set keeps the format's bounds by itself:
//! whole blocks within the base, ascending without overlap, so many windows and so many bytes.

use std::ops::Range;

use crate::image::BLOCK_BYTES;
use crate::image::patch::{PREFIX_BYTES_MAX, WINDOWS_MAX, Window};

/// What a window has before and behind the place that a run is expected at: what was inserted or taken out nearby moves
/// the rest by less than this, mostly.
pub(super) const MARGIN_BYTES: i64 = 32 * 1024;

const BLOCK: i64 = BLOCK_BYTES as i64;
const ALL_MAX: i64 = PREFIX_BYTES_MAX as i64;

/// Windows of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WindowSet {
    base_bytes: i64,
    /// In blocks' borders, ascending, with gaps between them.
    ranges: Vec<Range<i64>>,
}

impl WindowSet {
    /// The empty set: an entry that is compressed for itself.
    pub(super) fn new(base_bytes: u64) -> WindowSet {
        WindowSet { base_bytes: base_bytes as i64, ranges: Vec::new() }
    }

    /// Windows for the run `raw` of the target along diagonals: each says how far behind its place in the target something
    /// lies in the base. The margins shrink where all would be too much.
    pub(super) fn along(base_bytes: u64, raw: &Range<u64>, diagonals: &[i64]) -> WindowSet {
        let mut set = WindowSet::new(base_bytes);
        let (start, end) = (raw.start as i64, raw.end as i64);
        let room = ALL_MAX / (diagonals.len() as i64).max(1) - (end - start) - BLOCK;
        let margin = (room / 2).clamp(0, MARGIN_BYTES);
        for diagonal in diagonals {
            set.add(start + diagonal - margin..end + diagonal + margin);
        }
        set
    }

    /// Adds the bytes `wanted` of the base, as far as they exist and there is room for them.
    pub(super) fn add(&mut self, wanted: Range<i64>) {
        let start = wanted.start.max(0) / BLOCK * BLOCK;
        let mut end = (wanted.end.min(self.base_bytes).max(0) + BLOCK - 1) / BLOCK * BLOCK;
        end = end.min(self.base_bytes / BLOCK * BLOCK);
        if start >= end {
            return;
        }
        let mut grown = joined(&self.ranges, start..end);
        let excess = bytes(&grown) - ALL_MAX;
        if excess > 0 {
            end -= (excess + BLOCK - 1) / BLOCK * BLOCK;
            if start >= end {
                return;
            }
            grown = joined(&self.ranges, start..end);
        }
        if grown.len() <= WINDOWS_MAX && bytes(&grown) <= ALL_MAX {
            self.ranges = grown;
        }
    }

    /// As the format has them.
    pub(super) fn windows(&self) -> Vec<Window> {
        let window = |range: &Range<i64>| Window {
            offset: range.start as u64,
            bytes: (range.end - range.start) as u32,
        };
        self.ranges.iter().map(window).collect()
    }
}

fn bytes(ranges: &[Range<i64>]) -> i64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// The union with one range more; what touches becomes one.
fn joined(ranges: &[Range<i64>], more: Range<i64>) -> Vec<Range<i64>> {
    let mut all: Vec<Range<i64>> = ranges.to_vec();
    all.push(more);
    all.sort_by_key(|range| range.start);
    let mut out: Vec<Range<i64>> = Vec::with_capacity(all.len());
    for range in all {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn pairs(set: &WindowSet) -> Vec<(u64, u32)> {
        set.windows().iter().map(|window| (window.offset, window.bytes)).collect()
    }

    #[test]
    fn a_window_is_whole_blocks_within_the_base() {
        let mut set = WindowSet::new(MIB);
        set.add(-5000..5000);
        set.add(MIB as i64 - 1..MIB as i64 + 70_000);
        set.add(2 * MIB as i64..3 * MIB as i64);
        assert_eq!(pairs(&set), [(0, 8192), (MIB - 4096, 4096)]);
    }

    #[test]
    fn what_touches_is_one_window_and_no_more_than_four_are_taken() {
        let mut set = WindowSet::new(MIB);
        for start in [0, 40_960, 4096, 81_920, 122_880, 163_840] {
            set.add(start..start + 4096);
        }
        assert_eq!(pairs(&set), [(0, 8192), (40_960, 4096), (81_920, 4096), (122_880, 4096)]);
    }

    #[test]
    fn the_prefix_is_never_longer_than_the_format_allows() {
        let mut set = WindowSet::new(4 * MIB);
        set.add(0..400_000);
        set.add(MIB as i64..2 * MIB as i64);
        assert_eq!(set.windows().iter().map(|window| window.bytes).sum::<u32>(), PREFIX_BYTES_MAX);
        let raw = MIB..MIB + 256 * 1024;
        for diagonals in [&[0][..], &[0, MIB as i64], &[-4096, 0, 4096, 1 << 40]] {
            let set = WindowSet::along(4 * MIB, &raw, diagonals);
            let all: u32 = set.windows().iter().map(|window| window.bytes).sum();
            assert!(all > 0 && all <= PREFIX_BYTES_MAX, "{diagonals:?} {all}");
        }
    }

    #[test]
    fn a_run_gets_what_lies_around_its_place_along_the_diagonal() {
        let raw = MIB..MIB + 8192;
        let set = WindowSet::along(4 * MIB, &raw, &[4096]);
        let margin = MARGIN_BYTES as u64;
        assert_eq!(pairs(&set), [(MIB + 4096 - margin, 8192 + 2 * margin as u32)]);
    }
}
