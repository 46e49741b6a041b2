//! The index of the slot layer that is installed, as a device holds it: lengths and places in memory, hashes page by page from the
//! copy in the state folder.
//!
//! Not here: fetching it (`indexes`), its bytes (`image::index`). Rule: a hash is believed only as part of a page that was just
//! compared with the signed root, which stays in memory. So the copy may be lost or damaged at any time and costs the update, never
//! a wrong byte; and memory does not grow with the image.

use std::ops::Range;

use super::InstallError;
use super::stored::Stored;
use crate::image::frame::FrameDecoder;
use crate::image::index::{FrameRef, Index, Outline};

/// A verified index.
pub enum Layer {
    /// All of it, where no copy could be kept.
    Whole(Index),
    /// What is needed all the time, and where the hashes are.
    Kept {
        /// Where everything lies.
        outline: Outline,
        /// The copy, with its root.
        copy: Stored,
        /// Number of each page's first frame, and behind the last the number of frames.
        firsts: Vec<usize>,
    },
}

impl Layer {
    /// Of an index and its copy.
    pub fn new(index: Index, copy: Option<Stored>) -> Layer {
        let Some(copy) = copy else { return Layer::Whole(index) };
        let mut firsts = vec![0];
        let mut frames = 0;
        firsts.extend(copy.root().pages().iter().map(|page| {
            frames += usize::from(page.frames);
            frames
        }));
        Layer::Kept { outline: index.into_outline(), copy, firsts }
    }

    /// Where its frames and chunks lie.
    pub fn outline(&self) -> &Outline {
        match self {
            Layer::Whole(index) => index,
            Layer::Kept { outline, .. } => outline,
        }
    }

    /// Reads its hashes; each thread has a reader of its own.
    pub fn reader(&self) -> Result<LayerReader<'_>, InstallError> {
        Ok(LayerReader { layer: self, decoder: FrameDecoder::new()?, buffer: Vec::new(), open: None })
    }
}

/// Gives frames with their chunks' hashes. Frames that are asked for in ascending order cost one page after the other.
pub struct LayerReader<'a> {
    layer: &'a Layer,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
    /// The page that was read last, with the numbers of its frames.
    open: Option<(Range<usize>, Index)>,
}

impl<'a> LayerReader<'a> {
    /// Frame number `number`, from 0.
    pub fn frame(&mut self, number: usize) -> Result<FrameRef<'_>, InstallError> {
        let (copy, firsts) = match self.layer {
            Layer::Whole(index) => return index.frame(number).ok_or(InstallError::Worker),
            Layer::Kept { copy, firsts, .. } => (copy, firsts),
        };
        let open = match self.open.take().filter(|(frames, _)| frames.contains(&number)) {
            Some(open) => open,
            None => {
                let at = firsts.partition_point(|first| *first <= number).checked_sub(1);
                let at = at.ok_or(InstallError::Worker)?;
                let end = *firsts.get(at + 1).ok_or(InstallError::Worker)?;
                let index = copy.index_of(at, &mut self.decoder, &mut self.buffer);
                (firsts[at]..end, index.map_err(InstallError::KeptIndex)?)
            }
        };
        let (frames, index) = self.open.insert(open);
        index.frame(number - frames.start).ok_or(InstallError::Worker)
    }

    /// Where the layer's frames and chunks lie.
    pub fn outline(&self) -> &'a Outline {
        self.layer.outline()
    }
}

#[cfg(test)]
mod tests {
    use switchback_partitions::slot::Slot;

    use super::*;
    use crate::host::state_dir::{Folder, StateDir as _};
    use crate::image::index::{ChunkRef, IndexWriter, Root};
    use crate::install::stored::Keeper;
    use crate::reason::Reason;

    /// An index of some pages: frames of one to four chunks, and zero runs.
    fn built() -> crate::image::index::BuiltIndex {
        let mut writer = IndexWriter::new().unwrap();
        for number in 0..1000u32 {
            let chunk = |part: u32| {
                let name = number.to_le_bytes().into_iter().chain(part.to_le_bytes());
                let sha256 = *crate::digest::Digest::of(&name.collect::<Vec<_>>()).raw();
                ChunkRef { raw_bytes: (1 + (number + part) % 16) * 4096, sha256 }
            };
            let chunks: Vec<ChunkRef> = (0..number % 5).map(chunk).collect();
            let raw_bytes = chunks.iter().map(|chunk| chunk.raw_bytes).sum::<u32>().max(4096);
            writer.push_frame(100 + number, raw_bytes, &chunks).unwrap();
        }
        writer.finish().unwrap()
    }

    /// The index, and the same with a copy in `folder`.
    fn both(folder: &Folder) -> (Index, Layer) {
        let built = built();
        let index = Index::parse(&built.blob, built.raw_bytes, built.blob_bytes).unwrap();
        let (frame, pages) = built.blob.split_at(built.root_bytes as usize);
        let root = Root::parse(frame, built.raw_bytes, built.blob_bytes).unwrap();
        assert!(root.pages().len() > 10);
        let keeper = Keeper::begin(folder, (Slot::B, "root"), &root, frame).unwrap();
        let copy = keeper.page(pages).unwrap().finish(root).unwrap();
        (index.clone(), Layer::new(index, Some(copy)))
    }

    #[test]
    fn frames_read_from_the_copy_are_those_of_the_index_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let (index, layer) = both(&Folder::new(dir.path()));
        assert!(matches!(layer, Layer::Kept { .. }));
        let mut reader = layer.reader().unwrap();
        let numbers = (0..1000).chain((0..1000).rev().step_by(7)).chain([999, 0, 500]);
        for number in numbers {
            assert_eq!(reader.frame(number).unwrap(), index.frame(number).unwrap(), "frame {number}");
        }
        assert!(matches!(reader.frame(1000), Err(InstallError::Worker)));
    }

    #[test]
    fn a_copy_that_is_damaged_or_gone_is_an_error_and_never_a_hash() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        let (index, layer) = both(&folder);
        let store = folder.open("index-b-root.new").unwrap().unwrap();
        let at = store.len().unwrap() - 40;
        store.write_at(at, &[0x5a]).unwrap();
        let mut reader = layer.reader().unwrap();
        assert_eq!(reader.frame(0).unwrap(), index.frame(0).unwrap(), "another page");
        let error = reader.frame(999).unwrap_err();
        assert_eq!(error.reason(), Reason::StateUnreadable, "{error:?}");
        folder.write("index-b-root.new", b"").unwrap();
        assert!(matches!(reader.frame(500), Err(InstallError::KeptIndex(_))));
    }
}
