//! The plug is pulled at each step of a service's update: after the next start exactly one slot serves, and the same order goes through.
//!
//! Rule: the steps are the updater's own, as it writes them to the console; a good update is counted first, so that none is left out.

use anyhow::{Context as _, Result, ensure};
use switchback_tests::lab::qemu::BOOT_TIMEOUT;
use switchback_tests::lab::scene::Scene;

use crate::stage::{ENDED, Ports, STEP, Shown, order_dns, serving, wait_back};

/// One more than there are slots.
const IMAGES: [&str; 3] = ["dnsmasq-1", "dnsmasq-2", "dnsmasq-3"];
/// Fewer cannot be a whole update.
const STEPS_MIN: usize = 6;

pub fn at_each_step(scene: &mut Scene) -> Result<()> {
    let ports = serving(scene)?;
    let from = scene.vm()?.console().len();
    order_dns(scene, "dnsmasq-2")?;
    let console = scene.vm()?.console();
    console.wait_for("ORDER-ENDED 0$", from, BOOT_TIMEOUT)?;
    let steps = console.count(STEP)?;
    println!("a good update takes {steps} steps");
    ensure!(steps >= STEPS_MIN, "only {steps} steps came to the console:\n{}", console.tail());
    for step in 1..=steps {
        killed(scene, ports, step).with_context(|| format!("killed at step {step} of {steps}"))?;
    }
    Ok(())
}

fn killed(scene: &mut Scene, ports: Ports, step: usize) -> Result<()> {
    let before = Shown::settled(scene, "dns")?;
    // What a slot holds already is not installed again: an order for it would have a step less.
    let held = Shown::held(scene, "dns")?;
    let to = IMAGES.into_iter().find(|image| held.iter().all(|held| held != image));
    let to = to.context("two slots hold three images")?;
    let mut from = scene.vm()?.console().len();
    order_dns(scene, to)?;
    let (mut words, step_or_end) = (String::new(), format!("{STEP}|{ENDED}"));
    for number in 1..=step {
        let (place, line) = scene.vm()?.console().wait_for(&step_or_end, from, BOOT_TIMEOUT)?;
        ensure!(!line.text.contains("ORDER-ENDED"), "the order ended before its step {number}");
        (from, words) = (place + 1, line.text);
    }
    scene.kill()?;
    scene.power_on()?;
    wait_back(scene, ports)?;
    let after = Shown::settled(scene, "dns")?;
    let action = words.split("action=").nth(1).unwrap_or(&words);
    println!("killed at step {step} ({action:.40}): slot {} serves {}", after.slot, after.version);
    ensure!([&before.version, to].contains(&after.version.as_str()), "dns serves {}", after.version);
    ensure!(after.banned.is_empty(), "a good image is banned: {after:?}");
    let moved = scene.ask(&format!("update dns --to {to}"))?;
    ensure!(moved["release"]["version"] == to, "the same order again: {moved:#}");
    let settled = Shown::of(scene, "dns")?;
    ensure!(settled.version == to && settled.only_pid().is_some(), "the same order left {settled:?}");
    ports.answer(1)
}
