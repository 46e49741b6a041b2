//! The list of releases that failed here, and an operator's word that one may be tried again.
//!
//! Not here: how a release gets on the list (`lifecycle`). Rule: only an operator takes one off it, and the history says so.

use super::answers::{Answer, Quarantine, Quarantined};
use super::{Engine, Failure};
use crate::digest::Digest;
use crate::facts::Fact;
use crate::lifecycle;
use crate::reason::{Reason, Why};

impl Engine<'_> {
    /// What is quarantined; with `release`, a version or a digest or the beginning of one, after taking that off.
    pub(super) fn quarantine(&mut self, release: Option<&str>) -> Result<Answer, Failure> {
        let mut released = None;
        if let Some(name) = release
            && let Some(digest) = self.quarantined(name)?
        {
            released = self.listed().into_iter().find(|entry| entry.digest == digest);
            let at = self.machine.clock().unix_secs;
            let added = self.facts.add(&Fact::Released(digest), at);
            added.map_err(|e| Failure::before(e.reason(), e))?;
        }
        let asked = release.map(str::to_owned);
        let (quarantine, records_lost) = (self.listed(), self.records_lost(None));
        Ok(Answer::Quarantine(Quarantine { asked, released, quarantine, records_lost }))
    }

    fn listed(&self) -> Vec<Quarantined> {
        let quarantine = &self.facts.known().quarantine;
        let entry = |(digest, entry): (&Digest, &lifecycle::Quarantined)| Quarantined {
            digest: *digest,
            version: entry.version.clone(),
            reason: entry.why.reason,
        };
        quarantine.iter().map(entry).collect()
    }

    /// The one release that `name` means; `None` when it means none: what is not on the list need not be taken off it.
    fn quarantined(&self, name: &str) -> Result<Option<Digest>, Failure> {
        let listed = self.listed();
        let by_version: Vec<_> = listed.iter().filter(|entry| entry.version == name).collect();
        let found = match by_version.is_empty() {
            true => listed.iter().filter(|entry| entry.digest.is_meant_by(name)).collect(),
            false => by_version,
        };
        match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one.digest)),
            _ => {
                let digests: Vec<String> = found.iter().map(|entry| entry.digest.to_string()).collect();
                let detail = format!("`{name}` names {} releases: {}", found.len(), digests.join(", "));
                Err(Failure::refused(Why::new(Reason::Ambiguous, detail)))
            }
        }
    }
}
