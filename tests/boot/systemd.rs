//! Debian with systemd, as the book's recipe makes it: confirmed through `boot-complete.target`, and back from what fails.
//!
//! Rule: the machine is the recipe's; the scenario looks at it only before a bad release is armed and after its return.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use switchback_tests::lab::debian::{Bless, Debian, Temper};
use switchback_tests::lab::release::Loader;

use crate::scene::Scene;
use crate::witness;

/// A whole update of a Debian root and the start after it, or the way back, on a busy host: emulated, a start takes a
/// minute or two.
const LONG: Duration = Duration::from_secs(30 * 60);

/// `systemd-bless-boot` is there, as Debian brings it.
pub fn with_bless_boot(scene: &mut Scene) -> Result<()> {
    updates_and_returns(scene, Bless::Present)
}

/// `systemd-bless-boot.service` is masked: the updater alone confirms.
pub fn without_bless_boot(scene: &mut Scene) -> Result<()> {
    updates_and_returns(scene, Bless::Masked)
}

/// A release in which nobody judges: the deadline's timer ends the start, and the history says what it was. One try: each
/// lasts as long as the deadline.
pub fn deadline_timer(scene: &mut Scene) -> Result<()> {
    let release = |version, temper| Debian { version, temper, bless: Bless::Present, services: false };
    scene.power_on_with(&release("1.0", Temper::Good), Loader::V257, false)?;
    scene.expect_settled("1.0")?;
    let digest = scene.publish(&release("1.1", Temper::Unjudged))?;
    scene.run("sed -i 's/^\\[boot\\]$/[boot]\\ntries = 1/' /run/lab/config.toml")?.ok()?;
    comes_back(scene, "1.0", "1.1", &digest, 2)?;
    let reason = scene.reason_of(&digest)?;
    ensure!(reason == "deadline-missed", "it came back for {reason}\n{}", scene.explain());
    witness::table_and_esp_are_sound(scene.power_off()?)
}

fn updates_and_returns(scene: &mut Scene, bless: Bless) -> Result<()> {
    let release = |version, temper| Debian { version, temper, bless, services: false };
    scene.power_on_with(&release("1.0", Temper::Good), Loader::V257, false)?;
    scene.expect_settled("1.0")?;
    scene.publish(&release("1.1", Temper::Good))?;
    let running = scene.reboots("switchback --json update --reboot", LONG)?;
    ensure!(running == "1.1", "the machine came up with {running}\n{}", scene.explain());
    scene.expect_settled("1.1")?;
    ensure!(scene.boots() == 2, "a good update took {} boots", scene.boots());
    confirmed_as_systemd_knows_it(scene, bless)?;

    let digest = scene.publish(&release("1.2", Temper::FailingUnit))?;
    let detail = comes_back(scene, "1.1", "1.2", &digest, 2)?;
    let reason = scene.reason_of(&digest)?;
    ensure!(
        reason == "health-failed" && detail.contains("lab-app.service is not active"),
        "the reason is {reason}: {detail}"
    );
    let disk = scene.power_off()?;
    witness::table_and_esp_are_sound(disk)?;
    witness::slots_verify(disk, 2)
}

/// What systemd itself says of a start that was confirmed.
fn confirmed_as_systemd_knows_it(scene: &Scene, bless: Bless) -> Result<()> {
    let says = |words: &str, expected: &str| {
        let answer = scene.run(words)?;
        let found = answer.text.trim();
        ensure!(found == expected, "`{words}` says {found}, not {expected}\n{}", units(scene));
        Ok(())
    };
    says("systemctl is-active switchback-boot-check.service", "active")?;
    says("test -e /run/switchback/confirmed; echo $?", "0")?;
    // Nothing of the recipe's own fails on a root that cannot be written.
    says("systemctl list-units --failed --plain --no-legend", "")?;
    if bless == Bless::Masked {
        says("systemctl is-enabled systemd-bless-boot.service", "masked")?;
    } else {
        says("systemctl is-active boot-complete.target", "active")?;
        says("systemctl is-active systemd-bless-boot.service", "active")?;
        says("journalctl -b -u systemd-bless-boot.service -p warning -q -o cat", "")?;
    }
    // `state` is where the units look for it, on the partition of that name.
    says("findmnt -n -o PARTLABEL /var/lib/switchback", "state")?;
    says("findmnt -n -o PARTLABEL /var", "data")
}

/// Arms the bad `release` from `home` and waits for the machine to be back; returns what the history says of it.
fn comes_back(scene: &Scene, home: &str, release: &str, digest: &str, boots_max: usize) -> Result<String> {
    let before = scene.boots();
    // From the reboot to the end of this wait nobody touches the machine.
    let running = scene.reboots("switchback --json update --reboot", LONG)?;
    ensure!(running == home, "the machine came up with {running}\n{}", scene.explain());
    let boots = scene.boots() - before;
    ensure!(boots <= boots_max, "the way back took {boots} boots, more than {boots_max}");
    let tried = scene.vm()?.console().count(&format!("LAB-BOOT {release}"))?;
    ensure!(tried + 1 == boots, "{tried} of {boots} boots were of the bad release\n{}", scene.explain());

    scene.expect_settled(home)?;
    let status = scene.status()?;
    ensure!(status.quarantine == [digest], "{digest} is not quarantined alone: {status:?}");
    let refused = scene.run("switchback update --reboot")?;
    ensure!(refused.code >= 10, "`update` does not refuse what came back: {refused:?}");
    let history = scene.ask("history")?;
    let entries = history["entries"].as_array().into_iter().flatten();
    let mut returns = entries.filter(|entry| entry["digest"] == digest && entry["reason"].is_string());
    let entry = returns.next().with_context(|| format!("the history gives no reason: {history:#}"))?;
    Ok(entry["detail"].as_str().unwrap_or_default().to_owned())
}

/// For an error: what failed, and why.
fn units(scene: &Scene) -> String {
    let words =
        "systemctl --failed --no-pager; journalctl -b -p warning --no-pager | tail -n 60; mount; ls /efi";
    scene.run(words).map_or_else(|error| format!("(it does not answer: {error:#})"), |answer| answer.text)
}
