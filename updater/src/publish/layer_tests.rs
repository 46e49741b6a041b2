//! Whole layers, read back by our own decoder and by the `zstd` program.
//!
//! Not here: hostile indexes (`image::index`). Rule: the raw image comes back byte for byte.

use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::image::BLOCK_BYTES;
use crate::image::frame::FrameDecoder;

const FAST: i32 = 3;

fn layer(raw: &[u8], threads: usize) -> (Layer, Vec<u8>) {
    let mut blob = Vec::new();
    let options = LayerOptions { level: FAST, threads, ..LayerOptions::default() };
    let layer = write_layer(raw, &mut blob, &options, &|_| {}).unwrap();
    (layer, blob)
}

/// The raw image, put together as a device does it: by the index, frame by frame, zero runs not read.
fn restore(layer: &Layer, blob: &[u8]) -> Vec<u8> {
    let index = Index::parse(&layer.index, layer.raw_bytes, layer.blob_bytes).unwrap();
    let mut decoder = FrameDecoder::new().unwrap();
    let mut raw = Vec::new();
    for frame in index.frames() {
        assert_eq!(frame.raw_offset, raw.len() as u64);
        let compressed = &blob[frame.blob_offset as usize..][..frame.blob_bytes as usize];
        let mut bytes = vec![0; frame.raw_bytes as usize];
        if let FrameBody::Chunks(_) = frame.body {
            decoder.decode(&frame, compressed, &mut bytes).unwrap();
        }
        raw.extend(bytes);
    }
    raw
}

/// An image of runs: zero, repeated bytes, noise.
fn image() -> impl Strategy<Value = Vec<u8>> {
    let run = (0..3u8, 1..40usize, any::<u64>());
    prop::collection::vec(run, 0..12).prop_map(|runs| {
        let mut raw = Vec::new();
        for (kind, blocks, seed) in runs {
            let bytes = blocks * BLOCK_BYTES as usize;
            match kind {
                0 => raw.extend(vec![0; bytes]),
                1 => raw.extend(vec![seed as u8; bytes]),
                _ => {
                    let mut state = seed | 1;
                    raw.extend((0..bytes).map(|_| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        (state >> 56) as u8
                    }));
                }
            }
        }
        raw
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_image_comes_back_whole_and_the_threads_do_not_matter(raw in image()) {
        let (one, one_blob) = layer(&raw, 1);
        let (three, three_blob) = layer(&raw, 3);
        prop_assert_eq!(&one, &three);
        prop_assert!(one_blob == three_blob);
        prop_assert_eq!(one.blob_digest, Digest::of(&one_blob));
        prop_assert_eq!(one.raw_sha256, Digest::of(&raw));
        prop_assert!(restore(&one, &one_blob) == raw);
    }
}

#[test]
fn the_zstd_program_turns_the_whole_blob_into_the_raw_image_and_accepts_the_index() {
    let mut raw = crate::image::chunker::noise(300, 7);
    raw.extend(vec![0; 65 << 20]);
    raw.extend(vec![0x5a; 100 * BLOCK_BYTES as usize]);
    let (layer, blob) = layer(&raw, 2);
    assert!(zstd_d(&blob) == raw);
    assert!(zstd_d(&layer.index).starts_with(b"SWBINDEX"));
}

fn zstd_d(blob: &[u8]) -> Vec<u8> {
    let mut child = Command::new("zstd")
        .args(["-d", "-c", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test needs the program zstd: apt-get install zstd");
    let mut stdin = child.stdin.take().unwrap();
    let blob = blob.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&blob));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn progress_adds_up_and_the_counts_are_those_of_the_image() {
    let mut raw = crate::image::chunker::noise(50, 8);
    raw.extend(vec![0; 20 * BLOCK_BYTES as usize]);
    let done = std::cell::Cell::new(0);
    let options = LayerOptions { level: FAST, threads: 2, ..LayerOptions::default() };
    let progress = |bytes| done.set(done.get() + bytes);
    let layer = write_layer(raw.as_slice(), io::sink(), &options, &progress).unwrap();
    assert_eq!(done.get(), raw.len() as u64);
    let ChunkStatistics { zero_runs, zero_bytes, chunks, frames, fetch_bytes, .. } = layer.statistics;
    assert_eq!((zero_runs, zero_bytes, chunks), (1, 20 * 4096, frames));
    assert!(fetch_bytes < layer.blob_bytes && fetch_bytes > 50 * 4096);
}

#[test]
fn a_failing_reader_or_writer_is_named_and_no_thread_hangs() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("bad sector"))
        }
    }
    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("disk full"))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let raw = crate::image::chunker::noise(2000, 9);
    let options = LayerOptions { level: FAST, threads: 2, ..LayerOptions::default() };
    let read = write_layer(Failing, io::sink(), &options, &|_| {});
    assert!(matches!(read, Err(LayerError::Read { offset: 0, .. })), "{read:?}");
    let write = write_layer(raw.as_slice(), Failing, &options, &|_| {});
    assert!(matches!(write, Err(LayerError::Write { .. })), "{write:?}");
    let odd = write_layer(&raw[..5000], io::sink(), &options, &|_| {});
    assert!(matches!(odd, Err(LayerError::Read { .. })), "{odd:?}");
}

#[test]
fn a_page_of_the_index_is_the_same_in_a_release_that_moved_it() {
    let old = crate::image::chunker::noise(6000, 10);
    let mut new = crate::image::chunker::noise(7, 11);
    new.extend(&old);
    let pages = |raw: &[u8]| {
        let (layer, _) = layer(raw, 2);
        let root = &layer.index[..layer.index_root.size as usize];
        assert_eq!(layer.index_root.digest, Digest::of(root));
        let root = crate::image::index::Root::parse(root, layer.raw_bytes, layer.blob_bytes).unwrap();
        root.pages().iter().map(|page| page.sha256).collect::<Vec<_>>()
    };
    let (old, new) = (pages(&old), pages(&new));
    let kept = new.iter().filter(|page| old.contains(page)).count();
    assert!(old.len() >= 15 && kept + 3 >= old.len(), "{kept} of {} pages kept", old.len());
}

#[test]
fn with_an_earlier_release_frames_hold_its_chunks_or_new_ones_and_never_both() {
    let old = crate::image::chunker::noise(1500, 12);
    let (old_layer, _) = layer(&old, 2);
    let parsed = |layer: &Layer| Index::parse(&layer.index, layer.raw_bytes, layer.blob_bytes).unwrap();
    let mut known = KnownChunks::default();
    known.add(&parsed(&old_layer));
    let mut new = old.clone();
    (0..40).for_each(|n| new[n * 150_000] ^= 1);
    let more = crate::image::chunker::noise(300, 13);
    new.splice(700 * BLOCK_BYTES as usize..700 * BLOCK_BYTES as usize, more);
    new.extend(vec![0; 5 * BLOCK_BYTES as usize]);
    new.extend(crate::image::chunker::noise(3, 14));

    let known = Arc::new(known);
    let grouped = |threads| {
        let mut blob = Vec::new();
        let options = LayerOptions { level: FAST, threads, known: known.clone(), ..LayerOptions::default() };
        let layer = write_layer(new.as_slice(), &mut blob, &options, &|_| {}).unwrap();
        (layer, blob)
    };
    let (one, blob) = grouped(1);
    let (three, three_blob) = grouped(3);
    assert!(one == three && blob == three_blob);
    assert!(restore(&one, &blob) == new && zstd_d(&blob) == new);

    let index = parsed(&one);
    let mut longest = [0, 0];
    for frame in index.frames() {
        let is_known = |chunk: &ChunkRef| known.contains(chunk);
        let chunks = frame.chunks();
        assert!(chunks.iter().all(is_known) || !chunks.iter().any(is_known), "{frame:?} mixes");
        let before_last = &chunks[..chunks.len().saturating_sub(1)];
        assert!(!before_last.iter().any(crate::image::index::ends_page), "{frame:?} goes over a page's end");
        if let Some(first) = chunks.first() {
            let longest = &mut longest[usize::from(is_known(first))];
            *longest = chunks.len().max(*longest);
        }
    }
    assert!(longest[0] > 8 && longest[1] == 1, "{longest:?} chunks in a frame: known ones as they were");

    // A third release, like the second: what that one put into frames together stays together, byte for byte.
    let mut known = KnownChunks::default();
    known.add(&index);
    new.truncate(1500 * BLOCK_BYTES as usize);
    let options = LayerOptions { level: FAST, threads: 2, known: Arc::new(known), ..LayerOptions::default() };
    let again = write_layer(new.as_slice(), &mut Vec::new(), &options, &|_| {}).unwrap();
    let bodies = |index: &Index| -> Vec<(u32, Vec<ChunkRef>)> {
        index.frames().map(|frame| (frame.blob_bytes, frame.chunks().to_vec())).collect()
    };
    let (before, after) = (bodies(&index), bodies(&parsed(&again)));
    let same = after.iter().zip(&before).take_while(|(a, b)| a == b).count();
    assert!(same + 1 >= after.len() && after.len() > 100, "{same} of {} frames are the same", after.len());
}
