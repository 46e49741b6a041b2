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
    let options = LayerOptions { level: FAST, threads };
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
    let mut raw = super::super::chunker::noise(300, 7);
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
    let mut raw = super::super::chunker::noise(50, 8);
    raw.extend(vec![0; 20 * BLOCK_BYTES as usize]);
    let done = std::cell::Cell::new(0);
    let options = LayerOptions { level: FAST, threads: 2 };
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
    let raw = super::super::chunker::noise(2000, 9);
    let options = LayerOptions { level: FAST, threads: 2 };
    let read = write_layer(Failing, io::sink(), &options, &|_| {});
    assert!(matches!(read, Err(LayerError::Read { offset: 0, .. })), "{read:?}");
    let write = write_layer(raw.as_slice(), Failing, &options, &|_| {});
    assert!(matches!(write, Err(LayerError::Write { .. })), "{write:?}");
    let odd = write_layer(&raw[..5000], io::sink(), &options, &|_| {});
    assert!(matches!(odd, Err(LayerError::Read { .. })), "{odd:?}");
}

#[test]
fn a_page_of_the_index_is_the_same_in_a_release_that_moved_it() {
    let old = super::super::chunker::noise(6000, 10);
    let mut new = super::super::chunker::noise(7, 11);
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
