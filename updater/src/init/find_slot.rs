//! Which slot holds the root that the command line asks for.
//!
//! Not here: trust in what is found; dm-verity checks every block that is read later. Rule: the slot is found by its
//! content, the root hash; the loader's word only decides between two slots with the same content.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchback_partitions::device::disk::BlockDisk;
use switchback_partitions::device::dm::{self, OnCorruption};
use switchback_partitions::device::{Access, BlockDevice, FileDevice, Window};
use switchback_partitions::gpt::Table;
use switchback_partitions::layout::{DiskLayout, Extent};
use switchback_partitions::slot::Slot;
use switchback_partitions::verity::{self, RootHash};

use super::{Doing, InitError, root};
use crate::host::loader::LoaderEvidence;
use crate::host::sysfs::Sysfs;

/// How long disks may take to appear.
const WAIT_LIMIT: Duration = Duration::from_secs(20);

/// How long only the disk that the loader came from is good enough. A second disk with the same release, a rescue stick
/// for example, may be faster.
const LOADER_DISK_ONLY: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(100);

/// Name of the dm-verity device of the root.
pub const DM_NAME: &str = "switchback-root";

/// The slot to start, with everything needed to open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The disk's name beneath `/dev`.
    pub disk: String,
    /// The slot on it.
    pub slot: Slot,
    /// The disk's layout.
    pub layout: DiskLayout,
}

/// Looks at every disk again and again until one holds the root. `waiting` is called in between.
pub fn wait_for(
    sysfs: &Sysfs,
    root_hash: &RootHash,
    loader: &LoaderEvidence,
    mut waiting: impl FnMut(),
) -> Result<Found, InitError> {
    let start = Instant::now();
    loop {
        let (found, looked_at) = look(sysfs, root_hash, loader);
        let settled = start.elapsed() >= LOADER_DISK_ONLY;
        let best = found.into_iter().find(|found| settled || came_from(loader, &found.layout));
        if let Some(found) = best {
            return Ok(found);
        }
        if start.elapsed() >= WAIT_LIMIT {
            return Err(InitError::NoSlot {
                root_hash: hex::encode(root_hash.0),
                waited_secs: WAIT_LIMIT.as_secs(),
                looked_at: looked_at.join("; "),
            });
        }
        waiting();
        std::thread::sleep(POLL);
    }
}

/// True when the loader came from this disk's ESP, or when no loader said where it came from.
fn came_from(loader: &LoaderEvidence, layout: &DiskLayout) -> bool {
    loader.loader_partition.is_none_or(|guid| guid == layout.esp.guid)
}

/// One look at all disks: those that hold the root, the loader's own first, and a sentence about each of the others.
fn look(sysfs: &Sysfs, root_hash: &RootHash, loader: &LoaderEvidence) -> (Vec<Found>, Vec<String>) {
    let mut found = Vec::new();
    let mut looked_at = Vec::new();
    let disks = sysfs.partitioned_disks().unwrap_or_else(|error| {
        looked_at.push(format!("sysfs: {error}"));
        Vec::new()
    });
    for disk in disks {
        match look_at(&disk, root_hash, loader.slot()) {
            Ok((slot, layout)) => found.push(Found { disk, slot, layout }),
            Err(sentence) => looked_at.push(format!("{disk}: {sentence}")),
        }
    }
    if looked_at.is_empty() && found.is_empty() {
        looked_at.push("no disk with partitions".to_owned());
    }
    found.sort_by_key(|found| !came_from(loader, &found.layout));
    (found, looked_at)
}

fn look_at(disk: &str, root_hash: &RootHash, loader: Option<Slot>) -> Result<(Slot, DiskLayout), String> {
    let device = FileDevice::open(Path::new("/dev").join(disk), Access::Read).map_err(|e| e.to_string())?;
    let device: Arc<dyn BlockDevice> = Arc::new(device);
    let table = Table::read(&*device).map_err(|error| error.to_string())?;
    let layout = DiskLayout::discover(&table).map_err(|error| error.to_string())?;
    let slot = choose(holders(&device, &layout, root_hash), loader).ok_or("neither slot holds it")?;
    Ok((slot, layout))
}

/// Which slots hold the root, slot A's answer first.
pub fn holders(disk: &Arc<dyn BlockDevice>, layout: &DiskLayout, root_hash: &RootHash) -> [bool; 2] {
    let holds = |slot: Slot| {
        let Extent { offset, len, .. } = layout.slot(slot).verity;
        // A slot that cannot be read holds nothing that could be started.
        Window::new(disk.clone(), offset, len)
            .is_ok_and(|hashes| verity::superblock_matches(&hashes, root_hash).unwrap_or(false))
    };
    Slot::ALL.map(holds)
}

/// The slot to start: the one that holds the root; of two, the one whose entry the loader started, else A.
pub fn choose(holders: [bool; 2], loader: Option<Slot>) -> Option<Slot> {
    match holders {
        [true, true] => Some(loader.unwrap_or(Slot::A)),
        [true, false] => Some(Slot::A),
        [false, true] => Some(Slot::B),
        [false, false] => None,
    }
}

impl Found {
    /// Puts the dm-verity device upon the slot's partitions; the kernel panics on the first block that was changed.
    pub fn open_verity(&self, root_hash: &RootHash) -> Result<PathBuf, InitError> {
        let doing = || format!("opening slot {} on {} with dm-verity", self.slot, self.disk);
        let disk = BlockDisk::open(Path::new("/dev").join(&self.disk)).doing(doing)?;
        let partitions = self.layout.slot(self.slot);
        let data = disk.partition_node(&partitions.root).doing(doing)?;
        let hash = disk.partition_node(&partitions.verity).doing(doing)?;
        let hashes = FileDevice::open(&hash, Access::Read).doing(doing)?;
        let parameters = verity::read_superblock(&hashes).map_err(std::io::Error::other).doing(doing)?;
        let table = parameters.table(data, hash, root_hash, OnCorruption::Panic);
        dm::create_verity(DM_NAME, &table).doing(doing)
    }

    /// Mounts the disk's state partition at `dir`; false when the disk has none.
    pub fn mount_state(&self, dir: &Path) -> Result<bool, InitError> {
        let Some(state) = &self.layout.state else { return Ok(false) };
        let doing = || format!("mounting the state partition of {}", self.disk);
        let disk = BlockDisk::open(Path::new("/dev").join(&self.disk)).doing(doing)?;
        root::mount_state(&disk.partition_node(state).doing(doing)?, dir)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use switchback_partitions::device::MemDevice;
    use switchback_partitions::layout::{Architecture, Completeness, SlotPartitions};
    use switchback_partitions::verity::{TreeWriter, VerityParams};
    use uuid::Uuid;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn layout(esp: u128) -> DiskLayout {
        let extent = |number: u32, guid: u128| Extent {
            number,
            offset: u64::from(number) * MIB,
            len: MIB,
            guid: Uuid::from_u128(guid),
        };
        let slot = |root, verity| SlotPartitions {
            root: extent(root, u128::from(root)),
            verity: extent(verity, u128::from(verity)),
            completeness: Completeness::Whole,
        };
        DiskLayout {
            sector_bytes: 512,
            architecture: Architecture::X86_64,
            esp: extent(1, esp),
            slots: [slot(2, 3), slot(4, 5)],
            state: None,
            data: None,
        }
    }

    /// Writes the tree of two blocks full of `byte` into a slot's verity partition.
    fn fill(disk: &Arc<dyn BlockDevice>, slot: Slot, byte: u8) -> RootHash {
        let params = VerityParams {
            salt: vec![7; 32],
            uuid: Uuid::from_u128(1),
            data_block_bytes: 4096,
            hash_block_bytes: 4096,
            data_blocks: 2,
        };
        let Extent { offset, len, .. } = layout(0).slot(slot).verity;
        let window = Window::new(disk.clone(), offset, len).unwrap();
        let mut tree = TreeWriter::new(params, Arc::new(window)).unwrap();
        tree.push(&[byte; 8192]).unwrap();
        tree.finish().unwrap()
    }

    #[test]
    fn a_slot_is_found_by_its_root_hash_among_empty_and_other_content() {
        let disk: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(8 << 20, 512));
        let wanted = fill(&disk, Slot::B, 1);
        assert_eq!(holders(&disk, &layout(0), &wanted), [false, true], "slot a was never written");
        let other = fill(&disk, Slot::A, 2);
        assert_eq!(holders(&disk, &layout(0), &wanted), [false, true]);
        assert_eq!(holders(&disk, &layout(0), &other), [true, false]);
        fill(&disk, Slot::A, 1);
        assert_eq!(holders(&disk, &layout(0), &wanted), [true, true]);
        let mut flipped = wanted;
        flipped.0[31] ^= 1;
        assert_eq!(holders(&disk, &layout(0), &flipped), [false, false]);
    }

    #[test]
    fn a_loader_that_says_where_it_came_from_points_at_one_disk() {
        let from = |guid: u128| LoaderEvidence {
            loader_partition: Some(Uuid::from_u128(guid)),
            ..LoaderEvidence::default()
        };
        assert!(came_from(&from(5), &layout(5)));
        assert!(!came_from(&from(5), &layout(6)));
        assert!(came_from(&LoaderEvidence::default(), &layout(6)), "no loader spoke: every disk will do");
    }

    #[test]
    fn content_decides_and_the_loader_only_between_equals() {
        use Slot::{A, B};
        for (holders, loader, slot, why) in [
            ([true, false], Some(B), Some(A), "the loader's word does not change what a slot holds"),
            ([false, true], None, Some(B), "only one holds it"),
            ([true, true], Some(B), Some(B), "both hold it and the loader started b"),
            ([true, true], None, Some(A), "both hold it and nobody says more"),
            ([false, false], Some(A), None, "an entry without its root"),
        ] {
            assert_eq!(choose(holders, loader), slot, "{why}");
        }
    }
}
