//! Bytes of a patch's header ↔ its values. All numbers are little-endian; `docs/src/registry-format.md` has the tables.
//!
//! Not here: the patch as it is used (`super::Patch`). Rule: a count is believed only after the length of the bytes that
//! carry it was compared, and an entry only where the signed index has whole frames for it.

use super::{
    ENTRY_RAW_BYTES_MAX, HEADER_BYTES_MAX, Lie, PREFIX_BYTES_MAX, Patch, Row, Side, WINDOWS_MAX, Window,
    blocks,
};
use crate::image::fields::Fields;
use crate::image::frame::{FrameDecoder, frame_bytes};
use crate::image::index::{Outline, frame_blob_bytes_max};

/// The first eight bytes of a header.
const MAGIC: [u8; 8] = *b"SWBPATCH";
/// The format version that this build reads and writes.
const VERSION: u32 = 1;
/// Magic, version, base bytes, target bytes, number of entries, number of windows.
const HEAD_BYTES: u64 = 8 + 4 + 8 + 8 + 4 + 4;
/// Chunks passed over before it, its chunks, its bytes in the blob, its windows.
const ENTRY_BYTES: u64 = 4 + 2 + 4 + 1;
/// First block of the base's raw image, number of blocks.
const WINDOW_BYTES: u64 = 4 + 2;

/// The longest decoded header of a patch to `target`: an entry for each chunk, with all its windows.
pub(super) fn decoded_bytes_max(target: &Outline) -> u64 {
    let entry = ENTRY_BYTES + WINDOWS_MAX as u64 * WINDOW_BYTES;
    (HEAD_BYTES + target.chunk_count() as u64 * entry).min(HEADER_BYTES_MAX)
}

pub(super) fn read_header(
    frame: &[u8],
    blob_bytes: u64,
    target: &Outline,
    base_bytes: u64,
) -> Result<Patch, Lie> {
    let bytes = decode(frame, target)?;
    let mut fields = Fields(&bytes);
    if fields.array::<8>()? != MAGIC {
        return Err(Lie::Magic);
    }
    let version = fields.u32()?;
    if version != VERSION {
        return Err(Lie::Version { found: version });
    }
    for (side, signed) in [(Side::Base, base_bytes), (Side::Target, target.raw_bytes())] {
        let found = fields.u64()?;
        if found != signed {
            return Err(Lie::SignedLength { side, found, signed });
        }
    }
    let counts = (fields.u32()?, fields.u32()?);
    let expected = HEAD_BYTES + u64::from(counts.0) * ENTRY_BYTES + u64::from(counts.1) * WINDOW_BYTES;
    if bytes.len() as u64 != expected {
        return Err(Lie::Length { found: bytes.len() as u64, expected });
    }
    let (mut entries, mut windows) = (Vec::new(), Vec::new());
    entries.try_reserve_exact(counts.0 as usize).map_err(|_| Lie::Memory)?;
    windows.try_reserve_exact(counts.1 as usize).map_err(|_| Lie::Memory)?;
    let header_bytes = frame.len() as u64;
    let mut patch = Patch { base_bytes, header_bytes, blob_bytes, entries, windows };
    read_entries(&mut patch, &mut fields, counts.0 as usize, counts.1 as usize, target)?;
    Ok(patch)
}

/// Decodes the header with the longest one of such an image as its bound; zstd's own length is only a hint for the
/// buffer, compared with the bound before anything is reserved and with the outcome after.
fn decode(frame: &[u8], target: &Outline) -> Result<Vec<u8>, Lie> {
    let limit = Patch::header_bytes_max(target);
    if frame.len() as u64 > limit {
        return Err(Lie::TooLong { bytes: frame.len() as u64, limit });
    }
    frame_bytes(frame)?;
    let limit = decoded_bytes_max(target);
    let claimed = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten().unwrap_or(0);
    if claimed < HEAD_BYTES || claimed > limit {
        return Err(Lie::Length { found: claimed, expected: limit });
    }
    let mut bytes = Vec::new();
    FrameDecoder::new()?.decode_exact(frame, claimed as usize, &mut bytes)?;
    Ok(bytes)
}

/// Reads the columns (their length is that of the counts) into `patch`.
fn read_entries(
    patch: &mut Patch,
    columns: &mut Fields<'_>,
    entries: usize,
    windows: usize,
    target: &Outline,
) -> Result<(), Lie> {
    let mut gaps = columns.column(entries * 4)?;
    let mut counts = columns.column(entries * 2)?;
    let mut lengths = columns.column(entries * 4)?;
    let mut window_counts = columns.column(entries)?;
    let mut offsets = columns.column(windows * 4)?;
    let mut sizes = columns.column(windows * 2)?;
    let (mut next_chunk, mut blob_at) = (0, patch.header_bytes);
    for entry in 0..entries {
        let mut row = place(entry, next_chunk + u64::from(gaps.u32()?), counts.u16()?, target)?;
        next_chunk = u64::from(row.first_chunk) + u64::from(row.chunks);
        (row.blob_offset, row.blob_bytes) = (blob_at, lengths.u32()?);
        let limit = frame_blob_bytes_max(row.raw_bytes);
        if row.blob_bytes == 0 || row.blob_bytes > limit {
            return Err(Lie::EntryBlob { entry, blob_bytes: row.blob_bytes, limit });
        }
        blob_at += u64::from(row.blob_bytes);
        row.first_window = u32::try_from(patch.windows.len()).map_err(|_| Lie::Memory)?;
        row.windows = window_counts.u8()?;
        let left = windows - patch.windows.len();
        if usize::from(row.windows) > WINDOWS_MAX.min(left) {
            return Err(Lie::WindowCount { entry, found: row.windows, left });
        }
        read_windows(patch, entry, row.windows, &mut offsets, &mut sizes)?;
        patch.entries.push(row);
    }
    if patch.windows.len() != windows {
        return Err(Lie::OrphanWindows { left: windows - patch.windows.len() });
    }
    if blob_at != patch.blob_bytes {
        return Err(Lie::BlobLength { found: blob_at, expected: patch.blob_bytes });
    }
    Ok(())
}

/// The run of whole frames that `count` chunks from number `first` on are, without its blob and windows.
fn place(entry: usize, first: u64, count: u16, target: &Outline) -> Result<Row, Lie> {
    let all = target.chunk_count();
    let outside = Lie::Chunks { entry, first, chunks: count, all };
    let end = first + u64::from(count);
    if count == 0 || end > all as u64 {
        return Err(outside);
    }
    let (first, end) = (first as usize, end as usize);
    let frames = target.frame_of(first).zip(target.frame_of(end - 1)).ok_or(outside)?;
    let whole = target.first_chunk(frames.0) == Some(first) && target.first_chunk(frames.1 + 1) == Some(end);
    let ends = target.span(frames.0).zip(target.span(frames.1)).filter(|_| whole);
    let (begin, last) = ends.ok_or(Lie::NotFrames { entry })?;
    let raw_bytes = last.raw.end - begin.raw.start;
    // A run of chunks with a zero run in it may be of any length; it is no longer than its chunks without one.
    let of_chunks: u64 = (first..end).map(|chunk| target.chunk_bytes(chunk)).sum();
    if of_chunks != raw_bytes {
        return Err(Lie::ZeroRun { entry });
    }
    if raw_bytes > u64::from(ENTRY_RAW_BYTES_MAX) {
        return Err(Lie::EntryRaw { entry, raw_bytes });
    }
    Ok(Row {
        raw_offset: begin.raw.start,
        blob_offset: 0,
        raw_bytes: raw_bytes as u32,
        blob_bytes: 0,
        first_frame: frames.0 as u32,
        first_chunk: first as u32,
        first_window: 0,
        frames: (frames.1 - frames.0 + 1) as u16,
        chunks: count,
        windows: 0,
    })
}

fn read_windows(
    patch: &mut Patch,
    entry: usize,
    count: u8,
    offsets: &mut Fields<'_>,
    sizes: &mut Fields<'_>,
) -> Result<(), Lie> {
    let mut prefix = 0;
    for _ in 0..count {
        let (offset, bytes) = (blocks(offsets.u32()?), blocks(sizes.u16()?.into()));
        let outside = Lie::Window { entry, offset, bytes: bytes as u32, base_bytes: patch.base_bytes };
        if bytes == 0 || offset + bytes > patch.base_bytes {
            return Err(outside);
        }
        prefix += bytes;
        if prefix > u64::from(PREFIX_BYTES_MAX) {
            return Err(Lie::Prefix { entry, bytes: prefix });
        }
        patch.windows.push(Window { offset, bytes: bytes as u32 });
    }
    Ok(())
}

/// An entry as its maker knows it.
#[cfg(feature = "author")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftEntry {
    /// Chunks of the target.
    pub chunks: std::ops::Range<usize>,
    /// Length of its zstd frame.
    pub blob_bytes: u32,
    /// Windows of the base, in the prefix's order.
    pub windows: Vec<Window>,
}

/// The header's zstd frame. What it says is checked by whoever parses it: the maker does so, too.
#[cfg(feature = "author")]
pub fn write_header(base_bytes: u64, target_bytes: u64, entries: &[DraftEntry]) -> std::io::Result<Vec<u8>> {
    let windows = || entries.iter().flat_map(|entry| &entry.windows);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(base_bytes.to_le_bytes());
    bytes.extend(target_bytes.to_le_bytes());
    bytes.extend((entries.len() as u32).to_le_bytes());
    bytes.extend((windows().count() as u32).to_le_bytes());
    let mut next = 0;
    for entry in entries {
        bytes.extend(((entry.chunks.start - next) as u32).to_le_bytes());
        next = entry.chunks.end;
    }
    entries.iter().for_each(|entry| bytes.extend((entry.chunks.len() as u16).to_le_bytes()));
    entries.iter().for_each(|entry| bytes.extend(entry.blob_bytes.to_le_bytes()));
    bytes.extend(entries.iter().map(|entry| entry.windows.len() as u8));
    let block = u64::from(crate::image::BLOCK_BYTES);
    windows().for_each(|window| bytes.extend(((window.offset / block) as u32).to_le_bytes()));
    windows().for_each(|window| bytes.extend(((u64::from(window.bytes) / block) as u16).to_le_bytes()));
    zstd::bulk::compress(&bytes, 19)
}
