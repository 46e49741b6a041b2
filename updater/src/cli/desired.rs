//! `apply`: what a machine should be, from a file.
//!
//! Not here: how it gets there; that is `update`, with the same refusals. Rule: what is there already is not done again,
//! so that a second run of the same file changes nothing.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::args::release_name;
use crate::config::service::Name;
use crate::engine::Failure;
use crate::engine::answers::{Reach, Request};
use crate::host::bounded::read_bounded;
use crate::reason::{Reason, Why};

/// Longer files are a mistake.
const DESIRED_BYTES_MAX: u64 = 64 * 1024;

/// The desired state.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Desired {
    /// What should run, as `update --to` names it.
    release: Option<String>,
    /// Restart into the trial.
    #[serde(default)]
    reboot: bool,
    /// What services should serve, as `update SERVICE --to` names it.
    #[serde(default)]
    service: BTreeMap<Name, String>,
}

/// What a file asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Of the OS, with the services that its release binds.
    pub os: Option<Request>,
    /// Of services by themselves.
    pub services: BTreeMap<Name, String>,
}

/// What the file at `path` asks for.
pub(super) fn read(path: &Path, dry_run: bool) -> Result<Wanted, Failure> {
    let invalid = |detail: String| {
        let detail = format!("while reading {}: {detail}", path.display());
        Failure::refused(Why::new(Reason::ConfigInvalid, detail))
    };
    let bytes = read_bounded(path, DESIRED_BYTES_MAX).map_err(|e| invalid(e.to_string()))?;
    let bytes = bytes.ok_or_else(|| invalid("it does not exist".into()))?;
    let text = std::str::from_utf8(&bytes).map_err(|e| invalid(e.to_string()))?;
    let desired: Desired = toml::from_str(text).map_err(|error| {
        let line = 1 + error.span().map_or(0, |span| text[..span.start].matches('\n').count());
        invalid(format!("line {line}: {}", error.message()))
    })?;
    let named = |what: String, text: &str| release_name(text).map_err(|e| invalid(format!("`{what}`: {e}")));
    let to = desired.release.as_deref().map(|text| named("release".into(), text)).transpose()?;
    for (name, image) in &desired.service {
        named(format!("service.{name}"), image)?;
    }
    if to.is_none() && desired.service.is_empty() {
        return Err(invalid("it names neither a `release` nor a `service`".into()));
    }
    let reach = match (dry_run, desired.reboot) {
        (true, _) => Reach::DryRun,
        (false, true) => Reach::Reboot,
        (false, false) => Reach::Arm,
    };
    let os = to.map(|to| Request::Update { to: Some(to), reach });
    Ok(Wanted { os, services: desired.service })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_a_release_and_a_mistake_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("desired.toml");
        let ask = |text: &str, dry_run| {
            std::fs::write(&path, text).unwrap();
            read(&path, dry_run)
        };
        for (text, dry_run, reach) in [
            ("release = \"1.2\"", false, Reach::Arm),
            ("release = \"1.2\"\nreboot = true", false, Reach::Reboot),
            ("release = \"1.2\"\nreboot = true", true, Reach::DryRun),
        ] {
            assert_eq!(
                ask(text, dry_run).unwrap(),
                Wanted {
                    os: Some(Request::Update { to: Some("1.2".into()), reach }),
                    services: BTreeMap::new()
                },
                "{text}"
            );
        }
        let alone = ask("[service]\ndns = \"2\"", false).unwrap();
        assert_eq!((alone.os, alone.services.len()), (None, 1));
        for (text, says) in [
            ("", "neither a `release` nor a `service`"),
            ("[service]\ndns = \"@sha256:12\"", "`service.dns`"),
            ("[service]\nDNS = \"2\"", "is no name"),
            ("release = \"1.2\"\nrebot = true", "line 2"),
            ("release = \"1.2\"\nrebot = true", "unknown field `rebot`"),
            ("release = \"@sha256:12\"", "`release`"),
            ("release = 1.2", "line 1"),
        ] {
            let refused = ask(text, false).unwrap_err();
            assert_eq!(refused.why.reason, Reason::ConfigInvalid, "{text}");
            assert!(refused.why.detail.contains(says), "{text}: {}", refused.why.detail);
        }
        assert!(
            read(Path::new("/nowhere/desired.toml"), false)
                .unwrap_err()
                .why
                .detail
                .contains("does not exist")
        );
    }
}
