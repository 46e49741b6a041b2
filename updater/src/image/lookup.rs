//! Where the chunks of a release lie on this machine.
//!
//! Not here: what follows from it (`plan`), reading. Rule: it is a hope, by the first eight bytes of each SHA-256 alone; whoever
//! reads compares. Looking through a slot needs memory for the release's chunks only, however much the slot holds, and what is
//! kept of it are two numbers a chunk.

use super::BLOCK_BYTES;
use super::index::{ChunkRef, Index, Outline};

/// A place on the machine that chunks are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Place {
    /// The slot that runs: whole and unchanging.
    Running = 0,
    /// The slot that is written: what lies behind the writer is gone.
    Target = 1,
}

/// No block: the chunk lies nowhere there. An image ends before it.
const NOWHERE: u32 = u32::MAX;

/// Where the chunks of a release lie, by their numbers. 8 bytes a chunk.
#[derive(Debug, Clone, Default)]
pub struct Lookup {
    /// The first block of the running slot at which each lies.
    running: Vec<u32>,
    /// The block of the target at which each lies: its own, or else the last one.
    target: Vec<u32>,
}

impl Lookup {
    /// Nothing lies anywhere: everything is fetched.
    pub const fn none() -> Lookup {
        Lookup { running: Vec::new(), target: Vec::new() }
    }

    /// The byte of `place` at which chunk number `chunk` should lie. In the target that is where the release wants it, if it
    /// lies there; otherwise the last place, which the writer reaches last.
    pub fn find(&self, chunk: usize, place: Place) -> Option<u64> {
        let blocks = match place {
            Place::Running => &self.running,
            Place::Target => &self.target,
        };
        let block = *blocks.get(chunk)?;
        (block != NOWHERE).then(|| u64::from(block) * u64::from(BLOCK_BYTES))
    }
}

/// Makes a [`Lookup`]: is shown what lies on the machine, chunk by chunk, and keeps what the release has, too.
#[derive(Debug)]
pub struct Finder {
    /// The release's chunks by key, those of one content in ascending order.
    wanted: Vec<Wanted>,
    /// For the first of each content: the first block of the running slot that has it, and the last of the target.
    running: Vec<u32>,
    target: Vec<u32>,
    /// For each of `wanted`: the target has it where the release wants it.
    in_place: Vec<bool>,
}

/// A chunk of the release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    /// The first bytes of its SHA-256. A false match is found out when the chunk is read.
    key: u64,
    /// Where the release wants it, in blocks.
    at: u32,
    /// Its number.
    chunk: u32,
}

impl Finder {
    /// Looks for the chunks of `release`.
    pub fn new(release: &Index) -> Finder {
        let mut wanted = Vec::with_capacity(release.chunk_count());
        for (number, (offset, chunk)) in (0u32..).zip(release.placed_chunks()) {
            // What lies beyond 16 TiB is not looked for.
            wanted.extend(block(offset).map(|at| Wanted { key: key(chunk), at, chunk: number }));
        }
        wanted.sort_unstable();
        let count = wanted.len();
        Finder {
            wanted,
            running: vec![NOWHERE; count],
            target: vec![NOWHERE; count],
            in_place: vec![false; count],
        }
    }

    /// Shows it all chunks that `index` says lie in `place`.
    pub fn add(&mut self, place: Place, index: &Index) {
        for (offset, chunk) in index.placed_chunks() {
            self.add_chunk(place, offset, chunk);
        }
    }

    /// Shows it one chunk at byte `offset` of `place`.
    ///
    /// However often one content lies in both, a chunk costs two searches: a slot full of one pattern must not take hours.
    pub fn add_chunk(&mut self, place: Place, offset: u64, chunk: &ChunkRef) {
        let (key, Some(at)) = (key(chunk), block(offset)) else { return };
        let first = self.wanted.partition_point(|wanted| wanted.key < key);
        if self.wanted.get(first).is_none_or(|wanted| wanted.key != key) {
            return;
        }
        match place {
            Place::Running => self.running[first] = self.running[first].min(at),
            Place::Target => {
                let last = &mut self.target[first];
                *last = if *last == NOWHERE { at } else { at.max(*last) };
                if let Ok(own) =
                    self.wanted.binary_search_by(|wanted| (wanted.key, wanted.at).cmp(&(key, at)))
                {
                    self.in_place[own] = true;
                }
            }
        }
    }

    /// What was found.
    pub fn finish(self, release: &Outline) -> Lookup {
        let mut first = 0;
        let firsts = self.wanted.iter().enumerate().map(|(number, wanted)| {
            if wanted.key != self.wanted[first].key {
                first = number;
            }
            (number, first, wanted)
        });
        // A slot that has nothing of the release, as an empty one, needs no list.
        let list = |found: &[u32]| {
            let any = found.iter().any(|block| *block != NOWHERE);
            vec![NOWHERE; if any { release.chunk_count() } else { 0 }]
        };
        let mut lookup = Lookup { running: list(&self.running), target: list(&self.target) };
        for (number, first, wanted) in firsts {
            if let Some(running) = lookup.running.get_mut(wanted.chunk as usize) {
                *running = self.running[first];
            }
            if let Some(target) = lookup.target.get_mut(wanted.chunk as usize) {
                *target = if self.in_place[number] { wanted.at } else { self.target[first] };
            }
        }
        lookup
    }
}

fn block(offset: u64) -> Option<u32> {
    u32::try_from(offset / u64::from(BLOCK_BYTES)).ok().filter(|block| *block != NOWHERE)
}

fn key(chunk: &ChunkRef) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = chunk.sha256;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
