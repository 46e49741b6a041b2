//! The standard tools look at a disk that is switched off.
//!
//! Rule: none of our own code reads the disk here, or a fault in it would hide itself.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use regex::Regex;
use serde_json::Value;
use switchback_tests::lab::tools;

/// `sgdisk -v` and `fsck.vfat -n` find no fault.
pub fn table_and_esp_are_sound(disk: &Path) -> Result<()> {
    let complaints = complaints(disk)?;
    ensure!(complaints.is_empty(), "fsck.vfat says:\n{}", complaints.join("\n"));
    Ok(())
}

/// The same after the plug was pulled: FAT may say so, and nothing else.
pub fn table_and_esp_are_sound_after_a_kill(disk: &Path) -> Result<()> {
    let expected = [
        "Dirty bit is set",
        "Automatically removing dirty bit",
        // The dirty bit again: byte 65 of the boot sector, which the backup does not share.
        "There are differences between boot sector and its backup",
        "This is mostly harmless. Differences: (offset:original/backup)",
        "65:01/00",
        "Not automatically fixing this",
    ];
    let mut complaints = complaints(disk)?;
    complaints.retain(|line| !expected.iter().any(|words| line.contains(words)));
    ensure!(complaints.is_empty(), "fsck.vfat says:\n{}", complaints.join("\n"));
    Ok(())
}

/// What `fsck.vfat` prints besides its name and its count of files.
fn complaints(disk: &Path) -> Result<Vec<String>> {
    let verdict = tools::run(Command::new(tools::program("sgdisk", "gdisk")?).arg("-v").arg(disk))?;
    ensure!(verdict.contains("No problems found"), "sgdisk -v says:\n{verdict}");
    let folder = tempfile::tempdir()?;
    let esp = extract(disk, "esp", folder.path())?;
    let fsck = Command::new(tools::program("fsck.vfat", "dosfstools")?).arg("-n").arg(&esp).output()?;
    let said = String::from_utf8_lossy(&fsck.stdout).into_owned() + &String::from_utf8_lossy(&fsck.stderr);
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let expected = |line: &&str| {
        line.starts_with("fsck.fat ")
            || line.contains(" clusters")
            || line.starts_with("Leaving filesystem unchanged")
    };
    Ok(lines.filter(|line| !expected(line)).map(str::to_owned).collect())
}

/// `veritysetup verify` accepts the slots whose boot files and passports lie on the ESP, and there are `count` of them.
pub fn slots_verify(disk: &Path, count: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let esp = extract(disk, "esp", folder.path())?;
    let veritysetup = tools::program("veritysetup", "cryptsetup-bin")?;
    let mut verified = 0;
    for slot in ["a", "b"] {
        let mut read = Command::new(tools::program("mtype", "mtools")?);
        read.arg("-i").arg(&esp).arg(format!("::/switchback/{slot}/config.json"));
        // A slot that was never filled has no passport.
        let Ok(passport) = tools::run(&mut read) else { continue };
        let config: Value = serde_json::from_str(&passport)?;
        let root_hash = config["slots"][0]["verity"]["root"].as_str();
        let root_hash = root_hash.with_context(|| format!("the passport names no root hash: {config:#}"))?;
        let data = extract(disk, &format!("root-{slot}"), folder.path())?;
        let tree = extract(disk, &format!("verity-{slot}"), folder.path())?;
        tools::run(Command::new(&veritysetup).arg("verify").arg(data).arg(tree).arg(root_hash))
            .with_context(|| format!("slot {slot} does not verify"))?;
        verified += 1;
    }
    ensure!(verified == count, "{verified} slots are filled, not {count}");
    Ok(())
}

/// The first sector of the partition with this label.
pub fn first_sector(disk: &Path, label: &str) -> Result<u64> {
    Ok(sectors(disk, label)?.0)
}

/// First and last sector of the partition with this label.
fn sectors(disk: &Path, label: &str) -> Result<(u64, u64)> {
    let sgdisk = tools::program("sgdisk", "gdisk")?;
    let table = tools::run(Command::new(&sgdisk).arg("-p").arg(disk))?;
    // The label of a filled slot may carry its version behind it.
    let row = Regex::new(&format!(r"(?m)^\s+(\d+)\s+(\d+)\s+(\d+)\s.*\s{label}(_\S+)?\s*$"))?;
    let found =
        row.captures(&table).with_context(|| format!("no partition is labelled {label}:\n{table}"))?;
    Ok((found[2].parse()?, found[3].parse()?))
}

/// Copies the partition with this label to a file.
fn extract(disk: &Path, label: &str, folder: &Path) -> Result<std::path::PathBuf> {
    let (first, last) = sectors(disk, label)?;
    let path = folder.join(label);
    let mut source = File::open(disk)?;
    source.seek(SeekFrom::Start(first * 512))?;
    let bytes = (last - first + 1) * 512;
    let copied = std::io::copy(&mut source.take(bytes), &mut fs::File::create(&path)?)?;
    ensure!(copied == bytes, "the disk ends inside {label}");
    Ok(path)
}
