//! An EROFS image of `mkfs.erofs` → the same tree with everything at the place it had in an earlier release, so that an
//! update writes little.
//!
//! `mkfs.erofs` lays out depth first: one file that grows moves all that follows, small files too, as their last parts lie
//! behind the inodes. So inodes, attributes and data all get their places anew here; contents are only copied, and of the
//! bytes of an inode only addresses and the serial number change (`docs/src/decisions/erofs-writer.md`).
//!
//! Not here: making the image (`rootfs`). Rule: the result follows from the two images alone and is handed out only after
//! it has been read again and every path, attribute and content compared; what is not understood is refused.

mod check;
mod pair;
mod place;
mod read;
mod tree;
mod write;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use place::Places;
use tree::Tree;

use super::rootfs::BLOCK_BYTES;
use crate::file::FileError;

/// What is read at once where whole images are compared, in bytes; whole blocks.
const PIECE_BYTES: u64 = 1 << 20;

/// How much of an image lies where the earlier release has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Files, folders and links that lie where the earlier release has theirs.
    pub files: u64,
    /// Bytes of whole blocks that are the same at the same offset: an update leaves them alone.
    pub bytes_in_place: u64,
    /// Bytes of whole blocks of files that the earlier release has, too, but that did not fit into their old place.
    pub bytes_moved: u64,
}

/// Why the places of an earlier release were not taken over. The image of `mkfs.erofs` is as good as it was.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// An image that is damaged, or uses what is not understood here.
    #[error("while reading the EROFS image {path}: {what}")]
    Odd {
        /// The image.
        path: PathBuf,
        /// What is wrong with it, or not known.
        what: String,
    },
    /// The image with new places did not read like the old one: a fault of this program, caught before anybody used it.
    #[error("while comparing the rearranged image with the one of mkfs.erofs: {what} differs")]
    Differs {
        /// What differs.
        what: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Writes to `out` the tree of `image` (uncompressed, just made by `mkfs.erofs`), with what `previous` has, too, at the
/// offsets it has there. `previous` is the raw image of an earlier release, whose numbers are not believed.
pub fn keep_offsets(image: &Path, previous: &Path, out: &Path) -> Result<Kept, LayoutError> {
    let (new, old) = (Tree::read(image)?, Tree::read(previous)?);
    let pairs = pair::pairs(&new, &old)?;
    let places = place::place(&new, &old, &pairs)?;
    write::write(&new, &places, out)?;
    check::same(&new, &Tree::read(out)?)?;
    let mut kept = count(&new, &old, &pairs, &places);
    kept.bytes_in_place = bytes_in_place(out, previous)?;
    Ok(kept)
}

fn count(new: &Tree, old: &Tree, pairs: &[Option<usize>], places: &Places) -> Kept {
    let mut kept = Kept::default();
    let paired = pairs.iter().enumerate().filter_map(|(number, pair)| Some((number, (*pair)?)));
    for (number, pair) in paired {
        let (inode, was) = (&new.inodes[number], &old.inodes[pair]);
        let run_stays = match (inode.run, was.run) {
            (Some(run), Some(was)) => places.runs.get(&run) == Some(&was.start),
            (run, _) => run.is_none(),
        };
        if run_stays && places.inodes[number] == Some(was.at) {
            kept.files += 1;
        }
        if !run_stays {
            kept.bytes_moved += inode.run.map_or(0, |run| run.bytes());
        }
    }
    kept
}

fn bytes_in_place(image: &Path, previous: &Path) -> Result<u64, LayoutError> {
    let open = |path: &Path| {
        let file = File::open(path).map_err(FileError::of("reading", path))?;
        let bytes = file.metadata().map_err(FileError::of("reading", path))?.len();
        Ok::<_, FileError>((file, bytes / BLOCK_BYTES * BLOCK_BYTES))
    };
    let ((image_file, image_bytes), (previous_file, previous_bytes)) = (open(image)?, open(previous)?);
    let bytes = image_bytes.min(previous_bytes);
    let (mut ours, mut theirs) = (vec![0; PIECE_BYTES as usize], vec![0; PIECE_BYTES as usize]);
    let (mut at, mut same) = (0, 0);
    while at < bytes {
        let piece = (bytes - at).min(PIECE_BYTES) as usize;
        image_file.read_exact_at(&mut ours[..piece], at).map_err(FileError::of("reading", image))?;
        previous_file.read_exact_at(&mut theirs[..piece], at).map_err(FileError::of("reading", previous))?;
        let blocks = ours[..piece].chunks(BLOCK_BYTES as usize).zip(theirs.chunks(BLOCK_BYTES as usize));
        same += blocks.filter(|(ours, theirs)| ours == theirs).count() as u64 * BLOCK_BYTES;
        at += piece as u64;
    }
    Ok(same)
}

#[cfg(test)]
mod tests;
