//! The state file: where the machine is in the life of an update, as JSON for people and programs.
//!
//! Not here: what must never be lost (`facts`). Rule: unreadable is missing; a newer version's file is not understood
//! and so is missing too, and every start recovers from that.

use serde::{Deserialize, Serialize};

use super::FactsError;
use crate::host::state_dir::StateDir;
use crate::lifecycle::State;

/// The file's name in the state folder.
pub const STATE_FILE: &str = "state.json";
/// The longest state file that is read, in bytes.
pub const STATE_BYTES_MAX: u64 = 64 << 10;
/// The version of the format; another one is not understood.
const SCHEMA: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Document {
    schema: u32,
    #[serde(flatten)]
    state: State,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// The state.
    Found(Box<State>),
    /// No file: a new machine, or a lost state folder.
    Missing,
    /// A file that cannot be used, and why.
    Unreadable(String),
}

impl Loaded {
    /// The state to go on from: what is missing or unreadable is the default, and the next `Started` does the rest.
    pub fn into_state(self) -> State {
        match self {
            Loaded::Found(state) => *state,
            Loaded::Missing | Loaded::Unreadable(_) => State::default(),
        }
    }
}

/// The state as the bytes of its file.
pub fn encode(state: &State) -> Vec<u8> {
    let document = Document { schema: SCHEMA, state: state.clone() };
    let mut bytes = serde_json::to_vec_pretty(&document).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// The state from the bytes of its file; the error says what is wrong.
pub fn decode(bytes: &[u8]) -> Result<State, String> {
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let Version { schema } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if schema != SCHEMA {
        return Err(format!("it has format {schema}, this updater knows {SCHEMA}"));
    }
    let document: Document = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok(document.state)
}

/// Reads the state file of `folder`.
pub fn load(folder: &dyn StateDir) -> Loaded {
    match folder.read(STATE_FILE, STATE_BYTES_MAX) {
        Ok(Some(bytes)) => {
            decode(&bytes).map_or_else(Loaded::Unreadable, |state| Loaded::Found(Box::new(state)))
        }
        Ok(None) => Loaded::Missing,
        Err(error) => Loaded::Unreadable(error.to_string()),
    }
}

/// Makes the state durable. A power cut at any instant leaves the old file or the new one.
pub fn store(folder: &dyn StateDir, state: &State) -> Result<(), FactsError> {
    let written = folder.replace(STATE_FILE, &encode(state));
    written.map_err(|source| FactsError::Io {
        doing: "writing",
        path: folder.path().join(STATE_FILE),
        source,
    })
}

#[cfg(test)]
mod tests {
    use switchback_partitions::slot::Slot;

    use super::*;
    use crate::digest::Digest;
    use crate::host::state_dir::Folder;
    use crate::lifecycle::{Goal, Moment, Phase, Purpose, Release};

    fn release() -> Release {
        Release { digest: Digest::of(b"1.1"), version: "1.1".into(), security_version: 3 }
    }

    #[test]
    fn every_phase_survives_its_file() {
        let (slot, since) = (Slot::B, Moment { boot_id: "b1".into(), uptime_secs: 7, unix_secs: 9 });
        let purpose = Purpose::Rollback { left: Some(release()) };
        for phase in [
            Phase::Idle,
            Phase::Installing { release: release(), slot, purpose: Purpose::Update, goal: Goal::Stage },
            Phase::Staged {
                release: release(),
                slot,
                purpose: purpose.clone(),
                goal: Goal::Trial,
                attempts: 1,
                not_before_unix_secs: Some(5),
            },
            Phase::Armed {
                release: release(),
                slot,
                purpose: purpose.clone(),
                attempts: 0,
                since: since.clone(),
            },
            Phase::OnTrial { release: None, slot, purpose, attempts: 2, since, way_back: true },
            Phase::RollingBack {
                release: Some(release()),
                slot,
                boot_id: "b2".into(),
                boots: 1,
                tried: true,
            },
        ] {
            let folder = tempfile::tempdir().unwrap();
            let state = State { phase, next_seq: 4, ..State::default() };
            store(&Folder::new(folder.path()), &state).unwrap();
            assert_eq!(load(&Folder::new(folder.path())), Loaded::Found(Box::new(state)));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
        }
    }

    #[test]
    fn what_cannot_be_read_is_as_good_as_missing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(&Folder::new(folder.path())), Loaded::Missing);
        let good = String::from_utf8(encode(&State::default())).unwrap();
        for (bytes, why) in [
            (String::new(), "empty: created, then the power went"),
            ("\0".repeat(300), "zeros: the file system lost the data"),
            (good[..good.len() / 2].to_owned(), "torn"),
            (good.replace("\"schema\": 1", "\"schema\": 2"), "of a newer version"),
            (good.replace("idle", "dancing"), "a phase that is unknown here"),
            ("x".repeat(STATE_BYTES_MAX as usize + 1), "endless"),
        ] {
            std::fs::write(folder.path().join(STATE_FILE), bytes).unwrap();
            let loaded = load(&Folder::new(folder.path()));
            assert!(matches!(loaded, Loaded::Unreadable(_)), "{why}: {loaded:?}");
            assert_eq!(loaded.into_state(), State::default());
        }
    }
}
