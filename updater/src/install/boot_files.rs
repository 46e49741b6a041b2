//! Brings a release's boot files into the state folder, each verified as a whole before anything reads it.
//!
//! Not here: their places on the ESP (the bootloader backend). Rule: a file of ours is used only after its digest
//! matched, however it came to lie there; one that the other slot has is copied, a partial one is continued, not fetched again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use sha2::Digest as _;
use switchback_bootloader::record::{BootFile, Bootloader};
use switchback_partitions::slot::Slot;

use super::InstallError;
use crate::digest::Digest;
use crate::image::manifest::{BootLayer, Descriptor};
use crate::progress::Progress;
use crate::registry::Registry;

/// Where boot files come from and go to.
pub struct Source<'a> {
    /// The release's repository.
    pub registry: &'a dyn Registry,
    /// The machine's bootloader.
    pub bootloader: &'a dyn Bootloader,
    /// The slot whose boot files are whole: the one that is not written.
    pub other: Slot,
    /// Where they are kept until the boot partition has them.
    pub state_dir: &'a Path,
    /// Who waits.
    pub progress: &'a dyn Progress,
}

impl Source<'_> {
    /// Brings one boot file; returns it and the bytes that came over the network.
    pub async fn bring(&self, layer: &BootLayer) -> Result<(BootFile, u64), InstallError> {
        let blob = &layer.blob;
        let path = self.state_dir.join(format!("boot-{}", blob.digest.hex()));
        let failed = |source| InstallError::State { path: path.clone(), source };
        let file =
            BootFile { kind: layer.kind, source: path.clone(), sha256: *blob.digest.raw(), bytes: blob.size };
        if length(&path).is_none() && self.copied(layer, &path).map_err(failed)? {
            self.progress.advance(blob.size);
            return Ok((file, 0));
        }
        let fetched = self.fetch(blob, &path).await?;
        if digest_of(&path).map_err(failed)? != blob.digest {
            // Kept, it would be "continued" at its end for ever.
            std::fs::remove_file(&path).map_err(failed)?;
            return Err(InstallError::BadBootFile { digest: blob.digest });
        }
        Ok((file, fetched))
    }

    /// The other slot's file of this kind, where it is this very one. What it has instead is no error.
    fn copied(&self, layer: &BootLayer, path: &Path) -> io::Result<bool> {
        let mut file = File::create(path)?;
        let copied = self.bootloader.copy(self.other, layer.kind.file_name(), layer.blob.size, &mut file);
        let is_it = matches!(copied, Ok(Some(bytes)) if bytes == layer.blob.size)
            && file.sync_all().is_ok()
            && digest_of(path)? == layer.blob.digest;
        if !is_it {
            std::fs::remove_file(path)?;
        }
        Ok(is_it)
    }

    /// What is missing of the file, from the registry.
    async fn fetch(&self, blob: &Descriptor, path: &PathBuf) -> Result<u64, InstallError> {
        let failed = |source| InstallError::State { path: path.clone(), source };
        let mut fetched = 0;
        let have = length(path).unwrap_or(0);
        if have > blob.size {
            std::fs::remove_file(path).map_err(failed)?;
        }
        let have = have * u64::from(have <= blob.size);
        self.progress.advance(have);
        if have == blob.size {
            return Ok(0);
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        let mut body = self.registry.blob_range(blob, have..blob.size).await?;
        while let Some(piece) = body.next().await {
            let piece = piece?;
            file.write_all(&piece).map_err(failed)?;
            fetched += piece.len() as u64;
            self.progress.advance(piece.len() as u64);
            if self.progress.stopped() {
                file.sync_all().map_err(failed)?;
                return Err(InstallError::Interrupted);
            }
        }
        file.sync_all().map_err(failed)?;
        Ok(fetched)
    }
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
