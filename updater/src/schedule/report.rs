//! What a machine that acts by itself is doing, as it writes it down for whoever asks.
//!
//! Not here: the file (`daemon` writes it, `engine` reads it for `status`). Rule: names never change their meaning; the sentences are
//! for people.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Block, Gate};

/// The bound of the file in bytes.
pub const BYTES_MAX: u64 = 64 * 1024;

/// What it is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// When this was written.
    pub at: Timestamp,
    /// When the source is looked at next.
    pub next_check: Timestamp,
    /// What the source offered last, and what is to be done with it.
    pub offer: Option<Offer>,
    /// Whether it may be fetched and written now.
    pub download: GateReport,
    /// Whether the machine may restart into it now.
    pub reboot: GateReport,
    /// What went wrong in the last turn, in a sentence.
    pub trouble: Option<String>,
}

/// A release that the source offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// What it calls itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its digest.
    pub digest: String,
    /// True when the machine would move to it.
    pub available: bool,
    /// Why not, in a sentence; empty when it would.
    pub detail: String,
}

/// A gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateReport {
    /// True when nothing blocks.
    pub open: bool,
    /// All that blocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked_by: Vec<BlockReport>,
}

/// Something that blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockReport {
    /// Its stable name.
    pub name: String,
    /// The moment from which it blocks no more, where that is known.
    pub until: Option<Timestamp>,
    /// For people.
    pub detail: String,
}

impl From<&Gate> for GateReport {
    /// A lock that is still to be asked for blocks nothing yet.
    fn from(gate: &Gate) -> GateReport {
        let blocked_by: Vec<BlockReport> = gate.blocks().iter().map(BlockReport::from).collect();
        GateReport { open: blocked_by.is_empty(), blocked_by }
    }
}

impl From<&Block> for BlockReport {
    fn from(block: &Block) -> BlockReport {
        BlockReport { name: block.name().to_owned(), until: block.until, detail: block.to_string() }
    }
}
