//! The trait that every bootloader backend implements.
//!
//! Not here: any bootloader. Rule: `write` is one durable step; same content, no write; flushed and read back.

use std::path::PathBuf;

use switchback_partitions::slot::Slot;

use crate::boot_state::BootState;

/// The files that a slot boots from, as a release brought them. Kinds say what the loader entry names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// Each file: its kind, its bytes' source. Written beside the passport under the slot's own folder.
    pub files: Vec<BootFile>,
    /// Kernel command line for kernel + initrd; `None` where a UKI carries its own.
    pub cmdline: Option<String>,
    /// Title for the loader's menu, e.g. `Example OS 1.1`.
    pub title: String,
    /// Signed documents kept beside the boot files (name, bytes): the slot passport.
    pub passport: Vec<(String, Vec<u8>)>,
}

/// One boot file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFile {
    /// What it is.
    pub kind: BootFileKind,
    /// Where its bytes lie now (already verified).
    pub source: PathBuf,
    /// Its SHA-256, checked again when read back from the ESP.
    pub sha256: [u8; 32],
    /// Its length in bytes.
    pub bytes: u64,
}

/// The kinds of boot file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BootFileKind {
    /// A unified kernel image: kernel, initrd and command line in one PE file.
    Uki,
    /// A kernel.
    Linux,
    /// An initial RAM file system.
    Initrd,
    /// A device tree.
    DeviceTree,
}

/// What a backend can be asked. One durable step per call that writes.
pub trait Bootloader: Send + Sync {
    /// Name for messages and `status`: `systemd-boot`, `custom`.
    fn name(&self) -> &'static str;
    /// The boot record now.
    fn read(&self) -> Result<BootState, BootError>;
    /// Makes the record read as `state` in one durable step; nothing is written when it already does.
    fn write(&self, state: &BootState) -> Result<(), BootError>;
    /// Step 1 of an install: the slot's entries, then its boot files and passport, are gone and flushed.
    fn forget(&self, slot: Slot) -> Result<(), BootError>;
    /// Step 2: boot files and passport under their final names, and an entry prepared but not armed; flushed.
    fn prepare(&self, slot: Slot, files: &BootFiles) -> Result<(), BootError>;
    /// Step 3: reads boot files and passport back past the cache and compares every digest.
    fn verify(&self, slot: Slot) -> Result<(), BootError>;
    /// A document of the slot's passport, or `None` when the slot has none. At most `limit` bytes are read.
    fn passport(&self, slot: Slot, name: &str, limit: u64) -> Result<Option<Vec<u8>>, BootError>;
}

/// Why a backend could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("boot error")]
pub struct BootError;
