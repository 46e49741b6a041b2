//! A device whose writes are gathered into whole sectors and reach the medium when all of them are known.
//!
//! Not here: what they mean, but for one thing: which names a call takes away. Rule: a sector that did not change is not
//! written, and a power cut between two sectors leaves the old name, the new one or both, whatever `fatfs` writes first. It writes
//! a name in pieces of a few bytes, and a rename takes the old name away before it writes the new one into the same
//! place: where the names lie across two sectors, a cut left neither.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use switchback_partitions::device::BlockDevice;

/// So many sectors are gathered at most; more than any change of names needs. The content of a large file passes.
const GATHERED_MAX: usize = 2048;

/// One name, or a part of a long one, in a directory, in bytes (Microsoft FAT specification, 6).
pub(super) const NAME_BYTES: usize = 32;
/// The first byte of one that is gone (6.1).
const GONE: u8 = 0xe5;

/// In which order sectors reach the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// In any: nothing has its final name yet.
    Any,
    /// One after the other, and what takes a name away comes last.
    NewFirst,
    /// One after the other, and what takes a name away comes first: a name whose clusters are free already would share
    /// them with the next file.
    GoneFirst,
}

/// What is gathered of a device's sectors.
pub(super) struct Sectors {
    device: Arc<dyn BlockDevice>,
    order: Order,
    gathered: Mutex<Gathered>,
}

#[derive(Default)]
struct Gathered {
    sectors: HashMap<u64, Sector>,
    touches: u64,
    /// Where the parts of names lie that are to go. Reads do not know yet, so that nothing new takes their place.
    gone: Vec<u64>,
}

struct Sector {
    before: Vec<u8>,
    now: Vec<u8>,
    touched: u64,
    /// It was filled with zeros: a directory grows by it.
    blanked: bool,
}

impl Sectors {
    /// Nothing is gathered yet.
    pub(super) fn new(device: Arc<dyn BlockDevice>, order: Order) -> Sectors {
        Sectors { device, order, gathered: Mutex::default() }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what was gathered, and flushes: once, or in an order after each sector.
    pub(super) fn commit(&self) -> io::Result<()> {
        self.write_out()?;
        self.device.flush()
    }

    fn write_out(&self) -> io::Result<()> {
        let sector_bytes = u64::from(self.device.sector_bytes());
        let gathered = std::mem::take(&mut *self.gathered());
        let steps = gathered.steps(self.order, sector_bytes);
        for (count, step) in steps.iter().enumerate() {
            self.device.write_at(step.number * sector_bytes, &step.content)?;
            if step.alone && count + 1 < steps.len() {
                self.device.flush()?;
            }
        }
        Ok(())
    }

    /// True when these bytes do nothing but take a name away, or a part of one. An entry of the allocation table looks
    /// otherwise: where it changes at its first byte, it changes at others too.
    fn takes_a_name(&self, offset: u64, data: &[u8]) -> io::Result<bool> {
        let may = self.order != Order::Any
            && offset.is_multiple_of(NAME_BYTES as u64)
            && data.len() <= NAME_BYTES
            && data.first() == Some(&GONE);
        if !may {
            return Ok(false);
        }
        let mut there = [0; NAME_BYTES];
        let there = &mut there[..data.len()];
        self.read_at(offset, there)?;
        Ok(![0, GONE].contains(&there[0]) && there[1..] == data[1..])
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

impl Gathered {
    fn sector(&mut self, device: &dyn BlockDevice, number: u64) -> io::Result<&mut Sector> {
        match self.sectors.entry(number) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let mut before = vec![0; device.sector_bytes() as usize];
                device.read_at(number * u64::from(device.sector_bytes()), &mut before)?;
                Ok(entry.insert(Sector { now: before.clone(), before, touched: 0, blanked: false }))
            }
        }
    }

    /// The sectors to write and their content, in order.
    fn steps(self, order: Order, sector_bytes: u64) -> Vec<Step> {
        let Gathered { sectors, gone, .. } = self;
        let mut changed: Vec<(u64, u64)> = sectors
            .iter()
            .filter(|(_, sector)| sector.now != sector.before)
            .map(|(number, sector)| (sector.touched, *number))
            .collect();
        changed.sort_unstable();
        // From the short name, which comes last, back: without its long name it would be a name by itself.
        let mut takes: Vec<u64> = gone.iter().rev().map(|at| at / sector_bytes).collect();
        takes.dedup();
        let without = |number: u64, content: &[u8]| {
            let mut content = content.to_vec();
            for at in gone.iter().filter(|at| **at / sector_bytes == number) {
                content[(at % sector_bytes) as usize] = GONE;
            }
            content
        };
        let mut steps = Steps::default();
        if order == Order::GoneFirst {
            takes
                .iter()
                .for_each(|number| steps.push(*number, without(*number, &sectors[number].before), true));
        }
        if order == Order::NewFirst {
            // Before the table leads to it: what lay there before would be read as names.
            let blanks = changed.iter().filter(|(_, number)| sectors[number].blanked);
            blanks.for_each(|(_, number)| steps.push(*number, vec![0; sector_bytes as usize], true));
        }
        for (_, number) in &changed {
            let now = &sectors[number].now;
            match order {
                Order::GoneFirst => steps.push(*number, without(*number, now), false),
                Order::NewFirst => steps.push(*number, now.clone(), true),
                Order::Any => steps.push(*number, now.clone(), false),
            }
        }
        if order == Order::NewFirst {
            takes.iter().for_each(|number| steps.push(*number, without(*number, &sectors[number].now), true));
        }
        steps.0
    }
}

/// A sector as it is to be written. `alone`: it is on the medium before the next is written.
struct Step {
    number: u64,
    content: Vec<u8>,
    alone: bool,
}

#[derive(Default)]
struct Steps(Vec<Step>);

impl Steps {
    /// What is written twice in a row is written once: one sector is one step for the medium too.
    fn push(&mut self, number: u64, content: Vec<u8>, alone: bool) {
        match self.0.last_mut() {
            Some(last) if last.number == number => *last = Step { number, content, alone },
            _ => self.0.push(Step { number, content, alone }),
        }
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
        if self.order == Order::Any
            && self.gathered().sectors.len() + data.len() / sector_bytes > GATHERED_MAX
        {
            self.write_out()?;
        }
        if self.takes_a_name(offset, data)? {
            let gathered = &mut *self.gathered();
            gathered.sector(&*self.device, offset / sector_bytes as u64)?;
            gathered.gone.push(offset);
            return Ok(());
        }
        let gathered = &mut *self.gathered();
        self.parts(offset, data.len(), |number, skip, range| {
            gathered.touches += 1;
            let touched = gathered.touches;
            let sector = gathered.sector(&*self.device, number)?;
            sector.touched = touched;
            sector.now[skip..skip + range.len()].copy_from_slice(&data[range]);
            sector.blanked |= data.len() >= sector_bytes.min(512) && sector.now.iter().all(|byte| *byte == 0);
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
        let sectors = Sectors::new(medium.clone(), Order::NewFirst);
        sectors.write_at(500, b"across a border").unwrap();
        let mut read = [0; 15];
        sectors.read_at(500, &mut read).unwrap();
        assert_eq!(&read, b"across a border");
        assert_eq!(medium.to_bytes(), vec![0; 4096]);
        sectors.commit().unwrap();
        assert_eq!(&medium.to_bytes()[500..515], b"across a border");
    }

    #[test]
    fn a_range_behind_the_end_is_refused() {
        let sectors = Sectors::new(Arc::new(MemDevice::new(1024, 512)), Order::Any);
        assert!(sectors.write_at(1020, b"too long").is_err());
        assert!(sectors.read_at(1020, &mut [0; 8]).is_err());
    }
}
