//! A device whose writes are gathered into whole sectors and reach the medium when all of them are known.
//!
//! Not here: what they mean. Rule: each sector is written once, as it is in the end, and one that did not change not at
//! all. `fatfs` writes a name in pieces of a few bytes; written through, a power cut between two of them leaves half a name,
//! which no later install into that directory can read.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use switchback_partitions::device::BlockDevice;

/// So many sectors are gathered at most; more than any change of names needs. The content of a large file passes.
const GATHERED_MAX: usize = 2048;

/// What is gathered of a device's sectors.
pub(super) struct Sectors {
    device: Arc<dyn BlockDevice>,
    gathered: Mutex<Gathered>,
}

#[derive(Default)]
struct Gathered {
    sectors: HashMap<u64, Sector>,
    touches: u64,
}

struct Sector {
    before: Vec<u8>,
    now: Vec<u8>,
    touched: u64,
}

impl Sectors {
    /// Nothing is gathered yet.
    pub(super) fn new(device: Arc<dyn BlockDevice>) -> Sectors {
        Sectors { device, gathered: Mutex::default() }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what was gathered, in the order in which it came to be, and flushes. `in_order`: each sector is on the medium
    /// before the next is written, so that a rename never takes the old name before the new one is there.
    pub(super) fn commit(&self, in_order: bool) -> io::Result<()> {
        self.write_out(in_order)?;
        self.device.flush()
    }

    fn write_out(&self, in_order: bool) -> io::Result<()> {
        let sector_bytes = u64::from(self.device.sector_bytes());
        let mut changed: Vec<(u64, Sector)> = self.gathered().sectors.drain().collect();
        changed.retain(|(_, sector)| sector.now != sector.before);
        changed.sort_by_key(|(_, sector)| sector.touched);
        let last = changed.len().saturating_sub(1);
        for (count, (number, sector)) in changed.iter().enumerate() {
            self.device.write_at(number * sector_bytes, &sector.now)?;
            if in_order && count < last {
                self.device.flush()?;
            }
        }
        Ok(())
    }

    /// Calls `work` with the parts of a range: sector number, place within it, place within the range.
    fn parts(
        &self,
        offset: u64,
        len: usize,
        mut work: impl FnMut(u64, usize, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let sector_bytes = u64::from(self.device.sector_bytes());
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let skip = (at % sector_bytes) as usize;
            let count = (sector_bytes as usize - skip).min(len - done);
            work(at / sector_bytes, skip, done..done + count)?;
            done += count;
        }
        Ok(())
    }
}

impl BlockDevice for Sectors {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buffer)?;
        let gathered = self.gathered();
        if gathered.sectors.is_empty() {
            return Ok(());
        }
        self.parts(offset, buffer.len(), |number, skip, range| {
            if let Some(sector) = gathered.sectors.get(&number) {
                let count = range.len();
                buffer[range].copy_from_slice(&sector.now[skip..skip + count]);
            }
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let sector_bytes = self.device.sector_bytes() as usize;
        if self.gathered().sectors.len() + data.len() / sector_bytes > GATHERED_MAX {
            self.write_out(false)?;
        }
        let gathered = &mut *self.gathered();
        self.parts(offset, data.len(), |number, skip, range| {
            gathered.touches += 1;
            let sector = match gathered.sectors.entry(number) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let mut before = vec![0; sector_bytes];
                    self.device.read_at(number * sector_bytes as u64, &mut before)?;
                    entry.insert(Sector { now: before.clone(), before, touched: 0 })
                }
            };
            sector.touched = gathered.touches;
            sector.now[skip..skip + range.len()].copy_from_slice(&data[range]);
            Ok(())
        })
    }

    /// `fatfs` flushes whenever it drops a file, even one that was only read: nothing reaches the medium before `commit`.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> u64 {
        self.device.len()
    }

    fn sector_bytes(&self) -> u32 {
        self.device.sector_bytes()
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; len as usize])
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.discard(offset, len)
    }

    fn drop_caches(&self) -> io::Result<()> {
        self.device.drop_caches()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switchback_partitions::device::MemDevice;

    #[test]
    fn what_is_gathered_is_read_and_reaches_the_medium_with_the_commit() {
        let medium = Arc::new(MemDevice::new(4096, 512));
        let sectors = Sectors::new(medium.clone());
        sectors.write_at(500, b"across a border").unwrap();
        let mut read = [0; 15];
        sectors.read_at(500, &mut read).unwrap();
        assert_eq!(&read, b"across a border");
        assert_eq!(medium.to_bytes(), vec![0; 4096]);
        sectors.commit(true).unwrap();
        assert_eq!(&medium.to_bytes()[500..515], b"across a border");
    }

    #[test]
    fn a_range_behind_the_end_is_refused() {
        let sectors = Sectors::new(Arc::new(MemDevice::new(1024, 512)));
        assert!(sectors.write_at(1020, b"too long").is_err());
        assert!(sectors.read_at(1020, &mut [0; 8]).is_err());
    }
}
