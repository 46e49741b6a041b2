//! Fetch, decode, verify, write: one slot partition from one layer, in ascending order, in bounded memory.
//!
//! Not here: which slot, whether it may be written, arming. Rule: a chunk reaches the device only after its SHA-256
//! matched the signed index, and nothing is buffered beyond the frames under way.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use switchback_partitions::device::BlockDevice;
use switchback_partitions::verity::TreeWriter;
use tokio::sync::mpsc::Sender;

use super::InstallError;
use super::journal::Journal;
use crate::image::BLOCK_BYTES;
use crate::image::frame::{FrameDecoder, chunks_match};
use crate::image::index::{FrameBody, FrameRef, Index};
use crate::image::manifest::Descriptor;
use crate::progress::{Phase, Progress, until_stopped};
use crate::registry::Registry;

/// A request is not split for a gap of frames that are there already (or read as zero) of at most this many bytes:
/// fetching them costs less than another round trip.
const GAP_BYTES_MAX: u64 = 8 * 1024;
/// Frames between two stages. A frame is at most 256 KiB raw, usually 16 KiB.
const FRAMES_IN_FLIGHT: usize = 32;
/// The writer hands the device pieces of this many bytes.
const WRITE_BYTES: usize = 1024 * 1024;
/// After this many bytes the device is flushed and the journal says so: what a power cut can cost.
const JOURNAL_EVERY_BYTES: u64 = 64 * 1024 * 1024;

/// What one slot cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Bytes written to slot partitions.
    pub written: u64,
    /// Bytes that were already in place, verified there.
    pub kept: u64,
    /// Bytes that read as zero and were only punched.
    pub zero: u64,
    /// Range requests made.
    pub requests: u64,
}

impl Traffic {
    /// Adds what another layer cost.
    pub fn add(&mut self, other: Traffic) {
        self.fetched += other.fetched;
        self.written += other.written;
        self.kept += other.kept;
        self.zero += other.zero;
        self.requests += other.requests;
    }
}

/// Everything one slot partition is written from and to.
pub struct SlotJob<'a> {
    /// Where the bytes come from.
    pub registry: &'a dyn Registry,
    /// The layer's blob.
    pub blob: &'a Descriptor,
    /// Its verified index.
    pub index: &'a Index,
    /// The slot partition.
    pub device: Arc<dyn BlockDevice>,
    /// Remembers how far the flushed bytes reach.
    pub journal: &'a Journal<'a>,
    /// Who waits.
    pub progress: &'a dyn Progress,
}

impl SlotJob<'_> {
    /// Writes the whole partition and feeds the hash tree with every block.
    pub fn run(
        &self,
        runtime: &tokio::runtime::Handle,
        tree: &mut TreeWriter,
    ) -> Result<Traffic, InstallError> {
        let kept = self.compare()?;
        let raw_bytes = self.index.raw_bytes();
        self.progress.begin(Phase::Write, raw_bytes);
        let (fetched_tx, fetched_rx) = tokio::sync::mpsc::channel(FRAMES_IN_FLIGHT);
        let (decoded_tx, decoded_rx) = sync_channel(FRAMES_IN_FLIGHT);
        let outcome = std::thread::scope(|scope| {
            let decoder = scope.spawn(move || decode(fetched_rx, decoded_tx));
            let writer = scope.spawn(|| self.write(decoded_rx, tree));
            let fetching = until_stopped(self.progress, self.fetch(&kept, fetched_tx));
            let fetched = runtime.block_on(fetching).unwrap_or(Err(InstallError::Interrupted));
            (fetched, join(decoder.join()), join(writer.join()))
        });
        self.progress.end();
        // A stage that fails closes its channel, and the stages before it see only that: the last one has the cause.
        let (fetched, decoded, written) = outcome;
        let mut traffic = written?;
        decoded?;
        let (bytes, requests) = fetched?;
        traffic.fetched = bytes;
        traffic.requests = requests;
        Ok(traffic)
    }

    /// Which frames an interrupted run left in place: read back and compared, never believed.
    fn compare(&self) -> Result<Vec<bool>, InstallError> {
        let mut kept = vec![false; self.index.frames().len()];
        if !self.journal.is_resumed() {
            return Ok(kept);
        }
        // A run that was killed wrote up to one step beyond its last mark; only a power cut loses that.
        let reach = (self.journal.done_bytes() + JOURNAL_EVERY_BYTES).min(self.index.raw_bytes());
        self.progress.begin(Phase::Compare, reach);
        let mut buffer = Vec::new();
        for (number, frame) in self.index.frames().enumerate() {
            if frame.raw_offset + frame.raw_bytes > reach || self.progress.stopped() {
                break;
            }
            if let FrameBody::Chunks(_) = frame.body {
                buffer.resize(frame.raw_bytes as usize, 0);
                self.device.read_at(frame.raw_offset, &mut buffer).map_err(InstallError::reading_slot)?;
                kept[number] = chunks_match(&frame, &buffer).is_ok();
            }
            self.progress.advance(frame.raw_bytes);
        }
        self.progress.end();
        Ok(kept)
    }

    /// Sends every frame in order: fetched, kept or zero. Returns the bytes fetched and the requests made.
    async fn fetch<'i>(
        &'i self,
        kept: &[bool],
        to: Sender<(FrameRef<'i>, Piece)>,
    ) -> Result<(u64, u64), InstallError> {
        let (mut bytes, mut requests) = (0, 0);
        let mut spans = spans(self.index, kept).into_iter();
        let mut body: Option<Body> = None;
        for (frame, kept) in self.index.frames().zip(kept) {
            if self.progress.stopped() {
                return Err(InstallError::Interrupted);
            }
            let piece = match frame.body {
                FrameBody::Zero => Piece::Zero,
                FrameBody::Chunks(_) if *kept => Piece::Kept,
                FrameBody::Chunks(_) => {
                    if body.as_ref().is_none_or(|body| body.end <= frame.blob_offset) {
                        let mut span = spans.next().ok_or(InstallError::Worker)?;
                        if !self.registry.serves_ranges() {
                            // Each range would cost a pass over the whole blob: the rest is taken in one.
                            span.end = self.blob.size;
                        }
                        requests += 1;
                        bytes += span.end - span.start;
                        body = Some(Body::open(self.registry, self.blob, span).await?);
                    }
                    let open = body.as_mut().ok_or(InstallError::Worker)?;
                    let end = frame.blob_offset + u64::from(frame.blob_bytes);
                    Piece::Fetched(open.take(frame.blob_offset..end).await?)
                }
            };
            if to.send((frame, piece)).await.is_err() {
                // The decoder or the writer stopped; its own error says why.
                break;
            }
        }
        Ok((bytes, requests))
    }

    /// The last stage: writes in ascending order, hashes for dm-verity, flushes and journals.
    fn write(
        &self,
        from: Receiver<(FrameRef<'_>, Decoded)>,
        tree: &mut TreeWriter,
    ) -> Result<Traffic, InstallError> {
        let mut out =
            Writer { job: self, tree, pending: Vec::with_capacity(WRITE_BYTES), at: 0, unmarked: 0 };
        let mut traffic = Traffic::default();
        for (frame, decoded) in from {
            out.expect(frame.raw_offset)?;
            let counter = match decoded {
                Decoded::Zero => {
                    out.zero(frame.raw_bytes)?;
                    &mut traffic.zero
                }
                Decoded::Kept => {
                    out.keep(frame.raw_bytes)?;
                    &mut traffic.kept
                }
                Decoded::Bytes(raw) => {
                    out.bytes(&raw)?;
                    &mut traffic.written
                }
            };
            *counter += frame.raw_bytes;
            self.progress.advance(frame.raw_bytes);
        }
        out.drain()?;
        out.mark()?;
        Ok(traffic)
    }
}

/// What an empty slot costs.
pub(super) fn cost(index: &Index) -> Traffic {
    let spans = spans(index, &vec![false; index.frames().len()]);
    let mut traffic = Traffic { requests: spans.len() as u64, ..Traffic::default() };
    traffic.fetched = spans.iter().map(|span| span.end - span.start).sum();
    for frame in index.frames() {
        match frame.body {
            FrameBody::Zero => traffic.zero += frame.raw_bytes,
            FrameBody::Chunks(_) => traffic.written += frame.raw_bytes,
        }
    }
    traffic
}

/// The closed blob ranges to ask for, in order.
fn spans(index: &Index, kept: &[bool]) -> Vec<Range<u64>> {
    let mut spans: Vec<Range<u64>> = Vec::new();
    for (frame, kept) in index.frames().zip(kept) {
        if *kept || matches!(frame.body, FrameBody::Zero) {
            continue;
        }
        let end = frame.blob_offset + u64::from(frame.blob_bytes);
        match spans.last_mut() {
            Some(last) if frame.blob_offset - last.end <= GAP_BYTES_MAX => last.end = end,
            _ => spans.push(frame.blob_offset..end),
        }
    }
    spans
}

fn join<T>(result: std::thread::Result<Result<T, InstallError>>) -> Result<T, InstallError> {
    result.unwrap_or_else(|_| Err(InstallError::Worker))
}

/// What the decoder gets for a frame.
enum Piece {
    Zero,
    Kept,
    Fetched(Bytes),
}

/// What the writer gets for a frame.
enum Decoded {
    Zero,
    Kept,
    Bytes(Vec<u8>),
}

/// One range request, cut into frames as it arrives.
struct Body {
    stream: crate::registry::ByteStream,
    buffer: BytesMut,
    at: u64,
    end: u64,
}

impl Body {
    async fn open(
        registry: &dyn Registry,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Body, InstallError> {
        let (at, end) = (range.start, range.end);
        let stream = registry.blob_range(blob, range).await?;
        Ok(Body { stream, buffer: BytesMut::new(), at, end })
    }

    /// The bytes of one frame; what lies before it in the range is passed over as it comes, never collected.
    async fn take(&mut self, frame: Range<u64>) -> Result<Bytes, InstallError> {
        let want = (frame.end - frame.start) as usize;
        loop {
            let before = frame.start.saturating_sub(self.at).min(self.buffer.len() as u64) as usize;
            self.buffer.advance(before);
            self.at += before as u64;
            if self.at == frame.start && self.buffer.len() >= want {
                break;
            }
            let piece =
                self.stream.next().await.ok_or(InstallError::ShortBody { missing: frame.end - self.at })?;
            self.buffer.extend_from_slice(&piece?);
        }
        self.at = frame.end;
        // A view, not a copy: frames under way would else each hold as much memory as a whole piece of the body has.
        Ok(self.buffer.split_to(want).freeze())
    }
}

/// The middle stage: zstd to raw bytes, each chunk's SHA-256 against the index.
fn decode<'i>(
    mut from: tokio::sync::mpsc::Receiver<(FrameRef<'i>, Piece)>,
    to: SyncSender<(FrameRef<'i>, Decoded)>,
) -> Result<(), InstallError> {
    let mut decoder = FrameDecoder::new()?;
    while let Some((frame, piece)) = from.blocking_recv() {
        let decoded = match piece {
            Piece::Zero => Decoded::Zero,
            Piece::Kept => Decoded::Kept,
            Piece::Fetched(compressed) => {
                let mut raw = Vec::new();
                decoder.decode(&frame, &compressed, &mut raw)?;
                Decoded::Bytes(raw)
            }
        };
        if to.send((frame, decoded)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Collects frames into large writes and whole verity blocks.
struct Writer<'a, 'b> {
    job: &'a SlotJob<'a>,
    tree: &'b mut TreeWriter,
    pending: Vec<u8>,
    /// First byte that is neither written nor pending.
    at: u64,
    /// Bytes in place since the journal's last mark.
    unmarked: u64,
}

impl Writer<'_, '_> {
    fn bytes(&mut self, raw: &[u8]) -> Result<(), InstallError> {
        self.pending.extend_from_slice(raw);
        self.at += raw.len() as u64;
        if self.pending.len() >= WRITE_BYTES {
            self.drain()?;
        }
        Ok(())
    }

    fn zero(&mut self, bytes: u64) -> Result<(), InstallError> {
        self.drain()?;
        self.job.device.zero(self.at, bytes).map_err(InstallError::writing_slot)?;
        self.tree.push_zeros(bytes / u64::from(BLOCK_BYTES)).map_err(InstallError::tree)?;
        self.at += bytes;
        self.journal(bytes)
    }

    fn keep(&mut self, bytes: u64) -> Result<(), InstallError> {
        self.drain()?;
        let mut raw = vec![0; bytes as usize];
        self.job.device.read_at(self.at, &mut raw).map_err(InstallError::reading_slot)?;
        self.tree.push(&raw).map_err(InstallError::tree)?;
        self.at += bytes;
        // What is in place counts like what is written: a mark that waited for 64 MiB of new bytes would lie more than
        // one step behind after the second kill, and the run after that would pay for the difference again.
        self.journal(bytes)
    }

    fn drain(&mut self) -> Result<(), InstallError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let bytes = self.pending.len() as u64;
        let start = self.at - bytes;
        self.job.device.write_at(start, &self.pending).map_err(InstallError::writing_slot)?;
        self.tree.push(&self.pending).map_err(InstallError::tree)?;
        self.pending.clear();
        self.journal(bytes)
    }

    fn journal(&mut self, bytes: u64) -> Result<(), InstallError> {
        self.unmarked += bytes;
        if self.unmarked >= JOURNAL_EVERY_BYTES { self.mark() } else { Ok(()) }
    }

    /// What is written so far is on the medium; then the journal says so.
    fn mark(&mut self) -> Result<(), InstallError> {
        self.job.device.flush().map_err(InstallError::writing_slot)?;
        self.job.journal.reached(self.at)?;
        self.unmarked = 0;
        Ok(())
    }

    /// Frames come without a gap: the index was checked for that, this catches a mistake of ours before it is written.
    fn expect(&self, offset: u64) -> Result<(), InstallError> {
        if offset == self.at { Ok(()) } else { Err(InstallError::Worker) }
    }
}
