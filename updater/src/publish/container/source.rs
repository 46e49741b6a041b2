//! Which manifest a reference means, and its blobs as verified files.
//!
//! Not here: what is in the layers (`layer`). Rule: nothing is read before its length is known to be allowed, and nothing
//! is parsed before its digest is right.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use oci_spec::image::{Descriptor as OciDescriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::ContainerError;
use super::layer::Packing;
use crate::digest::Digest;
use crate::progress::Progress;
use crate::publish::file::FileError;
use crate::registry::{Descriptor, MANIFEST_BYTES_MAX, Registry, RegistryError, describe};

/// The largest config of a container image, in bytes; its history is the longest part.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// The most layers of an image. Engines stop at 127.
const LAYERS_MAX: usize = 512;
/// Indexes may name indexes, but not for ever.
const INDEX_DEPTH_MAX: usize = 3;

/// Which of an index's images: `linux/amd64`, `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Architecture, by Go's name.
    pub architecture: String,
    /// Its variant, when one was given.
    pub variant: Option<String>,
}

impl std::str::FromStr for Platform {
    type Err = String;
    fn from_str(text: &str) -> Result<Platform, String> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            ["linux", architecture] => Ok(Platform { architecture: architecture.into(), variant: None }),
            ["linux", architecture, variant] => {
                Ok(Platform { architecture: architecture.into(), variant: Some(variant.into()) })
            }
            _ => Err(format!("`{text}` is no platform such as linux/amd64 or linux/arm/v7")),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// A container image as its manifest and config describe it.
#[derive(Debug)]
pub(super) struct Image {
    /// Of the manifest.
    pub digest: Digest,
    pub labels: HashMap<String, String>,
    /// Bottom first: the blob, how it is packed, and the digest of what is in it.
    pub layers: Vec<(Descriptor, Packing, Digest)>,
}

/// What tells an index from a manifest when neither says its media type.
#[derive(Deserialize)]
struct Shape {
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

/// Reads manifest and config of the image at `digest`, for the platform if it is an index.
pub(super) async fn describe_image(
    registry: &dyn Registry,
    mut digest: Digest,
    platform: &Platform,
    limit: u64,
) -> Result<Image, ContainerError> {
    for _ in 0..=INDEX_DEPTH_MAX {
        let bytes = registry.manifest(&digest, MANIFEST_BYTES_MAX).await?;
        let shape: Shape = parse(&digest, "a manifest or index", &bytes)?;
        if shape.manifests.is_some() && shape.layers.is_none() {
            let index: ImageIndex = parse(&digest, "an image index", &bytes)?;
            digest = choose(&digest, &index, platform)?;
            continue;
        }
        let manifest: ImageManifest = parse(&digest, "an image manifest", &bytes)?;
        let config = sized(&digest, manifest.config())?;
        if config.media_type.starts_with("application/vnd.switchback.") {
            return Err(not(digest, "it is a release already, not a container image".into()));
        }
        let config = registry.blob(&config, CONFIG_BYTES_MAX).await?;
        let config: ImageConfiguration = parse(&digest, "an image config", &config)?;
        return image(digest, &manifest, &config, platform, limit);
    }
    Err(not(digest, format!("indexes name indexes more than {INDEX_DEPTH_MAX} times")))
}

fn image(
    digest: Digest,
    manifest: &ImageManifest,
    config: &ImageConfiguration,
    platform: &Platform,
    limit: u64,
) -> Result<Image, ContainerError> {
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    if os != "linux" || architecture != platform.architecture {
        let wanted = platform.to_string();
        return Err(ContainerError::NoPlatform { digest, wanted, found: format!("{os}/{architecture}") });
    }
    let diff_ids = config.rootfs().diff_ids();
    if manifest.layers().len() != diff_ids.len() || diff_ids.len() > LAYERS_MAX {
        let detail = format!(
            "its manifest has {} layers, its config {}, and at most {LAYERS_MAX} are read",
            manifest.layers().len(),
            diff_ids.len()
        );
        return Err(not(digest, detail));
    }
    let mut layers = Vec::new();
    let mut bytes = 0u64;
    for (layer, diff_id) in manifest.layers().iter().zip(diff_ids) {
        let blob = sized(&digest, layer)?;
        let packing = Packing::of(&blob.media_type).ok_or_else(|| {
            not(digest, format!("a layer of the type `{}` is not read", show(&blob.media_type)))
        })?;
        bytes = bytes.saturating_add(blob.size);
        let diff_id = diff_id.parse().map_err(|error| not(digest, format!("in its config: {error}")))?;
        layers.push((blob, packing, diff_id));
    }
    if bytes > limit {
        return Err(ContainerError::TooLarge { digest, bytes, limit });
    }
    Ok(Image { digest, labels: config.labels_of_config().cloned().unwrap_or_default(), layers })
}

/// The one image of an index that is for the platform; an index of one image that says no platform is taken at its word.
fn choose(digest: &Digest, index: &ImageIndex, wanted: &Platform) -> Result<Digest, ContainerError> {
    let mut found = Vec::new();
    let mut chosen = None;
    for entry in index.manifests() {
        let Some(platform) = entry.platform() else {
            if index.manifests().len() == 1 {
                chosen = Some(entry);
            }
            continue;
        };
        let (os, architecture) = (platform.os().to_string(), platform.architecture().to_string());
        let variant = platform.variant().as_deref();
        let fits = os == "linux" && architecture == wanted.architecture;
        if fits && (wanted.variant.is_none() || variant == wanted.variant.as_deref()) && chosen.is_none() {
            chosen = Some(entry);
        }
        found.push(format!("{os}/{architecture}{}", variant.map(|v| format!("/{v}")).unwrap_or_default()));
    }
    match chosen {
        Some(entry) => Ok(sized(digest, entry)?.digest),
        None => Err(ContainerError::NoPlatform {
            digest: *digest,
            wanted: wanted.to_string(),
            found: if found.is_empty() {
                "none that says what it is for".into()
            } else {
                show(&found.join(", "))
            },
        }),
    }
}

/// A descriptor with a digest of the only kind that is verified here.
fn sized(image: &Digest, descriptor: &OciDescriptor) -> Result<Descriptor, ContainerError> {
    let digest = descriptor.digest().to_string().parse();
    let digest = digest.map_err(|error| not(*image, format!("in its manifest: {error}")))?;
    Ok(describe(descriptor.media_type().as_ref(), digest, descriptor.size()))
}

fn parse<T: DeserializeOwned>(digest: &Digest, what: &str, bytes: &[u8]) -> Result<T, ContainerError> {
    serde_json::from_slice(bytes).map_err(|error| not(*digest, format!("{what} was expected: {error}")))
}

pub(super) fn not(digest: Digest, detail: String) -> ContainerError {
    ContainerError::NotAnImage { digest, detail }
}

fn show(text: &str) -> String {
    super::tree::show(text.as_bytes())
}

/// The blob as a file with the right bytes: the source's own where it has one, else a copy at `copy`.
pub(super) async fn fetch(
    registry: &dyn Registry,
    blob: &Descriptor,
    copy: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, ContainerError> {
    let own = registry.blob_file(&blob.digest);
    let mut file = match own {
        Some(_) => None,
        None => Some(std::fs::File::create(copy).map_err(FileError::of("making", copy))?),
    };
    let mut hash = Sha256::new();
    let mut body = registry.blob_range(blob, 0..blob.size).await?;
    while let Some(piece) = body.next().await {
        let piece = piece?;
        hash.update(&piece);
        if let Some(file) = &mut file {
            file.write_all(&piece).map_err(FileError::of("writing", copy))?;
        }
        progress.advance(piece.len() as u64);
    }
    let found = Digest::from_raw(hash.finalize().into());
    if found != blob.digest {
        let what = format!("the layer {} at {}", blob.digest, registry.place());
        return Err(RegistryError::Mismatch { what, found }.into());
    }
    Ok(own.unwrap_or_else(|| copy.to_owned()))
}
