//! The supervisor is killed, the machine restarts and is switched off: the services are what they were.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use switchback_tests::lab::qemu::BOOT_TIMEOUT;
use switchback_tests::lab::scene::Scene;

use crate::stage::{FIRST, Shown, boot_id, serving, wait_back};

/// The supervisor's process.
const SUPERVISOR: &str = "for p in /proc/[0-9]*; do [ \"$(tr '\\0' ' ' <$p/cmdline)\" != 'switchback daemon ' ] || echo ${p#/proc/}; done 2>/dev/null";
/// How soon it is there again.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn nothing_changes(scene: &mut Scene) -> Result<()> {
    let ports = serving(scene)?;
    let before = (Shown::of(scene, "dns")?, Shown::of(scene, "ntp")?);
    let killed = supervisor(scene)?;
    scene.run(&format!("kill -9 {killed}"))?.ok()?;
    let began = Instant::now();
    while supervisor(scene).map_or(true, |pid| pid == killed) {
        ensure!(began.elapsed() < PATIENCE, "the supervisor is not started again\n{}", scene.explain());
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("the supervisor was killed and runs again after {:.1} s", began.elapsed().as_secs_f64());
    ports.answer(2)?;
    let after = (Shown::of(scene, "dns")?, Shown::of(scene, "ntp")?);
    ensure!(after == before, "a killed supervisor took services along: {before:?} {after:?}");

    let boot = boot_id(scene)?;
    let running = scene.reboots("reboot", BOOT_TIMEOUT)?;
    ensure!(running == FIRST.version, "the machine came up with {running}");
    ensure!(boot_id(scene)? != boot, "the machine has not started again");
    ports.wait_for_answers()?;
    same_images(scene, &before)?;

    scene.vm()?.start("poweroff")?;
    scene.wait_off()?;
    scene.power_on()?;
    wait_back(scene, ports)?;
    same_images(scene, &before)
}

fn same_images(scene: &Scene, before: &(Shown, Shown)) -> Result<()> {
    for (name, before) in [("dns", &before.0), ("ntp", &before.1)] {
        let after = Shown::settled(scene, name)?;
        let same = (&after.slot, &after.version) == (&before.slot, &before.version);
        ensure!(same, "{name} was {before:?} and is {after:?}");
    }
    Ok(())
}

fn supervisor(scene: &Scene) -> Result<i32> {
    let pid = scene.run(SUPERVISOR)?.ok()?;
    pid.trim().parse().with_context(|| format!("not one supervisor: {pid:?}"))
}
