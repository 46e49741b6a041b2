//! Could this machine be updated, and would it come back? Everything that an update relies on, looked at one by one.
//!
//! Not here: repairing anything, sentences for a screen (`cli::doctor`). Rule: only reads: no lock, no folder, no mount,
//! no write; and each part is looked at on its own, so that what one cannot tell hides nothing of the others.

mod boot;
mod clock;
mod esp;
pub mod finding;
mod hang;
mod place;
mod program;
mod services;
mod slots;
mod source;
mod state;
mod systemd;
mod trust;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use self::finding::{Finding, Group, Level, Report};
pub use self::place::Place;
use self::place::Seen;
use crate::config::Config;

/// Looks at everything. `config` is the configuration file when one is named.
pub fn examine(place: &Place, config: Option<&Path>) -> Report {
    let loaded = match config {
        Some(path) => Config::load(path),
        None => Config::load_default(),
    };
    let mut findings = program::settings(config, loaded.as_ref().map(drop));
    // What a file with an error would have said is unknown; the rest of the machine is there all the same.
    let config = loaded.unwrap_or_default();
    let seen = Seen::look(place, &config);
    let parts: [fn(&Seen<'_>) -> Vec<Finding>; 11] = [
        program::findings,
        slots::findings,
        boot::findings,
        esp::findings,
        state::findings,
        hang::findings,
        systemd::findings,
        trust::findings,
        source::findings,
        clock::findings,
        services::findings,
    ];
    findings.extend(parts.into_iter().flat_map(|part| part(&seen)));
    Report::of(findings)
}
