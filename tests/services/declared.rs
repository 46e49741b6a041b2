//! What a declaration can say beside the image: how a slot is asked from inside, what is done when it ends, what it is told before it
//! is left.

use std::time::{Duration, Instant};

use serde_json::Value;
use switchback_tests::lab::tools;
use switchback_tests::services::{Recipe, ServiceLab};

use super::scene::{BUSYBOX, Daemon};

const SHELL: &[&str] = &["/usr/bin/busybox", "sh", "-c"];

/// An image that runs a script of busybox's shell, signed.
fn script(lab: &ServiceLab, tag: &str, text: &str) {
    let command = [SHELL, &[text]].concat();
    lab.publish(&Recipe { tag, programs: BUSYBOX, files: &[], command: &command }).unwrap();
}

fn declare(lab: &mut ServiceLab, tag: &str, more: &str) {
    lab.services = format!(
        "[service.job]\nimage = \"{}\"\nsoak = \"1s\"\ndrain = \"2s\"\nvolumes = [\"data:/data\"]\n{more}\n",
        lab.reference(tag)
    );
}

fn job(lab: &ServiceLab) -> (Value, Option<i64>) {
    let status = lab.status("job").unwrap();
    let at = usize::from(status["serving"] == "b");
    (status["slots"][at]["release"]["version"].clone(), status["slots"][at]["pid"].as_i64())
}

#[test]
fn a_slot_is_asked_from_inside_and_told_before_it_is_left() {
    let mut lab = ServiceLab::new().unwrap();
    let ready = "/usr/bin/busybox sleep 1; echo ready >/tmp/ready; exec /usr/bin/busybox sleep 1000";
    script(&lab, "one", ready);
    script(&lab, "two", &format!("true; {ready}"));
    script(&lab, "never", "exec /usr/bin/busybox sleep 1000");
    let probe =
        r#"["/usr/bin/busybox", "sh", "-c", "busybox cat /tmp/ready || { echo not today; exit 3; }"]"#;
    let tell =
        r#"["/usr/bin/busybox", "sh", "-c", "busybox id -u >>/data/told; busybox hostname >>/data/told"]"#;
    let more = format!(
        "probe = {{ command = {probe}, every = \"200ms\", passes = 2, timeout = \"4s\" }}\ndrain_command = {tell}"
    );
    for (tag, code, serves, expected) in
        [("one", 0, "one", ""), ("two", 0, "two", "999\njob\n"), ("never", 50, "two", "999\njob\n999\njob\n")]
    {
        declare(&mut lab, tag, &more);
        let answer = lab.ask(&["update", "job"]).unwrap();
        assert_eq!(answer.code, code, "{tag}: {} {}", answer.said, answer.told);
        if code != 0 {
            let detail = answer.said["detail"].as_str().unwrap();
            assert!(detail.contains("/usr/bin/busybox: exit status 3: not today"), "{detail}");
        }
        assert_eq!(job(&lab).0, serves, "{tag}");
        let told = std::fs::read_to_string(lab.path("data/volumes/data/told")).unwrap_or_default();
        assert_eq!(told, expected, "{tag}: as the service's own user, in the slot that is left");
    }
}

#[test]
fn what_ends_by_itself_is_treated_as_its_declaration_says() {
    let mut lab = ServiceLab::new().unwrap();
    // Asked to end it ends well; killed it does not.
    let ends = "trap 'exit 0' TERM; while :; do /usr/bin/busybox sleep 0.1; done";
    script(&lab, "one", ends);
    script(&lab, "two", &format!("true; {ends}"));
    for (tag, restart, signal, comes_back) in [
        ("one", "always", "-TERM", true),
        ("two", "on-failure", "-TERM", false),
        ("one", "on-failure", "-KILL", true),
        ("two", "never", "-KILL", false),
    ] {
        declare(&mut lab, tag, &format!("restart = \"{restart}\""));
        let answer = lab.ask(&["update", "job"]).unwrap();
        assert_eq!(answer.code, 0, "{restart}: {} {}", answer.said, answer.told);
        let daemon = Daemon::of(&lab);
        // Its first look brings things to where they belong; what ends after it is what is judged.
        std::thread::sleep(Duration::from_secs(2));
        let before = job(&lab).1.unwrap();
        let mut kill = lab.inside(false, &tools::program("kill", "procps").unwrap()).unwrap();
        assert!(kill.args([signal, &before.to_string()]).status().unwrap().success());
        let began = Instant::now();
        let came_back = loop {
            let now = job(&lab).1;
            if now.is_some_and(|pid| pid != before) || began.elapsed() > Duration::from_secs(5) {
                break now.is_some();
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        assert_eq!(came_back, comes_back, "{restart} after kill {signal}");
        // Started again, the daemon does not take an end for a boot.
        drop(daemon);
        let _daemon = Daemon::of(&lab);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(job(&lab).1.is_some(), comes_back, "{restart} after kill {signal}, and a new daemon");
    }
}
