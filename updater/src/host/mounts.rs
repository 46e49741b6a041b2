//! Where the ESP is mounted, or a mount of our own for the length of one command.
//!
//! Not here: what lies on the ESP. Rule: a mount that others made is used and left; one of ours is taken away again.

use std::fs;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use procfs::FromBufRead;
use procfs::process::MountInfos;

use super::sysfs::DeviceNumber;

/// A mounted file system: somebody else's, or ours until dropped.
#[derive(Debug)]
pub struct Mounted {
    dir: PathBuf,
    ours: bool,
}

impl Mounted {
    /// The folder its root is at.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Uses the first writable mount of `device` that shows its whole file system, else mounts `node` at `dir`.
    ///
    /// `table` is the mount table, as in `/proc/self/mountinfo`.
    pub fn find_or_mount(
        table: &[KnownMount],
        device: DeviceNumber,
        node: &Path,
        dir: &Path,
    ) -> io::Result<Mounted> {
        if let Some(known) =
            table.iter().find(|known| known.device == device && known.whole && known.writable)
        {
            return Ok(Mounted { dir: known.dir.clone(), ours: false });
        }
        fs::create_dir_all(dir)?;
        // `umask=0077`: passports and boot files are nobody else's business. No `sync`: the bootloader backend flushes
        // exactly where a cut would hurt. `nosymfollow` and the others: nothing on an ESP is ever executed or followed.
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some(node), dir, Some("vfat"), flags, Some("umask=0077,shortname=mixed,errors=remount-ro"))?;
        Ok(Mounted { dir: dir.to_owned(), ours: true })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        // Busy means that another command of ours found this mount and uses it; the next command finds it too.
        if let Err(error) = umount2(&self.dir, MntFlags::UMOUNT_NOFOLLOW) {
            tracing::warn!(dir = %self.dir.display(), %error, "the ESP stays mounted");
        }
    }
}

/// One line of the mount table, reduced to what matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownMount {
    /// The device beneath.
    pub device: DeviceNumber,
    /// Where it is.
    pub dir: PathBuf,
    /// True when the mount shows the file system from its root, false for a bind mount of a folder.
    pub whole: bool,
    /// True when neither the mount nor the file system is read-only.
    pub writable: bool,
}

/// The mount table of this process.
pub fn mount_table() -> io::Result<Vec<KnownMount>> {
    parse_mount_table(BufReader::new(fs::File::open("/proc/self/mountinfo")?))
}

/// Reads a table in the form of `/proc/self/mountinfo`.
pub fn parse_mount_table(text: impl io::BufRead) -> io::Result<Vec<KnownMount>> {
    let table = MountInfos::from_buf_read(text).map_err(io::Error::other)?;
    let known = table.into_iter().filter_map(|line| {
        let (major, minor) = line.majmin.split_once(':')?;
        Some(KnownMount {
            device: DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? },
            whole: line.root == "/",
            writable: !line.mount_options.contains_key("ro") && !line.super_options.contains_key("ro"),
            dir: PathBuf::from(unescape(&line.mount_point.to_string_lossy())),
        })
    });
    Ok(known.collect())
}

/// The kernel writes blank, tab, line end and backslash of a path as three octal digits.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
21 1 254:0 / / ro,relatime - erofs /dev/mapper/switchback-root ro
30 21 0:5 / /dev rw,nosuid - devtmpfs dev rw,mode=755
40 21 253:1 /EFI /boot/folder rw - vfat /dev/vda1 rw
41 21 253:1 / /snap\\040shot ro - vfat /dev/vda1 rw
42 21 253:1 / /efi\\040here rw,nosuid - vfat /dev/vda1 rw,fmask=0022
50 21 253:9 / /broken rw - vfat /dev/vda9 ro
";

    fn device(minor: u64) -> DeviceNumber {
        DeviceNumber { major: 253, minor }
    }

    #[test]
    fn an_existing_writable_mount_of_the_whole_esp_is_used_and_left() {
        let table = parse_mount_table(TABLE.as_bytes()).unwrap();
        let found =
            Mounted::find_or_mount(&table, device(1), Path::new("/none"), Path::new("/none")).unwrap();
        assert_eq!(found.dir(), Path::new("/efi here"), "not the bind mount, not the read-only one");
        assert!(!found.ours);
    }

    #[test]
    fn a_read_only_file_system_is_not_taken_for_writable() {
        let table = parse_mount_table(TABLE.as_bytes()).unwrap();
        let writable: Vec<_> = table.iter().filter(|m| m.device == device(9)).map(|m| m.writable).collect();
        assert_eq!(writable, [false]);
    }

    #[test]
    fn the_mount_table_of_this_machine_is_understood() {
        assert!(mount_table().unwrap().iter().any(|known| known.dir == Path::new("/")));
    }
}
