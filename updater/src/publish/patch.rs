//! Makes a patch: from two raw images and their indexes to a blob of `image::patch`'s format.
//!
//! Frames of the target of which the base lacks a chunk are taken in runs. Threads turn runs into entries (`coder`), which
//! are written in order.
//!
//! Not here: the raw images (`raw_image`), the registry (`attach`). Rule: the outcome does not depend on the number of
//! threads, every entry was decoded and compared, and the header was read by the device's own parser.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sha2::{Digest as _, Sha256};

use super::layer::RELEASE_LEVEL;
use super::raw_image::RawImage;
use crate::digest::Digest;
use crate::image::index::{FrameSpan, Index};
use crate::image::lookup::{Finder, Lookup, Place};
use crate::image::patch::{DraftEntry, ENTRY_RAW_BYTES_MAX, Patch, PatchHeader, write_header};

mod coder;
mod sketch;
mod windows;

use coder::{Coder, Encoded, Run};
use sketch::Sketch;

/// More than this many threads are not started: each needs about 40 MiB.
const THREADS_MAX: usize = 64;

/// One of the two images.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Its index.
    pub index: &'a Index,
    /// Its bytes.
    pub raw: &'a RawImage,
}

/// How a patch is made.
#[derive(Debug, Clone)]
pub struct PatchOptions {
    /// zstd level, 1 to 22.
    pub level: i32,
    /// Threads that compress.
    pub threads: usize,
}

impl Default for PatchOptions {
    /// The level of a release on all processors.
    fn default() -> PatchOptions {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        PatchOptions { level: RELEASE_LEVEL, threads }
    }
}

/// A patch's blob in a temporary file.
#[derive(Debug)]
pub struct MadePatch {
    /// The file.
    pub blob: tempfile::NamedTempFile,
    /// SHA-256 of the blob.
    pub digest: Digest,
    /// Length of the blob in bytes.
    pub bytes: u64,
    /// Its first frame.
    pub header: PatchHeader,
    /// Entries.
    pub entries: u64,
}

/// Why no patch was made.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// A raw image could not be read.
    #[error("while reading a raw image")]
    Read {
        /// The system's word.
        source: io::Error,
    },
    /// zstd refused, e.g. the level.
    #[error("while compressing a patch")]
    Compress {
        /// zstd's word.
        source: io::Error,
    },
    /// The temporary file.
    #[error("while writing a patch to a temporary file")]
    Write {
        /// The system's word.
        source: io::Error,
    },
    /// An entry does not decode to what it was made of: a fault of this program or of the machine, caught before anybody
    /// fetches it.
    #[error("while reading a patch back: what it makes at byte {raw_offset} of the image is not the image")]
    RoundTrip {
        /// First byte of the entry in the target's raw image.
        raw_offset: u64,
    },
    /// The header breaks a rule of the format.
    #[error("while making a patch")]
    Header(#[from] crate::image::patch::PatchError),
    /// A worker thread ended without a word.
    #[error("while compressing a patch: a worker thread panicked")]
    Worker,
}

impl PatchError {
    fn reading(source: io::Error) -> PatchError {
        PatchError::Read { source }
    }

    fn writing(source: io::Error) -> PatchError {
        PatchError::Write { source }
    }
}

/// What a patch is made for.
pub struct Job<'a> {
    target: Side<'a>,
    base: Side<'a>,
    runs: Vec<Run>,
}

impl<'a> Job<'a> {
    /// Compares both indexes.
    pub fn new(target: Side<'a>, base: Side<'a>) -> Job<'a> {
        let mut finder = Finder::new(target.index);
        finder.add(Place::Running, base.index);
        Job { target, base, runs: runs(target.index, &finder.finish(target.index)) }
    }

    /// Raw bytes of the target that are to be made anew; 0 when there is nothing to patch.
    pub fn raw_bytes(&self) -> u64 {
        self.runs.iter().map(|run| raw_bytes(self.target.index, &run.frames)).sum()
    }

    /// Makes the patch in a file in `folder`; `None` when the release's own frames are the shortest everywhere. `progress`
    /// is told of every raw byte that is done.
    pub fn make(
        &self,
        options: &PatchOptions,
        folder: &Path,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Option<MadePatch>, PatchError> {
        if self.runs.is_empty() {
            return Ok(None);
        }
        let sketch = Sketch::new(self.base.index, self.base.raw).map_err(PatchError::reading)?;
        let coder = Coder { target: self.target, base: self.base, sketch: &sketch, level: options.level };
        let threads = options.threads.clamp(1, THREADS_MAX).min(self.runs.len());
        let next = AtomicUsize::new(0);
        let mut body = tempfile::tempfile_in(folder).map_err(PatchError::writing)?;
        let entries = std::thread::scope(|scope| {
            let (to, from) = sync_channel(threads);
            for _ in 0..threads {
                let (coder, next, to) = (&coder, &next, to.clone());
                scope.spawn(move || work(coder, &self.runs, next, to));
            }
            drop(to);
            self.collect(from, &mut body, progress)
        })?;
        if entries.is_empty() {
            return Ok(None);
        }
        self.finish(&entries, body, folder).map(Some)
    }

    /// Writes entries in the order of the runs, as they come.
    fn collect(
        &self,
        from: Receiver<Done>,
        body: &mut File,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<DraftEntry>, PatchError> {
        let mut waiting = BTreeMap::new();
        let mut entries = Vec::new();
        let mut written = 0;
        for (number, encoded) in from {
            progress(raw_bytes(self.target.index, &self.runs[number].frames));
            waiting.insert(number, encoded?);
            while let Some(encoded) = waiting.remove(&written) {
                for entry in encoded {
                    body.write_all(&entry.compressed).map_err(PatchError::writing)?;
                    entries.push(self.draft(entry));
                }
                written += 1;
            }
        }
        if written == self.runs.len() { Ok(entries) } else { Err(PatchError::Worker) }
    }

    fn draft(&self, entry: Encoded) -> DraftEntry {
        let chunk = |frame| self.target.index.first_chunk(frame).unwrap_or_default();
        DraftEntry {
            chunks: chunk(entry.frames.start)..chunk(entry.frames.end),
            blob_bytes: entry.compressed.len() as u32,
            windows: entry.windows,
        }
    }

    /// Puts header and entries together and reads the header as a device does.
    fn finish(&self, entries: &[DraftEntry], mut body: File, folder: &Path) -> Result<MadePatch, PatchError> {
        let (base_bytes, target_bytes) = (self.base.index.raw_bytes(), self.target.index.raw_bytes());
        let header = write_header(base_bytes, target_bytes, entries)
            .map_err(|source| PatchError::Compress { source })?;
        let mut blob = tempfile::NamedTempFile::new_in(folder).map_err(PatchError::writing)?;
        let mut sha256 = Sha256::new();
        let mut append = |bytes: &[u8]| {
            sha256.update(bytes);
            blob.write_all(bytes)
        };
        append(&header).map_err(PatchError::writing)?;
        body.seek(SeekFrom::Start(0)).map_err(PatchError::writing)?;
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = header.len() as u64;
        loop {
            let count = body.read(&mut buffer).map_err(PatchError::writing)?;
            if count == 0 {
                break;
            }
            append(&buffer[..count]).map_err(PatchError::writing)?;
            bytes += count as u64;
        }
        blob.flush().map_err(PatchError::writing)?;
        Patch::parse(&header, bytes, self.target.index, base_bytes)?;
        Ok(MadePatch {
            blob,
            digest: Digest::from_raw(sha256.finalize().into()),
            bytes,
            header: PatchHeader { digest: Digest::of(&header), size: header.len() as u64 },
            entries: entries.len() as u64,
        })
    }
}

/// Which run, and its entries.
type Done = (usize, Result<Vec<Encoded>, PatchError>);

/// Takes runs until there is none left, or nobody listens any more.
fn work(coder: &Coder<'_>, runs: &[Run], next: &AtomicUsize, to: SyncSender<Done>) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(run) = runs.get(number) else { return };
        if to.send((number, coder.encode(run))).is_err() {
            return;
        }
    }
}

/// The frames of which the base lacks a chunk, in runs of neighbours with no zero run between them, at most
/// [`ENTRY_RAW_BYTES_MAX`] raw bytes long.
fn runs(target: &Index, base: &Lookup) -> Vec<Run> {
    let lacking: Vec<bool> = target.spans().map(|frame| lacks(&frame, base)).collect();
    let mut runs = Vec::new();
    let mut start = 0;
    while start < lacking.len() {
        let length = lacking[start..].iter().take_while(|lacks| **lacks).count();
        if length != 0 {
            let diagonals = diagonals(target, start..start + length, base);
            let cut = |frames| Run { frames, diagonals: diagonals.clone() };
            runs.extend(pieces(target, start..start + length).into_iter().map(cut));
        }
        start += length.max(1);
    }
    runs
}

fn lacks(frame: &FrameSpan, base: &Lookup) -> bool {
    frame.chunks.clone().any(|chunk| base.find(chunk, Place::Running).is_none())
}

/// Cuts a run where the next frame would make it too long for an entry.
fn pieces(target: &Index, frames: Range<usize>) -> Vec<Range<usize>> {
    let mut pieces = Vec::<Range<usize>>::new();
    let mut bytes = 0;
    for frame in frames {
        let more = raw_bytes(target, &(frame..frame + 1));
        match pieces.last_mut() {
            Some(last) if bytes + more <= u64::from(ENTRY_RAW_BYTES_MAX) => {
                last.end = frame + 1;
                bytes += more;
            }
            _ => {
                pieces.push(frame..frame + 1);
                bytes = more;
            }
        }
    }
    pieces
}

/// How far the chunks next to a run are, in the base, behind their places in the target: what they are neighbours of there
/// is likely the run's earlier self.
fn diagonals(target: &Index, frames: Range<usize>, base: &Lookup) -> Vec<i64> {
    let has_chunks = |frame: &FrameSpan| !frame.chunks.is_empty();
    let mut before = (0..frames.start).rev().filter_map(|frame| target.span(frame));
    let before = before.find(has_chunks).map(|frame| {
        let last = frame.chunks.end - 1;
        (frame.raw.end - target.chunk_bytes(last), last)
    });
    let mut behind = (frames.end..target.frame_count()).filter_map(|frame| target.span(frame));
    let behind = behind.find(has_chunks).map(|frame| (frame.raw.start, frame.chunks.start));
    let mut found: Vec<i64> = Vec::new();
    for (raw_offset, chunk) in before.into_iter().chain(behind) {
        let diagonal = base.find(chunk, Place::Running).map(|place| place as i64 - raw_offset as i64);
        found.extend(diagonal.filter(|diagonal| !found.contains(diagonal)));
    }
    found
}

fn raw_bytes(index: &Index, frames: &Range<usize>) -> u64 {
    frames.clone().filter_map(|frame| index.frame(frame)).map(|frame| frame.raw_bytes).sum()
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
