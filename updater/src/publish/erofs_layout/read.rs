//! An EROFS image, piece by piece: superblock, inodes, attributes, folders.
//!
//! The format is the one of the kernel's `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`, of it what
//! `mkfs.erofs` writes without compression: blocks of 4096 bytes; inodes of 32 or 64 bytes at multiples of 32, behind each
//! its attributes; a file's data in one run of blocks, of which the last, partial block may lie behind the attributes.
//!
//! Not here: paths (`tree`), places (`place`). Rule: no byte outside of the file is asked for, no length is believed before
//! it was compared with the file's, and what is not known is refused.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{LayoutError, PIECE_BYTES};
use crate::file::FileError;
use crate::publish::rootfs::{BLOCK_BITS, BLOCK_BYTES, EROFS_MAGIC, SUPERBLOCK_AT};

/// The superblock's length in bytes, without extensions.
pub(super) const SUPERBLOCK_BYTES: usize = 128;
/// Inodes lie at multiples of this many bytes; their numbers count in it.
pub(super) const SLOT_BYTES: u64 = 32;
/// Where in the superblock, in an inode and in a folder's entry the fields lie that are changed here, in bytes.
pub(super) mod field {
    pub const CHECKSUM: usize = 4;
    pub const ROOT_NID: usize = 14;
    pub const BLOCKS: usize = 36;
    pub const META_BLOCK: usize = 40;
    pub const SHARED_BLOCK: usize = 44;
    pub const INODE_RUN: usize = 16;
    pub const INODE_NUMBER: usize = 20;
}

/// `feature_compat`: a checksum; times of change; a filter of attribute names. None of them says where something lies.
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_KNOWN: u32 = 7;
/// `feature_incompat`: how compressed blocks are padded. There are none.
const INCOMPAT_KNOWN: u32 = 1;
/// An attribute area begins with a filter, the count of shared attributes and padding.
const ATTRIBUTES_HEAD_BYTES: usize = 12;
const ENTRY_BYTES: usize = 12;
const NAME_BYTES_MAX: usize = 255;

/// An image, open for reading.
pub(super) struct Image {
    file: File,
    path: PathBuf,
    bytes: u64,
    /// Length of the file system in blocks.
    pub blocks: u64,
    /// First byte of the root folder's inode.
    pub root_at: u64,
    /// Byte that the numbers of shared attributes count from.
    pub shared_at: u64,
    inodes_at: u64,
}

/// What an inode is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File,
    Link,
    /// A device, pipe or socket: no data.
    Other,
}

/// Blocks, one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Run {
    pub start: u64,
    pub blocks: u64,
}

/// Where the parts of a file lie: inode, attributes, tail in one piece, and the run of its whole blocks.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    /// First byte.
    pub at: u64,
    pub kind: Kind,
    /// 32 or 64.
    pub inode_bytes: u64,
    /// What lies behind it, up to the tail.
    pub attribute_bytes: u64,
    /// The file's last, partial block where it lies behind the attributes.
    pub tail_bytes: u64,
    pub run: Option<Run>,
    /// Length of the content.
    pub size: u64,
    /// A serial number that only 32-bit programs see.
    pub number: u32,
}

/// An entry of a folder.
pub(super) struct Entry<'a> {
    /// Where in the block the inode's number lies.
    pub nid_at: usize,
    pub nid: u64,
    pub name: &'a [u8],
}

impl Image {
    pub(super) fn open(path: &Path) -> Result<Image, LayoutError> {
        let file = File::open(path).map_err(FileError::of("reading", path))?;
        let bytes = file.metadata().map_err(FileError::of("reading", path))?.len();
        let mut image =
            Image { file, path: path.to_owned(), bytes, blocks: 0, root_at: 0, shared_at: 0, inodes_at: 0 };
        let block = image.read(0, BLOCK_BYTES)?;
        let superblock = &block[SUPERBLOCK_AT as usize..][..SUPERBLOCK_BYTES];
        image.check_superblock(superblock, &block)?;
        image.blocks = u64::from(u32_at(superblock, field::BLOCKS));
        image.inodes_at = u64::from(u32_at(superblock, field::META_BLOCK)) * BLOCK_BYTES;
        image.shared_at = u64::from(u32_at(superblock, field::SHARED_BLOCK)) * BLOCK_BYTES;
        image.root_at = image.inode_at(u64::from(u16_at(superblock, field::ROOT_NID)))?;
        Ok(image)
    }

    fn check_superblock(&self, superblock: &[u8], block: &[u8]) -> Result<(), LayoutError> {
        if superblock[..4] != EROFS_MAGIC {
            return Err(self.odd("it is none"));
        }
        let (compat, incompat) = (u32_at(superblock, 8), u32_at(superblock, 80));
        // Behind the block size: extensions of the superblock. Byte 90: folders with blocks of another size.
        if superblock[12] != BLOCK_BITS || superblock[13] != 0 || superblock[90] != 0 {
            return Err(self.odd("its blocks are not of 4096 bytes, or its superblock is extended"));
        }
        if compat & !COMPAT_KNOWN != 0 || incompat & !INCOMPAT_KNOWN != 0 {
            return Err(
                self.odd(format!("it has features that are not known here: {compat:#x}, {incompat:#x}"))
            );
        }
        if has_checksum(superblock) && checksum(block) != u32_at(superblock, field::CHECKSUM) {
            return Err(self.odd("the checksum of its superblock is wrong"));
        }
        let blocks = u64::from(u32_at(superblock, field::BLOCKS));
        if blocks > self.bytes / BLOCK_BYTES {
            return Err(self.odd(format!("it is cut off: {} bytes of {blocks} blocks", self.bytes)));
        }
        Ok(())
    }

    /// For what is wrong with the image.
    pub(super) fn odd(&self, what: impl Into<String>) -> LayoutError {
        LayoutError::Odd { path: self.path.clone(), what: what.into() }
    }

    /// `bytes` bytes from `at`. Callers ask for at most [`PIECE_BYTES`].
    pub(super) fn read(&self, at: u64, bytes: u64) -> Result<Vec<u8>, LayoutError> {
        debug_assert!(bytes <= PIECE_BYTES);
        if at.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(self.odd(format!("it points behind its end, to {bytes} bytes at {at}")));
        }
        let mut buffer = vec![0; bytes as usize];
        self.file.read_exact_at(&mut buffer, at).map_err(FileError::of("reading", &self.path))?;
        Ok(buffer)
    }

    /// Where the inode of that number begins.
    pub(super) fn inode_at(&self, nid: u64) -> Result<u64, LayoutError> {
        let at = nid.checked_mul(SLOT_BYTES).and_then(|at| at.checked_add(self.inodes_at));
        at.ok_or_else(|| self.odd(format!("it names an inode {nid}")))
    }

    pub(super) fn inode(&self, at: u64) -> Result<Inode, LayoutError> {
        let head = self.read(at, SLOT_BYTES)?;
        let odd = |what: &str| self.odd(format!("the inode at byte {at} {what}"));
        let (format, attributes, mode) = (u16_at(&head, 0), u16_at(&head, 2), u16_at(&head, 4));
        if format >> 4 != 0 {
            return Err(odd("has a form that is not known here"));
        }
        let inode_bytes = if format & 1 == 0 { 32 } else { 64 };
        let attribute_bytes = match u64::from(attributes) {
            0 => 0,
            words => ATTRIBUTES_HEAD_BYTES as u64 + (words - 1) * 4,
        };
        let size = if format & 1 == 0 { u64::from(u32_at(&head, 8)) } else { u64_at(&head, 8) };
        // Type bits of `st_mode`.
        let kind = match mode >> 12 {
            0o04 => Kind::Folder,
            0o10 => Kind::File,
            0o12 => Kind::Link,
            0o01 | 0o02 | 0o06 | 0o14 => Kind::Other,
            _ => return Err(odd("is of no known type")),
        };
        let (blocks, tail_bytes) = match (kind, format >> 1 & 7) {
            (Kind::Other, _) => (0, 0),
            (_, 2) if size > 0 => ((size - 1) / BLOCK_BYTES, (size - 1) % BLOCK_BYTES + 1),
            (_, 0 | 2) => (size.div_ceil(BLOCK_BYTES), 0),
            _ => return Err(odd("is compressed or kept in chunks")),
        };
        let run = (blocks > 0).then(|| Run { start: u64::from(u32_at(&head, field::INODE_RUN)), blocks });
        if run.is_some_and(|run| run.start.saturating_add(run.blocks) > self.blocks) {
            return Err(odd("has data behind the image's end"));
        }
        let number = u32_at(&head, field::INODE_NUMBER);
        let inode = Inode { at, kind, inode_bytes, attribute_bytes, tail_bytes, run, size, number };
        if !inode.lies_well_at(at) || at.saturating_add(inode.bytes()) > self.blocks * BLOCK_BYTES {
            return Err(odd("is cut by the end of a block"));
        }
        Ok(inode)
    }

    /// The bytes of a shared attribute: lengths of name and value, then both, up to a multiple of four.
    pub(super) fn shared(&self, id: u32) -> Result<Vec<u8>, LayoutError> {
        let at = self.shared_at + u64::from(id) * 4;
        let head = self.read(at, 4)?;
        let bytes = 4 + u64::from(head[0]) + u64::from(u16_at(&head, 2));
        self.read(at, bytes.next_multiple_of(4))
    }

    /// Where among an inode's attributes the numbers of shared ones lie.
    pub(super) fn shared_slots(&self, attributes: &[u8]) -> Result<Vec<usize>, LayoutError> {
        let Some(count) = attributes.get(4) else { return Ok(Vec::new()) };
        let end = ATTRIBUTES_HEAD_BYTES + usize::from(*count) * 4;
        if end > attributes.len() {
            return Err(self.odd("an inode has more shared attributes than room for them"));
        }
        Ok((ATTRIBUTES_HEAD_BYTES..end).step_by(4).collect())
    }

    /// The entries of one block of a folder.
    pub(super) fn entries<'a>(&self, block: &'a [u8]) -> Result<Vec<Entry<'a>>, LayoutError> {
        let bad = || self.odd("a folder in it is damaged");
        let table = if block.len() > ENTRY_BYTES { usize::from(u16_at(block, 8)) } else { 0 };
        if table == 0 || table % ENTRY_BYTES != 0 || table >= block.len() {
            return Err(bad());
        }
        let name_at = |at: usize| usize::from(u16_at(block, at + 8));
        let entry = |nid_at: usize| {
            let next = nid_at + ENTRY_BYTES;
            let to = if next < table { name_at(next) } else { block.len() };
            let name = block.get(name_at(nid_at)..to).filter(|_| name_at(nid_at) >= table).ok_or_else(bad)?;
            // Only the last name may have room behind it.
            let room = name.iter().position(|byte| *byte == 0).filter(|_| next == table);
            let name = &name[..room.unwrap_or(name.len())];
            if name.is_empty() || name.len() > NAME_BYTES_MAX || name.iter().any(|byte| b"\0/".contains(byte))
            {
                return Err(bad());
            }
            Ok(Entry { nid_at, nid: u64_at(block, nid_at), name })
        };
        (0..table).step_by(ENTRY_BYTES).map(entry).collect()
    }

    pub(super) fn content_sha256(&self, inode: &Inode) -> Result<[u8; 32], LayoutError> {
        let mut hash = Sha256::new();
        for (at, bytes) in inode.pieces() {
            hash.update(self.read(at, bytes)?);
        }
        Ok(hash.finalize().into())
    }
}

impl Run {
    pub(super) fn bytes(&self) -> u64 {
        self.blocks * BLOCK_BYTES
    }
}

impl Inode {
    /// Inode and attributes.
    pub(super) fn head_bytes(&self) -> u64 {
        self.inode_bytes + self.attribute_bytes
    }

    /// Inode, attributes and tail.
    pub(super) fn bytes(&self) -> u64 {
        self.head_bytes() + self.tail_bytes
    }

    /// The kernel refuses a tail that lies in two blocks.
    pub(super) fn lies_well_at(&self, at: u64) -> bool {
        let tail_at = at.saturating_add(self.head_bytes());
        self.tail_bytes == 0 || tail_at % BLOCK_BYTES + self.tail_bytes <= BLOCK_BYTES
    }

    /// Where the content lies, in order: place and length in bytes, at most [`PIECE_BYTES`] each.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        self.pieces_of(PIECE_BYTES)
    }

    /// The same, block by block.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        self.pieces_of(BLOCK_BYTES)
    }

    fn pieces_of(&self, bytes_max: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        let start = self.run.map_or(0, |run| run.start * BLOCK_BYTES);
        let in_run = if self.run.is_some() { self.size - self.tail_bytes } else { 0 };
        let pieces = (0..in_run).step_by(bytes_max as usize);
        let pieces = pieces.map(move |done| (start + done, bytes_max.min(in_run - done)));
        let tail = (self.tail_bytes > 0).then_some((self.at + self.head_bytes(), self.tail_bytes));
        pieces.chain(tail)
    }
}

/// Whether the superblock says that it has one.
pub(super) fn has_checksum(superblock: &[u8]) -> bool {
    u32_at(superblock, 8) & COMPAT_CHECKSUM != 0
}

/// CRC-32C, not inverted at the end, of the first block from the superblock on, its own field taken as zero.
pub(super) fn checksum(block: &[u8]) -> u32 {
    const CASTAGNOLI: u32 = 0x82F6_3B78;
    let own = field::CHECKSUM..field::CHECKSUM + 4;
    let covered = block[SUPERBLOCK_AT as usize..].iter().enumerate();
    covered.fold(!0, |crc, (at, byte)| {
        let byte = if own.contains(&at) { 0 } else { u32::from(*byte) };
        (0..8).fold(crc ^ byte, |crc, _| (crc >> 1) ^ (CASTAGNOLI & (crc & 1).wrapping_neg()))
    })
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
