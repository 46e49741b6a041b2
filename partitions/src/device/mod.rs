//! Bytes at an offset: a block device, an image file, or a window of either.
//!
//! Not here: any format. Rule: an error is known before a call returns, and `flush` is never skipped.
//! This module is the only one in Switchback that may hold `unsafe` code (ioctls), each block with its reason.

use std::io;

/// Random access to a fixed number of bytes. Offsets and lengths are bytes.
///
/// Implementations are used from several threads at once.
pub trait BlockDevice: Send + Sync {
    /// Fills `buffer` from `offset`. An error of kind `UnexpectedEof` when the range passes the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`; durable only after [`flush`](BlockDevice::flush).
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
    /// Tells the medium that a range is no longer needed. May do nothing.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes the following reads come from the medium, not from a cache of ours or the kernel's.
    fn drop_caches(&self) -> io::Result<()>;
}

pub mod disk;
