//! The tree, computed in one pass over the data with one block of memory per level.
//!
//! Not here: the superblock's bytes. Rule: writing, checking and mere computing of a root hash are one algorithm with three
//! places for its blocks to go.

use std::io::Read;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::superblock::{SUPERBLOCK_BYTES, encode, read_superblock};
use super::{DIGEST_BYTES, HASH_START_BLOCK, RootHash, VerityError, VerityParams, level_blocks, tree_bytes};
use crate::device::BlockDevice;

/// Data is read in pieces of this size.
const READ_BYTES: usize = 1 << 20;

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

/// Reads all data and all of the tree and proves that both belong to `root`. Drop the devices' caches first, or the
/// kernel's memory of what was written is what gets verified.
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
    let mut buffer = vec![0; READ_BYTES];
    let mut done = 0;
    while done < covered {
        let piece = &mut buffer[..(covered - done).min(READ_BYTES as u64) as usize];
        data.read_at(done, piece).map_err(reading_data)?;
        tree.push(piece)?;
        done += piece.len() as u64;
    }
    let (found, ..) = tree.finish()?;
    if found != *root {
        return Err(VerityError::WrongRoot { expected: *root, found });
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
        self.device
            .read_at(offset, &mut self.stored)
            .map_err(|source| VerityError::Io { action: "reading the verity tree", source })?;
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

/// The algorithm: digests fill a level's block; a full block goes to the sink and its own digest to the level above.
struct Tree<S> {
    params: VerityParams,
    sink: S,
    levels: Vec<Level>,
    /// SHA-256 that has taken in the salt, which comes before the block (hash type 1).
    salted: Sha256,
    zero_block_digest: [u8; DIGEST_BYTES],
    pushed: u64,
    root: Option<RootHash>,
}

struct Level {
    /// First block of the level on the hash device.
    first_block: u64,
    /// Blocks handed to the sink.
    done: u64,
    block: Vec<u8>,
    filled: usize,
}

impl<S: Sink> Tree<S> {
    fn new(params: VerityParams, sink: S) -> Result<Tree<S>, VerityError> {
        params.check()?;
        let block_bytes = params.hash_block_bytes as usize;
        let mut levels = Vec::new();
        let counts = level_blocks(&params);
        for (level, _) in counts.iter().enumerate() {
            // Stored from the top down: all higher levels lie before this one.
            let first_block = HASH_START_BLOCK + counts[level + 1..].iter().sum::<u64>();
            levels.push(Level { first_block, done: 0, block: vec![0; block_bytes], filled: 0 });
        }
        let salted = Sha256::new_with_prefix(&params.salt);
        let zero_block = vec![0; params.data_block_bytes as usize];
        let zero_block_digest = salted.clone().chain_update(zero_block).finalize().into();
        Ok(Tree { params, sink, levels, salted, zero_block_digest, pushed: 0, root: None })
    }

    fn push(&mut self, data: &[u8]) -> Result<(), VerityError> {
        let block_bytes = self.params.data_block_bytes as usize;
        if !data.len().is_multiple_of(block_bytes) {
            let reason = format!("{} bytes are no whole number of {block_bytes}-byte blocks", data.len());
            return Err(VerityError::WrongAmount { reason });
        }
        self.count((data.len() / block_bytes) as u64)?;
        for block in data.chunks_exact(block_bytes) {
            let digest = self.digest(block);
            self.push_digest(0, digest)?;
        }
        Ok(())
    }

    fn push_zeros(&mut self, blocks: u64) -> Result<(), VerityError> {
        self.count(blocks)?;
        for _ in 0..blocks {
            self.push_digest(0, self.zero_block_digest)?;
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

    fn digest(&self, block: &[u8]) -> [u8; DIGEST_BYTES] {
        self.salted.clone().chain_update(block).finalize().into()
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
        let offset = (place.first_block + place.done) * u64::from(self.params.hash_block_bytes);
        self.sink.block(level, place.done, offset, &place.block)?;
        let digest = self.salted.clone().chain_update(&place.block).finalize().into();
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

fn reading_data(source: std::io::Error) -> VerityError {
    VerityError::Io { action: "reading the data to hash", source }
}
