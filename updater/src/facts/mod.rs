//! Durable facts: floor, quarantine, hold, history and the marks of trial boots.
//!
//! Not here: what follows from them (`lifecycle`). Rule: facts live in two preallocated copies that are overwritten in
//! place, so that neither a power cut nor a full file system can take both; the format (`format`) is frozen, and records
//! of a kind that this version does not know are carried along, so that an older updater forgets nothing.

mod files;
mod format;
pub mod state_file;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use switchback_partitions::slot::Slot;

use crate::digest::Digest;
use crate::host::state_dir::StateDir;
use crate::lifecycle::{Hold, Known, Outcome, Quarantined, Stage};
use crate::reason::{Reason, Why};

pub use crate::host::state_dir::Store;
pub use format::COPY_BYTES;
use format::{Image, Kind, Record};

/// Longest free text that a record keeps, in bytes; longer text is cut.
const TEXT_BYTES_MAX: usize = 1024;
/// Most boots whose marks are kept between two outcomes: more than all tries of all repetitions.
const MARKS_MAX: usize = 32;

/// Why facts could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The system refused.
    #[error("while {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A copy could not be written; the other one still holds what was known before.
    #[error("while writing copy {copy} of the durable facts")]
    Write {
        /// 1 or 2.
        copy: usize,
        /// The system's word.
        source: io::Error,
    },
    /// Floor, quarantine and unknown records alone fill the copy.
    #[error("while adding to the durable facts: {needed} bytes are needed, {COPY_BYTES} is all there is")]
    Full {
        /// Bytes that the facts would take.
        needed: usize,
    },
}

impl FactsError {
    /// The public reason.
    pub fn reason(&self) -> Reason {
        match self {
            FactsError::Io { source, .. } | FactsError::Write { source, .. } if is_full(source) => {
                Reason::StateFull
            }
            FactsError::Full { .. } => Reason::StateFull,
            FactsError::Io { .. } | FactsError::Write { .. } => Reason::StateUnreadable,
        }
    }
}

/// True when a write found no room: the one fault of a state folder that a person mends by deleting something.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What one copy of the facts reads as, for a person who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyState {
    /// No such file.
    Absent,
    /// It may not be read, or the medium fails.
    Unreadable(String),
    /// Space is reserved; nothing was ever written.
    Blank,
    /// Torn or worn: its checksum does not hold.
    Damaged,
    /// Whole; of two the higher generation counts.
    Whole(u64),
}

impl CopyState {
    fn of(image: &Image) -> CopyState {
        match image {
            Image::None => CopyState::Blank,
            Image::Damaged => CopyState::Damaged,
            Image::Whole { generation, .. } => CopyState::Whole(*generation),
        }
    }
}

/// Looks at both copies in `folder` and changes nothing, not even by making a file that is missing.
pub fn look(folder: &dyn StateDir) -> [(PathBuf, CopyState); 2] {
    files::look(folder)
}

/// Something to remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// How an update ended ([`Known::learn`]). One that is already recorded is not recorded again.
    Outcome(Outcome),
    /// How far a *trial* boot got; only the furthest stage of a boot counts.
    Mark {
        /// The kernel's boot id.
        boot_id: String,
        /// Which slot was started.
        slot: Slot,
        /// How far it got.
        stage: Stage,
    },
    /// An operator took a release out of quarantine.
    Released(Digest),
    /// An operator ended the hold.
    HoldEnded,
}

/// A line of history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was recorded, in seconds since 1970 by the wall clock of then.
    pub at_unix_secs: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: Happened,
}

/// What a line of history tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happened {
    /// An update ended.
    Outcome(Outcome),
    /// A release left quarantine by an operator's order.
    Released {
        /// Which.
        digest: Digest,
        /// What it called itself when it came into quarantine; empty when that is not known any more.
        version: String,
    },
}

/// The durable facts of a machine, read once and kept in step with their copies.
pub struct Facts {
    copies: [Box<dyn Store>; 2],
    /// Generation of each copy; `None` = unreadable or never written.
    generations: [Option<u64>; 2],
    records: Vec<Record>,
    known: Known,
    history: Vec<Entry>,
}

impl Facts {
    /// The facts in `facts-1` and `facts-2` of `folder`; both are made (and their space reserved) when absent.
    /// Where the files may only be read, they are; adding then fails.
    pub fn open(folder: &dyn StateDir) -> Result<Facts, FactsError> {
        Ok(Facts::from_copies(files::open(folder)?))
    }

    /// The same for those who only look: nothing is made, reserved or ever written. No folder is no facts.
    pub fn read(folder: &dyn StateDir) -> Result<Facts, FactsError> {
        let [one, two] = files::read(folder)?;
        Ok(Facts::from_copies([Box::new(one), Box::new(two)]))
    }

    /// The facts in two given copies. Unreadable copies are no error: what is lost shows in [`Known::lost`].
    pub fn from_copies(copies: [Box<dyn Store>; 2]) -> Facts {
        let images = [Image::read(&*copies[0]), Image::read(&*copies[1])];
        let lost = images.iter().all(|image| matches!(image, Image::None | Image::Damaged))
            && images.iter().any(|image| matches!(image, Image::Damaged));
        let generations = [images[0].generation(), images[1].generation()];
        let [one, two] = images;
        let newest = if one.generation() >= two.generation() { one } else { two };
        let mut facts = Facts {
            copies,
            generations,
            records: Vec::new(),
            known: Known { lost, ..Known::default() },
            history: Vec::new(),
        };
        for record in newest.into_records() {
            facts.replay(record);
        }
        facts
    }

    /// What is known, as `lifecycle::step` needs it.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// What happened, oldest first; the oldest lines go when space runs out.
    pub fn history(&self) -> &[Entry] {
        &self.history
    }

    /// True when no copy can be read: nothing was ever recorded here, or all of it is gone.
    pub fn is_blank(&self) -> bool {
        self.generations == [None, None]
    }

    /// True when one copy is damaged or behind; [`Facts::repair`] and the next addition mend it.
    pub fn degraded(&self) -> bool {
        self.generations[0] != self.generations[1]
    }

    /// Writes both copies anew when one is damaged or behind: else the next damage could take the other.
    pub fn repair(&mut self) -> Result<(), FactsError> {
        if self.degraded() { self.write(&self.records.clone()) } else { Ok(()) }
    }

    /// Adds a fact durably. Nothing is written when it is known already.
    pub fn add(&mut self, fact: &Fact, now_unix_secs: u64) -> Result<(), FactsError> {
        if self.knows(fact) {
            return Ok(());
        }
        let record = Record::of(fact, now_unix_secs);
        if format::bytes_of(&self.records) + record.bytes() > format::PAYLOAD_BYTES_MAX {
            self.compact(record.bytes())?;
        }
        let mut records = self.records.clone();
        records.push(record.clone());
        self.write(&records)?;
        self.replay(record);
        Ok(())
    }

    fn knows(&self, fact: &Fact) -> bool {
        match fact {
            Fact::Outcome(outcome) => outcome.seq < self.known.next_seq,
            Fact::Mark { boot_id, stage, .. } => match self.known.marks.get(boot_id) {
                Some((_, furthest)) => furthest >= stage,
                None => self.known.marks.len() >= MARKS_MAX,
            },
            Fact::Released(digest) => !self.known.quarantine.contains_key(digest),
            Fact::HoldEnded => self.known.hold.is_none(),
        }
    }

    /// Takes a record into memory. One that cannot be understood is carried along as it is.
    fn replay(&mut self, record: Record) {
        learn(&mut self.known, &mut self.history, &record);
        self.records.push(record);
    }

    /// Writes the copy that is behind or damaged first, and the good one only when that is on the medium: at every
    /// instant one copy reads as old or new.
    fn write(&mut self, records: &[Record]) -> Result<(), FactsError> {
        let generation = self.generations.iter().flatten().max().copied().unwrap_or(0) + 1;
        let bytes = format::encode(generation, records);
        let first = usize::from(self.generations[1] < self.generations[0]);
        for at in [first, 1 - first] {
            self.generations[at] = None;
            let copy = &self.copies[at];
            let written = copy.write_at(0, &bytes).and_then(|()| copy.flush());
            match written {
                Ok(()) => self.generations[at] = Some(generation),
                // One new copy is on the medium: the fact is durable.
                Err(error) if at != first => {
                    tracing::warn!(copy = at + 1, %error, "one copy of the durable facts could not be written");
                }
                Err(source) => return Err(FactsError::Write { copy: at + 1, source }),
            }
        }
        Ok(())
    }

    /// Makes room: the older history is replaced by what it taught. Floor, quarantine, hold and unknown records stay.
    fn compact(&mut self, needed: usize) -> Result<(), FactsError> {
        let room = format::PAYLOAD_BYTES_MAX.saturating_sub(needed);
        let mut cut = self.records.len() / 2;
        loop {
            let records = summary(&self.records, cut);
            let bytes = format::bytes_of(&records);
            if bytes <= room {
                self.rebuild(records);
                return Ok(());
            }
            if cut == self.records.len() {
                return Err(FactsError::Full { needed: bytes + needed });
            }
            cut = (cut + self.records.len()).div_ceil(2).min(self.records.len());
        }
    }

    fn rebuild(&mut self, records: Vec<Record>) {
        self.known = Known { lost: self.known.lost, ..Known::default() };
        self.history.clear();
        self.records.clear();
        records.into_iter().for_each(|record| self.replay(record));
    }
}

/// The records before `cut` as what they taught, then the rest as it is.
fn summary(records: &[Record], cut: usize) -> Vec<Record> {
    let (old, rest) = records.split_at(cut);
    let mut known = Known::default();
    old.iter().for_each(|record| learn(&mut known, &mut Vec::new(), record));
    let mut summary: Vec<Record> = old.iter().filter(|record| record.is_foreign()).cloned().collect();
    summary.extend(Record::all_of(&known));
    summary.extend(rest.iter().cloned());
    summary
}

/// What one record adds.
fn learn(known: &mut Known, history: &mut Vec<Entry>, record: &Record) {
    match record.kind() {
        Kind::Outcome { at_unix_secs, outcome } => {
            known.learn(&outcome);
            history.push(Entry { at_unix_secs, what: Happened::Outcome(outcome) });
        }
        Kind::Mark { boot_id, slot, stage } => {
            let mark = known.marks.entry(boot_id).or_insert((slot, stage));
            mark.1 = mark.1.max(stage);
        }
        Kind::Released { at_unix_secs, digest } => {
            let version = known.quarantine.remove(&digest).map(|entry| entry.version).unwrap_or_default();
            known.released.insert(digest);
            history.push(Entry { at_unix_secs, what: Happened::Released { digest, version } });
        }
        Kind::HoldEnded => known.hold = None,
        Kind::Floor { security_version, next_seq } => {
            known.floor = known.floor.max(security_version);
            known.next_seq = known.next_seq.max(next_seq);
        }
        Kind::Quarantine { digest, version, why } => {
            known.quarantine.insert(digest, Quarantined { version, why });
        }
        Kind::WasReleased { digest } => {
            known.released.insert(digest);
        }
        Kind::Hold { release } => known.hold = Some(Hold { release }),
        Kind::Foreign => {}
    }
}

/// Free text, cut to what a record keeps.
fn cut(why: &Why) -> Why {
    let mut end = why.detail.len().min(TEXT_BYTES_MAX);
    while !why.detail.is_char_boundary(end) {
        end -= 1;
    }
    Why::new(why.reason, &why.detail[..end])
}

#[cfg(test)]
mod frozen;
#[cfg(test)]
mod tests;
