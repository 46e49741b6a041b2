//! Named volumes: what of a service outlives its slots, one folder for each schema of its data.
//!
//! Not here: which slot uses which (`host`). Rule: an image that calls its data a higher schema gets a copy and never the folder
//! that the old image wrote to, so that going back finds what was left there; a copy has its name only when all of it is on the
//! medium. A service writes in its volume while it is read: no link in it is followed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chownat, fchmod, fchown,
    futimens, mkdirat, openat, readlinkat, statat, symlinkat, utimensat,
};

use super::bundle::User;
use crate::config::service::Name;
use crate::file::FileError;

/// What stands behind the name of a volume that a failed or left image had raised.
pub const FAILED: &str = "failed";
/// Behind the name of a copy that is not whole.
const UNFINISHED: &str = ".new";
/// The deepest folder that is copied: a service must not exhaust this process by nesting.
const DEPTH_MAX: usize = 64;

/// All volumes of a machine.
#[derive(Debug, Clone)]
pub struct Volumes {
    folder: PathBuf,
}

impl Volumes {
    /// The volumes of a machine whose data is in `data`.
    pub fn of(data: &Path) -> Volumes {
        Volumes { folder: data.join("volumes") }
    }

    /// Makes the folder of all volumes.
    pub fn prepare(&self) -> Result<(), FileError> {
        fs::create_dir_all(&self.folder).map_err(FileError::of("making", &self.folder))
    }

    /// Where a volume of this schema lies: `NAME`, or `NAME@SCHEMA` from the first on.
    pub fn path(&self, name: &Name, schema: u32) -> PathBuf {
        match schema {
            0 => self.folder.join(name.as_str()),
            _ => self.folder.join(format!("{name}@{schema}")),
        }
    }

    /// The volume is there afterwards. Its first user owns it; later ones find it as it was left.
    pub fn make(&self, name: &Name, schema: u32, User { uid, gid }: User) -> Result<(), FileError> {
        let folder = self.path(name, schema);
        if folder.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&folder).map_err(FileError::of("making", &folder))?;
        let owned = std::os::unix::fs::chown(&folder, Some(uid), Some(gid));
        owned.map_err(FileError::of("changing the owner of", &folder))
    }

    /// A new copy of schema `from` is what schema `to` is afterwards; what was there under that name is set aside. False where there
    /// is nothing to copy.
    pub fn raise(&self, name: &Name, from: u32, to: u32) -> Result<bool, FileError> {
        self.set_aside(name, to)?;
        let (old, new) = (self.path(name, from), self.path(name, to));
        if !old.is_dir() {
            return Ok(false);
        }
        let unfinished = self.folder.join(format!("{name}@{to}{UNFINISHED}"));
        remove(&unfinished)?;
        let copied = copy(&old, &unfinished).map_err(FileError::of("copying", &old));
        if copied.is_err() {
            // A disk that the copy filled must not stay full.
            let _ = remove(&unfinished);
        }
        copied?;
        fs::rename(&unfinished, &new).map_err(FileError::of("renaming", &unfinished))?;
        self.sync().map(|()| true)
    }

    /// What no image may use again is kept as `NAME@failed`, in place of what was kept before; nothing there is no error.
    pub fn set_aside(&self, name: &Name, schema: u32) -> Result<(), FileError> {
        let folder = self.path(name, schema);
        if !folder.is_dir() {
            return Ok(());
        }
        let kept = self.failed(name);
        remove(&kept)?;
        fs::rename(&folder, &kept).map_err(FileError::of("renaming", &folder))?;
        self.sync()
    }

    /// Where the copy of a failed image lies, if there is one.
    pub fn failed(&self, name: &Name) -> PathBuf {
        self.folder.join(format!("{name}@{FAILED}"))
    }

    /// Removes what a volume was in schemas that no slot uses any more. What a failed image left stays.
    pub fn keep_only(&self, name: &Name, schemas: &[u32]) -> Result<(), FileError> {
        let list = || fs::read_dir(&self.folder)?.collect::<io::Result<Vec<_>>>();
        for entry in list().map_err(FileError::of("listing", &self.folder))? {
            let found = entry.file_name();
            let found = found.to_string_lossy();
            let schema = match found.strip_prefix(name.as_str()) {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix('@').and_then(|number| number.parse().ok()),
                None => None,
            };
            if schema.is_some_and(|schema| !schemas.contains(&schema)) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), FileError> {
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(FileError::of("flushing", &self.folder))
    }
}

fn remove(folder: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(FileError::of("removing", folder)),
    }
}

/// A copy with owners, modes, times and symbolic links, on the medium when it returns. Where the file system can, it shares the
/// blocks. Sockets, pipes and devices are left out: nobody is at their other end.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |path| rustix::fs::open(path, flags, Mode::empty());
    let (from, to) = (open(from)?, open(to)?);
    copy_folder(from.as_fd(), to.as_fd(), 0)?;
    Ok(rustix::fs::syncfs(&to)?)
}

fn copy_folder(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other(format!("folders lie more than {DEPTH_MAX} deep in it")));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        match statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => copy_one(from, to, name, &stat, depth)?,
            // The service that goes on meanwhile has removed it.
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    like(to, &rustix::fs::fstat(from)?)
}

fn copy_one(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
    depth: usize,
) -> io::Result<()> {
    let open = |flags| -> io::Result<OwnedFd> {
        Ok(openat(from, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let folder = open(OFlags::RDONLY | OFlags::DIRECTORY)?;
            mkdirat(to, name, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = openat(to, name, flags, Mode::empty())?;
            copy_folder(folder.as_fd(), made.as_fd(), depth + 1)
        }
        FileType::RegularFile => {
            // Not blocking: a pipe may have taken the file's name since it was looked at.
            let mut old = File::from(open(OFlags::RDONLY | OFlags::NONBLOCK)?);
            let stat = rustix::fs::fstat(&old)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Ok(());
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut new = File::from(openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
            // By `copy_file_range`, which shares blocks where it can.
            io::copy(&mut old, &mut new)?;
            like(new.as_fd(), &stat)
        }
        FileType::Symlink => {
            symlinkat(readlinkat(from, name, Vec::new())?.as_c_str(), to, name)?;
            let (uid, gid) = owner(stat);
            chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
        }
        _ => Ok(()),
    }
}

/// Owner, mode and times, in this order: the kernel takes set-user-ID bits away with a change of the owner.
fn like(file: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    fchown(file, Some(uid), Some(gid))?;
    fchmod(file, Mode::from_raw_mode(stat.st_mode))?;
    Ok(futimens(file, &times(stat))?)
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

fn times(stat: &Stat) -> Timestamps {
    let time = |secs: i64, nanos: u64| Timespec { tv_sec: secs, tv_nsec: i64::try_from(nanos).unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn scene() -> (tempfile::TempDir, Volumes, Name) {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::of(dir.path());
        volumes.prepare().unwrap();
        (dir, volumes, "leases".parse().unwrap())
    }

    fn me() -> User {
        User { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() }
    }

    #[test]
    fn a_raised_volume_is_a_copy_and_the_old_one_stays_as_it_is() {
        let (dir, volumes, name) = scene();
        volumes.make(&name, 0, me()).unwrap();
        let old = volumes.path(&name, 0);
        fs::write(dir.path().join("secret"), "not the service's").unwrap();
        fs::create_dir(old.join("d")).unwrap();
        fs::write(old.join("d/f"), "data").unwrap();
        fs::set_permissions(old.join("d/f"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(old.join("d"), fs::Permissions::from_mode(0o2750)).unwrap();
        symlink("../../secret", old.join("link")).unwrap();
        nix::unistd::mkfifo(&old.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let then = fs::metadata(old.join("d/f")).unwrap().mtime_nsec();
        assert!(volumes.raise(&name, 0, 2).unwrap());
        let new = volumes.path(&name, 2);
        assert!(new.ends_with("leases@2"), "{new:?}");
        let copied = fs::metadata(new.join("d/f")).unwrap();
        assert_eq!((copied.mode() & 0o7777, copied.mtime_nsec()), (0o640, then));
        assert_eq!(fs::metadata(new.join("d")).unwrap().mode() & 0o7777, 0o2750);
        assert_eq!(
            fs::read_link(new.join("link")).unwrap(),
            Path::new("../../secret"),
            "a link stays a link"
        );
        assert!(!new.join("pipe").exists());
        fs::write(new.join("d/f"), "raised").unwrap();
        assert_eq!(fs::read_to_string(old.join("d/f")).unwrap(), "data");
        assert!(!volumes.raise(&"other".parse().unwrap(), 0, 1).unwrap(), "nothing to copy");
    }

    #[test]
    fn what_an_interruption_or_a_failed_image_left_is_neither_used_nor_lost() {
        let (_dir, volumes, name) = scene();
        volumes.make(&name, 1, me()).unwrap();
        fs::write(volumes.path(&name, 1).join("f"), "good").unwrap();
        let unfinished = volumes.folder.join("leases@2.new");
        fs::create_dir(&unfinished).unwrap();
        fs::write(unfinished.join("half"), "").unwrap();
        volumes.raise(&name, 1, 2).unwrap();
        assert!(!volumes.path(&name, 2).join("half").exists() && !unfinished.exists());
        fs::write(volumes.path(&name, 2).join("f"), "spoilt").unwrap();
        // Cut off there, the next try begins with what serves, not with what the failed one made of it.
        volumes.raise(&name, 1, 2).unwrap();
        assert_eq!(fs::read_to_string(volumes.path(&name, 2).join("f")).unwrap(), "good");
        assert_eq!(fs::read_to_string(volumes.failed(&name).join("f")).unwrap(), "spoilt");
        volumes.set_aside(&name, 2).unwrap();
        volumes.set_aside(&name, 2).unwrap();
        assert_eq!(
            fs::read_to_string(volumes.failed(&name).join("f")).unwrap(),
            "good",
            "the newest is kept"
        );
    }

    #[test]
    fn schemas_that_no_slot_uses_go_and_others_volumes_stay() {
        let (_dir, volumes, name) = scene();
        for schema in [0, 1, 2, 12] {
            volumes.make(&name, schema, me()).unwrap();
        }
        volumes.make(&"leases-2".parse().unwrap(), 0, me()).unwrap();
        fs::create_dir(volumes.failed(&name)).unwrap();
        volumes.keep_only(&name, &[1, 2]).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&volumes.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["leases-2", "leases@1", "leases@2", "leases@failed"]);
    }

    #[test]
    fn a_volume_is_not_copied_deeper_than_is_safe_and_leaves_nothing_behind() {
        let (_dir, volumes, name) = scene();
        volumes.make(&name, 0, me()).unwrap();
        fs::create_dir_all(volumes.path(&name, 0).join("d/".repeat(DEPTH_MAX + 2))).unwrap();
        let error = crate::file::tests::chain(&volumes.raise(&name, 0, 1).unwrap_err());
        assert!(error.contains("64 deep"), "{error}");
        assert!(!volumes.path(&name, 1).exists() && !volumes.folder.join("leases@1.new").exists());
    }
}
