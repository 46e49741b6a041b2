//! Judgements, found again for every image that agrees on all that was read.
//!
//! Not here: judging. Rule: sound without luck: an image gets a judgement only when each row that the judged run read is
//! the same in it, and so is the whole state folder.

use std::collections::HashMap;
use std::sync::Arc;

use super::image::Image;
use super::judge::Judgement;
use super::machine::TRIES;

/// All judgements of one scenario.
#[derive(Default)]
pub struct Memo {
    folders: HashMap<Question, Node>,
}

/// The folder's sum, whether there were as many cuts as tries (more is allowed then), and whether the order was given again.
type Question = (u128, bool, bool);

fn question(image: &Image, cuts: usize, order: bool) -> Question {
    (image.folder_sum(), cuts >= usize::from(TRIES), order)
}

enum Node {
    /// One judgement.
    Leaf(Arc<Judgement>),
    /// Which judgement it is depends on one row.
    Split(u64, HashMap<u128, Node>),
}

impl Memo {
    /// The judgement of an image that is as good as this one, which so many cuts led to.
    pub fn find(&self, image: &Image, cuts: usize, order: bool) -> Option<Arc<Judgement>> {
        let mut node = self.folders.get(&question(image, cuts, order))?;
        loop {
            match node {
                Node::Split(row, branches) => node = branches.get(&image.row(*row).digest)?,
                Node::Leaf(judgement) => {
                    return differs(judgement, image).is_none().then(|| judgement.clone());
                }
            }
        }
    }

    /// Keeps a judgement of `image`.
    pub fn keep(&mut self, image: &Image, cuts: usize, order: bool, judgement: Arc<Judgement>) {
        let new = || Node::Leaf(judgement.clone());
        let mut node = self.folders.entry(question(image, cuts, order)).or_insert_with(new);
        loop {
            match node {
                Node::Split(row, branches) => {
                    node = branches.entry(image.row(*row).digest).or_insert_with(new);
                }
                Node::Leaf(old) => {
                    let Some((row, digest)) = differs(old, image) else { return };
                    let old = Node::Leaf(old.clone());
                    *node = Node::Split(row, HashMap::from([(digest, old), (image.row(row).digest, new())]));
                    return;
                }
            }
        }
    }
}

/// The first row on which the image is not as the judged one was: the row, and how it was there.
fn differs(judgement: &Judgement, image: &Image) -> Option<(u64, u128)> {
    judgement.seen.iter().copied().find(|(row, digest)| image.row(*row).digest != *digest)
}
