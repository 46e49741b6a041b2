//! The list of releases that failed here, of the OS or of a service, and an operator's word that one may be tried again.
//!
//! Not here: how a release gets on the list (`lifecycle`). Rule: only an operator takes one off it, and the history says so.

use super::answers::{Answer, Quarantine, Quarantined};
use super::{Engine, Failure};
use crate::digest::Digest;
use crate::facts::{Fact, Facts};
use crate::lifecycle;
use crate::reason::{Reason, Why};

impl Engine<'_> {
    /// What is quarantined; with `release`, a version or a digest or the beginning of one, after taking that off.
    pub(super) fn quarantine(&mut self, asked: Option<&str>) -> Result<Answer, Failure> {
        let at = self.machine.clock().unix_secs;
        let released = asked.map(|name| release(&mut self.facts, name, at)).transpose()?.flatten();
        let (asked, records_lost) = (asked.map(str::to_owned), self.records_lost(None));
        Ok(Answer::Quarantine(Quarantine { asked, released, records_lost, ..answer(&self.facts) }))
    }
}

/// What is on the list.
pub(crate) fn answer(facts: &Facts) -> Quarantine {
    Quarantine { asked: None, released: None, quarantine: listed(facts), records_lost: facts.known().lost }
}

/// Takes the release that `name` means off the list; none, when it means none: what is not on the list need not be taken off it.
fn release(facts: &mut Facts, name: &str, at: u64) -> Result<Option<Quarantined>, Failure> {
    let Some(released) = meant(listed(facts), name)? else { return Ok(None) };
    let added = facts.add(&Fact::Released(released.digest), at);
    added.map_err(|e| Failure::before(e.reason(), e))?;
    Ok(Some(released))
}

pub(super) fn listed(facts: &Facts) -> Vec<Quarantined> {
    let entry = |(digest, entry): (&Digest, &lifecycle::Quarantined)| Quarantined {
        digest: *digest,
        version: entry.version.clone(),
        reason: entry.why.reason,
    };
    facts.known().quarantine.iter().map(entry).collect()
}

/// The entry that `name` means, a version or a digest or the beginning of one.
pub(crate) fn meant(listed: Vec<Quarantined>, name: &str) -> Result<Option<Quarantined>, Failure> {
    let is_named = listed.iter().any(|entry| entry.version == name);
    let is_meant = |entry: &Quarantined| match is_named {
        true => entry.version == name,
        false => entry.digest.is_meant_by(name),
    };
    let mut found: Vec<Quarantined> = listed.into_iter().filter(is_meant).collect();
    if found.len() > 1 {
        let digests: Vec<String> = found.iter().map(|entry| entry.digest.to_string()).collect();
        let detail = format!("`{name}` names {} releases: {}", found.len(), digests.join(", "));
        return Err(Failure::refused(Why::new(Reason::Ambiguous, detail)));
    }
    Ok(found.pop())
}
