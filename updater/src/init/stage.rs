//! Stage marks: how far the last start of each slot came, so that "why did it come back" is never guessed.
//!
//! Not here: what follows from a mark (`engine`). Rule: one file per slot with a sector for each of the last starts,
//! preallocated and overwritten in place: a full file system cannot stop it, the start of one slot never wipes what is
//! known of the other, and a trial's starts are all told apart (one sector for all would hide that three starts died
//! alike, which is what makes a crash of what could have been a power cut).

use std::io;

use switchback_partitions::slot::Slot;

use crate::host::state_dir::StateDir;

/// Length of a mark in bytes: one sector, written with one call.
pub const MARK_BYTES: usize = 512;
/// Starts that are kept: more than a trial can have (nine).
const MARKS_MAX: usize = 12;
/// The longest file that is read, in bytes: a later version may keep more starts.
const FILE_BYTES_MAX: u64 = 64 << 10;

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
    /// The name of a slot's file in the state folder.
    pub fn file_name(slot: Slot) -> String {
        format!("stage-{slot}")
    }

    /// Overwrites this start's mark in place; returns when it is on the medium. The folder must exist.
    pub fn write(&self, state_dir: &dyn StateDir) -> io::Result<()> {
        let name = Mark::file_name(self.slot);
        let mark = self.encode()?;
        let Some(file) = state_dir.open(&name)? else {
            let mut sectors = [b' '; MARK_BYTES * MARKS_MAX];
            sectors[..MARK_BYTES].copy_from_slice(&mark);
            state_dir.write(&name, &sectors)?;
            state_dir.sync(&name)?;
            return state_dir.sync_folder();
        };
        let sectors = sectors(state_dir, self.slot)?;
        file.write_at((MARK_BYTES * place(&sectors, &self.boot_id)) as u64, &mark)?;
        file.flush()
    }

    /// The marks of a slot's last starts. A torn one is left out: of that start nothing is known.
    pub fn read_all(state_dir: &dyn StateDir, slot: Slot) -> io::Result<Vec<Mark>> {
        Ok(sectors(state_dir, slot)?.into_iter().flatten().collect())
    }

    /// Forgets a slot's starts; durable on return. Before a trial: marks of an earlier one are no evidence about it.
    pub fn forget(state_dir: &dyn StateDir, slot: Slot) -> io::Result<()> {
        match state_dir.open(&Mark::file_name(slot))? {
            Some(file) => {
                file.write_at(0, &[b' '; MARK_BYTES * MARKS_MAX])?;
                file.flush()
            }
            None => Ok(()),
        }
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

/// Each sector of a slot's file: a mark, or `None` where nothing readable lies.
fn sectors(state_dir: &dyn StateDir, slot: Slot) -> io::Result<Vec<Option<Mark>>> {
    let bytes = state_dir.read(&Mark::file_name(slot), FILE_BYTES_MAX)?.unwrap_or_default();
    let bytes = bytes.get(..MARK_BYTES * MARKS_MAX).unwrap_or(&bytes);
    let marks = bytes.chunks(MARK_BYTES).map(|sector| Mark::decode(sector).filter(|mark| mark.slot == slot));
    Ok(marks.collect())
}

/// The sector for a start: its own, else the first free one, else the last: the starts of a slot that is confirmed go on
/// for ever and are evidence of nothing.
fn place(sectors: &[Option<Mark>], boot_id: &str) -> usize {
    let own = sectors.iter().position(|mark| mark.as_ref().is_some_and(|mark| mark.boot_id == boot_id));
    let free = || sectors.iter().position(Option::is_none).unwrap_or(sectors.len());
    own.unwrap_or_else(free).min(MARKS_MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::state_dir::Folder;

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

    fn stages(dir: &std::path::Path, slot: Slot) -> Vec<Stage> {
        Mark::read_all(&Folder::new(dir), slot).unwrap().into_iter().map(|mark| mark.stage).collect()
    }

    #[test]
    fn each_start_keeps_its_furthest_mark_and_the_other_slot_keeps_its_own() {
        let dir = tempfile::tempdir().unwrap();
        mark(Slot::B, Stage::RootMounted).write(&Folder::new(dir.path())).unwrap();
        for (boot_id, stage) in [("1", Stage::Initramfs), ("1", Stage::RootMounted), ("2", Stage::Initramfs)]
        {
            Mark { boot_id: boot_id.into(), ..mark(Slot::A, stage) }.write(&Folder::new(dir.path())).unwrap();
        }
        assert_eq!(stages(dir.path(), Slot::A), [Stage::RootMounted, Stage::Initramfs]);
        assert_eq!(stages(dir.path(), Slot::B), [Stage::RootMounted]);
        Mark::forget(&Folder::new(dir.path()), Slot::A).unwrap();
        assert_eq!(stages(dir.path(), Slot::A), []);
        assert_eq!(stages(dir.path(), Slot::B), [Stage::RootMounted]);
    }

    #[test]
    fn the_file_never_grows_whatever_the_number_of_starts() {
        let dir = tempfile::tempdir().unwrap();
        for start in 0..40 {
            Mark { boot_id: start.to_string(), ..mark(Slot::A, Stage::Judged) }
                .write(&Folder::new(dir.path()))
                .unwrap();
        }
        assert_eq!(stages(dir.path(), Slot::A).len(), MARKS_MAX);
        let bytes = std::fs::metadata(dir.path().join(Mark::file_name(Slot::A))).unwrap().len();
        assert_eq!(bytes, (MARK_BYTES * MARKS_MAX) as u64);
    }

    #[test]
    fn no_file_and_a_torn_file_both_mean_that_nothing_is_known() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stages(dir.path(), Slot::A), []);
        std::fs::write(dir.path().join(Mark::file_name(Slot::A)), [0; MARK_BYTES]).unwrap();
        assert_eq!(stages(dir.path(), Slot::A), []);
        mark(Slot::A, Stage::Initramfs).write(&Folder::new(dir.path())).unwrap();
        assert_eq!(stages(dir.path(), Slot::A), [Stage::Initramfs]);
    }

    #[test]
    fn a_mark_that_would_not_fit_its_sector_is_refused() {
        let long = Mark { boot_id: "x".repeat(600), ..mark(Slot::A, Stage::Initramfs) };
        assert_eq!(long.encode().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
