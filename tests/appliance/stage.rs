//! An appliance that is on and serves DNS and NTP, and what its clients on the host see.
//!
//! Rule: a service is asked for by its port on the host's loopback alone; only what a client cannot see is asked of the machine.

use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use switchback_tests::lab::appliance::Appliance;
use switchback_tests::lab::fixtures::Lab;
use switchback_tests::lab::qemu::{BOOT_TIMEOUT, Forward};
use switchback_tests::lab::release::{Loader, Release};
use switchback_tests::lab::scene::Scene;
use switchback_tests::service_image::{
    CHRONY, CHRONY_COMMAND, CHRONY_CONF, DNSMASQ, Recipe, UNBOUND, UNBOUND_COMMAND, UNBOUND_CONF, dnsmasq,
};
use switchback_tests::services::Load;

/// How long the services may take to be as they should be, on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The release that the machines come with.
pub const FIRST: Appliance = Appliance { version: "1.0" };

/// Where the appliance's services are on the host's loopback.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    dns: u16,
    ntp: u16,
}

/// Questions a second of each kind: what an emulated machine answers beside its work.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// DNS questions by datagram.
    pub udp: u32,
    /// DNS questions on connections.
    pub tcp: u32,
    /// NTP questions.
    pub ntp: u32,
}

/// What the tests ask under.
pub const MODEST: Rates = Rates { udp: 15, tcp: 3, ntp: 3 };

/// Brings in an appliance, switches it on, and orders its two services once.
pub fn serving(scene: &mut Scene) -> Result<Ports> {
    let ports = power_on(scene)?;
    ordered(scene, ports)?;
    Ok(ports)
}

/// Orders the two services once, on a machine that has none.
pub fn ordered(scene: &Scene, ports: Ports) -> Result<()> {
    publish(scene.lab())?;
    for (name, image) in [("dns", "dnsmasq-1"), ("ntp", "chrony-1")] {
        let moved = scene.ask(&format!("update {name}"))?;
        ensure!(moved["release"]["version"] == image, "{name}: {moved:#}");
    }
    ports.answer(1)
}

/// Brings in an appliance without services and switches it on.
pub fn power_on(scene: &mut Scene) -> Result<Ports> {
    switched_on(scene, &FIRST, Loader::V252, false)
}

/// Brings in a machine with this release and switches it on; its ports are on the host's loopback.
pub fn switched_on(
    scene: &mut Scene,
    release: &dyn Release,
    loader: Loader,
    two_processors: bool,
) -> Result<Ports> {
    scene.bring(|disk, lab| lab.disk(release, loader, disk))?;
    let ports = Ports { dns: free_port()?, ntp: free_port()? };
    scene.rebuild(|hardware| {
        hardware.forwards = ports.forwards();
        hardware.two_processors = two_processors;
    })?;
    scene.power_on()?;
    scene.expect_ready(release.version())?;
    Ok(ports)
}

/// The services' images in the lab's registry.
pub fn publish(lab: &Lab) -> Result<()> {
    let dns = |tag, programs, files: &[(&str, &str)], command: &[&str]| {
        lab.publish_service(&Recipe { tag, programs, files, command }, "appliance-dns")
    };
    dns("dnsmasq-1", DNSMASQ, &[], &dnsmasq("--address=/example.internal/192.0.2.1"))?;
    dns("dnsmasq-2", DNSMASQ, &[], &dnsmasq("--address=/example.internal/192.0.2.2"))?;
    dns("dnsmasq-3", DNSMASQ, &[], &dnsmasq("--address=/example.internal/192.0.2.4"))?;
    dns("unbound-1", UNBOUND, &[("etc/unbound.conf", UNBOUND_CONF)], UNBOUND_COMMAND)?;
    // Runs, and knows no answer to what it is asked.
    dns("bad-1", DNSMASQ, &[], &dnsmasq("--address=/example.com/192.0.2.9"))?;
    let files = [("etc/chrony.conf", CHRONY_CONF)];
    let chrony = Recipe { tag: "chrony-1", programs: CHRONY, files: &files, command: CHRONY_COMMAND };
    lab.publish_service(&chrony, "appliance-ntp").map(drop)
}

/// A port that is free for datagrams and for connections.
fn free_port() -> Result<u16> {
    for _ in 0..100 {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free for both transports")
}

impl Ports {
    fn forwards(self) -> Vec<Forward> {
        let forward = |transport, host, guest| Forward { transport, host, guest };
        vec![forward("udp", self.dns, 53), forward("tcp", self.dns, 53), forward("udp", self.ntp, 123)]
    }

    /// Clients that begin to ask, for so many seconds.
    pub fn load(self, seconds: u64, rates: Rates) -> Result<Load> {
        let Rates { udp, tcp, ntp } = rates;
        let words = format!(
            "127.0.0.1 --dns-port {} --ntp-port {} --seconds {seconds} --udp {udp} --tcp {tcp} --ntp {ntp}",
            self.dns, self.ntp
        );
        Load::begin(&words.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    /// Both services answer everything for so many seconds.
    pub fn answer(self, seconds: u64) -> Result<()> {
        let reports = self.load(seconds, Rates { udp: 4, tcp: 2, ntp: 2 })?.reports()?;
        reports.iter().try_for_each(|report| Counts::of(report)?.nothing_is_lost())
    }

    /// Waits until both services answer.
    pub fn wait_for_answers(self) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.answer(1) {
                Err(error) if began.elapsed() > PATIENCE => return Err(error.context("after a long wait")),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
    }
}

/// What became of one kind of question.
struct Counts<'a> {
    report: &'a Value,
    offered: u64,
    sent: u64,
    answered: u64,
    lost: u64,
}

impl Counts<'_> {
    fn of(report: &Value) -> Result<Counts<'_>> {
        let number = |key: &str| report[key].as_u64().context("a report without numbers");
        let (offered, sent) = (number("offered")?, number("sent")?);
        Ok(Counts { report, offered, sent, answered: number("answered")?, lost: number("lost")? })
    }

    /// All that was offered was sent and answered.
    fn nothing_is_lost(&self) -> Result<()> {
        let Counts { report, offered, sent, answered, lost } = self;
        let kind = &report["kind"];
        ensure!(*offered > 0, "{kind}: nothing was asked");
        ensure!(
            (offered, offered, &0) == (sent, answered, lost),
            "{kind}: {lost} lost: {}",
            report["losses"]
        );
        Ok(())
    }

    fn print(&self, what: &str) {
        let Counts { report, offered, sent, answered, lost } = self;
        println!(
            "{what:20} {:8} offered {offered:5} sent {sent:5} answered {answered:5} lost {lost}  p50 {:.1} ms  p99 {:.1} ms  \
             longest gap {:.0} ms",
            report["kind"].as_str().unwrap_or_default(),
            report["p50"].as_f64().unwrap_or_default(),
            report["p99"].as_f64().unwrap_or_default(),
            report["gap"].as_f64().unwrap_or_default()
        );
    }
}

/// Prints what became of each kind of question, and holds it to: all that was offered was sent and answered.
pub fn nothing_is_lost(what: &str, reports: &[Value]) -> Result<()> {
    ensure!(!reports.is_empty(), "{what}: nothing was asked");
    let counts = reports.iter().map(Counts::of).collect::<Result<Vec<_>>>()?;
    counts.iter().for_each(|counts| counts.print(what));
    counts.iter().try_for_each(|counts| counts.nothing_is_lost()).context(what.to_owned())
}

/// One service as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The slot that serves.
    pub slot: String,
    /// The version in it.
    pub version: String,
    /// Slot a's process and slot b's.
    pub pids: [Option<i64>; 2],
    /// Digests that are banned.
    pub banned: Vec<String>,
}

impl Shown {
    /// Asks the machine.
    pub fn of(scene: &Scene, name: &str) -> Result<Shown> {
        let answer = scene.ask(&format!("status {name}"))?;
        Shown::read(&answer).with_context(|| format!("`status {name}` answers:\n{answer:#}"))
    }

    fn read(answer: &Value) -> Option<Shown> {
        let service = &answer["services"][0];
        let slot = service["serving"].as_str()?;
        let slots = service["slots"].as_array()?;
        let serving = slots.iter().find(|found| found["slot"] == slot)?;
        let banned = service["quarantine"].as_array()?.iter().map(|item| item.as_str().map(str::to_owned));
        Some(Shown {
            slot: slot.to_owned(),
            version: serving["release"]["version"].as_str()?.to_owned(),
            pids: [slots.first()?["pid"].as_i64(), slots.get(1)?["pid"].as_i64()],
            banned: banned.collect::<Option<_>>()?,
        })
    }

    /// The versions that the slots hold.
    pub fn held(scene: &Scene, name: &str) -> Result<Vec<String>> {
        let answer = scene.ask(&format!("status {name}"))?;
        let slots = answer["services"][0]["slots"].as_array().context("a service without slots")?;
        Ok(slots.iter().filter_map(|slot| Some(slot["release"]["version"].as_str()?.to_owned())).collect())
    }

    /// The process of the slot that serves, when it alone runs.
    pub fn only_pid(&self) -> Option<i64> {
        let (serves, other) = if self.slot == "a" { (0, 1) } else { (1, 0) };
        self.pids[serves].filter(|_| self.pids[other].is_none())
    }

    /// Waits until the slot that serves is the only one that runs.
    pub fn settled(scene: &Scene, name: &str) -> Result<Shown> {
        let began = Instant::now();
        loop {
            let shown = Shown::of(scene, name)?;
            if shown.only_pid().is_some() {
                return Ok(shown);
            }
            ensure!(began.elapsed() < PATIENCE, "{name} does not settle: {shown:?}\n{}", scene.explain());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A step of DNS's update on the console.
pub const STEP: &str = r"DEBUG.*step.*service=dns";
/// The end of the order on the console, with its exit code.
pub const ENDED: &str = r"ORDER-ENDED (\d+)";

/// Orders DNS to move, and does not wait: steps and end come to the console, the answer to a file.
pub fn order_dns(scene: &Scene, to: &str) -> Result<()> {
    let order = format!("switchback --json update dns --to {to} >/run/lab/answer");
    scene.vm()?.start(&format!("SWITCHBACK_LOG=switchback::services=debug {order}; echo ORDER-ENDED $?"))
}

/// What tells one start of the machine from the next.
pub fn boot_id(scene: &Scene) -> Result<String> {
    scene.run("cat /proc/sys/kernel/random/boot_id")?.ok()
}

/// Waits for the machine after it was switched on or restarts, and for its services.
pub fn wait_back(scene: &Scene, ports: Ports) -> Result<()> {
    let running = scene.wait_ready(BOOT_TIMEOUT)?;
    ensure!(running == FIRST.version, "the machine came up with {running}");
    ports.wait_for_answers()
}
