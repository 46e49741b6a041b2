//! A device whose reads move a progress bar and end when the person asks to stop.

use std::io;

use switchback_partitions::device::BlockDevice;

use crate::progress::Progress;

/// Passes everything on; counts what is read.
pub struct Watched<'a> {
    /// The device.
    pub device: &'a dyn BlockDevice,
    /// Who waits.
    pub progress: &'a dyn Progress,
}

impl Watched<'_> {
    fn read(&self, bytes: usize, read: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if self.progress.stopped() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped on request"));
        }
        read()?;
        self.progress.advance(bytes as u64);
        Ok(())
    }
}

impl BlockDevice for Watched<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read(buffer.len(), || self.device.read_at(offset, buffer))
    }
    fn read_past_cache(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read(buffer.len(), || self.device.read_past_cache(offset, buffer))
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device.write_at(offset, data)
    }
    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }
    fn len(&self) -> u64 {
        self.device.len()
    }
    fn sector_bytes(&self) -> u32 {
        self.device.sector_bytes()
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.zero(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.discard(offset, len)
    }
    fn drop_caches(&self) -> io::Result<()> {
        self.device.drop_caches()
    }
}
