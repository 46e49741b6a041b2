//! A machine of its own for services: network, mounts and process numbers apart from the host's, a client on a cable, signed
//! images run by `runc`.
//!
//! Not here: the images (`service_image`), what is asked of it (`tests/services.rs`). Rule: it ends with the test, however that ends, and the host's own network
//! is never touched.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::tools;
use crate::machine::Answer;
pub use crate::service_image::Recipe;

/// The machine's and the client's addresses on the cable between them.
pub const MACHINE: &str = "10.99.0.1";
/// The machine's other address.
pub const MACHINE_6: &str = "fd99::1";

/// Makes the inside of the machine, says so, and lives as long as its standard input: it is process 1 there, and buries the dead.
const INSIDE: &str = r#"
set -e
mount --make-rprivate /
mkdir -p "$1/cgroup"
mount --rbind /sys/fs/cgroup "$1/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$1/cgroup" /sys/fs/cgroup
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
ip link set lo up
ip netns add client
ip link add up0 type veth peer name eth0 netns client
ip address add 10.99.0.1/24 dev up0
ip address add fd99::1/64 dev up0 nodad
ip link set up0 up
ip -n client address add 10.99.0.2/24 dev eth0
ip -n client address add fd99::2/64 dev eth0 nodad
ip -n client link set eth0 up
ip -n client link set lo up
echo ready
while read -r -t 1 _ || [ $? -gt 128 ]; do :; done
"#;

/// The machine.
pub struct ServiceLab {
    folder: tempfile::TempDir,
    inside: Child,
    pid: u32,
    switchback: PathBuf,
    /// What stands in the configuration beside the machine's own settings.
    pub services: String,
}

impl ServiceLab {
    /// A machine without services.
    pub fn new() -> Result<ServiceLab> {
        ensure!(nix::unistd::geteuid().is_root(), "namespaces and containers need root");
        let folder = tempfile::Builder::new().prefix("switchback-services-").tempdir()?;
        let mut command = tools::dies_with_us(&tools::program("unshare", "util-linux")?)?;
        command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["bash", "-c", INSIDE, "inside"]).arg(folder.path());
        let mut inside = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = String::new();
        let output = inside.stdout.take().context("no output")?;
        BufReader::new(output).read_line(&mut said)?;
        ensure!(said.trim() == "ready", "the machine was not made: {said}");
        let children = format!("/proc/{0}/task/{0}/children", inside.id());
        let pid =
            std::fs::read_to_string(children)?.split_whitespace().next().context("no inside")?.parse()?;
        let lab =
            ServiceLab { folder, inside, pid, switchback: tools::switchback()?, services: String::new() };
        lab.author(&["keygen", lab.text("os").as_str()])?;
        lab.author(&["keygen", lab.text("other").as_str()])?;
        Ok(lab)
    }

    /// A path in the machine's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The reference of an image by its tag.
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.text("images"))
    }

    fn author(&self, words: &[&str]) -> Result<String> {
        tools::run(Command::new(&self.switchback).arg("image").args(words))
    }

    /// `image sign` with the machine's key, run inside it: for what lies in a registry there.
    pub fn signing(&self, reference: &str) -> Result<Command> {
        let mut command = self.inside(false, &self.switchback)?;
        command.args(["image", "sign", reference, "--key", &self.text("os.key")]);
        Ok(command)
    }

    /// Makes an image and leaves it unsigned.
    pub fn cook(&self, recipe: &Recipe<'_>) -> Result<()> {
        self.cook_labelled(recipe, &[])
    }

    /// The same with further labels.
    pub fn cook_labelled(&self, recipe: &Recipe<'_>, labels: &[(&str, &str)]) -> Result<()> {
        recipe.make(self.folder.path(), &self.reference(recipe.tag), labels).map(drop)
    }

    /// Signs an image with the machine's key, or with another's.
    pub fn sign(&self, tag: &str, key: &str) -> Result<()> {
        self.author(&["sign", &self.reference(tag), "--key", &self.text(&format!("{key}.key"))]).map(drop)
    }

    /// Makes an image and signs it.
    pub fn publish(&self, recipe: &Recipe<'_>) -> Result<()> {
        self.cook(recipe)?;
        self.sign(recipe.tag, "os")
    }

    /// Something on the machine, or on the client.
    pub fn inside(&self, on_client: bool, program: &Path) -> Result<Command> {
        let mut command = tools::dies_with_us(&tools::program("nsenter", "util-linux")?)?;
        command.args(["--target", &self.pid.to_string(), "--net", "--mount", "--pid"]);
        if on_client {
            command.args(["ip", "netns", "exec", "client"]);
        }
        command.arg(program);
        Ok(command)
    }

    /// The updater on the machine.
    pub fn switchback(&self, words: &[&str]) -> Result<Command> {
        let config = format!(
            "[machine]\nstate_dir = \"state\"\ndata_dir = \"data\"\nrun_dir = \"run\"\nruntime = \"{}\"\n\
             [trust.policy.service]\nkeys = [\"os.pub\"]\n{}",
            tools::program("runc", "runc")?.display(),
            self.services
        );
        // In one step: a daemon that is just starting must not read half of it, and look after nothing.
        std::fs::write(self.path("config.new"), config)?;
        std::fs::rename(self.path("config.new"), self.path("config.toml"))?;
        let mut command = self.inside(false, &self.switchback)?;
        command.args(["--json", "--progress", "none", "--config"]).arg(self.path("config.toml")).args(words);
        Ok(command)
    }

    /// Asks it, and takes its answer apart.
    pub fn ask(&self, words: &[&str]) -> Result<Answer> {
        Answer::of(&self.switchback(words)?.stdin(Stdio::null()).output()?)
    }

    /// What switching it off and on does: every process is gone, the network is as at first, and nothing is left in `run`.
    pub fn power_cycle(&self) -> Result<()> {
        let bash = tools::program("bash", "bash")?;
        // The first process of the machine is not reached by it, nor is this shell.
        let script = "kill -9 -1; for name in $(ip netns list | cut -d' ' -f1 | grep ^switchback-); do ip netns delete $name; done; \
                      nft delete table inet switchback 2>/dev/null; \
                      find /sys/fs/cgroup -depth -type d -path '*/switchback/*' -exec rmdir {} + 2>/dev/null; rm -rf \"$1\"";
        tools::run(self.inside(false, &bash)?.args(["-c", script, "off"]).arg(self.path("run"))).map(drop)
    }

    /// How a service is.
    pub fn status(&self, name: &str) -> Result<Value> {
        let answer = self.ask(&["status", name])?;
        ensure!(answer.code == 0, "{}{}", answer.said, answer.told);
        Ok(answer.said["services"][0].clone())
    }

    /// The process of a slot, as the machine counts.
    pub fn pid_of(&self, name: &str, slot: usize) -> Result<Option<i64>> {
        Ok(self.status(name)?["slots"][slot]["pid"].as_i64())
    }

    /// A load, begun: from the client on the cable, or from the machine itself.
    pub fn load(&self, from_client: bool, words: &[&str]) -> Result<Load> {
        let mut command = self.inside(from_client, &load_program()?)?;
        let child = command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        Ok(Load(child))
    }
}

impl Drop for ServiceLab {
    fn drop(&mut self) {
        let ended = self.inside.kill().and_then(|()| self.inside.wait());
        if let Err(error) = ended {
            eprintln!("the machine for services could not be ended: {error}");
        }
    }
}

fn load_program() -> Result<PathBuf> {
    let load = tools::switchback()?.with_file_name("load");
    ensure!(load.is_file(), "{} is not built: cargo build -p switchback-tests --bins", load.display());
    Ok(load)
}

/// A load under way.
pub struct Load(Child);

impl Load {
    /// A load from this host, begun.
    pub fn begin(words: &[String]) -> Result<Load> {
        let mut command = tools::dies_with_us(&load_program()?)?;
        Ok(Load(command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
    }

    /// Waits for its end; what became of each kind of question.
    pub fn reports(self) -> Result<Vec<Value>> {
        let output = self.0.wait_with_output()?;
        ensure!(output.status.success(), "the load ended with {}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}
