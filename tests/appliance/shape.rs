//! What the appliance is: small, two users, and every process where it belongs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use switchback_bootloader::record::BootFileKind;
use switchback_tests::lab::appliance::BOOT_BYTES_MAX;
use switchback_tests::lab::fixtures::Lab;
use switchback_tests::lab::scene::Scene;

use crate::stage::{FIRST, serving};

/// One line for each process that has a program: number, parent, control group, command line.
const PROCESSES: &str = r#"for p in /proc/[0-9]*; do
    words=$(tr '\0' ' ' <$p/cmdline 2>/dev/null)
    [ -n "$words" ] || continue
    echo "${p#/proc/} $(awk '/^PPid:/ { print $2 }' $p/status) $(sed 's/^0:://' $p/cgroup) $words"
done"#;

/// What kernel, initramfs and root take.
pub struct Sizes {
    kernel: u64,
    initrd: u64,
    root: u64,
}

impl Sizes {
    /// Of the appliance's release.
    pub fn of(lab: &Lab) -> Result<Sizes> {
        let manifest = lab.manifest(&FIRST)?;
        let boot = |kind| {
            let layer = manifest.boot.iter().find(|layer| layer.kind == kind);
            Ok::<_, anyhow::Error>(layer.with_context(|| format!("the release has no {kind:?}"))?.blob.size)
        };
        let root = manifest.slots.first().context("the release has no root")?.blob.size;
        Ok(Sizes { kernel: boot(BootFileKind::Linux)?, initrd: boot(BootFileKind::Initrd)?, root })
    }

    /// Prints them, and holds kernel and initramfs to their bound.
    pub fn print(&self) -> Result<()> {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let both = self.kernel + self.initrd;
        println!(
            "kernel {:.1} MiB + initramfs {:.1} MiB = {:.1} MiB, of {:.0} MiB that are allowed; root image {:.1} MiB to fetch",
            mib(self.kernel),
            mib(self.initrd),
            mib(both),
            mib(BOOT_BYTES_MAX),
            mib(self.root)
        );
        ensure!(both <= BOOT_BYTES_MAX, "kernel and initramfs are too large");
        Ok(())
    }
}

pub fn small_with_two_users(scene: &mut Scene) -> Result<()> {
    Sizes::of(scene.lab())?.print()?;
    serving(scene)?;
    let users = scene.run("cut -d: -f1 /etc/passwd")?.ok()?;
    ensure!(users.split_whitespace().collect::<Vec<_>>() == ["root", "rancher"], "the users are: {users}");
    root_cannot_be_written(scene)?;
    every_process_has_its_place(scene)
}

/// The kernel says that `/` is read-only, and that it lies on dm-verity.
fn root_cannot_be_written(scene: &Scene) -> Result<()> {
    let script = "grep ' / ' /proc/mounts; ls /sys/block | grep dm-; cat /sys/block/dm-0/dm/name /sys/block/dm-0/ro; \
                  lsmod | grep '^dm_verity'; touch /etc/x 2>&1; mount | grep ' /var/lib'";
    let said = scene.run(script)?.text;
    println!("{}", said.trim_end());
    let root = said.lines().next().unwrap_or_default();
    ensure!(root.contains(" ro,") || root.contains(" ro "), "the root is mounted as: {root}");
    // There is one mapped device, and its target is of the module that is in use.
    let devices = said.lines().filter(|line| *line == "dm-0").count();
    ensure!(root.starts_with("/dev/dm-0 ") && devices == 1, "the root is no mapped device: {root}");
    ensure!(
        said.lines().any(|line| line.starts_with("dm_verity") && line.trim_end().ends_with(" 1")),
        "nothing uses dm-verity"
    );
    ensure!(said.contains("Read-only file system"), "a file in /etc could be made");
    ensure!(said.contains("/dev/vda"), "the state has no partition of its own");
    Ok(())
}

/// PID 1, its supervisor, services in control groups of their own, and the test's hands.
fn every_process_has_its_place(scene: &Scene) -> Result<()> {
    let said = scene.run(PROCESSES)?.ok()?;
    println!("{}", said.trim_end());
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for line in said.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [pid, parent, group, words @ ..] = fields.as_slice() else { continue };
        let what = match (*pid, *parent, *group, words) {
            ("1", _, "/", ["/sbin/init", ..]) => "init",
            (_, "1", "/", ["switchback", "daemon"]) => "supervisor",
            (_, _, "/lab", _) => "the test's hands",
            (_, _, "/switchback/dns-a" | "/switchback/dns-b", ["/usr/sbin/dnsmasq", ..]) => "dns",
            (_, _, "/switchback/ntp-a" | "/switchback/ntp-b", ["/usr/sbin/chronyd", ..]) => "ntp",
            _ => anyhow::bail!("this process has no place: {line}"),
        };
        *seen.entry(what).or_default() += 1;
    }
    for what in ["init", "supervisor", "dns", "ntp"] {
        ensure!(seen.get(what) >= Some(&1), "{what} does not run:\n{said}");
    }
    ensure!(seen["init"] == 1 && seen["supervisor"] == 1, "there is more than one:\n{said}");
    Ok(())
}
