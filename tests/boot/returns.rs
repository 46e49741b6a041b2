//! Bad releases: the machine is back on the old slot in at most tries + 1 boots, with no help from anyone.
//!
//! Not here: good files that were damaged after they were armed (`damaged`). Rule: every way back has its reason in the
//! history, and the reason is the one that the scenario made.

use std::time::Duration;

use anyhow::{Result, ensure};
use switchback_tests::lab::release::{Kernel, Loader, Recipe, Temper};

use crate::scene::{Scene, TRIES};
use crate::witness;

/// Until the machine is back: three tries that each wait for a deadline or a watchdog, on a busy host.
const RETURN_TIMEOUT: Duration = Duration::from_secs(20 * 60);

/// One bad release, and the way back that is expected.
#[derive(Clone, Copy)]
pub struct Bad {
    /// How the release behaves.
    pub temper: Temper,
    /// The machine's loader.
    pub loader: Loader,
    /// The release's boot files are one unified kernel image.
    pub unified: bool,
    /// A script that is typed in the guest between arming and the reboot.
    pub damage: Option<&'static str>,
    /// Boots from the order to the old slot.
    pub boots_max: usize,
    /// Whether the bad release's root gets as far as saying that it is there.
    pub comes_up: bool,
    /// What the history must say.
    pub reason: &'static str,
}

impl Bad {
    /// A release that spends every try, on the older loader.
    const fn spends_every_try(temper: Temper, reason: &'static str) -> Bad {
        Bad {
            temper,
            loader: Loader::V252,
            unified: false,
            damage: None,
            boots_max: TRIES + 1,
            comes_up: true,
            reason,
        }
    }
}

/// The kernel panics as soon as the root is up.
pub fn panics(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Bad::spends_every_try(Temper::Panics, "died-after-root"))
}

/// The same under the newer loader, which tells the system other names for one entry.
pub fn panics_under_the_newer_loader(scene: &mut Scene) -> Result<()> {
    let panics = Bad::spends_every_try(Temper::Panics, "died-after-root");
    comes_back(scene, Bad { loader: Loader::V257, ..panics })
}

/// The health check fails: known at the first try, so the machine does not spend the others.
pub fn unhealthy(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Bad { boots_max: 2, ..Bad::spends_every_try(Temper::Unhealthy, "health-failed") })
}

/// The release comes up without a network, which its check needs.
pub fn offline(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Bad { boots_max: 2, ..Bad::spends_every_try(Temper::Offline, "health-failed") })
}

/// PID 1 ends, and the kernel panics for it.
pub fn exits(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Bad::spends_every_try(Temper::Exits, "died-after-root"))
}

/// PID 1 spins: no watchdog in this machine, so the trial's deadline has to end it.
pub fn hangs(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Bad::spends_every_try(Temper::Hangs, "deadline-missed"))
}

/// The initramfs waits for ever before any driver is loaded: nobody holds a watchdog yet, its own deadline ends it.
pub fn hangs_early(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Bad { comes_up: false, ..Bad::spends_every_try(Temper::HangsEarly, "died-early") })
}

/// Nothing runs any more, the keeper of the watchdog neither: the watchdog has to end it, and its driver says so after
/// the reset: no guess from marks.
pub fn freezes(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Bad::spends_every_try(Temper::Freezes, "watchdog-reset"))
}

/// The image has no updater, so nobody judges the trial.
pub fn without_updater(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Bad::spends_every_try(Temper::Updaterless, "deadline-missed"))
}

/// A second bad release after a first one: both are known, and the old slot is still there.
pub fn twice(scene: &mut Scene) -> Result<()> {
    scene.power_on_with(&Recipe::new("1.0", Temper::Good), Loader::V252, false)?;
    let mut digests = Vec::new();
    for (version, temper, reason) in
        [("1.1", Temper::Unhealthy, "health-failed"), ("1.2", Temper::Panics, "died-after-root")]
    {
        digests.push(scene.publish(&Recipe::new(version, temper))?);
        returns(scene, "switchback --json update --reboot", TRIES + 1)?;
        let found = scene.reason_of(digests.last().map_or("", String::as_str))?;
        ensure!(found == reason, "{version} came back for {found}, not {reason}\n{}", scene.explain());
    }
    digests.sort();
    let mut quarantine = scene.status()?.quarantine;
    quarantine.sort();
    ensure!(quarantine == digests, "quarantined are {quarantine:?}, not {digests:?}");
    for version in ["1.1", "1.2"] {
        let refused = scene.run(&format!("switchback update --to {version}"))?;
        ensure!(refused.code == 16, "`update --to {version}` is not refused as quarantined: {refused:?}");
    }
    scene.expect_settled("1.0")?;
    witness::table_and_esp_are_sound(scene.power_off()?)
}

/// A machine on 1.0 updates to a bad 1.1 and comes back.
pub fn comes_back(scene: &mut Scene, bad: Bad) -> Result<()> {
    let Bad { temper, loader, unified, damage, boots_max, comes_up, reason } = bad;
    let watchdog = temper == Temper::Freezes;
    let kernel = if watchdog { Kernel::V6_12 } else { Kernel::V6_1 };
    scene.power_on_with(
        &Recipe { version: "1.0", temper: Temper::Good, kernel, unified },
        loader,
        watchdog,
    )?;
    scene.expect_settled("1.0")?;
    let digest = scene.publish(&Recipe { version: "1.1", temper, kernel, unified })?;
    match damage {
        None => returns(scene, "switchback --json update --reboot", boots_max)?,
        Some(script) => {
            scene.ask("update")?;
            scene.run(script)?.ok()?;
            returns(scene, "cd /; sync; umount /var/lib/switchback; reboot -f", boots_max)?;
        }
    }
    let tried = scene.vm()?.console().count("LAB-BOOT 1.1")?;
    ensure!((tried >= 1) == comes_up, "the bad release came up {tried} times\n{}", scene.explain());
    let found = scene.reason_of(&digest)?;
    ensure!(found == reason, "it came back for {found}, not {reason}\n{}", scene.explain());

    scene.expect_settled("1.0")?;
    if reason == "loader-refused" {
        return taken_anew(scene);
    }
    let status = scene.status()?;
    ensure!(status.quarantine == [digest.clone()], "{digest} is not quarantined alone: {status:?}");
    let refused = scene.run("switchback update --reboot")?;
    ensure!(refused.code >= 10, "`update` does not refuse what came back: {refused:?}");
    witness::table_and_esp_are_sound(scene.power_off()?)
}

/// A slot that lost a file was never tried, so its release is not banned: the next update finds what is missing, and the
/// one after that writes the slot anew.
fn taken_anew(scene: &mut Scene) -> Result<()> {
    let status = scene.status()?;
    ensure!(status.quarantine.is_empty(), "a release that never started is quarantined: {status:?}");
    let refused = scene.run("switchback --json update --to 1.1")?;
    ensure!(refused.code == 41, "a slot without its kernel is armed again: {refused:?}");
    let running = scene.update("--to 1.1")?;
    ensure!(running == "1.1", "the update ended on {running}\n{}", scene.explain());
    scene.expect_settled("1.1")?;
    let disk = scene.power_off()?;
    witness::table_and_esp_are_sound(disk)?;
    witness::slots_verify(disk, 2)
}

/// Starts what ends in a reboot. From there to the end of this wait nobody touches the machine.
fn returns(scene: &mut Scene, command: &str, boots_max: usize) -> Result<()> {
    let before = scene.boots();
    let running = scene.reboots(command, RETURN_TIMEOUT)?;
    ensure!(running == "1.0", "the machine came up with {running}\n{}", scene.explain());
    let boots = scene.boots() - before;
    ensure!(boots <= boots_max, "the way back took {boots} boots, more than {boots_max}");
    Ok(())
}
