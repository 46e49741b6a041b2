//! An OCI layout folder as a repository (OCI image-spec, image-layout.md): on a disk, a USB stick, or what the author's
//! build leaves.
//!
//! Not here: the release format. Rule: a file appears under its final name only when all its bytes are on the disk, and
//! `index.json` changes in one step under a lock; so a cut leaves the folder as it was, or with one blob more.

#[cfg(feature = "author")]
mod push;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Value, json};

use super::{ByteStream, Descriptor, MANIFEST_BYTES_MAX, REFERRERS_LISTED_MAX, Registry, RegistryError};
use super::{check_digest, check_limit, fallback_tag};
use crate::digest::Digest;

/// Which tag an entry of `index.json` stands for.
const TAG_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// The largest `index.json`, in bytes.
const INDEX_BYTES_MAX: u64 = MANIFEST_BYTES_MAX;
/// How many entries of `index.json` are opened in search of referrers.
const ENTRIES_MAX: usize = 1024;
/// How much of a blob is read at once, in bytes.
const READ_BYTES: usize = 1 << 20;

/// An OCI layout folder.
#[derive(Debug, Clone)]
pub struct LayoutDir {
    root: PathBuf,
}

impl LayoutDir {
    /// The folder at `root`, which need not exist: reading then finds nothing, the first push makes it.
    pub fn new(root: impl Into<PathBuf>) -> LayoutDir {
        LayoutDir { root: root.into() }
    }

    /// The file of a blob or manifest. The digest is a strict type, so this is always beneath the folder.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// The tags in the folder, in the order of `index.json`.
    pub fn tags(&self) -> Result<Vec<String>, RegistryError> {
        Ok(self.index()?.entries().filter_map(|entry| tag_of(entry).map(str::to_owned)).collect())
    }

    /// The one image of a folder that holds one; none when it holds several, or none.
    #[cfg(feature = "author")]
    pub fn only(&self) -> Result<Option<Digest>, RegistryError> {
        let index = self.index()?;
        let mut entries = index.entries();
        Ok(entries.next().and_then(digest_of).filter(|_| entries.next().is_none()))
    }

    fn what(&self, name: impl std::fmt::Display) -> String {
        format!("{}@{name}", self.place())
    }

    fn index(&self) -> Result<LayoutIndex, RegistryError> {
        let path = self.root.join("index.json");
        let bytes = match read_file(&path, INDEX_BYTES_MAX, || self.what("index.json")) {
            Err(error) if error.is_absent() && !self.root.join("oci-layout").exists() => return Err(error),
            Err(error) if error.is_absent() => return Ok(LayoutIndex(empty_index())),
            other => other?,
        };
        let broken = |detail: String| RegistryError::Broken { what: self.what("index.json"), detail };
        let value: Value = serde_json::from_slice(&bytes).map_err(|err| broken(err.to_string()))?;
        if !value.get("manifests").is_some_and(Value::is_array) {
            return Err(broken("it has no list of manifests".into()));
        }
        Ok(LayoutIndex(value))
    }

    fn resolve_now(&self, tag: &str) -> Result<Digest, RegistryError> {
        let what = || format!("{}:{tag}", self.place());
        let index = self.index()?;
        let entry = index.entries().find(|entry| tag_of(entry) == Some(tag));
        let entry = entry.ok_or_else(|| RegistryError::Absent { what: what() })?;
        digest_of(entry)
            .ok_or_else(|| RegistryError::Broken { what: what(), detail: "its entry has no digest".into() })
    }

    fn manifest_now(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let bytes = read_file(&self.blob_path(digest), limit, || self.what(digest))?;
        check_digest(&bytes, digest, || self.what(digest))?;
        Ok(bytes)
    }

    fn referrers_now(&self, subject: &Digest) -> Result<Vec<Descriptor>, RegistryError> {
        let mut found = Vec::new();
        for entry in self.index()?.entries().take(ENTRIES_MAX) {
            let Some(digest) = digest_of(entry) else { continue };
            let Ok(bytes) = self.manifest_now(&digest, MANIFEST_BYTES_MAX) else { continue };
            let Ok(manifest) = serde_json::from_slice::<Value>(&bytes) else { continue };
            if manifest.pointer("/subject/digest").and_then(Value::as_str) == Some(&subject.to_string()) {
                found.push(manifest_descriptor(&manifest, digest, bytes.len() as u64));
            }
        }
        // Tools that copy from a registry without the referrers API bring its fallback tag along.
        match self.resolve_now(&fallback_tag(subject)) {
            Ok(digest) => {
                let list = self.manifest_now(&digest, MANIFEST_BYTES_MAX)?;
                found.extend(super::index_entries(&list, || self.what(digest))?);
            }
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
        found.sort_by_key(|descriptor: &Descriptor| descriptor.digest);
        found.dedup_by_key(|descriptor| descriptor.digest);
        found.truncate(REFERRERS_LISTED_MAX);
        Ok(found)
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<File, RegistryError> {
        let path = self.blob_path(&descriptor.digest);
        let what = || self.what(descriptor.digest);
        let file = open(&path, what)?;
        let bytes = file.metadata().map_err(io_error("reading", &path))?.len();
        if bytes != descriptor.size {
            return Err(RegistryError::Length { what: what(), found: bytes, expected: descriptor.size });
        }
        Ok(file)
    }
}

#[async_trait]
impl Registry for LayoutDir {
    async fn resolve(&self, tag: &str) -> Result<Digest, RegistryError> {
        self.resolve_now(tag)
    }

    async fn manifest(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, RegistryError> {
        self.manifest_now(digest, limit)
    }

    async fn manifest_by_tag(&self, tag: &str, limit: u64) -> Result<Vec<u8>, RegistryError> {
        self.manifest_now(&self.resolve_now(tag)?, limit)
    }

    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, RegistryError> {
        self.referrers_now(digest)
    }

    async fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let what = || self.what(descriptor.digest);
        check_limit(descriptor, limit, what)?;
        self.open_blob(descriptor)?;
        let bytes = read_file(&self.blob_path(&descriptor.digest), descriptor.size, what)?;
        check_digest(&bytes, &descriptor.digest, what)?;
        Ok(bytes)
    }

    async fn blob_range(
        &self,
        descriptor: &Descriptor,
        range: Range<u64>,
    ) -> Result<ByteStream, RegistryError> {
        super::check_range(descriptor, &range, || self.what(descriptor.digest))?;
        let path = self.blob_path(&descriptor.digest);
        let mut file = self.open_blob(descriptor)?;
        file.seek(SeekFrom::Start(range.start)).map_err(io_error("reading", &path))?;
        let left = range.end - range.start;
        Ok(stream::try_unfold((file, left, path), read_piece).boxed())
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        Ok(self.blob_path(digest).is_file())
    }

    fn blob_file(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.blob_path(digest))
    }

    #[cfg(feature = "author")]
    async fn push_blob_file(&self, descriptor: &Descriptor, path: &Path) -> Result<(), RegistryError> {
        self.push_file(descriptor, path)
    }

    #[cfg(feature = "author")]
    async fn push_blob(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, RegistryError> {
        let digest = self.push_bytes(bytes)?;
        Ok(super::describe(media_type, digest, bytes.len() as u64))
    }

    #[cfg(feature = "author")]
    async fn push_manifest(
        &self,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        self.push_listed(tag, media_type, bytes)
    }

    fn place(&self) -> String {
        format!("oci:{}", self.root.display())
    }
}

/// `index.json` as it is, so that what other tools wrote into it stays.
struct LayoutIndex(Value);

impl LayoutIndex {
    fn entries(&self) -> impl Iterator<Item = &Value> {
        self.0.get("manifests").and_then(Value::as_array).into_iter().flatten()
    }
}

fn empty_index() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
    })
}

fn tag_of(entry: &Value) -> Option<&str> {
    entry.get("annotations")?.get(TAG_ANNOTATION)?.as_str()
}

fn digest_of(entry: &Value) -> Option<Digest> {
    entry.get("digest")?.as_str()?.parse().ok()
}

fn manifest_descriptor(manifest: &Value, digest: Digest, size: u64) -> Descriptor {
    let media_type = manifest.get("mediaType").and_then(Value::as_str);
    let annotations = manifest.get("annotations").and_then(Value::as_object).into_iter().flatten();
    let annotations = annotations.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    Descriptor {
        annotations: annotations.collect(),
        ..super::describe(media_type.unwrap_or(super::MANIFEST_MEDIA_TYPE), digest, size)
    }
}

/// The next piece of a blob: the file, how many bytes are still wanted, its path.
async fn read_piece(
    (mut file, left, path): (File, u64, PathBuf),
) -> Result<Option<(Bytes, (File, u64, PathBuf))>, RegistryError> {
    if left == 0 {
        return Ok(None);
    }
    let mut buffer = vec![0; left.min(READ_BYTES as u64) as usize];
    file.read_exact(&mut buffer).map_err(io_error("reading", &path))?;
    let left = left - buffer.len() as u64;
    Ok(Some((buffer.into(), (file, left, path))))
}

fn open(path: &Path, what: impl Fn() -> String) -> Result<File, RegistryError> {
    File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => RegistryError::Absent { what: what() },
        _ => io_error("opening", path)(source),
    })
}

fn read_file(path: &Path, limit: u64, what: impl Fn() -> String) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells "too large" from "just fits", whatever the metadata claims.
    let mut capped = open(path, &what)?.take(limit.saturating_add(1));
    capped.read_to_end(&mut bytes).map_err(io_error("reading", path))?;
    if bytes.len() as u64 > limit {
        return Err(RegistryError::TooLarge { what: what(), limit });
    }
    Ok(bytes)
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RegistryError + 'a {
    move |source| RegistryError::Io { doing, path: path.to_owned(), source }
}

#[cfg(feature = "author")]
#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder() -> (tempfile::TempDir, LayoutDir) {
        let dir = tempfile::tempdir().unwrap();
        let layout = LayoutDir::new(dir.path().join("os"));
        (dir, layout)
    }

    const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

    #[tokio::test]
    async fn what_is_pushed_under_a_tag_is_read_back_and_a_tag_moves() {
        let (_dir, layout) = folder();
        let first = layout.push_manifest(Some("1.0"), TYPE, b"{\"n\":1}").await.unwrap();
        let second = layout.push_manifest(Some("1.1"), TYPE, b"{\"n\":2}").await.unwrap();
        assert_eq!(layout.resolve("1.0").await.unwrap(), first);
        assert_eq!(layout.manifest_by_tag("1.1", 100).await.unwrap(), b"{\"n\":2}");
        layout.push_manifest(Some("1.0"), TYPE, b"{\"n\":2}").await.unwrap();
        assert_eq!(layout.resolve("1.0").await.unwrap(), second);
        assert_eq!(layout.tags().unwrap(), ["1.1", "1.0"]);
    }

    #[tokio::test]
    async fn absent_is_told_from_broken_too_large_and_other_bytes() {
        let (_dir, layout) = folder();
        assert!(layout.resolve("1.0").await.unwrap_err().is_absent(), "no folder at all");
        let blob = layout.push_blob("text/plain", b"content").await.unwrap();
        assert!(layout.resolve("1.0").await.unwrap_err().is_absent(), "no such tag");
        let elsewhere = Descriptor { digest: Digest::of(b"other"), ..blob.clone() };
        assert!(layout.blob(&elsewhere, 100).await.unwrap_err().is_absent(), "no such blob");
        assert!(matches!(layout.blob(&blob, 3).await, Err(RegistryError::TooLarge { limit: 3, .. })));
        fs::write(layout.blob_path(&blob.digest), b"c0ntent").unwrap();
        assert!(matches!(layout.blob(&blob, 100).await, Err(RegistryError::Mismatch { .. })));
        fs::write(layout.blob_path(&blob.digest), b"cont").unwrap();
        assert!(matches!(layout.blob(&blob, 100).await, Err(RegistryError::Length { .. })));
        fs::write(layout.root.join("index.json"), b"[]").unwrap();
        assert!(matches!(layout.resolve("1.0").await, Err(RegistryError::Broken { .. })));
    }

    #[tokio::test]
    async fn a_range_gives_exactly_its_bytes() {
        let (_dir, layout) = folder();
        let content: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let blob = layout.push_blob("text/plain", &content).await.unwrap();
        for range in [0..0, 0..1, 5..1_500_000, 2_999_999..3_000_000, 0..3_000_000] {
            let mut stream = layout.blob_range(&blob, range.clone()).await.unwrap();
            let mut bytes = Vec::new();
            while let Some(piece) = stream.next().await {
                bytes.extend_from_slice(&piece.unwrap());
            }
            assert!(bytes == content[range.start as usize..range.end as usize], "{range:?}");
        }
        assert!(matches!(layout.blob_range(&blob, 0..3_000_001).await, Err(RegistryError::Refused { .. })));
    }

    #[tokio::test]
    async fn a_file_with_other_bytes_than_promised_leaves_nothing_behind() {
        let (dir, layout) = folder();
        let file = dir.path().join("file");
        fs::write(&file, b"content").unwrap();
        let wrong = super::super::describe("text/plain", Digest::of(b"other"), 7);
        assert!(matches!(layout.push_blob_file(&wrong, &file).await, Err(RegistryError::Mismatch { .. })));
        assert_eq!(fs::read_dir(layout.root.join("blobs/sha256")).unwrap().count(), 0);
        let right = super::super::describe("text/plain", Digest::of(b"content"), 7);
        layout.push_blob_file(&right, &file).await.unwrap();
        assert_eq!(layout.blob(&right, 7).await.unwrap(), b"content");
    }

    #[tokio::test]
    async fn referrers_are_found_by_their_subject_and_by_the_fallback_tag() {
        let (_dir, layout) = folder();
        let image = layout.push_manifest(Some("1.0"), TYPE, b"{}").await.unwrap();
        let other = Digest::of(b"x");
        let about = |subject: &Digest, n: u8| json!({"subject": {"digest": subject}, "n": n}).to_string();
        let first = layout.push_manifest(None, TYPE, about(&image, 1).as_bytes()).await.unwrap();
        layout.push_manifest(None, TYPE, about(&other, 2).as_bytes()).await.unwrap();
        let third = layout.push_blob(TYPE, about(&image, 3).as_bytes()).await.unwrap();
        let index = json!({"schemaVersion": 2, "manifests": [third]}).to_string();
        layout.push_manifest(Some(&fallback_tag(&image)), TYPE, index.as_bytes()).await.unwrap();
        let mut expected = [first, third.digest];
        expected.sort();
        let found: Vec<_> =
            layout.referrers(&image).await.unwrap().into_iter().map(|found| found.digest).collect();
        assert_eq!(found, expected);
    }
}
