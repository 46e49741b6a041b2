//! The images that a power cut at one step can leave.
//!
//! Not here: what becomes of them (`sweep`). Rule: what was flushed is there; of the rest anything may be there, in any
//! combination, and the last write may be torn.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::image::{FILE_ROWS, Image, Row, share};
use super::recorder::{Domain, Op};

/// So many unflushed steps at most are tried in every combination.
const ALL_SUBSETS_MAX: usize = 6;
/// How much a seeded choice keeps: little, half, most. Each finds other mistakes.
const CHANCES: [f64; 3] = [0.1, 0.5, 0.9];

/// What of the unflushed steps a cut leaves. Numbers count from the oldest unflushed step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    None,
    /// All.
    All,
    /// The first so many.
    Prefix(usize),
    /// All but this one.
    Lost(usize),
    /// All, but of the last one only the first so many rows.
    Torn(usize),
    /// All, but of the last one only the rows behind the first so many.
    TornTail(usize),
    /// Those whose bit is set.
    Subset(u64),
    /// A seeded choice.
    Sample(u64),
    /// A seeded choice of their sectors: a disk finishes them in any order, and none of them as a whole.
    Sectors(u64),
    /// All, and the state folder is gone.
    FolderLost,
}

impl Kind {
    /// True for what is left when the writes reached the medium one after the other, and the last ones did not.
    pub fn is_in_order(&self) -> bool {
        match self {
            Kind::None | Kind::All | Kind::Prefix(_) => true,
            Kind::Subset(set) => set & (set + 1) == 0,
            _ => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::None => f.write_str("none"),
            Kind::All => f.write_str("all"),
            Kind::Prefix(count) => write!(f, "prefix:{count}"),
            Kind::Lost(which) => write!(f, "lost:{which}"),
            Kind::Torn(rows) => write!(f, "torn:{rows}"),
            Kind::TornTail(rows) => write!(f, "torn-tail:{rows}"),
            Kind::Subset(bits) => write!(f, "subset:{bits}"),
            Kind::Sample(seed) => write!(f, "sample:{seed}"),
            Kind::Sectors(seed) => write!(f, "sectors:{seed}"),
            Kind::FolderLost => f.write_str("folder-lost"),
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        let (word, number) = text.split_once(':').unwrap_or((text, "0"));
        let number: u64 = number.parse().map_err(|_| format!("`{number}` is no number"))?;
        Ok(match word {
            "none" => Kind::None,
            "all" => Kind::All,
            "prefix" => Kind::Prefix(number as usize),
            "lost" => Kind::Lost(number as usize),
            "torn" => Kind::Torn(number as usize),
            "torn-tail" => Kind::TornTail(number as usize),
            "subset" => Kind::Subset(number),
            "sample" => Kind::Sample(number),
            "sectors" => Kind::Sectors(number),
            "folder-lost" => Kind::FolderLost,
            _ => return Err(format!("`{word}` is no kind of cut")),
        })
    }
}

/// How many images are made of one step.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Seeded choices where there are too many combinations.
    pub samples: usize,
    /// Seeded choices of single sectors where a write has more than one.
    pub sectors: usize,
    /// Single losses and prefixes at most; more are spread evenly.
    pub singles: usize,
    /// Tears of the last write at most.
    pub tears: usize,
    /// Whether the state folder is lost as well.
    pub folder_lost: bool,
}

/// The unflushed steps at one point of a run.
pub struct Cut<'r> {
    /// What is on the medium for sure.
    pub durable: &'r Image,
    /// What is not flushed, oldest first.
    pub pending: &'r [&'r Op],
    /// The step, for seeds.
    pub at: usize,
}

impl Cut<'_> {
    /// The kinds of image that are made here.
    pub fn kinds(&self, effort: Effort) -> Vec<Kind> {
        let count = self.pending.len();
        let mut kinds = vec![Kind::None];
        if effort.folder_lost {
            kinds.push(Kind::FolderLost);
        }
        if count == 0 {
            return kinds;
        }
        kinds.push(Kind::All);
        if let Some(Op::Rows(_, rows)) = self.pending.last() {
            // In half, and at every sector as far as the effort goes.
            kinds.extend(spread(1, rows.len(), effort.tears).map(Kind::Torn));
            kinds.extend(spread(1, rows.len(), effort.tears).map(Kind::TornTail));
        }
        let seeds = |count: usize| (0..count as u64).map(|number| self.at as u64 * 10_000 + number);
        if self.pending.iter().any(|op| matches!(op, Op::Rows(_, rows) if rows.len() > 1)) {
            kinds.extend(seeds(effort.sectors).map(Kind::Sectors));
        }
        if count <= ALL_SUBSETS_MAX {
            let subsets = (1..(1_u64 << count) - 1).map(Kind::Subset);
            // What a later write finds there comes first: the others are compared with it.
            let (first, rest): (Vec<Kind>, Vec<Kind>) = subsets.partition(Kind::is_in_order);
            kinds.extend(first.into_iter().chain(rest));
            return kinds;
        }
        kinds.extend(spread(1, count, effort.singles).map(Kind::Prefix));
        kinds.extend(spread(0, count, effort.singles).map(Kind::Lost));
        kinds.extend(seeds(effort.samples).map(Kind::Sample));
        kinds
    }

    /// True when each state is made that is left if the steps reach the medium one after the other, and none is the
    /// firmware's, whose writes nobody can give an order.
    pub fn has_all_in_order(&self) -> bool {
        let ours = |op: &&Op| !matches!(op, Op::Rows(Domain::Firmware, _));
        self.pending.len() <= ALL_SUBSETS_MAX && self.pending.iter().all(ours)
    }

    /// What of the unflushed steps is kept.
    fn kept(&self, kind: &Kind) -> Vec<Cow<'_, Op>> {
        if let Kind::Sectors(seed) = kind {
            return self.sectors(*seed);
        }
        let whole = self.pending.iter().zip(self.whole(kind)).filter(|(_, kept)| *kept);
        whole.map(|(op, _)| Cow::Borrowed(*op)).chain(self.torn(kind).map(Cow::Owned)).collect()
    }

    /// Some sectors of each, and some of the steps that have none.
    fn sectors(&self, seed: u64) -> Vec<Cow<'_, Op>> {
        let mut random = fastrand::Rng::with_seed(seed);
        let chance = CHANCES[random.usize(0..CHANCES.len())];
        let part = |op: &&Op| match op {
            Op::Rows(domain, rows) => {
                let kept = rows.iter().filter(|_| random.f64() < chance).cloned().collect();
                Some(Cow::Owned(Op::Rows(*domain, kept)))
            }
            other => (random.f64() < chance).then(|| Cow::Owned((*other).clone())),
        };
        self.pending.iter().filter_map(part).collect()
    }

    /// Which unflushed steps are kept as a whole.
    fn whole(&self, kind: &Kind) -> Vec<bool> {
        let count = self.pending.len();
        let bits = |bits: u64| (0..count).map(move |at| at < 64 && bits >> at & 1 == 1).collect();
        match kind {
            Kind::None => vec![false; count],
            Kind::All | Kind::FolderLost => vec![true; count],
            Kind::Prefix(first) => (0..count).map(|at| at < *first).collect(),
            Kind::Lost(lost) => (0..count).map(|at| at != *lost).collect(),
            Kind::Torn(_) | Kind::TornTail(_) => (0..count).map(|at| at + 1 < count).collect(),
            Kind::Subset(set) => bits(*set),
            Kind::Sectors(_) => Vec::new(),
            Kind::Sample(seed) => {
                let mut random = fastrand::Rng::with_seed(*seed);
                let chance = CHANCES[random.usize(0..CHANCES.len())];
                (0..count).map(|_| random.f64() < chance).collect()
            }
        }
    }

    /// What of the last step is kept when it is torn.
    fn torn(&self, kind: &Kind) -> Option<Op> {
        let Some(Op::Rows(domain, rows)) = self.pending.last() else { return None };
        let part = match kind {
            Kind::Torn(first) => &rows[..*first],
            Kind::TornTail(first) => &rows[*first..],
            _ => return None,
        };
        Some(Op::Rows(*domain, part.to_vec()))
    }

    /// The image.
    pub fn image(&self, kind: &Kind) -> Image {
        let mut image = self.durable.clone();
        self.kept(kind).iter().for_each(|op| op.apply(&mut image));
        if *kind == Kind::FolderLost {
            image.lose_files();
        }
        image
    }

    /// The image's sum, without making it where only the disk differs.
    pub fn sum(&self, kind: &Kind, durable_folder: u128) -> u128 {
        let of_the_disk = |op: &&Op| matches!(op.domain(), Domain::Disk(_) | Domain::Firmware);
        if *kind == Kind::FolderLost || !self.pending.iter().all(of_the_disk) {
            return self.image(kind).sum();
        }
        let mut latest: FxHashMap<u64, &Row> = FxHashMap::default();
        let kept = self.kept(kind);
        for op in &kept {
            if let Op::Rows(_, rows) = &**op {
                latest.extend(rows.iter().map(|(row, content)| (*row, content)));
            }
        }
        let disk = latest.into_iter().fold(self.durable.disk_sum(), |sum, (row, content)| {
            debug_assert!(row < FILE_ROWS);
            let old = self.durable.row(row).digest;
            sum.wrapping_add(share(row, content.digest)).wrapping_sub(share(row, old))
        });
        disk.wrapping_add(durable_folder)
    }
}

/// Up to `most` numbers from `first` to `end`, evenly.
fn spread(first: usize, end: usize, most: usize) -> impl Iterator<Item = usize> {
    let span = end.saturating_sub(first);
    let count = span.min(most);
    (0..count).map(move |at| first + at * span / count.max(1))
}

/// Walks through a run: at each step what is durable and what is not.
pub struct Walk {
    durable: Image,
    ops: Arc<Vec<Op>>,
    pending: Vec<usize>,
    /// So many of them are in the disk's cache.
    cached: usize,
    at: usize,
}

impl Walk {
    /// From the run's first step.
    pub fn new(image: Image, ops: Arc<Vec<Op>>) -> Walk {
        Walk { durable: image, ops, pending: Vec::new(), cached: 0, at: 0 }
    }

    /// The power is cut after the steps so far.
    pub fn with_cut<T>(&self, work: impl FnOnce(&Cut<'_>) -> T) -> T {
        let pending: Vec<&Op> = self.pending.iter().map(|at| &self.ops[*at]).collect();
        work(&Cut { durable: &self.durable, pending: &pending, at: self.at })
    }

    /// The next step is done; false when there is none.
    pub fn step(&mut self) -> bool {
        let Some(op) = self.ops.get(self.at) else { return false };
        match op {
            Op::Flush(domain) => {
                let (ops, durable) = (&self.ops, &mut self.durable);
                let mut cached = std::mem::take(&mut self.cached);
                self.pending.retain(|at| {
                    let in_the_cache = cached > 0 || ops[*at].domain() == Domain::Firmware;
                    cached = cached.saturating_sub(1);
                    let of_it = in_the_cache || ops[*at].domain() == *domain;
                    if of_it {
                        ops[*at].apply(durable);
                    }
                    !of_it
                });
            }
            Op::Start => self.cached = self.pending.len(),
            Op::Death => {
                let (ops, mut cached) = (&self.ops, self.cached);
                self.pending.retain(|at| {
                    let in_the_cache = cached > 0 || ops[*at].domain() == Domain::Firmware;
                    cached = cached.saturating_sub(1);
                    in_the_cache
                });
                self.cached = self.pending.len();
            }
            _ => self.pending.push(self.at),
        }
        self.at += 1;
        true
    }

    /// How many steps were done.
    pub fn at(&self) -> usize {
        self.at
    }

    /// True when the last step wrote nothing: a start, or a death.
    pub fn after_a_start(&self) -> bool {
        self.at.checked_sub(1).is_some_and(|last| matches!(self.ops[last], Op::Start | Op::Death))
    }

    /// True when the last step overwrote several sectors of a file that was there in the beginning.
    pub fn after_an_overwrite(&self, begin: &Image) -> bool {
        let last = self.at.checked_sub(1).map(|last| &self.ops[last]);
        matches!(last, Some(Op::Rows(Domain::File(file), rows)) if rows.len() > 1 && begin.lens.contains_key(file))
    }
}
