//! Releases that bind the OS and both services: they come together, and go together.
//!
//! Rule: what runs is asked of the machine, what serves of its clients; one step means one start of the machine.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use switchback_tests::lab::appliance::Appliance;
use switchback_tests::lab::qemu::BOOT_TIMEOUT;
use switchback_tests::lab::scene::Scene;

use crate::stage::{FIRST, PATIENCE, Ports, Shown, serving};

/// The OS of the releases.
const SECOND: Appliance = Appliance { version: "1.1" };

/// What a release binds, as `repository:tag`.
pub type Services<'a> = [(&'a str, &'a str); 2];

/// A good one.
pub const GOOD: Services<'static> = [("dns", "appliance-dns:unbound-1"), ("ntp", "appliance-ntp:chrony-1")];
/// Its DNS service fails after the restart.
pub const BAD: Services<'static> = [("dns", "appliance-dns:bad-1"), ("ntp", "appliance-ntp:chrony-1")];

/// Publishes a release on the scene's channel; returns its digest.
pub fn publish(scene: &Scene, version: &str, services: &Services<'_>) -> Result<String> {
    scene.lab().publish_bound((version, &SECOND), services, scene.name())
}

/// The OS restarts, its services come with it; the rollback takes all of it back.
pub fn come_and_go(scene: &mut Scene) -> Result<()> {
    let ports = serving(scene)?;
    publish(scene, "2.0", &GOOD)?;
    let boots = scene.boots();
    ensure!(scene.update("")? == SECOND.version, "the machine came up with another OS\n{}", scene.explain());
    serves(scene, ports, "2.0", "unbound-1")?;
    let status = scene.ask("status")?;
    let lines = status["services"].as_array().context("no services")?;
    ensure!(lines.len() == 2 && lines.iter().all(|line| line["drift"].is_null()), "it drifted: {status:#}");
    scene.reboots("switchback --json rollback --reboot", BOOT_TIMEOUT)?;
    serves(scene, ports, FIRST.version, "dnsmasq-1")?;
    ensure!(scene.boots() - boots == 2, "there and back took {} starts", scene.boots() - boots);
    Ok(())
}

/// One whose DNS service fails after the restart: OS and services return in one step.
pub fn returns_whole(scene: &mut Scene) -> Result<()> {
    let ports = serving(scene)?;
    let bad = publish(scene, "2.1", &BAD)?;
    let boots = scene.boots();
    // Commands are taken once a start is judged: the trial's own start takes none.
    let running = scene.update("")?;
    ensure!(running == FIRST.version, "the machine came back with {running}");
    serves(scene, ports, FIRST.version, "dnsmasq-1")?;
    ensure!(scene.boots() - boots == 2, "the return took {} starts", scene.boots() - boots - 1);
    ensure!(scene.reason_of(&bad)? == "health-failed", "{}", scene.explain());
    ensure!(scene.status()?.quarantine == [bad], "it is not quarantined\n{}", scene.explain());
    let history = scene.ask("history")?;
    let detail = history["entries"][0]["detail"].as_str().unwrap_or_default().to_owned();
    println!("the cause in the history: {detail}");
    ensure!(detail.contains("services: dns: "), "the history does not name the service: {history:#}");
    Ok(())
}

/// Waits until the release is confirmed and both services answer, DNS from this image.
pub fn serves(scene: &Scene, ports: Ports, release: &str, dns: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let status = scene.status()?;
        if status.version == release && status.good && status.state == "idle" {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "{release} is not confirmed: {status:?}\n{}", scene.explain());
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    ports.wait_for_answers()?;
    for (name, version) in [("dns", dns), ("ntp", "chrony-1")] {
        let shown = Shown::settled(scene, name)?;
        ensure!(shown.version == version, "{name} serves {shown:?}, not {version}");
    }
    Ok(())
}
