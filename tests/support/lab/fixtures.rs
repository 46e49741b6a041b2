//! What the scenarios of one run share: a registry, a key, releases and provisioned disks, each made once.
//!
//! Rule: nothing shared is written after it was made; a scenario works on copies and in a repository of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use switchback::digest::Digest;
use switchback::image::manifest::OsManifest;
use tempfile::TempDir;

use super::boot_files;
use super::qemu::Hardware;
use super::registry::Registry;
use super::release::{Loader, Release};
use super::tools;
use crate::service_image;

/// Folders of runs begin with this.
const RUN_PREFIX: &str = "run-";

/// The file in such a folder that its run holds a lock on.
const ALIVE: &str = "alive";

/// One file or folder that the first who asks makes; the others wait for it.
type Made = Arc<Mutex<Option<PathBuf>>>;

/// The shared things.
#[derive(Debug)]
pub struct Lab {
    folder: TempDir,
    /// Held as long as the run lives: what tells its folder from one that a killed run left behind.
    _alive: File,
    registry: Registry,
    made: Mutex<BTreeMap<String, Made>>,
}

impl Lab {
    /// Starts the registry and makes the key.
    pub fn open() -> Result<Lab> {
        let lab = tools::lab_folder();
        fs::create_dir_all(&lab)?;
        sweep(&lab)?;
        let folder = tempfile::Builder::new().prefix(RUN_PREFIX).tempdir_in(lab)?;
        // Locked before it has its name, or another run's sweep could take it for a dead one's.
        let unnamed = folder.path().join("alive.new");
        let alive = File::create(&unnamed)?;
        alive.try_lock().context("while locking this run's own folder")?;
        fs::rename(unnamed, folder.path().join(ALIVE))?;
        let registry = Registry::start(&folder.path().join("registry"))?;
        let lab = Lab { folder, _alive: alive, registry, made: Mutex::default() };
        tools::run(lab.cosign()?.arg("generate-key-pair").current_dir(lab.folder.path()))?;
        Ok(lab)
    }

    /// The public key that every release of this run trusts.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("cosign.pub")
    }

    /// A folder for one scenario, inside this run's.
    pub fn scenario_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.path().join("scenarios").join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// The hardware of a machine whose configuration names the repository `name`.
    pub fn hardware(&self, name: &str) -> Hardware {
        let serial_number = format!("{}/{name}", self.registry.port());
        Hardware { serial_number, ..Hardware::default() }
    }

    /// Pushes the release to the repository `name`, tagged `stable` and with its version, and signs it with cosign.
    /// Returns its digest.
    pub fn publish(&self, recipe: &dyn Release, name: &str) -> Result<String> {
        self.publish_layout(&self.release(recipe)?, recipe.version(), name)
    }

    /// The same for a release that was made otherwise, in an OCI layout folder under its version.
    pub fn publish_layout(&self, layout: &Path, version: &str, name: &str) -> Result<String> {
        let repository = format!("{}/{name}", self.registry.host());
        let from = format!("oci:{}:{version}", layout.display());
        let mut push = Command::new(tools::switchback()?);
        push.args(["--json", "image", "push", &from, &repository, "--tag", version, "--tag", "stable"]);
        tools::run(push.args(["--plain-http", &self.registry.host()]))?;
        let digest = layout_digest(layout, version)?;
        self.sign(&format!("{repository}@{digest}"))?;
        Ok(digest)
    }

    /// Binds an OS to images of this run's registry, each as a service's name and `repository:tag`, and publishes the release in the
    /// repository `name`.
    pub fn publish_bound(
        &self,
        (version, os): (&str, &dyn Release),
        services: &[(&str, &str)],
        name: &str,
    ) -> Result<String> {
        let from = format!("oci:{}:{}", self.release(os)?.display(), os.version());
        let layout = self.once(&format!("bound-{version}"), |layout| {
            let mut bind = Command::new(tools::switchback()?);
            bind.args(["--json", "image", "bind", "--version", version, "--os", &from]);
            for (service, image) in services {
                bind.args(["--service", &format!("{service}={}/{image}", self.registry.host())]);
            }
            bind.args(["--plain-http", &self.registry.host(), "--output"]);
            tools::run(bind.arg(format!("oci:{}", layout.display()))).map(drop)
        })?;
        self.publish_layout(&layout, version, name)
    }

    /// Signs what is in the registry, with cosign and the key of this run.
    fn sign(&self, reference: &str) -> Result<()> {
        let key = self.folder.path().join("cosign.key");
        let mut sign = self.cosign()?;
        sign.args(["sign", "--yes", "--tlog-upload=false", "--allow-http-registry", "--key"]).arg(key);
        tools::run(sign.arg(reference)).map(drop)
    }

    /// Makes a service's image, pushes it to the repository `name` under its tag and signs it, once a run; returns its digest.
    pub fn publish_service(&self, image: &service_image::Recipe<'_>, name: &str) -> Result<String> {
        let digest = self.once(&format!("service-{name}-{}", image.tag), |made| {
            let work = self.folder.path().join("service-images");
            fs::create_dir_all(&work)?;
            let repository = format!("{}/{name}", self.registry.host());
            let digest = image.make(&work, &format!("docker://{repository}:{}", image.tag), &[])?;
            self.sign(&format!("{repository}@{digest}"))?;
            Ok(fs::write(made, digest)?)
        })?;
        Ok(fs::read_to_string(digest)?)
    }

    /// A copy of a disk that was provisioned with `recipe` and `loader`, at `copy`.
    pub fn disk(&self, recipe: &dyn Release, loader: Loader, copy: &Path) -> Result<()> {
        let disk = self.once(&format!("disk-{}-{loader:?}", recipe.name()), |disk| {
            let name = format!("factory-{}-{loader:?}", recipe.name()).to_lowercase();
            self.publish(recipe, &name)?;
            let mut provision = Command::new(tools::switchback()?);
            provision.arg("provision").arg(disk).args([
                "--size",
                "2G",
                "--slot-size",
                recipe.slot_size(),
                "--state-size",
                recipe.state_size(),
            ]);
            provision.args(["--release", &format!("{}/{name}:{}", self.registry.host(), recipe.version())]);
            provision.args(["--plain-http", &self.registry.host(), "--trust"]).arg(self.key());
            if let Some(file) = loader.file()? {
                provision.arg("--loader").arg(file);
            }
            tools::run(&mut provision).map(drop)
        })?;
        tools::copy_image(&disk, copy)
    }

    /// What the boot files of a release have to be: their digests by the names that they have in a slot's folder.
    pub fn boot_files(&self, recipe: &dyn Release) -> Result<BTreeMap<String, Digest>> {
        boot_files::digests(&self.release(recipe)?, recipe.version())
    }

    /// Its manifest: what a disk and a download take.
    pub fn manifest(&self, recipe: &dyn Release) -> Result<OsManifest> {
        boot_files::manifest(&self.release(recipe)?, recipe.version())
    }

    fn release(&self, recipe: &dyn Release) -> Result<PathBuf> {
        self.once(&format!("release-{}", recipe.name()), |layout| recipe.build(self, layout))
    }

    /// What `make` makes at a path of this run, made once.
    pub(super) fn once(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let made = self
            .made
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name.to_owned())
            .or_default()
            .clone();
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &*made {
            return Ok(path.clone());
        }
        let path = self.folder.path().join(name);
        make(&path).with_context(|| format!("while making {name}"))?;
        Ok(made.insert(path).clone())
    }

    /// cosign with an empty password, on files of this run only.
    fn cosign(&self) -> Result<Command> {
        let mut cosign = Command::new(tools::fetched("cosign2")?);
        cosign.env("COSIGN_PASSWORD", "").env("HOME", self.folder.path());
        Ok(cosign)
    }
}

/// Removes the folders of runs that were killed, each with a disk or two in it.
fn sweep(lab: &Path) -> Result<()> {
    for entry in fs::read_dir(lab)? {
        let folder = entry?.path();
        let is_run = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(RUN_PREFIX));
        // A run that is just beginning has no such file yet, and is left.
        let dead = is_run && File::open(folder.join(ALIVE)).is_ok_and(|alive| alive.try_lock().is_ok());
        if dead {
            // Another run may be sweeping too.
            let _ = fs::remove_dir_all(folder);
        }
    }
    Ok(())
}

/// The digest that a tag of an OCI layout folder names.
pub(super) fn layout_digest(layout: &Path, tag: &str) -> Result<String> {
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let manifests = index["manifests"].as_array().context("index.json lists no manifests")?;
    let tagged = manifests.iter().find(|m| m["annotations"]["org.opencontainers.image.ref.name"] == tag);
    let digest = tagged.and_then(|m| m["digest"].as_str());
    Ok(digest.with_context(|| format!("{} has no tag {tag}", layout.display()))?.to_owned())
}
