//! What the machine has of a release already: the index of the release, and where its chunks lie in the two slots.
//!
//! Not here: taking them from there (`work`). Rule: it reads and fetches small things, and writes nothing but a copy of the
//! index in the state folder. What it finds is a hope: every chunk is compared when it is read.

use std::sync::Arc;

use switchback_partitions::device::{BlockDevice, DeviceStream, Window};
use switchback_partitions::slot::Slot;

use super::indexes::Source;
use super::patches::{self, Offered};
use super::stored::{Keeper, Stored};
use super::{InstallError, Release, Traffic};
use crate::digest::Digest;
use crate::host::state_dir::StateDir;
use crate::image::chunker::{Chunker, Piece};
use crate::image::index::{ChunkRef, Index, Root};
use crate::image::manifest::SlotLayer;
use crate::image::plan::{Lookup, Place, Plan};
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
    pub index: Index,
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
        let plan = Plan { patch, ..Plan::new(&self.index, &self.lookup) };
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
            let (index, mut traffic) = fetched.unwrap_or(Err(InstallError::Interrupted))?;
            let mut lookup = Lookup::none();
            for ground in &self.grounds {
                let known = slots.iter().position(|slot| *slot == ground.slot);
                match known.and_then(|at| stored[at].index()) {
                    Some(index) => lookup.add(self.place(ground), &index),
                    None => scan(ground, self.place(ground), &mut lookup, progress)?,
                }
            }
            lookup.sort();
            let running = self.grounds.iter().find(|ground| ground.slot != self.target);
            let patch = match running {
                Some(base) => {
                    let wanted = (&*layer.name, &index);
                    let finding = patches::find(registry, release, base, wanted, &lookup, &mut traffic);
                    runtime.block_on(until_stopped(progress, finding)).ok_or(InstallError::Interrupted)?
                }
                None => None,
            };
            let running = running.map(|ground| ground.root.clone());
            surveyed.push(Surveyed { index, lookup, running, patch, traffic });
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

/// Finds the chunks of a slot whose index is lost, by cutting it as a builder would. A slot that holds no release is passed
/// over, and one that cannot be read is read as far as it can be.
fn scan(
    ground: &Ground,
    place: Place,
    lookup: &mut Lookup,
    progress: &dyn Progress,
) -> Result<(), InstallError> {
    let Some((_, bytes)) = ground.holds else { return Ok(()) };
    let bytes = bytes.min(ground.root.len());
    let window = Window::new(ground.root.clone(), 0, bytes).map_err(InstallError::reading_slot)?;
    progress.begin(Phase::Compare, bytes);
    let hashers = std::thread::available_parallelism().map_or(1, usize::from).min(HASHERS_MAX);
    let found = std::thread::scope(|scope| {
        let (mut to, mut hashing) = (Vec::new(), Vec::new());
        for _ in 0..hashers {
            let (chunks, from) = std::sync::mpsc::sync_channel::<(u64, Vec<u8>)>(CHUNKS_WAITING);
            to.push(chunks);
            hashing.push(scope.spawn(move || {
                let mut found = Lookup::none();
                for (offset, raw) in from {
                    let sha256 = *Digest::of(&raw).raw();
                    found.add_chunk(place, offset, &ChunkRef { raw_bytes: raw.len() as u32, sha256 });
                }
                found
            }));
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
        drop(to);
        hashing.into_iter().map(|hasher| hasher.join()).collect::<Result<Vec<_>, _>>()
    });
    progress.end();
    if progress.stopped() {
        return Err(InstallError::Interrupted);
    }
    for found in found.map_err(|_| InstallError::Worker)? {
        lookup.append(found);
    }
    Ok(())
}
