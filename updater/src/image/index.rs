//! The chunk index of a slot layer: which zstd frame of the blob holds which chunks of the raw image.
//!
//! An index blob is a root frame and then page frames of about 64 chunks. Pages hold lengths only, no positions, so a page
//! whose content did not change has the same bytes in the next release, wherever it moved to.
//!
//! Not here: fetching, the chunks' bytes (`frame`). Rule: an [`Index`] in hand covers the whole raw image and the whole
//! blob, without gap or overlap; every number was checked before anything was allocated by it.

use std::fmt;
use std::ops::Deref;

use super::BLOCK_BYTES;
use super::fields::Short;
use super::frame::{FrameDecoder, FrameError};

mod outline;
mod wire;
mod writer;

use outline::Place;
pub use outline::{FrameSpan, Outline};
pub(super) use wire::frame_blob_bytes_max;
pub use wire::{PageRef, Root};
#[cfg(feature = "author")]
pub(crate) use writer::ends_page;
pub use writer::{BuiltIndex, IndexWriter};

/// The longest chunk in raw bytes.
pub const CHUNK_RAW_BYTES_MAX: u32 = 64 * 1024;
/// The most raw bytes of a frame that holds chunks: what a decoder must have room for.
pub const FRAME_RAW_BYTES_MAX: u32 = 256 * 1024;
/// The longest zero run of one frame in raw bytes, so that `zstd -d` of the blob stays quick for any reader.
pub const ZERO_RAW_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// The most frames, and the most chunks, of a page.
pub const PAGE_ENTRIES_MAX: u16 = 256;
/// The fewest frames or chunks of a page that is not the last one; bounds the root.
pub const PAGE_ENTRIES_MIN: u16 = 16;
/// The largest index blob in bytes; see [`Index::blob_bytes_max`] for the bound of one image.
pub const INDEX_BYTES_MAX: u64 = 1 << 30;

/// One chunk: the unit that is verified and found again in another release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    /// Length in the raw image, in bytes; a multiple of [`BLOCK_BYTES`].
    pub raw_bytes: u32,
    /// SHA-256 of the raw bytes.
    pub sha256: [u8; 32],
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameBody<'a> {
    /// Zeros only: never fetched.
    Zero,
    /// Chunks, in order; together exactly the frame's raw bytes.
    Chunks(&'a [ChunkRef]),
}

/// One zstd frame of the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef<'a> {
    /// First byte in the blob.
    pub blob_offset: u64,
    /// Length in the blob, in bytes.
    pub blob_bytes: u32,
    /// First byte in the raw image.
    pub raw_offset: u64,
    /// Length in the raw image, in bytes: at most [`FRAME_RAW_BYTES_MAX`], for zeros [`ZERO_RAW_BYTES_MAX`].
    pub raw_bytes: u64,
    /// What it holds.
    pub body: FrameBody<'a>,
}

impl<'a> FrameRef<'a> {
    /// Its chunks; none for a zero run.
    pub fn chunks(&self) -> &'a [ChunkRef] {
        match self.body {
            FrameBody::Zero => &[],
            FrameBody::Chunks(chunks) => chunks,
        }
    }

    /// Each of its chunks with the first byte of its place in the raw image.
    pub fn placed_chunks(&self) -> impl Iterator<Item = (u64, &'a ChunkRef)> + use<'a> {
        self.chunks().iter().scan(self.raw_offset, |next, chunk| {
            let raw_offset = *next;
            *next += u64::from(chunk.raw_bytes);
            Some((raw_offset, chunk))
        })
    }
}

/// An index with the hashes of its chunks: of a whole slot layer, or of one page of it. Beside its [`Outline`] 36 bytes a chunk:
/// about 4 MiB for 1 GiB in 65,536 chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    outline: Outline,
    chunks: Vec<ChunkRef>,
}

/// All that an outline knows, an index knows.
impl Deref for Index {
    type Target = Outline;

    fn deref(&self) -> &Outline {
        &self.outline
    }
}

impl Index {
    /// Parses a whole index blob (already compared with its digest). `raw_bytes` and `blob_bytes` are the signed lengths
    /// of the raw image and of the slot layer's blob; they bound everything here.
    pub fn parse(whole: &[u8], raw_bytes: u64, blob_bytes: u64) -> Result<Index, IndexError> {
        let at_root = |lie| IndexError { part: Part::Root, lie };
        let limit = Index::blob_bytes_max(raw_bytes);
        if whole.len() as u64 > limit {
            return Err(at_root(Lie::TooLong { bytes: whole.len() as u64, limit }));
        }
        let root_bytes = super::frame::frame_bytes(whole).map_err(|error| at_root(error.into()))?;
        let (root, mut pages) = whole.split_at(root_bytes);
        let root = Root::parse(root, raw_bytes, blob_bytes)?;
        let expected = root.pages_bytes();
        if pages.len() as u64 != expected {
            return Err(at_root(Lie::PagesLength { found: pages.len() as u64, expected }));
        }
        let mut assembler = Assembler::new(&root)?;
        for page in root.pages() {
            let (bytes, behind) = pages.split_at(page.index_bytes as usize);
            assembler.push_page(bytes)?;
            pages = behind;
        }
        assembler.finish()
    }

    /// The largest index blob that an image of `raw_bytes` can have: what a fetcher may read at most.
    pub fn blob_bytes_max(raw_bytes: u64) -> u64 {
        (64 * 1024 + raw_bytes / 64).min(INDEX_BYTES_MAX)
    }

    /// One page by itself, compared with the root's hash of it: its frames and chunks at their places in image and blob,
    /// but numbered from 0. `buffer` is room that is used again.
    pub fn of_page(
        page: &PageRef,
        compressed: &[u8],
        decoder: &mut FrameDecoder,
        buffer: &mut Vec<u8>,
    ) -> Result<Index, Lie> {
        page.decode(compressed, decoder, buffer)?;
        let start = Place { blob_offset: page.blob_offset, raw_offset: page.raw_offset, first_chunk: 0 };
        let mut index = Index::begin(start, page.frames.into(), page.chunks.into())?;
        wire::read_page(page, buffer, &mut index)?;
        Ok(index)
    }

    /// An index without frames, with room for so many frames and chunks.
    fn begin(start: Place, frame_count: usize, chunk_count: usize) -> Result<Index, Lie> {
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(chunk_count).map_err(|_| Lie::Memory)?;
        let outline = Outline::begin(start, frame_count, chunk_count).ok_or(Lie::Memory)?;
        Ok(Index { outline, chunks })
    }

    /// The index without its hashes.
    pub fn into_outline(self) -> Outline {
        self.outline
    }

    /// All frames in ascending order; together the whole raw image and the whole blob.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = FrameRef<'_>> + DoubleEndedIterator + Clone {
        self.spans().map(|span| self.shown(span))
    }

    /// Frame number `number`, from 0.
    pub fn frame(&self, number: usize) -> Option<FrameRef<'_>> {
        self.span(number).map(|span| self.shown(span))
    }

    /// All chunks in ascending order: a chunk's number is its place in it.
    pub fn chunks(&self) -> &[ChunkRef] {
        &self.chunks
    }

    /// Every chunk with the first byte of its place in the raw image, in ascending order.
    pub fn placed_chunks(&self) -> impl Iterator<Item = (u64, &ChunkRef)> {
        self.frames().flat_map(|frame| frame.placed_chunks())
    }

    fn shown(&self, FrameSpan { blob, raw, chunks }: FrameSpan) -> FrameRef<'_> {
        let chunks = &self.chunks[chunks];
        FrameRef {
            blob_offset: blob.start,
            blob_bytes: (blob.end - blob.start) as u32,
            raw_offset: raw.start,
            raw_bytes: raw.end - raw.start,
            body: if chunks.is_empty() { FrameBody::Zero } else { FrameBody::Chunks(chunks) },
        }
    }
}

/// Puts an index together from its root and pages, in order: pages may come from a registry or from an older release's
/// stored index, as each is compared with the root's hash of it.
pub struct Assembler<'a> {
    root: &'a Root,
    pages: std::slice::Iter<'a, PageRef>,
    number: usize,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
    index: Index,
}

impl<'a> Assembler<'a> {
    /// Reserves exactly what the root has promised and [`Root::parse`] has bounded.
    pub fn new(root: &'a Root) -> Result<Assembler<'a>, IndexError> {
        let at_root = |lie| IndexError { part: Part::Root, lie };
        let decoder = FrameDecoder::new().map_err(|error| at_root(error.into()))?;
        let start = Place { blob_offset: 0, raw_offset: 0, first_chunk: 0 };
        let index = Index::begin(start, root.frame_count(), root.chunk_count()).map_err(at_root)?;
        Ok(Assembler { root, pages: root.pages().iter(), number: 0, decoder, buffer: Vec::new(), index })
    }

    /// Takes the next page's compressed bytes.
    pub fn push_page(&mut self, compressed: &[u8]) -> Result<(), IndexError> {
        let part = Part::Page(self.number);
        let fail = |lie| IndexError { part, lie };
        let page = self.pages.next().ok_or_else(|| fail(Lie::ExtraPage))?;
        page.decode(compressed, &mut self.decoder, &mut self.buffer).map_err(fail)?;
        wire::read_page(page, &self.buffer, &mut self.index).map_err(fail)?;
        self.number += 1;
        Ok(())
    }

    /// The whole index; refused while pages are missing.
    pub fn finish(self) -> Result<Index, IndexError> {
        let missing = self.pages.len();
        if missing != 0 {
            return Err(IndexError { part: Part::Root, lie: Lie::MissingPages { missing } });
        }
        debug_assert_eq!(self.index.raw_bytes(), self.root.raw_bytes());
        debug_assert_eq!(self.index.blob_bytes(), self.root.blob_bytes());
        Ok(self.index)
    }
}

/// An index that was refused: where, and which lie.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("while reading the chunk index, {part}: {lie}")]
pub struct IndexError {
    /// Root or which page.
    pub part: Part,
    /// What is wrong there.
    pub lie: Lie,
}

/// A part of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The root list.
    Root,
    /// A page, counted from 0.
    Page(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Root => f.write_str("root"),
            Part::Page(number) => write!(f, "page {number}"),
        }
    }
}

/// Which of two lengths is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// The raw image.
    Raw,
    /// The blob.
    Blob,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Span::Raw => "raw image",
            Span::Blob => "blob",
        })
    }
}

impl From<Short> for Lie {
    fn from(Short { found, expected }: Short) -> Lie {
        Lie::Length { found, expected }
    }
}

/// What an index can get wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages are the documentation; fields are found, expected and limits in bytes"
)]
pub enum Lie {
    #[error("{bytes} bytes are more than the {limit} that an index of this image can have")]
    TooLong { bytes: u64, limit: u64 },
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it does not begin with the magic of a chunk index")]
    Magic,
    #[error("its format version is {found}, this updater knows 1; a newer switchback is needed")]
    Version { found: u32 },
    #[error("it has {found} bytes, its counts make {expected}")]
    Length { found: u64, expected: u64 },
    #[error("it names {found} bytes of {span}, the signed length is {signed}")]
    SignedLength { span: Span, found: u64, signed: u64 },
    #[error("{found} pages are more than the {limit} that an image of this length can have")]
    TooManyPages { found: u64, limit: u64 },
    #[error("page {page} has {frames} frames and {chunks} chunks, outside of what a page may hold")]
    PageEntries { page: usize, frames: u16, chunks: u16 },
    #[error(
        "page {page} has {raw_bytes} raw bytes for its entries: no multiple of {BLOCK_BYTES}, or too few or many"
    )]
    PageRaw { page: usize, raw_bytes: u64 },
    #[error("page {page} has a length of {bytes} bytes in the index")]
    PageBytes { page: usize, bytes: u32 },
    #[error("the pages take {found} bytes, the root names {expected}")]
    PagesLength { found: u64, expected: u64 },
    #[error("the bytes are not the ones that the root names by SHA-256")]
    PageHash,
    #[error("there is one page more than the root names")]
    ExtraPage,
    #[error("{missing} pages are missing")]
    MissingPages { missing: usize },
    #[error("the entries leave a gap of {bytes} bytes in the {span}")]
    Gap { span: Span, bytes: u64 },
    #[error("the entries overlap what follows by {bytes} bytes in the {span}")]
    Overlap { span: Span, bytes: u64 },
    #[error("frame {frame} claims {found} chunks, the page has {left} left")]
    ChunkCount { frame: usize, found: u16, left: usize },
    #[error("{left} chunks belong to no frame")]
    OrphanChunks { left: usize },
    #[error("frame {frame} has {raw_bytes} raw bytes, allowed are multiples of {BLOCK_BYTES} up to {limit}")]
    FrameRaw { frame: usize, raw_bytes: u32, limit: u32 },
    #[error("frame {frame} has {blob_bytes} bytes in the blob, allowed are 1 to {limit}")]
    FrameBlob { frame: usize, blob_bytes: u32, limit: u32 },
    #[error(
        "frame {frame} has a chunk of {raw_bytes} bytes, allowed are multiples of {BLOCK_BYTES} up to {CHUNK_RAW_BYTES_MAX}"
    )]
    ChunkRaw { frame: usize, raw_bytes: u32 },
    #[error("the chunks of frame {frame} make {found} bytes, the frame has {expected}")]
    FrameSum { frame: usize, found: u64, expected: u32 },
    #[error("there is no memory for it")]
    Memory,
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
