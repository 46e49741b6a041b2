//! A tree, written as a fresh folder that `mkfs.erofs` can read.
//!
//! Not here: what the tree holds. Rule: every folder that is written into was made here, a moment ago, in a place that
//! nobody else can enter; so no path that is handed to the system leads through a link.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::{XattrFlags, lsetxattr};

use super::layer::Contents;
use super::tree::{Id, Kind, Meta, Node, Tree};
use crate::file::FileError;

/// Why a tree could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Something that only root may make, or keep.
    #[error(
        "while unpacking /{path}: {what}, which only root can keep; build as root, or begin the command with `fakeroot`"
    )]
    NeedsRoot {
        /// The path in the image.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// An extended attribute that the file system or the user may not have.
    #[error(
        "while unpacking /{path}: its attribute {name} cannot be kept; build as root (not in `fakeroot`), in an --output folder on a file system with extended attributes"
    )]
    Attribute {
        /// The path in the image.
        path: String,
        /// The attribute.
        name: String,
        /// The system's word.
        source: io::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Writes the tree into `folder`, which is empty, and moves the contents there.
pub(crate) fn write(tree: &Tree, contents: &Contents, folder: &Path) -> Result<(), WriteError> {
    // Not the system call: `fakeroot` answers the C library's question alone.
    let root = nix::unistd::geteuid().is_root();
    let mut writer = Writer { tree, contents, base: folder, root, written: BTreeMap::new() };
    writer.children(tree.root(), folder)?;
    writer.dress(tree.root(), folder)
}

struct Writer<'a> {
    tree: &'a Tree,
    contents: &'a Contents,
    base: &'a Path,
    root: bool,
    /// Where each node that is no folder lies: its further names are links to there.
    written: BTreeMap<Id, PathBuf>,
}

impl Writer<'_> {
    fn children(&mut self, node: &Node, at: &Path) -> Result<(), WriteError> {
        let Kind::Folder(children) = &node.kind else { return Ok(()) };
        for (name, entry) in children {
            self.one(entry.id, &at.join(std::ffi::OsStr::from_bytes(name)))?;
        }
        Ok(())
    }

    fn one(&mut self, id: Id, at: &Path) -> Result<(), WriteError> {
        let node = self.tree.node(id);
        if let Kind::Folder(_) = node.kind {
            fs::create_dir(at).map_err(FileError::of("making", at))?;
            self.children(node, at)?;
            // Last, as its own permissions may keep even us from writing into it.
            return self.dress(node, at);
        }
        if let Some(first) = self.written.get(&id) {
            return Ok(fs::hard_link(first, at).map_err(FileError::of("linking", at))?);
        }
        match &node.kind {
            Kind::File(number) => fs::rename(self.contents.path(*number), at),
            Kind::Symlink(target) => std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), at),
            Kind::CharDevice(major, minor) => {
                return self.device(node, id, at, SFlag::S_IFCHR, (*major, *minor));
            }
            Kind::BlockDevice(major, minor) => {
                return self.device(node, id, at, SFlag::S_IFBLK, (*major, *minor));
            }
            Kind::Fifo | Kind::Folder(_) => {
                mknod(at, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0).map_err(Into::into)
            }
        }
        .map_err(FileError::of("making", at))?;
        self.finish(node, id, at)
    }

    fn device(
        &mut self,
        node: &Node,
        id: Id,
        at: &Path,
        kind: SFlag,
        (major, minor): (u32, u32),
    ) -> Result<(), WriteError> {
        let number = makedev(u64::from(major), u64::from(minor));
        match mknod(at, kind, Mode::from_bits_truncate(0o600), number) {
            Ok(()) => self.finish(node, id, at),
            // Root in a user namespace may make none either.
            Err(nix::Error::EPERM) => Err(self.needs_root(at, "it is a device node")),
            Err(error) => Err(FileError::of("making", at)(error.into()).into()),
        }
    }

    fn finish(&mut self, node: &Node, id: Id, at: &Path) -> Result<(), WriteError> {
        self.dress(node, at)?;
        self.written.insert(id, at.to_owned());
        Ok(())
    }

    /// Owner, attributes, permissions, in this order: a change of owner takes setuid bits and capabilities away.
    fn dress(&self, node: &Node, at: &Path) -> Result<(), WriteError> {
        let Meta { mode, uid, gid, xattrs } = &node.meta;
        if self.root {
            let owned = std::os::unix::fs::lchown(at, Some(*uid), Some(*gid));
            // Root in a user namespace has only the owners that are mapped there.
            owned.map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => {
                    self.needs_root(at, "its owner is none that can be given here")
                }
                _ => FileError::of("changing the owner of", at)(error).into(),
            })?;
        } else if (*uid, *gid) != (0, 0) {
            return Err(self.needs_root(at, "it belongs to another user or group than root"));
        }
        for (name, value) in xattrs {
            let name = std::ffi::OsStr::from_bytes(name);
            lsetxattr(at, name, value, XattrFlags::empty()).map_err(|error| WriteError::Attribute {
                path: self.shown(at),
                name: name.to_string_lossy().into_owned(),
                source: error.into(),
            })?;
        }
        let needed = match node.kind {
            Kind::Symlink(_) => return Ok(()),
            Kind::Folder(_) => 0o500,
            Kind::File(_) => 0o400,
            _ => 0,
        };
        if !self.root && mode & needed != needed {
            return Err(self.needs_root(at, "its own owner may not read it"));
        }
        let permissions = Permissions::from_mode(*mode);
        Ok(fs::set_permissions(at, permissions).map_err(FileError::of("changing the permissions of", at))?)
    }

    fn needs_root(&self, at: &Path, what: &'static str) -> WriteError {
        WriteError::NeedsRoot { path: self.shown(at), what }
    }

    fn shown(&self, at: &Path) -> String {
        super::tree::show(at.strip_prefix(self.base).unwrap_or(at).as_os_str().as_bytes())
    }
}
