//! Stage marks: how far the last start of each slot came, so that "why did it come back" is never guessed.
//!
//! Not here: what follows from a mark (`engine`). Rule: one file of one sector per slot, preallocated and overwritten in
//! place: a full file system cannot stop it, and the start of one slot never wipes what is known of the other.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use switchback_partitions::slot::Slot;

/// Length of a mark's file in bytes: one sector, written with one call.
pub const MARK_BYTES: usize = 512;

const MAGIC: &str = "switchback-stage 1";

/// How far a start came. Ordered: a later stage is a greater value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// `switchback init` found the slot and its state partition.
    Initramfs,
    /// The root was verified and mounted; its own init took over.
    RootMounted,
    /// `switchback boot-check` started its health checks.
    BootCheck,
    /// `switchback boot-check` came to its verdict; the start is over.
    Judged,
    /// The trial's deadline passed without a verdict; the machine was restarted on purpose.
    DeadlinePassed,
}

impl Stage {
    /// All stages in order.
    pub const ALL: [Stage; 5] =
        [Stage::Initramfs, Stage::RootMounted, Stage::BootCheck, Stage::Judged, Stage::DeadlinePassed];

    /// The word in the file and in messages: `died at root-mounted`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Initramfs => "initramfs",
            Stage::RootMounted => "root-mounted",
            Stage::BootCheck => "boot-check",
            Stage::Judged => "judged",
            Stage::DeadlinePassed => "deadline-passed",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The slot that was started.
    pub slot: Slot,
    /// The kernel's boot id of that start.
    pub boot_id: String,
    /// The root hash that was asked for, as hex digits; empty where dm-verity is off.
    pub root_hash: String,
    /// How far it came.
    pub stage: Stage,
}

impl Mark {
    /// The file of a slot's mark in the state folder.
    pub fn path(state_dir: &Path, slot: Slot) -> PathBuf {
        state_dir.join(format!("stage-{slot}"))
    }

    /// Overwrites the slot's mark in place; returns when it is on the medium. The folder must exist.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let path = Mark::path(state_dir, self.slot);
        let (file, created) = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => (file, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (File::create_new(&path)?, true),
            Err(error) => return Err(error),
        };
        file.write_all_at(&self.encode()?, 0)?;
        file.sync_all()?;
        if created {
            File::open(state_dir)?.sync_all()?;
        }
        Ok(())
    }

    /// The last mark of a slot; `None` when there is none or when it is torn, which is the same: nothing is known.
    pub fn read(state_dir: &Path, slot: Slot) -> io::Result<Option<Mark>> {
        let mut bytes = Vec::with_capacity(MARK_BYTES);
        match File::open(Mark::path(state_dir, slot)) {
            Ok(file) => file.take(MARK_BYTES as u64).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Mark::decode(&bytes).filter(|mark| mark.slot == slot))
    }

    /// The file's bytes: four lines, a checksum line, blanks to the end of the sector.
    pub fn encode(&self) -> io::Result<[u8; MARK_BYTES]> {
        let body =
            format!("{MAGIC}\n{}\n{}\n{}\n{}\n", self.slot, self.boot_id, self.root_hash, self.stage.name());
        let text = format!("{body}{:08x}\n", crc32fast::hash(body.as_bytes()));
        let mut sector = [b' '; MARK_BYTES];
        sector
            .get_mut(..text.len())
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "the stage mark is longer than a sector")
            })?
            .copy_from_slice(text.as_bytes());
        Ok(sector)
    }

    /// The mark in these bytes, or `None` when they hold no whole mark of this version.
    pub fn decode(bytes: &[u8]) -> Option<Mark> {
        let text = std::str::from_utf8(bytes).ok()?.trim_end_matches(' ');
        let (body, checksum) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        let body = format!("{body}\n");
        if checksum != format!("{:08x}", crc32fast::hash(body.as_bytes())) {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != MAGIC {
            return None;
        }
        let slot = lines.next()?.parse().ok()?;
        let boot_id = lines.next()?.to_owned();
        let root_hash = lines.next()?.to_owned();
        let name = lines.next()?;
        let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name)?;
        Some(Mark { slot, boot_id, root_hash, stage })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(slot: Slot, stage: Stage) -> Mark {
        Mark {
            slot,
            stage,
            boot_id: "0d7f4a5e-5c1e-4a4c-9d69-1f3f4d6b2a10".into(),
            root_hash: "ab".repeat(32),
        }
    }

    #[test]
    fn a_mark_reads_back_as_it_was_written_for_every_stage() {
        for stage in Stage::ALL {
            let mark = mark(Slot::B, stage);
            assert_eq!(Mark::decode(&mark.encode().unwrap()), Some(mark));
        }
    }

    #[test]
    fn a_mark_without_a_root_hash_reads_back_too() {
        let mark = Mark { root_hash: String::new(), ..mark(Slot::A, Stage::BootCheck) };
        assert_eq!(Mark::decode(&mark.encode().unwrap()), Some(mark));
    }

    #[test]
    fn any_flipped_byte_of_the_text_makes_the_mark_unknown() {
        let good = mark(Slot::A, Stage::RootMounted).encode().unwrap();
        let used = good.iter().rposition(|byte| *byte != b' ').unwrap();
        for at in 0..used {
            let mut bad = good;
            bad[at] ^= 1;
            assert_eq!(Mark::decode(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn the_start_of_one_slot_leaves_the_mark_of_the_other() {
        let dir = tempfile::tempdir().unwrap();
        mark(Slot::B, Stage::RootMounted).write(dir.path()).unwrap();
        mark(Slot::A, Stage::Initramfs).write(dir.path()).unwrap();
        mark(Slot::A, Stage::Judged).write(dir.path()).unwrap();
        assert_eq!(Mark::read(dir.path(), Slot::B).unwrap().unwrap().stage, Stage::RootMounted);
        assert_eq!(Mark::read(dir.path(), Slot::A).unwrap().unwrap().stage, Stage::Judged);
        assert_eq!(std::fs::metadata(Mark::path(dir.path(), Slot::A)).unwrap().len(), MARK_BYTES as u64);
    }

    #[test]
    fn no_file_and_a_torn_file_both_mean_that_nothing_is_known() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Mark::read(dir.path(), Slot::A).unwrap(), None);
        std::fs::write(Mark::path(dir.path(), Slot::A), [0; MARK_BYTES]).unwrap();
        assert_eq!(Mark::read(dir.path(), Slot::A).unwrap(), None);
    }

    #[test]
    fn a_mark_that_would_not_fit_its_sector_is_refused() {
        let long = Mark { boot_id: "x".repeat(600), ..mark(Slot::A, Stage::Initramfs) };
        assert_eq!(long.encode().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
