//! Trees compared with those of the real `veritysetup`, and what happens to a tree or data that changed.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::device::{Access, BlockDevice, FileDevice, MemDevice};
use crate::testing::tool;

fn params(data_blocks: u64) -> VerityParams {
    VerityParams {
        salt: (0..32).collect(),
        uuid: Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888),
        data_block_bytes: 4096,
        hash_block_bytes: 4096,
        data_blocks,
    }
}

/// Block-sized pieces that differ, every fifth of them zero.
fn data_of(params: &VerityParams) -> Vec<u8> {
    let block = params.data_block_bytes as usize;
    let mut data = vec![0; params.data_bytes() as usize];
    for (index, piece) in data.chunks_exact_mut(block).enumerate() {
        if index % 5 != 3 {
            piece.fill((index % 251) as u8 + 1);
            piece[..8].copy_from_slice(&(index as u64).to_le_bytes());
        }
    }
    data
}

fn tree_of(params: &VerityParams, data: &[u8]) -> (Arc<MemDevice>, RootHash) {
    let device = Arc::new(MemDevice::new(tree_bytes(params).unwrap() as usize, 512));
    let mut writer = TreeWriter::new(params.clone(), device.clone()).unwrap();
    let block = params.data_block_bytes as usize;
    // Zero blocks go the short way, as they do when an image is installed.
    for piece in data.chunks_exact(block) {
        if piece.iter().all(|byte| *byte == 0) {
            writer.push_zeros(1).unwrap()
        } else {
            writer.push(piece).unwrap()
        }
    }
    let root = writer.finish().unwrap();
    (device, root)
}

fn veritysetup_format(params: &VerityParams, data: &Path, hash: &Path) -> RootHash {
    let salt = if params.salt.is_empty() { "-".to_owned() } else { hex::encode(&params.salt) };
    let output = Command::new(tool("veritysetup", "cryptsetup-bin"))
        .args(["format", "--salt", &salt, "--uuid", &params.uuid.to_string()])
        .args(["--data-block-size", &params.data_block_bytes.to_string()])
        .args(["--hash-block-size", &params.hash_block_bytes.to_string()])
        .args([data, hash])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let root = text.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap();
    root.trim().parse().unwrap()
}

#[test]
fn trees_are_bit_identical_to_those_of_veritysetup() {
    let with = |blocks, change: fn(&mut VerityParams)| {
        let mut params = params(blocks);
        change(&mut params);
        params
    };
    let cases = [
        ("one block: its digest is the root hash", params(1)),
        ("two blocks: the smallest tree", params(2)),
        ("one full tree block", params(128)),
        ("one digest more: a second level", params(129)),
        ("two full levels", params(128 * 128)),
        ("one digest more: a third level", params(128 * 128 + 1)),
        ("no salt", with(300, |params| params.salt.clear())),
        ("the longest salt", with(300, |params| params.salt = vec![7; 256])),
        ("small data blocks", with(1000, |params| params.data_block_bytes = 512)),
        ("small hash blocks", with(1000, |params| params.hash_block_bytes = 512)),
        ("hash blocks of 1 KiB", with(1025, |params| params.hash_block_bytes = 1024)),
    ];
    let folder = tempfile::tempdir().unwrap();
    let (data_path, hash_path) = (folder.path().join("data"), folder.path().join("hash"));
    for (why, params) in cases {
        let data = data_of(&params);
        std::fs::write(&data_path, &data).unwrap();
        std::fs::write(&hash_path, b"").unwrap();
        let expected_root = veritysetup_format(&params, &data_path, &hash_path);
        let (tree, root) = tree_of(&params, &data);
        assert_eq!(root, expected_root, "{why}");
        assert!(tree.to_bytes() == std::fs::read(&hash_path).unwrap(), "{why}: the trees differ");
        assert_eq!(root_hash_of(&params, data.as_slice()).unwrap(), root, "{why}");
        let theirs = FileDevice::open(&hash_path, Access::Read).unwrap();
        assert_eq!(read_superblock(&theirs).unwrap(), params, "{why}");
        verify(&MemDevice::from_bytes(data, 512), &theirs, &root).unwrap();
    }
}

#[test]
fn veritysetup_accepts_a_tree_of_ours_on_a_larger_device() {
    let params = params(1000);
    let data = data_of(&params);
    let folder = tempfile::tempdir().unwrap();
    let (data_path, hash_path) = (folder.path().join("data"), folder.path().join("hash"));
    std::fs::write(&data_path, &data).unwrap();
    std::fs::write(&hash_path, vec![0xEE; 1 << 20]).unwrap();
    let device = Arc::new(FileDevice::open(&hash_path, Access::ReadWrite).unwrap());
    let mut writer = TreeWriter::new(params, device.clone()).unwrap();
    writer.push(&data).unwrap();
    let root = writer.finish().unwrap();
    device.flush().unwrap();
    let status = Command::new(tool("veritysetup", "cryptsetup-bin"))
        .args(["verify".as_ref(), data_path.as_os_str(), hash_path.as_os_str(), root.to_string().as_ref()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn what_veritysetup_refuses_is_refused() {
    type Change = fn(&mut VerityParams);
    let cases: [(&str, Change); 6] = [
        ("no data", |params| params.data_blocks = 0),
        ("salt too long", |params| params.salt = vec![0; 257]),
        ("data blocks no power of two", |params| params.data_block_bytes = 5000),
        ("hash blocks too small", |params| params.hash_block_bytes = 256),
        ("hash blocks of nothing", |params| params.hash_block_bytes = 0),
        ("beyond 63 bits", |params| params.data_blocks = u64::MAX / 4096),
    ];
    for (why, change) in cases {
        let mut params = params(10);
        change(&mut params);
        assert!(matches!(tree_bytes(&params), Err(VerityError::Parameters { .. })), "{why}");
        let device = Arc::new(MemDevice::from_bytes(vec![0xAA; 65_536], 512));
        assert!(TreeWriter::new(params.clone(), device.clone()).is_err(), "{why}");
        assert!(root_hash_of(&params, std::io::empty()).is_err(), "{why}");
        assert_eq!(device.to_bytes(), vec![0xAA; 65_536], "{why}: the device was written");
    }
}

#[test]
fn the_number_of_blocks_must_be_exactly_the_promised_one() {
    let params = params(3);
    let device = || Arc::new(MemDevice::new(65_536, 512));
    let mut short = TreeWriter::new(params.clone(), device()).unwrap();
    short.push(&[1; 8192]).unwrap();
    assert!(matches!(short.finish(), Err(VerityError::WrongAmount { .. })));
    let mut long = TreeWriter::new(params.clone(), device()).unwrap();
    assert!(long.push(&[1; 4 * 4096]).is_err());
    assert!(long.push_zeros(u64::MAX).is_err());
    assert!(long.push(&[1; 100]).is_err());
    assert!(root_hash_of(&params, [1; 2 * 4096].as_slice()).is_err());
    assert!(root_hash_of(&params, [1; 3 * 4096 + 1].as_slice()).is_err());
}

#[test]
fn an_unfinished_tree_has_no_superblock_even_where_an_older_one_lay() {
    let params = params(200);
    let (device, root) = tree_of(&params, &data_of(&params));
    assert!(superblock_matches(&*device, &root).unwrap());
    let mut writer = TreeWriter::new(params, device.clone()).unwrap();
    writer.push(&[1; 4096]).unwrap();
    drop(writer);
    assert!(matches!(read_superblock(&*device), Err(VerityError::NoSuperblock)));
    assert!(!superblock_matches(&*device, &root).unwrap());
}

#[test]
fn a_flipped_bit_anywhere_is_named() {
    let params = params(129);
    let data = data_of(&params);
    let (tree, root) = tree_of(&params, &data);
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 0x10;
        MemDevice::from_bytes(bytes, 512)
    };
    let good_data = MemDevice::from_bytes(data.clone(), 512);
    verify(&good_data, &*tree, &root).unwrap();
    for (at, expected) in [(0, 0), (4096 * 77 + 5, 77), (4096 * 128 + 4095, 128)] {
        let error = verify(&flipped(&data, at), &*tree, &root).unwrap_err();
        assert!(matches!(error, VerityError::DataCorrupt { block } if block == expected), "{error}");
    }
    let bytes = tree.to_bytes();
    let top = verify(&good_data, &flipped(&bytes, 4096 + 3), &root).unwrap_err();
    assert!(matches!(top, VerityError::TreeCorrupt { level: 1, block: 0 }), "{top}");
    let salt = verify(&good_data, &flipped(&bytes, 88), &root).unwrap_err();
    assert!(salt.is_mismatch(), "{salt}");
    let length = verify(&good_data, &flipped(&bytes, 73), &root).unwrap_err();
    assert!(matches!(length, VerityError::BadSuperblock { .. }), "{length}");
    let other = RootHash([1; 32]);
    assert!(matches!(verify(&good_data, &*tree, &other), Err(VerityError::WrongRoot { .. })));
    assert!(!superblock_matches(&*tree, &other).unwrap());
    assert!(!superblock_matches(&flipped(&bytes, 4096 + 3), &root).unwrap());
}

#[test]
fn a_tree_is_verified_without_its_data() {
    for blocks in [1, 2, 128, 129, 128 * 128 + 1] {
        let params = params(blocks);
        let (tree, root) = tree_of(&params, &data_of(&params));
        verify_tree(&*tree, &root).unwrap();
        let bytes = tree.to_bytes();
        for at in (4096..bytes.len()).step_by(4096 * 7 + 131) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            let error = verify_tree(&MemDevice::from_bytes(changed, 512), &root).unwrap_err();
            assert!(
                matches!(error, VerityError::TreeCorrupt { .. }),
                "byte {at} of {blocks} blocks: {error}"
            );
        }
        if blocks > 1 {
            assert!(verify_tree(&*tree, &RootHash([1; 32])).is_err());
        }
        assert!(verify_tree(&MemDevice::new(bytes.len(), 512), &root).is_err());
    }
}

#[test]
fn a_root_hash_is_sixty_four_digits_and_gives_both_partition_guids() {
    let text = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";
    let root: RootHash = text.parse().unwrap();
    assert_eq!(root.to_string(), text);
    assert_eq!(root.data_guid().to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    assert_eq!(root.hash_guid().to_string(), "01234567-89ab-cdef-0123-456789abcdef");
    for bad in ["", "00", &text[1..], &format!("{text}0"), &text.replace('0', "g")] {
        assert!(bad.parse::<RootHash>().is_err(), "{bad}");
    }
}

#[test]
fn hostile_superblocks_are_refused_without_reading_past_the_device() {
    let params = params(200);
    let (tree, root) = tree_of(&params, &data_of(&params));
    let good = tree.to_bytes();
    let cases: [(&str, usize, &[u8]); 8] = [
        ("version 2", 8, &[2]),
        ("hash type 0", 12, &[0]),
        ("another algorithm", 32, b"sha512"),
        ("no algorithm", 32, &[0; 32]),
        ("block size 0", 64, &[0; 4]),
        ("huge hash blocks", 68, &[0, 0, 0, 0x80]),
        ("more data than there is space for hashes", 72, &[0xFF; 7]),
        ("salt longer than its field", 80, &[0x01, 0x01]),
    ];
    for (why, at, bytes) in cases {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        let device = MemDevice::from_bytes(changed, 512);
        assert!(matches!(read_superblock(&device), Err(VerityError::BadSuperblock { .. })), "{why}");
        assert!(!superblock_matches(&device, &root).unwrap(), "{why}");
    }
    assert!(!superblock_matches(&MemDevice::new(100, 512), &root).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn however_the_data_is_cut_into_pushes_the_tree_is_the_same(
        blocks in 1u64..400, cuts in prop::collection::vec(1usize..50, 1..20), zeros in any::<bool>(),
    ) {
        let params = VerityParams { data_block_bytes: 512, hash_block_bytes: 512, ..params(blocks) };
        let data = if zeros { vec![0; params.data_bytes() as usize] } else { data_of(&params) };
        let (expected, root) = tree_of(&params, &data);
        let device = Arc::new(MemDevice::new(tree_bytes(&params).unwrap() as usize, 512));
        let mut writer = TreeWriter::new(params, device.clone()).unwrap();
        let mut rest = data.as_slice();
        for cut in cuts.iter().cycle() {
            let (piece, after) = rest.split_at((cut * 512).min(rest.len()));
            writer.push(piece).unwrap();
            rest = after;
            if rest.is_empty() { break }
        }
        prop_assert_eq!(writer.finish().unwrap(), root);
        prop_assert!(device.to_bytes() == expected.to_bytes());
        verify(&MemDevice::from_bytes(data, 512), &*device, &root).unwrap();
    }
}
