//! Where the frames and chunks of an index lie: all of it but the hashes.
//!
//! Not here: the hashes (`super::Index`, and page by page `install::layer`). Rule: it is made by an [`Index`](super::Index)
//! alone, whose checks it has passed. It is what a device holds in memory as long as it installs, so it is kept as lengths, with
//! a place now and then to count from.

use std::ops::Range;

use super::{BLOCK_BYTES, ChunkRef};

/// So many frames are counted from one place.
const GROUP_FRAMES: usize = 32;

/// The frames and chunks of an index without their hashes. Less than 9 bytes a frame and one a chunk: 2.5 MiB for 4 GiB in frames
/// of one chunk of 16 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Where every [`GROUP_FRAMES`]th frame begins.
    groups: Vec<Place>,
    frames: Vec<Frame>,
    /// The length of each chunk, in blocks.
    blocks: Vec<u8>,
    /// Where the last frame ends.
    end: Place,
}

/// A place between two frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub blob_offset: u64,
    pub raw_offset: u64,
    pub first_chunk: u32,
}

/// The lengths of a frame. A zero run has at most 16,384 blocks, every other one at most 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    blob_bytes: u32,
    raw_blocks: u16,
    chunks: u8,
}

/// Where one frame lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameSpan {
    /// Its bytes in the blob.
    pub blob: Range<u64>,
    /// Its bytes in the raw image.
    pub raw: Range<u64>,
    /// Its chunks, by their numbers; empty for a zero run.
    pub chunks: Range<usize>,
}

impl Outline {
    /// An outline that begins at `start`, with room for so many frames and chunks. `None` without the memory.
    pub(super) fn begin(start: Place, frame_count: usize, chunk_count: usize) -> Option<Outline> {
        let (mut groups, mut frames, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        groups.try_reserve_exact(frame_count.div_ceil(GROUP_FRAMES)).ok()?;
        frames.try_reserve_exact(frame_count).ok()?;
        blocks.try_reserve_exact(chunk_count).ok()?;
        Some(Outline { groups, frames, blocks, end: start })
    }

    /// Adds the next frame, whose lengths were checked. `None` when there are more chunks than 32 bits count.
    pub(super) fn push(&mut self, blob_bytes: u32, raw_bytes: u32, chunks: &[ChunkRef]) -> Option<()> {
        if self.frames.len().is_multiple_of(GROUP_FRAMES) {
            self.groups.push(self.end);
        }
        let raw_blocks = (raw_bytes / BLOCK_BYTES) as u16;
        let frame = Frame { blob_bytes, raw_blocks, chunks: chunks.len() as u8 };
        u32::try_from(self.blocks.len() + chunks.len()).ok()?;
        self.end = self.end.behind(&frame);
        self.frames.push(frame);
        self.blocks.extend(chunks.iter().map(|chunk| (chunk.raw_bytes / BLOCK_BYTES) as u8));
        Some(())
    }

    /// Length of the raw image in bytes; of a page, where it ends.
    pub fn raw_bytes(&self) -> u64 {
        self.end.raw_offset
    }

    /// Length of the blob in bytes; of a page, where it ends.
    pub fn blob_bytes(&self) -> u64 {
        self.end.blob_offset
    }

    /// Number of frames.
    pub fn frame_count(&self) -> usize {
        self.frames.len()
    }

    /// Number of chunks.
    pub fn chunk_count(&self) -> usize {
        self.blocks.len()
    }

    /// Where all frames lie, in ascending order; together the whole raw image and the whole blob.
    pub fn spans(&self) -> impl ExactSizeIterator<Item = FrameSpan> + DoubleEndedIterator + Clone {
        self.frames.iter().enumerate().map(|(number, frame)| frame.span(&self.begin_of(number)))
    }

    /// Where frame number `number` lies, counted from 0.
    pub fn span(&self, number: usize) -> Option<FrameSpan> {
        Some(self.frames.get(number)?.span(&self.begin_of(number)))
    }

    /// The chunks of frame number `number`, by their numbers; empty for a zero run, and beyond the last frame.
    pub fn chunks_of(&self, number: usize) -> Range<usize> {
        self.span(number).map_or(self.blocks.len()..self.blocks.len(), |span| span.chunks)
    }

    /// Raw bytes of chunk number `chunk`; 0 beyond the last one.
    pub fn chunk_bytes(&self, chunk: usize) -> u64 {
        self.blocks.get(chunk).map_or(0, |blocks| u64::from(*blocks) * u64::from(BLOCK_BYTES))
    }

    /// Number of the first chunk of frame `frame`, and of the one behind it where it is a zero run. Of the number behind
    /// the last frame: how many chunks there are.
    pub fn first_chunk(&self, frame: usize) -> Option<usize> {
        (frame <= self.frames.len()).then(|| self.begin_of(frame).first_chunk as usize)
    }

    /// Number of the frame that holds chunk number `chunk`.
    pub fn frame_of(&self, chunk: usize) -> Option<usize> {
        if chunk >= self.blocks.len() {
            return None;
        }
        let group = self.groups.partition_point(|group| group.first_chunk as usize <= chunk) - 1;
        let mut end = self.groups[group].first_chunk as usize;
        let first = group * GROUP_FRAMES;
        let within = self.frames[first..].iter().position(|frame| {
            end += usize::from(frame.chunks);
            chunk < end
        });
        within.map(|within| first + within)
    }

    /// Bytes of memory that it takes.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.groups.capacity() * size_of::<Place>()
            + self.frames.capacity() * size_of::<Frame>()
            + self.blocks.capacity()
    }

    /// Where frame number `number` begins; where the last one ends, for every number behind it.
    fn begin_of(&self, number: usize) -> Place {
        let Some(group) = self.groups.get(number / GROUP_FRAMES).filter(|_| number < self.frames.len())
        else {
            return self.end;
        };
        let first = number / GROUP_FRAMES * GROUP_FRAMES;
        let before = &self.frames[first..number];
        before.iter().fold(*group, |place, frame| place.behind(frame))
    }
}

impl Place {
    fn behind(&self, frame: &Frame) -> Place {
        Place {
            blob_offset: self.blob_offset + u64::from(frame.blob_bytes),
            raw_offset: self.raw_offset + frame.raw_bytes(),
            first_chunk: self.first_chunk + u32::from(frame.chunks),
        }
    }
}

impl Frame {
    fn raw_bytes(&self) -> u64 {
        u64::from(self.raw_blocks) * u64::from(BLOCK_BYTES)
    }

    fn span(&self, begin: &Place) -> FrameSpan {
        let chunk = begin.first_chunk as usize;
        FrameSpan {
            blob: begin.blob_offset..begin.blob_offset + u64::from(self.blob_bytes),
            raw: begin.raw_offset..begin.raw_offset + self.raw_bytes(),
            chunks: chunk..chunk + usize::from(self.chunks),
        }
    }
}
