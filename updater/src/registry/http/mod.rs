//! A repository of a registry that speaks the OCI distribution-spec.
//!
//! Not here: what is fetched and in which pieces (`install`). Rule: reads go through our own bounded client, one closed
//! range at a time; a status and `Content-Range` are believed, `Accept-Ranges` and HEAD are not.

mod auth;
mod body;
mod client;
mod memory;
#[cfg(feature = "author")]
mod push;
mod range;
mod tls;

use std::ops::Range;
#[cfg(feature = "author")]
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use http::Method;

use super::meter::Network;
use super::{ByteStream, Descriptor, MANIFEST_BYTES_MAX, Registry, RegistryError};
use super::{RegistryAccess, check_digest, check_limit, check_range, fallback_tag, index_entries, reference};
use crate::digest::Digest;
pub(crate) use client::chain;
use client::{Ask, Client};
use memory::Memory;

/// What a manifest may come as. Docker's own types too: an image that was copied by docker keeps them.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// A repository of a registry.
pub struct HttpRegistry {
    client: Arc<Client>,
    memory: Memory,
    #[cfg(feature = "author")]
    uploads: push::Uploads,
}

/// What registries are asked by, for other servers too: it follows no redirect, gives up on a connection as `access` says, and
/// judges certificates by the clock and the authorities that registries are judged by.
///
/// # Errors
/// A certificate file that cannot be read or used.
pub fn client(access: &RegistryAccess) -> Result<reqwest::Client, RegistryError> {
    client::build(access)
}

impl HttpRegistry {
    /// The repository `repository` at `host`. Nothing is sent before the first question.
    ///
    /// # Errors
    /// A certificate file that cannot be read or used.
    pub fn new(host: &str, repository: &str, access: RegistryAccess) -> Result<HttpRegistry, RegistryError> {
        Ok(HttpRegistry {
            client: Arc::new(Client::new(host, repository, access)?),
            memory: Memory::default(),
            #[cfg(feature = "author")]
            uploads: push::Uploads::default(),
        })
    }

    fn what(&self, name: impl std::fmt::Display) -> String {
        format!("{}@{name}", self.place())
    }

    async fn get_manifest(&self, name: &str, what: String, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let url = self.client.url(&["manifests", name]);
        self.client.fetch(Ask { accept: Some(MANIFEST_TYPES), ..Ask::get(url, what) }, limit).await
    }

    fn checked_tag<'a>(&self, tag: &'a str) -> Result<&'a str, RegistryError> {
        if reference::is_tag(tag) {
            return Ok(tag);
        }
        Err(RegistryError::Refused { what: self.what(tag.escape_debug()), detail: "it is no tag".into() })
    }

    /// The referrers API's answer; none when the registry has no such API.
    async fn native_referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        let url = self.client.url(&["referrers", &digest.to_string()]);
        let what = format!("the referrers of {}", self.what(digest));
        let ask = Ask { accept: Some(super::INDEX_MEDIA_TYPE), ..Ask::get(url, what) };
        match self.client.fetch(ask, MANIFEST_BYTES_MAX).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn fallback_referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        match self.manifest_by_tag(&fallback_tag(digest), MANIFEST_BYTES_MAX).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Registry for HttpRegistry {
    async fn resolve(&self, tag: &str) -> Result<Digest, RegistryError> {
        let bytes = self.manifest_by_tag(tag, MANIFEST_BYTES_MAX).await?;
        let digest = Digest::of(&bytes);
        self.memory.keep_manifest(digest, &bytes);
        Ok(digest)
    }

    async fn manifest(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, RegistryError> {
        if let Some(bytes) = self.memory.manifest(digest, limit) {
            return Ok(bytes);
        }
        let bytes = self.get_manifest(&digest.to_string(), self.what(digest), limit).await?;
        check_digest(&bytes, digest, || self.what(digest))?;
        self.memory.keep_manifest(*digest, &bytes);
        Ok(bytes)
    }

    async fn manifest_by_tag(&self, tag: &str, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let tag = self.checked_tag(tag)?;
        self.get_manifest(tag, format!("{}:{tag}", self.place()), limit).await
    }

    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, RegistryError> {
        if let Some(referrers) = self.memory.referrers(digest) {
            return Ok(referrers);
        }
        let index = match self.native_referrers(digest).await? {
            Some(index) => Some(index),
            None => self.fallback_referrers(digest).await?,
        };
        let what = || format!("the referrers of {}", self.what(digest));
        let referrers = index.map_or_else(|| Ok(Vec::new()), |index| index_entries(&index, what))?;
        self.memory.keep_referrers(*digest, &referrers);
        Ok(referrers)
    }

    async fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let digest = &descriptor.digest;
        check_limit(descriptor, limit, || self.what(digest))?;
        let url = self.client.url(&["blobs", &digest.to_string()]);
        let bytes = self.client.fetch(Ask::get(url, self.what(digest)), descriptor.size).await?;
        if bytes.len() as u64 != descriptor.size {
            let (found, expected) = (bytes.len() as u64, descriptor.size);
            return Err(RegistryError::Length { what: self.what(digest), found, expected });
        }
        check_digest(&bytes, digest, || self.what(digest))?;
        Ok(bytes)
    }

    async fn blob_range(
        &self,
        descriptor: &Descriptor,
        range: Range<u64>,
    ) -> Result<ByteStream, RegistryError> {
        check_range(descriptor, &range, || self.what(descriptor.digest))?;
        range::open(self.client.clone(), descriptor, range, self.what(descriptor.digest)).await
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let url = self.client.url(&["blobs", &digest.to_string()]);
        let ask = Ask { method: Method::HEAD, ..Ask::get(url, self.what(digest)) };
        match self.client.send(&ask).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn serves_ranges(&self) -> bool {
        !self.client.ranges_ignored.load(Ordering::Relaxed)
    }

    fn network(&self) -> Option<Network> {
        Some(self.client.access.meter.so_far())
    }

    fn affords(&self, bytes: u64) -> Result<(), RegistryError> {
        self.client.access.meter.affords(bytes)
    }

    #[cfg(feature = "author")]
    async fn push_blob_file(&self, descriptor: &Descriptor, path: &Path) -> Result<(), RegistryError> {
        if self.has_blob(&descriptor.digest).await? {
            return Ok(());
        }
        self.uploads.blob_file(&self.client, descriptor, path, &self.what(descriptor.digest)).await
    }

    #[cfg(feature = "author")]
    async fn push_blob(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, RegistryError> {
        let descriptor = super::describe(media_type, Digest::of(bytes), bytes.len() as u64);
        if !self.has_blob(&descriptor.digest).await? {
            self.uploads.blob(&self.client, &descriptor, bytes, &self.what(descriptor.digest)).await?;
        }
        Ok(descriptor)
    }

    #[cfg(feature = "author")]
    async fn push_manifest(
        &self,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        self.memory.forget_referrers();
        let digest = Digest::of(bytes);
        let name = tag.map(|tag| self.checked_tag(tag)).transpose()?;
        self.uploads.manifest(&self.client, name, &digest, media_type, bytes, &self.what(digest)).await?;
        if let Some(subject) = push::subject_of(bytes)
            && self.native_referrers(&subject).await?.is_none()
        {
            let entry = super::describe(media_type, digest, bytes.len() as u64);
            let list = push::with_referrer(self.fallback_referrers(&subject).await?, bytes, &entry);
            let (list_digest, tag) = (Digest::of(&list), fallback_tag(&subject));
            let what = format!("{}:{tag}", self.place());
            self.uploads
                .manifest(&self.client, Some(&tag), &list_digest, super::INDEX_MEDIA_TYPE, &list, &what)
                .await?;
        }
        Ok(digest)
    }

    fn place(&self) -> String {
        format!("{}/{}", self.client.host, self.client.repository)
    }
}
