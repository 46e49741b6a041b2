//! The seam between decisions and the world: what a machine can be asked and told.
//!
//! Not here: any decision (`lifecycle`), any format. Rule: an implementation reports what it saw and does what it is
//! told; it never chooses a slot, a release or a moment. Production code above this seam is the same on the running
//! machine (`real`) and on an image file with simulated firmware (`image`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use switchback_bootloader::record::Bootloader;
use switchback_partitions::slot::Slot;

/// Which slot runs, by which witness, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The running slot.
    pub slot: Slot,
    /// What was looked at, for people: `dm-verity device of / on /dev/vda2`.
    pub evidence: String,
    /// The kernel's boot id, new at each boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

/// A machine with two slots: the running one, or an image file that stands for one.
pub trait Machine: Send + Sync {
    /// Which slot is running. An error that lists what was looked at when no witness answers.
    fn running(&self) -> Result<Witness, HostError>;
    /// The disk with the slots, opened for this update.
    fn disk(&self) -> Result<Arc<dyn switchback_partitions::device::disk::Disk>, HostError>;
    /// The backend of this machine's bootloader.
    fn bootloader(&self) -> Result<Arc<dyn Bootloader>, HostError>;
    /// The folder for durable facts, state and journal; exists.
    fn state_dir(&self) -> &Path;
    /// The root of the running system (`/`, or the folder that stands for it): health checks and trust roots lie beneath.
    fn root(&self) -> &Path;
    /// Restarts the machine now. Returns only when the order was given.
    fn reboot(&self) -> Result<(), HostError>;
    /// True when the machine returns by itself from a hang (a watchdog is held), for `status`.
    fn watchdog_held(&self) -> bool;
    /// Physical memory in bytes.
    fn ram_bytes(&self) -> u64;
    /// Hardware names this machine answers to (`compatible`): from configuration, device tree or DMI.
    fn compatible(&self) -> Vec<String>;
}

/// Why the machine could not be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No witness of the running slot answered.
    #[error("while finding the running slot: {looked_at}")]
    NoWitness {
        /// What was looked at and what was found there, one sentence each.
        looked_at: String,
    },
    /// A file or device could not be used.
    #[error("while {doing} {path}")]
    Io {
        /// What was being done: `opening`, `reading`, …
        doing: &'static str,
        /// Which file or device.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The disk does not have the layout of two slots.
    #[error("while reading the disk's layout: {0}")]
    Layout(String),
    /// Another instance holds the lock.
    #[error("while locking {path}: another switchback is at work (process {holder})")]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// The other process, as it wrote itself down.
        holder: String,
    },
    /// The reboot was refused.
    #[error("while asking for a reboot: {0}")]
    Reboot(String),
}
