//! The boot files of a real release, put together in another way: an initramfs that hangs, a unified kernel image.
//!
//! Rule: what the release holds stays as it is. A bent initramfs is the packed one with a second archive behind it that
//! replaces one file, as the kernel's format allows (Documentation/driver-api/early-userspace/buffer-format).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;
use switchback::digest::Digest;
use switchback::image::manifest::OsManifest;
use switchback_bootloader::record::BootFileKind;

use super::fixtures::layout_digest;
use super::tools;

/// The list of modules becomes a pipe that nobody writes to: `switchback init` opens it before it loads any driver, the
/// watchdog's included, and waits. The release `version` lies in the layout `layout`, the new initramfs beside it.
pub(super) fn that_waits_for_ever(layout: &Path, version: &str) -> Result<PathBuf> {
    let mut bytes = fs::read(boot_file(layout, &manifest(layout, version)?, BootFileKind::Initrd)?)?;
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive_with_a_pipe(layout)?);
    let bent = layout.join("initrd");
    fs::write(&bent, bytes)?;
    Ok(bent)
}

/// Kernel, initramfs and command line of the release as one file beside it, made by ukify as the book tells authors to.
pub(super) fn unified(layout: &Path, version: &str) -> Result<PathBuf> {
    let manifest = manifest(layout, version)?;
    let config: Value =
        serde_json::from_slice(&fs::read(blob(layout, &manifest.config.digest.to_string())?)?)?;
    let cmdline = config["cmdline"].as_str().context("the release has no command line")?;
    let stub = tools::fetched("systemd257")?.with_file_name("linuxx64.efi.stub");
    let uki = layout.join("os.efi");
    // Debian's own Python: it is the one that Debian's pefile is installed for.
    let mut ukify = Command::new(tools::packaged_file("/usr/bin/python3", "python3 python3-pefile")?);
    ukify.arg(tools::fetched("ukify")?).arg("build");
    ukify.arg("--linux").arg(boot_file(layout, &manifest, BootFileKind::Linux)?);
    ukify.arg("--initrd").arg(boot_file(layout, &manifest, BootFileKind::Initrd)?);
    ukify.arg("--stub").arg(stub).arg("--cmdline").arg(cmdline).arg("--output").arg(&uki);
    tools::run(&mut ukify)?;
    Ok(uki)
}

/// The digest of each boot file that the release's manifest names, by the file's name in a slot's folder.
pub(super) fn digests(layout: &Path, version: &str) -> Result<BTreeMap<String, Digest>> {
    let manifest = manifest(layout, version)?;
    Ok(manifest.boot.iter().map(|layer| (layer.kind.file_name().to_owned(), layer.blob.digest)).collect())
}

/// The manifest of the release `version` in the layout.
pub(super) fn manifest(layout: &Path, version: &str) -> Result<OsManifest> {
    Ok(OsManifest::parse(&fs::read(blob(layout, &layout_digest(layout, version)?)?)?)?)
}

fn blob(layout: &Path, digest: &str) -> Result<PathBuf> {
    let hex = digest.strip_prefix("sha256:").context("a digest of another kind")?;
    Ok(layout.join("blobs/sha256").join(hex))
}

fn boot_file(layout: &Path, manifest: &OsManifest, kind: BootFileKind) -> Result<PathBuf> {
    let layer = manifest.boot.iter().find(|layer| layer.kind == kind);
    blob(layout, &layer.with_context(|| format!("the release has no {kind:?}"))?.blob.digest.to_string())
}

fn archive_with_a_pipe(folder: &Path) -> Result<Vec<u8>> {
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("etc/switchback"))?;
    tools::run(Command::new("mkfifo").arg(tree.join("etc/switchback/modules")))?;
    let archive = folder.join("pipe.cpio");
    let cpio = tools::program("cpio", "cpio")?;
    let script = format!("find etc | {} --quiet -o -H newc -F {}", cpio.display(), archive.display());
    tools::run(Command::new("sh").arg("-c").arg(script).current_dir(tree))?;
    Ok(fs::read(archive)?)
}
