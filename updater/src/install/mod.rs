//! From a verified release to a slot that may be armed: cleared, written, proven.
//!
//! Not here: whether to install (`lifecycle`), what a signature is worth (`trust`). Rule: the typestate is the order of
//! `architecture.md`: only an [`Install<Proven>`] can be armed, and `Proven` is made by reading everything back, never
//! from a stored flag. After a restart it is earned again.

mod body;
mod boot_files;
pub mod contract;
mod error;
mod fetch;
mod indexes;
mod journal;
mod layer;
mod luck;
mod patches;
mod pipeline;
mod preflight;
mod prove;
mod read_back;
mod release;
mod stages;
mod stored;
mod survey;
mod watched;
mod work;
mod write;

use std::sync::Arc;

use switchback_bootloader::record::Bootloader;
use switchback_partitions::inactive_slot::InactiveSlot;
use switchback_partitions::verity::{RootHash, TreeWriter, VerityParams};

pub use self::error::{InstallError, registry_reason, trust_reason};
pub use self::pipeline::Traffic;
pub use self::preflight::{Offer, preflight};
pub use self::read_back::{Depth, Place, boot_files as boot_files_of, read_back};
pub use self::release::{PASSPORT, Passport, Release, ReleaseName};
pub use self::stages::{Limit, Stages};
pub use self::survey::{Ground, Survey, Surveyed};
use crate::digest::Digest;
use crate::host::state_dir::StateDir;
use crate::image::config::VerityInfo;
use crate::progress::{Phase, Progress, until_stopped};
use crate::registry::Registry;

/// The slot's old entry, boot files and passport are gone: nothing half-written can be started.
#[derive(Debug)]
pub struct Cleared(());
/// Slot, hash tree, boot files and passport are written and flushed, but unproven.
#[derive(Debug)]
pub struct Written {
    /// The slot's data was read back from the medium behind the writer, and has the signed root: this run saw it, no note did.
    data_read_back: bool,
}
/// All of it was read back from the medium and verified.
#[derive(Debug)]
pub struct Proven(());

/// Where an install goes.
pub struct Target<'a> {
    /// The slot that does not run, on a machine whose running slot is confirmed.
    pub slot: InactiveSlot,
    /// The machine's bootloader.
    pub bootloader: Arc<dyn Bootloader>,
    /// Folder of journal and downloads.
    pub state_dir: &'a dyn StateDir,
}

/// One install, at the stage `S`.
pub struct Install<'a, S> {
    release: Release,
    target: Target<'a>,
    traffic: Traffic,
    /// Where the time of writing went, if anything was written.
    stages: Option<Stages>,
    stage: S,
}

impl<'a> Install<'a, Cleared> {
    /// Step 1: the slot's entry goes, then its boot files and passport; flushed. From here the old fallback is given up.
    /// The partitions are marked half-written and get the identity (PARTUUIDs) of the content to come.
    pub fn clear(release: Release, target: Target<'a>) -> Result<Install<'a, Cleared>, InstallError> {
        target.bootloader.forget(target.slot.slot())?;
        let install =
            Install { release, target, traffic: Traffic::default(), stages: None, stage: Cleared(()) };
        for layer in &install.release.manifest.slots {
            let root = RootHash(install.release.verity(&layer.name)?.root);
            install.target.slot.mark_partial(Some(&root)).map_err(InstallError::slot)?;
        }
        Ok(install)
    }

    /// Step 2: slot partitions with their hash trees, then boot files and passport; flushed.
    pub fn write(
        mut self,
        registry: &dyn Registry,
        surveyed: &[Surveyed],
        runtime: &tokio::runtime::Handle,
        progress: &dyn Progress,
    ) -> Result<Install<'a, Written>, InstallError> {
        let slot = self.target.slot.slot();
        let journal = journal::Journal::open(self.target.state_dir, self.release.digest, slot)?;
        let (mut traffic, mut stages) = (Traffic::default(), None);
        for (layer, surveyed) in self.release.manifest.slots.iter().zip(surveyed) {
            let info = self.release.verity(&layer.name)?.clone();
            let tree = TreeWriter::new(verity_params(&info), self.target.slot.verity())
                .map_err(InstallError::tree)?;
            let job = pipeline::SlotJob {
                registry,
                blob: &layer.blob,
                surveyed,
                device: self.target.slot.root(),
                journal: &journal,
                progress,
            };
            traffic.add(surveyed.traffic);
            let (cost, times) = job.run(runtime, tree, RootHash(info.root))?;
            traffic.add(cost);
            stages = Some(stages.map_or(times, |before: Stages| before.and(times)));
            self.target.slot.verity().flush().map_err(InstallError::writing_slot)?;
            stored::settle(self.target.state_dir, slot, &layer.name);
        }
        (self.traffic, self.stages) = (traffic, stages);
        self.write_boot_files(registry, runtime, progress)?;
        journal.finish()?;
        Ok(self.at(Written { data_read_back: true }))
    }

    fn write_boot_files(
        &mut self,
        registry: &dyn Registry,
        runtime: &tokio::runtime::Handle,
        progress: &dyn Progress,
    ) -> Result<(), InstallError> {
        let layers = &self.release.manifest.boot;
        progress.begin(Phase::Boot, layers.iter().map(|layer| layer.blob.size).sum());
        let source = boot_files::Source {
            registry,
            bootloader: &*self.target.bootloader,
            other: self.target.slot.slot().other(),
            state_dir: self.target.state_dir.path(),
            progress,
        };
        let mut files = Vec::new();
        for layer in layers {
            let (file, fetched) = runtime
                .block_on(until_stopped(progress, source.bring(layer)))
                .unwrap_or(Err(InstallError::Interrupted))?;
            self.traffic.fetched += fetched;
            self.traffic.requests += u64::from(fetched > 0);
            files.push(file);
        }
        self.target
            .bootloader
            .prepare(self.target.slot.slot(), &read_back::boot_set(&self.release, files))?;
        boot_files::tidy(layers, self.target.state_dir.path());
        progress.end();
        Ok(())
    }
}

impl<'a> Install<'a, Written> {
    /// A release that already lies in the slot, by its passport: nothing was fetched or written, everything is to be
    /// proven all the same.
    pub fn present(release: Release, target: Target<'a>) -> Install<'a, Written> {
        Install {
            release,
            target,
            traffic: Traffic::default(),
            stages: None,
            stage: Written { data_read_back: false },
        }
    }

    /// Step 3: caches dropped, all of it read back that was not yet; data against the hash tree, the tree against the signed
    /// root hash, boot files and passport against their digests.
    pub fn prove(self, progress: &dyn Progress) -> Result<Install<'a, Proven>, InstallError> {
        let (root, tree) = (self.target.slot.root(), self.target.slot.verity());
        let place = Place {
            slot: self.target.slot.slot(),
            root: &*root,
            tree: &*tree,
            bootloader: &*self.target.bootloader,
        };
        let how_much = match self.stage.data_read_back {
            true => Depth::Rest,
            false => Depth::Everything,
        };
        read_back(&self.release, &place, how_much, progress)?;
        self.target.slot.mark_whole().map_err(InstallError::slot)?;
        Ok(self.at(Proven(())))
    }
}

impl Install<'_, Proven> {
    /// What was proven.
    pub fn release(&self) -> &Release {
        &self.release
    }

    /// Step 4, the commit point: one boot-record write. `tries` starts are granted.
    pub fn arm(self, tries: u8) -> Result<Traffic, InstallError> {
        let bootloader = &self.target.bootloader;
        let state = bootloader.read()?.arm(self.target.slot.slot(), tries);
        bootloader.write(&state)?;
        Ok(self.traffic)
    }

    /// What it cost, when arming is left for later.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Where the time of writing went; `None` when nothing was written.
    pub fn stages(&self) -> Option<Stages> {
        self.stages
    }
}

impl<'a, S> Install<'a, S> {
    fn at<T>(self, stage: T) -> Install<'a, T> {
        let Install { release, target, traffic, stages, .. } = self;
        Install { release, target, traffic, stages, stage }
    }
}

/// The hash tree's parameters, from the signed config.
pub(crate) fn verity_params(info: &VerityInfo) -> VerityParams {
    VerityParams {
        salt: info.salt.clone(),
        uuid: info.uuid,
        data_block_bytes: info.data_block_bytes,
        hash_block_bytes: info.hash_block_bytes,
        data_blocks: info.data_blocks,
    }
}

/// What an update to `release` costs, as far as the survey can tell, where the running slot has boot files with the digests
/// `held`; nothing is touched.
pub fn plan(release: &Release, surveyed: &[Surveyed], held: &[Digest]) -> Traffic {
    let mut traffic = Traffic::default();
    for surveyed in surveyed {
        traffic.add(surveyed.plan());
    }
    for layer in release.manifest.boot.iter().filter(|layer| !held.contains(&layer.blob.digest)) {
        traffic.fetched += layer.blob.size;
        traffic.requests += 1;
    }
    traffic
}
