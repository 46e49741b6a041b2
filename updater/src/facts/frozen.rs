//! Files of format 1 as they lie on machines: kept as bytes, so that no change of the code can change what they mean.
//!
//! `testdata/v1.bin` has every kind that this version writes; `testdata/v1-newer.bin` is the same after a newer updater
//! added kinds, keys, a verdict, a stage and a reason that are unknown here. Both were written by a program that shares no
//! code with this one. Rule: they are never written anew; what cannot read them is at fault.

use super::*;
use crate::host::state_dir::Folder;
use crate::lifecycle::Release;

const V1: &[u8] = include_bytes!("testdata/v1.bin");
const V1_NEWER: &[u8] = include_bytes!("testdata/v1-newer.bin");

fn digest(digit: char) -> Digest {
    format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap()
}

fn release(digit: char, version: &str, security_version: u64) -> Release {
    Release { digest: digest(digit), version: version.into(), security_version }
}

fn folder(bytes: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("facts-1"), bytes).unwrap();
    std::fs::write(folder.path().join("facts-2"), bytes).unwrap();
    folder
}

/// The records of a file, from byte 64 on.
fn payload(bytes: &[u8]) -> &[u8] {
    let length = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    &bytes[64..64 + length as usize]
}

#[test]
fn a_file_of_format_1_means_what_it_meant_when_it_was_written() {
    let folder = folder(V1);
    let facts = Facts::open(&Folder::new(folder.path())).unwrap();
    let known = facts.known();
    assert_eq!((known.floor, known.next_seq, known.lost), (5, 3, false));
    assert_eq!(known.quarantine.keys().copied().collect::<Vec<_>>(), [digest('3')]);
    assert_eq!(known.quarantine[&digest('3')].why.reason, Reason::Panicked);
    assert!(known.released.contains(&digest('2')) && known.released.contains(&digest('4')));
    assert_eq!(known.hold, Some(Hold { release: release('1', "1.1", 5) }));
    assert_eq!(known.marks["b7"], (Slot::B, Stage::RootMounted));
    let times: Vec<u64> = facts.history().iter().map(|entry| entry.at_unix_secs).collect();
    assert_eq!(times, [1_700_000_000, 1_700_000_100, 1_700_000_200, 1_700_000_300]);
}

#[test]
fn what_a_newer_updater_added_is_understood_as_far_as_can_be_and_kept_bit_for_bit() {
    let folder = folder(V1_NEWER);
    let mut facts = Facts::open(&Folder::new(folder.path())).unwrap();
    let known = facts.known();
    assert_eq!((known.floor, known.next_seq), (5, 3));
    assert_eq!(known.quarantine[&digest('6')].why, Why::new(Reason::Unknown, "woof"), "a reason of its own");
    assert_eq!(known.hold, Some(Hold { release: release('7', "2.1", 8) }), "keys of its own");
    assert_eq!(facts.history().len(), 4, "an unknown verdict is no line of history");
    let outcome = Outcome {
        seq: 3,
        verdict: crate::lifecycle::Verdict::Confirmed,
        release: Some(release('8', "1.3", 6)),
        slot: Slot::B,
        why: None,
        left: None,
    };
    facts.add(&Fact::Outcome(outcome), 1_800_000_000).unwrap();
    for name in ["facts-1", "facts-2"] {
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        assert!(payload(&bytes).starts_with(payload(V1_NEWER)), "{name}");
        assert_eq!(u64::from_le_bytes(bytes[8..16].try_into().unwrap()), 9, "{name}: the generation after");
    }
    assert_eq!(Facts::open(&Folder::new(folder.path())).unwrap().known().floor, 6);
}
