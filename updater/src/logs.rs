//! Logs of starts that failed: what was known when a trial was given up, and what a dead start left behind.
//!
//! Not here: when one is kept and where its words come from (`engine`). Rule: a few files of bounded size in the state
//! folder, each replaced in one durable step; the newest push the oldest out, and one that cannot be read is none.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use switchback_partitions::slot::Slot;

use crate::digest::Digest;
use crate::health::CheckResult;
use crate::host::bounded::read_bounded;
use crate::host::kernel::tail;
use crate::host::state_dir::{Folder, StateDir as _};
use crate::reason::Why;

/// The folder in the state folder.
pub const FOLDER: &str = "logs";
/// Most logs that are kept.
pub const LOGS_MAX: usize = 4;
/// Most bytes of one.
pub const LOG_BYTES_MAX: usize = 64 << 10;
/// Most bytes of each of its long texts, before anything has to be cut.
pub const TEXT_BYTES_MAX: usize = 16 << 10;
/// Most bytes of one check's words in a log that would be too long.
const DETAIL_BYTES_MAX: usize = 128;
/// Most checks in a log that would be too long: those that failed go first.
const CHECKS_MAX: usize = 64;

/// What is kept of one trial, or of a crash outside of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartLog {
    /// The trial's outcome, by its number in the history; none for a crash of a slot that was not on trial.
    pub outcome: Option<u64>,
    /// When it was kept, by the machine's clock.
    pub at: Timestamp,
    /// The slot that failed.
    pub slot: Slot,
    /// The release in it; empty when unknown.
    pub version: String,
    /// Its digest.
    pub digest: Option<Digest>,
    /// Why the trial ended.
    pub why: Option<Why>,
    /// The health checks, when they came to an end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckResult>,
    /// The scripts that ran after the verdict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<CheckResult>,
    /// The kernel's crash records.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub crash: String,
    /// The end of the kernel's log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// The end of systemd's journal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub journal: String,
}

impl StartLog {
    /// A log of a slot with nothing in it yet.
    pub fn blank(slot: Slot, at: Timestamp) -> StartLog {
        StartLog {
            outcome: None,
            at,
            slot,
            version: String::new(),
            digest: None,
            why: None,
            checks: Vec::new(),
            hooks: Vec::new(),
            crash: String::new(),
            kernel: String::new(),
            journal: String::new(),
        }
    }

    /// What to call it by: the version, or the beginning of the digest where that is unknown.
    pub fn name(&self) -> String {
        match (&*self.version, self.digest) {
            ("", Some(digest)) => digest.short(),
            (version, _) => version.to_owned(),
        }
    }

    /// True when this is what somebody means by a version, a digest, or the beginning of one.
    pub fn is(&self, named: &str) -> bool {
        self.version == named || self.digest.as_ref().is_some_and(|digest| digest.is_meant_by(named))
    }

    /// The bytes of its file: shortened until they fit, the oldest words first.
    fn encode(mut self) -> io::Result<Vec<u8>> {
        let mut limit = TEXT_BYTES_MAX;
        loop {
            for text in [&mut self.crash, &mut self.kernel, &mut self.journal] {
                *text = tail(text, limit).to_owned();
            }
            let bytes = serde_json::to_vec_pretty(&self)?;
            if bytes.len() <= LOG_BYTES_MAX {
                return Ok(bytes);
            }
            if limit == 0 {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the checks alone are too long"));
            }
            // Control characters take six bytes each in JSON, and checks say what they like.
            limit /= 2;
            if limit < 1024 {
                limit = 0;
                for checks in [&mut self.checks, &mut self.hooks] {
                    checks.sort_by_key(|check| !check.outcome.fails());
                    checks.truncate(CHECKS_MAX);
                    for check in checks {
                        check.name = tail(&check.name, DETAIL_BYTES_MAX).to_owned();
                        check.detail = tail(&check.detail, DETAIL_BYTES_MAX).to_owned();
                    }
                }
            }
        }
    }
}

/// Keeps a log durably: in place of the one of the same trial, else beside the others, and then without the oldest.
pub fn keep(state_dir: &Path, log: StartLog) -> io::Result<()> {
    let folder = state_dir.join(FOLDER);
    std::fs::create_dir_all(&folder)?;
    let files = files(state_dir);
    let same = |other: &StartLog| log.outcome.is_some() && other.outcome == log.outcome;
    let place = files.iter().find(|(_, other)| same(other)).map(|(path, _)| path.clone());
    // Room first: on a small partition the new one may not fit beside four others.
    if place.is_none() {
        for (path, _) in files.iter().take((files.len() + 1).saturating_sub(LOGS_MAX)) {
            std::fs::remove_file(path)?;
        }
    }
    let number = place.as_deref().and_then(number).unwrap_or_else(|| {
        let newest = files.last().and_then(|(path, _)| number(path)).unwrap_or(0);
        newest.saturating_add(1)
    });
    Folder::new(folder).replace(&format!("{number:010}.json"), &log.encode()?)
}

/// The logs that are kept, oldest first.
pub fn all(state_dir: &Path) -> Vec<StartLog> {
    files(state_dir).into_iter().map(|(_, log)| log).collect()
}

fn files(state_dir: &Path) -> Vec<(PathBuf, StartLog)> {
    let Ok(entries) = std::fs::read_dir(state_dir.join(FOLDER)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| number(path).is_some());
    paths.sort();
    let newest = paths.len().saturating_sub(LOGS_MAX);
    let read = |path: PathBuf| {
        let bytes = read_bounded(&path, LOG_BYTES_MAX as u64).ok()??;
        Some((path, serde_json::from_slice(&bytes).ok()?))
    };
    paths.into_iter().skip(newest).filter_map(read).collect()
}

/// The number in a log's file name.
fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::CheckOutcome;

    fn log(outcome: Option<u64>, version: &str) -> StartLog {
        let blank = StartLog::blank(Slot::B, Timestamp::from_second(1_700_000_000).unwrap());
        StartLog { outcome, version: version.into(), digest: Some(Digest::of(version.as_bytes())), ..blank }
    }

    fn versions(dir: &Path) -> Vec<String> {
        all(dir).into_iter().map(|log| log.version).collect()
    }

    #[test]
    fn the_newest_four_are_kept_and_a_trial_has_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(all(dir.path()), []);
        for (outcome, version) in [(Some(1), "1"), (None, "2"), (None, "3"), (Some(4), "4"), (Some(5), "5")] {
            keep(dir.path(), log(outcome, version)).unwrap();
        }
        assert_eq!(versions(dir.path()), ["2", "3", "4", "5"]);
        keep(dir.path(), StartLog { crash: "a panic".into(), ..log(Some(4), "4") }).unwrap();
        assert_eq!(versions(dir.path()), ["2", "3", "4", "5"]);
        assert_eq!(all(dir.path())[2].crash, "a panic");
        assert_eq!(std::fs::read_dir(dir.path().join(FOLDER)).unwrap().count(), LOGS_MAX);
    }

    #[test]
    fn a_log_fits_its_bound_whatever_is_in_it_and_keeps_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let check = |outcome, text: String| CheckResult {
            name: "c".into(),
            outcome,
            attempts: 1,
            millis: 1,
            detail: text,
        };
        let noise = "\u{1b}[0m\n".repeat(20_000) + "the end";
        let mut checks = vec![check(CheckOutcome::Passed, "\u{1}".repeat(4096)); 200];
        checks.push(check(CheckOutcome::Failed, "\u{1}".repeat(4000) + "why"));
        let long = StartLog { kernel: noise.clone(), journal: noise.clone(), crash: noise, ..log(None, "1") };
        keep(dir.path(), long.clone()).unwrap();
        assert!(all(dir.path())[0].kernel.ends_with("the end"));
        keep(dir.path(), StartLog { checks, ..long }).unwrap();
        let kept = all(dir.path());
        assert_eq!(kept.len(), 2, "both can be read, so both are within the bound");
        assert_eq!(kept[1].checks.len(), CHECKS_MAX);
        assert_eq!(kept[1].checks[0].outcome, CheckOutcome::Failed);
        assert!(kept[1].checks[0].detail.ends_with("why"));
    }

    #[test]
    fn a_log_is_named_by_its_version_or_its_digest_or_the_beginning_of_one() {
        let log = log(None, "1.2");
        let digest = Digest::of(b"1.2");
        let short = format!("sha256:{}…", digest.short());
        for (named, meant) in [
            ("1.2", true),
            ("1", false),
            (digest.to_string().as_str(), true),
            (&format!("@{digest}"), true),
            (&short, true),
            (&digest.short(), true),
            (&digest.short()[..5], false),
            ("sha256:000000000000", false),
        ] {
            assert_eq!(log.is(named), meant, "{named}");
        }
    }

    #[test]
    fn what_is_no_log_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        keep(dir.path(), log(Some(1), "1")).unwrap();
        std::fs::write(dir.path().join("logs/0000000002.json"), "torn").unwrap();
        std::fs::write(dir.path().join("logs/README"), "no log").unwrap();
        assert_eq!(versions(dir.path()), ["1"]);
    }
}
