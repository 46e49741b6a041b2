//! `make demo`: the whole life of an update on one disk image, told in plain sentences.
//!
//! Not here: a real boot (`make demo-boot`). Rule: every line behind `$` is the real program, its output is shown as it
//! came, and the story stops at the first thing that is not as told.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use switchback_partitions::slot::Slot;
use switchback_tests::machine::{Machine, text};
use switchback_tests::small_release::{Desk, SmallRelease, build_arguments};

const ROOT_BYTES: u64 = 24 << 20;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let switchback = PathBuf::from(arguments.next().context("usage: demo PATH-OF-SWITCHBACK")?);
    let folder = tempfile::Builder::new().prefix("switchback-demo-").tempdir()?;
    let began = Instant::now();
    let mut story = Story::begin(folder.path(), &switchback.canonicalize()?)?;
    story.two_releases_and_a_disk()?;
    story.a_good_update()?;
    story.back_and_forth()?;
    story.a_bad_update()?;
    story.never_again()?;
    println!("\nThe demo took {:.1} s and leaves nothing behind.", began.elapsed().as_secs_f64());
    Ok(())
}

struct Story {
    desk: Desk,
    machine: Machine,
}

impl Story {
    fn begin(folder: &Path, switchback: &Path) -> Result<Story> {
        say(
            "Switchback demo: a signed OCI image, a disk image with two slots, and a firmware that is simulated. \
             The programs, the signatures, the partitions, the boot entries and dm-verity are real.",
        );
        let desk = Desk::new(&folder.join("author"), switchback)?;
        let settings = format!(
            "[source]\nimage = \"{}\"\n[trust.policy.os]\nkeys = [\"{}\"]\n",
            desk.reference("stable"),
            desk.path("os.pub").display()
        );
        let machine = Machine::new(&folder.join("machine"), switchback, &settings)?;
        Ok(Story { desk, machine })
    }

    fn two_releases_and_a_disk(&mut self) -> Result<()> {
        say("The author makes a key, and builds and signs releases 1.0 and 1.1.");
        self.author(&["image", "keygen", "os"])?;
        self.release("1.0", true)?;
        self.release("1.1", true)?;
        say("A blank disk becomes bootable from 1.0. Every size is checked before the first write.");
        let disk = self.machine.disk().display().to_string();
        let (release, loader) =
            (self.desk.reference("1.0"), self.desk.path("loader.efi").display().to_string());
        self.author(&[
            "provision",
            &disk,
            "--size",
            "512M",
            "--slot-size",
            "64M",
            "--release",
            &release,
            "--trust",
            "os.pub",
            "--loader",
            &loader,
        ])?;
        self.power_on("The machine is switched on for the first time.", Slot::A)
    }

    fn a_good_update(&mut self) -> Result<()> {
        say("The author publishes 1.1 under the tag `stable`; the machine takes it.");
        self.publish("1.1")?;
        self.operator(&["update", "--dry-run"], 0)?;
        self.operator(&["update", "--reboot"], 0)?;
        self.power_on("The trial: firmware, dm-verity, health check, confirmation.", Slot::B)
    }

    fn back_and_forth(&mut self) -> Result<()> {
        say("An operator goes back to 1.0: a trial like any other, and not one byte is fetched.");
        let back = self.operator(&["rollback", "--reboot"], 0)?;
        ensure!(back.contains("0 B fetched"), "the way back fetched something");
        self.power_on("The trial of the way back.", Slot::A)?;
        say(
            "1.1 was left on purpose, so it is held back until somebody names it. It still lies in the other slot.",
        );
        self.operator(&["update"], 17)?;
        let again = self.operator(&["update", "--to", "1.1", "--reboot"], 0)?;
        ensure!(again.contains("0 B written"), "the second update wrote something");
        self.power_on("The trial of 1.1, for the second time.", Slot::B)
    }

    fn a_bad_update(&mut self) -> Result<()> {
        say("Now 1.2 is published, and its web server does not come up. Nobody knows that yet.");
        self.release("1.2", false)?;
        self.publish("1.2")?;
        self.operator(&["update", "--reboot"], 0)?;
        self.power_on("The trial fails, and the machine returns by itself.", Slot::B)?;
        self.operator(&["history"], 0)?;
        Ok(())
    }

    fn never_again(&mut self) -> Result<()> {
        say("1.2 is quarantined by its digest: the machine does not take it a second time.");
        self.operator(&["update"], 16)?;
        say("There is nothing to go back to either: the other slot holds the release that failed.");
        self.operator(&["rollback"], 16)?;
        say("And this is how things stand:");
        let status = self.operator(&["status"], 0)?;
        ensure!(status.contains("quarantined") && status.contains("1.1"), "status tells the story");
        Ok(())
    }

    fn release(&self, version: &str, healthy: bool) -> Result<()> {
        let image = self.desk.root_image(&SmallRelease { version, healthy, root_bytes: ROOT_BYTES })?;
        self.author(&build_arguments(version, &format!("root={image}")))?;
        self.author(&["image", "sign", &format!("oci:images:{version}"), "--key", "os.key"])
    }

    fn publish(&self, version: &str) -> Result<()> {
        self.author(&["image", "push", &format!("oci:images:{version}"), "oci:images", "--tag", "stable"])
    }

    fn author(&self, arguments: &[&str]) -> Result<()> {
        show(arguments, self.desk.command(arguments), 0).map(drop)
    }

    fn operator(&self, arguments: &[&str], code: i32) -> Result<String> {
        show(arguments, self.machine.command(arguments), code)
    }

    fn power_on(&mut self, sentence: &str, expected: Slot) -> Result<()> {
        say(sentence);
        let boot = self.machine.power_on()?;
        for said in &boot.said {
            println!("$ switchback boot-check        # run by the system after the start");
            print!("{}", indent(said));
        }
        let starts = if boot.starts == 1 { "start" } else { "starts" };
        println!("  (slot {} runs after {} {starts})", boot.slot, boot.starts);
        ensure!(boot.slot == expected, "slot {} runs, slot {expected} should", boot.slot);
        Ok(())
    }
}

fn show(arguments: &[&str], mut command: Command, code: i32) -> Result<String> {
    println!("$ switchback {}", short(arguments));
    let Output { status, stdout, stderr } = command.output()?;
    let out = format!("{}{}", text(&stderr), text(&stdout));
    print!("{}", indent(&out));
    if code != 0 {
        println!("  (exit code {code})");
    }
    ensure!(
        status.code() == Some(code),
        "switchback {} ended with {status}, not with {code}",
        arguments.join(" ")
    );
    Ok(out)
}

/// The command line without the long folder names, as a person in that folder would have typed it.
fn short(arguments: &[&str]) -> String {
    let names = arguments.iter().map(|word| match word.rsplit_once('/') {
        Some((head, tail)) if head.starts_with("oci:") => format!("oci:{tail}"),
        Some((_, tail)) => tail.to_string(),
        None => word.to_string(),
    });
    names.collect::<Vec<_>>().join(" ")
}

fn say(sentence: &str) {
    println!("\n== {sentence}");
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
