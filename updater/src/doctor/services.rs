//! What services need of a machine: an OCI runtime, what leads clients to them, a word on whose images are taken.
//!
//! Not here: how services are (`services::orders::status`). Rule: a machine without services is not asked.

use super::finding::{Finding, Group};
use super::place::Seen;
use crate::config::Config;
use crate::engine::chain;
use crate::file;
use crate::services::host::Host;

/// What leads clients to a slot, with the packages that bring it on Debian.
const PROGRAMS: [(&str, &str); 3] = [("nft", "nftables"), ("ip", "iproute2"), ("conntrack", "conntrack")];

/// Nothing where no service is declared.
pub fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    if seen.config.service.is_empty() {
        return Vec::new();
    }
    let subject = Group::Services.at("oci-runtime", "what runs containers");
    let remedy = "Install crun or runc, or name one: `runtime` under [machine].";
    let runtime = match Host::look(seen.config) {
        Ok(host) if host.runtime_program().is_file() => {
            subject.ok(host.runtime_program().display().to_string())
        }
        Ok(host) => subject.problem(format!("{} is not there", host.runtime_program().display()), remedy),
        Err(error) => subject.problem(chain(&error), remedy),
    };
    let programs = PROGRAMS.map(|(name, package)| {
        let subject = Group::Services.at("service-network", name);
        match file::program(name) {
            Some(path) => subject.ok(path.display().to_string()),
            None => {
                subject.problem("not installed: no service can be started", format!("Install {package}."))
            }
        }
    });
    [vec![runtime], programs.to_vec(), vec![trust(seen.config)]].concat()
}

/// A service is updated by itself only when somebody may sign for it; with a release, the release's signature counts.
fn trust(config: &Config) -> Finding {
    let subject = Group::Services.at("service-trust", "[trust.policy.service]");
    let unsigned = config.service.iter().filter(|(_, service)| service.trust.is_none());
    let names: Vec<&str> = unsigned.map(|(name, _)| name.as_str()).collect();
    match config.trust.policy.service.is_some() || names.is_empty() {
        true => subject.ok("names whose images are taken"),
        false => subject.note(format!("no key: {} can come with a release only", names.join(", "))),
    }
}
