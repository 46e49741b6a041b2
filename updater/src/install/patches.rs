//! The patch that leads from what runs to the release, where its publisher made one.
//!
//! Not here: a patch's bytes (`image::patch`), finding it (`registry::patches`). Rule: a help that nobody needs: whatever is wrong
//! with it, the update goes on without it.

use super::survey::Ground;
use super::{InstallError, Release, Traffic};
use crate::digest::Digest;
use crate::engine::chain;
use crate::image::index::Outline;
use crate::image::lookup::Lookup;
use crate::image::manifest::Descriptor;
use crate::image::patch::Patch;
use crate::image::plan::{Chosen, Plan};
use crate::registry::{Registry, RegistryError, patches};

/// A patch that can be used.
pub struct Offered {
    /// Its entries.
    pub chosen: Chosen,
    /// Their bytes.
    pub blob: Descriptor,
}

/// The patch of the slot layer `layer` that builds on what `base` holds, for what `lookup` does not find.
pub async fn find(
    registry: &dyn Registry,
    release: &Release,
    base: &Ground,
    (layer, index): (&str, &Outline),
    lookup: &Lookup,
    traffic: &mut Traffic,
) -> Option<Offered> {
    match found(registry, release, base.holds?, (layer, index), traffic).await {
        Ok(found) => {
            let (table, blob) = found?;
            let chosen = Chosen::new(table, &Plan::new(index, lookup));
            Some(Offered { chosen, blob })
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "going on without a patch");
            None
        }
    }
}

async fn found(
    registry: &dyn Registry,
    release: &Release,
    (image, base_bytes): (Digest, u64),
    (layer, index): (&str, &Outline),
    traffic: &mut Traffic,
) -> Result<Option<(Patch, Descriptor)>, InstallError> {
    traffic.requests += 1;
    let found = patches::find(registry, &release.image, &[image]).await?;
    let Some(slot) = found.iter().find_map(|patch| patch.slot(layer)) else { return Ok(None) };
    traffic.requests += 2;
    traffic.fetched += slot.header.size;
    let header = patches::header(registry, slot, Patch::header_bytes_max(index)).await?;
    let patch = Patch::parse(&header, slot.blob.size, index, base_bytes).map_err(|error| {
        let what = format!("the patch {} at {}", slot.blob.digest, registry.place());
        RegistryError::Broken { what, detail: error.to_string() }
    })?;
    Ok(Some((patch, slot.blob.clone())))
}
