//! A whole disk and its partitions, opened the way their kind needs.
//!
//! Not here: what the partitions mean (`layout`). Rule: a partition that is mounted or held is refused, never shared.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::{major, minor};

use super::{Access, BlockDevice, DiskLock, FileDevice, Window};
use crate::layout::Extent;

/// A disk that can hand out its whole extent and single partitions. What a method does by default is right for a disk
/// that only this process can see.
pub trait Disk: Send + Sync {
    /// The whole disk, for the partition table. Shared with whoever has partitions of it open.
    fn whole(&self) -> io::Result<Arc<dyn BlockDevice>>;

    /// One partition for writing: an exclusive open on a real disk (refuses what is mounted or held), a window on an image.
    fn partition(&self, extent: &Extent) -> io::Result<Arc<dyn BlockDevice>>;

    /// The whole disk for one user alone: `ResourceBusy` while any partition of it is mounted or held.
    fn claim(&self) -> io::Result<Arc<dyn BlockDevice>> {
        self.whole()
    }

    /// Who uses a partition, in words for the operator: mount points and the names of devices on top of it.
    fn users(&self, _extent: &Extent) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// The lock to hold while the partition table changes.
    fn lock(&self) -> io::Result<DiskLock> {
        Ok(DiskLock::not_needed())
    }

    /// Tells the operating system that partitions came, went or moved.
    fn reread_partitions(&self) -> io::Result<()> {
        Ok(())
    }

    /// A file that other programs can open to reach a partition, and the byte in it at which the partition starts.
    fn path_of(&self, _extent: &Extent) -> io::Result<(PathBuf, u64)> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this disk has no path"))
    }
}

/// Any device taken as a disk: simulations and tests.
#[derive(Clone)]
pub struct PlainDisk(Arc<dyn BlockDevice>);

impl PlainDisk {
    /// The disk on `device`.
    pub fn new(device: Arc<dyn BlockDevice>) -> PlainDisk {
        PlainDisk(device)
    }
}

impl Disk for PlainDisk {
    fn whole(&self) -> io::Result<Arc<dyn BlockDevice>> {
        Ok(self.0.clone())
    }

    fn partition(&self, extent: &Extent) -> io::Result<Arc<dyn BlockDevice>> {
        Ok(Arc::new(Window::new(self.0.clone(), extent.offset, extent.len)?))
    }
}

/// A disk in a regular file.
pub struct ImageDisk {
    path: PathBuf,
    device: Arc<FileDevice>,
}

impl ImageDisk {
    /// Opens the image at `path` for reading and writing; its sectors are `sector_bytes` long (512 or 4096).
    pub fn open(path: impl AsRef<Path>, sector_bytes: u32) -> io::Result<ImageDisk> {
        let path = path.as_ref().to_owned();
        let device = Arc::new(FileDevice::open_image(&path, Access::ReadWrite, sector_bytes)?);
        if device.is_block_device() {
            let message = format!("{}: a block device, not an image file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(ImageDisk { path, device })
    }
}

impl Disk for ImageDisk {
    fn whole(&self) -> io::Result<Arc<dyn BlockDevice>> {
        Ok(self.device.clone())
    }

    fn partition(&self, extent: &Extent) -> io::Result<Arc<dyn BlockDevice>> {
        Ok(Arc::new(Window::new(self.device.clone(), extent.offset, extent.len)?))
    }

    fn lock(&self) -> io::Result<DiskLock> {
        DiskLock::acquire(&self.path)
    }

    fn path_of(&self, extent: &Extent) -> io::Result<(PathBuf, u64)> {
        Ok((self.path.clone(), extent.offset))
    }
}

/// A real disk: `/dev/vda`, `/dev/nvme0n1`, `/dev/mmcblk0`. Its partitions are found by what sysfs says of them, not by
/// guessing names.
#[derive(Debug)]
pub struct BlockDisk {
    node: PathBuf,
    sysfs: PathBuf,
}

impl BlockDisk {
    /// The disk whose whole-disk node is `path`. Refuses a partition's node.
    pub fn open(path: impl AsRef<Path>) -> io::Result<BlockDisk> {
        let path = path.as_ref();
        let metadata = fs::metadata(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        if !metadata.file_type().is_block_device() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: not a block device", path.display()),
            ));
        }
        let sysfs = sysfs_folder(major(metadata.rdev()), minor(metadata.rdev()))?;
        if sysfs.join("partition").exists() {
            let message = format!("{}: a partition, where a whole disk is expected", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(BlockDisk { node: device_node(&sysfs)?, sysfs })
    }

    /// The disk that the partition with this device number lies on, and the partition's number in the table.
    pub fn containing(major: u64, minor: u64) -> io::Result<(BlockDisk, u32)> {
        let partition = sysfs_folder(major, minor)?;
        let number = read_number(&partition.join("partition"))?;
        let number = u32::try_from(number).map_err(io::Error::other)?;
        let sysfs = partition.parent().map(Path::to_owned).unwrap_or_default();
        Ok((BlockDisk { node: device_node(&sysfs)?, sysfs }, number))
    }

    /// The whole-disk node.
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// The node of a partition. An error when the kernel does not know it, or knows it at another place than the table
    /// says: then the table changed and the kernel still uses the old one.
    pub fn partition_node(&self, extent: &Extent) -> io::Result<PathBuf> {
        device_node(&self.partition_folder(extent)?)
    }

    fn partition_folder(&self, extent: &Extent) -> io::Result<PathBuf> {
        let number = u64::from(extent.number);
        let mut found = None;
        for entry in fs::read_dir(&self.sysfs)? {
            let folder = entry?.path();
            let attribute = folder.join("partition");
            if attribute.exists() && read_number(&attribute)? == number {
                found = Some(folder);
                break;
            }
        }
        let Some(folder) = found else {
            let message = format!("{}: the kernel knows no partition {number}", self.node.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        };
        // sysfs counts in units of 512 bytes, whatever the sector size.
        let start = read_number(&folder.join("start"))?.saturating_mul(512);
        let len = read_number(&folder.join("size"))?.saturating_mul(512);
        if (start, len) != (extent.offset, extent.len) {
            return Err(io::Error::other(format!(
                "{}: the kernel has partition {number} at {start}, {len} bytes; the table says {}, {} bytes",
                self.node.display(),
                extent.offset,
                extent.len
            )));
        }
        Ok(folder)
    }
}

impl Disk for BlockDisk {
    fn whole(&self) -> io::Result<Arc<dyn BlockDevice>> {
        Ok(Arc::new(FileDevice::open(&self.node, Access::ReadWrite)?))
    }

    fn partition(&self, extent: &Extent) -> io::Result<Arc<dyn BlockDevice>> {
        let device = FileDevice::open_exclusive(self.partition_node(extent)?)?;
        if device.len() != extent.len {
            let message = format!("{}: {} bytes, not {}", device.path().display(), device.len(), extent.len);
            return Err(io::Error::other(message));
        }
        Ok(Arc::new(device))
    }

    fn claim(&self) -> io::Result<Arc<dyn BlockDevice>> {
        Ok(Arc::new(FileDevice::open_exclusive(&self.node)?))
    }

    fn users(&self, extent: &Extent) -> io::Result<Vec<String>> {
        let folder = self.partition_folder(extent)?;
        let mut users = mount_points(fs::read_to_string(folder.join("dev"))?.trim())?;
        for holder in fs::read_dir(folder.join("holders"))? {
            users.push(format!("/dev/{}", holder?.file_name().to_string_lossy()));
        }
        Ok(users)
    }

    fn lock(&self) -> io::Result<DiskLock> {
        DiskLock::acquire(&self.node)
    }

    fn reread_partitions(&self) -> io::Result<()> {
        FileDevice::open(&self.node, Access::Read)?.reread_partitions()
    }

    fn path_of(&self, extent: &Extent) -> io::Result<(PathBuf, u64)> {
        Ok((self.partition_node(extent)?, 0))
    }
}

fn mount_points(device_number: &str) -> io::Result<Vec<String>> {
    let mounts =
        procfs::process::Process::myself().and_then(|own| own.mountinfo()).map_err(io::Error::other)?;
    let ours = mounts.into_iter().filter(|mount| mount.majmin == device_number);
    Ok(ours.map(|mount| mount.mount_point.display().to_string()).collect())
}

fn sysfs_folder(major: u64, minor: u64) -> io::Result<PathBuf> {
    let link = format!("/sys/dev/block/{major}:{minor}");
    fs::canonicalize(&link).map_err(|error| io::Error::new(error.kind(), format!("{link}: {error}")))
}

/// The node that devtmpfs made for a sysfs folder. The name in `uevent` is the node's own; the folder's has `!` for `/`.
fn device_node(sysfs: &Path) -> io::Result<PathBuf> {
    let uevent = fs::read_to_string(sysfs.join("uevent"))?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| io::Error::other(format!("{}/uevent names no node", sysfs.display())))?;
    Ok(Path::new("/dev").join(name))
}

fn read_number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::other(format!("{}: `{}` is no number", path.display(), text.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn partitions_of_an_image_are_windows_with_a_path_for_other_programs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = ImageDisk::open(file.path(), 4096).unwrap();
        let extent = Extent { number: 3, offset: 8192, len: 4096, guid: Uuid::nil() };
        let partition = disk.partition(&extent).unwrap();
        assert_eq!((partition.len(), partition.sector_bytes()), (4096, 4096));
        partition.write_at(0, b"here").unwrap();
        let mut read = [0; 4];
        disk.whole().unwrap().read_at(8192, &mut read).unwrap();
        assert_eq!(&read, b"here");
        assert_eq!(disk.path_of(&extent).unwrap(), (file.path().to_owned(), 8192));
    }

    #[test]
    fn an_image_is_locked_against_a_second_updater() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = ImageDisk::open(file.path(), 512).unwrap();
        let _lock = disk.lock().unwrap();
        let other = std::fs::File::open(file.path()).unwrap();
        assert!(matches!(other.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
    }

    #[test]
    fn what_is_no_whole_disk_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(BlockDisk::open(file.path()).unwrap_err().to_string().contains("not a block device"));
        assert!(BlockDisk::open("/dev/null").is_err());
        assert!(
            BlockDisk::open("/dev/there-is-no-such-disk").unwrap_err().to_string().contains("no-such-disk")
        );
    }
}
