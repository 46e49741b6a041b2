//! The OS image's manifest: an OCI image manifest with `artifactType` [`OS_ARTIFACT_TYPE`] (OCI image-spec, manifest.md).
//!
//! Not here: the release index over several images, signatures. Rule: only what this module knows by name passes; a
//! layer, field or role that is unknown, missing or there twice is refused, so that nothing signed is silently ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use switchback_bootloader::record::BootFileKind;

use super::config::{CONFIG_BYTES_MAX, Kind, OsConfig};
use super::text::{is_plain_name, unique_keys};
use crate::digest::Digest;

/// Media type of every OCI image manifest.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// `artifactType` of an OS or service image.
pub const OS_ARTIFACT_TYPE: &str = "application/vnd.switchback.os.v1";
/// Media type of the config blob ([`OsConfig`]).
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.switchback.os.config.v1+json";
/// Media type of a slot layer: concatenated zstd frames.
pub const SLOT_MEDIA_TYPE: &str = "application/vnd.switchback.slot.v1+zstd";
/// Media type of a slot layer's chunk index.
pub const INDEX_MEDIA_TYPE: &str = "application/vnd.switchback.index.v1+zstd";
/// Media type of a boot file.
pub const BOOT_MEDIA_TYPE: &str = "application/vnd.switchback.boot.v1";

/// Annotation of slot and index layers: the slot partition's class name.
pub const SLOT_ANNOTATION: &str = "io.switchback.slot";
/// Annotation of boot layers: `uki`, `linux`, `initrd` or `devicetree`.
pub const BOOT_ANNOTATION: &str = "io.switchback.boot";
/// Annotation of index layers: digest of the root frame, so that the root alone can be fetched and believed.
pub const INDEX_ROOT_ANNOTATION: &str = "io.switchback.index.root";
/// Annotation of index layers: length of the root frame in bytes, decimal.
pub const INDEX_ROOT_BYTES_ANNOTATION: &str = "io.switchback.index.root-bytes";
/// Annotation that `oras pull` takes the file name from (OCI image-spec, annotations.md).
pub const TITLE_ANNOTATION: &str = "org.opencontainers.image.title";
/// Manifest annotation with the time the release was made (RFC 3339): no later clock of a machine can be right that is
/// behind it.
pub const CREATED_ANNOTATION: &str = "org.opencontainers.image.created";
/// Manifest annotation with the release's version, for people and registries; the signed config decides.
pub const VERSION_ANNOTATION: &str = "org.opencontainers.image.version";

/// The largest manifest that is parsed, in bytes. A real one has about 2 KiB.
pub const MANIFEST_BYTES_MAX: u64 = 256 * 1024;
/// The most layers of one manifest.
pub const LAYERS_MAX: usize = 64;
/// The largest boot file in bytes; it must fit an ESP.
pub const BOOT_FILE_BYTES_MAX: u64 = 1 << 30;
/// The largest blob of a slot layer in bytes.
pub const SLOT_BLOB_BYTES_MAX: u64 = 1 << 40;

/// A piece of content named by its digest (OCI image-spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Words of the publisher; empty when there are none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique_keys")]
    pub annotations: BTreeMap<String, String>,
}

/// The root frame of an index blob: its first `size` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IndexRoot {
    /// Digest of the compressed root frame.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// One slot partition's content: its blob and the index over that blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotLayer {
    /// Class name of the slot partition: `root`.
    pub name: String,
    /// Concatenated zstd frames.
    pub blob: Descriptor,
    /// The chunk index of `blob`.
    pub index: Descriptor,
    /// The first frame of `index`.
    pub index_root: IndexRoot,
}

/// One boot file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootLayer {
    /// What it is.
    pub kind: BootFileKind,
    /// The file itself, uncompressed.
    pub blob: Descriptor,
}

/// An OS (or service) image's manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsManifest {
    /// The config blob.
    pub config: Descriptor,
    /// Slot partitions, in the manifest's order; at least one, names differ.
    pub slots: Vec<SlotLayer>,
    /// Boot files: a UKI alone, or a kernel with at most one initrd and one device tree, or none (a service).
    pub boot: Vec<BootLayer>,
    /// The manifest's own annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Longer than [`MANIFEST_BYTES_MAX`].
    #[error("while reading the manifest: {bytes} bytes are more than the {MANIFEST_BYTES_MAX} allowed")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// No JSON, or a field that is unknown, missing, doubled or of the wrong type.
    #[error("while reading the manifest: it is no OCI image manifest as this format has it")]
    Json {
        /// What the parser found.
        source: serde_json::Error,
    },
    /// A field holds something else than this format says.
    #[error("while reading the manifest: {field} is `{found}`, expected `{expected}`")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it must hold.
        expected: &'static str,
    },
    /// The layers do not make one whole image.
    #[error("while reading the manifest: {0}")]
    Layers(String),
    /// Manifest and config do not describe the same image.
    #[error("while comparing manifest and config: {0}")]
    Config(String),
}

impl OsManifest {
    /// Parses and checks a manifest. Every refusal names what was found.
    pub fn parse(bytes: &[u8]) -> Result<OsManifest, ManifestError> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { bytes: bytes.len() as u64 });
        }
        let wire: WireManifest =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { source })?;
        wire.checked()
    }

    /// When the publisher says that it was made, in seconds since 1970.
    pub fn created_unix_secs(&self) -> Option<u64> {
        let created: jiff::Timestamp = self.annotations.get(CREATED_ANNOTATION)?.parse().ok()?;
        u64::try_from(created.as_second()).ok()
    }

    /// The canonical bytes: compact JSON, fields in the specification's order, annotations sorted.
    pub fn to_json(&self) -> Vec<u8> {
        let wire = WireManifest {
            schema_version: 2,
            media_type: MANIFEST_MEDIA_TYPE.into(),
            artifact_type: OS_ARTIFACT_TYPE.into(),
            config: self.config.clone().into(),
            layers: self.descriptors().skip(1).map(|descriptor| descriptor.clone().into()).collect(),
            annotations: self.annotations.clone(),
        };
        #[expect(clippy::expect_used, reason = "texts and numbers under text keys always serialise")]
        serde_json::to_vec(&wire).expect("a manifest serialises")
    }

    /// Every blob that the manifest names: config first, then the layers in order.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        let slots = self.slots.iter().flat_map(|slot| [&slot.blob, &slot.index]);
        std::iter::once(&self.config).chain(slots).chain(self.boot.iter().map(|boot| &boot.blob))
    }

    /// Refuses a config that describes another image than this manifest: other slots, or boot files for a service.
    pub fn check_config(&self, config: &OsConfig) -> Result<(), ManifestError> {
        let wrong = |what: String| Err(ManifestError::Config(what));
        let ours: Vec<&str> = self.slots.iter().map(|slot| slot.name.as_str()).collect();
        let theirs: Vec<&str> = config.slots.iter().map(|slot| slot.name.as_str()).collect();
        if ours != theirs {
            return wrong(format!("the manifest has the slots {ours:?}, the config {theirs:?}"));
        }
        let takes_cmdline = self.boot.iter().any(|file| file.kind == BootFileKind::Linux);
        match (config.kind, self.boot.is_empty()) {
            (Kind::Os, true) => wrong("an OS image without boot files".into()),
            (Kind::Service, false) => wrong("a service image with boot files".into()),
            _ if takes_cmdline && config.cmdline.is_none() => {
                wrong("a kernel without a command line in the config".into())
            }
            _ if !takes_cmdline && config.cmdline.is_some() => {
                wrong("a command line in the config, but no kernel that takes it".into())
            }
            _ => Ok(()),
        }
    }
}

/// A descriptor for the slot layer's blob.
pub fn slot_descriptor(name: &str, digest: Digest, size: u64) -> Descriptor {
    let annotations = [(SLOT_ANNOTATION, name.to_string()), (TITLE_ANNOTATION, format!("{name}.img.zst"))];
    describe(SLOT_MEDIA_TYPE, digest, size, annotations)
}

/// A descriptor for the index of the slot layer `name`.
pub fn index_descriptor(name: &str, digest: Digest, size: u64, root: IndexRoot) -> Descriptor {
    let annotations = [
        (SLOT_ANNOTATION, name.to_string()),
        (INDEX_ROOT_ANNOTATION, root.digest.to_string()),
        (INDEX_ROOT_BYTES_ANNOTATION, root.size.to_string()),
        (TITLE_ANNOTATION, format!("{name}.index.zst")),
    ];
    describe(INDEX_MEDIA_TYPE, digest, size, annotations)
}

/// A descriptor for a boot file.
pub fn boot_descriptor(kind: BootFileKind, digest: Digest, size: u64) -> Descriptor {
    let title = match kind {
        BootFileKind::Uki => "uki.efi",
        BootFileKind::Linux => "linux",
        BootFileKind::Initrd => "initrd",
        BootFileKind::DeviceTree => "devicetree.dtb",
    };
    let annotations = [(BOOT_ANNOTATION, boot_word(kind).to_string()), (TITLE_ANNOTATION, title.to_string())];
    describe(BOOT_MEDIA_TYPE, digest, size, annotations)
}

/// A descriptor for the config blob.
pub fn config_descriptor(digest: Digest, size: u64) -> Descriptor {
    describe(CONFIG_MEDIA_TYPE, digest, size, [])
}

/// The word for a boot file's kind in [`BOOT_ANNOTATION`].
pub fn boot_word(kind: BootFileKind) -> &'static str {
    match kind {
        BootFileKind::Uki => "uki",
        BootFileKind::Linux => "linux",
        BootFileKind::Initrd => "initrd",
        BootFileKind::DeviceTree => "devicetree",
    }
}

fn describe<const N: usize>(
    media_type: &str,
    digest: Digest,
    size: u64,
    annotations: [(&str, String); N],
) -> Descriptor {
    let annotations = annotations.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    Descriptor { media_type: media_type.into(), digest, size, annotations }
}

/// The manifest as it is written. `subject` and anything later versions of OCI add is refused: nothing of ours uses it,
/// and what we do not understand must not be covered by a signature that we accept.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireManifest {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: WireDescriptor,
    layers: Vec<WireDescriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique_keys")]
    annotations: BTreeMap<String, String>,
}

/// A descriptor without `urls`, `data` or `platform`: content comes from the repository and from nowhere else.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireDescriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique_keys")]
    annotations: BTreeMap<String, String>,
}

impl From<WireDescriptor> for Descriptor {
    fn from(wire: WireDescriptor) -> Descriptor {
        let WireDescriptor { media_type, digest, size, annotations } = wire;
        Descriptor { media_type, digest, size, annotations }
    }
}

impl From<Descriptor> for WireDescriptor {
    fn from(descriptor: Descriptor) -> WireDescriptor {
        let Descriptor { media_type, digest, size, annotations } = descriptor;
        WireDescriptor { media_type, digest, size, annotations }
    }
}

impl WireManifest {
    fn checked(self) -> Result<OsManifest, ManifestError> {
        if self.schema_version != 2 {
            let found = self.schema_version.to_string();
            return Err(ManifestError::Field { field: "schemaVersion", found, expected: "2" });
        }
        expect_text("mediaType", &self.media_type, MANIFEST_MEDIA_TYPE)?;
        expect_text("artifactType", &self.artifact_type, OS_ARTIFACT_TYPE)?;
        expect_text("config.mediaType", &self.config.media_type, CONFIG_MEDIA_TYPE)?;
        let config = Descriptor::from(self.config);
        check_size("the config", config.size, CONFIG_BYTES_MAX)?;
        if self.layers.len() > LAYERS_MAX {
            return Err(ManifestError::Layers(format!(
                "{} layers are more than the {LAYERS_MAX} allowed",
                self.layers.len()
            )));
        }
        let mut sorted = Sorted::default();
        for (number, layer) in self.layers.into_iter().enumerate() {
            sorted.take(number, layer.into())?;
        }
        let (slots, boot) = sorted.paired()?;
        Ok(OsManifest { config, slots, boot, annotations: self.annotations })
    }
}

/// The layers by role, while the manifest is being read.
#[derive(Default)]
struct Sorted {
    blobs: Vec<(String, Descriptor)>,
    indexes: Vec<(String, Descriptor)>,
    boot: Vec<BootLayer>,
}

impl Sorted {
    fn take(&mut self, number: usize, layer: Descriptor) -> Result<(), ManifestError> {
        match layer.media_type.as_str() {
            SLOT_MEDIA_TYPE => {
                check_size("a slot layer", layer.size, SLOT_BLOB_BYTES_MAX)?;
                put_slot(&mut self.blobs, "slot layer", number, layer)
            }
            INDEX_MEDIA_TYPE => {
                check_size("an index layer", layer.size, super::index::INDEX_BYTES_MAX)?;
                put_slot(&mut self.indexes, "index layer", number, layer)
            }
            BOOT_MEDIA_TYPE => self.put_boot(number, layer),
            other => {
                Err(ManifestError::Layers(format!("layer {number} has the unknown media type `{other}`")))
            }
        }
    }

    fn put_boot(&mut self, number: usize, blob: Descriptor) -> Result<(), ManifestError> {
        check_size("a boot file", blob.size, BOOT_FILE_BYTES_MAX)?;
        let kind = match annotation(&blob, BOOT_ANNOTATION, number)? {
            "uki" => BootFileKind::Uki,
            "linux" => BootFileKind::Linux,
            "initrd" => BootFileKind::Initrd,
            "devicetree" => BootFileKind::DeviceTree,
            other => {
                return Err(ManifestError::Layers(format!(
                    "layer {number} is the unknown boot file `{other}`"
                )));
            }
        };
        if self.boot.iter().any(|file| file.kind == kind) {
            return Err(ManifestError::Layers(format!("two boot files `{}`", boot_word(kind))));
        }
        self.boot.push(BootLayer { kind, blob });
        Ok(())
    }

    fn paired(mut self) -> Result<(Vec<SlotLayer>, Vec<BootLayer>), ManifestError> {
        self.check_boot()?;
        let mut slots = Vec::with_capacity(self.blobs.len());
        for (name, blob) in std::mem::take(&mut self.blobs) {
            let place = self.indexes.iter().position(|(index_name, _)| *index_name == name);
            let Some(place) = place else {
                return Err(ManifestError::Layers(format!("the slot layer `{name}` has no index")));
            };
            let (_, index) = self.indexes.remove(place);
            let index_root = read_index_root(&index)?;
            slots.push(SlotLayer { name, blob, index, index_root });
        }
        if let Some((name, _)) = self.indexes.first() {
            return Err(ManifestError::Layers(format!("the index `{name}` has no slot layer")));
        }
        if slots.is_empty() {
            return Err(ManifestError::Layers("no slot layer".into()));
        }
        Ok((slots, self.boot))
    }

    fn check_boot(&self) -> Result<(), ManifestError> {
        let has = |kind| self.boot.iter().any(|file| file.kind == kind);
        let wrong = |what: &str| Err(ManifestError::Layers(what.into()));
        match (has(BootFileKind::Uki), has(BootFileKind::Linux)) {
            (true, _) if self.boot.len() > 1 => wrong("a UKI beside other boot files: which of them boots?"),
            (false, false) if !self.boot.is_empty() => wrong("an initrd or device tree without a kernel"),
            _ => Ok(()),
        }
    }
}

fn put_slot(
    into: &mut Vec<(String, Descriptor)>,
    role: &str,
    number: usize,
    layer: Descriptor,
) -> Result<(), ManifestError> {
    let name = annotation(&layer, SLOT_ANNOTATION, number)?.to_string();
    if !is_plain_name(&name, super::config::NAME_BYTES_MAX) {
        return Err(ManifestError::Layers(format!("layer {number} has the bad slot name {name:?}")));
    }
    if into.iter().any(|(other, _)| *other == name) {
        return Err(ManifestError::Layers(format!("two of the {role} `{name}`")));
    }
    into.push((name, layer));
    Ok(())
}

fn read_index_root(index: &Descriptor) -> Result<IndexRoot, ManifestError> {
    let bad =
        |key: &str| ManifestError::Layers(format!("an index layer without a usable annotation `{key}`"));
    let text = |key: &str| index.annotations.get(key).ok_or_else(|| bad(key));
    let digest = text(INDEX_ROOT_ANNOTATION)?.parse().map_err(|_| bad(INDEX_ROOT_ANNOTATION))?;
    let size: u64 =
        text(INDEX_ROOT_BYTES_ANNOTATION)?.parse().map_err(|_| bad(INDEX_ROOT_BYTES_ANNOTATION))?;
    if size == 0 || size > index.size {
        return Err(bad(INDEX_ROOT_BYTES_ANNOTATION));
    }
    Ok(IndexRoot { digest, size })
}

fn annotation<'a>(layer: &'a Descriptor, key: &str, number: usize) -> Result<&'a str, ManifestError> {
    layer
        .annotations
        .get(key)
        .map(String::as_str)
        .ok_or_else(|| ManifestError::Layers(format!("layer {number} has no annotation `{key}`")))
}

fn expect_text(field: &'static str, found: &str, expected: &'static str) -> Result<(), ManifestError> {
    if found == expected {
        return Ok(());
    }
    Err(ManifestError::Field { field, found: found.chars().take(120).collect(), expected })
}

fn check_size(what: &str, size: u64, size_max: u64) -> Result<(), ManifestError> {
    if size == 0 || size > size_max {
        return Err(ManifestError::Layers(format!("{what} of {size} bytes, expected 1 to {size_max}")));
    }
    Ok(())
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
