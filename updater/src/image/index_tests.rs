//! The index against lies, noise and large numbers.
//!
//! Not here: chunks' bytes and whole layers (`publish::layer`). Rule: each lie is refused by its own name, whatever is
//! wrong the parser neither panics nor reserves more than the signed length allows.

use proptest::prelude::*;
use sha2::Digest as _;

use super::*;

const GIB: u64 = 1 << 30;
const BLOCK: u32 = BLOCK_BYTES;

/// A page as it is written, with every number free to lie.
#[derive(Debug, Clone)]
struct Page {
    frames: Vec<(u32, u32, u16)>,
    chunks: Vec<ChunkRef>,
    raw_bytes: u64,
    blob_bytes: u64,
    frame_count: u16,
    chunk_count: u16,
    sha256: Option<[u8; 32]>,
    tail: Vec<u8>,
}

/// An index as it is written.
#[derive(Debug, Clone)]
struct Draft {
    magic: [u8; 8],
    version: u32,
    page_count: u32,
    raw_bytes: u64,
    blob_bytes: u64,
    pages: Vec<Page>,
    root_tail: Vec<u8>,
}

impl Draft {
    /// Two honest pages: sixteen frames of one chunk and one of two; a zero run and a chunk.
    fn honest() -> Draft {
        let chunk = |number: u8, blocks: u32| ChunkRef { raw_bytes: blocks * BLOCK, sha256: [number; 32] };
        let mut first: Vec<(u32, Vec<ChunkRef>)> = (0..16).map(|n| (100, vec![chunk(n, 2)])).collect();
        first.push((300, vec![chunk(20, 1), chunk(21, 4)]));
        let pages = vec![page(&first, &[]), page(&[(90, vec![chunk(30, 16)])], &[(17, 64 * BLOCK)])];
        let sum = |of: fn(&Page) -> u64| pages.iter().map(of).sum();
        Draft {
            magic: *b"SWBINDEX",
            version: 1,
            page_count: 2,
            raw_bytes: sum(|page| page.raw_bytes),
            blob_bytes: sum(|page| page.blob_bytes),
            pages,
            root_tail: Vec::new(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut root = Vec::new();
        root.extend(self.magic);
        root.extend(self.version.to_le_bytes());
        root.extend(self.page_count.to_le_bytes());
        root.extend(self.raw_bytes.to_le_bytes());
        root.extend(self.blob_bytes.to_le_bytes());
        let mut pages = Vec::new();
        for page in &self.pages {
            let compressed = page.compressed();
            root.extend((compressed.len() as u32).to_le_bytes());
            root.extend(page.frame_count.to_le_bytes());
            root.extend(page.chunk_count.to_le_bytes());
            root.extend(page.raw_bytes.to_le_bytes());
            root.extend(page.blob_bytes.to_le_bytes());
            root.extend(page.sha256.unwrap_or_else(|| sha2::Sha256::digest(&compressed).into()));
            pages.extend(compressed);
        }
        root.extend(&self.root_tail);
        let mut whole = zstd::bulk::compress(&root, 3).unwrap();
        whole.extend(pages);
        whole
    }
}

impl Page {
    fn compressed(&self) -> Vec<u8> {
        let mut page = Vec::new();
        self.frames.iter().for_each(|frame| page.extend(frame.0.to_le_bytes()));
        self.frames.iter().for_each(|frame| page.extend(frame.1.to_le_bytes()));
        self.frames.iter().for_each(|frame| page.extend(frame.2.to_le_bytes()));
        self.chunks.iter().for_each(|chunk| page.extend(chunk.raw_bytes.to_le_bytes()));
        self.chunks.iter().for_each(|chunk| page.extend(chunk.sha256));
        page.extend(&self.tail);
        zstd::bulk::compress(&page, 3).unwrap()
    }
}

/// A page of frames with chunks, then zero runs (blob bytes, raw bytes).
fn page(frames: &[(u32, Vec<ChunkRef>)], zeros: &[(u32, u32)]) -> Page {
    let length = |chunks: &[ChunkRef]| chunks.iter().map(|chunk| chunk.raw_bytes).sum::<u32>();
    let mut list: Vec<(u32, u32, u16)> =
        frames.iter().map(|(blob, chunks)| (*blob, length(chunks), chunks.len() as u16)).collect();
    list.extend(zeros.iter().map(|(blob, raw)| (*blob, *raw, 0)));
    let chunks: Vec<ChunkRef> = frames.iter().flat_map(|(_, chunks)| chunks.clone()).collect();
    Page {
        raw_bytes: list.iter().map(|frame| u64::from(frame.1)).sum(),
        blob_bytes: list.iter().map(|frame| u64::from(frame.0)).sum(),
        frame_count: list.len() as u16,
        chunk_count: chunks.len() as u16,
        frames: list,
        chunks,
        sha256: None,
        tail: Vec::new(),
    }
}

fn parse(draft: &Draft) -> Result<Index, IndexError> {
    let Draft { raw_bytes, blob_bytes, .. } = Draft::honest();
    Index::parse(&draft.bytes(), raw_bytes, blob_bytes)
}

#[test]
fn an_honest_index_gives_every_frame_with_its_place_and_chunks() {
    let draft = Draft::honest();
    let index = parse(&draft).unwrap();
    assert_eq!((index.raw_bytes(), index.blob_bytes()), (draft.raw_bytes, draft.blob_bytes));
    assert_eq!((index.frames().len(), index.chunk_count()), (19, 19));
    let grouped = index.frame(16).unwrap();
    assert_eq!((grouped.blob_offset, grouped.blob_bytes), (1600, 300));
    assert_eq!((grouped.raw_offset, grouped.raw_bytes), (u64::from(32 * BLOCK), u64::from(5 * BLOCK)));
    assert_eq!(grouped.body, FrameBody::Chunks(&draft.pages[0].chunks[16..]));
    let last = index.frames().last().unwrap();
    assert_eq!((last.body, last.raw_bytes, last.blob_offset), (FrameBody::Zero, u64::from(64 * BLOCK), 1990));
    assert!(index.frame(19).is_none());
}

/// What is wrong, how, and how the refusal begins.
type Case = (&'static str, fn(&mut Draft), fn(&Lie) -> bool);

const LIES: &[Case] = &[
    ("another magic", |d| d.magic[0] = b'X', |lie| matches!(lie, Lie::Magic)),
    ("a later version", |d| d.version = 2, |lie| matches!(lie, Lie::Version { found: 2 })),
    (
        "a raw length that was not signed",
        |d| d.raw_bytes += 4096,
        |lie| matches!(lie, Lie::SignedLength { span: Span::Raw, .. }),
    ),
    (
        "a blob length that was not signed",
        |d| d.blob_bytes -= 1,
        |lie| matches!(lie, Lie::SignedLength { span: Span::Blob, .. }),
    ),
    (
        "four thousand million pages",
        |d| d.page_count = u32::MAX,
        |lie| matches!(lie, Lie::TooManyPages { .. }),
    ),
    ("a page more than is there", |d| d.page_count = 3, |lie| matches!(lie, Lie::Length { .. })),
    ("a page fewer than is there", |d| d.page_count = 1, |lie| matches!(lie, Lie::Length { .. })),
    ("bytes behind the root", |d| d.root_tail = vec![0; 3], |lie| matches!(lie, Lie::Length { .. })),
    (
        "a page that was dropped with its bytes",
        |d| {
            d.pages.pop();
            d.page_count = 1;
        },
        |lie| matches!(lie, Lie::Gap { span: Span::Raw, .. }),
    ),
    (
        "a page that is there twice",
        |d| {
            d.pages.insert(0, d.pages[0].clone());
            d.page_count = 3;
        },
        |lie| matches!(lie, Lie::Overlap { span: Span::Blob, .. }),
    ),
    ("a page with another hash", |d| d.pages[1].sha256 = Some([7; 32]), |lie| matches!(lie, Lie::PageHash)),
    (
        "a page without frames",
        |d| d.pages[1].frame_count = 0,
        |lie| matches!(lie, Lie::PageEntries { page: 1, .. }),
    ),
    (
        "a page of too many frames",
        |d| d.pages[0].frame_count = 257,
        |lie| matches!(lie, Lie::PageEntries { page: 0, .. }),
    ),
    (
        "many small pages",
        |d| {
            d.pages.swap(0, 1);
        },
        |lie| matches!(lie, Lie::PageEntries { page: 0, .. }),
    ),
    (
        "a page whose raw length is no whole blocks",
        |d| d.pages[0].raw_bytes += 1,
        |lie| matches!(lie, Lie::PageRaw { page: 0, .. }),
    ),
    (
        "a page whose raw length overflows",
        |d| d.pages[1].raw_bytes = u64::MAX - 4095,
        |lie| matches!(lie, Lie::PageRaw { page: 1, .. }),
    ),
    (
        "pages that overlap in the raw image",
        |d| d.pages[0].raw_bytes += u64::from(128 * BLOCK),
        |lie| matches!(lie, Lie::Overlap { span: Span::Raw, .. }),
    ),
    (
        "pages that leave a gap in the raw image",
        |d| d.pages[0].raw_bytes -= 4096,
        |lie| matches!(lie, Lie::Gap { span: Span::Raw, bytes: 4096 }),
    ),
    (
        "pages that overlap in the blob",
        |d| d.pages[1].blob_bytes = u64::MAX,
        |lie| matches!(lie, Lie::Overlap { span: Span::Blob, .. }),
    ),
    (
        "pages that leave a gap in the blob",
        |d| d.pages[1].blob_bytes -= 5,
        |lie| matches!(lie, Lie::Gap { span: Span::Blob, bytes: 5 }),
    ),
    (
        "more chunks than the page has bytes for",
        |d| d.pages[0].chunk_count += 1,
        |lie| matches!(lie, Lie::Frame(FrameError::RawLength { .. })),
    ),
    (
        "bytes behind the page",
        |d| d.pages[1].tail = vec![0; 50_000_000],
        |lie| matches!(lie, Lie::Frame(FrameError::RawLength { expected: 56 })),
    ),
    (
        "a frame that takes its neighbour's chunk too",
        |d| d.pages[0].frames[16].2 = 3,
        |lie| matches!(lie, Lie::ChunkCount { frame: 16, found: 3, left: 2 }),
    ),
    (
        "a chunk of no frame",
        |d| {
            d.pages[0].frames[16].2 = 1;
            d.pages[0].frames[16].1 = BLOCK;
            d.pages[0].frames[15].1 += 4 * BLOCK;
        },
        |lie| matches!(lie, Lie::FrameSum { frame: 15, .. }),
    ),
    (
        "a frame that became a zero run",
        |d| {
            d.pages[1].frames[0].2 = 0;
        },
        |lie| matches!(lie, Lie::OrphanChunks { left: 1 }),
    ),
    (
        "a frame whose raw length is not its chunks'",
        |d| d.pages[0].frames[3].1 += BLOCK,
        |lie| matches!(lie, Lie::FrameSum { frame: 3, .. }),
    ),
    (
        "frames that overlap in the raw image",
        |d| d.pages[1].frames[1].1 += BLOCK,
        |lie| matches!(lie, Lie::Overlap { span: Span::Raw, bytes: 4096 }),
    ),
    (
        "frames that leave a gap in the raw image",
        |d| d.pages[1].frames[1].1 -= BLOCK,
        |lie| matches!(lie, Lie::Gap { span: Span::Raw, bytes: 4096 }),
    ),
    (
        "frames that overlap in the blob",
        |d| d.pages[1].frames[0].0 += 9,
        |lie| matches!(lie, Lie::Overlap { span: Span::Blob, bytes: 9 }),
    ),
    (
        "frames that leave a gap in the blob",
        |d| d.pages[1].frames[0].0 -= 9,
        |lie| matches!(lie, Lie::Gap { span: Span::Blob, bytes: 9 }),
    ),
    (
        "a frame of no bytes in the blob",
        |d| d.pages[0].frames[0].0 = 0,
        |lie| matches!(lie, Lie::FrameBlob { frame: 0, blob_bytes: 0, .. }),
    ),
    (
        "a frame far longer than its content",
        |d| d.pages[0].frames[0].0 = u32::MAX,
        |lie| matches!(lie, Lie::FrameBlob { frame: 0, .. }),
    ),
    (
        "a chunk of no bytes",
        |d| d.pages[0].chunks[0].raw_bytes = 0,
        |lie| matches!(lie, Lie::ChunkRaw { frame: 0, raw_bytes: 0 }),
    ),
    (
        "a chunk that is too long",
        |d| {
            d.pages[1].chunks[0].raw_bytes = CHUNK_RAW_BYTES_MAX + BLOCK;
            d.pages[1].frames[0].1 = CHUNK_RAW_BYTES_MAX + BLOCK;
        },
        |lie| matches!(lie, Lie::ChunkRaw { frame: 0, .. }),
    ),
    (
        "a frame that needs a larger buffer",
        |d| d.pages[0].frames[16].1 = FRAME_RAW_BYTES_MAX + BLOCK,
        |lie| matches!(lie, Lie::FrameRaw { frame: 16, .. }),
    ),
    (
        "a zero run that is too long",
        |d| d.pages[1].frames[1].1 = ZERO_RAW_BYTES_MAX + BLOCK,
        |lie| matches!(lie, Lie::FrameRaw { frame: 1, .. }),
    ),
];

#[test]
fn every_lie_is_refused_by_its_own_name() {
    for (what, lie, refused) in LIES {
        let mut draft = Draft::honest();
        lie(&mut draft);
        match parse(&draft) {
            Err(error) => assert!(refused(&error.lie), "{what}: {error}"),
            Ok(_) => panic!("{what}: accepted"),
        }
    }
}

#[test]
fn a_blob_that_is_cut_extended_or_no_zstd_at_all_is_refused() {
    let (draft, honest) = (Draft::honest(), Draft::honest().bytes());
    let parse = |bytes: &[u8]| Index::parse(bytes, draft.raw_bytes, draft.blob_bytes);
    for cut in 0..honest.len() {
        assert!(parse(&honest[..cut]).is_err(), "cut at {cut}");
    }
    let longer = [honest.as_slice(), &[0]].concat();
    assert!(matches!(parse(&longer).unwrap_err().lie, Lie::PagesLength { .. }));
    let skippable = [b"\x50\x2a\x4d\x18\x04\0\0\0abcd".as_slice(), &honest].concat();
    assert_eq!(parse(&skippable).unwrap_err().lie, Lie::Frame(FrameError::NotZstd));
    let huge = vec![0; Index::blob_bytes_max(draft.raw_bytes) as usize + 1];
    assert!(matches!(parse(&huge).unwrap_err().lie, Lie::TooLong { .. }));
}

#[test]
fn a_root_that_decodes_to_far_more_than_such_an_image_can_have_is_refused_unread() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
    assert!(bomb.len() < 16_384);
    let error = Index::parse(&bomb, 1 << 20, 1000).unwrap_err();
    assert!(matches!(error.lie, Lie::Length { found, .. } if found == 64 << 20), "{error}");
}

#[test]
fn root_and_pages_can_be_taken_one_by_one_in_order_only() {
    let draft = Draft::honest();
    let whole = draft.bytes();
    let root_bytes = crate::image::frame::frame_bytes(&whole).unwrap();
    let root = Root::parse(&whole[..root_bytes], draft.raw_bytes, draft.blob_bytes).unwrap();
    let [first, second] = root.pages() else { panic!("{root:?}") };
    let bytes =
        |page: &PageRef| &whole[root_bytes + page.index_offset as usize..][..page.index_bytes as usize];

    let mut swapped = Assembler::new(&root).unwrap();
    assert_eq!(swapped.push_page(bytes(second)).unwrap_err().lie, Lie::PageHash);

    let mut short = Assembler::new(&root).unwrap();
    short.push_page(bytes(first)).unwrap();
    assert_eq!(short.finish().unwrap_err().lie, Lie::MissingPages { missing: 1 });

    let mut whole_index = Assembler::new(&root).unwrap();
    whole_index.push_page(bytes(first)).unwrap();
    whole_index.push_page(bytes(second)).unwrap();
    assert_eq!(whole_index.push_page(bytes(second)).unwrap_err().lie, Lie::ExtraPage);
    assert_eq!(whole_index.finish().unwrap(), parse(&draft).unwrap());
}

/// An index of zero runs with single chunks between them, so that gigabytes need no data.
fn sparse(raw_bytes: u64) -> (BuiltIndex, u64) {
    let mut writer = IndexWriter::new().unwrap();
    let (mut left, mut number) = (raw_bytes, 0u64);
    while left > 0 {
        let zero = left.min(u64::from(ZERO_RAW_BYTES_MAX));
        writer.push_frame(2000, zero as u32, &[]).unwrap();
        left -= zero;
        let chunk = left.min(u64::from(BLOCK)) as u32;
        if chunk != 0 {
            let sha256 = sha2::Sha256::digest(number.to_le_bytes()).into();
            writer.push_frame(4000, chunk, &[ChunkRef { raw_bytes: chunk, sha256 }]).unwrap();
            left -= u64::from(chunk);
        }
        number += 1;
    }
    (writer.finish().unwrap(), raw_bytes)
}

#[test]
fn lengths_around_two_and_four_gib_and_beyond_stay_exact() {
    for edge in [2 * GIB, 4 * GIB, 64 * GIB] {
        for raw_bytes in [edge - 4096, edge, edge + 4096] {
            let (built, _) = sparse(raw_bytes);
            let index = Index::parse(&built.blob, raw_bytes, built.blob_bytes).unwrap();
            assert_eq!((index.raw_bytes(), built.raw_bytes), (raw_bytes, raw_bytes));
            let last = index.frames().last().unwrap();
            assert_eq!(last.raw_offset + last.raw_bytes, raw_bytes);
            assert!(Index::parse(&built.blob, raw_bytes + (1 << 32), built.blob_bytes).is_err());
            assert!(Index::parse(&built.blob, raw_bytes ^ (1 << 31), built.blob_bytes).is_err());
        }
    }
}

#[test]
fn blob_offsets_beyond_four_gib_stay_exact() {
    // Every frame as long as its 256 KiB can become: 17,000 of them are more than 4 GiB of blob.
    let chunk = |n: u32| ChunkRef { raw_bytes: 65536, sha256: sha2::Sha256::digest(n.to_le_bytes()).into() };
    let mut writer = IndexWriter::new().unwrap();
    for n in 0..17_000 {
        let chunks: [ChunkRef; 4] = std::array::from_fn(|k| chunk(n * 4 + k as u32));
        writer.push_frame(262_144, 262_144, &chunks).unwrap();
    }
    let built = writer.finish().unwrap();
    let index = Index::parse(&built.blob, 17_000 << 18, 17_000 << 18).unwrap();
    let last = index.frames().next_back().unwrap();
    assert_eq!((last.blob_offset, last.raw_offset), (16_999 << 18, 16_999 << 18));
}

#[test]
fn one_gib_in_65536_chunks_takes_less_than_six_mib_and_pages_of_about_64() {
    let mut writer = IndexWriter::new().unwrap();
    for n in 0..65_536u32 {
        let sha256 = sha2::Sha256::digest(n.to_le_bytes()).into();
        writer.push_frame(6000, 16_384, &[ChunkRef { raw_bytes: 16_384, sha256 }]).unwrap();
    }
    let built = writer.finish().unwrap();
    let index = Index::parse(&built.blob, GIB, built.blob_bytes).unwrap();
    let held = index.outline.held_bytes() + index.chunks.capacity() * size_of::<ChunkRef>();
    assert!(held < 4 << 20, "{held} bytes in memory");
    let held = index.clone().into_outline().held_bytes();
    assert!(held < 10 * 65_536, "{held} bytes in memory without hashes");
    assert!((built.blob.len() as u64) < Index::blob_bytes_max(GIB) / 5, "{} bytes", built.blob.len());
    let root = Root::parse(&built.blob[..built.root_bytes as usize], GIB, built.blob_bytes).unwrap();
    let mean = 65_536 / root.pages().len();
    assert!((56..=72).contains(&mean), "{mean} chunks a page");
}

#[test]
fn the_worst_honest_index_fits_the_bound_that_fetchers_use() {
    let mut writer = IndexWriter::new().unwrap();
    let raw_bytes = 64u64 << 20;
    for n in 0..raw_bytes / 4096 {
        let sha256 = sha2::Sha256::digest(n.to_le_bytes()).into();
        writer
            .push_frame(
                1 + (n as u32).wrapping_mul(2_654_435_761) % 4000,
                4096,
                &[ChunkRef { raw_bytes: 4096, sha256 }],
            )
            .unwrap();
    }
    let built = writer.finish().unwrap();
    assert!(built.blob.len() as u64 <= Index::blob_bytes_max(raw_bytes), "{} bytes", built.blob.len());
}

#[test]
fn the_writer_refuses_what_the_reader_would_refuse() {
    let mut writer = IndexWriter::new().unwrap();
    let chunk = ChunkRef { raw_bytes: 4096, sha256: [0; 32] };
    for (blob, raw, chunks) in
        [(0, 4096, vec![chunk]), (9, 8192, vec![chunk]), (9, 4097, vec![]), (9, 0, vec![])]
    {
        assert!(writer.push_frame(blob, raw, &chunks).is_err(), "{blob} {raw} {chunks:?}");
    }
}

#[test]
fn an_empty_image_has_an_empty_index() {
    let built = IndexWriter::new().unwrap().finish().unwrap();
    let index = Index::parse(&built.blob, 0, 0).unwrap();
    assert_eq!((index.raw_bytes(), index.frames().len()), (0, 0));
}

// What a fuzzer would do, in a small way and on every run: no input panics, none is accepted that leaves a byte uncovered.
proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), raw in any::<u64>(), blob in any::<u64>()) {
        prop_assert!(Index::parse(&bytes, raw, blob).is_err() || raw == 0);
    }

    #[test]
    fn an_arbitrary_root_behind_an_honest_head_never_panics(rest in prop::collection::vec(any::<u8>(), 0..400), raw in 0..64 * GIB) {
        let mut root = b"SWBINDEX\x01\0\0\0".to_vec();
        root.extend(((rest.len() / 56) as u32).to_le_bytes());
        root.extend(raw.to_le_bytes());
        root.extend(1000u64.to_le_bytes());
        root.extend(&rest);
        let blob = zstd::bulk::compress(&root, 1).unwrap();
        let _refused_or_not = Index::parse(&blob, raw, 1000);
    }

    #[test]
    fn a_mutated_index_is_refused_or_still_covers_the_whole_image(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        page_edits in prop::collection::vec((0..2usize, 0..7usize, 0..20usize, any::<u32>()), 0..3),
    ) {
        let mut draft = Draft::honest();
        for (page, field, number, value) in page_edits {
            let page = &mut draft.pages[page];
            let (frame, chunk) = (number % page.frames.len(), number % page.chunks.len());
            match field {
                0 => page.frames[frame].0 = value,
                1 => page.frames[frame].1 = value,
                2 => page.frames[frame].2 = value as u16,
                3 => page.chunks[chunk].raw_bytes = value,
                4 => page.raw_bytes = u64::from(value) << number,
                5 => page.blob_bytes = u64::from(value) << number,
                _ => page.chunk_count = value as u16,
            }
        }
        check_cover(&draft.bytes());
        let mut bytes = Draft::honest().bytes();
        for (place, value) in edits {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        check_cover(&bytes);
    }
}

fn check_cover(bytes: &[u8]) {
    let Draft { raw_bytes, blob_bytes, .. } = Draft::honest();
    let Ok(index) = Index::parse(bytes, raw_bytes, blob_bytes) else { return };
    let (mut raw, mut blob) = (0, 0);
    for frame in index.frames() {
        assert_eq!((frame.raw_offset, frame.blob_offset), (raw, blob));
        raw += frame.raw_bytes;
        blob += u64::from(frame.blob_bytes);
    }
    assert_eq!((raw, blob), (raw_bytes, blob_bytes));
}
