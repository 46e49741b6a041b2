//! The program, its settings, and what the root says of itself.
//!
//! Not here: keys (`trust`), the source (`source`). Rule: an error in a file is told with file and line.

use std::path::Path;

use super::finding::{Finding, Group};
use super::place::Seen;
use crate::config::{CONFIG_PATH, ConfigError};
use crate::engine::chain;
use crate::health::{self, HEALTH_DIR};
use crate::host::bounded::read_bounded;
use crate::install::contract::{CONTRACT, CONTRACT_PATH, ContractFile};
use crate::reason::Reason;

/// The longest contract file that is read, in bytes.
const CONTRACT_BYTES_MAX: u64 = 4096;

/// The configuration file: there, and without an error.
pub fn settings(named: Option<&Path>, loaded: Result<(), &ConfigError>) -> Vec<Finding> {
    let path = named.unwrap_or(Path::new(CONFIG_PATH));
    let subject = Group::Program.at("configuration", path.display());
    vec![match loaded {
        Ok(()) if path.exists() => subject.ok("read, and without an error"),
        Ok(()) => subject.note("there is no such file; the defaults hold"),
        Err(error) => {
            let remedy = format!("{} What follows is about the defaults.", Reason::ConfigInvalid.remedy());
            subject.problem(chain(error), remedy)
        }
    }]
}

/// Program, privilege, contract, health checks.
pub fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    let updater = Group::Program.at("updater", "this program");
    let mut findings = vec![updater.ok(concat!("switchback ", env!("CARGO_PKG_VERSION")))];
    if !seen.is_image() && !nix::unistd::geteuid().is_root() {
        let subject = Group::Program.at("privilege", "the user of this process");
        findings.push(subject.note("not root: what only root may read is told as missing"));
    }
    findings.push(contract(seen));
    findings.push(health_checks(seen));
    findings
}

fn contract(seen: &Seen<'_>) -> Finding {
    let path = seen.in_root(CONTRACT_PATH);
    let subject = Group::Program.at("contract", path.display());
    let remedy = format!(
        "Put the line `contract = {CONTRACT}` there once `switchback boot-check` runs at each start."
    );
    let text = match read_bounded(&path, CONTRACT_BYTES_MAX) {
        Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(None) => {
            return subject.warning("nothing says that this root can judge itself and update again", remedy);
        }
        Err(error) => return subject.warning(error.to_string(), remedy),
    };
    match toml::from_str::<ContractFile>(&text) {
        Ok(file) if file.contract == CONTRACT => {
            subject.ok(format!("contract {CONTRACT}, which this updater keeps"))
        }
        Ok(file) => {
            let found = format!("contract {}; this updater keeps {CONTRACT}", file.contract);
            subject.warning(found, "Use the updater that the root was made for.")
        }
        Err(error) => subject.warning(error.message().to_owned(), remedy),
    }
}

fn health_checks(seen: &Seen<'_>) -> Finding {
    let folder = seen.in_root(HEALTH_DIR);
    let subject = Group::Program.at("health-checks", folder.display());
    match health::checks_of(seen.config) {
        Ok(checks) if checks.is_empty() => subject.note(
            "no check, here or in the configuration: a trial is asked only whether it could update again",
        ),
        Ok(checks) => {
            let names: Vec<&str> = checks.iter().map(|check| check.name.as_str()).collect();
            subject.ok(format!("with those of the configuration: {}", names.join(", ")))
        }
        Err(error) => subject.problem(chain(&error), "Correct the line; until then every trial fails."),
    }
}
