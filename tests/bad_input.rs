//! Bad input, row by row: what the real program says, its exit code, and every byte that it did not change.
//!
//! Not here: the life of a good update (`update`), signatures by real signers (`trust_attacks`). Rule: a row is run by the
//! real program on a machine that has something to lose; `docs/src/bad-input.md` shows what this test saw.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "bad_input/clocks.rs"]
mod clocks;
#[path = "bad_input/ground.rs"]
mod ground;
#[path = "bad_input/machine.rs"]
mod machine;
#[path = "bad_input/registry.rs"]
mod registry;
#[path = "bad_input/table.rs"]
mod table;

use serde_json::json;
use switchback::digest::Digest;
use switchback::reason::Reason;
use switchback_tests::forge::{Draft, Frame};

use crate::ground::{Ground, Place, build};
use crate::table::{Changed, Table};

fn config(draft: &Draft) -> Digest {
    draft.manifest.config.digest
}

fn index(draft: &Draft) -> Digest {
    draft.manifest.slots[0].index.digest
}

fn chunks(draft: &Draft) -> Digest {
    draft.manifest.slots[0].blob.digest
}

fn boot_file(draft: &Draft) -> Digest {
    draft.manifest.boot[0].blob.digest
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
}

fn cut(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() / 2);
}

#[test]
fn what_nobody_trusted_signed_is_refused() {
    let (ground, mut table) = (Ground::get(), Table::new("Signatures"));
    let scene = &ground.scene;
    let place = Place::new(&ground);
    let unsigned = build(scene, "1.4", true, &["--security-version", "2"]);
    let from = scene.desk.reference("1.4");
    scene.desk.run(&["image", "push", &from, &place.images_reference(), "--tag", "stable"]).unwrap();
    table.refused("no signature", place, Reason::SignatureRefused, Changed::Nothing);

    let place = Place::new(&ground);
    let (from, to) = (scene.desk.reference("1.4"), place.images_reference());
    scene.desk.run(&["image", "push", &from, &to, "--tag", "stable"]).unwrap();
    scene.desk.run(&["image", "keygen", "thief"]).unwrap();
    let named = format!("oci:{}@{unsigned}", place.images().display());
    scene.desk.run(&["image", "sign", &named, "--key", "thief.key"]).unwrap();
    table.refused("signed with another key", place, Reason::SignatureRefused, Changed::Nothing);

    let place = Place::new(&ground).offers_tag("1.3");
    let settings = std::fs::read_to_string(place.machine.config()).unwrap();
    let without = settings.lines().filter(|line| !line.contains("trust.policy") && !line.starts_with("keys"));
    std::fs::write(place.machine.config(), without.collect::<Vec<_>>().join("\n")).unwrap();
    table.refused("no key on the machine", place, Reason::NoPolicy, Changed::Nothing);
    table.finish();
}

#[test]
fn damaged_blobs_are_refused_and_the_running_slot_is_untouched() {
    use Changed::{IdleSlot, Nothing};
    let (ground, mut table) = (Ground::get(), Table::new("Damaged blobs"));
    let new = || Place::new(&ground);
    let (document, chunk) = (Reason::CorruptBlob, Reason::CorruptChunk);
    let manifest = |draft: &Draft| Digest::of(&draft.manifest.to_json());
    let place = new().spoils(manifest, |bytes| flip(bytes));
    table.refused("one bit of the manifest is flipped", place, document, Nothing);
    table.refused(
        "one bit of the config is flipped",
        new().spoils(config, |bytes| flip(bytes)),
        document,
        Nothing,
    );
    table.refused(
        "one bit of the chunk index is flipped",
        new().spoils(index, |bytes| flip(bytes)),
        document,
        Nothing,
    );
    table.refused(
        "one bit of a chunk is flipped",
        new().spoils(chunks, |bytes| flip(bytes)),
        chunk,
        IdleSlot,
    );
    table.refused(
        "one bit of a boot file is flipped",
        new().spoils(boot_file, |bytes| flip(bytes)),
        document,
        IdleSlot,
    );
    table.refused("the config is cut short", new().spoils(config, cut), document, Nothing);
    table.refused("the chunk index is cut short", new().spoils(index, cut), document, Nothing);
    table.refused("the chunks are cut short", new().spoils(chunks, cut), document, IdleSlot);
    table.refused("a boot file is cut short", new().spoils(boot_file, cut), document, IdleSlot);
    table.finish();
}

#[test]
fn an_index_that_lies_is_refused() {
    use Changed::{IdleSlot, Nothing};
    let (ground, mut table) = (Ground::get(), Table::new("A signed index that lies"));
    let new = || Place::new(&ground);
    let lies = Reason::IndexLies;
    let place = new().offers(|forge, draft| {
        forge.reindex(draft, |frames| drop(frames.pop())).unwrap();
    });
    table.refused("it covers less than the slot", place, lies, Nothing);
    let place = new().offers(|forge, draft| {
        forge.reindex(draft, |frames| frames.push(frames[0].clone())).unwrap();
    });
    table.refused("it covers more than the slot", place, lies, Nothing);
    let place = new().offers(|forge, draft| {
        forge.reindex(draft, |frames| frames.last_mut().unwrap().0 += 100).unwrap();
    });
    table.refused("a frame ends behind the end of the blob", place, lies, Nothing);
    // Root list: 32 bytes of head, then for each page its length, counts, raw bytes (8..16), blob bytes (16..24), hash.
    let place = new().offers(|forge, draft| forge.reroot(draft, |root| add(root, 32 + 8, 4096)).unwrap());
    table.refused("a page overlaps the next in the slot", place, lies, Nothing);
    let place = new().offers(|forge, draft| forge.reroot(draft, |root| sub(root, 32 + 16, 1)).unwrap());
    table.refused("a page leaves a gap in the blob", place, lies, Nothing);
    let place = new().offers(|forge, draft| forge.reroot(draft, |root| root[32 + 24] ^= 1).unwrap());
    table.refused("a page is not the one that the root names", place, lies, Nothing);
    let place = new().offers(|forge, draft| {
        let (bytes, _) = forge.index(draft).unwrap();
        let root_bytes = draft.manifest.slots[0].index_root.size;
        forge.put_index(draft, &bytes[..bytes.len() - 1], root_bytes).unwrap();
    });
    table.refused("its last page is cut short", place, lies, Nothing);
    let place = new().offers(|forge, draft| forge.put_index(draft, &[7; 5000], 100).unwrap());
    table.refused("it is no index", place, lies, Nothing);

    let place = new().offers(|forge, draft| {
        let swap = |frames: &mut Vec<Frame>| {
            // Which message it is depends on which of the two is longer; how long they are differs from build to build.
            let longer_first = |pair: &[Frame]| pair[0].0 > pair[1].0;
            let first = frames.windows(2).position(longer_first).expect("frames of falling length");
            frames.swap(first, first + 1);
        };
        forge.reindex(draft, swap).unwrap();
    });
    table.refused("two frames are in the other order", place, Reason::CorruptChunk, IdleSlot);
    let place = new().offers(|forge, draft| {
        forge
            .reindex(draft, |frames| {
                frames[0].0 += 1;
                frames[1].0 -= 1;
            })
            .unwrap();
    });
    table.refused("a frame begins a byte late", place, Reason::CorruptChunk, IdleSlot);
    let place = new().offers(|forge, draft| {
        forge.reindex(draft, |frames| frames[0].2[0].sha256[0] ^= 1).unwrap();
    });
    table.refused("it names other chunks than the blob has", place, Reason::CorruptChunk, IdleSlot);
    let place = new().offers(|_, draft| {
        let root = draft.config["slots"][0]["verity"]["root"].as_str().unwrap().to_owned();
        let other = if root.starts_with('0') { "1" } else { "0" };
        draft.config["slots"][0]["verity"]["root"] = json!(format!("{other}{}", &root[1..]));
    });
    table.refused("the signed dm-verity root is another", place, lies, IdleSlot);
    table.finish();
}

fn add(bytes: &mut [u8], at: usize, more: u64) {
    let number = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    bytes[at..at + 8].copy_from_slice(&number.wrapping_add(more).to_le_bytes());
}

fn sub(bytes: &mut [u8], at: usize, less: u64) {
    add(bytes, at, less.wrapping_neg());
}

#[test]
fn a_signed_release_for_something_else_is_refused() {
    use Changed::Nothing;
    let (ground, mut table) = (Ground::get(), Table::new("Signed, and not for this machine"));
    let offers = |change: fn(&mut Draft)| Place::new(&ground).offers(|_, draft| change(draft));
    let place = offers(|draft| draft.config["compatible"] = json!(["board-x"]));
    table.refused("other hardware", place, Reason::WrongHardware, Nothing);
    let place = offers(|draft| draft.config["product"] = json!("another"));
    table.refused("another product", place, Reason::WrongProduct, Nothing);
    let place = offers(|draft| {
        draft.config["kind"] = json!("service");
        draft.config.as_object_mut().unwrap().remove("cmdline");
        draft.manifest.boot.clear();
    });
    table.refused("a service", place, Reason::WrongKind, Nothing);
    let place = offers(|draft| draft.config["security_version"] = json!(1));
    table.refused("a security version below the floor", place, Reason::BelowFloor, Nothing);
    let place = offers(|draft| draft.config["version"] = json!("1.0.9"));
    table.refused("an older release, served again under the tag", place, Reason::NotNewer, Nothing);
    let place = Place::new(&ground).offers_tag("1.2");
    table.refused("the release that failed its trial here", place, Reason::Quarantined, Nothing);
    let place = offers(|draft| draft.config["schema"] = json!(2));
    table.refused("a config of a newer format", place, Reason::FormatRefused, Nothing);
    let place = Place::new(&ground).offers(|forge, draft| forge.reroot(draft, |root| root[8] = 2).unwrap());
    table.refused("a chunk index of a newer format", place, Reason::FormatRefused, Nothing);
    let place = Place::new(&ground);
    let forge = place.forge();
    let manifest = String::from_utf8(forge.draft("1.3").unwrap().manifest.to_json()).unwrap();
    let newer = manifest.replace("switchback.os.v1\"", "switchback.os.v2\"");
    assert_ne!(manifest, newer);
    forge.publish_manifest("stable", newer.as_bytes()).unwrap();
    table.refused("a manifest of a newer format", place, Reason::FormatRefused, Nothing);
    let place = offers(|draft| draft.config["requirements"]["updater"] = json!("99.0"));
    table.refused("it needs a newer updater", place, Reason::UpdaterTooOld, Nothing);
    let place = offers(|draft| draft.config["requirements"]["ram_bytes"] = json!(8_u64 << 30));
    table.refused("it needs more memory", place, Reason::RamTooSmall, Nothing);
    table.finish();
}
