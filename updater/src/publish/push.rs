//! Copies a release from one repository to another: blobs, manifest, signatures when asked, and the tag last.
//!
//! Not here: building, signing. Rule: a tag never moves to a release that is not whole at its new place, and a release
//! that no device would take is refused before the first byte is sent.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::inspect::{self, ReadError};
use crate::digest::Digest;
use crate::image::manifest::{Descriptor, MANIFEST_MEDIA_TYPE};
use crate::image::release::{INDEX_MEDIA_TYPE, ReleaseIndex, is_release_index};
use crate::registry::evidence::signature_tag;
use crate::registry::{MANIFEST_BYTES_MAX, Registry, RegistryError};

/// The largest blob of a signature, patch or other referrer that is copied, in bytes.
const REFERRER_BLOB_BYTES_MAX: u64 = 16 << 30;
/// The most blobs of one signature manifest or referrer.
const REFERRER_BLOBS_MAX: usize = 256;

/// Indexes of container images may name indexes, but not for ever.
const CONTAINER_DEPTH_MAX: usize = 3;
/// The most layers of a container image, or images of an index.
const CONTAINER_PARTS_MAX: usize = 512;

/// How a release is copied.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// The tag that names it at its new place; none leaves it there by digest alone.
    pub tag: Option<String>,
    /// Also what is attached to it: the tag `sha256-<hex>.sig` and every referrer (signatures, attestations), and to its OS
    /// image (patches).
    pub with_signatures: bool,
}

/// What a push tells while it is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushEvent<'a> {
    /// The release is read: so many bytes of blobs it has in all.
    Begin {
        /// Bytes of all its blobs.
        bytes: u64,
    },
    /// So many bytes more of a blob were taken from the source.
    Bytes(u64),
    /// This blob is at the new place, with its upload over; `present` when it was there before.
    Blob {
        /// Which.
        blob: &'a Descriptor,
        /// True when nothing was sent.
        present: bool,
    },
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// Digest of the manifest: what is signed and what an update names.
    pub digest: Digest,
    /// Blobs that were sent.
    pub blobs_sent: u64,
    /// Blobs that were there before.
    pub blobs_present: u64,
    /// Bytes of the blobs that were sent.
    pub bytes_sent: u64,
    /// Manifests of signatures and other referrers that were copied.
    pub attached: u64,
}

/// Why a push stopped. The tag, if there was one before, stands where it stood; blobs that arrived are left for the
/// next try.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The source holds no whole release.
    #[error("while reading the release at {place}")]
    Release {
        /// The source.
        place: String,
        /// What is wrong with it.
        source: Box<ReadError>,
    },
    /// One of the two repositories failed.
    #[error("while copying {what} from {from} to {to}")]
    Copy {
        /// What was being copied.
        what: String,
        /// The source.
        from: String,
        /// The destination.
        to: String,
        /// What the repository said.
        source: RegistryError,
    },
    /// The source handed out other bytes than its manifest names.
    #[error("while copying {digest} from {from}: its {bytes} bytes are other ones, with the digest {found}")]
    Bytes {
        /// What was asked for.
        digest: Digest,
        /// The source.
        from: String,
        /// How many bytes came.
        bytes: u64,
        /// Their digest.
        found: Digest,
    },
    /// Something attached to the release is no manifest that can be copied.
    #[error(
        "while copying what is attached to the release: {digest} is no manifest of at most {REFERRER_BLOBS_MAX} blobs"
    )]
    Attached {
        /// Which.
        digest: Digest,
    },
    /// A service's image is no container image.
    #[error(
        "while reading the container image {digest}: it is neither a manifest nor an index of at most {CONTAINER_PARTS_MAX} parts"
    )]
    Container {
        /// Which.
        digest: Digest,
    },
    /// No room for a blob on its way.
    #[error("while keeping a blob on its way in a temporary file")]
    Temporary {
        /// The system's word.
        source: std::io::Error,
    },
}

/// Copies the release `digest` from `from` to `to`. Blobs that are there already are not sent again.
pub async fn push_release(
    from: &dyn Registry,
    digest: &Digest,
    to: &dyn Registry,
    options: &PushOptions,
    progress: &(dyn Fn(PushEvent<'_>) + Send + Sync),
) -> Result<Pushed, PushError> {
    let whole = Whole::read(from, digest).await?;
    copy_whole(from, &whole, to, options, progress).await
}

/// Copies a container image, of one kind of machine or of several, as it is.
pub(super) async fn push_container(
    from: &dyn Registry,
    digest: &Digest,
    to: &dyn Registry,
    progress: &(dyn Fn(PushEvent<'_>) + Send + Sync),
) -> Result<Pushed, PushError> {
    let mut whole = Whole::default();
    whole.container(from, digest, 0).await?;
    copy_whole(from, &whole, to, &PushOptions::default(), progress).await
}

async fn copy_whole(
    from: &dyn Registry,
    whole: &Whole,
    to: &dyn Registry,
    options: &PushOptions,
    progress: &(dyn Fn(PushEvent<'_>) + Send + Sync),
) -> Result<Pushed, PushError> {
    let last = whole.manifests.last().map(Vec::as_slice).unwrap_or_default();
    let digest = Digest::of(last);
    let pushed = Pushed { digest, blobs_sent: 0, blobs_present: 0, bytes_sent: 0, attached: 0 };
    let mut copy = Copy { from, to, progress, pushed, done: BTreeSet::new() };
    progress(PushEvent::Begin { bytes: whole.blobs.iter().map(|blob| blob.size).sum() });
    for blob in &whole.blobs {
        copy.blob(blob).await?;
    }
    for manifest in &whole.manifests {
        copy.manifest(None, manifest).await?;
    }
    if options.with_signatures {
        copy.attached(&digest).await?;
        // A patch belongs to the OS image, also where a release binds that to services.
        if let Some(image) = whole.os_image.filter(|image| *image != digest) {
            copy.attached(&image).await?;
        }
    }
    // The tag last: who follows it finds the release whole, and signed if it was.
    if let Some(tag) = &options.tag {
        copy.manifest(Some(tag), last).await?;
    }
    Ok(copy.pushed)
}

/// All that belongs to one name: blobs, and manifests with what they name before them.
#[derive(Default)]
struct Whole {
    blobs: Vec<Descriptor>,
    manifests: Vec<Vec<u8>>,
    os_image: Option<Digest>,
}

impl Whole {
    /// A release: an OS image, or an index that binds one to its services.
    async fn read(from: &dyn Registry, digest: &Digest) -> Result<Whole, PushError> {
        let mut whole = Whole::default();
        let bytes = Whole::document(from, digest).await?;
        if !is_release_index(&bytes) {
            whole.os(from, digest).await?;
            return Ok(whole);
        }
        let index = ReleaseIndex::parse(&bytes).map_err(|error| unread(from, error.into()))?;
        whole.os(from, &index.os.digest).await?;
        for service in index.services.values() {
            whole.container(from, &service.digest, 0).await?;
        }
        whole.manifests.push(bytes);
        Ok(whole)
    }

    /// A manifest or index of the source.
    async fn document(from: &dyn Registry, digest: &Digest) -> Result<Vec<u8>, PushError> {
        from.manifest(digest, MANIFEST_BYTES_MAX).await.map_err(|error| unread(from, error.into()))
    }

    async fn os(&mut self, from: &dyn Registry, digest: &Digest) -> Result<(), PushError> {
        let release = inspect::read(from, digest).await.map_err(|source| unread(from, source))?;
        self.os_image = Some(*digest);
        self.blobs.extend(release.manifest.descriptors().cloned());
        self.manifests.push(release.manifest_bytes);
        Ok(())
    }

    /// A container image or an index of some, read without opinion.
    async fn container(
        &mut self,
        from: &dyn Registry,
        digest: &Digest,
        depth: usize,
    ) -> Result<(), PushError> {
        let bytes = Whole::document(from, digest).await?;
        let wrong = || PushError::Container { digest: *digest };
        let parsed: AnyManifest = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
        if depth > CONTAINER_DEPTH_MAX || parsed.manifests.len() + parsed.layers.len() > CONTAINER_PARTS_MAX {
            return Err(wrong());
        }
        self.blobs.extend(parsed.config.into_iter().chain(parsed.layers));
        for inner in parsed.manifests {
            Box::pin(self.container(from, &inner.digest, depth + 1)).await?;
        }
        self.manifests.push(bytes);
        Ok(())
    }
}

fn unread(from: &dyn Registry, source: ReadError) -> PushError {
    PushError::Release { place: from.place(), source: Box::new(source) }
}

struct Copy<'a> {
    from: &'a dyn Registry,
    to: &'a dyn Registry,
    progress: &'a (dyn Fn(PushEvent<'_>) + Send + Sync),
    pushed: Pushed,
    done: BTreeSet<Digest>,
}

/// A blob that is ready to be sent.
enum BlobFile {
    /// The source's own file.
    Own(PathBuf),
    /// A copy that is gone after the upload.
    Copy(tempfile::NamedTempFile),
}

impl AsRef<Path> for BlobFile {
    fn as_ref(&self) -> &Path {
        match self {
            BlobFile::Own(path) => path,
            BlobFile::Copy(copy) => copy.path(),
        }
    }
}

/// What names blobs: any OCI manifest, read without opinion.
#[derive(Deserialize)]
struct AnyManifest {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

impl AnyManifest {
    /// What it calls itself, or by its shape: neither has to say (OCI image-spec, manifest.md and image-index.md).
    fn media_type(&self) -> &str {
        let by_shape = if self.manifests.is_empty() { MANIFEST_MEDIA_TYPE } else { INDEX_MEDIA_TYPE };
        self.media_type.as_deref().unwrap_or(by_shape)
    }
}

/// The media type of a manifest or index; `None` for what is neither.
pub(super) fn media_type(bytes: &[u8]) -> Option<String> {
    let parsed: AnyManifest = serde_json::from_slice(bytes).ok()?;
    Some(parsed.media_type().to_owned())
}

impl Copy<'_> {
    async fn blob(&mut self, blob: &Descriptor) -> Result<(), PushError> {
        if !self.done.insert(blob.digest) {
            return Ok(());
        }
        let present =
            self.to.has_blob(&blob.digest).await.map_err(|error| self.failed(blob.digest, error))?;
        if present {
            self.pushed.blobs_present += 1;
            (self.progress)(PushEvent::Bytes(blob.size));
        } else {
            let file = self.fetch(blob).await?;
            let sent = self.to.push_blob_file(blob, file.as_ref()).await;
            sent.map_err(|error| self.failed(blob.digest, error))?;
            self.pushed.blobs_sent += 1;
            self.pushed.bytes_sent += blob.size;
        }
        (self.progress)(PushEvent::Blob { blob, present });
        Ok(())
    }

    /// A blob as a file with the right bytes, as an upload may have to begin again: the source's own file where it has
    /// one, else a temporary copy.
    async fn fetch(&self, blob: &Descriptor) -> Result<BlobFile, PushError> {
        let temporary = |source| PushError::Temporary { source };
        let file = match self.from.blob_file(&blob.digest) {
            Some(path) => BlobFile::Own(path),
            None => BlobFile::Copy(tempfile::NamedTempFile::new().map_err(temporary)?),
        };
        let mut sha256 = Sha256::new();
        let mut bytes = 0;
        let body = self.from.blob_range(blob, 0..blob.size).await;
        let mut body = body.map_err(|error| self.failed(blob.digest, error))?;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| self.failed(blob.digest, error))?;
            bytes += piece.len() as u64;
            sha256.update(&piece);
            if let BlobFile::Copy(copy) = &file {
                copy.as_file().write_all(&piece).map_err(temporary)?;
            }
            (self.progress)(PushEvent::Bytes(piece.len() as u64));
        }
        let found = Digest::from_raw(sha256.finalize().into());
        if found != blob.digest || bytes != blob.size {
            return Err(PushError::Bytes { digest: blob.digest, from: self.from.place(), bytes, found });
        }
        Ok(file)
    }

    async fn manifest(&self, tag: Option<&str>, bytes: &[u8]) -> Result<(), PushError> {
        let digest = Digest::of(bytes);
        let parsed: AnyManifest =
            serde_json::from_slice(bytes).map_err(|_| PushError::Attached { digest })?;
        let pushed = self.to.push_manifest(tag, parsed.media_type(), bytes).await;
        pushed.map(|_| ()).map_err(|error| self.failed(digest, error))
    }

    /// Everything that refers to `digest`, by tag and by subject.
    async fn attached(&mut self, digest: &Digest) -> Result<(), PushError> {
        let tag = signature_tag(digest);
        match self.from.manifest_by_tag(&tag, MANIFEST_BYTES_MAX).await {
            Ok(bytes) => self.attachment(Some(&tag), &bytes).await?,
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(self.failed(tag, error)),
        }
        let referrers = self.from.referrers(digest).await;
        for referrer in referrers.map_err(|error| self.failed(digest, error))? {
            let bytes = self.from.manifest(&referrer.digest, MANIFEST_BYTES_MAX).await;
            let bytes = bytes.map_err(|error| self.failed(referrer.digest, error))?;
            self.attachment(None, &bytes).await?;
        }
        Ok(())
    }

    async fn attachment(&mut self, tag: Option<&str>, bytes: &[u8]) -> Result<(), PushError> {
        let wrong = || PushError::Attached { digest: Digest::of(bytes) };
        let parsed: AnyManifest = serde_json::from_slice(bytes).map_err(|_| wrong())?;
        let blobs: Vec<Descriptor> = parsed.config.into_iter().chain(parsed.layers).collect();
        if blobs.len() > REFERRER_BLOBS_MAX || blobs.iter().any(|blob| blob.size > REFERRER_BLOB_BYTES_MAX) {
            return Err(wrong());
        }
        for blob in &blobs {
            self.blob(blob).await?;
        }
        self.manifest(tag, bytes).await?;
        self.pushed.attached += 1;
        Ok(())
    }

    fn failed(&self, what: impl ToString, source: RegistryError) -> PushError {
        PushError::Copy { what: what.to_string(), from: self.from.place(), to: self.to.place(), source }
    }
}

#[cfg(test)]
#[path = "push_tests.rs"]
mod tests;
