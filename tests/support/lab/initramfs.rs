//! An initramfs of a real release, bent so that it hangs.
//!
//! Rule: the packed one stays as it is; a second archive behind it replaces one file, as the kernel's format allows
//! (Documentation/driver-api/early-userspace/buffer-format).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use switchback::image::manifest::OsManifest;
use switchback_bootloader::record::BootFileKind;

use super::fixtures::layout_digest;
use super::tools;

/// The list of modules becomes a pipe that nobody writes to: `switchback init` opens it before it loads any driver, the
/// watchdog's included, and waits. The release `version` lies in the layout `layout`, the new initramfs beside it.
pub(super) fn that_waits_for_ever(layout: &Path, version: &str) -> Result<PathBuf> {
    let blob = |digest: &str| -> Result<PathBuf> {
        let hex = digest.strip_prefix("sha256:").context("a digest of another kind")?;
        Ok(layout.join("blobs/sha256").join(hex))
    };
    let manifest = OsManifest::parse(&fs::read(blob(&layout_digest(layout, version)?)?)?)?;
    let packed = manifest.boot.iter().find(|layer| layer.kind == BootFileKind::Initrd);
    let packed = packed.context("the release has no initramfs")?;
    let mut bytes = fs::read(blob(&packed.blob.digest.to_string())?)?;
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive_with_a_pipe(layout)?);
    let bent = layout.join("initrd");
    fs::write(&bent, bytes)?;
    Ok(bent)
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
