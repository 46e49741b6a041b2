//! Finds the patches of an OS image among what refers to it, and fetches their headers.
//!
//! Not here: what a patch says (`image::patch`), whether it is worth its bytes (`image::plan`). Rule: a patch is a
//! convenience that nobody signed, so one that is broken is passed over, and every length is bounded before it is read.

use futures_util::StreamExt as _;

use super::{Descriptor, REFERRERS_MAX, Registry, RegistryError, check_digest};
use crate::digest::Digest;
use crate::image::manifest::MANIFEST_BYTES_MAX;
use crate::image::patch::{BASE_ANNOTATION, PatchManifest, PatchSlot, is_patch};

/// The patches that make the OS image `target` out of one of `bases`, in no particular order. Empty where there are none.
///
/// # Errors
/// The list of referrers could not be had. A single patch that cannot is passed over.
pub async fn find(
    registry: &dyn Registry,
    target: &Digest,
    bases: &[Digest],
) -> Result<Vec<PatchManifest>, RegistryError> {
    let mut found = Vec::new();
    let listed = registry.referrers(target).await?.into_iter();
    let wanted = listed.filter(|it| it.size <= MANIFEST_BYTES_MAX && !is_another(it, bases));
    for referrer in wanted.take(REFERRERS_MAX) {
        match registry.manifest(&referrer.digest, MANIFEST_BYTES_MAX).await {
            Ok(bytes) if is_patch(&bytes) => match PatchManifest::parse(&bytes, target) {
                Ok(patch) => found.extend(bases.contains(&patch.base).then_some(patch)),
                Err(error) => tracing::warn!(error = %error, "a patch is passed over"),
            },
            Ok(_) => {}
            Err(error) => tracing::warn!(error = %error, "what may be a patch could not be read"),
        }
    }
    Ok(found)
}

/// True for a patch by its annotation: no signature.
pub(super) fn is_called_patch(referrer: &Descriptor) -> bool {
    referrer.annotations.contains_key(BASE_ANNOTATION)
}

/// True for what its annotations, which a list of referrers repeats (OCI distribution-spec, "Listing Referrers"), tell from a
/// patch out of one of `bases`: a signature, or a patch out of another release. Without any, it has to be looked into.
fn is_another(referrer: &Descriptor, bases: &[Digest]) -> bool {
    match referrer.annotations.get(BASE_ANNOTATION) {
        Some(base) => !bases.iter().any(|wanted| wanted.to_string() == *base),
        None => !referrer.annotations.is_empty(),
    }
}

/// The header of a patch's blob, compared with the digest that its manifest gives. `limit` is what a header of this target
/// can have at most ([`Patch::header_bytes_max`](crate::image::patch::Patch::header_bytes_max)).
pub async fn header(registry: &dyn Registry, slot: &PatchSlot, limit: u64) -> Result<Vec<u8>, RegistryError> {
    let what = || format!("the header of the patch {} in {}", slot.blob.digest, registry.place());
    if slot.header.size > limit {
        return Err(RegistryError::TooLarge { what: what(), limit });
    }
    let mut body = registry.blob_range(&slot.blob, 0..slot.header.size).await?;
    let mut bytes = Vec::new();
    // The stream ends after exactly what was asked for, or with an error.
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece?);
    }
    check_digest(&bytes, &slot.header.digest, what)?;
    Ok(bytes)
}
