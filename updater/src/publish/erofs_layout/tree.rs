//! Every path of an image and the inode behind it.
//!
//! Not here: contents. Rule: each folder is listed once and has one name, `.` and `..` lead where they should, and memory
//! is bounded, whatever an image claims.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::LayoutError;
use super::read::{Image, Inode, Kind, u32_at};

/// The root folder is found first.
pub(super) const ROOT: usize = 0;
/// The longest path that Linux takes in one call.
const PATH_BYTES_MAX: usize = 4096;
/// All paths together, in bytes; a large system has about 30 MB of them.
const PATHS_BYTES_MAX: usize = 512 << 20;
/// What a path costs beside its bytes.
const PATH_COST_BYTES: usize = 128;
/// All shared attributes together, in bytes.
const SHARED_BYTES_MAX: usize = 64 << 20;

/// An image and what is in it.
pub(super) struct Tree {
    pub image: Image,
    /// In the order in which they are found: a folder's own follow each other.
    pub inodes: Vec<Inode>,
    /// Each path, without a leading slash, and the number of its inode. The root's is empty.
    pub paths: BTreeMap<Vec<u8>, usize>,
    /// Shared attributes by their number.
    pub shared: BTreeMap<u32, Vec<u8>>,
    by_place: HashMap<u64, usize>,
    paths_bytes: usize,
    shared_bytes: usize,
}

/// A folder that is to be listed.
struct Folder {
    number: usize,
    parent: usize,
    path: Vec<u8>,
}

impl Tree {
    pub(super) fn read(path: &Path) -> Result<Tree, LayoutError> {
        let mut tree = Tree {
            image: Image::open(path)?,
            inodes: Vec::new(),
            paths: BTreeMap::new(),
            shared: BTreeMap::new(),
            by_place: HashMap::new(),
            paths_bytes: 0,
            shared_bytes: 0,
        };
        tree.add(tree.image.root_at)?;
        if tree.inodes[ROOT].kind != Kind::Folder {
            return Err(tree.image.odd("its root is no folder"));
        }
        tree.paths.insert(Vec::new(), ROOT);
        let mut folders = vec![Folder { number: ROOT, parent: ROOT, path: Vec::new() }];
        while let Some(folder) = folders.pop() {
            tree.list(&folder, &mut folders)?;
        }
        tree.check_runs()?;
        Ok(tree)
    }

    /// The number of the inode that an entry names.
    pub(super) fn number_of(&self, nid: u64) -> Result<usize, LayoutError> {
        let at = self.image.inode_at(nid)?;
        self.by_place
            .get(&at)
            .copied()
            .ok_or_else(|| self.image.odd(format!("nothing names its inode {nid}")))
    }

    /// The number of the inode there, and whether it is new.
    fn add(&mut self, at: u64) -> Result<(usize, bool), LayoutError> {
        if let Some(number) = self.by_place.get(&at) {
            return Ok((*number, false));
        }
        let inode = self.image.inode(at)?;
        let attributes = self.image.read(at + inode.inode_bytes, inode.attribute_bytes)?;
        for slot in self.image.shared_slots(&attributes)? {
            self.add_shared(u32_at(&attributes, slot))?;
        }
        let number = self.inodes.len();
        self.inodes.push(inode);
        self.by_place.insert(at, number);
        Ok((number, true))
    }

    fn add_shared(&mut self, id: u32) -> Result<(), LayoutError> {
        if !self.shared.contains_key(&id) {
            let bytes = self.image.shared(id)?;
            self.shared_bytes += bytes.len();
            if self.shared_bytes > SHARED_BYTES_MAX {
                return Err(self.image.odd("its shared attributes are too many"));
            }
            self.shared.insert(id, bytes);
        }
        Ok(())
    }

    fn list(&mut self, folder: &Folder, folders: &mut Vec<Folder>) -> Result<(), LayoutError> {
        for (at, bytes) in self.inodes[folder.number].blocks() {
            let block = self.image.read(at, bytes)?;
            for entry in self.image.entries(&block)? {
                let (number, new) = self.add(self.image.inode_at(entry.nid)?)?;
                let expected = match entry.name {
                    b"." => folder.number,
                    b".." => folder.parent,
                    name => {
                        self.name(number, new, folder, name, folders)?;
                        continue;
                    }
                };
                if number != expected {
                    return Err(self.image.odd("`.` or `..` in a folder leads elsewhere"));
                }
            }
        }
        Ok(())
    }

    fn name(
        &mut self,
        number: usize,
        new: bool,
        folder: &Folder,
        name: &[u8],
        folders: &mut Vec<Folder>,
    ) -> Result<(), LayoutError> {
        let mut path = folder.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        self.paths_bytes += path.len() + PATH_COST_BYTES;
        if path.len() > PATH_BYTES_MAX || self.paths_bytes > PATHS_BYTES_MAX {
            return Err(self.image.odd("its paths are too long or too many"));
        }
        if self.inodes[number].kind == Kind::Folder {
            if !new {
                return Err(self.image.odd("a folder in it has two names"));
            }
            folders.push(Folder { number, parent: folder.number, path: path.clone() });
        }
        match self.paths.insert(path, number) {
            None => Ok(()),
            Some(_) => Err(self.image.odd("a folder in it has one name twice")),
        }
    }

    /// Files may share a run as a whole (which some builders do to equal files); all else would be copied many times.
    fn check_runs(&self) -> Result<(), LayoutError> {
        let runs: BTreeSet<_> = self.inodes.iter().filter_map(|inode| inode.run).collect();
        if runs.iter().map(|run| run.blocks).sum::<u64>() > self.image.blocks {
            return Err(self.image.odd("files in it overlap"));
        }
        Ok(())
    }
}
