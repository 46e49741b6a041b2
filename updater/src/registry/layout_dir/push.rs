//! The author's side of an OCI layout folder: blobs and manifests are added.
//!
//! Not here: reading. Rule: a file appears under its final name only when all its bytes are on the disk, and `index.json`
//! changes in one step under a lock.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::Digest as _;

use super::super::{Descriptor, RegistryError, reference};
use super::{LayoutDir, LayoutIndex, TAG_ANNOTATION, digest_of, io_error, tag_of};
use crate::digest::Digest;

impl LayoutDir {
    pub(super) fn push_listed(
        &self,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        if let Some(tag) = tag.filter(|tag| !reference::is_tag(tag)) {
            return Err(RegistryError::Refused { what: self.what(tag), detail: "it is no tag".into() });
        }
        let digest = self.push_bytes(bytes)?;
        let mut entry = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        if let Some(tag) = tag {
            entry["annotations"] = json!({ TAG_ANNOTATION: tag });
        }
        self.list(tag, entry, &digest)?;
        Ok(digest)
    }

    fn ensure_layout(&self) -> Result<(), RegistryError> {
        let blobs = self.root.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(io_error("making", &blobs))?;
        let marker = self.root.join("oci-layout");
        if !marker.exists() {
            write_durably(&marker, &mut &br#"{"imageLayoutVersion":"1.0.0"}"#[..])?;
        }
        Ok(())
    }

    /// Puts a manifest into `index.json`. A tag moves from whatever had it before.
    fn list(&self, tag: Option<&str>, entry: Value, digest: &Digest) -> Result<(), RegistryError> {
        let path = self.root.join("oci-layout");
        let lock = File::open(&path).map_err(io_error("opening", &path))?;
        lock.lock().map_err(io_error("locking", &path))?;
        let mut index = self.index()?;
        index.put(tag, entry, digest);
        let bytes = serde_json::to_vec_pretty(&index.0)
            .map_err(|err| io_error("writing", &self.root.join("index.json"))(err.into()))?;
        write_durably(&self.root.join("index.json"), &mut bytes.as_slice())
    }

    pub(super) fn push_bytes(&self, bytes: &[u8]) -> Result<Digest, RegistryError> {
        let digest = Digest::of(bytes);
        let path = self.blob_path(&digest);
        self.ensure_layout()?;
        if !path.exists() {
            write_durably(&path, &mut &bytes[..])?;
        }
        Ok(digest)
    }

    pub(super) fn push_file(&self, descriptor: &Descriptor, source: &Path) -> Result<(), RegistryError> {
        let path = self.blob_path(&descriptor.digest);
        if self.open_blob(descriptor).is_ok() {
            return Ok(());
        }
        self.ensure_layout()?;
        let mut file = File::open(source).map_err(io_error("opening", source))?;
        let mut hashing = Hashing { inner: &mut file, hasher: sha2::Sha256::new() };
        let staged = write_staged(&path, &mut hashing)?;
        let found = Digest::from_raw(hashing.hasher.finalize().into());
        if found != descriptor.digest {
            return Err(RegistryError::Mismatch { what: source.display().to_string(), found });
        }
        persist(staged, &path)
    }
}

impl LayoutIndex {
    fn put(&mut self, tag: Option<&str>, entry: Value, digest: &Digest) {
        let Some(entries) = self.0.get_mut("manifests").and_then(Value::as_array_mut) else { return };
        match tag {
            // A digest that is listed, under whatever tag, needs no second entry without one.
            None if entries.iter().any(|old| digest_of(old) == Some(*digest)) => {}
            None => entries.push(entry),
            Some(tag) => {
                entries.retain(|old| tag_of(old) != Some(tag));
                entries.retain(|old| tag_of(old).is_some() || digest_of(old) != Some(*digest));
                entries.push(entry);
            }
        }
    }
}

fn write_durably(path: &Path, content: &mut dyn Read) -> Result<(), RegistryError> {
    persist(write_staged(path, content)?, path)
}

/// All bytes on the disk, under a name that nobody looks for.
fn write_staged(path: &Path, content: &mut dyn Read) -> Result<tempfile::NamedTempFile, RegistryError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut staged = tempfile::Builder::new()
        .prefix(".incoming-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(io_error("writing beside", path))?;
    io::copy(content, &mut staged).map_err(io_error("writing", path))?;
    staged.flush().and_then(|()| staged.as_file().sync_all()).map_err(io_error("flushing", path))?;
    Ok(staged)
}

fn persist(staged: tempfile::NamedTempFile, path: &Path) -> Result<(), RegistryError> {
    staged.persist(path).map_err(|err| io_error("naming", path)(err.error))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("flushing the folder of", path))
}

struct Hashing<'a> {
    inner: &'a mut File,
    hasher: sha2::Sha256,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
