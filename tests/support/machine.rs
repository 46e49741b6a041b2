//! A whole machine in a folder: a disk image with simulated firmware, and the real `switchback` program upon it.
//!
//! Not here: power cuts in the middle of a write (the simulator's job). Rule: firmware, dm-verity and the file system are
//! asked as a real start would ask them: an entry whose root does not verify does not start.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use switchback::host::image::{PowerOn, REBOOT_REQUESTED};
use switchback_bootloader::esp::FatEsp;
use switchback_bootloader::systemd_boot::firmware::SimulatedFirmware;
use switchback_partitions::device::disk::{Disk as _, ImageDisk};
use switchback_partitions::gpt::Table;
use switchback_partitions::layout::DiskLayout;
use switchback_partitions::slot::Slot;
use switchback_partitions::verity::{self, RootHash};

/// More restarts than any story needs; a machine that passes them is in a loop.
const STARTS_MAX: u32 = 12;

/// What one power-on was.
#[derive(Debug, Clone)]
pub struct Boot {
    /// The slot that runs now.
    pub slot: Slot,
    /// How many starts it took to come to rest, this one included.
    pub starts: u32,
    /// What `boot-check` said in each of them.
    pub said: Vec<String>,
}

/// What the program answered to one command.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// The JSON document on its standard output.
    pub said: Value,
    /// The JSON lines on its standard error.
    pub told: String,
}

impl Answer {
    /// What a finished program left.
    pub fn of(output: &Output) -> Result<Answer> {
        let (said, told) = (text(&output.stdout), text(&output.stderr));
        let code = output.status.code().with_context(|| format!("{}: {told}", output.status))?;
        let said = serde_json::from_str(&said).with_context(|| format!("no JSON: {said}{told}"))?;
        Ok(Answer { code, said, told })
    }

    /// The number at a place such as `/traffic/fetched`.
    pub fn number(&self, at: &str) -> Result<u64> {
        self.said
            .pointer(at)
            .and_then(Value::as_u64)
            .with_context(|| format!("no number at {at} in {}", self.said))
    }
}

/// A machine in a folder.
pub struct Machine {
    folder: PathBuf,
    switchback: PathBuf,
    power_ons: u32,
}

impl Machine {
    /// A machine whose disk image is `disk` in `folder`, switched off. `settings` are further lines of its configuration.
    pub fn new(folder: &Path, switchback: &Path, settings: &str) -> Result<Machine> {
        std::fs::create_dir_all(folder.join("root"))?;
        let config = format!(
            "{settings}\n[machine]\nkind = \"image\"\ndisk = \"disk.img\"\nroot = \"root\"\nstate_dir = \"state\"\n\
             running = \"running.json\"\n"
        );
        std::fs::write(folder.join("config.toml"), config)?;
        Ok(Machine { folder: folder.to_path_buf(), switchback: switchback.to_path_buf(), power_ons: 0 })
    }

    /// A second machine in `folder` that is what this one is now, but for its configuration.
    pub fn copy(&self, folder: &Path, settings: &str) -> Result<Machine> {
        let copied =
            Command::new("cp").args(["-a", "--sparse=always"]).arg(&self.folder).arg(folder).output()?;
        ensure!(copied.status.success(), "cp: {}", text(&copied.stderr));
        let copy = Machine::new(folder, &self.switchback, settings)?;
        Ok(Machine { power_ons: self.power_ons, ..copy })
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    /// The disk image.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    /// The program, told of this machine.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.switchback);
        command.env("SWITCHBACK_PROGRESS", "none");
        command.arg("--config").arg(self.folder.join("config.toml")).args(arguments);
        command
    }

    /// Runs the program on this machine.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).output().with_context(|| format!("starting {}", self.switchback.display()))
    }

    /// Runs the program on this machine and reads its JSON answer.
    pub fn ask(&self, arguments: &[&str]) -> Result<Answer> {
        Answer::of(&self.command(arguments).arg("--json").output()?)
    }

    /// Where things lie on the disk.
    pub fn layout(&self) -> Result<DiskLayout> {
        Ok(DiskLayout::discover(&Table::read(&*self.image()?.whole()?)?)?)
    }

    /// The disk image, opened.
    pub fn image(&self) -> Result<ImageDisk> {
        Ok(ImageDisk::open(self.disk(), 512)?)
    }

    /// Where the program keeps its records.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Makes `slot` the running one without a start: for tests in which nothing is started.
    pub fn pretend(&mut self, slot: Slot) -> Result<()> {
        self.power_ons += 1;
        let boot_id = format!("00000000-0000-4000-8000-{:012}", self.power_ons);
        Ok(PowerOn { slot, boot_id }.write(&self.folder.join("running.json"))?)
    }

    /// True when the program asked for a reboot since the last power-on.
    pub fn reboot_requested(&self) -> bool {
        self.folder.join("state").join(REBOOT_REQUESTED).exists()
    }

    /// Switches the machine on and lets it come to rest, as a real one would: firmware, dm-verity, root, `boot-check`;
    /// again when that asks for a reboot.
    pub fn power_on(&mut self) -> Result<Boot> {
        let mut said = Vec::new();
        for starts in 1..=STARTS_MAX {
            let Some(slot) = self.start()? else { continue };
            let output = self.run(&["boot-check"])?;
            said.push(format!("{}{}", text(&output.stdout), text(&output.stderr)));
            if !self.reboot_requested() {
                return Ok(Boot { slot, starts, said });
            }
        }
        bail!("no rest after {STARTS_MAX} starts:\n{}", said.join("\n"))
    }

    /// One start without `boot-check`. `None` when the root did not verify: the kernel would have panicked and reset.
    pub fn start(&mut self) -> Result<Option<Slot>> {
        let _ = std::fs::remove_file(self.folder.join("state").join(REBOOT_REQUESTED));
        let (disk, layout) = (self.image()?, self.layout()?);
        let esp = FatEsp::new(disk.partition(&layout.esp)?);
        let start = SimulatedFirmware.power_on(&esp)?.context("the firmware finds nothing to start")?;
        let slot = start.slot.context("the firmware started an entry that is not ours")?;
        let options = start.entry.options.as_deref().unwrap_or_default();
        let word = options.split_whitespace().find_map(|word| word.strip_prefix("switchback.roothash="));
        let mut hash = [0; 32];
        hex::decode_to_slice(word.context("the entry names no root hash")?, &mut hash)?;
        let parts = layout.slot(slot);
        let (root, tree) = (disk.partition(&parts.root)?, disk.partition(&parts.verity)?);
        if verity::verify(&*root, &*tree, &RootHash(hash)).is_err() {
            return Ok(None);
        }
        self.mount(Arc::clone(&root), parts.root.len)?;
        self.pretend(slot)?;
        Ok(Some(slot))
    }

    /// Unpacks the slot's ext4 into the folder that stands for the running root; `debugfs` needs no root for that.
    fn mount(&self, device: Arc<dyn switchback_partitions::device::BlockDevice>, bytes: u64) -> Result<()> {
        let root = self.folder.join("root");
        std::fs::remove_dir_all(&root)?;
        std::fs::create_dir(&root)?;
        let image = self.folder.join("root.img");
        let mut raw = vec![0; usize::try_from(bytes)?];
        device.read_at(0, &mut raw)?;
        std::fs::write(&image, &raw)?;
        let script = format!("rdump / {}", root.display());
        let output = tool("debugfs")?.arg("-R").arg(script).arg(&image).output()?;
        ensure!(output.status.success(), "debugfs: {}", text(&output.stderr));
        std::fs::remove_file(&image)?;
        Ok(())
    }
}

/// A program of e2fsprogs, which every Debian has, also where `/sbin` is not in the search path.
pub fn tool(name: &str) -> Result<Command> {
    for folder in ["/sbin", "/usr/sbin", "/usr/bin"] {
        let path = Path::new(folder).join(name);
        if path.exists() {
            return Ok(Command::new(path));
        }
    }
    bail!("{name} is not installed: apt-get install e2fsprogs")
}

/// Bytes a program printed, as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
