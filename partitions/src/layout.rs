//! Which partitions make a slot.

use uuid::Uuid;

/// Where one partition lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Its number in the table, from 1.
    pub number: u32,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Its unique GUID (PARTUUID).
    pub guid: Uuid,
}
