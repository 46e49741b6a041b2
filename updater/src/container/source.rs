//! Which manifest a reference means, and its blobs as verified files.
//!
//! Not here: what is in the layers (`layer`). Rule: nothing is read before its length is known to be allowed, and nothing
//! is parsed before its digest is right.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::layer::Packing;
use super::spec::{ImageConfig, ImageIndex, ImageManifest, Part};
use super::{ContainerError, ContainerRequest};
use crate::digest::Digest;
use crate::file::FileError;
use crate::progress::Progress;
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

impl Platform {
    /// This machine's, by Go's names.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Platform { architecture: architecture.into(), variant: None }
    }
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
pub struct Image {
    /// Of the manifest.
    pub digest: Digest,
    /// What it says of itself: what to run, and how.
    pub config: ImageConfig,
    /// Bottom first: the blob, how it is packed, and the digest of what is in it.
    pub(super) layers: Vec<(Descriptor, Packing, Digest)>,
}

impl Image {
    /// The digests of its layers, as they lie in the registry.
    pub fn layers(&self) -> impl Iterator<Item = Digest> + '_ {
        self.layers.iter().map(|(blob, _, _)| blob.digest)
    }

    /// Its labels.
    pub fn labels(&self) -> HashMap<String, String> {
        self.config.config.as_ref().and_then(|config| config.labels.clone()).unwrap_or_default()
    }
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
    request: &ContainerRequest,
) -> Result<Image, ContainerError> {
    let mut digest = request.digest;
    for _ in 0..=INDEX_DEPTH_MAX {
        let bytes = registry.manifest(&digest, MANIFEST_BYTES_MAX).await?;
        let shape: Shape = parse(&digest, "a manifest or index", &bytes)?;
        if shape.manifests.is_some() && shape.layers.is_none() {
            let index: ImageIndex = parse(&digest, "an image index", &bytes)?;
            digest = choose(&digest, &index, &request.platform)?;
            continue;
        }
        let manifest: ImageManifest = parse(&digest, "an image manifest", &bytes)?;
        let config = sized(&digest, &manifest.config)?;
        if config.media_type.starts_with("application/vnd.switchback.") {
            return Err(not(digest, "it is a release already, not a container image".into()));
        }
        let config = registry.blob(&config, CONFIG_BYTES_MAX).await?;
        let config: ImageConfig = parse(&digest, "an image config", &config)?;
        return image(digest, &manifest, config, request);
    }
    Err(not(digest, format!("indexes name indexes more than {INDEX_DEPTH_MAX} times")))
}

fn image(
    digest: Digest,
    manifest: &ImageManifest,
    config: ImageConfig,
    request: &ContainerRequest,
) -> Result<Image, ContainerError> {
    let ContainerRequest { platform, bytes_max: limit, knob, .. } = request;
    let (os, architecture) = (&config.os, &config.architecture);
    if os != "linux" || *architecture != platform.architecture {
        let wanted = platform.to_string();
        return Err(ContainerError::NoPlatform { digest, wanted, found: format!("{os}/{architecture}") });
    }
    let diff_ids = &config.rootfs.diff_ids;
    if manifest.layers.len() != diff_ids.len() || diff_ids.len() > LAYERS_MAX {
        let detail = format!(
            "its manifest has {} layers, its config {}, and at most {LAYERS_MAX} are read",
            manifest.layers.len(),
            diff_ids.len()
        );
        return Err(not(digest, detail));
    }
    let mut layers = Vec::new();
    let mut bytes = 0u64;
    for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
        let blob = sized(&digest, layer)?;
        let packing = Packing::of(&blob.media_type).ok_or_else(|| {
            not(digest, format!("a layer of the type `{}` is not read", show(&blob.media_type)))
        })?;
        bytes = bytes.saturating_add(blob.size);
        let diff_id = diff_id.parse().map_err(|error| not(digest, format!("in its config: {error}")))?;
        layers.push((blob, packing, diff_id));
    }
    if bytes > *limit {
        return Err(ContainerError::TooLarge { digest, bytes, limit: *limit, knob });
    }
    Ok(Image { digest, config, layers })
}

/// The one image of an index that is for the platform; an index of one image that says no platform is taken at its word.
fn choose(digest: &Digest, index: &ImageIndex, wanted: &Platform) -> Result<Digest, ContainerError> {
    let mut found = Vec::new();
    let mut chosen = None;
    for entry in &index.manifests {
        let Some(platform) = &entry.platform else {
            if index.manifests.len() == 1 {
                chosen = Some(entry);
            }
            continue;
        };
        let (os, architecture) = (&platform.os, &platform.architecture);
        let variant = platform.variant.as_deref();
        let fits = os == "linux" && *architecture == wanted.architecture;
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
fn sized(image: &Digest, part: &Part) -> Result<Descriptor, ContainerError> {
    let digest = part.digest.parse();
    let digest = digest.map_err(|error| not(*image, format!("in its manifest: {error}")))?;
    Ok(describe(&part.media_type, digest, part.size))
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

/// A blob as a file with the right bytes.
pub(super) struct Fetched {
    pub path: PathBuf,
    /// False for the source's own file.
    pub is_copy: bool,
}

/// The blob as a file with the right bytes: the source's own where it has one, else a copy in `folder`, under the digest's digits.
/// What an earlier try left of it there is not fetched again. Where a mirror gave wrong bytes, the next place is asked.
pub(super) async fn fetch(
    registry: &dyn Registry,
    blob: &Descriptor,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<Fetched, ContainerError> {
    loop {
        match fetch_once(registry, blob, folder, progress).await {
            Err(ContainerError::Registry(RegistryError::Mismatch { .. })) if registry.disown_mirrors() => {}
            other => return other,
        }
    }
}

async fn fetch_once(
    registry: &dyn Registry,
    blob: &Descriptor,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<Fetched, ContainerError> {
    let mut hash = Sha256::new();
    if let Some(path) = registry.blob_file(&blob.digest) {
        let mut body = registry.blob_range(blob, 0..blob.size).await?;
        while let Some(piece) = body.next().await {
            let piece = piece?;
            hash.update(&piece);
            progress.advance(piece.len() as u64);
        }
        check(registry, blob, hash)?;
        return Ok(Fetched { path, is_copy: false });
    }
    let path = folder.join(blob.digest.hex());
    let opened = OpenOptions::new().read(true).append(true).create(true).open(&path);
    let mut file = opened.map_err(FileError::of("opening", &path))?;
    let mut there = tokio::task::block_in_place(|| hash_of(&mut file, blob.size, &mut hash))
        .map_err(FileError::of("reading", &path))?;
    if there > blob.size {
        file.set_len(0).map_err(FileError::of("emptying", &path))?;
        (there, hash) = (0, Sha256::new());
    }
    progress.advance(there);
    let mut body = registry.blob_range(blob, there..blob.size).await?;
    while let Some(piece) = body.next().await {
        let piece = piece?;
        hash.update(&piece);
        file.write_all(&piece).map_err(FileError::of("writing", &path))?;
        progress.advance(piece.len() as u64);
    }
    let right = check(registry, blob, hash);
    if right.is_err() {
        // Kept, the next try would begin with the same wrong bytes.
        std::fs::remove_file(&path).map_err(FileError::of("removing", &path))?;
    }
    right.map(|()| Fetched { path, is_copy: true })
}

/// Hashes what is there, and one byte more than `most` at most; gives the number of bytes.
fn hash_of(file: &mut File, most: u64, hash: &mut Sha256) -> std::io::Result<u64> {
    let mut buffer = vec![0; 1 << 17];
    let mut read = file.take(most + 1);
    let mut bytes = 0;
    loop {
        match read.read(&mut buffer)? {
            0 => return Ok(bytes),
            count => {
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
}

fn check(registry: &dyn Registry, blob: &Descriptor, hash: Sha256) -> Result<(), ContainerError> {
    let found = Digest::from_raw(hash.finalize().into());
    if found == blob.digest {
        return Ok(());
    }
    let what = format!("the layer {} at {}", blob.digest, registry.place());
    Err(RegistryError::Mismatch { what, found }.into())
}
