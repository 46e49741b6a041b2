//! What a power cut leaves: the rows of a disk and the files of a state folder, as one value.
//!
//! Not here: what was written when (`recorder`). Rule: an image is all that a machine keeps without power, nothing else;
//! two images with the same sum hold the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use nix::unistd::{Whence, lseek};
use rustc_hash::FxHashMap;
use sha2::{Digest as _, Sha256};

/// The rows of file number `i` begin at `(i + 1) * FILE_ROWS`; no disk here has that many rows.
pub const FILE_ROWS: u64 = 1 << 40;
/// A row of a file, in bytes, whatever the disk's sectors are.
const FILE_ROW_BYTES: usize = 512;

/// One sector's content.
#[derive(Debug, Clone)]
pub struct Row {
    /// The bytes.
    pub bytes: Arc<[u8]>,
    /// The first half of their SHA-256.
    pub digest: u128,
}

impl Row {
    /// A row of these bytes.
    pub fn new(bytes: &[u8]) -> Row {
        let hash = Sha256::digest(bytes);
        let mut half = [0; 16];
        half.copy_from_slice(&hash[..16]);
        Row { bytes: bytes.into(), digest: u128::from_le_bytes(half) }
    }
}

static ZEROS: LazyLock<[Row; 2]> = LazyLock::new(|| [Row::new(&[0; 512]), Row::new(&[0; 4096])]);

fn zero_row(bytes: usize) -> &'static Row {
    &ZEROS[usize::from(bytes != 512)]
}

/// A disk as it was before anything was tried.
#[derive(Debug)]
pub struct Base {
    rows: Vec<Option<Row>>,
    row_bytes: usize,
    len: u64,
}

impl Base {
    /// The same disk with nothing on it.
    pub fn blank(&self) -> Base {
        Base { rows: Vec::new(), row_bytes: self.row_bytes, len: self.len }
    }

    /// The content of an image file; holes are not read.
    pub fn of_file(path: &Path, row_bytes: usize) -> io::Result<Base> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut rows = vec![None; (len / row_bytes as u64) as usize];
        let mut at = 0_i64;
        while let Ok(data) = lseek(&file, at, Whence::SeekData) {
            let end = lseek(&file, data, Whence::SeekHole).map_err(io::Error::from)?;
            let first = data as u64 / row_bytes as u64;
            let mut bytes = vec![0; (end as u64 - first * row_bytes as u64) as usize];
            file.seek(SeekFrom::Start(first * row_bytes as u64))?;
            file.read_exact(&mut bytes)?;
            bytes.resize(bytes.len().next_multiple_of(row_bytes), 0);
            for (row, bytes) in (first..).zip(bytes.chunks(row_bytes)) {
                if bytes.iter().any(|byte| *byte != 0) {
                    rows[row as usize] = Some(Row::new(bytes));
                }
            }
            at = end;
        }
        Ok(Base { rows, row_bytes, len })
    }
}

/// The state of everything durable on one machine.
#[derive(Debug, Clone)]
pub struct Image {
    base: Arc<Base>,
    changed: FxHashMap<u64, Row>,
    sum: u128,
    /// The state folder's names.
    pub names: BTreeMap<String, u32>,
    /// The length of each file in bytes, named or not.
    pub lens: BTreeMap<u32, u64>,
}

impl Image {
    /// A machine with this disk and an empty state folder.
    pub fn new(base: Arc<Base>) -> Image {
        Image { base, changed: FxHashMap::default(), sum: 0, names: BTreeMap::new(), lens: BTreeMap::new() }
    }

    /// Bytes of the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.base.len
    }

    /// Bytes of a sector of the disk.
    pub fn sector_bytes(&self) -> usize {
        self.base.row_bytes
    }

    /// Bytes of one row: a sector of the disk, or a piece of a file.
    pub fn row_bytes(&self, row: u64) -> usize {
        if row < FILE_ROWS { self.base.row_bytes } else { FILE_ROW_BYTES }
    }

    /// One row.
    pub fn row(&self, row: u64) -> &Row {
        let of_base = || self.base.rows.get(usize::try_from(row).ok()?)?.as_ref();
        let known = self.changed.get(&row).or_else(of_base);
        known.unwrap_or_else(|| zero_row(self.row_bytes(row)))
    }

    /// Overwrites one row.
    pub fn set(&mut self, row: u64, content: Row) {
        if row < FILE_ROWS {
            let old = self.row(row).digest;
            self.sum = self.sum.wrapping_add(share(row, content.digest)).wrapping_sub(share(row, old));
        }
        self.changed.insert(row, content);
    }

    /// What tells the disk from every other one with the same base.
    pub fn disk_sum(&self) -> u128 {
        self.sum
    }

    /// What tells the state folder from every other: names and content of its files, whatever their numbers are.
    pub fn folder_sum(&self) -> u128 {
        let mut hash = Sha256::new();
        for (name, file) in &self.names {
            let len = self.lens.get(file).copied().unwrap_or(0);
            let rows = (0..len.div_ceil(FILE_ROW_BYTES as u64)).map(|index| file_row(*file, index));
            let content = (0..)
                .zip(rows)
                .fold(0_u128, |sum, (index, row)| sum.wrapping_add(share(index, self.row(row).digest)));
            hash.update(name.as_bytes());
            hash.update([0]);
            hash.update(len.to_le_bytes());
            hash.update(content.to_le_bytes());
        }
        let mut half = [0; 16];
        half.copy_from_slice(&hash.finalize()[..16]);
        u128::from_le_bytes(half)
    }

    /// What tells the whole image from every other with the same base.
    pub fn sum(&self) -> u128 {
        self.sum.wrapping_add(self.folder_sum())
    }

    /// The bytes of a file, zeros where nothing was ever written.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        let file = *self.names.get(name)?;
        let len = self.lens.get(&file).copied().unwrap_or(0) as usize;
        let mut bytes = Vec::with_capacity(len + FILE_ROW_BYTES);
        for index in 0..len.div_ceil(FILE_ROW_BYTES) {
            bytes.extend_from_slice(&self.row(file_row(file, index as u64)).bytes);
        }
        bytes.truncate(len);
        Some(bytes)
    }

    /// Drops the whole state folder, as if its partition had been formatted anew.
    pub fn lose_files(&mut self) {
        self.names.clear();
        self.lens.clear();
        self.changed.retain(|row, _| *row < FILE_ROWS);
    }

    /// Puts a file there, whole and durable: for scenarios that begin with one.
    pub fn put_file(&mut self, name: &str, bytes: &[u8]) {
        let file = self.next_file();
        self.names.insert(name.to_owned(), file);
        self.lens.insert(file, bytes.len() as u64);
        for (index, piece) in (0..).zip(bytes.chunks(FILE_ROW_BYTES)) {
            let mut row = vec![0; FILE_ROW_BYTES];
            row[..piece.len()].copy_from_slice(piece);
            self.set(file_row(file, index), Row::new(&row));
        }
    }

    /// A number that no file had yet.
    pub fn next_file(&self) -> u32 {
        let last = self.lens.keys().chain(self.names.values()).max();
        last.map_or(0, |last| last + 1)
    }
}

/// The row at which piece `index` of file number `file` lies.
pub fn file_row(file: u32, index: u64) -> u64 {
    (u64::from(file) + 1) * FILE_ROWS + index
}

/// What a row adds to an image's sum: the same content elsewhere adds something else.
pub fn share(row: u64, digest: u128) -> u128 {
    let mut place = row.wrapping_add(0x9e37_79b9_7f4a_7c15);
    place = (place ^ (place >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    place = (place ^ (place >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let place = u128::from(place ^ (place >> 31)) << 32 | u128::from(row & 0xffff) << 1 | 1;
    digest.wrapping_mul(place)
}
