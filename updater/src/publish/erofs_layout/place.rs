//! Where each inode, attribute and run of data is to lie.
//!
//! What the earlier release has, too, keeps its place if it fits there: first what has not grown, then what can grow into
//! free room. The rest goes where writing is needed anyway: data into the smallest gap that takes it, small parts into
//! blocks of small parts that change, then into new blocks.
//!
//! Not here: which inode is which (`pair`), bytes (`write`). Rule: no two things overlap, the superblock keeps its place,
//! and nothing is kept so far behind the end that releases made from releases would grow without limit.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::LayoutError;
use super::read::{Inode, Run, SLOT_BYTES, SUPERBLOCK_BYTES};
use super::tree::{ROOT, Tree};
use super::write::inode_bytes;
use crate::publish::rootfs::{BLOCK_BYTES, SUPERBLOCK_AT};

/// First byte behind the superblock.
pub(super) const HEAD_BYTES: u64 = SUPERBLOCK_AT + SUPERBLOCK_BYTES as u64;
/// The number of the root's inode has 16 bits.
const ROOT_AT_MAX: u64 = 0xffff * SLOT_BYTES;
/// What is kept may make the image longer than `mkfs.erofs` has it: by an eighth and this many blocks.
const SLACK_BLOCKS: u64 = 64;

/// A place for everything.
pub(super) struct Places {
    /// First byte of each inode of the new tree. `None` only while places are given out.
    pub inodes: Vec<Option<u64>>,
    /// First block of each run, by where the new image of `mkfs.erofs` has it.
    pub runs: BTreeMap<Run, u64>,
    /// First byte of each shared attribute, by its number in that image.
    pub shared: BTreeMap<u32, u64>,
    /// Byte that the new numbers of shared attributes count from.
    pub shared_at: u64,
    /// Each inode's serial number: `mkfs.erofs` counts, so that a new file would change all that follow.
    pub numbers: Vec<u32>,
    /// Length of the image.
    pub blocks: u64,
}

/// A place for everything in `new`, by `pairs` as in `old`.
pub(super) fn place(new: &Tree, old: &Tree, pairs: &[Option<usize>]) -> Result<Places, LayoutError> {
    let mut placing = Placing::new(new, old, pairs);
    placing.place_root()?;
    placing.keep_shared();
    for grown in [false, true] {
        for number in 0..new.inodes.len() {
            placing.keep_inode(number, grown);
            placing.keep_run(number, grown);
        }
    }
    let mut gaps = Gaps::between(&placing.taken);
    placing.place_runs(&mut gaps);
    let mut room = Room { spaces: BTreeSet::new(), gaps };
    for (from, to) in placing.free_in_changed_blocks()? {
        room.offer(from, to);
    }
    placing.place_small(&mut room)?;
    let mut places = placing.places;
    places.blocks = room.gaps.end;
    // The last number would mean a hole.
    if places.blocks >= u64::from(u32::MAX) {
        return Err(new.image.odd("it is too long to be rearranged"));
    }
    Ok(places)
}

struct Placing<'a> {
    new: &'a Tree,
    old: &'a Tree,
    pairs: &'a [Option<usize>],
    places: Places,
    taken: Taken,
    /// Blocks with inodes or attributes in them.
    small: BTreeSet<u64>,
    /// First byte behind which nothing is kept.
    limit: u64,
}

impl<'a> Placing<'a> {
    fn new(new: &'a Tree, old: &'a Tree, pairs: &'a [Option<usize>]) -> Placing<'a> {
        // Numbers of shared attributes stay only if they count from the same block, behind which all of them must lie.
        let shared_at = if old.image.shared_at <= BLOCK_BYTES { old.image.shared_at } else { 0 };
        let places = Places {
            inodes: vec![None; new.inodes.len()],
            runs: BTreeMap::new(),
            shared: BTreeMap::new(),
            shared_at,
            numbers: numbers(old, pairs),
            blocks: 0,
        };
        let limit = (new.image.blocks + new.image.blocks / 8 + SLACK_BLOCKS) * BLOCK_BYTES;
        let mut placing =
            Placing { new, old, pairs, places, taken: Taken::default(), small: BTreeSet::new(), limit };
        placing.take_small(0, HEAD_BYTES);
        placing
    }

    /// Takes bytes for something small, if all of them are free.
    fn take_small(&mut self, from: u64, to: u64) -> bool {
        let took = self.taken.take(from, to);
        if took {
            self.small.extend(blocks_of(from, to));
        }
        took
    }

    /// First, as its number has 16 bits only: what lay there has to go.
    fn place_root(&mut self) -> Result<(), LayoutError> {
        let (root, was) = (&self.new.inodes[ROOT], &self.old.inodes[ROOT]);
        let fits = |at: u64| (HEAD_BYTES..=ROOT_AT_MAX).contains(&at) && root.lies_well_at(at);
        let stays = Some(was.at).filter(|at| fits(*at) && root.bytes() <= was.bytes());
        let mut occupied = Taken::default();
        occupied.take(0, HEAD_BYTES);
        for inode in &self.old.inodes {
            occupied.take(inode.at, inode.at + inode.bytes());
            if let Some(run) = inode.run {
                occupied.take(run.start * BLOCK_BYTES, (run.start + run.blocks) * BLOCK_BYTES);
            }
        }
        let mut slots = (0..=ROOT_AT_MAX).step_by(SLOT_BYTES as usize).filter(|at| fits(*at));
        let at = stays
            .or_else(|| slots.clone().find(|at| occupied.is_free(*at, at + root.bytes())))
            .or_else(|| slots.find(|at| *at >= BLOCK_BYTES))
            .ok_or_else(|| self.new.image.odd("its root fits nowhere"))?;
        self.take_small(at, at + root.bytes());
        self.places.inodes[ROOT] = Some(at);
        Ok(())
    }

    fn keep_shared(&mut self) {
        let (new, old) = (self.new, self.old);
        let at = |id: u32| old.image.shared_at + u64::from(id) * 4;
        let places: BTreeMap<&[u8], u64> = old.shared.iter().rev().map(|(id, b)| (&b[..], at(*id))).collect();
        for (id, bytes) in &new.shared {
            if let Some(at) = places.get(&bytes[..])
                && *at >= self.places.shared_at
                && self.take_small(*at, at + bytes.len() as u64)
            {
                self.places.shared.insert(*id, *at);
            }
        }
    }

    fn keep_inode(&mut self, number: usize, grown: bool) {
        let Some(pair) = self.pairs[number].filter(|_| self.places.inodes[number].is_none()) else { return };
        let (inode, was) = (&self.new.inodes[number], &self.old.inodes[pair]);
        let (at, end) = (was.at, was.at + inode.bytes());
        let last_block = |end: u64| (end - 1) / BLOCK_BYTES;
        // Growing into another block would turn it into one of small parts.
        let fits = inode.bytes() <= was.bytes() || grown && last_block(end) == last_block(at + was.bytes());
        if fits && inode.lies_well_at(at) && end <= self.limit && self.take_small(at, end) {
            self.places.inodes[number] = Some(at);
        }
    }

    fn keep_run(&mut self, number: usize, grown: bool) {
        let was = self.pairs[number].and_then(|pair| self.old.inodes[pair].run);
        let (Some(run), Some(was)) = (self.new.inodes[number].run, was) else { return };
        let (from, to) = (was.start * BLOCK_BYTES, (was.start + run.blocks) * BLOCK_BYTES);
        let fits = grown || run.blocks <= was.blocks;
        if fits && to <= self.limit && !self.places.runs.contains_key(&run) && self.taken.take(from, to) {
            self.places.runs.insert(run, was.start);
        }
    }

    /// The longest first, as they find the fewest gaps.
    fn place_runs(&mut self, gaps: &mut Gaps) {
        let runs: BTreeSet<Run> = self.new.inodes.iter().filter_map(|inode| inode.run).collect();
        let mut rest: Vec<Run> = runs.into_iter().filter(|run| !self.places.runs.contains_key(run)).collect();
        rest.sort_by_key(|run| Reverse(run.blocks));
        for run in rest {
            self.places.runs.insert(run, gaps.take(run.blocks));
        }
    }

    /// What is free in blocks of small parts that an update writes anyway.
    fn free_in_changed_blocks(&self) -> Result<Vec<(u64, u64)>, LayoutError> {
        // The superblock names the release.
        let mut changed = BTreeSet::from([0]);
        let mut stays = vec![false; self.old.inodes.len()];
        for (number, pair) in self.pairs.iter().enumerate() {
            let Some(pair) = *pair else { continue };
            let was = &self.old.inodes[pair];
            if self.places.inodes[number] == Some(was.at) {
                stays[pair] = true;
                let bytes = inode_bytes(self.new, number, &self.places)?;
                if self.old.image.read(was.at, was.bytes())? != bytes {
                    changed.extend(blocks_of(was.at, was.at + was.bytes().max(bytes.len() as u64)));
                }
            }
        }
        for (was, _) in self.old.inodes.iter().zip(stays).filter(|(_, stays)| !stays) {
            changed.extend(blocks_of(was.at, was.at + was.bytes()));
        }
        // A block that has become free altogether is a gap, and may be given away already.
        Ok(changed.intersection(&self.small).flat_map(|block| self.taken.free_in(*block)).collect())
    }

    fn place_small(&mut self, room: &mut Room) -> Result<(), LayoutError> {
        for (id, bytes) in &self.new.shared {
            if !self.places.shared.contains_key(id) {
                let at = room.take(bytes.len() as u64, self.places.shared_at);
                self.places.shared.insert(*id, at);
            }
        }
        for (number, inode) in self.new.inodes.iter().enumerate() {
            if self.places.inodes[number].is_none() {
                let at = room.take_for(inode);
                let at =
                    at.ok_or_else(|| self.new.image.odd("an inode's attributes are too long to move"))?;
                self.places.inodes[number] = Some(at);
            }
        }
        Ok(())
    }
}

/// Serial numbers: the earlier release's where it has the inode, else the first free ones.
fn numbers(old: &Tree, pairs: &[Option<usize>]) -> Vec<u32> {
    let mut used = HashSet::new();
    let kept = pairs.iter().map(|pair| pair.map(|pair| old.inodes[pair].number));
    let kept: Vec<Option<u32>> = kept.map(|number| number.filter(|number| used.insert(*number))).collect();
    let mut free = (1..).filter(|number| !used.contains(number));
    kept.into_iter().map(|number| number.or_else(|| free.next()).unwrap_or_default()).collect()
}

fn blocks_of(from: u64, to: u64) -> std::ops::Range<u64> {
    from / BLOCK_BYTES..to.div_ceil(BLOCK_BYTES)
}

/// Bytes that are taken: from where to where, in order, never overlapping.
#[derive(Default)]
struct Taken(BTreeMap<u64, u64>);

impl Taken {
    fn is_free(&self, from: u64, to: u64) -> bool {
        self.0.range(..to).next_back().is_none_or(|(_, end)| *end <= from)
    }

    fn take(&mut self, from: u64, to: u64) -> bool {
        let free = from < to && self.is_free(from, to);
        if free {
            self.0.insert(from, to);
        }
        free
    }

    fn free_in(&self, block: u64) -> Vec<(u64, u64)> {
        let (mut at, end) = (block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
        let mut free = Vec::new();
        let before = self.0.range(..at).next_back();
        for (from, to) in before.into_iter().chain(self.0.range(at..end)) {
            if *from > at {
                free.push((at, *from));
            }
            at = at.max(*to);
        }
        if at < end {
            free.push((at, end));
        }
        free
    }
}

/// Free whole blocks.
struct Gaps {
    /// Length and first block of each gap.
    by_length: BTreeSet<(u64, u64)>,
    /// First block behind everything.
    end: u64,
}

impl Gaps {
    fn between(taken: &Taken) -> Gaps {
        let mut gaps = Gaps { by_length: BTreeSet::new(), end: 0 };
        for (from, to) in &taken.0 {
            let first = from / BLOCK_BYTES;
            if first > gaps.end {
                gaps.by_length.insert((first - gaps.end, gaps.end));
            }
            gaps.end = gaps.end.max(to.div_ceil(BLOCK_BYTES));
        }
        gaps
    }

    /// The first of `blocks` blocks: in the shortest gap that has them, else at the end.
    fn take(&mut self, blocks: u64) -> u64 {
        if let Some((length, start)) = self.by_length.range((blocks, 0)..).next().copied() {
            self.by_length.remove(&(length, start));
            if length > blocks {
                self.by_length.insert((length - blocks, start + blocks));
            }
            return start;
        }
        self.end += blocks;
        self.end - blocks
    }
}

/// Free bytes for small parts, in blocks that are written anyway.
struct Room {
    /// Length and first byte of each space, in bytes; none reaches over the end of a block.
    spaces: BTreeSet<(u64, u64)>,
    gaps: Gaps,
}

impl Room {
    fn offer(&mut self, from: u64, to: u64) {
        let from = from.next_multiple_of(SLOT_BYTES);
        if from < to {
            self.spaces.insert((to - from, from));
        }
    }

    /// The first of `bytes` bytes, not before `least`: a number of a shared attribute counts upwards from there.
    fn take(&mut self, bytes: u64, least: u64) -> u64 {
        let space = self.spaces.range((bytes, 0)..).find(|(_, at)| *at >= least).copied();
        if let Some((length, at)) = space {
            self.spaces.remove(&(length, at));
            self.offer(at + bytes, at + length);
            return at;
        }
        let blocks = bytes.div_ceil(BLOCK_BYTES);
        let at = self.gaps.take(blocks) * BLOCK_BYTES;
        self.offer(at + bytes, at + blocks * BLOCK_BYTES);
        at
    }

    /// Attributes may be longer than a block; then a beginning is looked for that keeps the tail in one.
    fn take_for(&mut self, inode: &Inode) -> Option<u64> {
        if inode.bytes() <= BLOCK_BYTES {
            return Some(self.take(inode.bytes(), 0));
        }
        let start = self.gaps.take(inode.bytes().div_ceil(BLOCK_BYTES) + 1) * BLOCK_BYTES;
        let mut places = (start..start + BLOCK_BYTES).step_by(SLOT_BYTES as usize);
        places.find(|at| inode.lies_well_at(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_never_taken_twice_and_what_is_free_is_found() {
        let mut taken = Taken::default();
        assert!(taken.take(0, 1152) && taken.take(8192, 12_288) && taken.take(4000, 4200));
        for (from, to, free) in
            [(1151, 1160, false), (1152, 4000, true), (3999, 4001, false), (4200, 8193, false), (5, 5, false)]
        {
            assert_eq!(taken.take(from, to), free, "{from} {to}");
        }
        assert!(taken.free_in(0).is_empty());
        assert_eq!(taken.free_in(1), [(4200, 8192)]);
        let mut gaps = Gaps::between(&taken);
        assert_eq!((gaps.take(1), gaps.end), (3, 4), "block 1 holds something");
    }

    #[test]
    fn the_shortest_gap_that_is_long_enough_is_taken_and_the_end_when_none_is() {
        let mut taken = Taken::default();
        for block in [0, 4, 7, 9] {
            assert!(taken.take(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES));
        }
        let mut gaps = Gaps::between(&taken);
        assert_eq!([2, 1, 3, 5, 1].map(|blocks| gaps.take(blocks)), [5, 8, 1, 10, 15]);
    }
}
