//! Device-mapper: a verity device on top of a slot's two partitions (`linux/dm-ioctl.h`, "Documentation/admin-guide/
//! device-mapper/verity.rst").
//!
//! Not here: which slot to open. Rule: needs nothing but devtmpfs, for it runs in an initramfs; a device that could not
//! be completed is removed again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::ioctl::{self, DM_HEADER_BYTES};

/// What the kernel does when a block does not match the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCorruption {
    /// The read fails; the system may run on with broken programs.
    Fail,
    /// The kernel panics, so that the trial ends at once and the machine comes back with `panic=`.
    Panic,
}

/// A verity device: what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerityTable {
    /// The data partition's node.
    pub data: PathBuf,
    /// The hash partition's node; the tree starts behind its superblock.
    pub hash: PathBuf,
    /// Data block size in bytes.
    pub data_block_bytes: u32,
    /// Hash block size in bytes.
    pub hash_block_bytes: u32,
    /// How many data blocks are covered.
    pub data_blocks: u64,
    /// Salt, possibly empty.
    pub salt: Vec<u8>,
    /// Root hash (SHA-256).
    pub root_hash: [u8; 32],
    /// What a mismatch does.
    pub on_corruption: OnCorruption,
}

const CONTROL_NODE: &str = "/dev/mapper/control";
const VERSION: [u32; 3] = [4, 0, 0];
const NAME_BYTES_MAX: usize = 127;

// Numbers of the calls (`DM_DEV_CREATE_CMD` and so on) and flags.
const DEV_CREATE: u8 = 3;
const DEV_REMOVE: u8 = 4;
const DEV_SUSPEND: u8 = 6;
const TABLE_LOAD: u8 = 9;
const READONLY_FLAG: u32 = 1;

/// Creates the read-only device `name` and returns its node, `/dev/dm-N`, which devtmpfs makes by itself.
pub fn create_verity(name: &str, table: &VerityTable) -> io::Result<PathBuf> {
    let control = open_control()?;
    let parameters = table.parameters()?;
    let minor = device_minor(&call(&control, DEV_CREATE, name, READONLY_FLAG, &[])?);
    let sectors = table.data_blocks.checked_mul(u64::from(table.data_block_bytes)).map(|bytes| bytes / 512);
    let sectors = sectors.ok_or_else(|| io::Error::other("the verity device would pass 64 bits"))?;
    let started = call(&control, TABLE_LOAD, name, READONLY_FLAG, &target("verity", sectors, &parameters))
        // Resume (a suspend without the suspend flag) puts the loaded table into use.
        .and_then(|_| call(&control, DEV_SUSPEND, name, 0, &[]));
    if let Err(error) = started {
        // Else the name stays taken and the next try fails for a reason that hides the first.
        let _ = call(&control, DEV_REMOVE, name, 0, &[]);
        return Err(error);
    }
    Ok(PathBuf::from(format!("/dev/dm-{minor}")))
}

/// Removes the device `name`. `ResourceBusy` while it is open.
pub fn remove(name: &str) -> io::Result<()> {
    call(&open_control()?, DEV_REMOVE, name, 0, &[]).map(|_| ())
}

impl VerityTable {
    /// The target's parameters, in the order of verity.rst.
    fn parameters(&self) -> io::Result<String> {
        let salt = if self.salt.is_empty() { "-".to_owned() } else { hex::encode(&self.salt) };
        let options = match self.on_corruption {
            OnCorruption::Fail => "",
            OnCorruption::Panic => " 1 panic_on_corruption",
        };
        Ok(format!(
            "1 {} {} {} {} {} 1 sha256 {} {salt}{options}",
            device_number(&self.data)?,
            device_number(&self.hash)?,
            self.data_block_bytes,
            self.hash_block_bytes,
            self.data_blocks,
            hex::encode(self.root_hash),
        ))
    }
}

fn open_control() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(CONTROL_NODE).map_err(|error| {
        io::Error::new(error.kind(), format!("{CONTROL_NODE}: {error}; is the kernel's dm-mod loaded?"))
    })
}

/// `MAJOR:MINOR`, which the kernel takes without looking at a path.
fn device_number(node: &Path) -> io::Result<String> {
    let with_path = |message: String| io::Error::other(format!("{}: {message}", node.display()));
    let metadata = std::fs::metadata(node).map_err(|error| with_path(error.to_string()))?;
    if !metadata.file_type().is_block_device() {
        return Err(with_path("not a block device".to_owned()));
    }
    Ok(format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev())))
}

/// `struct dm_target_spec` and its parameters: start and length in sectors, status, next, type[16], text, NUL, padding.
fn target(kind: &str, sectors: u64, parameters: &str) -> Vec<u8> {
    let mut kind_bytes = [0; 16];
    kind_bytes[..kind.len()].copy_from_slice(kind.as_bytes());
    let next = (40 + parameters.len() + 1).next_multiple_of(8);
    let mut bytes = Vec::with_capacity(next);
    bytes.extend_from_slice(&0u64.to_ne_bytes());
    bytes.extend_from_slice(&sectors.to_ne_bytes());
    bytes.extend_from_slice(&0i32.to_ne_bytes());
    bytes.extend_from_slice(&(next as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind_bytes);
    bytes.extend_from_slice(parameters.as_bytes());
    bytes.resize(next, 0);
    bytes
}

/// `struct dm_ioctl`: version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name[128],
/// uuid[129], data[7]; then the payload.
fn message(name: &str, flags: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(['/', '\0']) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{name}` is no device-mapper name"),
        ));
    }
    let size = DM_HEADER_BYTES + payload.len();
    let mut bytes = vec![0; DM_HEADER_BYTES];
    let targets = u32::from(!payload.is_empty());
    let fields =
        [VERSION[0], VERSION[1], VERSION[2], size as u32, DM_HEADER_BYTES as u32, targets, 0, flags, 0, 0];
    for (place, field) in bytes.chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&field.to_ne_bytes());
    }
    bytes[48..48 + name.len()].copy_from_slice(name.as_bytes());
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

fn call(control: &File, nr: u8, name: &str, flags: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = message(name, flags, payload)?;
    ioctl::device_mapper(control, nr, &mut bytes)
        .map_err(|error| io::Error::new(error.kind(), format!("device-mapper, device `{name}`: {error}")))?;
    Ok(bytes)
}

/// The minor number in an answer's `dev` field (`huge_encode_dev`).
fn device_minor(answer: &[u8]) -> u64 {
    let dev = u64::from_ne_bytes(std::array::from_fn(|at| answer[40 + at]));
    minor(dev)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_layout_of_the_kernel_header() {
        let bytes = message("vroot", READONLY_FLAG, &target("verity", 4096, "1 8:1 8:2")).unwrap();
        assert_eq!(DM_HEADER_BYTES, 312);
        assert_eq!(bytes.len(), 312 + 56);
        assert_eq!(u32::from_ne_bytes(bytes[12..16].try_into().unwrap()) as usize, bytes.len());
        assert_eq!(u32::from_ne_bytes(bytes[16..20].try_into().unwrap()), 312, "data_start");
        assert_eq!(u32::from_ne_bytes(bytes[20..24].try_into().unwrap()), 1, "target_count");
        assert_eq!(u32::from_ne_bytes(bytes[28..32].try_into().unwrap()), READONLY_FLAG);
        assert_eq!(&bytes[48..54], b"vroot\0");
        assert_eq!(u64::from_ne_bytes(bytes[320..328].try_into().unwrap()), 4096, "length in sectors");
        assert_eq!(&bytes[336..343], b"verity\0");
        assert_eq!(&bytes[352..362], b"1 8:1 8:2\0");
    }

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for name in ["", "../x", "a/b", "nul\0", &"x".repeat(128)] {
            assert!(message(name, 0, &[]).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_answer_names_the_minor_number() {
        let mut answer = vec![0; DM_HEADER_BYTES];
        answer[40..48].copy_from_slice(&nix::sys::stat::makedev(253, 260).to_ne_bytes());
        assert_eq!(device_minor(&answer), 260);
    }

    #[test]
    fn a_regular_file_is_no_part_of_a_verity_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let table = VerityTable {
            data: file.path().to_owned(),
            hash: file.path().to_owned(),
            data_block_bytes: 4096,
            hash_block_bytes: 4096,
            data_blocks: 1,
            salt: Vec::new(),
            root_hash: [0; 32],
            on_corruption: OnCorruption::Panic,
        };
        assert!(table.parameters().unwrap_err().to_string().contains("not a block device"));
    }
}
