//! One zstd frame: decoded into a buffer of known size, its chunks compared with the signed index.
//!
//! Not here: where the bytes come from or go to. Rule: exactly one frame, exactly the promised length; no byte leaves
//! before its SHA-256 matched.

use sha2::Digest as _;
use zstd::bulk::Decompressor;
use zstd::zstd_safe::find_frame_compressed_size;

use super::index::{ChunkRef, FrameBody, FrameRef};

/// The first four bytes of a zstd frame (RFC 8878, 3.1.1). Skippable and pre-1.0 frames begin otherwise.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Why a frame was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes do not begin with a zstd frame.
    #[error("no zstd frame begins here")]
    NotZstd,
    /// The frame is cut off or its blocks are broken.
    #[error("the zstd frame is cut off or broken")]
    Broken,
    /// The frame ends before the bytes do, or the other way round.
    #[error("the zstd frame has {found} bytes, expected {expected}")]
    CompressedLength {
        /// Length of the frame.
        found: u64,
        /// Length that the index gives.
        expected: u64,
    },
    /// The frame decodes to another length; a longer one is not decoded beyond `expected`.
    #[error("the zstd frame does not decode to exactly {expected} bytes")]
    RawLength {
        /// Length that the index gives.
        expected: u64,
    },
    /// A chunk's bytes are not the ones that were signed.
    #[error("the chunk at byte {raw_offset} of the image has another SHA-256 than the signed index")]
    Chunk {
        /// Where it begins in the raw image.
        raw_offset: u64,
    },
    /// No memory for the decoder.
    #[error("there is no memory for the decoder")]
    Memory,
}

/// Decodes frames; keeps its context (about 160 KiB) from frame to frame.
pub struct FrameDecoder(Decompressor<'static>);

impl FrameDecoder {
    /// A decoder without a dictionary.
    pub fn new() -> Result<FrameDecoder, FrameError> {
        Decompressor::new().map(FrameDecoder).map_err(|_| FrameError::Memory)
    }

    /// Decodes one frame of an index into `raw` (emptied first) and compares every chunk. A zero run must not be
    /// fetched, so it is refused.
    pub fn decode(
        &mut self,
        frame: &FrameRef<'_>,
        compressed: &[u8],
        raw: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        let FrameBody::Chunks(_) = frame.body else { return Err(FrameError::NotZstd) };
        self.decode_exact(compressed, frame.raw_bytes as usize, raw)?;
        chunks_match(frame, raw)
    }

    /// Decodes `compressed`, which must be one frame and nothing else, into exactly `raw_bytes` bytes. The output never
    /// grows beyond them, whatever the frame says.
    pub(super) fn decode_exact(
        &mut self,
        compressed: &[u8],
        raw_bytes: usize,
        raw: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        decode_one(compressed, raw_bytes, raw, |out| self.0.decompress_to_buffer(compressed, out).ok())
    }
}

/// Has `decode` fill `raw` (emptied first) with exactly `raw_bytes` bytes of `compressed`, which must be one frame and
/// nothing else. `decode` is given a buffer of that length and says how much of it was filled.
pub(super) fn decode_one(
    compressed: &[u8],
    raw_bytes: usize,
    raw: &mut Vec<u8>,
    decode: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> Result<(), FrameError> {
    let found = frame_bytes(compressed)?;
    if found != compressed.len() {
        return Err(FrameError::CompressedLength { found: found as u64, expected: compressed.len() as u64 });
    }
    raw.clear();
    raw.try_reserve_exact(raw_bytes).map_err(|_| FrameError::Memory)?;
    raw.resize(raw_bytes, 0);
    if decode(raw.as_mut_slice()) == Some(raw_bytes) {
        return Ok(());
    }
    raw.clear();
    Err(FrameError::RawLength { expected: raw_bytes as u64 })
}

/// Compares raw bytes with the chunks of their frame, as decoded or as read from a slot. A zero run has no chunks and
/// never matches.
pub fn chunks_match(frame: &FrameRef<'_>, raw: &[u8]) -> Result<(), FrameError> {
    match frame.body {
        FrameBody::Zero => Err(FrameError::RawLength { expected: frame.raw_bytes }),
        FrameBody::Chunks(chunks) => chunks_are(chunks, frame.raw_offset, raw),
    }
}

/// Compares raw bytes, which begin at byte `raw_offset` of the image, with chunks that follow each other there.
pub fn chunks_are(chunks: &[ChunkRef], raw_offset: u64, raw: &[u8]) -> Result<(), FrameError> {
    let wrong_length =
        || FrameError::RawLength { expected: chunks.iter().map(|chunk| u64::from(chunk.raw_bytes)).sum() };
    let mut rest = raw;
    let mut raw_offset = raw_offset;
    for chunk in chunks {
        // The index has checked that the lengths add up; a caller's mistake must still not panic here.
        let Some((bytes, behind)) = rest.split_at_checked(chunk.raw_bytes as usize) else {
            return Err(wrong_length());
        };
        if sha2::Sha256::digest(bytes).as_slice() != chunk.sha256 {
            return Err(FrameError::Chunk { raw_offset });
        }
        rest = behind;
        raw_offset += u64::from(chunk.raw_bytes);
    }
    if rest.is_empty() { Ok(()) } else { Err(wrong_length()) }
}

/// Length of the frame that `bytes` begins with, found without decoding it.
pub(super) fn frame_bytes(bytes: &[u8]) -> Result<usize, FrameError> {
    if !bytes.starts_with(&ZSTD_MAGIC) {
        return Err(FrameError::NotZstd);
    }
    find_frame_compressed_size(bytes).map_err(|_| FrameError::Broken)
}
