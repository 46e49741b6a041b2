//! The machine this program runs on.
//!
//! Not here: any decision. Rule: the running slot is what the kernel stands on; the loader and the command line are
//! asked for a cross-check, and believed only where the kernel's own answer cannot be had.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::reboot::{RebootMode, reboot};
use switchback_bootloader::esp::MountedEsp;
use switchback_bootloader::record::Bootloader;
use switchback_partitions::device::disk::{BlockDisk, Disk};
use switchback_partitions::device::{Access, FileDevice};
use switchback_partitions::gpt::Table;
use switchback_partitions::layout::DiskLayout;

use super::firmware::{self, StartsAgain};
use super::kernel::KernelView;
use super::loader::{EFIVARS, LoaderEvidence};
use super::mounts::{Mounted, mount_table};
use super::state_dir::{Folder, StateDir};
use super::sysfs::{DeviceNumber, Sysfs, read_attribute};
use super::witness::{Located, Questions, locate};
use super::{HostError, Machine, Witness, backend, io_error, run_reboot};
use crate::config;
use crate::init::BOOT_ID;

/// Where the ESP is mounted for the length of one command when nobody else mounted it.
const ESP_DIR: &str = "/run/switchback/esp";

/// Present while systemd is PID 1 (`sd_booted(3)`).
const SYSTEMD_RUNS: &str = "/run/systemd/system";

/// The running machine.
pub struct RealMachine {
    machine: config::Machine,
    boot: config::Boot,
    sysfs: Sysfs,
    state_dir: Folder,
    /// Held as long as the machine, because the backend that was handed out works in that folder.
    esp: Mutex<Option<Arc<Mounted>>>,
}

impl RealMachine {
    /// The machine that configuration describes.
    pub fn new(machine: config::Machine, boot: config::Boot) -> RealMachine {
        let state_dir = Folder::new(&machine.state_dir);
        RealMachine { machine, boot, sysfs: Sysfs::of_this_machine(), state_dir, esp: Mutex::new(None) }
    }
}

impl RealMachine {
    fn locate(&self) -> Result<Located, HostError> {
        let root = fs::metadata("/").map_err(io_error("looking at", Path::new("/")))?;
        locate(&Questions {
            sysfs: &self.sysfs,
            root: DeviceNumber::from_raw(root.dev()),
            loader: &LoaderEvidence::read(Path::new(EFIVARS)),
            cmdline: &read_attribute(Path::new("/proc/cmdline")).unwrap_or_default(),
            layout_of: &|disk| self.read_layout(disk),
        })
    }

    /// A disk's layout by its name beneath `/dev`; only that of the configured disk when one is configured.
    fn read_layout(&self, disk: &str) -> Result<DiskLayout, String> {
        layout_of(Path::new("/dev"), self.machine.disk.as_deref(), disk)
    }

    fn block_disk(&self, located: &Located) -> Result<BlockDisk, HostError> {
        let node = Path::new("/dev").join(&located.disk);
        BlockDisk::open(&node).map_err(io_error("opening", &node))
    }

    /// The ESP's folder: where it is mounted already, or a mount that lasts as long as this machine value.
    fn mounted_esp(&self) -> Result<Arc<Mounted>, HostError> {
        let mut esp = self.esp.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mounted) = &*esp {
            return Ok(mounted.clone());
        }
        let located = self.locate()?;
        let disk = self.block_disk(&located)?;
        let node =
            disk.partition_node(&located.layout.esp).map_err(io_error("finding the ESP of", disk.node()))?;
        let device = fs::metadata(&node).map_err(io_error("looking at", &node))?.rdev();
        let table = mount_table().map_err(io_error("reading", Path::new("/proc/self/mountinfo")))?;
        let mounted =
            Mounted::find_or_mount(&table, DeviceNumber::from_raw(device), &node, Path::new(ESP_DIR));
        let mounted = Arc::new(mounted.map_err(io_error("mounting", &node))?);
        *esp = Some(mounted.clone());
        Ok(mounted)
    }
}

/// The layout of `disk` beneath `dev`, or a sentence why it has none for us. Opened for reading only.
pub(crate) fn layout_of(dev: &Path, configured: Option<&Path>, disk: &str) -> Result<DiskLayout, String> {
    let node = dev.join(disk);
    if let Some(configured) = configured
        && fs::canonicalize(configured).ok().as_deref() != Some(&*node)
    {
        return Err(format!("{disk} is not the configured disk {}", configured.display()));
    }
    let device = FileDevice::open(&node, Access::Read).map_err(|error| error.to_string())?;
    let table = Table::read(&device).map_err(|error| error.to_string())?;
    DiskLayout::discover(&table).map_err(|error| error.to_string())
}

impl Machine for RealMachine {
    fn running(&self) -> Result<Witness, HostError> {
        let located = self.locate()?;
        let boot_id = Path::new(BOOT_ID);
        let boot_id = read_attribute(boot_id).map_err(io_error("reading", boot_id))?;
        Ok(Witness { slot: located.slot, evidence: located.evidence, boot_id })
    }

    fn disk(&self) -> Result<Arc<dyn Disk>, HostError> {
        Ok(Arc::new(self.block_disk(&self.locate()?)?))
    }

    fn layout(&self) -> Result<DiskLayout, HostError> {
        Ok(self.locate()?.layout)
    }

    fn bootloader(&self) -> Result<Arc<dyn Bootloader>, HostError> {
        let esp = match &self.machine.esp {
            Some(mounted) => MountedEsp::new(mounted),
            None => MountedEsp::new(self.mounted_esp()?.dir()),
        };
        backend(&self.boot, Arc::new(esp))
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
        if Path::new(SYSTEMD_RUNS).exists() {
            // Services are stopped in their order; a bare system call would cut them off.
            return run_reboot(&["systemctl", "--no-block", "reboot"].map(str::to_owned));
        }
        // The call does not return: a mount that is only taken away at the end of this value would leave the ESP marked
        // as not properly unmounted, for good.
        *self.esp.lock().unwrap_or_else(PoisonError::into_inner) = None;
        nix::unistd::sync();
        let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
        Err(HostError::Reboot(errno.to_string()))
    }

    fn start_again(&self, tries: u8) -> Result<StartsAgain, HostError> {
        if self.boot.backend == config::BootBackend::Custom || !self.boot.firmware_options {
            return Ok(StartsAgain::NotNeeded);
        }
        let efivars = Path::new(EFIVARS);
        let esp = self.locate()?.layout.esp.guid;
        // A loader from a rescue stick must not be what the firmware comes back to.
        if LoaderEvidence::read(efivars).loader_partition.is_some_and(|guid| guid != esp) {
            let elsewhere = io::Error::other("the loader that started this system lies on another disk");
            return Err(io_error("registering boot options in", efivars)(elsewhere));
        }
        firmware::start_again(efivars, tries).map_err(io_error("registering boot options in", efivars))
    }

    fn watchdog_held(&self) -> bool {
        self.sysfs.watchdogs().iter().any(|watchdog| watchdog.active)
    }

    fn kernel(&self) -> KernelView {
        KernelView::of_this_machine(Path::new(SYSTEMD_RUNS).exists())
    }

    fn ram_bytes(&self) -> u64 {
        use procfs::Current;
        procfs::Meminfo::current().map_or(0, |memory| memory.mem_total)
    }

    fn compatible(&self) -> Vec<String> {
        match self.machine.compatible.as_slice() {
            [] => self.sysfs.board_names(),
            configured => configured.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(dir: &Path, change: impl FnOnce(&mut config::Machine)) -> RealMachine {
        let mut machine = config::Machine { state_dir: dir.join("state"), ..config::Machine::default() };
        change(&mut machine);
        RealMachine::new(machine, config::Boot::default())
    }

    #[test]
    fn a_machine_without_slots_says_what_was_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), |_| ());
        assert!(!machine.state_dir().path().exists(), "whoever only looks makes no folder");
        // Whatever runs the tests has no layout of two slots, so this is the refusal itself.
        let error = machine.running().unwrap_err().to_string();
        assert!(error.starts_with("while finding the running slot: / is on "), "{error}");
        assert!(machine.disk().is_err());
        assert!(machine.bootloader().is_err());
    }

    #[test]
    fn only_the_configured_disk_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), |machine| machine.disk = Some("/dev/null".into()));
        let refused = machine.read_layout("zero").unwrap_err();
        assert_eq!(refused, "zero is not the configured disk /dev/null");
    }

    #[test]
    fn an_esp_that_configuration_names_needs_no_search() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), |machine| machine.esp = Some(dir.path().into()));
        assert_eq!(machine.bootloader().unwrap().name(), "systemd-boot");
    }

    #[test]
    fn memory_is_counted_in_bytes_and_configured_names_stand_for_the_boards_own() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), |machine| machine.compatible = vec!["acme-box".into()]);
        assert!(machine.ram_bytes() > 1 << 26);
        assert_eq!(machine.compatible(), ["acme-box"]);
    }

    #[test]
    fn a_configured_reboot_command_is_what_is_run() {
        let dir = tempfile::tempdir().unwrap();
        let asked = dir.path().join("asked");
        let touch = vec!["touch".to_owned(), asked.to_string_lossy().into_owned()];
        machine(dir.path(), |machine| machine.reboot = touch).reboot().unwrap();
        assert!(asked.exists());
    }
}
