//! Small documents that one order asks for twice: a manifest whose tag was resolved, and the list of what refers to an image, of
//! which signatures and patches are looked for one after the other.
//!
//! Not here: blobs. Rule: a manifest is found by its digest alone, and the list is forgotten as soon as something is pushed.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Descriptor;
use crate::digest::Digest;

/// So many manifests, each of at most so many bytes: a release and its OS image, with some signatures.
const MANIFESTS_MAX: usize = 8;
const MANIFEST_BYTES_MAX: usize = 64 * 1024;

/// What was seen last.
#[derive(Default)]
pub(super) struct Memory(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    manifests: VecDeque<(Digest, Vec<u8>)>,
    referrers: Option<(Digest, Vec<Descriptor>)>,
}

impl Memory {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a manifest, whose digest was computed from these bytes.
    pub(super) fn keep_manifest(&self, digest: Digest, bytes: &[u8]) {
        let mut seen = self.seen();
        if bytes.len() > MANIFEST_BYTES_MAX || seen.manifests.iter().any(|(kept, _)| *kept == digest) {
            return;
        }
        seen.manifests.truncate(MANIFESTS_MAX - 1);
        seen.manifests.push_front((digest, bytes.to_vec()));
    }

    /// A manifest of at most `limit` bytes.
    pub(super) fn manifest(&self, digest: &Digest, limit: u64) -> Option<Vec<u8>> {
        let seen = self.seen();
        let (_, bytes) = seen.manifests.iter().find(|(kept, _)| kept == digest)?;
        (bytes.len() as u64 <= limit).then(|| bytes.clone())
    }

    /// Keeps what refers to `digest`.
    pub(super) fn keep_referrers(&self, digest: Digest, referrers: &[Descriptor]) {
        self.seen().referrers = Some((digest, referrers.to_vec()));
    }

    /// What refers to `digest`, if that was asked last.
    pub(super) fn referrers(&self, digest: &Digest) -> Option<Vec<Descriptor>> {
        let seen = self.seen();
        seen.referrers.as_ref().filter(|(of, _)| of == digest).map(|(_, referrers)| referrers.clone())
    }

    /// Something was pushed, which may refer to anything.
    #[cfg(feature = "author")]
    pub(super) fn forget_referrers(&self) {
        self.seen().referrers = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_last_few_small_manifests_and_one_list() {
        let memory = Memory::default();
        let all: Vec<Vec<u8>> = (0..10u8).map(|number| vec![number; 100]).collect();
        all.iter().for_each(|bytes| memory.keep_manifest(Digest::of(bytes), bytes));
        let large = vec![1; MANIFEST_BYTES_MAX + 1];
        memory.keep_manifest(Digest::of(&large), &large);
        let kept = |bytes: &Vec<u8>| memory.manifest(&Digest::of(bytes), 100);
        assert_eq!(all.iter().filter(|bytes| kept(bytes).as_ref() == Some(*bytes)).count(), MANIFESTS_MAX);
        assert!(kept(&all[0]).is_none() && kept(&all[9]).is_some());
        assert!(memory.manifest(&Digest::of(&all[9]), 99).is_none(), "over the limit");
        assert!(memory.manifest(&Digest::of(&large), u64::MAX).is_none());

        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        memory.keep_referrers(one, &[]);
        assert!(memory.referrers(&one).is_some() && memory.referrers(&other).is_none());
        memory.forget_referrers();
        assert!(memory.referrers(&one).is_none());
    }
}
