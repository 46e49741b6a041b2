//! Earlier releases that a new one is made alike to (`--like`): the chunks that they have, and the first one's frames and
//! raw root.
//!
//! Not here: what is made of it (`layer` groups chunks by it and takes frames, `rootfs` may lay files out by it). Rule:
//! nothing of it is needed to read the new release; it only decides which chunks share a frame and where a file lies.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::bind::Part;
use super::earlier_frames::EarlierFrames;
use super::inspect::{self, ReadError};
use super::raw_image::{RawImage, RawImageError};
use super::spool::Spool;
use crate::image::index::{ChunkRef, Index};
use crate::registry::RegistryError;

/// The chunks of earlier releases, by their SHA-256.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownChunks {
    /// True for a chunk whose frame goes on behind it, in the first release that has it.
    chunks: HashMap<[u8; 32], bool>,
}

impl KnownChunks {
    /// Adds the chunks of one more release; of those that are there already nothing is changed.
    pub fn add(&mut self, index: &Index) {
        for frame in index.frames() {
            let chunks = frame.chunks();
            for (number, chunk) in chunks.iter().enumerate() {
                self.chunks.entry(chunk.sha256).or_insert(number + 1 < chunks.len());
            }
        }
    }

    /// True when a release has this chunk.
    pub fn contains(&self, chunk: &ChunkRef) -> bool {
        self.chunks.contains_key(&chunk.sha256)
    }

    /// True when the next chunk was in the frame of this one. Framed in the same way again, a run of chunks makes the same
    /// bytes and the same pages of the index, which no device with the earlier release fetches then.
    pub fn goes_on_behind(&self, chunk: &ChunkRef) -> bool {
        self.chunks.get(&chunk.sha256) == Some(&true)
    }

    /// True when there was no release.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// What is known of earlier releases; by default nothing.
#[derive(Debug, Clone, Default)]
pub struct Like {
    /// The chunks of their roots, of all of them together.
    pub known: Arc<KnownChunks>,
    /// The compressed frames of the first one.
    pub frames: Option<Arc<EarlierFrames>>,
    /// The raw root of the first one, where it was asked for.
    pub root: Option<Arc<RawImage>>,
}

/// Why an earlier release is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LikeError {
    /// It is not there, or no release.
    #[error("while reading the release {place} that the new one is to be like")]
    Release {
        /// Where it is.
        place: String,
        /// What is wrong with it.
        source: Box<ReadError>,
    },
    /// Its root could not be fetched.
    #[error("while fetching the root that the new one is to be like")]
    Blob(#[from] RegistryError),
    /// Its root could not be unpacked.
    #[error("while unpacking the root that the new one is to be like")]
    Root(#[from] RawImageError),
}

/// Reads `releases`, what they call the slot partition `slot`. The first one's blob lies in `folder` meanwhile, and its raw
/// image, too, where that is wanted.
pub async fn read(releases: &[Part], slot: &str, folder: &Path, raw: bool) -> Result<Like, LikeError> {
    let mut known = KnownChunks::default();
    let (mut frames, mut root) = (None, None);
    for Part { registry, digest } in releases {
        let unread = |source| LikeError::Release { place: registry.place(), source: Box::new(source) };
        let (_, release) = inspect::read_os(&**registry, digest).await.map_err(unread)?;
        let Some(number) = release.manifest.slots.iter().position(|layer| layer.name == slot) else {
            continue;
        };
        let index = &release.indexes[number];
        known.add(index);
        if frames.is_some() {
            continue;
        }
        let blob = &release.manifest.slots[number].blob;
        let spool = Spool::fetch(&**registry, blob, folder).await?;
        if raw {
            root = Some(Arc::new(RawImage::unpack(spool.stream(), blob, index, folder, &|_| {}).await?));
        }
        frames = Some(Arc::new(EarlierFrames::new(spool, index)));
    }
    Ok(Like { known: Arc::new(known), frames, root })
}
