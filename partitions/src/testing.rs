//! What the tests of several modules share.
//!
//! Not here: anything that ships. Rule: a missing tool fails the test with the line that installs it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::device::{BlockDevice, MemDevice};
use crate::gpt::{Entry, Table};
use crate::layout::{Architecture, ESP_TYPE, LINUX_DATA_TYPE};

/// A real tool to compare with; `package` is where Debian has it.
pub fn tool(name: &str, package: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin"]);
    let found = folders.map(|folder| Path::new(folder).join(name)).find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| panic!("this test needs `{name}`: apt-get install {package}"))
}

/// Size of [`disk_with_slots`].
pub const MEMORY_DISK_BYTES: usize = 8 << 20;

/// A small disk in memory with a table of ours: two slots, ESP, data; partition 7 is somebody else's, 3 and 6 are missing.
pub fn disk_with_slots(sector_bytes: u32) -> Arc<MemDevice> {
    let device = Arc::new(MemDevice::from_bytes(vec![0x55; MEMORY_DISK_BYTES], sector_bytes));
    let mut table = Table::new(device.len(), sector_bytes, Uuid::from_u128(1)).unwrap();
    let x86 = Architecture::X86_64;
    let other = Uuid::from_u128(0xABCD);
    let partitions = [
        (1, ESP_TYPE, "esp", 1024),
        (2, x86.root_type(), "root-a", 1024),
        (4, x86.verity_type(), "verity-a", 256),
        (5, x86.root_type(), "root-b", 1024),
        (8, x86.verity_type(), "verity-b", 256),
        (7, other, "root-b", 64),
        (9, LINUX_DATA_TYPE, "data", 512),
    ];
    let mut offset = 1 << 20;
    for (number, type_guid, label, kib) in partitions {
        let (guid, len) = (Uuid::from_u128(u128::from(number) + 100), kib * 1024);
        table
            .add(Entry { number, type_guid, guid, offset, len, attributes: 0, label: label.to_owned() })
            .unwrap();
        offset += len;
    }
    assert!(table.write(&*device).unwrap());
    device
}
