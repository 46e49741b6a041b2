//! Releases small enough for a story told in a minute: an ext4 root of a few MiB, a stand-in for the kernel.
//!
//! Not here: anything that a real firmware boots (the boot lab's releases). Rule: built, pushed and signed by the real
//! `switchback`, so that everything but the kernel's code is what a real release has.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use switchback::digest::Digest;
use switchback_bootloader::systemd_boot::pe::{Machine, sample};

use crate::machine::{text, tool};

/// Where a small release differs from the next.
#[derive(Debug, Clone)]
pub struct SmallRelease<'a> {
    /// Its version.
    pub version: &'a str,
    /// What its health check looks for and finds, or not.
    pub healthy: bool,
    /// Bytes of the root file system.
    pub root_bytes: u64,
}

/// An author's desk: a folder with keys, inputs and an OCI layout.
pub struct Desk {
    folder: PathBuf,
    switchback: PathBuf,
}

impl Desk {
    /// A desk in `folder` that uses the program at `switchback`.
    pub fn new(folder: &Path, switchback: &Path) -> Result<Desk> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(
            folder.join("loader.efi"),
            sample(Machine::host(), b"a loader for the simulated firmware"),
        )?;
        let desk = Desk { folder: folder.to_path_buf(), switchback: switchback.to_path_buf() };
        desk.boot_files(1)?;
        Ok(desk)
    }

    /// Kernel and initramfs of what is built from now on, 5 MiB that no earlier `seed` gave: a machine that has them in its
    /// other slot does not fetch them.
    pub fn boot_files(&self, seed: u64) -> Result<()> {
        std::fs::write(self.path("vmlinuz"), sample(Machine::host(), &noise(seed, 3 << 20)))?;
        Ok(std::fs::write(self.path("initrd"), noise(seed + 1, 2 << 20))?)
    }

    /// A path on the desk.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The reference of a version in the desk's OCI layout.
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.path("images").display())
    }

    /// The author's command, run in the desk's folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.switchback);
        command.env("SWITCHBACK_PROGRESS", "none");
        command.current_dir(&self.folder).args(arguments);
        command
    }

    /// Runs the author's command to its end and gives its JSON answer.
    pub fn run(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(arguments).arg("--json").output()?;
        let said = text(&output.stdout);
        let all = || {
            format!("switchback {}: {}\n{said}{}", arguments.join(" "), output.status, text(&output.stderr))
        };
        ensure!(output.status.success(), all());
        serde_json::from_str(&said).with_context(all)
    }

    /// Makes the key pair `os.key` and `os.pub`.
    pub fn keygen(&self) -> Result<PathBuf> {
        self.run(&["image", "keygen", "os"])?;
        Ok(self.path("os.pub"))
    }

    /// Builds a release with a file system in its root into the layout `images` and gives its digest.
    pub fn build(&self, release: &SmallRelease<'_>) -> Result<Digest> {
        let image = self.root_image(release)?;
        self.build_partition(release.version, &image, &[])
    }

    /// Builds a release from a partition image on the desk into the layout `images` and gives its digest.
    pub fn build_partition(&self, version: &str, image: &str, more: &[&str]) -> Result<Digest> {
        let partition = format!("root={image}");
        let mut arguments = build_arguments(version, &partition).to_vec();
        arguments.extend(more);
        digest(&self.run(&arguments)?)
    }

    /// Signs a release with the desk's own key where it lies.
    pub fn sign(&self, release: &str, more: &[&str]) -> Result<()> {
        let mut arguments = vec!["image", "sign", release, "--key", "os.key"];
        arguments.extend(more);
        self.run(&arguments).map(drop)
    }

    /// Copies a release of the layout `images` and gives its digest at the destination.
    pub fn push(&self, version: &str, to: &str, more: &[&str]) -> Result<Digest> {
        let from = self.reference(version);
        let mut arguments = vec!["image", "push", &from, to];
        arguments.extend(more);
        digest(&self.run(&arguments)?)
    }

    /// Moves the tag `stable` of the layout `images` to a version.
    pub fn publish(&self, version: &str) -> Result<Digest> {
        self.push(version, "oci:images", &["--tag", "stable"])
    }

    /// Makes the root image of a release and gives its file name.
    pub fn root_image(&self, release: &SmallRelease<'_>) -> Result<String> {
        let folder = self.path(&format!("root-{}", release.version));
        let answer = if release.healthy { "ready" } else { "cannot find its database" };
        let files = [
            ("etc/os-release", format!("ID=demo\nNAME=\"Demo OS\"\nVERSION_ID={}\n", release.version)),
            ("srv/web/answer", format!("{answer}\n")),
            ("usr/lib/switchback/contract", "contract = 1\n".to_string()),
            ("usr/lib/switchback/health.d/web.toml", CHECK.to_string()),
        ];
        for (path, content) in files {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().context("a path with a folder")?)?;
            std::fs::write(path, content)?;
        }
        // Half of the room is content that no compression shrinks, as programs are to a degree; the rest stays zero.
        let seed = release
            .version
            .bytes()
            .fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        std::fs::write(
            folder.join("usr/lib/program"),
            noise(seed, usize::try_from(release.root_bytes / 2)?),
        )?;
        let name = format!("root-{}.img", release.version);
        let image = self.path(&name);
        std::fs::File::create(&image)?.set_len(release.root_bytes)?;
        let made = tool("mke2fs")?
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-b", "4096", "-d"])
            .args([&folder, &image])
            .output()?;
        ensure!(made.status.success(), "mke2fs: {}", text(&made.stderr));
        Ok(name)
    }
}

/// How a release of the story is built; `partition` is `root=FILE`.
pub fn build_arguments<'a>(version: &'a str, partition: &'a str) -> [&'a str; 18] {
    [
        "image",
        "build",
        "--partition",
        partition,
        "--kernel",
        "vmlinuz",
        "--initrd",
        "initrd",
        "--product",
        "demo",
        "--name",
        "demo-os",
        "--version",
        version,
        "--level",
        "3",
        "--output",
        "oci:images",
    ]
}

fn digest(answer: &Value) -> Result<Digest> {
    let digest = answer["digest"].as_str().with_context(|| format!("no digest in {answer}"))?;
    digest.parse().with_context(|| format!("{digest} is none"))
}

const CHECK: &str = r#"[[check]]
name = "web"
kind = "command"
command = ["sh", "-c", "grep -x ready srv/web/answer || { echo the web server says: $(cat srv/web/answer) >&2; exit 1; }"]
timeout = "5s"
retries = 0
"#;

/// Bytes that do not compress, the same for the same seed (xorshift64).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
