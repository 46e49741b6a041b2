//! A patch's header and manifest against lies, and entries through the decoder.
//!
//! Not here: making patches of whole images (`publish::patch`). Rule: each lie is refused by its own name, and whatever
//! stands in a header, nothing panics and nothing is reserved beyond what the target's index allows.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use zstd::zstd_safe::{CCtx, compress_bound};

use super::*;
use crate::digest::Digest;
use crate::image::index::Index;
use crate::image::index::{ChunkRef, IndexWriter};
use crate::image::manifest::{Descriptor, MANIFEST_MEDIA_TYPE};

const BLOCK: u32 = BLOCK_BYTES;
const BASE_BYTES: u64 = 1000 * BLOCK as u64;

/// Chunk 0; a zero run; chunks 1 and 2 in one frame; chunk 3; chunk 4; then five of 64 KiB, so that a run can be too long.
static TARGET: LazyLock<Index> = LazyLock::new(|| {
    let chunk = |number: u8, blocks: u32| ChunkRef { raw_bytes: blocks * BLOCK, sha256: [number; 32] };
    let mut writer = IndexWriter::new().unwrap();
    let mut raw_bytes = 0;
    let mut push = |chunks: &[ChunkRef], zeros: u32| {
        let raw = chunks.iter().map(|chunk| chunk.raw_bytes).sum::<u32>() + zeros * BLOCK;
        writer.push_frame(200, raw, chunks).unwrap();
        raw_bytes += u64::from(raw);
    };
    push(&[chunk(0, 2)], 0);
    push(&[], 4);
    push(&[chunk(1, 1), chunk(2, 4)], 0);
    push(&[chunk(3, 16)], 0);
    push(&[chunk(4, 3)], 0);
    (5..10).for_each(|number| push(&[chunk(number, 16)], 0));
    let built = writer.finish().unwrap();
    Index::parse(&built.blob, raw_bytes, built.blob_bytes).unwrap()
});

/// A header as it is written, with every number free to lie.
#[derive(Debug, Clone)]
struct Draft {
    magic: [u8; 8],
    version: u32,
    base_bytes: u64,
    target_bytes: u64,
    entry_count: u32,
    window_count: u32,
    /// Chunks passed over, chunks, bytes in the blob, windows.
    entries: Vec<(u32, u16, u32, u8)>,
    windows: Vec<(u32, u16)>,
    tail: Vec<u8>,
    /// Bytes of the blob beyond header and entries.
    behind: i64,
}

impl Draft {
    fn honest() -> Draft {
        Draft {
            magic: *b"SWBPATCH",
            version: 1,
            base_bytes: BASE_BYTES,
            target_bytes: TARGET.raw_bytes(),
            entry_count: 3,
            window_count: 3,
            entries: vec![(0, 1, 100, 1), (0, 2, 50, 0), (1, 1, 70, 2)],
            windows: vec![(0, 3), (10, 5), (984, 16)],
            tail: Vec::new(),
            behind: 0,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.base_bytes.to_le_bytes());
        bytes.extend(self.target_bytes.to_le_bytes());
        bytes.extend(self.entry_count.to_le_bytes());
        bytes.extend(self.window_count.to_le_bytes());
        self.entries.iter().for_each(|entry| bytes.extend(entry.0.to_le_bytes()));
        self.entries.iter().for_each(|entry| bytes.extend(entry.1.to_le_bytes()));
        self.entries.iter().for_each(|entry| bytes.extend(entry.2.to_le_bytes()));
        self.entries.iter().for_each(|entry| bytes.push(entry.3));
        self.windows.iter().for_each(|window| bytes.extend(window.0.to_le_bytes()));
        self.windows.iter().for_each(|window| bytes.extend(window.1.to_le_bytes()));
        bytes.extend(&self.tail);
        zstd::bulk::compress(&bytes, 3).unwrap()
    }

    fn parse(&self) -> Result<Patch, PatchError> {
        let header = self.bytes();
        let entries: u64 = self.entries.iter().map(|entry| u64::from(entry.2)).sum();
        let blob_bytes = (header.len() as u64 + entries).saturating_add_signed(self.behind);
        Patch::parse(&header, blob_bytes, &TARGET, BASE_BYTES)
    }
}

#[test]
fn an_honest_header_gives_every_entry_with_its_frames_bytes_and_windows() {
    let draft = Draft::honest();
    let patch = draft.parse().unwrap();
    let header = draft.bytes().len() as u64;
    let sizes = (patch.base_bytes(), patch.header_bytes(), patch.blob_bytes());
    assert_eq!(sizes, (BASE_BYTES, header, header + 220));
    let window = |block: u64, blocks: u32| Window { offset: block * u64::from(BLOCK), bytes: blocks * BLOCK };
    let bytes = |blocks: Range<u64>| blocks.start * u64::from(BLOCK)..blocks.end * u64::from(BLOCK);
    let (first, last) = ([window(0, 3)], [window(10, 5), window(984, 16)]);
    let expected = [
        Entry { frames: 0..1, chunks: 0..1, raw: bytes(0..2), blob: header..header + 100, windows: &first },
        Entry {
            frames: 2..3,
            chunks: 1..3,
            raw: bytes(6..11),
            blob: header + 100..header + 150,
            windows: &[],
        },
        Entry {
            frames: 4..5,
            chunks: 4..5,
            raw: bytes(27..30),
            blob: header + 150..header + 220,
            windows: &last,
        },
    ];
    assert!(patch.entries().eq(expected.iter().cloned()), "{patch:#?}");
    assert_eq!(patch.entry(2).as_ref(), Some(&expected[2]));
    assert_eq!((patch.entry(3), expected[2].prefix_bytes()), (None, 21 * BLOCK as usize));
}

#[test]
fn what_the_writer_writes_is_what_the_reader_reads_and_a_few_entries_take_a_few_hundred_bytes() {
    let target = &*TARGET;
    let window = |n: u64| Window { offset: n * 3 * u64::from(BLOCK), bytes: 20 * BLOCK };
    let draft = |chunks: Range<usize>, count: u64| DraftEntry {
        chunks,
        blob_bytes: 300,
        windows: (0..count).map(window).collect(),
    };
    let drafts = [draft(0..1, 4), draft(1..3, 0), draft(3..5, 1), draft(6..10, 2)];
    let header = write_header(BASE_BYTES, target.raw_bytes(), &drafts).unwrap();
    assert!(header.len() < 200, "{} bytes", header.len());
    let patch = Patch::parse(&header, header.len() as u64 + 1200, target, BASE_BYTES).unwrap();
    let read = patch.entries().map(|entry| DraftEntry {
        chunks: entry.chunks.clone(),
        blob_bytes: entry.blob_bytes() as u32,
        windows: entry.windows.to_vec(),
    });
    assert!(read.eq(drafts), "{patch:#?}");
}

/// What is wrong, how, and how the refusal begins.
type Case = (&'static str, fn(&mut Draft), fn(&Lie) -> bool);

const LIES: &[Case] = &[
    ("another magic", |d| d.magic[7] = b'X', |lie| matches!(lie, Lie::Magic)),
    ("a later version", |d| d.version = 2, |lie| matches!(lie, Lie::Version { found: 2 })),
    (
        "another base",
        |d| d.base_bytes -= 4096,
        |lie| matches!(lie, Lie::SignedLength { side: Side::Base, .. }),
    ),
    (
        "another target",
        |d| d.target_bytes += 4096,
        |lie| matches!(lie, Lie::SignedLength { side: Side::Target, .. }),
    ),
    ("more entries than are there", |d| d.entry_count = u32::MAX, |lie| matches!(lie, Lie::Length { .. })),
    ("more windows than are there", |d| d.window_count = u32::MAX, |lie| matches!(lie, Lie::Length { .. })),
    ("bytes behind the windows", |d| d.tail = vec![0; 3], |lie| matches!(lie, Lie::Length { .. })),
    ("a bomb", |d| d.tail = vec![0; 1 << 20], |lie| matches!(lie, Lie::Length { .. })),
    (
        "an entry without chunks",
        |d| d.entries[1].1 = 0,
        |lie| matches!(lie, Lie::Chunks { entry: 1, chunks: 0, .. }),
    ),
    (
        "an entry behind the image",
        |d| d.entries[2].0 = 7,
        |lie| matches!(lie, Lie::Chunks { entry: 2, first: 10, .. }),
    ),
    (
        "an entry far behind the image",
        |d| d.entries[2].0 = u32::MAX,
        |lie| matches!(lie, Lie::Chunks { entry: 2, .. }),
    ),
    (
        "an entry that begins in a frame",
        |d| d.entries[1] = (1, 1, 50, 0),
        |lie| matches!(lie, Lie::NotFrames { entry: 1 }),
    ),
    (
        "an entry that ends in a frame",
        |d| d.entries[1].1 = 1,
        |lie| matches!(lie, Lie::NotFrames { entry: 1 }),
    ),
    ("an entry over a zero run", |d| d.entries[0].1 = 3, |lie| matches!(lie, Lie::ZeroRun { entry: 0 })),
    (
        "an entry that is too long",
        |d| d.entries[2] = (2, 5, 70, 2),
        |lie| matches!(lie, Lie::EntryRaw { entry: 2, raw_bytes: 327_680 }),
    ),
    ("an entry of no bytes", |d| d.entries[0].2 = 0, |lie| matches!(lie, Lie::EntryBlob { entry: 0, .. })),
    (
        "an entry far longer than its content",
        |d| d.entries[0].2 = 2 * 4096 + 2048,
        |lie| matches!(lie, Lie::EntryBlob { entry: 0, .. }),
    ),
    ("a blob that is longer", |d| d.behind = 1, |lie| matches!(lie, Lie::BlobLength { .. })),
    ("a blob that is shorter", |d| d.behind = -1, |lie| matches!(lie, Lie::BlobLength { .. })),
    (
        "five windows",
        |d| {
            d.entries[0].3 = 5;
            d.window_count = 7;
            d.windows.extend([(0, 1); 4]);
        },
        |lie| matches!(lie, Lie::WindowCount { entry: 0, found: 5, .. }),
    ),
    (
        "an entry that takes its neighbour's window too",
        |d| d.entries[0].3 = 2,
        |lie| matches!(lie, Lie::WindowCount { entry: 2, found: 2, left: 1 }),
    ),
    ("a window of no entry", |d| d.entries[2].3 = 1, |lie| matches!(lie, Lie::OrphanWindows { left: 1 })),
    (
        "a window of no bytes",
        |d| d.windows[1].1 = 0,
        |lie| matches!(lie, Lie::Window { entry: 2, bytes: 0, .. }),
    ),
    ("a window beyond the base", |d| d.windows[2].0 = 985, |lie| matches!(lie, Lie::Window { entry: 2, .. })),
    (
        "a window far beyond the base",
        |d| d.windows[2].0 = u32::MAX,
        |lie| matches!(lie, Lie::Window { entry: 2, .. }),
    ),
    (
        "windows that are too much together",
        |d| d.windows[1].1 = 113,
        |lie| matches!(lie, Lie::Prefix { entry: 2, bytes } if *bytes == 129 * 4096),
    ),
];

#[test]
fn every_lie_is_refused_by_its_own_name() {
    for (what, lie, refused) in LIES {
        let mut draft = Draft::honest();
        lie(&mut draft);
        match draft.parse() {
            Err(error) => assert!(refused(&error.lie), "{what}: {error}"),
            Ok(patch) => panic!("{what}: accepted as {patch:?}"),
        }
    }
}

#[test]
fn a_header_that_is_cut_extended_or_no_zstd_at_all_is_refused() {
    let honest = Draft::honest().bytes();
    let parse = |bytes: &[u8]| Patch::parse(bytes, honest.len() as u64 + 220, &TARGET, BASE_BYTES);
    assert!(parse(&honest).is_ok());
    for cut in 0..honest.len() {
        assert!(parse(&honest[..cut]).is_err(), "cut at {cut}");
    }
    assert!(parse(&[honest.as_slice(), &[0]].concat()).is_err());
    let skippable = [b"\x50\x2a\x4d\x18\x04\0\0\0abcd".as_slice(), &honest].concat();
    assert_eq!(parse(&skippable).unwrap_err().lie, Lie::Frame(FrameError::NotZstd));
    let long = vec![0; Patch::header_bytes_max(&TARGET) as usize + 1];
    assert!(matches!(parse(&long).unwrap_err().lie, Lie::TooLong { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_header_of_any_numbers_is_refused_or_keeps_to_both_images(
        entries in prop::collection::vec((0..4u32, 0..6u16, 0..400u32, 0..6u8), 0..6),
        windows in prop::collection::vec((0..1100u32, 0..140u16), 0..8),
    ) {
        let counts = (entries.len() as u32, windows.len() as u32);
        let draft = Draft { entries, windows, entry_count: counts.0, window_count: counts.1, ..Draft::honest() };
        if let Ok(patch) = draft.parse() {
            let (mut chunk, mut blob) = (0, patch.header_bytes());
            for entry in patch.entries() {
                prop_assert!(entry.chunks.start >= chunk && entry.blob.start == blob);
                prop_assert!(entry.raw_bytes() <= ENTRY_RAW_BYTES_MAX as usize);
                prop_assert!(entry.prefix_bytes() <= PREFIX_BYTES_MAX as usize);
                prop_assert!(entry.windows.iter().all(|w| w.offset + u64::from(w.bytes) <= BASE_BYTES));
                (chunk, blob) = (entry.chunks.end, entry.blob.end);
            }
            prop_assert!(chunk <= TARGET.chunk_count() && blob == patch.blob_bytes());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), blob in any::<u64>()) {
        let packed = zstd::bulk::compress(&[b"SWBPATCH\x01\0\0\0".as_slice(), &bytes].concat(), 1).unwrap();
        for header in [&bytes, &packed] {
            let _refused_or_not = Patch::parse(header, blob, &TARGET, BASE_BYTES);
        }
    }
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// One zstd frame of `raw` behind `prefix`.
fn compressed(prefix: &[u8], raw: &[u8]) -> Vec<u8> {
    let mut context = CCtx::create();
    context.ref_prefix(prefix).unwrap();
    let mut out = Vec::with_capacity(compress_bound(raw.len()));
    context.compress2(&mut out, raw).unwrap();
    out
}

#[test]
fn an_entry_is_decoded_behind_its_prefix_and_nothing_else() {
    // A prefix that begins like a trained dictionary is one of plain bytes.
    let mut prefix = 0xEC30_A437_u32.to_le_bytes().to_vec();
    prefix.extend(noise(300_000, 1));
    let mut raw = prefix[100_000..300_000].to_vec();
    raw[50_000..50_100].copy_from_slice(&noise(100, 2));
    let frame = compressed(&prefix, &raw);
    assert!(frame.len() < 1000, "{} bytes", frame.len());
    let mut out = Vec::new();
    for _ in 0..2 {
        decode(&prefix, &frame, raw.len(), &mut out).unwrap();
        assert!(out == raw);
    }
    for (what, prefix) in [("another prefix", &noise(300_004, 3)[..]), ("no prefix", &[])] {
        let made = decode(prefix, &frame, raw.len(), &mut out);
        assert!(made.is_err() || out != raw, "{what}");
    }
}

#[test]
fn a_frame_of_another_length_or_of_two_frames_is_refused_and_leaves_nothing() {
    let (prefix, raw) = (noise(8192, 4), noise(8192, 5));
    let frame = compressed(&prefix, &raw);
    let mut out = vec![1];
    for raw_bytes in [0, 4096, 8191, 8193] {
        let refused = decode(&prefix, &frame, raw_bytes, &mut out).unwrap_err();
        assert_eq!((refused, out.len()), (FrameError::RawLength { expected: raw_bytes as u64 }, 0));
    }
    let twice = [&frame[..], &frame].concat();
    let refused = decode(&prefix, &twice, 16_384, &mut out).unwrap_err();
    assert!(matches!(refused, FrameError::CompressedLength { .. }));
    let far = decode(&prefix, &frame, ENTRY_RAW_BYTES_MAX as usize + 1, &mut out);
    assert!(matches!(far, Err(FrameError::RawLength { .. })));
}

fn digest() -> Digest {
    Digest::of(b"target")
}

fn manifest() -> Value {
    let slot = PatchSlot::new(
        "root",
        Digest::of(b"blob"),
        5000,
        PatchHeader { digest: Digest::of(b"header"), size: 300 },
    );
    let subject = Descriptor {
        media_type: MANIFEST_MEDIA_TYPE.into(),
        digest: digest(),
        size: 900,
        annotations: Default::default(),
    };
    let patch = PatchManifest { target: subject, base: Digest::of(b"base"), slots: vec![slot] };
    serde_json::from_slice(&patch.to_json()).unwrap()
}

#[test]
fn a_manifest_that_is_written_is_read_and_known_for_a_patch() {
    let bytes = serde_json::to_vec(&manifest()).unwrap();
    let read = PatchManifest::parse(&bytes, &digest()).unwrap();
    assert_eq!((read.base, read.target.digest), (Digest::of(b"base"), digest()));
    let slot = read.slot("root").unwrap();
    assert_eq!((slot.blob.size, slot.header.size, slot.header.digest), (5000, 300, Digest::of(b"header")));
    assert!(read.slot("data").is_none());
    assert!(is_patch(&bytes) && is_patch(&read.to_json()));
    assert!(!is_patch(b"[]") && !is_patch(b"{\"artifactType\":\"x\"}"));
}

#[test]
fn a_manifest_that_is_not_understood_is_refused_by_name() {
    type Spoil = fn(&mut Value);
    let cases: [(Spoil, &str); 13] = [
        (|v| v["schemaVersion"] = json!(1), "schemaVersion is `1`"),
        (|v| v["artifactType"] = json!("x"), "artifactType is `x`"),
        (|v| v["config"]["mediaType"] = json!("x"), "config.mediaType is `x`"),
        (|v| v["subject"]["digest"] = json!(Digest::of(b"other")), "subject.digest is"),
        (|v| v["annotations"] = json!({}), "is no digest"),
        (|v| v["annotations"][BASE_ANNOTATION] = json!(digest()), "to the same one"),
        (|v| v["layers"] = json!([]), "it has 0 layers"),
        (|v| v["layers"][0]["mediaType"] = json!("x"), "a layer's mediaType is `x`"),
        (
            |v| v["layers"][0]["annotations"]["io.switchback.slot"] = json!("../x"),
            "annotation `io.switchback.slot`",
        ),
        (|v| v["layers"][0]["annotations"][HEADER_ANNOTATION] = json!("x"), HEADER_ANNOTATION),
        (|v| v["layers"][0]["annotations"][HEADER_BYTES_ANNOTATION] = json!("5001"), HEADER_BYTES_ANNOTATION),
        (|v| v["layers"][0]["annotations"][HEADER_BYTES_ANNOTATION] = json!("0"), HEADER_BYTES_ANNOTATION),
        (
            |v| {
                let layer = v["layers"][0].clone();
                v["layers"].as_array_mut().unwrap().push(layer);
            },
            "two layers for the slot partition `root`",
        ),
    ];
    for (spoil, expected) in cases {
        let mut value = manifest();
        spoil(&mut value);
        let refused = PatchManifest::parse(&serde_json::to_vec(&value).unwrap(), &digest()).unwrap_err();
        assert!(refused.to_string().contains(expected), "{expected}: {refused}");
    }
    let mut unknown = manifest();
    unknown["urls"] = json!([]);
    let refused = PatchManifest::parse(&serde_json::to_vec(&unknown).unwrap(), &digest());
    assert!(matches!(refused, Err(PatchManifestError::Json { .. })));
    let long = vec![b' '; crate::image::manifest::MANIFEST_BYTES_MAX as usize + 1];
    assert!(matches!(PatchManifest::parse(&long, &digest()), Err(PatchManifestError::TooLong { .. })));
}
