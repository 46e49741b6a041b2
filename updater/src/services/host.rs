//! What can be done with one slot of a service: start it beside the other, ask it, lead clients to it, end it.
//!
//! Not here: when (`life`). Rule: each call may be repeated, and finds what an interrupted one left.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use switchback_partitions::slot::Slot;

use super::bundle::{BundleError, Slotted, User};
use super::network::{self, NetworkError, Place};
use super::probe;
use super::runtime::{Runtime, RuntimeError};
use super::set::Record;
use super::store::{Store, Stored};
use crate::config::Config;
use crate::config::service::{Name, Service};
use crate::digest::Digest;
use crate::file::FileError;

/// How often flows that end are looked at.
const DRAIN_LOOK: Duration = Duration::from_millis(500);

/// Why something could not be done with a slot.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The OCI runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// What it is to be.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A file or folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// What the record counts on is gone.
    #[error(
        "while starting the service {service}: its image {image} is not in the store any more; order it again"
    )]
    Gone {
        /// Which service.
        service: Name,
        /// The image.
        image: Digest,
    },
}

/// Where services run.
#[derive(Debug)]
pub struct Host {
    /// Their images.
    pub store: Store,
    runtime: Runtime,
    volumes: PathBuf,
    logs: PathBuf,
    bundles: PathBuf,
}

/// One service on its host.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// The host.
    pub host: &'a Host,
    /// Its name.
    pub name: &'a Name,
    /// As it is declared.
    pub service: &'a Service,
    /// Its number.
    pub index: u8,
}

impl Host {
    /// For those who only look: nothing is made.
    pub fn look(config: &Config) -> Result<Host, SlotError> {
        let (data, run) = (&config.machine.data_dir, &config.machine.run_dir);
        Ok(Host {
            store: Store::at(&data.join("store")),
            runtime: Runtime::new(config.machine.runtime.as_deref(), &run.join("runtime"))?,
            volumes: data.join("volumes"),
            logs: data.join("logs"),
            bundles: run.join("bundles"),
        })
    }

    /// Makes the folders and the network's table where they are missing.
    pub fn open(config: &Config) -> Result<Host, SlotError> {
        let host = Host::look(config)?;
        host.store.make()?;
        for folder in [&host.volumes, &host.logs, &host.bundles] {
            make(folder)?;
        }
        network::prepare()?;
        Ok(host)
    }
}

impl Host {
    /// The folder of a volume. Its first user owns it; later ones find it as it was left.
    fn make_volume(&self, name: &Name, User { uid, gid }: User) -> Result<(), FileError> {
        let folder = self.volumes.join(name.as_str());
        if folder.is_dir() {
            return Ok(());
        }
        make(&folder)?;
        let owned = std::os::unix::fs::chown(&folder, Some(uid), Some(gid));
        owned.map_err(FileError::of("changing the owner of", &folder))
    }
}

fn make(folder: &Path) -> Result<(), FileError> {
    std::fs::create_dir_all(folder).map_err(FileError::of("making", folder))
}

impl<'a> Member<'a> {
    /// Where one of its slots is.
    pub fn place(&self, slot: Slot) -> Place {
        Place { index: self.index, slot }
    }

    fn id(&self, slot: Slot) -> String {
        format!("switchback-{}-{slot}", self.name)
    }

    /// Where a slot's output goes.
    pub fn log(&self, slot: Slot) -> PathBuf {
        self.host.logs.join(format!("{}-{slot}.log", self.name))
    }

    /// True while the slot's process runs.
    pub fn runs(&self, slot: Slot) -> Result<bool, SlotError> {
        Ok(self.host.runtime.find(&self.id(slot))?.is_some_and(|found| found.runs))
    }

    /// The slot's first process, as this machine counts.
    pub fn pid(&self, slot: Slot) -> Result<Option<i32>, SlotError> {
        Ok(self.host.runtime.find(&self.id(slot))?.and_then(|found| found.pid))
    }

    /// Starts the slot with this image; one that runs is left alone.
    pub fn start(&self, slot: Slot, image: &Stored) -> Result<(), SlotError> {
        if self.runs(slot)? {
            return Ok(());
        }
        let id = self.id(slot);
        self.host.runtime.remove(&id)?;
        let place = self.place(slot);
        network::attach(place)?;
        let network = place.path();
        let slotted = Slotted {
            name: self.name,
            service: self.service,
            slot,
            image,
            network: Some(&network),
            volumes: &self.host.volumes,
        };
        let spec = slotted.spec()?;
        let user = slotted.user()?;
        for volume in &self.service.volumes {
            self.host.make_volume(&volume.name, user)?;
        }
        Ok(self.host.runtime.start(&id, &spec, &self.host.bundles.join(&id), &self.log(slot))?)
    }

    /// Ends the slot and takes its network away. One that does not run is no error.
    pub fn stop(&self, slot: Slot) -> Result<(), SlotError> {
        self.host.runtime.stop(&self.id(slot), Signal::SIGTERM, self.service.drain)?;
        Ok(network::detach(self.place(slot))?)
    }

    /// Asks the slot once whether it is well.
    pub async fn ask(&self, slot: Slot) -> Result<(), String> {
        let runs = self.runs(slot).map_err(|error| crate::engine::chain(&error))?;
        if !runs {
            let words = super::runtime::last_line(&self.log(slot));
            return Err(format!("it has ended; its last words: {words}"));
        }
        let [address, _] = self.place(slot).addresses();
        probe::ask(&self.service.probe, &self.service.listen, address).await
    }

    /// Leads new flows to a slot, or nowhere.
    pub fn lead(&self, slot: Option<Slot>) -> Result<(), SlotError> {
        Ok(network::lead(&self.service.listen, slot.map(|slot| self.place(slot)))?)
    }

    /// Lets the flows of a slot that no new ones are led to end by themselves, as long as the declaration says; then they
    /// are forgotten, and what they send next goes where new flows go.
    pub fn drain(&self, slot: Slot) -> Result<(), SlotError> {
        let (began, place) = (Instant::now(), self.place(slot));
        while self.runs(slot)? && began.elapsed() < self.service.drain && network::flows(place)? > 0 {
            std::thread::sleep(DRAIN_LOOK);
        }
        Ok(network::forget_flows(place)?)
    }

    /// Brings the machine to what the record says: the slot that serves runs and is led to, the other one does not run.
    pub fn settle(&self, record: &Record) -> Result<(), SlotError> {
        let serving = record.serving();
        let found = |image: &Digest| {
            let gone = || SlotError::Gone { service: self.name.clone(), image: *image };
            self.host.store.find(image)?.ok_or_else(gone)
        };
        // A slot that runs is not ended because nobody could start it again.
        let image = record.held(serving).map(|held| found(&held.image)).transpose()?;
        match &image {
            Some(image) => {
                self.start(serving, image)?;
                self.lead(Some(serving))?;
            }
            None => self.lead(None)?,
        }
        // Ended at once, it would take with it the questions that it has not answered yet; and a flow that nobody forgot would go on
        // to where nothing is, with the next client that happens to use the same port.
        self.drain(serving.other())?;
        self.stop(serving.other())
    }
}
