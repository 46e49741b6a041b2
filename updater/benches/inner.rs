//! The inner loops of an update and of a build, one by one: what a change to them costs or gains.
//!
//! Not here: whole installs and updates against others (`tests/bench`). Rule: everything lies in memory and is made from fixed
//! seeds; before a loop is timed, its outcome is compared once with what has to come out.

#![expect(clippy::expect_used, reason = "a bench's own machinery: failing loudly is its job")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use sha2::{Digest as _, Sha256};
use switchback::image::BLOCK_BYTES;
use switchback::image::chunker::{Chunker, Piece};
use switchback::image::frame::{FrameDecoder, chunks_match};
use switchback::image::index::{ChunkRef, FrameRef, Index, IndexWriter};
use switchback::image::lookup::{Finder, Place};
use switchback::image::patch;
use switchback::image::plan::{Cost, Plan};
use switchback::publish::layer::{LayerOptions, RELEASE_LEVEL, write_layer};
use switchback::publish::like::KnownChunks;
use switchback_partitions::device::MemDevice;
use switchback_partitions::verity::{TreeWriter, VerityParams, root_hash_of, tree_bytes};
use zstd::zstd_safe::{CCtx, CParameter, compress_bound};

const MIB: usize = 1 << 20;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .sample_size(20)
        .configure_from_args();
    cut(&mut criterion);
    frames(&mut criterion);
    plan(&mut criterion);
    patch_entry(&mut criterion);
    tree(&mut criterion);
    criterion.final_summary();
}

/// The chunker alone, nothing hashed that it does not hash itself.
fn cut(criterion: &mut Criterion) {
    let raw = image(16 * MIB, 1);
    let bytes = |piece: Piece| match piece {
        Piece::Zero(bytes) => bytes as usize,
        Piece::Chunk(chunk) => chunk.len(),
    };
    let cut = || {
        Chunker::new(black_box(&raw[..])).map(|piece| bytes(piece.expect("memory is read"))).sum::<usize>()
    };
    assert_eq!(raw.len(), cut());
    let mut group = criterion.benchmark_group("cut");
    group.throughput(Throughput::Bytes(raw.len() as u64));
    group.bench_function("chunks", |bench| bench.iter(cut));
}

/// A device's way from a frame's bytes to chunks that are proven; hashing is shown by itself, too.
fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    for (name, grouped) in [("alone", false), ("grouped", true)] {
        let raw = image(8 * MIB, 2);
        let (index, blob) = layer(&raw, grouped);
        let frames: Vec<FrameRef<'_>> = index.frames().filter(|frame| !frame.chunks().is_empty()).collect();
        group.throughput(Throughput::Bytes(frames.iter().map(|frame| frame.raw_bytes).sum()));
        let (mut decoder, mut out) = (FrameDecoder::new().expect("a decoder"), Vec::new());
        group.bench_function(format!("decode and verify, chunks {name}"), |bench| {
            bench.iter(|| {
                for frame in &frames {
                    let compressed = &blob[frame.blob_offset as usize..][..frame.blob_bytes as usize];
                    decoder.decode(frame, black_box(compressed), &mut out).expect("a right frame");
                }
            });
        });
        if !grouped {
            group.bench_function("verify", |bench| {
                bench.iter(|| {
                    for frame in &frames {
                        let bytes = &raw[frame.raw_offset as usize..][..frame.raw_bytes as usize];
                        chunks_match(frame, black_box(bytes)).expect("the right chunks");
                    }
                });
            });
        }
    }
}

/// A release of 65,536 chunks on a machine that has nine of ten: in the running slot, and half of them in place, too.
fn plan(criterion: &mut Criterion) {
    const CHUNKS: u32 = 65_536;
    let release = made_up(0..CHUNKS, |number| number % 10 == 3);
    let running = made_up(0..CHUNKS, |_| false);
    let target = made_up(0..CHUNKS, |number| number >= CHUNKS / 2);
    let looked_up = || {
        let mut finder = Finder::new(black_box(&release));
        finder.add(Place::Running, &running);
        finder.add(Place::Target, &target);
        finder.finish(&release)
    };
    let lookup = looked_up();
    let cost = || -> Cost { Plan::new(black_box(&release), &lookup).cost() };
    let Cost { fetch_bytes, keep_bytes, .. } = cost();
    assert!(fetch_bytes > 0 && keep_bytes > 0, "{fetch_bytes} fetched, {keep_bytes} kept");
    let mut group = criterion.benchmark_group("plan");
    group.throughput(Throughput::Elements(CHUNKS.into()));
    group.bench_function("look up 65,536 chunks in two slots", |bench| bench.iter(looked_up));
    group.bench_function("cost, 65,536 chunks", |bench| bench.iter(cost));
}

/// One entry behind a prefix of 128 KiB, of a chunk's length and of the longest.
fn patch_entry(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("patch");
    for kib in [16, 256] {
        let prefix = image(kib.max(128) * 1024, 3);
        let mut raw = prefix[..kib * 1024].to_vec();
        raw.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x55);
        let compressed = behind(&prefix, &raw);
        let mut out = Vec::new();
        patch::decode(&prefix, &compressed, raw.len(), &mut out).expect("a right entry");
        assert!(out == raw && compressed.len() < raw.len() / 4, "{} bytes", compressed.len());
        group.throughput(Throughput::Bytes(raw.len() as u64));
        group.bench_function(format!("decode an entry of {kib} KiB"), |bench| {
            bench.iter(|| patch::decode(&prefix, black_box(&compressed), raw.len(), &mut out));
        });
    }
}

/// A hash tree of data that is at hand, to a device in memory.
fn tree(criterion: &mut Criterion) {
    let data = image(16 * MIB, 4);
    let params = VerityParams {
        salt: vec![7; 32],
        uuid: uuid::Uuid::nil(),
        data_block_bytes: BLOCK_BYTES,
        hash_block_bytes: BLOCK_BYTES,
        data_blocks: data.len() as u64 / u64::from(BLOCK_BYTES),
    };
    let room = tree_bytes(&params).expect("right parameters") as usize;
    let device = Arc::new(MemDevice::new(room, 512));
    let write = || {
        let mut writer = TreeWriter::new(params.clone(), device.clone()).expect("room for the tree");
        black_box(&data).chunks(256 * 1024).for_each(|piece| writer.push(piece).expect("whole blocks"));
        writer.finish().expect("all blocks")
    };
    assert_eq!(write(), root_hash_of(&params, &data[..]).expect("a root hash"));
    let mut group = criterion.benchmark_group("verity");
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("write a tree", |bench| bench.iter(write));
}

/// What a file system holds, roughly: text that packs to a third, noise that does not pack, a run of zeros.
fn image(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: Vec<String> = (0..4096).map(|_| format!("{:x} ", next() >> (next() % 40))).collect();
    let mut raw = Vec::with_capacity(bytes + 64);
    while raw.len() < bytes {
        match raw.len() * 16 / bytes {
            0..11 => {
                let dice = next();
                // Some words are said more often than others.
                let word = (dice & 0xfff) >> ((dice >> 12) & 7);
                raw.extend_from_slice(words[word as usize].as_bytes());
            }
            11..15 => raw.extend_from_slice(&next().to_le_bytes()),
            _ => raw.resize(bytes, 0),
        }
    }
    raw.truncate(bytes);
    raw
}

/// A slot layer at a release's level. Grouped as behind an earlier release that has none of its chunks.
fn layer(raw: &[u8], grouped: bool) -> (Index, Vec<u8>) {
    let mut known = KnownChunks::default();
    if grouped {
        known.add(&made_up(0..1, |_| false));
    }
    let options = LayerOptions { level: RELEASE_LEVEL, known: Arc::new(known), ..LayerOptions::default() };
    let mut blob = Vec::new();
    let layer = write_layer(raw, &mut blob, &options, &|_| {}).expect("a layer");
    (Index::parse(&layer.index, layer.raw_bytes, layer.blob_bytes).expect("its index"), blob)
}

/// An index of frames with one chunk of four blocks each. Two indexes have the same chunk at the same place, but where one is `new`.
fn made_up(numbers: std::ops::Range<u32>, new: impl Fn(u32) -> bool) -> Index {
    let mut writer = IndexWriter::new().expect("memory");
    for number in numbers {
        let name = [number.to_le_bytes(), u32::from(new(number)).to_le_bytes()].concat();
        let chunk = ChunkRef { raw_bytes: 4 * BLOCK_BYTES, sha256: Sha256::digest(name).into() };
        writer.push_frame(6000, chunk.raw_bytes, &[chunk]).expect("a right frame");
    }
    let built = writer.finish().expect("an index");
    Index::parse(&built.blob, built.raw_bytes, built.blob_bytes).expect("a right index")
}

/// `raw` as a patch's entry has it.
fn behind(prefix: &[u8], raw: &[u8]) -> Vec<u8> {
    let mut context = CCtx::create();
    context.set_parameter(CParameter::CompressionLevel(RELEASE_LEVEL)).expect("a level");
    context.ref_prefix(prefix).expect("a prefix");
    let mut compressed = Vec::with_capacity(compress_bound(raw.len()));
    context.compress2(&mut compressed, raw).expect("an entry");
    compressed
}
