//! Makes a blank disk bootable.
