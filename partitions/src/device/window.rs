//! A part of a device, as a device of its own.
//!
//! Not here: who may open which part (`disk`). Rule: no byte outside the window is ever reached.

use std::io;
use std::sync::Arc;

use super::{BlockDevice, check_range};

/// `len` bytes of a device from `offset`.
#[derive(Clone)]
pub struct Window {
    device: Arc<dyn BlockDevice>,
    offset: u64,
    len: u64,
}

impl Window {
    /// The window. An error of kind `UnexpectedEof` when it passes the end of the device.
    pub fn new(device: Arc<dyn BlockDevice>, offset: u64, len: u64) -> io::Result<Window> {
        check_range(offset, len, device.len())?;
        Ok(Window { device, offset, len })
    }
}

impl BlockDevice for Window {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        check_range(offset, buffer.len() as u64, self.len)?;
        self.device.read_at(self.offset + offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(offset, data.len() as u64, self.len)?;
        self.device.write_at(self.offset + offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn sector_bytes(&self) -> u32 {
        self.device.sector_bytes()
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(offset, len, self.len)?;
        self.device.zero(self.offset + offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(offset, len, self.len)?;
        self.device.discard(self.offset + offset, len)
    }

    fn drop_caches(&self) -> io::Result<()> {
        self.device.drop_caches()
    }

    fn write_past_cache(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(offset, data.len() as u64, self.len)?;
        self.device.write_past_cache(self.offset + offset, data)
    }

    fn read_past_cache(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        check_range(offset, buffer.len() as u64, self.len)?;
        self.device.read_past_cache(self.offset + offset, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemDevice;

    #[test]
    fn a_window_reaches_its_own_bytes_and_no_other() {
        let memory = Arc::new(MemDevice::from_bytes(vec![7; 4096], 512));
        let window = Window::new(memory.clone(), 1024, 1024).unwrap();
        window.write_at(0, &[1; 1024]).unwrap();
        window.zero(512, 512).unwrap();
        for (offset, len) in [(0, 1025), (1024, 1), (u64::MAX, 1), (u64::MAX - 1023, 1024)] {
            assert!(window.write_at(offset, &vec![9; len]).is_err(), "{len} bytes at {offset}");
            assert!(window.write_past_cache(offset, &vec![9; len]).is_err());
            assert!(window.read_past_cache(offset, &mut vec![9; len]).is_err());
            assert!(window.zero(offset, len as u64).is_err());
            assert!(window.discard(offset, len as u64).is_err());
        }
        let expected = [[7; 1024].as_slice(), &[1; 512], &[0; 512], &[7; 2048]].concat();
        assert_eq!(memory.to_bytes(), expected);
        assert!(Window::new(memory, 4096, 1).is_err());
    }
}
