//! Which partitions make a slot: found by type GUID (UAPI.2, Discoverable Partitions) and label.
//!
//! Not here: the table's bytes (`gpt`), which slot runs. Rule: a layout is found whole and without doubt, or not at all.

use uuid::{Uuid, uuid};

use crate::gpt::{Entry, Table};
use crate::slot::Slot;

/// EFI system partition.
pub const ESP_TYPE: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// Generic Linux data: partitions `state` and `data`.
pub const LINUX_DATA_TYPE: Uuid = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");

/// Where one partition lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Its number in the table, from 1.
    pub number: u32,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Its unique GUID (PARTUUID).
    pub guid: Uuid,
}

/// The processor that a root partition is for, as its type GUID says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// 64-bit ARM.
    Arm64,
}

impl Architecture {
    /// Every architecture whose type GUIDs are known here.
    pub const ALL: [Architecture; 2] = [Architecture::X86_64, Architecture::Arm64];

    /// The one this program was built for; x86-64 when it has no type GUIDs here.
    pub fn native() -> Architecture {
        if cfg!(target_arch = "aarch64") { Architecture::Arm64 } else { Architecture::X86_64 }
    }

    /// Type GUID of a root partition.
    pub fn root_type(self) -> Uuid {
        match self {
            Architecture::X86_64 => uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
            Architecture::Arm64 => uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae"),
        }
    }

    /// Type GUID of the verity partition of a root partition.
    pub fn verity_type(self) -> Uuid {
        match self {
            Architecture::X86_64 => uuid!("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"),
            Architecture::Arm64 => uuid!("df3300ce-d69f-4c92-978c-9bfb0f38d820"),
        }
    }
}

/// What a label's prefix says about a partition's content (systemd-sysupdate's prefixes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Completeness {
    /// No prefix: written to its end, or never touched.
    Whole,
    /// `PND#`: written to its end, not yet put into use.
    Pending,
    /// `PRT#`: writing began and did not end.
    Partial,
}

impl Completeness {
    /// The label `name` in this state.
    pub fn label(self, name: &str) -> String {
        format!("{}{name}", self.prefix())
    }

    /// A label's state and the name without the prefix.
    pub fn of_label(label: &str) -> (Completeness, &str) {
        for state in [Completeness::Partial, Completeness::Pending] {
            if let Some(name) = label.strip_prefix(state.prefix()) {
                return (state, name);
            }
        }
        (Completeness::Whole, label)
    }

    fn prefix(self) -> &'static str {
        match self {
            Completeness::Whole => "",
            Completeness::Pending => "PND#",
            Completeness::Partial => "PRT#",
        }
    }
}

/// The two partitions of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPartitions {
    /// The file system.
    pub root: Extent,
    /// Its dm-verity hash tree.
    pub verity: Extent,
    /// The worse of what the two labels say.
    pub completeness: Completeness,
}

/// Everything of ours on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskLayout {
    /// Logical sector size in bytes.
    pub sector_bytes: u32,
    /// What the root partitions are for.
    pub architecture: Architecture,
    /// The EFI system partition.
    pub esp: Extent,
    /// Slot A, slot B.
    pub slots: [SlotPartitions; 2],
    /// Partition `state`: the updater's own memory.
    pub state: Option<Extent>,
    /// Partition `data`: everything else.
    pub data: Option<Extent>,
}

/// Why a table is not one of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// A partition that must be there is not.
    #[error("while looking for the slots: no partition `{label}` with a type GUID for {wanted}")]
    Missing {
        /// The label looked for.
        label: String,
        /// What its type GUID has to mean.
        wanted: &'static str,
    },
    /// Two partitions answer to one name: neither can be believed.
    #[error("while looking for the slots: partitions {first} and {second} are both `{label}`")]
    Twice {
        /// The label.
        label: String,
        /// One partition's number.
        first: u32,
        /// The other's.
        second: u32,
    },
    /// The slots are for different processors.
    #[error("while looking for the slots: slot a is for {a:?}, slot b for {b:?}")]
    MixedArchitectures {
        /// Slot A's.
        a: Architecture,
        /// Slot B's.
        b: Architecture,
    },
}

/// Label of a slot's root partition: `root-a`.
pub fn root_label(slot: Slot) -> String {
    format!("root-{slot}")
}

/// Label of a slot's verity partition: `verity-a`.
pub fn verity_label(slot: Slot) -> String {
    format!("verity-{slot}")
}

impl DiskLayout {
    /// Finds the layout in a table.
    pub fn discover(table: &Table) -> Result<DiskLayout, LayoutError> {
        let entries = table.entries();
        let (architecture, a) = find_slot(&entries, Slot::A)?;
        let (architecture_b, b) = find_slot(&entries, Slot::B)?;
        if architecture != architecture_b {
            return Err(LayoutError::MixedArchitectures { a: architecture, b: architecture_b });
        }
        Ok(DiskLayout {
            sector_bytes: table.sector_bytes(),
            architecture,
            esp: find_esp(&entries)?,
            slots: [a, b],
            state: find_labelled(&entries, "state", LINUX_DATA_TYPE)?.map(Entry::extent),
            data: find_labelled(&entries, "data", LINUX_DATA_TYPE)?.map(Entry::extent),
        })
    }

    /// A slot's partitions.
    pub fn slot(&self, slot: Slot) -> &SlotPartitions {
        &self.slots[slot.index()]
    }

    /// The slot that a partition number belongs to.
    pub fn slot_of(&self, number: u32) -> Option<Slot> {
        Slot::ALL.into_iter().find(|slot| {
            let SlotPartitions { root, verity, .. } = self.slot(*slot);
            number == root.number || number == verity.number
        })
    }
}

fn find_slot(entries: &[Entry], slot: Slot) -> Result<(Architecture, SlotPartitions), LayoutError> {
    let root_label = root_label(slot);
    let mut found = None;
    for architecture in Architecture::ALL {
        let Some(root) = find_labelled(entries, &root_label, architecture.root_type())? else { continue };
        if let Some((_, first)) = found {
            return Err(twice(&root_label, first, root));
        }
        found = Some((architecture, root));
    }
    let (architecture, root) =
        found.ok_or(LayoutError::Missing { label: root_label, wanted: "a root file system" })?;
    let verity_label = verity_label(slot);
    let verity = find_labelled(entries, &verity_label, architecture.verity_type())?
        .ok_or(LayoutError::Missing { label: verity_label, wanted: "a root file system's verity tree" })?;
    let state = |entry: &Entry| Completeness::of_label(&entry.label).0;
    let completeness = state(root).max(state(verity));
    Ok((architecture, SlotPartitions { root: root.extent(), verity: verity.extent(), completeness }))
}

/// By type alone: its label is the distribution's business. With several, the one labelled `esp` is ours.
fn find_esp(entries: &[Entry]) -> Result<Extent, LayoutError> {
    let all: Vec<&Entry> = entries.iter().filter(|entry| entry.type_guid == ESP_TYPE).collect();
    match all.as_slice() {
        [] => Err(LayoutError::Missing { label: "esp".to_owned(), wanted: "an EFI system partition" }),
        [one] => Ok(one.extent()),
        [first, second, ..] => {
            let ours = find_labelled(entries, "esp", ESP_TYPE)?;
            ours.map(Entry::extent).ok_or_else(|| twice("EFI system partition", first, second))
        }
    }
}

fn find_labelled<'a>(entries: &'a [Entry], name: &str, kind: Uuid) -> Result<Option<&'a Entry>, LayoutError> {
    let mut matching = entries
        .iter()
        .filter(|entry| entry.type_guid == kind && Completeness::of_label(&entry.label).1 == name);
    match (matching.next(), matching.next()) {
        (Some(first), Some(second)) => Err(twice(name, first, second)),
        (found, _) => Ok(found),
    }
}

fn twice(label: &str, first: &Entry, second: &Entry) -> LayoutError {
    LayoutError::Twice { label: label.to_owned(), first: first.number, second: second.number }
}
