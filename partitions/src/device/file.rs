//! A block device or an image file, opened.
//!
//! Not here: partitions of it (`disk`, `Window`). Rule: both kinds behave alike; what one kind lacks is done by plain writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};

use super::aligned::ALIGNMENT;
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
    /// The same file without the kernel's cache; none where it has to have one.
    direct: OnceLock<Option<File>>,
    /// The medium refused a direct access that should have been right: no more of them.
    refused: AtomicBool,
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
        let (direct, refused) = (OnceLock::new(), AtomicBool::new(false));
        Ok(FileDevice { file, direct, refused, path: path.to_owned(), kind, len, sector_bytes })
    }

    /// The file without the kernel's cache, for bytes at `address`.
    fn direct(&self, address: usize, offset: u64, len: usize) -> Option<&File> {
        let aligned = [address as u64, offset, len as u64].iter().all(|at| at % ALIGNMENT as u64 == 0);
        if !aligned || self.refused.load(Ordering::Relaxed) {
            return None;
        }
        // Opened anew through the descriptor, for a path may name another file by now. Where there is no /proc, or the file
        // system knows no direct access (tmpfs before Linux 6.6), the cache serves.
        let open = || {
            let itself = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let flags = nix::libc::O_DIRECT;
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(itself).ok()
        };
        self.direct.get_or_init(open).as_ref()
    }

    /// Whether the medium took `result` for an access that it does not know; then it is not asked so again.
    fn refuses(&self, result: &io::Result<()>) -> bool {
        let refuses = matches!(result, Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL));
        if refuses {
            self.refused.store(true, Ordering::Relaxed);
        }
        refuses
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

    fn write_past_cache(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(offset, data.len() as u64, self.len)?;
        if let Some(direct) = self.direct(data.as_ptr().addr(), offset, data.len()) {
            let written = direct.write_all_at(data, offset);
            if !self.refuses(&written) {
                return written;
            }
        }
        self.file.write_all_at(data, offset)
    }

    fn read_past_cache(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        check_range(offset, buffer.len() as u64, self.len)?;
        if let Some(direct) = self.direct(buffer.as_ptr().addr(), offset, buffer.len()) {
            let read = direct.read_exact_at(buffer, offset);
            if !self.refuses(&read) {
                return read;
            }
        }
        let (start, len) = (to_off(offset)?, to_off(buffer.len() as u64)?);
        posix_fadvise(&self.file, start, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        self.file.read_exact_at(buffer, offset)
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
    use crate::device::AlignedBuffer;
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
    fn past_the_cache_and_through_it_the_bytes_are_the_same() {
        let (_file, device) = image(1 << 20);
        device.write_at(0, &[0xAA; 1 << 20]).unwrap();
        let mut buffer = AlignedBuffer::new(8192);
        buffer.fill(0x11);
        // Aligned, at an odd offset, of an odd length, from an odd address: only the first can go past the cache.
        device.write_past_cache(4096, &buffer).unwrap();
        device.write_past_cache(20_001, &buffer[..512]).unwrap();
        device.write_past_cache(40_960, &buffer[1..4097]).unwrap();
        device.write_past_cache(65_536, &buffer[..1000]).unwrap();
        device.flush().unwrap();
        let mut expected = vec![0xAA; 1 << 20];
        for (offset, len) in [(4096, 8192), (20_001, 512), (40_960, 4096), (65_536, 1000)] {
            expected[offset..][..len].fill(0x11);
        }
        let mut read = vec![0; 1 << 20];
        device.read_at(0, &mut read).unwrap();
        assert!(read == expected);
        let mut aligned = AlignedBuffer::new(1 << 20);
        device.read_past_cache(0, &mut aligned).unwrap();
        assert!(*aligned == *expected);
        device.read_past_cache(3, &mut read[..70_000]).unwrap();
        assert!(read[..70_000] == expected[3..70_003]);
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
            assert!(device.write_past_cache(offset, &data).is_err());
            assert!(device.read_past_cache(offset, &mut data.clone()).is_err());
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
