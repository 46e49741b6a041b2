//! One raw partition image in; the slot layer's blob, its index and its digests out. One pass, bounded memory.
//!
//! A reader cuts and hashes the whole, workers hash and compress single pieces, the caller's thread writes them in order.
//! With no earlier release named each chunk is a frame of its own, as grouping blind to any base costs more than it saves;
//! with one, neighbours share frames (`group`), and a frame that it has is taken from it (`earlier_frames`). Zero runs are frames too, so that `zstd -d` of the blob gives the raw image.
//!
//! Not here: cut points (`image::chunker`), the index's bytes (`image::index`). Rule: the result does not depend on the number
//! of threads, and an index is handed out only after the device's own parser has accepted it.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use zstd::bulk::Compressor;

use super::earlier_frames::{EarlierFrames, FrameTaker};
use super::like::KnownChunks;
use crate::digest::Digest;
use crate::image::chunker::{Chunker, Piece};
use crate::image::index::{ChunkRef, FrameBody, Index, IndexError, IndexWriter};
use crate::image::manifest::{Descriptor, IndexRoot, index_descriptor, slot_descriptor};

mod group;

use group::{Grouper, Job};

/// The zstd level of a release: 12 costs 1 to 7 % more bytes on every device.
pub const RELEASE_LEVEL: i32 = 19;
/// Chunks that wait before and behind each worker, each a frame of its own; with 64 KiB chunks 8 MiB a worker.
const CHUNKS_IN_FLIGHT: usize = 64;
/// The same for groups of chunks, of up to 256 KiB.
const GROUPS_IN_FLIGHT: usize = 16;
/// More than this many threads are not started.
const THREADS_MAX: usize = 64;

/// How a layer is made.
#[derive(Debug, Clone)]
pub struct LayerOptions {
    /// zstd level, 1 to 22.
    pub level: i32,
    /// Threads that compress.
    pub threads: usize,
    /// The chunks that earlier releases have. With none, each chunk is a frame of its own.
    pub known: Arc<KnownChunks>,
    /// The compressed frames of an earlier release, to be taken where they fit.
    pub frames: Option<Arc<EarlierFrames>>,
}

impl Default for LayerOptions {
    /// [`RELEASE_LEVEL`] on all processors, no earlier release.
    fn default() -> LayerOptions {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        LayerOptions { level: RELEASE_LEVEL, threads, known: Arc::default(), frames: None }
    }
}

/// A finished layer; the blob itself went to the writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// SHA-256 of the blob.
    pub blob_digest: Digest,
    /// Length of the blob in bytes.
    pub blob_bytes: u64,
    /// SHA-256 of the raw image.
    pub raw_sha256: Digest,
    /// Length of the raw image in bytes.
    pub raw_bytes: u64,
    /// The index blob.
    pub index: Vec<u8>,
    /// The index's root frame.
    pub index_root: IndexRoot,
    /// Counts.
    pub statistics: ChunkStatistics,
    /// Frames that were taken from the earlier release; `None` where none could be, as there is no such release or it was
    /// compressed in another way.
    pub taken: Option<u64>,
}

/// What an index holds, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ChunkStatistics {
    /// Chunks.
    pub chunks: u64,
    /// Zstd frames that hold chunks.
    pub frames: u64,
    /// Zero runs.
    pub zero_runs: u64,
    /// Bytes of the raw image that are zero runs: never fetched.
    pub zero_bytes: u64,
    /// Bytes of the blob that a device without any older release fetches.
    pub fetch_bytes: u64,
    /// Length of the shortest chunk in raw bytes.
    pub chunk_bytes_min: u32,
    /// Length of the longest chunk in raw bytes.
    pub chunk_bytes_max: u32,
    /// Mean length of a chunk in raw bytes.
    pub chunk_bytes_mean: u32,
}

/// Why no layer was made. What was written to the blob's writer is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The raw image could not be read, or is no whole number of blocks.
    #[error("while reading the raw image at byte {offset}")]
    Read {
        /// How far it was read.
        offset: u64,
        /// The reader's word.
        source: io::Error,
    },
    /// zstd refused, e.g. the level.
    #[error("while compressing")]
    Compress {
        /// zstd's word.
        source: io::Error,
    },
    /// The blob could not be written.
    #[error("while writing the layer's blob")]
    Write {
        /// The writer's word.
        source: io::Error,
    },
    /// The index breaks a rule of the format: a fault of this program, caught before anybody fetches it.
    #[error("while making the chunk index")]
    Index {
        /// Which rule.
        source: IndexError,
    },
    /// A worker thread ended without a word.
    #[error("while compressing: a worker thread panicked")]
    Worker,
}

impl Layer {
    /// The manifest's descriptors of blob and index for the slot partition `name`.
    pub fn descriptors(&self, name: &str) -> (Descriptor, Descriptor) {
        let (digest, size) = (Digest::of(&self.index), self.index.len() as u64);
        let blob = slot_descriptor(name, self.blob_digest, self.blob_bytes);
        (blob, index_descriptor(name, digest, size, self.index_root))
    }
}

impl ChunkStatistics {
    /// Counts an index.
    pub fn of(index: &Index) -> ChunkStatistics {
        let mut counted = ChunkStatistics { chunk_bytes_min: u32::MAX, ..ChunkStatistics::default() };
        let mut chunk_bytes = 0;
        for frame in index.frames() {
            let FrameBody::Chunks(chunks) = frame.body else {
                counted.zero_runs += 1;
                counted.zero_bytes += frame.raw_bytes;
                continue;
            };
            counted.frames += 1;
            counted.fetch_bytes += u64::from(frame.blob_bytes);
            chunk_bytes += frame.raw_bytes;
            for chunk in chunks {
                counted.chunks += 1;
                counted.chunk_bytes_min = counted.chunk_bytes_min.min(chunk.raw_bytes);
                counted.chunk_bytes_max = counted.chunk_bytes_max.max(chunk.raw_bytes);
            }
        }
        counted.chunk_bytes_min = counted.chunk_bytes_min.min(counted.chunk_bytes_max);
        counted.chunk_bytes_mean = (chunk_bytes / counted.chunks.max(1)) as u32;
        counted
    }
}

/// Makes a layer of the raw image `raw` (read to its end) and writes its blob to `blob`. `progress` is told of every
/// raw byte that is done.
pub fn write_layer(
    raw: impl Read + Send,
    mut blob: impl Write,
    options: &LayerOptions,
    progress: &dyn Fn(u64),
) -> Result<Layer, LayerError> {
    let threads = options.threads.clamp(1, THREADS_MAX);
    let in_flight = if options.known.is_empty() { CHUNKS_IN_FLIGHT } else { GROUPS_IN_FLIGHT };
    let grouper = Grouper::new(options.known.clone());
    let earlier = earlier_frames(options)?;
    std::thread::scope(|scope| {
        let (mut jobs, mut results) = (Vec::new(), Vec::new());
        for _ in 0..threads {
            let (job_to, job_from) = sync_channel(in_flight);
            let (result_to, result_from) = sync_channel(in_flight);
            scope.spawn(move || compress(options.level, earlier, job_from, result_to));
            jobs.push(job_to);
            results.push(result_from);
        }
        let reader = scope.spawn(move || read(raw, grouper, jobs));
        let collected = collect(results, &mut blob, progress);
        // The reader's error is the cause: it closes the channels and the collector sees only an early end.
        let (raw_bytes, raw_sha256) = reader.join().map_err(|_| LayerError::Worker)??;
        let collected = collected?;
        if collected.raw_bytes != raw_bytes {
            return Err(LayerError::Worker);
        }
        blob.flush().map_err(|source| LayerError::Write { source })?;
        collected.finish(raw_sha256, earlier.is_some())
    })
}

/// The frames that may be taken.
fn earlier_frames(options: &LayerOptions) -> Result<Option<&EarlierFrames>, LayerError> {
    let Some(frames) = options.frames.as_deref() else { return Ok(None) };
    let same = frames.are_made_at(options.level).map_err(|source| LayerError::Compress { source })?;
    Ok(same.then_some(frames))
}

/// The first stage: cuts, hashes the whole, groups, deals the frames out in turn.
fn read(
    raw: impl Read,
    mut grouper: Grouper,
    jobs: Vec<SyncSender<Job>>,
) -> Result<(u64, Digest), LayerError> {
    let mut sha256 = Sha256::new();
    let mut offset = 0;
    let mut turns = jobs.iter().cycle();
    // Where sending fails the worker or the collector stopped; its own error says why.
    let mut send = |job| turns.next().is_some_and(|to| to.send(job).is_ok());
    let mut heard = true;
    for piece in Chunker::new(raw) {
        let piece = piece.map_err(|source| LayerError::Read { offset, source })?;
        match &piece {
            Piece::Zero(bytes) => hash_zeros(&mut sha256, *bytes),
            Piece::Chunk(bytes) => sha256.update(bytes),
        }
        offset += piece.bytes();
        heard = grouper.push(piece).all(&mut send);
        if !heard {
            break;
        }
    }
    if heard && let Some(last) = grouper.close() {
        send(last);
    }
    Ok((offset, Digest::from_raw(sha256.finalize().into())))
}

fn hash_zeros(sha256: &mut Sha256, bytes: u32) {
    const ZEROS: [u8; 4096] = [0; 4096];
    for _ in 0..bytes as usize / ZEROS.len() {
        sha256.update(ZEROS);
    }
}

impl Piece {
    fn bytes(&self) -> u64 {
        match self {
            Piece::Zero(bytes) => u64::from(*bytes),
            Piece::Chunk(bytes) => bytes.len() as u64,
        }
    }
}

/// A compressed frame.
struct Frame {
    raw_bytes: u32,
    /// None for zeros.
    chunks: Vec<ChunkRef>,
    compressed: Vec<u8>,
    /// As an earlier release has it.
    taken: bool,
}

/// The middle stage.
fn compress(
    level: i32,
    earlier: Option<&EarlierFrames>,
    jobs: Receiver<Job>,
    results: SyncSender<Result<Frame, LayerError>>,
) {
    let failed = |source| LayerError::Compress { source };
    let mut packer = match Packer::new(level, earlier) {
        Ok(packer) => packer,
        Err(source) => {
            let _collector_gone = results.send(Err(failed(source)));
            return;
        }
    };
    for job in jobs {
        if results.send(packer.pack(job).map_err(failed)).is_err() {
            return;
        }
    }
}

/// Makes frames: taken from an earlier release where that has the same, else compressed.
struct Packer<'a> {
    taker: Option<FrameTaker<'a>>,
    compressor: Compressor<'static>,
}

impl<'a> Packer<'a> {
    fn new(level: i32, earlier: Option<&'a EarlierFrames>) -> io::Result<Packer<'a>> {
        let taker = earlier.map(FrameTaker::new).transpose()?;
        Ok(Packer { taker, compressor: Compressor::new(level)? })
    }

    fn pack(&mut self, job: Job) -> io::Result<Frame> {
        let (raw, chunks) = match job {
            Job::Zero(bytes) => {
                let compressed = compress_zeros(u64::from(bytes))?;
                return Ok(Frame { raw_bytes: bytes, chunks: Vec::new(), compressed, taken: false });
            }
            Job::Chunk(raw) => {
                let chunk = ChunkRef { raw_bytes: raw.len() as u32, sha256: Sha256::digest(&raw).into() };
                (raw, vec![chunk])
            }
            Job::Group(group) => (group.raw, group.chunks),
        };
        let had = self.taker.as_mut().and_then(|taker| taker.take(&chunks));
        let taken = had.is_some();
        let compressed = had.map_or_else(|| self.compressor.compress(&raw), Ok)?;
        Ok(Frame { raw_bytes: raw.len() as u32, chunks, compressed, taken })
    }
}

/// A frame of zeros, streamed: 64 MiB of them need no buffer, and the lowest level finds them all.
fn compress_zeros(bytes: u64) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
    encoder.set_pledged_src_size(Some(bytes))?;
    io::copy(&mut io::repeat(0).take(bytes), &mut encoder)?;
    encoder.finish()
}

/// What the last stage has seen.
struct Collected {
    index: IndexWriter,
    blob_sha256: Sha256,
    raw_bytes: u64,
    blob_bytes: u64,
    taken: u64,
}

/// The last stage: takes results in turn, as the jobs were dealt out.
fn collect(
    results: Vec<Receiver<Result<Frame, LayerError>>>,
    blob: &mut dyn Write,
    progress: &dyn Fn(u64),
) -> Result<Collected, LayerError> {
    let index = IndexWriter::new().map_err(|source| LayerError::Index { source })?;
    let mut done = Collected { index, blob_sha256: Sha256::new(), raw_bytes: 0, blob_bytes: 0, taken: 0 };
    for from in results.iter().cycle() {
        let Ok(frame) = from.recv() else { break };
        let frame = frame?;
        blob.write_all(&frame.compressed).map_err(|source| LayerError::Write { source })?;
        done.blob_sha256.update(&frame.compressed);
        done.push(&frame).map_err(|source| LayerError::Index { source })?;
        progress(u64::from(frame.raw_bytes));
    }
    Ok(done)
}

impl Collected {
    fn push(&mut self, frame: &Frame) -> Result<(), IndexError> {
        let blob_bytes = frame.compressed.len() as u32;
        self.index.push_frame(blob_bytes, frame.raw_bytes, &frame.chunks)?;
        self.raw_bytes += u64::from(frame.raw_bytes);
        self.blob_bytes += u64::from(blob_bytes);
        self.taken += u64::from(frame.taken);
        Ok(())
    }

    fn finish(self, raw_sha256: Digest, may_take: bool) -> Result<Layer, LayerError> {
        let Collected { index, blob_sha256, raw_bytes, blob_bytes, taken } = self;
        let built = index.finish().map_err(|source| LayerError::Index { source })?;
        let parsed = Index::parse(&built.blob, raw_bytes, blob_bytes)
            .map_err(|source| LayerError::Index { source })?;
        let root = &built.blob[..built.root_bytes as usize];
        Ok(Layer {
            blob_digest: Digest::from_raw(blob_sha256.finalize().into()),
            blob_bytes,
            raw_sha256,
            raw_bytes,
            index_root: IndexRoot { digest: Digest::of(root), size: built.root_bytes },
            statistics: ChunkStatistics::of(&parsed),
            index: built.blob,
            taken: may_take.then_some(taken),
        })
    }
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
