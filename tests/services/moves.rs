//! Moves of what is well: by DNS and NTP under load, one at a time, and after an end.

use std::time::Duration;

use switchback_tests::lab::tools;
use switchback_tests::machine::Answer;
use switchback_tests::services::{MACHINE, MACHINE_6, Recipe, ServiceLab};

use super::scene::{
    BUSYBOX, DNS, DNSMASQ, Serving, UNBOUND, UNBOUND_CONF, asked, dnsmasq, is_whole, load_words,
    nothing_is_lost, tell, unread_datagrams,
};

/// How long clients ask while nothing moves, before a move and after it, in seconds.
const CONTROL: u64 = 30;
const BEFORE: u64 = 30;
const AFTER: u64 = 40;

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
    for (whose, load) in begin(CONTROL, 10) {
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
    let reports: Vec<_> = loads.into_iter().map(|(whose, load)| (whose, load.reports().unwrap())).collect();
    let unread = unread_datagrams(&serving.lab);
    println!("datagrams in full buffers, by network: {unread}");
    let answer = Answer::of(&order.wait_with_output().unwrap()).unwrap();
    assert_eq!(answer.code, 0, "{} {}", answer.said, answer.told);
    let activation = answer.said["activation_seconds"].as_f64().unwrap();
    println!("{name} → {to}: led to the new slot {activation:.2} s after its start, {}", answer.told.trim());
    reports.iter().for_each(|(whose, reports)| tell(&format!("{name} → {to}, {whose}"), reports));
    assert!(
        reports.iter().flat_map(|(_, reports)| reports).all(is_whole),
        "lost; datagrams that came to a service which did not read them in time, by network: {unread}\n{reports:#?}"
    );
    assert!(activation < 2.0, "{activation} s");
    let (after, pids) = serving.slot(name);
    assert_ne!(before, after, "it serves from the other slot");
    assert_eq!(pids.iter().flatten().count(), 1, "one slot runs: {pids:?}");
    assert_eq!(serving.slot(other).1, bystander, "{other} is the same process");
}

// Connections that are held open stay on the old slot until they end: `drain` is longer than the load lasts.

#[test]
fn dns_moves_to_another_version_under_load_and_no_question_is_lost() {
    moves(&mut Serving::new("60s"), "dns", "dnsmasq-2");
}

#[test]
fn dns_moves_to_another_program_under_load_and_no_question_is_lost() {
    let mut serving = Serving::new("60s");
    let unbound = ["/usr/sbin/unbound", "-d", "-c", "/etc/unbound.conf"];
    let files = [("etc/unbound.conf", UNBOUND_CONF)];
    let recipe = Recipe { tag: "unbound-1", programs: UNBOUND, files: &files, command: &unbound };
    serving.lab.publish(&recipe).unwrap();
    moves(&mut serving, "dns", "unbound-1");
}

#[test]
fn ntp_moves_under_load_and_no_question_is_lost() {
    moves(&mut Serving::new("60s"), "ntp", "chrony-2");
}

#[test]
fn what_may_run_only_once_is_moved_and_comes_back_from_a_bad_image() {
    let mut lab = ServiceLab::new().unwrap();
    for (tag, address) in
        [("one", "--address=/example.internal/192.0.2.1"), ("two", "--address=/example.internal/192.0.2.2")]
    {
        lab.publish(&Recipe { tag, programs: DNSMASQ, files: &[], command: &dnsmasq(address) }).unwrap();
    }
    let hangs = ["/usr/bin/busybox", "sleep", "1000"];
    lab.publish(&Recipe { tag: "hangs", programs: BUSYBOX, files: &[], command: &hangs }).unwrap();
    let declare = |lab: &mut ServiceLab, tag: &str| {
        let dns = DNS.replace("IMAGE", &lab.reference(tag)).replace("DRAIN", "6s");
        lab.services = dns + "mode = \"recreate\"\n";
    };
    let mut pids = Vec::new();
    for (tag, code, serves) in [("one", 0, "one"), ("two", 0, "two"), ("hangs", 50, "two"), ("one", 0, "one")]
    {
        declare(&mut lab, tag);
        let answer = lab.ask(&["update", "dns"]).unwrap();
        assert_eq!(answer.code, code, "{tag}: {} {}", answer.said, answer.told);
        let status = lab.status("dns").unwrap();
        let at = usize::from(status["serving"] == "b");
        assert_eq!(status["slots"][at]["release"]["version"], serves, "{tag}: {status}");
        let (pid, other) = (&status["slots"][at]["pid"], &status["slots"][1 - at]["pid"]);
        assert!(pid.is_i64() && other.is_null(), "{tag}: {status}");
        assert!(!pids.contains(pid), "{tag}: it was started anew");
        pids.push(pid.clone());
        nothing_is_lost(&format!("recreated, then {tag}"), &asked(&lab, 3, 10).reports().unwrap());
    }
}

#[test]
fn what_ends_is_started_again_and_orders_are_taken_meanwhile() {
    let mut serving = Serving::new("8s");
    let _daemon = serving.daemon();
    std::thread::sleep(Duration::from_secs(2));
    let (slot, pids) = serving.slot("dns");
    let pid = pids[0].unwrap();
    let mut kill = serving.lab.inside(false, &tools::program("kill", "procps").unwrap()).unwrap();
    assert!(kill.args(["-9", &pid.to_string()]).status().unwrap().success());
    std::thread::sleep(Duration::from_secs(4));
    let (again, pids) = serving.slot("dns");
    assert_eq!(again, slot);
    assert!(pids[0].is_some_and(|new| new != pid), "{pids:?}");
    nothing_is_lost("after a restart", &asked(&serving.lab, 3, 10).reports().unwrap());
    // The daemon looks once a second: an order waits for it, and it for the order.
    for tag in ["dnsmasq-2", "dnsmasq-1"] {
        serving.dns = tag.into();
        serving.declare();
        let answer = serving.lab.ask(&["update", "dns"]).unwrap();
        assert_eq!(answer.code, 0, "{} {}", answer.said, answer.told);
    }
}
