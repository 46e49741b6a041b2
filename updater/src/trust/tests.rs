//! Signatures made here, bent one way at a time: which of them count, and what the refusal says.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    KeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer;
use serde_json::{Value, json};
use sha2::Digest as _;

use super::cosign::pre_authentication_encoding;
use super::*;

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

fn image() -> Digest {
    Digest::of(b"the manifest")
}

fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm) -> (PublicKey, Sign) {
    let pair = EcdsaKeyPair::generate(algorithm).unwrap();
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    let key = PublicKey::from_der(der.as_ref()).unwrap();
    (key, Box::new(move |message| pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()))
}

fn p256() -> (PublicKey, Sign) {
    ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING)
}

fn ed25519(prehashed: bool) -> (PublicKey, Sign) {
    let pair = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    // RFC 8410, section 4: this head, then the key.
    let head = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let key = PublicKey::from_der(&[&head[..], pair.verifying_key().as_bytes()].concat()).unwrap();
    let sign = move |message: &[u8]| match prehashed {
        true => pair.sign_prehashed(sha2::Sha512::new_with_prefix(message), None).unwrap().to_vec(),
        false => pair.sign(message).to_vec(),
    };
    (key, Box::new(sign))
}

fn payload(digest: &Digest) -> Value {
    json!({
        "critical": {
            "identity": {"docker-reference": "r.example/os"},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": {"creator": "skopeo", "timestamp": 1795372696},
    })
}

fn simple_signing(payload: &Value, sign: &Sign) -> Evidence {
    let payload = payload.to_string().into_bytes();
    Evidence::SimpleSigning { signature: sign(&payload), payload }
}

fn statement(digest: &Digest) -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.hex()}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    })
}

fn bundle(statement: &Value, sign: &Sign) -> Value {
    let payload = statement.to_string();
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": ""}},
        "dsseEnvelope": {
            "payload": STANDARD.encode(&payload),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": STANDARD.encode(sign(&pre_authentication_encoding(payload.as_bytes())))}],
        },
    })
}

fn evidence(bundle: &Value) -> Evidence {
    Evidence::Bundle(bundle.to_string().into_bytes())
}

/// Sets one field, by its JSON pointer.
fn with(mut value: Value, pointer: &str, new: Value) -> Value {
    *value.pointer_mut(pointer).unwrap() = new;
    value
}

fn judge(key: &PublicKey, evidence: Evidence) -> Result<(), String> {
    let policy = Policy::new(vec![key.clone()], 1).unwrap();
    verify(&policy, &image(), &[evidence]).map(drop).map_err(|error| error.to_string())
}

#[test]
fn an_approval_of_this_digest_counts_in_either_form() {
    for (key, sign) in [p256(), ed25519(false)] {
        judge(&key, simple_signing(&payload(&image()), &sign)).unwrap();
        judge(&key, evidence(&bundle(&statement(&image()), &sign))).unwrap();
    }
    let (key, sign) = ed25519(true);
    judge(&key, evidence(&bundle(&statement(&image()), &sign))).unwrap();
    let (key, sign) = p256();
    let null = with(payload(&image()), "/optional", Value::Null);
    judge(&key, simple_signing(&null, &sign)).unwrap();
    let old = "application/vnd.dev.sigstore.bundle+json;version=0.3";
    judge(&key, evidence(&with(bundle(&statement(&image()), &sign), "/mediaType", old.into()))).unwrap();
}

#[test]
fn a_true_signature_with_another_meaning_is_refused() {
    let (key, sign) = p256();
    let other = Digest::of(b"another manifest");
    for (pointer, new, why) in [
        ("/critical/type", json!("atomic container signature"), "which is no approval"),
        ("/critical/image/docker-manifest-digest", json!(other), "signed for sha256:"),
        ("/critical/image/docker-manifest-digest", json!(image().hex()), "signed for"),
        ("/critical/image", json!({}), "not readable"),
    ] {
        let refused = judge(&key, simple_signing(&with(payload(&image()), pointer, new), &sign)).unwrap_err();
        assert!(refused.contains(why), "{pointer}: {refused}");
    }
    for (pointer, new, why) in [
        (
            "/predicateType",
            json!("https://spdx.dev/Document"),
            "`https://spdx.dev/Document`, which is no approval",
        ),
        ("/_type", json!("https://in-toto.io/Statement/v2"), "which is no approval"),
        ("/subject/0/digest/sha256", json!(other.hex()), "signed for sha256:"),
        ("/subject/0/digest", json!({"sha512": image().hex()}), "signed for"),
        ("/subject", json!([]), "signed for"),
    ] {
        let bent = bundle(&with(statement(&image()), pointer, new), &sign);
        let refused = judge(&key, evidence(&bent)).unwrap_err();
        assert!(refused.contains(why), "{pointer}: {refused}");
    }
}

#[test]
fn an_envelope_that_is_not_as_specified_is_refused() {
    let (key, sign) = p256();
    let good = bundle(&statement(&image()), &sign);
    let signature = good.pointer("/dsseEnvelope/signatures/0").unwrap().clone();
    for (pointer, new, why) in [
        ("/mediaType", json!("application/vnd.dev.sigstore.bundle.v9+json"), "bundle of type"),
        ("/dsseEnvelope", Value::Null, "without an envelope"),
        ("/dsseEnvelope/payloadType", json!("text/plain"), "which is no approval"),
        ("/dsseEnvelope/signatures", json!([]), "0 signatures"),
        ("/dsseEnvelope/signatures", json!([signature, signature]), "2 signatures"),
        ("/dsseEnvelope/signatures/0/sig", json!("*"), "signature: "),
        ("/dsseEnvelope/signatures/0/sig", json!(""), "not by a trusted key"),
        ("/dsseEnvelope/payload", json!(STANDARD.encode("{}")), "not by a trusted key"),
    ] {
        let refused = judge(&key, evidence(&with(good.clone(), pointer, new))).unwrap_err();
        assert!(refused.contains(why), "{pointer}: {refused}");
    }
    let twice = good.to_string().replacen("{\"payload\":", "{\"payload\":\"\",\"payload\":", 1);
    assert!(judge(&key, Evidence::Bundle(twice.into_bytes())).is_err(), "a field that comes twice");
    let large = vec![b' '; BUNDLE_BYTES_MAX as usize + 1];
    assert!(judge(&key, Evidence::Bundle(large)).unwrap_err().contains("at most"));
}

#[test]
fn the_hash_follows_from_key_and_form() {
    let (key, sign) = ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING);
    judge(&key, evidence(&bundle(&statement(&image()), &sign))).unwrap();
    assert!(judge(&key, simple_signing(&payload(&image()), &sign)).is_err());
    let (key, sign) = ed25519(true);
    assert!(judge(&key, simple_signing(&payload(&image()), &sign)).is_err());
}

#[test]
fn a_threshold_counts_keys() {
    let ((first, sign_first), (second, sign_second)) = (p256(), p256());
    let policy = Policy::new(vec![first.clone(), second.clone()], 2).unwrap();
    let by = |sign: &Sign| simple_signing(&payload(&image()), sign);
    let again = evidence(&bundle(&statement(&image()), &sign_first));
    let error = verify(&policy, &image(), &[by(&sign_first), by(&sign_first), again.clone()]).unwrap_err();
    let expected = format!("3 signature(s) found, good ones by: {}", first.id());
    assert!(error.to_string().ends_with(&expected), "{error}");
    assert!(verify(&policy, &image(), &[again, by(&sign_second)]).is_ok());
    assert!(matches!(verify(&policy, &image(), &[]), Err(TrustError::NoSignature { .. })));
}

#[test]
fn stored_signatures_read_back_as_they_were() {
    let (_, sign) = p256();
    let found =
        vec![simple_signing(&payload(&image()), &sign), evidence(&bundle(&statement(&image()), &sign))];
    let text = serde_json::to_string(&found).unwrap();
    assert!(text.starts_with(r#"[{"simple-signing":{"payload":""#), "{text}");
    assert_eq!(serde_json::from_str::<Vec<Evidence>>(&text).unwrap(), found);
}
