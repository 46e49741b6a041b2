//! What the scenarios share: a machine that serves, and how its answers are judged.

use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use switchback_tests::lab::tools;
use switchback_tests::services::{Load, ServiceLab};

pub use switchback_tests::service_image::{
    BUSYBOX, CHRONY, CHRONY_COMMAND, CHRONY_CONF, DNSMASQ, Recipe, UNBOUND, UNBOUND_CONF, dnsmasq,
};

pub const DNS: &str = "[service.dns]\nimage = \"IMAGE\"\nlisten = [\"udp/53\", \"tcp/53\"]\nsoak = \"5s\"\ndrain = \"DRAIN\"\n\
    memory = \"64M\"\n\
    probe = { dns = \"A probe.example.internal\", every = \"200ms\", passes = 3, timeout = \"5s\" }\n";
pub const NTP: &str = "[service.ntp]\nimage = \"IMAGE\"\nlisten = [\"udp/123\"]\nsoak = \"5s\"\ndrain = \"2s\"\n\
    probe = { ntp = true, every = \"200ms\", passes = 3, timeout = \"15s\" }\n";

/// A machine that serves DNS and NTP from these images.
pub struct Serving {
    pub lab: ServiceLab,
    pub dns: String,
    pub ntp: String,
    pub drain: &'static str,
    pub soak: &'static str,
}

impl Serving {
    pub fn new(drain: &'static str) -> Serving {
        let lab = ServiceLab::new().unwrap();
        let publish = |tag, programs, files, command: &[&str]| {
            lab.publish(&Recipe { tag, programs, files, command }).unwrap();
        };
        publish("dnsmasq-1", DNSMASQ, &[], &dnsmasq("--address=/example.internal/192.0.2.1"));
        publish("dnsmasq-2", DNSMASQ, &[], &dnsmasq("--address=/example.internal/192.0.2.2"));
        let conf = [("etc/chrony.conf", CHRONY_CONF)];
        publish("chrony-1", CHRONY, &conf, CHRONY_COMMAND);
        let louder = [CHRONY_COMMAND, &["-L", "0"]].concat();
        publish("chrony-2", CHRONY, &conf, &louder);
        let mut serving = Serving { lab, dns: "dnsmasq-1".into(), ntp: "chrony-1".into(), drain, soak: "5s" };
        serving.declare();
        for name in ["dns", "ntp"] {
            let answer = serving.lab.ask(&["update", name]).unwrap();
            assert_eq!(answer.code, 0, "{name}: {} {}", answer.said, answer.told);
        }
        serving
    }

    pub fn declare(&mut self) {
        let dns = DNS.replace("IMAGE", &self.lab.reference(&self.dns)).replace("DRAIN", self.drain);
        let dns = dns.replace("soak = \"5s\"", &format!("soak = \"{}\"", self.soak));
        self.lab.services = dns + &NTP.replace("IMAGE", &self.lab.reference(&self.ntp));
    }

    pub fn slot(&self, name: &str) -> (String, Vec<Option<i64>>) {
        let status = self.lab.status(name).unwrap();
        let pids = status["slots"].as_array().unwrap().iter().map(|slot| slot["pid"].as_i64()).collect();
        (status["serving"].as_str().unwrap_or("none").to_owned(), pids)
    }

    /// An order, begun.
    pub fn order(&self, name: &str) -> Child {
        let mut order = self.lab.switchback(&["update", name]).unwrap();
        order.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The daemon, begun.
    pub fn daemon(&self) -> Daemon {
        Daemon::of(&self.lab)
    }
}

/// A daemon that ends with its value.
pub struct Daemon(Child);

impl Daemon {
    pub fn of(lab: &ServiceLab) -> Daemon {
        let mut daemon = lab.switchback(&["daemon"]).unwrap();
        Daemon(daemon.stdin(Stdio::null()).spawn().unwrap())
    }

    /// Killed; the value's end buries it.
    pub fn kill(self) {
        kill_inner(&self.0, Signal::SIGKILL);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        kill_inner(&self.0, Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// What `nsenter` started in the machine gets the signal: `nsenter` itself is only its parent. Gone already is no error.
pub fn kill_inner(outer: &Child, signal: Signal) {
    let children = format!("/proc/{0}/task/{0}/children", outer.id());
    let Ok(text) = std::fs::read_to_string(children) else { return };
    for pid in text.split_whitespace() {
        let _ = kill(Pid::from_raw(pid.parse().unwrap()), signal);
    }
}

/// Datagrams that came to a socket whose buffer was full, in each network of the machine: whoever should have read them had no time.
pub fn unread_datagrams(lab: &ServiceLab) -> String {
    let script = r#"for n in $(ip netns list | cut -d' ' -f1); do
        echo "$n $(ip netns exec $n cat /proc/net/snmp /proc/net/snmp6 | awk '
            /^Udp:/ { if (header) print $6; header = 1 } /^Udp6RcvbufErrors/ { print $2 }' | xargs)"; done"#;
    let bash = tools::program("bash", "bash").unwrap();
    let said = tools::run(lab.inside(false, &bash).unwrap().args(["-c", script])).unwrap();
    said.lines().collect::<Vec<_>>().join("; ")
}

/// Prints what became of each kind of question and holds it to: all that was offered was sent and answered.
pub fn nothing_is_lost(whose: &str, reports: &[Value]) {
    tell(whose, reports);
    let losses: Vec<_> = reports.iter().filter(|report| !is_whole(report)).collect();
    assert!(losses.is_empty(), "{whose}: {losses:#?}");
}

pub fn is_whole(report: &Value) -> bool {
    let number = |key: &str| report[key].as_u64().unwrap();
    number("offered") > 0
        && number("sent") == number("offered")
        && number("answered") == number("offered")
        && number("lost") == 0
}

/// One line for each kind of question.
pub fn tell(whose: &str, reports: &[Value]) {
    for report in reports {
        let number = |key: &str| report[key].as_u64().unwrap();
        let [offered, sent, answered, lost] = ["offered", "sent", "answered", "lost"].map(number);
        println!(
            "{whose:34} {:18} offered {offered:6} sent {sent:6} answered {answered:6} lost {lost}  p50 {:6.2} ms  p99 {:7.2} ms  \
             longest gap {:7.2} ms",
            report["kind"].as_str().unwrap(),
            report["p50"].as_f64().unwrap(),
            report["p99"].as_f64().unwrap(),
            report["gap"].as_f64().unwrap()
        );
    }
}

pub fn load_words(address: &str, seconds: u64, dns: bool, share: u64) -> Vec<String> {
    let mut words = vec![address.to_owned(), "--seconds".into(), seconds.to_string()];
    let rates = if dns { vec![("--udp", 1000), ("--tcp", 200)] } else { vec![("--ntp", 50)] };
    for (kind, rate) in rates {
        words.extend([kind.to_owned(), (rate / share).to_string()]);
    }
    words
}

/// The same, begun, from the client on the cable.
pub fn asked(lab: &ServiceLab, seconds: u64, share: u64) -> Load {
    let words = load_words(switchback_tests::services::MACHINE, seconds, true, share);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    lab.load(true, &words).unwrap()
}
