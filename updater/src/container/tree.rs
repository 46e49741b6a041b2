//! The file tree of a container image while its layers are put on top of each other: names and metadata in memory,
//! contents in numbered files elsewhere.
//!
//! Not here: reading layers (`layer`), writing folders (`write`). Rule: a path from a layer is walked in this tree alone and
//! never handed to the system, so no name, link or order of entries leads out of the image.

use std::collections::{BTreeMap, VecDeque};

/// The longest path of a layer's entry or link, in bytes; Linux takes no longer one.
const PATH_BYTES_MAX: usize = 4096;
/// The longest name between two slashes, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// How deep folders may lie in each other: what walks the tree must not run out of stack.
const DEPTH_MAX: usize = 256;
/// How many symbolic links one path may lead through; the kernel's own number.
const LINKS_MAX: usize = 40;
/// What names, link targets and attributes may take in memory.
const MEMORY_BYTES_MAX: u64 = 512 << 20;
/// What one entry takes beside its name.
const ENTRY_BYTES: u64 = 256;
/// Owner, group and others may enter, the owner may write.
const FOLDER_MODE: u32 = 0o755;

/// A node's number in the tree.
pub(crate) type Id = usize;

const ROOT: Id = 0;

/// Mode, owner and extended attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permissions with setuid, setgid and sticky; no type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Meta {
    /// Root's, without attributes.
    pub fn of(mode: u32) -> Meta {
        Meta { mode, ..Meta::default() }
    }
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Folder(BTreeMap<Vec<u8>, Entry>),
    /// The number of the file that holds the contents.
    File(u64),
    Symlink(Vec<u8>),
    /// Major and minor number.
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

impl Kind {
    pub fn empty_folder() -> Kind {
        Kind::Folder(BTreeMap::new())
    }
}

/// A name in a folder, and the layer that put it there last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub id: Id,
    layer: usize,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub meta: Meta,
    pub kind: Kind,
}

/// The tree. Two names of one node are a hard link.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    layer: usize,
    memory: u64,
}

/// Where a path leads in the end: its node, and its names with no link among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub id: Id,
    pub path: Vec<Vec<u8>>,
}

impl Tree {
    pub fn new() -> Tree {
        let root = Node { meta: Meta::of(FOLDER_MODE), kind: Kind::empty_folder() };
        Tree { nodes: vec![root], layer: 0, memory: 0 }
    }

    /// What comes now is the next layer's.
    pub fn next_layer(&mut self) {
        self.layer += 1;
    }

    pub fn root(&self) -> &Node {
        &self.nodes[ROOT]
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    /// Puts a node under a name, in place of what had it; a folder over a folder keeps what lies in it.
    pub fn put(&mut self, path: &[u8], meta: Meta, kind: Kind) -> Result<(), String> {
        let Some((parent, name)) = self.place(path)? else {
            let Kind::Folder(_) = kind else { return Err("the image's root must be a folder".into()) };
            self.nodes[ROOT].meta = meta;
            return Ok(());
        };
        if let Kind::Symlink(target) = &kind {
            check_target(target)?;
        }
        self.charge(path, &meta, &kind)?;
        if let (Kind::Folder(_), Some(old)) = (&kind, self.child(parent, &name))
            && let Kind::Folder(_) = self.nodes[old.id].kind
        {
            self.nodes[old.id].meta = meta;
            self.name(parent, name, old.id);
            return Ok(());
        }
        self.nodes.push(Node { meta, kind });
        self.name(parent, name, self.nodes.len() - 1);
        Ok(())
    }

    /// Gives the node at `target` a second name.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), String> {
        let missing = || format!("it is a hard link to {}, which is not in the image", show(target));
        let wanted = split(target)?;
        let (name, folders) = wanted.split_last().ok_or_else(missing)?;
        let folder = self.walk(folders.to_vec())?.ok_or_else(missing)?;
        let node = self.child(folder.id, name).ok_or_else(missing)?;
        if let Kind::Folder(_) = self.nodes[node.id].kind {
            return Err(format!("it is a hard link to {}, which is a folder", show(target)));
        }
        self.memory = self.memory.saturating_add(ENTRY_BYTES + path.len() as u64);
        let (parent, own) = self.place(path)?.ok_or("the image's root must be a folder")?;
        self.name(parent, own, node.id);
        self.check_memory()
    }

    /// Removes what earlier layers put under this name.
    pub fn white_out(&mut self, folder: &[u8], name: &[u8]) -> Result<(), String> {
        check_name(name)?;
        if let Some(found) = self.walk(split(folder)?)? {
            self.drop_older(found.id, name);
        }
        Ok(())
    }

    /// Removes what earlier layers put into this folder.
    pub fn white_out_all_in(&mut self, folder: &[u8]) -> Result<(), String> {
        if let Some(found) = self.walk(split(folder)?)? {
            self.drop_older_in(found.id);
        }
        Ok(())
    }

    /// The node that a path leads to, through links, as a program inside the image would find it.
    #[cfg(feature = "author")]
    pub fn find(&self, path: &[u8]) -> Option<Found> {
        self.walk(split(path).ok()?).ok().flatten()
    }

    /// The names in a folder; none when it is no folder.
    pub fn entries(&self, id: Id) -> impl Iterator<Item = (&Vec<u8>, Id)> {
        let children = match &self.nodes[id].kind {
            Kind::Folder(children) => Some(children),
            _ => None,
        };
        children.into_iter().flatten().map(|(name, entry)| (name, entry.id))
    }

    /// Takes a name out of a folder.
    pub fn remove(&mut self, folder: Id, name: &[u8]) {
        if let Kind::Folder(children) = &mut self.nodes[folder].kind {
            children.remove(name);
        }
    }

    /// Makes a folder unless something has its name already.
    pub fn ensure_folder(&mut self, path: &[u8], mode: u32) -> Result<(), String> {
        let found = self.place(path)?;
        match found {
            Some((parent, name)) if self.child(parent, &name).is_none() => {
                self.put(path, Meta::of(mode), Kind::empty_folder())
            }
            _ => Ok(()),
        }
    }

    /// The folder that an entry goes into, made where it is missing, and the entry's name; none for the root itself.
    fn place(&mut self, path: &[u8]) -> Result<Option<(Id, Vec<u8>)>, String> {
        let mut names = split(path)?;
        let Some(name) = names.pop() else { return Ok(None) };
        let (id, depth) = self.walk_making(names)?;
        if depth >= DEPTH_MAX {
            return Err(format!("it lies in more than {DEPTH_MAX} folders"));
        }
        Ok(Some((id, name)))
    }

    fn walk(&self, names: Vec<Vec<u8>>) -> Result<Option<Found>, String> {
        let mut walk = Walk::new(names);
        while let Some(name) = walk.next() {
            match self.child(walk.here(), &name) {
                Some(entry) => walk.enter(&self.nodes[entry.id].kind, entry.id, name)?,
                None => return Ok(None),
            }
        }
        let id = walk.here();
        Ok(Some(Found { id, path: walk.names }))
    }

    fn walk_making(&mut self, names: Vec<Vec<u8>>) -> Result<(Id, usize), String> {
        let mut walk = Walk::new(names);
        while let Some(name) = walk.next() {
            let here = walk.here();
            let id = match self.child(here, &name) {
                Some(entry) => entry.id,
                None => {
                    check_name(&name)?;
                    self.memory = self.memory.saturating_add(ENTRY_BYTES + name.len() as u64);
                    self.check_memory()?;
                    self.nodes.push(Node { meta: Meta::of(FOLDER_MODE), kind: Kind::empty_folder() });
                    self.name(here, name.clone(), self.nodes.len() - 1);
                    self.nodes.len() - 1
                }
            };
            walk.enter(&self.nodes[id].kind, id, name)?;
            if !matches!(self.nodes[walk.here()].kind, Kind::Folder(_)) {
                return Err(format!("{} on its way is no folder", show(&walk.names.join(&b'/'))));
            }
        }
        Ok((walk.here(), walk.names.len()))
    }

    fn child(&self, folder: Id, name: &[u8]) -> Option<Entry> {
        match &self.nodes[folder].kind {
            Kind::Folder(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn name(&mut self, folder: Id, name: Vec<u8>, id: Id) {
        let layer = self.layer;
        if let Kind::Folder(children) = &mut self.nodes[folder].kind {
            children.insert(name, Entry { id, layer });
        }
    }

    /// A layer's whiteouts hide what lies below it, wherever in the layer they stand: what the layer itself brought stays.
    fn drop_older(&mut self, folder: Id, name: &[u8]) {
        let Some(entry) = self.child(folder, name) else { return };
        let is_folder = matches!(self.nodes[entry.id].kind, Kind::Folder(_));
        if is_folder {
            self.drop_older_in(entry.id);
        }
        let keeps = is_folder && self.entries(entry.id).next().is_some();
        if entry.layer < self.layer && !keeps {
            self.remove(folder, name);
        }
    }

    fn drop_older_in(&mut self, folder: Id) {
        let names: Vec<Vec<u8>> = self.entries(folder).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.drop_older(folder, &name);
        }
    }

    fn charge(&mut self, path: &[u8], meta: &Meta, kind: &Kind) -> Result<(), String> {
        let target = if let Kind::Symlink(target) = kind { target.len() } else { 0 };
        let xattrs: usize = meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = ENTRY_BYTES + (path.len() + target + xattrs) as u64;
        self.memory = self.memory.saturating_add(bytes);
        self.check_memory()
    }

    fn check_memory(&self) -> Result<(), String> {
        match self.memory > MEMORY_BYTES_MAX {
            true => Err("the image has more names and attributes than are held here".into()),
            false => Ok(()),
        }
    }
}

/// A path on its way through the tree; links are put in front of what is left of it.
struct Walk {
    ids: Vec<Id>,
    names: Vec<Vec<u8>>,
    left: VecDeque<Vec<u8>>,
    links: usize,
}

impl Walk {
    fn new(names: Vec<Vec<u8>>) -> Walk {
        Walk { ids: vec![ROOT], names: Vec::new(), left: names.into(), links: 0 }
    }

    fn here(&self) -> Id {
        self.ids.last().copied().unwrap_or(ROOT)
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        while let Some(name) = self.left.pop_front() {
            match &name[..] {
                b"" | b"." => {}
                b".." => {
                    // Above the image's root is the image's root.
                    self.names.pop();
                    self.ids.truncate(self.names.len() + 1);
                }
                _ => return Some(name),
            }
        }
        None
    }

    fn enter(&mut self, kind: &Kind, id: Id, name: Vec<u8>) -> Result<(), String> {
        let Kind::Symlink(target) = kind else {
            self.ids.push(id);
            self.names.push(name);
            return Ok(());
        };
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(format!("its path leads through more than {LINKS_MAX} symbolic links"));
        }
        if target.first() == Some(&b'/') {
            self.ids.truncate(1);
            self.names.clear();
        }
        for part in target.rsplit(|byte| *byte == b'/') {
            self.left.push_front(part.to_vec());
        }
        Ok(())
    }
}

/// A layer's path in its names. A layer that climbs or begins at the root is no honest one.
pub(super) fn split(path: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("its path has more than {PATH_BYTES_MAX} bytes"));
    }
    if path.first() == Some(&b'/') {
        return Err("its path is absolute".into());
    }
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.map(|name| check_name(name).map(|()| name.to_vec())).collect()
}

fn check_name(name: &[u8]) -> Result<(), String> {
    match name {
        b".." => Err("its path climbs by `..`".into()),
        b"" | b"." => Err("it has no name".into()),
        _ if name.contains(&0) || name.contains(&b'/') => Err("its name holds a zero byte or a slash".into()),
        _ if name.len() > NAME_BYTES_MAX => Err(format!("a name has more than {NAME_BYTES_MAX} bytes")),
        _ => Ok(()),
    }
}

/// A symbolic link may name whatever it likes, for it is only ever followed inside the image.
fn check_target(target: &[u8]) -> Result<(), String> {
    match target.is_empty() || target.len() >= PATH_BYTES_MAX || target.contains(&0) {
        true => Err("it is a symbolic link to nowhere".into()),
        false => Ok(()),
    }
}

/// A path for people, on one line.
pub(super) fn show(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).chars().take(200).collect();
    text.escape_debug().to_string()
}
