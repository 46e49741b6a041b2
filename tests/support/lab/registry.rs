//! A real `docker-registry` on a free port of the host's loopback, for as long as the value lives.
//!
//! Rule: the port is this server's own: a server that could not bind it is an error, not somebody else's answer.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::tools;

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A log that did not grow for so long is complete.
const SETTLE_TIME: Duration = Duration::from_millis(300);

/// A running registry, plain HTTP.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
    log: PathBuf,
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
        let mut registry = Registry { child, port, log };
        registry.wait()?;
        Ok(registry)
    }

    /// How often it was asked for a path of which this is a part, and how many bytes of body it sent for that: by its access
    /// log, so nobody's count but its own.
    pub fn served(&self, part: &str) -> Result<(u64, u64)> {
        let log = self.settled_log()?;
        // `HOST - - [TIME] "GET PATH HTTP/1.1" STATUS BYTES "REFERRER" "AGENT"`
        let asked = log.lines().filter_map(|line| line.split_once("\"GET ")).filter_map(|(_, rest)| {
            let mut words = rest.split_whitespace();
            let path = words.next().filter(|path| path.contains(part))?;
            let bytes: u64 = words.nth(2)?.parse().ok()?;
            Some((path, bytes))
        });
        Ok(asked.fold((0, 0), |(count, sum), (_, bytes)| (count + 1, sum + bytes)))
    }

    /// As the host reaches it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its port, the same for the host at 127.0.0.1 and for a guest at 10.0.2.2.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The log once nothing is added to it any more: an answer is written down after the client has all of it.
    fn settled_log(&self) -> Result<String> {
        let mut log = std::fs::read_to_string(&self.log)?;
        loop {
            std::thread::sleep(SETTLE_TIME);
            let later = std::fs::read_to_string(&self.log)?;
            if later.len() == log.len() {
                return Ok(log);
            }
            log = later;
        }
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
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
