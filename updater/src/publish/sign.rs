//! Signs a digest with a local key, in the forms that cosign reads, and makes such keys.
//!
//! Not here: verifying (`trust`), keys in a KMS or behind a password (use `cosign sign` on the digest: it is the same
//! to a device). Rule: what is signed is the digest that was given, never a tag; a private key is written readable for
//! its owner alone and never over another file.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pem_rfc7468::LineEnding;
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::digest::Digest;
use crate::image::patch::EMPTY_MEDIA_TYPE;
use crate::registry::evidence::signature_tag;
use crate::registry::{Descriptor, MANIFEST_BYTES_MAX, MANIFEST_MEDIA_TYPE, Registry, RegistryError};
use crate::trust::PublicKey;
use crate::trust::cosign::{
    BUNDLE_MEDIA_TYPE, IN_TOTO_MEDIA_TYPE, SIGN_PREDICATE, SIGNATURE_ANNOTATION, SIMPLE_SIGNING_MEDIA_TYPE,
    SIMPLE_SIGNING_TYPE, pre_authentication_encoding,
};
use crate::trust::keys::{KEY_BYTES_MAX, KeyError};

/// The config of a `.sig` manifest.
const IMAGE_CONFIG_MEDIA_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// What a new key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256: what cosign makes.
    P256,
    /// Ed25519.
    Ed25519,
}

/// In which form a signature is left in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A sigstore bundle as a referrer: what cosign 3 writes and reads.
    Bundle,
    /// A payload and signature under the tag `sha256-<hex>.sig`: what cosign 2, skopeo and podman write and read.
    SimpleSigning,
}

/// A private key.
pub struct SigningKey(Pair);

enum Pair {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// Why something was not signed, or a key not made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The private key cannot be used.
    #[error("while reading the private key: {0}")]
    Key(String),
    /// The key's own public half makes no sense.
    #[error("while deriving the public key")]
    Public(#[from] KeyError),
    /// The library refused to sign or to make a key.
    #[error("while {0}")]
    Maths(&'static str),
    /// The registry.
    #[error("while signing in the registry")]
    Registry(#[from] RegistryError),
    /// A signature list that is there and cannot be added to.
    #[error("while adding to {tag}: {detail}")]
    List {
        /// The tag with the list.
        tag: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A file.
    #[error("while writing {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

/// Signs the manifest `digest` of a repository and leaves the signature there. Gives the digest of the manifest that
/// holds it.
pub async fn sign(
    registry: &dyn Registry,
    digest: &Digest,
    key: &SigningKey,
    form: Form,
) -> Result<Digest, SignError> {
    match form {
        Form::Bundle => push_bundle(registry, digest, key).await,
        Form::SimpleSigning => push_simple_signing(registry, digest, key).await,
    }
}

async fn push_bundle(
    registry: &dyn Registry,
    digest: &Digest,
    key: &SigningKey,
) -> Result<Digest, SignError> {
    let signed = registry.manifest(digest, MANIFEST_BYTES_MAX).await?;
    let bundle = registry.push_blob(BUNDLE_MEDIA_TYPE, bundle(digest, key)?.as_bytes()).await?;
    let config = registry.push_blob(EMPTY_MEDIA_TYPE, b"{}").await?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "artifactType": BUNDLE_MEDIA_TYPE,
        "config": config,
        "layers": [bundle],
        "subject": {"mediaType": media_type_of(&signed), "digest": digest, "size": signed.len()},
        "annotations": {
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": SIGN_PREDICATE,
        },
    });
    Ok(registry.push_manifest(None, MANIFEST_MEDIA_TYPE, manifest.to_string().as_bytes()).await?)
}

/// The bundle that cosign 3 writes for a key: a DSSE envelope with an in-toto statement.
fn bundle(digest: &Digest, key: &SigningKey) -> Result<String, SignError> {
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.hex()}}],
        "predicateType": SIGN_PREDICATE,
        "predicate": {},
    })
    .to_string();
    let signature = key.sign(&pre_authentication_encoding(statement.as_bytes()))?;
    let hint = sha2::Sha256::digest(key.public_key()?.der());
    Ok(json!({
        "mediaType": BUNDLE_MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": STANDARD.encode(hint)}},
        "dsseEnvelope": {
            "payload": STANDARD.encode(&statement),
            "payloadType": IN_TOTO_MEDIA_TYPE,
            "signatures": [{"sig": STANDARD.encode(signature)}],
        },
    })
    .to_string())
}

/// Adds one layer to what is under the tag: other signers' signatures stay.
async fn push_simple_signing(
    registry: &dyn Registry,
    digest: &Digest,
    key: &SigningKey,
) -> Result<Digest, SignError> {
    registry.manifest(digest, MANIFEST_BYTES_MAX).await?;
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": registry.place()},
            "image": {"docker-manifest-digest": digest},
            "type": SIMPLE_SIGNING_TYPE,
        },
        "optional": null,
    })
    .to_string();
    let signature = key.sign(payload.as_bytes())?;
    let mut layer = registry.push_blob(SIMPLE_SIGNING_MEDIA_TYPE, payload.as_bytes()).await?;
    layer.annotations.insert(SIGNATURE_ANNOTATION.into(), STANDARD.encode(signature));
    let tag = signature_tag(digest);
    let mut layers = signatures_under(registry, &tag).await?;
    layers.push(json!(layer));
    let config = push_signature_config(registry, &layers).await?;
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "config": config, "layers": layers});
    Ok(registry.push_manifest(Some(&tag), MANIFEST_MEDIA_TYPE, manifest.to_string().as_bytes()).await?)
}

async fn signatures_under(registry: &dyn Registry, tag: &str) -> Result<Vec<Value>, SignError> {
    let bytes = match registry.manifest_by_tag(tag, MANIFEST_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(error) if error.is_absent() => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let unusable = |detail: &str| SignError::List { tag: tag.to_owned(), detail: detail.to_owned() };
    let manifest: Value = serde_json::from_slice(&bytes).map_err(|_| unusable("it is no JSON"))?;
    let layers = manifest.get("layers").and_then(Value::as_array);
    layers.cloned().ok_or_else(|| unusable("it has no list of layers"))
}

/// A config as cosign 2 writes it: an image whose layers are the payloads.
async fn push_signature_config(registry: &dyn Registry, layers: &[Value]) -> Result<Descriptor, SignError> {
    let payloads: Vec<_> = layers.iter().filter_map(|layer| layer.get("digest")).collect();
    let config = json!({
        "architecture": "",
        "created": "0001-01-01T00:00:00Z",
        "history": vec![json!({"created": "0001-01-01T00:00:00Z"}); layers.len()],
        "os": "",
        "rootfs": {"type": "layers", "diff_ids": payloads},
        "config": {},
    });
    Ok(registry.push_blob(IMAGE_CONFIG_MEDIA_TYPE, config.to_string().as_bytes()).await?)
}

fn media_type_of(manifest: &[u8]) -> String {
    let manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    manifest.get("mediaType").and_then(Value::as_str).unwrap_or(MANIFEST_MEDIA_TYPE).to_owned()
}

impl SigningKey {
    /// A new key from the system's random numbers.
    pub fn generate(kind: KeyKind) -> Result<SigningKey, SignError> {
        let failed = |_| SignError::Maths("making a key");
        match kind {
            KeyKind::P256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed)?;
                Ok(SigningKey(Pair::P256(pair)))
            }
            KeyKind::Ed25519 => Ok(SigningKey(Pair::Ed25519(Ed25519KeyPair::generate().map_err(failed)?))),
        }
    }

    /// Reads a PKCS #8 key in PEM: what [`write_key_pair`] and `openssl genpkey` write.
    pub fn from_pem(pem: &[u8]) -> Result<SigningKey, SignError> {
        let unusable = |why: String| SignError::Key(why);
        if pem.len() > KEY_BYTES_MAX {
            return Err(unusable("it is too long".into()));
        }
        let (label, der) =
            pem_rfc7468::decode_vec(pem).map_err(|err| unusable(format!("it is no PEM file ({err})")))?;
        match label {
            "PRIVATE KEY" => {}
            "ENCRYPTED SIGSTORE PRIVATE KEY" | "ENCRYPTED COSIGN PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => {
                return Err(unusable(
                    "it is encrypted; sign the digest with `cosign sign --key` instead".into(),
                ));
            }
            other => {
                let convert = "openssl pkcs8 -topk8 -nocrypt -in OLD -out NEW";
                return Err(unusable(format!("it holds a `{other}`, expected a `PRIVATE KEY`: {convert}")));
            }
        }
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der) {
            return Ok(SigningKey(Pair::P256(pair)));
        }
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der);
        let pair = pair.map_err(|_| unusable("it is neither ECDSA P-256 nor Ed25519".into()))?;
        Ok(SigningKey(Pair::Ed25519(pair)))
    }

    /// The public half.
    pub fn public_key(&self) -> Result<PublicKey, SignError> {
        let der: Result<PublicKeyX509Der<'_>, _> = match &self.0 {
            Pair::P256(pair) => pair.public_key().as_der(),
            Pair::Ed25519(pair) => pair.public_key().as_der(),
        };
        let der = der.map_err(|_| SignError::Maths("encoding the public key"))?;
        Ok(PublicKey::from_der(der.as_ref())?)
    }

    /// The public half as a PEM SubjectPublicKeyInfo: what goes onto devices.
    pub fn public_pem(&self) -> Result<String, SignError> {
        pem("PUBLIC KEY", self.public_key()?.der())
    }

    fn private_pem(&self) -> Result<String, SignError> {
        let failed = |_| SignError::Maths("encoding the private key");
        match &self.0 {
            Pair::P256(pair) => pem("PRIVATE KEY", pair.to_pkcs8v1().map_err(failed)?.as_ref()),
            Pair::Ed25519(pair) => {
                let der: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
                pem("PRIVATE KEY", der.as_ref())
            }
        }
    }

    /// Ed25519 in its plain form in both forms: `cosign verify` 3.1 refuses a bundle in the prehashed one, even its own.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let signature = match &self.0 {
            Pair::P256(pair) => pair.sign(&SystemRandom::new(), message),
            Pair::Ed25519(pair) => return Ok(pair.sign(message).as_ref().to_vec()),
        };
        Ok(signature.map_err(|_| SignError::Maths("signing"))?.as_ref().to_vec())
    }
}

fn pem(label: &str, der: &[u8]) -> Result<String, SignError> {
    pem_rfc7468::encode_string(label, LineEnding::LF, der).map_err(|_| SignError::Maths("encoding a key"))
}

/// Makes a key and writes `PREFIX.key` (PKCS #8, readable for its owner alone, not encrypted) and `PREFIX.pub`. Neither
/// file may exist. Gives both paths.
pub fn write_key_pair(kind: KeyKind, prefix: &Path) -> Result<(PathBuf, PathBuf), SignError> {
    let beside = |ending: &str| {
        let mut path = prefix.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    };
    let (private, public) = (beside(".key"), beside(".pub"));
    let key = SigningKey::generate(kind)?;
    write_new(&public, key.public_pem()?.as_bytes(), 0o644)?;
    write_new(&private, key.private_pem()?.as_bytes(), 0o600)?;
    Ok((private, public))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), SignError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| SignError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::image::patch::BASE_ANNOTATION;
    use crate::registry::REFERRERS_MAX;
    use crate::registry::evidence;
    use crate::registry::layout_dir::LayoutDir;
    use crate::trust::{self, Policy};

    #[tokio::test]
    async fn what_either_key_signs_in_either_form_is_verified() {
        let dir = tempfile::tempdir().unwrap();
        let layout = LayoutDir::new(dir.path());
        for (n, (kind, form)) in [
            (KeyKind::P256, Form::Bundle),
            (KeyKind::P256, Form::SimpleSigning),
            (KeyKind::Ed25519, Form::Bundle),
            (KeyKind::Ed25519, Form::SimpleSigning),
        ]
        .into_iter()
        .enumerate()
        {
            let image = format!(r#"{{"mediaType":"{MANIFEST_MEDIA_TYPE}","n":{n}}}"#);
            let image = layout.push_manifest(None, MANIFEST_MEDIA_TYPE, image.as_bytes()).await.unwrap();
            let key = SigningKey::generate(kind).unwrap();
            sign(&layout, &image, &key, form).await.unwrap();
            let found = evidence::collect(&layout, &image).await.unwrap();
            let policy = Policy::new(vec![key.public_key().unwrap()], 1).unwrap();
            assert_eq!(*trust::verify(&policy, &image, &found).unwrap(), image, "{kind:?} {form:?}");
        }
    }

    #[tokio::test]
    async fn many_patches_do_not_crowd_a_signature_out() {
        let dir = tempfile::tempdir().unwrap();
        let layout = LayoutDir::new(dir.path());
        let image = format!(r#"{{"mediaType":"{MANIFEST_MEDIA_TYPE}"}}"#);
        let image = layout.push_manifest(None, MANIFEST_MEDIA_TYPE, image.as_bytes()).await.unwrap();
        for number in 0..10 * REFERRERS_MAX {
            let base = Digest::of(&number.to_le_bytes());
            let patch = serde_json::json!({
                "mediaType": MANIFEST_MEDIA_TYPE, "artifactType": "application/vnd.switchback.patch.v1",
                "subject": { "digest": image }, "annotations": { BASE_ANNOTATION: base.to_string() },
            });
            layout.push_manifest(None, MANIFEST_MEDIA_TYPE, patch.to_string().as_bytes()).await.unwrap();
        }
        let key = SigningKey::generate(KeyKind::P256).unwrap();
        sign(&layout, &image, &key, Form::Bundle).await.unwrap();
        assert_eq!(evidence::collect(&layout, &image).await.unwrap().len(), 1);
    }

    #[test]
    fn a_key_pair_is_private_and_replaces_no_other() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [KeyKind::P256, KeyKind::Ed25519] {
            let prefix = dir.path().join(format!("{kind:?}"));
            let (private, public) = write_key_pair(kind, &prefix).unwrap();
            assert_eq!(private.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            let key = SigningKey::from_pem(&std::fs::read(&private).unwrap()).unwrap();
            let public = PublicKey::from_pem(&std::fs::read(&public).unwrap()).unwrap();
            assert_eq!(key.public_key().unwrap(), public);
            assert!(matches!(write_key_pair(kind, &prefix), Err(SignError::Io { .. })));
        }
    }

    #[test]
    fn a_key_of_another_kind_says_what_to_do() {
        for (label, hint) in [
            ("EC PRIVATE KEY", "openssl pkcs8"),
            ("ENCRYPTED SIGSTORE PRIVATE KEY", "cosign sign"),
            ("PRIVATE KEY", "neither"),
        ] {
            let pem = format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
            let error = SigningKey::from_pem(pem.as_bytes()).err().unwrap().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
