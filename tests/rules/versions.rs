//! Durable facts across updater versions: N writes, N+1 follows and writes what N does not know, the machine returns to N,
//! N writes again, and N+1 must find everything of its own.
//!
//! Not here: files of version 1 frozen bit by bit (`updater/src/facts/frozen.rs`). Rule: N is the real program; N+1 is this
//! file alone, which reads and writes the bytes as `docs/src/on-disk.md` has them and shares no code with it.

use std::path::Path;

use sha2::Digest as _;
use switchback_partitions::slot::Slot;
use switchback_tests::story::{ask, history, machine_with_1_0, publish, status};

const COPY_BYTES: usize = 256 << 10;

/// Kind and body of a record.
type Record = (u16, Vec<u8>);

/// What a copy holds: its generation and its records.
fn read(path: &Path) -> (u64, Vec<Record>) {
    let bytes = std::fs::read(path).unwrap();
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(&bytes[..8], b"SWBFACTS");
    let payload = &bytes[64..64 + usize::try_from(number(16)).unwrap()];
    let sum = sha2::Sha256::new().chain_update(&bytes[..32]).chain_update(payload).finalize();
    assert_eq!(sum[..], bytes[32..64], "the checksum");
    let (mut records, mut rest) = (Vec::new(), payload);
    while !rest.is_empty() {
        let kind = u16::from_le_bytes(rest[..2].try_into().unwrap());
        let length = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
        records.push((kind, rest[8..8 + length].to_vec()));
        rest = &rest[8 + length..];
    }
    (number(8), records)
}

fn write(folder: &Path, generation: u64, records: &[Record]) {
    let mut payload = Vec::new();
    for (kind, body) in records {
        payload.extend(kind.to_le_bytes());
        payload.extend([0; 2]);
        payload.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        payload.extend(body);
    }
    let mut bytes = b"SWBFACTS".to_vec();
    bytes.extend(generation.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend([0; 8]);
    let sum = sha2::Sha256::new().chain_update(&bytes).chain_update(&payload).finalize();
    bytes.extend(sum);
    bytes.extend(payload);
    bytes.resize(COPY_BYTES, 0);
    for name in ["facts-1", "facts-2"] {
        std::fs::write(folder.join(name), &bytes).unwrap();
    }
}

#[test]
fn facts_of_a_newer_updater_are_understood_kept_and_found_again() {
    let (scene, mut machine) = machine_with_1_0();
    let state = machine.state_dir();
    publish(&scene, "1.1", true);
    ask(&machine, &["update", "--reboot"], 0);
    machine.power_on().unwrap();
    let by_n = history(&machine);

    // N+1 ran for a while: 1.2 failed under it, for a reason that N does not know, and it keeps facts of new kinds.
    let failed = publish(&scene, "1.2", true);
    let (generation, mut records) = read(&state.join("facts-1"));
    let newer: Vec<Record> = [
        (900, r#"{"colour":"green"}"#.to_owned()),
        (
            6,
            format!(
                r#"{{"digest":"{failed}","version":"1.2","why":{{"reason":"eaten-by-a-dog","detail":"woof","since":3}},"dog":"large"}}"#
            ),
        ),
        (1, r#"{"at_unix_secs":1,"seq":1,"verdict":"celebrated","slot":"a","cake":true}"#.to_owned()),
        (901, "no JSON at all".to_owned()),
    ]
    .map(|(kind, body)| (kind, body.into_bytes()))
    .into();
    records.extend(newer.clone());
    write(&state, generation + 1, &records);
    let newer_state =
        std::fs::read_to_string(state.join("state.json")).unwrap().replace("\"schema\": 1", "\"schema\": 2");
    assert!(newer_state.contains("\"schema\": 2"));
    std::fs::write(state.join("state.json"), newer_state).unwrap();

    // Back on N: what it can know it knows, the rest is no obstacle.
    assert_eq!(machine.power_on().unwrap().slot, Slot::B);
    let now = status(&machine);
    assert_eq!(now["quarantine"][0]["digest"], failed);
    assert_eq!(now["quarantine"][0]["reason"], "unknown");
    assert_eq!(history(&machine), by_n, "the history of N is whole");
    ask(&machine, &["update"], 16);
    publish(&scene, "1.3", true);
    ask(&machine, &["update", "--reboot"], 0);
    assert_eq!(machine.power_on().unwrap().slot, Slot::A);
    assert_eq!(history(&machine).last().unwrap()[..2], ["confirmed", "1.3"]);

    // N+1 follows: bit for bit what it wrote, and after it what N added.
    for name in ["facts-1", "facts-2"] {
        let (later, found) = read(&state.join(name));
        assert!(later > generation + 1, "N wrote");
        assert_eq!(found[..records.len()], records[..], "{name}");
        assert!(found.len() > records.len(), "{name}: what N learnt is there");
    }
}
