//! The updater and the daemon killed at every step of a move: exactly one slot serves, no question is lost, the same order completes.
//!
//! Not here: power cuts. Rule: the steps are those that a good move takes now, counted by a run that nobody kills; a step that
//! is added later is killed, too.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use switchback_tests::services::{Load, Recipe};

use super::scene::{DNSMASQ, Daemon, Serving, asked, dnsmasq, kill_inner, nothing_is_lost};

/// What each step's line on standard error contains.
const STEP: &str = " step service=dns ";
/// How long clients ask while it is killed, settled and ordered again, in seconds.
const LOAD_SECS: u64 = 30;
/// What a daemon may take to lead clients back, to let flows end, and to end a slot: `drain` twice, and what a busy machine adds.
const SETTLED_MAX: Duration = Duration::from_secs(30);
/// Kills at moments of no meaning, beside those at the steps.
const MOMENTS: u32 = 5;

/// An order whose steps are seen.
fn order(serving: &Serving) -> Child {
    let mut order: Command = serving.lab.switchback(&["update", "dns"]).unwrap();
    order.env("SWITCHBACK_LOG", "switchback=debug").stdin(Stdio::null());
    order.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The steps' lines, as they come.
fn steps(order: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(order.stderr.take().unwrap()).lines();
    lines.map_while(Result::ok).filter(|line| line.contains(STEP))
}

/// Three images for two slots: one of them is always new, so that each move installs it.
const TAGS: [&str; 3] = ["dnsmasq-1", "dnsmasq-2", "dnsmasq-3"];

/// Declares an image that no slot holds; gives its tag.
fn declare_a_new_one(serving: &mut Serving) -> &'static str {
    let status = serving.lab.status("dns").unwrap();
    let held = |tag: &&&str| (0..2).any(|slot| status["slots"][slot]["release"]["version"] == **tag);
    let tag = TAGS.iter().find(|tag| !held(tag)).unwrap();
    serving.dns = (*tag).into();
    serving.declare();
    tag
}

/// The slot that serves DNS, once one slot alone runs.
fn settled(serving: &Serving) -> (String, Vec<Option<i64>>) {
    let began = Instant::now();
    loop {
        let (slot, pids) = serving.slot("dns");
        if pids.iter().flatten().count() == 1 || began.elapsed() > SETTLED_MAX {
            return (slot, pids);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// After a kill of updater and daemon: what a supervisor and an operator do, and what must come of it.
fn one_slot_serves_and_the_order_completes(serving: &Serving, killed: &str, tag: &str, load: Load) {
    let daemon = serving.daemon();
    let (slot, pids) = settled(serving);
    let last = serving.lab.status("dns").unwrap()["last"]["verdict"].clone();
    println!("killed {killed}: slot {slot} serves, {pids:?}, the last outcome was {last}");
    let serves = usize::from(slot == "b");
    assert!(pids[serves].is_some() && pids[1 - serves].is_none(), "{killed}: {slot} {pids:?}");
    let answer = serving.lab.ask(&["update", "dns"]).unwrap();
    assert_eq!(answer.code, 0, "{killed}: {} {}", answer.said, answer.told);
    let status = serving.lab.status("dns").unwrap();
    let at = usize::from(status["serving"] == "b");
    assert_eq!(status["slots"][at]["release"]["version"], tag, "{killed}: the same order completes");
    // Killed as often as one likes, a good image is not banned.
    assert_eq!(status["quarantine"].as_array().unwrap().len(), 0, "{killed}");
    nothing_is_lost(&format!("killed {killed}"), &load.reports().unwrap());
    drop(daemon);
}

#[test]
fn killed_at_any_step_exactly_one_slot_serves_and_the_order_completes() {
    let mut serving = Serving::new("6s");
    serving.soak = "2s";
    let command = dnsmasq("--address=/example.internal/192.0.2.3");
    let third = Recipe { tag: TAGS[2], programs: DNSMASQ, files: &[], command: &command };
    serving.lab.publish(&third).unwrap();
    let tag = declare_a_new_one(&mut serving);
    let began = Instant::now();
    let mut good = order(&serving);
    let all: Vec<String> = steps(&mut good).collect();
    assert!(good.wait().unwrap().success(), "{all:#?}");
    let length = began.elapsed();
    println!("{tag}: {} steps in {length:?}", all.len());
    assert!(all.len() > 5, "{all:#?}");
    for number in 0..all.len() {
        let tag = declare_a_new_one(&mut serving);
        let (daemon, load) = (serving.daemon(), asked(&serving.lab, LOAD_SECS, 5));
        let mut order = order(&serving);
        let step = steps(&mut order).nth(number).unwrap_or_default();
        kill_inner(&order, Signal::SIGKILL);
        daemon.kill();
        order.wait().unwrap();
        let action = step.split("action=").nth(1).unwrap_or("after the last");
        let action: String = action.chars().take_while(|sign| sign.is_alphanumeric()).collect();
        one_slot_serves_and_the_order_completes(
            &serving,
            &format!("at step {} ({action})", number + 1),
            tag,
            load,
        );
    }
    // In the middle of what a step does, too. The moments are spread evenly: no number has to be kept to repeat a run.
    for number in 1..=MOMENTS {
        let tag = declare_a_new_one(&mut serving);
        let (daemon, load): (Daemon, Load) = (serving.daemon(), asked(&serving.lab, LOAD_SECS, 5));
        let mut order = order(&serving);
        let moment = length * number / (MOMENTS + 1);
        std::thread::sleep(moment);
        kill_inner(&order, Signal::SIGKILL);
        daemon.kill();
        order.wait().unwrap();
        one_slot_serves_and_the_order_completes(&serving, &format!("after {moment:.1?}"), tag, load);
    }
}
