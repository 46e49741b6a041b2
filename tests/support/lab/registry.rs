//! A real `docker-registry` on a free port of the host's loopback, for as long as the value lives.
//!
//! Rule: the port is this server's own: a server that could not bind it is an error, not somebody else's answer.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::tools;

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running registry, plain HTTP.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    /// Starts one that keeps its blobs and its log in `folder`.
    pub fn start(folder: &Path) -> Result<Registry> {
        Registry::start_with(folder, "")
    }

    /// The same with more lines of configuration: they follow those of `http:`.
    pub fn start_with(folder: &Path, more: &str) -> Result<Registry> {
        let server = tools::program("docker-registry", "docker-registry")?;
        std::fs::create_dir_all(folder)?;
        // Free now; if somebody takes it before the server does, the server ends and `wait` says so.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = folder.join("config.yml");
        let blobs = folder.join("blobs");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    \
                 enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{more}",
                blobs.display()
            ),
        )?;
        let log = folder.join("log");
        let out = File::create(&log)?;
        let mut command = tools::dies_with_us(&server)?;
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("while starting {command:?}"))?;
        let mut registry = Registry { child, port };
        registry.wait(&log)?;
        Ok(registry)
    }

    /// As the host reaches it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its port, the same for the host at 127.0.0.1 and for a guest at 10.0.2.2.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn wait(&mut self, log: &Path) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            ensure!(self.child.try_wait()?.is_none(), "the registry ended:\n{said}");
            if said.contains("listening on 127.0.0.1:") {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the registry does not listen after {START_TIMEOUT:?}:\n{said}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
