//! Cuts a raw image into chunks by content, so that what did not change gives the same chunks wherever it moved to.
//!
//! Images are cut at 4 KiB block borders: file systems place data there, and between rebuilt images whole blocks move.
//! The image is a row of blocks. Blocks of zeros are taken out as zero runs. In what is between them a chunk ends behind a
//! block whose CRC-32 (IEEE) is a multiple of [`CUT_EVERY`], but has at least [`CHUNK_BLOCKS_MIN`] and at most
//! [`CHUNK_BLOCKS_MAX`] blocks. That makes 16 KiB on average (2 + 3 blocks, less one), 8 KiB at least, 64 KiB at most; the
//! minimum keeps lengths close together, as a changed block costs its whole chunk and falls into long ones more often.
//!
//! Not here: compression, the index. Rule: only the builder cuts. These numbers may change with any release of this
//! program and no device notices: a device goes by the lengths in the index.

use std::io::{self, Read};

use crate::image::BLOCK_BYTES;
use crate::image::index::{CHUNK_RAW_BYTES_MAX, ZERO_RAW_BYTES_MAX};

/// The fewest blocks of a chunk, but for one that a zero run or the image's end cuts short.
pub const CHUNK_BLOCKS_MIN: usize = 2;
/// The most blocks of a chunk.
pub const CHUNK_BLOCKS_MAX: usize = (CHUNK_RAW_BYTES_MAX / BLOCK_BYTES) as usize;
/// One block in this many ends a chunk.
pub const CUT_EVERY: u32 = 3;

const BLOCK: usize = BLOCK_BYTES as usize;
/// How much is read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// A piece of the raw image, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Zeros: a multiple of the block, at most [`ZERO_RAW_BYTES_MAX`] bytes.
    Zero(u32),
    /// A chunk.
    Chunk(Vec<u8>),
}

/// Pieces of a raw image read from `R`. Ends with an error when the image is no whole number of blocks.
pub struct Chunker<R> {
    raw: R,
    buffer: Vec<u8>,
    /// First byte of `buffer` that no piece has taken.
    at: usize,
    ended: bool,
}

impl<R: Read> Chunker<R> {
    /// A chunker that reads `raw` to its end.
    pub fn new(raw: R) -> Chunker<R> {
        Chunker { raw, buffer: Vec::with_capacity(BUFFER_BYTES), at: 0, ended: false }
    }

    /// The next piece, or `None` at the end.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        let Some(first) = self.block(0)? else { return Ok(None) };
        if is_zero(first) { self.zero_run().map(Some) } else { self.chunk().map(Some) }
    }

    fn zero_run(&mut self) -> io::Result<Piece> {
        let mut bytes = 0u32;
        while bytes < ZERO_RAW_BYTES_MAX && self.block(0)?.is_some_and(is_zero) {
            self.at += BLOCK;
            bytes += BLOCK_BYTES;
        }
        Ok(Piece::Zero(bytes))
    }

    fn chunk(&mut self) -> io::Result<Piece> {
        let mut blocks = 0;
        while blocks < CHUNK_BLOCKS_MAX {
            let Some(block) = self.block(blocks)?.filter(|block| !is_zero(block)) else { break };
            blocks += 1;
            let cut = blocks >= CHUNK_BLOCKS_MIN && crc32fast::hash(block).is_multiple_of(CUT_EVERY);
            if cut {
                break;
            }
        }
        let end = self.at + blocks * BLOCK;
        let chunk = self.buffer[self.at..end].to_vec();
        self.at = end;
        Ok(Piece::Chunk(chunk))
    }

    /// The block `ahead` blocks behind the first one not taken, or `None` behind the end of the image.
    fn block(&mut self, ahead: usize) -> io::Result<Option<&[u8]>> {
        let (mut start, mut end) = (self.at + ahead * BLOCK, self.at + (ahead + 1) * BLOCK);
        if end > self.buffer.len() && !self.ended {
            self.fill()?;
            (start, end) = (ahead * BLOCK, (ahead + 1) * BLOCK);
        }
        Ok(self.buffer.get(start..end))
    }

    /// Drops what was taken and reads until the buffer is full or the image ends.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let room = (BUFFER_BYTES - self.buffer.len()) as u64;
        let got = self.raw.by_ref().take(room).read_to_end(&mut self.buffer)?;
        self.ended = (got as u64) < room;
        if self.ended && !self.buffer.len().is_multiple_of(BLOCK) {
            let rest = self.buffer.len() % BLOCK;
            let problem =
                format!("the image ends with {rest} bytes more than whole blocks of {BLOCK}: pad it");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(())
    }
}

impl<R: Read> Iterator for Chunker<R> {
    type Item = io::Result<Piece>;
    fn next(&mut self) -> Option<io::Result<Piece>> {
        self.next_piece().transpose()
    }
}

fn is_zero(block: &[u8]) -> bool {
    // In words of 16 bytes the compiler compares with vector instructions.
    block.as_chunks::<16>().0.iter().all(|word| u128::from_ne_bytes(*word) == 0)
}

/// `blocks` blocks of noise that is the same in every run.
#[cfg(test)]
pub(crate) fn noise(blocks: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..blocks * BLOCK / 8).flat_map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(raw: &[u8]) -> Vec<Piece> {
        Chunker::new(raw).collect::<io::Result<_>>().unwrap()
    }

    fn join(pieces: &[Piece]) -> Vec<u8> {
        let bytes = |piece: &Piece| match piece {
            Piece::Zero(bytes) => vec![0; *bytes as usize],
            Piece::Chunk(bytes) => bytes.clone(),
        };
        pieces.iter().flat_map(bytes).collect()
    }

    #[test]
    fn pieces_joined_are_the_image_and_chunks_have_16_kib_on_average() {
        let raw = noise(8192, 1);
        let pieces = pieces(&raw);
        assert!(join(&pieces) == raw);
        let average = raw.len() / pieces.len();
        assert!((14_000..18_500).contains(&average), "{average}");
        let lengths = pieces.iter().map(|piece| join(std::slice::from_ref(piece)).len());
        let (shortest, longest) = (lengths.clone().rev().skip(1).min(), lengths.max());
        assert_eq!(shortest, Some(CHUNK_BLOCKS_MIN * BLOCK));
        assert!(longest <= Some(CHUNK_RAW_BYTES_MAX as usize));
    }

    #[test]
    fn an_insertion_changes_only_the_chunks_around_it() {
        let old = noise(4096, 2);
        let mut new = old.clone();
        let at = 2000 * BLOCK;
        new.splice(at..at, noise(3, 3));
        let known: std::collections::HashSet<_> =
            pieces(&old).iter().map(|p| join(std::slice::from_ref(p))).collect();
        let changed =
            pieces(&new).iter().filter(|p| !known.contains(&join(std::slice::from_ref(*p)))).count();
        assert!((1..=8).contains(&changed), "{changed} chunks are new");
    }

    #[test]
    fn whole_blocks_of_zeros_are_runs_and_part_zero_blocks_are_data() {
        let mut raw = noise(4, 4);
        raw.extend(vec![0; 3 * BLOCK]);
        raw.extend(noise(1, 5));
        raw.extend(vec![0; BLOCK - 1]);
        raw.push(1);
        raw.extend(vec![0; BLOCK]);
        let found = pieces(&raw);
        assert!(join(&found) == raw);
        let zeros: Vec<&Piece> = found.iter().filter(|piece| matches!(piece, Piece::Zero(_))).collect();
        assert_eq!(zeros, [&Piece::Zero(3 * BLOCK_BYTES), &Piece::Zero(BLOCK_BYTES)]);
    }

    #[test]
    fn a_long_zero_run_is_split_and_crosses_the_reading_buffer() {
        let pieces: Vec<Piece> =
            Chunker::new(io::repeat(0).take(150 << 20)).collect::<io::Result<_>>().unwrap();
        let split = [ZERO_RAW_BYTES_MAX, ZERO_RAW_BYTES_MAX, 22 << 20].map(Piece::Zero);
        assert_eq!(pieces, split);
    }

    #[test]
    fn the_cut_points_do_not_depend_on_how_the_reader_hands_out_bytes() {
        struct Drip<'a>(&'a [u8], usize);
        impl Read for Drip<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.1 = self.1 % 4999 + 1;
                let length = self.1.min(buffer.len());
                self.0.read(&mut buffer[..length])
            }
        }
        let raw = noise(1000, 6);
        let dripped: Vec<Piece> = Chunker::new(Drip(&raw, 0)).collect::<io::Result<_>>().unwrap();
        assert!(dripped == pieces(&raw));
    }

    #[test]
    fn an_empty_image_has_no_piece_and_a_part_block_is_an_error() {
        assert_eq!(pieces(&[]), []);
        let error = Chunker::new([1; 5000].as_slice()).find_map(Result::err).unwrap();
        assert!(error.to_string().contains("904 bytes more"), "{error}");
    }
}
