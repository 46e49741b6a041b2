//! `make appliance-tour`: the appliance from switched off to moved, left again and restarted, told with its console.
//!
//! Not here: anything that the table of scenarios does not check too. Rule: each sentence says what a person sees next.

use std::time::Duration;

use anyhow::{Result, ensure};
use switchback_tests::lab::qemu::BOOT_TIMEOUT;
use switchback_tests::lab::scene::Scene;

use crate::releases;
use crate::shape::Sizes;
use crate::stage::{MODEST, Ports, nothing_is_lost, power_on, publish, wait_back};

/// How long clients ask around each order, in seconds.
const LOAD_SECONDS: u64 = 45;

/// Tells the story, chapter by chapter; the scene shows the console.
pub fn tell(scene: &mut Scene) -> Result<()> {
    let ports = comes_up(scene)?;
    moves(scene, ports)?;
    leaves_a_bad_one(scene, ports)?;
    restarts(scene, ports)?;
    say(&format!("The end, after {} starts.", scene.boots()));
    Ok(())
}

fn comes_up(scene: &mut Scene) -> Result<Ports> {
    say("The appliance is built: a kernel, an initramfs, a root that nobody can write.");
    Sizes::of(scene.lab())?.print()?;
    say(
        "Its services are images in a registry: dnsmasq, unbound and chrony from Debian's packages, each signed by its digest.",
    );
    publish(scene.lab())?;
    say(
        "The machine is switched on. UEFI firmware and systemd-boot start it; PID 1 is a small init whose one child is `switchback daemon`.",
    );
    let ports = power_on(scene)?;
    type_in(scene, "switchback status", 0)?;
    type_in(scene, "cat /etc/passwd", 0)?;
    say(
        "Nothing serves yet. DNS and NTP are ordered, each once; from now on they are there after each start.",
    );
    type_in(scene, "switchback --progress none update dns", 0)?;
    type_in(scene, "switchback --progress none update ntp", 0)?;
    say("A client on the host asks DNS and NTP through the machine's network card.");
    nothing_is_lost("clients, all quiet", &ports.load(5, MODEST)?.reports()?)?;
    Ok(ports)
}

fn moves(scene: &Scene, ports: Ports) -> Result<()> {
    say(
        "dnsmasq is updated while clients ask: the new slot is started beside the old one, asked, and led to.",
    );
    under_load(scene, ports, "dnsmasq-2", 0)?;
    say("And replaced by another program altogether: unbound.");
    under_load(scene, ports, "unbound-1", 0)?;
    type_in(scene, "switchback status dns", 0)
}

fn leaves_a_bad_one(scene: &Scene, ports: Ports) -> Result<()> {
    say("A bad image is ordered, signed as properly as the others: it runs and answers nothing it is asked.");
    under_load(scene, ports, "bad-1", 50)?;
    say("Clients noticed nothing; its digest is banned, and `status` says why.");
    type_in(scene, "switchback status dns", 0)
}

fn restarts(scene: &mut Scene, ports: Ports) -> Result<()> {
    say("The machine restarts. The services that served before serve again.");
    scene.vm()?.start("reboot")?;
    wait_back(scene, ports)?;
    type_in(scene, "switchback status dns", 0)?;

    say(
        "A release binds a newer OS and its services under one signature. Nothing that serves is touched until the restart.",
    );
    releases::publish(scene, "2.0", &releases::GOOD)?;
    type_in(scene, "switchback check", 0)?;
    scene.update("")?;
    releases::serves(scene, ports, "2.0", "unbound-1")?;
    type_in(scene, "switchback status", 0)?;
    say("The rollback of everything: OS and services are what they were.");
    scene.reboots("switchback --json rollback --reboot", BOOT_TIMEOUT)?;
    ports.wait_for_answers()?;
    type_in(scene, "switchback status", 0)?;
    say("It is switched off, in order.");
    scene.vm()?.start("poweroff")?;
    scene.wait_off()
}

fn under_load(scene: &Scene, ports: Ports, to: &str, code: i32) -> Result<()> {
    let load = ports.load(LOAD_SECONDS, MODEST)?;
    std::thread::sleep(Duration::from_secs(5));
    type_in(scene, &format!("switchback --progress none update dns --to {to}"), code)?;
    nothing_is_lost(&format!("clients, dns → {to}"), &load.reports()?)
}

fn say(sentence: &str) {
    println!("\n## {sentence}\n");
}

fn type_in(scene: &Scene, command: &str, code: i32) -> Result<()> {
    println!("# {command}");
    let answer = scene.vm()?.run(command, BOOT_TIMEOUT)?;
    println!("{}(exit code {})", answer.text, answer.code);
    ensure!(answer.code == code, "`{command}` ended with {}, not {code}", answer.code);
    Ok(())
}
