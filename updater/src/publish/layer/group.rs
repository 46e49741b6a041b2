//! Which chunks share a frame.
//!
//! Without an earlier release none do. With one, neighbours do that the earlier releases lack: a device with such a release
//! then fetches frames of new chunks alone, and each is smaller than its chunks are one by one. What they have is framed as
//! the first of them framed it, so that the index's pages over it stay the same and are not fetched either.
//!
//! Not here: where a chunk ends (`chunker`), compressing. Rule: a frame never mixes chunks that an earlier release has with
//! chunks that they lack, and ends where a page of the index may end.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::super::like::KnownChunks;
use crate::image::chunker::Piece;
use crate::image::index::{ChunkRef, FRAME_RAW_BYTES_MAX, ends_page};

/// What becomes one frame.
pub(super) enum Job {
    /// Zeros, so many bytes.
    Zero(u32),
    /// A chunk alone, not hashed yet.
    Chunk(Vec<u8>),
    /// Chunks together.
    Group(Group),
}

/// Neighbours in one frame.
#[derive(Default)]
pub(super) struct Group {
    /// Their bytes.
    pub(super) raw: Vec<u8>,
    /// Each of them, in order.
    pub(super) chunks: Vec<ChunkRef>,
    known: bool,
}

/// Turns pieces into frames.
pub(super) struct Grouper {
    known: Arc<KnownChunks>,
    open: Group,
}

impl Grouper {
    /// Groups by the chunks that earlier releases have.
    pub(super) fn new(known: Arc<KnownChunks>) -> Grouper {
        Grouper { known, open: Group::default() }
    }

    /// Takes the next piece and gives the frames that are complete by it, in order.
    pub(super) fn push(&mut self, piece: Piece) -> impl Iterator<Item = Job> + use<> {
        let frames = match piece {
            Piece::Zero(bytes) => [self.close(), Some(Job::Zero(bytes))],
            Piece::Chunk(raw) if self.known.is_empty() => [None, Some(Job::Chunk(raw))],
            Piece::Chunk(raw) => self.join(raw),
        };
        frames.into_iter().flatten()
    }

    /// The last frame.
    pub(super) fn close(&mut self) -> Option<Job> {
        let group = std::mem::take(&mut self.open);
        (!group.chunks.is_empty()).then_some(Job::Group(group))
    }

    fn join(&mut self, raw: Vec<u8>) -> [Option<Job>; 2] {
        let chunk = ChunkRef { raw_bytes: raw.len() as u32, sha256: Sha256::digest(&raw).into() };
        let known = self.known.contains(&chunk);
        let fits = self.open.raw.len() + raw.len() <= FRAME_RAW_BYTES_MAX as usize;
        let together = known == self.open.known
            && (!known || self.open.chunks.last().is_some_and(|last| self.known.goes_on_behind(last)));
        let before = if fits && together { None } else { self.close() };
        self.open.known = known;
        self.open.raw.extend_from_slice(&raw);
        self.open.chunks.push(chunk);
        // A page ends behind this chunk, if the frame does.
        let with_it = if ends_page(&chunk) { self.close() } else { None };
        [before, with_it]
    }
}
