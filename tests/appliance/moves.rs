//! A service is moved while clients ask, to a good image and to a bad one.
//!
//! Rule: a run in which nothing moves comes first, so that a loss is the move's.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use switchback_tests::lab::qemu::BOOT_TIMEOUT;
use switchback_tests::lab::scene::Scene;

use crate::stage::{ENDED, MODEST, Ports, Shown, boot_id, nothing_is_lost, order_dns, serving};

/// How long clients ask before the order, in seconds; how long in all.
const BEFORE: u64 = 5;
const ALL: u64 = 45;
/// The most time from the new slot's start until clients are led there, in seconds, on an emulated machine. It passes on a host that does
/// nothing else; the machine's processor time is printed beside it, to tell its work from the host's.
const ACTIVATION_MAX: f64 = 5.0;
/// Where DNS moves.
const MOVES: [&str; 2] = ["dnsmasq-2", "unbound-1"];

/// dnsmasq to a newer one, then to another program; NTP and the machine notice nothing.
pub fn good(scene: &mut Scene) -> Result<()> {
    let ports = serving(scene)?;
    nothing_is_lost("nothing moves", &ports.load(15, MODEST)?.reports()?)?;
    for to in MOVES {
        moves(scene, ports, to)?;
    }
    Ok(())
}

/// One move under load, to an image by its tag.
pub fn moves(scene: &Scene, ports: Ports, to: &str) -> Result<()> {
    let (before, ntp, boot) = (Shown::of(scene, "dns")?, Shown::of(scene, "ntp")?, boot_id(scene)?);
    let Ordered { code, answer, work } = ordered_under_load(scene, ports, to)?;
    ensure!(code == 0, "the order ended with {code}: {answer:#}");
    let work = work.context("nobody was led anywhere")?;
    let wall = answer["activation_seconds"].as_f64().context("no activation in the answer")?;
    println!(
        "dns → {to}: led there {:.2} s after its start, {:.2} s of processor time; all done after {} s",
        wall,
        work.as_secs_f64(),
        answer["seconds"]
    );
    ensure!(wall < ACTIVATION_MAX, "{wall} s, {work:?} of them work, until clients were led to the new slot");
    let after = Shown::of(scene, "dns")?;
    ensure!(after.version == to && after.slot != before.slot, "dns is {after:?}");
    ensure!(after.only_pid().is_some(), "not one slot runs: {after:?}");
    ensure!(Shown::of(scene, "ntp")? == ntp, "ntp is not what it was");
    ensure!(boot_id(scene)? == boot, "the machine has started again");
    Ok(())
}

/// An image that never becomes well is left again, and banned.
pub fn bad(scene: &mut Scene) -> Result<()> {
    let ports = serving(scene)?;
    let before = (Shown::of(scene, "dns")?, Shown::of(scene, "ntp")?);
    let Ordered { code, answer: failed, work } = ordered_under_load(scene, ports, "bad-1")?;
    ensure!(work.is_none(), "clients were led to it");
    ensure!(code == 50 && failed["reason"] == "health-failed", "the order ended with {code}: {failed:#}");
    println!("dns → bad-1: {}", failed["detail"]);
    let (dns, ntp) = (Shown::of(scene, "dns")?, Shown::of(scene, "ntp")?);
    ensure!(dns.banned.len() == 1, "its digest is not banned: {dns:?}");
    let dns = Shown { banned: Vec::new(), ..dns };
    ensure!((dns, ntp) == before, "the old slots are not as they were");
    let again = scene.run("switchback --json update dns --to bad-1 2>/dev/null")?;
    ensure!(again.code == 16, "ordered again, it ends with {}: {}", again.code, again.text);
    Ok(())
}

/// How an order ended.
struct Ordered {
    code: i32,
    answer: Value,
    /// The machine's processor time from the new slot's start until clients were led there; `None`: they were not.
    work: Option<Duration>,
}

/// Orders DNS to move while clients ask.
fn ordered_under_load(scene: &Scene, ports: Ports, to: &str) -> Result<Ordered> {
    let load = ports.load(ALL, MODEST)?;
    std::thread::sleep(Duration::from_secs(BEFORE));
    let (vm, console) = (scene.vm()?, scene.vm()?.console());
    let from = console.len();
    order_dns(scene, to)?;
    let (from, _) = console.wait_for(
        &format!("RunHealth.*service=dns|service=dns.*RunHealth|{ENDED}"),
        from,
        BOOT_TIMEOUT,
    )?;
    let began = vm.work()?;
    let (_, line) = console.wait_for(&format!("is led to slot|{ENDED}"), from, BOOT_TIMEOUT)?;
    let work = line.text.contains("is led to slot").then(|| vm.work()).transpose()?.map(|work| work - began);
    let (_, line) = console.wait_for(ENDED, from, BOOT_TIMEOUT)?;
    let code = line.text.rsplit(' ').next().unwrap_or_default().parse()?;
    let text = scene.run("cat /run/lab/answer")?.ok()?;
    let answer = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
    nothing_is_lost(&format!("dns → {to}"), &load.reports()?)?;
    Ok(Ordered { code, answer, work })
}
