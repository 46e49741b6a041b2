//! What the bootloader says of this start, in its EFI variables.
//!
//! Not here: changing a variable, or believing one over the running kernel. Rule: a witness of the second rank; a
//! variable that is absent or malformed is no evidence and never an error.
//!
//! Spec: the Boot Loader Interface (systemd.io/BOOT_LOADER_INTERFACE). All of its variables that are read here are
//! volatile: they are of this start or they are not there.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use switchback_partitions::slot::Slot;
use uuid::Uuid;

/// Where the kernel shows EFI variables.
pub const EFIVARS: &str = "/sys/firmware/efi/efivars";

/// The name systemd-boot gives itself.
pub const SYSTEMD_BOOT: &str = "systemd-boot ";

/// The first systemd-boot that restarts the machine when it cannot load what an entry names (`reboot-on-error`).
pub const REBOOT_ON_ERROR_SINCE: u32 = 260;

const LOADER_GUID: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Attributes before a variable's value in efivarfs, in bytes.
pub(super) const ATTRIBUTE_BYTES: usize = 4;

/// Longest variable read: paths and identifiers of a few hundred characters.
const VARIABLE_BYTES_MAX: u64 = 4096;

/// The loader's word on this start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoaderEvidence {
    /// The loader left its variables at all, so that an absent counter means "not counted".
    pub speaks: bool,
    /// `LoaderEntrySelected`: the entry that was started, with its counter before systemd 257.
    pub entry_selected: Option<String>,
    /// `LoaderBootCountPath`: the counted entry's file after its rename; present only while it is counted.
    pub boot_count_path: Option<String>,
    /// `LoaderDevicePartUUID`: the partition the loader itself came from, which is the ESP.
    pub loader_partition: Option<Uuid>,
}

impl LoaderEvidence {
    /// Reads the variables beneath `efivars`; an empty folder or none at all is no evidence.
    pub fn read(efivars: &Path) -> Self {
        let entry_selected = variable(efivars, "LoaderEntrySelected");
        let loader_partition = variable(efivars, "LoaderDevicePartUUID");
        LoaderEvidence {
            speaks: entry_selected.is_some() || loader_partition.is_some(),
            entry_selected,
            boot_count_path: variable(efivars, "LoaderBootCountPath"),
            loader_partition: loader_partition.and_then(|text| Uuid::parse_str(&text).ok()),
        }
    }

    /// The slot whose entry was started, when the entry is one of ours.
    pub fn slot(&self) -> Option<Slot> {
        [&self.boot_count_path, &self.entry_selected]
            .into_iter()
            .flatten()
            .find_map(|path| slot_of_entry(path))
    }

    /// True while the loader counts this start; `None` when no loader said anything.
    pub fn on_trial(&self) -> Option<bool> {
        self.speaks.then_some(self.boot_count_path.is_some())
    }
}

/// What makes the loader start an entry whatever its counter says, and what it calls itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoaderSettings {
    /// `LoaderInfo`: `systemd-boot 257.9`.
    pub info: Option<String>,
    /// Those of `LoaderEntryDefault`, `LoaderEntryOneShot` and `LoaderEntryPreferred` that are set, with their entry.
    pub fixed: Vec<(&'static str, String)>,
}

impl LoaderSettings {
    /// Reads the variables beneath `efivars`.
    pub fn read(efivars: &Path) -> Self {
        let names = ["LoaderEntryDefault", "LoaderEntryOneShot", "LoaderEntryPreferred"];
        let fixed = names.into_iter().filter_map(|name| Some((name, variable(efivars, name)?)));
        LoaderSettings { info: variable(efivars, "LoaderInfo"), fixed: fixed.collect() }
    }

    /// True when the loader hands back to the firmware where it cannot load what an entry names; `None` when that is not
    /// known of it.
    pub fn gives_up(&self) -> Option<bool> {
        gives_up(self.info.as_deref()?)
    }
}

/// The same by what a loader calls itself.
pub fn gives_up(info: &str) -> Option<bool> {
    version(info).map(|number| number < REBOOT_ON_ERROR_SINCE)
}

/// True when the loader is known to crash where it cannot load a kernel that has an initrd beside it: it frees the initrd
/// with its length in bytes for a number of pages, and itself with it. Seen with 257; 258 and 259 were not tried.
pub fn crashes_over_an_initrd(info: &str) -> bool {
    version(info).is_some_and(|number| (257..REBOOT_ON_ERROR_SINCE).contains(&number))
}

fn version(info: &str) -> Option<u32> {
    info.strip_prefix(SYSTEMD_BOOT)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The slot in an entry's id `switchback-<slot>-<generation>`, with any folder before it and any counter after it.
pub fn slot_of_entry(path: &str) -> Option<Slot> {
    let file = path.rsplit(['\\', '/']).next()?;
    let (slot, generation) = file.strip_prefix("switchback-")?.split_once('-')?;
    generation.starts_with(|c: char| c.is_ascii_digit()).then_some(())?;
    slot.parse().ok()
}

fn variable(efivars: &Path, name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(efivars.join(format!("{name}-{LOADER_GUID}"))).ok()?;
    file.take(VARIABLE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let units = units(bytes.get(ATTRIBUTE_BYTES..)?);
    let text = String::from_utf16(units.split(|unit| *unit == 0).next()?).ok()?;
    (!text.is_empty()).then_some(text)
}

/// Little-endian pairs; an odd byte at the end is left out.
pub(super) fn units(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

#[cfg(test)]
pub(crate) mod fixture {
    //! Variables as efivarfs shows them.

    /// Sets a variable of the loader.
    pub fn set(dir: &std::path::Path, name: &str, value: &str) {
        let mut bytes = vec![6, 0, 0, 0];
        bytes.extend(value.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
        std::fs::write(dir.join(format!("{name}-{}", super::LOADER_GUID)), bytes).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::set;
    use super::*;

    #[test]
    fn an_entry_of_ours_names_its_slot_in_every_form_a_loader_writes() {
        for (path, slot) in [
            ("switchback-b-7.conf", Some(Slot::B)),
            ("switchback-a-12+2-1.conf", Some(Slot::A)),
            ("\\loader\\entries\\switchback-b-7+2-1.conf", Some(Slot::B)),
            ("/loader/entries/switchback-a-1", Some(Slot::A)),
            ("debian-b-7.conf", None),
            ("switchback-recovery.conf", None),
            ("switchback-b-old.conf", None),
            ("", None),
        ] {
            assert_eq!(slot_of_entry(path), slot, "{path}");
        }
    }

    #[test]
    fn a_counted_start_is_a_trial_and_a_plain_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(LoaderEvidence::read(dir.path()).on_trial(), None, "no loader spoke");
        set(dir.path(), "LoaderEntrySelected", "switchback-a-3.conf");
        set(dir.path(), "LoaderDevicePartUUID", "8E2D0F4C-92B9-4E4B-A4C2-3D8E0D6F8B11");
        let plain = LoaderEvidence::read(dir.path());
        assert_eq!((plain.on_trial(), plain.slot()), (Some(false), Some(Slot::A)));
        assert!(plain.loader_partition.is_some());
        set(dir.path(), "LoaderBootCountPath", "\\loader\\entries\\switchback-b-4+2-1.conf");
        let counted = LoaderEvidence::read(dir.path());
        assert_eq!((counted.on_trial(), counted.slot()), (Some(true), Some(Slot::B)));
    }

    #[test]
    fn a_malformed_variable_is_no_evidence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("LoaderEntrySelected-{LOADER_GUID}"));
        for bytes in [&[][..], &[6, 0], &[6, 0, 0, 0], &[6, 0, 0, 0, 0x00, 0xd8, 0, 0]] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(LoaderEvidence::read(dir.path()), LoaderEvidence::default(), "{bytes:?}");
        }
    }
}
