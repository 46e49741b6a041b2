//! For this crate's tests: FAT images made by `mkfs.vfat` and checked by `fsck.vfat`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use switchback_partitions::device::{Access, FileDevice};

use crate::esp::FatEsp;

/// The FAT file system in an image file.
pub fn fat_esp(image: &Path, sector_bytes: u32) -> FatEsp {
    FatEsp::new(Arc::new(FileDevice::open_image(image, Access::ReadWrite, sector_bytes).unwrap()))
}

/// A blank FAT32 file system with the smallest number of clusters that FAT32 allows, and a little more.
pub fn blank_fat(sector_bytes: u32) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("esp.img");
    let bytes = if sector_bytes == 512 { 36 << 20 } else { 272 << 20 };
    File::create(&image).unwrap().set_len(bytes).unwrap();
    let sector = sector_bytes.to_string();
    tool("/sbin/mkfs.vfat", &["-F", "32", "-S", &sector, "-s", "1"], &image);
    (folder, image)
}

/// Fails unless `fsck.vfat -n` finds nothing at all to complain of.
pub fn fsck(image: &Path) {
    let said = tool("/sbin/fsck.vfat", &["-n"], image);
    let complaints: Vec<&str> =
        said.lines().filter(|line| !line.starts_with("fsck.fat ") && !line.contains(" files, ")).collect();
    assert!(complaints.is_empty(), "fsck.vfat complains: {said}");
}

fn tool(program: &str, arguments: &[&str], image: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(image).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}: apt-get install dosfstools"));
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}
