//! What is known of a service's past: how its updates ended, what it wrote, what is not taken again.
//!
//! Not here: how a service is now (`orders::status`), sentences (`cli`). Rule: entries and lists are made where those of the OS are
//! (`engine`); what only looks changes nothing.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Serialize;
use switchback_partitions::slot::Slot;

use super::host::{Host, Member};
use super::orders::{declared, lock, os_slot, own_folder};
use super::refused::{self, Refused};
use super::set::{Set, Which};
use super::volume::Volumes;
use crate::config::Config;
use crate::config::service::Name;
use crate::engine::answers::{History, HistoryEntry, Quarantine, Quarantined};
use crate::engine::{Failure, quarantine, words};
use crate::facts::{Fact, Facts, FactsError};
use crate::host::clock::Clock;
use crate::host::kernel::tail;
use crate::host::state_dir::Folder;
use crate::lifecycle::Release;
use crate::reason::Reason;

/// The most that is shown of what one slot wrote, in bytes.
const SHOWN_BYTES_MAX: u64 = 64 << 10;

/// How the updates of a service ended.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceHistory {
    /// Oldest first, as for the OS.
    pub history: History,
    /// Volumes as an image left them that had raised their schema and then failed or was left.
    pub kept_volumes: Vec<PathBuf>,
}

/// What a service wrote.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceLogs {
    /// Its name.
    pub name: Name,
    /// One for each slot that ever wrote; who wrote last comes last.
    pub slots: Vec<SlotLog>,
}

/// What one slot wrote.
#[derive(Debug, Clone, Serialize)]
pub struct SlotLog {
    /// Which.
    pub slot: Slot,
    /// True when clients are led to it.
    pub serves: bool,
    /// What it holds now; earlier lines may be an earlier image's.
    pub release: Option<Release>,
    /// When it wrote last.
    pub written_at: jiff::Timestamp,
    /// All of it.
    pub file: PathBuf,
    /// The end of it.
    pub text: String,
}

/// `history NAME`: the newest `limit` entries.
pub fn history(config: &Config, name: &Name, limit: usize) -> Result<ServiceHistory, Failure> {
    let service = declared(config, name)?;
    let folder = own(config, name);
    let facts = Facts::read(&folder).map_err(unreadable)?;
    let volumes = Volumes::of(&config.machine.data_dir);
    let failed = service.volumes.iter().map(|volume| volumes.failed(&volume.name));
    let mut entries = words::newest(facts.history(), &[], limit);
    entries.extend(refused::load(&folder).iter().map(not_tried));
    entries.sort_by_key(|entry| entry.at);
    entries.drain(..entries.len().saturating_sub(limit));
    Ok(ServiceHistory {
        history: History { entries, records_lost: facts.known().lost },
        kept_volumes: failed.filter(|folder| folder.is_dir()).collect(),
    })
}

/// `quarantine list NAME`, and with a release `quarantine release NAME RELEASE`.
pub fn quarantine(config: &Config, name: &Name, release: Option<&str>) -> Result<Quarantine, Failure> {
    declared(config, name)?;
    let folder = own(config, name);
    let Some(asked) = release else {
        return Ok(with_refused(&folder, quarantine::answer(&Facts::read(&folder).map_err(unreadable)?)));
    };
    let _lock = lock(&Folder::new(&config.machine.state_dir))?;
    let mut facts = Facts::open(&folder).map_err(unreadable)?;
    let listed = with_refused(&folder, quarantine::answer(&facts)).quarantine;
    let released = quarantine::meant(listed, asked)?;
    if let Some(released) = &released {
        let now = Clock::now().unix_secs;
        facts.add(&Fact::Released(released.digest), now).map_err(unreadable)?;
        refused::lift(&folder, &released.digest).map_err(unreadable)?;
    }
    let left = with_refused(&folder, quarantine::answer(&facts));
    Ok(Quarantine { asked: Some(asked.to_owned()), released, ..left })
}

/// What failed its trial, and what was never tried.
fn with_refused(folder: &Folder, mut answer: Quarantine) -> Quarantine {
    let refused = refused::load(folder).into_iter().filter(|refused| refused.stands);
    for Refused { digest, version, why, .. } in refused {
        if answer.quarantine.iter().all(|known| known.digest != digest) {
            answer.quarantine.push(Quarantined { digest, version, reason: why.reason });
        }
    }
    answer
}

/// A refusal as a line of history.
fn not_tried(refused: &Refused) -> HistoryEntry {
    let Refused { at_unix_secs, digest, version, why, .. } = refused.clone();
    HistoryEntry {
        at: words::timestamp(at_unix_secs),
        what: "refused".into(),
        version,
        digest: Some(digest),
        slot: None,
        reason: Some(why.reason),
        detail: why.detail,
        log: false,
    }
}

/// `logs NAME`.
pub fn logs(config: &Config, name: &Name) -> Result<ServiceLogs, Failure> {
    let service = declared(config, name)?;
    let folder = Folder::new(&config.machine.state_dir);
    let set = Set::load(&folder, Which::Of(os_slot(config, &folder)?)).map_err(unreadable)?;
    let record = set.services.get(name);
    let host = Host::look(config).map_err(|error| Failure::before(Reason::ServiceFailed, error))?;
    let member = Member { host: &host, name, service, index: record.map_or(0, |record| record.index) };
    let mut slots = Vec::new();
    for slot in Slot::ALL {
        let file = member.log(slot);
        let Some((written_at, text)) =
            end_of(&file).map_err(|e| Failure::before(Reason::StateUnreadable, e))?
        else {
            continue;
        };
        let held = record.and_then(|record| record.held(slot));
        let serves = held.is_some() && record.is_some_and(|record| record.serving() == slot);
        slots.push(SlotLog {
            slot,
            serves,
            release: held.map(|held| held.release.clone()),
            written_at,
            file,
            text,
        });
    }
    slots.sort_by_key(|log| log.written_at);
    Ok(ServiceLogs { name: name.clone(), slots })
}

/// When a log was written to last, and its end, which may begin in the file that was full before; `None`: nobody ever wrote.
fn end_of(log: &Path) -> io::Result<Option<(jiff::Timestamp, String)>> {
    let Some((modified, now)) = end_of_file(log, SHOWN_BYTES_MAX)? else { return Ok(None) };
    let before = end_of_file(&log.with_extension("log.1"), SHOWN_BYTES_MAX - now.len() as u64)?;
    let bytes = [before.map_or_else(Vec::new, |(_, bytes)| bytes), now].concat();
    let text = String::from_utf8_lossy(&bytes);
    // One byte less than was read: a line that was cut is left out, a whole one is not.
    let shown = match bytes.len() as u64 >= SHOWN_BYTES_MAX {
        true => tail(&text, text.len() - 1),
        false => &text,
    };
    let at = jiff::Timestamp::try_from(modified).unwrap_or_default();
    Ok(Some((at, shown.to_owned())))
}

/// When a file was changed, and its last `limit` bytes; `None`: there is none.
fn end_of_file(path: &Path, limit: u64) -> io::Result<Option<(std::time::SystemTime, Vec<u8>)>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let found = file.metadata()?;
    file.seek(SeekFrom::Start(found.len().saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some((found.modified()?, bytes)))
}

fn own(config: &Config, name: &Name) -> Folder {
    own_folder(&Folder::new(&config.machine.state_dir), name)
}

fn unreadable(error: FactsError) -> Failure {
    Failure::before(error.reason(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_bounded_and_goes_on_from_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dns-a.log");
        let text = || end_of(&log).unwrap().map(|(_, text)| text);
        assert_eq!(text(), None);
        std::fs::write(&log, "new\n").unwrap();
        assert_eq!(text().unwrap(), "new\n");
        std::fs::write(dir.path().join("dns-a.log.1"), "old\n").unwrap();
        assert_eq!(text().unwrap(), "old\nnew\n");
        let long: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
        std::fs::write(&log, &long).unwrap();
        let shown = text().unwrap();
        assert!(
            shown.len() as u64 <= SHOWN_BYTES_MAX
                && shown.starts_with("line ")
                && shown.ends_with("line 19999\n")
        );
        std::fs::write(&log, [0xff; 10]).unwrap();
        assert!(text().unwrap().contains('\u{fffd}'), "what is no text is shown, too");
    }
}
