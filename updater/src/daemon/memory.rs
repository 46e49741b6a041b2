//! What the daemon has to know after it was killed: when it looked last, and that a lock server may count this machine.
//!
//! Rule: losing it costs a look too many and one question to the lock server, never a restart; so a file that cannot be read is an
//! empty one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::engine::Failure;
use crate::host::state_dir::StateDir;
use crate::reason::Reason;

const FILE: &str = "daemon.json";
const BYTES_MAX: u64 = 4096;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The last look at the source.
    pub last_check: Option<Timestamp>,
    /// Looks so far: no two waits are drawn alike.
    pub checks: u64,
    /// The last look found something to fetch, and it is not staged yet: whoever is started anew looks again at once.
    pub pending: bool,
    /// A lock server was asked for this machine's turn and was not given it back since.
    pub may_hold_lock: bool,
}

impl Default for Memory {
    /// Nothing is remembered: then a turn may be held.
    fn default() -> Memory {
        Memory { last_check: None, checks: 0, pending: false, may_hold_lock: true }
    }
}

impl Memory {
    /// What an earlier run left.
    pub fn load(folder: &dyn StateDir) -> Memory {
        let bytes = folder.read(FILE, BYTES_MAX).ok().flatten();
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Durable on return.
    pub fn store(&self, folder: &dyn StateDir) -> Result<(), Failure> {
        let bytes = serde_json::to_vec(self).map_err(|error| Failure::before(Reason::Internal, error))?;
        folder.replace(FILE, &bytes).map_err(|error| Failure::before(Reason::StateUnreadable, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::state_dir::Folder;

    #[test]
    fn what_is_lost_or_torn_is_taken_for_a_lock_that_may_be_held() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        assert_eq!(Memory::load(&folder), Memory::default());
        let memory = Memory {
            last_check: Some(Timestamp::UNIX_EPOCH),
            checks: 7,
            pending: true,
            may_hold_lock: false,
        };
        memory.store(&folder).unwrap();
        assert_eq!(Memory::load(&folder), memory);
        folder.write(FILE, b"{\"checks\":").unwrap();
        assert!(Memory::load(&folder).may_hold_lock);
    }
}
