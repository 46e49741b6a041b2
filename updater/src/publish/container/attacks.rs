//! Images that no honest tool makes.
//!
//! Not here: refusals of releases (`tests/trust_attacks.rs`). Rule: an attack is told by its own refusal, and by what lies
//! outside the working folder afterwards.

use serde_json::{Value, json};
use tar::EntryType;

use super::tests::*;
use super::*;
use crate::container::layer::{self, Budget, Contents};
use crate::container::tree::Tree;
use crate::file::tests::chain;
use crate::registry::RegistryError;

#[test]
fn no_entry_leads_out_of_the_image() {
    let stage = Stage::new();
    let outside = stage.dir.path().join("outside");
    let outside = outside.to_str().unwrap();
    let climbing = "../../../outside/file";
    let symlink = |path: &str, target: &str| link(EntryType::Symlink, path, target);
    let hard = |path: &str, target: &str| link(EntryType::Link, path, target);
    let table: Vec<(&str, Vec<Item>, &str)> = vec![
        ("a climbing file", vec![file("../outside/file", "evil")], "climbs by `..`"),
        ("climbing inside a name", vec![file("a/../../b", "evil")], "climbs by `..`"),
        ("an absolute file", vec![file(format!("{outside}/file"), "evil")], "path is absolute"),
        ("a climbing folder", vec![folder("../outside/new", 0o777)], "climbs by `..`"),
        ("a climbing whiteout", vec![file("../outside/.wh.file", "")], "climbs by `..`"),
        ("a whiteout of the parent", vec![file("a/.wh...", "")], "climbs by `..`"),
        ("a hard link to outside", vec![hard("x", climbing)], "climbs by `..`"),
        ("an absolute hard link", vec![hard("x", &format!("{outside}/file"))], "path is absolute"),
        (
            "a hard link through a symbolic one",
            vec![symlink("l", outside), hard("x", "l/file")],
            "not in the image",
        ),
        ("a hard link to a folder", vec![folder("d", 0o755), hard("x", "d")], "which is a folder"),
        ("a hard link to itself", vec![hard("x", "x")], "not in the image"),
        ("a loop of links", vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "")], "40 symbolic links"),
        ("a file as a folder", vec![file("f", ""), file("f/x", "")], "f on its way is no folder"),
        ("a symbolic link to nowhere", vec![symlink("l", "")], "names nothing"),
        ("a sparse file", vec![item(EntryType::GNUSparse, "s")], "sparse"),
        ("an unknown type", vec![item(EntryType::new(b'Z'), "z")], "type 'Z'"),
        ("a root that is a file", vec![file(".", "x")], "root must be a folder"),
        (
            "an owner that means nobody",
            vec![Item {
                owner: (0o7777777, 0),
                pax: vec![("uid".into(), b"4294967295".to_vec())],
                ..file("o", "")
            }],
            "no user or group",
        ),
        (
            "a name too long",
            vec![Item { pax: vec![("path".into(), vec![b'x'; 256])], ..file("n", "") }],
            "more than 255 bytes",
        ),
        (
            "a path too long",
            vec![Item { pax: vec![("path".into(), b"x/".repeat(3000))], ..file("n", "") }],
            "more than 4096 bytes",
        ),
        (
            "too deep",
            vec![Item { pax: vec![("path".into(), b"x/".repeat(300))], ..file("n", "") }],
            "more than 256 folders",
        ),
        (
            "a zero byte",
            vec![Item { pax: vec![("path".into(), b"a\0b".to_vec())], ..file("n", "") }],
            "zero byte",
        ),
        (
            "a huge header",
            vec![Item { pax: vec![("comment".into(), vec![b'x'; 2 << 20])], ..file("n", "") }],
            "more than 1048576 bytes",
        ),
        (
            "a record that lies",
            vec![Item { bytes: b"99 path=x\n".to_vec(), ..item(EntryType::XHeader, "p") }, file("n", "")],
            "malformed",
        ),
        (
            "a size of its own",
            vec![Item { pax: vec![("size".into(), b"5".to_vec())], ..file("n", "") }],
            "8 GiB",
        ),
    ];
    for (why, items, expected) in table {
        let refusal = stage.refusal(&[plain(&items)]);
        assert!(refusal.contains(expected), "{why}: {refusal}");
        assert!(refusal.contains("layer 1 of 1"), "{why}: {refusal}");
        assert!(!stage.dir.path().join("work/root").exists(), "{why}");
        assert!(stage.outside_is_as_it_was(), "{why}");
    }
}

#[test]
fn what_is_written_through_a_link_to_the_machine_lands_inside_the_image() {
    let stage = Stage::new();
    let outside = stage.dir.path().join("outside");
    let name = outside.to_str().unwrap().trim_start_matches('/').to_owned();
    let container = stage.unpacked(&[
        plain(&[
            link(EntryType::Symlink, "absolute", outside.to_str().unwrap()),
            link(EntryType::Symlink, "climbing", "../../../../outside"),
        ]),
        plain(&[
            file("absolute/file", "evil"),
            file("climbing/file", "evil"),
            file("absolute/.wh.file", ""),
            file("absolute/new", "evil"),
        ]),
    ]);
    assert!(stage.outside_is_as_it_was());
    assert_eq!(std::fs::read(container.root.join(&name).join("new")).unwrap(), b"evil");
    assert_eq!(std::fs::read(container.root.join("outside/file")).unwrap(), b"evil");
    // An entry of the link's own name replaces the link, never what it leads to.
    let container = stage.unpacked(&[
        plain(&[link(EntryType::Symlink, "x", outside.join("file").to_str().unwrap())]),
        plain(&[file("x", "twice"), file("x", "the last of two wins")]),
    ]);
    assert!(stage.outside_is_as_it_was());
    assert_eq!(std::fs::read(container.root.join("x")).unwrap(), b"the last of two wins");
}

#[test]
fn a_bomb_ends_at_the_limit_and_a_manifest_over_it_before_anything_is_fetched() {
    let stage = Stage::new();
    let bytes = archive(&[file("zeros", vec![0; 40 << 20])]);
    let diff_id = Digest::of(&bytes);
    for (packed, suffix) in [(gzip(&bytes), "+gzip"), (zstd::encode_all(&bytes[..], 3).unwrap(), "+zstd")] {
        assert!(packed.len() < 1 << 20);
        let refusal = stage.refusal(&[(packed, format!("{OCI_LAYER}{suffix}"), diff_id)]);
        assert!(
            refusal.contains(&format!("{LIMIT} bytes")) && refusal.contains("--container-limit"),
            "{refusal}"
        );
        let kept = walkdir::WalkDir::new(stage.dir.path().join("work")).into_iter();
        let kept: u64 = kept.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum();
        assert!(kept < LIMIT + (1 << 20), "{kept} bytes were kept");
    }
    // The limit is one for all layers: two that fit alone do not together.
    let half = |name: &str| plain(&[file(name, vec![1; 20 << 20])]);
    let digest = stage.image(&[half("a"), half("b")]);
    assert!(chain(&stage.unpack(digest).unwrap_err()).contains("--container-limit"));
    stage.unpack_for("linux/amd64", digest, 64 << 20).unwrap();

    let layer = json!({ "mediaType": OCI_LAYER, "digest": Digest::of(b"never there"), "size": LIMIT + 1 });
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [diff_id] } });
    let config = stage.push(OCI_CONFIG, config.to_string().as_bytes());
    let digest = stage.manifest("large", &json!({ "schemaVersion": 2, "config": config, "layers": [layer] }));
    let error = stage.unpack(digest).unwrap_err();
    assert!(matches!(error, ContainerError::TooLarge { bytes, .. } if bytes == LIMIT + 1), "{error}");
}

#[test]
fn other_bytes_than_promised_are_refused_before_they_count() {
    let stage = Stage::new();
    let bytes = archive(&[file("etc/motd", vec![b'x'; 4000])]);
    let (packed, diff_id) = (gzip(&bytes), Digest::of(&bytes));
    let layer = |bytes: &[u8], diff_id| (bytes.to_vec(), format!("{OCI_LAYER}+gzip"), diff_id);

    let digest = stage.image(&[layer(&packed, diff_id)]);
    let blob = stage.layout.blob_path(&Digest::of(&packed));
    let mut changed = packed.clone();
    changed[20] ^= 1;
    std::fs::write(&blob, &changed).unwrap();
    let error = stage.unpack(digest).unwrap_err();
    assert!(matches!(error, ContainerError::Registry(RegistryError::Mismatch { .. })), "{error}");
    std::fs::write(&blob, &packed[..100]).unwrap();
    let error = stage.unpack(digest).unwrap_err();
    assert!(matches!(error, ContainerError::Registry(RegistryError::Length { .. })), "{error}");
    std::fs::remove_file(&blob).unwrap();
    assert!(matches!(stage.unpack(digest), Err(ContainerError::Registry(error)) if error.is_absent()));

    let other = Digest::of(b"other");
    let refusal = stage.refusal(&[layer(&packed, other)]);
    assert!(refusal.contains(&format!("the image's config says {other}")), "{refusal}");
    let half = packed.len() / 2;
    assert!(stage.refusal(&[layer(&packed[..half], diff_id)]).contains("it cannot be unpacked"));
    let short = &bytes[..1500];
    let refusal = stage.refusal(&[(short.to_vec(), OCI_LAYER.into(), Digest::of(short))]);
    assert!(refusal.contains("it cannot be unpacked"), "{refusal}");
    // An extended header with nothing behind it.
    let mut lonely = Vec::new();
    append(&mut lonely, &Item { bytes: record("path", b"x"), ..item(EntryType::XHeader, "pax") });
    let digest = Digest::of(&lonely);
    assert!(stage.refusal(&[(lonely, OCI_LAYER.into(), digest)]).contains("it cannot be unpacked"));
}

#[test]
fn what_is_no_container_image_is_named() {
    let stage = Stage::new();
    let config = |value: Value| stage.push(OCI_CONFIG, value.to_string().as_bytes());
    let good = || {
        config(
            json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } }),
        )
    };
    let layer = |kind: &str| json!({ "mediaType": kind, "digest": Digest::of(b"x"), "size": 1 });
    let release = json!({ "mediaType": "application/vnd.switchback.os.config.v1+json", "digest": Digest::of(b"x"), "size": 1 });
    let one = || {
        config(
            json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [Digest::of(b"x")] } }),
        )
    };
    let table = [
        (
            json!({ "schemaVersion": 2, "config": good(), "layers": [layer(OCI_LAYER)] }),
            "has 1 layers, its config 0",
        ),
        (
            json!({ "schemaVersion": 2, "config": one(), "layers": [layer("text/plain")] }),
            "`text/plain` is not read",
        ),
        (
            json!({ "schemaVersion": 2, "config": one(), "layers": [layer(&format!("{OCI_LAYER}+encrypted"))] }),
            "+encrypted",
        ),
        (json!({ "schemaVersion": 2, "config": release, "layers": [] }), "a release already"),
        (json!({ "schemaVersion": 1, "fsLayers": [] }), "an image manifest was expected"),
        (json!({ "schemaVersion": 2, "manifests": [] }), "is not for linux/amd64"),
        (
            json!({ "schemaVersion": 2, "config": config(json!({ "architecture": "amd64", "os": "windows", "rootfs": { "type": "layers", "diff_ids": [] } })), "layers": [] }),
            "windows/amd64",
        ),
    ];
    for (value, expected) in table {
        let digest = stage.manifest("odd", &value);
        let error = chain(&stage.unpack(digest).unwrap_err());
        assert!(error.contains(expected), "{value}: {error}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(1000))]
    #[test]
    fn a_damaged_archive_is_refused_or_becomes_some_root_but_never_leaves_it(
        damage in proptest::collection::vec((0usize..8192, proptest::num::u8::ANY), 1..6),
    ) {
        let mut bytes = archive(&[
            folder("d", 0o755),
            link(EntryType::Symlink, "s", "../outside"),
            Item { pax: vec![("path".into(), b"s/long".to_vec())], ..file("short", b"bytes") },
            link(EntryType::Link, "h", "s/long"),
            file("d/.wh.long", ""),
        ]);
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
            mend_checksum(&mut bytes, at);
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["contents", "outside", "root"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("layer"), &bytes).unwrap();
        let mut contents = Contents { folder: at("contents"), count: 0 };
        let (mut tree, mut budget) = (Tree::new(), Budget { limit: 1 << 20, left: 1 << 20, knob: KNOB });
        let applied = layer::apply(
            (&at("layer"), layer::Packing::Plain),
            &Digest::of(&bytes),
            &mut budget,
            (&mut tree, &mut contents),
            &crate::progress::Silent,
        );
        if applied.is_ok() {
            let _ = crate::container::write::write(&tree, &contents, &at("root"));
        }
        proptest::prop_assert_eq!(fs::read_dir(at("outside")).unwrap().count(), 0);
        proptest::prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
        let kept: u64 = walkdir::WalkDir::new(at("contents")).into_iter().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        proptest::prop_assert!(kept < (2 << 20), "{} bytes were kept", kept);
    }
}

/// A header whose checksum is wrong is refused at once; this lets the damage behind it be looked at.
fn mend_checksum(bytes: &mut [u8], at: usize) {
    let start = at / 512 * 512;
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes().copy_from_slice(&bytes[start..start + 512]);
    header.set_cksum();
    bytes[start + 148..start + 156].copy_from_slice(&header.as_bytes()[148..156]);
}
