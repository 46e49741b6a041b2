//! A release whose signature, kind and requirements were checked: what an install starts from.
//!
//! Not here: how signatures are judged (`trust`), the slot. Rule: nothing of this module writes to the disk; a release
//! that is refused here leaves every byte of it as it was.

use serde::{Deserialize, Serialize};

use super::InstallError;
use crate::digest::Digest;
use crate::image::config::{CONFIG_BYTES_MAX, OsConfig, VerityInfo};
use crate::image::manifest::{Descriptor, MANIFEST_BYTES_MAX, OsManifest};
use crate::image::release::{RELEASE_BYTES_MAX, ReleaseIndex, is_release_index};
use crate::registry::{Registry, evidence};
use crate::trust::{Evidence, Policy, Verified, verify};

/// Bound of the stored signatures of one release in bytes.
const SIGNATURES_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Names of the passport's documents in a slot's folder.
pub const PASSPORT: [(&str, u64); 3] = [
    ("manifest.json", MANIFEST_BYTES_MAX),
    ("config.json", CONFIG_BYTES_MAX),
    ("signatures.json", SIGNATURES_BYTES_MAX),
];

/// The signed documents of a release as they came, kept beside the slot's boot files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passport {
    /// The OS image's manifest.
    pub manifest: Vec<u8>,
    /// Its config.
    pub config: Vec<u8>,
    /// What vouches for the manifest, as JSON of [`Vouchers`].
    pub signatures: Vec<u8>,
}

/// What was signed, and the signatures: those of the OS image's manifest, or a release index that names it and theirs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Vouchers {
    Image(Vec<Evidence>),
    Release { release: String, signatures: Vec<Evidence> },
}

impl Passport {
    /// The documents with their file names, for the bootloader backend that stores them.
    pub fn documents(&self) -> Vec<(String, Vec<u8>)> {
        let bytes = [&self.manifest, &self.config, &self.signatures];
        PASSPORT.iter().zip(bytes).map(|((name, _), bytes)| (name.to_string(), bytes.clone())).collect()
    }
}

/// A verified release.
#[derive(Debug, Clone)]
pub struct Release {
    /// What was signed and what is quarantined: the digest of the OS image's manifest, or of the index that binds it to its
    /// services.
    pub digest: Digest,
    /// Digest of the OS image's manifest.
    pub image: Digest,
    /// What binds the OS image to its services, where that was signed.
    pub bound: Option<Verified<ReleaseIndex>>,
    /// The manifest.
    pub manifest: Verified<OsManifest>,
    /// The config.
    pub config: Verified<OsConfig>,
    /// The documents as they came.
    pub passport: Passport,
}

/// A release in a few words, for state, history and answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseName {
    /// `name` of the signed config.
    pub name: String,
    /// `version` of the signed config.
    pub version: String,
    /// Its digest.
    pub digest: Digest,
}

impl Release {
    /// Fetches signature, manifest and config of `digest`, in that order: nothing else is read before the signature holds.
    pub async fn fetch(
        registry: &dyn Registry,
        digest: Digest,
        policy: &Policy,
    ) -> Result<Release, InstallError> {
        let found = evidence::collect(registry, &digest).await?;
        let signed = verify(policy, &digest, &found)?;
        let bytes = registry.manifest(&digest, MANIFEST_BYTES_MAX.max(RELEASE_BYTES_MAX)).await?;
        let (bound, image, manifest_bytes, vouchers) = match is_release_index(&bytes) {
            false => (None, signed, bytes, Vouchers::Image(found)),
            true => {
                let bound = signed.open_release(&bytes)?;
                let image = bound.os();
                let manifest = registry.manifest(&image, MANIFEST_BYTES_MAX).await?;
                // Signed bytes are kept as they are: their digest is what the signatures are over.
                let release = String::from_utf8(bytes).map_err(|_| InstallError::Worker)?;
                (Some(bound), image, manifest, Vouchers::Release { release, signatures: found })
            }
        };
        let manifest = image.open_manifest(&manifest_bytes)?;
        let config_bytes = registry.blob(&manifest.config, CONFIG_BYTES_MAX).await?;
        let config = manifest.open_config(&config_bytes)?;
        let signatures = serde_json::to_vec(&vouchers).map_err(|_| InstallError::Worker)?;
        let passport = Passport { manifest: manifest_bytes, config: config_bytes, signatures };
        Ok(Release { digest, image: *image, bound, manifest, config, passport })
    }

    /// Verifies a passport again, as `rollback` and every start do: the files lay where anyone with root could write.
    pub fn from_passport(passport: Passport, policy: &Policy) -> Result<Release, InstallError> {
        let vouchers: Vouchers = serde_json::from_slice(&passport.signatures)
            .map_err(|source| InstallError::Passport { source })?;
        let (digest, bound, image) = match vouchers {
            Vouchers::Image(found) => {
                let digest = Digest::of(&passport.manifest);
                (digest, None, verify(policy, &digest, &found)?)
            }
            Vouchers::Release { release, signatures } => {
                let digest = Digest::of(release.as_bytes());
                let bound = verify(policy, &digest, &signatures)?.open_release(release.as_bytes())?;
                let image = bound.os();
                (digest, Some(bound), image)
            }
        };
        let manifest = image.open_manifest(&passport.manifest)?;
        let config = manifest.open_config(&passport.config)?;
        Ok(Release { digest, image: *image, bound, manifest, config, passport })
    }

    /// What it calls itself: the release, or the OS image where nothing else is bound to it.
    pub fn version(&self) -> &str {
        self.bound.as_ref().map_or(&self.config.version, |bound| &bound.version)
    }

    /// The images that it binds to its OS, by service.
    pub fn services(&self) -> impl Iterator<Item = (&String, &Descriptor)> {
        self.bound.iter().flat_map(|bound| bound.services.iter())
    }

    /// Name, version and digest.
    pub fn name(&self) -> ReleaseName {
        ReleaseName {
            name: self.config.name.clone(),
            version: self.version().to_owned(),
            digest: self.digest,
        }
    }

    /// Raw bytes of the slot partition `name`, from the signed config.
    pub fn slot_bytes(&self, name: &str) -> Result<u64, InstallError> {
        let slot = self.config.slots.iter().find(|slot| slot.name == name);
        slot.map(|slot| slot.bytes).ok_or_else(|| InstallError::NoSuchSlot { name: name.to_string() })
    }

    /// dm-verity's parameters of the slot partition `name`, from the signed config.
    pub(super) fn verity(&self, name: &str) -> Result<&VerityInfo, InstallError> {
        let slot = self.config.slots.iter().find(|slot| slot.name == name);
        slot.and_then(|slot| slot.verity.as_ref())
            .ok_or_else(|| InstallError::NoSuchSlot { name: name.to_string() })
    }
}
