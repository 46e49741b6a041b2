//! Where each chunk of a release comes from: it lies in place, elsewhere on the machine, can be made by a patch, or is fetched.
//!
//! Not here: reading, fetching, writing. Rule: pure arithmetic over indexes. A plan is a hope: what it finds on the machine is
//! compared with the signed index when it is read, and what does not match is fetched.

use std::ops::Range;

use super::index::{FrameSpan, Outline};
use super::lookup::{Lookup, Place};
use super::patch::Patch;

/// The longest segment in raw bytes: what one worker holds at a time.
pub const SEGMENT_BYTES_MAX: u64 = 256 * 1024;

/// Where the bytes of a segment come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// They are zeros.
    Zeros,
    /// They lie there already.
    InPlace,
    /// They lie elsewhere on the machine.
    Copy {
        /// In which slot.
        place: Place,
        /// From which byte of it on.
        offset: u64,
    },
    /// A patch's entry makes them.
    Patch {
        /// The entry's number.
        entry: usize,
    },
    /// The frame that holds them is fetched: the segment is the whole frame.
    Fetch,
}

/// A piece of the raw image with one origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Chunks, by their numbers in the index; empty for zeros.
    pub chunks: Range<usize>,
    /// Bytes of the raw image.
    pub raw: Range<u64>,
    /// Where they come from.
    pub from: From,
}

/// What a patch offers: which chunks each of its entries makes, in ascending order.
pub trait Entries {
    /// The entry that makes this chunk.
    fn entry_of(&self, chunk: usize) -> Option<usize>;
    /// The bytes of an entry in the patch's blob.
    fn span(&self, entry: usize) -> Range<u64>;
}

/// A patch, and which of its entries are worth their bytes.
#[derive(Debug)]
pub struct Chosen {
    /// Its entries.
    pub table: Patch,
    used: Vec<bool>,
}

impl Chosen {
    /// An entry is used where it is shorter than what `plan`, which knows no patch, would fetch in its place: some of what it
    /// makes may lie on the machine.
    pub fn new(table: Patch, plan: &Plan<'_>) -> Chosen {
        let mut segments = Vec::new();
        let used = table.entries().map(|entry| {
            segments.clear();
            entry.frames.clone().for_each(|frame| plan.push_frame(frame, &mut segments));
            let bytes: u64 = segments.iter().map(|segment| plan.fetched(segment)).sum();
            bytes > entry.blob_bytes()
        });
        let used = used.collect();
        Chosen { table, used }
    }
}

impl Entries for Chosen {
    fn entry_of(&self, chunk: usize) -> Option<usize> {
        self.table.entry_of(chunk).filter(|entry| self.used.get(*entry) == Some(&true))
    }

    fn span(&self, entry: usize) -> Range<u64> {
        self.table.entry(entry).map(|entry| entry.blob).unwrap_or_default()
    }
}

/// What a plan moves, in bytes. What is kept, written and zero makes the whole raw image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Fetched of the release's blob.
    pub fetch_bytes: u64,
    /// Fetched of the patch's blob, without its header.
    pub patch_bytes: u64,
    /// Raw bytes left where they are.
    pub keep_bytes: u64,
    /// Raw bytes copied from elsewhere on the machine; they are written, too.
    pub copy_bytes: u64,
    /// Raw bytes written to the slot.
    pub write_bytes: u64,
    /// Raw bytes that are zero runs.
    pub zero_bytes: u64,
}

impl Cost {
    /// All that is fetched, without index, header and boot files.
    pub fn fetched(&self) -> u64 {
        self.fetch_bytes + self.patch_bytes
    }
}

/// Where everything comes from.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// The release.
    pub index: &'a Outline,
    /// What lies on the machine.
    pub lookup: &'a Lookup,
    /// The places that are looked at, by [`Place`]: one that turned out to hold something else is not.
    pub places: [bool; 2],
    /// What a patch could make, where one may be used.
    pub patch: Option<&'a (dyn Entries + Sync)>,
    /// Frames that were read and compared in the target already; empty where none was.
    pub kept: &'a [bool],
}

impl<'a> Plan<'a> {
    /// A plan that looks at every place, and knows no patch.
    pub fn new(index: &'a Outline, lookup: &'a Lookup) -> Plan<'a> {
        Plan { index, lookup, places: [true; 2], patch: None, kept: &[] }
    }

    /// The segments of frame number `frame`, appended to `out`; the last one there grows when this frame goes on where it ends.
    pub fn push_frame(&self, number: usize, out: &mut Vec<Segment>) {
        let Some(FrameSpan { raw, chunks, .. }) = self.index.span(number) else { return };
        if chunks.is_empty() {
            out.push(Segment { chunks, raw, from: From::Zeros });
            return;
        }
        let before = out.len();
        let kept = self.kept.get(number).copied().unwrap_or(false);
        let mut offset = raw.start;
        for chunk in chunks.clone() {
            let bytes = self.index.chunk_bytes(chunk);
            let from = if kept { From::InPlace } else { self.origin(chunk, offset) };
            if from == From::Fetch {
                // One missing chunk costs the frame; what else lies in it comes along.
                out.truncate(before);
                out.push(Segment { chunks, raw, from });
                return;
            }
            append(out, before, Segment { chunks: chunk..chunk + 1, raw: offset..offset + bytes, from });
            offset += bytes;
        }
        join(out, before);
    }

    /// What all of it moves.
    pub fn cost(&self) -> Cost {
        let (mut cost, mut last_entry, mut segments) = (Cost::default(), None, Vec::new());
        for frame in 0..self.index.frame_count() {
            segments.clear();
            self.push_frame(frame, &mut segments);
            for segment in &segments {
                let bytes = segment.raw.end - segment.raw.start;
                cost.fetch_bytes += self.fetched(segment);
                match segment.from {
                    From::Zeros => cost.zero_bytes += bytes,
                    From::InPlace => cost.keep_bytes += bytes,
                    From::Copy { .. } => cost.copy_bytes += bytes,
                    From::Fetch => {}
                    From::Patch { entry } => {
                        let span =
                            self.patch.filter(|_| last_entry != Some(entry)).map(|patch| patch.span(entry));
                        cost.patch_bytes += span.map_or(0, |span| span.end - span.start);
                        last_entry = Some(entry);
                    }
                }
                if !matches!(segment.from, From::Zeros | From::InPlace) {
                    cost.write_bytes += bytes;
                }
            }
        }
        cost
    }

    /// Bytes of the release's blob that a segment costs.
    fn fetched(&self, segment: &Segment) -> u64 {
        let number = self.index.frame_of(segment.chunks.start).filter(|_| segment.from == From::Fetch);
        number.and_then(|number| self.index.span(number)).map_or(0, |span| span.blob.end - span.blob.start)
    }

    /// Where one chunk, which belongs at byte `offset`, comes from.
    fn origin(&self, chunk: usize, offset: u64) -> From {
        let [running, target] = self.places;
        let in_target = self.lookup.find(chunk, Place::Target).filter(|_| target);
        if in_target == Some(offset) {
            return From::InPlace;
        }
        let in_running = self.lookup.find(chunk, Place::Running).filter(|_| running);
        let best = in_running.map(|at| (Place::Running, at)).or_else(|| {
            // What lies before it in the target is overwritten by the time it would be read.
            in_target.filter(|at| *at > offset).map(|at| (Place::Target, at))
        });
        match best {
            Some((place, offset)) => From::Copy { place, offset },
            None => match self.patch.and_then(|patch| patch.entry_of(chunk)) {
                Some(entry) => From::Patch { entry },
                None => From::Fetch,
            },
        }
    }
}

/// Appends a segment of the frame whose segments begin at `before`, or lengthens the last one.
fn append(out: &mut Vec<Segment>, before: usize, segment: Segment) {
    if out.len() > before
        && let Some(last) = out.last_mut()
        && goes_on(last, &segment)
    {
        last.chunks.end = segment.chunks.end;
        last.raw.end = segment.raw.end;
        return;
    }
    out.push(segment);
}

/// Joins the first segment of a frame to the last one before it: a file of many frames is read in few pieces.
fn join(out: &mut Vec<Segment>, before: usize) {
    if before == 0 || before >= out.len() {
        return;
    }
    let (old, new) = out.split_at_mut(before);
    if let (Some(last), Some(first)) = (old.last_mut(), new.first())
        && goes_on(last, first)
    {
        last.chunks.end = first.chunks.end;
        last.raw.end = first.raw.end;
        out.remove(before);
    }
}

/// True when `next` may be read in one go with `this`.
fn goes_on(this: &Segment, next: &Segment) -> bool {
    let here = this.raw.end - this.raw.start;
    let adjacent = this.raw.end == next.raw.start && this.chunks.end == next.chunks.start;
    let fits = next.raw.end - this.raw.start <= SEGMENT_BYTES_MAX;
    adjacent
        && match (this.from, next.from) {
            (From::InPlace, From::InPlace) => fits,
            (From::Copy { place, offset }, From::Copy { place: there, offset: at }) => {
                fits && place == there && offset + here == at
            }
            // All of an entry is decoded at once, however long it is.
            (From::Patch { entry }, From::Patch { entry: other }) => entry == other,
            _ => false,
        }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
