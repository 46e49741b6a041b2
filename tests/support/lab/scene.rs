//! One scenario's machine, and what it may be asked.
//!
//! Rule: boots are counted at the firmware, so that a boot which dies before the root is counted too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::fixtures::Lab;
use super::qemu::{Answer, BOOT_TIMEOUT, Hardware, Machine, Vm};
use super::release::{Loader, Release};
use super::tools;

/// How long a command in the guest may take, a whole update included.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);

/// OVMF says so once for each start of the loader.
const FIRMWARE_MARK: &str = "BdsDxe: starting Boot";

/// How many starts a release on trial has.
pub const TRIES: usize = 3;

/// A scenario on its way.
pub struct Scene<'a> {
    lab: &'a Lab,
    name: String,
    folder: PathBuf,
    machine: Option<Machine>,
    vm: Option<Vm>,
    earlier_boots: usize,
    /// What the history says of the last return, for the table.
    reason: Option<String>,
    echo: bool,
}

impl<'a> Scene<'a> {
    /// An empty scene; with `echo` the console is shown as it comes.
    pub fn open(lab: &'a Lab, name: &str, echo: bool) -> Result<Scene<'a>> {
        let folder = lab.scenario_folder(name)?;
        Ok(Scene {
            lab,
            name: name.to_owned(),
            folder,
            machine: None,
            vm: None,
            earlier_boots: 0,
            reason: None,
            echo,
        })
    }

    /// Brings in a machine whose slot A was provisioned with `recipe`, and switches it on.
    pub fn power_on_with(&mut self, recipe: &dyn Release, loader: Loader, watchdog: bool) -> Result<()> {
        self.bring(|disk, lab| lab.disk(recipe, loader, disk))?;
        self.rebuild(|hardware| hardware.watchdog = watchdog)?;
        self.power_on()?;
        self.expect_ready(recipe.version())
    }

    /// Brings in a machine, switched off, with the disk that `make` makes at the path it is given; returns that path.
    pub fn bring(&mut self, make: impl FnOnce(&Path, &Lab) -> Result<()>) -> Result<PathBuf> {
        let disk = self.folder.join("disk.img");
        make(&disk, self.lab)?;
        let hardware = Hardware { echo: self.echo, ..self.lab.hardware(&self.name) };
        self.machine = Some(Machine::new(&self.folder, &disk, hardware)?);
        Ok(disk)
    }

    /// Exchanges hardware of the machine, which is off.
    pub fn rebuild(&mut self, change: impl FnOnce(&mut Hardware)) -> Result<()> {
        self.machine.as_mut().context("the scene has no machine yet")?.rebuild(change);
        Ok(())
    }

    /// Switches the machine on.
    pub fn power_on(&mut self) -> Result<()> {
        let machine = self.machine.as_mut().context("the scene has no machine yet")?;
        self.vm = Some(machine.start()?);
        Ok(())
    }

    /// Publishes a release on this scene's channel; returns its digest.
    pub fn publish(&self, recipe: &dyn Release) -> Result<String> {
        self.lab.publish(recipe, &self.name)
    }

    /// Publishes a release that was made otherwise; returns its digest.
    pub fn publish_layout(&self, layout: &Path, version: &str) -> Result<String> {
        self.lab.publish_layout(layout, version, &self.name)
    }

    /// The scene's name, which its channel has too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab that the scene is in.
    pub fn lab(&self) -> &'a Lab {
        self.lab
    }

    /// The scene's own folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The machine, which is on.
    pub fn vm(&self) -> Result<&Vm> {
        self.vm.as_ref().context("the machine is off")
    }

    /// Waits until the machine takes commands again, and returns the version that it runs.
    pub fn wait_ready(&self, timeout: Duration) -> Result<String> {
        self.vm()?.wait_ready(timeout)
    }

    /// Waits for the next boot to end in `version`.
    pub fn expect_ready(&self, version: &str) -> Result<()> {
        let running = self.wait_ready(BOOT_TIMEOUT)?;
        ensure!(running == version, "the machine came up with {running}, not {version}\n{}", self.explain());
        Ok(())
    }

    /// Runs a script in the guest.
    pub fn run(&self, script: &str) -> Result<Answer> {
        self.vm()?.run(script, COMMAND_TIMEOUT)
    }

    /// The answer of one of the updater's verbs.
    pub fn ask(&self, verb: &str) -> Result<Value> {
        // Progress goes to standard error as JSON lines; the answer alone to standard output.
        let text = self.run(&format!("switchback --json {verb} 2>/run/lab/progress"))?.ok()?;
        serde_json::from_str(&text)
            .with_context(|| format!("`switchback {verb}` answers what is not JSON:\n{text}"))
    }

    /// Starts a command that ends in a reboot; returns the version that the machine takes commands with again.
    pub fn reboots(&self, command: &str, timeout: Duration) -> Result<String> {
        let vm = self.vm()?;
        let from = vm.console().len();
        vm.start(&format!("{command} || echo LAB-FAILED $?"))?;
        let deadline = Instant::now() + timeout;
        loop {
            // In slices, so that a command which fails ends the wait at once.
            let ready = vm.wait_ready(Duration::from_secs(1));
            let failed = vm.console().wait_for("LAB-FAILED", from, Duration::ZERO).is_ok();
            ensure!(!failed, "`{command}` failed; the console:\n{}\n{}", vm.console().tail(), self.explain());
            if ready.is_ok() || Instant::now() > deadline || vm.console().is_closed() {
                return ready;
            }
        }
    }

    /// Updates and reboots.
    pub fn update(&self, words: &str) -> Result<String> {
        self.reboots(&format!("switchback --json update {words} --reboot"), BOOT_TIMEOUT)
    }

    /// What `status` says, as far as the scenarios care.
    pub fn status(&self) -> Result<Status> {
        let answer = self.ask("status")?;
        Status::read(&answer).with_context(|| format!("`status` answers:\n{answer:#}"))
    }

    /// The machine runs `version`, confirmed, and nothing is under way.
    pub fn expect_settled(&self, version: &str) -> Result<()> {
        let status = self.status()?;
        let settled = status.version == version && status.good && status.state == "idle";
        ensure!(settled, "expected {version} confirmed and idle, found {status:?}\n{}", self.explain());
        Ok(())
    }

    /// The machine runs `version`, confirmed, whatever is under way.
    pub fn expect_running_good(&self, version: &str) -> Result<()> {
        let status = self.status()?;
        let good = status.version == version && status.good;
        ensure!(good, "expected {version} confirmed, found {status:?}\n{}", self.explain());
        Ok(())
    }

    /// Pulls the plug.
    pub fn kill(&mut self) -> Result<()> {
        let vm = self.vm.take().context("the machine is off")?;
        self.earlier_boots += vm.console().count(FIRMWARE_MARK)?;
        vm.kill()
    }

    /// Switches the machine off in an orderly way, so that its file systems are clean.
    pub fn power_off(&mut self) -> Result<&Path> {
        let vm = self.vm.take().context("the machine is off")?;
        self.earlier_boots += vm.console().count(FIRMWARE_MARK)?;
        // systemd unmounts everything in its own order, the ESP too; its `poweroff -f` would not.
        let order = "[ ! -d /run/systemd/system ] || exec systemctl poweroff";
        vm.start(&format!("cd /; sync; {order}; umount /var/lib/switchback; sync; poweroff -f"))?;
        vm.wait_off(BOOT_TIMEOUT)?;
        self.machine.as_ref().map(Machine::disk).context("the scene has no machine yet")
    }

    /// Waits until the machine, which was told so, has switched itself off.
    pub fn wait_off(&mut self) -> Result<()> {
        let vm = self.vm.take().context("the machine is off")?;
        let console = vm.console().clone();
        vm.wait_off(BOOT_TIMEOUT)?;
        self.earlier_boots += console.count(FIRMWARE_MARK)?;
        Ok(())
    }

    /// Starts of the firmware's first choice since the beginning.
    pub fn boots(&self) -> usize {
        let now = self.vm.as_ref().and_then(|vm| vm.console().count(FIRMWARE_MARK).ok());
        self.earlier_boots + now.unwrap_or(0)
    }

    /// Counts boots of a machine that the scenario started by itself.
    pub fn count_boots(&mut self, boots: usize) {
        self.earlier_boots += boots;
    }

    /// The reason that the history gives for the last entry of the release `digest`.
    pub fn reason_of(&mut self, digest: &str) -> Result<String> {
        let history = self.ask("history")?;
        let entries = history["entries"].as_array().into_iter().flatten();
        let last = entries.rev().find(|entry| entry["digest"] == digest);
        let reason = last.and_then(|entry| entry["reason"].as_str());
        let reason =
            reason.with_context(|| format!("the history gives no reason for {digest}: {history:#}"))?;
        self.reason = Some(reason.to_owned());
        Ok(reason.to_owned())
    }

    /// The reason that was asked for last.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// What the machine says about itself, for an error.
    pub fn explain(&self) -> String {
        let words = self.run("switchback status; switchback history; mount; dmesg | tail -n 20");
        words.map_or_else(|error| format!("(it does not answer: {error:#})"), |answer| answer.text)
    }

    /// Switches off and removes what nobody will look at.
    pub fn strike(self) {
        let folder = self.folder.clone();
        drop(self);
        // What stays goes with the run's folder.
        let _ = fs::remove_dir_all(folder);
    }

    /// Switches off and moves logs and disk to where a person finds them.
    pub fn keep_evidence(&mut self) -> Result<PathBuf> {
        self.vm = None;
        let kept = tools::lab_folder().join("failed").join(&self.name);
        if kept.exists() {
            fs::remove_dir_all(&kept)?;
        }
        fs::create_dir_all(kept.parent().context("a folder has a parent")?)?;
        fs::rename(&self.folder, &kept)?;
        Ok(kept)
    }
}

/// The part of `status` that the scenarios look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The slot that runs.
    pub slot: String,
    /// The version that runs.
    pub version: String,
    /// Its slot is confirmed.
    pub good: bool,
    /// What the update's life is at.
    pub state: String,
    /// Digests in quarantine.
    pub quarantine: Vec<String>,
}

impl Status {
    fn read(answer: &Value) -> Option<Status> {
        let running = answer["slots"].as_array()?.iter().find(|slot| slot["running"] == true)?;
        let quarantine = answer["quarantine"].as_array()?.iter().map(|item| item["digest"].as_str());
        Some(Status {
            slot: running["slot"].as_str()?.to_owned(),
            version: running["release"]["version"].as_str()?.to_owned(),
            good: running["boot"]["state"] == "good",
            state: answer["state"].as_str()?.to_owned(),
            quarantine: quarantine.map(|digest| digest.map(str::to_owned)).collect::<Option<_>>()?,
        })
    }
}
