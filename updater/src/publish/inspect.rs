//! What a release is, read from where it lies: names, sizes, layers, chunks, signatures found.
//!
//! Not here: text for a terminal (`cli`), whether a signature is good (`trust`). Rule: every document is read with its
//! bound and checked as a device checks it; nothing here is a promise that a device would trust it.

use serde::Serialize;

use super::layer::ChunkStatistics;
use crate::digest::Digest;
use crate::image::config::{ConfigError, OsConfig, Requirements};
use crate::image::index::{Index, IndexError};
use crate::image::manifest::{
    Descriptor, MANIFEST_BYTES_MAX, ManifestError, OsManifest, SlotLayer, boot_word,
};
use crate::image::release::{RELEASE_BYTES_MAX, ReleaseIndex, ReleaseIndexError, is_release_index};
use crate::registry::{Registry, RegistryError, evidence};
use crate::trust::Evidence;

/// A release as it was read; its signature was not looked at.
#[derive(Debug, Clone)]
pub struct UnverifiedRelease {
    /// The manifest's bytes.
    pub manifest_bytes: Vec<u8>,
    /// The manifest.
    pub manifest: OsManifest,
    /// The config.
    pub config: OsConfig,
    /// The chunk index of each slot layer, in the manifest's order.
    pub indexes: Vec<Index>,
}

/// A release described.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The repository.
    pub place: String,
    /// Digest of the manifest.
    pub digest: Digest,
    /// `os` or `service`.
    pub kind: crate::image::config::Kind,
    /// Which product it is for.
    pub product: String,
    /// Title.
    pub name: String,
    /// Version.
    pub version: String,
    /// Security version.
    pub security_version: u64,
    /// Hardware it runs on; empty = any.
    pub compatible: Vec<String>,
    /// What it asks of a machine.
    pub requirements: Requirements,
    /// Kernel command line, where the image has a kernel instead of a UKI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Slot partitions.
    pub slots: Vec<SlotInspection>,
    /// Boot files.
    pub boot: Vec<BootInspection>,
    /// The services that are bound to the OS image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceInspection>,
    /// Bytes of the OS image's manifest and all its blobs: what a registry keeps.
    pub stored_bytes: u64,
    /// Bytes that a device without any older release fetches: zero runs left out.
    pub fetch_bytes: u64,
    /// Signatures that were found, not judged.
    pub signatures: Vec<SignatureInspection>,
}

/// One slot partition described.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlotInspection {
    /// Class name.
    pub name: String,
    /// Raw bytes.
    pub raw_bytes: u64,
    /// SHA-256 of the raw bytes.
    pub raw_sha256: Digest,
    /// Digest of the compressed blob.
    pub blob: Digest,
    /// Its length in bytes.
    pub blob_bytes: u64,
    /// Length of the chunk index in bytes.
    pub index_bytes: u64,
    /// dm-verity root hash in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verity_root: Option<String>,
    /// Counts.
    pub chunks: ChunkStatistics,
}

/// One boot file described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootInspection {
    /// `uki`, `linux`, `initrd` or `devicetree`.
    pub kind: &'static str,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A service's image in a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceInspection {
    /// The service.
    pub name: String,
    /// Its image's manifest or index.
    pub digest: Digest,
}

/// One signature as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SignatureInspection {
    /// `simple-signing` (cosign 2, skopeo, podman) or `bundle` (cosign 3).
    pub form: &'static str,
    /// Length of the signed payload or of the bundle, in bytes.
    pub bytes: u64,
}

/// Why a release could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The repository failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The manifest was refused, or does not fit the config.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The config was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The index of a release was refused.
    #[error(transparent)]
    Release(#[from] ReleaseIndexError),
    /// An index was refused.
    #[error("while reading the index of the slot layer `{name}`")]
    Index {
        /// Which slot layer.
        name: String,
        /// What is wrong.
        source: IndexError,
    },
}

/// Reads the release `digest` and checks that manifest, config and indexes belong together.
pub async fn read(registry: &dyn Registry, digest: &Digest) -> Result<UnverifiedRelease, ReadError> {
    let manifest_bytes = registry.manifest(digest, MANIFEST_BYTES_MAX).await?;
    let manifest = OsManifest::parse(&manifest_bytes)?;
    let config_bytes = registry.blob(&manifest.config, crate::image::config::CONFIG_BYTES_MAX).await?;
    let config = OsConfig::parse(&config_bytes)?;
    manifest.check_config(&config)?;
    let mut indexes = Vec::new();
    // The same slots in the same order: `check_config` has compared the names.
    for (layer, content) in manifest.slots.iter().zip(&config.slots) {
        indexes.push(read_index(registry, layer, content.bytes).await?);
    }
    Ok(UnverifiedRelease { manifest_bytes, manifest, config, indexes })
}

/// The OS image of the release `digest`: itself, or the one that a release index binds.
pub async fn os_image(registry: &dyn Registry, digest: &Digest) -> Result<Digest, ReadError> {
    let bytes = registry.manifest(digest, RELEASE_BYTES_MAX.max(MANIFEST_BYTES_MAX)).await?;
    if is_release_index(&bytes) { Ok(ReleaseIndex::parse(&bytes)?.os.digest) } else { Ok(*digest) }
}

/// Reads the OS image of the release `digest`, with the image's own digest.
pub async fn read_os(
    registry: &dyn Registry,
    digest: &Digest,
) -> Result<(Digest, UnverifiedRelease), ReadError> {
    let image = os_image(registry, digest).await?;
    Ok((image, read(registry, &image).await?))
}

async fn read_index(registry: &dyn Registry, layer: &SlotLayer, raw_bytes: u64) -> Result<Index, ReadError> {
    let bytes = registry.blob(&layer.index, Index::blob_bytes_max(raw_bytes)).await?;
    Index::parse(&bytes, raw_bytes, layer.blob.size)
        .map_err(|source| ReadError::Index { name: layer.name.clone(), source })
}

/// Describes the release `digest`.
pub async fn inspect(registry: &dyn Registry, digest: &Digest) -> Result<Inspection, ReadError> {
    let bytes = registry.manifest(digest, RELEASE_BYTES_MAX).await?;
    let bound = is_release_index(&bytes).then(|| ReleaseIndex::parse(&bytes)).transpose()?;
    let image = bound.as_ref().map_or(*digest, |bound| bound.os.digest);
    let release = read(registry, &image).await?;
    let signatures = evidence::collect(registry, digest).await?;
    let UnverifiedRelease { manifest_bytes, manifest, config, indexes } = release;
    let slots: Vec<SlotInspection> = (0..indexes.len())
        .map(|slot| describe_slot(&manifest.slots[slot], &config, slot, &indexes[slot]))
        .collect();
    let boot: Vec<BootInspection> = manifest.boot.iter().map(describe_boot).collect();
    let documents = manifest_bytes.len() as u64 + manifest.config.size;
    let boot_bytes: u64 = boot.iter().map(|file| file.bytes).sum();
    let fetched = slots.iter().map(|slot| slot.index_bytes + slot.chunks.fetch_bytes).sum::<u64>();
    Ok(Inspection {
        place: registry.place(),
        digest: *digest,
        kind: config.kind,
        product: config.product,
        name: config.name,
        version: bound.as_ref().map_or(config.version, |bound| bound.version.clone()),
        security_version: config.security_version,
        compatible: config.compatible,
        requirements: config.requirements,
        cmdline: config.cmdline,
        stored_bytes: manifest_bytes.len() as u64 + manifest.descriptors().map(|blob| blob.size).sum::<u64>(),
        fetch_bytes: documents + boot_bytes + fetched,
        slots,
        boot,
        services: bound.into_iter().flat_map(|bound| bound.services).map(describe_service).collect(),
        signatures: signatures.iter().map(describe_signature).collect(),
    })
}

fn describe_slot(layer: &SlotLayer, config: &OsConfig, slot: usize, index: &Index) -> SlotInspection {
    let content = &config.slots[slot];
    SlotInspection {
        name: layer.name.clone(),
        raw_bytes: content.bytes,
        raw_sha256: content.sha256,
        blob: layer.blob.digest,
        blob_bytes: layer.blob.size,
        index_bytes: layer.index.size,
        verity_root: content.verity.as_ref().map(|verity| hex::encode(verity.root)),
        chunks: ChunkStatistics::of(index),
    }
}

fn describe_service((name, image): (String, Descriptor)) -> ServiceInspection {
    ServiceInspection { name, digest: image.digest }
}

fn describe_boot(file: &crate::image::manifest::BootLayer) -> BootInspection {
    BootInspection { kind: boot_word(file.kind), digest: file.blob.digest, bytes: file.blob.size }
}

fn describe_signature(evidence: &Evidence) -> SignatureInspection {
    match evidence {
        Evidence::SimpleSigning { payload, .. } => {
            SignatureInspection { form: "simple-signing", bytes: payload.len() as u64 }
        }
        Evidence::Bundle(bundle) => SignatureInspection { form: "bundle", bytes: bundle.len() as u64 },
    }
}
