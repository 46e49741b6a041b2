//! Finds the signatures of a digest in both places where signers put them: the tag `sha256-<hex>.sig` (cosign 2, skopeo,
//! podman) and the referrers (cosign 3 bundles, cosign 2 in referrers mode).
//!
//! Not here: whether a signature is good (`trust`). Rule: everything is opened and judged by its own manifest, never by
//! what a list says about it, but for patches, which a list may name as such: on a registry without the referrers API cosign lists
//! its bundles under the type of an empty config. What is neither form is passed over in silence; numbers and sizes are capped.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::patches::is_called_patch;
use super::{Descriptor, MANIFEST_BYTES_MAX, REFERRERS_MAX, Registry, RegistryError, fallback_tag};
use crate::digest::Digest;
use crate::trust::cosign::{
    BUNDLE_MEDIA_TYPE, BUNDLE_MEDIA_TYPE_OLD, SIGNATURE_ANNOTATION, SIMPLE_SIGNING_MEDIA_TYPE,
};
use crate::trust::{BUNDLE_BYTES_MAX, EVIDENCE_MAX, Evidence, PAYLOAD_BYTES_MAX};

#[derive(Deserialize)]
struct SignatureManifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// The signatures of `digest` that the repository holds, at most [`EVIDENCE_MAX`], not judged yet.
///
/// # Errors
/// A place that did not answer, when nothing was found elsewhere: then "not signed" would be a guess.
pub async fn collect(registry: &dyn Registry, digest: &Digest) -> Result<Vec<Evidence>, RegistryError> {
    let mut found = Found::default();
    found
        .manifest(registry, registry.manifest_by_tag(&signature_tag(digest), MANIFEST_BYTES_MAX).await)
        .await;
    match registry.referrers(digest).await {
        Ok(referrers) => {
            // A list that calls a signature a patch could as well leave it out.
            let may_sign = referrers.iter().filter(|referrer| !is_called_patch(referrer));
            for referrer in may_sign.take(REFERRERS_MAX) {
                let limit = referrer.size.min(MANIFEST_BYTES_MAX);
                found.manifest(registry, registry.manifest(&referrer.digest, limit).await).await;
            }
        }
        Err(error) => found.failed(error),
    }
    match found.failure {
        Some(error) if found.evidence.is_empty() => Err(error),
        _ => Ok(found.evidence),
    }
}

/// Where cosign 2 puts the signatures of `digest`.
pub fn signature_tag(digest: &Digest) -> String {
    format!("{}.sig", fallback_tag(digest))
}

#[derive(Default)]
struct Found {
    evidence: Vec<Evidence>,
    failure: Option<RegistryError>,
}

impl Found {
    /// Takes what the layers of one manifest hold. Two signatures may be two layers with the same digest.
    async fn manifest(&mut self, registry: &dyn Registry, bytes: Result<Vec<u8>, RegistryError>) {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => return self.failed(error),
        };
        let manifest = match serde_json::from_slice::<SignatureManifest>(&bytes) {
            Ok(manifest) => manifest,
            // Not JSON at all: then "not signed" would be a guess, too.
            Err(error) if error.is_syntax() || error.is_eof() => {
                let what = format!("a signature in {}", registry.place());
                return self.failed(RegistryError::Broken { what, detail: "it is no JSON".into() });
            }
            Err(_) => return,
        };
        for layer in manifest.layers.iter().take(EVIDENCE_MAX) {
            if self.evidence.len() == EVIDENCE_MAX {
                return;
            }
            match layer_evidence(registry, layer).await {
                Ok(evidence) => self.evidence.extend(evidence),
                Err(error) => self.failed(error),
            }
        }
    }

    fn failed(&mut self, error: RegistryError) {
        if !error.is_absent() {
            tracing::warn!(error = %error, "a place where signatures may be could not be read");
            self.failure.get_or_insert(error);
        }
    }
}

async fn layer_evidence(
    registry: &dyn Registry,
    layer: &Descriptor,
) -> Result<Option<Evidence>, RegistryError> {
    match layer.media_type.as_str() {
        SIMPLE_SIGNING_MEDIA_TYPE => {
            let signature =
                layer.annotations.get(SIGNATURE_ANNOTATION).and_then(|it| STANDARD.decode(it).ok());
            let Some(signature) = signature else { return Ok(None) };
            let payload = registry.blob(layer, PAYLOAD_BYTES_MAX).await?;
            Ok(Some(Evidence::SimpleSigning { payload, signature }))
        }
        BUNDLE_MEDIA_TYPE | BUNDLE_MEDIA_TYPE_OLD => {
            Ok(Some(Evidence::Bundle(registry.blob(layer, BUNDLE_BYTES_MAX).await?)))
        }
        _ => Ok(None),
    }
}
