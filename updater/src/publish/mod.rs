//! The author's side: build, chunk, sign and push releases, and look into them.
//!
//! Not here: anything a device runs. Rule: the same inputs give the same bytes, whatever the machine or number of threads.

pub mod bind;
pub mod build;
pub mod chunker;
pub mod container;
pub mod initramfs;
pub mod inspect;
pub mod layer;
pub mod modules;
pub mod push;
pub mod rootfs;
pub mod sign;
pub mod uki;
