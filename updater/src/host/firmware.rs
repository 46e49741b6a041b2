//! The firmware's boot options: how often it starts a loader that gives up.
//!
//! A systemd-boot before 260 that cannot load what an entry names has counted one start and hands back to the firmware,
//! which goes on to its next option and, when there is none, waits for a person for ever. With one more option to the
//! same loader for each try the firmware itself comes back to it until the tries are spent.
//!
//! Not here: boot entries (`bootloader`). Rule: options of others are neither changed nor reordered, and nothing is
//! written that is there already: each write wears the firmware's memory.
//!
//! Spec: UEFI 2.10, sections 3.1.3 (`EFI_LOAD_OPTION`) and 3.3 (`BootOrder`, `BootCurrent`, `Boot####`); variables as
//! the kernel's efivarfs shows them. Its immutable flag is not on these names, so that they can be written as they are.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use super::bounded::read_bounded;
use super::loader::{ATTRIBUTE_BYTES, LoaderSettings, units};

/// `EFI_GLOBAL_VARIABLE`.
const GLOBAL_GUID: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Kept over power cycles, seen by boot services and by the running system.
const ATTRIBUTES: [u8; ATTRIBUTE_BYTES] = 7u32.to_le_bytes();

/// `LOAD_OPTION_ACTIVE`: the boot manager tries it.
const ACTIVE: u32 = 1;

/// Longest variable read, in bytes: an option with a long path, or an order of two thousand.
const VARIABLE_BYTES_MAX: u64 = 4096;

/// Variables in the folder at most; firmware has room for a few hundred. An option that was not seen would be taken for a
/// free number and overwritten, so that more are an error.
const VARIABLES_MAX: usize = 4096;

/// What our options are called, before their number.
const DESCRIPTION: &str = "Switchback, start again ";

/// What the firmware does when the loader gives up on an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartsAgain {
    /// Not asked of it: the loader restarts the machine itself, or is none that is known to give up.
    NotNeeded,
    /// It starts the loader again, once for each try.
    Ready,
    /// The same, and some of the options were missing until now.
    Registered,
}

/// What is there, read once.
struct Options {
    /// `BootCurrent`: what this system was started by.
    current: u16,
    /// `BootOrder`.
    order: Vec<u16>,
    /// Every `Boot####`, whole.
    known: BTreeMap<u16, Vec<u8>>,
}

/// The parts of an option that matter here.
struct Parts<'a> {
    description: String,
    paths: &'a [u8],
}

/// True when every option is there, for a loader that needs them; `None` when it needs none or nothing can be read.
pub fn is_registered(efivars: &Path, tries: u8) -> Option<bool> {
    LoaderSettings::read(efivars).gives_up()?.then_some(())?;
    let options = Options::read(efivars).ok()?;
    let wanted = options.wanted(tries).ok()?;
    Some(options.hold(&wanted))
}

/// Registers one option for each of `tries` starts beneath `efivars`, each to what this system was started by, unless
/// they are there or the loader needs none. An error leaves the options of others and their order as they were.
pub fn start_again(efivars: &Path, tries: u8) -> io::Result<StartsAgain> {
    if LoaderSettings::read(efivars).gives_up() != Some(true) {
        return Ok(StartsAgain::NotNeeded);
    }
    let options = Options::read(efivars)?;
    let wanted = options.wanted(tries)?;
    if options.hold(&wanted) {
        return Ok(StartsAgain::Ready);
    }
    for (number, option) in &wanted {
        if options.known.get(number) != Some(option) {
            write(efivars, &name_of(*number), option)?;
        }
    }
    // Last, so that a power cut leaves options that nobody asks for yet, never an order that names what is not there.
    let order: Vec<u8> = options.order_with(&wanted).into_iter().flat_map(u16::to_le_bytes).collect();
    write(efivars, "BootOrder", &order)?;
    Ok(StartsAgain::Registered)
}

impl Options {
    fn read(efivars: &Path) -> io::Result<Options> {
        let current = units(&value(efivars, "BootCurrent")?.ok_or_else(|| missing("BootCurrent"))?);
        let order = units(&value(efivars, "BootOrder")?.unwrap_or_default());
        let mut known = BTreeMap::new();
        for (count, entry) in fs::read_dir(efivars)?.enumerate() {
            if count == VARIABLES_MAX {
                return Err(io::Error::other(format!("more than {VARIABLES_MAX} variables")));
            }
            if let Some(number) = entry?.file_name().to_str().and_then(number_of) {
                // One that says nothing has its number all the same.
                known.insert(number, value(efivars, &name_of(number))?.unwrap_or_default());
            }
        }
        let current = *current.first().ok_or_else(|| missing("BootCurrent"))?;
        Ok(Options { current, order, known })
    }

    /// What is to be there, by number: our own where it has one, else the lowest that is free.
    fn wanted(&self, tries: u8) -> io::Result<BTreeMap<u16, Vec<u8>>> {
        let started_by = self.known.get(&self.current).ok_or_else(|| missing(&name_of(self.current)))?;
        let paths = parts(started_by).ok_or_else(|| missing("a path in the option that was started"))?.paths;
        let mut wanted = BTreeMap::new();
        for try_number in 1..=tries {
            let description = format!("{DESCRIPTION}{try_number}");
            let ours = self
                .known
                .iter()
                .find(|(_, option)| parts(option).is_some_and(|parts| parts.description == description));
            let free = || (0..=u16::MAX).find(|n| !self.known.contains_key(n) && !wanted.contains_key(n));
            let number = ours.map(|(number, _)| *number).or_else(free);
            let number = number.ok_or_else(|| io::Error::other("no number is free for another option"))?;
            wanted.insert(number, option(&description, paths)?);
        }
        Ok(wanted)
    }

    /// Where in the order they stand is a person's choice.
    fn hold(&self, wanted: &BTreeMap<u16, Vec<u8>>) -> bool {
        wanted
            .iter()
            .all(|(number, option)| self.known.get(number) == Some(option) && self.order.contains(number))
    }

    /// The order with `wanted` behind what this system was started by: whatever is first stays first.
    fn order_with(&self, wanted: &BTreeMap<u16, Vec<u8>>) -> Vec<u16> {
        let first_of_ours = self.order.iter().position(|number| wanted.contains_key(number));
        let current = self.order.iter().position(|number| *number == self.current);
        let before = match current.filter(|_| !wanted.contains_key(&self.current)) {
            Some(current) => current + 1,
            // Started by one of ours, or by an option that stands in no order: behind the others, if never placed.
            None => first_of_ours.unwrap_or(self.order.len()),
        };
        let (before, after) = self.order.split_at(before);
        let others = |numbers: &[u16]| -> Vec<u16> {
            numbers.iter().copied().filter(|number| !wanted.contains_key(number)).collect()
        };
        [others(before), wanted.keys().copied().collect(), others(after)].concat()
    }
}

fn name_of(number: u16) -> String {
    format!("Boot{number:04X}")
}

/// The number in `Boot####-GUID`; `BootOrder` and the like have none.
fn number_of(file: &str) -> Option<u16> {
    let digits = file.strip_prefix("Boot")?.strip_suffix(GLOBAL_GUID)?.strip_suffix('-')?;
    let hex = digits.len() == 4 && digits.chars().all(|c| c.is_ascii_digit() || ('A'..='F').contains(&c));
    hex.then(|| u16::from_str_radix(digits, 16).ok())?
}

/// `EFI_LOAD_OPTION`: attributes, length of the paths, description with its NUL, paths; no optional data.
fn option(description: &str, paths: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(paths.len()).map_err(io::Error::other)?;
    let mut bytes = ACTIVE.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(description.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
    bytes.extend(paths);
    Ok(bytes)
}

fn parts(option: &[u8]) -> Option<Parts<'_>> {
    let length = u16::from_le_bytes([*option.get(4)?, *option.get(5)?]);
    let rest = option.get(6..)?;
    let description = units(rest).into_iter().take_while(|unit| *unit != 0).collect::<Vec<u16>>();
    let paths = rest.get((description.len() + 1) * 2..)?.get(..usize::from(length))?;
    (!paths.is_empty()).then(|| Parts { description: String::from_utf16_lossy(&description), paths })
}

fn missing(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("the firmware does not tell {what}"))
}

fn path_of(efivars: &Path, name: &str) -> std::path::PathBuf {
    efivars.join(format!("{name}-{GLOBAL_GUID}"))
}

/// A variable without its attributes; `None` when there is none of that name.
fn value(efivars: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let bytes = read_bounded(&path_of(efivars, name), VARIABLE_BYTES_MAX)?;
    Ok(bytes.and_then(|bytes| bytes.get(ATTRIBUTE_BYTES..).map(<[u8]>::to_vec)))
}

/// Sets a variable. efivarfs takes attributes and value in one write and hands them to the firmware as one.
fn write(efivars: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(false).open(path_of(efivars, name))?;
    let bytes = [&ATTRIBUTES, value].concat();
    match file.write(&bytes)? {
        written if written == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    //! A firmware's options as efivarfs shows them.

    use super::*;

    /// A path list as firmware writes it: one node, then the end.
    pub const PATHS: &[u8] = &[4, 4, 8, 0, b'x', 0, 0, 0, 0x7f, 0xff, 4, 0];

    /// As efivarfs does it: a write replaces the whole value.
    pub fn set(dir: &Path, name: &str, value: &[u8]) {
        fs::write(path_of(dir, name), [&ATTRIBUTES, value].concat()).unwrap();
    }

    /// A machine that was started by `current`, with an option for each number in `order`.
    pub fn fill(dir: &Path, current: u16, order: &[u16]) {
        set(dir, "BootCurrent", &current.to_le_bytes());
        set(dir, "BootOrder", &order.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
        for number in order {
            let mut bytes = option(&format!("option {number}"), PATHS).unwrap();
            bytes.extend(b"data of the firmware's own");
            set(dir, &name_of(*number), &bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{PATHS, fill, set};
    use super::*;
    use crate::host::loader::fixture::set as set_loader;

    fn firmware(loader: &str, current: u16, order: &[u16]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        set_loader(dir.path(), "LoaderInfo", loader);
        fill(dir.path(), current, order);
        dir
    }

    fn order(dir: &Path) -> Vec<u16> {
        units(&value(dir, "BootOrder").unwrap().unwrap())
    }

    #[test]
    fn the_loader_that_started_this_system_is_started_again_once_for_each_try() {
        let dir = firmware("systemd-boot 252.39-1~deb12u2", 1, &[0, 1, 7]);
        let efivars = dir.path();
        assert_eq!(is_registered(efivars, 3), Some(false));
        assert_eq!(start_again(efivars, 3).unwrap(), StartsAgain::Registered);
        assert_eq!(order(efivars), [0, 1, 2, 3, 4, 7], "behind what was started, before what follows it");
        for (number, description) in [(2, "start again 1"), (3, "start again 2"), (4, "start again 3")] {
            let bytes = value(efivars, &name_of(number)).unwrap().unwrap();
            assert_eq!(bytes[..4], ACTIVE.to_le_bytes());
            let parts = parts(&bytes).unwrap();
            assert!(parts.description.ends_with(description), "{}", parts.description);
            assert_eq!(parts.paths, PATHS);
            assert!(bytes.ends_with(PATHS), "no data of another option");
        }
        assert_eq!(is_registered(efivars, 3), Some(true));
    }

    #[test]
    fn what_is_there_is_not_written_again_and_stays_where_a_person_put_it() {
        let dir = firmware("systemd-boot 257.9", 1, &[1, 7]);
        start_again(dir.path(), 2).unwrap();
        set(dir.path(), "BootOrder", &[0, 0, 2, 0, 7, 0, 1, 0]);
        for entry in fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let mut permissions = fs::metadata(&path).unwrap().permissions();
            permissions.set_readonly(true);
            fs::set_permissions(&path, permissions).unwrap();
        }
        let times = || -> Vec<_> {
            let entries = fs::read_dir(dir.path()).unwrap();
            entries.map(|entry| entry.unwrap().metadata().unwrap().modified().unwrap()).collect()
        };
        let before = times();
        assert_eq!(start_again(dir.path(), 2).unwrap(), StartsAgain::Ready);
        assert_eq!(times(), before);
        assert_eq!(order(dir.path()), [0, 2, 7, 1]);
    }

    #[test]
    fn a_start_by_one_of_ours_or_by_an_option_in_no_order_moves_nothing_of_others() {
        let dir = firmware("systemd-boot 252", 1, &[1, 7]);
        start_again(dir.path(), 2).unwrap();
        assert_eq!(order(dir.path()), [1, 0, 2, 7]);
        set(dir.path(), "BootCurrent", &[2, 0]);
        assert_eq!(start_again(dir.path(), 3).unwrap(), StartsAgain::Registered, "one try more");
        assert_eq!(order(dir.path()), [1, 0, 2, 3, 7]);

        let dir = firmware("systemd-boot 252", 1, &[1, 7]);
        set(dir.path(), "BootOrder", &[7, 0]);
        start_again(dir.path(), 1).unwrap();
        assert_eq!(order(dir.path()), [7, 0]);
    }

    #[test]
    fn a_loader_that_restarts_by_itself_or_is_another_is_left_alone() {
        for loader in ["systemd-boot 260", "systemd-boot 262~rc1-1", "GRUB 2.12", "systemd-boot git"] {
            let dir = firmware(loader, 1, &[1]);
            assert_eq!(start_again(dir.path(), 3).unwrap(), StartsAgain::NotNeeded, "{loader}");
            assert_eq!(is_registered(dir.path(), 3), None, "{loader}");
            assert_eq!(order(dir.path()), [1], "{loader}");
        }
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(start_again(nothing.path(), 3).unwrap(), StartsAgain::NotNeeded);
    }

    #[test]
    fn what_the_firmware_does_not_tell_or_tells_badly_changes_nothing() {
        let damage: &[fn(&Path)] = &[
            |dir| fs::remove_file(path_of(dir, "BootCurrent")).unwrap(),
            |dir| set(dir, "BootCurrent", &[1]),
            |dir| fs::remove_file(path_of(dir, "Boot0001")).unwrap(),
            |dir| set(dir, "Boot0001", &[1, 0, 0]),
            |dir| set(dir, "Boot0001", &[1, 0, 0, 0, 255, 255, b'x', 0, 0, 0, 4]),
            |dir| set(dir, "Boot0001", &[1, 0, 0, 0, 0, 0, b'x', 0, 0, 0]),
            |dir| set(dir, "Boot0001", &vec![0x41; 5000]),
        ];
        for (number, damage) in damage.iter().enumerate() {
            let dir = firmware("systemd-boot 252", 1, &[1, 7]);
            damage(dir.path());
            let files = || fs::read_dir(dir.path()).unwrap().count();
            let before = files();
            assert!(start_again(dir.path(), 3).is_err(), "damage {number}");
            assert_eq!((files(), order(dir.path())), (before, vec![1, 7]), "damage {number}");
        }
    }

    #[test]
    fn the_number_of_an_option_that_says_nothing_is_not_free() {
        let dir = firmware("systemd-boot 252", 1, &[1]);
        let empty = path_of(dir.path(), "Boot0000");
        fs::write(&empty, []).unwrap();
        start_again(dir.path(), 1).unwrap();
        assert_eq!((fs::read(&empty).unwrap(), order(dir.path())), (Vec::new(), vec![1, 2]));
    }

    #[test]
    fn only_options_are_read_as_options() {
        for (file, number) in [
            (format!("Boot001A-{GLOBAL_GUID}"), Some(26)),
            (format!("BootOrder-{GLOBAL_GUID}"), None),
            (format!("Boot+01A-{GLOBAL_GUID}"), None),
            (format!("Boot001a-{GLOBAL_GUID}"), None),
            ("Boot0001-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f".to_owned(), None),
            ("Boot0001".to_owned(), None),
        ] {
            assert_eq!(number_of(&file), number, "{file}");
        }
    }
}
