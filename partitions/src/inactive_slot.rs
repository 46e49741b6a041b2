//! The only type through which an image is written.
//!
//! Not here: what is written. Rule: it cannot exist for the running slot (it is made for the other one, always), nor while
//! the running slot is unconfirmed (then the other slot is the only way back), nor while anybody uses its partitions.

use std::io;
use std::sync::Arc;

use crate::device::BlockDevice;
use crate::device::disk::Disk;
use crate::gpt::{GptError, Table};
use crate::layout::{Completeness, DiskLayout, Extent, LayoutError, root_label, verity_label};
use crate::slot::{RunningSlot, Slot};
use crate::verity::RootHash;

/// The slot that does not run, open for writing by nobody else.
pub struct InactiveSlot {
    slot: Slot,
    disk: Arc<dyn Disk>,
    root_extent: Extent,
    verity_extent: Extent,
    root: Arc<dyn BlockDevice>,
    verity: Arc<dyn BlockDevice>,
}

/// Why the inactive slot could not be opened or marked.
#[derive(Debug, thiserror::Error)]
pub enum InactiveSlotError {
    /// The running slot is itself on trial.
    #[error(
        "while opening slot {slot}: the running slot {running} is not confirmed, so slot {slot} is the only way back"
    )]
    RunningUnconfirmed {
        /// The slot asked for.
        slot: Slot,
        /// The slot that runs.
        running: Slot,
    },
    /// A partition of the slot is mounted, or another device lies on top of it.
    #[error("while opening slot {slot}: partition {partition} is in use by {users}")]
    InUse {
        /// The slot.
        slot: Slot,
        /// The partition's number.
        partition: u32,
        /// Mount points and device names, or that the kernel did not say.
        users: String,
    },
    /// The table changed since the layout was read from it.
    #[error("while opening slot {slot}: partition {partition} is no longer where it was found")]
    Moved {
        /// The slot.
        slot: Slot,
        /// The partition's number.
        partition: u32,
    },
    /// Another partition already has the identity that this release gives: both slots would hold one release.
    #[error(
        "while marking slot {slot}: partition {partition} already holds the release with root hash {root_hash}"
    )]
    SameRelease {
        /// The slot.
        slot: Slot,
        /// The partition that has the identity.
        partition: u32,
        /// The release's root hash.
        root_hash: RootHash,
    },
    /// The table could not be read or written.
    #[error("while reading or marking slot {slot}")]
    Table {
        /// The slot.
        slot: Slot,
        /// Why.
        #[source]
        source: GptError,
    },
    /// The table no longer has two slots.
    #[error("while opening slot {slot}")]
    Layout {
        /// The slot.
        slot: Slot,
        /// Why.
        #[source]
        source: LayoutError,
    },
    /// A device could not be opened or locked.
    #[error("while {action} slot {slot}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The slot.
        slot: Slot,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl InactiveSlot {
    /// Opens the slot that is not `running`.
    pub fn open(
        disk: Arc<dyn Disk>,
        layout: &DiskLayout,
        running: RunningSlot,
    ) -> Result<InactiveSlot, InactiveSlotError> {
        let slot = running.slot.other();
        if !running.confirmed {
            return Err(InactiveSlotError::RunningUnconfirmed { slot, running: running.slot });
        }
        let partitions = layout.slot(slot);
        let found = discover(&*disk, slot)?;
        for (given, now) in
            [(&partitions.root, &found.slot(slot).root), (&partitions.verity, &found.slot(slot).verity)]
        {
            if (given.number, given.offset, given.len) != (now.number, now.offset, now.len) {
                return Err(InactiveSlotError::Moved { slot, partition: given.number });
            }
        }
        let root = open_unused(&*disk, slot, &partitions.root)?;
        let verity = open_unused(&*disk, slot, &partitions.verity)?;
        let (root_extent, verity_extent) = (partitions.root.clone(), partitions.verity.clone());
        Ok(InactiveSlot { slot, disk, root_extent, verity_extent, root, verity })
    }

    /// Which slot it is.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The partition for the root file system.
    pub fn root(&self) -> Arc<dyn BlockDevice> {
        self.root.clone()
    }

    /// The partition for its hash tree.
    pub fn verity(&self) -> Arc<dyn BlockDevice> {
        self.verity.clone()
    }

    /// Marks the slot as being written (`PRT#` before both labels) and, where the release has a root hash, gives both
    /// partitions the PARTUUIDs that follow from it. To be called before the first byte is written: after a power cut the
    /// labels tell everyone that the content is not whole.
    pub fn mark_partial(&self, root_hash: Option<&RootHash>) -> Result<(), InactiveSlotError> {
        self.mark(Completeness::Partial, root_hash)
    }

    /// Takes the mark away: the slot is written, flushed and verified.
    pub fn mark_whole(&self) -> Result<(), InactiveSlotError> {
        self.mark(Completeness::Whole, None)
    }

    fn mark(&self, state: Completeness, root_hash: Option<&RootHash>) -> Result<(), InactiveSlotError> {
        let slot = self.slot;
        let io_error = |action| move |source| InactiveSlotError::Io { action, slot, source };
        let table_error = |source| InactiveSlotError::Table { slot, source };
        let _lock = self.disk.lock().map_err(io_error("locking the disk of"))?;
        let whole = self.disk.whole().map_err(io_error("opening the disk of"))?;
        let mut table = Table::read(&*whole).map_err(table_error)?;
        let partitions = [(&self.root_extent, root_label(slot)), (&self.verity_extent, verity_label(slot))];
        for (extent, name) in &partitions {
            self.check_unmoved(&table, extent, name)?;
            table.set_label(extent.number, &state.label(name)).map_err(table_error)?;
        }
        if let Some(root_hash) = root_hash {
            self.check_identity_is_free(&table, root_hash)?;
            table.set_guid(self.root_extent.number, root_hash.data_guid()).map_err(table_error)?;
            table.set_guid(self.verity_extent.number, root_hash.hash_guid()).map_err(table_error)?;
        }
        table.write(&*whole).map_err(table_error)?;
        Ok(())
    }

    fn check_unmoved(&self, table: &Table, extent: &Extent, name: &str) -> Result<(), InactiveSlotError> {
        let unmoved = table.entry(extent.number).is_some_and(|entry| {
            (entry.offset, entry.len) == (extent.offset, extent.len)
                && Completeness::of_label(&entry.label).1 == name
        });
        if unmoved {
            Ok(())
        } else {
            Err(InactiveSlotError::Moved { slot: self.slot, partition: extent.number })
        }
    }

    /// Two partitions with one PARTUUID would make every lookup by PARTUUID a guess.
    fn check_identity_is_free(&self, table: &Table, root_hash: &RootHash) -> Result<(), InactiveSlotError> {
        let ours = [self.root_extent.number, self.verity_extent.number];
        let wanted = [root_hash.data_guid(), root_hash.hash_guid()];
        let entries = table.entries();
        let taken =
            entries.iter().find(|entry| wanted.contains(&entry.guid) && !ours.contains(&entry.number));
        match taken {
            None => Ok(()),
            Some(entry) => Err(InactiveSlotError::SameRelease {
                slot: self.slot,
                partition: entry.number,
                root_hash: *root_hash,
            }),
        }
    }
}

fn discover(disk: &dyn Disk, slot: Slot) -> Result<DiskLayout, InactiveSlotError> {
    let whole = disk.whole().map_err(|source| InactiveSlotError::Io {
        action: "opening the disk of",
        slot,
        source,
    })?;
    let table = Table::read(&*whole).map_err(|source| InactiveSlotError::Table { slot, source })?;
    DiskLayout::discover(&table).map_err(|source| InactiveSlotError::Layout { slot, source })
}

fn open_unused(
    disk: &dyn Disk,
    slot: Slot,
    extent: &Extent,
) -> Result<Arc<dyn BlockDevice>, InactiveSlotError> {
    let io_error = |source| InactiveSlotError::Io { action: "opening", slot, source };
    let in_use = |users| InactiveSlotError::InUse { slot, partition: extent.number, users };
    // Asked first, for an error that names who; the exclusive open below is what holds.
    let users = disk.users(extent).map_err(io_error)?;
    if !users.is_empty() {
        return Err(in_use(users.join(", ")));
    }
    disk.partition(extent).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => in_use("somebody whom the kernel does not name".to_owned()),
        _ => io_error(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemDevice;
    use crate::device::disk::PlainDisk;
    use crate::testing::{MEMORY_DISK_BYTES, disk_with_slots};

    const CONFIRMED_A: RunningSlot = RunningSlot { slot: Slot::A, confirmed: true };

    fn parts() -> (Arc<MemDevice>, Arc<dyn Disk>, DiskLayout) {
        let memory = disk_with_slots(512);
        let layout = DiskLayout::discover(&Table::read(&*memory).unwrap()).unwrap();
        (memory.clone(), Arc::new(PlainDisk::new(memory)), layout)
    }

    #[test]
    fn it_is_always_the_slot_that_does_not_run() {
        let (_, disk, layout) = parts();
        for slot in Slot::ALL {
            let inactive =
                InactiveSlot::open(disk.clone(), &layout, RunningSlot { slot, confirmed: true }).unwrap();
            assert_eq!(inactive.slot(), slot.other());
            assert_eq!(inactive.root().len(), layout.slot(slot.other()).root.len);
            assert_eq!(inactive.verity().len(), layout.slot(slot.other()).verity.len);
        }
    }

    #[test]
    fn it_does_not_exist_while_the_running_slot_is_unconfirmed() {
        let (memory, disk, layout) = parts();
        let before = memory.to_bytes();
        for slot in Slot::ALL {
            let result = InactiveSlot::open(disk.clone(), &layout, RunningSlot { slot, confirmed: false });
            assert!(matches!(result, Err(InactiveSlotError::RunningUnconfirmed { .. })));
        }
        assert!(memory.to_bytes() == before);
    }

    #[test]
    fn filling_it_to_the_brim_leaves_every_other_partition_as_it_was() {
        let (memory, disk, layout) = parts();
        let inactive = InactiveSlot::open(disk, &layout, CONFIRMED_A).unwrap();
        let before = memory.to_bytes();
        for device in [inactive.root(), inactive.verity()] {
            device.write_at(0, &vec![0xEE; device.len() as usize]).unwrap();
            assert!(device.write_at(device.len(), &[0xEE]).is_err());
        }
        let after = memory.to_bytes();
        let range = |extent: &Extent| extent.offset as usize..(extent.offset + extent.len) as usize;
        let (root, verity) = (range(&layout.slot(Slot::B).root), range(&layout.slot(Slot::B).verity));
        for at in 0..MEMORY_DISK_BYTES {
            let inside = root.contains(&at) || verity.contains(&at);
            assert_eq!(after[at] != before[at], inside, "byte {at}");
        }
    }

    #[test]
    fn marks_and_identities_are_in_both_copies_of_the_table_and_survive_a_new_start() {
        let (memory, disk, layout) = parts();
        let root_hash = RootHash(std::array::from_fn(|at| at as u8));
        let inactive = InactiveSlot::open(disk.clone(), &layout, CONFIRMED_A).unwrap();
        inactive.mark_partial(Some(&root_hash)).unwrap();
        drop(inactive);

        let table = Table::read(&*memory).unwrap();
        assert_eq!(table.damage(), None);
        let marked = DiskLayout::discover(&table).unwrap();
        assert_eq!(marked.slot(Slot::B).completeness, Completeness::Partial);
        assert_eq!(marked.slot(Slot::A), layout.slot(Slot::A));
        assert_eq!(marked.slot(Slot::B).root.guid, root_hash.data_guid());
        assert_eq!(marked.slot(Slot::B).verity.guid, root_hash.hash_guid());
        assert_eq!(table.entry(marked.slot(Slot::B).root.number).unwrap().label, "PRT#root-b");

        let again = InactiveSlot::open(disk, &marked, CONFIRMED_A).unwrap();
        again.mark_partial(Some(&root_hash)).unwrap();
        again.mark_whole().unwrap();
        let whole = DiskLayout::discover(&Table::read(&*memory).unwrap()).unwrap();
        assert_eq!(whole.slot(Slot::B).completeness, Completeness::Whole);
        assert_eq!(whole.slot(Slot::B).root.guid, root_hash.data_guid());
    }

    #[test]
    fn one_release_in_both_slots_is_refused_before_anything_is_written() {
        let (memory, disk, layout) = parts();
        let root_hash = RootHash([9; 32]);
        let running_b = RunningSlot { slot: Slot::B, confirmed: true };
        let a = InactiveSlot::open(disk.clone(), &layout, running_b).unwrap();
        a.mark_partial(Some(&root_hash)).unwrap();
        drop(a);
        let before = memory.to_bytes();
        let b = InactiveSlot::open(disk, &layout, CONFIRMED_A).unwrap();
        assert!(matches!(b.mark_partial(Some(&root_hash)), Err(InactiveSlotError::SameRelease { .. })));
        assert!(memory.to_bytes() == before);
    }

    #[test]
    fn a_layout_that_is_no_longer_true_is_refused() {
        let (memory, disk, layout) = parts();
        let mut wrong = layout.clone();
        wrong.slots[1].root.offset += 512;
        let result = InactiveSlot::open(disk.clone(), &wrong, CONFIRMED_A);
        assert!(matches!(result, Err(InactiveSlotError::Moved { .. })));

        // Somebody renames the partition while it is open.
        let inactive = InactiveSlot::open(disk, &layout, CONFIRMED_A).unwrap();
        let mut table = Table::read(&*memory).unwrap();
        table.set_label(layout.slot(Slot::B).root.number, "mine").unwrap();
        table.write(&*memory).unwrap();
        assert!(matches!(inactive.mark_partial(None), Err(InactiveSlotError::Moved { .. })));
    }

    /// A disk whose kernel reports users, or refuses the exclusive open.
    struct HeldDisk {
        inner: PlainDisk,
        users: Vec<String>,
        held: u32,
    }

    impl Disk for HeldDisk {
        fn whole(&self) -> io::Result<Arc<dyn BlockDevice>> {
            self.inner.whole()
        }
        fn partition(&self, extent: &Extent) -> io::Result<Arc<dyn BlockDevice>> {
            if extent.number == self.held {
                Err(io::ErrorKind::ResourceBusy.into())
            } else {
                self.inner.partition(extent)
            }
        }
        fn users(&self, extent: &Extent) -> io::Result<Vec<String>> {
            Ok(if extent.number == self.held { self.users.clone() } else { Vec::new() })
        }
    }

    #[test]
    fn a_mounted_or_held_partition_is_refused_and_its_users_are_named() {
        let (memory, _, layout) = parts();
        let (root, verity) = (layout.slot(Slot::B).root.number, layout.slot(Slot::B).verity.number);
        let cases = [
            (root, vec!["/mnt".to_owned(), "/dev/dm-0".to_owned()], "/mnt, /dev/dm-0"),
            (verity, vec!["/dev/dm-0".to_owned()], "/dev/dm-0"),
            (root, vec![], "does not name"),
        ];
        for (held, users, said) in cases {
            let disk = HeldDisk { inner: PlainDisk::new(memory.clone()), users, held };
            let Err(error) = InactiveSlot::open(Arc::new(disk), &layout, CONFIRMED_A) else {
                panic!("opened")
            };
            assert!(matches!(error, InactiveSlotError::InUse { partition, .. } if partition == held));
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
