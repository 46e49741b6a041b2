//! The first stage: segments in order, with the bytes from the registry that each needs.
//!
//! Not here: what is done with them (`work`). Rule: several batches of about a mebibyte are under way at once and leave in
//! order; what a patch cannot give is taken from the slot layer, whose failure alone ends the install.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;

use super::InstallError;
use super::body::Body;
use super::pipeline::SlotJob;
use crate::image::plan::{Entries as _, From, Lookup, Plan, Segment};

/// A request is not split for a gap of frames that are there already (or read as zero) of at most this many bytes:
/// fetching them costs less than another round trip.
const GAP_BYTES_MAX: u64 = 8 * 1024;
/// A batch ends when it has to fetch this much, covers this much, or has this many segments.
const BATCH_BYTES: u64 = 1024 * 1024;
const BATCH_RAW_BYTES: u64 = 4 * 1024 * 1024;
const BATCH_SEGMENTS: usize = 256;
/// Batches under way at once: each is a connection, or a stream of one.
const BATCHES_AT_ONCE: usize = 6;
/// So many segments in a row that are not what an index says make it one of other content.
const MISSES_MAX: u32 = 32;

/// What has been found out about the places that chunks are hoped to lie in, and what was fetched.
#[derive(Default)]
pub struct Luck {
    /// Segments in a row that were not where the stored indexes say.
    misses: AtomicU32,
    /// The patch could not be fetched, or makes other bytes.
    patch_is_dead: AtomicBool,
    patch_misses: AtomicU32,
    fetched: AtomicU64,
    requests: AtomicU64,
}

impl Luck {
    /// A segment that was hoped to lie on the machine was there, or not.
    pub fn local(&self, found: bool) {
        count(&self.misses, found);
    }

    /// An entry of the patch made the right bytes, or not.
    pub fn patched(&self, right: bool) {
        count(&self.patch_misses, right);
    }

    /// A request for so many bytes was made.
    pub fn asked(&self, bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes fetched and requests made.
    pub fn cost(&self) -> (u64, u64) {
        (self.fetched.load(Ordering::Relaxed), self.requests.load(Ordering::Relaxed))
    }

    fn hopes_for_local(&self) -> bool {
        self.misses.load(Ordering::Relaxed) < MISSES_MAX
    }

    fn hopes_for_patch(&self) -> bool {
        !self.patch_is_dead.load(Ordering::Relaxed) && self.patch_misses.load(Ordering::Relaxed) < MISSES_MAX
    }
}

fn count(misses: &AtomicU32, found: bool) {
    match found {
        true => misses.store(0, Ordering::Relaxed),
        false => drop(misses.fetch_add(1, Ordering::Relaxed)),
    }
}

/// What came from the registry for a segment.
pub enum Input {
    /// Nothing; it is on the machine.
    Nothing,
    /// The compressed frame.
    Frame(Bytes),
    /// The compressed entry of the patch.
    Entry(Bytes),
}

/// Some segments of whole frames, and the blob ranges that they need.
pub struct Batch {
    frames: Range<usize>,
    /// The segments, in order.
    pub segments: Vec<Segment>,
    /// Ranges of the slot layer's blob.
    pub layer: Vec<Range<u64>>,
    /// Ranges of the patch's blob.
    pub patch: Vec<Range<u64>>,
}

impl Batch {
    /// These frames by `plan`.
    fn of(frames: Range<usize>, plan: &Plan<'_>) -> Batch {
        let mut segments = Vec::new();
        for frame in frames.clone() {
            plan.push_frame(frame, &mut segments);
        }
        let mut batch = Batch { frames, segments, layer: Vec::new(), patch: Vec::new() };
        for segment in &batch.segments {
            match segment.from {
                From::Fetch => add_span(&mut batch.layer, layer_span(plan, segment)),
                From::Patch { entry } => {
                    let span = plan.patch.map(|patch| patch.span(entry));
                    add_span(&mut batch.patch, span.unwrap_or_default());
                }
                From::Zeros | From::InPlace | From::Copy { .. } => {}
            }
        }
        batch
    }
}

/// Cuts a plan into batches.
pub struct Batches {
    next: usize,
}

impl Batches {
    /// From the first frame on.
    pub fn new() -> Batches {
        Batches { next: 0 }
    }

    /// The next batch, by `plan`, which may hope for less than the one before.
    pub fn next(&mut self, plan: &Plan<'_>) -> Option<Batch> {
        let (begin, mut bytes, mut raw_bytes, mut segments) = (self.next, 0, 0, Vec::new());
        while let Some(frame) = plan.index.frame(self.next) {
            if bytes >= BATCH_BYTES || raw_bytes >= BATCH_RAW_BYTES || segments.len() >= BATCH_SEGMENTS {
                // An entry's bytes would be fetched twice.
                let goes_on = segments.last().is_some_and(|last| self.is_inside_entry(plan, last));
                if !goes_on {
                    break;
                }
            }
            let before = segments.len();
            plan.push_frame(self.next, &mut segments);
            for segment in segments.get(before..).unwrap_or_default() {
                bytes += match segment.from {
                    From::Fetch => u64::from(frame.blob_bytes),
                    From::Patch { entry } => plan.patch.map_or(0, |patch| length(&patch.span(entry))),
                    From::Zeros | From::InPlace | From::Copy { .. } => 0,
                };
            }
            raw_bytes += frame.raw_bytes;
            self.next += 1;
        }
        (self.next > begin).then(|| Batch::of(begin..self.next, plan))
    }

    /// True when the next frame goes on with the patch's entry that `last` is of.
    fn is_inside_entry(&self, plan: &Plan<'_>, last: &Segment) -> bool {
        let From::Patch { entry } = last.from else { return false };
        let next = plan.index.chunks_of(self.next);
        !next.is_empty() && plan.patch.and_then(|patch| patch.entry_of(next.start)) == Some(entry)
    }
}

/// The range of the slot layer's blob that holds a fetched segment.
fn layer_span(plan: &Plan<'_>, segment: &Segment) -> Range<u64> {
    let frame = plan.index.frame_of(segment.chunks.start).and_then(|number| plan.index.frame(number));
    frame.map_or(0..0, |frame| frame.blob_offset..frame.blob_offset + u64::from(frame.blob_bytes))
}

fn length(span: &Range<u64>) -> u64 {
    span.end - span.start
}

/// Adds a range behind the others, or lengthens the last one over a small gap.
fn add_span(spans: &mut Vec<Range<u64>>, span: Range<u64>) {
    match spans.last_mut() {
        Some(last) if span.start <= last.end + GAP_BYTES_MAX => last.end = last.end.max(span.end),
        _ => spans.push(span),
    }
}

/// Fetches what a plan needs.
pub struct Fetcher<'a> {
    /// Blob, registry, device.
    pub job: &'a SlotJob<'a>,
    /// What lies in the target by the journal.
    pub kept: &'a [bool],
    /// What has been found out.
    pub luck: &'a Luck,
    /// The one pass over a registry that serves no ranges.
    pub pass: tokio::sync::Mutex<Option<Body>>,
}

impl<'a> Fetcher<'a> {
    /// Sends every segment in order, each to the next worker in turn.
    pub async fn run(&self, to: &[tokio::sync::mpsc::Sender<(Segment, Input)>]) -> Result<(), InstallError> {
        let mut batches = Batches::new();
        let mut loading = FuturesOrdered::new();
        let mut to = to.iter().cycle();
        // Whether ranges are served shows with the first answer.
        let mut probed = false;
        loop {
            let at_once = if probed && self.job.registry.serves_ranges() { BATCHES_AT_ONCE } else { 1 };
            while loading.len() < at_once
                && let Some(batch) = batches.next(&self.plan())
            {
                loading.push_back(self.load(batch));
            }
            let Some(loaded) = loading.next().await else { return Ok(()) };
            let (asked, segments) = loaded?;
            probed |= asked;
            for segment in segments {
                if self.job.progress.stopped() {
                    return Err(InstallError::Interrupted);
                }
                let Some(worker) = to.next() else { return Err(InstallError::Worker) };
                if worker.send(segment).await.is_err() {
                    // The worker or the writer stopped; its own error says why.
                    return Ok(());
                }
            }
        }
    }

    /// Where things come from, by what has been found out so far.
    fn plan(&self) -> Plan<'a> {
        let (job, luck) = (self.job, self.luck);
        static NOWHERE: Lookup = Lookup::none();
        Plan {
            index: job.index(),
            lookup: if luck.hopes_for_local() { job.lookup() } else { &NOWHERE },
            patch: job.patch().filter(|_| luck.hopes_for_patch()).map(|patch| &patch.chosen as _),
            kept: self.kept,
        }
    }

    /// Fetches what a batch needs. True when the slot layer was asked for.
    async fn load(&self, batch: Batch) -> Result<(bool, Vec<(Segment, Input)>), InstallError> {
        let (batch, entries) = match self.entries(&batch).await {
            Ok(entries) => (batch, entries),
            Err(error) => {
                tracing::warn!(
                    error = crate::engine::chain(&error),
                    "the patch cannot be fetched; going on without it"
                );
                self.luck.patch_is_dead.store(true, Ordering::Relaxed);
                (Batch::of(batch.frames, &self.plan()), Vec::new())
            }
        };
        let mut entries = entries.into_iter();
        let mut spans = batch.layer.iter();
        let mut body: Option<Body> = None;
        let mut loaded = Vec::with_capacity(batch.segments.len());
        let plan = self.plan();
        for segment in batch.segments {
            let input = match segment.from {
                From::Zeros | From::InPlace | From::Copy { .. } => Input::Nothing,
                From::Patch { .. } => Input::Entry(entries.next().ok_or(InstallError::Worker)?),
                From::Fetch => {
                    let wanted = layer_span(&plan, &segment);
                    Input::Frame(self.frame(wanted, &mut body, &mut spans).await?)
                }
            };
            loaded.push((segment, input));
        }
        Ok((!batch.layer.is_empty(), loaded))
    }

    /// One frame of the slot layer, from the open body of its span.
    async fn frame(
        &self,
        wanted: Range<u64>,
        body: &mut Option<Body>,
        spans: &mut std::slice::Iter<'_, Range<u64>>,
    ) -> Result<Bytes, InstallError> {
        let (registry, blob) = (self.job.registry, self.job.blob);
        if registry.serves_ranges() && body.as_ref().is_none_or(|body| body.end < wanted.end) {
            let span = spans.next().ok_or(InstallError::Worker)?.clone();
            let bytes = length(&span);
            *body = Some(Body::open(registry, blob, span).await?);
            // What a registry sends that ignores ranges is left at once, and asked for as a whole.
            self.luck.asked(if registry.serves_ranges() { bytes } else { 0 });
        }
        if registry.serves_ranges()
            && let Some(body) = body
        {
            return body.take(wanted).await;
        }
        // Each range would cost a pass over the whole blob: all that is wanted is taken from one.
        *body = None;
        let mut pass = self.pass.lock().await;
        if pass.is_none() {
            self.luck.asked(blob.size - wanted.start);
            *pass = Some(Body::open(registry, blob, wanted.start..blob.size).await?);
        }
        match pass.as_mut() {
            Some(pass) => pass.take(wanted).await,
            None => Err(InstallError::Worker),
        }
    }

    /// The entries of the patch that a batch needs, one for each of its segments that wants one.
    async fn entries(&self, batch: &Batch) -> Result<Vec<Bytes>, InstallError> {
        let mut entries = Vec::new();
        let Some(patch) = self.job.patch() else { return Ok(entries) };
        let mut spans = batch.patch.iter();
        let mut body: Option<Body> = None;
        let mut last: Option<(usize, Bytes)> = None;
        for segment in &batch.segments {
            let From::Patch { entry } = segment.from else { continue };
            // A frame that is fetched may cut an entry's segments in two.
            if let Some((number, bytes)) = &last
                && *number == entry
            {
                entries.push(bytes.clone());
                continue;
            }
            let wanted = patch.chosen.span(entry);
            if body.as_ref().is_none_or(|body| body.end < wanted.end) {
                let span = spans.next().ok_or(InstallError::Worker)?.clone();
                self.luck.asked(length(&span));
                body = Some(Body::open(self.job.registry, &patch.blob, span).await?);
            }
            let bytes = body.as_mut().ok_or(InstallError::Worker)?.take(wanted).await?;
            last = Some((entry, bytes.clone()));
            entries.push(bytes);
        }
        Ok(entries)
    }
}

/// What a plan costs, with the requests that its batches make.
pub fn cost(plan: &Plan<'_>) -> super::Traffic {
    let mut traffic = super::Traffic::default();
    let mut batches = Batches::new();
    while let Some(batch) = batches.next(plan) {
        for span in batch.layer.iter().chain(&batch.patch) {
            traffic.fetched += span.end - span.start;
            traffic.requests += 1;
        }
        for segment in &batch.segments {
            let bytes = segment.raw.end - segment.raw.start;
            match segment.from {
                From::Zeros => traffic.zero += bytes,
                From::InPlace => traffic.kept += bytes,
                From::Copy { .. } => {
                    traffic.copied += bytes;
                    traffic.written += bytes;
                }
                From::Patch { .. } | From::Fetch => traffic.written += bytes,
            }
        }
    }
    traffic
}
