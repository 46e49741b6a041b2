//! The built-in check of a machine on which no other decides: can it leave this release again?
//!
//! Not here: the checks that an image brings (`health`). Rule: what was never there is not missed: a registry counts only
//! when this machine took a release from it before, and one that answers "there is no such image" does answer.

use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::{Engine, chain, source};
use crate::registry::reference::{Reference, Source};
use crate::registry::{self, MANIFEST_BYTES_MAX, Patience, Registry, RegistryAccess, RegistryError};

/// Which registry the last release came from: one line in the state folder.
const REACHED: &str = "registry-reached";
/// Written and removed again, to see whether that can be done.
const PROBE: &str = "can-write";
/// Bound of that file in bytes: longer than any reference.
const REACHED_BYTES_MAX: u64 = 4096;
/// How long the registry is asked again: after a start the network comes up late.
const REGISTRY_TIME: Duration = Duration::from_secs(60);
/// Between two questions.
const PAUSE: Duration = Duration::from_secs(2);

impl Engine<'_> {
    /// The whole check; over well before `deadline`, so that its own words are what is told.
    pub(super) async fn can_update_again(&self, deadline: Duration) -> Result<(), String> {
        if let Err(failure) = &self.trust {
            return Err(format!("no release could be accepted: {}", failure.why.detail));
        }
        self.can_write().map_err(|e| format!("the state folder cannot be written: {e}"))?;
        let bootloader = self.machine.bootloader().map_err(|e| chain(&e))?;
        let other = self.machine.running().map_err(|e| chain(&e))?.slot.other();
        bootloader.preflight(other, &[]).map_err(|e| chain(&e))?;
        let disk = self.machine.disk().map_err(|e| chain(&e))?;
        disk.whole().map_err(|e| format!("the disk cannot be opened: {e}"))?;
        self.registry_answers(REGISTRY_TIME.min(deadline.mul_f64(0.9))).await
    }

    /// Writes a file and takes it away again: `health` asks this too, and leaves nothing behind. Where nothing was ever
    /// changed there is no folder yet; then it is enough that it could be made.
    fn can_write(&self) -> std::io::Result<()> {
        let folder = self.machine.state_dir();
        if !folder.path().exists() {
            let above = folder.path().ancestors().find(|above| above.is_dir());
            let above = above.filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return Ok(accessat(CWD, above, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?);
        }
        folder.replace(PROBE, b"yes\n")?;
        folder.remove(PROBE)
    }

    /// Remembers that a release came from `registry`, when that is the configured one.
    pub(super) fn remember_registry(&self, registry: &dyn Registry) {
        let place = registry.place();
        if self.configured_registry().is_some_and(|(_, configured)| configured.place() == place)
            && self.reached() != Some(place.clone())
            && let Err(error) = self.machine.state_dir().replace(REACHED, format!("{place}\n").as_bytes())
        {
            tracing::warn!(%error, "that the registry was reached could not be written down");
        }
    }

    /// Passes where there is no registry, or none that ever answered this machine.
    async fn registry_answers(&self, time: Duration) -> Result<(), String> {
        let Some((reference, registry)) = self.configured_registry() else { return Ok(()) };
        if self.reached() != Some(registry.place()) {
            return Ok(());
        }
        let mut last = format!("no answer within {:.0} s", time.as_secs_f64());
        let asked = tokio::time::timeout(time, async {
            while let Err(error) = ask(&*registry, &reference).await {
                last = chain(&error);
                tokio::time::sleep(PAUSE).await;
            }
        });
        match asked.await {
            Ok(()) => Ok(()),
            Err(_) => Err(format!(
                "{} gave this machine a release before, and cannot be used now: {last}",
                registry.place()
            )),
        }
    }

    /// The configured source, unless it is a folder or cannot be opened (then the configuration is at fault, and
    /// every `check` says so).
    fn configured_registry(&self) -> Option<(Reference, Box<dyn Registry>)> {
        let reference = source::reference(self.config, None).ok()?;
        let Source::Registry { .. } = &reference.source else { return None };
        // One attempt at a time: the loop above repeats them, and knows what the last one said.
        let patience = Patience { attempts: 1, ..Patience::default() };
        let access = RegistryAccess { patience, ..source::access(self.config) };
        let registry = registry::open(&reference, &access).ok()?;
        Some((reference, registry))
    }

    fn reached(&self) -> Option<String> {
        let bytes = self.machine.state_dir().read(REACHED, REACHED_BYTES_MAX);
        Some(String::from_utf8(bytes.ok()??).ok()?.trim_end().to_owned())
    }
}

/// One question. That an image is gone is the publisher's affair, and no fault of the release on trial.
async fn ask(registry: &dyn Registry, reference: &Reference) -> Result<(), RegistryError> {
    let answer = match reference.digest() {
        Some(digest) => registry.manifest(&digest, MANIFEST_BYTES_MAX).await.map(drop),
        None => registry.resolve(reference.tag().unwrap_or("latest")).await.map(drop),
    };
    match answer {
        Err(RegistryError::Absent { .. }) => Ok(()),
        other => other,
    }
}
