//! A service is moved while clients ask, to a good image and to a bad one.
//!
//! Rule: a run in which nothing moves comes first, so that a loss is the move's.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use switchback_tests::lab::scene::Scene;

use crate::stage::{MODEST, Ports, Shown, boot_id, nothing_is_lost, serving};

/// How long clients ask before the order, in seconds; how long in all.
const BEFORE: u64 = 5;
const ALL: u64 = 45;
/// The longest time from the start of the new slot until clients are led there, on an emulated machine.
const ACTIVATION_MAX: f64 = 5.0;

/// dnsmasq to a newer one, then to another program; NTP and the machine notice nothing.
pub fn good(scene: &mut Scene) -> Result<()> {
    let ports = serving(scene)?;
    nothing_is_lost("nothing moves", &ports.load(15, MODEST)?.reports()?)?;
    for to in ["dnsmasq-2", "unbound-1"] {
        moves(scene, ports, to)?;
    }
    Ok(())
}

/// One move under load, to an image by its tag.
pub fn moves(scene: &Scene, ports: Ports, to: &str) -> Result<()> {
    let (before, ntp, boot) = (Shown::of(scene, "dns")?, Shown::of(scene, "ntp")?, boot_id(scene)?);
    let (code, moved) = ordered_under_load(scene, ports, to, &format!("dns → {to}"))?;
    ensure!(code == 0, "the order ended with {code}: {moved:#}");
    let activation = moved["activation_seconds"].as_f64().context("nobody was led anywhere")?;
    println!(
        "dns → {to}: led there {activation:.2} s after its start, all done after {} s",
        moved["seconds"]
    );
    ensure!(activation < ACTIVATION_MAX, "{activation} s until clients were led to the new slot");
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
    let (code, failed) = ordered_under_load(scene, ports, "bad-1", "dns → bad-1")?;
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

/// Orders DNS to move while clients ask; returns the order's exit code and answer.
fn ordered_under_load(scene: &Scene, ports: Ports, to: &str, what: &str) -> Result<(i32, Value)> {
    let load = ports.load(ALL, MODEST)?;
    std::thread::sleep(Duration::from_secs(BEFORE));
    let order = scene.run(&format!("switchback --json update dns --to {to} 2>/run/lab/progress"))?;
    let answer = serde_json::from_str(&order.text).with_context(|| format!("no JSON: {}", order.text))?;
    nothing_is_lost(what, &load.reports()?)?;
    Ok((order.code, answer))
}
