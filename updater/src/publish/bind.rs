//! An OS image and the service images that were tested with it → one release, under one digest.
//!
//! Not here: making the images, signing (`sign`). Rule: everything that a release names lies beside it before its name
//! does, so that one repository and one signature are all that a device needs.

use std::collections::BTreeMap;

use super::push::{PushError, PushEvent, PushOptions, media_type, push_container, push_release};
use crate::digest::Digest;
use crate::image::manifest::{CREATED_ANNOTATION, Descriptor, VERSION_ANNOTATION};
use crate::image::release::{INDEX_MEDIA_TYPE, ReleaseIndex, ReleaseIndexError, SERVICE_ANNOTATION};
use crate::registry::{MANIFEST_BYTES_MAX, Registry, RegistryError};

/// An image where it lies now.
pub struct Part {
    /// Its repository.
    pub registry: Box<dyn Registry>,
    /// What it is there.
    pub digest: Digest,
}

/// What is to be bound.
pub struct BindRequest {
    /// What the release calls itself.
    pub version: String,
    /// When it was made (RFC 3339).
    pub created: String,
    /// The OS image.
    pub os: Part,
    /// The services' images, by service.
    pub services: BTreeMap<String, Part>,
    /// Its name at its new place.
    pub tag: String,
}

/// Why nothing was bound. No tag was moved.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An image could not be copied.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The release would be refused by every device.
    #[error(transparent)]
    Index(#[from] ReleaseIndexError),
    /// The new place failed.
    #[error("while writing the release to {place}")]
    Write {
        /// Where.
        place: String,
        /// What it said.
        source: RegistryError,
    },
}

/// Copies every image to `to` and writes the index that names them. Gives the release's digest.
pub async fn bind(
    request: &BindRequest,
    to: &dyn Registry,
    progress: &(dyn Fn(PushEvent<'_>) + Send + Sync),
) -> Result<Digest, BindError> {
    let written = |source| BindError::Write { place: to.place(), source };
    let entry = async |digest: Digest, annotations: &[(&str, &str)]| {
        let bytes = to.manifest(&digest, MANIFEST_BYTES_MAX).await.map_err(written)?;
        let annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        // What was copied has been read as one of them.
        let media_type = media_type(&bytes).ok_or(PushError::Container { digest })?;
        Ok::<_, BindError>(Descriptor { media_type, digest, size: bytes.len() as u64, annotations })
    };
    let BindRequest { version, created, os, services, tag } = request;
    push_release(&*os.registry, &os.digest, to, &PushOptions::default(), progress).await?;
    let os = entry(os.digest, &[]).await?;
    let mut bound = BTreeMap::new();
    for (name, part) in services {
        push_container(&*part.registry, &part.digest, to, progress).await?;
        bound.insert(name.clone(), entry(part.digest, &[(SERVICE_ANNOTATION, name)]).await?);
    }
    let annotations = [(VERSION_ANNOTATION, version), (CREATED_ANNOTATION, created)];
    let annotations = annotations.into_iter().map(|(key, value)| (key.into(), value.clone())).collect();
    let index = ReleaseIndex { version: version.clone(), os, services: bound, annotations };
    let bytes = index.to_json();
    // As every device will read it.
    ReleaseIndex::parse(&bytes)?;
    to.push_manifest(Some(tag), INDEX_MEDIA_TYPE, &bytes).await.map_err(written)
}
