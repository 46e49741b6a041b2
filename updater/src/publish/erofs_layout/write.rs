//! Everything at its place.
//!
//! Not here: which place (`place`). Rule: what `mkfs.erofs` wrote is copied, except addresses and serial numbers; what
//! nothing lies at is zero, so that nothing of the earlier release shines through.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::LayoutError;
use super::place::{HEAD_BYTES, Places};
use super::read::{Kind, SLOT_BYTES, checksum, field, has_checksum, u32_at};
use super::tree::{ROOT, Tree};
use crate::file::FileError;
use crate::publish::rootfs::{BLOCK_BYTES, SUPERBLOCK_AT};

/// The bytes of an inode at its new place: itself, its attributes, its tail. Places not given yet count as the last number.
pub(super) fn inode_bytes(new: &Tree, number: usize, places: &Places) -> Result<Vec<u8>, LayoutError> {
    let inode = &new.inodes[number];
    let mut bytes = new.image.read(inode.at, inode.bytes())?;
    if let Some(run) = inode.run {
        let start = places.runs.get(&run).map_or(u32::MAX, |start| *start as u32);
        put(&mut bytes, field::INODE_RUN, &start.to_le_bytes());
    }
    put(&mut bytes, field::INODE_NUMBER, &places.numbers[number].to_le_bytes());
    let attributes = inode.inode_bytes as usize..inode.head_bytes() as usize;
    for slot in new.image.shared_slots(&bytes[attributes.clone()])? {
        let slot = attributes.start + slot;
        let at = places.shared.get(&u32_at(&bytes, slot));
        let id = at.map_or(u32::MAX, |at| ((at - places.shared_at) / 4) as u32);
        put(&mut bytes, slot, &id.to_le_bytes());
    }
    if inode.kind == Kind::Folder && inode.tail_bytes > 0 {
        rename_inodes(new, &mut bytes[attributes.end..], places)?;
    }
    Ok(bytes)
}

/// Gives the entries of one block of a folder the new numbers of their inodes.
fn rename_inodes(new: &Tree, block: &mut [u8], places: &Places) -> Result<(), LayoutError> {
    let entries = new.image.entries(block)?.into_iter().map(|entry| (entry.nid_at, entry.nid));
    let entries: Vec<(usize, u64)> = entries.collect();
    for (nid_at, nid) in entries {
        let at = places.inodes[new.number_of(nid)?];
        put(block, nid_at, &at.map_or(u64::MAX, |at| at / SLOT_BYTES).to_le_bytes());
    }
    Ok(())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Writes the image with everything at its place.
pub(super) fn write(new: &Tree, places: &Places, out: &Path) -> Result<(), LayoutError> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(out);
    let file = file.map_err(FileError::of("making", out))?;
    file.set_len(places.blocks * BLOCK_BYTES).map_err(FileError::of("making", out))?;
    let writer = Writer { new, places, file, out };
    writer.data()?;
    writer.small()?;
    writer.superblock()
}

struct Writer<'a> {
    new: &'a Tree,
    places: &'a Places,
    file: File,
    out: &'a Path,
}

impl Writer<'_> {
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all_at(bytes, at).map_err(FileError::of("writing", self.out))
    }

    fn data(&self) -> Result<(), LayoutError> {
        for inode in &self.new.inodes {
            let Some(run) = inode.run else { continue };
            let (from, to) = (run.start * BLOCK_BYTES, self.places.runs[&run] * BLOCK_BYTES);
            let folder = inode.kind == Kind::Folder;
            let pieces: Vec<_> = if folder { inode.blocks().collect() } else { inode.pieces().collect() };
            // The tail, if there is one, lies elsewhere and is written with the inode.
            for (at, bytes) in pieces.into_iter().filter(|(at, _)| (from..from + run.bytes()).contains(at)) {
                let mut piece = self.new.image.read(at, bytes)?;
                if folder {
                    rename_inodes(self.new, &mut piece, self.places)?;
                }
                self.write(to + at - from, &piece)?;
            }
        }
        Ok(())
    }

    fn small(&self) -> Result<(), LayoutError> {
        for (number, at) in self.places.inodes.iter().enumerate() {
            let Some(at) = at else { continue };
            self.write(*at, &inode_bytes(self.new, number, self.places)?)?;
        }
        for (id, at) in &self.places.shared {
            self.write(*at, &self.new.shared[id])?;
        }
        Ok(())
    }

    fn superblock(&self) -> Result<(), LayoutError> {
        let mut head = self.new.image.read(0, HEAD_BYTES)?;
        let superblock = &mut head[SUPERBLOCK_AT as usize..];
        let root = self.places.inodes[ROOT].unwrap_or_default() / SLOT_BYTES;
        put(superblock, field::ROOT_NID, &(root as u16).to_le_bytes());
        put(superblock, field::BLOCKS, &(self.places.blocks as u32).to_le_bytes());
        put(superblock, field::META_BLOCK, &0_u32.to_le_bytes());
        put(superblock, field::SHARED_BLOCK, &((self.places.shared_at / BLOCK_BYTES) as u32).to_le_bytes());
        self.write(0, &head)?;
        if has_checksum(&head[SUPERBLOCK_AT as usize..]) {
            let mut block = vec![0; BLOCK_BYTES as usize];
            self.file.read_exact_at(&mut block, 0).map_err(FileError::of("reading", self.out))?;
            self.write(SUPERBLOCK_AT + field::CHECKSUM as u64, &checksum(&block).to_le_bytes())?;
        }
        Ok(())
    }
}
