//! One health check as it is configured.
//!
//! Not here: running it (`health`). Rule: a key that the check's kind does not read is an error, not a silent wish.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// A health check: what is probed, how long one attempt may take, how often it is repeated.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Raw")]
pub struct Check {
    /// Name for people; unique.
    pub name: String,
    /// What is probed.
    pub probe: Probe,
    /// Longest time of one attempt.
    pub timeout: Duration,
    /// Attempts after the first that failed.
    pub retries: u32,
    /// Pause between two attempts.
    pub interval: Duration,
    /// After it passed: how long it must go on passing (probed again every `interval`).
    pub soak: Duration,
}

/// What a check probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A program that exits with 0.
    Command {
        /// Program and arguments; a configured string runs as `/bin/sh -c STRING`.
        argv: Vec<String>,
        /// Working folder.
        cwd: Option<PathBuf>,
        /// Further environment.
        env: BTreeMap<String, String>,
    },
    /// A GET request with an expected answer.
    Http {
        /// `http://` or `https://`.
        url: String,
        /// The expected status.
        status: u16,
    },
    /// A TCP connection can be opened.
    Tcp {
        /// `host:port`.
        address: String,
    },
    /// `systemctl is-active UNIT` says so.
    SystemdUnit {
        /// The unit's full name.
        unit: String,
    },
    /// A file beneath the root exists.
    File {
        /// The file.
        path: PathBuf,
        /// What it must be or hold.
        expect: Expect,
    },
}

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// It exists.
    Exists,
    /// It holds this text somewhere in its first mebibyte.
    Contains(String),
}

/// As written: every key of every kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    kind: Kind,
    command: Option<Command>,
    cwd: Option<PathBuf>,
    env: Option<BTreeMap<String, String>>,
    url: Option<String>,
    status: Option<u16>,
    address: Option<String>,
    unit: Option<String>,
    path: Option<PathBuf>,
    contains: Option<String>,
    #[serde(default = "ten_secs", with = "humantime_serde")]
    timeout: Duration,
    #[serde(default)]
    retries: u32,
    #[serde(default = "two_secs", with = "humantime_serde")]
    interval: Duration,
    #[serde(default, with = "humantime_serde")]
    soak: Duration,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Command,
    Http,
    Tcp,
    SystemdUnit,
    File,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string for the shell or a list of program and arguments")]
enum Command {
    Shell(String),
    Argv(Vec<String>),
}

fn ten_secs() -> Duration {
    Duration::from_secs(10)
}

fn two_secs() -> Duration {
    Duration::from_secs(2)
}

impl Raw {
    /// The keys present that belong to one kind only, with that kind.
    fn present(&self) -> Vec<(&'static str, Kind)> {
        [
            ("command", self.command.is_some(), Kind::Command),
            ("cwd", self.cwd.is_some(), Kind::Command),
            ("env", self.env.is_some(), Kind::Command),
            ("url", self.url.is_some(), Kind::Http),
            ("status", self.status.is_some(), Kind::Http),
            ("address", self.address.is_some(), Kind::Tcp),
            ("unit", self.unit.is_some(), Kind::SystemdUnit),
            ("path", self.path.is_some(), Kind::File),
            ("contains", self.contains.is_some(), Kind::File),
        ]
        .into_iter()
        .filter_map(|(key, present, kind)| present.then_some((key, kind)))
        .collect()
    }

    fn probe(self) -> Result<Probe, String> {
        fn needed<T>(value: Option<T>, key: &str) -> Result<T, String> {
            value.ok_or_else(|| format!("missing key `{key}`"))
        }
        Ok(match self.kind {
            Kind::Command => Probe::Command {
                argv: match needed(self.command, "command")? {
                    Command::Shell(text) => vec!["/bin/sh".into(), "-c".into(), text],
                    Command::Argv(argv) if argv.is_empty() => return Err("`command` is empty".into()),
                    Command::Argv(argv) => argv,
                },
                cwd: self.cwd,
                env: self.env.unwrap_or_default(),
            },
            Kind::Http => Probe::Http { url: needed(self.url, "url")?, status: self.status.unwrap_or(200) },
            Kind::Tcp => Probe::Tcp { address: needed(self.address, "address")? },
            Kind::SystemdUnit => Probe::SystemdUnit { unit: needed(self.unit, "unit")? },
            Kind::File => Probe::File {
                path: needed(self.path, "path")?,
                expect: self.contains.map_or(Expect::Exists, Expect::Contains),
            },
        })
    }
}

impl TryFrom<Raw> for Check {
    type Error = String;
    fn try_from(raw: Raw) -> Result<Self, String> {
        let name = raw.name.clone();
        let of_check = |what: String| format!("check `{name}`: {what}");
        if name.is_empty() {
            return Err("a check needs a `name` that is not empty".into());
        }
        if let Some((key, _)) = raw.present().into_iter().find(|(_, kind)| *kind != raw.kind) {
            return Err(of_check(format!("`{key}` does not belong to this kind")));
        }
        if raw.timeout.is_zero() {
            return Err(of_check("`timeout` must be longer than 0s".into()));
        }
        let Raw { timeout, retries, interval, soak, .. } = raw;
        let probe = raw.probe().map_err(of_check)?;
        if matches!(&probe, Probe::Http { url, .. } if !url.starts_with("http://") && !url.starts_with("https://"))
        {
            return Err(of_check("`url` must begin with http:// or https://".into()));
        }
        Ok(Check { name: name.clone(), probe, timeout, retries, interval, soak })
    }
}
