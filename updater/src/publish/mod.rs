//! The author's side.

pub mod file;
pub mod initramfs;
pub mod modules;
pub mod rootfs;
pub mod uki;
