//! Service images: made by `buildah` from Debian's own programs with their libraries, as the tests of services and the appliance use them.
//!
//! Not here: who signs them and where they go. Rule: an image holds the named programs, what they link to and the named files, so that
//! nothing in it is anybody's accident.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::lab::{containers, tools};

/// Programs with the Debian packages that bring them.
pub const DNSMASQ: &[(&str, &str)] = &[("dnsmasq", "dnsmasq-base")];
/// Another DNS service.
pub const UNBOUND: &[(&str, &str)] = &[("unbound", "unbound")];
/// An NTP service.
pub const CHRONY: &[(&str, &str)] = &[("chronyd", "chrony")];
/// No service at all.
pub const BUSYBOX: &[(&str, &str)] = &[("busybox", "busybox-static")];

/// unbound, answering every name below `example.internal`. It asks nobody: few ports to ask from spare it 65,000 calls for randomness at its
/// start, which took five seconds under emulation.
pub const UNBOUND_CONF: &str = "server:\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  directory: \"/\"\n  \
    use-syslog: no\n  logfile: \"\"\n  pidfile: \"\"\n  interface: 0.0.0.0\n  interface: ::0\n  \
    access-control: 0.0.0.0/0 allow\n  access-control: ::0/0 allow\n  incoming-num-tcp: 200\n  \
    outgoing-port-avoid: 0-65535\n  outgoing-port-permit: 40000-40255\n  outgoing-range: 64\n  \
    local-zone: \"example.internal.\" redirect\n  local-data: \"example.internal. A 192.0.2.3\"\n  \
    module-config: \"iterator\"\nremote-control:\n  control-enable: no\n";
/// unbound with that file at `/etc/unbound.conf`.
pub const UNBOUND_COMMAND: &[&str] = &["/usr/sbin/unbound", "-d", "-c", "/etc/unbound.conf"];

/// chrony, serving the machine's own clock.
pub const CHRONY_CONF: &str =
    "local stratum 5\nallow\nallow ::/0\ncmdport 0\npidfile /tmp/chronyd.pid\ndriftfile /tmp/drift\n";
/// chrony with that file at `/etc/chrony.conf`.
pub const CHRONY_COMMAND: &[&str] =
    &["/usr/sbin/chronyd", "-x", "-U", "-u", "service", "-d", "-f", "/etc/chrony.conf"];

/// dnsmasq, answering every name below a domain as its argument `--address=/DOMAIN/ADDRESS` says.
pub fn dnsmasq(address: &'static str) -> Vec<&'static str> {
    let mut words = vec!["/usr/sbin/dnsmasq", "-k", "--user=", "--group=", "-C", "/dev/null"];
    words.extend(["--no-resolv", "--no-hosts", "--pid-file=", "--log-facility=-", address]);
    words
}

/// An image to be made.
pub struct Recipe<'a> {
    /// Its tag.
    pub tag: &'a str,
    /// Debian's programs in it, with their libraries.
    pub programs: &'a [(&'a str, &'a str)],
    /// Further files: path and content.
    pub files: &'a [(&'a str, &'a str)],
    /// What it runs.
    pub command: &'a [&'a str],
}

impl Recipe<'_> {
    /// Makes the image and pushes it to `to`, as buildah names places; what it needs meanwhile lies below `work`. Returns its digest.
    pub fn make(&self, work: &Path, to: &str, labels: &[(&str, &str)]) -> Result<String> {
        let context = work.join(format!("context-{}", self.tag));
        let root = context.join("root");
        std::fs::create_dir_all(&root)?;
        for (program, package) in self.programs {
            copy_program(&root, program, package)?;
        }
        let users =
            [("etc/passwd", "root:x:0:0::/:\nservice:x:999:999::/:\n"), ("etc/group", "service:x:999:\n")];
        for (path, content) in users.iter().chain(self.files) {
            let to = root.join(path);
            std::fs::create_dir_all(to.parent().context("no folder")?)?;
            std::fs::write(to, content)?;
        }
        let command = serde_json::to_string(self.command)?;
        let labels: String = labels.iter().map(|(key, value)| format!("LABEL {key}={value}\n")).collect();
        let text = format!(
            "FROM scratch\nCOPY root/ /\nUSER service\nLABEL org.opencontainers.image.version={}\n{labels}CMD {command}\n",
            self.tag
        );
        std::fs::write(context.join("Containerfile"), text)?;
        let buildah = |words: &[&str]| tools::run(containers::buildah(work)?.args(words).env("HOME", work));
        buildah(&["bud", "--tag", self.tag, &context.display().to_string()])?;
        let digest = context.join("digest");
        // The lab's registry speaks plain HTTP; for a folder the word means nothing.
        let plain = "--tls-verify=false";
        buildah(&["push", plain, "--digestfile", &digest.display().to_string(), self.tag, to])?;
        let digest = std::fs::read_to_string(digest)?.trim().to_owned();
        std::fs::remove_dir_all(context)?;
        Ok(digest)
    }
}

/// Copies a program of Debian's `package` with its libraries to where they lie below `root`.
pub fn copy_program(root: &Path, program: &str, package: &str) -> Result<()> {
    let program = tools::program(program, package)?;
    for file in libraries(&program)?.into_iter().chain([program]) {
        let to = root.join(file.strip_prefix("/")?);
        std::fs::create_dir_all(to.parent().context("no folder")?)?;
        if to.is_symlink() {
            // Of a program that stands in for this one: its file is others' too.
            std::fs::remove_file(&to)?;
        }
        std::fs::copy(&file, &to).with_context(|| format!("while copying {}", file.display()))?;
    }
    Ok(())
}

/// The libraries of a program, its loader among them; none where it needs none.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let listed = Command::new(tools::program("ldd", "libc-bin")?).arg(program).output()?;
    let (said, why) = (String::from_utf8_lossy(&listed.stdout), String::from_utf8_lossy(&listed.stderr));
    let is_static = [&said, &why].iter().any(|text| text.contains("not a dynamic executable"));
    ensure!(listed.status.success() || is_static, "ldd {}: {said}{why}", program.display());
    let words = said.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(PathBuf::from).collect())
}
