//! An author's desk and a machine in one folder: what most system tests begin with.
//!
//! Not here: what the story is. Rule: everything is made by the real `switchback`; the folder is gone with the value.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::lab::tools;
use crate::machine::{Machine, text};
use crate::small_release::{Desk, SmallRelease};

/// A desk, and room for machines.
pub struct Scene {
    /// The author's side, with a key pair `os`.
    pub desk: Desk,
    folder: TempDir,
}

impl Scene {
    /// An author with a key.
    pub fn new() -> Result<Scene> {
        let folder = tempfile::Builder::new().prefix("switchback-test-").tempdir()?;
        let desk = Desk::new(&folder.path().join("author"), &tools::switchback()?)?;
        desk.keygen()?;
        Ok(Scene { desk, folder })
    }

    /// The folder that everything lies in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A release with a file system of `root_bytes`, built and signed into the layout.
    pub fn release(&self, version: &str, healthy: bool, root_bytes: u64) -> Result<()> {
        self.desk.build(&SmallRelease { version, healthy, root_bytes })?;
        self.desk.sign(&self.desk.reference(version), &[])
    }

    /// A machine that looks for releases at `source` and believes the signers of `keys`. `more` are further lines for
    /// the section `[source]`. It has no disk yet.
    pub fn machine(&self, source: &str, keys: &[&Path], more: &str) -> Result<Machine> {
        let settings =
            format!("[source]\nimage = \"{source}\"\n{more}\n[trust.policy.os]\nkeys = {keys:?}\n");
        Machine::new(&self.folder.path().join("machine"), &tools::switchback()?, &settings)
    }

    /// Makes the machine's disk from a release; `sizes` are options of `provision`.
    pub fn provision(&self, machine: &Machine, release: &str, key: &Path, sizes: &[&str]) -> Result<Value> {
        let (disk, loader) = (machine.disk().display().to_string(), self.desk.path("loader.efi"));
        let (loader, key) = (loader.display().to_string(), key.display().to_string());
        let mut arguments =
            vec!["provision", &disk, "--release", release, "--trust", &key, "--loader", &loader];
        arguments.extend(sizes);
        self.desk.run(&arguments)
    }
}

/// Sizes for roots of up to 16 MiB: as small as FAT32 and ext4 allow.
pub const SMALL_DISK: [&str; 8] =
    ["--size", "192M", "--slot-size", "16M", "--esp-size", "64M", "--state-size", "16M"];

/// SHA-256 of a file, by a program that nobody here wrote.
pub fn sha256(file: &Path) -> Result<String> {
    let output = std::process::Command::new("sha256sum").arg(file).output()?;
    ensure!(output.status.success(), "sha256sum: {}", text(&output.stderr));
    Ok(text(&output.stdout).split_whitespace().next().unwrap_or_default().to_owned())
}
