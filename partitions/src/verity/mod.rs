//! dm-verity: the hash tree, its superblock, its root hash; bit for bit what `veritysetup format` makes (superblock
//! version 1, hash type 1, SHA-256; cryptsetup's "DMVerity" page, kernel `admin-guide/device-mapper/verity.rst`).
//!
//! Not here: opening the device (`device::dm`), whether a root hash is to be trusted. Rule: nothing stored on the disk is
//! believed: a tree is right only when it was computed again from the data and ends in the root hash that was given.

mod superblock;
mod tree;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use superblock::{read_superblock, superblock_matches};
pub use tree::{TreeWriter, root_hash_of, verify, verify_tree};

use crate::device::dm::{OnCorruption, VerityTable};

/// Bytes of one digest: SHA-256.
pub const DIGEST_BYTES: usize = 32;
/// Longest salt that the superblock holds.
pub const SALT_BYTES_MAX: usize = 256;
/// Block size of everything we build, in bytes; also `veritysetup`'s.
pub const BLOCK_BYTES: u32 = 4096;

/// Block sizes that are accepted; the kernel takes none above its page size.
const BLOCK_BYTES_RANGE: std::ops::RangeInclusive<u32> = 512..=65_536;

/// The hash that all of a slot's data hangs on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootHash(pub [u8; DIGEST_BYTES]);

impl RootHash {
    /// PARTUUID of the data partition: the first 128 bits (UAPI.2).
    pub fn data_guid(&self) -> Uuid {
        Uuid::from_bytes(std::array::from_fn(|at| self.0[at]))
    }

    /// PARTUUID of the hash partition: the last 128 bits (UAPI.2).
    pub fn hash_guid(&self) -> Uuid {
        Uuid::from_bytes(std::array::from_fn(|at| self.0[DIGEST_BYTES / 2 + at]))
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootHash({self})")
    }
}

impl FromStr for RootHash {
    type Err = VerityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; DIGEST_BYTES];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| VerityError::Parameters {
            reason: "a root hash is 64 hexadecimal digits".to_owned(),
        })?;
        Ok(RootHash(bytes))
    }
}

impl TryFrom<String> for RootHash {
    type Error = VerityError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RootHash> for String {
    fn from(hash: RootHash) -> String {
        hash.to_string()
    }
}

/// Everything that, with the data, decides a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerityParams {
    /// Salt, 0 to 256 bytes.
    pub salt: Vec<u8>,
    /// UUID in the superblock. Has no part in the hashes.
    pub uuid: Uuid,
    /// Data block size in bytes: a power of two.
    pub data_block_bytes: u32,
    /// Hash block size in bytes: a power of two.
    pub hash_block_bytes: u32,
    /// How many data blocks are covered; at least 1.
    pub data_blocks: u64,
}

impl VerityParams {
    /// Refuses what `veritysetup` or the kernel would refuse, zero data blocks among them.
    pub fn check(&self) -> Result<(), VerityError> {
        let refuse = |reason: String| Err(VerityError::Parameters { reason });
        for bytes in [self.data_block_bytes, self.hash_block_bytes] {
            if !bytes.is_power_of_two() || !BLOCK_BYTES_RANGE.contains(&bytes) {
                return refuse(format!("blocks of {bytes} bytes: not a power of two from 512 to 65536"));
            }
        }
        if self.salt.len() > SALT_BYTES_MAX {
            return refuse(format!("a salt of {} bytes: at most {SALT_BYTES_MAX} fit", self.salt.len()));
        }
        if self.data_blocks == 0 {
            return refuse("no data blocks".to_owned());
        }
        // The tree is smaller than the data, or one block: 63 bits of data leave room for both.
        match self.data_blocks.checked_mul(u64::from(self.data_block_bytes)) {
            Some(bytes) if bytes <= i64::MAX as u64 => Ok(()),
            _ => refuse(format!("{} data blocks: beyond 63 bits", self.data_blocks)),
        }
    }

    /// Bytes of data that the tree covers.
    pub fn data_bytes(&self) -> u64 {
        self.data_blocks.saturating_mul(u64::from(self.data_block_bytes))
    }

    /// The device-mapper table for these parameters on two partition nodes.
    pub fn table(
        &self,
        data: PathBuf,
        hash: PathBuf,
        root: &RootHash,
        on_corruption: OnCorruption,
    ) -> VerityTable {
        VerityTable {
            data,
            hash,
            data_block_bytes: self.data_block_bytes,
            hash_block_bytes: self.hash_block_bytes,
            data_blocks: self.data_blocks,
            salt: self.salt.clone(),
            root_hash: root.0,
            on_corruption,
        }
    }
}

/// Bytes that superblock and tree take on the hash device.
pub fn tree_bytes(params: &VerityParams) -> Result<u64, VerityError> {
    params.check()?;
    let blocks: u64 = level_blocks(params).iter().sum();
    Ok((HASH_START_BLOCK + blocks) * u64::from(params.hash_block_bytes))
}

/// The tree starts one hash block behind the superblock's beginning.
const HASH_START_BLOCK: u64 = 1;

/// Blocks of each level, the one next to the data first. None for a single data block: its digest is the root hash.
fn level_blocks(params: &VerityParams) -> Vec<u64> {
    let digests_per_block = u64::from(params.hash_block_bytes) / DIGEST_BYTES as u64;
    let mut levels = Vec::new();
    let mut below = params.data_blocks;
    while below > 1 {
        below = below.div_ceil(digests_per_block);
        levels.push(below);
    }
    levels
}

/// Why a tree could not be made, or what is wrong with one.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// Parameters that no tree can have.
    #[error("while preparing a verity tree: {reason}")]
    Parameters {
        /// What is wrong.
        reason: String,
    },
    /// The device cannot hold the tree, or the data.
    #[error("while preparing a verity tree: {what} needs {needed} bytes, its device has {available}")]
    TooSmall {
        /// `the tree` or `the data`.
        what: &'static str,
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        available: u64,
    },
    /// The caller gave more, less, or no whole number of blocks.
    #[error("while hashing data: {reason}")]
    WrongAmount {
        /// What was given.
        reason: String,
    },
    /// The data could not be read.
    #[error("while reading the data to hash")]
    ReadData {
        /// The device's error.
        #[source]
        source: std::io::Error,
    },
    /// A device did not do what it was asked.
    #[error("while {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The device's error.
        #[source]
        source: std::io::Error,
    },
    /// The hash device does not begin with a superblock.
    #[error("while reading the verity superblock: there is none")]
    NoSuperblock,
    /// It begins with one that is not ours.
    #[error("while reading the verity superblock: {reason}")]
    BadSuperblock {
        /// What is wrong.
        reason: String,
    },
    /// A data block does not match its digest in the tree.
    #[error("while verifying: data block {block} is not what the tree says")]
    DataCorrupt {
        /// Its index, from 0.
        block: u64,
    },
    /// A tree block does not match the blocks below it.
    #[error("while verifying: block {block} of tree level {level} is not the hash of what lies below")]
    TreeCorrupt {
        /// Level; 0 is next to the data.
        level: usize,
        /// Its index in the level, from 0.
        block: u64,
    },
    /// Data and tree agree, but not on the root hash that was asked for.
    #[error("while verifying: the root hash is {found}, not {expected}")]
    WrongRoot {
        /// What was asked for.
        expected: RootHash,
        /// What was computed.
        found: RootHash,
    },
}

impl VerityError {
    /// True when the devices answered and the content is wrong; false when nothing is known about the content.
    pub fn is_mismatch(&self) -> bool {
        matches!(
            self,
            VerityError::NoSuperblock
                | VerityError::BadSuperblock { .. }
                | VerityError::DataCorrupt { .. }
                | VerityError::TreeCorrupt { .. }
                | VerityError::WrongRoot { .. }
        )
    }
}

#[cfg(test)]
mod tests;
