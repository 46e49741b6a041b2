//! Tests of `image::manifest`: what is accepted, and each way of being refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::image::config::tests_support::example;
use crate::image::release::ReleaseIndex;

fn honest() -> OsManifest {
    let digest = |text: &str| Digest::of(text.as_bytes());
    OsManifest {
        config: config_descriptor(digest("config"), 700),
        slots: vec![SlotLayer {
            name: "root".into(),
            blob: slot_descriptor("root", digest("blob"), 5 << 30),
            index: index_descriptor(
                "root",
                digest("index"),
                9000,
                IndexRoot { digest: digest("index root"), size: 500 },
            ),
            index_root: IndexRoot { digest: digest("index root"), size: 500 },
        }],
        boot: vec![
            BootLayer {
                kind: BootFileKind::Linux,
                blob: boot_descriptor(BootFileKind::Linux, digest("linux"), 8 << 20),
            },
            BootLayer {
                kind: BootFileKind::Initrd,
                blob: boot_descriptor(BootFileKind::Initrd, digest("initrd"), 9 << 20),
            },
        ],
        annotations: [(VERSION_ANNOTATION.to_string(), "1.1".to_string())].into(),
    }
}

fn wire() -> Value {
    serde_json::from_slice(&honest().to_json()).unwrap()
}

fn parse(value: &Value) -> Result<OsManifest, ManifestError> {
    OsManifest::parse(&serde_json::to_vec(value).unwrap())
}

#[test]
fn what_is_written_is_read_back_and_has_the_documented_bytes() {
    let bytes = honest().to_json();
    assert_eq!(OsManifest::parse(&bytes).unwrap(), honest());
    assert_eq!(OsManifest::parse(&bytes).unwrap().to_json(), bytes);
    let text = String::from_utf8(bytes).unwrap();
    let begin = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.switchback.os.v1","config":{"mediaType":"application/vnd.switchback.os.config.v1+json","digest":"sha256:"#;
    assert!(text.starts_with(begin), "{text}");
    assert!(text.contains(r#""org.opencontainers.image.title":"root.img.zst""#), "{text}");
}

#[test]
fn the_examples_in_the_book_are_a_manifest_its_config_and_a_release_index() {
    let page = include_str!("../../../docs/src/registry-format.md");
    let mut examples = page.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let manifest = OsManifest::parse(examples.next().unwrap().as_bytes()).unwrap();
    let config = OsConfig::parse(examples.next().unwrap().as_bytes()).unwrap();
    manifest.check_config(&config).unwrap();
    assert_eq!((config.version.as_str(), manifest.annotations[VERSION_ANNOTATION].as_str()), ("1.1", "1.1"));
    let release = ReleaseIndex::parse(examples.next().unwrap().as_bytes()).unwrap();
    assert_eq!(release.services.keys().collect::<Vec<_>>(), ["dns"]);
    assert!(config.slots[0].verity.is_some() && examples.next().is_none());
}

#[test]
fn slot_and_index_layers_are_paired_by_name_in_any_order() {
    let mut value = wire();
    value["layers"].as_array_mut().unwrap().reverse();
    let manifest = parse(&value).unwrap();
    assert_eq!(manifest.slots, honest().slots);
    assert_eq!(manifest.boot.len(), 2);
}

/// What is wrong, how, and a piece of the refusal.
type Case = (&'static str, fn(&mut Value), &'static str);

const REFUSED: &[Case] = &[
    ("another schema version", |m| m["schemaVersion"] = json!(1), "schemaVersion is `1`"),
    (
        "an image index",
        |m| m["mediaType"] = json!("application/vnd.oci.image.index.v1+json"),
        "mediaType is `application/vnd.oci.image.index",
    ),
    (
        "no media type: two readers could take it for two things",
        |m| drop_key(m, "mediaType"),
        "no OCI image manifest",
    ),
    ("an ordinary container image", |m| drop_key(m, "artifactType"), "no OCI image manifest"),
    ("another artifact", |m| m["artifactType"] = json!("application/vnd.example"), "artifactType is"),
    ("a field of a later specification", |m| m["manifests"] = json!([]), "no OCI image manifest"),
    ("a subject", |m| m["subject"] = json!({}), "no OCI image manifest"),
    (
        "an OCI config",
        |m| m["config"]["mediaType"] = json!("application/vnd.oci.image.config.v1+json"),
        "config.mediaType",
    ),
    ("a config of no bytes", |m| m["config"]["size"] = json!(0), "the config of 0 bytes"),
    ("a huge config", |m| m["config"]["size"] = json!(1u64 << 40), "the config of 1099511627776 bytes"),
    ("a negative size", |m| m["layers"][0]["size"] = json!(-1), "no OCI image manifest"),
    ("a size with a fraction", |m| m["layers"][0]["size"] = json!(1.5), "no OCI image manifest"),
    (
        "a digest with a path",
        |m| m["layers"][0]["digest"] = json!("sha256:../../etc/passwd"),
        "no OCI image manifest",
    ),
    (
        "a weak digest",
        |m| m["layers"][0]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e"),
        "no OCI image manifest",
    ),
    (
        "content from elsewhere",
        |m| m["layers"][0]["urls"] = json!(["https://example.com"]),
        "no OCI image manifest",
    ),
    ("no layers", |m| m["layers"] = json!([]), "no slot layer"),
    (
        "an unknown layer",
        |m| m["layers"][0]["mediaType"] = json!("text/plain"),
        "unknown media type `text/plain`",
    ),
    (
        "a later version of a layer",
        |m| m["layers"][0]["mediaType"] = json!("application/vnd.switchback.slot.v2+zstd"),
        "slot.v2+zstd",
    ),
    ("more layers than anybody needs", |m| repeat_layer(m, 3, 70), "74 layers are more"),
    ("a slot without index", |m| drop_layer(m, 1), "the slot layer `root` has no index"),
    ("an index without slot", |m| drop_layer(m, 0), "the index `root` has no slot layer"),
    ("a slot twice", |m| repeat_layer(m, 0, 1), "two of the slot layer `root`"),
    ("an index twice", |m| repeat_layer(m, 1, 1), "two of the index layer `root`"),
    (
        "a slot without name",
        |m| drop_key(&mut m["layers"][0], "annotations"),
        "layer 0 has no annotation `io.switchback.slot`",
    ),
    (
        "a slot named as a path",
        |m| m["layers"][0]["annotations"][SLOT_ANNOTATION] = json!("../root"),
        "bad slot name",
    ),
    (
        "an index root of no digest",
        |m| m["layers"][1]["annotations"][INDEX_ROOT_ANNOTATION] = json!("sha256:0"),
        INDEX_ROOT_ANNOTATION,
    ),
    (
        "an index root longer than the index",
        |m| m["layers"][1]["annotations"][INDEX_ROOT_BYTES_ANNOTATION] = json!("9001"),
        INDEX_ROOT_BYTES_ANNOTATION,
    ),
    (
        "an index root without length",
        |m| drop_key(&mut m["layers"][1]["annotations"], INDEX_ROOT_BYTES_ANNOTATION),
        INDEX_ROOT_BYTES_ANNOTATION,
    ),
    (
        "a boot file without kind",
        |m| drop_key(&mut m["layers"][2], "annotations"),
        "layer 2 has no annotation `io.switchback.boot`",
    ),
    (
        "a boot file of unknown kind",
        |m| m["layers"][2]["annotations"][BOOT_ANNOTATION] = json!("bios"),
        "unknown boot file `bios`",
    ),
    ("a boot file twice", |m| repeat_layer(m, 3, 1), "two boot files `initrd`"),
    (
        "a UKI beside a kernel",
        |m| m["layers"][3]["annotations"][BOOT_ANNOTATION] = json!("uki"),
        "a UKI beside other boot files",
    ),
    ("an initrd without kernel", |m| drop_layer(m, 2), "without a kernel"),
];

fn drop_key(value: &mut Value, key: &str) {
    value.as_object_mut().unwrap().remove(key).unwrap();
}

fn drop_layer(manifest: &mut Value, number: usize) {
    manifest["layers"].as_array_mut().unwrap().remove(number);
}

fn repeat_layer(manifest: &mut Value, number: usize, times: usize) {
    let layers = manifest["layers"].as_array_mut().unwrap();
    (0..times).for_each(|_| layers.push(layers[number].clone()));
}

#[test]
fn every_other_manifest_is_refused_with_what_is_wrong() {
    for (what, change, piece) in REFUSED {
        let mut value = wire();
        change(&mut value);
        let error = parse(&value).expect_err(what).to_string();
        assert!(error.contains(piece), "{what}: {error}");
    }
}

#[test]
fn a_key_that_comes_twice_is_refused_as_two_readers_could_disagree() {
    let text = String::from_utf8(honest().to_json()).unwrap();
    for (once, twice) in [
        (r#""io.switchback.boot":"linux""#, r#""io.switchback.boot":"linux","io.switchback.boot":"uki""#),
        (r#""schemaVersion":2"#, r#""schemaVersion":2,"schemaVersion":2"#),
    ] {
        assert!(text.contains(once));
        let doubled = text.replacen(once, twice, 1);
        assert!(matches!(OsManifest::parse(doubled.as_bytes()), Err(ManifestError::Json { .. })), "{twice}");
    }
}

#[test]
fn a_manifest_over_its_bound_is_not_even_parsed() {
    let mut bytes = honest().to_json();
    bytes.resize(MANIFEST_BYTES_MAX as usize, b' ');
    assert!(OsManifest::parse(&bytes).is_ok());
    bytes.push(b' ');
    assert!(matches!(OsManifest::parse(&bytes), Err(ManifestError::TooLong { bytes: 262_145 })));
}

#[test]
fn manifest_and_config_must_describe_the_same_image() {
    let honest_config = example();
    honest().check_config(&honest_config).unwrap();
    let without = |kinds: &[BootFileKind]| {
        let mut manifest = honest();
        manifest.boot.retain(|file| kinds.contains(&file.kind));
        manifest
    };
    let kernel = [BootFileKind::Linux, BootFileKind::Initrd];
    let config = |change: fn(&mut OsConfig)| {
        let mut config = example();
        change(&mut config);
        config
    };
    for (manifest, config, piece) in [
        (without(&kernel), config(|c| c.slots[0].name = "usr".into()), "the config [\"usr\"]"),
        (without(&[]), config(|c| c.cmdline = None), "an OS image without boot files"),
        (without(&kernel), config(|c| c.kind = Kind::Service), "a service image with boot files"),
        (without(&kernel), config(|c| c.cmdline = None), "a kernel without a command line"),
        (without(&[]), config(|c| c.kind = Kind::Service), "no kernel that takes it"),
    ] {
        let error = manifest.check_config(&config).expect_err(piece).to_string();
        assert!(error.contains(piece), "{error}");
    }
    let service = config(|c| {
        c.kind = Kind::Service;
        c.cmdline = None;
    });
    without(&[]).check_config(&service).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn arbitrary_and_mutated_bytes_never_panic(
        noise in prop::collection::vec(any::<u8>(), 0..300),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        prop_assert!(OsManifest::parse(&noise).is_err());
        let mut bytes = honest().to_json();
        for (place, value) in edits {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Ok(manifest) = OsManifest::parse(&bytes) {
            prop_assert_eq!(OsManifest::parse(&manifest.to_json()).unwrap(), manifest);
        }
    }
}
