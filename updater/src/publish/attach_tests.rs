//! Releases in OCI layout folders, patches between them, found and compared as a device and an author do it.
//!
//! Not here: real registries (`tests/`). Rule: what is attached arrives with the release, and the numbers that are shown are
//! those of the files.

use std::sync::Mutex;

use switchback_bootloader::record::BootFileKind;

use super::*;
use crate::image::chunker::noise;
use crate::image::config::{OsConfig, SlotContent, tests_support::example};
use crate::image::manifest::{BootLayer, OsManifest, VERSION_ANNOTATION, boot_descriptor, config_descriptor};
use crate::image::patch::{self, Patch};
use crate::image::release::{INDEX_MEDIA_TYPE, ReleaseIndex};
use crate::publish::diff::diff;
use crate::publish::layer::{LayerOptions, write_layer};
use crate::publish::like;
use crate::publish::push::{PushOptions, push_release};
use crate::registry::layout_dir::LayoutDir;
use crate::registry::patches;

const BLOCK: usize = 4096;

/// A release with this root.
async fn release(at: &LayoutDir, version: &str, raw: &[u8]) -> Digest {
    let mut blob = Vec::new();
    let options = LayerOptions { level: 3, threads: 1, ..LayerOptions::default() };
    let layer = write_layer(raw, &mut blob, &options, &|_| {}).unwrap();
    let content =
        SlotContent { name: "root".into(), bytes: layer.raw_bytes, sha256: layer.raw_sha256, verity: None };
    let config = OsConfig { version: version.into(), slots: vec![content], ..example() }.to_json();
    let (blob_descriptor, index) = layer.descriptors("root");
    let kernel = format!("kernel of {version}").into_bytes();
    for bytes in [&blob, &layer.index, &config, &kernel, &b"initrd".to_vec()] {
        at.push_blob("application/octet-stream", bytes).await.unwrap();
    }
    let boot = |kind, bytes: &[u8]| BootLayer {
        kind,
        blob: boot_descriptor(kind, Digest::of(bytes), bytes.len() as u64),
    };
    let manifest = OsManifest {
        config: config_descriptor(Digest::of(&config), config.len() as u64),
        slots: vec![crate::image::manifest::SlotLayer {
            name: "root".into(),
            blob: blob_descriptor,
            index,
            index_root: layer.index_root,
        }],
        boot: vec![boot(BootFileKind::Linux, &kernel), boot(BootFileKind::Initrd, b"initrd")],
        annotations: Default::default(),
    };
    at.push_manifest(Some(version), MANIFEST_MEDIA_TYPE, &manifest.to_json()).await.unwrap()
}

fn part(at: &LayoutDir, digest: Digest) -> Part {
    Part { registry: Box::new(at.clone()), digest }
}

/// Two releases in a folder: the second one has three more blocks in the middle and a few bytes changed.
struct Scene {
    _dir: tempfile::TempDir,
    layout: LayoutDir,
    old: Digest,
    new: Digest,
    old_raw: Vec<u8>,
    new_raw: Vec<u8>,
}

impl Scene {
    async fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let layout = LayoutDir::new(dir.path().join("images"));
        let mut old_raw = noise(400, 1);
        old_raw.extend(vec![0; 100 * BLOCK]);
        let mut new_raw = old_raw.clone();
        (0..5).for_each(|n| new_raw[n * 100_000] ^= 1);
        new_raw.splice(200 * BLOCK..200 * BLOCK, noise(3, 2));
        let old = release(&layout, "1.0", &old_raw).await;
        let new = release(&layout, "1.1", &new_raw).await;
        Scene { _dir: dir, layout, old, new, old_raw, new_raw }
    }

    async fn attach(&self, to: &LayoutDir) -> Result<Vec<Attached>, AttachError> {
        let bases = [part(&self.layout, self.old)];
        self.attach_from(&bases, to).await
    }

    async fn attach_from(&self, bases: &[Part], to: &LayoutDir) -> Result<Vec<Attached>, AttachError> {
        let options = PatchOptions { level: 5, threads: 2 };
        let folder = tempfile::tempdir().unwrap();
        let release = (&self.layout as &dyn Registry, &self.new);
        let attached = attach_patches(release, bases, to, folder.path(), &options, &|_| {}).await;
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "working files are gone");
        attached
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_is_found_by_base_and_target_and_makes_the_new_root() {
    let scene = Scene::new().await;
    let attached = scene.attach(&scene.layout).await.unwrap();
    let [Attached { from, base, patch: Some(digest), bytes, .. }] = &attached[..] else {
        panic!("{attached:?}")
    };
    assert_eq!((from.as_str(), base), ("1.0", &scene.old));
    assert!(*bytes < 14_000, "{bytes} bytes");

    let find = async |target, base| patches::find(&scene.layout, target, &[base]).await.unwrap();
    assert!(find(&scene.new, scene.new).await.is_empty());
    assert!(find(&scene.old, scene.new).await.is_empty());
    let found = find(&scene.new, scene.old).await;
    assert_eq!(Digest::of(&found[0].to_json()), *digest);
    let slot = found[0].slot("root").unwrap();

    let (_, release) = inspect::read_os(&scene.layout, &scene.new).await.unwrap();
    let index = &release.indexes[0];
    let too_long = patches::header(&scene.layout, slot, slot.header.size - 1).await;
    assert!(matches!(too_long, Err(RegistryError::TooLarge { .. })));
    let header = patches::header(&scene.layout, slot, Patch::header_bytes_max(index)).await.unwrap();
    let patch = Patch::parse(&header, slot.blob.size, index, scene.old_raw.len() as u64).unwrap();
    let blob = std::fs::read(scene.layout.blob_path(&slot.blob.digest)).unwrap();
    let mut made = Vec::new();
    for entry in patch.entries() {
        let windows =
            entry.windows.iter().flat_map(|w| &scene.old_raw[w.offset as usize..][..w.bytes as usize]);
        let prefix: Vec<u8> = windows.copied().collect();
        let frame = &blob[entry.blob.start as usize..entry.blob.end as usize];
        patch::decode(&prefix, frame, entry.raw_bytes(), &mut made).unwrap();
        assert!(made == scene.new_raw[entry.raw.start as usize..entry.raw.end as usize]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_difference_of_two_releases_is_what_an_update_moves() {
    let scene = Scene::new().await;
    let (old, new) = (part(&scene.layout, scene.old), part(&scene.layout, scene.new));
    let before = diff(&old, &new).await.unwrap();
    assert_eq!(before.slots[0].patch, None);
    let attached = scene.attach(&scene.layout).await.unwrap();
    let after = diff(&old, &new).await.unwrap();
    assert_eq!((after.from.version.as_str(), after.to.version.as_str()), ("1.0", "1.1"));
    assert_eq!(after.boot_bytes, "kernel of 1.1".len() as u64, "the initrd is the same");

    let slot = &after.slots[0];
    let patched = slot.patch.as_ref().unwrap();
    let (whole, chunks, cost) = (slot.whole, slot.chunks, patched.cost);
    assert_eq!(slot.raw_bytes, scene.new_raw.len() as u64);
    assert_eq!(chunks, before.slots[0].chunks);
    assert_eq!(patched.header_bytes + cost.patch_bytes, attached[0].bytes, "each entry is worth its bytes");
    assert!(whole.fetched() > chunks.fetched() && chunks.fetched() > cost.fetched(), "{slot:?}");
    assert_eq!((whole.copy_bytes, whole.zero_bytes, cost.fetch_bytes), (0, 100 * BLOCK as u64, 0));
    for cost in [whole, chunks, cost] {
        assert_eq!(cost.write_bytes + cost.zero_bytes, slot.raw_bytes);
    }
    assert_eq!(cost.copy_bytes, chunks.copy_bytes);
    assert!((100 * BLOCK as u64..200 * BLOCK as u64).contains(&slot.same_place_bytes), "{slot:?}");

    let same = diff(&old, &part(&scene.layout, scene.old)).await.unwrap();
    let (slot, data) = (&same.slots[0], 400 * BLOCK as u64);
    assert_eq!((slot.chunks.fetched(), slot.chunks.copy_bytes, slot.same_place_bytes), (0, data, data));
    assert_eq!(same.boot_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_are_copied_with_what_else_is_attached_also_where_a_release_binds_the_image() {
    let scene = Scene::new().await;
    scene.attach(&scene.layout).await.unwrap();
    let manifest = scene.layout.manifest(&scene.new, 1 << 20).await.unwrap();
    let index = ReleaseIndex {
        version: "2.0".into(),
        os: registry::describe(MANIFEST_MEDIA_TYPE, scene.new, manifest.len() as u64),
        services: Default::default(),
        annotations: [(VERSION_ANNOTATION.to_owned(), "2.0".to_owned())].into(),
    };
    let bound = scene.layout.push_manifest(Some("2.0"), INDEX_MEDIA_TYPE, &index.to_json()).await.unwrap();
    for (digest, with_signatures, patches) in [(scene.new, true, 1), (bound, true, 1), (bound, false, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let to = LayoutDir::new(dir.path());
        let options = PushOptions { tag: None, with_signatures };
        let pushed = push_release(&scene.layout, &digest, &to, &options, &|_| {}).await.unwrap();
        assert_eq!(pushed.attached, patches);
        let found = patches::find(&to, &scene.new, &[scene.old]).await.unwrap();
        assert_eq!(found.len() as u64, patches);
        for slot in found.iter().flat_map(|patch| &patch.slots) {
            assert!(to.blob(&slot.blob, 1 << 20).await.is_ok());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_earlier_release_is_named() {
    let scene = Scene::new().await;
    let same = scene.attach_from(&[part(&scene.layout, scene.new)], &scene.layout).await.unwrap_err();
    assert!(same.to_string().contains("from 1.1: it has the same OS image"), "{same}");
    let missing = Digest::of(b"missing");
    let absent = scene.attach_from(&[part(&scene.layout, missing)], &scene.layout).await.unwrap_err();
    assert!(absent.to_string().contains(&missing.to_string()), "{absent}");
    let strange = release(&scene.layout, "0.1", &noise(100, 9)).await;
    let none = scene.attach_from(&[part(&scene.layout, strange)], &scene.layout).await.unwrap();
    assert_eq!((none[0].patch, none[0].bytes, none[0].entries), (None, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn earlier_releases_tell_their_chunks_and_the_first_one_its_raw_root() {
    let scene = Scene::new().await;
    let both = [part(&scene.layout, scene.old), part(&scene.layout, scene.new)];
    let folder = tempfile::tempdir().unwrap();
    let like = like::read(&both, "root", folder.path(), true).await.unwrap();
    assert!(std::fs::read(like.root.unwrap().path()).unwrap() == scene.old_raw);
    for digest in [scene.old, scene.new] {
        let (_, release) = inspect::read_os(&scene.layout, &digest).await.unwrap();
        assert!(release.indexes[0].chunks().iter().all(|chunk| like.known.contains(chunk)));
    }
    let without = like::read(&both, "root", folder.path(), false).await.unwrap();
    assert!(without.root.is_none() && without.frames.is_some() && without.known == like.known);
    assert!(like::read(&[], "root", folder.path(), true).await.unwrap().root.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_tells_of_each_step_and_adds_up() {
    let scene = Scene::new().await;
    let (told, folder) = (Mutex::new(Vec::<(AttachEvent, u64)>::new()), tempfile::tempdir().unwrap());
    let note = |event| {
        let mut told = told.lock().unwrap();
        match event {
            AttachEvent::Bytes(more) => told.last_mut().unwrap().1 += more,
            begin => told.push((begin, 0)),
        }
    };
    let bases = [part(&scene.layout, scene.old)];
    let options = PatchOptions { level: 3, threads: 2 };
    let release = (&scene.layout as &dyn Registry, &scene.new);
    attach_patches(release, &bases, &scene.layout, folder.path(), &options, &note).await.unwrap();
    let told = told.into_inner().unwrap();
    let all = |event: &AttachEvent| match event {
        AttachEvent::Unpack { bytes } | AttachEvent::Encode { bytes } | AttachEvent::Bytes(bytes) => *bytes,
    };
    assert_eq!(told.len(), 3);
    assert!(told.iter().all(|(event, bytes)| all(event) == *bytes), "{told:?}");
}
