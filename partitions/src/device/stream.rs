//! A device as a stream with a position, for crates that want `Read + Write + Seek`.
//!
//! Not here: a cache. Rule: nothing is held back, so a dropped stream loses nothing; `flush` reaches the medium.

use std::io::{self, Read, Seek, SeekFrom, Write};

use super::BlockDevice;

/// A position in a device.
pub struct DeviceStream<D: BlockDevice> {
    device: D,
    position: u64,
}

impl<D: BlockDevice> DeviceStream<D> {
    /// A stream at the start of `device`.
    pub fn new(device: D) -> DeviceStream<D> {
        DeviceStream { device, position: 0 }
    }

    /// The device beneath.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// How many of `wanted` bytes lie before the end.
    fn within(&self, wanted: usize) -> usize {
        let left = self.device.len().saturating_sub(self.position);
        usize::try_from(left).map_or(wanted, |left| wanted.min(left))
    }
}

// The `gpt` crate asks for it.
impl<D: BlockDevice> std::fmt::Debug for DeviceStream<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceStream")
            .field("len", &self.device.len())
            .field("position", &self.position)
            .finish()
    }
}

impl<D: BlockDevice> Read for DeviceStream<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.within(buffer.len());
        if count == 0 {
            return Ok(0);
        }
        self.device.read_at(self.position, &mut buffer[..count])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl<D: BlockDevice> Write for DeviceStream<D> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.within(data.len());
        if count == 0 {
            return Ok(0);
        }
        self.device.write_at(self.position, &data[..count])?;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.device.flush()
    }
}

impl<D: BlockDevice> Seek for DeviceStream<D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.device.len().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a seek before the start, or beyond 64 bits")
        })?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemDevice;

    #[test]
    fn a_stream_writes_unaligned_and_stops_at_the_end() {
        let memory = MemDevice::new(1024, 512);
        let mut stream = DeviceStream::new(&memory);
        stream.seek(SeekFrom::End(-3)).unwrap();
        assert!(stream.write_all(b"abcd").is_err());
        stream.seek(SeekFrom::Start(5)).unwrap();
        stream.write_all(b"xyz").unwrap();
        assert_eq!(stream.stream_position().unwrap(), 8);
        assert!(stream.seek(SeekFrom::Current(-9)).is_err());
        assert_eq!(&memory.to_bytes()[5..8], b"xyz");
        assert_eq!(&memory.to_bytes()[1021..], b"abc");
        stream.seek(SeekFrom::Start(2000)).unwrap();
        assert_eq!(stream.read(&mut [0; 4]).unwrap(), 0);
    }
}
