//! Mounts of the initramfs, and the switch from it to the root.
//!
//! Not here: finding and verifying the root. Rule: the folders of the initramfs are deleted only when nothing can fail
//! any more but the start of the root's own init, and only where `/` really is memory.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

use super::filesystem::{FileSystem, PROBE_BYTES, probe};
use super::{Doing, InitError, STATE_EARLY};
use crate::host::loader::EFIVARS;

/// Where the root is mounted before the switch.
const NEW_ROOT: &str = "/sysroot";

/// `ramfs`, which an initramfs is when the kernel has no tmpfs or a `root=` word (`linux/magic.h`).
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Mounts that follow to the root; all of these folders must exist there.
const MOVED: [&str; 4] = ["dev", "proc", "sys", "run"];

/// The state partition's place on the root.
const STATE_DIR: &str = "var/lib/switchback";

/// Refuses to go on unless `/` is memory: everything in it will be deleted.
pub fn require_initramfs() -> Result<(), InitError> {
    let kind = statfs("/").doing(|| "looking at /".into())?.filesystem_type();
    if kind == TMPFS_MAGIC || kind == RAMFS_MAGIC {
        return Ok(());
    }
    Err(InitError::NotAnInitramfs { found: format!("/ is no RAM file system ({kind:?})") })
}

/// `/dev`, `/proc`, `/sys`, `/run`, and the console as standard input, output and error.
pub fn mount_early() -> Result<(), InitError> {
    let no_exec = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_new("devtmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some("mode=0755"))?;
    mount_new("proc", "/proc", no_exec, None)?;
    mount_new("sysfs", "/sys", no_exec, None)?;
    mount_new("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))?;
    // A kernel without any console gives no device here; everything still goes to the kernel's log.
    if let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") {
        let _ = nix::unistd::dup2_stdin(&console);
        let _ = nix::unistd::dup2_stdout(&console);
        let _ = nix::unistd::dup2_stderr(&console);
    }
    Ok(())
}

/// EFI variables, where there are any; without them no loader is heard, and a start counts as a trial.
pub fn mount_efivars() {
    if Path::new(EFIVARS).exists() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let _ = mount(Some("efivarfs"), EFIVARS, Some("efivarfs"), flags, None::<&str>);
    }
}

/// The file system on a device, by its first bytes.
pub fn file_system_on(device: &Path) -> Result<FileSystem, InitError> {
    let mut start = vec![0; PROBE_BYTES];
    File::open(device)
        .and_then(|mut file| file.read_exact(&mut start))
        .doing(|| format!("reading {}", device.display()))?;
    probe(&start).ok_or_else(|| InitError::UnknownFileSystem { device: device.display().to_string() })
}

/// Mounts the verified device read-only at the new root.
pub fn mount_verified(device: &Path) -> Result<(), InitError> {
    let found = file_system_on(device)?;
    fs::create_dir_all(NEW_ROOT).doing(|| format!("making {NEW_ROOT}"))?;
    mount(Some(device), NEW_ROOT, Some(found.name), MsFlags::MS_RDONLY, found.read_only_options)
        .doing(|| format!("mounting {} ({}) as the root", device.display(), found.name))
}

/// Mounts the state partition for writing.
pub fn mount_state(device: &Path, dir: &Path) -> Result<(), InitError> {
    let found = file_system_on(device)?;
    fs::create_dir_all(dir).doing(|| format!("making {}", dir.display()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(device), dir, Some(found.name), flags, None::<&str>)
        .doing(|| format!("mounting {} ({}) as the state", device.display(), found.name))
}

/// An empty file that says something by being there.
pub fn write_flag(path: &Path) -> Result<(), InitError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, ""))
        .doing(|| format!("writing {}", path.display()))
}

/// Moves the mounts to the new root, frees the memory of the initramfs, and makes the new root `/`.
pub fn switch(state_mounted: bool) -> Result<(), InitError> {
    let root = Path::new(NEW_ROOT);
    let missing: Vec<_> =
        MOVED.iter().filter(|name| !root.join(name).is_dir()).map(|name| format!("/{name}")).collect();
    if !missing.is_empty() {
        return Err(InitError::RootIncomplete { missing: missing.join(", ") });
    }
    if state_mounted && root.join(STATE_DIR).is_dir() {
        move_mount(Path::new(STATE_EARLY), &root.join(STATE_DIR))?;
    } else if state_mounted {
        super::say(&format!("the root has no /{STATE_DIR}: the system mounts its state itself"));
        nix::mount::umount(STATE_EARLY).doing(|| format!("unmounting {STATE_EARLY}"))?;
    }
    if root.join("tmp").is_dir() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), &root.join("tmp"), Some("tmpfs"), flags, Some("mode=1777"))
            .doing(|| "mounting /tmp".into())?;
    }
    for name in MOVED {
        move_mount(&Path::new("/").join(name), &root.join(name))?;
    }
    nix::unistd::chdir(root).doing(|| format!("entering {NEW_ROOT}"))?;
    delete_memory(Path::new("/"));
    // Not `pivot_root`: the first root of a kernel cannot be put anywhere (`Documentation/filesystems/ramfs-rootfs-initramfs`).
    move_mount(Path::new("."), Path::new("/"))?;
    nix::unistd::chroot(".").and_then(|()| nix::unistd::chdir("/")).doing(|| "making the root /".into())
}

/// Becomes the root's init. Arguments that the kernel gave to this PID 1 (`single`, …) go on to it.
pub fn become_init(init: &Path, arguments: &[String]) -> Result<Infallible, InitError> {
    let doing = || format!("starting {}", init.display());
    let path = CString::new(init.as_os_str().as_bytes()).doing(doing)?;
    let given = arguments.iter().skip(1).map(|argument| CString::new(argument.as_str()));
    let given: Result<Vec<_>, _> = given.collect();
    let mut words = given.doing(doing)?;
    words.insert(0, path.clone());
    nix::unistd::execv(&path, &words).doing(doing)
}

fn mount_new(kind: &str, at: &str, flags: MsFlags, options: Option<&str>) -> Result<(), InitError> {
    fs::create_dir_all(at).doing(|| format!("making {at}"))?;
    mount(Some(kind), at, Some(kind), flags, options).doing(|| format!("mounting {at}"))
}

fn move_mount(from: &Path, to: &Path) -> Result<(), InitError> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .doing(|| format!("moving the mount {} to {}", from.display(), to.display()))
}

/// Deletes what is on the file system of `folder`, never across a mount. What cannot be deleted only costs memory.
fn delete_memory(folder: &Path) {
    let Ok(device) = fs::symlink_metadata(folder).map(|found| found.dev()) else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(found) = entry.metadata() else { continue };
        if found.dev() != device {
            continue;
        }
        if found.is_dir() {
            delete_memory(&entry.path());
            let _ = fs::remove_dir(entry.path());
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_on_a_disk_is_never_taken_for_an_initramfs() {
        // The machine that runs the tests may itself have a RAM file system as root: then there is nothing to refuse.
        let kind = statfs("/").unwrap().filesystem_type();
        if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
            assert!(require_initramfs().unwrap_err().to_string().contains("no RAM file system"));
        }
    }

    #[test]
    fn deleting_follows_no_link_and_leaves_the_folder_itself() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), "x").unwrap();
        fs::write(elsewhere.path().join("kept"), "x").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("a/link")).unwrap();
        delete_memory(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(elsewhere.path().join("kept").exists());
    }

    #[test]
    fn an_unknown_file_system_is_named_with_its_device() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        fs::write(&device, vec![0; PROBE_BYTES]).unwrap();
        let error = file_system_on(&device).unwrap_err().to_string();
        assert!(error.contains("device") && error.contains("erofs"), "{error}");
    }
}
