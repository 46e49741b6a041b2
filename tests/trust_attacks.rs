//! Signatures by real signers in a real registry: the good ones are accepted, each kind of bad one is refused for its own
//! reason.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::{Path, PathBuf};

use switchback::digest::Digest;
use switchback::image::config::Kind;
use switchback::publish::sign::{Form, KeyKind, SigningKey, sign, write_key_pair};
use switchback::registry::http::HttpRegistry;
use switchback::registry::{Descriptor, MANIFEST_BYTES_MAX, Registry as _, RegistryError, evidence};
use switchback::trust::policy::{above_floor, admit};
use switchback::trust::{Evidence, Policy, PublicKey, TrustError, Verified, verify};
use switchback_tests::lab::registry::Registry;
use switchback_tests::signers::{Cosign, Key, Signers, SmallRelease, push_small_release, repository};

const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
const P384: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
const P521: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"];
const ED25519: &[&str] = &["-algorithm", "ED25519"];
const RSA: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];

/// A registry, the signers, and a folder for both.
struct Yard {
    folder: tempfile::TempDir,
    registry: Registry,
    signers: Signers,
}

impl Yard {
    fn open() -> Yard {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start(&folder.path().join("registry")).unwrap();
        let signers = Signers::new(folder.path()).unwrap();
        Yard { folder, registry, signers }
    }

    async fn release(&self, name: &str) -> (HttpRegistry, SmallRelease, String) {
        let at = repository(&self.registry, name).unwrap();
        let release = push_small_release(&at, "demo", "1.0").await.unwrap();
        let image = format!("{}/{name}@{}", self.registry.host(), release.digest);
        (at, release, image)
    }

    /// Where the registry keeps the bytes of a digest.
    fn stored(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let blobs = self.folder.path().join("registry/blobs/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(&hex).join("data")
    }
}

async fn verified(
    at: &HttpRegistry,
    digest: &Digest,
    keys: &[&Key],
    threshold: usize,
) -> Result<Verified<Digest>, TrustError> {
    let keys = keys.iter().map(|key| key.read().unwrap()).collect();
    let found = evidence::collect(at, digest).await.unwrap();
    verify(&Policy::new(keys, threshold).unwrap(), digest, &found)
}

#[tokio::test]
async fn each_signer_and_key_that_cosign_has_is_accepted() {
    let yard = Yard::open();
    for (name, algorithm) in
        [("p256", P256), ("p384", P384), ("p521", P521), ("ed25519", ED25519), ("rsa", RSA)]
    {
        let key = yard.signers.imported(name, algorithm).unwrap();
        for cosign in [Cosign::Two, Cosign::Three] {
            let (at, release, image) =
                yard.release(&format!("{name}-{}", format!("{cosign:?}").to_lowercase())).await;
            yard.signers.sign(cosign, &key, &image).unwrap();
            let found = evidence::collect(&at, &release.digest).await.unwrap();
            match (cosign, found.as_slice()) {
                (Cosign::Two, [Evidence::SimpleSigning { .. }]) | (Cosign::Three, [Evidence::Bundle(_)]) => {}
                other => panic!("{name}: {other:?}"),
            }
            let signed = verified(&at, &release.digest, &[&key], 1).await;
            assert_eq!(*signed.unwrap_or_else(|err| panic!("{name} {cosign:?}: {err}")), release.digest);
        }
    }
}

#[tokio::test]
async fn a_key_that_cosign_made_is_accepted_from_signature_to_config() {
    let yard = Yard::open();
    let key = yard.signers.p256("made").unwrap();
    for (cosign, name) in [(Cosign::Two, "two"), (Cosign::Three, "three")] {
        let (at, release, image) = yard.release(name).await;
        yard.signers.sign(cosign, &key, &image).unwrap();
        let signed = verified(&at, &release.digest, &[&key], 1).await.unwrap();
        let bytes = at.manifest(&release.digest, MANIFEST_BYTES_MAX).await.unwrap();
        let manifest = signed.open_manifest(&bytes).unwrap();
        let bytes = at.blob(&manifest.config, 1 << 20).await.unwrap();
        let config = manifest.open_config(&bytes).unwrap();
        assert_eq!((*config).clone(), release.config);
        admit(&config, Kind::Os, Some("demo"), &["board-a".into()]).unwrap();
        above_floor(&config, 3).unwrap();
    }
}

#[tokio::test]
async fn a_payload_that_is_a_referrer_is_found_too() {
    let yard = Yard::open();
    let key = yard.signers.p256("referrer").unwrap();
    let (at, release, image) = yard.release("referrer").await;
    yard.signers.sign_as_referrer(&key, &image).unwrap();
    let found = evidence::collect(&at, &release.digest).await.unwrap();
    assert!(matches!(found.as_slice(), [Evidence::SimpleSigning { .. }]), "{found:?}");
    verified(&at, &release.digest, &[&key], 1).await.unwrap();
}

#[tokio::test]
async fn what_switchback_signs_is_accepted_by_cosign() {
    let yard = Yard::open();
    for kind in [KeyKind::P256, KeyKind::Ed25519] {
        let (private, public) = write_key_pair(kind, &yard.folder.path().join(format!("{kind:?}"))).unwrap();
        let key = SigningKey::from_pem(&std::fs::read(private).unwrap()).unwrap();
        for (form, cosign) in [(Form::SimpleSigning, Cosign::Two), (Form::Bundle, Cosign::Three)] {
            let name = format!("{kind:?}-{cosign:?}").to_lowercase();
            let (at, release, image) = yard.release(&name).await;
            sign(&at, &release.digest, &key, form).await.unwrap();
            let said = yard.signers.verify(cosign, &public, &image);
            said.unwrap_or_else(|err| panic!("{name}: {err:?}"));
            let found = evidence::collect(&at, &release.digest).await.unwrap();
            let policy = Policy::new(vec![key.public_key().unwrap()], 1).unwrap();
            verify(&policy, &release.digest, &found).unwrap();
        }
    }
}

#[tokio::test]
async fn signatures_of_both_forms_and_many_signers_live_together() {
    let yard = Yard::open();
    let (at, release, image) = yard.release("many").await;
    let (first, second) = (yard.signers.p256("first").unwrap(), yard.signers.p256("second").unwrap());
    let ours = SigningKey::generate(KeyKind::P256).unwrap();
    yard.signers.sign(Cosign::Two, &first, &image).unwrap();
    sign(&at, &release.digest, &ours, Form::SimpleSigning).await.unwrap();
    yard.signers.sign(Cosign::Two, &second, &image).unwrap();
    yard.signers.sign(Cosign::Three, &first, &image).unwrap();
    sign(&at, &release.digest, &ours, Form::Bundle).await.unwrap();
    yard.signers.sign(Cosign::Three, &second, &image).unwrap();
    let found = evidence::collect(&at, &release.digest).await.unwrap();
    assert_eq!(found.len(), 6, "three signers in two forms");
    let keys = vec![first.read().unwrap(), second.read().unwrap(), ours.public_key().unwrap()];
    verify(&Policy::new(keys, 3).unwrap(), &release.digest, &found).unwrap();
    for cosign in [Cosign::Two, Cosign::Three] {
        yard.signers.verify(cosign, &second.public, &image).unwrap();
    }
}

#[tokio::test]
async fn a_signature_that_does_not_approve_this_digest_is_refused() {
    let yard = Yard::open();
    let (trusted, other) = (yard.signers.p256("trusted").unwrap(), yard.signers.p256("other").unwrap());
    let second = yard.signers.p256("second").unwrap();
    let trusted_ones: &[&Key] = &[&trusted];

    let (at, release, _) = yard.release("unsigned").await;
    let error = verified(&at, &release.digest, trusted_ones, 1).await.unwrap_err();
    assert!(matches!(error, TrustError::NoSignature { .. }), "{error}");

    for (cosign, name) in [(Cosign::Two, "two"), (Cosign::Three, "three")] {
        let (at, release, image) = yard.release(&format!("wrong-key-{name}")).await;
        yard.signers.sign(cosign, &other, &image).unwrap();
        let error = verified(&at, &release.digest, trusted_ones, 1).await.unwrap_err().to_string();
        assert!(error.contains("1 signature(s) found"), "{error}");
        assert!(error.contains("not by a trusted key"), "{error}");
        assert!(error.contains(&trusted.read().unwrap().id().to_string()), "{error}");

        let (at, release, image) = yard.release(&format!("parts-{name}")).await;
        yard.signers.attest_parts(cosign, &trusted, &image).unwrap();
        let error = verified(&at, &release.digest, trusted_ones, 1).await.unwrap_err().to_string();
        // cosign 2 leaves attestations where no signature is looked for.
        let expected = if cosign == Cosign::Two { "no signature found" } else { "which is no approval" };
        assert!(error.contains(expected), "{error}");

        let (at, release, image) = yard.release(&format!("twice-{name}")).await;
        yard.signers.sign(cosign, &trusted, &image).unwrap();
        yard.signers.sign(cosign, &trusted, &image).unwrap();
        assert!(verified(&at, &release.digest, &[&trusted, &second], 1).await.is_ok());
        let error = verified(&at, &release.digest, &[&trusted, &second], 2).await.unwrap_err();
        assert!(matches!(error, TrustError::BelowThreshold { threshold: 2, .. }), "{error}");
        let id = trusted.read().unwrap().id().to_string();
        assert_eq!(error.to_string().matches(&id).count(), 1, "one key, however often it signed: {error}");
    }
}

#[tokio::test]
async fn a_true_signature_of_another_digest_is_refused() {
    let yard = Yard::open();
    let key = yard.signers.p256("trusted").unwrap();
    let policy = Policy::new(vec![key.read().unwrap()], 1).unwrap();
    for (cosign, name) in [(Cosign::Two, "two"), (Cosign::Three, "three")] {
        let (at, old, image) = yard.release(name).await;
        yard.signers.sign(cosign, &key, &image).unwrap();
        let new = push_small_release(&at, "demo", "2.0").await.unwrap();
        let moved = evidence::collect(&at, &old.digest).await.unwrap();
        let error = verify(&policy, &new.digest, &moved).unwrap_err().to_string();
        assert!(error.contains(&format!("signed for {}", old.digest)), "{error}");
    }
}

#[tokio::test]
async fn one_flipped_byte_anywhere_is_refused() {
    let yard = Yard::open();
    let key = yard.signers.p256("trusted").unwrap();
    let (at, release, image) = yard.release("flipped").await;
    yard.signers.sign(Cosign::Three, &key, &image).unwrap();
    let signed = verified(&at, &release.digest, &[&key], 1).await.unwrap();
    let good = at.manifest(&release.digest, MANIFEST_BYTES_MAX).await.unwrap();
    let manifest = signed.open_manifest(&good).unwrap();

    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let error = signed.open_manifest(&flipped).unwrap_err();
    assert!(matches!(error, TrustError::OtherBytes { what: "manifest", .. }), "{error}");
    let mut config = at.blob(&manifest.config, 1 << 20).await.unwrap();
    config[10] ^= 1;
    let error = manifest.open_config(&config).unwrap_err();
    assert!(matches!(error, TrustError::OtherBytes { what: "config", .. }), "{error}");

    // The same in the registry's own storage: nothing that is fetched whole comes out with other bytes.
    let index: Descriptor = release.manifest.slots[0].index.clone();
    for descriptor in [&index, &release.manifest.config] {
        flip(&yard.stored(&descriptor.digest));
        let error = at.blob(descriptor, 1 << 20).await.unwrap_err();
        assert!(matches!(error, RegistryError::Mismatch { .. }), "{error}");
    }
    flip(&yard.stored(&release.digest));
    // One that has read it already remembers the right bytes.
    let at = repository(&yard.registry, "flipped").unwrap();
    let error = at.manifest(&release.digest, MANIFEST_BYTES_MAX).await.unwrap_err();
    assert!(matches!(error, RegistryError::Mismatch { .. }), "{error}");
}

fn flip(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_flipped_byte_in_any_place_of_a_signature_is_refused() {
    let yard = Yard::open();
    let key = yard.signers.p256("trusted").unwrap();
    let policy = Policy::new(vec![key.read().unwrap()], 1).unwrap();
    let (at, release, image) = yard.release("evidence").await;
    yard.signers.sign(Cosign::Two, &key, &image).unwrap();
    yard.signers.sign(Cosign::Three, &key, &image).unwrap();
    let found = evidence::collect(&at, &release.digest).await.unwrap();
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for good in &found {
        assert!(verify(&policy, &release.digest, std::slice::from_ref(good)).is_ok());
        let bytes = match good {
            Evidence::SimpleSigning { payload, .. } => payload,
            Evidence::Bundle(bundle) => bundle,
        };
        for place in 0..bytes.len() {
            let mut bad = good.clone();
            match &mut bad {
                Evidence::SimpleSigning { payload, .. } => payload[place] ^= 1,
                Evidence::Bundle(bundle) => bundle[place] ^= 1,
            }
            match verify(&policy, &release.digest, &[bad]) {
                Ok(_) => accepted.push(place),
                Err(_) => refused += 1,
            }
        }
    }
    // What may change in a bundle is what no decision rests on: names of fields that are not read, and the hint.
    let bundle =
        found.iter().find_map(|it| if let Evidence::Bundle(bytes) = it { Some(bytes) } else { None });
    let material = String::from_utf8_lossy(bundle.unwrap()).into_owned();
    let (start, end) =
        (material.find("verificationMaterial").unwrap(), material.find("dsseEnvelope").unwrap());
    assert!(accepted.iter().all(|place| (start..end).contains(place)), "{accepted:?} in {material}");
    assert!(refused > 600, "{refused}");
}

#[tokio::test]
async fn the_key_decides_the_algorithm_not_the_artefact() {
    let yard = Yard::open();
    let ed25519 = yard.signers.imported("ed", ED25519).unwrap();
    let p384 = yard.signers.imported("p384", P384).unwrap();
    let (at, release, image) = yard.release("confusion").await;
    yard.signers.sign(Cosign::Two, &p384, &image).unwrap();
    let found = evidence::collect(&at, &release.digest).await.unwrap();
    let [Evidence::SimpleSigning { payload, signature }] = found.as_slice() else { panic!("{found:?}") };

    // The same maths on the same curve, with the hash of the other form: a good SHA-256 signature is none as a bundle.
    let bundle = serde_json::json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": "ecdsa-sha2-256"}},
        "dsseEnvelope": {
            "payload": base64(payload),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": base64(signature), "keyid": "", "alg": "none"}],
        },
    });
    let policy = Policy::new(vec![p384.read().unwrap(), ed25519.read().unwrap()], 1).unwrap();
    let evidence = [Evidence::Bundle(bundle.to_string().into_bytes())];
    let error = verify(&policy, &release.digest, &evidence).unwrap_err().to_string();
    assert!(error.contains("not by a trusted key"), "{error}");

    // The public key's own bytes as a shared secret, an empty signature, and zeros prove nothing.
    for forged in [
        Vec::new(),
        vec![0; 64],
        vec![0x30, 0x06, 0x02, 0x01, 0x00, 0x02, 0x01, 0x00],
        p384.read().unwrap().der().to_vec(),
    ] {
        let evidence = [Evidence::SimpleSigning { payload: payload.clone(), signature: forged }];
        assert!(verify(&policy, &release.digest, &evidence).is_err());
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test]
async fn a_signed_release_for_something_else_is_refused() {
    let yard = Yard::open();
    let key = yard.signers.p256("trusted").unwrap();
    let (at, release, image) = yard.release("elsewhere").await;
    yard.signers.sign(Cosign::Two, &key, &image).unwrap();
    let signed = verified(&at, &release.digest, &[&key], 1).await.unwrap();
    let manifest = signed.open_manifest(&release.manifest.to_json()).unwrap();
    let config = manifest.open_config(&release.config.to_json()).unwrap();
    let board = |name: &str| [name.to_owned()];
    for (kind, product, machine, field) in [
        (Kind::Service, Some("demo"), "board-a", "kind"),
        (Kind::Os, Some("another"), "board-a", "product"),
        (Kind::Os, Some("demo"), "board-b", "compatible"),
    ] {
        let error = admit(&config, kind, product, &board(machine)).unwrap_err();
        assert!(matches!(error, TrustError::NotForThis { field: found, .. } if found == field), "{error}");
    }
    assert!(admit(&config, Kind::Os, None, &board("board-a")).is_ok());
    let error = above_floor(&config, 4).unwrap_err();
    assert!(matches!(error, TrustError::BelowFloor { found: 3, floor: 4 }), "{error}");
}

#[test]
fn a_policy_that_lets_all_or_nothing_pass_cannot_be_made() {
    let key = || SigningKey::generate(KeyKind::P256).unwrap().public_key().unwrap();
    let one = key();
    for (keys, threshold, why) in [
        (vec![], 1, "no key"),
        (vec![key()], 0, "threshold is 0"),
        (vec![key()], 2, "1 different"),
        (vec![one.clone(), one.clone()], 2, "1 different"),
        (std::iter::repeat_with(key).take(65).collect(), 1, "65 keys"),
    ] {
        let error = Policy::new(keys, threshold).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(Policy::new(vec![one, key()], 2).is_ok());
}

#[test]
fn the_same_key_in_another_spelling_is_no_second_key() {
    let folder = tempfile::tempdir().unwrap();
    let (private, compressed) = (folder.path().join("key.pem"), folder.path().join("compressed.pem"));
    let openssl = switchback_tests::lab::tools::program("openssl", "openssl").unwrap();
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(&openssl);
        switchback_tests::lab::tools::run(command.args(args)).unwrap()
    };
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    run(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &text(&private)]);
    let plain = run(&["ec", "-in", &text(&private), "-pubout"]);
    run(&["ec", "-in", &text(&private), "-pubout", "-conv_form", "compressed", "-out", &text(&compressed)]);
    assert!(PublicKey::from_pem(plain.as_bytes()).is_ok());
    let error = PublicKey::from_pem(&std::fs::read(compressed).unwrap()).unwrap_err();
    assert!(error.to_string().contains("no valid key"), "{error}");
    for weak in [
        &["genpkey", "-algorithm", "X25519"][..],
        &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"],
    ] {
        let other = folder.path().join("other.pem");
        run(&[weak, &["-out", &text(&other)]].concat());
        let error =
            PublicKey::from_pem(run(&["pkey", "-in", &text(&other), "-pubout"]).as_bytes()).unwrap_err();
        assert!(error.to_string().contains("is not accepted"), "{error}");
    }
}
