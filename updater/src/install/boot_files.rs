//! Fetches a release's boot files into the state folder, each verified as a whole before anything reads it.
//!
//! Not here: their places on the ESP (the bootloader backend). Rule: a file of ours is used only after its digest
//! matched, however it came to lie there; a partial one is continued, not fetched again.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use sha2::Digest as _;
use switchback_bootloader::record::BootFile;

use super::InstallError;
use crate::digest::Digest;
use crate::image::manifest::{BootLayer, Descriptor};
use crate::progress::Progress;
use crate::registry::Registry;

/// Fetches one boot file; returns it and the bytes that came over the network.
pub async fn fetch(
    registry: &dyn Registry,
    layer: &BootLayer,
    state_dir: &Path,
    progress: &dyn Progress,
) -> Result<(BootFile, u64), InstallError> {
    let blob = &layer.blob;
    let path = state_dir.join(format!("boot-{}", blob.digest.hex()));
    let failed = |source| InstallError::State { path: path.clone(), source };
    let mut fetched = 0;
    let have = length(&path).unwrap_or(0);
    if have > blob.size {
        std::fs::remove_file(&path).map_err(failed)?;
    }
    let have = have.min(blob.size) * u64::from(have <= blob.size);
    progress.advance(have);
    if have < blob.size {
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        let mut body = registry.blob_range(blob, have..blob.size).await?;
        while let Some(piece) = body.next().await {
            let piece = piece?;
            file.write_all(&piece).map_err(failed)?;
            fetched += piece.len() as u64;
            progress.advance(piece.len() as u64);
            if progress.stopped() {
                file.sync_all().map_err(failed)?;
                return Err(InstallError::Interrupted);
            }
        }
        file.sync_all().map_err(failed)?;
    }
    if digest_of(&path).map_err(failed)? != blob.digest {
        // Kept, it would be "continued" at its end for ever.
        std::fs::remove_file(&path).map_err(failed)?;
        return Err(InstallError::BadBootFile { digest: blob.digest });
    }
    Ok((BootFile { kind: layer.kind, source: path, sha256: *blob.digest.raw(), bytes: blob.size }, fetched))
}

/// Removes what `fetch` left for these layers: the ESP has them now.
pub fn tidy(layers: &[BootLayer], state_dir: &Path) {
    for Descriptor { digest, .. } in layers.iter().map(|layer| &layer.blob) {
        let _ = std::fs::remove_file(state_dir.join(format!("boot-{}", digest.hex())));
    }
}

/// Bytes of these layers that `fetch` will add to the state folder.
pub fn missing_bytes(layers: &[BootLayer], state_dir: &Path) -> u64 {
    let missing = |layer: &BootLayer| {
        let path = state_dir.join(format!("boot-{}", layer.blob.digest.hex()));
        layer.blob.size.saturating_sub(length(&path).unwrap_or(0))
    };
    layers.iter().map(missing).sum()
}

fn length(path: &PathBuf) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.len())
}

fn digest_of(path: &Path) -> std::io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_raw(hasher.finalize().into())),
            count => hasher.update(&buffer[..count]),
        }
    }
}
