//! Where releases come from and whose signatures are believed, from configuration.
//!
//! Not here: fetching, verifying. Rule: no key, no policy; no policy, no release.

use std::path::{Path, PathBuf};

use super::Failure;
use crate::config::Config;
use crate::host::bounded::read_bounded;
use crate::reason::{Reason, Why};
use crate::registry::meter::{Limits, Meter};
use crate::registry::reference::{Reference, Version};
use crate::registry::{self, Registry, RegistryAccess};
use crate::trust::Policy;
use crate::trust::keys::PublicKey;

/// Keys that an image brings, beneath its root.
pub(crate) const TRUST_DIR: &str = "usr/lib/switchback/trust";
/// Bound of one key file in bytes.
const KEY_BYTES_MAX: u64 = 64 * 1024;
/// The most keys read from a folder.
const KEYS_MAX: usize = 64;

/// The trust policy for OS images: `[trust.policy.os]`, or the keys that the running image brings.
pub fn policy(config: &Config, root: &Path) -> Result<Policy, Failure> {
    let (keys, threshold) = match &config.trust.policy.os {
        Some(policy) => (policy.keys.clone(), policy.threshold),
        None => (keys_in(&root.join(TRUST_DIR))?, 1),
    };
    policy_of(&keys, threshold)
}

/// A policy of these key files.
pub fn policy_of(keys: &[PathBuf], threshold: usize) -> Result<Policy, Failure> {
    let keys = keys.iter().map(|path| key(path)).collect::<Result<Vec<_>, _>>()?;
    Policy::new(keys, threshold).map_err(|e| Failure::before(Reason::NoPolicy, e))
}

/// One public key.
pub(crate) fn key(path: &Path) -> Result<PublicKey, Failure> {
    let failed = |detail: String| {
        Failure::refused(Why::new(
            Reason::NoPolicy,
            format!("while reading the key {}: {detail}", path.display()),
        ))
    };
    let pem = read_bounded(path, KEY_BYTES_MAX).map_err(|e| failed(e.to_string()))?;
    let pem = pem.ok_or_else(|| failed("it does not exist".into()))?;
    PublicKey::from_pem(&pem).map_err(|e| failed(e.to_string()))
}

/// The key files of a folder.
pub(crate) fn keys_in(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Failure::before(Reason::NoPolicy, e))?,
    };
    let mut keys: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    keys.retain(|path| path.extension().is_some_and(|extension| extension == "pub"));
    keys.sort();
    keys.truncate(KEYS_MAX);
    Ok(keys)
}

/// What an order or the configuration names: `to` may be a tag, `@digest`, or a whole reference.
pub fn reference(config: &Config, to: Option<&str>) -> Result<Reference, Failure> {
    let invalid = |detail: String| Failure::refused(Why::new(Reason::ConfigInvalid, detail));
    let configured = config.source.image.as_deref().map(str::parse::<Reference>).transpose();
    named(configured.map_err(|e| invalid(e.to_string()))?, to)
}

/// The configured reference, another version of it, or another reference.
pub fn named(configured: Option<Reference>, to: Option<&str>) -> Result<Reference, Failure> {
    let invalid = |detail: String| Failure::refused(Why::new(Reason::ConfigInvalid, detail));
    match (to, configured) {
        (None, Some(configured)) => Ok(configured),
        (None, None) => {
            Err(invalid("no source is configured: set `image` under [source], or say --to".into()))
        }
        (Some(to), configured) => match (part(to), configured) {
            (Some(version), Some(configured)) => Ok(configured.with(version)),
            (Some(_), None) => Err(invalid(format!("`{to}` names a version, and no source is configured"))),
            (None, _) => to.parse::<Reference>().map_err(|e| invalid(e.to_string())),
        },
    }
}

/// A bare tag or digest, as opposed to a whole reference.
fn part(to: &str) -> Option<Version> {
    if let Some(digest) = to.strip_prefix('@').or_else(|| to.starts_with("sha256:").then_some(to)) {
        return digest.parse().ok().map(Version::Digest);
    }
    (!to.contains(['/', ':'])).then(|| Version::Tag(to.to_string()))
}

/// How registries are reached, from configuration; with a meter of its own, so one access is one bill.
pub fn access(config: &Config) -> RegistryAccess {
    let limits = Limits {
        bytes_per_sec: config.source.bandwidth.map(|pace| pace.0),
        budget_bytes: config.source.budget.map(|budget| budget.0),
    };
    RegistryAccess {
        meter: Meter::new(limits),
        plain_http: config.source.plain_http.clone(),
        ca_file: config.source.ca_file.clone(),
        auth_file: config.source.auth_file.clone(),
        ..RegistryAccess::default()
    }
}

/// Opens the place that `reference` names.
pub fn open(reference: &Reference, access: &RegistryAccess) -> Result<Box<dyn Registry>, Failure> {
    registry::open(reference, access).map_err(|e| Failure::before(crate::install::registry_reason(&e), e))
}

/// The same, with the configured mirrors before it where it is the configured repository.
pub fn open_mirrored(
    config: &Config,
    reference: &Reference,
    access: &RegistryAccess,
) -> Result<Box<dyn Registry>, Failure> {
    let opened = registry::open_mirrored(reference, &mirrors(config, reference)?, access);
    opened.map_err(|e| Failure::before(crate::install::registry_reason(&e), e))
}

/// The mirrors of a repository: none unless it is the configured one, since others do not lie there.
pub fn mirrors(config: &Config, reference: &Reference) -> Result<Vec<Reference>, Failure> {
    let configured = config.source.image.as_deref().and_then(|image| image.parse::<Reference>().ok());
    if configured.is_none_or(|configured| configured.source != reference.source) {
        return Ok(Vec::new());
    }
    config.source.mirrors.iter().map(|text| mirror(text)).collect()
}

fn mirror(text: &str) -> Result<Reference, Failure> {
    let invalid = |detail: String| Failure::refused(Why::new(Reason::ConfigInvalid, detail));
    let mirror: Reference = text
        .parse()
        .map_err(|e| invalid(format!("`mirrors` under [source]: {}", crate::engine::chain(&e))))?;
    if mirror.version.is_some() {
        return Err(invalid(format!(
            "`mirrors` under [source]: `{text}` names an image; a mirror is a repository, without tag or digest"
        )));
    }
    Ok(mirror)
}

/// The digest that a reference stands for now; asked once, used ever after.
pub async fn resolve(
    registry: &dyn Registry,
    reference: &Reference,
) -> Result<crate::digest::Digest, Failure> {
    match reference.digest() {
        Some(digest) => Ok(digest),
        None => {
            let tag = reference.tag().unwrap_or("latest");
            let resolved = registry.resolve(tag).await;
            resolved.map_err(|e| Failure::before(crate::install::registry_reason(&e), e))
        }
    }
}
