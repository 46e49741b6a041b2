//! systemd-boot: boot state in the names of type-1 entries on the boot partition.
//!
//! **What is atomic:** each change of state is one rename of one entry, then a flush of its directory.
//! **Who lowers the tries:** the loader, by a rename (`+3-0` → `+2-1`) before each start of a counted entry.
//! **At zero:** the entry sorts last, so the other slot's entry is first.
//!
//! Entries are `switchback-<slot>-<generation>`, all with one sort key; `version` is the generation, which is above
//! the other slot's whenever a slot is armed, so that the armed entry goes first whatever release it holds. Kernel
//! or UKI lie in `switchback/<slot>/`, outside `EFI/Linux`, where the loader would make entries of its own from them.
//!
//! Not here: EFI variables (a fixed default would be started again and again), and when to arm (policy). Rules:
//! entries and files of others are never touched; a plain and a counted name of one id never both remain; a change
//! of one slot never touches the other slot's entries or files.

use std::io;
use std::sync::Arc;

use switchback_partitions::slot::Slot;

use crate::boot_state::{BootState, Change, SlotBoot};
use crate::esp::EspDir;
use crate::record::{BootError, BootFile, BootFileKind, BootFiles, Bootloader};
use crate::slot_files::{self, Room, at};

mod catalogue;
pub mod entry;
pub mod firmware;
pub mod loader;
pub mod look;
pub mod pe;
pub mod version;

use catalogue::{Catalogue, OurFile};
use entry::{ENTRIES, ENTRY_BYTES_MAX, Ending, EntryText, OurName, Tries};
use pe::Machine;

/// The longest kernel command line and title that are put into an entry, in bytes. Kernels take 2048 and more.
const LINE_BYTES_MAX: usize = 4096;

/// Ends the name of an entry that is still being written.
const UNFINISHED: &str = ".tmp";

/// systemd-boot on one boot partition.
pub struct SystemdBoot {
    esp: Arc<dyn EspDir>,
    machine: Machine,
}

impl SystemdBoot {
    /// The loader that reads `esp`, for kernels of `machine` (the running one: [`Machine::host`]).
    pub fn new(esp: Arc<dyn EspDir>, machine: Machine) -> SystemdBoot {
        SystemdBoot { esp, machine }
    }

    fn load(&self) -> Result<Catalogue, BootError> {
        Catalogue::load(&*self.esp)
    }

    /// Makes one change of state. All but the last step of each leave the state as it reads.
    fn apply(&self, catalogue: &Catalogue, change: Change, wanted: Slot) -> Result<(), BootError> {
        match change {
            // Twice the same writes nothing, except what a crash kept a confirm from tidying away.
            Change::None => {
                let is_good = |slot: &Slot| catalogue.state().slot(*slot) == SlotBoot::Good;
                Slot::ALL.into_iter().filter(is_good).try_for_each(|slot| self.remove_older(slot))
            }
            Change::Arm { slot, tries_left, tries_done } => {
                let tries = Tries { left: tries_left.into(), done: tries_done.into() };
                self.put_first(catalogue, running(catalogue, slot)?, Ending::Counted(tries))
            }
            Change::Confirm(slot) if wanted == slot => {
                self.put_first(catalogue, running(catalogue, slot)?, Ending::Plain)?;
                self.remove_older(slot)
            }
            Change::Confirm(slot) => self.rename(running(catalogue, slot)?, Ending::Plain),
            Change::Revert(slot) => {
                let file = running(catalogue, slot)?;
                self.rename(file, Ending::Counted(Tries { left: 0, done: done(file.name.ending) }))
            }
            Change::Prefer(slot) => {
                let file = running(catalogue, slot)?;
                self.put_first(catalogue, file, file.name.ending)?;
                self.remove_older(slot)
            }
            Change::Forget(slot) => self.withdraw(catalogue, slot),
        }
    }

    /// The commit point: one rename gives the entry its ending, above all entries of the other slot.
    fn put_first(&self, catalogue: &Catalogue, file: &OurFile, ending: Ending) -> Result<(), BootError> {
        let slot = file.name.slot;
        if file.name.generation > catalogue.newest_live(slot.other()) {
            return self.rename(file, ending);
        }
        // A slot that the other one overtook: the same entry under a new generation, which the loader does not
        // see until its rename. The old one stays for now: it sorts behind the other slot's.
        let text = self.entry_of(file)?;
        let text = |generation| entry::with_generation(&String::from_utf8_lossy(&text), generation);
        for prepared in catalogue.ours_of(slot).filter(|file| file.name.ending == Ending::Prepared) {
            // A crash came after it was prepared and before its rename.
            let generation = prepared.name.generation;
            if generation > catalogue.newest_live(slot.other())
                && self.entry_of(prepared)? == text(generation).as_bytes()
            {
                return self.rename(prepared, ending);
            }
        }
        let generation = catalogue.next_generation();
        let prepared = self.write_prepared(slot, generation, &text(generation))?;
        self.rename(&prepared, ending)
    }

    fn rename(&self, file: &OurFile, ending: Ending) -> Result<(), BootError> {
        let (from, to) = (path(&file.file_name), path(&file.name.with(ending).file_name()));
        if from != to {
            self.esp.rename(&from, &to).map_err(at("renaming", &from))?;
        }
        Ok(())
    }

    fn write_prepared(&self, slot: Slot, generation: u64, text: &str) -> Result<OurFile, BootError> {
        let name = OurName { slot, generation, ending: Ending::Prepared };
        let (unfinished, prepared) = (path(&format!("{}{UNFINISHED}", name.id())), path(&name.file_name()));
        self.esp.write_tmp(&unfinished, &mut text.as_bytes()).map_err(at("writing", &unfinished))?;
        self.esp.rename(&unfinished, &prepared).map_err(at("renaming", &unfinished))?;
        Ok(OurFile { name, file_name: name.file_name(), visible: false, bytes: text.len() as u64 })
    }

    /// After a confirm: entries of the slot's earlier generations, which were kept until the newest had proven itself.
    fn remove_older(&self, slot: Slot) -> Result<(), BootError> {
        let catalogue = self.load()?;
        let kept = running(&catalogue, slot)?;
        let older: Vec<&OurFile> = catalogue.ours_of(slot).filter(|file| *file != kept).collect();
        for file in &older {
            self.remove(file)?;
        }
        Ok(())
    }

    /// Takes the slot out of the loader's order and keeps its newest entry as a prepared one: what is only disarmed can
    /// be armed again. Removed, a staged release could never be started without being written once more.
    fn withdraw(&self, catalogue: &Catalogue, slot: Slot) -> Result<(), BootError> {
        let Some(newest) = catalogue.ours_of(slot).find(|file| file.name.ending != Ending::Prepared) else {
            return Ok(());
        };
        for file in catalogue.ours_of(slot).filter(|file| file.file_name != newest.file_name) {
            self.remove(file)?;
        }
        self.rename(newest, Ending::Prepared)
    }

    fn remove_entries(&self, catalogue: &Catalogue, slot: Slot) -> Result<(), BootError> {
        // The newest goes last: it alone says what state the slot is in, until nothing says anything.
        let (prepared, live): (Vec<&OurFile>, Vec<&OurFile>) =
            catalogue.ours_of(slot).partition(|file| file.name.ending == Ending::Prepared);
        for file in prepared.iter().chain(live.iter().rev()) {
            self.remove(file)?;
        }
        self.remove_unfinished(slot)
    }

    /// What a crash left of an entry that was being prepared.
    fn remove_unfinished(&self, slot: Slot) -> Result<(), BootError> {
        let names = self.esp.list(ENTRIES).map_err(at("listing", ENTRIES))?;
        let is_ours =
            |name: &str| name.starts_with(&format!("switchback-{slot}-")) && name.ends_with(UNFINISHED);
        for entry in names.iter().filter(|entry| is_ours(&entry.name.to_ascii_lowercase())) {
            let path = path(&entry.name);
            self.esp.remove(&path).map_err(at("removing", &path))?;
        }
        Ok(())
    }

    fn remove(&self, file: &OurFile) -> Result<(), BootError> {
        let path = path(&file.file_name);
        self.esp.remove(&path).map_err(at("removing", &path))
    }

    /// Moves aside the second name of a rename that a power cut tore in two: with both, `systemd-bless-boot` does
    /// nothing and a good start would end bad. Renamed and never removed: both names own the same clusters, and
    /// freeing them through one would hand the other's text to the next file written.
    fn mend(&self) -> Result<Catalogue, BootError> {
        let catalogue = self.load()?;
        let torn: Vec<&OurFile> = catalogue.torn().collect();
        if torn.is_empty() {
            return Ok(catalogue);
        }
        for file in torn {
            let from = path(&file.file_name);
            let aside = self.free_name(&file.name)?;
            tracing::warn!(
                entry = file.file_name,
                "two names for one boot entry: a rename was cut by a power loss"
            );
            self.esp.rename(&from, &aside).map_err(at("renaming", &from))?;
        }
        self.load()
    }

    fn free_name(&self, name: &OurName) -> Result<String, BootError> {
        let taken = self.esp.list(ENTRIES).map_err(at("listing", ENTRIES))?;
        let names = (0..).map(|number: u32| format!("{}.torn{number}", name.id()));
        let free =
            names.into_iter().find(|name| !taken.iter().any(|entry| entry.name.eq_ignore_ascii_case(name)));
        Ok(path(&free.unwrap_or_default()))
    }

    /// Reads the head of what the slot's entry starts.
    fn check_bootable(&self, slot: Slot) -> Result<(), BootError> {
        for kind in [BootFileKind::Uki, BootFileKind::Linux] {
            let path = slot_files::path(slot, kind.file_name());
            if self.esp.file_bytes(&path).map_err(at("reading", &path))?.is_some() {
                let head = read_head(&*self.esp, &path)?;
                return pe::check_head(&head, self.machine)
                    .map_err(|why| BootError::NotBootable { file: path.clone(), why });
            }
        }
        let why = "the slot has neither a UKI nor a kernel".to_string();
        Err(BootError::BadFiles { slot, why })
    }
}

impl Bootloader for SystemdBoot {
    fn name(&self) -> &'static str {
        "systemd-boot"
    }

    fn read(&self) -> Result<BootState, BootError> {
        Ok(self.load()?.state())
    }

    fn write(&self, state: &BootState) -> Result<(), BootError> {
        let expected = state.normalise();
        let catalogue = self.mend()?;
        let change = catalogue.state().change_to(&expected)?;
        if let Change::Arm { slot, .. } | Change::Confirm(slot) = change
            && !catalogue.state().slot(slot).is_startable()
        {
            self.check_bootable(slot)?;
        }
        self.apply(&catalogue, change, expected.wanted)?;
        let found = self.read()?;
        if found.means_the_same_as(&expected) { Ok(()) } else { Err(BootError::NotTaken { expected, found }) }
    }

    fn preflight(&self, slot: Slot, sizes: &[u64]) -> Result<(), BootError> {
        let space = self.esp.space().map_err(at("measuring", ""))?;
        let given_back = self.load()?.ours_of(slot).map(|file| space.rounded(file.bytes)).sum();
        // The prepared entry, its temporary name, and one more generation for a later rollback to the other slot.
        slot_files::preflight(&*self.esp, slot, sizes, &Room { small_files: 3, given_back })
    }

    fn forget(&self, slot: Slot) -> Result<(), BootError> {
        self.remove_entries(&self.mend()?, slot)?;
        slot_files::forget(&*self.esp, slot)
    }

    fn prepare(&self, slot: Slot, files: &BootFiles) -> Result<(), BootError> {
        let text = entry_text(slot, files)?;
        slot_files::check(slot, files)?;
        self.check_source(files)?;
        let catalogue = self.mend()?;
        if let Some(file) = catalogue.ours_of(slot).find(|file| file.name.ending != Ending::Prepared) {
            return Err(BootError::NotForgotten { slot, entry: file.file_name.clone() });
        }
        if self.is_prepared(&catalogue, slot, &text)? && slot_files::verify(&*self.esp, slot, files).is_ok() {
            return Ok(());
        }
        // An entry that was prepared for other files must not wait beside half of the new ones.
        self.remove_entries(&catalogue, slot)?;
        self.esp.mkdir(ENTRIES).map_err(at("creating", ENTRIES))?;
        slot_files::write(&*self.esp, slot, files)?;
        let generation = self.load()?.next_generation();
        self.write_prepared(slot, generation, &text.render(generation))?;
        Ok(())
    }

    fn verify(&self, slot: Slot, files: &BootFiles) -> Result<(), BootError> {
        slot_files::verify(&*self.esp, slot, files)?;
        let text = entry_text(slot, files)?;
        let catalogue = self.load()?;
        let Some(file) = catalogue.ours_of(slot).next() else {
            let (file, expected) = ("boot entry".to_string(), "one".to_string());
            return Err(BootError::Mismatch { slot, file, expected, found: "none".into() });
        };
        let expected = text.render(file.name.generation);
        let found = self.entry_of(file)?;
        if found == expected.as_bytes() {
            return Ok(());
        }
        let found = String::from_utf8_lossy(&found).into_owned();
        Err(BootError::Mismatch { slot, file: file.file_name.clone(), expected, found })
    }

    fn missing(&self, slot: Slot, files: &[BootFile]) -> Result<Option<String>, BootError> {
        match slot_files::missing(&*self.esp, slot, files)? {
            // A prepared entry counts: what is staged misses nothing.
            None if self.load()?.ours_of(slot).next().is_none() => Ok(Some("its boot entry is gone".into())),
            found => Ok(found),
        }
    }

    fn copy(
        &self,
        slot: Slot,
        name: &str,
        limit: u64,
        sink: &mut dyn io::Write,
    ) -> Result<Option<u64>, BootError> {
        slot_files::copy(&*self.esp, slot, name, limit, sink)
    }
}

impl SystemdBoot {
    fn entry_of(&self, file: &OurFile) -> Result<Vec<u8>, BootError> {
        let path = path(&file.file_name);
        self.esp.drop_caches(&path).map_err(at("reading", &path))?;
        self.esp.read(&path, ENTRY_BYTES_MAX).map_err(at("reading", &path))
    }

    /// A second run of `prepare` after a crash: entry and files are there already.
    fn is_prepared(&self, catalogue: &Catalogue, slot: Slot, text: &EntryText) -> Result<bool, BootError> {
        let mut files = catalogue.ours_of(slot);
        match (files.next(), files.next()) {
            (Some(file), None) => Ok(self.entry_of(file)? == text.render(file.name.generation).as_bytes()),
            _ => Ok(false),
        }
    }

    fn check_source(&self, files: &BootFiles) -> Result<(), BootError> {
        for file in files.files.iter().filter(|file| is_started(file.kind)) {
            let source_error = |source| BootError::Source { path: file.source.clone(), source };
            let mut head = Vec::new();
            let source = std::fs::File::open(&file.source).map_err(source_error)?;
            std::io::Read::read_to_end(&mut std::io::Read::take(source, pe::HEAD_BYTES), &mut head)
                .map_err(source_error)?;
            let not_bootable = |why| BootError::NotBootable { file: file.source.display().to_string(), why };
            pe::check_head(&head, self.machine).map_err(not_bootable)?;
        }
        Ok(())
    }
}

/// The slot's newest entry, live or prepared: the one that a change is made to.
fn newest(catalogue: &Catalogue, slot: Slot) -> Result<&OurFile, BootError> {
    catalogue.ours_of(slot).next().ok_or(BootError::NoEntry { slot })
}

/// The slot's newest entry that the loader shows, so the one that runs when the slot does; else the prepared one.
fn running(catalogue: &Catalogue, slot: Slot) -> Result<&OurFile, BootError> {
    catalogue.ours_of(slot).find(|file| file.visible).map_or_else(|| newest(catalogue, slot), Ok)
}

fn path(file_name: &str) -> String {
    format!("{ENTRIES}/{file_name}")
}

fn done(ending: Ending) -> u64 {
    match ending {
        Ending::Counted(tries) => tries.done,
        Ending::Plain | Ending::Prepared => 0,
    }
}

fn is_started(kind: BootFileKind) -> bool {
    matches!(kind, BootFileKind::Uki | BootFileKind::Linux)
}

/// The entry of a slot with these files, or why there can be none.
fn entry_text(slot: Slot, files: &BootFiles) -> Result<EntryText<'_>, BootError> {
    let bad = |why: &str| BootError::BadFiles { slot, why: why.to_string() };
    let has = |kind| files.files.iter().any(|file| file.kind == kind);
    let path = |kind: BootFileKind| format!("/{}", slot_files::path(slot, kind.file_name()));
    let optional = |kind| has(kind).then(|| path(kind));
    let (uki, linux) = (has(BootFileKind::Uki), has(BootFileKind::Linux));
    let lines = [files.title.as_str(), files.cmdline.as_deref().unwrap_or("")];
    if lines.iter().any(|line| line.len() > LINE_BYTES_MAX || line.contains(|c: char| c.is_control())) {
        return Err(bad("the title or the kernel command line is longer than one line of 4096 bytes"));
    }
    match (uki, linux) {
        (true, true) => Err(bad("a UKI and a kernel: one of them would never be started")),
        (false, false) => Err(bad("neither a UKI nor a kernel")),
        (true, false)
            if files.cmdline.is_some() || has(BootFileKind::Initrd) || has(BootFileKind::DeviceTree) =>
        {
            // Under Secure Boot the stub ignores what comes from outside of the signed file.
            Err(bad("a UKI carries its own command line, initrd and device tree"))
        }
        (is_uki, _) => Ok(EntryText {
            title: files.title.trim(),
            linux: path(if is_uki { BootFileKind::Uki } else { BootFileKind::Linux }),
            initrd: optional(BootFileKind::Initrd),
            devicetree: optional(BootFileKind::DeviceTree),
            options: files.cmdline.as_deref().map(str::trim).filter(|line| !line.is_empty()),
        }),
    }
}

/// The first [`pe::HEAD_BYTES`] of a file that may be larger.
fn read_head(esp: &dyn EspDir, path: &str) -> Result<Vec<u8>, BootError> {
    let mut head = Head(Vec::new());
    match esp.read_into(path, u64::MAX, &mut head) {
        Err(e) if head.0.len() < pe::HEAD_BYTES as usize => Err(at("reading", path)(e)),
        _ => Ok(head.0),
    }
}

/// Takes the beginning and then refuses more, so that the rest of a large kernel is not read.
struct Head(Vec<u8>);

impl std::io::Write for Head {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let left = pe::HEAD_BYTES as usize - self.0.len();
        if left == 0 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.extend_from_slice(&data[..data.len().min(left)]);
        Ok(data.len().min(left))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
