//! Whose signatures count, and whether they ever could.
//!
//! Not here: what a slot's release was signed by (`slots`). Rule: each key file is read alone; one that is broken is
//! named beside those that are not.

use super::finding::{Finding, Group};
use super::place::Seen;
use crate::engine::{chain, source};
use crate::trust::Policy;
use crate::trust::keys::Maths;

/// Policy and keys.
pub fn findings(seen: &Seen<'_>) -> Vec<Finding> {
    let configured = seen.config.trust.policy.os.as_ref();
    let folder = seen.in_root(source::TRUST_DIR);
    let (place, paths, threshold) = match configured {
        Some(policy) => ("[trust.policy.os]".to_owned(), Ok(policy.keys.clone()), policy.threshold),
        None => (folder.display().to_string(), source::keys_in(&folder), 1),
    };
    let subject = Group::Trust.at("trust-policy", place);
    let paths = match paths {
        Ok(paths) if paths.is_empty() => {
            return vec![subject.problem(
                "there is no key: nothing can be accepted",
                "Ship the public keys as *.pub in /usr/lib/switchback/trust of the root, or name them under \
                 [trust.policy.os].",
            )];
        }
        Ok(paths) => paths,
        Err(failure) => return vec![subject.problem(failure.why.detail, "Check the folder of the keys.")],
    };
    let mut good = Vec::new();
    let mut findings = Vec::new();
    for path in paths {
        let subject = Group::Trust.at("trust-key", path.display());
        match source::key(&path) {
            Ok(key) => {
                findings.push(subject.ok(format!("{}, id {}", kind(key.maths()), key.id())));
                good.push(key);
            }
            // One key that cannot be read makes the policy unusable: a threshold must not be met by accident.
            Err(failure) => findings.push(subject.problem(
                failure.why.detail,
                "Put a PEM public key there, as `cosign public-key` or `openssl pkey -pubout` write it.",
            )),
        }
    }
    let readable = good.len();
    let policy = match Policy::new(good, threshold) {
        Ok(policy) => {
            subject.ok(format!("{threshold} of {} different keys must have signed", policy.keys().len()))
        }
        Err(error) => subject.problem(
            match readable {
                0 => "no key can be read: nothing can be accepted".to_owned(),
                _ => chain(&error),
            },
            "Correct `keys` and `threshold` under [trust.policy.os].",
        ),
    };
    findings.insert(0, policy);
    findings
}

fn kind(maths: Maths) -> &'static str {
    match maths {
        Maths::P256 => "ECDSA P-256",
        Maths::P384 => "ECDSA P-384",
        Maths::P521 => "ECDSA P-521",
        Maths::Ed25519 => "Ed25519",
        Maths::Rsa => "RSA",
    }
}
