//! A disk in memory, for tests and the simulated machine.
//!
//! Not here: power cuts (the simulators wrap it). Rule: behaves as a device, bounds included.

use std::io;
use std::sync::{PoisonError, RwLock};

use super::{BlockDevice, check_range};

/// A device whose medium is a vector.
#[derive(Debug)]
pub struct MemDevice {
    bytes: RwLock<Vec<u8>>,
    len: u64,
    sector_bytes: u32,
}

impl MemDevice {
    /// A device of `len` zero bytes with sectors of `sector_bytes`.
    pub fn new(len: usize, sector_bytes: u32) -> MemDevice {
        Self::from_bytes(vec![0; len], sector_bytes)
    }

    /// A device that holds `bytes`.
    pub fn from_bytes(bytes: Vec<u8>, sector_bytes: u32) -> MemDevice {
        MemDevice { len: bytes.len() as u64, bytes: RwLock::new(bytes), sector_bytes }
    }

    /// A copy of all that it holds.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl BlockDevice for MemDevice {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        check_range(offset, buffer.len() as u64, self.len)?;
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(offset, data.len() as u64, self.len)?;
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(offset, len, self.len)?;
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        bytes[offset as usize..][..len as usize].fill(0);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(offset, len, self.len)
    }

    fn drop_caches(&self) -> io::Result<()> {
        Ok(())
    }
}
