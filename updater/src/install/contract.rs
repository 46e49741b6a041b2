//! The promise of a root that it can judge itself and update again: one file in it.
//!
//! Not here: who insists on it (`publish`), who only asks (`doctor`). Rule: one path, one number, for both.

use serde::Deserialize;

/// Where a root says that it knows the updater.
pub const CONTRACT_PATH: &str = "usr/lib/switchback/contract";
/// The contract that this updater keeps.
pub const CONTRACT: u64 = 1;

/// The file as TOML.
#[derive(Debug, Deserialize)]
pub struct ContractFile {
    /// The contract that the root was made for.
    pub contract: u64,
}
