//! A machine that can lose its power at any step: the updater as it ships, above a recorded disk and a recorded folder.
//!
//! Not here: where the power goes (`cuts`), what must hold (`judge`). Rule: nothing is carried from one power-on to the
//! next but the image; what the firmware, the kernel and the initramfs do is done in their order and with their writes.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context as _, Result, anyhow};
use switchback::config::Config;
use switchback::engine::answers::{Answer, Reach, Request};
use switchback::engine::provision::{Provisioned, provision_with, refused};
use switchback::engine::{Engine, Failure};
use switchback::host::clock::Clock;
use switchback::host::firmware::StartsAgain;
use switchback::host::kernel::KernelView;
use switchback::host::state_dir::StateDir;
use switchback::host::{HostError, Machine, Witness};
use switchback::init::stage::{Mark, Stage};
use switchback::progress::Silent;
use switchback::reason::Reason;
use switchback_bootloader::boot_state::{BootState, SlotBoot};
use switchback_bootloader::esp::{EspDir, FatEsp};
use switchback_bootloader::record::Bootloader;
use switchback_bootloader::slot_folder;
use switchback_bootloader::systemd_boot::firmware::SimulatedFirmware;
use switchback_bootloader::systemd_boot::{SystemdBoot, pe};
use switchback_partitions::device::disk::Disk;
use switchback_partitions::device::{BlockDevice, Window};
use switchback_partitions::gpt::Table;
use switchback_partitions::layout::{DiskLayout, Extent};
use switchback_partitions::provision::{Existing, ProvisionError};
use switchback_partitions::slot::Slot;
use switchback_partitions::verity::{self, RootHash};

use super::broken::Broken;
use super::devices::{CutDisk, CutFolder, CutNodes};
use super::guarded::Guarded;
use super::image::Image;
use super::promise::Promise;
use super::recorder::{Domain, Fault, Recorder};
use super::site::Site;

/// Tries that a trial gets: few, so that a return is short.
pub const TRIES: u8 = 2;
/// More starts than any return takes.
const STARTS_MAX: u32 = 12;
/// The simulated wall clock begins here, long after anything was signed.
const EPOCH_UNIX_SECS: u64 = 2_000_000_000;

/// How a release behaves when it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fitness {
    /// Its checks pass.
    Well,
    /// Its check fails.
    Unhealthy,
    /// The kernel panics once the root is mounted.
    Panics,
    /// Nothing happens once the initramfs ran; a watchdog ends it.
    Hangs,
}

/// What one start came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// A slot's system is up; nobody judged it yet.
    Up(Slot),
    /// It died; the firmware starts again.
    Died(Slot),
    /// There is nothing to start, or something that is not ours.
    Nothing,
}

/// One machine with its power on.
pub struct World<'a> {
    /// What it was made from.
    pub site: &'a Site,
    /// What it does is written down here.
    pub recorder: Arc<Recorder>,
    /// How release 1.1 behaves; the others are well.
    pub fitness: Fitness,
    /// Which mistake its updater makes.
    pub broken: Option<Broken>,
    scratch: &'a Path,
    /// How often the power was cut before; a boot id is new at each start.
    pub cuts: usize,
    starts: AtomicU32,
}

impl<'a> World<'a> {
    /// A machine with this image, its power off, after so many cuts.
    pub fn new(
        site: &'a Site,
        scratch: &'a Path,
        image: Image,
        fitness: Fitness,
        broken: Option<Broken>,
        fault: Option<Fault>,
        cuts: usize,
    ) -> Result<World<'a>> {
        let recorder = Arc::new(Recorder::new(image, fault, site.guard()?));
        Ok(World { site, recorder, fitness, broken, scratch, cuts, starts: AtomicU32::new(0) })
    }

    /// The disk, as the updater has it.
    fn nodes(&self) -> CutNodes {
        CutNodes { recorder: self.recorder.clone(), broken: self.broken }
    }

    /// The disk, as the firmware has it.
    fn firmwares_disk(&self) -> Arc<dyn BlockDevice> {
        Arc::new(CutDisk::new(self.recorder.clone(), Domain::Firmware))
    }

    /// The boot partition, as the updater has it.
    pub fn esp(&self) -> Result<Arc<dyn EspDir>> {
        let esp = Arc::new(FatEsp::new(self.nodes().partition(&self.site.layout.esp)?));
        Ok(match self.broken {
            Some(broken) => broken.esp(esp),
            None => esp,
        })
    }

    /// The boot partition, as the firmware has it.
    fn firmwares_esp(&self) -> Result<Arc<dyn EspDir>> {
        let extent = &self.site.layout.esp;
        let window = Window::new(self.firmwares_disk(), extent.offset, extent.len)?;
        Ok(Arc::new(FatEsp::new(Arc::new(window))))
    }

    /// The state folder.
    pub fn folder(&self) -> Box<dyn StateDir> {
        let folder = CutFolder::new(self.recorder.clone(), self.scratch);
        match self.broken {
            Some(broken) => broken.folder(folder),
            None => Box::new(folder),
        }
    }

    /// What the boot record says.
    pub fn boot(&self) -> Result<BootState> {
        Ok(SystemdBoot::new(self.esp()?, pe::Machine::host()).read()?)
    }

    /// How often something was started.
    pub fn starts(&self) -> u32 {
        self.starts.load(Ordering::Relaxed)
    }

    fn boot_id(&self) -> String {
        format!("{:08}-0000-4000-8000-{:012}", self.cuts, self.starts())
    }

    /// The power comes on, or the machine restarts: firmware, dm-verity, initramfs.
    pub fn start(&self) -> Result<Start> {
        self.recorder.starts();
        self.starts.fetch_add(1, Ordering::Relaxed);
        // Without a partition table a firmware finds no boot partition. It reads the second copy where the first is torn.
        if Table::read(&self.firmwares_disk()).is_err() {
            return Ok(Start::Nothing);
        }
        let esp = self.firmwares_esp()?;
        // The model of the loader asserts that `BootState` foretells it.
        let started = catch_unwind(AssertUnwindSafe(|| SimulatedFirmware.power_on(&*esp)));
        let started = started.map_err(|_| anyhow!("the loader did not do what the boot state says"))?;
        let Some(started) = started? else { return Ok(Start::Nothing) };
        let Some(slot) = started.slot else { return Ok(Start::Nothing) };
        let options = started.entry.options.unwrap_or_default();
        let root_hash = options.split_whitespace().find_map(|word| word.strip_prefix("switchback.roothash="));
        let root_hash = root_hash.context("the entry names no root hash")?;
        self.check_files(&*esp, slot, root_hash)?;
        let fitness = match self.site.by_root_hash(root_hash).map(|release| release.version) {
            Some("1.1") => self.fitness,
            _ => Fitness::Well,
        };
        let confirmed = SystemdBoot::new(esp, pe::Machine::host()).read()?.slot(slot) == SlotBoot::Good;
        self.recorder.runs(Some(slot.index()), confirmed);
        self.mark(slot, root_hash, Stage::Initramfs);
        if fitness != Fitness::Hangs {
            self.mark(slot, root_hash, Stage::RootMounted);
        }
        Ok(match fitness {
            Fitness::Hangs | Fitness::Panics => {
                self.recorder.dies();
                Start::Died(slot)
            }
            Fitness::Well | Fitness::Unhealthy => Start::Up(slot),
        })
    }

    /// As `switchback init` does; where the folder cannot be written it goes on.
    fn mark(&self, slot: Slot, root_hash: &str, stage: Stage) {
        let mark = Mark { slot, boot_id: self.boot_id(), root_hash: root_hash.to_owned(), stage };
        let _ = mark.write(&CutFolder::new(self.recorder.clone(), self.scratch));
    }

    /// What a real start would find out: kernel and initramfs are a release's own, the root's blocks verify.
    fn check_files(&self, esp: &dyn EspDir, slot: Slot, root_hash: &str) -> Result<()> {
        let known = self.site.by_root_hash(root_hash);
        let known = known.with_context(|| format!("slot {slot} names a root of no release: {root_hash}"))?;
        for (name, expected) in &self.site.boot_files {
            let path = format!("{}/{name}", slot_folder(slot));
            let found = esp.read(&path, 1 << 20).with_context(|| format!("slot {slot}: {name}"))?;
            anyhow::ensure!(found == *expected, "slot {slot}: {name} is not what {} brought", known.version);
        }
        let mut hash = [0; 32];
        hex::decode_to_slice(root_hash, &mut hash)?;
        let parts = self.site.layout.slot(slot);
        let disk = self.firmwares_disk();
        let root = Window::new(disk.clone(), parts.root.offset, parts.root.len)?;
        let tree = Window::new(disk, parts.verity.offset, parts.verity.len)?;
        verity::verify(&root, &tree, &RootHash(hash))
            .with_context(|| format!("slot {slot}: the root of {} does not verify", known.version))?;
        Ok(())
    }

    /// One run of the program, on the slot that runs. `None`: it restarted the machine.
    pub fn ask(
        &self,
        running: Slot,
        source: &str,
        request: Request,
    ) -> Result<(Result<Answer, Failure>, bool)> {
        let mut config = self.site.config(source);
        config.boot.tries = TRIES;
        let machine = SimMachine::new(self, running);
        let answer = self.engine(&machine, &config, request);
        Ok((answer, machine.reboots()))
    }

    fn engine(&self, machine: &SimMachine<'_>, config: &Config, request: Request) -> Result<Answer, Failure> {
        Engine::open(machine, config, &Silent, true)?.handle(request)
    }

    /// Starts, judges and restarts until the machine stays up. What it says at the end, and the slot; `None` when it
    /// comes up nowhere.
    pub fn settle(&self) -> Result<Option<Slot>> {
        for _ in 0..STARTS_MAX {
            match self.start()? {
                Start::Nothing => return Ok(None),
                Start::Died(_) => {}
                Start::Up(slot) => {
                    let (answer, reboots) = self.ask(slot, "1.1", Request::BootCheck { no_reboot: false })?;
                    if !reboots {
                        answer.map_err(|failure| anyhow!("boot-check: {failure}"))?;
                        return Ok(Some(slot));
                    }
                }
            }
        }
        self.recorder.broken(Promise::Settles, format!("no rest after {STARTS_MAX} starts"));
        Ok(None)
    }

    /// The disk is made from nothing, or over whatever is on it, by somebody else's machine.
    pub fn provision(&self) -> Result<Provisioned, Failure> {
        self.recorder.runs(None, false);
        self.recorder.new_process();
        let internal = |error: anyhow::Error| Failure::before(Reason::Internal, io::Error::other(error));
        let wish = self.site.wish(self.scratch).map_err(internal)?;
        let disk: Arc<dyn Disk> = Arc::new(self.nodes());
        provision_with(&wish, &Silent, &|plan| {
            let made = plan.execute_with(&*disk, Existing::Overwrite, &|disk, extent, _| {
                self.make_ext4(disk, extent)
                    .map_err(|source| ProvisionError::Io { action: "making ext4", source })
            });
            Ok((disk.clone(), made.map_err(refused)?))
        })
    }

    /// Writes what `mkfs.ext4` wrote when the site was made, in the order of its places, and flushes nothing.
    fn make_ext4(&self, disk: &dyn Disk, extent: &Extent) -> io::Result<()> {
        let device = disk.partition(extent)?;
        let row_bytes = self.site.sector_bytes as u64;
        let row = |number: u64| &self.site.fresh.row(extent.offset / row_bytes + number).bytes;
        let used = |number: &u64| row(*number).iter().any(|byte| *byte != 0);
        let mut rows = (0..extent.len / row_bytes).filter(used).peekable();
        while let Some(first) = rows.next() {
            let mut bytes = row(first).to_vec();
            let mut next = first + 1;
            while rows.next_if_eq(&next).is_some() {
                bytes.extend_from_slice(row(next));
                next += 1;
            }
            device.write_at(first * row_bytes, &bytes)?;
        }
        Ok(())
    }

    /// An order to move to `version`, and the restart that it asks for.
    pub fn update(&self, running: Slot, version: &str, reach: Reach) -> Result<Result<Answer, Failure>> {
        Ok(self.ask(running, version, Request::Update { to: None, reach })?.0)
    }
}

/// The machine that the updater is given.
struct SimMachine<'w> {
    world: &'w World<'w>,
    running: Slot,
    folder: Box<dyn StateDir>,
    root: PathBuf,
    reboot: AtomicBool,
}

impl<'w> SimMachine<'w> {
    fn new(world: &'w World<'w>, running: Slot) -> SimMachine<'w> {
        world.recorder.new_process();
        let root =
            world.site.root(world.fitness != Fitness::Unhealthy || world.running_version(running) != "1.1");
        SimMachine { world, running, folder: world.folder(), root, reboot: AtomicBool::new(false) }
    }

    fn reboots(&self) -> bool {
        self.reboot.load(Ordering::Relaxed)
    }
}

impl World<'_> {
    /// The version in a slot, by its entry.
    pub fn running_version(&self, slot: Slot) -> &str {
        let mine = format!("switchback-{slot}-");
        let found = self.firmwares_esp().ok().and_then(|esp| {
            let names = esp.list("loader/entries").ok()?;
            let texts = names
                .iter()
                .filter(|entry| entry.name.starts_with(&mine) && entry.name.ends_with(".conf"))
                .filter_map(|entry| esp.read(&format!("loader/entries/{}", entry.name), 4096).ok());
            let texts: Vec<String> = texts.map(|text| String::from_utf8_lossy(&text).into_owned()).collect();
            self.site
                .releases
                .iter()
                .find(|release| texts.iter().any(|text| text.contains(&release.root_hash)))
        });
        found.map_or("", |release| release.version)
    }
}

impl Machine for SimMachine<'_> {
    fn running(&self) -> Result<Witness, HostError> {
        let slot = match self.world.broken {
            Some(broken) => broken.running(self.running, &*self.folder),
            None => self.running,
        };
        Ok(Witness { slot, evidence: "the simulator".into(), boot_id: self.world.boot_id() })
    }

    fn disk(&self) -> Result<Arc<dyn Disk>, HostError> {
        let disk = Arc::new(self.world.nodes());
        Ok(match self.world.broken {
            Some(broken) => broken.disk(disk, &self.world.site.layout, self.running),
            None => disk,
        })
    }

    fn layout(&self) -> Result<DiskLayout, HostError> {
        let table = Table::read(&self.world.nodes().node(0));
        let table = table.map_err(|error| HostError::Layout(error.to_string()))?;
        DiskLayout::discover(&table).map_err(|error| HostError::Layout(error.to_string()))
    }

    fn bootloader(&self) -> Result<Arc<dyn Bootloader>, HostError> {
        let esp = self.world.esp().map_err(|error| HostError::Layout(error.to_string()))?;
        let real = Arc::new(SystemdBoot::new(esp.clone(), pe::Machine::host()));
        let recorder = self.world.recorder.clone();
        let facts = CutFolder::new(recorder.clone(), self.world.scratch);
        let (running, fit) = (self.running, self.root == self.world.site.root(true));
        let guarded = Arc::new(Guarded { inner: real, recorder, facts, running, fit });
        Ok(match self.world.broken {
            Some(broken) => broken.bootloader(guarded, esp, self.running),
            None => guarded,
        })
    }

    fn state_dir(&self) -> &dyn StateDir {
        &*self.folder
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn reboot(&self) -> Result<(), HostError> {
        if self.world.broken != Some(Broken::NeverReboots) {
            self.reboot.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn start_again(&self, _tries: u8) -> Result<StartsAgain, HostError> {
        Ok(StartsAgain::NotNeeded)
    }

    fn watchdog_held(&self) -> bool {
        true
    }

    fn kernel(&self) -> KernelView {
        KernelView::at(&self.world.scratch.join("kernel"))
    }

    fn ram_bytes(&self) -> u64 {
        1 << 30
    }

    fn compatible(&self) -> Vec<String> {
        Vec::new()
    }

    fn clock(&self) -> Clock {
        let lives = self.world.cuts as u64 * 1000;
        Clock { uptime_secs: 60, unix_secs: EPOCH_UNIX_SECS + lives + u64::from(self.world.starts()) * 60 }
    }
}
