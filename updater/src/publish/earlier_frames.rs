//! The frames of an earlier release as they lie in its blob: one that would hold the same chunks again is taken from there
//! and not compressed once more, which at level 19 is nearly all the time that a release takes.
//!
//! Not here: which chunks share a frame (`layer::group`). Rule: a frame that is taken decodes to the chunks that it is
//! taken for, and what is built does not depend on taking: nothing is taken from a release whose samples come out otherwise
//! here, made by another zstd or at another level. Worse compression would be handed on from release to release.

use std::collections::HashMap;
use std::io;

use sha2::{Digest as _, Sha256};
use zstd::bulk::Compressor;

use super::spool::Spool;
use crate::image::frame::{FrameDecoder, FrameError};
use crate::image::index::{ChunkRef, FrameBody, FrameRef, Index};

/// So many frames, spread evenly, are compressed anew and compared: 4 MiB at most.
const SAMPLES: usize = 16;

/// The frames of one slot layer: about 100 bytes of memory each.
#[derive(Debug)]
pub struct EarlierFrames {
    blob: Spool,
    /// By [`identity`].
    places: HashMap<[u8; 32], Place>,
    samples: Vec<Vec<ChunkRef>>,
}

/// Where a frame lies in the blob.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    bytes: u32,
}

impl EarlierFrames {
    /// The frames of `blob`, which `index` describes.
    pub fn new(blob: Spool, index: &Index) -> EarlierFrames {
        let mut places = HashMap::new();
        for frame in index.frames().filter(|frame| frame.body != FrameBody::Zero) {
            let place = Place { offset: frame.blob_offset, bytes: frame.blob_bytes };
            places.entry(identity(frame.chunks())).or_insert(place);
        }
        EarlierFrames { blob, places, samples: samples(index) }
    }

    /// True when compressing at `level` makes the frames that the release has, as far as samples tell.
    pub fn are_made_at(&self, level: i32) -> io::Result<bool> {
        let (mut compressor, mut decoder) = (Compressor::new(level)?, decoder()?);
        let mut raw = Vec::new();
        for chunks in &self.samples {
            let Some(frame) = self.decoded(chunks, &mut decoder, &mut raw) else { return Ok(false) };
            if compressor.compress(&raw)? != frame {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The frame that holds just these chunks, decoded into `raw`. One that is damaged is as good as none.
    fn decoded(&self, chunks: &[ChunkRef], decoder: &mut FrameDecoder, raw: &mut Vec<u8>) -> Option<Vec<u8>> {
        let place = self.places.get(&identity(chunks))?;
        let mut compressed = vec![0; place.bytes as usize];
        self.blob.read(place.offset, &mut compressed).ok()?;
        let frame = FrameRef {
            blob_offset: place.offset,
            blob_bytes: place.bytes,
            raw_offset: 0,
            raw_bytes: chunks.iter().map(|chunk| u64::from(chunk.raw_bytes)).sum(),
            body: FrameBody::Chunks(chunks),
        };
        decoder.decode(&frame, &compressed, raw).ok()?;
        Some(compressed)
    }
}

/// Takes frames; one for each thread.
pub(super) struct FrameTaker<'a> {
    frames: &'a EarlierFrames,
    decoder: FrameDecoder,
    raw: Vec<u8>,
}

impl<'a> FrameTaker<'a> {
    /// Takes from `frames`.
    pub(super) fn new(frames: &'a EarlierFrames) -> io::Result<FrameTaker<'a>> {
        Ok(FrameTaker { frames, decoder: decoder()?, raw: Vec::new() })
    }

    /// The compressed bytes of a frame of these chunks, proven by their hashes.
    pub(super) fn take(&mut self, chunks: &[ChunkRef]) -> Option<Vec<u8>> {
        self.frames.decoded(chunks, &mut self.decoder, &mut self.raw)
    }
}

fn decoder() -> io::Result<FrameDecoder> {
    FrameDecoder::new().map_err(|error: FrameError| io::Error::new(io::ErrorKind::OutOfMemory, error))
}

/// What is the same for two frames that hold the same chunks in the same order, and for no others.
fn identity(chunks: &[ChunkRef]) -> [u8; 32] {
    let mut sha256 = Sha256::new();
    for chunk in chunks {
        sha256.update(chunk.raw_bytes.to_le_bytes());
        sha256.update(chunk.sha256);
    }
    sha256.finalize().into()
}

/// Of the frames that zstd made shorter: what it cannot shorten comes out the same at every level, and says nothing.
fn samples(index: &Index) -> Vec<Vec<ChunkRef>> {
    let telling = || {
        let frames = index.frames().filter(|frame| frame.body != FrameBody::Zero);
        frames.filter(|frame| u64::from(frame.blob_bytes) < frame.raw_bytes)
    };
    let every = telling().count().div_ceil(SAMPLES).max(1);
    telling().step_by(every).map(|frame| frame.chunks().to_vec()).collect()
}

#[cfg(test)]
#[path = "earlier_frames_tests.rs"]
mod tests;
