//! Where doctor looks: the machine's own folders, or a folder with all of them in it.
//!
//! Not here: any judgement. Rule: whatever is opened is opened for reading; a partition that nobody mounted is read
//! where it lies and never mounted.

use std::io::{self, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use switchback_bootloader::esp::{EspDir, FatEsp, MountedEsp};
use switchback_partitions::device::{Access, BlockDevice, FileDevice, Window};
use switchback_partitions::gpt::Table;
use switchback_partitions::layout::DiskLayout;
use switchback_partitions::slot::Slot;

use crate::config::{Config, MachineKind};
use crate::engine::chain;
use crate::host::HostError;
use crate::host::image::{PowerOn, RUNNING};
use crate::host::loader::LoaderEvidence;
use crate::host::mounts::{KnownMount, parse_mount_table};
use crate::host::real;
use crate::host::sysfs::{DeviceNumber, Sysfs};
use crate::host::witness::{Located, Questions, locate};

/// The longest text read from `/proc`, in bytes.
const TEXT_BYTES_MAX: u64 = 64 << 10;

/// Where to look, and when it is.
#[derive(Debug, Clone)]
pub struct Place {
    /// What `/sys`, `/proc`, `/run`, `/dev` and `/etc` lie beneath.
    pub root: PathBuf,
    /// The device of `/`; asked of the file system when absent.
    pub root_device: Option<DeviceNumber>,
    /// The time, in seconds since 1970.
    pub now_unix_secs: i64,
    /// Leave the network alone.
    pub offline: bool,
}

impl Place {
    /// This machine, now.
    pub fn here(offline: bool) -> Place {
        let now_unix_secs = jiff::Timestamp::now().as_second();
        Place { root: PathBuf::from("/"), root_device: None, now_unix_secs, offline }
    }

    /// The path beneath the root; `path` is given without its first `/`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A small text of the kernel or of a service, without the white space at its end. `None` when it cannot be read.
    pub fn text(&self, path: &str) -> Option<String> {
        let bytes = crate::host::bounded::read_bounded(&self.path(path), TEXT_BYTES_MAX).ok()??;
        Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }

    /// The kernel's view of devices.
    pub fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.path("sys"))
    }

    /// The folder of the EFI variables.
    pub fn efivars(&self) -> PathBuf {
        self.path("sys/firmware/efi/efivars")
    }

    /// The mount table; empty where there is none to read.
    pub fn mounts(&self) -> Vec<KnownMount> {
        let file = std::fs::File::open(self.path("proc/self/mountinfo"));
        file.and_then(|file| parse_mount_table(BufReader::new(file))).unwrap_or_default()
    }

    /// The device of `/`.
    pub fn root_device(&self) -> io::Result<DeviceNumber> {
        match self.root_device {
            Some(device) => Ok(device),
            None => Ok(DeviceNumber::from_raw(std::fs::metadata(&self.root)?.dev())),
        }
    }
}

/// The slot that runs, and who says so.
pub struct Running {
    /// The slot.
    pub slot: Slot,
    /// The witness.
    pub evidence: String,
}

/// The boot partition.
pub struct Esp {
    /// Its files.
    pub dir: Arc<dyn EspDir>,
    /// Its bytes, as long as no kernel has it mounted: then they are not what lies in the kernel's memory.
    pub raw: Option<Arc<dyn BlockDevice>>,
    /// What it is, for people.
    pub name: String,
}

/// What several parts need, looked at once. What could not be found is a sentence.
pub struct Seen<'a> {
    /// Where.
    pub place: &'a Place,
    /// The configuration, or the defaults.
    pub config: &'a Config,
    /// Which slot runs.
    pub running: Result<Running, String>,
    /// The disk with the slots, and its layout.
    pub layout: Result<(String, DiskLayout), String>,
    /// The boot partition.
    pub esp: Result<Esp, String>,
}

impl<'a> Seen<'a> {
    /// Looks.
    pub fn look(place: &'a Place, config: &'a Config) -> Seen<'a> {
        match config.machine.kind {
            MachineKind::Disk => {
                let located = located(place, config);
                let layout = match &located {
                    Ok(located) => Ok((located.disk.clone(), located.layout.clone())),
                    Err(_) => only_layout(place, config),
                };
                let esp = esp_of_disk(place, config, &layout);
                let running = located.map(|Located { slot, evidence, .. }| Running { slot, evidence });
                Seen { place, config, running, layout, esp }
            }
            MachineKind::Image => {
                let device = image(config);
                let layout = device
                    .as_ref()
                    .map_err(Clone::clone)
                    .and_then(|(name, device)| Ok((name.clone(), discover(device)?)));
                let esp = match (&device, &layout) {
                    (Ok((name, device)), Ok((_, layout))) => raw_esp(device.clone(), layout, name),
                    (Err(why), _) | (_, Err(why)) => Err(why.clone()),
                };
                Seen { place, config, running: simulated(config), layout, esp }
            }
        }
    }

    /// True for a disk image that stands for a machine: kernel, firmware and services are those of somebody else.
    pub fn is_image(&self) -> bool {
        self.config.machine.kind == MachineKind::Image
    }

    /// The path of something in the root of the running system; `path` is given without its first `/`.
    pub fn in_root(&self, path: &str) -> PathBuf {
        self.config.machine.root.join(path)
    }
}

fn located(place: &Place, config: &Config) -> Result<Located, String> {
    let root = place.root_device().map_err(|error| format!("/ cannot be looked at ({error})"))?;
    let found = locate(&Questions {
        sysfs: &place.sysfs(),
        root,
        loader: &LoaderEvidence::read(&place.efivars()),
        cmdline: &place.text("proc/cmdline").unwrap_or_default(),
        layout_of: &|disk| real::layout_of(&place.path("dev"), config.machine.disk.as_deref(), disk),
    });
    found.map_err(|error| match error {
        HostError::NoWitness { looked_at } => looked_at,
        other => other.to_string(),
    })
}

/// Without a witness the slots may be there all the same.
fn only_layout(place: &Place, config: &Config) -> Result<(String, DiskLayout), String> {
    let disks = place.sysfs().partitioned_disks();
    let disks = disks.map_err(|error| format!("the kernel shows no disks in /sys ({error})"))?;
    let mut reasons = Vec::new();
    for disk in disks {
        match real::layout_of(&place.path("dev"), config.machine.disk.as_deref(), &disk) {
            Ok(layout) => return Ok((disk, layout)),
            Err(why) => reasons.push(format!("{disk}: {why}")),
        }
    }
    match reasons.is_empty() {
        true => Err("the kernel shows no disk with partitions".to_owned()),
        false => Err(reasons.join("; ")),
    }
}

fn esp_of_disk(
    place: &Place,
    config: &Config,
    layout: &Result<(String, DiskLayout), String>,
) -> Result<Esp, String> {
    if let Some(folder) = &config.machine.esp {
        return Ok(mounted(folder));
    }
    let (disk, layout) = layout.as_ref().map_err(Clone::clone)?;
    let sysfs = place.sysfs();
    let number = sysfs.partition_name(disk, layout.esp.number).and_then(|name| sysfs.device_number(&name));
    if let Ok(number) = number
        && let Some(mount) = place.mounts().iter().find(|mount| mount.device == number && mount.whole)
    {
        return Ok(mounted(&mount.dir));
    }
    let node = place.path("dev").join(disk);
    let device = FileDevice::open(&node, Access::Read).map_err(|error| error.to_string())?;
    raw_esp(Arc::new(device), layout, disk)
}

fn mounted(folder: &Path) -> Esp {
    Esp { dir: Arc::new(MountedEsp::new(folder)), raw: None, name: folder.display().to_string() }
}

fn raw_esp(device: Arc<dyn BlockDevice>, layout: &DiskLayout, disk: &str) -> Result<Esp, String> {
    let window = Window::new(device, layout.esp.offset, layout.esp.len).map_err(|error| error.to_string())?;
    let raw: Arc<dyn BlockDevice> = Arc::new(LookOnly(window));
    let name = format!("partition {} of {disk}", layout.esp.number);
    Ok(Esp { dir: Arc::new(FatEsp::new(raw.clone())), raw: Some(raw), name })
}

fn image(config: &Config) -> Result<(String, Arc<dyn BlockDevice>), String> {
    let path = config.machine.disk.as_ref().ok_or("no image file is configured")?;
    let device = FileDevice::open_image(path, Access::Read, config.machine.sector_bytes);
    let device = device.map_err(|error| error.to_string())?;
    Ok((path.display().to_string(), Arc::new(device)))
}

fn discover(device: &Arc<dyn BlockDevice>) -> Result<DiskLayout, String> {
    let table = Table::read(&**device).map_err(|error| chain(&error))?;
    DiskLayout::discover(&table).map_err(|error| error.to_string())
}

fn simulated(config: &Config) -> Result<Running, String> {
    let machine = &config.machine;
    let path = machine.running.clone().unwrap_or_else(|| machine.state_dir.join(RUNNING));
    let power_on = PowerOn::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Running { slot: power_on.slot, evidence: format!("the simulated power-on in {}", path.display()) })
}

/// A device that takes no write. `fatfs` notes the number of free clusters when it closes a file system that does not
/// know it; here that note goes nowhere.
struct LookOnly(Window);

impl BlockDevice for LookOnly {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn sector_bytes(&self) -> u32 {
        self.0.sector_bytes()
    }

    fn zero(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn drop_caches(&self) -> io::Result<()> {
        Ok(())
    }
}
