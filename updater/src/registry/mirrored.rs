//! A repository with mirrors before it: blobs are asked for there first, in order, and at the source where a mirror
//! lacks them or breaks them.
//!
//! Not here: belief. What a tag means, who signed and what a manifest says comes from the source alone; only when that is
//! unreachable is a manifest asked for at the mirrors, by its digest. Rule: a mirror can cost time once, never an update:
//! one that failed is left alone for the rest of the run, and whatever it gave is checked like anybody's bytes.

use std::collections::BTreeSet;
use std::ops::Range;
#[cfg(feature = "author")]
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::meter::Network;
use super::{ByteStream, Descriptor, Patience, Registry, RegistryError, check_limit, check_range};
use crate::digest::Digest;

/// After so many broken answers a mirror is left alone. One that does not answer, or lets nobody in, is left alone at
/// once: its client has asked twice by then.
const FAILURES_MAX: u32 = 3;
/// How many blobs are remembered that a mirror lacks.
const LACKING_MAX: usize = 1024;
/// How long a mirror may take to accept a connection: it is near, or no use.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long it may be silent. One that fetches from far away itself has to begin by then.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long a busy mirror may want to be left alone before it is asked again.
const ASKED_MAX: Duration = Duration::from_secs(5);
/// How often a mirror is asked the same.
const ATTEMPTS_MAX: usize = 2;

/// The patience with a mirror, whose place another can take.
pub(super) fn patience(source: &Patience) -> Patience {
    Patience {
        connect: source.connect.min(CONNECT_MAX),
        silence: source.silence.min(SILENCE_MAX),
        attempts: source.attempts.min(ATTEMPTS_MAX),
        longest_asked: source.longest_asked.min(ASKED_MAX),
        ..source.clone()
    }
}

/// A repository and its mirrors.
pub struct Mirrored(Arc<Places>);

struct Places {
    mirrors: Vec<Mirror>,
    source: Box<dyn Registry>,
}

struct Mirror {
    at: Box<dyn Registry>,
    failures: AtomicU32,
    /// It gave bytes of a range, which nobody here can check.
    gave: AtomicBool,
    lacks: Mutex<BTreeSet<Digest>>,
}

impl Mirrored {
    /// `source` with `mirrors` before it.
    pub fn new(source: Box<dyn Registry>, mirrors: Vec<Box<dyn Registry>>) -> Mirrored {
        let mirrors = mirrors.into_iter().map(|at| Mirror {
            at,
            failures: AtomicU32::new(0),
            gave: AtomicBool::new(false),
            lacks: Mutex::default(),
        });
        Mirrored(Arc::new(Places { mirrors: mirrors.collect(), source }))
    }
}

impl Mirror {
    fn is_asked(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < FAILURES_MAX
    }

    fn is_asked_for(&self, digest: &Digest) -> bool {
        self.is_asked() && !self.lacks.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    /// Takes note of a failure; an error when no other place may be asked either.
    fn failed(&self, digest: &Digest, error: RegistryError) -> Result<(), RegistryError> {
        tracing::debug!(mirror = self.at.place(), %error, "a mirror could not help");
        match &error {
            RegistryError::OverBudget { .. } => return Err(error),
            RegistryError::Absent { .. } => {
                let mut lacks = self.lacks.lock().unwrap_or_else(PoisonError::into_inner);
                if lacks.len() < LACKING_MAX {
                    lacks.insert(*digest);
                }
            }
            RegistryError::Unreachable { .. }
            | RegistryError::Denied { .. }
            | RegistryError::Refused { .. }
            | RegistryError::Io { .. } => self.leave(&error),
            RegistryError::Broken { .. }
            | RegistryError::TooLarge { .. }
            | RegistryError::Length { .. }
            | RegistryError::Mismatch { .. } => {
                if self.failures.fetch_add(1, Ordering::Relaxed) + 1 == FAILURES_MAX {
                    self.leave(&error);
                }
            }
        }
        Ok(())
    }

    fn leave(&self, why: &dyn std::fmt::Display) {
        self.failures.store(FAILURES_MAX, Ordering::Relaxed);
        tracing::warn!(mirror = self.at.place(), %why, "the mirror is not asked any more in this run");
    }
}

#[async_trait]
impl Registry for Mirrored {
    async fn resolve(&self, tag: &str) -> Result<Digest, RegistryError> {
        self.0.source.resolve(tag).await
    }

    async fn manifest(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let unreachable = match self.0.source.manifest(digest, limit).await {
            Err(error @ RegistryError::Unreachable { .. }) => error,
            other => return other,
        };
        for mirror in &self.0.mirrors {
            if !mirror.is_asked_for(digest) {
                continue;
            }
            match mirror.at.manifest(digest, limit).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => mirror.failed(digest, error)?,
            }
        }
        Err(unreachable)
    }

    async fn manifest_by_tag(&self, tag: &str, limit: u64) -> Result<Vec<u8>, RegistryError> {
        self.0.source.manifest_by_tag(tag, limit).await
    }

    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, RegistryError> {
        self.0.source.referrers(digest).await
    }

    async fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let digest = &descriptor.digest;
        check_limit(descriptor, limit, || format!("{}@{digest}", self.place()))?;
        for mirror in &self.0.mirrors {
            if !mirror.is_asked_for(digest) {
                continue;
            }
            match mirror.at.blob(descriptor, limit).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => mirror.failed(digest, error)?,
            }
        }
        self.0.source.blob(descriptor, limit).await
    }

    async fn blob_range(
        &self,
        descriptor: &Descriptor,
        range: Range<u64>,
    ) -> Result<ByteStream, RegistryError> {
        check_range(descriptor, &range, || format!("{}@{}", self.place(), descriptor.digest))?;
        let places = Arc::clone(&self.0);
        let mut reading =
            Reading { places, descriptor: descriptor.clone(), left: range, turn: 0, body: None };
        if !reading.left.is_empty() {
            reading.open().await?;
        }
        Ok(stream::try_unfold(reading, next).boxed())
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        self.0.source.has_blob(digest).await
    }

    fn serves_ranges(&self) -> bool {
        let first = self.0.mirrors.iter().find(|mirror| mirror.is_asked());
        first.map_or(&*self.0.source, |mirror| &*mirror.at).serves_ranges()
    }

    /// All that were opened together have one meter.
    fn network(&self) -> Option<Network> {
        let mirrors = self.0.mirrors.iter().find_map(|mirror| mirror.at.network());
        mirrors.or_else(|| self.0.source.network())
    }

    /// What a mirror on a disk or stick brings costs nothing, and how much that is shows only when it is read.
    fn affords(&self, bytes: u64) -> Result<(), RegistryError> {
        let is_free = self.0.mirrors.iter().any(|mirror| mirror.at.network().is_none());
        if is_free { Ok(()) } else { self.0.source.affords(bytes) }
    }

    fn disown_mirrors(&self) -> bool {
        let mut any = false;
        for mirror in &self.0.mirrors {
            if mirror.gave.swap(false, Ordering::Relaxed) {
                mirror.leave(&"bytes that it gave are wrong");
                any = true;
            }
        }
        any
    }

    #[cfg(feature = "author")]
    async fn push_blob_file(&self, descriptor: &Descriptor, path: &Path) -> Result<(), RegistryError> {
        self.0.source.push_blob_file(descriptor, path).await
    }

    #[cfg(feature = "author")]
    async fn push_blob(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, RegistryError> {
        self.0.source.push_blob(media_type, bytes).await
    }

    #[cfg(feature = "author")]
    async fn push_manifest(
        &self,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        self.0.source.push_manifest(tag, media_type, bytes).await
    }

    fn place(&self) -> String {
        self.0.source.place()
    }
}

/// A range on its way from one place to the next.
struct Reading {
    places: Arc<Places>,
    descriptor: Descriptor,
    /// What is still to come.
    left: Range<u64>,
    /// Whose turn it is; behind the mirrors comes the source.
    turn: usize,
    body: Option<ByteStream>,
}

async fn next(mut reading: Reading) -> Result<Option<(Bytes, Reading)>, RegistryError> {
    while !reading.left.is_empty() {
        let Some(body) = reading.body.as_mut() else {
            reading.open().await?;
            continue;
        };
        match body.next().await {
            Some(Ok(piece)) => {
                reading.left.start += piece.len() as u64;
                return Ok(Some((piece, reading)));
            }
            Some(Err(error)) => reading.turn_from(error)?,
            None => {
                let (found, expected) = (reading.left.start, reading.left.end);
                let what = format!("{}@{}", reading.places.source.place(), reading.descriptor.digest);
                reading.turn_from(RegistryError::Length { what, found, expected })?;
            }
        }
    }
    Ok(None)
}

impl Reading {
    /// Opens what is left at the first place from `turn` on that has it.
    async fn open(&mut self) -> Result<(), RegistryError> {
        let digest = self.descriptor.digest;
        while let Some(mirror) = self.places.mirrors.get(self.turn) {
            if mirror.is_asked_for(&digest) {
                match mirror.at.blob_range(&self.descriptor, self.left.clone()).await {
                    Ok(body) => {
                        mirror.gave.store(true, Ordering::Relaxed);
                        self.body = Some(body);
                        return Ok(());
                    }
                    Err(error) => mirror.failed(&digest, error)?,
                }
            }
            self.turn += 1;
        }
        self.body = Some(self.places.source.blob_range(&self.descriptor, self.left.clone()).await?);
        Ok(())
    }

    /// The place whose turn it is failed in the middle: the next one goes on where it stopped, if there is one.
    fn turn_from(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.body = None;
        let Some(mirror) = self.places.mirrors.get(self.turn) else { return Err(error) };
        mirror.failed(&self.descriptor.digest, error)?;
        self.turn += 1;
        Ok(())
    }
}
