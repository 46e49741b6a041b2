//! The plug is pulled in the middle: the machine comes up, and the same command brings the update to its end.
//!
//! Rule: what a kill shows is the loss of the guest's memory at an arbitrary instant. What the disk had accepted stays.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use switchback_tests::lab::qemu::BOOT_TIMEOUT;
use switchback_tests::lab::release::{Loader, Recipe, Temper};

use crate::scene::Scene;
use crate::witness;

/// While the release is looked up and its signature checked.
pub fn checking(scene: &mut Scene) -> Result<()> {
    killed(scene, r#""event":"begin".*"phase":"check"|"phase":"check".*"event":"begin""#, 800)
}

/// While chunks are fetched and written.
pub fn writing(scene: &mut Scene) -> Result<()> {
    killed(scene, r#""event":"begin".*"phase":"write""#, 2000)
}

/// While kernel and initramfs are written to the ESP.
pub fn boot_files(scene: &mut Scene) -> Result<()> {
    killed(scene, r#""event":"begin".*"phase":"boot""#, 800)
}

/// From the end of the proof to the reboot: around the one rename that arms.
pub fn arming(scene: &mut Scene) -> Result<()> {
    killed(scene, r#""event":"end".*"phase":"prove""#, 500)
}

/// While the new release judges itself.
pub fn on_trial(scene: &mut Scene) -> Result<()> {
    killed(scene, "LAB-BOOT 1.1", 1500)
}

fn killed(scene: &mut Scene, moment: &str, within_ms: u64) -> Result<()> {
    scene.power_on_with(&Recipe::new("1.0", Temper::Good), Loader::V252, false)?;
    scene.expect_settled("1.0")?;
    scene.publish(&Recipe::new("1.1", Temper::Good))?;
    let delay = delay(within_ms)?;
    let vm = scene.vm()?;
    let from = vm.console().len();
    vm.start("switchback --json update --reboot")?;
    vm.console().wait_for(moment, from, BOOT_TIMEOUT)?;
    std::thread::sleep(delay);
    scene.kill()?;
    after_the_kill(scene).with_context(|| format!("after a kill {delay:?} behind `{moment}`"))
}

fn after_the_kill(scene: &mut Scene) -> Result<()> {
    scene.power_on()?;
    let running = scene.wait_ready(BOOT_TIMEOUT)?;
    match running.as_str() {
        // Not armed yet: the old release, confirmed, and the second run continues where the first was cut off.
        "1.0" => {
            scene.expect_running_good("1.0")?;
            let running = scene.update("")?;
            ensure!(running == "1.1", "the second run ended on {running}\n{}", scene.explain());
        }
        "1.1" => {}
        other => anyhow::bail!("the machine came up with {other}"),
    }
    scene.expect_settled("1.1")?;
    let disk = scene.power_off()?;
    witness::table_and_esp_are_sound_after_a_kill(disk)?;
    witness::slots_verify(disk, 2)
}

/// A random time up to `within_ms`; `LAB_DELAY_MS` repeats one.
fn delay(within_ms: u64) -> Result<Duration> {
    let chosen = match std::env::var("LAB_DELAY_MS") {
        Ok(text) => text.parse().context("LAB_DELAY_MS is no number of milliseconds")?,
        Err(_) => RandomState::new().hash_one(within_ms) % within_ms,
    };
    Ok(Duration::from_millis(chosen))
}
