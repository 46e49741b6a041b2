//! What an update from one release to another fetches and writes.
//!
//! Not here: the arithmetic (`image::plan`), text for a terminal (`cli`). Rule: the plan is the one that a device makes, and
//! nothing but documents, indexes and headers is fetched for it.

use serde::Serialize;

use super::bind::Part;
use super::inspect::{self, ReadError, UnverifiedRelease};
use crate::digest::Digest;
use crate::image::index::Index;
use crate::image::lookup::{Finder, Lookup, Place};
use crate::image::manifest::BootLayer;
use crate::image::patch::{Patch, PatchError, PatchManifest};
use crate::image::plan::{Chosen, Cost, Plan};
use crate::registry::{Registry, RegistryError, patches};

/// The way from one release to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The release that is there.
    pub from: Named,
    /// The release that is to be installed.
    pub to: Named,
    /// Its slot partitions.
    pub slots: Vec<SlotDifference>,
    /// Manifest, config and indexes of the new OS image, in bytes: fetched whichever way is taken.
    pub document_bytes: u64,
    /// Its boot files that the earlier one has not, in bytes: fetched, too.
    pub boot_bytes: u64,
}

/// A release in a few words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Named {
    /// Name of its OS image.
    pub name: String,
    /// Version of its OS image.
    pub version: String,
    /// Digest of its OS image's manifest.
    pub image: Digest,
}

/// One slot partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotDifference {
    /// Class name.
    pub name: String,
    /// Raw bytes.
    pub raw_bytes: u64,
    /// Into an empty slot of a machine that has nothing of it.
    pub whole: Cost,
    /// With the earlier release in the running slot.
    pub chunks: Cost,
    /// The same with a patch; none where the new release has none from the earlier one.
    pub patch: Option<Patched>,
    /// Raw bytes that lie at the same place in both: left alone where the slot that is written holds the earlier release.
    pub same_place_bytes: u64,
}

/// What a patch makes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Patched {
    /// Length of its header in bytes: fetched, too.
    pub header_bytes: u64,
    /// Length of its blob in bytes.
    pub blob_bytes: u64,
    /// Its entries.
    pub entries: usize,
    /// What is moved.
    pub cost: Cost,
}

/// Why two releases could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// One of them is not there, or no release.
    #[error("while reading the release {digest} at {place}")]
    Release {
        /// Where.
        place: String,
        /// Which.
        digest: Digest,
        /// What is wrong with it.
        source: Box<ReadError>,
    },
    /// What is attached to the new one could not be read.
    #[error("while looking for patches at {place}")]
    Patches {
        /// Where.
        place: String,
        /// What the repository said.
        source: RegistryError,
    },
    /// A patch's header was refused.
    #[error(transparent)]
    Header(#[from] PatchError),
}

/// Compares the releases: what a machine with `from` in its running slot needs for `to`.
pub async fn diff(from: &Part, to: &Part) -> Result<Difference, DiffError> {
    let (base_image, base) = read(from).await?;
    let (image, release) = read(to).await?;
    let lost = |source| DiffError::Patches { place: to.registry.place(), source };
    let found = patches::find(&*to.registry, &image, &[base_image]).await.map_err(lost)?;
    let mut slots = Vec::new();
    for (number, layer) in release.manifest.slots.iter().enumerate() {
        let place = base.manifest.slots.iter().position(|slot| slot.name == layer.name);
        let base_index = place.map(|place| &base.indexes[place]);
        let index = &release.indexes[number];
        let patch = match base_index {
            Some(base_index) => {
                let patch = shortest(&*to.registry, &found, &layer.name, index, base_index.raw_bytes()).await;
                patch.map_err(|error| error.named(&*to.registry))?
            }
            None => None,
        };
        slots.push(compare(layer.name.clone(), index, base_index, patch));
    }
    let indexes: u64 = release.manifest.slots.iter().map(|slot| slot.index.size).sum();
    let has = |file: &&BootLayer| base.manifest.boot.iter().any(|old| old.blob.digest == file.blob.digest);
    Ok(Difference {
        from: named(base_image, &base),
        to: named(image, &release),
        slots,
        document_bytes: release.manifest_bytes.len() as u64 + release.manifest.config.size + indexes,
        boot_bytes: release.manifest.boot.iter().filter(|file| !has(file)).map(|file| file.blob.size).sum(),
    })
}

async fn read(part: &Part) -> Result<(Digest, UnverifiedRelease), DiffError> {
    let unread = |source| DiffError::Release {
        place: part.registry.place(),
        digest: part.digest,
        source: Box::new(source),
    };
    inspect::read_os(&*part.registry, &part.digest).await.map_err(unread)
}

fn named(image: Digest, release: &UnverifiedRelease) -> Named {
    Named { name: release.config.name.clone(), version: release.config.version.clone(), image }
}

/// Why a header is not there.
enum NoHeader {
    Registry(RegistryError),
    Patch(PatchError),
}

impl NoHeader {
    fn named(self, registry: &dyn Registry) -> DiffError {
        match self {
            NoHeader::Registry(source) => DiffError::Patches { place: registry.place(), source },
            NoHeader::Patch(error) => error.into(),
        }
    }
}

/// The header of the shortest patch for the slot partition `name`.
async fn shortest(
    registry: &dyn Registry,
    found: &[PatchManifest],
    name: &str,
    index: &Index,
    base_bytes: u64,
) -> Result<Option<Patch>, NoHeader> {
    let shortest = found.iter().filter_map(|patch| patch.slot(name)).min_by_key(|slot| slot.blob.size);
    let Some(slot) = shortest else { return Ok(None) };
    let header = patches::header(registry, slot, Patch::header_bytes_max(index)).await;
    let header = header.map_err(NoHeader::Registry)?;
    Patch::parse(&header, slot.blob.size, index, base_bytes).map(Some).map_err(NoHeader::Patch)
}

fn compare(name: String, index: &Index, base: Option<&Index>, patch: Option<Patch>) -> SlotDifference {
    let known = |place: Place| {
        let mut finder = Finder::new(index);
        base.iter().for_each(|base| finder.add(place, base));
        finder.finish(index)
    };
    let (nothing, running, target) = (Lookup::none(), known(Place::Running), known(Place::Target));
    let plan = |lookup| Plan::new(index, lookup);
    let patched = |patch: Patch| {
        let (header_bytes, blob_bytes, entries) =
            (patch.header_bytes(), patch.blob_bytes(), patch.entries().len());
        let chosen = Chosen::new(patch, &plan(&running));
        let cost = Plan { patch: Some(&chosen), ..plan(&running) }.cost();
        Patched { header_bytes, blob_bytes, entries, cost }
    };
    SlotDifference {
        name,
        raw_bytes: index.raw_bytes(),
        whole: plan(&nothing).cost(),
        chunks: plan(&running).cost(),
        patch: patch.map(patched),
        same_place_bytes: plan(&target).cost().keep_bytes,
    }
}
