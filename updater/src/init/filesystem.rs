//! Which file system lies on a device, by its superblock.
//!
//! Not here: mounting. Rule: pure; a name only for the file systems that a root or a state partition may hold.

/// Bytes from the start of the device that [`probe`] wants to see.
pub const PROBE_BYTES: usize = 2048;

/// A file system that can be mounted by `switchback init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Its name for `mount(2)`.
    pub name: &'static str,
    /// Options for a mount on a device that can never be written.
    pub read_only_options: Option<&'static str>,
}

const EROFS: FileSystem = FileSystem { name: "erofs", read_only_options: None };
const SQUASHFS: FileSystem = FileSystem { name: "squashfs", read_only_options: None };
/// `noload`: a journal that was left open cannot be replayed on a dm-verity device, and its blocks are verified anyway.
const EXT4: FileSystem = FileSystem { name: "ext4", read_only_options: Some("noload") };

/// The file system whose superblock is in these first bytes, if it is one of ours.
pub fn probe(start: &[u8]) -> Option<FileSystem> {
    let at = |offset: usize, magic: &[u8]| start.get(offset..offset + magic.len()) == Some(magic);
    // EROFS: `Documentation/filesystems/erofs.rst`, superblock at 1024; ext4: `s_magic` at 0x38 of the superblock at 1024.
    if at(1024, &0xE0F5_E1E2_u32.to_le_bytes()) {
        Some(EROFS)
    } else if at(0, b"hsqs") {
        Some(SQUASHFS)
    } else if at(1024 + 0x38, &0xEF53_u16.to_le_bytes()) {
        Some(EXT4)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Makes a real file system of an empty folder and returns its first bytes.
    fn made_by(tool: &str, package: &str, arguments: &[&str]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let (image, folder) = (dir.path().join("image"), dir.path().join("folder"));
        std::fs::create_dir(&folder).unwrap();
        let fill = |argument: &&str| match *argument {
            "IMAGE" => image.clone().into_os_string(),
            "FOLDER" => folder.clone().into_os_string(),
            other => other.into(),
        };
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let run = Command::new(tool).args(arguments.iter().map(fill)).env("PATH", path).output();
        let run = run.unwrap_or_else(|error| panic!("{tool}: {error}; apt-get install {package}"));
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        std::fs::read(image).unwrap()
    }

    #[test]
    fn each_file_system_is_known_by_what_its_own_tool_writes() {
        for (tool, package, arguments, name) in [
            ("mkfs.erofs", "erofs-utils", &["IMAGE", "FOLDER"][..], "erofs"),
            ("mkfs.ext4", "e2fsprogs", &["-q", "IMAGE", "1M"], "ext4"),
        ] {
            let image = made_by(tool, package, arguments);
            assert_eq!(probe(&image[..PROBE_BYTES]).map(|found| found.name), Some(name));
        }
    }

    #[test]
    fn squashfs_is_known_by_the_magic_number_of_its_format() {
        // https://dr-emann.github.io/squashfs: 0x73717368, little-endian, at 0.
        let mut start = [0; PROBE_BYTES];
        start[..4].copy_from_slice(&0x7371_7368_u32.to_le_bytes());
        assert_eq!(probe(&start).map(|found| found.name), Some("squashfs"));
    }

    #[test]
    fn an_empty_or_short_device_holds_no_file_system() {
        assert_eq!(probe(&[0; PROBE_BYTES]), None);
        assert_eq!(probe(b"hs"), None);
    }
}
