//! A buffer that the kernel can hand to a disk as it is.
//!
//! Not here: who writes from it. Rule: it starts at an address that is a multiple of [`ALIGNMENT`], wherever it is moved to.

use std::ops::{Deref, DerefMut};

/// Address, offset and length of direct input and output are multiples of the disk's logical sector, 512 or 4096 bytes
/// (`open(2)`, O_DIRECT); of file systems' blocks where the "disk" is a file: 4096 does for all in use.
pub(super) const ALIGNMENT: usize = 4096;

/// A fixed number of bytes, zeros at first.
#[derive(Debug)]
pub struct AlignedBuffer {
    /// Never grows: its bytes would move, and `start` be wrong.
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` bytes of zero.
    pub fn new(len: usize) -> AlignedBuffer {
        let bytes = vec![0; len + ALIGNMENT].into_boxed_slice();
        let start = bytes.as_ptr().addr().next_multiple_of(ALIGNMENT) - bytes.as_ptr().addr();
        AlignedBuffer { bytes, start, len }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_aligned_wherever_it_moves() {
        let buffers: Vec<AlignedBuffer> = [0, 1, 4096, 1 << 20].map(AlignedBuffer::new).into();
        for (buffer, len) in buffers.iter().zip([0, 1, 4096, 1 << 20]) {
            assert_eq!((buffer.as_ptr().addr() % ALIGNMENT, buffer.len()), (0, len));
        }
    }
}
