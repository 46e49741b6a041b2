//! Public keys: read from PEM, named by an id, and the one place that verifies a signature's maths.
//!
//! Not here: which keys are trusted (`policy`), what the signed bytes mean (`cosign`). Rule: the key fixes the
//! algorithm, never the artefact; so nothing in a signature can choose a weaker one.

use std::fmt;

use aws_lc_rs::signature::{self as aws, ParsedPublicKey, UnparsedPublicKey, VerificationAlgorithm};
use ed25519_dalek::VerifyingKey;
use sha2::Digest as _;
use spki::ObjectIdentifier;
use spki::der::Decode;

use crate::digest::Digest;

/// The largest PEM file of a key that is read, in bytes.
pub const KEY_BYTES_MAX: usize = 16 << 10;

/// The id of a public key: SHA-256 of its SubjectPublicKeyInfo, as in a sigstore bundle's hint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Digest);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A public key that signatures are verified with.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    maths: Maths,
    der: Vec<u8>,
}

/// What a key is for, as written in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maths {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// ECDSA on P-521.
    P521,
    /// Ed25519.
    Ed25519,
    /// RSA of 2048 to 8192 bits with PKCS #1 v1.5 padding.
    Rsa,
}

/// A file that is no usable public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the PEM form of a SubjectPublicKeyInfo.
    #[error("it is no PEM file with a `PUBLIC KEY` ({0})")]
    NotPem(String),
    /// An algorithm that is not accepted.
    #[error("its algorithm {0} is not accepted: ECDSA P-256, P-384, P-521, Ed25519, or RSA from 2048 bits")]
    Algorithm(String),
    /// The right form with impossible content.
    #[error("its {0:?} key is no valid key")]
    Invalid(Maths),
}

/// RFC 5480, RFC 8410, RFC 3279.
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

impl PublicKey {
    /// Reads the PEM form of a SubjectPublicKeyInfo: what `cosign generate-key-pair` and `openssl pkey -pubout` write.
    pub fn from_pem(pem: &[u8]) -> Result<PublicKey, KeyError> {
        let not_pem = |why: &dyn fmt::Display| KeyError::NotPem(why.to_string());
        if pem.len() > KEY_BYTES_MAX {
            return Err(not_pem(&"it is too long"));
        }
        let (label, der) = pem_rfc7468::decode_vec(pem).map_err(|err| not_pem(&err))?;
        if label != "PUBLIC KEY" {
            return Err(KeyError::NotPem(format!("it holds a `{label}`")));
        }
        PublicKey::from_der(&der)
    }

    /// Reads the DER form of a SubjectPublicKeyInfo.
    pub fn from_der(der: &[u8]) -> Result<PublicKey, KeyError> {
        let info = spki::SubjectPublicKeyInfoRef::from_der(der)
            .map_err(|err| KeyError::NotPem(format!("its content is no public key: {err}")))?;
        let maths = Maths::of(&info.algorithm)?;
        let bits = info.subject_public_key.as_bytes().ok_or(KeyError::Invalid(maths))?;
        maths.check(der, bits)?;
        Ok(PublicKey { maths, der: der.to_vec() })
    }

    /// The key's id.
    pub fn id(&self) -> KeyId {
        KeyId(Digest::of(&self.der))
    }

    /// What the key is for.
    pub fn maths(&self) -> Maths {
        self.maths
    }

    /// The DER form of its SubjectPublicKeyInfo.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// True when `signature` over `message` is good the way simple signing does it: SHA-256 with every key but
    /// Ed25519, which is plain.
    pub(super) fn verifies_simple_signing(&self, message: &[u8], signature: &[u8]) -> bool {
        match self.maths {
            Maths::P256 => self.verifies(&aws::ECDSA_P256_SHA256_ASN1, message, signature),
            Maths::P384 => self.verifies(&aws::ECDSA_P384_SHA256_ASN1, message, signature),
            Maths::P521 => self.verifies(&aws::ECDSA_P521_SHA256_ASN1, message, signature),
            Maths::Rsa => self.verifies(&aws::RSA_PKCS1_2048_8192_SHA256, message, signature),
            Maths::Ed25519 => self.verifies_ed25519(message, signature),
        }
    }

    /// True when `signature` over `message` is good the way a sigstore bundle does it: the hash follows the curve's
    /// size (sigstore, "Algorithm Registry"). Ed25519 has two entries there: cosign 3.1 signs an envelope in the
    /// prehashed form (Ed25519ph) and verifies the plain one. Both are taken: they cannot be mistaken for each other
    /// (RFC 8032, section 5.1, `dom2`).
    pub(super) fn verifies_bundle(&self, message: &[u8], signature: &[u8]) -> bool {
        match self.maths {
            Maths::P256 => self.verifies(&aws::ECDSA_P256_SHA256_ASN1, message, signature),
            Maths::P384 => self.verifies(&aws::ECDSA_P384_SHA384_ASN1, message, signature),
            Maths::P521 => self.verifies(&aws::ECDSA_P521_SHA512_ASN1, message, signature),
            Maths::Rsa => self.verifies(&aws::RSA_PKCS1_2048_8192_SHA256, message, signature),
            Maths::Ed25519 => {
                self.verifies_ed25519ph(message, signature) || self.verifies_ed25519(message, signature)
            }
        }
    }

    fn verifies(
        &self,
        algorithm: &'static dyn VerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        UnparsedPublicKey::new(algorithm, &self.der).verify(message, signature).is_ok()
    }

    fn verifies_ed25519(&self, message: &[u8], signature: &[u8]) -> bool {
        let Some((key, signature)) = self.ed25519(signature) else { return false };
        key.verify_strict(message, &signature).is_ok()
    }

    fn verifies_ed25519ph(&self, message: &[u8], signature: &[u8]) -> bool {
        let Some((key, signature)) = self.ed25519(signature) else { return false };
        let prehash = sha2::Sha512::new_with_prefix(message);
        key.verify_prehashed_strict(prehash, None, &signature).is_ok()
    }

    fn ed25519(&self, signature: &[u8]) -> Option<(VerifyingKey, ed25519_dalek::Signature)> {
        // RFC 8410: the last 32 bytes of the SubjectPublicKeyInfo are the key.
        let key = VerifyingKey::from_bytes(self.der.last_chunk()?).ok()?;
        Some((key, ed25519_dalek::Signature::from_slice(signature).ok()?))
    }
}

impl Maths {
    fn of(algorithm: &spki::AlgorithmIdentifierRef<'_>) -> Result<Maths, KeyError> {
        let curve = || algorithm.parameters_oid().ok();
        match algorithm.oid {
            EC_PUBLIC_KEY if curve() == Some(P256) => Ok(Maths::P256),
            EC_PUBLIC_KEY if curve() == Some(P384) => Ok(Maths::P384),
            EC_PUBLIC_KEY if curve() == Some(P521) => Ok(Maths::P521),
            ED25519 if algorithm.parameters.is_none() => Ok(Maths::Ed25519),
            RSA if algorithm.parameters.is_some_and(|it| it.is_null()) => Ok(Maths::Rsa),
            other => Err(KeyError::Algorithm(other.to_string())),
        }
    }

    /// Refuses at load what could never verify, so that a broken key is found when it is configured.
    fn check(self, der: &[u8], bits: &[u8]) -> Result<(), KeyError> {
        let parses = |algorithm: &'static dyn VerificationAlgorithm| {
            ParsedPublicKey::new(algorithm, der).map(drop).map_err(|_| KeyError::Invalid(self))
        };
        // The compressed form of a point is the same key under a second id, which could pass for a second signer.
        let uncompressed = bits.first() == Some(&4);
        match self {
            Maths::P256 | Maths::P384 | Maths::P521 if !uncompressed => Err(KeyError::Invalid(self)),
            Maths::P256 => parses(&aws::ECDSA_P256_SHA256_ASN1),
            Maths::P384 => parses(&aws::ECDSA_P384_SHA384_ASN1),
            Maths::P521 => parses(&aws::ECDSA_P521_SHA512_ASN1),
            Maths::Rsa => parses(&aws::RSA_PKCS1_2048_8192_SHA256),
            Maths::Ed25519 => {
                let key = bits.try_into().ok().and_then(|raw| VerifyingKey::from_bytes(raw).ok());
                key.filter(|key| !key.is_weak()).map(drop).ok_or(KeyError::Invalid(self))
            }
        }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?} {})", self.maths, self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_or_text_is_no_public_key() {
        for (pem, why) in [
            ("", "NotPem"),
            ("ssh-ed25519 AAAA", "NotPem"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "it holds a `PRIVATE KEY`"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "its content is no public key"),
        ] {
            let error = PublicKey::from_pem(pem.as_bytes()).unwrap_err();
            assert!(format!("{error:?}").contains(why), "{pem}: {error:?}");
        }
    }
}
