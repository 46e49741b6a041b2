//! What the machine has of a release already: the index of the release, and where its chunks lie in the two slots.
//!
//! Not here: taking them from there (`work`). Rule: it reads and fetches small things, and writes nothing but a copy of the
//! index in the state folder. What it finds is a hope: every chunk is compared when it is read.

use std::sync::{Arc, Mutex};

use switchback_partitions::device::{BlockDevice, DeviceStream, Window};
use switchback_partitions::slot::Slot;

use super::indexes::{Found, Source};
use super::layer::Layer;
use super::patches::{self, Offered};
use super::stored::{Keeper, Stored};
use super::{InstallError, Release, Traffic};
use crate::digest::Digest;
use crate::host::state_dir::StateDir;
use crate::image::chunker::{Chunker, Piece};
use crate::image::index::{ChunkRef, Root};
use crate::image::lookup::{Finder, Lookup, Place};
use crate::image::manifest::SlotLayer;
use crate::image::plan::Plan;
use crate::progress::{Phase, Progress, until_stopped};
use crate::registry::Registry;

/// Threads that hash while a slot is scanned, and the chunks that wait for each.
const HASHERS_MAX: usize = 4;
const CHUNKS_WAITING: usize = 32;

/// One slot to look into.
pub struct Ground {
    /// Which slot.
    pub slot: Slot,
    /// Its root partition, for reading.
    pub root: Arc<dyn BlockDevice>,
    /// The OS image that its passport names, and how long that image is.
    pub holds: Option<(Digest, u64)>,
}

/// What a survey looks at.
pub struct Survey<'a> {
    /// Folder of the stored indexes.
    pub state_dir: &'a dyn StateDir,
    /// The slot that will be written.
    pub target: Slot,
    /// The slots that hold something: the running one, and the one that will be written.
    pub grounds: Vec<Ground>,
    /// May a copy of the index be left in the state folder?
    pub keep: bool,
}

/// A slot layer, and what the machine has of it.
pub struct Surveyed {
    /// The layer's verified index.
    pub(super) layer: Layer,
    /// Where its chunks may lie.
    pub(super) lookup: Lookup,
    /// The running slot's root partition.
    pub(super) running: Option<Arc<dyn BlockDevice>>,
    /// A patch that builds on what the running slot holds.
    pub(super) patch: Option<Offered>,
    /// What the survey cost.
    pub(super) traffic: Traffic,
}

impl Surveyed {
    /// What writing it is going to cost, with what the survey did cost.
    pub fn plan(&self) -> Traffic {
        let patch = self.patch.as_ref().map(|patch| &patch.chosen as _);
        let plan = Plan { patch, ..Plan::new(self.layer.outline(), &self.lookup) };
        let mut traffic = super::fetch::cost(&plan);
        traffic.add(self.traffic);
        traffic
    }

    /// Bytes that the survey fetched.
    pub fn fetched(&self) -> u64 {
        self.traffic.fetched
    }
}

impl Survey<'_> {
    /// What the machine has of each slot layer of `release`.
    pub fn of(
        &self,
        release: &Release,
        registry: &dyn Registry,
        runtime: &tokio::runtime::Handle,
        progress: &dyn Progress,
    ) -> Result<Vec<Surveyed>, InstallError> {
        let mut surveyed = Vec::new();
        for layer in &release.manifest.slots {
            let (slots, stored): (Vec<Slot>, Vec<Stored>) =
                self.grounds.iter().filter_map(|ground| self.stored(ground, layer)).unzip();
            let raw_bytes = release.slot_bytes(&layer.name)?;
            let source = Source { registry, layer, raw_bytes, stored: &stored };
            let fetching = source.fetch(|root, frame| self.keeper(layer, root, frame));
            let fetched = runtime.block_on(until_stopped(progress, fetching));
            let Found { index, copy, mut traffic } = fetched.unwrap_or(Err(InstallError::Interrupted))?;
            let mut finder = Finder::new(&index);
            // From here on the hashes are read from the copy.
            let index = Layer::new(index, copy);
            for ground in &self.grounds {
                let known = slots.iter().position(|slot| *slot == ground.slot);
                let place = self.place(ground);
                if !known.is_some_and(|at| show(&stored[at], place, &mut finder)) {
                    finder = scan(ground, place, finder, progress)?;
                }
            }
            let lookup = finder.finish(index.outline());
            let running = self.grounds.iter().find(|ground| ground.slot != self.target);
            let patch = match running {
                Some(base) => {
                    let wanted = (&*layer.name, index.outline());
                    let finding = patches::find(registry, release, base, wanted, &lookup, &mut traffic);
                    runtime.block_on(until_stopped(progress, finding)).ok_or(InstallError::Interrupted)?
                }
                None => None,
            };
            let running = running.map(|ground| ground.root.clone());
            surveyed.push(Surveyed { layer: index, lookup, running, patch, traffic });
        }
        Ok(surveyed)
    }

    fn stored(&self, ground: &Ground, layer: &SlotLayer) -> Option<(Slot, Stored)> {
        Some((ground.slot, Stored::open(self.state_dir, ground.slot, &layer.name)?))
    }

    fn keeper(&self, layer: &SlotLayer, root: &Root, frame: &[u8]) -> Option<Keeper<'_>> {
        let place = (self.target, &*layer.name);
        self.keep.then(|| Keeper::begin(self.state_dir, place, root, frame)).flatten()
    }

    fn place(&self, ground: &Ground) -> Place {
        if ground.slot == self.target { Place::Target } else { Place::Running }
    }
}

/// Shows all that a stored index says; false when a page of it is damaged.
fn show(stored: &Stored, place: Place, finder: &mut Finder) -> bool {
    stored.pages().all(|page| page.inspect(|page| finder.add(place, page)).is_some())
}

/// Finds the chunks of a slot whose index is lost, by cutting it as a builder would. A slot that holds no release is passed
/// over, and one that cannot be read is read as far as it can be.
fn scan(
    ground: &Ground,
    place: Place,
    finder: Finder,
    progress: &dyn Progress,
) -> Result<Finder, InstallError> {
    let Some((_, bytes)) = ground.holds else { return Ok(finder) };
    let bytes = bytes.min(ground.root.len());
    let window = Window::new(ground.root.clone(), 0, bytes).map_err(InstallError::reading_slot)?;
    progress.begin(Phase::Compare, bytes);
    let hashers = std::thread::available_parallelism().map_or(1, usize::from).min(HASHERS_MAX);
    let finder = Mutex::new(finder);
    std::thread::scope(|scope| {
        let mut to = Vec::new();
        for _ in 0..hashers {
            let (chunks, from) = std::sync::mpsc::sync_channel::<(u64, Vec<u8>)>(CHUNKS_WAITING);
            to.push(chunks);
            let finder = &finder;
            scope.spawn(move || {
                for (offset, raw) in from {
                    let chunk = ChunkRef { raw_bytes: raw.len() as u32, sha256: *Digest::of(&raw).raw() };
                    let Ok(mut finder) = finder.lock() else { return };
                    finder.add_chunk(place, offset, &chunk);
                }
            });
        }
        let mut offset = 0;
        for (piece, to) in Chunker::new(DeviceStream::new(window)).zip(to.iter().cycle()) {
            let bytes = match piece {
                Ok(Piece::Zero(bytes)) => u64::from(bytes),
                Ok(Piece::Chunk(raw)) => {
                    let bytes = raw.len() as u64;
                    if to.send((offset, raw)).is_err() {
                        break;
                    }
                    bytes
                }
                Err(error) => {
                    tracing::warn!(%error, slot = %ground.slot, offset, "the slot cannot be read to its end");
                    break;
                }
            };
            offset += bytes;
            progress.advance(bytes);
            if progress.stopped() {
                break;
            }
        }
    });
    progress.end();
    if progress.stopped() {
        return Err(InstallError::Interrupted);
    }
    finder.into_inner().map_err(|_| InstallError::Worker)
}
