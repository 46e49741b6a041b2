//! Boot Loader Specification type-1 entries: file names with counters, text, and the order the loader gives them.
//!
//! Not here: files. Rule: pure; reads what the loader and others wrote, and writes only names of ours.
//! Source: UAPI.1 Boot Loader Specification; systemd's "Automatic Boot Assessment" for the counters.

use std::cmp::Ordering;
use std::fmt::Write as _;

use switchback_partitions::slot::Slot;

use super::version;

/// The folder that the loader reads entries from.
pub const ENTRIES: &str = "loader/entries";

/// The largest entry that is read, in bytes.
pub const ENTRY_BYTES_MAX: u64 = 64 * 1024;

/// The one sort key of all our entries, so that their order is that of their generations.
pub const SORT_KEY: &str = "switchback";

/// Ends a file that is an entry for the loader.
const CONF: &str = ".conf";
/// Ends one that is ready but that the loader does not see. As long as `+3-0.conf`, so that arming renames within
/// the same FAT directory entries: a longer name would need others, and two places cannot be written at once.
const PREPARED: &str = ".prepared";

/// The counter at the end of an entry's name, before `.conf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    /// Starts that remain.
    pub left: u64,
    /// Starts used up.
    pub done: u64,
}

impl Tries {
    /// The counter after one more start, as the loader renames it before it starts the entry.
    pub fn spent(self) -> Tries {
        Tries { left: self.left.saturating_sub(1), done: self.done.saturating_add(1) }
    }
}

/// How an entry's file name ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// `.prepared`: not seen by the loader.
    Prepared,
    /// `.conf`: confirmed.
    Plain,
    /// `+LEFT-DONE.conf`: counted.
    Counted(Tries),
}

/// The file name of an entry of ours: `switchback-<slot>-<generation>` and an ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OurName {
    /// The slot that it starts.
    pub slot: Slot,
    /// Rises at every arm; the entry's `version`.
    pub generation: u64,
    /// Its ending.
    pub ending: Ending,
}

impl OurName {
    /// Reads a file name; `None` for what is not ours. FAT and the loader know no case, so neither does this.
    pub fn parse(file_name: &str) -> Option<OurName> {
        let lower = file_name.to_ascii_lowercase();
        let (id, ending) = match lower.strip_suffix(PREPARED) {
            Some(id) => (id, Ending::Prepared),
            None => match split_counter(lower.strip_suffix(CONF)?) {
                (id, Some(tries)) => (id, Ending::Counted(tries)),
                (id, None) => (id, Ending::Plain),
            },
        };
        let (slot, number) = id.strip_prefix("switchback-")?.split_once('-')?;
        let slot = slot.parse().ok()?;
        let generation: u64 = number.parse().ok()?;
        // `007` or `+7` would be a second name of generation 7.
        (generation.to_string() == number).then_some(OurName { slot, generation, ending })
    }

    /// The same entry with another ending.
    pub fn with(self, ending: Ending) -> OurName {
        OurName { ending, ..self }
    }

    /// The entry's id: the name without ending and counter.
    pub fn id(&self) -> String {
        format!("switchback-{}-{}", self.slot, self.generation)
    }

    /// The file name, without a folder.
    pub fn file_name(&self) -> String {
        let id = self.id();
        match self.ending {
            Ending::Prepared => format!("{id}{PREPARED}"),
            Ending::Plain => format!("{id}{CONF}"),
            Ending::Counted(Tries { left, done }) => format!("{id}+{left}-{done}{CONF}"),
        }
    }
}

/// One entry as the loader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoaderEntry {
    /// The file's name in `loader/entries`.
    pub file_name: String,
    /// The name without counter and `.conf`, in small letters.
    pub id: String,
    /// The counter; `None` for a plain name.
    pub tries: Option<Tries>,
    /// `title`.
    pub title: Option<String>,
    /// `sort-key`.
    pub sort_key: Option<String>,
    /// `machine-id`.
    pub machine_id: Option<String>,
    /// `version`.
    pub version: Option<String>,
    /// The path that is started: `linux`, `uki` or `efi`, from the partition's root.
    pub loaded: Option<String>,
    /// `initrd`, each one, in order.
    pub initrd: Vec<String>,
    /// `devicetree`.
    pub devicetree: Option<String>,
    /// `options`, joined by a space.
    pub options: Option<String>,
}

impl LoaderEntry {
    /// Reads an entry's name and text; `None` when the name is none that the loader reads. Unknown keys are skipped.
    pub fn parse(file_name: &str, text: &str) -> Option<LoaderEntry> {
        let lower = file_name.to_ascii_lowercase();
        let (id, tries) = split_counter(lower.strip_suffix(CONF)?);
        let mut entry = LoaderEntry {
            file_name: file_name.to_string(),
            id: id.to_string(),
            tries,
            ..LoaderEntry::default()
        };
        let mut uncounted = false;
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let Some((key, value)) = line.split_once([' ', '\t']) else { continue };
            let value = value.trim().to_string();
            match key {
                "title" => entry.title = Some(value),
                "sort-key" => entry.sort_key = Some(value),
                "machine-id" => entry.machine_id = Some(value),
                "version" => entry.version = Some(value),
                "linux" | "uki" => entry.loaded = Some(value),
                "efi" => (entry.loaded, uncounted) = (Some(value), true),
                "initrd" => entry.initrd.push(value),
                "devicetree" => entry.devicetree = Some(value),
                "options" => {
                    entry.options = Some(entry.options.map_or(value.clone(), |old| format!("{old} {value}")))
                }
                _ => {}
            }
        }
        if uncounted {
            // The loader counts `linux` and `uki` entries only, whatever the name of an `efi` entry says.
            entry.tries = None;
        }
        Some(entry)
    }

    /// The paths of all files that it needs, relative to the partition's root.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        let paths = self.loaded.iter().chain(&self.initrd).chain(&self.devicetree);
        paths.map(|path| path.trim_start_matches('/'))
    }

    /// The loader's order, first to start first: zero tries last, entries with a sort key before those without,
    /// then sort key, machine id, version descending, id descending, and of one id the one with more tries.
    /// A plain name goes before a counted one of the same id: the loader leaves that open.
    pub fn order(&self, other: &LoaderEntry) -> Ordering {
        let is_spent = |entry: &LoaderEntry| entry.tries.is_some_and(|tries| tries.left == 0);
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let by_sort_key = || match (&self.sort_key, &other.sort_key) {
            (Some(ours), Some(theirs)) => ours
                .cmp(theirs)
                .then_with(|| text(&self.machine_id).cmp(&text(&other.machine_id)))
                .then_with(|| version::compare(&text(&other.version), &text(&self.version))),
            (ours, theirs) => ours.is_none().cmp(&theirs.is_none()),
        };
        let by_tries = || match (self.tries, other.tries) {
            (Some(ours), Some(theirs)) => theirs.left.cmp(&ours.left).then(ours.done.cmp(&theirs.done)),
            (ours, theirs) => ours.is_some().cmp(&theirs.is_some()),
        };
        is_spent(self)
            .cmp(&is_spent(other))
            .then_with(by_sort_key)
            .then_with(|| version::compare(&other.id, &self.id))
            .then_with(by_tries)
    }
}

/// What an entry of ours says, apart from its generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryText<'a> {
    /// For the menu.
    pub title: &'a str,
    /// Kernel or UKI, from the partition's root with a leading `/`.
    pub linux: String,
    /// Initial RAM file system.
    pub initrd: Option<String>,
    /// Device tree.
    pub devicetree: Option<String>,
    /// Kernel command line.
    pub options: Option<&'a str>,
}

impl EntryText<'_> {
    /// The entry's text.
    pub fn render(&self, generation: u64) -> String {
        let mut text = format!(
            "title {}\nsort-key {SORT_KEY}\nversion {generation}\nlinux {}\n",
            self.title, self.linux
        );
        let lines = [("initrd", self.initrd.as_deref()), ("devicetree", self.devicetree.as_deref())];
        for (key, value) in lines.into_iter().chain([("options", self.options)]) {
            if let Some(value) = value {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{key} {value}");
            }
        }
        text
    }
}

/// An entry's text under another generation.
pub fn with_generation(text: &str, generation: u64) -> String {
    let line = |line: &str| {
        if line.starts_with("version ") { format!("version {generation}\n") } else { format!("{line}\n") }
    };
    text.lines().map(line).collect()
}

/// Splits `+LEFT-DONE` or `+LEFT` from the end. Only the last `+` counts, and only where digits follow to the end.
fn split_counter(stem: &str) -> (&str, Option<Tries>) {
    let counter = || {
        let (id, counter) = stem.rsplit_once('+')?;
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        Some((id, Tries { left: number(left)?, done: number(done)? }))
    };
    counter().map_or((stem, None), |(id, tries)| (id, Some(tries)))
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(slot: Slot, generation: u64, ending: Ending) -> Option<OurName> {
        Some(OurName { slot, generation, ending })
    }

    fn counted(left: u64, done: u64) -> Ending {
        Ending::Counted(Tries { left, done })
    }

    #[test]
    fn names_are_read_as_the_loader_reads_them() {
        for (file, expected, why) in [
            ("switchback-a-1.conf", name(Slot::A, 1, Ending::Plain), "confirmed"),
            ("switchback-b-12+3-0.conf", name(Slot::B, 12, counted(3, 0)), "armed"),
            ("switchback-b-12+2-1.conf", name(Slot::B, 12, counted(2, 1)), "after one start"),
            ("switchback-b-12+3.conf", name(Slot::B, 12, counted(3, 0)), "a missing DONE is zero"),
            ("SWITCHBACK-B-12+3-0.CONF", name(Slot::B, 12, counted(3, 0)), "FAT knows no case"),
            ("switchback-b-12.prepared", name(Slot::B, 12, Ending::Prepared), "prepared"),
            ("switchback-b-12+3-0.conf.tmp", None, "unfinished"),
            ("switchback-b-12+1+3-0.conf", None, "only the last + counts: the id is `…-12+1`"),
            ("switchback-b-12+x.conf", None, "no counter, so an id of somebody else"),
            ("switchback-b-012.conf", None, "a second spelling of generation 12"),
            ("switchback-c-1.conf", None, "no such slot"),
            ("debian-6.1.conf", None, "foreign"),
        ] {
            assert_eq!(OurName::parse(file), expected, "{file}: {why}");
        }
    }

    #[test]
    fn arming_confirming_and_spending_keep_the_length_of_the_name_on_fat() {
        let fat_entries = |name: OurName| name.file_name().len().div_ceil(13);
        for generation in [1, 99, 9999] {
            let name = OurName { slot: Slot::B, generation, ending: Ending::Prepared };
            for ending in [counted(3, 0), counted(2, 1), counted(0, 3), Ending::Plain] {
                assert_eq!(
                    fat_entries(name.with(ending)),
                    fat_entries(name),
                    "generation {generation}, {ending:?}"
                );
            }
        }
    }

    #[test]
    fn an_entry_is_read_with_comments_tabs_and_unknown_keys() {
        let text = "# made by hand\n title\tExample OS 1.1\nsort-key switchback\nversion 7\nlinux /switchback/a/linux\n\
                    initrd /one\ninitrd /two\noptions a=1\noptions b=2 c\nfuture-key x\nlonely\n";
        let entry = LoaderEntry::parse("Switchback-a-7+2-1.conf", text).unwrap();
        assert_eq!(entry.id, "switchback-a-7");
        assert_eq!(entry.tries, Some(Tries { left: 2, done: 1 }));
        assert_eq!(entry.title.as_deref(), Some("Example OS 1.1"));
        assert_eq!(entry.options.as_deref(), Some("a=1 b=2 c"));
        assert_eq!(entry.paths().collect::<Vec<_>>(), ["switchback/a/linux", "one", "two"]);
        assert_eq!(
            LoaderEntry::parse("x+3-0.conf", "efi /shell.efi\n").unwrap().tries,
            None,
            "efi is never counted"
        );
        assert_eq!(LoaderEntry::parse("switchback-a-7.prepared", text), None);
    }

    #[test]
    fn entries_stand_in_the_loaders_order() {
        let ours = |file: &str, version: &str| {
            LoaderEntry::parse(file, &format!("sort-key {SORT_KEY}\nversion {version}\nlinux /k\n")).unwrap()
        };
        let in_order = [
            LoaderEntry::parse("arch.conf", "sort-key arch\nversion 1\nlinux /k\n").unwrap(),
            ours("switchback-b-10+2-1.conf", "10"),
            ours("switchback-a-9.conf", "9"),
            ours("switchback-a-9+3-0.conf", "9"),
            ours("switchback-a-9+2-1.conf", "9"),
            LoaderEntry::parse("zz-without-sort-key.conf", "linux /k\n").unwrap(),
            LoaderEntry::parse("aa-without-sort-key.conf", "linux /k\n").unwrap(),
            ours("switchback-b-11+0-3.conf", "11"),
            ours("switchback-a-8+0-1.conf", "8"),
        ];
        for (index, first) in in_order.iter().enumerate() {
            assert_eq!(first.order(first), Ordering::Equal);
            for second in &in_order[index + 1..] {
                assert_eq!(
                    first.order(second),
                    Ordering::Less,
                    "{} before {}",
                    first.file_name,
                    second.file_name
                );
                assert_eq!(second.order(first), Ordering::Greater);
            }
        }
    }

    #[test]
    fn an_entrys_text_reads_back_and_changes_only_its_generation() {
        let text = EntryText {
            title: "Example OS 1.1",
            linux: "/switchback/b/linux".to_string(),
            initrd: Some("/switchback/b/initrd".to_string()),
            devicetree: None,
            options: Some("quiet panic=-1"),
        };
        let rendered = text.render(7);
        assert_eq!(
            rendered,
            "title Example OS 1.1\nsort-key switchback\nversion 7\nlinux /switchback/b/linux\n\
             initrd /switchback/b/initrd\noptions quiet panic=-1\n"
        );
        assert_eq!(with_generation(&rendered, 12), text.render(12));
    }

    proptest! {
        #[test]
        fn every_name_of_ours_reads_back(b in any::<bool>(), generation in any::<u64>(), kind in 0..3, left in any::<u64>(), done in any::<u64>()) {
            let ending = [Ending::Prepared, Ending::Plain, counted(left, done)][kind as usize];
            let ours = OurName { slot: if b { Slot::B } else { Slot::A }, generation, ending };
            prop_assert_eq!(OurName::parse(&ours.file_name()), Some(ours));
        }

        #[test]
        fn any_name_and_text_is_read_without_a_panic(file in ".{0,40}", text in "\\PC{0,200}") {
            let _ = OurName::parse(&file);
            let _ = LoaderEntry::parse(&(file + ".conf"), &text);
        }
    }
}
