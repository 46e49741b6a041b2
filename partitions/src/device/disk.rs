//! A whole disk and its partitions, opened the way their kind needs.
//!
//! Not here: what the partitions mean (`layout`). Rule: a partition that is mounted or held is refused, never shared.

use std::io;
use std::sync::Arc;

use super::BlockDevice;
use crate::layout::Extent;

/// A disk that can hand out its whole extent and single partitions.
pub trait Disk: Send + Sync {
    /// The whole disk, for the partition table.
    fn whole(&self) -> io::Result<Arc<dyn BlockDevice>>;
    /// One partition for writing: an exclusive open on a real disk (refuses what is mounted or held), a window on an image.
    fn partition(&self, extent: &Extent) -> io::Result<Arc<dyn BlockDevice>>;
}
