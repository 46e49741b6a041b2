//! Makes an index, frame by frame, in constant memory but for the finished pages.
//!
//! Not here: cutting and compressing (`publish::layer`). Rule: what it writes passes the rules that `wire` checks; pages
//! end by a chunk's own hash, so that an insertion changes the pages around it and no others.

use sha2::Digest as _;
use zstd::bulk::Compressor;

use super::wire::{MAGIC, VERSION, check_frame};
use super::{ChunkRef, IndexError, Lie, PAGE_ENTRIES_MAX, PAGE_ENTRIES_MIN, Part};

/// A page ends behind a chunk whose hash (its first four bytes, little-endian) is a multiple of this: with the at least
/// [`PAGE_ENTRIES_MIN`] before it, 64 chunks on average.
const PAGE_CUT: u32 = 48;
/// zstd level of root and pages. They are small and mostly hashes: the level costs nothing and gains little.
const LEVEL: i32 = 19;

/// Collects frames in order and cuts them into pages.
pub struct IndexWriter {
    compressor: Compressor<'static>,
    frames: Vec<(u32, u32, u16)>,
    chunks: Vec<ChunkRef>,
    root_pages: Vec<u8>,
    pages: Vec<u8>,
    page_count: u32,
    raw_bytes: u64,
    blob_bytes: u64,
}

/// A finished index blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltIndex {
    /// The blob: root frame and pages.
    pub blob: Vec<u8>,
    /// Length of the root frame in bytes.
    pub root_bytes: u64,
    /// Raw bytes of the image that it covers.
    pub raw_bytes: u64,
    /// Bytes of the slot layer's blob that it covers.
    pub blob_bytes: u64,
}

impl IndexWriter {
    /// An empty index.
    pub fn new() -> Result<IndexWriter, IndexError> {
        let no_memory = |_| IndexError { part: Part::Root, lie: Lie::Memory };
        let compressor = Compressor::new(LEVEL).map_err(no_memory)?;
        Ok(IndexWriter {
            compressor,
            frames: Vec::new(),
            chunks: Vec::new(),
            root_pages: Vec::new(),
            pages: Vec::new(),
            page_count: 0,
            raw_bytes: 0,
            blob_bytes: 0,
        })
    }

    /// Adds the next frame; without chunks it is a zero run. Refused when it breaks a rule of the format.
    pub fn push_frame(
        &mut self,
        blob_bytes: u32,
        raw_bytes: u32,
        chunks: &[ChunkRef],
    ) -> Result<(), IndexError> {
        let most = usize::from(PAGE_ENTRIES_MAX);
        if self.frames.len() == most || self.chunks.len() + chunks.len() > most {
            self.end_page()?;
        }
        let part = Part::Page(self.page_count as usize);
        check_frame(self.frames.len(), blob_bytes, raw_bytes, chunks)
            .map_err(|lie| IndexError { part, lie })?;
        // A frame has at most 64 chunks: 256 KiB of at least 4 KiB each.
        self.frames.push((blob_bytes, raw_bytes, chunks.len() as u16));
        self.chunks.extend_from_slice(chunks);
        if self.page_is_long_enough() && chunks.last().is_some_and(ends_page) {
            self.end_page()?;
        }
        Ok(())
    }

    /// The finished blob.
    pub fn finish(mut self) -> Result<BuiltIndex, IndexError> {
        if !self.frames.is_empty() {
            self.end_page()?;
        }
        let mut root = Vec::new();
        root.extend_from_slice(&MAGIC);
        root.extend_from_slice(&VERSION.to_le_bytes());
        root.extend_from_slice(&self.page_count.to_le_bytes());
        root.extend_from_slice(&self.raw_bytes.to_le_bytes());
        root.extend_from_slice(&self.blob_bytes.to_le_bytes());
        root.extend_from_slice(&self.root_pages);
        let mut blob = self.compress(&root)?;
        let root_bytes = blob.len() as u64;
        blob.extend_from_slice(&self.pages);
        Ok(BuiltIndex { blob, root_bytes, raw_bytes: self.raw_bytes, blob_bytes: self.blob_bytes })
    }

    fn page_is_long_enough(&self) -> bool {
        self.frames.len().max(self.chunks.len()) >= usize::from(PAGE_ENTRIES_MIN)
    }

    fn end_page(&mut self) -> Result<(), IndexError> {
        let mut page = Vec::new();
        self.frames.iter().for_each(|frame| page.extend_from_slice(&frame.0.to_le_bytes()));
        self.frames.iter().for_each(|frame| page.extend_from_slice(&frame.1.to_le_bytes()));
        self.frames.iter().for_each(|frame| page.extend_from_slice(&frame.2.to_le_bytes()));
        self.chunks.iter().for_each(|chunk| page.extend_from_slice(&chunk.raw_bytes.to_le_bytes()));
        self.chunks.iter().for_each(|chunk| page.extend_from_slice(&chunk.sha256));
        let compressed = self.compress(&page)?;
        let raw_bytes: u64 = self.frames.iter().map(|frame| u64::from(frame.1)).sum();
        let blob_bytes: u64 = self.frames.iter().map(|frame| u64::from(frame.0)).sum();
        let root = &mut self.root_pages;
        root.extend_from_slice(&(compressed.len() as u32).to_le_bytes());
        root.extend_from_slice(&(self.frames.len() as u16).to_le_bytes());
        root.extend_from_slice(&(self.chunks.len() as u16).to_le_bytes());
        root.extend_from_slice(&raw_bytes.to_le_bytes());
        root.extend_from_slice(&blob_bytes.to_le_bytes());
        root.extend_from_slice(&sha2::Sha256::digest(&compressed));
        self.pages.extend_from_slice(&compressed);
        self.page_count += 1;
        self.raw_bytes += raw_bytes;
        self.blob_bytes += blob_bytes;
        self.frames.clear();
        self.chunks.clear();
        Ok(())
    }

    fn compress(&mut self, bytes: &[u8]) -> Result<Vec<u8>, IndexError> {
        self.compressor.compress(bytes).map_err(|_| IndexError { part: Part::Root, lie: Lie::Memory })
    }
}

/// True for a chunk that a page ends behind. Groups of chunks in a frame must end there too.
pub(crate) fn ends_page(chunk: &ChunkRef) -> bool {
    let [a, b, c, d, ..] = chunk.sha256;
    u32::from_le_bytes([a, b, c, d]).is_multiple_of(PAGE_CUT)
}
