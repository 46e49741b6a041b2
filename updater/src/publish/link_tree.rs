//! A second root folder by hard links: the same files under folders of its own, to build an image with a few other files.
//!
//! Not here: which files differ (`plain_modules`). Rule: the folder it is made of is only read. Nothing is written through
//! a link: a file that is to differ is made anew; and owners, modes and attributes are given to what was made here alone.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, mknod};
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr};
use walkdir::WalkDir;

use crate::file::FileError;

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of the kernel, in bytes.
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

/// A tree of links. It is removed when this is dropped.
#[derive(Debug)]
pub struct LinkTree {
    /// Each folder and what it is made of, outer ones first.
    folders: Vec<(PathBuf, PathBuf)>,
    /// Where files with several names lie that could not be linked, by device and inode.
    copied: HashMap<(u64, u64), PathBuf>,
    root: PathBuf,
    _work: tempfile::TempDir,
}

impl LinkTree {
    /// Links all of `folder` below `work`, which lies on the same file system if links are to be had; else copies.
    /// `instead` is asked for each file (path in `folder`, place here) and says whether it has made another one there.
    ///
    /// The folders are open to us until [`LinkTree::dress_folders`].
    pub fn make<E: From<FileError>>(
        folder: &Path,
        work: &Path,
        mut instead: impl FnMut(&Path, &Path) -> Result<bool, E>,
    ) -> Result<LinkTree, E> {
        let dir = tempfile::Builder::new().prefix(".links-").tempdir_in(work);
        let dir = dir.map_err(FileError::of("making a folder in", work))?;
        let root = dir.path().join("root");
        let own = fs::metadata(dir.path()).map_err(FileError::of("reading", dir.path()))?;
        let mut tree = LinkTree { folders: Vec::new(), copied: HashMap::new(), root, _work: dir };
        // What is built inside the folder it is built from is no part of it.
        let outside = |entry: &walkdir::DirEntry| {
            !entry.file_type().is_dir()
                || entry.metadata().is_ok_and(|meta| identity(&meta) != identity(&own))
        };
        for entry in WalkDir::new(folder).sort_by_file_name().into_iter().filter_entry(outside) {
            let entry = entry.map_err(|error| {
                let path = error.path().unwrap_or(folder).to_owned();
                FileError { doing: "reading", path, source: error.into() }
            })?;
            let from = entry.path();
            let name = from.strip_prefix(folder).unwrap_or(from);
            let to = if name.as_os_str().is_empty() { tree.root.clone() } else { tree.root.join(name) };
            if entry.file_type().is_dir() {
                fs::create_dir(&to).map_err(FileError::of("making", &to))?;
                tree.folders.push((from.to_owned(), to));
            } else if !instead(name, &to)? {
                tree.link(from, &to)?;
            }
        }
        Ok(tree)
    }

    /// The root of the tree.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Gives the folders what the originals have. Inner ones first: an outer one may close itself to us.
    pub fn dress_folders(&self) -> Result<(), FileError> {
        self.folders.iter().rev().try_for_each(|(from, to)| dress(from, to))
    }

    /// Links may not be had: another file system, a file of somebody else's, too many links.
    fn link(&mut self, from: &Path, to: &Path) -> Result<(), FileError> {
        if fs::hard_link(from, to).is_ok() {
            return Ok(());
        }
        let meta = fs::symlink_metadata(from).map_err(FileError::of("reading", from))?;
        if let Some(first) = self.copied.get(&identity(&meta)).filter(|_| meta.nlink() > 1) {
            return fs::hard_link(first, to).map_err(FileError::of("linking", to));
        }
        copy(from, &meta, to).map_err(FileError::of("copying", from))?;
        dress(from, to)?;
        self.copied.insert(identity(&meta), to.to_owned());
        Ok(())
    }
}

impl Drop for LinkTree {
    fn drop(&mut self) {
        // A folder that nobody may write into cannot be emptied.
        for (_, to) in &self.folders {
            let _gone_already = fs::set_permissions(to, Permissions::from_mode(0o700));
        }
    }
}

fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

fn copy(from: &Path, meta: &Metadata, to: &Path) -> io::Result<()> {
    let kind = meta.file_type();
    if kind.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if kind.is_file() {
        return fs::copy(from, to).map(drop);
    }
    let node = match () {
        () if kind.is_char_device() => SFlag::S_IFCHR,
        () if kind.is_block_device() => SFlag::S_IFBLK,
        () if kind.is_fifo() => SFlag::S_IFIFO,
        () => SFlag::S_IFSOCK,
    };
    Ok(mknod(to, node, Mode::from_bits_truncate(0o600), meta.rdev())?)
}

/// Gives `to`, which was made here, the owner, attributes and mode of `from`, in this order: a change of owner takes
/// setuid bits and capabilities away.
pub fn dress(from: &Path, to: &Path) -> Result<(), FileError> {
    let read = |path: &Path| fs::symlink_metadata(path).map_err(FileError::of("reading", path));
    let (meta, made) = (read(from)?, read(to)?);
    if (meta.uid(), meta.gid()) != (made.uid(), made.gid()) {
        lchown(to, Some(meta.uid()), Some(meta.gid())).map_err(FileError::of("changing the owner of", to))?;
    }
    dress_attributes(from, to).map_err(FileError::of("copying the attributes of", from))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = Permissions::from_mode(meta.mode() & 0o7777);
    fs::set_permissions(to, mode).map_err(FileError::of("changing the permissions of", to))
}

fn dress_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let (wanted, found) = (attributes(from)?, attributes(to)?);
    // A folder above may have left its own here.
    for name in found.difference(&wanted) {
        lremovexattr(to, name.as_os_str())?;
    }
    for name in &wanted {
        let value = attribute(from, name)?;
        if !found.contains(name) || attribute(to, name)? != value {
            lsetxattr(to, name.as_os_str(), &value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn attributes(path: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut list = vec![0; ATTRIBUTE_BYTES_MAX];
    let bytes = match llistxattr(path, &mut list[..]) {
        Ok(bytes) => bytes,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let names = list[..bytes].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| OsString::from_vec(name.to_vec())).collect())
}

fn attribute(path: &Path, name: &OsStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    let bytes = lgetxattr(path, name, &mut value[..])?;
    value.truncate(bytes);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Failed(#[expect(dead_code, reason = "printed when a test fails")] FileError);

    impl From<FileError> for Failed {
        fn from(error: FileError) -> Failed {
            Failed(error)
        }
    }

    #[test]
    fn all_is_the_same_in_the_links_but_the_file_that_is_made_anew_and_the_original_stays() {
        let work = tempfile::tempdir().unwrap();
        let folder = work.path().join("folder");
        fs::create_dir_all(folder.join("closed/inner")).unwrap();
        fs::write(folder.join("closed/file"), "as it is").unwrap();
        fs::write(folder.join("other"), "of before").unwrap();
        fs::hard_link(folder.join("other"), folder.join("closed/inner/again")).unwrap();
        symlink("/nowhere", folder.join("link")).unwrap();
        fs::set_permissions(folder.join("closed/file"), Permissions::from_mode(0o4711)).unwrap();
        fs::set_permissions(folder.join("closed"), Permissions::from_mode(0o1555)).unwrap();
        let tree = LinkTree::make(&folder, work.path(), |name, to| {
            let ours = name == Path::new("other");
            if ours {
                fs::write(to, "anew").unwrap();
            }
            Ok::<_, Failed>(ours)
        })
        .unwrap();
        tree.dress_folders().unwrap();
        let at = |name: &str| tree.path().join(name);
        assert_eq!(fs::read(at("other")).unwrap(), b"anew");
        assert_eq!(fs::read(folder.join("other")).unwrap(), b"of before");
        assert_eq!(fs::read(at("closed/inner/again")).unwrap(), b"of before");
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/nowhere"));
        for name in ["", "closed", "closed/inner", "closed/file", "link"] {
            let (one, other) = (folder.join(name), at(name));
            let (one, other) =
                (one.symlink_metadata().unwrap().mode(), other.symlink_metadata().unwrap().mode());
            assert_eq!(one, other, "{name}");
        }
        let links = tree.path().parent().unwrap().to_owned();
        drop(tree);
        assert!(!links.exists() && folder.join("closed/file").exists(), "what was linked stays");
        fs::set_permissions(folder.join("closed"), Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_folder_is_not_built_into_itself() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        let tree = LinkTree::make(folder.path(), folder.path(), |_, _| Ok::<_, Failed>(false)).unwrap();
        let names: Vec<_> =
            fs::read_dir(tree.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
    }

    #[test]
    fn what_cannot_be_linked_is_copied_with_all_that_belongs_to_it() {
        let work = tempfile::tempdir().unwrap();
        let (from, to) = (work.path().join("from"), work.path().join("to"));
        for (number, name) in ["file", "link", "pipe"].into_iter().enumerate() {
            let (from, to) = (from.with_extension(name), to.with_extension(name));
            match number {
                0 => fs::write(&from, "contents").unwrap(),
                1 => symlink("file", &from).unwrap(),
                _ => mknod(&from, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0).unwrap(),
            }
            if number != 1 {
                fs::set_permissions(&from, Permissions::from_mode(0o2750)).unwrap();
            }
            let meta = from.symlink_metadata().unwrap();
            copy(&from, &meta, &to).unwrap();
            dress(&from, &to).unwrap();
            assert_eq!(to.symlink_metadata().unwrap().mode(), meta.mode(), "{name}");
        }
        assert_eq!(fs::read(to.with_extension("file")).unwrap(), b"contents");
        assert_eq!(fs::read_link(to.with_extension("link")).unwrap(), Path::new("file"));
    }
}
