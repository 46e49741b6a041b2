//! The two forms in which cosign signs a digest: simple signing (cosign 2, skopeo, podman) and a sigstore bundle with a
//! DSSE envelope (cosign 3).
//!
//! Not here: finding them (`registry::evidence`), counting them (`verify`). Rule: first the signature, then the
//! meaning, and both over the same bytes: what is parsed is the very buffer that was verified.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::keys::{KeyId, PublicKey};
use super::{BUNDLE_BYTES_MAX, Evidence, PAYLOAD_BYTES_MAX};
use crate::digest::Digest;

/// The layer that holds a simple signing's payload.
pub const SIMPLE_SIGNING_MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation of that layer with the signature in base64.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// A sigstore bundle.
pub const BUNDLE_MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The same, as it was first written (sigstore protobuf-specs, `Bundle.media_type`).
pub const BUNDLE_MEDIA_TYPE_OLD: &str = "application/vnd.dev.sigstore.bundle+json;version=0.3";
/// The payload of the envelope.
pub const IN_TOTO_MEDIA_TYPE: &str = "application/vnd.in-toto+json";
/// What makes a statement an approval. An SBOM or a test report, attested with the same key over the same digest, has
/// another predicate and approves nothing.
pub const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// What makes a payload a simple signing.
pub const SIMPLE_SIGNING_TYPE: &str = "cosign container image signature";

/// Why one signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its maths fits none of the trusted keys.
    #[error("not by a trusted key")]
    UntrustedKey,
    /// It is good, for something else.
    #[error("signed for {0}")]
    OtherDigest(String),
    /// It is good, and says something else than "this may run".
    #[error("signed as `{0}`, which is no approval")]
    OtherMeaning(String),
    /// It has a form that is not read.
    #[error("not readable: {0}")]
    Malformed(String),
}

/// The trusted keys that signed `digest` with this evidence; at least one.
pub(super) fn signers(
    evidence: &Evidence,
    digest: &Digest,
    keys: &[PublicKey],
) -> Result<Vec<KeyId>, Refusal> {
    match evidence {
        Evidence::SimpleSigning { payload, signature } => simple_signing(payload, signature, digest, keys),
        Evidence::Bundle(bundle) => dsse_bundle(bundle, digest, keys),
    }
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// containers/image, `docs/containers-signature.5.md`; cosign, `specs/SIGNATURE_SPEC.md`. `identity` is where the image
/// was when it was signed: it is not judged, since a mirror has another name. `optional` is free.
fn simple_signing(
    payload: &[u8],
    signature: &[u8],
    digest: &Digest,
    keys: &[PublicKey],
) -> Result<Vec<KeyId>, Refusal> {
    bounded("payload", payload, PAYLOAD_BYTES_MAX)?;
    let signers = matching(keys, |key| key.verifies_simple_signing(payload, signature))?;
    let Payload { critical } = json("payload", payload)?;
    if critical.kind != SIMPLE_SIGNING_TYPE {
        return Err(Refusal::OtherMeaning(shortened(&critical.kind)));
    }
    if critical.image.digest != digest.to_string() {
        return Err(Refusal::OtherDigest(shortened(&critical.image.digest)));
    }
    Ok(signers)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    dsse_envelope: Option<Envelope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: std::collections::BTreeMap<String, String>,
}

/// sigstore protobuf-specs `sigstore_bundle.proto` ("the DSSE envelope MUST contain exactly one signature"), DSSE
/// `protocol.md`, in-toto `statement.md`. The bundle's `hint` proves nothing and is not looked at.
fn dsse_bundle(bundle: &[u8], digest: &Digest, keys: &[PublicKey]) -> Result<Vec<KeyId>, Refusal> {
    bounded("bundle", bundle, BUNDLE_BYTES_MAX)?;
    let bundle: Bundle = json("bundle", bundle)?;
    if bundle.media_type != BUNDLE_MEDIA_TYPE && bundle.media_type != BUNDLE_MEDIA_TYPE_OLD {
        return Err(Refusal::Malformed(format!("bundle of type `{}`", shortened(&bundle.media_type))));
    }
    let envelope =
        bundle.dsse_envelope.ok_or_else(|| Refusal::Malformed("bundle without an envelope".into()))?;
    if envelope.payload_type != IN_TOTO_MEDIA_TYPE {
        return Err(Refusal::OtherMeaning(shortened(&envelope.payload_type)));
    }
    let [signature] = envelope.signatures.as_slice() else {
        return Err(Refusal::Malformed(format!(
            "envelope with {} signatures, expected one",
            envelope.signatures.len()
        )));
    };
    let payload = from_base64("payload", &envelope.payload)?;
    let signature = from_base64("signature", &signature.sig)?;
    let signed = pre_authentication_encoding(&payload);
    let signers = matching(keys, |key| key.verifies_bundle(&signed, &signature))?;
    check_statement(&json("statement", &payload)?, digest)?;
    Ok(signers)
}

fn check_statement(statement: &Statement, digest: &Digest) -> Result<(), Refusal> {
    if !matches!(
        statement.kind.as_str(),
        "https://in-toto.io/Statement/v1" | "https://in-toto.io/Statement/v0.1"
    ) {
        return Err(Refusal::OtherMeaning(shortened(&statement.kind)));
    }
    if statement.predicate_type != SIGN_PREDICATE {
        return Err(Refusal::OtherMeaning(shortened(&statement.predicate_type)));
    }
    let hex = digest.hex();
    if statement.subject.iter().any(|subject| subject.digest.get("sha256") == Some(&hex)) {
        return Ok(());
    }
    let named: Vec<String> = statement
        .subject
        .iter()
        .take(3)
        .filter_map(|subject| Some(format!("sha256:{}", shortened(subject.digest.get("sha256")?))))
        .collect();
    Err(Refusal::OtherDigest(named.join(", ")))
}

/// What a DSSE signature covers (DSSE `protocol.md`, "PAE").
pub fn pre_authentication_encoding(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {IN_TOTO_MEDIA_TYPE} {} ", IN_TOTO_MEDIA_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

fn matching(keys: &[PublicKey], good: impl Fn(&PublicKey) -> bool) -> Result<Vec<KeyId>, Refusal> {
    let signers: Vec<KeyId> = keys.iter().filter(|key| good(key)).map(PublicKey::id).collect();
    if signers.is_empty() { Err(Refusal::UntrustedKey) } else { Ok(signers) }
}

fn bounded(what: &str, bytes: &[u8], max: u64) -> Result<(), Refusal> {
    if bytes.len() as u64 > max {
        return Err(Refusal::Malformed(format!("{what} of {} bytes, at most {max} are read", bytes.len())));
    }
    Ok(())
}

fn json<'de, T: Deserialize<'de>>(what: &str, bytes: &'de [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|err| Refusal::Malformed(format!("{what}: {err}")))
}

fn from_base64(what: &str, text: &str) -> Result<Vec<u8>, Refusal> {
    STANDARD.decode(text).map_err(|err| Refusal::Malformed(format!("{what}: {err}")))
}

/// Text from outside, made fit for a message.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}
