//! Layers with and without an earlier release's frames at hand.
//!
//! Not here: fetching its blob (`spool`). Rule: but for an earlier release that was made by hand to show it, nobody can tell
//! from a layer whether its frames were taken or compressed.

use std::sync::Arc;

use super::*;
use crate::image::BLOCK_BYTES;
use crate::image::chunker::noise;
use crate::image::index::IndexWriter;
use crate::publish::layer::{Layer, LayerOptions, write_layer};
use crate::publish::like::KnownChunks;

const LEVEL: i32 = 3;

/// Lines of words: zstd shortens them, to other bytes at each level.
fn prose(blocks: usize, seed: u64) -> Vec<u8> {
    let bytes = blocks * BLOCK_BYTES as usize;
    let mut text = Vec::new();
    for dice in noise(blocks, seed) {
        text.extend(
            format!("the {} of line {}, ", dice % 23, text.len() / 700 * usize::from(dice % 5)).bytes(),
        );
        if text.len() >= bytes {
            break;
        }
    }
    text.truncate(bytes);
    text
}

/// A release, and a later raw image.
struct Scene {
    index: Index,
    blob: Vec<u8>,
    later: Vec<u8>,
}

fn parsed(layer: &Layer) -> Index {
    Index::parse(&layer.index, layer.raw_bytes, layer.blob_bytes).unwrap()
}

impl Scene {
    /// The later image has a run of new blocks, a changed byte here and there, and zeros at its end.
    fn new() -> Scene {
        let old = prose(1000, 1);
        let mut blob = Vec::new();
        let options = LayerOptions { level: LEVEL, threads: 2, ..LayerOptions::default() };
        let layer = write_layer(old.as_slice(), &mut blob, &options, &|_| {}).unwrap();
        let mut later = old;
        (0..6).for_each(|n| later[n * 300_000 + 5] ^= 1);
        later.splice(600 * BLOCK_BYTES as usize..600 * BLOCK_BYTES as usize, prose(30, 2));
        later.extend(vec![0; 5 * BLOCK_BYTES as usize]);
        Scene { index: parsed(&layer), blob, later }
    }

    /// The later image's layer, with what is at hand of the frames.
    fn layer(&self, level: i32, threads: usize, frames: Option<EarlierFrames>) -> (Layer, Vec<u8>) {
        let mut known = KnownChunks::default();
        known.add(&self.index);
        let options = LayerOptions { level, threads, known: Arc::new(known), frames: frames.map(Arc::new) };
        let mut blob = Vec::new();
        let layer = write_layer(self.later.as_slice(), &mut blob, &options, &|_| {}).unwrap();
        (layer, blob)
    }

    fn frames(&self) -> EarlierFrames {
        EarlierFrames::new(Spool::of(&self.blob), &self.index)
    }

    /// Where a frame lies in the blob that is sampled, or one that is not and that the later image has.
    fn place(&self, sampled: bool) -> (Vec<ChunkRef>, std::ops::Range<usize>) {
        let frames = self.frames();
        let (later, _) = self.layer(LEVEL, 2, None);
        let later = parsed(&later);
        let kept = |chunks: &[ChunkRef]| later.frames().any(|frame| frame.chunks() == chunks);
        let fits = |frame: &FrameRef<'_>| {
            frames.samples.contains(&frame.chunks().to_vec()) == sampled && kept(frame.chunks())
        };
        let frame = self.index.frames().skip(50).find(fits).unwrap();
        let begin = frame.blob_offset as usize;
        (frame.chunks().to_vec(), begin..begin + frame.blob_bytes as usize)
    }
}

#[test]
fn a_layer_is_the_same_byte_for_byte_whether_its_frames_are_taken_or_compressed() {
    let scene = Scene::new();
    let (plain, plain_blob) = scene.layer(LEVEL, 2, None);
    assert_eq!(plain.taken, None);
    for threads in [1, 3] {
        let (layer, blob) = scene.layer(LEVEL, threads, Some(scene.frames()));
        let taken = layer.taken.unwrap();
        assert!(blob == plain_blob && Layer { taken: None, ..layer } == plain);
        let old: Vec<_> = scene.index.frames().map(|frame| frame.chunks()).collect();
        let same =
            parsed(&plain).frames().filter(|f| !f.chunks().is_empty() && old.contains(&f.chunks())).count();
        assert_eq!(taken, same as u64);
        assert!(taken > 150 && taken < plain.statistics.frames, "{taken} of {}", plain.statistics.frames);
    }
}

#[test]
fn the_bytes_of_a_frame_come_from_the_earlier_release_and_from_no_compressor() {
    let scene = Scene::new();
    let (chunks, place) = scene.place(false);
    // The release once more, with this frame as another level makes it.
    let decoded = zstd::decode_all(&scene.blob[place]).unwrap();
    let other = zstd::bulk::compress(&decoded, 19).unwrap();
    let (mut index, mut blob, mut raw_bytes) = (IndexWriter::new().unwrap(), Vec::new(), 0);
    for frame in scene.index.frames() {
        let own = &scene.blob[frame.blob_offset as usize..][..frame.blob_bytes as usize];
        let bytes = if frame.chunks() == chunks { &other } else { own };
        index.push_frame(bytes.len() as u32, frame.raw_bytes as u32, frame.chunks()).unwrap();
        blob.extend(bytes);
        raw_bytes += frame.raw_bytes;
    }
    let index = Index::parse(&index.finish().unwrap().blob, raw_bytes, blob.len() as u64).unwrap();
    let (layer, blob) = scene.layer(LEVEL, 2, Some(EarlierFrames::new(Spool::of(&blob), &index)));
    let index = parsed(&layer);
    let frame = index.frames().find(|frame| frame.chunks() == chunks).unwrap();
    let found = &blob[frame.blob_offset as usize..][..frame.blob_bytes as usize];
    assert!(found == other);
    assert!(zstd::bulk::compress(&decoded, LEVEL).unwrap() != other, "the levels can be told apart");
}

#[test]
fn a_damaged_frame_is_compressed_anew_and_a_damaged_sample_makes_all_frames_so() {
    let scene = Scene::new();
    let (plain, plain_blob) = scene.layer(LEVEL, 2, None);
    let (whole, _) = scene.layer(LEVEL, 2, Some(scene.frames()));
    let (_, unsampled) = scene.place(false);
    let (_, sampled) = scene.place(true);
    let one_less = whole.taken.map(|taken| taken - 1);
    for (at, why, expected) in [
        (unsampled.start, "its first byte", one_less),
        (unsampled.start + unsampled.len() / 2, "in its middle", one_less),
        (sampled.start + sampled.len() / 2, "in the middle of a sample", None),
    ] {
        let mut blob = scene.blob.clone();
        blob[at] ^= 0x10;
        let frames = EarlierFrames::new(Spool::of(&blob), &scene.index);
        let (layer, blob) = scene.layer(LEVEL, 2, Some(frames));
        assert_eq!(layer.taken, expected, "{why}");
        assert!(blob == plain_blob && layer.index == plain.index, "{why}");
    }
    // The file got shorter behind our back: what it still has is sampled right, or nothing is taken.
    let frames = EarlierFrames::new(Spool::of(&scene.blob[..scene.blob.len() / 2]), &scene.index);
    let (layer, blob) = scene.layer(LEVEL, 2, Some(frames));
    assert!(layer.taken.is_none() && blob == plain_blob);
}

#[test]
fn nothing_is_taken_from_a_release_that_was_compressed_at_another_level() {
    let scene = Scene::new();
    for level in [1, 4, 12, 19] {
        assert!(!scene.frames().are_made_at(level).unwrap(), "{level}");
    }
    let (plain, plain_blob) = scene.layer(9, 2, None);
    let (layer, blob) = scene.layer(9, 2, Some(scene.frames()));
    assert!(layer == plain && blob == plain_blob);
    assert_eq!(layer.taken, None);
}

#[test]
fn samples_are_spread_over_the_frames_that_tell_levels_apart() {
    let mut raw = noise(300, 3);
    raw.extend(prose(700, 4));
    let mut blob = Vec::new();
    let options = LayerOptions { level: LEVEL, threads: 2, ..LayerOptions::default() };
    let index = parsed(&write_layer(raw.as_slice(), &mut blob, &options, &|_| {}).unwrap());
    let samples = samples(&index);
    assert!((SAMPLES / 2..=SAMPLES).contains(&samples.len()), "{} samples", samples.len());
    let number = |chunks: &Vec<ChunkRef>| index.frames().position(|frame| frame.chunks() == chunks).unwrap();
    let numbers: Vec<_> = samples.iter().map(number).collect();
    let first = index.frame(numbers[0]).unwrap();
    assert!(numbers.is_sorted() && first.raw_offset + first.raw_bytes > 300 * 4096, "{first:?} is noise");
    assert!(numbers[numbers.len() - 1] - numbers[0] > (index.frames().len() - numbers[0]) * 3 / 4);

    // What no level shortens is the same at every level, so it may be taken for any.
    let mut blob = Vec::new();
    let index = parsed(&write_layer(noise(50, 5).as_slice(), &mut blob, &options, &|_| {}).unwrap());
    let frames = EarlierFrames::new(Spool::of(&blob), &index);
    assert!(frames.samples.is_empty() && frames.are_made_at(19).unwrap());
}
