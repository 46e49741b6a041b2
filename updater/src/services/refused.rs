//! Images of a service that were refused before they were tried: nobody trusted vouched for them, or their bytes are others.
//!
//! Not here: images that failed a trial (`facts`). Rule: a refusal is remembered, not obeyed: the same digest is judged anew at
//! every order, as it may be signed later, or come whole from another mirror, and is off the list then. The list is short, as
//! whoever may push to the repository could fill it.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::facts::FactsError;
use crate::host::state_dir::StateDir;
use crate::reason::{Reason, Why};

/// In a service's own folder.
const FILE: &str = "refused.json";
/// The newest refusals that are kept, and the bound of the file.
const KEPT: usize = 16;
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// What is kept of the words of one.
const DETAIL_BYTES_MAX: usize = 1024;

/// An image that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// When it was refused last, in seconds since 1970.
    pub at_unix_secs: u64,
    /// Which.
    pub digest: Digest,
    /// The tag that named it.
    pub version: String,
    /// Why.
    pub why: Why,
    /// False once the digest was accepted, or an operator took it off the list: then it is history alone.
    pub stands: bool,
}

/// True for reasons that say something of the image itself, not of the network or this machine.
pub fn is_the_images_fault(reason: Reason) -> bool {
    matches!(reason, Reason::SignatureRefused | Reason::CorruptBlob | Reason::FormatRefused)
}

/// What was refused, oldest first. A file that cannot be read is none: it only tells of the past.
pub fn load(folder: &dyn StateDir) -> Vec<Refused> {
    let bytes = folder.read(FILE, FILE_BYTES_MAX).ok().flatten();
    bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Puts `refused` behind the others, in the place of an earlier refusal of the same digest.
pub fn remember(folder: &dyn StateDir, mut refused: Refused) -> Result<(), FactsError> {
    let mut list = load(folder);
    list.retain(|known| known.digest != refused.digest);
    let mut end = refused.why.detail.len().min(DETAIL_BYTES_MAX);
    while !refused.why.detail.is_char_boundary(end) {
        end -= 1;
    }
    refused.why.detail.truncate(end);
    list.push(refused);
    list.drain(..list.len().saturating_sub(KEPT));
    store(folder, &list)
}

/// The digest stands on the list no more. Nothing is written where it did not.
pub fn lift(folder: &dyn StateDir, digest: &Digest) -> Result<(), FactsError> {
    let mut list = load(folder);
    let Some(known) = list.iter_mut().find(|known| known.stands && known.digest == *digest) else {
        return Ok(());
    };
    known.stands = false;
    store(folder, &list)
}

fn store(folder: &dyn StateDir, list: &[Refused]) -> Result<(), FactsError> {
    let written = serde_json::to_vec_pretty(list).map_err(std::io::Error::other);
    let written = written.and_then(|bytes| folder.make().and_then(|()| folder.replace(FILE, &bytes)));
    written.map_err(|source| FactsError::Io { doing: "writing", path: folder.path().join(FILE), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::state_dir::Folder;

    fn refused(number: u64) -> Refused {
        let why = Why::new(Reason::SignatureRefused, "ä".repeat(DETAIL_BYTES_MAX));
        let digest = Digest::of(&number.to_le_bytes());
        Refused { at_unix_secs: number, digest, version: format!("v{number}"), why, stands: true }
    }

    #[test]
    fn the_newest_refusals_are_kept_and_their_words_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        for number in 0..40 {
            remember(&folder, refused(number)).unwrap();
        }
        remember(&folder, Refused { at_unix_secs: 99, ..refused(30) }).unwrap();
        let list = load(&folder);
        assert_eq!((list.len(), list[0].at_unix_secs, list[15].at_unix_secs), (KEPT, 24, 99));
        assert!(list.iter().all(|known| known.why.detail.len() <= DETAIL_BYTES_MAX));
        assert!(std::fs::metadata(dir.path().join(FILE)).unwrap().len() < FILE_BYTES_MAX);
    }

    #[test]
    fn what_was_accepted_stays_as_history_alone_and_a_torn_list_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        remember(&folder, refused(1)).unwrap();
        lift(&folder, &refused(1).digest).unwrap();
        lift(&folder, &refused(2).digest).unwrap();
        let list = load(&folder);
        assert_eq!(list.iter().map(|known| known.stands).collect::<Vec<_>>(), [false]);
        std::fs::write(dir.path().join(FILE), "[{").unwrap();
        assert!(load(&folder).is_empty());
    }
}
