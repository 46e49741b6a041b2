//! The seam between decisions and the world: what a machine can be asked and told.
//!
//! Not here: any decision (`lifecycle`), any format. Rule: an implementation reports what it saw and does what it is
//! told; it never chooses a slot, a release or a moment. Production code above this seam is the same on the running
//! machine (`real`) and on an image file with simulated firmware (`image`).

pub mod bounded;
pub mod clock;
pub mod firmware;
pub mod image;
pub mod kernel;
pub mod loader;
pub mod lock;
pub mod mounts;
pub mod priority;
pub mod real;
pub mod state_dir;
pub mod sysfs;
pub mod witness;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use switchback_bootloader::custom::{self, Custom};
use switchback_bootloader::esp::EspDir;
use switchback_bootloader::record::Bootloader;
use switchback_bootloader::systemd_boot::{SystemdBoot, pe};
use switchback_partitions::layout::DiskLayout;
use switchback_partitions::slot::Slot;

use self::clock::Clock;
use self::state_dir::StateDir;
use crate::config::{self, BootBackend, Config, MachineKind};

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
    /// Where the slots lie on it, and how each is marked. Opened for reading only.
    fn layout(&self) -> Result<DiskLayout, HostError>;
    /// The backend of this machine's bootloader.
    fn bootloader(&self) -> Result<Arc<dyn Bootloader>, HostError>;
    /// The folder for durable facts, state and journal; made by [`make_state_dir`] before the first change.
    fn state_dir(&self) -> &dyn StateDir;
    /// The root of the running system (`/`, or the folder that stands for it): health checks and trust roots lie beneath.
    fn root(&self) -> &Path;
    /// Restarts the machine now. Returns only when the order was given.
    fn reboot(&self) -> Result<(), HostError>;
    /// Has the firmware start a loader that gives up again, once for each of a trial's tries.
    fn start_again(&self, tries: u8) -> Result<firmware::StartsAgain, HostError>;
    /// True when the machine returns by itself from a hang (a watchdog is held), for `status`.
    fn watchdog_held(&self) -> bool;
    /// What the kernel tells of this start and of the one before.
    fn kernel(&self) -> kernel::KernelView;
    /// Physical memory in bytes.
    fn ram_bytes(&self) -> u64;
    /// Hardware names this machine answers to (`compatible`): from configuration, device tree or DMI.
    fn compatible(&self) -> Vec<String>;
    /// What time it is. A simulated machine has its own.
    fn clock(&self) -> Clock {
        Clock::now()
    }
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
    /// Configuration leaves out what this kind of machine needs.
    #[error("while opening the machine: `{key}` is not configured")]
    NotConfigured {
        /// The missing key.
        key: &'static str,
    },
    /// The reboot was refused.
    #[error("while asking for a reboot: {0}")]
    Reboot(String),
}

/// The machine that configuration describes.
pub fn open(config: &Config) -> Result<Box<dyn Machine>, HostError> {
    let (machine, boot) = (config.machine.clone(), config.boot.clone());
    Ok(match machine.kind {
        MachineKind::Disk => Box::new(real::RealMachine::new(machine, boot)),
        MachineKind::Image => Box::new(image::ImageMachine::new(machine, boot)?),
    })
}

/// What a board's program calls slot A and slot B: RAUC's usual bootnames.
const BOARD_NAMES: [&str; 2] = ["A", "B"];

/// The configured backend, with its files in `esp`.
pub(crate) fn backend(boot: &config::Boot, esp: Arc<dyn EspDir>) -> Result<Arc<dyn Bootloader>, HostError> {
    Ok(match boot.backend {
        BootBackend::SystemdBoot => Arc::new(SystemdBoot::new(esp, pe::Machine::host())),
        BootBackend::Custom => {
            let program = boot.custom.command.as_ref();
            let program = program.ok_or(HostError::NotConfigured { key: "boot.custom.command" })?;
            Arc::new(Custom::new(program, BOARD_NAMES.map(str::to_owned), custom::TIMEOUT, esp))
        }
    })
}

/// Makes the state folder when it is missing: for whoever is about to change something.
pub fn make_state_dir(machine: &dyn Machine) -> Result<(), HostError> {
    let folder = machine.state_dir();
    folder.make().map_err(io_error("making", folder.path()))
}

fn run_reboot(command: &[String]) -> Result<(), HostError> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(HostError::Reboot("no command is configured".to_owned()));
    };
    let run = Command::new(program).args(arguments).output();
    let run = run.map_err(|error| HostError::Reboot(format!("{program}: {error}")))?;
    if run.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&run.stderr);
    Err(HostError::Reboot(format!("{program} ended with {}: {}", run.status, said.trim())))
}

/// For `map_err`: an [`HostError::Io`] that names the file.
fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::Io { doing, path: path.to_owned(), source }
}
