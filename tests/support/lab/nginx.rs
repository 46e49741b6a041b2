//! A real nginx as a caching mirror of a registry, by the very file that the documents show, on a free port of the host's
//! loopback, for as long as the value lives.
//!
//! Rule: only places and addresses of that file are other than documented.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::tools;

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running nginx, plain HTTP.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    port: u16,
}

impl Nginx {
    /// A caching mirror of the registry at `host`; it keeps its cache and its log in `folder`.
    pub fn before(host: &str, folder: &Path) -> Result<Nginx> {
        let server = tools::program("nginx", "nginx")?;
        std::fs::create_dir_all(folder)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = folder.join("nginx.conf");
        std::fs::write(&config, settings(host, folder, port)?)?;
        let log = folder.join("log");
        let out = File::create(&log)?;
        let mut command = tools::dies_with_us(&server)?;
        command.arg("-p").arg(folder).arg("-c").arg(&config).arg("-e").arg(folder.join("errors"));
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("while starting {command:?}"))?;
        let mut nginx = Nginx { child, port };
        nginx.wait(&log)?;
        Ok(nginx)
    }

    /// As the host reaches it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn wait(&mut self, log: &Path) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            ensure!(self.child.try_wait()?.is_none(), "nginx ended:\n{said}");
            ensure!(Instant::now() < deadline, "nginx does not listen after {START_TIMEOUT:?}:\n{said}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The documented file, with the places of this test. One process: killed, it leaves no workers behind.
fn settings(host: &str, folder: &Path, port: u16) -> Result<String> {
    let documented = std::fs::read_to_string(tools::repository().join("docs/src/nginx-mirror.conf"))?;
    let folder = folder.display().to_string();
    let mut mirror = documented;
    for (from, to) in [
        ("/var/cache/nginx/os", format!("{folder}/cache")),
        ("listen 5000", format!("listen 127.0.0.1:{port}")),
        ("registry.lan:5000", host.to_owned()),
    ] {
        ensure!(mirror.contains(from), "the documented nginx-mirror.conf has no `{from}` any more");
        mirror = mirror.replace(from, &to);
    }
    // Where Debian's nginx would write else, which takes root.
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
        .collect();
    Ok(format!(
        "daemon off;\nmaster_process off;\npid {folder}/pid;\nevents {{}}\nhttp {{\naccess_log {folder}/access;\n\
         {temporary}{mirror}\n}}\n"
    ))
}
