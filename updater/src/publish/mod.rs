//! The author's side: build, chunk, sign and push releases, and look into them.
//!
//! Not here: anything a device runs. Rule: the same inputs give the same bytes, whatever the machine or number of threads.

pub mod attach;
pub mod bind;
pub mod build;
pub mod container;
pub mod diff;
pub mod earlier_frames;
pub mod erofs_layout;
pub mod initramfs;
pub mod inspect;
pub mod layer;
pub mod like;
pub mod link_tree;
pub mod modules;
pub mod patch;
pub mod plain_modules;
pub mod push;
pub mod raw_image;
pub mod rootfs;
pub mod sign;
pub mod spool;
pub mod uki;
