//! Little-endian numbers from the front of a slice, as the index and a patch's header have them.
//!
//! Not here: what they mean. Rule: nothing is read beyond the slice; what is missing is said in bytes.

/// What is left of a slice.
pub(super) struct Fields<'a>(pub &'a [u8]);

/// The slice ends before the field does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    /// Bytes that are left.
    pub found: u64,
    /// Bytes that the field has.
    pub expected: u64,
}

impl<'a> Fields<'a> {
    /// The next `bytes` bytes, as fields of their own.
    pub(super) fn column(&mut self, bytes: usize) -> Result<Fields<'a>, Short> {
        let short = Short { found: self.0.len() as u64, expected: bytes as u64 };
        let (column, rest) = self.0.split_at_checked(bytes).ok_or(short)?;
        self.0 = rest;
        Ok(Fields(column))
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let short = Short { found: self.0.len() as u64, expected: N as u64 };
        let (field, rest) = self.0.split_first_chunk().ok_or(short)?;
        self.0 = rest;
        Ok(*field)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Short> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Short> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Short> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Short> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}
