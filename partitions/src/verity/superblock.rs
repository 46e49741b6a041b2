//! The 512 bytes at the start of the hash device (`struct verity_sb` of cryptsetup's `verity.c`).
//!
//! Not here: the tree. Rule: a superblock is a claim; its numbers are bounded by the device before they are used.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    DIGEST_BYTES, HASH_START_BLOCK, RootHash, SALT_BYTES_MAX, VerityError, VerityParams, level_blocks,
    tree_bytes,
};
use crate::device::BlockDevice;

pub(super) const SUPERBLOCK_BYTES: usize = 512;
const SIGNATURE: &[u8; 8] = b"verity\0\0";
const ALGORITHM: &[u8] = b"sha256";
const VERSION: u32 = 1;
const HASH_TYPE: u32 = 1;

// Where the fields lie; all numbers are little-endian.
const UUID_AT: usize = 16;
const ALGORITHM_AT: usize = 32;
const ALGORITHM_BYTES: usize = 32;
const DATA_BLOCK_BYTES_AT: usize = 64;
const HASH_BLOCK_BYTES_AT: usize = 68;
const DATA_BLOCKS_AT: usize = 72;
const SALT_BYTES_AT: usize = 80;
const SALT_AT: usize = 88;

/// Reads the superblock at the start of `hash_device`. Refuses one whose tree passes the device.
pub fn read_superblock(hash_device: &dyn BlockDevice) -> Result<VerityParams, VerityError> {
    if hash_device.len() < SUPERBLOCK_BYTES as u64 {
        return Err(VerityError::NoSuperblock);
    }
    let mut bytes = [0; SUPERBLOCK_BYTES];
    hash_device
        .read_at(0, &mut bytes)
        .map_err(|source| VerityError::Io { action: "reading the verity superblock", source })?;
    let params = decode(&bytes)?;
    let bad = |error: VerityError| VerityError::BadSuperblock { reason: error.to_string() };
    let needed = tree_bytes(&params).map_err(bad)?;
    if needed > hash_device.len() {
        return Err(bad(VerityError::TooSmall { what: "the tree", needed, available: hash_device.len() }));
    }
    Ok(params)
}

/// True when the tree on `hash_device` belongs to `root`, judged by its top block alone: enough to find a slot, not to
/// trust it. A tree over a single data block has no top block and matches nothing; no file system is that small.
pub fn superblock_matches(hash_device: &dyn BlockDevice, root: &RootHash) -> Result<bool, VerityError> {
    let params = match read_superblock(hash_device) {
        Ok(params) => params,
        Err(error) if error.is_mismatch() => return Ok(false),
        Err(error) => return Err(error),
    };
    if level_blocks(&params).is_empty() {
        return Ok(false);
    }
    // The levels are stored from the top down, so the top block comes first.
    let mut top = vec![0; params.hash_block_bytes as usize];
    hash_device
        .read_at(HASH_START_BLOCK * u64::from(params.hash_block_bytes), &mut top)
        .map_err(|source| VerityError::Io { action: "reading the top of the verity tree", source })?;
    let digest = Sha256::new_with_prefix(&params.salt).chain_update(&top).finalize();
    Ok(digest.as_slice() == root.0)
}

pub(super) fn encode(params: &VerityParams) -> [u8; SUPERBLOCK_BYTES] {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, SIGNATURE);
    put(8, &VERSION.to_le_bytes());
    put(12, &HASH_TYPE.to_le_bytes());
    put(UUID_AT, params.uuid.as_bytes());
    put(ALGORITHM_AT, ALGORITHM);
    put(DATA_BLOCK_BYTES_AT, &params.data_block_bytes.to_le_bytes());
    put(HASH_BLOCK_BYTES_AT, &params.hash_block_bytes.to_le_bytes());
    put(DATA_BLOCKS_AT, &params.data_blocks.to_le_bytes());
    put(SALT_BYTES_AT, &(params.salt.len() as u16).to_le_bytes());
    put(SALT_AT, &params.salt);
    bytes
}

fn decode(bytes: &[u8; SUPERBLOCK_BYTES]) -> Result<VerityParams, VerityError> {
    if &bytes[..8] != SIGNATURE {
        return Err(VerityError::NoSuperblock);
    }
    let refuse = |reason: String| Err(VerityError::BadSuperblock { reason });
    let (version, hash_type) = (u32_at(bytes, 8), u32_at(bytes, 12));
    if (version, hash_type) != (VERSION, HASH_TYPE) {
        return refuse(format!("version {version}, hash type {hash_type}; only 1 and 1 are known"));
    }
    let algorithm =
        bytes[ALGORITHM_AT..][..ALGORITHM_BYTES].split(|byte| *byte == 0).next().unwrap_or_default();
    if algorithm != ALGORITHM {
        return refuse(format!(
            "hash algorithm {:?}; only sha256 is known",
            String::from_utf8_lossy(algorithm)
        ));
    }
    let salt_bytes = usize::from(u16::from_le_bytes([bytes[SALT_BYTES_AT], bytes[SALT_BYTES_AT + 1]]));
    if salt_bytes > SALT_BYTES_MAX {
        return refuse(format!("a salt of {salt_bytes} bytes"));
    }
    let data_blocks = std::array::from_fn(|at| bytes[DATA_BLOCKS_AT + at]);
    Ok(VerityParams {
        salt: bytes[SALT_AT..][..salt_bytes].to_vec(),
        uuid: Uuid::from_bytes(std::array::from_fn(|at| bytes[UUID_AT + at])),
        data_block_bytes: u32_at(bytes, DATA_BLOCK_BYTES_AT),
        hash_block_bytes: u32_at(bytes, HASH_BLOCK_BYTES_AT),
        data_blocks: u64::from_le_bytes(data_blocks),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]))
}

const _: () = assert!(SALT_AT + SALT_BYTES_MAX <= SUPERBLOCK_BYTES && DIGEST_BYTES == 32);
