//! Disks as a power cut would have left them, put together from an image and the log of all that was written to it.
//!
//! Not here: what a disk should hold, and starting it. Rule: what lies before a flush is there in full; of what lies behind
//! it, a lost write cache may keep any part.

use std::collections::HashMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use switchback_partitions::device::{Access, BlockDevice, FileDevice};

use super::block_log::{BlockLog, Entry};
use super::tools;

/// Bytes of a sector: the smallest piece that a disk writes whole.
pub const SECTOR_BYTES: usize = 512;

/// Chooses the writes of [`Kept::Some`]: another number, other disks.
const SEED: u64 = 0x5177_6974_6368_6261;

/// What survives of the writes behind the last flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// None of them.
    Flushed,
    /// The first half.
    Half,
    /// Every second one, beginning with the first.
    Odd,
    /// Those that a seeded choice takes.
    Some,
}

impl Kept {
    /// All of them.
    pub const ALL: [Kept; 4] = [Kept::Flushed, Kept::Half, Kept::Odd, Kept::Some];

    fn word(self) -> &'static str {
        match self {
            Kept::Flushed => "flushed",
            Kept::Half => "half",
            Kept::Odd => "odd",
            Kept::Some => "some",
        }
    }

    /// Does the write number `index` of `count` behind flush `flush` survive?
    fn keeps(self, flush: usize, index: usize, count: usize) -> bool {
        match self {
            Kept::Flushed => false,
            Kept::Half => index < count.div_ceil(2),
            Kept::Odd => index.is_multiple_of(2),
            Kept::Some => is_chosen(flush as u64, index as u64),
        }
    }
}

/// Half of all pairs, in no order that a pattern of writes could follow (splitmix64's last step).
fn is_chosen(flush: u64, index: u64) -> bool {
    let mut x = SEED ^ (flush << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) & 1 == 1
}

/// A moment at which the power goes, and what the disk's cache loses then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    /// How many flushes are over.
    pub flush: usize,
    /// What survives of the writes behind the last of them.
    pub kept: Kept,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.flush, self.kept.word())
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Cut {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Cut> {
        let (flush, word) = text.split_once('/').context("a cut is FLUSH/VARIANT, such as 57/half")?;
        let kept = Kept::ALL.into_iter().find(|kept| kept.word() == word);
        Ok(Cut { flush: flush.parse()?, kept: kept.with_context(|| format!("no variant is called {word}"))? })
    }
}

/// An image, and all that was written to it.
#[derive(Debug)]
pub struct Recording {
    image: PathBuf,
    log: BlockLog,
    /// The places of the flushes among the log's entries.
    flushes: Vec<usize>,
}

impl Recording {
    /// The image as it was before the first entry of `log`.
    pub fn open(image: &Path, log: &Path) -> Result<Recording> {
        let log = BlockLog::open(log)?;
        let flushes = log.entries().iter().enumerate().filter(|(_, entry)| entry.is_flush());
        let flushes = flushes.map(|(place, _)| place).collect();
        Ok(Recording { image: image.to_owned(), log, flushes })
    }

    /// The image before all that.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The log.
    pub fn log(&self) -> &BlockLog {
        &self.log
    }

    /// How many flushes there are.
    pub fn flushes(&self) -> usize {
        self.flushes.len()
    }

    /// What was written behind that many flushes and before the next one.
    pub fn window(&self, flush: usize) -> Vec<Entry> {
        let place = |number: usize| self.flushes.get(number).copied().unwrap_or(self.log.entries().len());
        // A flush that carries a write comes before it.
        let start = if flush == 0 { 0 } else { place(flush - 1) };
        let entries = self.log.entries().get(start..place(flush)).unwrap_or_default();
        entries.iter().filter(|entry| entry.is_write()).copied().collect()
    }

    /// Which of the writes behind the last flush survive a cut.
    fn survivors(&self, cut: Cut) -> Vec<Entry> {
        let window = self.window(cut.flush);
        let count = window.len();
        let kept = window.into_iter().enumerate().filter(|(index, entry)| {
            // A write that was forced to the medium is not in the cache that is lost.
            let forced = entry.is_forced() && matches!(cut.kept, Kept::Odd | Kept::Some);
            forced || cut.kept.keeps(cut.flush, *index, count)
        });
        kept.map(|(_, entry)| entry).collect()
    }

    /// Writes the disk that a cut leaves to a file of its own.
    pub fn lay_out(&self, cut: Cut, to: &Path) -> Result<()> {
        ensure!(cut.flush <= self.flushes(), "there are {} flushes, not {}", self.flushes(), cut.flush);
        let durable = (0..cut.flush).flat_map(|flush| self.window(flush));
        self.write_to(to, durable.chain(self.survivors(cut)))
    }

    fn write_to(&self, to: &Path, writes: impl Iterator<Item = Entry>) -> Result<()> {
        tools::copy_image(&self.image, to)?;
        let file = OpenOptions::new().write(true).open(to)?;
        for entry in writes {
            file.write_all_at(&self.log.data(&entry)?, entry.offset)?;
        }
        Ok(())
    }

    /// Compares the image and the whole log on it with `disk`, which was really written to.
    pub fn is_all_of(&self, disk: &Path) -> Result<()> {
        let whole = disk.with_extension("replayed");
        self.write_to(&whole, (0..=self.flushes()).flat_map(|flush| self.window(flush)))?;
        tools::run(Command::new(tools::program("cmp", "diffutils")?).arg(&whole).arg(disk))
            .context("the log does not hold all that was written to the disk")?;
        Ok(std::fs::remove_file(whole)?)
    }

    /// Shows each disk that a cut can leave, in order. A disk knows whether it, and its bytes in `part`, were seen before.
    pub fn each(
        &self,
        part: Range<u64>,
        mut look: impl FnMut(Cut, &Arc<Rebuilt>) -> Result<()>,
    ) -> Result<()> {
        let image = Arc::new(FileDevice::open(&self.image, Access::Read)?);
        let mut disk = Rebuilt::new(image, part);
        for flush in 0..=self.flushes() {
            for kept in Kept::ALL {
                let cut = Cut { flush, kept };
                let mut left = disk.fork();
                self.replay(&self.survivors(cut), &mut left)?;
                look(cut, &Arc::new(left)).with_context(|| format!("at {cut}"))?;
            }
            self.replay(&self.window(flush), &mut disk)?;
            disk.settle();
        }
        Ok(())
    }

    fn replay(&self, entries: &[Entry], disk: &mut Rebuilt) -> Result<()> {
        for entry in entries {
            disk.put(entry.offset, &self.log.data(entry)?)?;
        }
        Ok(())
    }
}

type Sectors = HashMap<u64, Box<[u8; SECTOR_BYTES]>>;

/// Tells one content from another: a sum over all sectors that differ from the image, so that it does not matter in which
/// order, or how often, they were written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(u128);

/// A disk in memory above an image that stays as it is.
#[derive(Debug)]
pub struct Rebuilt {
    image: Arc<FileDevice>,
    durable: Arc<Sectors>,
    /// What is not flushed, and what a reader of this disk writes to it.
    above: RwLock<Sectors>,
    part: Range<u64>,
    whole_id: ContentId,
    part_id: ContentId,
}

impl Rebuilt {
    fn new(image: Arc<FileDevice>, part: Range<u64>) -> Rebuilt {
        let (whole_id, part_id) = Default::default();
        Rebuilt { image, durable: Arc::default(), above: RwLock::default(), part, whole_id, part_id }
    }

    /// What the whole disk holds.
    pub fn id(&self) -> ContentId {
        self.whole_id
    }

    /// What the chosen part of it holds.
    pub fn part_id(&self) -> ContentId {
        self.part_id
    }

    /// How many sectors of what an entry wrote are other than they are here.
    pub fn changed_by(&self, offset: u64, data: &[u8]) -> Result<usize> {
        let mut changed = 0;
        for (index, new) in data.chunks_exact(SECTOR_BYTES).enumerate() {
            changed += usize::from(self.sector(offset / SECTOR_BYTES as u64 + index as u64)?[..] != *new);
        }
        Ok(changed)
    }

    fn fork(&self) -> Rebuilt {
        Rebuilt {
            image: self.image.clone(),
            durable: self.durable.clone(),
            above: RwLock::default(),
            part: self.part.clone(),
            ..*self
        }
    }

    fn put(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        ensure!(offset.is_multiple_of(SECTOR_BYTES as u64) && data.len().is_multiple_of(SECTOR_BYTES));
        for (index, new) in data.chunks_exact(SECTOR_BYTES).enumerate() {
            let number = offset / SECTOR_BYTES as u64 + index as u64;
            let old = self.sector(number)?;
            if old[..] == *new {
                continue;
            }
            let mut sector = Box::new([0; SECTOR_BYTES]);
            sector.copy_from_slice(new);
            // The image's own sectors cancel out: what is written back to its old content counts for nothing.
            let change = weight(number, &sector[..]).wrapping_sub(weight(number, &old[..]));
            self.whole_id.0 = self.whole_id.0.wrapping_add(change);
            if self.part.contains(&(number * SECTOR_BYTES as u64)) {
                self.part_id.0 = self.part_id.0.wrapping_add(change);
            }
            self.above.get_mut().unwrap_or_else(PoisonError::into_inner).insert(number, sector);
        }
        Ok(())
    }

    fn settle(&mut self) {
        let above = std::mem::take(self.above.get_mut().unwrap_or_else(PoisonError::into_inner));
        Arc::make_mut(&mut self.durable).extend(above);
    }

    fn sector(&self, number: u64) -> io::Result<Box<[u8; SECTOR_BYTES]>> {
        if let Some(sector) = self.above.read().unwrap_or_else(PoisonError::into_inner).get(&number) {
            return Ok(sector.clone());
        }
        if let Some(sector) = self.durable.get(&number) {
            return Ok(sector.clone());
        }
        let mut sector = Box::new([0; SECTOR_BYTES]);
        self.image.read_at(number * SECTOR_BYTES as u64, &mut sector[..])?;
        Ok(sector)
    }
}

/// A hash of a sector at its place.
fn weight(number: u64, content: &[u8]) -> u128 {
    let hash = Sha256::new().chain_update(number.to_le_bytes()).chain_update(content).finalize();
    hash.iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

/// The sectors that a range of bytes touches, each with the part of the range that lies in it.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % SECTOR_BYTES as u64) as usize;
        let end = len.min(done + SECTOR_BYTES - within);
        let piece = (done < len).then(|| (at / SECTOR_BYTES as u64, within, done..end));
        done = end;
        piece
    })
}

impl BlockDevice for Rebuilt {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (number, within, range) in pieces(offset, buffer.len()) {
            let count = range.len();
            buffer[range].copy_from_slice(&self.sector(number)?[within..within + count]);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        for (number, within, range) in pieces(offset, data.len()) {
            let mut sector = self.sector(number)?;
            sector[within..within + range.len()].copy_from_slice(&data[range]);
            self.above.write().unwrap_or_else(PoisonError::into_inner).insert(number, sector);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> u64 {
        self.image.len()
    }

    fn sector_bytes(&self) -> u32 {
        SECTOR_BYTES as u32
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; usize::try_from(len).map_err(io::Error::other)?])
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn drop_caches(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (tempfile::NamedTempFile, Rebuilt) {
        let image = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(image.path(), vec![7; 8 * SECTOR_BYTES]).unwrap();
        let device = FileDevice::open(image.path(), Access::Read).unwrap();
        (image, Rebuilt::new(Arc::new(device), 0..1024))
    }

    #[test]
    fn the_same_content_has_the_same_id_however_it_came_there() {
        let (_image, mut one) = disk();
        let (_other, mut two) = disk();
        one.put(0, &[1; 2 * SECTOR_BYTES]).unwrap();
        one.settle();
        one.put(2048, &[2; SECTOR_BYTES]).unwrap();
        two.put(2048, &[3; SECTOR_BYTES]).unwrap();
        two.put(2048, &[2; SECTOR_BYTES]).unwrap();
        assert_ne!(one.id(), two.id());
        assert_eq!(two.part_id(), ContentId::default(), "nothing was written to the part");
        two.put(0, &[1; 2 * SECTOR_BYTES]).unwrap();
        assert_eq!((one.id(), one.part_id()), (two.id(), two.part_id()));
        one.put(0, &[7; 2 * SECTOR_BYTES]).unwrap();
        one.put(2048, &[7; SECTOR_BYTES]).unwrap();
        assert_eq!(one.id(), ContentId::default(), "it is the image again");
    }

    #[test]
    fn what_is_written_to_a_fork_stays_in_the_fork_and_reads_back_at_any_alignment() {
        let (_image, mut disk) = disk();
        disk.put(512, &[1; SECTOR_BYTES]).unwrap();
        disk.settle();
        let fork = disk.fork();
        fork.write_at(1000, &[9; 100]).unwrap();
        let mut bytes = [0; 150];
        fork.read_at(975, &mut bytes).unwrap();
        assert_eq!(bytes.to_vec(), [[1; 25].as_slice(), &[9; 100], &[7; 25]].concat());
        disk.read_at(975, &mut bytes).unwrap();
        assert_eq!(bytes.to_vec(), [[1; 49].as_slice(), &[7; 101]].concat());
    }

    #[test]
    fn a_cut_reads_back_as_it_is_printed() {
        for kept in Kept::ALL {
            let cut = Cut { flush: 57, kept };
            assert_eq!(cut.to_string().parse::<Cut>().unwrap(), cut);
        }
        assert!("57".parse::<Cut>().is_err() && "57/most".parse::<Cut>().is_err());
    }
}
