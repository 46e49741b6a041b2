//! Whose signatures are believed and how many of them are needed; and which of the signed releases this machine takes.
//!
//! Not here: signatures (`cosign`), where keys lie. Rule: a policy that would let everything pass, or nothing ever,
//! cannot be made.

use super::keys::{KeyId, PublicKey};
use super::{TrustError, Verified};
use crate::image::config::{Kind, OsConfig};

/// The most keys of one policy.
const KEYS_MAX: usize = 64;

/// Who may sign, and how many of them must have.
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

/// Refuses a signed release that is for something else: a service offered as an OS, another product of the same
/// publisher, another machine's hardware. With no `product` given any product is taken, which is for the first release
/// of a blank disk alone.
///
/// # Errors
/// [`TrustError::NotForThis`] with the field `kind`, `product` or `compatible`.
pub fn admit(
    config: &Verified<OsConfig>,
    kind: Kind,
    product: Option<&str>,
    compatible: &[String],
) -> Result<(), TrustError> {
    let refuse = |field, found: String, wanted: String| Err(TrustError::NotForThis { field, found, wanted });
    if config.kind != kind {
        return refuse(
            "kind",
            format!("{:?}", config.kind).to_lowercase(),
            format!("takes `{}`", format!("{kind:?}").to_lowercase()),
        );
    }
    if let Some(product) = product.filter(|product| *product != config.product) {
        return refuse("product", config.product.clone(), format!("takes `{product}`"));
    }
    // A release that names no hardware runs on any.
    let fits = config.compatible.is_empty() || config.compatible.iter().any(|name| compatible.contains(name));
    if !fits {
        let answers_to = match compatible {
            [] => "knows no name of its own hardware; `compatible` under [machine] gives it one".to_owned(),
            names => format!("answers to `{}`", names.join(", ")),
        };
        return refuse("compatible", config.compatible.join(", "), answers_to);
    }
    Ok(())
}

/// Refuses a signed release whose security version is below `floor`: genuine, and too old to be let back in.
///
/// # Errors
/// [`TrustError::BelowFloor`].
pub fn above_floor(config: &Verified<OsConfig>, floor: u64) -> Result<(), TrustError> {
    if config.security_version < floor {
        return Err(TrustError::BelowFloor { found: config.security_version, floor });
    }
    Ok(())
}
