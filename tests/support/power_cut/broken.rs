//! Updaters with one mistake each, to see that the simulator finds it.
//!
//! Not here: the right one. Rule: a mistake is made at a seam (disk, boot partition, boot record, state folder, machine)
//! and nowhere else, so that the production code above it is the one that ships.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use switchback::facts::{COPY_BYTES, Facts, state_file};
use switchback::host::state_dir::{StateDir, Store};
use switchback::lifecycle::Phase;
use switchback_bootloader::boot_state::{BootState, SlotBoot};
use switchback_bootloader::esp::{EspDir, EspEntry, Space};
use switchback_bootloader::record::{BootError, BootFile, BootFiles, Bootloader};
use switchback_partitions::device::disk::{Disk, PlainDisk};
use switchback_partitions::device::{BlockDevice, Window};
use switchback_partitions::layout::{DiskLayout, Extent};
use switchback_partitions::slot::Slot;

use super::devices::{CutDisk, CutFolder};
use super::promise::Promise;

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// Nothing that is written to the disk is flushed.
    SkipsFlush,
    /// The trial is armed as soon as the boot files are there.
    ArmsBeforeReadBack,
    /// The slot that runs is taken for the one that does not.
    WritesRunningSlot,
    /// A trial is confirmed as soon as somebody asks.
    ConfirmsBeforeHealth,
    /// Before a slot is armed the other one's entry goes.
    DeletesOldEntryFirst,
    /// A new name is given to an entry and the old one is not taken away.
    LeavesBothNames,
    /// The state file says which slot runs.
    TrustsStateFile,
    /// A restart is ordered and does not come.
    NeverReboots,
    /// The table's second copy is not held back until the first is on the medium.
    BothTablesAtOnce,
    /// The state file is emptied and written anew in its place.
    TruncatesRecord,
    /// The confirmed slot's entry gets a counter at each start.
    CountsConfirmed,
    /// While a slot is on trial, the other is cleared for the next update.
    ClearsWayBack,
    /// Read-back is answered from what was meant to be written.
    ReadsBackFromCache,
    /// What failed once is forgotten by the next process: facts, state file and the mark in the boot record.
    RetriesQuarantined,
}

impl Broken {
    /// Each with the promise that has to catch it.
    pub const ALL: &'static [(Broken, Promise)] = &[
        (Broken::SkipsFlush, Promise::ProvenBeforeArmed),
        (Broken::ArmsBeforeReadBack, Promise::ProvenBeforeArmed),
        (Broken::WritesRunningSlot, Promise::RunningUntouched),
        (Broken::ConfirmsBeforeHealth, Promise::HealthBeforeConfirm),
        (Broken::DeletesOldEntryFirst, Promise::AlwaysBootable),
        (Broken::LeavesBothNames, Promise::OldOrNew),
        (Broken::TrustsStateFile, Promise::RunningUntouched),
        (Broken::NeverReboots, Promise::UnattendedReturn),
        (Broken::BothTablesAtOnce, Promise::AlwaysBootable),
        (Broken::TruncatesRecord, Promise::OldOrNew),
        (Broken::CountsConfirmed, Promise::Settles),
        (Broken::ClearsWayBack, Promise::FallbackKept),
        (Broken::ReadsBackFromCache, Promise::ProvenBeforeArmed),
        (Broken::RetriesQuarantined, Promise::TriedOnce),
    ];

    /// The name that `make power-cut-selftest` prints.
    pub fn name(self) -> &'static str {
        match self {
            Broken::SkipsFlush => "skips a flush",
            Broken::ArmsBeforeReadBack => "arms before the read-back",
            Broken::WritesRunningSlot => "writes the running slot",
            Broken::ConfirmsBeforeHealth => "confirms before the health checks",
            Broken::DeletesOldEntryFirst => "deletes the old entry before the new one is durable",
            Broken::LeavesBothNames => "leaves the plain and the counted name",
            Broken::TrustsStateFile => "trusts the state file over the boot record",
            Broken::NeverReboots => "never reboots",
            Broken::BothTablesAtOnce => "rewrites both partition tables before a flush",
            Broken::TruncatesRecord => "truncates a record in place",
            Broken::CountsConfirmed => "spends counters on a confirmed slot",
            Broken::ClearsWayBack => "clears the way back during a trial",
            Broken::ReadsBackFromCache => "reads back from the cache",
            Broken::RetriesQuarantined => "re-tries a quarantined digest",
        }
    }

    /// The disk, as this updater uses it.
    pub fn device(self, disk: CutDisk) -> Arc<dyn BlockDevice> {
        let device =
            |skips: Skips| -> Arc<dyn BlockDevice> { Arc::new(Careless { disk: disk.clone(), skips }) };
        match self {
            Broken::SkipsFlush => device(Skips::Flushes),
            Broken::BothTablesAtOnce => device(Skips::FlushOfTable(AtomicU64::new(u64::MAX))),
            Broken::ReadsBackFromCache => device(Skips::Drops),
            _ => Arc::new(disk),
        }
    }

    /// The boot partition, as this updater uses it.
    pub fn esp(self, esp: Arc<dyn EspDir>) -> Arc<dyn EspDir> {
        match self {
            Broken::LeavesBothNames => Arc::new(BothNames(esp)),
            _ => esp,
        }
    }

    /// The state folder, as this updater uses it.
    pub fn folder(self, folder: CutFolder) -> Box<dyn StateDir> {
        match self {
            Broken::TruncatesRecord => Box::new(CarelessFolder { folder, forgets: false }),
            // From then on: the verdict itself is written by a process that has all its wits.
            Broken::RetriesQuarantined if has_quarantined(&folder) => {
                Box::new(CarelessFolder { folder, forgets: true })
            }
            _ => Box::new(folder),
        }
    }

    /// Which slot this updater thinks runs.
    pub fn running(self, running: Slot, folder: &dyn StateDir) -> Slot {
        if self != Broken::TrustsStateFile {
            return running;
        }
        match state_file::load(folder).into_state().phase {
            // "I armed it, so it must be what runs."
            Phase::Armed { slot, .. } | Phase::OnTrial { slot, .. } => slot,
            _ => running,
        }
    }

    /// The disk's partitions, as this updater finds them.
    pub fn disk(self, disk: Arc<dyn Disk>, layout: &DiskLayout, running: Slot) -> Arc<dyn Disk> {
        match (self, disk.whole()) {
            (Broken::WritesRunningSlot, Ok(whole)) => {
                Arc::new(WrongSlot { plain: PlainDisk::new(whole), layout: layout.clone(), running })
            }
            _ => disk,
        }
    }

    /// The boot record, as this updater changes it.
    pub fn bootloader(
        self,
        inner: Arc<dyn Bootloader>,
        esp: Arc<dyn EspDir>,
        running: Slot,
    ) -> Arc<dyn Bootloader> {
        match self {
            Broken::ArmsBeforeReadBack
            | Broken::ConfirmsBeforeHealth
            | Broken::DeletesOldEntryFirst
            | Broken::CountsConfirmed
            | Broken::ClearsWayBack
            | Broken::RetriesQuarantined => {
                Arc::new(CarelessBootloader { broken: self, inner, esp, running })
            }
            _ => inner,
        }
    }
}

enum Skips {
    /// No flush at all.
    Flushes,
    /// No flush between the two copies of the table: where the last write was.
    FlushOfTable(AtomicU64),
    /// Caches stay.
    Drops,
}

struct Careless {
    disk: CutDisk,
    skips: Skips,
}

impl BlockDevice for Careless {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Skips::FlushOfTable(last) = &self.skips {
            last.store(offset, Ordering::Relaxed);
        }
        self.disk.write_at(offset, data)
    }
    fn flush(&self) -> io::Result<()> {
        let skipped = match &self.skips {
            Skips::Flushes => true,
            // Only what was written to the backup at the end, or to the primary at the start.
            Skips::FlushOfTable(last) => {
                let last = last.load(Ordering::Relaxed);
                last < 1 << 20 || last != u64::MAX && last > self.disk.len() - (1 << 20)
            }
            Skips::Drops => false,
        };
        if skipped { Ok(()) } else { self.disk.flush() }
    }
    fn len(&self) -> u64 {
        self.disk.len()
    }
    fn sector_bytes(&self) -> u32 {
        self.disk.sector_bytes()
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.zero(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.discard(offset, len)
    }
    fn drop_caches(&self) -> io::Result<()> {
        match self.skips {
            Skips::Drops => Ok(()),
            _ => self.disk.drop_caches(),
        }
    }
    fn read_past_cache(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self.skips {
            Skips::Drops => self.disk.read_at(offset, buffer),
            _ => self.disk.read_past_cache(offset, buffer),
        }
    }
}

struct WrongSlot {
    plain: PlainDisk,
    layout: DiskLayout,
    running: Slot,
}

impl Disk for WrongSlot {
    fn whole(&self) -> io::Result<Arc<dyn BlockDevice>> {
        self.plain.whole()
    }
    fn partition(&self, extent: &Extent) -> io::Result<Arc<dyn BlockDevice>> {
        let (mine, other) = (self.layout.slot(self.running), self.layout.slot(self.running.other()));
        let wrong = if extent.number == other.root.number { &mine.root } else { &mine.verity };
        Ok(Arc::new(Window::new(self.plain.whole()?, wrong.offset, wrong.len)?))
    }
}

struct CarelessBootloader {
    broken: Broken,
    inner: Arc<dyn Bootloader>,
    esp: Arc<dyn EspDir>,
    running: Slot,
}

impl CarelessBootloader {
    fn remove_entries(&self, slot: Slot) {
        let mine = format!("switchback-{slot}-");
        for entry in self.esp.list("loader/entries").unwrap_or_default() {
            if entry.name.starts_with(&mine) {
                let _ = self.esp.remove(&format!("loader/entries/{}", entry.name));
            }
        }
    }
}

impl Bootloader for CarelessBootloader {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn read(&self) -> Result<BootState, BootError> {
        let state = self.inner.read()?;
        let mine = state.slot(self.running);
        match self.broken {
            Broken::ConfirmsBeforeHealth if mine != SlotBoot::Good => {
                self.inner.write(&state.confirm(self.running))?;
            }
            Broken::CountsConfirmed if mine == SlotBoot::Good => {
                self.inner.write(&state.arm(self.running, 3))?;
                return Ok(state);
            }
            Broken::ClearsWayBack if mine != SlotBoot::Good => self.inner.forget(self.running.other())?,
            Broken::RetriesQuarantined if state.slot(self.running.other()) == SlotBoot::Bad => {
                return Ok(state.forget(self.running.other()));
            }
            _ => return Ok(state),
        }
        self.inner.read()
    }
    fn write(&self, state: &BootState) -> Result<(), BootError> {
        let arms = matches!(state.slot(self.running.other()), SlotBoot::Trial { .. });
        if self.broken == Broken::DeletesOldEntryFirst && arms {
            self.remove_entries(self.running);
            let gone = state.forget(self.running);
            return self.inner.write(&gone);
        }
        self.inner.write(state)
    }
    fn preflight(&self, slot: Slot, sizes: &[u64]) -> Result<(), BootError> {
        self.inner.preflight(slot, sizes)
    }
    fn forget(&self, slot: Slot) -> Result<(), BootError> {
        self.inner.forget(slot)
    }
    fn prepare(&self, slot: Slot, files: &BootFiles) -> Result<(), BootError> {
        self.inner.prepare(slot, files)?;
        if self.broken == Broken::ArmsBeforeReadBack {
            let state = self.inner.read()?;
            self.inner.write(&state.arm(slot, 3))?;
        }
        Ok(())
    }
    fn verify(&self, slot: Slot, files: &BootFiles) -> Result<(), BootError> {
        self.inner.verify(slot, files)
    }
    fn missing(&self, slot: Slot, files: &[BootFile]) -> Result<Option<String>, BootError> {
        self.inner.missing(slot, files)
    }
    fn copy(
        &self,
        slot: Slot,
        name: &str,
        limit: u64,
        sink: &mut dyn io::Write,
    ) -> Result<Option<u64>, BootError> {
        self.inner.copy(slot, name, limit, sink)
    }
}

/// A rename that copies.
struct BothNames(Arc<dyn EspDir>);

impl EspDir for BothNames {
    fn read_into(&self, path: &str, limit: u64, sink: &mut dyn io::Write) -> io::Result<u64> {
        self.0.read_into(path, limit, sink)
    }
    fn file_bytes(&self, path: &str) -> io::Result<Option<u64>> {
        self.0.file_bytes(path)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<EspEntry>> {
        self.0.list(dir)
    }
    fn write_tmp(&self, path: &str, source: &mut dyn io::Read) -> io::Result<u64> {
        self.0.write_tmp(path, source)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if !from.ends_with(".conf") || !to.ends_with(".conf") {
            return self.0.rename(from, to);
        }
        let text = self.0.read(from, 1 << 16)?;
        self.0.write_tmp(to, &mut text.as_slice()).map(drop)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.0.remove(path)
    }
    fn mkdir(&self, dir: &str) -> io::Result<()> {
        self.0.mkdir(dir)
    }
    fn space(&self) -> io::Result<Space> {
        self.0.space()
    }
    fn drop_caches(&self, path: &str) -> io::Result<()> {
        self.0.drop_caches(path)
    }
}

fn is_facts(name: &str) -> bool {
    name.starts_with("facts-")
}

fn has_quarantined(folder: &CutFolder) -> bool {
    Facts::read(folder).is_ok_and(|facts| !facts.known().quarantine.is_empty())
}

/// A copy of the facts that nobody wrote to yet, whatever is written.
struct Blank;

impl Store for Blank {
    fn len(&self) -> io::Result<u64> {
        Ok(COPY_BYTES)
    }
    fn read_at(&self, _offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        Ok(())
    }
    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A folder whose state file is written in its place, or one that forgets: facts and state file read as those of a new
/// machine, and what is written to the facts goes nowhere.
struct CarelessFolder {
    folder: CutFolder,
    forgets: bool,
}

impl StateDir for CarelessFolder {
    fn path(&self) -> &Path {
        self.folder.path()
    }
    fn make(&self) -> io::Result<()> {
        self.folder.make()
    }
    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let forgotten = self.forgets && (name == state_file::STATE_FILE || is_facts(name));
        if forgotten { Ok(None) } else { self.folder.read(name, limit) }
    }
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.folder.write(name, bytes)
    }
    fn sync(&self, name: &str) -> io::Result<()> {
        self.folder.sync(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.folder.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.folder.remove(name)
    }
    fn sync_folder(&self) -> io::Result<()> {
        self.folder.sync_folder()
    }
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Store>>> {
        if self.forgets && is_facts(name) { Ok(Some(Box::new(Blank))) } else { self.folder.open(name) }
    }
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.forgets || name != state_file::STATE_FILE {
            return self.folder.replace(name, bytes);
        }
        self.folder.write(name, bytes)?;
        self.folder.sync(name)?;
        self.folder.sync_folder()
    }
}
