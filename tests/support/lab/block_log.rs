//! What QEMU's `blklogwrites` noted of a disk: each write and each flush, in order.
//!
//! Not here: what a power cut leaves of it (`rebuilt`). Rule: no length in the log is believed before it was compared with
//! the file's own, and no more than one entry's data is in memory at a time.
//! Format: Linux, Documentation/admin-guide/device-mapper/log-writes.rst, version 1. A sector with the header; then for each
//! entry a sector that describes it and, unless it is a discard, the sectors that were written.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// `jsfgwsrj` in the order of the kernel's header.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;

/// The length of the header and of an entry's description; the rest of their sectors is unused.
const HEAD_BYTES: usize = 32;

/// More entries than any story of the lab has.
const ENTRIES_MAX: u64 = 1 << 20;

/// More than one request of a guest writes, in bytes.
const DATA_BYTES_MAX: u64 = 64 << 20;

/// Flags of an entry.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// One entry, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// How much was written or discarded there, in bytes; 0 for a bare flush.
    pub bytes: u64,
    flags: u64,
    /// Where in the log its data begins.
    data_at: u64,
}

impl Entry {
    /// True when it puts bytes on the disk.
    pub fn is_write(&self) -> bool {
        self.bytes > 0 && self.flags & (DISCARD | MARK) == 0
    }

    /// True when everything that came before it is on the medium.
    pub fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    /// True when it is on the medium itself as soon as it is done.
    pub fn is_forced(&self) -> bool {
        self.flags & FUA != 0
    }

    /// True when it lets go of a range.
    pub fn is_discard(&self) -> bool {
        self.flags & DISCARD != 0
    }
}

/// A log that is not written any more.
#[derive(Debug)]
pub struct BlockLog {
    file: File,
    entries: Vec<Entry>,
}

impl BlockLog {
    /// Reads the header and all entries but their data.
    pub fn open(path: &Path) -> Result<BlockLog> {
        let file = File::open(path).with_context(|| format!("while opening {}", path.display()))?;
        let entries = entries(&file).with_context(|| format!("while reading {}", path.display()))?;
        Ok(BlockLog { file, entries })
    }

    /// All entries, in the order in which they were done.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What an entry wrote.
    pub fn data(&self, entry: &Entry) -> Result<Vec<u8>> {
        ensure!(entry.is_write(), "{entry:?} has no data");
        let mut data = vec![0; usize::try_from(entry.bytes)?];
        self.file.read_exact_at(&mut data, entry.data_at)?;
        Ok(data)
    }
}

fn entries(file: &File) -> Result<Vec<Entry>> {
    let len = file.metadata()?.len();
    let head = head(file, 0)?;
    ensure!(number(&head, 0) == MAGIC && number(&head, 1) == VERSION, "it is no log of this format");
    let count = number(&head, 2);
    ensure!(count <= ENTRIES_MAX, "{count} entries are more than any story makes");
    let sector = number(&head, 3) & u64::from(u32::MAX);
    ensure!(matches!(sector, 512 | 4096), "sectors of {sector} bytes");
    let bytes_of = |sectors: u64| sectors.checked_mul(sector).context("a length beyond all disks");
    let mut found = Vec::new();
    let mut at = sector;
    for index in 0..count {
        let words = self::head(file, at).with_context(|| format!("at entry {index} of {count}"))?;
        let (flags, bytes) = (number(&words, 2), bytes_of(number(&words, 1))?);
        let mut entry = Entry { offset: bytes_of(number(&words, 0))?, bytes, flags, data_at: at + sector };
        at = entry.data_at;
        if flags & MARK != 0 {
            // A mark's text lies in its own sector.
            entry.bytes = 0;
        } else if entry.is_write() {
            ensure!(bytes <= DATA_BYTES_MAX, "entry {index} of {count} has {bytes} bytes");
            at += bytes;
        }
        ensure!(at <= len, "entry {index} of {count} passes the log's end");
        found.push(entry);
    }
    Ok(found)
}

fn head(file: &File, at: u64) -> Result<[u8; HEAD_BYTES]> {
    let mut words = [0; HEAD_BYTES];
    file.read_exact_at(&mut words, at)?;
    Ok(words)
}

/// A little-endian number of 8 bytes.
fn number(words: &[u8; HEAD_BYTES], index: usize) -> u64 {
    words[index * 8..][..8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: usize = 512;

    fn sector_of(numbers: &[u64]) -> Vec<u8> {
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        bytes.resize(SECTOR, 0);
        bytes
    }

    /// Two sectors written at sector 8, a mark, a flush, a discard, one sector forced to sector 1.
    fn by_hand(count: u64) -> Vec<u8> {
        [
            sector_of(&[MAGIC, VERSION, count, SECTOR as u64]),
            sector_of(&[8, 2, 0, 0]),
            vec![0x11; 2 * SECTOR],
            sector_of(&[0, 0, MARK, 3]),
            sector_of(&[0, 0, FLUSH, 0]),
            sector_of(&[100, 1 << 30, DISCARD, 0]),
            sector_of(&[1, 1, FUA, 0]),
            vec![0x22; SECTOR],
        ]
        .concat()
    }

    fn read(bytes: &[u8]) -> Result<BlockLog> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        BlockLog::open(file.path())
    }

    #[test]
    fn entries_come_in_order_with_their_data() {
        let log = read(&by_hand(5)).unwrap();
        let kinds: Vec<_> = log
            .entries()
            .iter()
            .map(|e| (e.is_write(), e.is_flush(), e.is_discard(), e.is_forced(), e.offset))
            .collect();
        let expected = [
            (true, false, false, false, 4096),
            (false, false, false, false, 0),
            (false, true, false, false, 0),
            (false, false, true, false, 51_200),
            (true, false, false, true, 512),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(log.data(&log.entries()[0]).unwrap(), [0x11; 2 * SECTOR]);
        assert_eq!(log.data(&log.entries()[4]).unwrap(), [0x22; SECTOR]);
        assert!(log.data(&log.entries()[2]).is_err(), "a flush has no data");
    }

    #[test]
    fn what_the_file_does_not_hold_is_refused() {
        let good = by_hand(5);
        assert!(
            read(&good[..good.len() - 1]).unwrap_err().chain().any(|e| e.to_string().contains("entry 4"))
        );
        assert!(read(&by_hand(6)).is_err(), "one entry more than there is");
        assert!(read(&by_hand(u64::MAX)).is_err(), "a count that no log has");
        let mut huge = good.clone();
        huge[SECTOR + 8..SECTOR + 16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(read(&huge).is_err(), "a length that overflows");
        assert!(read(&good[..16]).is_err() && read(&vec![0; 4096]).is_err(), "no log at all");
    }
}
