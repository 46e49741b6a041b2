//! The chunk index of what lies in a slot, kept in the state folder when it was written: by it the next update is a delta.
//!
//! Not here: which chunks are used (`image::plan`). Rule: a hint. Each page is compared with a signed root before it is
//! believed, each chunk with its SHA-256 when it is read; a file that is lost, torn or of another release costs a scan of
//! the slot or a download, never a wrong byte. So nothing of it is flushed, and no install fails for it.

use std::io;

use switchback_partitions::slot::Slot;

use crate::host::state_dir::{StateDir, Store};
use crate::image::frame::FrameDecoder;
use crate::image::index::{INDEX_BYTES_MAX, Index, IndexError, PageRef, Part, Root};

/// The first eight bytes.
const MAGIC: [u8; 8] = *b"SWSTORED";
/// Magic, length of the raw image, length of the slot layer's blob, length of the root frame; little-endian.
const HEAD_BYTES: usize = 8 + 8 + 8 + 8;

/// An index that lies in the state folder: its root, and where its pages are.
pub struct Stored {
    store: Box<dyn Store>,
    root: Root,
    /// Where the first page begins in the file.
    pages_at: u64,
    /// Pages by their SHA-256: number in the root.
    by_hash: Vec<([u8; 32], u32)>,
}

impl Stored {
    /// The index of what was written to `slot` last, where one is kept and can be read.
    pub fn open(state_dir: &dyn StateDir, slot: Slot, layer: &str) -> Option<Stored> {
        let store = state_dir.open(&name(slot, layer)).ok()??;
        let file_bytes = store.len().ok()?;
        let mut head = [0; HEAD_BYTES];
        store.read_at(0, &mut head).ok()?;
        let (magic, numbers) = head.split_at(MAGIC.len());
        let mut numbers = numbers.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let (raw_bytes, blob_bytes, root_bytes) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let pages_at = (HEAD_BYTES as u64).checked_add(root_bytes)?;
        let limit = Index::blob_bytes_max(raw_bytes).min(INDEX_BYTES_MAX) + HEAD_BYTES as u64;
        if magic != MAGIC || pages_at > file_bytes || file_bytes > limit {
            return None;
        }
        let mut frame = vec![0; usize::try_from(root_bytes).ok()?];
        store.read_at(HEAD_BYTES as u64, &mut frame).ok()?;
        let root = Root::parse(&frame, raw_bytes, blob_bytes).ok()?;
        if pages_at + root.pages_bytes() != file_bytes {
            return None;
        }
        Some(Stored::new(store, root, pages_at))
    }

    fn new(store: Box<dyn Store>, root: Root, pages_at: u64) -> Stored {
        let mut by_hash: Vec<_> =
            root.pages().iter().zip(0..).map(|(page, number)| (page.sha256, number)).collect();
        by_hash.sort_unstable();
        Stored { store, root, pages_at, by_hash }
    }

    /// Its root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// All pages in order, each by itself. Ends early, and says so, at one that is not what the root says.
    pub fn pages(&self) -> impl Iterator<Item = Option<Index>> {
        let mut decoder = FrameDecoder::new().ok();
        let (mut buffer, mut numbers) = (Vec::new(), 0..self.root.pages().len());
        std::iter::from_fn(move || {
            let number = numbers.next()?;
            let index = decoder.as_mut().and_then(|decoder| self.index_of(number, decoder, &mut buffer).ok());
            if index.is_none() {
                numbers = 0..0;
            }
            Some(index)
        })
    }

    /// Page number `number` by itself, compared with the root. `InvalidData` for other bytes. `buffer` is room that is used again.
    pub fn index_of(
        &self,
        number: usize,
        decoder: &mut FrameDecoder,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Index> {
        let page = self.root.pages().get(number).ok_or(io::ErrorKind::NotFound)?;
        let index = Index::of_page(page, &self.read(page)?, decoder, buffer);
        let lie = |lie| IndexError { part: Part::Page(number), lie };
        index.map_err(|found| io::Error::new(io::ErrorKind::InvalidData, lie(found)))
    }

    /// The compressed bytes of the page with this SHA-256, not yet compared with it.
    pub fn page(&self, sha256: &[u8; 32]) -> Option<Vec<u8>> {
        let at = self.by_hash.binary_search_by(|(hash, _)| hash.cmp(sha256)).ok()?;
        let (_, number) = self.by_hash.get(at)?;
        self.read(self.root.pages().get(*number as usize)?).ok()
    }

    /// The compressed bytes of a page of its root, not yet compared with it.
    fn read(&self, page: &PageRef) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; page.index_bytes as usize];
        self.store.read_at(self.pages_at + page.index_offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// An index on its way into the state folder, beside the one that is there.
pub struct Keeper<'a> {
    state_dir: &'a dyn StateDir,
    /// The file's name when it is whole.
    name: String,
    store: Box<dyn Store>,
    at: u64,
    whole: bool,
}

impl Drop for Keeper<'_> {
    /// A release that is refused leaves nothing behind.
    fn drop(&mut self) {
        if !self.whole {
            let _ = self.state_dir.remove(&unfinished(&self.name));
        }
    }
}

impl<'a> Keeper<'a> {
    /// Begins with the root frame of an index of `raw_bytes` and `blob_bytes`. `None` where it cannot be kept, which a warning says.
    pub fn begin(
        state_dir: &'a dyn StateDir,
        (slot, layer): (Slot, &str),
        root: &Root,
        root_frame: &[u8],
    ) -> Option<Keeper<'a>> {
        let name = name(slot, layer);
        let mut head = MAGIC.to_vec();
        for number in [root.raw_bytes(), root.blob_bytes(), root_frame.len() as u64] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        head.extend_from_slice(root_frame);
        let unfinished = unfinished(&name);
        let begun = state_dir.write(&unfinished, &head).and_then(|()| state_dir.open(&unfinished));
        match begun {
            Ok(Some(store)) => Some(Keeper { state_dir, name, store, at: head.len() as u64, whole: false }),
            Ok(None) => None,
            Err(error) => {
                not_kept(&error);
                None
            }
        }
    }

    /// The next page. `None` once it cannot be kept any more.
    pub fn page(mut self, compressed: &[u8]) -> Option<Keeper<'a>> {
        match self.store.write_at(self.at, compressed) {
            Ok(()) => {
                self.at += compressed.len() as u64;
                Some(self)
            }
            Err(error) => {
                not_kept(&error);
                None
            }
        }
    }

    /// The index was found true: its copy stays until the slot holds it, and can be read already.
    pub fn finish(mut self, root: Root) -> Option<Stored> {
        self.whole = true;
        // Opened again, as what is left of this one removes the file when it fails.
        let store = self.state_dir.open(&unfinished(&self.name)).ok()??;
        let pages_at = self.at.checked_sub(root.pages_bytes())?;
        Some(Stored::new(store, root, pages_at))
    }
}

/// The slot holds now what `Keeper` took down: that index takes the place of the old one.
pub fn settle(state_dir: &dyn StateDir, slot: Slot, layer: &str) {
    let name = name(slot, layer);
    match state_dir.rename(&unfinished(&name), &name) {
        Ok(()) => {}
        // The old one would only lead to chunks that are gone.
        Err(_) => drop(state_dir.remove(&name)),
    }
}

fn name(slot: Slot, layer: &str) -> String {
    format!("index-{slot}-{layer}")
}

fn unfinished(name: &str) -> String {
    format!("{name}.new")
}

fn not_kept(error: &io::Error) {
    tracing::warn!(%error, "the chunk index could not be kept; the next update scans the slot instead");
}
