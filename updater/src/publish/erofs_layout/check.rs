//! Whether two images read alike: the same paths, links, attributes and contents, wherever they lie.
//!
//! Not here: repair. Rule: both are read from their files anew; nothing that placing has computed is believed.

use super::LayoutError;
use super::read::{Kind, field, u32_at};
use super::tree::Tree;

/// Refuses a pair of images with a difference that a reader could see.
pub(super) fn same(one: &Tree, other: &Tree) -> Result<(), LayoutError> {
    if !one.paths.keys().eq(other.paths.keys()) {
        return Err(LayoutError::Differs { what: "a path".into() });
    }
    let mut counterpart = vec![None; one.inodes.len()];
    let mut met = vec![false; other.inodes.len()];
    for ((path, number), there) in one.paths.iter().zip(other.paths.values()) {
        let differs = || LayoutError::Differs { what: format!("/{}", String::from_utf8_lossy(path)) };
        // Names of one file there are names of one file here.
        match counterpart[*number] {
            Some(known) if known == *there => continue,
            None if !met[*there] => {}
            _ => return Err(differs()),
        }
        counterpart[*number] = Some(*there);
        met[*there] = true;
        if seen(one, *number)? != seen(other, *there)? {
            return Err(differs());
        }
    }
    Ok(())
}

/// What a reader sees of a file.
#[derive(PartialEq, Eq)]
struct Seen {
    /// Without address and serial number.
    inode: Vec<u8>,
    /// Without the numbers of shared ones.
    attributes: Vec<u8>,
    shared: Vec<Vec<u8>>,
    /// Of a folder the paths say it.
    content: Option<[u8; 32]>,
}

fn seen(tree: &Tree, number: usize) -> Result<Seen, LayoutError> {
    let inode = &tree.inodes[number];
    let mut bytes = tree.image.read(inode.at, inode.head_bytes())?;
    let mut attributes = bytes.split_off(inode.inode_bytes as usize);
    if inode.run.is_some() {
        bytes[field::INODE_RUN..][..4].fill(0);
    }
    bytes[field::INODE_NUMBER..][..4].fill(0);
    let mut shared = Vec::new();
    for slot in tree.image.shared_slots(&attributes)? {
        shared.extend(tree.shared.get(&u32_at(&attributes, slot)).cloned());
        attributes[slot..][..4].fill(0);
    }
    let content = match inode.kind {
        Kind::File | Kind::Link => Some(tree.image.content_sha256(inode)?),
        Kind::Folder | Kind::Other => None,
    };
    Ok(Seen { inode: bytes, attributes, shared, content })
}
