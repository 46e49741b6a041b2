//! A network of its own for each slot, and the one map that says which slot clients reach.
//!
//! Not here: when to move traffic. Rule: traffic moves by one nftables transaction that changes the map's entries, so that at
//! every instant each new flow finds exactly one slot; flows that are under way stay where connection tracking has them. A hand-over
//! of the listening socket (`SO_REUSEPORT`) would lose the datagrams that wait in the one that is closed.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use switchback_partitions::slot::Slot;

use crate::config::service::{Listen, Transport};

/// The addresses of all slots: two blocks of four of each for a service. Private (RFC 1918) and unique local (RFC 4193).
const NET_4: [u8; 2] = [10, 213];
const NET_6: [u16; 3] = [0xfd5b, 0x7769, 0x7463];
/// The machine's own table.
const TABLE: &str = "switchback";
/// The maps, for IPv4 and IPv6: transport and port → address.
const MAPS: [&str; 2] = ["to4", "to6"];
/// The machine's ends of all virtual cables begin with it; `units/10-switchback-cables.network` says so, too.
pub const CABLE: &str = "sb";
/// The link-local addresses of a cable's ends. Made by the kernel, one is on probation for a second or two (RFC 4862, 5.4), and until then
/// the machine does not ask who has a slot's IPv6 address: a slot that is led to earlier lost the first questions by IPv6.
const LINK_ENDS: [&str; 2] = ["fe80::1", "fe80::2"];
/// How long after its last packet a flow of datagrams is over, in seconds.
const UDP_SECS: u32 = 5;
/// Where `ip netns` keeps names.
const NAMESPACES: &str = "/run/netns";

/// Why traffic could not be led.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A program is missing, or cannot be run.
    #[error("while running {program}; install {package}")]
    Program {
        /// Which.
        program: &'static str,
        /// What brings it.
        package: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// It refused.
    #[error("while {doing}: {program} says: {said}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// The program.
        program: &'static str,
        /// Its words.
        said: String,
    },
    /// A switch of the kernel's network.
    #[error("while switching on {path}")]
    Switch {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

/// Where one slot of one service is; `index` numbers the services of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The service's number.
    pub index: u8,
    /// Which slot.
    pub slot: Slot,
}

impl Place {
    /// The slot's addresses, IPv4 and IPv6.
    pub fn addresses(self) -> [IpAddr; 2] {
        self.ends(2)
    }

    /// The machine's end of the cable.
    fn gateways(self) -> [IpAddr; 2] {
        self.ends(1)
    }

    fn ends(self, end: u8) -> [IpAddr; 2] {
        let block = 4 * u8::from(self.slot == Slot::B);
        let [a, b] = NET_4;
        let [x, y, z] = NET_6;
        let last = u16::from(block + end);
        [
            Ipv4Addr::new(a, b, self.index, block + end).into(),
            Ipv6Addr::new(x, y, z, u16::from(self.index), 0, 0, 0, last).into(),
        ]
    }

    fn namespace(self) -> String {
        format!("{TABLE}-{}-{}", self.index, self.slot)
    }

    /// The namespace as a file, for an OCI runtime.
    pub fn path(self) -> PathBuf {
        PathBuf::from(NAMESPACES).join(self.namespace())
    }

    fn cable(self) -> String {
        format!("{CABLE}{}{}", self.index, self.slot)
    }
}

/// Makes table, maps and chains where they are missing, and lets the kernel pass traffic on. Entries of the maps stay.
pub fn prepare() -> Result<(), NetworkError> {
    for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        switch_on(name)?;
    }
    let [a, b] = NET_4;
    let [x, y, z] = NET_6;
    let [to4, to6] = MAPS;
    let lead = |chain: &str| {
        let rule = |family: &str, map: &str| {
            format!(
                "add rule inet {TABLE} {chain} fib daddr type local dnat {family} to meta l4proto . th dport map @{map}\n"
            )
        };
        rule("ip", to4) + &rule("ip6", to6)
    };
    let script = format!(
        "add table inet {TABLE}\n\
         add map inet {TABLE} {to4} {{ type inet_proto . inet_service : ipv4_addr; }}\n\
         add map inet {TABLE} {to6} {{ type inet_proto . inet_service : ipv6_addr; }}\n\
         add chain inet {TABLE} remote {{ type nat hook prerouting priority -100; }}\n\
         add chain inet {TABLE} local {{ type nat hook output priority -100; }}\n\
         add chain inet {TABLE} source {{ type nat hook postrouting priority 100; }}\n\
         flush chain inet {TABLE} remote\n\
         flush chain inet {TABLE} local\n\
         flush chain inet {TABLE} source\n\
         {}{}\
         add rule inet {TABLE} source oifname \"{CABLE}*\" ip saddr 127.0.0.0/8 masquerade\n\
         add rule inet {TABLE} source oifname \"{CABLE}*\" ip6 saddr ::1 masquerade\n\
         add rule inet {TABLE} source oifname != \"{CABLE}*\" ip saddr {a}.{b}.0.0/16 masquerade\n\
         add rule inet {TABLE} source oifname != \"{CABLE}*\" ip6 saddr {x:x}:{y:x}:{z:x}::/48 masquerade\n",
        lead("remote"),
        lead("local"),
    );
    nft("making the table", &script)?;
    // A kernel without it waits as long for the end of a flow as for any other.
    if let Err(error) = nft("shortening the memory of datagrams", &brief()) {
        tracing::debug!(%error, "flows of datagrams end late");
    }
    Ok(())
}

/// A question by datagram and its answer are a flow that the kernel remembers for half a minute or two. With this it is
/// over soon after its last packet: an old slot can end when it has answered everything.
fn brief() -> String {
    let mut script = format!(
        "add chain inet {TABLE} brief {{ type filter hook postrouting priority 150; }}\n\
         flush chain inet {TABLE} brief\n"
    );
    for (family, short) in [("ipv4", "ip"), ("ipv6", "ip6")] {
        script.push_str(&format!(
            "add ct timeout inet {TABLE} {family} {{ protocol udp; l3proto {short}; \
             policy = {{ unreplied : {UDP_SECS}, replied : {UDP_SECS} }}; }}\n\
             add rule inet {TABLE} brief oifname \"{CABLE}*\" meta nfproto {family} meta l4proto udp \
             ct timeout set \"{family}\"\n"
        ));
    }
    script
}

/// Gives a slot a network of its own: a namespace and a cable to it. One that is there is kept.
pub fn attach(place: Place) -> Result<(), NetworkError> {
    let (namespace, cable) = (place.namespace(), place.cable());
    if place.path().exists() && PathBuf::from("/sys/class/net").join(&cable).exists() {
        return Ok(());
    }
    detach(place)?;
    let [host4, host6] = place.gateways();
    let [own4, own6] = place.addresses();
    let doing = "making a network for a slot";
    let [near, far] = LINK_ENDS;
    ip(doing, &["netns", "add", &namespace], "")?;
    let outside = format!(
        "link add {cable} type veth peer name eth0 netns {namespace}\n\
         address add {host4}/30 dev {cable}\n\
         address add {host6}/126 dev {cable} nodad\n\
         link set {cable} addrgenmode none\n\
         address add {near}/64 dev {cable} nodad\n\
         link set {cable} up\n"
    );
    ip(doing, &["-batch", "-"], &outside)?;
    let inside = format!(
        "link set lo up\n\
         address add {own4}/30 dev eth0\n\
         address add {own6}/126 dev eth0 nodad\n\
         link set eth0 addrgenmode none\n\
         address add {far}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {host4}\n\
         -6 route add default via {host6}\n"
    );
    let (inside4, inside6): (Vec<&str>, Vec<&str>) =
        inside.lines().partition(|line| !line.starts_with("-6 "));
    ip(doing, &["-n", &namespace, "-batch", "-"], &(inside4.join("\n") + "\n"))?;
    for line in inside6 {
        let words: Vec<&str> = line.split(' ').collect();
        ip(doing, &[&["-n", &namespace][..], &words].concat(), "")?;
    }
    // A client on the machine itself may ask 127.0.0.1: its datagrams leave by the cable with that source until they are masked.
    switch_on(&format!("ipv4/conf/{cable}/route_localnet"))
}

/// Takes a slot's network away. None is no error.
pub fn detach(place: Place) -> Result<(), NetworkError> {
    if place.path().exists() {
        ip("removing a slot's network", &["netns", "delete", &place.namespace()], "")?;
    }
    // The kernel takes the cable with the namespace, a little later: a new one of that name must not meet the old one.
    let cable = place.cable();
    if PathBuf::from("/sys/class/net").join(&cable).exists() {
        let gone = ip("removing a slot's network", &["link", "delete", &cable], "");
        if PathBuf::from("/sys/class/net").join(&cable).exists() {
            gone?;
        }
    }
    Ok(())
}

/// Leads new flows of these ports to a slot, or nowhere, in one transaction. Flows that are under way stay where they are.
pub fn lead(listen: &[Listen], to: Option<Place>) -> Result<(), NetworkError> {
    let mut script = String::new();
    for (family, map) in MAPS.iter().enumerate() {
        let entries = entries(map)?;
        for Listen { transport, port } in listen {
            let key = format!("{} . {port}", transport.as_str());
            if entries.contains_key(&(*transport, *port)) {
                script.push_str(&format!("delete element inet {TABLE} {map} {{ {key} }}\n"));
            }
            if let Some(place) = to {
                let address = place.addresses()[family];
                script.push_str(&format!("add element inet {TABLE} {map} {{ {key} : {address} }}\n"));
            }
        }
    }
    match script.is_empty() {
        true => Ok(()),
        false => nft("leading traffic to a slot", &script).map(drop),
    }
}

/// Where new flows of a port are led now; `None`: nowhere.
pub fn leads_to(listen: Listen) -> Result<Option<IpAddr>, NetworkError> {
    Ok(entries(MAPS[0])?.get(&(listen.transport, listen.port)).copied())
}

/// Forgets the flows to a slot that are under way: the next packet of each is a new flow.
pub fn forget_flows(place: Place) -> Result<(), NetworkError> {
    for address in place.addresses() {
        let address = address.to_string();
        // Exit code 1 means that there was none.
        let output = command("conntrack", "conntrack").args(["--delete", "--reply-src", &address]);
        output.run("")?;
    }
    Ok(())
}

/// How many flows to a slot are under way.
pub fn flows(place: Place) -> Result<usize, NetworkError> {
    let mut count = 0;
    for address in place.addresses() {
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        let address = address.to_string();
        let listed = command("conntrack", "conntrack");
        let listed = listed.args(["--dump", "--family", family, "--reply-src", &address]).run("")?;
        count += String::from_utf8_lossy(&listed.stdout).lines().filter(|line| !is_over(line)).count();
    }
    Ok(count)
}

/// A connection that both sides have closed, or one has broken off, is remembered for two minutes more: nobody waits for that.
fn is_over(flow: &str) -> bool {
    flow.starts_with("tcp") && flow.split_whitespace().any(|word| matches!(word, "TIME_WAIT" | "CLOSE"))
}

type Entries = BTreeMap<(Transport, u16), IpAddr>;

fn entries(map: &str) -> Result<Entries, NetworkError> {
    let doing = "reading where traffic is led";
    let output = command("nft", "nftables").args(["--json", "list", "map", "inet", TABLE, map]).run("")?;
    if !output.status.success() {
        return Err(refused(doing, "nft", &output));
    }
    let broken = || NetworkError::Refused { doing, program: "nft", said: "an answer that is no map".into() };
    let listed: Value = serde_json::from_slice(&output.stdout).map_err(|_| broken())?;
    let maps = listed["nftables"].as_array().ok_or_else(broken)?;
    let map = maps.iter().find_map(|part| part.get("map")).ok_or_else(broken)?;
    let elements = map["elem"].as_array().map(Vec::as_slice).unwrap_or_default();
    elements.iter().map(|element| entry(element).ok_or_else(broken)).collect()
}

/// `[{"concat": ["udp", 53]}, "10.213.0.2"]`
fn entry(element: &Value) -> Option<((Transport, u16), IpAddr)> {
    let key = &element[0]["concat"];
    let transport = match (key[0].as_str(), key[0].as_u64()) {
        (Some("tcp"), _) | (_, Some(6)) => Transport::Tcp,
        (Some("udp"), _) | (_, Some(17)) => Transport::Udp,
        _ => return None,
    };
    Some(((transport, u16::try_from(key[1].as_u64()?).ok()?), element[1].as_str()?.parse().ok()?))
}

fn nft(doing: &'static str, script: &str) -> Result<Output, NetworkError> {
    let output = command("nft", "nftables").args(["--file", "-"]).run(script)?;
    if output.status.success() { Ok(output) } else { Err(refused(doing, "nft", &output)) }
}

fn ip(doing: &'static str, words: &[&str], input: &str) -> Result<Output, NetworkError> {
    let output = command("ip", "iproute2").args(words).run(input)?;
    if output.status.success() { Ok(output) } else { Err(refused(doing, "ip", &output)) }
}

fn refused(doing: &'static str, program: &'static str, output: &Output) -> NetworkError {
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    NetworkError::Refused { doing, program, said }
}

fn switch_on(name: &str) -> Result<(), NetworkError> {
    let path = PathBuf::from("/proc/sys/net").join(name);
    // Written only where it is off: a machine that is set up already may have it read-only.
    let is_on = std::fs::read_to_string(&path).is_ok_and(|text| text.trim() == "1");
    let written = if is_on { Ok(()) } else { std::fs::write(&path, "1") };
    written.map_err(|source| NetworkError::Switch { path, source })
}

struct Program {
    name: &'static str,
    package: &'static str,
    command: Command,
}

fn command(name: &'static str, package: &'static str) -> Program {
    Program { name, package, command: Command::new(name) }
}

impl Program {
    fn args<'a>(
        mut self,
        words: impl IntoIterator<Item = &'a (impl AsRef<std::ffi::OsStr> + ?Sized + 'a)>,
    ) -> Self {
        self.command.args(words.into_iter().map(AsRef::as_ref));
        self
    }

    fn run(mut self, input: &str) -> Result<Output, NetworkError> {
        let Program { name, package, .. } = self;
        let failed = |source| NetworkError::Program { program: name, package, source };
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that reads nothing has ended: what it says is looked at below.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_slots_share_an_address_and_names_fit_the_kernel() {
        let mut seen = BTreeSet::new();
        for index in 0..=u8::MAX {
            for slot in Slot::ALL {
                let place = Place { index, slot };
                for address in place.addresses().into_iter().chain(place.gateways()) {
                    assert!(seen.insert(address), "{address}");
                }
                // IFNAMSIZ, with the byte that ends it.
                assert!(place.cable().len() < 16 && place.cable().starts_with(CABLE));
            }
        }
    }

    #[test]
    fn a_connection_that_is_closed_is_no_flow_under_way() {
        let tcp = |state: &str| {
            format!("tcp      6 98 {state} src=10.99.0.2 dst=10.99.0.1 sport=1 dport=53 [ASSURED] mark=0")
        };
        for state in ["TIME_WAIT", "CLOSE"] {
            assert!(is_over(&tcp(state)), "{state}");
        }
        for state in ["ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "SYN_SENT"] {
            assert!(!is_over(&tcp(state)), "{state}");
        }
        assert!(!is_over("udp      17 4 src=10.99.0.2 dst=10.99.0.1 sport=1 dport=53 mark=0"));
    }

    #[test]
    fn the_map_is_read_as_nft_prints_it() {
        let element = serde_json::json!([{ "concat": ["udp", 53] }, "10.213.0.2"]);
        assert_eq!(entry(&element), Some(((Transport::Udp, 53), "10.213.0.2".parse().unwrap())));
        let by_number = serde_json::json!([{ "concat": [6, 53] }, "fd5b:7769:7463::6"]);
        assert_eq!(entry(&by_number).unwrap().0, (Transport::Tcp, 53));
        for broken in [serde_json::json!("x"), serde_json::json!([{ "concat": ["sctp", 1] }, "10.0.0.1"])] {
            assert_eq!(entry(&broken), None);
        }
    }
}
