//! One probe, once: a program, a request, a connection, a unit, a file.
//!
//! Not here: time and repetition. Rule: a failure is one sentence that names what was found and what was expected;
//! a probe may be dropped at any moment and leaves nothing running.

use std::error::Error;
use std::io::Read;
use std::path::Path;

use crate::config::{Expect, Probe};

use super::{Context, command};

/// Most bytes of a file that are searched for a text.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Probes once.
pub(super) async fn probe(probe: &Probe, context: &Context) -> Result<(), String> {
    match probe {
        Probe::Command { argv, cwd, env } => command::run(argv, cwd.as_deref(), env, context).await,
        Probe::Http { url, status } => http(url, *status).await,
        Probe::Tcp { address } => tcp(address).await,
        Probe::SystemdUnit { unit } => systemd_unit(unit, context).await,
        Probe::File { path, expect } => file(path, expect, &context.root),
    }
}

/// Neither proxies nor redirects: the answer must be this machine's own.
async fn http(url: &str, expected: u16) -> Result<(), String> {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build();
    let client = client.map_err(|error| whole(&error))?;
    let response = client.get(url).send().await.map_err(|error| whole(&error))?;
    match response.status().as_u16() {
        status if status == expected => Ok(()),
        status => Err(format!("{url} answers {status}, expected {expected}")),
    }
}

async fn tcp(address: &str) -> Result<(), String> {
    let connected = tokio::net::TcpStream::connect(address).await;
    connected.map(drop).map_err(|error| format!("{address}: {error}"))
}

async fn systemd_unit(unit: &str, context: &Context) -> Result<(), String> {
    let argv = ["systemctl", "is-active", "--", unit].map(String::from);
    let result = command::run(&argv, None, &Default::default(), context).await;
    result.map_err(|error| format!("{unit} is not active: {error}"))
}

fn file(path: &Path, expect: &Expect, root: &Path) -> Result<(), String> {
    let path = root.join(path.strip_prefix("/").unwrap_or(path));
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    match expect {
        Expect::Exists => std::fs::metadata(&path).map(drop).map_err(failed),
        Expect::Contains(text) => {
            let mut bytes = Vec::new();
            let file = std::fs::File::open(&path).map_err(failed)?;
            file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
            match String::from_utf8_lossy(&bytes).contains(text) {
                true => Ok(()),
                false => Err(format!("{} does not contain `{text}`", path.display())),
            }
        }
    }
}

/// An error with its sources, in one line: the first alone often says only "error sending request".
fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
