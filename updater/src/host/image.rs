//! A machine in a file: an image of its disk, a folder for its root, and a simulated power-on beside it.
//!
//! Not here: the simulated firmware itself; it chooses a slot and writes [`PowerOn`]. Rule: the same disk format, the
//! same ESP and the same flow as on a real machine; only the kernel beneath is missing.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use switchback_bootloader::esp::FatEsp;
use switchback_bootloader::record::Bootloader;
use switchback_partitions::device::disk::{Disk, ImageDisk};
use switchback_partitions::device::{Access, FileDevice, Window};
use switchback_partitions::gpt::Table;
use switchback_partitions::layout::DiskLayout;
use switchback_partitions::slot::Slot;

use super::firmware::StartsAgain;
use super::kernel::KernelView;
use super::state_dir::{Folder, StateDir};
use super::{HostError, Machine, Witness, backend, io_error, run_reboot};
use crate::config;

/// File in the state folder that says that a reboot was asked for, when no command does it.
pub const REBOOT_REQUESTED: &str = "reboot-requested";

/// File in the state folder that the simulated power-on writes, unless configured otherwise.
pub const RUNNING: &str = "running.json";

/// A slot and a boot id.
const POWER_ON_BYTES_MAX: u64 = 4096;

/// Memory of the simulated machine: 1 GiB.
const RAM_BYTES: u64 = 1 << 30;

/// What the simulated power-on left: the file that stands for the running kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerOn {
    /// The slot that the simulated firmware started.
    pub slot: Slot,
    /// New at each power-on.
    pub boot_id: String,
}

impl PowerOn {
    /// Writes the file at `path`.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string(self)?;
        text.push('\n');
        fs::write(path, text)
    }

    /// Reads the file at `path`.
    pub fn read(path: &Path) -> io::Result<PowerOn> {
        let mut text = String::new();
        fs::File::open(path)?.take(POWER_ON_BYTES_MAX).read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// The machine in a file.
pub struct ImageMachine {
    machine: config::Machine,
    boot: config::Boot,
    disk: PathBuf,
    running: PathBuf,
    state_dir: Folder,
}

impl ImageMachine {
    /// The machine that configuration describes. The image must exist.
    pub fn new(machine: config::Machine, boot: config::Boot) -> Result<ImageMachine, HostError> {
        let disk = machine.disk.clone().ok_or(HostError::NotConfigured { key: "machine.disk" })?;
        fs::metadata(&disk).map_err(|error| match error.kind() {
            // No record is at fault: the configuration names a disk that is not there.
            io::ErrorKind::NotFound => {
                HostError::Layout(format!("there is no disk image {}", disk.display()))
            }
            _ => io_error("opening", &disk)(error),
        })?;
        let running = machine.running.clone().unwrap_or_else(|| machine.state_dir.join(RUNNING));
        let state_dir = Folder::new(&machine.state_dir);
        Ok(ImageMachine { machine, boot, disk, running, state_dir })
    }
}

impl ImageMachine {
    fn open(&self, access: Access) -> Result<FileDevice, HostError> {
        let device = FileDevice::open_image(&self.disk, access, self.machine.sector_bytes);
        device.map_err(io_error("opening", &self.disk))
    }
}

fn layout_on(device: &FileDevice) -> Result<DiskLayout, HostError> {
    let table = Table::read(device).map_err(|error| HostError::Layout(error.to_string()))?;
    DiskLayout::discover(&table).map_err(|error| HostError::Layout(error.to_string()))
}

impl Machine for ImageMachine {
    fn running(&self) -> Result<Witness, HostError> {
        let path = &self.running;
        match PowerOn::read(path) {
            Ok(PowerOn { slot, boot_id }) => Ok(Witness {
                slot,
                boot_id,
                evidence: format!("the simulated power-on in {}", path.display()),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(HostError::NoWitness {
                looked_at: format!("the simulated machine is off: there is no {}", path.display()),
            }),
            Err(source) => Err(io_error("reading", path)(source)),
        }
    }

    fn disk(&self) -> Result<Arc<dyn Disk>, HostError> {
        let disk = ImageDisk::open(&self.disk, self.machine.sector_bytes);
        Ok(Arc::new(disk.map_err(io_error("opening", &self.disk))?))
    }

    fn layout(&self) -> Result<DiskLayout, HostError> {
        layout_on(&self.open(Access::Read)?)
    }

    fn bootloader(&self) -> Result<Arc<dyn Bootloader>, HostError> {
        let device = self.open(Access::ReadWrite)?;
        let layout = layout_on(&device)?;
        let esp = Window::new(Arc::new(device), layout.esp.offset, layout.esp.len);
        let esp = esp.map_err(io_error("opening the ESP of", &self.disk))?;
        backend(&self.boot, Arc::new(FatEsp::new(Arc::new(esp))))
    }

    fn state_dir(&self) -> &dyn StateDir {
        &self.state_dir
    }

    fn root(&self) -> &Path {
        &self.machine.root
    }

    fn reboot(&self) -> Result<(), HostError> {
        if !self.machine.reboot.is_empty() {
            return run_reboot(&self.machine.reboot);
        }
        let path = self.machine.state_dir.join(REBOOT_REQUESTED);
        fs::write(&path, "").map_err(io_error("writing", &path))
    }

    /// The simulated firmware knows no loader that gives up.
    fn start_again(&self, _tries: u8) -> Result<StartsAgain, HostError> {
        Ok(StartsAgain::NotNeeded)
    }

    /// A simulated machine has no hang to come back from.
    fn watchdog_held(&self) -> bool {
        false
    }

    /// The folder `kernel` beside the file of the simulated power-on.
    fn kernel(&self) -> KernelView {
        KernelView::at(&self.running.with_file_name("kernel"))
    }

    fn ram_bytes(&self) -> u64 {
        RAM_BYTES
    }

    fn compatible(&self) -> Vec<String> {
        self.machine.compatible.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Reason;

    fn settings(dir: &Path, reboot: &[&str]) -> config::Machine {
        config::Machine {
            kind: config::MachineKind::Image,
            disk: Some(dir.join("disk")),
            state_dir: dir.join("state"),
            reboot: reboot.iter().map(|word| (*word).to_owned()).collect(),
            ..config::Machine::default()
        }
    }

    fn machine(dir: &Path, reboot: &[&str]) -> ImageMachine {
        fs::write(dir.join("disk"), "").unwrap();
        let machine = ImageMachine::new(settings(dir, reboot), config::Boot::default()).unwrap();
        crate::host::make_state_dir(&machine).unwrap();
        machine
    }

    #[test]
    fn the_running_slot_is_what_the_simulated_power_on_left() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), &[]);
        let off = machine.running().unwrap_err();
        assert!(matches!(off, HostError::NoWitness { .. }), "{off}");
        let power_on = PowerOn { slot: Slot::B, boot_id: "1".into() };
        power_on.write(&dir.path().join("state").join(RUNNING)).unwrap();
        assert_eq!(machine.running().unwrap().slot, Slot::B);
        fs::write(dir.path().join("state").join(RUNNING), "{\"slot\":\"c\",\"boot_id\":\"1\"}").unwrap();
        assert!(matches!(machine.running().unwrap_err(), HostError::Io { .. }), "torn is not off");
    }

    #[test]
    fn a_reboot_runs_the_command_or_leaves_a_file_that_asks_for_it() {
        let dir = tempfile::tempdir().unwrap();
        machine(dir.path(), &[]).reboot().unwrap();
        assert!(dir.path().join("state").join(REBOOT_REQUESTED).exists());
        machine(dir.path(), &["true"]).reboot().unwrap();
        for command in ["false", "/nonexistent/program"] {
            let error = machine(dir.path(), &[command]).reboot().unwrap_err().to_string();
            assert!(error.contains(command), "{error}");
        }
    }

    #[test]
    fn an_image_without_slots_has_no_bootloader_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), &[]);
        assert!(machine.bootloader().is_err());
        for (disk, named, reason) in [
            (Some(dir.path().join("gone")), "gone", Reason::LayoutUnknown),
            (None, "machine.disk", Reason::ConfigInvalid),
        ] {
            let settings = config::Machine { disk, ..settings(dir.path(), &[]) };
            let error = ImageMachine::new(settings, config::Boot::default()).err().unwrap();
            assert!(error.to_string().contains(named), "{error}");
            assert_eq!(crate::engine::host_reason(&error), reason, "{error}");
        }
    }
}
