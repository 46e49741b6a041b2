//! The raw image of a release's slot layer, unpacked into a sparse temporary file.
//!
//! Not here: cutting an image into a layer (`layer`). Rule: a byte is in the file only after its chunk matched the index,
//! and nothing is held in memory beyond one frame.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BytesMut};
use futures_util::StreamExt as _;

use crate::file::FileError;
use crate::image::frame::{FrameDecoder, FrameError};
use crate::image::index::{FrameBody, Index};
use crate::image::manifest::Descriptor;
use crate::registry::{ByteStream, RegistryError};

/// A raw image in a file that goes when this is dropped.
#[derive(Debug)]
pub struct RawImage(tempfile::NamedTempFile);

/// Why a raw image was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum RawImageError {
    /// The repository failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A frame of the blob is not what the index says.
    #[error("while unpacking the slot layer {blob} at byte {offset} of its blob")]
    Frame {
        /// The blob.
        blob: crate::digest::Digest,
        /// First byte of the frame.
        offset: u64,
        /// What is wrong.
        source: FrameError,
    },
    /// The temporary file.
    #[error(transparent)]
    File(#[from] FileError),
}

impl RawImage {
    /// Unpacks the slot layer `blob`, which comes by `stream`, into a file in `folder`. `progress` is told of every raw byte
    /// that is done.
    pub async fn unpack(
        stream: ByteStream,
        blob: &Descriptor,
        index: &Index,
        folder: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<RawImage, RawImageError> {
        std::fs::create_dir_all(folder).map_err(FileError::of("making", folder))?;
        let made = tempfile::Builder::new().prefix(".raw-").tempfile_in(folder);
        let file = made.map_err(FileError::of("making a file in", folder))?;
        file.as_file().set_len(index.raw_bytes()).map_err(FileError::of("writing", file.path()))?;
        let broken = |offset, source| RawImageError::Frame { blob: blob.digest, offset, source };
        let mut decoder = FrameDecoder::new().map_err(|source| broken(0, source))?;
        let mut body = Body { stream, buffer: BytesMut::new() };
        let mut raw = Vec::new();
        for frame in index.frames() {
            body.fill(frame.blob_bytes as usize).await?;
            if let FrameBody::Chunks(_) = frame.body {
                let compressed = body.buffer.get(..frame.blob_bytes as usize).unwrap_or_default();
                let decoded = decoder.decode(&frame, compressed, &mut raw);
                decoded.map_err(|source| broken(frame.blob_offset, source))?;
                let written = file.as_file().write_all_at(&raw, frame.raw_offset);
                written.map_err(FileError::of("writing", file.path()))?;
            }
            body.buffer.advance((frame.blob_bytes as usize).min(body.buffer.len()));
            progress(frame.raw_bytes);
        }
        Ok(RawImage(file))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The bytes of `range`, all within the image.
    pub fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let file: &File = self.0.as_file();
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// A file that holds just these bytes.
    #[cfg(test)]
    pub fn of(raw: &[u8]) -> RawImage {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(raw, 0).unwrap();
        RawImage(file)
    }
}

/// Where large temporary files may lie: `TMPDIR`, else `/var/tmp`, as `/tmp` is often memory.
pub fn temporary_folder() -> PathBuf {
    let large = PathBuf::from("/var/tmp");
    match std::env::var_os("TMPDIR") {
        None if large.is_dir() => large,
        _ => std::env::temp_dir(),
    }
}

/// A blob as it arrives.
struct Body {
    stream: ByteStream,
    buffer: BytesMut,
}

impl Body {
    /// Waits until `bytes` bytes are there; a stream that ends early has said so by an error.
    async fn fill(&mut self, bytes: usize) -> Result<(), RegistryError> {
        while self.buffer.len() < bytes {
            let Some(piece) = self.stream.next().await else { break };
            self.buffer.extend_from_slice(&piece?);
        }
        Ok(())
    }
}
