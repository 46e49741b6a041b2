//! One service as it is declared: `[service.NAME]`.
//!
//! Not here: running it (`services`). Rule: nothing is granted that is not written here: no capability, no host network, no
//! writable path outside a named volume.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::TrustPolicy;
use crate::byte_size::ByteSize;

/// The longest name of a service or volume, in bytes: names of network devices and namespaces are made of it.
const NAME_BYTES_MAX: usize = 32;

/// The name of a service or of a volume: lower-case letters, digits and `-`, beginning with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;
    fn from_str(text: &str) -> Result<Name, String> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        match begins && text.bytes().all(good) && text.len() <= NAME_BYTES_MAX {
            true => Ok(Name(text.to_owned())),
            false => Err(format!(
                "`{text}` is no name: expected lower-case letters, digits and `-`, beginning with a letter, at most \
                 {NAME_BYTES_MAX} of them"
            )),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(text: String) -> Result<Name, String> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// `host[:port]/repository[:tag]` or `oci:FOLDER[:tag]`. Absent: what a release binds to the OS.
    pub image: Option<String>,
    /// Whether two of it may run at once.
    #[serde(default)]
    pub mode: Mode,
    /// What clients reach it by, on any address of this machine.
    #[serde(default)]
    pub listen: Vec<Listen>,
    /// In place of the image's own program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// Further environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// In place of the image's own user: `user`, `user:group`, by name or number.
    pub user: Option<String>,
    /// Capabilities that it has; none unless named (`NET_BIND_SERVICE`; any port may be bound without it).
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// `NAME:/PATH`: what it may write to and keep.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// The most memory that it may use; more ends it.
    #[serde(default = "memory")]
    pub memory: ByteSize,
    /// The most processes and threads.
    #[serde(default = "pids")]
    pub pids: u32,
    /// When a slot of it is well.
    #[serde(default)]
    pub probe: ServiceProbe,
    /// What becomes of it when it ends by itself.
    #[serde(default)]
    pub restart: Restart,
    /// Services that are started before it.
    #[serde(default)]
    pub after: Vec<Name>,
    /// How long a new slot must stay well while it serves, before it is confirmed.
    #[serde(default = "soak", with = "humantime_serde")]
    pub soak: Duration,
    /// How many probes in the soak may fail.
    #[serde(default)]
    pub soak_failures_max: u32,
    /// How long old connections may go on after a flip, and how long a process has to end when it is asked to.
    #[serde(default = "drain", with = "humantime_serde")]
    pub drain: Duration,
    /// Run in a slot that new flows are not led to any more, before its old ones are waited for; `drain` bounds both.
    #[serde(default)]
    pub drain_command: Vec<String>,
    /// The most bytes of its image, packed and unpacked.
    #[serde(default = "image_size_max")]
    pub image_size_max: ByteSize,
    /// Whose signatures count for it; absent: `[trust.policy.service]`.
    pub trust: Option<TrustPolicy>,
}

impl Service {
    /// The most bytes of an image whose service is not declared here yet.
    pub fn image_size_default() -> ByteSize {
        image_size_max()
    }
}

/// Whether two slots of a service may run at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The new slot starts beside the old one, and traffic is moved when it is well.
    #[default]
    BlueGreen,
    /// The old slot ends before the new one starts: for what only one may do at a time.
    Recreate,
}

/// What becomes of a service that ends by itself. After a boot it is started, whatever stands here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It is started again.
    #[default]
    Always,
    /// It is started again unless it ended with status 0.
    OnFailure,
    /// It stays as it is until the next order or boot.
    Never,
}

/// How a client reaches a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Transport {
    /// As nftables and people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

/// A port that clients use: `udp/53`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Listen {
    /// Datagrams or connections.
    pub transport: Transport,
    /// The port, outside and inside.
    pub port: u16,
}

impl TryFrom<String> for Listen {
    type Error = String;
    fn try_from(text: String) -> Result<Listen, String> {
        let wrong = || format!("`{text}` is nothing to listen on: expected `udp/PORT` or `tcp/PORT`");
        let (transport, port) = text.split_once('/').ok_or_else(wrong)?;
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return Err(wrong()),
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        Ok(Listen { transport, port })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transport.as_str(), self.port)
    }
}

/// A capability by its name without `CAP_`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Capability(String);

impl Capability {
    /// Without `CAP_`.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// With `CAP_`, as the kernel's headers and OCI runtimes have it.
    pub fn full(&self) -> String {
        format!("CAP_{}", self.0)
    }
}

impl TryFrom<String> for Capability {
    type Error = String;
    fn try_from(text: String) -> Result<Capability, String> {
        let name = text.strip_prefix("CAP_").unwrap_or(&text);
        match !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
            true => Ok(Capability(name.to_owned())),
            false => Err(format!("`{text}` is no capability such as NET_BIND_SERVICE")),
        }
    }
}

/// A named folder that outlives both slots: `NAME:/PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Volume {
    /// Its name.
    pub name: Name,
    /// Where the service sees it.
    pub path: String,
}

impl TryFrom<String> for Volume {
    type Error = String;
    fn try_from(text: String) -> Result<Volume, String> {
        let (name, path) =
            text.split_once(':').ok_or_else(|| format!("`{text}` is no volume: expected `NAME:/PATH`"))?;
        let part_is_odd = |part: &str| part.is_empty() || part == "." || part == "..";
        match path.strip_prefix('/').is_some_and(|rest| !rest.split('/').any(part_is_odd)) {
            true => Ok(Volume { name: name.parse()?, path: path.to_owned() }),
            false => {
                Err(format!("`{path}` is no place for a volume: expected a path from `/`, without `..`"))
            }
        }
    }
}

/// When a slot of a service is well: asked at its own address, by its own protocol.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceProbe {
    /// A question such as `A example.internal`: any answer without an error is right.
    pub dns: Option<DnsQuestion>,
    /// True: it gives the time by NTP and is synchronised.
    pub ntp: bool,
    /// The path of a GET request that is answered with 200.
    pub http: Option<String>,
    /// True: each `tcp` port of `listen` can be connected to.
    pub tcp: bool,
    /// A program of the image that is run in the slot and ends with status 0; the last line that it prints says why not.
    pub command: Vec<String>,
    /// The port, where it is not the protocol's own.
    pub port: Option<u16>,
    /// Between two probes.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// So many in a row make it well.
    pub passes: u32,
    /// By when it must have become well.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl ServiceProbe {
    /// True when it asks something that only a running service answers; `listen` is the service's own.
    pub fn asks_by_network(&self, listen: &[Listen]) -> bool {
        let connects = self.tcp && listen.iter().any(|listen| listen.transport == Transport::Tcp);
        self.dns.is_some() || self.ntp || self.http.is_some() || connects
    }
}

impl Default for ServiceProbe {
    fn default() -> ServiceProbe {
        ServiceProbe {
            dns: None,
            ntp: false,
            http: None,
            tcp: false,
            command: Vec::new(),
            port: None,
            every: Duration::from_secs(1),
            passes: 3,
            timeout: Duration::from_secs(20),
        }
    }
}

/// The type and name of a question.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DnsQuestion {
    /// `A`, `AAAA`, `SOA`, …
    pub kind: String,
    /// The name.
    pub name: String,
}

impl TryFrom<String> for DnsQuestion {
    type Error = String;
    fn try_from(text: String) -> Result<DnsQuestion, String> {
        match text.split_once(' ') {
            Some((kind, name)) if !kind.is_empty() && !name.is_empty() && !name.contains(' ') => {
                Ok(DnsQuestion { kind: kind.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!(
                "`{text}` is no question: expected a type and a name, as in `A example.internal`"
            )),
        }
    }
}

/// The services in an order in which each comes after those that its `after` names.
///
/// # Errors
/// The service that names an unknown one or, through others, itself; and a sentence.
pub fn in_order(services: &BTreeMap<Name, Service>) -> Result<Vec<&Name>, (&Name, String)> {
    let mut order = Vec::new();
    for name in services.keys() {
        follow(services, name, &mut Vec::new(), &mut order)?;
    }
    Ok(order)
}

/// Puts `name` behind all that it follows; `path` led here.
fn follow<'a>(
    services: &'a BTreeMap<Name, Service>,
    name: &'a Name,
    path: &mut Vec<&'a Name>,
    order: &mut Vec<&'a Name>,
) -> Result<(), (&'a Name, String)> {
    if order.contains(&name) {
        return Ok(());
    }
    if let Some(at) = path.iter().position(|one| *one == name) {
        let mut circle: Vec<&str> = path[at..].iter().map(|one| one.as_str()).collect();
        circle.push(name.as_str());
        return Err((name, format!("`after` goes in a circle: {}", circle.join(" after "))));
    }
    path.push(name);
    for earlier in services.get(name).map(|service| &service.after[..]).unwrap_or_default() {
        if !services.contains_key(earlier) {
            return Err((name, format!("`after` names `{earlier}`, which is not declared")));
        }
        follow(services, earlier, path, order)?;
    }
    path.pop();
    order.push(name);
    Ok(())
}

fn memory() -> ByteSize {
    ByteSize(256 << 20)
}

fn pids() -> u32 {
    64
}

fn soak() -> Duration {
    Duration::from_secs(30)
}

fn drain() -> Duration {
    Duration::from_secs(10)
}

fn image_size_max() -> ByteSize {
    ByteSize(2 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_gets_nothing_that_it_does_not_name() {
        let service: Service = toml::from_str("image = \"registry.example/dns:1\"").unwrap();
        assert_eq!((service.mode, service.pids, service.memory.0), (Mode::BlueGreen, 64, 256 << 20));
        assert!(service.capabilities.is_empty() && service.volumes.is_empty() && service.listen.is_empty());
        assert_eq!(toml::from_str::<Service>("mode = \"recreate\"").unwrap().image, None, "a release's");
    }

    #[test]
    fn what_is_written_wrongly_is_named() {
        for (text, expected) in [
            ("listen = [\"udp/0\"]", "`udp/0` is nothing to listen on"),
            ("listen = [\"sctp/5\"]", "`sctp/5` is nothing to listen on"),
            ("listen = [\"53\"]", "`53` is nothing to listen on"),
            ("volumes = [\"data\"]", "`data` is no volume"),
            ("volumes = [\"data:relative\"]", "`relative` is no place"),
            ("volumes = [\"data:/a/../b\"]", "`/a/../b` is no place"),
            ("volumes = [\"../x:/a\"]", "`../x` is no name"),
            ("capabilities = [\"net_admin\"]", "`net_admin` is no capability"),
            ("memory = \"much\"", "`much` is no size"),
            ("probe = { dns = \"example\" }", "`example` is no question"),
            ("privileged = true", "unknown field `privileged`"),
            ("restart = \"sometimes\"", "unknown variant `sometimes`"),
            ("after = [\"Not\"]", "`Not` is no name"),
        ] {
            let error =
                toml::from_str::<Service>(&format!("image = \"x/y\"\n{text}")).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn services_start_after_those_that_they_name() {
        let order = |after: &[(&str, &[&str])]| {
            let service = |names: &[&str]| -> Service {
                toml::from_str(&format!("image = \"x/y\"\nafter = {names:?}")).unwrap()
            };
            let services: BTreeMap<Name, Service> =
                after.iter().map(|(name, names)| (name.parse().unwrap(), service(names))).collect();
            let order = in_order(&services);
            order
                .map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
                .map_err(|(name, why)| format!("{name}: {why}"))
        };
        for (why, after, expected) in [
            ("by name", &[("a", &[][..]), ("b", &[])][..], Ok("a b")),
            ("one named", &[("a", &["b"]), ("b", &[])], Ok("b a")),
            ("a chain", &[("a", &["b"]), ("b", &["c"]), ("c", &[])], Ok("c b a")),
            ("a fork", &[("a", &["c", "b"]), ("b", &["c"]), ("c", &[])], Ok("c b a")),
            ("itself", &[("a", &["a"])], Err("a: `after` goes in a circle: a after a")),
            (
                "a circle that is entered from outside",
                &[("a", &["b"]), ("b", &["c"]), ("c", &["b"])],
                Err("b: `after` goes in a circle: b after c after b"),
            ),
            ("unknown", &[("a", &["z"])], Err("a: `after` names `z`, which is not declared")),
        ] {
            assert_eq!(order(after).as_deref().map_err(|text| &text[..]), expected, "{why}");
        }
    }

    #[test]
    fn names_are_short_and_plain() {
        for name in ["dns", "a", "ntp-2"] {
            assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
        }
        for name in ["", "2dns", "-a", "Dns", "a.b", "a/b", "..", &"a".repeat(33)] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
    }
}
