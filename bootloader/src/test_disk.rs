//! For this crate's tests: FAT images made by `mkfs.vfat` and checked by `fsck.vfat`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use switchback_partitions::device::BlockDevice;

/// An image file as a block device.
pub struct FileDisk {
    file: File,
    sector_bytes: u32,
}

impl FileDisk {
    pub fn open(path: &Path, sector_bytes: u32) -> FileDisk {
        let file = File::options().read(true).write(true).open(path).unwrap();
        FileDisk { file, sector_bytes }
    }

    fn check(&self, offset: u64, len: usize) {
        let sector = u64::from(self.sector_bytes);
        assert_eq!((offset % sector, len as u64 % sector), (0, 0), "a device moves whole sectors");
    }
}

impl BlockDevice for FileDisk {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check(offset, buffer.len());
        self.file.read_exact_at(buffer, offset)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len());
        self.file.write_all_at(data, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn len(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }
    fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; len as usize])
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn drop_caches(&self) -> io::Result<()> {
        Ok(())
    }
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
