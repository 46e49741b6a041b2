//! What the tests of the registry client share: contents, clients that give up early, bytes read to their end.
//!
//! Not here: servers (`faults`, `lab::registry`, `lab::nginx`).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use switchback::digest::Digest;
use switchback::registry::http::HttpRegistry;
use switchback::registry::meter::{Limits, Meter};
use switchback::registry::{Descriptor, Patience, Registry, RegistryAccess, RegistryError, describe};

use crate::faults::FaultServer;

/// Bytes in which every place differs from the ones around it.
pub fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// What a manifest would say of it.
pub fn blob(content: &[u8]) -> Descriptor {
    describe("application/octet-stream", Digest::of(content), content.len() as u64)
}

/// Gives up early, so that a test of giving up is short.
pub fn hasty() -> Patience {
    Patience {
        connect: Duration::from_secs(2),
        silence: Duration::from_millis(300),
        pace_window: Duration::from_millis(500),
        pace_bytes: 10_000,
        attempts: 4,
        first_delay: Duration::from_millis(10),
        longest_delay: Duration::from_millis(40),
        longest_asked: Duration::from_secs(300),
    }
}

/// Hasty, in the clear with `hosts`, held to `limits`.
pub fn access(hosts: &[&str], limits: Limits) -> RegistryAccess {
    RegistryAccess {
        plain_http: hosts.iter().map(|host| (*host).to_owned()).collect(),
        patience: hasty(),
        meter: Meter::new(limits),
        ..RegistryAccess::default()
    }
}

/// The repository `os` of the first server; the others may be spoken to as well.
pub fn client(servers: &[&FaultServer], auth_file: Option<&Path>) -> HttpRegistry {
    let hosts: Vec<&str> = servers.iter().map(|server| server.host()).collect();
    let access = RegistryAccess { auth_file: auth_file.map(Into::into), ..access(&hosts, Limits::default()) };
    HttpRegistry::new(servers[0].host(), "os", access).unwrap()
}

/// All bytes of a range.
pub async fn read(at: &dyn Registry, blob: &Descriptor, range: Range<u64>) -> Result<Vec<u8>, RegistryError> {
    let mut stream = at.blob_range(blob, range).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

/// A file with the credentials of `host`: [`PASSWORD`].
pub fn auth_file(folder: &Path, host: &str) -> PathBuf {
    let file = folder.join("config.json");
    // `dXNlcjpzZWNyZXQ=` is `user:secret`.
    let auths = serde_json::json!({"auths": {host: {"auth": "dXNlcjpzZWNyZXQ="}}});
    std::fs::write(&file, auths.to_string()).unwrap();
    file
}

/// What proves them.
pub const PASSWORD: &str = "Basic dXNlcjpzZWNyZXQ=";
