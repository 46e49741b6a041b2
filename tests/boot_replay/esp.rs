//! The boot partition of each rebuilt disk, as our own reader of FAT finds it.
//!
//! Not here: starting it. Rules: what belongs to the old release is never other than it was; a file of the new one has its
//! final name only with its final content; of the boot entry there is the name before a rename or the one after it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use switchback::digest::Digest;
use switchback_bootloader::esp::{EspDir as _, FatEsp};
use switchback_bootloader::systemd_boot::entry::{ENTRIES, Ending, OurName, Tries};
use switchback_partitions::device::{Access, BlockDevice, FileDevice, Window};
use switchback_partitions::gpt::Table;
use switchback_partitions::layout::DiskLayout;
use switchback_partitions::slot::Slot;
use switchback_tests::disk_shot::tree;
use switchback_tests::lab::rebuilt::{ContentId, Cut, Kept, Rebuilt, Recording, SECTOR_BYTES};

use crate::story::{NEW, OLD};

/// The slot that the story's update goes to.
const TARGET: Slot = Slot::B;

/// Ends the name of a file that is still being written.
const UNFINISHED: &str = ".tmp";

/// Files of a boot partition by their paths.
type Tree = BTreeMap<String, Digest>;

/// What the look at all boot partitions found.
pub struct Findings {
    /// Cuts whose whole disk is like that of no cut before, in order.
    pub distinct: Vec<Cut>,
    /// Numbers of the flushes behind which the target slot's entry has another name than before them.
    pub renames: BTreeSet<usize>,
    /// How many boot partitions were other than all before them.
    pub partitions: usize,
    /// Each name that the entry got.
    pub changes: Vec<Change>,
    /// Cuts that show two names of one rename.
    pub doubled: Vec<Cut>,
    /// What broke a rule, with the cuts that show it.
    pub faults: BTreeMap<String, Vec<Cut>>,
}

impl Findings {
    /// The versions that a machine may run after a cut: the new one is neither started before it is armed nor lost once its
    /// confirmation is flushed.
    pub fn wanted(&self, cut: Cut) -> &'static [&'static str] {
        let behind = |is_it: fn(&str) -> bool| {
            let made = self.changes.iter().find(|change| is_it(&change.names[1]));
            made.map_or(usize::MAX, |change| change.flush)
        };
        if cut.flush < behind(|name| name.ends_with("+3-0.conf")) {
            &[OLD]
        } else if cut.flush > behind(|name| name.ends_with(".conf") && !name.contains('+')) {
            &[NEW]
        } else {
            &[OLD, NEW]
        }
    }
}

/// The entry's names changed between two flushes.
pub struct Change {
    /// The number of the flush before it.
    pub flush: usize,
    /// The names before and after it.
    pub names: [String; 2],
    /// Writes to the partition in between.
    pub writes: usize,
    /// Sectors of it that are then other than before.
    pub sectors: usize,
}

/// Where the boot partition of an image lies, in bytes.
pub fn extent(image: &Path) -> Result<Range<u64>> {
    let layout = DiskLayout::discover(&Table::read(&FileDevice::open(image, Access::Read)?)?)?;
    Ok(layout.esp.offset..layout.esp.offset + layout.esp.len)
}

/// Looks at every disk that a cut can leave. `release` are the digests of the new release's boot files.
pub fn look_at_all(
    recording: &Recording,
    esp: &Range<u64>,
    release: Option<&BTreeMap<String, Digest>>,
) -> Result<Findings> {
    let shots = shots(recording, esp)?;
    let first = shots.trees.values().find(|shot| shot.cut.flush == 0).context("the log is empty")?;
    let before = first.tree.as_ref().map_err(|e| anyhow::anyhow!("the image's own: {e}"))?.clone();
    let last = shots.last.context("the log is empty")?;
    let after = shots.trees[&last].tree.as_ref().map_err(|e| anyhow::anyhow!("the last: {e}"))?.clone();
    let rules = Rules::new(before, after, release)?;

    let mut findings = Findings {
        distinct: shots.distinct,
        renames: BTreeSet::new(),
        partitions: shots.trees.len(),
        changes: Vec::new(),
        doubled: Vec::new(),
        faults: BTreeMap::new(),
    };
    let mut places = Vec::new();
    for id in &shots.flushed {
        places.push(shots.trees[id].tree.as_ref().ok().and_then(|tree| rules.place(tree)));
    }
    for (flush, pair) in places.windows(2).enumerate().filter(|(_, pair)| pair[0] != pair[1]) {
        let name = |place: &Option<usize>| place.map_or("?".to_owned(), |at| rules.name(at).to_owned());
        let names = [name(&pair[0]), name(&pair[1])];
        let (writes, sectors) = shots.dirtied[flush];
        findings.changes.push(Change { flush, names, writes, sectors });
        findings.renames.insert(flush + 1);
    }
    for (cut, id) in &shots.cuts {
        let shot = &shots.trees[id];
        let now = places.get(cut.flush).copied().flatten();
        let next = if cut.kept == Kept::Flushed { now } else { places.get(cut.flush + 1).copied().flatten() };
        let verdict = match (&shot.tree, now) {
            (Err(error), _) => Err(anyhow::anyhow!("it cannot be read: {error}")),
            (Ok(_), None) => Err(anyhow::anyhow!("flushed, the entry has no name or two")),
            (Ok(tree), Some(now)) => rules.judge(tree, now, next.unwrap_or(now)),
        };
        match verdict {
            Err(error) => findings.faults.entry(format!("{error:#}")).or_default().push(*cut),
            Ok(names) if names > 1 => findings.doubled.push(*cut),
            Ok(_) => {}
        }
    }
    Ok(findings)
}

/// One boot partition, read.
struct Shot {
    /// The first cut that left it.
    cut: Cut,
    tree: Result<Tree, String>,
}

#[derive(Default)]
struct Shots {
    trees: HashMap<ContentId, Shot>,
    /// Each cut's boot partition.
    cuts: Vec<(Cut, ContentId)>,
    /// Those that have nothing behind their last flush, by its number.
    flushed: Vec<ContentId>,
    last: Option<ContentId>,
    distinct: Vec<Cut>,
    /// Behind each flush: writes to the partition, and how many of its sectors they change.
    dirtied: Vec<(usize, usize)>,
}

fn shots(recording: &Recording, esp: &Range<u64>) -> Result<Shots> {
    let mut shots = Shots::default();
    let mut seen: BTreeSet<ContentId> = BTreeSet::new();
    recording.each(esp.clone(), |cut, disk| {
        if seen.insert(disk.id()) {
            shots.distinct.push(cut);
        }
        let id = disk.part_id();
        shots
            .trees
            .entry(id)
            .or_insert_with(|| Shot { cut, tree: read(disk, esp).map_err(|error| format!("{error:#}")) });
        shots.cuts.push((cut, id));
        if cut.kept == Kept::Flushed {
            shots.flushed.push(id);
            shots.dirtied.push(dirtied(recording, cut.flush, disk, esp)?);
        }
        Ok(())
    })?;
    shots.last = shots.flushed.last().copied();
    Ok(shots)
}

fn read(disk: &Arc<Rebuilt>, esp: &Range<u64>) -> Result<Tree> {
    let device: Arc<dyn BlockDevice> = disk.clone();
    let fat = FatEsp::new(Arc::new(Window::new(device, esp.start, esp.end - esp.start)?));
    ensure!(!fat.list(ENTRIES)?.is_empty(), "the folder of entries is empty");
    tree(&fat)
}

/// How many writes to the partition follow a flush, and how many different sectors they make other than they are.
fn dirtied(recording: &Recording, flush: usize, disk: &Rebuilt, esp: &Range<u64>) -> Result<(usize, usize)> {
    let (mut writes, mut sectors) = (0, BTreeSet::new());
    for entry in recording.window(flush).iter().filter(|entry| esp.contains(&entry.offset)) {
        writes += 1;
        for (index, new) in recording.log().data(entry)?.chunks_exact(SECTOR_BYTES).enumerate() {
            let offset = entry.offset + (index * SECTOR_BYTES) as u64;
            if disk.changed_by(offset, new)? > 0 {
                sectors.insert(offset);
            }
        }
    }
    Ok((writes, sectors.len()))
}

/// What may be on the partition.
struct Rules {
    before: Tree,
    after: Tree,
    /// The names of the target slot's entry in the order in which it gets them, without and with its folder.
    chain: Vec<String>,
}

impl Rules {
    fn new(before: Tree, after: Tree, release: Option<&BTreeMap<String, Digest>>) -> Result<Rules> {
        for (name, digest) in release.into_iter().flatten() {
            let path = format!("{}/{name}", folder(TARGET));
            ensure!(after.get(&path) == Some(digest), "in the end `{path}` is not what the release names");
        }
        let names = after.keys().filter_map(|path| path.strip_prefix(ENTRIES)?.strip_prefix('/'));
        let mut ours = names.filter_map(OurName::parse).filter(|name| name.slot == TARGET);
        let plain = ours.next().context("in the end the new release has no entry")?;
        ensure!(
            ours.next().is_none() && plain.ending == Ending::Plain,
            "in the end it is not confirmed: {plain:?}"
        );
        let counted = |left, done| plain.with(Ending::Counted(Tries { left, done })).file_name();
        let chain = vec![
            String::new(),
            format!("{}{UNFINISHED}", plain.id()),
            plain.with(Ending::Prepared).file_name(),
            counted(3, 0),
            counted(2, 1),
            plain.file_name(),
        ];
        Ok(Rules { before, after, chain })
    }

    fn name(&self, place: usize) -> &str {
        if place == 0 { "nothing" } else { &self.chain[place] }
    }

    /// The places in the chain of the names that the target slot's entry has.
    fn places(&self, tree: &Tree) -> Result<Vec<usize>> {
        let mut places = Vec::new();
        for name in tree.keys().filter_map(|path| entry_of_target(path)) {
            let place = self.chain.iter().position(|known| known == name);
            places.push(place.with_context(|| format!("the entry `{name}` has no place in an install"))?);
        }
        Ok(places)
    }

    /// The place of the one name that it has, where it has one or none.
    fn place(&self, tree: &Tree) -> Option<usize> {
        match self.places(tree).ok()?.as_slice() {
            [] => Some(0),
            [one] => Some(*one),
            _ => None,
        }
    }

    /// Looks at one partition whose entry was at one place and is on its way to another; returns how many names it has.
    fn judge(&self, tree: &Tree, now: usize, next: usize) -> Result<usize> {
        let mut unfinished = 0;
        let ours = format!("{}/", folder(TARGET));
        for (path, digest) in tree {
            if let Some(name) = path.strip_prefix(&ours) {
                if name.ends_with(UNFINISHED) {
                    unfinished += 1;
                    let path = path.trim_end_matches(UNFINISHED);
                    ensure!(self.after.contains_key(path), "`{path}` is no file of the release");
                } else {
                    let is_final = self.after.get(path) == Some(digest);
                    ensure!(is_final, "`{path}` {}", wrong(digest));
                }
            } else if let Some(name) = entry_of_target(path) {
                let is_whole = !name.ends_with(UNFINISHED);
                let last = format!("{ENTRIES}/{}", self.name(self.chain.len() - 1));
                let is_final = self.after.get(&last) == Some(digest);
                ensure!(!is_whole || is_final, "`{path}` {}", wrong(digest));
            } else {
                ensure!(self.before.get(path) == Some(digest), "`{path}` is other than before the update");
            }
        }
        ensure!(unfinished <= 1, "{unfinished} files are unfinished at once");
        let others = |path: &&String| !path.starts_with(&ours) && entry_of_target(path).is_none();
        let gone = self.before.keys().filter(others).find(|path| !tree.contains_key(*path));
        ensure!(gone.is_none(), "`{}` is gone", gone.map_or("", |path| path.as_str()));
        let places = self.places(tree)?;
        let on_the_way = places.iter().all(|place| (now..=next).contains(place));
        let names: Vec<&str> = places.iter().map(|place| self.name(*place)).collect();
        ensure!(
            on_the_way,
            "the entry is called {names:?}, between {} and {}",
            self.name(now),
            self.name(next)
        );
        ensure!(places.len() <= 2, "the entry has {} names: {names:?}", places.len());
        ensure!(
            now == 0 || !places.is_empty(),
            "between {} and {} it has no name",
            self.name(now),
            self.name(next)
        );
        // Only an entry whose boot files are all there may be called what the loader or the updater believes.
        if places.iter().any(|place| *place >= 2) {
            let missing = self
                .after
                .keys()
                .filter(|path| path.starts_with(&ours))
                .find(|path| !tree.contains_key(*path));
            ensure!(
                missing.is_none(),
                "the entry is there before `{}`",
                missing.map_or("", |path| path.as_str())
            );
        }
        Ok(places.len())
    }
}

/// What is wrong with a file that has its final name.
fn wrong(digest: &Digest) -> &'static str {
    if *digest == Digest::of(b"") { "is empty" } else { "has another content in the end" }
}

/// Where the boot files of a slot lie.
fn folder(slot: Slot) -> String {
    format!("switchback/{slot}")
}

fn entry_of_target(path: &str) -> Option<&str> {
    let name = path.strip_prefix(ENTRIES)?.strip_prefix('/')?;
    name.starts_with(&format!("switchback-{TARGET}-")).then_some(name)
}
