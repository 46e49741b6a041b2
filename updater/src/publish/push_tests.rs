//! A small release, pushed from one OCI layout folder to another and inspected there.
//!
//! Not here: real registries and real signers (`tests/`). Rule: what arrives is what was there, and the order of effects
//! is the one that a device can rely on.

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;
use serde_json::json;
use switchback_bootloader::record::BootFileKind;

use super::*;
use crate::image::config::{OsConfig, SlotContent, tests_support::example};
use crate::image::manifest::{BootLayer, OsManifest, SlotLayer, boot_descriptor, config_descriptor};
use crate::publish::inspect::{SignatureInspection, inspect};
use crate::publish::layer::{LayerOptions, write_layer};
use crate::registry::ByteStream;
use crate::registry::layout_dir::LayoutDir;

/// A layout folder that writes down what is asked of it.
struct Logged {
    inside: LayoutDir,
    log: Mutex<Vec<String>>,
}

impl Logged {
    fn new(path: &Path) -> Logged {
        Logged { inside: LayoutDir::new(path), log: Mutex::new(Vec::new()) }
    }

    fn note(&self, line: String) {
        self.log.lock().unwrap().push(line);
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

type Answer<T> = Result<T, RegistryError>;

#[async_trait]
impl Registry for Logged {
    async fn resolve(&self, tag: &str) -> Answer<Digest> {
        self.inside.resolve(tag).await
    }
    async fn manifest(&self, digest: &Digest, limit: u64) -> Answer<Vec<u8>> {
        self.inside.manifest(digest, limit).await
    }
    async fn manifest_by_tag(&self, tag: &str, limit: u64) -> Answer<Vec<u8>> {
        self.inside.manifest_by_tag(tag, limit).await
    }
    async fn referrers(&self, digest: &Digest) -> Answer<Vec<Descriptor>> {
        self.inside.referrers(digest).await
    }
    async fn blob(&self, descriptor: &Descriptor, limit: u64) -> Answer<Vec<u8>> {
        self.inside.blob(descriptor, limit).await
    }
    async fn blob_range(&self, descriptor: &Descriptor, range: Range<u64>) -> Answer<ByteStream> {
        self.inside.blob_range(descriptor, range).await
    }
    async fn has_blob(&self, digest: &Digest) -> Answer<bool> {
        self.inside.has_blob(digest).await
    }
    async fn push_blob_file(&self, descriptor: &Descriptor, path: &Path) -> Answer<()> {
        self.note("blob".into());
        self.inside.push_blob_file(descriptor, path).await
    }
    async fn push_blob(&self, media_type: &str, bytes: &[u8]) -> Answer<Descriptor> {
        self.inside.push_blob(media_type, bytes).await
    }
    async fn push_manifest(&self, tag: Option<&str>, media_type: &str, bytes: &[u8]) -> Answer<Digest> {
        let shown = tag.map_or("-", |tag| if tag.ends_with(".sig") { "signature" } else { tag });
        self.note(format!("manifest {shown}"));
        self.inside.push_manifest(tag, media_type, bytes).await
    }
    fn place(&self) -> String {
        self.inside.place()
    }
}

/// A release with 2 MiB of root, a kernel and an initrd, tagged `1.1`.
async fn release(at: &LayoutDir) -> Digest {
    let mut raw = crate::image::chunker::noise(200, 1);
    raw.resize(2 << 20, 0);
    let mut blob = Vec::new();
    let options = LayerOptions { level: 3, threads: 1, ..LayerOptions::default() };
    let layer = write_layer(raw.as_slice(), &mut blob, &options, &|_| {}).unwrap();
    let content =
        SlotContent { name: "root".into(), bytes: layer.raw_bytes, sha256: layer.raw_sha256, verity: None };
    let config = OsConfig { slots: vec![content], ..example() }.to_json();
    let (blob_descriptor, index_descriptor) = layer.descriptors("root");
    let boot = |kind, bytes: &[u8]| BootLayer {
        kind,
        blob: boot_descriptor(kind, Digest::of(bytes), bytes.len() as u64),
    };
    for bytes in [&blob, &layer.index, &config, &b"kernel".to_vec(), &b"initrd".to_vec()] {
        at.push_blob("application/octet-stream", bytes).await.unwrap();
    }
    let manifest = OsManifest {
        config: config_descriptor(Digest::of(&config), config.len() as u64),
        slots: vec![SlotLayer {
            name: "root".into(),
            blob: blob_descriptor,
            index: index_descriptor,
            index_root: layer.index_root,
        }],
        boot: vec![boot(BootFileKind::Linux, b"kernel"), boot(BootFileKind::Initrd, b"initrd")],
        annotations: Default::default(),
    };
    at.push_manifest(Some("1.1"), MANIFEST_MEDIA_TYPE, &manifest.to_json()).await.unwrap()
}

/// A cosign 2 signature under its tag and a referrer with a bundle, neither of them good.
async fn sign(at: &LayoutDir, digest: &Digest) {
    let payload = at.push_blob("application/vnd.dev.cosign.simplesigning.v1+json", b"{}").await.unwrap();
    let config = at.push_blob("application/vnd.oci.image.config.v1+json", b"{\"a\":1}").await.unwrap();
    let mut layer = serde_json::to_value(payload).unwrap();
    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": "AAAA"});
    let signature =
        json!({"schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "config": config, "layers": [layer]});
    let signature = serde_json::to_vec(&signature).unwrap();
    at.push_manifest(Some(&signature_tag(digest)), MANIFEST_MEDIA_TYPE, &signature).await.unwrap();
    let bundle = at.push_blob("application/vnd.dev.sigstore.bundle.v0.3+json", b"{\"b\":1}").await.unwrap();
    let empty = at.push_blob("application/vnd.oci.empty.v1+json", b"{}").await.unwrap();
    let referrer = json!({"schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "config": empty, "layers": [bundle],
        "subject": {"mediaType": MANIFEST_MEDIA_TYPE, "digest": digest, "size": 1}});
    let referrer = serde_json::to_vec(&referrer).unwrap();
    at.push_manifest(None, MANIFEST_MEDIA_TYPE, &referrer).await.unwrap();
}

#[tokio::test]
async fn a_push_sends_blobs_then_the_manifest_then_signatures_and_moves_the_tag_last() {
    let (dir, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = LayoutDir::new(dir.path());
    let digest = release(&from).await;
    sign(&from, &digest).await;
    let to = Logged::new(new.path());
    let options = PushOptions { tag: Some("stable".into()), with_signatures: true };
    let pushed = push_release(&from, &digest, &to, &options, &|_| {}).await.unwrap();
    assert_eq!((pushed.blobs_sent, pushed.blobs_present, pushed.attached), (8, 0, 2));
    let expected =
        [&["blob"; 5][..], &["manifest -", "blob", "blob", "manifest signature"], &["blob", "manifest -"]];
    assert_eq!(to.take_log(), [&expected.concat()[..], &["manifest stable"]].concat());
    assert_eq!(to.resolve("stable").await.unwrap(), digest);

    let again = push_release(&from, &digest, &to, &options, &|_| {}).await.unwrap();
    assert_eq!((again.blobs_sent, again.bytes_sent, again.blobs_present), (0, 0, 8));
    assert!(!to.take_log().contains(&"blob".to_string()));
}

#[tokio::test]
async fn what_arrived_is_inspected_as_what_was_sent() {
    let (dir, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (LayoutDir::new(dir.path()), LayoutDir::new(new.path()));
    let digest = release(&from).await;
    sign(&from, &digest).await;
    let bytes = Mutex::new((0, 0));
    let progress = |event: PushEvent<'_>| match event {
        PushEvent::Begin { bytes: all } => bytes.lock().unwrap().0 = all,
        PushEvent::Bytes(more) => bytes.lock().unwrap().1 += more,
        PushEvent::Blob { .. } => {}
    };
    push_release(&from, &digest, &to, &PushOptions { with_signatures: true, tag: None }, &progress)
        .await
        .unwrap();
    let (all, seen) = *bytes.lock().unwrap();
    assert!(all > 800_000 && seen >= all, "{seen} of {all} bytes reported");
    let arrived = inspect(&to, &digest).await.unwrap();
    let sent = inspect(&from, &digest).await.unwrap();
    assert_eq!(crate::publish::inspect::Inspection { place: from.place(), ..arrived.clone() }, sent);
    assert_eq!((arrived.version.as_str(), arrived.product.as_str()), ("1.1", "example"));
    let slot = &arrived.slots[0];
    assert_eq!((slot.raw_bytes, slot.chunks.zero_bytes), (2 << 20, (2 << 20) - 200 * 4096));
    assert!(arrived.fetch_bytes < arrived.stored_bytes);
    assert_eq!(arrived.boot.iter().map(|file| file.kind).collect::<Vec<_>>(), ["linux", "initrd"]);
    let forms: Vec<&str> = arrived.signatures.iter().map(|SignatureInspection { form, .. }| *form).collect();
    assert_eq!(forms, ["simple-signing", "bundle"]);
}

#[tokio::test]
async fn a_source_whose_blobs_are_no_files_is_copied_by_way_of_temporary_ones() {
    let (dir, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (Logged::new(dir.path()), LayoutDir::new(new.path()));
    let digest = release(&from.inside).await;
    let pushed = push_release(&from, &digest, &to, &PushOptions::default(), &|_| {}).await.unwrap();
    assert_eq!(pushed.blobs_sent, 5);
    assert_eq!(inspect(&to, &digest).await.unwrap().slots, inspect(&from, &digest).await.unwrap().slots);
}

#[tokio::test]
async fn a_broken_release_is_refused_before_anything_is_sent() {
    let (dir, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = LayoutDir::new(dir.path());
    let digest = release(&from).await;
    let manifest = OsManifest::parse(&from.manifest(&digest, 1 << 20).await.unwrap()).unwrap();
    let index = from.blob_path(&manifest.slots[0].index.digest);
    let mut bytes = std::fs::read(&index).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&index, bytes).unwrap();
    let to = Logged::new(new.path());
    let error = push_release(&from, &digest, &to, &PushOptions::default(), &|_| {}).await.unwrap_err();
    assert!(matches!(error, PushError::Release { .. }), "{error}");
    assert_eq!(to.take_log(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_blob_with_other_bytes_stops_the_push_and_leaves_the_tag_where_it_was() {
    let (dir, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = LayoutDir::new(dir.path());
    let digest = release(&from).await;
    let manifest = OsManifest::parse(&from.manifest(&digest, 1 << 20).await.unwrap()).unwrap();
    let blob = from.blob_path(&manifest.slots[0].blob.digest);
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let to = Logged::new(new.path());
    let options = PushOptions { tag: Some("stable".into()), ..PushOptions::default() };
    let error = push_release(&from, &digest, &to, &options, &|_| {}).await.unwrap_err();
    assert!(matches!(error, PushError::Bytes { .. }), "{error}");
    assert_eq!(to.take_log(), ["blob"], "the config came before it");
    assert!(to.resolve("stable").await.is_err_and(|error| error.is_absent()));
}
