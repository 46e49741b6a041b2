//! `make demo-boot`: the life of an update on a disk that firmware boots, told with its console.

use std::time::Duration;

use anyhow::{Result, ensure};
use switchback_tests::lab::release::{Loader, Recipe, Temper};

use crate::scene::Scene;

/// A bad release is back well before this.
const RETURN_TIMEOUT: Duration = Duration::from_secs(600);

/// Tells the story; the scene shows the console.
pub fn tell(scene: &mut Scene) -> Result<()> {
    say("A disk is provisioned with 1.0, and a machine with UEFI firmware and systemd-boot starts from it.");
    scene.power_on_with(&Recipe::new("1.0", Temper::Good), Loader::V252, false)?;
    type_in(scene, "switchback status")?;

    say("1.1 is built, pushed to the registry and signed with cosign. The machine updates itself.");
    scene.publish(&Recipe::new("1.1", Temper::Good))?;
    type_in(scene, "switchback check")?;
    reboots_to(scene, "switchback update --reboot", "1.1")?;

    say(
        "1.1 was healthy and is confirmed. Back to 1.0, for once: a trial like any other, nothing is fetched.",
    );
    reboots_to(scene, "switchback rollback --reboot", "1.0")?;
    say("And to 1.1 again: it still lies in the other slot, so nothing is written.");
    reboots_to(scene, "switchback update --to 1.1 --reboot", "1.1")?;

    say("1.2 is published, signed as properly as the others, and its health check fails.");
    let digest = scene.publish(&Recipe::new("1.2", Temper::Unhealthy))?;
    reboots_to(scene, "switchback update --reboot", "1.1")?;
    say("The machine came back by itself, and remembers why.");
    type_in(scene, "switchback history")?;
    let refused = type_in(scene, "switchback update")?;
    ensure!(refused >= 10, "1.2 is not refused");
    let refused = type_in(scene, "switchback rollback")?;
    ensure!(refused >= 10, "a rollback to the quarantined 1.2 is not refused");
    type_in(scene, "switchback status")?;
    ensure!(scene.status()?.quarantine == [digest], "1.2 is not quarantined");
    say(&format!("The end, after {} boots.", scene.boots()));
    Ok(())
}

fn say(sentence: &str) {
    println!("\n## {sentence}\n");
}

fn type_in(scene: &Scene, command: &str) -> Result<i32> {
    println!("# {command}");
    let answer = scene.run(command)?;
    println!("{}(exit code {})", answer.text, answer.code);
    Ok(answer.code)
}

fn reboots_to(scene: &Scene, command: &str, version: &str) -> Result<()> {
    println!("# {command}");
    let running = scene.reboots(command, RETURN_TIMEOUT)?;
    ensure!(running == version, "the machine came up with {running}\n{}", scene.explain());
    Ok(())
}
