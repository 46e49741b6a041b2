//! The world around a good release is bad: the power goes at every start, the disk fails in the middle.
//!
//! Rule: what is not the release's fault never bans it.

use anyhow::{Result, ensure};
use switchback_tests::lab::qemu::BOOT_TIMEOUT;
use switchback_tests::lab::release::{Loader, Recipe, Temper};

use crate::scene::{Scene, TRIES};
use crate::witness;

/// 1 MiB in sectors: where root-b is not its first block.
const INSIDE: u64 = 2048;

/// Three starts of a trial, each ended by a power cut at another stage: inconclusive, not banned, and then confirmed.
pub fn cut_at_every_start(scene: &mut Scene) -> Result<()> {
    scene.power_on_with(&Recipe::new("1.0", Temper::Good), Loader::V252, false)?;
    scene.expect_settled("1.0")?;
    let digest = scene.publish(&Recipe::new("1.1", Temper::Slow))?;
    scene.vm()?.start("switchback --json update --reboot")?;
    for moment in ["LAB-BOOT 1.1", "LAB-HEALTH 1.1", "LAB-BOOT 1.1"] {
        scene.vm()?.console().wait_for(moment, 0, BOOT_TIMEOUT)?;
        scene.kill()?;
        scene.power_on()?;
    }
    scene.expect_ready("1.0")?;
    ensure!(scene.boots() == 2 + TRIES, "{} boots, not {}", scene.boots(), 2 + TRIES);
    let reason = scene.reason_of(&digest)?;
    ensure!(reason == "inconclusive", "three power cuts are taken for {reason}\n{}", scene.explain());
    let status = scene.status()?;
    ensure!(status.quarantine.is_empty() && status.good, "power cuts banned a release: {status:?}");
    ensure!(status.state == "staged", "it is not going to be tried again: {status:?}");
    // An operator need not wait for the back-off; nothing is fetched for the second trial.
    let running = scene.update("--to 1.1")?;
    ensure!(running == "1.1", "the second trial ended on {running}\n{}", scene.explain());
    scene.expect_settled("1.1")?;
    let disk = scene.power_off()?;
    witness::table_and_esp_are_sound_after_a_kill(disk)?;
    witness::slots_verify(disk, 2)
}

/// A sector of the other slot takes no write: the update says so, the running slot stays, and on a whole disk the same
/// order succeeds.
pub fn disk_fails_while_writing(scene: &mut Scene) -> Result<()> {
    scene.power_on_with(&Recipe::new("1.0", Temper::Good), Loader::V252, false)?;
    scene.expect_settled("1.0")?;
    let sector = witness::first_sector(scene.power_off()?, "root-b")? + INSIDE;
    scene.rebuild(|hardware| hardware.broken_sector = Some(sector))?;
    scene.power_on()?;
    scene.expect_ready("1.0")?;
    scene.publish(&Recipe::new("1.1", Temper::Good))?;
    let failed = scene.run("switchback --json update")?;
    ensure!(failed.code == 40, "an update onto a broken disk ends with {failed:?}");
    ensure!(failed.text.contains("write-failed"), "it gives another reason: {}", failed.text);
    scene.expect_settled("1.0")?;

    scene.power_off()?;
    scene.rebuild(|hardware| hardware.broken_sector = None)?;
    scene.power_on()?;
    scene.expect_ready("1.0")?;
    let running = scene.update("")?;
    ensure!(running == "1.1", "on a whole disk the update ended on {running}\n{}", scene.explain());
    scene.expect_settled("1.1")?;
    let disk = scene.power_off()?;
    witness::table_and_esp_are_sound(disk)?;
    witness::slots_verify(disk, 2)
}
