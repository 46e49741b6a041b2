//! Releases that an honest publisher would not build, signed with a key that is trusted all the same.
//!
//! Not here: damaged bytes (tests flip those themselves). Rule: a forged release is a real one with one thing changed and
//! everything above it hashed and signed anew, so that only the lie itself can be what is refused.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use switchback::digest::Digest;
use switchback::image::config::OsConfig;
use switchback::image::index::{BuiltIndex, ChunkRef, FrameBody, Index, IndexWriter};
use switchback::image::manifest::{self, IndexRoot, MANIFEST_MEDIA_TYPE, OsManifest};
use switchback::publish::sign::{Form, SigningKey, sign};
use switchback::registry::Registry as _;
use switchback::registry::layout_dir::LayoutDir;
use tokio::runtime::Runtime;

/// More than any document of a test's release has, in bytes.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// A publisher with a key and an OCI layout folder.
pub struct Forge {
    layout: LayoutDir,
    key: SigningKey,
    runtime: Runtime,
}

/// A release on the anvil.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Its manifest; the config's descriptor follows from `config`.
    pub manifest: OsManifest,
    /// Its config, as JSON: also what no publisher would write.
    pub config: serde_json::Value,
}

/// A frame as the index writer takes it: bytes in the blob, raw bytes, chunks.
pub type Frame = (u32, u32, Vec<ChunkRef>);

impl Forge {
    /// A publisher whose private key lies at `key` and whose releases lie in `images`.
    pub fn new(images: &Path, key: &Path) -> Result<Forge> {
        let key = SigningKey::from_pem(&std::fs::read(key)?)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Forge { layout: LayoutDir::new(images), key, runtime })
    }

    /// The release under a tag.
    pub fn draft(&self, tag: &str) -> Result<Draft> {
        let manifest = self.runtime.block_on(self.layout.manifest_by_tag(tag, DOCUMENT_BYTES_MAX))?;
        let manifest = OsManifest::parse(&manifest)?;
        let config = self.runtime.block_on(self.layout.blob(&manifest.config, DOCUMENT_BYTES_MAX))?;
        Ok(Draft { manifest, config: serde_json::from_slice(&config)? })
    }

    /// Leaves the release under a tag, signed.
    pub fn publish(&self, tag: &str, draft: &Draft) -> Result<Digest> {
        let config = serde_json::to_vec(&draft.config)?;
        let config = self.blob(manifest::CONFIG_MEDIA_TYPE, &config)?;
        let config = manifest::config_descriptor(config.0, config.1);
        let manifest = OsManifest { config, ..draft.manifest.clone() };
        self.publish_manifest(tag, &manifest.to_json())
    }

    /// Gives the release under a tag another tag, with the same bytes and so the same digest.
    pub fn retag(&self, from: &str, to: &str) -> Result<Digest> {
        let manifest = self.runtime.block_on(self.layout.manifest_by_tag(from, DOCUMENT_BYTES_MAX))?;
        let pushed = self.layout.push_manifest(Some(to), MANIFEST_MEDIA_TYPE, &manifest);
        Ok(self.runtime.block_on(pushed)?)
    }

    /// Leaves any bytes as a signed manifest under a tag.
    pub fn publish_manifest(&self, tag: &str, manifest: &[u8]) -> Result<Digest> {
        let pushed = self.layout.push_manifest(Some(tag), MANIFEST_MEDIA_TYPE, manifest);
        let digest = self.runtime.block_on(pushed)?;
        self.runtime.block_on(sign(&self.layout, &digest, &self.key, Form::Bundle))?;
        Ok(digest)
    }

    /// Stores a blob and gives its digest and length.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Result<(Digest, u64)> {
        let stored = self.runtime.block_on(self.layout.push_blob(media_type, bytes))?;
        Ok((stored.digest, stored.size))
    }

    /// The release's index blob, and the same read as an index.
    pub fn index(&self, draft: &Draft) -> Result<(Vec<u8>, Index)> {
        let layer = &draft.manifest.slots[0];
        let bytes = self.runtime.block_on(self.layout.blob(&layer.index, DOCUMENT_BYTES_MAX))?;
        let raw = draft.config["slots"][0]["bytes"].as_u64().context("bytes of the slot")?;
        let index = Index::parse(&bytes, raw, layer.blob.size)?;
        Ok((bytes, index))
    }

    /// Gives the release another index, written by the library's own writer from changed frames.
    pub fn reindex(&self, draft: &mut Draft, change: impl FnOnce(&mut Vec<Frame>)) -> Result<()> {
        let (_, index) = self.index(draft)?;
        let mut frames: Vec<Frame> = index.frames().map(frame).collect();
        change(&mut frames);
        let mut writer = IndexWriter::new()?;
        for (blob_bytes, raw_bytes, chunks) in &frames {
            writer.push_frame(*blob_bytes, *raw_bytes, chunks)?;
        }
        let BuiltIndex { blob, root_bytes, .. } = writer.finish()?;
        self.put_index(draft, &blob, root_bytes)
    }

    /// Gives the release another index whose root list is changed after the writer: what it would refuse to write.
    pub fn reroot(&self, draft: &mut Draft, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let (bytes, _) = self.index(draft)?;
        let (root, pages) = bytes.split_at(usize::try_from(draft.manifest.slots[0].index_root.size)?);
        let mut root = zstd::bulk::decompress(root, DOCUMENT_BYTES_MAX as usize)?;
        change(&mut root);
        let root = zstd::bulk::compress(&root, 3)?;
        self.put_index(draft, &[&root, pages].concat(), root.len() as u64)
    }

    /// Names these bytes as the release's index.
    pub fn put_index(&self, draft: &mut Draft, blob: &[u8], root_bytes: u64) -> Result<()> {
        let root_end = usize::try_from(root_bytes)?;
        ensure!(root_end <= blob.len(), "a root of {root_bytes} bytes in {}", blob.len());
        let root = IndexRoot { digest: Digest::of(&blob[..root_end]), size: root_bytes };
        let (digest, bytes) = self.blob(manifest::INDEX_MEDIA_TYPE, blob)?;
        let layer = &mut draft.manifest.slots[0];
        layer.index = manifest::index_descriptor(&layer.name, digest, bytes, root);
        layer.index_root = root;
        Ok(())
    }
}

impl Draft {
    /// The config as the updater reads it.
    pub fn config(&self) -> Result<OsConfig> {
        Ok(OsConfig::parse(&serde_json::to_vec(&self.config)?)?)
    }
}

fn frame(frame: switchback::image::index::FrameRef<'_>) -> Frame {
    let chunks = match frame.body {
        FrameBody::Zero => Vec::new(),
        FrameBody::Chunks(chunks) => chunks.to_vec(),
    };
    (frame.blob_bytes, u32::try_from(frame.raw_bytes).unwrap_or(u32::MAX), chunks)
}
