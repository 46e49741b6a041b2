//! All entries on the boot partition, and the boot state that they spell.
//!
//! Not here: any change. Rule: what `state` says is what the loader will do; entries of others count only in its order.

use std::io::ErrorKind;

use switchback_partitions::slot::Slot;

use super::entry::{ENTRIES, ENTRY_BYTES_MAX, Ending, LoaderEntry, OurName};
use crate::boot_state::{BootState, SlotBoot, TRIES_MAX};
use crate::esp::EspDir;
use crate::record::BootError;
use crate::slot_files::at;

/// One file of ours in `loader/entries`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OurFile {
    pub name: OurName,
    /// As stored: upper and lower case may differ from what `name` would write.
    pub file_name: String,
    /// False when the loader does not show it: prepared, damaged, or its kernel file is missing.
    pub visible: bool,
    pub bytes: u64,
}

/// What `loader/entries` holds.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    /// Every file of ours, newest generation first, and of one generation first what the loader takes first.
    pub ours: Vec<OurFile>,
    /// Everything that the loader shows, ours and foreign, in its order.
    pub shown: Vec<LoaderEntry>,
}

impl Catalogue {
    /// Reads the folder. A file that cannot be read as text is what it is for the loader too: no entry.
    pub fn load(esp: &dyn EspDir) -> Result<Catalogue, BootError> {
        let mut catalogue = Catalogue::default();
        for file in esp.list(ENTRIES).map_err(at("listing", ENTRIES))? {
            let entry = if file.is_dir { None } else { shown(esp, &file.name)? };
            if let Some(name) = OurName::parse(&file.name) {
                let visible = entry.is_some();
                catalogue.ours.push(OurFile { name, file_name: file.name, visible, bytes: file.bytes });
            }
            catalogue.shown.extend(entry);
        }
        catalogue.shown.sort_by(LoaderEntry::order);
        let rank =
            |file: &OurFile| catalogue.shown.iter().position(|entry| entry.file_name == file.file_name);
        let prepared_last = |file: &OurFile| file.name.ending == Ending::Prepared;
        catalogue.ours.sort_by_key(|file| {
            (
                u64::MAX - file.name.generation,
                file.name.slot,
                prepared_last(file),
                rank(file).unwrap_or(usize::MAX),
            )
        });
        Ok(catalogue)
    }

    /// The boot state that the loader will act on.
    pub fn state(&self) -> BootState {
        let of = |slot| self.ours_of(slot).find(|file| file.visible).map_or(SlotBoot::Empty, slot_boot);
        let first = self.shown.iter().find_map(|entry| OurName::parse(&entry.file_name));
        let wanted = first.map_or(Slot::A, |name| name.slot);
        BootState { slots: Slot::ALL.map(of), wanted }.normalise()
    }

    /// The slot's files, newest generation first, the prepared one of a generation after the one that is live.
    pub fn ours_of(&self, slot: Slot) -> impl Iterator<Item = &OurFile> {
        self.ours.iter().filter(move |file| file.name.slot == slot)
    }

    /// The newest generation among the slot's entries that the loader may read, 0 without any.
    pub fn newest_live(&self, slot: Slot) -> u64 {
        let live = self.ours_of(slot).filter(|file| file.name.ending != Ending::Prepared);
        live.map(|file| file.name.generation).max().unwrap_or(0)
    }

    /// A generation that no entry of either slot has, above all of them.
    pub fn next_generation(&self) -> u64 {
        self.ours.iter().map(|file| file.name.generation).max().unwrap_or(0).saturating_add(1)
    }

    /// Files that repeat an id which a file before them has already: a rename that a power cut tore in two.
    pub fn torn(&self) -> impl Iterator<Item = &OurFile> {
        let pairs = self.ours.windows(2);
        pairs.filter(|pair| pair[0].name.id() == pair[1].name.id()).map(|pair| &pair[1])
    }
}

fn slot_boot(file: &OurFile) -> SlotBoot {
    let digit = |count: u64| u8::try_from(count).unwrap_or(u8::MAX).min(TRIES_MAX);
    match file.name.ending {
        Ending::Prepared => SlotBoot::Empty,
        Ending::Plain => SlotBoot::Good,
        Ending::Counted(tries) if tries.left == 0 => SlotBoot::Bad,
        Ending::Counted(tries) => {
            SlotBoot::Trial { tries_left: digit(tries.left), tries_done: digit(tries.done) }
        }
    }
}

/// The entry, if the loader shows it: a text with something to start, and that file exists.
fn shown(esp: &dyn EspDir, file_name: &str) -> Result<Option<LoaderEntry>, BootError> {
    let path = format!("{ENTRIES}/{file_name}");
    // The name alone decides first: files that are no entries are not read.
    if LoaderEntry::parse(file_name, "").is_none() {
        return Ok(None);
    }
    let bytes = match esp.read(&path, ENTRY_BYTES_MAX) {
        Ok(bytes) => bytes,
        // Too large for the loader too, or renamed since the listing (systemd-bless-boot runs beside us).
        Err(e) if matches!(e.kind(), ErrorKind::FileTooLarge | ErrorKind::NotFound) => return Ok(None),
        Err(e) => return Err(at("reading", &path)(e)),
    };
    let Ok(text) = String::from_utf8(bytes) else { return Ok(None) };
    let entry = LoaderEntry::parse(file_name, &text);
    Ok(entry.filter(|entry| entry.loaded.as_deref().is_some_and(|path| exists(esp, path))))
}

/// A path that leaves the partition, or that cannot be looked up, names no file that the loader could start.
fn exists(esp: &dyn EspDir, path: &str) -> bool {
    matches!(esp.file_bytes(path.trim_start_matches('/')), Ok(Some(_)))
}
