//! The first stage: segments in order, with the bytes from the registry that each needs.
//!
//! Not here: what is done with them (`work`). Rule: several batches of about a mebibyte are under way at once and leave in
//! order; what a patch cannot give is taken from the slot layer, whose failure alone ends the install.

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;

use super::InstallError;
use super::body::Body;
use super::luck::Luck;
use super::pipeline::SlotJob;
use super::stages::Clock;
use crate::image::manifest::Descriptor;
use crate::image::plan::{Cost, Entries as _, From, Plan, Segment};
use crate::registry::Registry;

/// A request is not split for a gap of frames that are there already (or read as zero) of at most this many bytes:
/// fetching them costs less than another round trip.
const GAP_BYTES_MAX: u64 = 12 * 1024;
/// A batch ends when it has to fetch this much, covers this much, or has this many segments.
const BATCH_BYTES: u64 = 1024 * 1024;
const BATCH_RAW_BYTES: u64 = 4 * 1024 * 1024;
const BATCH_SEGMENTS: usize = 256;
/// Batches under way at once: each is a connection, or a stream of one.
const BATCHES_AT_ONCE: usize = 6;

/// What came from the registry for a segment.
pub enum Input {
    /// Nothing; it is on the machine.
    Nothing,
    /// The compressed frame.
    Frame(Bytes),
    /// The compressed entry of the patch.
    Entry(Bytes),
}

/// Segments that go from one stage to the next together, each with what belongs to it: one by one the stages would wait for
/// each other at every 16 KiB.
pub type Parcel<T> = Vec<(Segment, T)>;

/// A parcel is closed when this much was not zeros; with its last segment it has at most twice that.
const PARCEL_BYTES: u64 = 256 * 1024;

fn parcels<T>(segments: Vec<(Segment, T)>) -> Vec<Parcel<T>> {
    let (mut parcels, mut open, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (segment, input) in segments {
        if segment.from != From::Zeros {
            bytes += length(&segment.raw);
        }
        open.push((segment, input));
        if bytes >= PARCEL_BYTES {
            parcels.push(std::mem::take(&mut open));
            bytes = 0;
        }
    }
    if !open.is_empty() {
        parcels.push(open);
    }
    parcels
}

/// Some segments of whole frames, and the blob ranges that they need.
struct Batch {
    frames: Range<usize>,
    /// The segments, in order.
    segments: Vec<Segment>,
    /// Ranges of the slot layer's blob.
    layer: Vec<Range<u64>>,
    /// Ranges of the patch's blob.
    patch: Vec<Range<u64>>,
}

impl Batch {
    fn new(frames: Range<usize>, segments: Vec<Segment>, plan: &Plan<'_>) -> Batch {
        let mut batch = Batch { frames, segments, layer: Vec::new(), patch: Vec::new() };
        for segment in &batch.segments {
            match segment.from {
                From::Fetch => add_span(&mut batch.layer, span(plan, segment)),
                From::Patch { .. } => add_span(&mut batch.patch, span(plan, segment)),
                From::Zeros | From::InPlace | From::Copy { .. } => {}
            }
        }
        batch
    }

    /// The same frames by another plan.
    fn again(&self, plan: &Plan<'_>) -> Batch {
        let mut segments = Vec::new();
        self.frames.clone().for_each(|frame| plan.push_frame(frame, &mut segments));
        Batch::new(self.frames.clone(), segments, plan)
    }
}

/// Cuts a plan into batches, from the first frame on.
#[derive(Default)]
struct Batches {
    next: usize,
}

impl Batches {
    /// The next batch, by `plan`, which may hope for less than the one before.
    fn next(&mut self, plan: &Plan<'_>) -> Option<Batch> {
        let (begin, mut bytes, mut raw_bytes, mut segments) = (self.next, 0, 0, Vec::new());
        while let Some(frame) = plan.index.span(self.next) {
            if bytes >= BATCH_BYTES || raw_bytes >= BATCH_RAW_BYTES || segments.len() >= BATCH_SEGMENTS {
                // An entry's bytes would be fetched twice.
                let goes_on = segments.last().is_some_and(|last| self.is_inside_entry(plan, last));
                if !goes_on {
                    break;
                }
            }
            let before = segments.len();
            plan.push_frame(self.next, &mut segments);
            let more = segments.get(before..).unwrap_or_default();
            bytes += more.iter().map(|segment| length(&span(plan, segment))).sum::<u64>();
            raw_bytes += length(&frame.raw);
            self.next += 1;
        }
        (self.next > begin).then(|| Batch::new(begin..self.next, segments, plan))
    }

    /// True when the next frame goes on with the patch's entry that `last` is of.
    fn is_inside_entry(&self, plan: &Plan<'_>, last: &Segment) -> bool {
        let From::Patch { entry } = last.from else { return false };
        let next = plan.index.chunks_of(self.next);
        !next.is_empty() && plan.patch.and_then(|patch| patch.entry_of(next.start)) == Some(entry)
    }
}

/// What a segment needs of the slot layer's blob, or of the patch's; empty for one that is on the machine.
fn span(plan: &Plan<'_>, segment: &Segment) -> Range<u64> {
    match segment.from {
        From::Fetch => {
            let number = plan.index.frame_of(segment.chunks.start);
            number.and_then(|number| plan.index.span(number)).map_or(0..0, |span| span.blob)
        }
        From::Patch { entry } => plan.patch.map_or(0..0, |patch| patch.span(entry)),
        From::Zeros | From::InPlace | From::Copy { .. } => 0..0,
    }
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

/// A blob that is read by ranges, or in one pass where its registry knows none.
pub struct Blob<'a> {
    /// The release's repository.
    pub registry: &'a dyn Registry,
    /// Which blob.
    pub blob: &'a Descriptor,
    /// Counts what is asked for.
    pub luck: &'a Luck,
    pass: tokio::sync::Mutex<Option<Body>>,
}

/// The ranges of one batch, being read.
struct Reading<'s> {
    spans: std::slice::Iter<'s, Range<u64>>,
    body: Option<Body>,
}

impl<'s> Reading<'s> {
    fn of(spans: &'s [Range<u64>]) -> Reading<'s> {
        Reading { spans: spans.iter(), body: None }
    }
}

impl<'a> Blob<'a> {
    /// A blob of which nothing was read.
    pub fn new(registry: &'a dyn Registry, blob: &'a Descriptor, luck: &'a Luck) -> Blob<'a> {
        Blob { registry, blob, luck, pass: tokio::sync::Mutex::default() }
    }

    /// The next piece of a batch: it lies in the open range, or in the next one.
    async fn piece(&self, reading: &mut Reading<'_>, wanted: Range<u64>) -> Result<Bytes, InstallError> {
        if self.registry.serves_ranges() && reading.body.as_ref().is_none_or(|body| body.end < wanted.end) {
            let span = reading.spans.next().ok_or(InstallError::Worker)?.clone();
            let bytes = length(&span);
            reading.body = Some(Body::open(self.registry, self.blob, span).await?);
            // What a registry sends that ignores ranges is left at once, and asked for as a whole.
            self.luck.asked(if self.registry.serves_ranges() { bytes } else { 0 });
        }
        match &mut reading.body {
            Some(body) if self.registry.serves_ranges() => body.take(wanted).await,
            _ => {
                reading.body = None;
                self.taken_from_pass(wanted).await
            }
        }
    }

    /// Each range would cost a pass over the whole blob: all that is wanted is taken from one.
    async fn taken_from_pass(&self, wanted: Range<u64>) -> Result<Bytes, InstallError> {
        let mut pass = self.pass.lock().await;
        // Batches under way when the registry began to ignore ranges may ask for what was passed over.
        let body = match pass.take().filter(|body| body.at <= wanted.start) {
            Some(body) => body,
            None => {
                self.luck.asked(self.blob.size - wanted.start);
                Body::open(self.registry, self.blob, wanted.start..self.blob.size).await?
            }
        };
        pass.insert(body).take(wanted).await
    }
}

/// Fetches what a plan needs.
pub struct Fetcher<'a> {
    job: &'a SlotJob<'a>,
    /// What lies in the target by the journal.
    kept: &'a [bool],
    luck: &'a Luck,
    layer: Blob<'a>,
    patch: Option<Blob<'a>>,
}

impl<'a> Fetcher<'a> {
    /// Of one slot; `kept` frames lie there by the journal.
    pub fn new(job: &'a SlotJob<'a>, kept: &'a [bool], luck: &'a Luck) -> Fetcher<'a> {
        let layer = Blob::new(job.registry, job.blob, luck);
        let patch = job.patch().map(|patch| Blob::new(job.registry, &patch.blob, luck));
        Fetcher { job, kept, luck, layer, patch }
    }

    /// Sends every segment in order, in parcels, each to the next worker in turn. The clock counts the waits for the registry.
    pub async fn run(
        &self,
        to: &[tokio::sync::mpsc::Sender<Parcel<Input>>],
        clock: &mut Clock,
    ) -> Result<(), InstallError> {
        let mut batches = Batches::default();
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
            let began = Instant::now();
            let Some(loaded) = loading.next().await else { return Ok(()) };
            clock.add(began.elapsed());
            let (asked, segments) = loaded?;
            probed |= asked;
            for parcel in parcels(segments) {
                if self.job.progress.stopped() {
                    return Err(InstallError::Interrupted);
                }
                let Some(worker) = to.next() else { return Err(InstallError::Worker) };
                if worker.send(parcel).await.is_err() {
                    // The worker or the writer stopped; its own error says why.
                    return Ok(());
                }
            }
        }
    }

    /// Where things come from, by what has been found out so far.
    fn plan(&self) -> Plan<'a> {
        let patch = self.job.patch().filter(|_| self.luck.hopes_for_patch());
        Plan {
            patch: patch.map(|patch| &patch.chosen as _),
            kept: self.kept,
            places: self.luck.places(),
            ..Plan::new(self.job.outline(), self.job.lookup())
        }
    }

    /// Fetches what a batch needs. True when the registry was asked.
    async fn load(&self, batch: Batch) -> Result<(bool, Vec<(Segment, Input)>), InstallError> {
        let (batch, entries) = match self.entries(&batch).await {
            Ok(entries) => (batch, entries),
            Err(error) => {
                let error = crate::engine::chain(&error);
                tracing::warn!(error, "the patch cannot be fetched; going on without it");
                self.luck.no_patch();
                (batch.again(&self.plan()), Vec::new())
            }
        };
        let asked = !(batch.layer.is_empty() && batch.patch.is_empty());
        let (plan, mut reading) = (self.plan(), Reading::of(&batch.layer));
        let (mut entries, mut loaded) = (entries.into_iter(), Vec::with_capacity(batch.segments.len()));
        for segment in batch.segments {
            let input = match segment.from {
                From::Zeros | From::InPlace | From::Copy { .. } => Input::Nothing,
                From::Patch { .. } => Input::Entry(entries.next().ok_or(InstallError::Worker)?),
                From::Fetch => Input::Frame(self.layer.piece(&mut reading, span(&plan, &segment)).await?),
            };
            loaded.push((segment, input));
        }
        Ok((asked, loaded))
    }

    /// The entries of the patch that a batch needs, one for each of its segments that wants one.
    async fn entries(&self, batch: &Batch) -> Result<Vec<Bytes>, InstallError> {
        let mut entries = Vec::new();
        let (Some(patch), Some(blob)) = (self.job.patch(), &self.patch) else { return Ok(entries) };
        let mut reading = Reading::of(&batch.patch);
        let mut last: Option<(usize, Bytes)> = None;
        for segment in &batch.segments {
            let From::Patch { entry } = segment.from else { continue };
            // A frame that is fetched may cut an entry's segments in two.
            let bytes = match last.take().filter(|(number, _)| *number == entry) {
                Some((_, bytes)) => bytes,
                None => blob.piece(&mut reading, patch.chosen.span(entry)).await?,
            };
            last = Some((entry, bytes.clone()));
            entries.push(bytes);
        }
        Ok(entries)
    }
}

/// What a plan costs, with the requests that its batches make.
pub fn cost(plan: &Plan<'_>) -> super::Traffic {
    let Cost { keep_bytes: kept, copy_bytes: copied, write_bytes: written, zero_bytes: zero, .. } =
        plan.cost();
    let mut traffic = super::Traffic { kept, copied, written, zero, ..super::Traffic::default() };
    let mut batches = Batches::default();
    while let Some(batch) = batches.next(plan) {
        for span in batch.layer.iter().chain(&batch.patch) {
            traffic.fetched += length(span);
            traffic.requests += 1;
        }
    }
    traffic
}
