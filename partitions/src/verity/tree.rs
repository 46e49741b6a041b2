//! The tree, computed in one pass over the data with one block of memory per level.
//!
//! Not here: the superblock's bytes. Rule: writing, checking and mere computing of a root hash are one algorithm with three
//! places for its blocks to go.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::superblock::{SUPERBLOCK_BYTES, encode, read_superblock};
use super::{DIGEST_BYTES, HASH_START_BLOCK, RootHash, VerityError, VerityParams, level_blocks, tree_bytes};
use crate::device::{AlignedBuffer, BlockDevice};

/// Data is read in pieces of this size.
const READ_BYTES: usize = 1 << 20;
/// Threads that hash what is verified.
const HASHERS_MAX: usize = 4;

/// Computes a tree while data streams by, and writes it to its device.
pub struct TreeWriter {
    tree: Tree<WriteTo>,
}

impl TreeWriter {
    /// Prepares the tree at the start of `hash_device`. Wipes an old superblock at once: it would claim a tree that is
    /// being overwritten.
    pub fn new(params: VerityParams, hash_device: Arc<dyn BlockDevice>) -> Result<TreeWriter, VerityError> {
        let needed = tree_bytes(&params)?;
        if needed > hash_device.len() {
            return Err(VerityError::TooSmall { what: "the tree", needed, available: hash_device.len() });
        }
        hash_device.write_at(0, &[0; SUPERBLOCK_BYTES]).map_err(writing)?;
        Ok(TreeWriter { tree: Tree::new(params, WriteTo(hash_device))? })
    }

    /// The next data: whole blocks, in order.
    pub fn push(&mut self, data: &[u8]) -> Result<(), VerityError> {
        self.tree.push(data)
    }

    /// The next data is a range of a device, of whole blocks: read past the kernel's memory, hashed by a thread for each processor.
    pub fn push_from(&mut self, data: &dyn BlockDevice, range: Range<u64>) -> Result<(), VerityError> {
        push_from(&mut self.tree, data, range)
    }

    /// The next data is `blocks` blocks of zeros: hashed once, whatever their number.
    pub fn push_zeros(&mut self, blocks: u64) -> Result<(), VerityError> {
        self.tree.push_zeros(blocks)
    }

    /// Data blocks pushed so far.
    pub fn blocks(&self) -> u64 {
        self.tree.pushed
    }

    /// Writes what is left and, last of all, the superblock. Durable after a `flush` of the device. An error unless exactly
    /// `data_blocks` blocks were pushed.
    pub fn finish(self) -> Result<RootHash, VerityError> {
        let (root, params, WriteTo(hash_device)) = self.tree.finish()?;
        let mut block = vec![0; params.hash_block_bytes as usize];
        block[..SUPERBLOCK_BYTES].copy_from_slice(&encode(&params));
        hash_device.write_at(0, &block).map_err(writing)?;
        Ok(root)
    }
}

/// The root hash of `data`, which must hold exactly the blocks that `params` names.
pub fn root_hash_of(params: &VerityParams, mut data: impl Read) -> Result<RootHash, VerityError> {
    let mut tree = Tree::new(params.clone(), Nowhere)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut left = params.data_bytes();
    while left > 0 {
        let piece = &mut buffer[..left.min(READ_BYTES as u64) as usize];
        data.read_exact(piece).map_err(reading_data)?;
        tree.push(piece)?;
        left -= piece.len() as u64;
    }
    if data.read(&mut buffer[..1]).map_err(reading_data)? != 0 {
        return Err(VerityError::WrongAmount { reason: format!("more than {} bytes", params.data_bytes()) });
    }
    Ok(tree.finish()?.0)
}

/// Reads all data and all of the tree and proves that both belong to `root`. Data is read past the kernel's memory and hashed
/// by a thread for each processor; drop the caches of `hash_device` first, or the kernel's memory of the tree is what gets
/// verified.
pub fn verify(
    data: &dyn BlockDevice,
    hash_device: &dyn BlockDevice,
    root: &RootHash,
) -> Result<(), VerityError> {
    let params = read_superblock(hash_device)?;
    let covered = params.data_bytes();
    if covered > data.len() {
        return Err(VerityError::BadSuperblock {
            reason: format!("it covers {covered} bytes of data; the device has {}", data.len()),
        });
    }
    let mut tree = Tree::new(params, CompareWith { device: hash_device, stored: Vec::new() })?;
    push_from(&mut tree, data, 0..covered)?;
    let (found, ..) = tree.finish()?;
    if found != *root {
        return Err(VerityError::WrongRoot { expected: *root, found });
    }
    Ok(())
}

/// Pushes a range of `data`: read past the kernel's memory and hashed by several threads, each every so many pieces, pushed in
/// order.
fn push_from<S: Sink>(
    tree: &mut Tree<S>,
    data: &dyn BlockDevice,
    range: Range<u64>,
) -> Result<(), VerityError> {
    let block_bytes = tree.params.data_block_bytes;
    if !(range.end - range.start).is_multiple_of(u64::from(block_bytes)) {
        let reason = format!("{range:?} is no whole number of {block_bytes}-byte blocks");
        return Err(VerityError::WrongAmount { reason });
    }
    let pieces = || range.clone().step_by(READ_BYTES);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(HASHERS_MAX);
    let leaves = tree.leaves.clone();
    std::thread::scope(|scope| {
        let mut from = Vec::new();
        for thread in 0..threads {
            // One piece waits while the next is hashed.
            let (to, digests) = std::sync::mpsc::sync_channel(1);
            from.push(digests);
            let (leaves, range, pieces) = (&leaves, &range, &pieces);
            scope.spawn(move || {
                let mut buffer = AlignedBuffer::new(READ_BYTES);
                for start in pieces().skip(thread).step_by(threads) {
                    let piece = &mut buffer[..(range.end - start).min(READ_BYTES as u64) as usize];
                    let read = data.read_past_cache(start, piece).map_err(reading_data);
                    let failed = read.is_err();
                    let digests = read.map(|()| leaves.digests(piece));
                    // Nobody waits for it when another piece was wrong.
                    if to.send(digests).is_err() || failed {
                        return;
                    }
                }
            });
        }
        for (_, from) in pieces().zip(from.iter().cycle()) {
            let gone = |_| VerityError::WrongAmount { reason: "a thread that hashes ended early".to_owned() };
            let digests = from.recv().map_err(gone)??;
            tree.push_digests(&digests)?;
        }
        Ok(())
    })
}

/// Reads all of the tree and proves that it belongs to `root`: each block by its digest in the level above. Says nothing of the
/// data. Drop the device's caches first, or the kernel's memory is what gets verified.
pub fn verify_tree(hash_device: &dyn BlockDevice, root: &RootHash) -> Result<(), VerityError> {
    let params = read_superblock(hash_device)?;
    let tree = Tree::new(params, Nowhere)?;
    let (mut block, mut above) = (vec![0; tree.block_bytes()], root.0.to_vec());
    for (number, level) in tree.levels.iter().enumerate().rev() {
        let parent = tree.levels.get(number + 1);
        for index in 0..level.count {
            let at = index as usize % (tree.block_bytes() / DIGEST_BYTES);
            if let (0, Some(parent)) = (at, parent) {
                above.resize(tree.block_bytes(), 0);
                let index = index / (tree.block_bytes() / DIGEST_BYTES) as u64;
                hash_device
                    .read_at(parent.offset_of(index, &tree.params), &mut above)
                    .map_err(reading_tree)?;
            }
            hash_device.read_at(level.offset_of(index, &tree.params), &mut block).map_err(reading_tree)?;
            let expected = above.get(at * DIGEST_BYTES..(at + 1) * DIGEST_BYTES);
            if expected != Some(&tree.leaves.digest(&block)) {
                return Err(VerityError::TreeCorrupt { level: number, block: index });
            }
        }
    }
    Ok(())
}

/// Where finished tree blocks go.
trait Sink {
    /// Block `index` of `level` (0 is next to the data) belongs at byte `offset` of the hash device.
    fn block(&mut self, level: usize, index: u64, offset: u64, block: &[u8]) -> Result<(), VerityError>;
}

struct WriteTo(Arc<dyn BlockDevice>);

impl Sink for WriteTo {
    fn block(&mut self, _level: usize, _index: u64, offset: u64, block: &[u8]) -> Result<(), VerityError> {
        self.0.write_at(offset, block).map_err(writing)
    }
}

struct Nowhere;

impl Sink for Nowhere {
    fn block(&mut self, _level: usize, _index: u64, _offset: u64, _block: &[u8]) -> Result<(), VerityError> {
        Ok(())
    }
}

struct CompareWith<'a> {
    device: &'a dyn BlockDevice,
    stored: Vec<u8>,
}

impl Sink for CompareWith<'_> {
    fn block(&mut self, level: usize, index: u64, offset: u64, block: &[u8]) -> Result<(), VerityError> {
        self.stored.resize(block.len(), 0);
        self.device.read_at(offset, &mut self.stored).map_err(reading_tree)?;
        let differing = block.iter().zip(&self.stored).position(|(computed, stored)| computed != stored);
        match (differing, level) {
            (None, _) => Ok(()),
            (Some(at), 0) => {
                let digests_per_block = block.len() / DIGEST_BYTES;
                let block = index * digests_per_block as u64 + (at / DIGEST_BYTES) as u64;
                Err(VerityError::DataCorrupt { block })
            }
            (Some(_), level) => Err(VerityError::TreeCorrupt { level, block: index }),
        }
    }
}

/// Digests of blocks.
#[derive(Clone)]
struct Leaves {
    block_bytes: usize,
    /// SHA-256 that has taken in the salt, which comes before the block (hash type 1).
    salted: Sha256,
    zero_block_digest: [u8; DIGEST_BYTES],
}

impl Leaves {
    fn new(params: &VerityParams) -> Leaves {
        let salted = Sha256::new_with_prefix(&params.salt);
        let block_bytes = params.data_block_bytes as usize;
        let zero_block_digest = salted.clone().chain_update(vec![0; block_bytes]).finalize().into();
        Leaves { block_bytes, salted, zero_block_digest }
    }

    fn digest(&self, block: &[u8]) -> [u8; DIGEST_BYTES] {
        self.salted.clone().chain_update(block).finalize().into()
    }

    /// One digest for each data block. A third of an image is zeros, and looking is ten times faster than hashing.
    fn digests(&self, data: &[u8]) -> Vec<[u8; DIGEST_BYTES]> {
        let digest = |block: &[u8]| match block.iter().all(|byte| *byte == 0) {
            true => self.zero_block_digest,
            false => self.digest(block),
        };
        data.chunks_exact(self.block_bytes).map(digest).collect()
    }
}

/// The algorithm: digests fill a level's block; a full block goes to the sink and its own digest to the level above.
struct Tree<S> {
    params: VerityParams,
    sink: S,
    levels: Vec<Level>,
    leaves: Leaves,
    pushed: u64,
    root: Option<RootHash>,
}

struct Level {
    /// First block of the level on the hash device.
    first_block: u64,
    /// Its blocks.
    count: u64,
    /// Blocks handed to the sink.
    done: u64,
    block: Vec<u8>,
    filled: usize,
}

impl Level {
    /// Byte of the hash device at which block `index` of the level starts.
    fn offset_of(&self, index: u64, params: &VerityParams) -> u64 {
        (self.first_block + index) * u64::from(params.hash_block_bytes)
    }
}

impl<S: Sink> Tree<S> {
    fn new(params: VerityParams, sink: S) -> Result<Tree<S>, VerityError> {
        params.check()?;
        let block_bytes = params.hash_block_bytes as usize;
        let mut levels = Vec::new();
        let counts = level_blocks(&params);
        for (level, count) in counts.iter().enumerate() {
            // Stored from the top down: all higher levels lie before this one.
            let first_block = HASH_START_BLOCK + counts[level + 1..].iter().sum::<u64>();
            levels.push(Level {
                first_block,
                count: *count,
                done: 0,
                block: vec![0; block_bytes],
                filled: 0,
            });
        }
        let leaves = Leaves::new(&params);
        Ok(Tree { params, sink, levels, leaves, pushed: 0, root: None })
    }

    fn block_bytes(&self) -> usize {
        self.params.hash_block_bytes as usize
    }

    fn push(&mut self, data: &[u8]) -> Result<(), VerityError> {
        let block_bytes = self.params.data_block_bytes as usize;
        if !data.len().is_multiple_of(block_bytes) {
            let reason = format!("{} bytes are no whole number of {block_bytes}-byte blocks", data.len());
            return Err(VerityError::WrongAmount { reason });
        }
        self.push_digests(&self.leaves.digests(data))
    }

    fn push_digests(&mut self, digests: &[[u8; DIGEST_BYTES]]) -> Result<(), VerityError> {
        self.count(digests.len() as u64)?;
        digests.iter().try_for_each(|digest| self.push_digest(0, *digest))
    }

    fn push_zeros(&mut self, blocks: u64) -> Result<(), VerityError> {
        self.count(blocks)?;
        for _ in 0..blocks {
            self.push_digest(0, self.leaves.zero_block_digest)?;
        }
        Ok(())
    }

    fn count(&mut self, blocks: u64) -> Result<(), VerityError> {
        match self.pushed.checked_add(blocks) {
            Some(pushed) if pushed <= self.params.data_blocks => {
                self.pushed = pushed;
                Ok(())
            }
            _ => Err(VerityError::WrongAmount {
                reason: format!("more than {} blocks", self.params.data_blocks),
            }),
        }
    }

    fn push_digest(&mut self, level: usize, digest: [u8; DIGEST_BYTES]) -> Result<(), VerityError> {
        let Some(place) = self.levels.get_mut(level) else {
            self.root = Some(RootHash(digest));
            return Ok(());
        };
        place.block[place.filled..][..DIGEST_BYTES].copy_from_slice(&digest);
        place.filled += DIGEST_BYTES;
        if place.filled == place.block.len() { self.close_block(level) } else { Ok(()) }
    }

    fn close_block(&mut self, level: usize) -> Result<(), VerityError> {
        let place = &mut self.levels[level];
        place.block[place.filled..].fill(0);
        self.sink.block(level, place.done, place.offset_of(place.done, &self.params), &place.block)?;
        let digest = self.leaves.digest(&place.block);
        place.done += 1;
        place.filled = 0;
        self.push_digest(level + 1, digest)
    }

    fn finish(mut self) -> Result<(RootHash, VerityParams, S), VerityError> {
        let short = VerityError::WrongAmount {
            reason: format!("{} blocks instead of {}", self.pushed, self.params.data_blocks),
        };
        if self.pushed != self.params.data_blocks {
            return Err(short);
        }
        for level in 0..self.levels.len() {
            if self.levels[level].filled > 0 {
                self.close_block(level)?;
            }
        }
        let root = self.root.ok_or(short)?;
        Ok((root, self.params, self.sink))
    }
}

fn writing(source: std::io::Error) -> VerityError {
    VerityError::Io { action: "writing the verity tree", source }
}

fn reading_tree(source: std::io::Error) -> VerityError {
    VerityError::Io { action: "reading the verity tree", source }
}

fn reading_data(source: std::io::Error) -> VerityError {
    VerityError::ReadData { source }
}
