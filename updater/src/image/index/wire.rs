//! Bytes of root and pages ↔ their values. All numbers are little-endian; `docs/src/registry-format.md` has the tables.
//!
//! Not here: the index as it is used (`super::Index`). Rule: a count is believed only after the length of the bytes that
//! carry it was compared, and the sums of lower levels must equal what the level above promised.

use sha2::Digest as _;

use super::{
    CHUNK_RAW_BYTES_MAX, ChunkRef, FRAME_RAW_BYTES_MAX, Index, IndexError, Lie, PAGE_ENTRIES_MAX,
    PAGE_ENTRIES_MIN, Part, Span, ZERO_RAW_BYTES_MAX,
};
use crate::image::BLOCK_BYTES;
use crate::image::fields::Fields;
use crate::image::frame::{FrameDecoder, frame_bytes};

/// The first eight bytes of a root.
pub(super) const MAGIC: [u8; 8] = *b"SWBINDEX";
/// The format version that this build reads and writes.
pub(super) const VERSION: u32 = 1;
/// Magic, version, number of pages, raw bytes, blob bytes.
pub(super) const ROOT_HEAD_BYTES: usize = 8 + 4 + 4 + 8 + 8;
/// Length in the index, frames, chunks, raw bytes, blob bytes, SHA-256.
pub(super) const ROOT_PAGE_BYTES: usize = 4 + 2 + 2 + 8 + 8 + 32;
/// Length in the blob, raw bytes, number of chunks.
pub(super) const PAGE_FRAME_BYTES: usize = 4 + 4 + 2;
/// Raw bytes, SHA-256.
pub(super) const PAGE_CHUNK_BYTES: usize = 4 + 32;
/// The most bytes of a compressed page: a full one that zstd could not make any smaller.
const PAGE_COMPRESSED_BYTES_MAX: u32 = 16 * 1024;

/// The root of an index: what its pages are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    raw_bytes: u64,
    blob_bytes: u64,
    pages: Vec<PageRef>,
}

/// One page as the root names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRef {
    /// First byte behind the root frame.
    pub index_offset: u64,
    /// Length of its compressed bytes.
    pub index_bytes: u32,
    /// Number of frames.
    pub frames: u16,
    /// Number of chunks.
    pub chunks: u16,
    /// First byte of the raw image that it covers.
    pub raw_offset: u64,
    /// How many bytes of the raw image it covers.
    pub raw_bytes: u64,
    /// First byte of the blob that it covers.
    pub blob_offset: u64,
    /// How many bytes of the blob it covers.
    pub blob_bytes: u64,
    /// SHA-256 of its compressed bytes.
    pub sha256: [u8; 32],
}

impl Root {
    /// Parses the root frame alone: the first [`IndexRoot::size`](crate::image::manifest::IndexRoot) bytes of the index
    /// blob, compared with the signed digest by the caller. The lengths are the signed ones.
    pub fn parse(frame: &[u8], raw_bytes: u64, blob_bytes: u64) -> Result<Root, IndexError> {
        read_root(frame, raw_bytes, blob_bytes).map_err(|lie| IndexError { part: Part::Root, lie })
    }

    /// Length of the raw image in bytes.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Length of the blob in bytes.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// The pages in order; together the whole image.
    pub fn pages(&self) -> &[PageRef] {
        &self.pages
    }

    /// Length of all pages in the index blob.
    pub fn pages_bytes(&self) -> u64 {
        self.pages.last().map_or(0, |page| page.index_offset + u64::from(page.index_bytes))
    }

    /// Number of frames of all pages.
    pub fn frame_count(&self) -> usize {
        self.pages.iter().map(|page| usize::from(page.frames)).sum()
    }

    /// Number of chunks of all pages.
    pub fn chunk_count(&self) -> usize {
        self.pages.iter().map(|page| usize::from(page.chunks)).sum()
    }
}

impl PageRef {
    /// Compares `compressed` with the root's hash, then decodes it into `buffer`.
    pub(super) fn decode(
        &self,
        compressed: &[u8],
        decoder: &mut FrameDecoder,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Lie> {
        if sha2::Sha256::digest(compressed).as_slice() != self.sha256 {
            return Err(Lie::PageHash);
        }
        let expected =
            usize::from(self.frames) * PAGE_FRAME_BYTES + usize::from(self.chunks) * PAGE_CHUNK_BYTES;
        Ok(decoder.decode_exact(compressed, expected, buffer)?)
    }
}

fn read_root(frame: &[u8], raw_bytes: u64, blob_bytes: u64) -> Result<Root, Lie> {
    let pages_max = raw_bytes / u64::from(BLOCK_BYTES) / u64::from(PAGE_ENTRIES_MIN) + 1;
    let bytes = decode_root(frame, pages_max)?;
    let mut fields = Fields(&bytes);
    if fields.array::<8>()? != MAGIC {
        return Err(Lie::Magic);
    }
    let version = fields.u32()?;
    if version != VERSION {
        return Err(Lie::Version { found: version });
    }
    let count = fields.u32()?;
    if u64::from(count) > pages_max {
        return Err(Lie::TooManyPages { found: u64::from(count), limit: pages_max });
    }
    for (span, signed) in [(Span::Raw, raw_bytes), (Span::Blob, blob_bytes)] {
        let found = fields.u64()?;
        if found != signed {
            return Err(Lie::SignedLength { span, found, signed });
        }
    }
    let expected = (ROOT_HEAD_BYTES + count as usize * ROOT_PAGE_BYTES) as u64;
    if bytes.len() as u64 != expected {
        return Err(Lie::Length { found: bytes.len() as u64, expected });
    }
    let pages = read_root_pages(&mut fields, count as usize, raw_bytes, blob_bytes)?;
    Ok(Root { raw_bytes, blob_bytes, pages })
}

/// Decodes the root with the longest root of such an image as its bound. zstd's own length is only a hint for the
/// buffer: it is compared with the bound before anything is reserved, and with the outcome after.
fn decode_root(frame: &[u8], pages_max: u64) -> Result<Vec<u8>, Lie> {
    let limit = ROOT_HEAD_BYTES as u64 + pages_max * ROOT_PAGE_BYTES as u64;
    frame_bytes(frame)?;
    let claimed = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten().unwrap_or(0);
    if claimed < ROOT_HEAD_BYTES as u64 || claimed > limit {
        return Err(Lie::Length { found: claimed, expected: limit });
    }
    let mut bytes = Vec::new();
    FrameDecoder::new()?.decode_exact(frame, claimed as usize, &mut bytes)?;
    Ok(bytes)
}

fn read_root_pages(
    fields: &mut Fields<'_>,
    count: usize,
    raw_bytes: u64,
    blob_bytes: u64,
) -> Result<Vec<PageRef>, Lie> {
    let mut pages = Vec::new();
    pages.try_reserve_exact(count).map_err(|_| Lie::Memory)?;
    let (mut index_offset, mut raw_offset, mut blob_offset) = (0, 0u64, 0u64);
    for number in 0..count {
        let page = PageRef {
            index_offset,
            index_bytes: fields.u32()?,
            frames: fields.u16()?,
            chunks: fields.u16()?,
            raw_offset,
            raw_bytes: fields.u64()?,
            blob_offset,
            blob_bytes: fields.u64()?,
            sha256: fields.array()?,
        };
        check_page(&page, number, number + 1 == count)?;
        index_offset += u64::from(page.index_bytes);
        raw_offset = within(Span::Raw, raw_offset, page.raw_bytes, raw_bytes)?;
        blob_offset = within(Span::Blob, blob_offset, page.blob_bytes, blob_bytes)?;
        pages.push(page);
    }
    reached(Span::Raw, raw_offset, raw_bytes)?;
    reached(Span::Blob, blob_offset, blob_bytes)?;
    Ok(pages)
}

fn check_page(page: &PageRef, number: usize, last: bool) -> Result<(), Lie> {
    let &PageRef { frames, chunks, raw_bytes, .. } = page;
    let most = frames.max(chunks);
    let enough = last || most >= PAGE_ENTRIES_MIN;
    if frames == 0 || most > PAGE_ENTRIES_MAX || !enough {
        return Err(Lie::PageEntries { page: number, frames, chunks });
    }
    // At least a block for each entry: so the numbers of frames and chunks are bounded by the signed raw length.
    let least = u64::from(most) * u64::from(BLOCK_BYTES);
    let most = u64::from(frames) * u64::from(ZERO_RAW_BYTES_MAX);
    if raw_bytes < least || raw_bytes > most || !raw_bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
        return Err(Lie::PageRaw { page: number, raw_bytes });
    }
    if page.index_bytes == 0 || page.index_bytes > PAGE_COMPRESSED_BYTES_MAX {
        return Err(Lie::PageBytes { page: number, bytes: page.index_bytes });
    }
    Ok(())
}

/// Reads a decoded page (its length is that of its counts) to the end of `index`.
pub(super) fn read_page(page: &PageRef, bytes: &[u8], index: &mut Index) -> Result<(), Lie> {
    let frames = usize::from(page.frames);
    let mut columns = Fields(bytes);
    let mut blob_lengths = columns.column(frames * 4)?;
    let mut raw_lengths = columns.column(frames * 4)?;
    let mut counts = columns.column(frames * 2)?;
    let mut chunk_lengths = columns.column(usize::from(page.chunks) * 4)?;
    let mut hashes = columns;
    let (raw_end, blob_end) = (page.raw_offset + page.raw_bytes, page.blob_offset + page.blob_bytes);
    let (mut raw_at, mut blob_at) = (page.raw_offset, page.blob_offset);
    let mut left = usize::from(page.chunks);
    for number in 0..frames {
        let (blob_bytes, raw_bytes, count) = (blob_lengths.u32()?, raw_lengths.u32()?, counts.u16()?);
        if usize::from(count) > left {
            return Err(Lie::ChunkCount { frame: number, found: count, left });
        }
        left -= usize::from(count);
        let first = index.chunks.len();
        for _ in 0..count {
            index.chunks.push(ChunkRef { raw_bytes: chunk_lengths.u32()?, sha256: hashes.array()? });
        }
        check_frame(number, blob_bytes, raw_bytes, &index.chunks[first..])?;
        raw_at = within(Span::Raw, raw_at, u64::from(raw_bytes), raw_end)?;
        blob_at = within(Span::Blob, blob_at, u64::from(blob_bytes), blob_end)?;
        index.outline.push(blob_bytes, raw_bytes, &index.chunks[first..]).ok_or(Lie::Memory)?;
    }
    if left != 0 {
        return Err(Lie::OrphanChunks { left });
    }
    reached(Span::Raw, raw_at, raw_end)?;
    reached(Span::Blob, blob_at, blob_end)
}

/// The rules of one frame; kept by the writer and checked again by every reader.
pub(super) fn check_frame(
    frame: usize,
    blob_bytes: u32,
    raw_bytes: u32,
    chunks: &[ChunkRef],
) -> Result<(), Lie> {
    let limit = if chunks.is_empty() { ZERO_RAW_BYTES_MAX } else { FRAME_RAW_BYTES_MAX };
    if !is_blocks(raw_bytes, limit) {
        return Err(Lie::FrameRaw { frame, raw_bytes, limit });
    }
    let limit = frame_blob_bytes_max(raw_bytes);
    if blob_bytes == 0 || blob_bytes > limit {
        return Err(Lie::FrameBlob { frame, blob_bytes, limit });
    }
    let mut found = 0u64;
    for chunk in chunks {
        if !is_blocks(chunk.raw_bytes, CHUNK_RAW_BYTES_MAX) {
            return Err(Lie::ChunkRaw { frame, raw_bytes: chunk.raw_bytes });
        }
        found += u64::from(chunk.raw_bytes);
    }
    if !chunks.is_empty() && found != u64::from(raw_bytes) {
        return Err(Lie::FrameSum { frame, found, expected: raw_bytes });
    }
    Ok(())
}

/// The longest that zstd makes `raw_bytes` raw bytes, and a little room for other encoders.
pub(in crate::image) fn frame_blob_bytes_max(raw_bytes: u32) -> u32 {
    raw_bytes + raw_bytes / 128 + 1024
}

fn is_blocks(bytes: u32, limit: u32) -> bool {
    bytes != 0 && bytes <= limit && bytes.is_multiple_of(BLOCK_BYTES)
}

fn within(span: Span, at: u64, bytes: u64, end: u64) -> Result<u64, Lie> {
    match at.checked_add(bytes) {
        Some(next) if next <= end => Ok(next),
        _ => Err(Lie::Overlap { span, bytes: bytes - (end - at) }),
    }
}

fn reached(span: Span, at: u64, end: u64) -> Result<(), Lie> {
    if at == end { Ok(()) } else { Err(Lie::Gap { span, bytes: end - at }) }
}
