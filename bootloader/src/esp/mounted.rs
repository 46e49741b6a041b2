//! A mounted boot partition: a directory.
//!
//! Not here: mounting it. Rule: after a rename the *directory* is fsynced. `sync(2)` flushes nothing after a rename
//! on vfat (seen on the wire: no FLUSH reaches the disk), so an armed entry could vanish in a power cut. The *file* is
//! fsynced before that: vfat writes a new name as that of an empty file, and its length only with the inode.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statvfs::statvfs;

use super::{EspDir, EspEntry, Space, check_count, check_limit, check_path, parent, unfinished_dir};

/// A boot partition that the kernel has mounted.
#[derive(Debug)]
pub struct MountedEsp {
    root: PathBuf,
}

impl MountedEsp {
    /// The file system mounted at `root`.
    pub fn new(root: impl AsRef<Path>) -> MountedEsp {
        MountedEsp { root: root.as_ref().to_path_buf() }
    }

    /// The mount point.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, path: &str) -> io::Result<PathBuf> {
        check_path(path)?;
        Ok(if path.is_empty() { self.root.clone() } else { self.root.join(path) })
    }

    /// Returns when new, changed and removed names in the directory are on the medium.
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.path(dir)?)?.sync_all()
    }
}

impl EspDir for MountedEsp {
    fn read_into(&self, path: &str, limit: u64, sink: &mut dyn io::Write) -> io::Result<u64> {
        let file = File::open(self.path(path)?)?;
        check_limit(path, file.metadata()?.len(), limit)?;
        // A file that grows while it is read still ends at the limit.
        io::copy(&mut io::Read::take(file, limit), sink)
    }

    fn file_bytes(&self, path: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.path(path)?) {
            Ok(found) => Ok(found.is_file().then_some(found.len())),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn list(&self, dir: &str) -> io::Result<Vec<EspEntry>> {
        let listing = match fs::read_dir(self.path(dir)?) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut entries = Vec::new();
        for entry in listing {
            let entry = entry?;
            // A name that is no UTF-8 is none of ours, and no path of ours can reach it.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let found = entry.metadata()?;
            let bytes = if found.is_dir() { 0 } else { found.len() };
            entries.push(EspEntry { name, is_dir: found.is_dir(), bytes });
            check_count(dir, entries.len())?;
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn write_tmp(&self, path: &str, source: &mut dyn io::Read) -> io::Result<u64> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(self.path(path)?)?;
        let bytes = io::copy(source, &mut file)?;
        file.sync_all()?;
        Ok(bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let renamed = self.path(to)?;
        fs::rename(self.path(from)?, &renamed)?;
        // Else a flushed folder can name an empty entry for half a minute, and a confirmed release is not started.
        File::open(renamed)?.sync_all()?;
        self.sync_dir(parent(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path)?)?;
        self.sync_dir(parent(path))
    }

    fn mkdir(&self, dir: &str) -> io::Result<()> {
        check_path(dir)?;
        let parts: Vec<&str> = dir.split('/').collect();
        for depth in 1..=parts.len() {
            let (parent, path) = (parts[..depth - 1].join("/"), parts[..depth].join("/"));
            if self.path(&path)?.is_dir() {
                continue;
            }
            let unfinished = unfinished_dir(self, &parent, &path)?;
            fs::create_dir(self.path(&unfinished)?)?;
            self.sync_dir(&unfinished)?;
            self.sync_dir(&parent)?;
            fs::rename(self.path(&unfinished)?, self.path(&path)?)?;
            // The new name leads to cluster 0, which is the root's, until the inode is written: a power cut behind the
            // parent's flush left a slot's folder that was the whole partition.
            self.sync_dir(&path)?;
            self.sync_dir(&parent)?;
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let stat = statvfs(&self.root)?;
        #[expect(clippy::useless_conversion, reason = "these are 32 bits wide on some targets")]
        let (cluster_bytes, blocks) = (u64::from(stat.fragment_size()), u64::from(stat.blocks_available()));
        Ok(Space { cluster_bytes, free_bytes: blocks.saturating_mul(cluster_bytes) })
    }

    fn drop_caches(&self, path: &str) -> io::Result<()> {
        let file = File::open(self.path(path)?)?;
        // Pages that are still dirty stay cached, and would then be compared with themselves.
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(())
    }
}
