//! Releases that bind an OS and its services: the whole life on a machine in a file, its services in containers of `runc`.
//!
//! Not here: real boots (`appliance`), services under load (`services`). Rule: a restart of the machine takes every process and
//! the whole network with it; what serves after it was started by the daemon.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use switchback_partitions::slot::Slot;
use switchback_tests::lab::tools;
use switchback_tests::machine::{Answer, Machine, text};
use switchback_tests::scene::{SMALL_DISK, Scene};
use switchback_tests::service_image::Recipe;
use switchback_tests::services::ServiceLab;
use switchback_tests::small_release::SmallRelease;
use switchback_tests::story::ROOT_BYTES;

/// More restarts than any story needs.
const STARTS_MAX: usize = 4;

const DECLARED: &str = r#"
[service.dns]
listen = ["udp/53", "tcp/53"]
soak = "1s"
drain = "1s"
probe = { dns = "A probe.example.internal", every = "100ms", passes = 2, timeout = "5s" }

[service.web]
listen = ["tcp/80"]
soak = "1s"
drain = "1s"
probe = { http = "/version", every = "100ms", passes = 2, timeout = "5s" }
"#;

/// A machine with OS slots in a file and services in namespaces.
struct Whole {
    scene: Scene,
    lab: ServiceLab,
    machine: Machine,
    daemon: Option<Child>,
    starts: usize,
}

impl Whole {
    /// It runs 1.0, an OS without services.
    fn new() -> Whole {
        let (scene, mut lab) = (Scene::new().unwrap(), ServiceLab::new().unwrap());
        lab.services.clear();
        scene.release("1.0", true, ROOT_BYTES).unwrap();
        let inside = wrapped(&lab);
        let key = scene.desk.path("os.pub");
        let settings = format!(
            "[source]\nimage = \"{}\"\n[trust.policy.os]\nkeys = [{key:?}]\n[trust.policy.service]\nkeys = [{:?}]\n{DECLARED}",
            scene.desk.reference("stable"),
            lab.path("os.pub")
        );
        let machine = Machine::new(&scene.folder().join("machine"), &inside, &settings).unwrap();
        let runtime = tools::program("runc", "runc").unwrap();
        let mut config = std::fs::read_to_string(machine.config()).unwrap();
        writeln!(
            config,
            "data_dir = {:?}\nrun_dir = {:?}\nruntime = {runtime:?}",
            lab.path("data"),
            lab.path("run")
        )
        .unwrap();
        std::fs::write(machine.config(), config).unwrap();
        scene.provision(&machine, &scene.desk.reference("1.0"), &key, &SMALL_DISK).unwrap();
        let mut whole = Whole { scene, lab, machine, daemon: None, starts: 0 };
        assert_eq!(whole.power_on(), Slot::A);
        whole
    }

    /// Off and on again until it rests; the slot that it rests in.
    fn power_on(&mut self) -> Slot {
        for _ in 0..STARTS_MAX {
            self.end_daemon();
            self.lab.power_cycle().unwrap();
            self.starts += 1;
            let slot = self.machine.start().unwrap().unwrap();
            let daemon = self.machine.command(&["daemon"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            self.daemon = Some(daemon.unwrap());
            let checked = self.machine.run(&["boot-check"]).unwrap();
            println!("slot {slot}: {}{}", text(&checked.stdout), text(&checked.stderr));
            if !self.machine.reboot_requested() {
                // Where nothing is on trial nobody has waited for the services yet.
                self.ask(&["health"], 0);
                return slot;
            }
        }
        panic!("no rest after {STARTS_MAX} starts");
    }

    fn end_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            daemon.wait().unwrap();
        }
    }

    fn ask(&self, words: &[&str], code: i32) -> Answer {
        let answer = self.machine.ask(words).unwrap();
        assert_eq!(answer.code, code, "{words:?}: {} {}", answer.said, answer.told);
        answer
    }

    /// An OS image of this version.
    fn os(&self, version: &str) {
        let image =
            self.scene.desk.root_image(&SmallRelease { version, healthy: true, root_bytes: ROOT_BYTES });
        self.scene.desk.build_partition(version, &image.unwrap(), &[]).unwrap();
    }

    /// Binds, signs and publishes a release; gives its digest.
    fn publish(&self, version: &str, os: &str, services: &[(&str, &str)]) -> String {
        let desk = &self.scene.desk;
        let services: Vec<String> =
            services.iter().map(|(name, tag)| format!("{name}={}", self.lab.reference(tag))).collect();
        let mut words = vec!["image", "bind", "--version", version, "--os", os, "--output", "oci:images"];
        services.iter().for_each(|service| words.extend(["--service", service]));
        let bound = desk.run(&words).unwrap();
        desk.sign(&desk.reference(version), &[]).unwrap();
        desk.publish(version).unwrap();
        bound["digest"].as_str().unwrap().to_owned()
    }

    /// What serves each service, by the program's word: version and process.
    fn serves(&self, name: &str) -> (String, Option<i64>) {
        let status = self.ask(&["status", name], 0).said["services"][0].clone();
        let Some(slot) = status["serving"].as_str() else { return ("nothing".into(), None) };
        let slot = &status["slots"][usize::from(slot == "b")];
        (slot["release"]["version"].as_str().unwrap().to_owned(), slot["pid"].as_i64())
    }

    /// The same by what a client on the machine is answered.
    fn answers(&self) -> [String; 2] {
        let busybox = tools::program("busybox", "busybox-static").unwrap();
        let client = |words: &[&str]| {
            let output = self.lab.inside(false, &busybox).unwrap().args(words).output().unwrap();
            text(&output.stdout)
        };
        let dns = client(&["nslookup", "-type=a", "a.example.internal", "127.0.0.1"]);
        let dns = dns.lines().filter_map(|line| line.strip_prefix("Address: ")).next_back().unwrap_or("none");
        let web = client(&["wget", "-q", "-O", "-", "http://127.0.0.1/version"]);
        [dns.trim().to_owned(), web.trim().to_owned()]
    }

    fn history(&self) -> Vec<Value> {
        self.ask(&["history"], 0).said["entries"].as_array().unwrap().clone()
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.end_daemon();
    }
}

/// The program that ships on devices, as a file that runs it on the lab's machine.
fn wrapped(lab: &ServiceLab) -> std::path::PathBuf {
    let command: Command = lab.inside(false, &tools::device_binary().unwrap()).unwrap();
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let file = lab.path("switchback-inside");
    std::fs::write(&file, format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" "))).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

/// The images: dns-N answers 192.0.2.N, web-N says N, bad ones answer wrongly.
fn cook(lab: &ServiceLab) {
    let dns = |tag: &str, address: &str| {
        let words = [
            "/usr/sbin/dnsmasq",
            "-k",
            "--user=",
            "--group=",
            "-C",
            "/dev/null",
            "--no-resolv",
            "--no-hosts",
        ];
        let words = [&words[..], &["--pid-file=", "--log-facility=-", address]].concat();
        lab.cook(&Recipe { tag, programs: &[("dnsmasq", "dnsmasq-base")], files: &[], command: &words })
            .unwrap();
    };
    dns("dns-1", "--address=/example.internal/192.0.2.1");
    dns("dns-2", "--address=/example.internal/192.0.2.2");
    dns("dns-bad", "--address=/example.com/192.0.2.9");
    for tag in ["web-1", "web-2"] {
        let command = ["/usr/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/srv"];
        let files = [("srv/version", tag)];
        let recipe =
            Recipe { tag, programs: &[("busybox", "busybox-static")], files: &files, command: &command };
        lab.cook(&recipe).unwrap();
    }
}

#[test]
fn an_os_and_its_services_come_together_and_go_together() {
    let mut whole = Whole::new();
    cook(&whole.lab);
    for version in ["1.1", "1.2"] {
        whole.os(version);
    }
    let os = |version: &str| whole.scene.desk.reference(version);
    let ([one, two], index) = ([os("1.1"), os("1.2")], |n: usize| format!("2.{n}"));

    // Before any release a service was ordered by itself: it belongs to this slot.
    whole.lab.sign("dns-2", "os").unwrap();
    whole.ask(&["update", "dns", "--to", &whole.lab.reference("dns-2")], 0);

    // A first release: the OS restarts, its services come with it, one trial judges all.
    let first = whole.publish(&index(0), &one, &[("dns", "dns-1"), ("web", "web-1")]);
    assert_eq!(whole.ask(&["check"], 0).said["release"]["digest"], first);
    assert_eq!(whole.ask(&["update", "--reboot", "--detailed-exitcode"], 2).said["outcome"], "rebooting");
    assert_eq!(whole.serves("web").0, "nothing", "nothing starts before the restart");
    assert_eq!(whole.power_on(), Slot::B);
    assert_eq!(whole.answers(), ["192.0.2.1", "web-1"]);
    let status = whole.ask(&["status"], 0).said;
    assert_eq!(status["slots"][1]["boot"]["state"], "good", "{status}");
    assert_eq!(status["slots"][1]["release"]["digest"], first);
    assert!(status["services"].as_array().unwrap().iter().all(|line| line["drift"].is_null()), "{status}");

    whole.ask(&["rollback", "--reboot"], 0);
    assert_eq!(whole.power_on(), Slot::A);
    assert_eq!(whole.answers(), ["192.0.2.2", ""], "what this slot had, and no more");
    whole.ask(&["update", "--to", "2.0", "--reboot"], 0);
    assert_eq!(whole.power_on(), Slot::B);

    services_alone(&mut whole, &one);

    // One whose DNS service fails after the restart: everything returns in one step.
    let bad = whole.publish(&index(3), &two, &[("dns", "dns-bad"), ("web", "web-1")]);
    let before = whole.starts;
    whole.ask(&["update", "--reboot"], 0);
    assert_eq!(whole.power_on(), Slot::B);
    assert_eq!(whole.starts - before, 2, "one trial and the way back");
    assert_eq!(whole.answers(), ["192.0.2.1", "web-1"]);
    let last = whole.history().pop().unwrap();
    assert_eq!((&last["what"], &last["digest"]), (&"returned-from".into(), &bad.clone().into()), "{last}");
    assert!(last["detail"].as_str().unwrap().contains("services: dns: "), "{last}");
    assert_eq!(whole.ask(&["update"], 16).said["reason"], "quarantined");

    // A good one, and the rollback of everything.
    whole.publish(&index(4), &two, &[("dns", "dns-2"), ("web", "web-2")]);
    whole.ask(&["update", "--reboot"], 0);
    assert_eq!(whole.power_on(), Slot::A);
    assert_eq!(whole.answers(), ["192.0.2.2", "web-2"]);
    whole.ask(&["rollback", "--reboot"], 0);
    assert_eq!(whole.power_on(), Slot::B);
    assert_eq!(whole.answers(), ["192.0.2.1", "web-1"]);

    // An OS that says nothing of services: they serve on as they are.
    whole.scene.desk.sign(&two, &[]).unwrap();
    whole.ask(&["update", "--to", "1.2", "--reboot"], 0);
    assert_eq!(whole.power_on(), Slot::A);
    assert_eq!(whole.answers(), ["192.0.2.1", "web-1"]);
}

/// Releases with the OS that runs: nothing restarts. At the end it is as it was at the beginning.
fn services_alone(whole: &mut Whole, os: &str) {
    let starts = whole.starts;
    let (dns, web) = (whole.serves("dns"), whole.serves("web"));
    let news = whole.publish("2.1", os, &[("dns", "dns-2"), ("web", "web-1")]);
    let planned = whole.ask(&["update", "--dry-run"], 0).said;
    assert_eq!((&planned["outcome"], whole.serves("dns")), (&"would-move".into(), dns.clone()));
    let moved = whole.ask(&["update", "--detailed-exitcode"], 2).said;
    assert_eq!(
        (&moved["outcome"], &moved["services"][0]["name"]),
        (&"moved".into(), &"dns".into()),
        "{moved}"
    );
    assert_eq!(whole.answers(), ["192.0.2.2", "web-1"]);
    assert_eq!(whole.serves("web"), web, "what is the same is not touched");
    assert_eq!(whole.ask(&["status"], 0).said["services_follow"]["digest"], news);
    assert_eq!(whole.ask(&["update", "--detailed-exitcode"], 0).said["outcome"], "unchanged");

    // One of two fails: the other goes back, too, and the release is not taken again.
    let bad = whole.publish("2.2", os, &[("dns", "dns-1"), ("web", "dns-bad")]);
    let failed = whole.ask(&["update"], 50).said;
    assert!(failed["detail"].as_str().unwrap().starts_with("web: "), "{failed}");
    assert_eq!(whole.answers(), ["192.0.2.2", "web-1"]);
    assert_eq!(whole.history().pop().unwrap()["digest"], bad);
    assert_eq!(whole.ask(&["update"], 16).said["reason"], "quarantined");

    drifts(whole);

    let back = whole.ask(&["rollback", "--detailed-exitcode"], 2).said;
    assert_eq!((&back["outcome"], &back["release"]["version"]), (&"moved".into(), &"2.0".into()), "{back}");
    assert_eq!(whole.answers(), ["192.0.2.1", "web-1"]);
    assert_eq!(whole.serves("dns").0, dns.0);
    assert_eq!(whole.ask(&["status"], 0).said["held"], news, "what was left is held back");
    assert_eq!(whole.starts, starts, "nothing of this was a restart");
}

/// A service that an operator moves by itself has drifted, which `status` shows and `apply` mends, once.
fn drifts(whole: &Whole) {
    whole.lab.sign("dns-1", "os").unwrap();
    let reference = whole.lab.reference("dns-1");
    whole.ask(&["update", "dns", "--to", &reference], 0);
    let drifted = whole.ask(&["status"], 0).said["services"][0].clone();
    assert_eq!((&drifted["name"], drifted["drift"].is_string()), (&"dns".into(), true), "{drifted}");
    let file = whole.lab.path("desired.toml");
    std::fs::write(&file, "release = \"2.1\"\n").unwrap();
    let file = file.display().to_string();
    assert_eq!(whole.ask(&["apply", &file, "--detailed-exitcode"], 2).said["outcome"], "moved");
    assert_eq!(whole.answers(), ["192.0.2.2", "web-1"]);
    assert_eq!(whole.ask(&["apply", &file, "--detailed-exitcode"], 0).said["outcome"], "unchanged");
    // A file for a service alone.
    std::fs::write(whole.lab.path("desired.toml"), format!("[service]\ndns = \"{reference}\"\n")).unwrap();
    let planned = whole.ask(&["apply", &file, "--dry-run"], 0).said;
    assert_eq!(planned["services"][0]["would_move"], true, "{planned}");
    assert_eq!(whole.ask(&["apply", &file, "--detailed-exitcode"], 2).said["services"][0]["changed"], true);
    assert_eq!(whole.ask(&["apply", &file, "--detailed-exitcode"], 0).said["services"][0]["changed"], false);
    std::thread::sleep(Duration::from_millis(100));
}
