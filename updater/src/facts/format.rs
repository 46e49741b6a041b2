//! The bytes of one copy, format 1. Frozen: an older updater must read what a newer one wrote, after every return.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | `SWBFACTS` |
//! | 8 | 8 | generation, little-endian; the higher one counts |
//! | 16 | 8 | length of the records in bytes, little-endian |
//! | 24 | 8 | zero |
//! | 32 | 32 | SHA-256 of the bytes 0–31 and the records |
//! | 64 | | the records |
//!
//! A record is its kind (2 bytes, little-endian), 2 zero bytes, the length of its body (4 bytes, little-endian) and
//! the body: a JSON object. New kinds and new keys may come; a kind's number and a key's meaning never change.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use switchback_partitions::slot::Slot;

use super::{Fact, Store, cut};
use crate::digest::Digest;
use crate::lifecycle::{Known, Outcome, Release, Stage};
use crate::reason::Why;

/// Bytes reserved for each copy.
pub const COPY_BYTES: u64 = 256 << 10;
/// Bytes that the records of one copy may take.
pub(super) const PAYLOAD_BYTES_MAX: usize = COPY_BYTES as usize - HEADER_BYTES;

const MAGIC: &[u8; 8] = b"SWBFACTS";
const HEADER_BYTES: usize = 64;
const RECORD_HEADER_BYTES: usize = 8;

/// One record as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    kind: u16,
    body: Vec<u8>,
}

/// One record, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Outcome {
        at_unix_secs: u64,
        outcome: Outcome,
    },
    Mark {
        boot_id: String,
        slot: Slot,
        stage: Stage,
    },
    Released {
        at_unix_secs: u64,
        digest: Digest,
    },
    HoldEnded,
    /// What compaction keeps of outcomes: floor and numbering.
    Floor {
        security_version: u64,
        next_seq: u64,
    },
    Quarantine {
        digest: Digest,
        version: String,
        why: Why,
    },
    WasReleased {
        digest: Digest,
    },
    Hold {
        release: Release,
    },
    /// Of a kind, or with a body, that this version does not understand.
    Foreign,
}

// The kinds' numbers: frozen.
const OUTCOME: u16 = 1;
const MARK: u16 = 2;
const RELEASED: u16 = 3;
const HOLD_ENDED: u16 = 4;
const FLOOR: u16 = 5;
const QUARANTINE: u16 = 6;
const WAS_RELEASED: u16 = 7;
const HOLD: u16 = 8;

#[derive(Serialize, Deserialize)]
struct OutcomeBody {
    at_unix_secs: u64,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize, Deserialize)]
struct MarkBody {
    boot_id: String,
    slot: Slot,
    stage: Stage,
}

#[derive(Serialize, Deserialize)]
struct ReleasedBody {
    at_unix_secs: u64,
    digest: Digest,
}

#[derive(Serialize, Deserialize)]
struct FloorBody {
    security_version: u64,
    next_seq: u64,
}

#[derive(Serialize, Deserialize)]
struct QuarantineBody {
    digest: Digest,
    version: String,
    why: Why,
}

#[derive(Serialize, Deserialize)]
struct DigestBody {
    digest: Digest,
}

#[derive(Serialize, Deserialize)]
struct HoldBody {
    release: Release,
}

#[derive(Serialize, Deserialize)]
struct EmptyBody {}

impl Record {
    /// The record of a new fact.
    pub(super) fn of(fact: &Fact, at_unix_secs: u64) -> Record {
        match fact {
            Fact::Outcome(outcome) => {
                let outcome = Outcome { why: outcome.why.as_ref().map(cut), ..outcome.clone() };
                Record::new(OUTCOME, &OutcomeBody { at_unix_secs, outcome })
            }
            Fact::Mark { boot_id, slot, stage } => {
                Record::new(MARK, &MarkBody { boot_id: boot_id.clone(), slot: *slot, stage: *stage })
            }
            Fact::Released(digest) => Record::new(RELEASED, &ReleasedBody { at_unix_secs, digest: *digest }),
            Fact::HoldEnded => Record::new(HOLD_ENDED, &EmptyBody {}),
        }
    }

    /// All that is known, as records: what compaction puts in the place of history.
    pub(super) fn all_of(known: &Known) -> Vec<Record> {
        let floor = FloorBody { security_version: known.floor, next_seq: known.next_seq };
        let mut records = vec![Record::new(FLOOR, &floor)];
        records.extend(known.quarantine.iter().map(|(digest, quarantined)| {
            let (version, why) = (quarantined.version.clone(), quarantined.why.clone());
            Record::new(QUARANTINE, &QuarantineBody { digest: *digest, version, why })
        }));
        let released = known.released.iter();
        records.extend(released.map(|digest| Record::new(WAS_RELEASED, &DigestBody { digest: *digest })));
        let hold = known.hold.iter();
        records.extend(hold.map(|hold| Record::new(HOLD, &HoldBody { release: hold.release.clone() })));
        let marks = known.marks.iter();
        records.extend(marks.map(|(boot_id, (slot, stage))| {
            Record::new(MARK, &MarkBody { boot_id: boot_id.clone(), slot: *slot, stage: *stage })
        }));
        records
    }

    #[expect(clippy::expect_used, reason = "plain structs of text and numbers always have a JSON form")]
    fn new(kind: u16, body: &impl Serialize) -> Record {
        Record { kind, body: serde_json::to_vec(body).expect("a JSON form") }
    }

    /// Stored size in bytes.
    pub(super) fn bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.body.len()
    }

    /// True when this version does not understand it: it is carried along untouched.
    pub(super) fn is_foreign(&self) -> bool {
        self.kind() == Kind::Foreign
    }

    /// What it says.
    pub(super) fn kind(&self) -> Kind {
        self.understood().unwrap_or(Kind::Foreign)
    }

    fn understood(&self) -> Option<Kind> {
        fn body<T: DeserializeOwned>(record: &Record) -> Option<T> {
            serde_json::from_slice(&record.body).ok()
        }
        Some(match self.kind {
            OUTCOME => {
                let OutcomeBody { at_unix_secs, outcome } = body(self)?;
                Kind::Outcome { at_unix_secs, outcome }
            }
            MARK => {
                let MarkBody { boot_id, slot, stage } = body(self)?;
                Kind::Mark { boot_id, slot, stage }
            }
            RELEASED => {
                let ReleasedBody { at_unix_secs, digest } = body(self)?;
                Kind::Released { at_unix_secs, digest }
            }
            HOLD_ENDED => {
                let EmptyBody {} = body(self)?;
                Kind::HoldEnded
            }
            FLOOR => {
                let FloorBody { security_version, next_seq } = body(self)?;
                Kind::Floor { security_version, next_seq }
            }
            QUARANTINE => {
                let QuarantineBody { digest, version, why } = body(self)?;
                Kind::Quarantine { digest, version, why }
            }
            WAS_RELEASED => {
                let DigestBody { digest } = body(self)?;
                Kind::WasReleased { digest }
            }
            HOLD => {
                let HoldBody { release } = body(self)?;
                Kind::Hold { release }
            }
            _ => return None,
        })
    }
}

/// Stored size of records in bytes.
pub(super) fn bytes_of(records: &[Record]) -> usize {
    records.iter().map(Record::bytes).sum()
}

/// The bytes of a copy.
pub(super) fn encode(generation: u64, records: &[Record]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    for record in records {
        bytes.extend(record.kind.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend((record.body.len() as u32).to_le_bytes());
        bytes.extend(&record.body);
    }
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&generation.to_le_bytes());
    let payload_bytes = (bytes.len() - HEADER_BYTES) as u64;
    bytes[16..24].copy_from_slice(&payload_bytes.to_le_bytes());
    let sum = checksum(&bytes[..32], &bytes[HEADER_BYTES..]);
    bytes[32..64].copy_from_slice(&sum);
    bytes
}

fn checksum(header: &[u8], payload: &[u8]) -> [u8; 32] {
    sha2::Sha256::new().chain_update(header).chain_update(payload).finalize().into()
}

/// What was read of one copy.
pub(super) enum Image {
    /// Never written: zeros.
    None,
    /// Torn, or the medium failed.
    Damaged,
    /// Whole.
    Whole { generation: u64, records: Vec<Record> },
}

impl Image {
    /// Reads one copy; its length is checked before anything of that length is read.
    pub(super) fn read(store: &dyn Store) -> Image {
        let mut header = [0; HEADER_BYTES];
        if store.read_at(0, &mut header).is_err() {
            return Image::Damaged;
        }
        if header == [0; HEADER_BYTES] {
            return Image::None;
        }
        Image::whole(store, &header).unwrap_or(Image::Damaged)
    }

    fn whole(store: &dyn Store, header: &[u8; HEADER_BYTES]) -> Option<Image> {
        let number = |at: usize| Some(u64::from_le_bytes(header[at..at + 8].try_into().ok()?));
        let payload_bytes = usize::try_from(number(16)?).ok()?;
        if header[..8] != *MAGIC || payload_bytes > PAYLOAD_BYTES_MAX {
            return None;
        }
        let mut payload = vec![0; payload_bytes];
        store.read_at(HEADER_BYTES as u64, &mut payload).ok()?;
        if checksum(&header[..32], &payload) != header[32..] {
            return None;
        }
        Some(Image::Whole { generation: number(8)?, records: split(&payload)? })
    }

    pub(super) fn generation(&self) -> Option<u64> {
        match self {
            Image::Whole { generation, .. } => Some(*generation),
            Image::None | Image::Damaged => None,
        }
    }

    pub(super) fn into_records(self) -> Vec<Record> {
        match self {
            Image::Whole { records, .. } => records,
            Image::None | Image::Damaged => Vec::new(),
        }
    }
}

fn split(mut payload: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while !payload.is_empty() {
        let (header, rest) = payload.split_at_checked(RECORD_HEADER_BYTES)?;
        let kind = u16::from_le_bytes(header[..2].try_into().ok()?);
        let bytes = u32::from_le_bytes(header[4..].try_into().ok()?);
        let (body, rest) = rest.split_at_checked(usize::try_from(bytes).ok()?)?;
        records.push(Record { kind, body: body.to_vec() });
        payload = rest;
    }
    Some(records)
}

#[cfg(test)]
pub(super) mod tests_only {
    //! Records that this version would not write.

    pub(in crate::facts) fn record(kind: u16, body: &[u8]) -> super::Record {
        super::Record { kind, body: body.to_vec() }
    }
}
