//! Which keys are trusted for the OS image, how many of them must have signed, and which release this machine takes.
//!
//! Not here: signatures (`cosign`), where keys lie. Rule: a policy that would let everything pass, or nothing ever,
//! cannot be made.

use super::TrustError;
use super::keys::{KeyId, PublicKey};

/// The most keys of one policy.
const KEYS_MAX: usize = 64;

/// Who may sign the OS image, and what it has to be.
#[derive(Debug, Clone)]
pub struct Policy {
    keys: Vec<PublicKey>,
    threshold: usize,
}

impl Policy {
    /// A policy of these keys, of which `threshold` different ones must have signed. A key given twice is one key.
    ///
    /// # Errors
    /// [`TrustError::Policy`] when there is no key, or when the threshold is zero or more than there are keys.
    pub fn new(keys: Vec<PublicKey>, threshold: usize) -> Result<Policy, TrustError> {
        let mut distinct: Vec<PublicKey> = Vec::new();
        for key in keys {
            if !distinct.contains(&key) {
                distinct.push(key);
            }
        }
        let refuse = |why: String| Err(TrustError::Policy(why));
        match distinct.len() {
            0 => refuse("it has no key; name at least one public key".into()),
            count if count > KEYS_MAX => refuse(format!("it has {count} keys, at most {KEYS_MAX} are taken")),
            _ if threshold == 0 => refuse("its threshold is 0, which would let unsigned images pass".into()),
            count if threshold > count => {
                refuse(format!("its threshold is {threshold}, and it has {count} different key(s)"))
            }
            _ => Ok(Policy { keys: distinct, threshold }),
        }
    }

    /// The trusted keys, each once.
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    /// How many different keys must have signed; at least 1.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// The ids of the trusted keys.
    pub fn key_ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.keys.iter().map(PublicKey::id)
    }
}
