//! Every cut of a run, and every cut of what follows from it, until no image is new.
//!
//! Not here: what is run (`scenario`), what must hold (`judge`). Rule: an image is counted once for each way to it, looked
//! at once for each content, and judged once for each set of rows that matter.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::broken::Broken;
use super::cuts::{Cut, Effort, Kind, Walk};
use super::image::Image;
use super::judge::{Expected, Judgement, Then, judge};
use super::memo::Memo;
use super::promise::{Promise, Violation};
use super::recorder::Op;
use super::site::Site;

/// Seeded choices of sectors where a record of several sectors is overwritten, at least: two copies are torn at once by one in
/// fifty of them.
const TEARS_OF_A_RECORD: usize = 300;
/// Seeded choices of sectors in a recovery, at most; and where a record is overwritten, at least.
const TEARS_IN_A_RECOVERY: usize = 40;

/// How often a long sweep says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(20);

/// How much of a scenario is tried.
#[derive(Debug, Clone, Copy)]
pub struct Depth {
    /// What is made of one step.
    pub effort: Effort,
    /// Cuts during recovery from cuts, this many deep.
    pub lives: usize,
    /// Of the steps of a run, about so many; all when there are fewer.
    pub steps: usize,
    /// Recoveries are cut until so many machines were started.
    pub judgements: u64,
    /// It ends after so many violations: more say nothing new.
    pub violations: usize,
    /// It ends with the first one of this promise.
    pub until: Option<Promise>,
}

impl Depth {
    /// True when what was found is enough.
    pub fn is_enough(&self, figures: &Figures) -> bool {
        let wanted = |(_, violation): &(String, Violation)| Some(violation.promise) == self.until;
        figures.violations.len() >= self.violations || figures.violations.iter().any(wanted)
    }
}

/// What a scenario came to.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    /// Steps of the first run.
    pub operations: usize,
    /// Images made.
    pub images: u64,
    /// Different ones among them.
    pub distinct: u64,
    /// Machines that were started with one.
    pub judged: u64,
    /// Power cuts in a row, at most.
    pub lives: usize,
    /// Runs that were cut: the story's own, and recoveries that went a way of their own.
    pub runs: usize,
    /// Recoveries that would have been cut next.
    pub left: usize,
    /// Broken promises: how to see each again, and what it is.
    pub violations: Vec<(String, Violation)>,
}

/// One run whose cuts are looked at.
struct Life {
    image: Image,
    ops: Arc<Vec<Op>>,
    /// The cuts that led to it: `k/kind` for each.
    path: Vec<String>,
    /// The first step at which it makes sense to cut.
    from: usize,
}

/// A sweep under way.
pub struct Sweep<'a> {
    name: &'static str,
    site: &'a Site,
    scratch: &'a Path,
    expected: Expected,
    broken: Option<Broken>,
    depth: Depth,
    known: HashSet<u128>,
    memo: Memo,
    shapes: HashSet<u64>,
    queue: VecDeque<Life>,
    told: Instant,
    /// What was found so far.
    pub figures: Figures,
}

impl<'a> Sweep<'a> {
    /// A sweep over a run of `ops` that began with `image`.
    pub fn new(
        name: &'static str,
        site: &'a Site,
        scratch: &'a Path,
        expected: Expected,
        broken: Option<Broken>,
        depth: Depth,
    ) -> Sweep<'a> {
        Sweep {
            name,
            site,
            scratch,
            expected,
            broken,
            depth,
            known: HashSet::new(),
            memo: Memo::default(),
            shapes: HashSet::new(),
            queue: VecDeque::new(),
            told: Instant::now(),
            figures: Figures::default(),
        }
    }

    /// Cuts a run at each step, then the recoveries.
    pub fn run(&mut self, image: Image, ops: Arc<Vec<Op>>, from: usize) -> Result<()> {
        self.figures.operations += ops.len() - from;
        self.queue.push_back(Life { image, ops, path: Vec::new(), from });
        while let Some(life) = self.queue.pop_front() {
            if !life.path.is_empty() && self.figures.judged >= self.depth.judgements {
                self.figures.left = self.queue.len() + 1;
                break;
            }
            self.figures.lives = self.figures.lives.max(life.path.len() + 1);
            self.figures.runs += 1;
            self.cut(&life)?;
            if self.depth.is_enough(&self.figures) {
                break;
            }
        }
        Ok(())
    }

    fn cut(&mut self, life: &Life) -> Result<()> {
        let mut walk = Walk::new(life.image.clone(), life.ops.clone());
        let steps = life.ops.len() - life.from;
        let stride = steps.div_ceil(self.depth.steps).max(1);
        // Which steps of many are taken differs from life to life.
        let phase = life.path.len() + life.from;
        loop {
            let at = walk.at();
            // Where something is overwritten in place a tear hurts: a sample leaves out none of these.
            let can_tear = walk.after_an_overwrite(&life.image);
            if at >= life.from && (at % stride == phase % stride || can_tear) && !walk.after_a_start() {
                // What a recovery leaves unflushed, its story left unflushed in much the same way: fewer choices do.
                let (least, most) = match life.path.is_empty() {
                    true => (TEARS_OF_A_RECORD, usize::MAX),
                    false => (TEARS_IN_A_RECOVERY, TEARS_IN_A_RECOVERY),
                };
                let sectors = self.depth.effort.sectors.min(most);
                let sectors = if can_tear { sectors.max(least) } else { sectors };
                walk.with_cut(|cut| self.images(life, Effort { sectors, ..self.depth.effort }, cut))?;
                if self.depth.is_enough(&self.figures) {
                    return Ok(());
                }
            }
            if !walk.step() {
                return Ok(());
            }
        }
    }

    fn images(&mut self, life: &Life, effort: Effort, cut: &Cut<'_>) -> Result<()> {
        let folder = cut.durable.folder_sum();
        let mut allowed: Vec<[String; 3]> = Vec::new();
        for kind in cut.kinds(effort) {
            self.figures.images += 1;
            // What is left in order is what the others are compared with, known or not.
            let compared = kind.is_in_order();
            self.tell(life);
            let sum = cut.sum(&kind, folder);
            let is_new = self.known.insert(sum);
            self.figures.distinct += u64::from(is_new);
            if !is_new && !compared {
                continue;
            }
            let image = cut.image(&kind);
            // The order given again costs as much as all the rest. A sample gives it each time but for its sectors; a whole
            // sweep, whose choices are thousands, after each single cut, and for one of some else.
            let order = match kind {
                Kind::Sample(_) | Kind::Torn(_) | Kind::TornTail(_) if self.depth.lives == 1 => true,
                Kind::Sample(_) | Kind::Sectors(_) | Kind::Torn(_) | Kind::TornTail(_) => {
                    sum.is_multiple_of(16)
                }
                _ => life.path.is_empty() || sum.is_multiple_of(4),
            };
            let judgement = self.judgement(life, cut.at, &kind, image, order)?;
            if compared {
                allowed.push(judgement.records.clone());
            }
            if is_new {
                self.verdict(life, cut, &kind, &judgement, &allowed);
            }
        }
        Ok(())
    }

    /// A line on standard error now and then: a whole sweep takes minutes.
    fn tell(&mut self, life: &Life) {
        if self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = Instant::now();
        let Figures { images, distinct, judged, .. } = self.figures;
        let (cuts, waiting) = (life.path.len() + 1, self.queue.len());
        eprintln!(
            "{}: {images} images, {distinct} distinct, {judged} judged, cut {cuts} times, {waiting} runs waiting",
            self.name
        );
    }

    fn judgement(
        &mut self,
        life: &Life,
        at: usize,
        kind: &Kind,
        image: Image,
        order: bool,
    ) -> Result<Arc<Judgement>> {
        let cuts = life.path.len() + 1;
        if let Some(known) = self.memo.find(&image, cuts, order) {
            return Ok(known);
        }
        let judged = judge(self.site, self.scratch, image.clone(), &self.expected, self.broken, cuts, order)?;
        let judged = Arc::new(judged);
        self.figures.judged += 1;
        self.memo.keep(&image, cuts, order, judged.clone());
        let goes_a_new_way = judged.violations.is_empty() && self.shapes.insert(judged.shape);
        if goes_a_new_way && cuts < self.depth.lives {
            let mut path = life.path.clone();
            path.push(format!("{at}/{kind}"));
            self.queue.push_back(Life { image, ops: judged.ops.clone(), path, from: 0 });
        }
        Ok(judged)
    }

    fn verdict(
        &mut self,
        life: &Life,
        cut: &Cut<'_>,
        kind: &Kind,
        judgement: &Judgement,
        allowed: &[[String; 3]],
    ) {
        let mut found = judgement.violations.clone();
        if judgement.unreadable && *kind != Kind::FolderLost {
            let words = format!("a record cannot be read: {:?}", judgement.records);
            found.push(Violation { promise: Promise::OldOrNew, words });
        }
        // With more than one step unflushed there are steps between the old value and the new one; the boot record has no
        // others than those that its writes go through.
        let single = cut.pending.len() <= 1;
        let ordered = single || (cut.has_all_in_order() && self.expected.then != Some(Then::Provision));
        if *kind != Kind::FolderLost {
            let records = [("boot record", 0, ordered), ("facts", 1, single), ("state file", 2, single)];
            for (name, at, _) in records.into_iter().filter(|(_, _, holds)| *holds) {
                let record = &judgement.records[at];
                if !allowed.iter().any(|records| records[at] == *record) {
                    let words = format!("the {name} reads as neither the old nor the new: {record}");
                    found.push(Violation { promise: Promise::OldOrNew, words });
                }
            }
        }
        let mut path = life.path.clone();
        path.push(format!("{}/{kind}", cut.at));
        self.figures.violations.extend(found.into_iter().map(|violation| (path.join(","), violation)));
    }
}
