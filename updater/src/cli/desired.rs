//! `apply`: what a machine should be, from a file.
//!
//! Not here: how it gets there; that is `update`, with the same refusals. Rule: what is there already is not done again,
//! so that a second run of the same file changes nothing.

use std::path::Path;

use serde::Deserialize;

use super::args::release_name;
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
    release: String,
    /// Restart into the trial.
    #[serde(default)]
    reboot: bool,
}

/// What the file at `path` asks for.
pub(super) fn request(path: &Path, dry_run: bool) -> Result<Request, Failure> {
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
    let to = release_name(&desired.release).map_err(|e| invalid(format!("`release`: {e}")))?;
    let reach = match (dry_run, desired.reboot) {
        (true, _) => Reach::DryRun,
        (false, true) => Reach::Reboot,
        (false, false) => Reach::Arm,
    };
    Ok(Request::Update { to: Some(to), reach })
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
            request(&path, dry_run)
        };
        for (text, dry_run, reach) in [
            ("release = \"1.2\"", false, Reach::Arm),
            ("release = \"1.2\"\nreboot = true", false, Reach::Reboot),
            ("release = \"1.2\"\nreboot = true", true, Reach::DryRun),
        ] {
            assert_eq!(
                ask(text, dry_run).unwrap(),
                Request::Update { to: Some("1.2".into()), reach },
                "{text}"
            );
        }
        for (text, says) in [
            ("", "missing field `release`"),
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
            request(Path::new("/nowhere/desired.toml"), false)
                .unwrap_err()
                .why
                .detail
                .contains("does not exist")
        );
    }
}
