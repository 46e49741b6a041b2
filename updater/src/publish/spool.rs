//! A whole blob of a repository at hand, to be read at any place.
//!
//! Not here: what the bytes mean. Rule: it has the length and the digest of its descriptor, or there is no [`Spool`].

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::registry::{ByteStream, Descriptor, Registry, RegistryError};

/// Bytes of a piece of [`Spool::stream`].
const PIECE_BYTES: u64 = 1 << 20;

/// The repository's own file where blobs are files, else a copy without a name, which goes when this is dropped.
#[derive(Debug, Clone)]
pub struct Spool {
    file: Arc<File>,
    bytes: u64,
}

impl Spool {
    /// Fetches `blob`, into `folder` when it is no file yet. Never more than its descriptor's length.
    pub async fn fetch(
        registry: &dyn Registry,
        blob: &Descriptor,
        folder: &Path,
    ) -> Result<Spool, RegistryError> {
        let mut body = registry.blob_range(blob, 0..blob.size).await?;
        let own = registry.blob_file(&blob.digest);
        let mut file = match &own {
            Some(path) => File::open(path).map_err(failed("opening", path))?,
            None => {
                std::fs::create_dir_all(folder).map_err(failed("making", folder))?;
                tempfile::tempfile_in(folder).map_err(failed("making a file in", folder))?
            }
        };
        let mut sha256 = Sha256::new();
        while let Some(piece) = body.next().await {
            let piece = piece?;
            sha256.update(&piece);
            if own.is_none() {
                file.write_all(&piece).map_err(failed("writing a file in", folder))?;
            }
        }
        let found = Digest::from_raw(sha256.finalize().into());
        if found != blob.digest {
            let what = format!("the blob {} at {}", blob.digest, registry.place());
            return Err(RegistryError::Mismatch { what, found });
        }
        Ok(Spool { file: Arc::new(file), bytes: blob.size })
    }

    /// Fills `out` with the bytes from byte `offset` on.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    /// All of it, from its beginning.
    pub fn stream(&self) -> ByteStream {
        let spool = self.clone();
        stream::try_unfold(0, move |offset| {
            let spool = spool.clone();
            async move {
                let mut piece = vec![0; (spool.bytes - offset).min(PIECE_BYTES) as usize];
                spool.read(offset, &mut piece).map_err(failed("reading", Path::new("a copy of a blob")))?;
                let next = offset + piece.len() as u64;
                Ok((!piece.is_empty()).then(|| (piece.into(), next)))
            }
        })
        .boxed()
    }

    /// One that holds just these bytes.
    #[cfg(test)]
    pub fn of(bytes: &[u8]) -> Spool {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Spool { file: Arc::new(file), bytes: bytes.len() as u64 }
    }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RegistryError + 'a {
    move |source| RegistryError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::layout_dir::LayoutDir;
    use crate::registry::reference::Reference;
    use crate::registry::{RegistryAccess, open_mirrored};

    /// A blob in a folder, and the folder as a repository whose blobs are files and as one whose are not.
    async fn scene(content: &[u8]) -> (tempfile::TempDir, LayoutDir, Descriptor, [Box<dyn Registry>; 2]) {
        let dir = tempfile::tempdir().unwrap();
        let layout = LayoutDir::new(dir.path().join("os"));
        let blob = layout.push_blob("text/plain", content).await.unwrap();
        let reference: Reference = format!("oci:{}", dir.path().join("os").display()).parse().unwrap();
        let far =
            open_mirrored(&reference, std::slice::from_ref(&reference), &RegistryAccess::default()).unwrap();
        assert!(far.blob_file(&blob.digest).is_none());
        (dir, layout.clone(), blob, [Box::new(layout), far])
    }

    #[tokio::test]
    async fn a_blob_is_read_at_any_place_and_from_its_beginning_and_leaves_no_file() {
        let content: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
        let (dir, _, blob, sources) = scene(&content).await;
        for source in sources {
            let folder = dir.path().join("work");
            let spool = Spool::fetch(&*source, &blob, &folder).await.unwrap();
            let mut some = [0; 10];
            spool.read(2_000_003, &mut some).unwrap();
            assert_eq!(some, content[2_000_003..][..10]);
            assert!(spool.read(2_999_995, &mut some).is_err());
            let whole: Vec<_> = spool.stream().map(Result::unwrap).collect().await;
            assert!(whole.concat() == content);
            assert!(std::fs::read_dir(&folder).map_or(true, |mut left| left.next().is_none()));
        }
    }

    #[tokio::test]
    async fn a_blob_with_other_bytes_than_its_digest_says_is_none() {
        let (dir, layout, blob, sources) = scene(b"content").await;
        std::fs::write(layout.blob_path(&blob.digest), b"CONTENT").unwrap();
        for source in sources {
            let error = Spool::fetch(&*source, &blob, dir.path()).await.unwrap_err();
            assert!(matches!(error, RegistryError::Mismatch { .. }), "{error}");
        }
    }
}
