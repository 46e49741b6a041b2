//! The second profile: the same daemon as a unit of systemd, on the book's Debian root.
//!
//! Rule: what holds for the appliance holds here: clients are on the host, and a killed daemon takes nothing along.

use anyhow::{Result, ensure};
use switchback_tests::lab::debian::{Bless, Debian, Temper};
use switchback_tests::lab::release::Loader;
use switchback_tests::lab::scene::Scene;

use crate::moves::moves;
use crate::stage::{Shown, ordered, switched_on};

const DEBIAN: Debian = Debian { version: "1.0", temper: Temper::Good, bless: Bless::Present, services: true };

pub fn serves_and_moves(scene: &mut Scene) -> Result<()> {
    // systemd, udev and its network daemon work at each new cable, too: seven seconds of work in all on an emulated processor, which
    // the appliance does in four.
    let ports = switched_on(scene, &DEBIAN, Loader::V257, true)?;
    ordered(scene, ports)?;
    moves(scene, ports, "dnsmasq-2")?;
    let before = Shown::of(scene, "dns")?;
    let daemon = "systemctl show --value --property MainPID switchback-daemon.service";
    let killed = scene.run(daemon)?.ok()?;
    scene.run(&format!("kill -9 {killed}"))?.ok()?;
    ports.answer(3)?;
    let active = scene.run("sleep 3; systemctl is-active switchback-daemon.service")?;
    ensure!(active.text.trim() == "active", "the daemon is {}", active.text);
    ensure!(scene.run(daemon)?.ok()? != killed, "it is the same process");
    ensure!(Shown::of(scene, "dns")? == before, "the killed daemon took a service along");
    let failed = scene.run("systemctl list-units --failed --plain --no-legend")?.ok()?;
    ensure!(failed.trim().is_empty(), "units failed:\n{failed}");
    Ok(())
}
