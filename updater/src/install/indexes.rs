//! The chunk index of a slot layer: its root from the registry, of its pages only those that no stored index has.
//!
//! Not here: an index's bytes (`image::index`). Rule: the root is compared with the signed digest and each page with the
//! root, wherever it came from; what a stored index has wrong is fetched.

use std::ops::Range;

use futures_util::{StreamExt as _, stream};
use sha2::Digest as _;

use super::body::Body;
use super::stored::{Keeper, Stored};
use super::{InstallError, Traffic};
use crate::digest::Digest;
use crate::image::index::{Assembler, Index, IndexError, Lie, PageRef, Part, Root};
use crate::image::manifest::SlotLayer;
use crate::registry::{Registry, RegistryError};

/// Pages between two missing ones of at most this many bytes are fetched along: cheaper than another request, of which fewer
/// are under way at once than for frames.
const GAP_BYTES_MAX: u64 = 16 * 1024;
/// Requests for pages that are under way at once.
const REQUESTS_AT_ONCE: usize = 4;

/// Pages from one origin.
struct Group {
    /// Their numbers.
    pages: Range<usize>,
    /// Their bytes in the index blob; `None`: a stored index has them.
    fetch: Option<Range<u64>>,
}

/// A verified index.
pub struct Found {
    /// All of it.
    pub index: Index,
    /// Its copy in the state folder.
    pub copy: Option<Stored>,
    /// What it cost.
    pub traffic: Traffic,
}

/// Where an index comes from.
pub struct Source<'a> {
    /// The release's repository.
    pub registry: &'a dyn Registry,
    /// Which slot layer's.
    pub layer: &'a SlotLayer,
    /// Length of the raw image, from the signed config.
    pub raw_bytes: u64,
    /// Indexes that the machine has.
    pub stored: &'a [Stored],
}

impl Source<'_> {
    /// The whole index. `keep` begins a copy in the state folder.
    pub async fn fetch<'k>(
        &self,
        keep: impl FnOnce(&Root, &[u8]) -> Option<Keeper<'k>>,
    ) -> Result<Found, InstallError> {
        match self.in_parts(keep).await {
            Err(InstallError::Index(lie)) => {
                // Was it signed so, or damaged on its way? All of it has a digest of its own, which tells.
                self.registry.blob(&self.layer.index, Index::blob_bytes_max(self.raw_bytes)).await?;
                Err(lie.into())
            }
            other => other,
        }
    }

    async fn in_parts<'k>(
        &self,
        keep: impl FnOnce(&Root, &[u8]) -> Option<Keeper<'k>>,
    ) -> Result<Found, InstallError> {
        let (blob, root_bytes) = (&self.layer.index, self.layer.index_root.size);
        let limit = Index::blob_bytes_max(self.raw_bytes);
        if blob.size > limit || root_bytes > blob.size {
            return Err(RegistryError::TooLarge { what: self.what(), limit: limit.min(blob.size) }.into());
        }
        // Without an index of its own a machine needs all of it: one request.
        let first = if self.stored.is_empty() { blob.size } else { root_bytes };
        let mut traffic = Traffic { fetched: first, requests: 1, ..Traffic::default() };
        let mut body = Body::open(self.registry, blob, 0..first).await?;
        let frame = body.take(0..root_bytes).await?;
        let found = Digest::of(&frame);
        if found != self.layer.index_root.digest {
            return Err(RegistryError::Mismatch { what: self.what(), found }.into());
        }
        let root = Root::parse(&frame, self.raw_bytes, self.layer.blob.size)?;
        let (found, expected) = (blob.size - root_bytes, root.pages_bytes());
        if found != expected {
            return Err(IndexError { part: Part::Root, lie: Lie::PagesLength { found, expected } }.into());
        }
        let mut keeper = keep(&root, &frame);
        drop(frame);
        let mut assembler = Assembler::new(&root)?;
        let groups = match self.stored {
            [] => Vec::new(),
            _ => self.groups(&root, &mut traffic),
        };
        if groups.is_empty() {
            for page in root.pages() {
                let bytes = body.take(self.span(page)).await?;
                assembler.push_page(&bytes)?;
                keeper = keeper.and_then(|keeper| keeper.page(&bytes));
            }
        }
        let opened = stream::iter(groups).map(|group| async move {
            let body = match group.fetch {
                Some(span) => Some(Body::open(self.registry, blob, span).await?),
                None => None,
            };
            Ok::<_, InstallError>((group.pages, body))
        });
        let mut opened = std::pin::pin!(opened.buffered(REQUESTS_AT_ONCE));
        while let Some(group) = opened.next().await {
            let (pages, mut body) = group?;
            for page in &root.pages()[pages] {
                let bytes = match &mut body {
                    Some(body) => body.take(self.span(page)).await?,
                    // Looked up once more, as all of them would not fit into memory; it was there a moment ago.
                    None => self.held(page).ok_or(InstallError::Worker)?.into(),
                };
                assembler.push_page(&bytes)?;
                keeper = keeper.and_then(|keeper| keeper.page(&bytes));
            }
        }
        let index = assembler.finish()?;
        let copy = keeper.and_then(|keeper| keeper.finish(root));
        Ok(Found { index, copy, traffic })
    }

    /// All pages in order, in runs of one origin; counts what is fetched.
    fn groups(&self, root: &Root, traffic: &mut Traffic) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (number, page) in root.pages().iter().enumerate() {
            let span = self.span(page);
            let held = self.held(page).is_some();
            match groups.last_mut() {
                Some(Group { pages, fetch: None }) if held => pages.end = number + 1,
                Some(Group { pages, fetch: Some(last) }) if !held => {
                    (pages.end, last.end) = (number + 1, span.end);
                }
                _ => groups.push(Group { pages: number..number + 1, fetch: (!held).then_some(span) }),
            }
        }
        let groups = self.closed_gaps(root, groups);
        for span in groups.iter().filter_map(|group| group.fetch.as_ref()) {
            traffic.fetched += span.end - span.start;
            traffic.requests += 1;
        }
        groups
    }

    /// Small runs of pages that are there, between two that are not, are fetched along.
    fn closed_gaps(&self, root: &Root, groups: Vec<Group>) -> Vec<Group> {
        let mut closed: Vec<Group> = Vec::new();
        let mut groups = groups.into_iter().peekable();
        while let Some(group) = groups.next() {
            let bytes: u64 =
                root.pages()[group.pages.clone()].iter().map(|page| u64::from(page.index_bytes)).sum();
            let small = group.fetch.is_none() && bytes <= GAP_BYTES_MAX && groups.peek().is_some();
            match closed.last_mut() {
                Some(Group { pages, fetch: Some(last) }) if small || group.fetch.is_some() => {
                    pages.end = group.pages.end;
                    last.end = group.fetch.map_or(last.end + bytes, |span| span.end);
                }
                _ => closed.push(group),
            }
        }
        closed
    }

    /// The page's bytes from a stored index that has them as the root says.
    fn held(&self, page: &PageRef) -> Option<Vec<u8>> {
        let bytes = self.stored.iter().find_map(|stored| stored.page(&page.sha256))?;
        (sha2::Sha256::digest(&bytes).as_slice() == page.sha256).then_some(bytes)
    }

    /// A page's bytes in the index blob.
    fn span(&self, page: &PageRef) -> Range<u64> {
        let start = self.layer.index_root.size + page.index_offset;
        start..start + u64::from(page.index_bytes)
    }

    fn what(&self) -> String {
        format!("the chunk index {} at {}", self.layer.index.digest, self.registry.place())
    }
}
