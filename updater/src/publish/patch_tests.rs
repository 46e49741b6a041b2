//! Patches between synthetic images, applied as a device does it.
//!
//! Not here: lies in a header (`image::patch`), registries (`attach`). Rule: what an entry makes is the target's bytes, and
//! each kind of change costs about what changed.

use std::sync::Arc;

use super::*;
use crate::image::chunker::noise;
use crate::image::patch::{self, Entry};
use crate::publish::layer::{LayerOptions, write_layer};
use crate::publish::like::KnownChunks;

const BLOCK: usize = 4096;

/// An image with its index.
struct Image {
    raw: Vec<u8>,
    file: RawImage,
    index: Index,
}

impl Image {
    fn new(raw: Vec<u8>) -> Image {
        Image::like(raw, KnownChunks::default())
    }

    fn like(raw: Vec<u8>, known: KnownChunks) -> Image {
        let options =
            LayerOptions { level: 3, threads: 2, known: Arc::new(known), ..LayerOptions::default() };
        let layer = write_layer(raw.as_slice(), io::sink(), &options, &|_| {}).unwrap();
        let index = Index::parse(&layer.index, layer.raw_bytes, layer.blob_bytes).unwrap();
        Image { file: RawImage::of(&raw), raw, index }
    }

    fn side(&self) -> Side<'_> {
        Side { index: &self.index, raw: &self.file }
    }
}

fn make(base: &Image, target: &Image, threads: usize) -> Option<(MadePatch, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let job = Job::new(target.side(), base.side());
    let done = std::sync::atomic::AtomicU64::new(0);
    let told = |bytes| {
        done.fetch_add(bytes, Ordering::Relaxed);
    };
    let made = job.make(&PatchOptions { level: 6, threads }, dir.path(), &told).unwrap()?;
    assert_eq!(done.load(Ordering::Relaxed), job.raw_bytes());
    let blob = std::fs::read(made.blob.path()).unwrap();
    assert_eq!((made.digest, made.bytes), (Digest::of(&blob), blob.len() as u64));
    Some((made, blob))
}

/// Applies every entry and compares what it makes with the target.
fn check(base: &Image, target: &Image, blob: &[u8], header: &PatchHeader) -> u64 {
    let header_frame = &blob[..header.size as usize];
    assert_eq!(Digest::of(header_frame), header.digest);
    let patch = Patch::parse(header_frame, blob.len() as u64, &target.index, base.raw.len() as u64).unwrap();
    let mut made = Vec::new();
    for entry in patch.entries() {
        let compressed = &blob[entry.blob.start as usize..entry.blob.end as usize];
        let prefix = prefix(base, &entry);
        patch::decode(&prefix, compressed, entry.raw_bytes(), &mut made).unwrap();
        assert!(made == target.raw[entry.raw.start as usize..entry.raw.end as usize], "{entry:?}");
    }
    patch.entries().map(|entry| entry.raw_bytes() as u64).sum()
}

fn prefix(base: &Image, entry: &Entry<'_>) -> Vec<u8> {
    let window = |offset: u64, bytes: u32| &base.raw[offset as usize..offset as usize + bytes as usize];
    entry.windows.iter().flat_map(|w| window(w.offset, w.bytes)).copied().collect()
}

fn known(base: &Image, target: &Image) -> Lookup {
    let mut finder = Finder::new(&target.index);
    finder.add(Place::Running, &base.index);
    finder.finish(&target.index)
}

/// Bytes of the target's own blob that a device with `base` fetches, without a patch.
fn plain(base: &Image, target: &Image) -> u64 {
    let lookup = known(base, target);
    let frames = target.index.spans().filter(|frame| lacks(frame, &lookup));
    frames.map(|frame| frame.blob.end - frame.blob.start).sum()
}

#[test]
fn the_zstd_program_makes_the_same_of_an_entry_and_its_windows() {
    let base = Image::new(noise(300, 9));
    let mut raw = base.raw.clone();
    raw[500_000] ^= 1;
    let target = Image::new(raw);
    let (made, blob) = make(&base, &target, 1).unwrap();
    let header = &blob[..made.header.size as usize];
    let patch = Patch::parse(header, made.bytes, &target.index, base.raw.len() as u64).unwrap();
    let entry = patch.entry(0).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (frame, windows) = (dir.path().join("frame.zst"), dir.path().join("windows"));
    std::fs::write(&frame, &blob[entry.blob.start as usize..entry.blob.end as usize]).unwrap();
    std::fs::write(&windows, prefix(&base, &entry)).unwrap();
    let patch_from = format!("--patch-from={}", windows.display());
    let mut zstd = std::process::Command::new("zstd");
    let output = zstd.args(["-d", "-c", "-q", &patch_from]).arg(&frame).output();
    let output = output.expect("the test needs the program zstd: apt-get install zstd");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == target.raw[entry.raw.start as usize..entry.raw.end as usize]);
}

type Change = fn(&mut Vec<u8>);

#[test]
fn each_kind_of_change_costs_about_what_changed() {
    let cases: [(&str, Change, u64); 6] = [
        (
            "sixteen bytes here and there",
            |raw| (0..20).for_each(|n| raw[n * 200_000 + 1000..][..16].copy_from_slice(&[n as u8; 16])),
            20 * 120,
        ),
        (
            "blocks inserted",
            |raw| drop(raw.splice(500 * BLOCK..500 * BLOCK, noise(3, 99))),
            3 * BLOCK as u64 + 400,
        ),
        ("blocks taken out", |raw| drop(raw.drain(500 * BLOCK..503 * BLOCK)), 400),
        (
            "bytes inserted, so that no later block of a run lies at a block's border",
            |raw| {
                raw.splice(300 * BLOCK + 100..300 * BLOCK + 100, [7; 37]);
                raw.drain(420 * BLOCK..420 * BLOCK + 37);
            },
            3000,
        ),
        (
            "a piece that moved far away and changed, among zeros",
            |raw| {
                let mut piece = raw[900 * BLOCK..930 * BLOCK].to_vec();
                (0..30).for_each(|n| piece[n * BLOCK + 50] ^= 1);
                raw.extend(vec![0; 50 * BLOCK]);
                raw.extend(piece);
                raw.extend(vec![0; 50 * BLOCK]);
            },
            2500,
        ),
        (
            "pieces from four places, woven together",
            |raw| {
                let woven: Vec<u8> = (0..40)
                    .flat_map(|n| {
                        let mut block = raw[(100 + n % 4 * 250 + n / 4) * BLOCK..][..BLOCK].to_vec();
                        block[2000] ^= 1;
                        block
                    })
                    .collect();
                raw.splice(700 * BLOCK..700 * BLOCK, woven);
            },
            4000,
        ),
    ];
    let base = Image::new(noise(1024, 1));
    for (what, change, most) in cases {
        let mut raw = base.raw.clone();
        change(&mut raw);
        let target = Image::new(raw);
        let (made, blob) = make(&base, &target, 2).unwrap();
        let covered = check(&base, &target, &blob, &made.header);
        let left = Job::new(target.side(), base.side()).raw_bytes();
        assert_eq!(covered, left, "{what}: all that the base lacks is patched");
        let plain = plain(&base, &target);
        assert!(made.bytes <= most && most < plain, "{what}: {} bytes, {plain} without", made.bytes);
        // 36 bytes and the zstd frame, and 35 for an entry with all its windows.
        assert!(made.header.size < 60 + 35 * made.entries, "{what}: {:?}", made.header);
    }
}

#[test]
fn the_patch_does_not_depend_on_the_threads_and_groups_of_chunks_are_patched_as_well() {
    let base = Image::new(noise(2048, 2));
    let mut known = KnownChunks::default();
    known.add(&base.index);
    let mut raw = base.raw.clone();
    (0..2000).for_each(|n| raw[2_000_000 + n * 900] ^= 1);
    raw.splice(50 * BLOCK..50 * BLOCK, noise(20, 3));
    let target = Image::like(raw, known);
    let (one, blob) = make(&base, &target, 1).unwrap();
    let (_, again) = make(&base, &target, 3).unwrap();
    assert!(blob == again);
    check(&base, &target, &blob, &one.header);
    assert!(one.bytes * 10 < plain(&base, &target), "{} bytes", one.bytes);
}

#[test]
fn where_the_base_is_of_no_use_there_is_no_patch() {
    let base = Image::new(noise(200, 4));
    assert!(make(&base, &Image::new(base.raw.clone()), 2).is_none(), "nothing changed");
    assert!(make(&base, &Image::new(noise(200, 5)), 2).is_none(), "nothing is the same");
    assert!(make(&base, &Image::new(vec![0; 300 * BLOCK]), 2).is_none(), "nothing is there");
    let nothing = Image::new(Vec::new());
    assert!(make(&nothing, &base, 2).is_none(), "nothing was there");
}

#[test]
fn runs_are_cut_at_zeros_and_at_the_length_of_an_entry() {
    let mut raw = noise(200, 6);
    raw.extend(vec![0; 10 * BLOCK]);
    raw.extend(noise(5, 7));
    let (base, target) = (Image::new(Vec::new()), Image::new(raw));
    let lookup = known(&base, &target);
    let runs = runs(&target.index, &lookup);
    let lengths: Vec<u64> = runs.iter().map(|run| raw_bytes(&target.index, &run.frames)).collect();
    assert!(lengths.len() >= 5 && lengths.iter().all(|bytes| *bytes <= u64::from(ENTRY_RAW_BYTES_MAX)));
    assert_eq!((lengths.iter().sum::<u64>(), lengths.last()), (205 * 4096, Some(&(5 * 4096))));
}

#[test]
fn a_sketch_finds_where_a_changed_piece_came_from() {
    let base = Image::new(noise(2000, 8));
    let sketch = Sketch::new(&base.index, &base.file).unwrap();
    let mut piece = base.raw[500 * BLOCK..520 * BLOCK].to_vec();
    (0..100).for_each(|n| piece[n * 700] ^= 1);
    let found = sketch.find(&piece, 9 * BLOCK as u64);
    assert_eq!(found.diagonals[0], 491 * BLOCK as i64);
    let (first, within) = (&found.pieces[0], 500 * BLOCK as i64 - 256..520 * BLOCK as i64 + 256);
    assert!(within.contains(&first.start) && within.contains(&first.end), "{found:?}");
    assert_eq!(sketch.find(&vec![5; 20 * BLOCK], 0), Default::default());
}
