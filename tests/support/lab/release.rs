//! Releases for the lab: a busybox root with the static updater, good or bad in one chosen way.
//!
//! Not here: where they are pushed (`fixtures`). Rule: a bad release differs from a good one in its temper and version
//! alone, so that what comes back is told apart by nothing else.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::fixtures::Lab;
use super::{boot_files, tools};

/// Short, so that a scenario does not wait; long enough for a busy host.
const DEADLINES: &str = "switchback.deadline=60 switchback.init-deadline=40";

/// The product that the lab's machines are.
pub const PRODUCT: &str = "lab";

/// How a release behaves once its root is PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Temper {
    /// Comes up and is healthy.
    Good,
    /// The kernel panics.
    Panics,
    /// Comes up, and its health check fails.
    Unhealthy,
    /// PID 1 ends.
    Exits,
    /// PID 1 spins for ever: nothing judges the trial, its deadline ends it.
    Hangs,
    /// Every process stands still, the watchdog's keeper too: the watchdog ends it.
    Freezes,
    /// The initramfs waits for ever, before it has loaded any driver.
    HangsEarly,
    /// Comes up without a network, which its health check asks for.
    Offline,
    /// Comes up, and has no updater to judge it.
    Updaterless,
    /// Good, and takes its time to say so.
    Slow,
}

impl Temper {
    fn word(self) -> &'static str {
        match self {
            Temper::Good => "good",
            Temper::Panics => "panics",
            Temper::Unhealthy => "unhealthy",
            Temper::Exits => "exits",
            Temper::Hangs => "hangs",
            Temper::Freezes => "freezes",
            Temper::HangsEarly => "hangs-early",
            Temper::Offline => "offline",
            Temper::Updaterless => "updaterless",
            Temper::Slow => "slow",
        }
    }
}

/// Debian's kernels for virtual machines, as `tests/tools/fetch` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernel {
    /// 6.1: the faster one to boot.
    V6_1,
    /// 6.12: has the driver of QEMU's watchdog.
    V6_12,
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Kernel::V6_1 => "kernel61",
            Kernel::V6_12 => "kernel612",
        }
    }

    /// The kernel's file and its folder of modules.
    pub fn files(self) -> Result<(PathBuf, PathBuf)> {
        let folder = tools::fetched(self.name())?;
        let mut versions = fs::read_dir(folder.join("lib/modules"))?;
        let modules = versions.next().context("the kernel came without modules")??.path();
        Ok((folder.join("vmlinuz"), modules))
    }
}

/// systemd-boot: its versions differ in what they tell the system and in how they treat a kernel that does not load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Loader {
    /// The one of Debian 12.
    #[default]
    V252,
    /// The one of Debian 13.
    V257,
    /// The one of Debian 14: the first here that restarts the machine when a kernel does not load.
    V262,
}

impl Loader {
    /// Its file, when it is not the one that is installed.
    pub fn file(self) -> Result<Option<PathBuf>> {
        match self {
            Loader::V252 => Ok(None),
            Loader::V257 => tools::fetched("systemd257").map(Some),
            Loader::V262 => tools::fetched("systemd262").map(Some),
        }
    }
}

/// A release that the lab can build, whatever its root is made of.
pub trait Release {
    /// A name that no other release has.
    fn name(&self) -> String;
    /// Its version.
    fn version(&self) -> &str;
    /// How large the slots of a disk for it are, as `provision` reads it.
    fn slot_size(&self) -> &'static str;
    /// How large the state partition of a disk for it is.
    fn state_size(&self) -> &'static str {
        "64M"
    }
    /// Builds it as an OCI layout folder at `layout`, tagged with its version. Its root trusts the lab's key.
    fn build(&self, lab: &Lab, layout: &Path) -> Result<()>;
}

/// What tells one release from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Recipe {
    /// Its version.
    pub version: &'static str,
    /// How it behaves.
    pub temper: Temper,
    /// What it runs on.
    pub kernel: Kernel,
    /// Its kernel, initramfs and command line are one file.
    pub unified: bool,
}

impl Recipe {
    /// A release on the faster kernel.
    pub fn new(version: &'static str, temper: Temper) -> Recipe {
        Recipe { version, temper, kernel: Kernel::V6_1, unified: false }
    }
}

impl Release for Recipe {
    fn name(&self) -> String {
        let form = if self.unified { "-uki" } else { "" };
        format!("{}-{}-{}{form}", self.version, self.temper.word(), self.kernel.name())
    }

    fn version(&self) -> &str {
        self.version
    }

    fn slot_size(&self) -> &'static str {
        "64M"
    }

    fn build(&self, lab: &Lab, layout: &Path) -> Result<()> {
        build(self, &lab.key(), layout)
    }
}

/// Builds the release as an OCI layout folder at `layout`, tagged with its version. Its root trusts `key`.
fn build(recipe: &Recipe, key: &Path, layout: &Path) -> Result<()> {
    let root = tempfile::Builder::new().prefix("lab-root").tempdir()?;
    write_root(root.path(), recipe, key)?;
    let root = root.path();
    let scratch = tempfile::tempdir()?;
    let boot = match recipe {
        Recipe { unified: false, temper: Temper::HangsEarly, .. } => {
            make(recipe, root, &usual_boot(recipe)?, scratch.path())?;
            let initrd = boot_files::that_waits_for_ever(scratch.path(), recipe.version)?;
            let mut boot = usual_boot(recipe)?;
            boot.extend(["--initrd".into(), initrd.into()]);
            boot
        }
        Recipe { unified: false, .. } => usual_boot(recipe)?,
        Recipe { unified: true, .. } => {
            make(recipe, root, &usual_boot(recipe)?, scratch.path())?;
            vec!["--uki".into(), boot_files::unified(scratch.path(), recipe.version)?.into()]
        }
    };
    make(recipe, root, &boot, layout)
}

/// Kernel and command line, and what is packed into an initramfs unless one is named behind them.
fn usual_boot(recipe: &Recipe) -> Result<Vec<OsString>> {
    let (kernel, modules) = recipe.kernel.files()?;
    // `panic=-1`: a panic resets at once.
    let cmdline = format!("console=ttyS0 quiet panic=-1 {DEADLINES}");
    // Beside the default set of modules a guest needs its network's.
    let mut words: Vec<OsString> = ["--module", "virtio_net", "--cmdline"].map(OsString::from).to_vec();
    words.extend([cmdline.into(), "--kernel".into(), kernel.into(), "--modules-dir".into(), modules.into()]);
    words.extend(["--init-binary".into(), tools::device_binary()?.into()]);
    Ok(words)
}

fn make(recipe: &Recipe, root: &Path, boot: &[OsString], layout: &Path) -> Result<()> {
    let mut command = Command::new(tools::switchback()?);
    command.args(["image", "build", "--product", PRODUCT, "--name", "lab-os", "--version", recipe.version]);
    // A fast compression level: the lab's images are small and short-lived.
    command.arg("--root").arg(root).args(boot).args(["--level", "3"]);
    if recipe.temper == Temper::Updaterless {
        command.arg("--foreign");
    }
    tools::run(command.arg("--output").arg(format!("oci:{}", layout.display()))).map(drop)
}

/// Writes the root that such a release has.
pub fn write_root(root: &Path, recipe: &Recipe, key: &Path) -> Result<()> {
    make_folders(root)?;
    write_busybox(root)?;
    if recipe.temper == Temper::Updaterless {
        trust(root, key)?;
    } else {
        write_updater(root, key)?;
    }
    write(root, "sbin/init", include_str!("guest-init"), 0o755)?;
    write_guest_parts(root, recipe.version, recipe.temper.word())?;
    let version = recipe.version;
    write(root, "etc/os-release", &format!("ID=lab\nNAME=Lab\nVERSION_ID={version}\n"), 0o644)?;
    write(root, "usr/lib/switchback/health.d/lab.toml", HEALTH, 0o644)?;
    write(root, "bin/lab-health", HEALTH_SCRIPT, 0o755)
}

/// The folders that the initramfs, the updater and the lab need.
pub(super) fn make_folders(root: &Path) -> Result<()> {
    for folder in [
        "bin",
        "dev",
        "efi",
        "etc/switchback/config.d",
        "mnt",
        "proc",
        "root",
        "run",
        "sbin",
        "sys",
        "tmp",
        "usr/bin",
        "usr/lib/switchback/health.d",
        "usr/lib/switchback/trust",
        "var/lib/switchback",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    Ok(())
}

/// busybox with a link for each of its programs but `init`.
pub(super) fn write_busybox(root: &Path) -> Result<()> {
    copy(&tools::program("busybox", "busybox-static")?, &root.join("bin/busybox"), 0o755)?;
    let applets = tools::run(Command::new(root.join("bin/busybox")).arg("--list"))?;
    for applet in applets.lines().filter(|applet| !["busybox", "init"].contains(applet)) {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(())
}

/// The updater, and the key that it trusts.
pub(super) fn write_updater(root: &Path, key: &Path) -> Result<()> {
    copy(&tools::device_binary()?, &root.join("usr/bin/switchback"), 0o755)?;
    write(root, "usr/lib/switchback/contract", "contract = 1\n", 0o644)?;
    trust(root, key)
}

fn trust(root: &Path, key: &Path) -> Result<()> {
    copy(key, &root.join("usr/lib/switchback/trust/lab.pub"), 0o644)
}

/// What every guest of the lab has, whatever its init is.
pub(super) fn write_guest_parts(root: &Path, version: &str, temper: &str) -> Result<()> {
    write(root, "usr/bin/lab-guest", include_str!("lab-guest"), 0o755)?;
    write(root, "etc/lab", &format!("LAB_VERSION={version}\nLAB_TEMPER={temper}\n"), 0o644)?;
    write(root, "etc/switchback/lab.template", CONFIG, 0o644)?;
    // The registry's address is the machine's, not the release's: it is known at boot.
    let config = root.join("etc/switchback/config.toml");
    if config.exists() {
        fs::remove_file(&config)?;
    }
    Ok(symlink("/run/lab/config.toml", config)?)
}

const CONFIG: &str = r#"[source]
image = "REGISTRY/REPOSITORY:stable"
plain_http = ["REGISTRY"]

[machine]
product = "lab"

# Emulated, on a busy host, a start of systemd has been seen to take eight minutes.
[boot]
trial_deadline = "40m"
"#;

const HEALTH: &str = r#"[[check]]
name = "lab"
kind = "command"
command = ["/bin/lab-health"]
timeout = "30s"
"#;

const HEALTH_SCRIPT: &str = r#"#!/bin/sh
. /etc/lab
echo "LAB-HEALTH $LAB_VERSION $LAB_TEMPER" >/dev/ttyS0
[ "$LAB_TEMPER" != unhealthy ] || { echo "the lab made this release unwell" >&2; exit 1; }
[ "$LAB_TEMPER" != slow ] || sleep 15
# With `boot-check` come the words that the guest's init exported; a person who asks has none.
[ -z "$LAB_REGISTRY" ] || wget -q -O /dev/null "http://$LAB_REGISTRY/v2/" || { echo "no way to $LAB_REGISTRY" >&2; exit 1; }
"#;

/// Copies a file into the root.
pub(super) fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("while copying {} into the root", from.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

/// Writes a file of the root.
pub(super) fn write(root: &Path, path: &str, text: &str, mode: u32) -> Result<()> {
    let file = root.join(path);
    fs::write(&file, text)?;
    Ok(fs::set_permissions(&file, fs::Permissions::from_mode(mode))?)
}
