//! What can be done with one slot of a service: start it beside the other, ask it, lead clients to it, end it.
//!
//! Not here: when (`life`). Rule: each call may be repeated, and finds what an interrupted one left.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use switchback_partitions::slot::Slot;

use super::bundle::{self, BundleError, Slotted};
use super::holder;
use super::network::{self, NetworkError, Place};
use super::probe;
use super::runtime::{Runtime, RuntimeError};
use super::set::{Held, Record};
use super::store::{SchemaError, Store, Stored};
use super::volume::Volumes;
use crate::config::Config;
use crate::config::service::{Name, Restart, Service};
use crate::digest::Digest;
use crate::file::FileError;

/// How often flows that end are looked at.
const DRAIN_LOOK: Duration = Duration::from_millis(500);
/// The most bytes of a slot's output that are kept, twice: as they are written, and the ones before.
const LOG_BYTES_MAX: u64 = 8 << 20;

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
    /// A label of its image.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// Data that no image of this age can read.
    #[error(
        "while starting the service {service}: its image has schema {wanted} of the volume {volume}, what is there has \
         {found}, and nothing of the older one is kept"
    )]
    TooOld {
        /// Which service.
        service: Name,
        /// Which volume.
        volume: Name,
        /// What the image reads.
        wanted: u32,
        /// What the volume is.
        found: u32,
    },
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
    /// Their data.
    pub volumes: Volumes,
    runtime: Runtime,
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
            volumes: Volumes::of(data),
            logs: data.join("logs"),
            bundles: run.join("bundles"),
        })
    }

    /// The OCI runtime's program.
    pub fn runtime_program(&self) -> &Path {
        self.runtime.program()
    }

    /// Makes the folders and the network's table where they are missing.
    pub fn open(config: &Config) -> Result<Host, SlotError> {
        let host = Host::look(config)?;
        host.store.make()?;
        host.volumes.prepare()?;
        for folder in [&host.logs, &host.bundles] {
            make(folder)?;
        }
        network::prepare()?;
        Ok(host)
    }
}

/// True when the kernel ended a process of a control group for want of memory (cgroup-v2.rst, "memory.events"; its predecessor has it
/// in `memory.oom_control`). The group is there until its container is removed.
fn ran_out_of_memory(group: &Path) -> bool {
    let group = group.strip_prefix("/").unwrap_or(group);
    let files = [("/sys/fs/cgroup", "memory.events"), ("/sys/fs/cgroup/memory", "memory.oom_control")];
    let ended = |(top, file): (&str, &str)| {
        let text = std::fs::read_to_string(Path::new(top).join(group).join(file)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse::<u64>().ok());
        count.is_some_and(|count| count > 0)
    };
    files.into_iter().any(ended)
}

fn bound(log: &Path, bytes_max: u64) -> Result<(), FileError> {
    match std::fs::metadata(log) {
        Ok(found) if found.len() > bytes_max => {}
        _ => return Ok(()),
    }
    let (unfinished, old) = (log.with_extension("log.new"), log.with_extension("log.1"));
    std::fs::copy(log, &unfinished).map_err(FileError::of("copying", log))?;
    std::fs::rename(&unfinished, &old).map_err(FileError::of("renaming", &unfinished))?;
    // The container opened it for appending: it goes on at the new end.
    let cut = std::fs::File::options().write(true).open(log).and_then(|file| file.set_len(0));
    cut.map_err(FileError::of("emptying", log))
}

fn make(folder: &Path) -> Result<(), FileError> {
    std::fs::create_dir_all(folder).map_err(FileError::of("making", folder))
}

impl Host {
    /// Removes what the volumes of a service were in schemas that no slot uses any more; `records` are all that it has.
    pub fn keep_volumes(&self, service: &Service, records: &[&Record]) -> Result<(), SlotError> {
        let mut images = Vec::new();
        for held in records.iter().flat_map(|record| record.slots.iter().flatten()) {
            // What is used by an image that cannot be asked is not known.
            let Some(image) = self.store.find(&held.image)? else { return Ok(()) };
            images.push(image);
        }
        for volume in &service.volumes {
            let schemas: Result<Vec<u32>, _> =
                images.iter().map(|image| image.schema(&volume.name)).collect();
            self.volumes.keep_only(&volume.name, &schemas?)?;
        }
        Ok(())
    }
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
            self.host.volumes.make(&volume.name, image.schema(&volume.name)?, user)?;
        }
        let held = self.service.restart == Restart::OnFailure;
        Ok(self.host.runtime.start(&id, &spec, (&self.bundle(slot), &self.log(slot)), held)?)
    }

    /// Gives an image that is to be tried volumes of its own schema: copies of what `serving` has where its own is higher. Gives the
    /// names of those.
    pub fn raise_volumes(
        &self,
        image: &Stored,
        serving: Option<&Stored>,
    ) -> Result<Vec<&'a Name>, SlotError> {
        let (volumes, mut raised) = (&self.host.volumes, Vec::new());
        for name in self.volumes() {
            let Some(serving) = serving else { break };
            let (found, wanted) = (serving.schema(name)?, image.schema(name)?);
            if wanted < found && !volumes.path(name, wanted).is_dir() {
                let (service, volume) = (self.name.clone(), name.clone());
                return Err(SlotError::TooOld { service, volume, wanted, found });
            }
            if wanted > found && volumes.raise(name, found, wanted)? {
                raised.push(name);
            }
        }
        Ok(raised)
    }

    /// What an image that was left had raised is used by nobody again: the next one begins with what serves.
    fn set_raised_aside(&self, left: Option<&Stored>, serving: Option<&Stored>) -> Result<(), SlotError> {
        let (Some(left), Some(serving)) = (left, serving) else { return Ok(()) };
        for name in self.volumes() {
            // A label that says nothing never let its image start.
            let schema = left.schema(name).unwrap_or(0);
            if schema > serving.schema(name)? {
                self.host.volumes.set_aside(name, schema)?;
            }
        }
        Ok(())
    }

    fn volumes(&self) -> impl Iterator<Item = &'a Name> + use<'a> {
        self.service.volumes.iter().map(|volume| &volume.name)
    }

    fn bundle(&self, slot: Slot) -> PathBuf {
        self.host.bundles.join(self.id(slot))
    }

    /// False when the slot ended by itself and its declaration leaves it at that. After a boot nothing has ended yet.
    pub fn may_start(&self, slot: Slot) -> Result<bool, SlotError> {
        let ended = self.host.runtime.find(&self.id(slot))?.is_some_and(|found| !found.runs);
        Ok(match self.service.restart {
            _ if !ended => true,
            Restart::Always => true,
            Restart::OnFailure => !holder::ended_well(&self.bundle(slot)),
            Restart::Never => false,
        })
    }

    /// Keeps what the slots write from filling the disk: what is too long becomes `….log.1`. The container holds the file open, so
    /// the content is what moves; a line that is written at this very moment may be lost.
    pub fn bound_logs(&self) -> Result<(), SlotError> {
        for slot in Slot::ALL {
            bound(&self.log(slot), LOG_BYTES_MAX)?;
        }
        Ok(())
    }

    /// Ends the slot and takes its network away. One that does not run is no error.
    pub fn stop(&self, slot: Slot) -> Result<(), SlotError> {
        self.host.runtime.stop(&self.id(slot), Signal::SIGTERM, self.service.drain)?;
        Ok(network::detach(self.place(slot))?)
    }

    /// Asks the slot once whether it is well. What answers at the slot's own address runs: the runtime is asked only about one that
    /// does not, since each time is a program that has to be started.
    pub async fn ask(&self, slot: Slot) -> Result<(), String> {
        let [address, _] = self.place(slot).addresses();
        let probe = &self.service.probe;
        let asked = probe::ask(probe, &self.service.listen, address).await;
        if asked.is_err() || !probe.asks_by_network(&self.service.listen) {
            self.has_not_ended(slot)?;
        }
        asked?;
        match probe.command.first() {
            Some(program) => self
                .exec(slot, &probe.command, probe::PATIENCE)
                .map_err(|words| format!("{program}: {words}")),
            None => Ok(()),
        }
    }

    fn has_not_ended(&self, slot: Slot) -> Result<(), String> {
        if self.runs(slot).map_err(|error| crate::engine::chain(&error))? {
            return Ok(());
        }
        let words = super::runtime::last_line(&self.log(slot));
        let why = match ran_out_of_memory(&bundle::group(self.name, slot)) {
            true => ", for it took more memory than it is granted",
            false => "",
        };
        Err(format!("it has ended{why}; its last words: {words}"))
    }

    fn exec(&self, slot: Slot, words: &[String], patience: Duration) -> Result<(), String> {
        tokio::task::block_in_place(|| {
            self.host.runtime.exec(&self.id(slot), words, &self.bundle(slot), patience)
        })
    }

    /// Leads new flows to a slot, or nowhere.
    pub fn lead(&self, slot: Option<Slot>) -> Result<(), SlotError> {
        Ok(network::lead(&self.service.listen, slot.map(|slot| self.place(slot)))?)
    }

    /// Lets the flows of a slot that no new ones are led to end by themselves, as long as the declaration says, after the slot was
    /// told by the declaration's command; then they are forgotten, and what they send next goes where new flows go.
    fn drain(&self, slot: Slot) -> Result<(), SlotError> {
        let (began, place) = (Instant::now(), self.place(slot));
        if !self.service.drain_command.is_empty()
            && self.runs(slot)?
            && let Err(words) = self.exec(slot, &self.service.drain_command, self.service.drain)
        {
            tracing::warn!(service = %self.name, %slot, words, "the drain command failed");
        }
        while self.runs(slot)? && began.elapsed() < self.service.drain && network::flows(place)? > 0 {
            std::thread::sleep(DRAIN_LOOK);
        }
        Ok(network::forget_flows(place)?)
    }

    /// Brings the machine to what the record says: the slot that serves runs and is led to, the other one does not run.
    pub fn settle(&self, record: &Record) -> Result<(), SlotError> {
        let serving = record.serving();
        // A slot that runs is not ended because nobody could start it again.
        let image = self.serving(record)?;
        match &image {
            Some(image) => {
                // It came with an OS, without a trial of its own that would have raised them.
                let is_new = |name: &Name| Ok(!self.host.volumes.path(name, image.schema(name)?).is_dir());
                let news = self.volumes().map(is_new).collect::<Result<Vec<bool>, SlotError>>()?;
                if news.contains(&true) {
                    self.raise_volumes(image, self.found(record, serving.other())?.as_ref())?;
                }
                self.start(serving, image)?;
                self.lead(Some(serving))?;
            }
            None => self.lead(None)?,
        }
        self.leave(record)
    }

    /// Ends the slot that does not serve, after its flows.
    pub fn leave(&self, record: &Record) -> Result<(), SlotError> {
        let left = record.serving().other();
        // Ended at once, it would take with it the questions that it has not answered yet; and a flow that nobody forgot would go on
        // to where nothing is, with the next client that happens to use the same port.
        self.drain(left)?;
        self.stop(left)?;
        let image = self.found(record, left)?;
        self.set_raised_aside(image.as_ref(), self.serving(record)?.as_ref())
    }

    /// What a slot holds, where that is here.
    fn found(&self, record: &Record, slot: Slot) -> Result<Option<Stored>, SlotError> {
        let find = |held: &Held| self.host.store.find(&held.image);
        Ok(record.held(slot).map(find).transpose()?.flatten())
    }

    /// The image that serves, if any.
    pub fn serving(&self, record: &Record) -> Result<Option<Stored>, SlotError> {
        let Some(held) = record.held(record.serving()) else { return Ok(None) };
        let gone = || SlotError::Gone { service: self.name.clone(), image: held.image };
        self.host.store.find(&held.image)?.ok_or_else(gone).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_log_that_is_too_long_becomes_the_one_before_and_its_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dns-a.log");
        bound(&log, 10).unwrap();
        let mut writer = std::fs::File::options().append(true).create(true).open(&log).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        writer.write_all(b"0123456789").unwrap();
        bound(&log, 10).unwrap();
        assert_eq!(read("dns-a.log"), "0123456789");
        writer.write_all(b"!").unwrap();
        bound(&log, 10).unwrap();
        writer.write_all(b"more").unwrap();
        assert_eq!((read("dns-a.log.1"), read("dns-a.log")), ("0123456789!".into(), "more".into()));
        writer.write_all(b"0123456789").unwrap();
        bound(&log, 10).unwrap();
        assert_eq!((read("dns-a.log.1"), read("dns-a.log")), ("more0123456789".into(), String::new()));
    }
}
