//! Which inode of the earlier release is which of the new one.
//!
//! Not here: whether its place can be kept (`place`). Rule: each is paired at most once, by the surest sign first: the
//! path, then the content, then the path but for the version numbers in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::LayoutError;
use super::read::Kind;
use super::tree::Tree;
use crate::publish::rootfs::BLOCK_BYTES;

/// For each inode of `new` its number in `old`.
pub(super) fn pairs(new: &Tree, old: &Tree) -> Result<Vec<Option<usize>>, LayoutError> {
    let of_new = vec![None; new.inodes.len()];
    let mut pairs = Pairs { new, old, of_new, taken: vec![false; old.inodes.len()] };
    pairs.by_path();
    pairs.by_content()?;
    pairs.by_likeness();
    Ok(pairs.of_new)
}

struct Pairs<'a> {
    new: &'a Tree,
    old: &'a Tree,
    of_new: Vec<Option<usize>>,
    taken: Vec<bool>,
}

impl Pairs<'_> {
    fn pair(&mut self, number: usize, was: usize) {
        let one_kind = self.new.inodes[number].kind == self.old.inodes[was].kind;
        if one_kind && self.of_new[number].is_none() && !self.taken[was] {
            self.of_new[number] = Some(was);
            self.taken[was] = true;
        }
    }

    /// With the first that is free: a file of several names is there several times.
    fn pair_first(&mut self, number: usize, candidates: &mut VecDeque<usize>) {
        while let Some(was) = candidates.pop_front() {
            if !self.taken[was] {
                self.pair(number, was);
                return;
            }
        }
    }

    fn by_path(&mut self) {
        let (new, old) = (self.new, self.old);
        for (path, number) in &new.paths {
            if let Some(was) = old.paths.get(path) {
                self.pair(*number, *was);
            }
        }
    }

    /// Files that went to another folder, or changed places. Only those of one length are read.
    fn by_content(&mut self) -> Result<(), LayoutError> {
        let (new, old) = (self.new, self.old);
        let alone = |tree: &Tree, number: usize| {
            tree.inodes[number].kind == Kind::File && tree.inodes[number].size > 0
        };
        let wanted: Vec<usize> = new.paths.values().copied().filter(|n| self.of_new[*n].is_none()).collect();
        let wanted: Vec<usize> = wanted.into_iter().filter(|number| alone(new, *number)).collect();
        let sizes: BTreeSet<u64> = wanted.iter().map(|number| new.inodes[*number].size).collect();
        let mut contents = BTreeMap::<[u8; 32], VecDeque<usize>>::new();
        let mut found = BTreeSet::new();
        // Files of a healthy image share few bytes, so that all of them are not much longer than the image.
        let mut budget = old.image.blocks * BLOCK_BYTES * 2;
        for was in old.paths.values().copied().filter(|was| alone(old, *was) && !self.taken[*was]) {
            let inode = &old.inodes[was];
            if sizes.contains(&inode.size) && inode.size <= budget {
                budget -= inode.size;
                found.insert(inode.size);
                contents.entry(old.image.content_sha256(inode)?).or_default().push_back(was);
            }
        }
        for number in wanted {
            let inode = &new.inodes[number];
            if self.of_new[number].is_none()
                && found.contains(&inode.size)
                && let Some(same) = contents.get_mut(&new.image.content_sha256(inode)?)
            {
                self.pair_first(number, same);
            }
        }
        Ok(())
    }

    /// `lib/modules/6.12.94-amd64/x.ko` and `lib/modules/6.12.117-amd64/x.ko`, `libx.so.1.2` and `libx.so.1.3`.
    fn by_likeness(&mut self) {
        let (new, old) = (self.new, self.old);
        let mut like = BTreeMap::<Vec<u8>, VecDeque<usize>>::new();
        for (path, was) in old.paths.iter().filter(|(_, was)| !self.taken[**was]) {
            like.entry(without_versions(path)).or_default().push_back(*was);
        }
        for (path, number) in &new.paths {
            if self.of_new[*number].is_none()
                && let Some(like) = like.get_mut(&without_versions(path))
            {
                self.pair_first(*number, like);
            }
        }
    }
}

/// The path with `0` for each version number: a digit and what follows it of digits and dots.
fn without_versions(path: &[u8]) -> Vec<u8> {
    let mut rest = Vec::with_capacity(path.len());
    let mut inside = false;
    for byte in path {
        inside = byte.is_ascii_digit() || inside && *byte == b'.';
        if !inside {
            rest.push(*byte);
        } else if rest.last() != Some(&b'0') {
            rest.push(b'0');
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_known_again_when_only_versions_in_it_changed() {
        for (one, other, alike) in [
            ("lib/modules/6.12.94-amd64/x.ko", "lib/modules/6.12.117-amd64/x.ko", true),
            ("lib/modules/6.12.94-amd64/x.ko", "lib/modules/6.12.94-amd64/y.ko", false),
            ("usr/lib/libx.so.1.2.3", "usr/lib/libx.so.1.10", true),
            ("usr/lib/libx.so.1.2.3", "usr/lib/libx.so", false),
            ("usr/bin/python3.11", "usr/bin/python3.12", true),
            ("etc/a", "etc/b", false),
        ] {
            let same = without_versions(one.as_bytes()) == without_versions(other.as_bytes());
            assert_eq!(same, alike, "{one} {other}");
        }
    }
}
