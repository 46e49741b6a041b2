//! All of a slot, read from the medium and compared with what was signed.
//!
//! Not here: what follows from it; an install earns the right to arm by it, a person asks whether a slot is sound.
//! Rule: it only reads. What is expected comes from the signed documents, never from a note on the same medium.

use std::path::PathBuf;

use switchback_bootloader::record::{BootFile, BootFiles, Bootloader};
use switchback_partitions::device::BlockDevice;
use switchback_partitions::slot::Slot;
use switchback_partitions::verity::{self, RootHash};

use super::watched::Watched;
use super::{InstallError, Release};
use crate::image::manifest::BootLayer;
use crate::progress::{Phase, Progress};

/// Where a release should lie.
pub struct Place<'a> {
    /// The slot.
    pub slot: Slot,
    /// Its root partition.
    pub root: &'a dyn BlockDevice,
    /// Its hash tree.
    pub tree: &'a dyn BlockDevice,
    /// The machine's bootloader, with the slot's boot files.
    pub bootloader: &'a dyn Bootloader,
}

/// How much of a slot is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Data, hash tree, boot files, passport.
    Everything,
    /// All but the data, which this process read back itself, and compared with the signed root, when it wrote it.
    Rest,
}

/// Caches dropped, then data against the hash tree, the tree against the signed root hash, boot files and passport
/// against their digests. The first difference is the error.
pub fn read_back(
    release: &Release,
    place: &Place<'_>,
    depth: Depth,
    progress: &dyn Progress,
) -> Result<(), InstallError> {
    let slots = &release.manifest.slots;
    let bytes = slots.iter().map(|layer| release.slot_bytes(&layer.name)).sum::<Result<u64, _>>()?;
    progress.begin(Phase::Prove, if depth == Depth::Everything { bytes } else { 0 });
    let compared = compare(release, place, depth, progress);
    progress.end();
    compared
}

fn compare(
    release: &Release,
    place: &Place<'_>,
    depth: Depth,
    progress: &dyn Progress,
) -> Result<(), InstallError> {
    for device in [place.root, place.tree] {
        device.drop_caches().map_err(InstallError::reading_slot)?;
    }
    for layer in &release.manifest.slots {
        let info = release.verity(&layer.name)?;
        let watched = Watched { device: place.root, progress };
        let root = RootHash(info.root);
        let verified = match depth {
            Depth::Everything => verity::verify(&watched, place.tree, &root),
            Depth::Rest => verity::verify_tree(place.tree, &root),
        };
        verified.map_err(|source| match progress.stopped() {
            true => InstallError::Interrupted,
            false => InstallError::read_back(source),
        })?;
    }
    Ok(place.bootloader.verify(place.slot, &boot_set(release, boot_files(release)))?)
}

/// The boot files that the signed manifest names, without a source: they are to lie on the boot partition already.
pub fn boot_files(release: &Release) -> Vec<BootFile> {
    let file = |layer: &BootLayer| BootFile {
        kind: layer.kind,
        source: PathBuf::new(),
        sha256: *layer.blob.digest.raw(),
        bytes: layer.blob.size,
    };
    release.manifest.boot.iter().map(file).collect()
}

/// What the slot's folder on the boot partition holds for this release.
pub(super) fn boot_set(release: &Release, files: Vec<BootFile>) -> BootFiles {
    let config = &release.config;
    BootFiles {
        files,
        cmdline: config.cmdline.clone(),
        title: format!("{} {}", config.name, release.version()),
        passport: release.passport.documents(),
    }
}
