//! A block device or an image file, opened.
//!
//! Not here: partitions of it (`disk`, `Window`). Rule: both kinds behave alike; what one kind lacks is done by plain writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};

use super::{BlockDevice, check_range, ioctl, write_zeros};

/// Whether writes are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only; a write fails with the kernel's error.
    Read,
    /// Reads and writes.
    ReadWrite,
}

/// An open block device or image file. Its size is the one it had when it was opened.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    path: PathBuf,
    kind: Kind,
    len: u64,
    sector_bytes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    BlockDevice,
    Image,
}

/// Sector size of an image file unless said otherwise.
const IMAGE_SECTOR_BYTES: u32 = 512;

impl FileDevice {
    /// Opens a block device, or an image file with 512-byte sectors.
    pub fn open(path: impl AsRef<Path>, access: Access) -> io::Result<FileDevice> {
        Self::open_with(path.as_ref(), access, 0, IMAGE_SECTOR_BYTES)
    }

    /// Opens an image file whose sectors are `sector_bytes` long: 512 or 4096. A block device knows its own.
    pub fn open_image(path: impl AsRef<Path>, access: Access, sector_bytes: u32) -> io::Result<FileDevice> {
        Self::open_with(path.as_ref(), access, 0, sector_bytes)
    }

    /// Opens a block device for writing as its only user: `ResourceBusy` while it, or a partition of it, is mounted or
    /// held by another driver. On an image file the kernel gives no such promise, and none is made.
    pub fn open_exclusive(path: impl AsRef<Path>) -> io::Result<FileDevice> {
        Self::open_with(path.as_ref(), Access::ReadWrite, nix::libc::O_EXCL, IMAGE_SECTOR_BYTES)
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True for a block device, false for an image file.
    pub fn is_block_device(&self) -> bool {
        self.kind == Kind::BlockDevice
    }

    /// Makes the kernel read the partition table again; does nothing on an image file. `ResourceBusy` when a partition
    /// is in use.
    pub fn reread_partitions(&self) -> io::Result<()> {
        match self.kind {
            Kind::BlockDevice => ioctl::reread_partitions(&self.file),
            Kind::Image => Ok(()),
        }
    }

    fn open_with(path: &Path, access: Access, flags: i32, sector_bytes: u32) -> io::Result<FileDevice> {
        let with_path =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = OpenOptions::new()
            .read(true)
            .write(access == Access::ReadWrite)
            .custom_flags(flags)
            .open(path)
            .map_err(with_path)?;
        let metadata = file.metadata().map_err(with_path)?;
        let (kind, len, sector_bytes) = if metadata.file_type().is_block_device() {
            let len = ioctl::block_device_bytes(&file).map_err(with_path)?;
            (Kind::BlockDevice, len, ioctl::block_device_sector_bytes(&file).map_err(with_path)?)
        } else if metadata.is_file() {
            (Kind::Image, metadata.len(), sector_bytes)
        } else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: neither a block device nor a regular file", path.display()),
            ));
        };
        if !matches!(sector_bytes, 512 | 4096) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{}: sectors of {sector_bytes} bytes; only 512 and 4096 are supported",
                    path.display()
                ),
            ));
        }
        Ok(FileDevice { file, path: path.to_owned(), kind, len, sector_bytes })
    }

    /// Zeros whole sectors by the medium's own means; false when it has none.
    fn zero_cheaply(&self, offset: u64, len: u64) -> io::Result<bool> {
        let result = match self.kind {
            Kind::BlockDevice => ioctl::zero_out(&self.file, offset, len),
            Kind::Image => self.punch_hole(offset, len),
        };
        supported(result)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(&self.file, flags, to_off(offset)?, to_off(len)?)?)
    }
}

impl BlockDevice for FileDevice {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        check_range(offset, buffer.len() as u64, self.len)?;
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(offset, data.len() as u64, self.len)?;
        self.file.write_all_at(data, offset)
    }

    /// `fsync` on a block device also empties the drive's own cache; on an image file the data suffices, its size is fixed.
    fn flush(&self) -> io::Result<()> {
        match self.kind {
            Kind::BlockDevice => self.file.sync_all(),
            Kind::Image => self.file.sync_data(),
        }
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(offset, len, self.len)?;
        let sector = u64::from(self.sector_bytes);
        let (start, end) = (offset.next_multiple_of(sector), (offset + len) / sector * sector);
        if start >= end || !self.zero_cheaply(start, end - start)? {
            return write_zeros(self, offset, len);
        }
        write_zeros(self, offset, start - offset)?;
        write_zeros(self, end, offset + len - end)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(offset, len, self.len)?;
        let sector = u64::from(self.sector_bytes);
        let (start, end) = (offset.next_multiple_of(sector), (offset + len) / sector * sector);
        if start >= end {
            return Ok(());
        }
        let result = match self.kind {
            Kind::BlockDevice => ioctl::discard(&self.file, start, end - start),
            Kind::Image => self.punch_hole(start, end - start),
        };
        supported(result).map(|_| ())
    }

    /// Written pages cannot be dropped, so this flushes first.
    fn drop_caches(&self) -> io::Result<()> {
        self.flush()?;
        if self.kind == Kind::BlockDevice {
            ioctl::flush_buffers(&self.file)?;
        }
        Ok(posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }
}

/// False when the medium does not know the operation at all; other errors stay errors.
fn supported(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [Errno::EOPNOTSUPP, Errno::ENOTTY, Errno::ENOSYS];
    error.raw_os_error().is_some_and(|code| unsupported.contains(&Errno::from_raw(code)))
}

fn to_off(value: u64) -> io::Result<nix::libc::off_t> {
    nix::libc::off_t::try_from(value).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "beyond off_t"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn image(len: u64) -> (tempfile::NamedTempFile, FileDevice) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        let device = FileDevice::open(file.path(), Access::ReadWrite).unwrap();
        (file, device)
    }

    #[test]
    fn what_is_written_is_read_back_after_the_caches_are_dropped() {
        let (_file, device) = image(1 << 20);
        device.write_at(12_345, b"switchback").unwrap();
        device.flush().unwrap();
        device.drop_caches().unwrap();
        let mut read = [0; 10];
        device.read_at(12_345, &mut read).unwrap();
        assert_eq!(&read, b"switchback");
    }

    #[test]
    fn a_range_past_the_end_is_refused_and_the_file_does_not_grow() {
        let (file, device) = image(4096);
        let cases: [(u64, usize); 4] = [(4096, 1), (4000, 97), (u64::MAX, 1), (u64::MAX - 3, 8)];
        for (offset, len) in cases {
            let data = vec![1; len];
            assert_eq!(device.write_at(offset, &data).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(
                device.read_at(offset, &mut data.clone()).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
            assert_eq!(device.zero(offset, len as u64).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
    }

    #[test]
    fn zeroing_an_unaligned_range_leaves_its_neighbours() {
        let (_file, device) = image(16 * 1024);
        device.write_at(0, &[0xAA; 16 * 1024]).unwrap();
        device.zero(1000, 9000).unwrap();
        let mut all = vec![0; 16 * 1024];
        device.read_at(0, &mut all).unwrap();
        assert!(all[..1000].iter().all(|byte| *byte == 0xAA));
        assert!(all[1000..10_000].iter().all(|byte| *byte == 0));
        assert!(all[10_000..].iter().all(|byte| *byte == 0xAA));
    }

    #[test]
    fn zeroing_an_image_gives_its_space_back() {
        let (file, device) = image(1 << 20);
        device.write_at(0, &vec![0xAA; 1 << 20]).unwrap();
        device.flush().unwrap();
        let before = file.as_file().metadata().unwrap().blocks();
        device.zero(0, 1 << 20).unwrap();
        assert!(file.as_file().metadata().unwrap().blocks() < before);
    }

    #[test]
    fn what_is_no_disk_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        assert!(FileDevice::open(folder.path(), Access::Read).is_err());
        assert!(FileDevice::open("/dev/null", Access::Read).unwrap_err().to_string().contains("/dev/null"));
        let (file, _device) = image(4096);
        assert!(FileDevice::open_image(file.path(), Access::Read, 520).is_err());
    }
}
