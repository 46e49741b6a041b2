//! Bytes at an offset: a block device, an image file, or a window of either.
//!
//! Not here: any format. Rule: an error is known before a call returns, and `flush` is never skipped.
//! `ioctl` below is the only file in Switchback that holds `unsafe` code, each block with its reason.

use std::io;
use std::sync::Arc;

mod aligned;
pub mod disk;
pub mod dm;
mod file;
mod ioctl;
mod lock;
mod memory;
mod stream;
pub mod watchdog;
mod window;

pub use aligned::AlignedBuffer;
pub use file::{Access, FileDevice};
pub use lock::DiskLock;
pub use memory::MemDevice;
pub use stream::DeviceStream;
pub use window::Window;

/// Random access to a fixed number of bytes. Offsets and lengths are bytes, of any alignment.
///
/// Implementations are used from several threads at once.
pub trait BlockDevice: Send + Sync {
    /// Fills `buffer` from `offset`. An error of kind `UnexpectedEof` when the range passes the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`; durable only after [`flush`](BlockDevice::flush). An error of kind
    /// `UnexpectedEof` when the range passes the end; then nothing is written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Returns only when everything written before is on the medium.
    fn flush(&self) -> io::Result<()>;
    /// Size in bytes.
    fn len(&self) -> u64;
    /// True when the device holds no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Logical sector size in bytes: 512 or 4096.
    fn sector_bytes(&self) -> u32;
    /// Makes a range read as zero, cheaply where the medium can (`BLKZEROOUT`, hole punch).
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Tells the medium that a range is no longer needed: what it reads as afterwards is unspecified. May do nothing.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes the following reads come from the medium, not from a cache of ours or the kernel's.
    fn drop_caches(&self) -> io::Result<()>;
    /// [`write_at`](BlockDevice::write_at) for much data that nobody reads again soon: past the kernel's memory where the
    /// medium allows it. Best with an [`AlignedBuffer`] at offsets of whole 4096 bytes; right with any.
    fn write_past_cache(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)
    }
    /// [`read_at`](BlockDevice::read_at) from the medium, whatever the kernel remembers of a range that was flushed before.
    fn read_past_cache(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, buffer)
    }
}

/// Forwards every call, so that a borrowed or shared device is a device as well.
macro_rules! forward {
    ($pointer:ty) => {
        impl<T: BlockDevice + ?Sized> BlockDevice for $pointer {
            fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
                (**self).read_at(offset, buffer)
            }
            fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
                (**self).write_at(offset, data)
            }
            fn flush(&self) -> io::Result<()> {
                (**self).flush()
            }
            fn len(&self) -> u64 {
                (**self).len()
            }
            fn sector_bytes(&self) -> u32 {
                (**self).sector_bytes()
            }
            fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
                (**self).zero(offset, len)
            }
            fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
                (**self).discard(offset, len)
            }
            fn drop_caches(&self) -> io::Result<()> {
                (**self).drop_caches()
            }
            fn write_past_cache(&self, offset: u64, data: &[u8]) -> io::Result<()> {
                (**self).write_past_cache(offset, data)
            }
            fn read_past_cache(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
                (**self).read_past_cache(offset, buffer)
            }
        }
    };
}
forward!(&T);
forward!(Arc<T>);

/// Refuses a range that passes the end of a device of `device_len` bytes.
fn check_range(offset: u64, len: u64, device_len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= device_len => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{len} bytes at {offset} pass the end of the device ({device_len} bytes)"),
        )),
    }
}

/// Zeros by plain writes, for media that know no better way.
fn write_zeros(device: &impl BlockDevice, offset: u64, len: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut done = 0;
    while done < len {
        let step = (len - done).min(ZEROS.len() as u64);
        device.write_at(offset + done, &ZEROS[..step as usize])?;
        done += step;
    }
    Ok(())
}
