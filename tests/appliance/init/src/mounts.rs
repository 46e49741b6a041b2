//! What is mounted where, at the start and at the end.
//!
//! Not here: the root (the initramfs mounted it, behind dm-verity). Rule: what is mounted already stays; at the end no file system of a
//! disk is left as it would look after a power cut.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::say;

/// The state partition's place, and the name that `switchback provision` gave it.
const STATE: &str = "/var/lib/switchback";
const STATE_NAME: &str = "state";

/// A file system that the kernel makes.
struct Kernels {
    target: &'static str,
    kind: &'static str,
    options: &'static str,
    /// A machine without it is a whole one.
    optional: bool,
}

const fn kernels(target: &'static str, kind: &'static str, options: &'static str, optional: bool) -> Kernels {
    Kernels { target, kind, options, optional }
}

/// `/proc` first: it says what is mounted.
const KERNELS: [Kernels; 7] = [
    kernels("/proc", "proc", "", false),
    kernels("/sys", "sysfs", "", false),
    kernels("/dev", "devtmpfs", "mode=0755", false),
    kernels("/run", "tmpfs", "mode=0755", false),
    kernels("/tmp", "tmpfs", "mode=1777", false),
    kernels("/sys/fs/cgroup", "cgroup2", "nsdelegate", false),
    // Without UEFI there is none.
    kernels("/sys/firmware/efi/efivars", "efivarfs", "", true),
];

/// Mounts what is not mounted yet.
pub fn mount_missing() {
    for wanted in &KERNELS {
        if is_mounted(wanted.target) {
            continue;
        }
        let flags = match wanted.kind {
            "devtmpfs" => MsFlags::MS_NOSUID,
            "tmpfs" => MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            _ => MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        };
        let mounted = mount(Some(wanted.kind), wanted.target, Some(wanted.kind), flags, Some(wanted.options));
        if let (Err(errno), false) = (mounted, wanted.optional) {
            say(&format!("{} could not be mounted on {}: {errno}", wanted.kind, wanted.target));
        }
    }
    // Our initramfs has mounted it; another one may not have.
    if !is_mounted(STATE)
        && let Err(error) = mount_state()
    {
        say(&format!("{error:#}"));
    }
}

fn mount_state() -> Result<()> {
    let disks = std::fs::read_dir("/sys/class/block").context("while looking at the disks")?;
    let uevents = disks.flatten().filter_map(|disk| std::fs::read_to_string(disk.path().join("uevent")).ok());
    let device = uevents.filter_map(|uevent| device_of(&uevent, STATE_NAME)).next();
    let device = device.with_context(|| format!("no partition is called {STATE_NAME}"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(&device), STATE, Some("ext4"), flags, None::<&str>)
        .with_context(|| format!("while mounting {} on {STATE}", device.display()))
}

/// The device of the partition that this text of the kernel's describes, if it has that name.
fn device_of(uevent: &str, name: &str) -> Option<PathBuf> {
    let value = |key: &str| uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let device = Path::new("/dev").join(value("DEVNAME")?);
    (value("PARTNAME") == Some(name)).then_some(device)
}

fn is_mounted(target: &str) -> bool {
    mounted().iter().any(|(_, place)| place == Path::new(target))
}

fn mounted() -> Vec<(String, PathBuf)> {
    parse(&std::fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

/// Source and place of each mount, in the order in which they were made (`proc(5)`).
fn parse(mounts: &str) -> Vec<(String, PathBuf)> {
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((plain(fields.next()?), PathBuf::from(plain(fields.next()?))))
    });
    fields.collect()
}

/// The kernel writes blanks and backslashes in these fields as three octal digits.
fn plain(field: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(field.to_owned(), |field, (code, character)| field.replace(code, character))
}

/// Everything is written, and the file systems of disks are unmounted, or at least not written any more.
pub fn leave_disks() {
    nix::unistd::sync();
    for place in on_disks(mounted()) {
        if umount2(&place, MntFlags::empty()).is_ok() {
            continue;
        }
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        if let Err(errno) = mount(None::<&str>, &place, None::<&str>, read_only, None::<&str>) {
            say(&format!("{} could neither be unmounted nor made read-only: {errno}", place.display()));
        }
    }
    nix::unistd::sync();
}

/// Places of file systems of disks, the last mounted first. The root is read-only as it is.
fn on_disks(mounted: Vec<(String, PathBuf)>) -> Vec<PathBuf> {
    let disks = mounted.into_iter().rev().filter(|(source, _)| source.starts_with("/dev/"));
    disks.map(|(_, place)| place).filter(|place| place != Path::new("/")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "/dev/dm-0 / erofs ro 0 0\nproc /proc proc rw 0 0\n/dev/vda4 /var/lib/switchback ext4 rw 0 0\n\
                          tmpfs /run tmpfs rw 0 0\n/dev/vda1 /run/boot\\040files vfat rw 0 0\n";

    #[test]
    fn the_last_mounted_disk_is_left_first_and_the_root_stays() {
        assert_eq!(
            on_disks(parse(MOUNTS)),
            [PathBuf::from("/run/boot files"), PathBuf::from("/var/lib/switchback")]
        );
    }

    #[test]
    fn the_state_partition_is_known_by_its_name() {
        let uevent = "MAJOR=254\nMINOR=4\nDEVNAME=vda4\nDEVTYPE=partition\nPARTN=4\nPARTNAME=state\n";
        assert_eq!(device_of(uevent, "state"), Some(PathBuf::from("/dev/vda4")));
        assert_eq!(device_of(uevent, "stat"), None);
        assert_eq!(device_of("DEVNAME=vda\nDEVTYPE=disk\n", "state"), None);
    }
}
