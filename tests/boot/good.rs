//! Good releases: they are confirmed, and one can go back and forth between two.

use anyhow::{Result, ensure};
use switchback_tests::lab::qemu::BOOT_TIMEOUT;
use switchback_tests::lab::release::{Loader, Recipe, Temper};

use crate::scene::Scene;
use crate::witness;

/// A good update costs one reboot, is confirmed, and leaves a disk with which the standard tools find no fault.
pub fn update(scene: &mut Scene) -> Result<()> {
    confirmed(scene, &Recipe::new("1.1", Temper::Good))
}

/// The same with kernel, initramfs and command line in one file, made by ukify.
pub fn unified(scene: &mut Scene) -> Result<()> {
    confirmed(scene, &Recipe { unified: true, ..Recipe::new("1.1", Temper::Good) })
}

fn confirmed(scene: &mut Scene, release: &Recipe) -> Result<()> {
    scene.power_on_with(&Recipe::new("1.0", Temper::Good), Loader::V252, false)?;
    from_first_start(scene, release)
}

/// The same on a machine that has just come up with 1.0, until it is switched off.
pub fn from_first_start(scene: &mut Scene, release: &Recipe) -> Result<()> {
    scene.expect_settled("1.0")?;
    scene.publish(release)?;
    let offer = scene.ask("check")?;
    ensure!(offer["available"] == true, "`check` does not see the release: {offer:#}");
    let running = scene.update("")?;
    ensure!(running == "1.1", "the machine came up with {running}\n{}", scene.explain());
    scene.expect_settled("1.1")?;
    ensure!(scene.boots() == 2, "a good update took {} boots", scene.boots());
    let disk = scene.power_off()?;
    witness::table_and_esp_are_sound(disk)?;
    witness::slots_verify(disk, 2)
}

/// Rollback and update again, five times: each is a trial like any other and fetches nothing.
pub fn five_cycles(scene: &mut Scene) -> Result<()> {
    scene.power_on_with(&Recipe::new("1.0", Temper::Good), Loader::V252, false)?;
    scene.publish(&Recipe::new("1.1", Temper::Good))?;
    let running = scene.update("")?;
    ensure!(running == "1.1", "the machine came up with {running}\n{}", scene.explain());
    for cycle in 1..=5 {
        let before = scene.boots();
        let running = scene.reboots("switchback --json rollback --reboot", BOOT_TIMEOUT)?;
        ensure!(running == "1.0", "rollback {cycle} ended on {running}\n{}", scene.explain());
        scene.expect_settled("1.0")?;
        // The rollback holds 1.1 back, so only naming it brings it again; both slots hold what is wanted.
        let plan = scene.ask("update --to 1.1 --dry-run")?;
        let traffic = &plan["traffic"];
        ensure!(traffic["written"] == 0, "cycle {cycle} would write a slot that holds the release: {plan:#}");
        let running = scene.update("--to 1.1")?;
        ensure!(running == "1.1", "update {cycle} ended on {running}\n{}", scene.explain());
        scene.expect_settled("1.1")?;
        ensure!(scene.boots() == before + 2, "cycle {cycle} took {} boots, not 2", scene.boots() - before);
    }
    let disk = scene.power_off()?;
    witness::table_and_esp_are_sound(disk)?;
    witness::slots_verify(disk, 2)
}
