//! Bad releases: the machine is back on the old slot in at most tries + 1 boots, with no help from anyone.

use std::time::Duration;

use anyhow::{Result, ensure};
use switchback_tests::lab::release::{Kernel, Loader, Recipe, Temper};

use crate::scene::{Scene, TRIES};
use crate::witness;

/// Until the machine is back: three tries that each wait for a deadline or a watchdog, on a busy host.
const RETURN_TIMEOUT: Duration = Duration::from_secs(20 * 60);

/// The kernel panics as soon as the root is up.
pub fn panics(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Temper::Panics, Loader::V252, TRIES + 1)
}

/// The same under the newer loader, which tells the system other names for one entry.
pub fn panics_under_the_newer_loader(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Temper::Panics, Loader::V257, TRIES + 1)
}

/// The health check fails: known at the first try, so the machine does not spend the others.
pub fn unhealthy(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Temper::Unhealthy, Loader::V252, 2)
}

/// PID 1 ends, and the kernel panics for it.
pub fn exits(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Temper::Exits, Loader::V252, TRIES + 1)
}

/// PID 1 spins: no watchdog in this machine, so the trial's deadline has to end it.
pub fn hangs(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Temper::Hangs, Loader::V252, TRIES + 1)
}

/// Nothing runs any more, the keeper of the watchdog neither: the watchdog has to end it.
pub fn freezes(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Temper::Freezes, Loader::V252, TRIES + 1)
}

fn comes_back(scene: &mut Scene, temper: Temper, loader: Loader, boots_max: usize) -> Result<()> {
    let watchdog = temper == Temper::Freezes;
    let kernel = if watchdog { Kernel::V6_12 } else { Kernel::V6_1 };
    scene.power_on_with(&Recipe { version: "1.0", temper: Temper::Good, kernel }, loader, watchdog)?;
    scene.expect_settled("1.0")?;
    let digest = scene.publish(&Recipe { version: "1.1", temper, kernel })?;
    let before = scene.boots();
    // From the reboot to the end of this wait nobody touches the machine.
    let running = scene.reboots("switchback --json update --reboot", RETURN_TIMEOUT)?;
    ensure!(running == "1.0", "the machine came up with {running}\n{}", scene.explain());
    let boots = scene.boots() - before;
    ensure!(boots <= boots_max, "the way back took {boots} boots, more than {boots_max}");
    let tried = scene.vm()?.console().count("LAB-BOOT 1.1")?;
    ensure!(tried >= 1, "the bad release was never tried\n{}", scene.explain());

    scene.expect_settled("1.0")?;
    let status = scene.status()?;
    ensure!(status.quarantine == [digest.clone()], "{digest} is not quarantined alone: {status:?}");
    let history = scene.ask("history")?;
    let entries = history["entries"].as_array().into_iter().flatten();
    let mut returns =
        entries.filter(|entry| entry["digest"] == digest.as_str() && entry["reason"].is_string());
    ensure!(returns.next().is_some(), "the history gives no reason for the return: {history:#}");
    let refused = scene.run("switchback update --reboot")?;
    ensure!(refused.code >= 10, "`update` does not refuse what came back: {refused:?}");
    witness::table_and_esp_are_sound(scene.power_off()?)
}
