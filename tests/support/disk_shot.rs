//! What lies on a machine's disk, as hashes that two moments can be compared by.
//!
//! Not here: what should lie there. Rule: read beneath the program, from the image file itself.

use std::collections::BTreeMap;

use anyhow::Result;
use switchback::digest::Digest;
use switchback_bootloader::esp::{EspDir, FatEsp};
use switchback_partitions::device::BlockDevice;
use switchback_partitions::device::disk::Disk as _;
use switchback_partitions::gpt::Table;
use switchback_partitions::slot::Slot;

use crate::machine::Machine;

/// More than any file of a test's ESP has.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Hashes of the parts of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskShot {
    /// Root and verity partition of each slot.
    pub slots: [[Digest; 2]; 2],
    /// Each file of the ESP by its path.
    pub esp: BTreeMap<String, Digest>,
}

impl DiskShot {
    /// Reads the whole disk.
    pub fn take(machine: &Machine) -> Result<DiskShot> {
        let (disk, layout) = (machine.image()?, machine.layout()?);
        let mut slots = [[Digest::of(b""); 2]; 2];
        for slot in Slot::ALL {
            let parts = layout.slot(slot);
            for (hash, extent) in slots[slot.index()].iter_mut().zip([&parts.root, &parts.verity]) {
                let device = disk.partition(extent)?;
                *hash = Digest::of(&read(&*device, 0, extent.len)?);
            }
        }
        let esp = tree(&FatEsp::new(disk.partition(&layout.esp)?))?;
        Ok(DiskShot { slots, esp })
    }

    /// What belongs to one slot alone: its partitions, its folder of boot files, its entries.
    pub fn of(&self, slot: Slot) -> ([Digest; 2], BTreeMap<String, Digest>) {
        let (folder, entry) = (format!("switchback/{slot}/"), format!("loader/entries/switchback-{slot}-"));
        let ours = |path: &String| path.starts_with(&folder) || path.starts_with(&entry);
        let esp = self.esp.iter().filter(|(path, _)| ours(path)).map(|(path, hash)| (path.clone(), *hash));
        (self.slots[slot.index()], esp.collect())
    }
}

/// A hash of each partition by its label, without the prefix of one that is being written, and of what lies between none:
/// the table alone changes elsewhere.
pub fn partitions(machine: &Machine) -> Result<BTreeMap<String, Digest>> {
    let disk = machine.image()?;
    let table = Table::read(&*disk.whole()?)?;
    let mut hashes = BTreeMap::new();
    for entry in table.entries() {
        let device = disk.partition(&entry.extent())?;
        let hash = Digest::of(&read(&*device, 0, entry.extent().len)?);
        hashes.insert(entry.label.trim_start_matches("PRT#").to_owned(), hash);
    }
    Ok(hashes)
}

/// Bytes of a device.
pub fn read(device: &dyn BlockDevice, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len)?];
    device.read_at(offset, &mut bytes)?;
    Ok(bytes)
}

/// Each file of a boot partition by its path.
pub fn tree(esp: &dyn EspDir) -> Result<BTreeMap<String, Digest>> {
    let mut found = BTreeMap::new();
    files(esp, "", &mut found)?;
    Ok(found)
}

fn files(esp: &dyn EspDir, folder: &str, into: &mut BTreeMap<String, Digest>) -> Result<()> {
    for entry in esp.list(folder)? {
        let path = if folder.is_empty() { entry.name } else { format!("{folder}/{}", entry.name) };
        match entry.is_dir {
            true => files(esp, &path, into)?,
            false => drop(into.insert(path.clone(), Digest::of(&esp.read(&path, FILE_BYTES_MAX)?))),
        }
    }
    Ok(())
}
