//! The trait that every bootloader backend implements, the files it is given, and how it fails.
//!
//! Not here: any bootloader, and when to call what (policy). Rule: `write` is one durable step; the same content
//! writes nothing; what was written is flushed and read back before the call returns.

use std::io;
use std::path::PathBuf;

use switchback_partitions::slot::Slot;

use crate::boot_state::{BootState, NotOneStep};

/// The files that a slot boots from, as a release brought them, with the documents kept beside them.
///
/// Built from the release's *verified* manifest, before an install and again when a slot is verified after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// Each boot file, at most one of a kind: a UKI, or a kernel with an initrd.
    pub files: Vec<BootFile>,
    /// Kernel command line for kernel + initrd; `None` where a UKI carries its own.
    pub cmdline: Option<String>,
    /// Title for the loader's menu, e.g. `Example OS 1.1`.
    pub title: String,
    /// Signed documents kept beside the boot files (file name, bytes): the slot passport.
    pub passport: Vec<(String, Vec<u8>)>,
}

impl BootFiles {
    /// The lengths in bytes of everything that `prepare` will store: what `preflight` asks for.
    pub fn sizes(&self) -> Vec<u64> {
        let files = self.files.iter().map(|file| file.bytes);
        files.chain(self.passport.iter().map(|(_, bytes)| bytes.len() as u64)).collect()
    }
}

/// One boot file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFile {
    /// What it is.
    pub kind: BootFileKind,
    /// Where its bytes lie now. Read by `prepare` only; may be gone when `verify` is called after a restart.
    pub source: PathBuf,
    /// Its SHA-256: checked while it is copied and again when it is read back.
    pub sha256: [u8; 32],
    /// Its length in bytes.
    pub bytes: u64,
}

/// The kinds of boot file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

impl BootFileKind {
    /// The file's name in the slot's folder.
    pub fn file_name(self) -> &'static str {
        match self {
            BootFileKind::Uki => "uki.efi",
            BootFileKind::Linux => "linux",
            BootFileKind::Initrd => "initrd",
            BootFileKind::DeviceTree => "devicetree.dtb",
        }
    }
}

/// What a backend can be asked. One durable step per call that writes; every call may be repeated after a crash.
pub trait Bootloader: Send + Sync {
    /// Name for messages and `status`: `systemd-boot`, `custom`.
    fn name(&self) -> &'static str;

    /// The boot record now, normalised.
    fn read(&self) -> Result<BootState, BootError>;

    /// Makes the record read as `state` in one durable step; nothing is written when it already does.
    ///
    /// `state` must be one step away: see [`BootState::change_to`]. Arming and confirming need a slot that was
    /// prepared or that still has an entry.
    fn write(&self, state: &BootState) -> Result<(), BootError>;

    /// Before step 1: would files of these `sizes` (bytes, see [`BootFiles::sizes`]) fit after `forget(slot)`?
    /// Counts what the file system rounds up and what the slot's present files give back. Writes nothing.
    fn preflight(&self, slot: Slot, sizes: &[u64]) -> Result<(), BootError>;

    /// Step 1 of an install: the slot's entries, then its boot files and passport, are gone and flushed.
    fn forget(&self, slot: Slot) -> Result<(), BootError>;

    /// Step 2: boot files and passport under their final names, and an entry prepared but not armed; flushed.
    /// Refuses a slot that still has an entry: its files could be started half-written.
    fn prepare(&self, slot: Slot, files: &BootFiles) -> Result<(), BootError>;

    /// Step 3: reads boot files, passport and entry back past the cache and compares them with `files`.
    ///
    /// The expected digests are an argument, never a note of our own on the same medium: what makes a slot
    /// verified is the signed manifest, so it can be earned again after a restart.
    fn verify(&self, slot: Slot, files: &BootFiles) -> Result<(), BootError>;

    /// What is gone of the slot's boot files and its entry, in a few words; `None` when all of it is there. Names and
    /// lengths alone are looked at: enough to tell that a slot cannot start, no proof that it can.
    fn missing(&self, slot: Slot, files: &[BootFile]) -> Result<Option<String>, BootError>;

    /// Copies the file `name` of the slot's folder into `sink` and gives its length in bytes; `None` when there is none. One of
    /// more than `limit` bytes is an error. What the bytes are worth is for the caller to find out: a release whose kernel the
    /// other slot has need not fetch it again.
    fn copy(
        &self,
        slot: Slot,
        name: &str,
        limit: u64,
        sink: &mut dyn io::Write,
    ) -> Result<Option<u64>, BootError>;

    /// A document of the slot's passport, or `None` when the slot has none of that name. One of more than `limit`
    /// bytes is an error.
    fn passport(&self, slot: Slot, name: &str, limit: u64) -> Result<Option<Vec<u8>>, BootError> {
        let mut bytes = Vec::new();
        Ok(self.copy(slot, name, limit, &mut bytes)?.map(|_| bytes))
    }
}

/// Why a backend could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file operation on the boot partition failed.
    #[error("while {doing} `{path}` on the boot partition")]
    Esp {
        /// What was being done: `reading`, `renaming`…
        doing: &'static str,
        /// Path from the partition's root.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A boot file of the release could not be read.
    #[error("while reading the boot file {}", path.display())]
    Source {
        /// Where it should lie.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Bytes are not those that the release names.
    #[error("while checking `{file}` of slot {slot}: expected {expected}, found {found}")]
    Mismatch {
        /// The slot.
        slot: Slot,
        /// The file's name in the slot's folder.
        file: String,
        /// SHA-256 and length, or text, that it should have.
        expected: String,
        /// What it has.
        found: String,
    },
    /// The boot partition is too small or too full; nothing was written.
    #[error(
        "while making room for slot {slot}: {needed} bytes are needed on the boot partition, {available} can be had"
    )]
    NoSpace {
        /// The slot.
        slot: Slot,
        /// Bytes needed, rounded up to clusters.
        needed: u64,
        /// Bytes free, plus what the slot's present files give back.
        available: u64,
    },
    /// A kernel or UKI that this machine's firmware cannot start.
    #[error("while checking that `{file}` can be started: {why}")]
    NotBootable {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The set of boot files makes no entry.
    #[error("while preparing slot {slot}: {why}")]
    BadFiles {
        /// The slot.
        slot: Slot,
        /// What is wrong.
        why: String,
    },
    /// `prepare` on a slot that still has a boot entry.
    #[error(
        "while preparing slot {slot}: it still has the boot entry `{entry}`, which must be removed first"
    )]
    NotForgotten {
        /// The slot.
        slot: Slot,
        /// The entry's file name.
        entry: String,
    },
    /// The slot has neither an entry nor a prepared one.
    #[error("while changing the boot record: slot {slot} has no boot entry to change")]
    NoEntry {
        /// The slot.
        slot: Slot,
    },
    /// The asked-for state is more than one step away.
    #[error(transparent)]
    NotOneStep(#[from] NotOneStep),
    /// The record did not read back as written.
    #[error("while reading the boot record back: expected {expected:?}, found {found:?}")]
    NotTaken {
        /// What was written.
        expected: BootState,
        /// What it reads as.
        found: BootState,
    },
    /// The board script could not be run.
    #[error("while running `{program} {verb}`")]
    BoardStart {
        /// The script.
        program: String,
        /// Verb and argument.
        verb: String,
        /// Why.
        source: io::Error,
    },
    /// The board script failed, took too long or answered nonsense.
    #[error("while running `{program} {verb}`: {why}")]
    Board {
        /// The script.
        program: String,
        /// Verb and argument.
        verb: String,
        /// Exit status and what it wrote to standard error, or the time limit, or its answer.
        why: String,
    },
}
