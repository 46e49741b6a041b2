//! Services as slots, with real ones: dnsmasq, unbound and chrony in containers of `runc`, moved while clients ask.
//!
//! Not here: what one module does (its own tests). Rule: what counts is what a client sees; a run in which nothing is moved comes
//! first, so that a loss is ours.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use switchback_tests::lab::tools;
use switchback_tests::machine::Answer;
use switchback_tests::service_image::{
    BUSYBOX, CHRONY, CHRONY_COMMAND, CHRONY_CONF, DNSMASQ, Recipe, UNBOUND, UNBOUND_COMMAND, UNBOUND_CONF,
    dnsmasq,
};
use switchback_tests::services::{MACHINE, MACHINE_6, ServiceLab};

/// How long clients ask before a move and after it, in seconds.
const BEFORE: u64 = 30;
const AFTER: u64 = 40;

const DNS: &str = "[service.dns]\nimage = \"IMAGE\"\nlisten = [\"udp/53\", \"tcp/53\"]\nsoak = \"5s\"\ndrain = \"DRAIN\"\n\
    memory = \"64M\"\n\
    probe = { dns = \"A probe.example.internal\", every = \"200ms\", passes = 3, timeout = \"5s\" }\n";
const NTP: &str = "[service.ntp]\nimage = \"IMAGE\"\nlisten = [\"udp/123\"]\nsoak = \"5s\"\ndrain = \"2s\"\n\
    probe = { ntp = true, every = \"200ms\", passes = 3, timeout = \"15s\" }\n";

/// A machine that serves DNS and NTP from these images.
struct Serving {
    lab: ServiceLab,
    dns: String,
    ntp: String,
    drain: &'static str,
}

impl Serving {
    fn new(drain: &'static str) -> Serving {
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
        let mut serving = Serving { lab, dns: "dnsmasq-1".into(), ntp: "chrony-1".into(), drain };
        serving.declare();
        for name in ["dns", "ntp"] {
            let answer = serving.lab.ask(&["update", name]).unwrap();
            assert_eq!(answer.code, 0, "{name}: {} {}", answer.said, answer.told);
        }
        serving
    }

    fn declare(&mut self) {
        let dns = DNS.replace("IMAGE", &self.lab.reference(&self.dns)).replace("DRAIN", self.drain);
        self.lab.services = dns + &NTP.replace("IMAGE", &self.lab.reference(&self.ntp));
    }

    fn slot(&self, name: &str) -> (String, Vec<Option<i64>>) {
        let status = self.lab.status(name).unwrap();
        let pids = status["slots"].as_array().unwrap().iter().map(|slot| slot["pid"].as_i64()).collect();
        (status["serving"].as_str().unwrap_or("none").to_owned(), pids)
    }

    fn order(&self, name: &str) -> Child {
        let mut order = self.lab.switchback(&["update", name]).unwrap();
        order.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// Prints what became of each kind of question and holds it to: all that was offered was sent and answered.
fn nothing_is_lost(whose: &str, reports: &[Value]) {
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
        assert_eq!((offered, offered, 0), (sent, answered, lost), "{whose}: {report}");
        assert!(offered > 0, "{whose}: nothing was asked");
    }
}

fn load_words(address: &str, seconds: u64, dns: bool, share: u64) -> Vec<String> {
    let mut words = vec![address.to_owned(), "--seconds".into(), seconds.to_string()];
    let rates = if dns { vec![("--udp", 1000), ("--tcp", 200)] } else { vec![("--ntp", 50)] };
    for (kind, rate) in rates {
        words.extend([kind.to_owned(), (rate / share).to_string()]);
    }
    words
}

/// Moves a service while clients ask from the cable by IPv4 and IPv6 and from the machine itself.
fn moves(serving: &mut Serving, name: &str, to: &str) {
    let (dns, other) = (name == "dns", if name == "dns" { "ntp" } else { "dns" });
    let begin = |seconds: u64, held: u64| {
        let mut words = load_words(MACHINE, seconds, dns, 1);
        words.extend(if dns { vec!["--held".into(), held.to_string()] } else { Vec::new() });
        let words =
            [words, load_words(MACHINE_6, seconds, dns, 10), load_words("127.0.0.1", seconds, dns, 10)];
        let from = [("by IPv4", true), ("by IPv6", true), ("on the machine", false)];
        let loads = words.iter().zip(from).map(|(words, (whose, on_client))| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            (whose, serving.lab.load(on_client, &words).unwrap())
        });
        loads.collect::<Vec<_>>()
    };
    for (whose, load) in begin(15, 10) {
        nothing_is_lost(&format!("{name}, nothing moves, {whose}"), &load.reports().unwrap());
    }
    let ((before, _), (_, bystander)) = (serving.slot(name), serving.slot(other));
    let loads = begin(BEFORE + AFTER, 10);
    std::thread::sleep(Duration::from_secs(BEFORE));
    match dns {
        true => serving.dns = to.into(),
        false => serving.ntp = to.into(),
    }
    serving.declare();
    let order = serving.order(name);
    for (whose, load) in loads {
        nothing_is_lost(&format!("{name} → {to}, {whose}"), &load.reports().unwrap());
    }
    let answer = Answer::of(&order.wait_with_output().unwrap()).unwrap();
    assert_eq!(answer.code, 0, "{} {}", answer.said, answer.told);
    let activation = answer.said["activation_seconds"].as_f64().unwrap();
    println!("{name} → {to}: led to the new slot {activation:.2} s after its start");
    assert!(activation < 2.0, "{activation} s");
    let (after, pids) = serving.slot(name);
    assert_ne!(before, after, "it serves from the other slot");
    assert_eq!(pids.iter().flatten().count(), 1, "one slot runs: {pids:?}");
    assert_eq!(serving.slot(other).1, bystander, "{other} is the same process");
}

#[test]
fn dns_and_ntp_move_under_load_and_no_question_is_lost() {
    // Connections that are held open stay on the old slot until they end: longer than the load lasts.
    let mut serving = Serving::new("60s");
    let files = [("etc/unbound.conf", UNBOUND_CONF)];
    let recipe = Recipe { tag: "unbound-1", programs: UNBOUND, files: &files, command: UNBOUND_COMMAND };
    serving.lab.publish(&recipe).unwrap();
    moves(&mut serving, "dns", "dnsmasq-2");
    moves(&mut serving, "dns", "unbound-1");
    moves(&mut serving, "ntp", "chrony-2");
}

/// An update that must fail while the old slot goes on answering.
struct Bad {
    tag: &'static str,
    code: i32,
    reason: &'static str,
    words: &'static str,
    banned: bool,
}

#[test]
fn a_bad_image_is_refused_or_left_again_and_no_question_is_lost() {
    let mut serving = Serving::new("8s");
    let lab = &serving.lab;
    let cook =
        |tag, programs, command: &[&str]| lab.cook(&Recipe { tag, programs, files: &[], command }).unwrap();
    let good = dnsmasq("--address=/example.internal/192.0.2.9");
    cook("exits", DNSMASQ, &["/usr/sbin/dnsmasq", "--nonsense"]);
    cook("hangs", BUSYBOX, &["/usr/bin/busybox", "sleep", "1000"]);
    cook("wrong", DNSMASQ, &dnsmasq("--address=/example.com/192.0.2.9"));
    let fills =
        format!("/usr/bin/busybox dd if=/dev/zero of=/tmp/fill bs=1M count=60 && exec {}", good.join(" "));
    let both: Vec<_> = DNSMASQ.iter().chain(BUSYBOX).copied().collect();
    cook("greedy", &both, &["/usr/bin/busybox", "sh", "-c", &fills]);
    cook("nobodys", DNSMASQ, &good);
    cook("others", DNSMASQ, &good);
    cook("tampered", DNSMASQ, &good);
    for tag in ["exits", "hangs", "wrong", "greedy", "tampered"] {
        lab.sign(tag, "os").unwrap();
    }
    lab.sign("others", "other").unwrap();
    tamper(lab, "tampered");
    let row = |tag, code, reason, words, banned| Bad { tag, code, reason, words, banned };
    let rows = [
        row("exits", 50, "health-failed", "bad command line options", true),
        row("hangs", 50, "health-failed", "did not become well", true),
        row("wrong", 50, "health-failed", "the answer is", true),
        row("greedy", 50, "health-failed", "it has ended", true),
        row("nobodys", 10, "signature-refused", "", false),
        row("others", 10, "signature-refused", "", false),
        row("tampered", 34, "corrupt-blob", "digest", false),
    ];
    let (slot, pids) = serving.slot("dns");
    for Bad { tag, code, reason, words, banned } in rows {
        // Memory is what the declaration grants: less than the greedy image takes.
        serving.dns = tag.into();
        serving.declare();
        serving.lab.services = serving.lab.services.replace("\"64M\"", "\"24M\"");
        let asked = load_words(MACHINE, 10, true, 1);
        let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
        let load = serving.lab.load(true, &asked).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let answer = serving.lab.ask(&["update", "dns"]).unwrap();
        assert_eq!((answer.code, &answer.said["reason"]), (code, &reason.into()), "{tag}: {}", answer.said);
        let detail = answer.said["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{tag}: {detail}");
        println!("{tag}: {detail}");
        nothing_is_lost(&format!("dns → {tag}"), &load.reports().unwrap());
        assert_eq!(
            serving.slot("dns"),
            (slot.clone(), pids.clone()),
            "{tag}: the old slot serves throughout"
        );
        let again = serving.lab.ask(&["update", "dns"]).unwrap();
        assert_eq!(again.code == 16, banned, "{tag}: quarantined by its digest: {}", again.said);
    }
}

/// One bit of the last layer of an image that was signed.
fn tamper(lab: &ServiceLab, tag: &str) {
    let blob = |digest: &str| lab.path("images/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
    let read = |path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
    let index = read(lab.path("images/index.json"));
    let manifests = index["manifests"].as_array().unwrap();
    let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let manifest = read(blob(manifests.iter().find(named).unwrap()["digest"].as_str().unwrap()));
    let layer = blob(manifest["layers"][0]["digest"].as_str().unwrap());
    // The layer of a layout is a file that other images may share: this one's last byte is its own.
    let mut bytes = std::fs::read(&layer).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
}

/// The slot that serves DNS, and the processes, once one slot alone runs.
fn settled(serving: &Serving) -> (String, Vec<Option<i64>>) {
    let began = Instant::now();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let (slot, pids) = serving.slot("dns");
        if pids.iter().flatten().count() == 1 || began.elapsed() > Duration::from_secs(20) {
            return (slot, pids);
        }
    }
}

#[test]
fn whenever_the_updater_is_killed_exactly_one_slot_serves() {
    let mut serving = Serving::new("8s");
    let kill = "kill -9 $(cat \"$1\")";
    let lock = serving.lab.path("state/services/lock");
    let began = Instant::now();
    for millis in [20, 120, 250, 400, 550, 700, 1000, 2500, 5000, 6200] {
        // Always to what does not serve.
        let status = serving.lab.status("dns").unwrap();
        let slot = usize::from(status["serving"] == "b");
        let serves_one = status["slots"][slot]["release"]["version"] == "dnsmasq-1";
        serving.dns = if serves_one { "dnsmasq-2" } else { "dnsmasq-1" }.into();
        serving.declare();
        let words = load_words(MACHINE, 20, true, 5);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let load = serving.lab.load(true, &words).unwrap();
        let order = serving.order("dns");
        std::thread::sleep(Duration::from_millis(millis));
        let bash = tools::program("bash", "bash").unwrap();
        let mut killer = serving.lab.inside(false, &bash).unwrap();
        killer.args(["-c", kill, "kill"]).arg(&lock).stderr(Stdio::null()).status().unwrap();
        let ended = order.wait_with_output().unwrap().status;
        // What a supervisor does: starts the daemon again.
        let mut daemon = serving.lab.switchback(&["daemon"]).unwrap();
        let mut daemon = daemon.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let (slot, pids) = settled(&serving);
        let last = &serving.lab.status("dns").unwrap()["last"];
        println!(
            "killed after {millis} ms ({ended}): slot {slot} serves, {pids:?}, the last outcome was {last}"
        );
        let serves = usize::from(slot == "b");
        assert!(pids[serves].is_some() && pids[1 - serves].is_none(), "{millis} ms: {slot} {pids:?}");
        // Killed as often as one likes, a good image is not banned.
        assert_eq!(serving.lab.status("dns").unwrap()["quarantine"].as_array().unwrap().len(), 0);
        nothing_is_lost(&format!("killed after {millis} ms"), &load.reports().unwrap());
        let mut stop = serving.lab.inside(false, &bash).unwrap();
        stop.args(["-c", "pkill -TERM -x switchback"]).status().unwrap();
        daemon.wait().unwrap();
    }
    println!("{:.0} s", began.elapsed().as_secs_f64());
}

#[test]
fn what_ends_is_started_again() {
    let serving = Serving::new("8s");
    let mut daemon = serving.lab.switchback(&["daemon"]).unwrap();
    let mut daemon = daemon.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let (slot, pids) = serving.slot("dns");
    let pid = pids[0].unwrap();
    let mut kill = serving.lab.inside(false, &tools::program("kill", "procps").unwrap()).unwrap();
    assert!(kill.args(["-9", &pid.to_string()]).status().unwrap().success());
    std::thread::sleep(Duration::from_secs(4));
    let (again, pids) = serving.slot("dns");
    assert_eq!(again, slot);
    assert!(pids[0].is_some_and(|new| new != pid), "{pids:?}");
    let words = load_words(MACHINE, 3, true, 10);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    nothing_is_lost("after a restart", &serving.lab.load(true, &words).unwrap().reports().unwrap());
    let bash = tools::program("bash", "bash").unwrap();
    let mut stop: Command = serving.lab.inside(false, &bash).unwrap();
    stop.args(["-c", "pkill -TERM -x switchback"]).status().unwrap();
    daemon.wait().unwrap();
}
