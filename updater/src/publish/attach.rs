//! Patches to a release from earlier ones: made of both, and left in a repository as what refers to the OS image.
//!
//! Not here: how a patch is made (`patch`), how a device finds it (`registry::patches`). Rule: a patch is attached to an OS
//! image that is at the destination already, and says by digest which image it starts from; no tag is touched.

use std::path::Path;

use serde::Serialize;

use super::bind::Part;
use super::inspect::{self, ReadError, UnverifiedRelease};
use super::patch::{Job, MadePatch, PatchError, PatchOptions, Side};
use super::raw_image::{RawImage, RawImageError};
use crate::digest::Digest;
use crate::image::manifest::MANIFEST_MEDIA_TYPE;
use crate::image::patch::{EMPTY_MEDIA_TYPE, PATCH_MEDIA_TYPE, PatchManifest, PatchSlot};
use crate::registry::{self, Registry, RegistryError};

/// What is told while patches are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachEvent {
    /// A raw image of so many bytes is being unpacked.
    Unpack {
        /// Its length.
        bytes: u64,
    },
    /// So many raw bytes of the release are being made anew from an earlier one.
    Encode {
        /// Raw bytes of what the earlier one lacks.
        bytes: u64,
    },
    /// So many raw bytes more are done.
    Bytes(u64),
}

/// Told of each event, from several threads.
pub type Told<'a> = &'a (dyn Fn(AttachEvent) + Send + Sync);

/// What came of one earlier release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// Version of the earlier release's OS image.
    pub from: String,
    /// Digest of that image's manifest.
    pub base: Digest,
    /// Digest of the patch's manifest; none where no patch is shorter than the release's own chunks.
    pub patch: Option<Digest>,
    /// Length of the patch's blobs in bytes.
    pub bytes: u64,
    /// Of that, their headers.
    pub header_bytes: u64,
    /// Entries.
    pub entries: u64,
}

/// Why no patch was attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// One of the releases is not there, or none.
    #[error("while reading the release {digest} at {place} for a patch")]
    Release {
        /// Where.
        place: String,
        /// Which.
        digest: Digest,
        /// What is wrong with it.
        source: Box<ReadError>,
    },
    /// The earlier release is this one.
    #[error("while making a patch from {from}: it has the same OS image as the release")]
    Same {
        /// Its version.
        from: String,
    },
    /// A raw image could not be unpacked.
    #[error("while unpacking a release for a patch")]
    Unpack(#[from] RawImageError),
    /// The patch could not be made.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// The destination failed.
    #[error("while leaving a patch at {place}")]
    Push {
        /// The destination.
        place: String,
        /// What it said.
        source: RegistryError,
    },
}

/// A release as both sides of a patch need it.
struct Opened<'a> {
    registry: &'a dyn Registry,
    image: Digest,
    release: UnverifiedRelease,
}

impl<'a> Opened<'a> {
    async fn read(registry: &'a dyn Registry, digest: &Digest) -> Result<Opened<'a>, AttachError> {
        let unread = |source| AttachError::Release {
            place: registry.place(),
            digest: *digest,
            source: Box::new(source),
        };
        let (image, release) = inspect::read_os(registry, digest).await.map_err(unread)?;
        Ok(Opened { registry, image, release })
    }

    /// Number of the slot partition `name`.
    fn slot(&self, name: &str) -> Option<usize> {
        self.release.manifest.slots.iter().position(|slot| slot.name == name)
    }

    async fn unpack(&self, slot: usize, folder: &Path, told: Told<'_>) -> Result<RawImage, AttachError> {
        let (layer, index) = (&self.release.manifest.slots[slot], &self.release.indexes[slot]);
        told(AttachEvent::Unpack { bytes: index.raw_bytes() });
        let progress = |bytes| told(AttachEvent::Bytes(bytes));
        let whole = self.registry.blob_range(&layer.blob, 0..layer.blob.size).await;
        let stream = whole.map_err(RawImageError::from)?;
        Ok(RawImage::unpack(stream, &layer.blob, index, folder, &progress).await?)
    }
}

/// Makes a patch to the release `digest` of `from` out of each of `bases` and leaves it in `to`, which holds the release's
/// OS image. Raw images lie in `folder` meanwhile. Needs a runtime of several threads, as it works on this one between waits.
pub async fn attach_patches(
    (from, digest): (&dyn Registry, &Digest),
    bases: &[Part],
    to: &dyn Registry,
    folder: &Path,
    options: &PatchOptions,
    told: Told<'_>,
) -> Result<Vec<Attached>, AttachError> {
    let target = Opened::read(from, digest).await?;
    let mut raws = Vec::new();
    for slot in 0..target.release.indexes.len() {
        raws.push(target.unpack(slot, folder, told).await?);
    }
    let mut attached = Vec::new();
    for part in bases {
        let base = Opened::read(&*part.registry, &part.digest).await?;
        if base.image == target.image {
            return Err(AttachError::Same { from: base.release.config.version.clone() });
        }
        let mut made = Vec::new();
        for (slot, raw) in raws.iter().enumerate() {
            let name = &target.release.manifest.slots[slot].name;
            let Some(base_slot) = base.slot(name) else { continue };
            let base_raw = base.unpack(base_slot, folder, told).await?;
            let sides = (
                Side { index: &target.release.indexes[slot], raw },
                Side { index: &base.release.indexes[base_slot], raw: &base_raw },
            );
            let patch = tokio::task::block_in_place(|| make(sides, folder, options, told))?;
            made.extend(patch.map(|patch| (name.clone(), patch)));
        }
        attached.push(leave(&target, &base, made, to).await?);
    }
    Ok(attached)
}

fn make(
    (target, base): (Side<'_>, Side<'_>),
    folder: &Path,
    options: &PatchOptions,
    told: Told<'_>,
) -> Result<Option<MadePatch>, PatchError> {
    let job = Job::new(target, base);
    told(AttachEvent::Encode { bytes: job.raw_bytes() });
    job.make(options, folder, &|bytes| told(AttachEvent::Bytes(bytes)))
}

/// Pushes the blobs, then the manifest that names them.
async fn leave(
    target: &Opened<'_>,
    base: &Opened<'_>,
    made: Vec<(String, MadePatch)>,
    to: &dyn Registry,
) -> Result<Attached, AttachError> {
    let failed = |source| AttachError::Push { place: to.place(), source };
    let mut attached = Attached {
        from: base.release.config.version.clone(),
        base: base.image,
        patch: None,
        bytes: 0,
        header_bytes: 0,
        entries: 0,
    };
    if made.is_empty() {
        return Ok(attached);
    }
    let mut slots = Vec::new();
    for (name, patch) in &made {
        let blob = registry::describe(PATCH_MEDIA_TYPE, patch.digest, patch.bytes);
        to.push_blob_file(&blob, patch.blob.path()).await.map_err(failed)?;
        slots.push(PatchSlot::new(name, patch.digest, patch.bytes, patch.header));
        attached.bytes += patch.bytes;
        attached.header_bytes += patch.header.size;
        attached.entries += patch.entries;
    }
    to.push_blob(EMPTY_MEDIA_TYPE, b"{}").await.map_err(failed)?;
    let size = target.release.manifest_bytes.len() as u64;
    let subject = registry::describe(MANIFEST_MEDIA_TYPE, target.image, size);
    let manifest = PatchManifest { target: subject, base: base.image, slots }.to_json();
    attached.patch = Some(to.push_manifest(None, MANIFEST_MEDIA_TYPE, &manifest).await.map_err(failed)?);
    Ok(attached)
}

#[cfg(test)]
#[path = "attach_tests.rs"]
mod tests;
