//! A patch from one OS image to another: for runs of chunks that the base lacks, zstd frames that begin where bytes of the
//! base's slot end.
//!
//! An entry gives a run of the target's chunks in one frame, and up to four windows of the base's raw image. The windows'
//! bytes, one behind the other, are the frame's raw prefix: what zstd may refer back to, not a trained dictionary.
//!
//! Nobody signs a patch. Each chunk that it makes is compared with the signed index before it goes anywhere, so a patch
//! that lies costs its bytes and a fallback to the release's own frames, never a wrong byte in a slot.
//!
//! Not here: making patches (`publish::patch`), fetching, the choice between patch and frame (`plan`). Rule: a [`Patch`] in
//! hand covers its whole blob, and names only whole frames of the target and bytes that the base has; what is decoded by
//! it never grows beyond the length that the signed index gives.

use std::fmt;
use std::ops::Range;

use zstd::zstd_safe::DCtx;

use super::BLOCK_BYTES;
use super::fields::Short;
use super::frame::{FrameError, decode_one};
use super::index::{FRAME_RAW_BYTES_MAX, Outline};

mod manifest;
mod wire;

pub use manifest::{
    BASE_ANNOTATION, EMPTY_MEDIA_TYPE, HEADER_ANNOTATION, HEADER_BYTES_ANNOTATION, PATCH_ARTIFACT_TYPE,
    PATCH_MEDIA_TYPE, PatchHeader, PatchManifest, PatchManifestError, PatchSlot, is_patch,
};
#[cfg(feature = "author")]
pub use wire::{DraftEntry, write_header};

/// The most raw bytes of one entry: those of a frame, so that both fit the same buffers.
pub const ENTRY_RAW_BYTES_MAX: u32 = FRAME_RAW_BYTES_MAX;
/// The most windows of one entry.
pub const WINDOWS_MAX: usize = 4;
/// The most bytes of one entry's windows together.
pub const PREFIX_BYTES_MAX: u32 = 512 * 1024;
/// The largest decoded header in bytes; see [`Patch::header_bytes_max`] for the bound of one image.
pub const HEADER_BYTES_MAX: u64 = 16 << 20;

/// A piece of the base slot's raw image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its first byte; a multiple of [`BLOCK_BYTES`].
    pub offset: u64,
    /// Its length in bytes; a multiple of [`BLOCK_BYTES`].
    pub bytes: u32,
}

/// One entry: a run of whole frames of the target's slot layer, made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Frames of the target's index that it stands for; none of them a zero run.
    pub frames: Range<usize>,
    /// Their chunks.
    pub chunks: Range<usize>,
    /// Their bytes in the target's raw image: at most [`ENTRY_RAW_BYTES_MAX`].
    pub raw: Range<u64>,
    /// Its zstd frame in the patch's blob.
    pub blob: Range<u64>,
    /// What its prefix is put together from, in order: at most [`WINDOWS_MAX`], none at all for a frame of its own.
    pub windows: &'a [Window],
}

impl Entry<'_> {
    /// Length of the raw bytes.
    pub fn raw_bytes(&self) -> usize {
        (self.raw.end - self.raw.start) as usize
    }

    /// Length of the zstd frame.
    pub fn blob_bytes(&self) -> u64 {
        self.blob.end - self.blob.start
    }

    /// Length of the prefix: at most [`PREFIX_BYTES_MAX`].
    pub fn prefix_bytes(&self) -> usize {
        self.windows.iter().map(|window| window.bytes as usize).sum()
    }
}

/// The header of a patch's blob for one slot partition. 48 bytes an entry and 16 a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    base_bytes: u64,
    header_bytes: u64,
    blob_bytes: u64,
    entries: Vec<Row>,
    windows: Vec<Window>,
}

/// An entry as it is kept. Frames, chunks and windows of one are few: a chunk has a block at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    raw_offset: u64,
    blob_offset: u64,
    raw_bytes: u32,
    blob_bytes: u32,
    first_frame: u32,
    first_chunk: u32,
    first_window: u32,
    frames: u16,
    chunks: u16,
    windows: u8,
}

impl Patch {
    /// Parses the first frame of a patch's blob, already compared with the digest that the patch's manifest gives.
    /// `blob_bytes` is the blob's length by that manifest, `target` the verified index of the slot layer that is being
    /// installed, `base_bytes` the length of the base's raw image by its own signed config.
    pub fn parse(
        header: &[u8],
        blob_bytes: u64,
        target: &Outline,
        base_bytes: u64,
    ) -> Result<Patch, PatchError> {
        wire::read_header(header, blob_bytes, target, base_bytes).map_err(|lie| PatchError { lie })
    }

    /// The longest header that a patch to `target` can have, in bytes as they are fetched.
    pub fn header_bytes_max(target: &Outline) -> u64 {
        let decoded = wire::decoded_bytes_max(target);
        decoded + decoded / 128 + 1024
    }

    /// Length of the base's raw image in bytes.
    pub fn base_bytes(&self) -> u64 {
        self.base_bytes
    }

    /// Length of the header in the blob.
    pub fn header_bytes(&self) -> u64 {
        self.header_bytes
    }

    /// Length of the blob.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// All entries in ascending order: they do not overlap, and their frames in the blob lie one behind the other.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry<'_>> + DoubleEndedIterator + Clone {
        self.entries.iter().map(|row| self.shown(row))
    }

    /// Entry number `number`, from 0.
    pub fn entry(&self, number: usize) -> Option<Entry<'_>> {
        self.entries.get(number).map(|row| self.shown(row))
    }

    /// The number of the entry that makes chunk number `chunk` of the target.
    pub fn entry_of(&self, chunk: usize) -> Option<usize> {
        let at = self.entries.partition_point(|row| row.first_chunk as usize <= chunk).checked_sub(1)?;
        let row = self.entries.get(at)?;
        (chunk < row.first_chunk as usize + usize::from(row.chunks)).then_some(at)
    }

    fn shown(&self, row: &Row) -> Entry<'_> {
        let range = |first: u32, count: usize| first as usize..first as usize + count;
        Entry {
            frames: range(row.first_frame, row.frames.into()),
            chunks: range(row.first_chunk, row.chunks.into()),
            raw: row.raw_offset..row.raw_offset + u64::from(row.raw_bytes),
            blob: row.blob_offset..row.blob_offset + u64::from(row.blob_bytes),
            windows: &self.windows[range(row.first_window, row.windows.into())],
        }
    }
}

/// Decodes one entry's frame (`compressed`, exactly its bytes) behind `prefix` into exactly `raw_bytes` bytes of `out`,
/// which is emptied first. The caller compares each chunk of it with the signed index.
///
/// It is done in one step, so the output buffer is zstd's window: no frame can ask for memory of its own, whatever window its
/// header claims. A call takes about 200 KiB beside the caller's prefix and output, and keeps none of it: zstd's context
/// borrows the prefix as long as it lives.
pub fn decode(
    prefix: &[u8],
    compressed: &[u8],
    raw_bytes: usize,
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    if raw_bytes > ENTRY_RAW_BYTES_MAX as usize {
        return Err(FrameError::RawLength { expected: ENTRY_RAW_BYTES_MAX.into() });
    }
    let mut context = DCtx::try_create().ok_or(FrameError::Memory)?;
    // As a raw prefix: bytes of a slot that happen to begin like a trained dictionary must not be taken for one.
    context.ref_prefix(prefix).map_err(|_| FrameError::Memory)?;
    decode_one(compressed, raw_bytes, out, |buffer| context.decompress(buffer, compressed).ok())
}

impl From<Short> for Lie {
    fn from(Short { found, expected }: Short) -> Lie {
        Lie::Length { found, expected }
    }
}

/// A patch whose header was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("while reading the header of a patch: {lie}")]
pub struct PatchError {
    /// What is wrong with it.
    pub lie: Lie,
}

/// Which of a patch's two images is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What is there already.
    Base,
    /// What is to be made.
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Base => "base",
            Side::Target => "target",
        })
    }
}

/// What a header can get wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages are the documentation; fields are found, expected and limits in bytes"
)]
pub enum Lie {
    #[error("{bytes} bytes are more than the {limit} that a patch to this image can have")]
    TooLong { bytes: u64, limit: u64 },
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it does not begin with the magic of a patch")]
    Magic,
    #[error("its format version is {found}, this updater knows 1")]
    Version { found: u32 },
    #[error("it has {found} bytes, its counts make {expected}")]
    Length { found: u64, expected: u64 },
    #[error("it is for a {side} image of {found} bytes, the signed length is {signed}")]
    SignedLength { side: Side, found: u64, signed: u64 },
    #[error("entry {entry} has {chunks} chunks from number {first} on, the target has {all}")]
    Chunks { entry: usize, first: u64, chunks: u16, all: usize },
    #[error("entry {entry} begins or ends within a frame of the target")]
    NotFrames { entry: usize },
    #[error("entry {entry} goes over a zero run")]
    ZeroRun { entry: usize },
    #[error("entry {entry} has {raw_bytes} raw bytes, allowed are {ENTRY_RAW_BYTES_MAX}")]
    EntryRaw { entry: usize, raw_bytes: u64 },
    #[error("entry {entry} has {blob_bytes} bytes in the blob, allowed are 1 to {limit}")]
    EntryBlob { entry: usize, blob_bytes: u32, limit: u32 },
    #[error("header and entries make {found} bytes of the blob, which has {expected}")]
    BlobLength { found: u64, expected: u64 },
    #[error("entry {entry} has {found} windows, allowed are {WINDOWS_MAX} and {left} are left")]
    WindowCount { entry: usize, found: u8, left: usize },
    #[error("{left} windows belong to no entry")]
    OrphanWindows { left: usize },
    #[error(
        "entry {entry} has a window of {bytes} bytes at byte {offset} of the base, which has {base_bytes}"
    )]
    Window { entry: usize, offset: u64, bytes: u32, base_bytes: u64 },
    #[error("entry {entry} has windows of {bytes} bytes together, allowed are {PREFIX_BYTES_MAX}")]
    Prefix { entry: usize, bytes: u64 },
    #[error("there is no memory for it")]
    Memory,
}

/// A count of blocks as bytes.
fn blocks(count: u32) -> u64 {
    u64::from(count) * u64::from(BLOCK_BYTES)
}

#[cfg(feature = "author")]
#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
