//! What writing a slot did cost the last time, kept for `status`.
//!
//! Not here: what it costs now (`install`). Rule: for people and whoever collects such figures; nothing is decided by it and nothing
//! flushed for it, and a file that is lost or torn is none.

use serde::{Deserialize, Serialize};

use crate::host::state_dir::StateDir;
use crate::install::{ReleaseName, Traffic};
use crate::registry::meter::Network;

const FILE: &str = "costs.json";
const BYTES_MAX: u64 = 16 * 1024;

/// The slot that was written last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// With what.
    pub release: ReleaseName,
    /// When, by the machine's clock.
    pub at: jiff::Timestamp,
    /// Bytes fetched, copied, left alone and written, and requests.
    pub traffic: Traffic,
    /// What came over the network for it, documents included; absent where nothing does, as from a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// From the first request to the last byte read back.
    pub seconds: f64,
}

impl Costs {
    /// What was kept.
    pub fn load(folder: &dyn StateDir) -> Option<Costs> {
        serde_json::from_slice(&folder.read(FILE, BYTES_MAX).ok()??).ok()
    }

    /// Keeps it in place of the last.
    pub fn keep(&self, folder: &dyn StateDir) {
        let written = serde_json::to_vec(self).map_err(std::io::Error::from);
        if let Err(error) = written.and_then(|bytes| folder.write(FILE, &bytes)) {
            tracing::debug!(%error, "what the update cost could not be written down");
        }
    }
}
