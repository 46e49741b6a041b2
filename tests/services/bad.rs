//! Images that are refused, or tried and left again: what clients notice, what is remembered, and what of it an operator reads.

use std::time::Duration;

use serde_json::Value;
use switchback_tests::services::{Recipe, ServiceLab};

use super::scene::{BUSYBOX, DNSMASQ, Serving, asked, dnsmasq, nothing_is_lost};

/// An update that must fail while the old slot goes on answering.
struct Bad {
    tag: &'static str,
    code: i32,
    reason: &'static str,
    words: &'static str,
    /// It was started, and failed.
    tried: bool,
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
    // Ten times what it is granted, each byte of it written.
    let fills =
        format!("/usr/bin/busybox dd if=/dev/zero of=/dev/null bs=240M count=1 && exec {}", good.join(" "));
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
    let row = |tag, code, reason, words, tried| Bad { tag, code, reason, words, tried };
    let rows = [
        row("exits", 50, "health-failed", "bad command line options", true),
        row("hangs", 50, "health-failed", "did not become well", true),
        row("wrong", 50, "health-failed", "the answer is", true),
        row("greedy", 50, "health-failed", "it took more memory than it is granted", true),
        row("nobodys", 10, "signature-refused", "", false),
        row("others", 10, "signature-refused", "", false),
        row("tampered", 34, "corrupt-blob", "digest", false),
    ];
    let (slot, pids) = serving.slot("dns");
    let past = |serving: &Serving| {
        let answer = serving.lab.ask(&["history", "dns"]).unwrap();
        answer.said["entries"].as_array().unwrap().clone()
    };
    let before = past(&serving).len();
    for Bad { tag, code, reason, words, tried } in rows {
        // Memory is what the declaration grants: a tenth of what the greedy image takes.
        serving.dns = tag.into();
        serving.declare();
        serving.lab.services = serving.lab.services.replace("\"64M\"", "\"24M\"");
        let (load, known) = (asked(&serving.lab, 10, 1), past(&serving).len());
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
        let told = past(&serving);
        assert_eq!(told.len(), known + 1, "{tag}: {told:?}");
        let last = told.last().unwrap();
        assert_eq!((&last["version"], &last["reason"]), (&tag.into(), &reason.into()), "{last}");
        assert!(last["detail"].as_str().unwrap().contains(words), "{last}");
        // What was never tried is judged anew each time: it may be signed by now.
        let again = serving.lab.ask(&["update", "dns"]).unwrap();
        assert_eq!(again.code, if tried { 16 } else { code }, "{tag}: {}", again.said);
    }
    assert_eq!(past(&serving).len(), before + 7);
    the_list_is_kept_and_an_operator_takes_one_off(&mut serving);
}

fn the_list_is_kept_and_an_operator_takes_one_off(serving: &mut Serving) {
    let listed = |serving: &Serving| {
        let answer = serving.lab.ask(&["quarantine", "list", "dns"]).unwrap();
        let mut versions: Vec<String> = answer.said["quarantine"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["version"].as_str().unwrap().to_owned())
            .collect();
        versions.sort();
        versions
    };
    let never_tried = ["nobodys", "others", "tampered"];
    let mut all = vec!["exits", "greedy", "hangs", "wrong"];
    all.extend(never_tried);
    all.sort();
    assert_eq!(listed(serving), all);
    let logs = serving.lab.ask(&["logs", "--service", "dns"]).unwrap();
    let slots = logs.said["slots"].as_array().unwrap();
    assert!(
        slots.iter().any(|slot| slot["text"].as_str().unwrap().contains("bad command line options")),
        "{slots:?}"
    );
    let released = serving.lab.ask(&["quarantine", "release", "dns", "wrong"]).unwrap();
    assert_eq!(
        (released.code, &released.said["released"]["version"]),
        (0, &"wrong".into()),
        "{}",
        released.said
    );
    all.retain(|version| *version != "wrong");
    assert_eq!(listed(serving), all);
    serving.dns = "wrong".into();
    serving.declare();
    let again = serving.lab.ask(&["update", "dns"]).unwrap();
    assert_eq!(again.code, 50, "it is tried again, and fails again: {}", again.said);
    // Signed after all, an image is taken, and is on the list no more.
    serving.lab.sign("nobodys", "os").unwrap();
    serving.dns = "nobodys".into();
    serving.declare();
    let taken = serving.lab.ask(&["update", "dns"]).unwrap();
    assert_eq!(taken.code, 0, "{}", taken.said);
    assert_eq!(listed(serving), ["exits", "greedy", "hangs", "others", "tampered", "wrong"]);
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
