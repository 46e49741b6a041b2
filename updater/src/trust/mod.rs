//! From bytes and trusted keys to [`Verified`] values; nothing else in Switchback accepts what was not verified.
//!
//! Not here: fetching (`registry::evidence`), the clock, files. Rule: a [`Verified`] is made here alone, each step from
//! the one before: signature → (release index →) manifest digest → manifest → config. Nothing is parsed before its bytes are covered by
//! a signature, except the envelope that holds the signature itself.

pub mod cosign;
pub mod keys;
pub mod policy;

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::config::OsConfig;
use crate::image::manifest::OsManifest;
use crate::image::release::ReleaseIndex;
pub use keys::PublicKey;
pub use policy::Policy;

/// The most signatures that are looked at for one digest.
pub const EVIDENCE_MAX: usize = 64;
/// The largest payload of a simple signing, in bytes; real ones have about 250.
pub const PAYLOAD_BYTES_MAX: u64 = 64 << 10;
/// The largest sigstore bundle, in bytes; one with a certificate and a log entry has about 20 000.
pub const BUNDLE_BYTES_MAX: u64 = 256 << 10;

/// A signature as it was found, not judged yet. Stored beside the slot's boot files, and verified again when used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// cosign 2, skopeo, podman: a payload blob and its signature.
    SimpleSigning {
        /// The signed bytes.
        #[serde(with = "base64_text")]
        payload: Vec<u8>,
        /// The signature in its raw form, not in base64.
        #[serde(with = "base64_text")]
        signature: Vec<u8>,
    },
    /// cosign 3: a sigstore bundle, as JSON.
    Bundle(#[serde(with = "base64_text")] Vec<u8>),
}

/// A value that trusted keys vouch for. There is no way to make one but through this module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Verified<T> {
    /// Gives the value away, and with it the proof.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl Verified<Digest> {
    /// The manifest with this digest: hashed, then parsed.
    ///
    /// # Errors
    /// [`TrustError::OtherBytes`], or [`TrustError::Unreadable`] when it is signed and no manifest of ours.
    pub fn open_manifest(&self, bytes: &[u8]) -> Result<Verified<OsManifest>, TrustError> {
        same_bytes("manifest", self, bytes)?;
        OsManifest::parse(bytes).map(Verified).map_err(|source| unreadable("manifest", source))
    }
}

impl Verified<Digest> {
    /// The release index with this digest: hashed, then parsed.
    ///
    /// # Errors
    /// As [`Verified::open_manifest`].
    pub fn open_release(&self, bytes: &[u8]) -> Result<Verified<ReleaseIndex>, TrustError> {
        same_bytes("release index", self, bytes)?;
        ReleaseIndex::parse(bytes).map(Verified).map_err(|source| unreadable("release index", source))
    }
}

impl Verified<ReleaseIndex> {
    /// The OS image that this release names: what a signature over the release covers, too.
    pub fn os(&self) -> Verified<Digest> {
        Verified(self.0.os.digest)
    }
}

impl Verified<OsManifest> {
    /// The config that this manifest names: hashed, parsed, and found to describe the same image.
    ///
    /// # Errors
    /// As [`Verified::open_manifest`].
    pub fn open_config(&self, bytes: &[u8]) -> Result<Verified<OsConfig>, TrustError> {
        same_bytes("config", &self.config.digest, bytes)?;
        let config = OsConfig::parse(bytes).map_err(|source| unreadable("config", source))?;
        self.check_config(&config).map_err(|source| unreadable("config", source))?;
        Ok(Verified(config))
    }
}

fn unreadable(what: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> TrustError {
    TrustError::Unreadable { what, source: Box::new(source) }
}

fn same_bytes(what: &'static str, expected: &Digest, bytes: &[u8]) -> Result<(), TrustError> {
    let found = Digest::of(bytes);
    if found != *expected {
        return Err(TrustError::OtherBytes { what, expected: *expected, found });
    }
    Ok(())
}

/// Verifies that enough trusted keys signed `digest`. Only signatures count that name exactly this digest; a key that
/// signed twice counts once.
///
/// # Errors
/// [`TrustError::NoSignature`], [`TrustError::NotTrusted`] or [`TrustError::BelowThreshold`], which say what was found.
pub fn verify(
    policy: &Policy,
    digest: &Digest,
    evidence: &[Evidence],
) -> Result<Verified<Digest>, TrustError> {
    if evidence.is_empty() {
        return Err(TrustError::NoSignature { digest: *digest });
    }
    let mut signers = Vec::new();
    let mut refused = Vec::new();
    for found in evidence.iter().take(EVIDENCE_MAX) {
        match cosign::signers(found, digest, policy.keys()) {
            Ok(keys) => signers.extend(keys),
            Err(why) => refused.push(why),
        }
    }
    signers.sort_unstable();
    signers.dedup();
    if signers.len() >= policy.threshold() {
        return Ok(Verified(*digest));
    }
    Err(shortfall(policy, digest, evidence.len(), &signers, &refused))
}

fn shortfall(
    policy: &Policy,
    digest: &Digest,
    found: usize,
    signers: &[keys::KeyId],
    refused: &[cosign::Refusal],
) -> TrustError {
    let mut reasons: Vec<String> = refused.iter().map(ToString::to_string).collect();
    reasons.sort_unstable();
    reasons.dedup();
    let reasons = reasons.join("; ");
    if signers.is_empty() {
        return TrustError::NotTrusted { digest: *digest, found, reasons, keys: ids(policy.key_ids()) };
    }
    TrustError::BelowThreshold {
        digest: *digest,
        threshold: policy.threshold(),
        signers: ids(signers.iter().copied()),
        found,
    }
}

fn ids(keys: impl IntoIterator<Item = keys::KeyId>) -> String {
    keys.into_iter().map(|key| key.to_string()).collect::<Vec<_>>().join(", ")
}

/// Why something is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Nothing that looks like a signature was found.
    #[error("while verifying {digest}: no signature found")]
    NoSignature {
        /// What should have been signed.
        digest: Digest,
    },
    /// Signatures, none of them good.
    #[error(
        "while verifying {digest}: {found} signature(s) found, none counts ({reasons}); the trusted keys are {keys}"
    )]
    NotTrusted {
        /// What should have been signed.
        digest: Digest,
        /// How many signatures were found.
        found: usize,
        /// Why each was refused, without repetition.
        reasons: String,
        /// The ids of the trusted keys.
        keys: String,
    },
    /// Good signatures, of too few different keys.
    #[error(
        "while verifying {digest}: signatures of {threshold} different trusted keys are needed, \
         {found} signature(s) found, good ones by: {signers}"
    )]
    BelowThreshold {
        /// What should have been signed.
        digest: Digest,
        /// How many keys must have signed.
        threshold: usize,
        /// The ids of the keys that did.
        signers: String,
        /// How many signatures were found.
        found: usize,
    },
    /// Other bytes than the ones a signature covers.
    #[error("while verifying the {what}: its digest is {found}, the signature covers {expected}")]
    OtherBytes {
        /// What was verified: `manifest`, `config`.
        what: &'static str,
        /// The signed digest.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// Signed, yet not a format this version reads.
    #[error("while reading the signed {what}")]
    Unreadable {
        /// What was read: `manifest`, `config`.
        what: &'static str,
        /// The parser's word.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A trusted key that cannot be used.
    #[error("while reading a trusted key: {0}")]
    Key(#[from] keys::KeyError),
    /// A policy that no release could ever satisfy, or every release would.
    #[error("while reading the trust policy: {0}")]
    Policy(String),
    /// Signed, for something else.
    #[error("while admitting the release: its {field} is `{found}`, this machine {wanted}")]
    NotForThis {
        /// Which field of the signed config.
        field: &'static str,
        /// What the release says.
        found: String,
        /// What the policy or the machine says.
        wanted: String,
    },
    /// Older than what this machine has already confirmed.
    #[error(
        "while admitting the release: its security version {found} is below {floor}, which this machine has already reached"
    )]
    BelowFloor {
        /// The release's security version.
        found: u64,
        /// The machine's floor.
        floor: u64,
    },
}

mod base64_text {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
