//! The middle stage: a segment's bytes, each chunk of it compared with the signed index.
//!
//! Not here: fetching ahead (`fetch`), writing. Rule: what was hoped to lie on the machine and does not, is fetched here, so that
//! only the registry's own bytes can fail an install.

use std::ops::Range;
use std::sync::mpsc::SyncSender;

use tokio::sync::mpsc::Receiver;

use super::InstallError;
use super::body::Body;
use super::fetch::{Input, Parcel};
use super::layer::LayerReader;
use super::luck::Luck;
use super::pipeline::SlotJob;
use super::stages::Clock;
use crate::image::frame::{FrameDecoder, chunks_are};
use crate::image::lookup::Place;
use crate::image::patch;
use crate::image::plan::{From, Segment};
use crate::progress::until_stopped;

/// What the writer gets for a segment.
pub enum Made {
    /// Zeros.
    Zeros,
    /// What lies there already.
    InPlace,
    /// These bytes, from elsewhere on the machine.
    Copied(Vec<u8>),
    /// These bytes, which were fetched.
    Fetched(Vec<u8>),
}

/// How much of a segment was not what it was hoped to be.
enum Mended {
    Nothing,
    Some,
    All,
}

/// One worker.
pub struct Worker<'a> {
    job: &'a SlotJob<'a>,
    luck: &'a Luck,
    runtime: tokio::runtime::Handle,
    frames: FrameDecoder,
    layer: LayerReader<'a>,
    /// The old bytes that a patch's entry builds on.
    prefix: Vec<u8>,
}

impl<'a> Worker<'a> {
    /// A worker of this job.
    pub fn new(
        job: &'a SlotJob<'a>,
        luck: &'a Luck,
        runtime: tokio::runtime::Handle,
    ) -> Result<Worker<'a>, InstallError> {
        let (frames, layer) = (FrameDecoder::new()?, job.layer()?);
        Ok(Worker { job, luck, runtime, frames, layer, prefix: Vec::new() })
    }

    /// Works until one of its two neighbours has gone; how long it was at work.
    pub fn run(
        mut self,
        mut from: Receiver<Parcel<Input>>,
        to: SyncSender<Result<Parcel<Made>, InstallError>>,
    ) -> Clock {
        let mut clock = Clock::default();
        while let Some(parcel) = from.blocking_recv() {
            let made = clock.work(|| self.make_all(parcel));
            let failed = made.is_err();
            if to.send(made).is_err() || failed {
                break;
            }
        }
        clock
    }

    fn make_all(&mut self, parcel: Parcel<Input>) -> Result<Parcel<Made>, InstallError> {
        let made = parcel.into_iter().map(|(segment, input)| {
            let made = self.make(&segment, input)?;
            Ok((segment, made))
        });
        made.collect()
    }

    fn make(&mut self, segment: &Segment, input: Input) -> Result<Made, InstallError> {
        match (segment.from, input) {
            (From::Zeros, _) => Ok(Made::Zeros),
            (From::InPlace, _) => {
                let mut raw = self.read(Place::Target, segment.raw.start, segment);
                Ok(match self.mend(Place::Target, segment, &mut raw)? {
                    Mended::Nothing => Made::InPlace,
                    Mended::Some => Made::Copied(raw),
                    Mended::All => Made::Fetched(raw),
                })
            }
            (From::Copy { place, offset }, _) => {
                let mut raw = self.read(place, offset, segment);
                Ok(match self.mend(place, segment, &mut raw)? {
                    Mended::Nothing | Mended::Some => Made::Copied(raw),
                    Mended::All => Made::Fetched(raw),
                })
            }
            (From::Patch { entry }, Input::Entry(compressed)) => {
                let made = self.patch(entry, &compressed, segment)?;
                self.luck.patched(made.is_some());
                made.map_or_else(|| self.fetch(segment), Ok).map(Made::Fetched)
            }
            (From::Fetch, Input::Frame(compressed)) => {
                let frame = self.layer.frame(self.number_of(segment.chunks.start)?)?;
                let mut raw = Vec::new();
                self.frames.decode(&frame, &compressed, &mut raw)?;
                Ok(Made::Fetched(raw))
            }
            (From::Patch { .. } | From::Fetch, _) => Err(InstallError::Worker),
        }
    }

    /// The bytes that lie where the segment is hoped to lie. A block that cannot be read is one that is not there: zeros.
    fn read(&self, place: Place, offset: u64, segment: &Segment) -> Vec<u8> {
        let mut raw = vec![0; length(&segment.raw)];
        let device = match place {
            Place::Target => Some(&*self.job.device),
            Place::Running => self.job.running(),
        };
        let read = device.map(|device| device.read_at(offset, &mut raw));
        if !matches!(read, Some(Ok(()))) {
            raw.fill(0);
        }
        raw
    }

    /// Compares bytes of the machine with the signed index, and fetches the frames of those that are others.
    fn mend(&mut self, place: Place, segment: &Segment, raw: &mut [u8]) -> Result<Mended, InstallError> {
        let mut wrong: Vec<Range<usize>> = Vec::new();
        let (mut chunk, mut right) = (segment.chunks.start, false);
        while chunk < segment.chunks.end {
            let number = self.number_of(chunk)?;
            let here = self.part_of(number, segment)?;
            if is_right(&mut self.layer, &here, part(raw, &segment.raw, &here.raw)?)? {
                right = true;
            } else {
                match wrong.last_mut() {
                    Some(run) if run.end == number => run.end = number + 1,
                    _ => wrong.push(number..number + 1),
                }
            }
            chunk = here.chunks.end;
        }
        self.luck.local(place, right);
        for run in &wrong {
            self.fetch_frames(run.clone(), segment, raw)?;
        }
        Ok(match (wrong.is_empty(), right) {
            (true, _) => Mended::Nothing,
            (false, true) => Mended::Some,
            (false, false) => Mended::All,
        })
    }

    /// The segment's bytes, made from old ones; `None` when they come out as others.
    fn patch(
        &mut self,
        entry: usize,
        compressed: &[u8],
        segment: &Segment,
    ) -> Result<Option<Vec<u8>>, InstallError> {
        let Some(raw) = self.patched(entry, compressed, segment) else { return Ok(None) };
        Ok(is_right(&mut self.layer, segment, &raw)?.then_some(raw))
    }

    /// The same, not yet compared.
    fn patched(&mut self, entry: usize, compressed: &[u8], segment: &Segment) -> Option<Vec<u8>> {
        let (offered, base) = (self.job.patch()?, self.job.running()?);
        let entry = offered.chosen.table.entry(entry)?;
        self.prefix.clear();
        for window in entry.windows {
            let at = self.prefix.len();
            self.prefix.resize(at + window.bytes as usize, 0);
            base.read_at(window.offset, &mut self.prefix[at..]).ok()?;
        }
        let mut raw = Vec::new();
        patch::decode(&self.prefix, compressed, entry.raw_bytes(), &mut raw).ok()?;
        if entry.raw != segment.raw {
            raw = part(&raw, &entry.raw, &segment.raw).ok()?.to_vec();
        }
        Some(raw)
    }

    /// The segment's bytes from the registry, after all.
    fn fetch(&mut self, segment: &Segment) -> Result<Vec<u8>, InstallError> {
        let mut raw = vec![0; length(&segment.raw)];
        let (first, last) = (self.number_of(segment.chunks.start)?, self.number_of(segment.chunks.end - 1)?);
        self.fetch_frames(first..last + 1, segment, &mut raw)?;
        Ok(raw)
    }

    /// Fetches frames that follow each other, in one request, and puts what of them belongs to the segment into `raw`.
    fn fetch_frames(
        &mut self,
        numbers: Range<usize>,
        segment: &Segment,
        raw: &mut [u8],
    ) -> Result<(), InstallError> {
        let job = self.job;
        let at = |number| job.outline().span(number).map(|span| span.blob).ok_or(InstallError::Worker);
        let span = at(numbers.start)?.start..at(numbers.end - 1)?.end;
        self.luck.asked(span.end - span.start);
        let mut body = self.wait(Body::open(job.registry, job.blob, span))?;
        let mut whole = Vec::new();
        for number in numbers {
            let compressed = self.wait(body.take(at(number)?))?;
            let frame = self.layer.frame(number)?;
            self.frames.decode(&frame, &compressed, &mut whole)?;
            let of_frame = frame.raw_offset..frame.raw_offset + frame.raw_bytes;
            let wanted = segment.raw.start.max(of_frame.start)..segment.raw.end.min(of_frame.end);
            let from = part(&whole, &of_frame, &wanted)?;
            let at = (wanted.start - segment.raw.start) as usize;
            raw.get_mut(at..at + from.len()).ok_or(InstallError::Worker)?.copy_from_slice(from);
        }
        Ok(())
    }

    /// Waits for the network, as long as the person does.
    fn wait<T>(&self, work: impl Future<Output = Result<T, InstallError>>) -> Result<T, InstallError> {
        let waited = self.runtime.block_on(until_stopped(self.job.progress, work));
        waited.unwrap_or(Err(InstallError::Interrupted))
    }

    /// What of a segment lies in one frame.
    fn part_of(&self, number: usize, segment: &Segment) -> Result<Segment, InstallError> {
        let frame = self.job.outline().span(number).ok_or(InstallError::Worker)?;
        let common = |start, end| segment.raw.start.max(start)..segment.raw.end.min(end);
        let chunks = segment.chunks.start.max(frame.chunks.start)..segment.chunks.end.min(frame.chunks.end);
        Ok(Segment { chunks, raw: common(frame.raw.start, frame.raw.end), from: segment.from })
    }

    fn number_of(&self, chunk: usize) -> Result<usize, InstallError> {
        self.job.outline().frame_of(chunk).ok_or(InstallError::Worker)
    }
}

/// Compares bytes with the chunks of a segment, which may lie in several frames.
fn is_right(layer: &mut LayerReader<'_>, segment: &Segment, raw: &[u8]) -> Result<bool, InstallError> {
    let (mut chunk, mut offset, mut rest) = (segment.chunks.start, segment.raw.start, raw);
    while chunk < segment.chunks.end {
        let number = layer.outline().frame_of(chunk).ok_or(InstallError::Worker)?;
        let all = layer.outline().chunks_of(number);
        let end = segment.chunks.end.min(all.end);
        let frame = layer.frame(number)?;
        let chunks = frame.chunks().get(chunk - all.start..end - all.start).ok_or(InstallError::Worker)?;
        let bytes: usize = chunks.iter().map(|chunk| chunk.raw_bytes as usize).sum();
        let Some((here, behind)) = rest.split_at_checked(bytes) else { return Ok(false) };
        if chunks_are(chunks, offset, here).is_err() {
            return Ok(false);
        }
        (chunk, offset, rest) = (end, offset + bytes as u64, behind);
    }
    Ok(rest.is_empty())
}

/// The bytes of `wanted` out of `raw`, which are those of `whole`.
fn part<'r>(raw: &'r [u8], whole: &Range<u64>, wanted: &Range<u64>) -> Result<&'r [u8], InstallError> {
    let at = |byte: u64| byte.checked_sub(whole.start).map(|at| at as usize);
    let range = at(wanted.start).zip(at(wanted.end));
    range.and_then(|(start, end)| raw.get(start..end)).ok_or(InstallError::Worker)
}

fn length(range: &Range<u64>) -> usize {
    (range.end - range.start) as usize
}
