//! Where segments come from, over small made-up indexes.

use super::*;
use crate::image::BLOCK_BYTES;
use crate::image::index::{ChunkRef, Index, IndexWriter};
use crate::image::lookup::Finder;

const BLOCK: u32 = BLOCK_BYTES;
static NOWHERE: Lookup = Lookup::none();

/// A chunk of `blocks` blocks, whose content is its name.
fn chunk(name: u8, blocks: u32) -> ChunkRef {
    ChunkRef { raw_bytes: blocks * BLOCK, sha256: [name; 32] }
}

/// An index of frames; a frame without chunks is one zero block.
fn index(frames: &[&[ChunkRef]]) -> Index {
    let mut writer = IndexWriter::new().unwrap();
    for frame in frames {
        let raw_bytes = frame.iter().map(|chunk| chunk.raw_bytes).sum::<u32>().max(BLOCK);
        writer.push_frame(100, raw_bytes, frame).unwrap();
    }
    let built = writer.finish().unwrap();
    Index::parse(&built.blob, built.raw_bytes, built.blob_bytes).unwrap()
}

/// Where the chunks of `new` lie.
fn lookup(new: &Index, places: &[(Place, &Index)]) -> Lookup {
    let mut finder = Finder::new(new);
    places.iter().for_each(|(place, index)| finder.add(*place, index));
    finder.finish(new)
}

fn segments(plan: &Plan<'_>) -> Vec<Segment> {
    let mut out = Vec::new();
    (0..plan.index.frame_count()).for_each(|frame| plan.push_frame(frame, &mut out));
    let whole: u64 = out.iter().map(|segment| segment.raw.end - segment.raw.start).sum();
    assert_eq!(whole, plan.index.raw_bytes(), "all of the image, once");
    assert!(out.windows(2).all(|pair| pair[0].raw.end == pair[1].raw.start), "in order");
    out
}

fn origins(plan: &Plan<'_>) -> Vec<(Range<u64>, From)> {
    let blocks = |range: Range<u64>| range.start / u64::from(BLOCK)..range.end / u64::from(BLOCK);
    segments(plan).into_iter().map(|segment| (blocks(segment.raw), segment.from)).collect()
}

#[test]
fn nothing_known_is_fetched_frame_by_frame_and_zeros_never() {
    let new = index(&[&[chunk(1, 2)], &[], &[chunk(2, 1), chunk(3, 1)]]);
    let plan = Plan::new(&new, &NOWHERE);
    assert_eq!(origins(&plan), [(0..2, From::Fetch), (2..3, From::Zeros), (3..5, From::Fetch)]);
}

#[test]
fn what_lies_in_place_stays_and_what_moved_is_copied_in_one_piece() {
    let old = index(&[&[chunk(1, 2)], &[chunk(2, 2)], &[chunk(3, 1)], &[chunk(4, 1)]]);
    let new = index(&[&[chunk(1, 2)], &[chunk(9, 1)], &[chunk(2, 2)], &[chunk(3, 1)], &[chunk(4, 1)]]);
    let target = lookup(&new, &[(Place::Target, &old)]);
    let plan = Plan::new(&new, &target);
    // Chunks 2, 3 and 4 move by a block towards the end: their old places are overwritten before they could be read.
    let fetched = [(2..3, From::Fetch), (3..5, From::Fetch), (5..6, From::Fetch), (6..7, From::Fetch)];
    assert_eq!(origins(&plan)[0], (0..2, From::InPlace));
    assert_eq!(origins(&plan)[1..], fetched);
    let running = lookup(&new, &[(Place::Target, &old), (Place::Running, &old)]);
    let plan = Plan { lookup: &running, ..plan };
    let copied = From::Copy { place: Place::Running, offset: 2 * u64::from(BLOCK) };
    assert_eq!(origins(&plan)[1..], [(2..3, From::Fetch), (3..7, copied)]);
}

#[test]
fn the_target_gives_what_lies_behind_the_writer() {
    let old = index(&[&[chunk(1, 2)], &[chunk(2, 2)], &[chunk(3, 1)]]);
    let new = index(&[&[chunk(2, 2)], &[chunk(3, 1)], &[chunk(1, 2)]]);
    let target = lookup(&new, &[(Place::Target, &old)]);
    let plan = Plan::new(&new, &target);
    let copied = From::Copy { place: Place::Target, offset: 2 * u64::from(BLOCK) };
    assert_eq!(origins(&plan), [(0..3, copied), (3..5, From::Fetch)]);
}

#[test]
fn a_place_that_is_not_trusted_is_not_looked_at() {
    let all = index(&[&[chunk(1, 2)], &[chunk(2, 2)]]);
    let known = lookup(&all, &[(Place::Target, &all), (Place::Running, &all)]);
    let by = |places| origins(&Plan { places, ..Plan::new(&all, &known) });
    let running = From::Copy { place: Place::Running, offset: 0 };
    assert_eq!(by([true, true]), [(0..4, From::InPlace)]);
    assert_eq!(by([false, true]), [(0..4, From::InPlace)]);
    assert_eq!(by([true, false]), [(0..4, running)]);
    assert_eq!(by([false, false]), [(0..2, From::Fetch), (2..4, From::Fetch)]);
}

#[test]
fn a_frame_with_one_missing_chunk_is_fetched_whole_and_a_kept_one_is_not_looked_up() {
    let old = index(&[&[chunk(1, 1)], &[chunk(2, 1)]]);
    let new = index(&[&[chunk(1, 1), chunk(9, 1)], &[chunk(8, 1), chunk(7, 1)]]);
    let running = lookup(&new, &[(Place::Running, &old)]);
    let plan = Plan { kept: &[false, true], ..Plan::new(&new, &running) };
    assert_eq!(origins(&plan), [(0..2, From::Fetch), (2..4, From::InPlace)]);
}

#[test]
fn segments_are_no_longer_than_a_worker_holds() {
    let frames: Vec<Vec<ChunkRef>> = (0..40).map(|name| vec![chunk(name, 16)]).collect();
    let frames: Vec<&[ChunkRef]> = frames.iter().map(Vec::as_slice).collect();
    let all = index(&frames);
    for place in [Place::Target, Place::Running] {
        let known = lookup(&all, &[(place, &all)]);
        let found = segments(&Plan::new(&all, &known));
        assert_eq!(found.len(), 10, "64 KiB chunks, four at a time: {found:?}");
        assert!(found.iter().all(|segment| segment.raw.end - segment.raw.start == SEGMENT_BYTES_MAX));
    }
}

/// A patch whose entries make runs of chunks.
struct Made(Vec<Range<usize>>);

impl Entries for Made {
    fn entry_of(&self, chunk: usize) -> Option<usize> {
        self.0.iter().position(|chunks| chunks.contains(&chunk))
    }
    fn span(&self, entry: usize) -> Range<u64> {
        let at = entry as u64 * 10;
        at..at + 10
    }
}

#[test]
fn a_patch_makes_what_is_nowhere_and_a_frame_inside_its_entry_may_lie_in_place() {
    let old = index(&[&[chunk(5, 1)], &[chunk(2, 1)]]);
    let new = index(&[&[chunk(1, 1)], &[chunk(2, 1)], &[chunk(3, 1)], &[chunk(4, 1)]]);
    let (target, patch) = (lookup(&new, &[(Place::Target, &old)]), Made(std::iter::once(0..3).collect()));
    let plan = Plan { patch: Some(&patch), ..Plan::new(&new, &target) };
    let made = From::Patch { entry: 0 };
    assert_eq!(origins(&plan), [(0..1, made), (1..2, From::InPlace), (2..3, made), (3..4, From::Fetch)]);
}

#[test]
fn one_content_in_ten_thousand_places_is_found_at_once() {
    let frames = vec![&[ChunkRef { raw_bytes: BLOCK, sha256: [7; 32] }][..]; 10_000];
    let all = index(&frames);
    let known = lookup(&all, &[(Place::Running, &all), (Place::Target, &all)]);
    let plan = Plan::new(&all, &known);
    assert!(segments(&plan).iter().all(|segment| segment.from == From::InPlace));
}
