//! Bytes from a registry or an OCI layout folder, fetched with limits: one trait for both.
//!
//! Not here: any judgement of the bytes beyond "these are the bytes that were asked for" (digest, length, range); who
//! may be believed is `trust`. Rule: every length is capped before it is read, every body has its digest or its range
//! checked, and credentials reach no other origin and no plain HTTP that was not named.

pub mod credentials;
pub mod evidence;
pub mod http;
pub mod layout_dir;
pub mod meter;
pub mod mirrored;
pub mod patches;
pub mod reference;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
#[cfg(feature = "author")]
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::Deserialize;

use crate::digest::Digest;
pub use crate::image::manifest::{Descriptor, MANIFEST_MEDIA_TYPE};

/// The largest manifest or index that is read, in bytes: 4 MiB is what registries accept (OCI distribution-spec,
/// "Pushing Manifests").
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// Bytes as they arrive, in order; ends after exactly what was asked for, or with an error.
pub type ByteStream = BoxStream<'static, Result<Bytes, RegistryError>>;

/// One repository: of a registry, or an OCI layout folder.
#[async_trait]
pub trait Registry: Send + Sync {
    /// The digest a tag stands for now. [`RegistryError::Absent`] when there is no such tag.
    async fn resolve(&self, tag: &str) -> Result<Digest, RegistryError>;

    /// The manifest or index with this digest, at most `limit` bytes; its bytes are checked against the digest.
    async fn manifest(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, RegistryError>;

    /// The manifest or index under a tag, at most `limit` bytes.
    async fn manifest_by_tag(&self, tag: &str, limit: u64) -> Result<Vec<u8>, RegistryError>;

    /// What refers to `digest` (`subject`), unfiltered: the referrers API and the fallback tag `sha256-<hex>`, at most
    /// [`REFERRERS_LISTED_MAX`]. Empty when nothing does.
    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, RegistryError>;

    /// A whole small blob; refused before the first byte when `descriptor.size` is over `limit` bytes. Its length and
    /// digest are checked.
    async fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, RegistryError>;

    /// The bytes of `range` of a blob, exactly those, resumed where a broken body stopped. They are not verified: a
    /// part of a blob has no digest of its own, so the caller checks each chunk. An empty range gives an empty stream.
    async fn blob_range(
        &self,
        descriptor: &Descriptor,
        range: Range<u64>,
    ) -> Result<ByteStream, RegistryError>;

    /// True when the repository holds this blob.
    async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError>;

    /// False once a range was answered with everything: then one pass over the whole blob is cheaper than many ranges.
    fn serves_ranges(&self) -> bool {
        true
    }

    /// What came over the network so far, for this and for whatever shares its meter; none where nothing does.
    fn network(&self) -> Option<meter::Network> {
        None
    }

    /// Fails when `bytes` more would pass the budget.
    fn affords(&self, _bytes: u64) -> Result<(), RegistryError> {
        Ok(())
    }

    /// For a caller that found bytes of a range wrong: whoever is not the source and gave any is not asked again. True
    /// when there was one, so that asking once more may bring the right ones.
    fn disown_mirrors(&self) -> bool {
        false
    }

    /// The file that holds this blob, where blobs are files: neither an upload nor an unpacking need copy it first.
    fn blob_file(&self, _digest: &Digest) -> Option<PathBuf> {
        None
    }

    /// Uploads the file at `path` as the blob `descriptor`; nothing is sent when it is there already.
    #[cfg(feature = "author")]
    async fn push_blob_file(&self, descriptor: &Descriptor, path: &Path) -> Result<(), RegistryError>;

    /// Uploads a small blob and describes it.
    #[cfg(feature = "author")]
    async fn push_blob(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, RegistryError>;

    /// Uploads a manifest or index, under `tag` when one is given, and gives its digest. What it names must be there.
    #[cfg(feature = "author")]
    async fn push_manifest(
        &self,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError>;

    /// Where this is, for people: `registry.example/os` or `oci:/srv/os`.
    fn place(&self) -> String;
}

/// How registries are reached. The default: TLS with the system's certificates, credentials where docker and podman keep
/// them.
#[derive(Debug, Clone, Default)]
pub struct RegistryAccess {
    /// Hosts (`host` or `host:port`, as in the reference) that are reached by plain HTTP, and that credentials may be sent
    /// to in the clear.
    pub plain_http: Vec<String>,
    /// A PEM file with certificates that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The only file that credentials are taken from, in the format of docker's `config.json`.
    pub auth_file: Option<PathBuf>,
    /// The newest time that a trusted key signed, in seconds since 1970: certificates are not judged by an earlier clock.
    pub signed_unix_secs: u64,
    /// When to wait and when to give up.
    pub patience: Patience,
    /// Counts what comes, and holds it to pace and budget; shared by all that are opened with this.
    pub meter: meter::Meter,
}

/// When to wait and when to give up.
#[derive(Debug, Clone)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the first byte of an answer, and for each next one.
    pub silence: Duration,
    /// A body must bring `pace_bytes` in each `pace_window` of waiting for it.
    pub pace_window: Duration,
    /// See `pace_window`; in bytes.
    pub pace_bytes: u64,
    /// How often a question is asked before it counts as unanswered; at least 1.
    pub attempts: usize,
    /// Before the second attempt; then about twice as long each time.
    pub first_delay: Duration,
    /// The longest wait between two attempts that is chosen here; a registry's `Retry-After` may be longer.
    pub longest_delay: Duration,
    /// The longest `Retry-After` that is obeyed; a registry that wants more counts as unreachable.
    pub longest_asked: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            pace_window: Duration::from_secs(60),
            pace_bytes: 64 << 10,
            attempts: 6,
            first_delay: Duration::from_millis(500),
            longest_delay: Duration::from_secs(30),
            longest_asked: Duration::from_secs(300),
        }
    }
}

/// Opens the repository that a reference names. Nothing is read or sent yet.
///
/// # Errors
/// A certificate file that cannot be used.
pub fn open(
    reference: &reference::Reference,
    access: &RegistryAccess,
) -> Result<Box<dyn Registry>, RegistryError> {
    Ok(match &reference.source {
        reference::Source::Layout(path) => Box::new(layout_dir::LayoutDir::new(path)),
        reference::Source::Registry { host, repository } => {
            Box::new(http::HttpRegistry::new(host, repository, access.clone())?)
        }
    })
}

/// The same with mirrors: blobs are asked for there first, in this order, whose credentials are their own hosts'.
///
/// # Errors
/// A certificate file that cannot be used.
pub fn open_mirrored(
    reference: &reference::Reference,
    mirrors: &[reference::Reference],
    access: &RegistryAccess,
) -> Result<Box<dyn Registry>, RegistryError> {
    let source = open(reference, access)?;
    if mirrors.is_empty() {
        return Ok(source);
    }
    let access = RegistryAccess { patience: mirrored::patience(&access.patience), ..access.clone() };
    let mirrors = mirrors.iter().map(|mirror| open(mirror, &access)).collect::<Result<_, _>>()?;
    Ok(Box::new(mirrored::Mirrored::new(source, mirrors)))
}

/// An image index (OCI image-spec, image-index.md).
pub const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// How many referrers of one digest are known; a registry that lists more is cut off there.
pub const REFERRERS_LISTED_MAX: usize = 1024;
/// How many of them are looked at, of one kind: signatures, or patches out of the release that a machine has.
pub const REFERRERS_MAX: usize = 64;

/// Why bytes could not be had, or could not be left there. `what` names the content and the place.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It is not there: the registry answered, and said so.
    #[error("while reading {what}: it is not there")]
    Absent {
        /// What was asked for.
        what: String,
    },
    /// The registry wants other credentials, or these may not do this.
    #[error("while asking for {what}: the registry refused the access ({detail})")]
    Denied {
        /// What was asked for.
        what: String,
        /// The registry's answer and which credentials were sent (never the secret).
        detail: String,
    },
    /// No answer: name, connection, TLS or time; also when retries ran out.
    #[error("while asking for {what}: no answer ({detail})")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// What happened last.
        detail: String,
    },
    /// An answer that breaks the protocol: it is there and cannot be used.
    #[error("while reading {what}: the answer is broken ({detail})")]
    Broken {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        detail: String,
    },
    /// More bytes than the caller allows.
    #[error("while reading {what}: it has more than the {limit} bytes that are allowed")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// More or fewer bytes than the manifest says.
    #[error("while reading {what}: it has {found} bytes, the manifest says {expected}")]
    Length {
        /// What was asked for.
        what: String,
        /// The bytes that are there.
        found: u64,
        /// The bytes that should be.
        expected: u64,
    },
    /// Other bytes than the ones asked for.
    #[error("while reading {what}: its bytes have the digest {found}")]
    Mismatch {
        /// What was asked for.
        what: String,
        /// The digest of the bytes that came.
        found: Digest,
    },
    /// A request that is refused before it leaves: plain HTTP to a host that is not named, or the like.
    #[error("while asking for {what}: refused here, {detail}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Why, and what to do.
        detail: String,
    },
    /// The budget of bytes is spent, or a plan would spend it.
    #[error("{detail}, and `budget` under [source] allows {budget}")]
    OverBudget {
        /// What was wanted, and how much came.
        detail: String,
        /// The budget in bytes.
        budget: u64,
    },
    /// A local file or folder failed.
    #[error("while {doing} {path}")]
    Io {
        /// What was being done: `reading`, `writing`, …
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

impl RegistryError {
    /// True when the content is not there, as opposed to unreadable, refused or unreachable.
    pub fn is_absent(&self) -> bool {
        matches!(self, RegistryError::Absent { .. })
    }

    /// True when trying again later may help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, RegistryError::Unreachable { .. })
    }
}

/// A descriptor without annotations.
pub fn describe(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), digest, size, annotations: BTreeMap::new() }
}

/// The tag under which a registry without the referrers API lists what refers to `digest` (OCI distribution-spec,
/// "Referrers Tag Schema").
fn fallback_tag(digest: &Digest) -> String {
    format!("sha256-{}", digest.hex())
}

/// The readable entries of an index, at most [`REFERRERS_LISTED_MAX`]; one with another hash than SHA-256 is passed over.
/// What is no JSON is no empty list.
fn index_entries(index: &[u8], what: impl Fn() -> String) -> Result<Vec<Descriptor>, RegistryError> {
    let index: serde_json::Value = serde_json::from_slice(index)
        .map_err(|_| RegistryError::Broken { what: what(), detail: "it is no JSON".into() })?;
    let entries = index.get("manifests").and_then(serde_json::Value::as_array);
    let entries = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Descriptor::deserialize(entry).ok())
        .take(REFERRERS_LISTED_MAX)
        .collect();
    Ok(entries)
}

fn check_digest(bytes: &[u8], expected: &Digest, what: impl Fn() -> String) -> Result<(), RegistryError> {
    let found = Digest::of(bytes);
    if found != *expected {
        return Err(RegistryError::Mismatch { what: what(), found });
    }
    Ok(())
}

fn check_limit(descriptor: &Descriptor, limit: u64, what: impl Fn() -> String) -> Result<(), RegistryError> {
    if descriptor.size > limit {
        return Err(RegistryError::TooLarge { what: what(), limit });
    }
    Ok(())
}

fn check_range(
    descriptor: &Descriptor,
    range: &Range<u64>,
    what: impl Fn() -> String,
) -> Result<(), RegistryError> {
    if range.start > range.end || range.end > descriptor.size {
        let detail = format!("bytes {range:?} are not within its {} bytes", descriptor.size);
        return Err(RegistryError::Refused { what: what(), detail });
    }
    Ok(())
}
