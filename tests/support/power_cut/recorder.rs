//! Every durable step of a run, in the order in which it was made, over one counter.
//!
//! Not here: which of them a power cut leaves (`cuts`). Rule: a write is the whole rows as they were then, so that a
//! later write of the same row carries the earlier one, as a cache of sectors does.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::{FxHashMap, FxHashSet};

use super::cuts::{Kind, Walk};
use super::image::{FILE_ROWS, Image, Row, file_row};
use super::promise::{Promise, Violation};

/// What a flush makes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Domain {
    /// What was written through one of the disk's nodes: 0 for the whole disk, else the partition's number. The system keeps
    /// a cache for each, and a flush of one writes nothing out of another's.
    Disk(u32),
    /// What the firmware wrote to it. No flush of its own, but nothing above the disk holds it back: the next flush of
    /// anything on this disk takes it along.
    Firmware,
    /// One file's content and length.
    File(u32),
    /// The state folder's names.
    Names,
}

/// One durable step.
#[derive(Debug, Clone)]
pub enum Op {
    /// Rows were overwritten.
    Rows(Domain, Vec<(u64, Row)>),
    /// A file got another length.
    Len(u32, u64),
    /// A name was given to a file.
    Link(String, u32),
    /// A name was taken by another file, and the old name is gone.
    Rename(String, String),
    /// A name is gone.
    Unlink(String),
    /// Everything of the domain written before is on the medium.
    Flush(Domain),
    /// The machine starts. What a system that ended in order left unflushed is in the disk's cache now, as what the firmware
    /// writes is.
    Start,
    /// The system died under power: its caches are gone, and the disk's is not.
    Death,
}

impl Op {
    /// Which flush makes it durable; for a flush, what it makes durable.
    pub fn domain(&self) -> Domain {
        match self {
            Op::Rows(domain, _) | Op::Flush(domain) => *domain,
            Op::Len(file, _) => Domain::File(*file),
            Op::Link(..) | Op::Rename(..) | Op::Unlink(_) => Domain::Names,
            Op::Start | Op::Death => Domain::Firmware,
        }
    }

    /// Does it to an image.
    pub fn apply(&self, image: &mut Image) {
        match self {
            Op::Rows(domain, rows) => {
                // Else the next new file could get this one's number, and its content.
                if let Domain::File(file) = domain {
                    image.lens.entry(*file).or_insert(0);
                }
                rows.iter().for_each(|(row, content)| image.set(*row, content.clone()));
            }
            Op::Len(file, len) => drop(image.lens.insert(*file, *len)),
            Op::Link(name, file) => drop(image.names.insert(name.clone(), *file)),
            Op::Rename(from, to) => {
                // The journal of a file system keeps the order of its own names: the old one is there.
                if let Some(file) = image.names.remove(from) {
                    image.names.insert(to.clone(), file);
                }
            }
            Op::Unlink(name) => drop(image.names.remove(name)),
            Op::Flush(_) | Op::Start | Op::Death => {}
        }
    }
}

/// What goes wrong at one step, besides the power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This step, and only this one, reports an error; nothing of it is done.
    FailsOnce(usize),
    /// From this step on, whatever is written fails: a device that went away.
    FailsFrom(usize),
    /// From this step on, no file of the state folder can grow.
    FullFrom(usize),
    /// One bit of what this step writes lands wrong.
    FlipsBit(usize),
}

/// What lies where, for the promises that are checked while a run goes on.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Rows of each slot's two partitions.
    pub slots: [Vec<Range<u64>>; 2],
    /// Those of them that a release fills.
    pub content: [Vec<Range<u64>>; 2],
    /// How the sectors of kernels and initramfs begin.
    pub boot: Arc<FxHashSet<Vec<u8>>>,
    /// The slot that runs, while one does.
    pub running: Option<usize>,
    /// True when the running slot is confirmed.
    pub confirmed: bool,
}

/// So many bytes tell a boot file's sector from others.
pub const BOOT_BEGINS_BYTES: usize = 64;
/// How a boot entry begins.
const ENTRY_BEGINS: &[u8] = b"title ";

/// Records what a machine does, and answers what it reads.
#[derive(Debug)]
pub struct Recorder {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    begin: Image,
    now: Image,
    ops: Vec<Op>,
    /// What the run saw of the disk that it began with: row and digest. Of the state folder it may have seen all.
    /// None: it was written before anybody read it.
    seen: FxHashMap<u64, Option<u128>>,
    next_file: u32,
    fault: Option<Fault>,
    guard: Guard,
    /// Counts writes, flushes and drops of caches.
    tick: u64,
    /// When a row of a slot or of a boot file was written, and through what.
    written_at: FxHashMap<u64, (u64, Domain)>,
    /// Rows of slots, and of boot files, that were read past the caches since they were flushed, by the process that runs.
    proven: FxHashSet<u64>,
    /// Rows of boot files that this process wrote.
    boot_rows: FxHashSet<u64>,
    last_flush: FxHashMap<Domain, u64>,
    last_drop: FxHashMap<Domain, u64>,
    violations: Vec<Violation>,
}

impl Recorder {
    /// Begins with an image.
    pub fn new(image: Image, fault: Option<Fault>, guard: Guard) -> Recorder {
        let state = State {
            next_file: image.next_file(),
            begin: image.clone(),
            now: image,
            ops: Vec::new(),
            seen: FxHashMap::default(),
            fault,
            guard,
            tick: 1,
            written_at: FxHashMap::default(),
            proven: FxHashSet::default(),
            boot_rows: FxHashSet::default(),
            last_flush: FxHashMap::default(),
            last_drop: FxHashMap::default(),
            violations: Vec::new(),
        };
        Recorder { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many steps were recorded.
    pub fn count(&self) -> usize {
        self.state().ops.len()
    }

    /// Everything that was recorded so far.
    pub fn ops(&self) -> Vec<Op> {
        self.state().ops.clone()
    }

    /// What the run depended on besides the state folder: rows of the disk that it began with.
    pub fn seen(&self) -> Vec<(u64, u128)> {
        self.state().seen.iter().filter_map(|(row, digest)| Some((*row, (*digest)?))).collect()
    }

    /// Bytes of the disk and of one of its sectors.
    pub fn geometry(&self) -> (u64, usize) {
        let state = self.state();
        (state.now.disk_bytes(), state.now.sector_bytes())
    }

    /// What tells the image of now from every other.
    pub fn sum(&self) -> u128 {
        self.state().now.sum()
    }

    /// The image now, caches included.
    pub fn now(&self) -> Image {
        self.state().now.clone()
    }

    /// Promises that were broken while the run went on.
    pub fn violations(&self) -> Vec<Violation> {
        self.state().violations.clone()
    }

    /// Notes a broken promise.
    pub fn broken(&self, promise: Promise, words: impl Into<String>) {
        self.state().violations.push(Violation { promise, words: words.into() });
    }

    /// The firmware begins.
    pub fn starts(&self) {
        self.state().push(Op::Start);
        self.runs(None, false);
    }

    /// The system dies: a panic, or the end by a watchdog.
    pub fn dies(&self) {
        let state = &mut *self.state();
        state.push(Op::Death);
        let mut walk = Walk::new(state.begin.clone(), Arc::new(state.ops.clone()));
        while walk.step() {}
        state.now = walk.with_cut(|cut| cut.image(&Kind::All));
        // What is read from now on may be what the run began with, although it was overwritten.
        for (row, seen) in state.seen.iter_mut().filter(|(_, seen)| seen.is_none()) {
            *seen = Some(state.begin.row(*row).digest);
        }
    }

    /// Tells which slot runs from now on.
    pub fn runs(&self, slot: Option<usize>, confirmed: bool) {
        let guard = &mut self.state().guard;
        (guard.running, guard.confirmed) = (slot, confirmed);
    }

    /// A process starts: what an earlier one proved counts for nothing.
    pub fn new_process(&self) {
        let state = &mut *self.state();
        state.proven.clear();
        state.boot_rows.clear();
        state.last_drop.clear();
    }

    /// True when this process read every row of the slot's content, and of the boot files that it wrote, past the caches,
    /// after it was flushed.
    pub fn is_proven(&self, slot: usize) -> bool {
        let state = self.state();
        let content = state.guard.content[slot].iter().cloned().flatten();
        content.chain(state.boot_rows.iter().copied()).all(|row| state.proven.contains(&row))
    }

    /// Fills `buffer` from `offset` of the disk; `past` the caches, or from them where they were not dropped.
    pub fn read(&self, domain: Domain, offset: u64, buffer: &mut [u8], past: bool) {
        let state = &mut *self.state();
        let row_bytes = state.now.sector_bytes() as u64;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (row, skip) = (at / row_bytes, (at % row_bytes) as usize);
            let count = (row_bytes as usize - skip).min(buffer.len() - done);
            state.see(row);
            buffer[done..done + count].copy_from_slice(&state.now.row(row).bytes[skip..skip + count]);
            state.prove(domain, row, past);
            done += count;
        }
    }

    /// Overwrites bytes of the disk.
    pub fn write(&self, domain: Domain, offset: u64, data: &[u8]) -> io::Result<()> {
        let state = &mut *self.state();
        state.may(true)?;
        let rows = state.rows(offset, data, |row| row);
        state.watch(domain, &rows);
        state.push(Op::Rows(domain, rows));
        Ok(())
    }

    /// Everything written through that node is on the medium; the firmware does not wait for it.
    pub fn flush(&self, domain: Domain) -> io::Result<()> {
        let state = &mut *self.state();
        if domain == Domain::Firmware {
            return Ok(());
        }
        state.may(true)?;
        state.push(Op::Flush(domain));
        state.tick += 1;
        state.last_flush.insert(domain, state.tick);
        Ok(())
    }

    /// The next reads through that node come from the medium.
    pub fn drop_caches(&self, domain: Domain) {
        let state = &mut *self.state();
        state.tick += 1;
        state.last_drop.insert(domain, state.tick);
    }

    /// A file's content.
    pub fn read_file(&self, name: &str) -> Option<Vec<u8>> {
        self.state().now.file(name)
    }

    /// The number and length of a file.
    pub fn find_file(&self, name: &str) -> Option<(u32, u64)> {
        let state = self.state();
        let file = *state.now.names.get(name)?;
        Some((file, state.now.lens.get(&file).copied().unwrap_or(0)))
    }

    /// The length of a file that is open.
    pub fn file_len(&self, file: u32) -> u64 {
        self.state().now.lens.get(&file).copied().unwrap_or(0)
    }

    /// Fills `buffer` from `offset` of a file.
    pub fn read_file_at(&self, file: u32, offset: u64, buffer: &mut [u8]) {
        let state = self.state();
        for (index, byte) in (offset..).zip(buffer.iter_mut()) {
            *byte = state.now.row(file_row(file, index / 512)).bytes[(index % 512) as usize];
        }
    }

    /// A new, empty file under that name; one that had it is gone.
    pub fn create(&self, name: &str) -> io::Result<u32> {
        let state = &mut *self.state();
        state.may(false)?;
        // Emptied in place, as `O_TRUNC` does.
        if let Some(file) = state.now.names.get(name).copied() {
            state.push(Op::Len(file, 0));
            return Ok(file);
        }
        let file = state.next_file;
        state.next_file += 1;
        state.push(Op::Len(file, 0));
        state.push(Op::Link(name.to_owned(), file));
        Ok(file)
    }

    /// Overwrites bytes of a file, which grows where needed.
    pub fn write_file(&self, file: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let state = &mut *self.state();
        let len = state.now.lens.get(&file).copied().unwrap_or(0);
        let grows = offset + data.len() as u64 > len;
        state.may(!grows)?;
        let rows = state.rows(offset, data, |row| file_row(file, row));
        state.push(Op::Rows(Domain::File(file), rows));
        if grows {
            state.push(Op::Len(file, offset + data.len() as u64));
        }
        Ok(())
    }

    /// One of the steps that change names, or a flush of files.
    pub fn step(&self, op: Op) -> io::Result<()> {
        let state = &mut *self.state();
        state.may(!matches!(op, Op::Link(..)))?;
        state.push(op);
        Ok(())
    }
}

impl State {
    fn see(&mut self, row: u64) {
        if row < FILE_ROWS {
            self.seen.entry(row).or_insert_with(|| Some(self.now.row(row).digest));
        }
    }

    fn push(&mut self, op: Op) {
        op.apply(&mut self.now);
        if let Op::Rows(_, rows) = &op {
            for (row, _) in rows {
                self.seen.entry(*row).or_insert(None);
            }
        }
        self.ops.push(op);
    }

    /// The whole rows that a write of `data` at `offset` leaves.
    fn rows(&mut self, offset: u64, data: &[u8], place: impl Fn(u64) -> u64) -> Vec<(u64, Row)> {
        let row_bytes = self.now.row_bytes(place(0)) as u64;
        let mut rows = Vec::new();
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (row, skip) = (place(at / row_bytes), (at % row_bytes) as usize);
            let count = (row_bytes as usize - skip).min(data.len() - done);
            let mut bytes = if count == row_bytes as usize {
                vec![0; count]
            } else {
                self.see(row);
                self.now.row(row).bytes.to_vec()
            };
            bytes[skip..skip + count].copy_from_slice(&data[done..done + count]);
            rows.push((row, Row::new(&bytes)));
            done += count;
        }
        if self.fault == Some(Fault::FlipsBit(self.ops.len()))
            && let Some((_, row)) = rows.last_mut()
        {
            let mut bytes = row.bytes.to_vec();
            bytes[17] ^= 4;
            *row = Row::new(&bytes);
        }
        rows
    }

    /// Whether this step may be done; `in_place`: it needs no room.
    fn may(&self, in_place: bool) -> io::Result<()> {
        let at = self.ops.len();
        match self.fault {
            Some(Fault::FailsOnce(when)) if when == at => {
                Err(io::Error::other("the simulated disk failed once"))
            }
            Some(Fault::FailsFrom(when)) if at >= when => Err(io::Error::other("the simulated disk is gone")),
            Some(Fault::FullFrom(when)) if at >= when && !in_place => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    /// The promises about slots that every single write has to keep.
    fn watch(&mut self, domain: Domain, rows: &[(u64, Row)]) {
        let Some((first, _)) = rows.first() else { return };
        debug_assert!(*first < FILE_ROWS);
        for (row, content) in rows {
            let begin = &content.bytes[..BOOT_BEGINS_BYTES];
            if self.guard.boot.contains(begin) || begin.starts_with(ENTRY_BEGINS) {
                self.tick += 1;
                self.boot_rows.insert(*row);
                self.proven.remove(row);
                self.written_at.insert(*row, (self.tick, domain));
            }
        }
        for slot in 0..2 {
            let hit = |row: &u64| self.guard.slots[slot].iter().any(|range| range.contains(row));
            let hits: Vec<u64> = rows.iter().map(|(row, _)| *row).filter(hit).collect();
            if hits.is_empty() {
                continue;
            }
            let name = ["a", "b"][slot];
            let broken = match self.guard.running {
                Some(running) if running == slot => Some((Promise::RunningUntouched, "which runs")),
                Some(_) if !self.guard.confirmed => {
                    Some((Promise::FallbackKept, "the only way back of a slot that is not confirmed"))
                }
                _ => None,
            };
            if let Some((promise, why)) = broken {
                self.violations.push(Violation { promise, words: format!("slot {name} was written, {why}") });
            }
            self.tick += 1;
            for row in hits {
                self.proven.remove(&row);
                self.written_at.insert(row, (self.tick, domain));
            }
        }
    }

    /// A row counts as proven when it was flushed, the caches were dropped, and then it was read.
    fn prove(&mut self, domain: Domain, row: u64, past: bool) {
        let of_a_slot = |ranges: &Vec<Range<u64>>| ranges.iter().any(|range| range.contains(&row));
        let last_drop = if past { Some(u64::MAX) } else { self.last_drop.get(&domain).copied() }.unwrap_or(0);
        if last_drop == 0 || !self.guard.content.iter().any(of_a_slot) && !self.boot_rows.contains(&row) {
            return;
        }
        let written = self.written_at.get(&row);
        let on_the_medium = |(at, through): &(u64, Domain)| {
            *at < last_drop && self.last_flush.get(through).is_some_and(|flushed| at < flushed)
        };
        if written.is_none_or(on_the_medium) {
            self.proven.insert(row);
        }
    }
}
