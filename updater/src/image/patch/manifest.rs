//! A patch in a registry: an OCI image manifest with `artifactType` [`PATCH_ARTIFACT_TYPE`], whose `subject` is the OS image
//! that it makes (OCI image-spec, manifest.md, "Guidelines for Artifact Usage").
//!
//! Not here: the blobs (`super`), finding it (`registry::patches`). Rule: nobody signs it, so it only says where bytes
//! lie; each length in it is bounded before anything is read by it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::config::NAME_BYTES_MAX;
use super::super::manifest::{
    Descriptor, LAYERS_MAX, MANIFEST_BYTES_MAX, MANIFEST_MEDIA_TYPE, SLOT_ANNOTATION, SLOT_BLOB_BYTES_MAX,
    WireDescriptor,
};
use super::super::text::{is_plain_name, unique_keys};
use super::HEADER_BYTES_MAX;
use crate::digest::Digest;

/// `artifactType` of a patch.
pub const PATCH_ARTIFACT_TYPE: &str = "application/vnd.switchback.patch.v1";
/// Media type of a patch's blob for one slot partition.
pub const PATCH_MEDIA_TYPE: &str = "application/vnd.switchback.patch.v1+zstd";
/// The empty JSON object as a config (OCI image-spec, "Guidance for an Empty Descriptor").
pub const EMPTY_MEDIA_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// Manifest annotation: digest of the base OS image's manifest.
pub const BASE_ANNOTATION: &str = "io.switchback.patch.base";
/// Annotation of a layer: digest of the blob's first frame, so that it alone can be fetched and compared.
pub const HEADER_ANNOTATION: &str = "io.switchback.patch.header";
/// Annotation of a layer: length of the blob's first frame in bytes, decimal.
pub const HEADER_BYTES_ANNOTATION: &str = "io.switchback.patch.header-bytes";

/// A patch as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchManifest {
    /// The OS image that it makes.
    pub target: Descriptor,
    /// Digest of the OS image that must be in a slot for it.
    pub base: Digest,
    /// One for each slot partition that is patched, in the manifest's order; names differ.
    pub slots: Vec<PatchSlot>,
}

/// The patch of one slot partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchSlot {
    /// Class name of the slot partition: `root`.
    pub name: String,
    /// Header frame and entries' frames.
    pub blob: Descriptor,
    /// Its first frame.
    pub header: PatchHeader,
}

/// The header of a patch's blob: its first `size` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchHeader {
    /// Digest of the compressed header frame.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// Why a patch's manifest was refused.
#[derive(Debug, thiserror::Error)]
pub enum PatchManifestError {
    /// Longer than [`MANIFEST_BYTES_MAX`].
    #[error("while reading a patch's manifest: {bytes} bytes are more than the {MANIFEST_BYTES_MAX} allowed")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// No JSON, or a field that is unknown, missing, doubled or of the wrong type.
    #[error("while reading a patch's manifest: it is no OCI image manifest as this format has it")]
    Json {
        /// What the parser found.
        source: serde_json::Error,
    },
    /// A field holds something else than this format says.
    #[error("while reading a patch's manifest: {0}")]
    Content(String),
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WirePatch {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: WireDescriptor,
    layers: Vec<WireDescriptor>,
    subject: WireDescriptor,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique_keys")]
    annotations: BTreeMap<String, String>,
}

/// What tells a patch from other referrers, before it is parsed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    artifact_type: Option<String>,
}

/// True when these bytes call themselves the manifest of a patch.
pub fn is_patch(bytes: &[u8]) -> bool {
    let shape: Option<Shape> = serde_json::from_slice(bytes).ok();
    shape.is_some_and(|shape| shape.artifact_type.as_deref() == Some(PATCH_ARTIFACT_TYPE))
}

impl PatchManifest {
    /// Parses and checks a manifest that was found as a referrer of `target`.
    pub fn parse(bytes: &[u8], target: &Digest) -> Result<PatchManifest, PatchManifestError> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(PatchManifestError::TooLong { bytes: bytes.len() as u64 });
        }
        let wire: WirePatch =
            serde_json::from_slice(bytes).map_err(|source| PatchManifestError::Json { source })?;
        wire.checked(target).map_err(PatchManifestError::Content)
    }

    /// The patch of the slot partition `name`.
    pub fn slot(&self, name: &str) -> Option<&PatchSlot> {
        self.slots.iter().find(|slot| slot.name == name)
    }

    /// The canonical bytes: compact JSON, fields in the specification's order, annotations sorted.
    pub fn to_json(&self) -> Vec<u8> {
        let annotations = [(BASE_ANNOTATION.to_owned(), self.base.to_string())].into();
        let empty = Descriptor {
            media_type: EMPTY_MEDIA_TYPE.into(),
            digest: Digest::of(b"{}"),
            size: 2,
            annotations: BTreeMap::new(),
        };
        let wire = WirePatch {
            schema_version: 2,
            media_type: MANIFEST_MEDIA_TYPE.into(),
            artifact_type: PATCH_ARTIFACT_TYPE.into(),
            config: empty.into(),
            layers: self.slots.iter().map(|slot| slot.blob.clone().into()).collect(),
            subject: self.target.clone().into(),
            annotations,
        };
        #[expect(clippy::expect_used, reason = "texts and numbers under text keys always serialise")]
        serde_json::to_vec(&wire).expect("a manifest serialises")
    }
}

impl PatchSlot {
    /// The patch of slot partition `name`, with its descriptor as a manifest names it.
    pub fn new(name: &str, digest: Digest, size: u64, header: PatchHeader) -> PatchSlot {
        let annotations = [
            (SLOT_ANNOTATION, name.to_owned()),
            (HEADER_ANNOTATION, header.digest.to_string()),
            (HEADER_BYTES_ANNOTATION, header.size.to_string()),
        ];
        let annotations = annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let blob = Descriptor { media_type: PATCH_MEDIA_TYPE.into(), digest, size, annotations };
        PatchSlot { name: name.to_owned(), blob, header }
    }

    fn read(number: usize, blob: Descriptor) -> Result<PatchSlot, String> {
        expect("a layer's mediaType", &blob.media_type, PATCH_MEDIA_TYPE)?;
        let bad = |key: &str| format!("layer {number} has no usable annotation `{key}`");
        let text = |key: &str| blob.annotations.get(key).ok_or_else(|| bad(key));
        let name = text(SLOT_ANNOTATION)?.clone();
        if !is_plain_name(&name, NAME_BYTES_MAX) {
            return Err(bad(SLOT_ANNOTATION));
        }
        let digest = text(HEADER_ANNOTATION)?.parse().map_err(|_| bad(HEADER_ANNOTATION))?;
        let size: u64 = text(HEADER_BYTES_ANNOTATION)?.parse().map_err(|_| bad(HEADER_BYTES_ANNOTATION))?;
        // Compressed and in its own bounds; the index of the target gives the closer one.
        if size == 0 || size > blob.size || size > 2 * HEADER_BYTES_MAX {
            return Err(bad(HEADER_BYTES_ANNOTATION));
        }
        if blob.size > SLOT_BLOB_BYTES_MAX {
            return Err(format!("layer {number} of {} bytes is no patch", blob.size));
        }
        Ok(PatchSlot { name, blob, header: PatchHeader { digest, size } })
    }
}

impl WirePatch {
    fn checked(self, target: &Digest) -> Result<PatchManifest, String> {
        expect("schemaVersion", &self.schema_version.to_string(), "2")?;
        expect("mediaType", &self.media_type, MANIFEST_MEDIA_TYPE)?;
        expect("artifactType", &self.artifact_type, PATCH_ARTIFACT_TYPE)?;
        let (config, subject) = (Descriptor::from(self.config), Descriptor::from(self.subject));
        expect("config.mediaType", &config.media_type, EMPTY_MEDIA_TYPE)?;
        expect("subject.digest", &subject.digest.to_string(), &target.to_string())?;
        let base = self.annotations.get(BASE_ANNOTATION).and_then(|text| text.parse().ok());
        let base = base.ok_or_else(|| format!("its annotation `{BASE_ANNOTATION}` is no digest"))?;
        if base == *target {
            return Err("it leads from an image to the same one".into());
        }
        if self.layers.is_empty() || self.layers.len() > LAYERS_MAX {
            return Err(format!("it has {} layers, expected 1 to {LAYERS_MAX}", self.layers.len()));
        }
        let mut slots = Vec::<PatchSlot>::with_capacity(self.layers.len());
        for (number, layer) in self.layers.into_iter().enumerate() {
            let slot = PatchSlot::read(number, layer.into())?;
            if slots.iter().any(|other| other.name == slot.name) {
                return Err(format!("it has two layers for the slot partition `{}`", slot.name));
            }
            slots.push(slot);
        }
        Ok(PatchManifest { target: subject, base, slots })
    }
}

fn expect(field: &str, found: &str, expected: &str) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let found: String = found.chars().take(120).collect();
    Err(format!("{field} is `{found}`, expected `{expected}`"))
}
