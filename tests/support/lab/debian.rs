//! Releases with systemd: the book's Debian recipe, good or bad in one chosen way.
//!
//! Not here: how the root is made (`docs/src/recipes/debian-trixie`). Rule: what the lab adds is a few files of its own;
//! everything that makes the root updatable comes from the recipe, as an integrator would have it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::fixtures::Lab;
use super::release::{PRODUCT, Release, write, write_guest_parts};
use super::tools;

/// How a release behaves under systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Temper {
    /// Comes up and is healthy.
    Good,
    /// A unit that a health check names fails.
    FailingUnit,
    /// Nobody judges it: `switchback-boot-check.service` is masked.
    Unjudged,
}

impl Temper {
    fn word(self) -> &'static str {
        match self {
            Temper::Good => "good",
            Temper::FailingUnit => "failing-unit",
            Temper::Unjudged => "unjudged",
        }
    }
}

/// Who else would confirm a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bless {
    /// `systemd-bless-boot.service`, as Debian brings it.
    Present,
    /// Nobody: it is masked.
    Masked,
}

/// What tells one Debian release from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debian {
    /// Its version.
    pub version: &'static str,
    /// How it behaves.
    pub temper: Temper,
    /// Who else would confirm it.
    pub bless: Bless,
    /// It has the daemon and what runs services, and the appliance's configuration.
    pub services: bool,
}

impl Release for Debian {
    fn name(&self) -> String {
        let bless = if self.bless == Bless::Present { "bless" } else { "masked" };
        let services = if self.services { "-services" } else { "" };
        format!("debian-{}-{}-{bless}{services}", self.version, self.temper.word())
    }

    fn version(&self) -> &str {
        self.version
    }

    fn slot_size(&self) -> &'static str {
        "256M"
    }

    fn state_size(&self) -> &'static str {
        if self.services { "256M" } else { "64M" }
    }

    fn build(&self, lab: &Lab, layout: &Path) -> Result<()> {
        let folder = tempfile::Builder::new().prefix("lab-debian").tempdir()?;
        let root = folder.path().join("root");
        tools::run(
            Command::new("cp").arg("-a").arg("--reflink=auto").arg(base(lab, self.services)?).arg(&root),
        )?;
        self.write_lab_parts(&root, lab)?;
        let kernel = only_file(&root.join("boot"), "vmlinuz-")?;
        let modules = only_file(&root.join("usr/lib/modules"), "")?;
        let mut command = Command::new(tools::switchback()?);
        command.args(["image", "build", "--product", PRODUCT, "--name", "debian", "--version", self.version]);
        command.arg("--root").arg(&root).arg("--kernel").arg(kernel).arg("--modules-dir").arg(modules);
        command.arg("--init-binary").arg(tools::device_binary()?);
        command.args(["--cmdline", "console=ttyS0 quiet", "--level", "3"]);
        command.arg("--output").arg(format!("oci:{}", layout.display()));
        tools::run(&mut command).map(drop)
    }
}

impl Debian {
    fn write_lab_parts(&self, root: &Path, lab: &Lab) -> Result<()> {
        write_guest_parts(root, self.version, self.temper.word())?;
        let mut os_release = fs::read_to_string(root.join("usr/lib/os-release"))?;
        os_release.push_str(&format!("IMAGE_VERSION={}\n", self.version));
        write(root, "usr/lib/os-release", &os_release, 0o644)?;
        write(root, "usr/lib/switchback/health.d/lab.toml", HEALTH, 0o644)?;
        write(root, "usr/bin/lab-app", APP, 0o755)?;
        write(root, "usr/lib/systemd/system.conf.d/20-lab.conf", PATIENCE, 0o644)?;
        let timer = "usr/lib/systemd/system/switchback-trial-deadline.timer.d";
        fs::create_dir_all(root.join(timer))?;
        let deadline = if self.temper == Temper::Unjudged { SHORT_DEADLINE } else { DEADLINE };
        write(root, &format!("{timer}/lab.conf"), deadline, 0o644)?;
        // Whoever takes commands says that a start is through, and a start that nobody judges never is.
        let units =
            UNITS.iter().filter(|unit| self.temper != Temper::Unjudged || unit.0 != "lab-guest.service");
        for (unit, wanted_by, text) in units {
            write(root, &format!("usr/lib/systemd/system/{unit}"), text, 0o644)?;
            let wants = root.join(format!("etc/systemd/system/{wanted_by}.wants"));
            fs::create_dir_all(&wants)?;
            symlink(format!("/usr/lib/systemd/system/{unit}"), wants.join(unit))?;
        }
        if self.services {
            write(root, "etc/switchback/lab.template", SERVICES_CONFIG, 0o644)?;
            fs::copy(lab.key(), root.join("usr/lib/switchback/trust/lab.pub"))?;
            let unit = "switchback-daemon.service";
            let wants = root.join("etc/systemd/system/multi-user.target.wants").join(unit);
            symlink(format!("/usr/lib/systemd/system/{unit}"), wants)?;
        }
        // A login there would hang up the line that the lab listens to.
        mask(root, "serial-getty@ttyS0.service")?;
        if self.temper == Temper::Unjudged {
            mask(root, "switchback-boot-check.service")?;
        }
        if self.bless == Bless::Masked {
            mask(root, "systemd-bless-boot.service")?;
        }
        Ok(())
    }
}

const UNITS: [(&str, &str, &str); 3] = [
    ("lab-config.service", "sysinit.target", include_str!("systemd/lab-config.service")),
    ("lab-guest.service", "multi-user.target", include_str!("systemd/lab-guest.service")),
    ("lab-app.service", "multi-user.target", include_str!("systemd/lab-app.service")),
];

const HEALTH: &str = r#"[[check]]
name = "app"
kind = "systemd-unit"
unit = "lab-app.service"
"#;

const APP: &str = r#"#!/bin/sh
[ "$LAB_TEMPER" != failing-unit ] || { echo "the lab made this release unwell" >&2; exit 1; }
"#;

/// A busy host needs longer than systemd waits for a device, and what a service does at its end is nobody's wish here.
const PATIENCE: &str =
    "[Manager]\nDefaultTimeoutStartSec=300\nDefaultDeviceTimeoutSec=300\nDefaultTimeoutStopSec=20\n";

/// As long as the lab's `[boot] trial_deadline`. The empty line takes the unit's own away.
const DEADLINE: &str = "[Timer]\nOnBootSec=\nOnBootSec=40min\n";

/// Long enough to be seen coming up.
const SHORT_DEADLINE: &str = "[Timer]\nOnBootSec=\nOnBootSec=3min\n";

/// How the appliance declares its services.
const SERVICES_CONFIG: &str = include_str!("appliance/config.toml");

/// The recipe's root, made once a run; with what runs services, where that is asked for.
fn base(lab: &Lab, services: bool) -> Result<PathBuf> {
    lab.once(if services { "debian-root-services" } else { "debian-root" }, |root| {
        tools::program("mmdebstrap", "mmdebstrap")?;
        let mirror = tools::run(Command::new(tools::repository().join("tests/tools/fetch")).arg("mirror"))?;
        let mut recipe = Command::new(tools::repository().join("docs/src/recipes/debian-trixie"));
        // The lab's template stands in for the configuration that the recipe writes: a machine's registry is its own.
        recipe.arg(root).arg(tools::device_binary()?).arg(lab.key()).arg("localhost/lab:stable");
        if services {
            recipe.env("MORE_PACKAGES", "crun nftables iproute2 conntrack");
        }
        tools::run(recipe.arg(mirror.trim_end())).map(drop)
    })
}

fn mask(root: &Path, unit: &str) -> Result<()> {
    Ok(symlink("/dev/null", root.join("etc/systemd/system").join(unit))?)
}

/// The one file in `folder` whose name begins with `prefix`.
fn only_file(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut names = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let found =
        names.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    found.with_context(|| format!("{} holds no {prefix}…", folder.display()))
}
