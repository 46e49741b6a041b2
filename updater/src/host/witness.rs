//! Which slot is running, from everything that can bear witness.
//!
//! Not here: opening anything for writing. Rule: the order of belief is fixed (partition beneath `/` > the loader's
//! variables > a word on the command line), a witness of lower rank never overrules one of higher rank, and where
//! nobody answers nothing is guessed.

use std::fmt::Write as _;

use switchback_partitions::layout::DiskLayout;
use switchback_partitions::slot::Slot;

use super::HostError;
use super::loader::LoaderEvidence;
use super::sysfs::{DeviceNumber, Sysfs};
use crate::init::cmdline;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The disk's name beneath `/dev`.
    pub disk: String,
    /// Its layout.
    pub layout: DiskLayout,
    /// The running slot.
    pub slot: Slot,
    /// Who said so, and whether the others agree.
    pub evidence: String,
}

/// Everything that is asked.
pub struct Questions<'a> {
    /// The kernel's view of devices.
    pub sysfs: &'a Sysfs,
    /// The device of `/` (`st_dev`).
    pub root: DeviceNumber,
    /// What the loader left.
    pub loader: &'a LoaderEvidence,
    /// The kernel command line.
    pub cmdline: &'a str,
    /// The layout of a disk, by its name beneath `/dev`, or a sentence why there is none.
    pub layout_of: &'a dyn Fn(&str) -> Result<DiskLayout, String>,
}

/// Asks the witnesses in their order.
pub fn locate(questions: &Questions<'_>) -> Result<Located, HostError> {
    let mut looked_at = Vec::new();
    match beneath_root(questions) {
        Ok(mut located) => {
            cross_check(&mut located, questions);
            return Ok(located);
        }
        Err(sentence) => looked_at.push(sentence),
    }
    let (disk, layout) = match only_disk(questions) {
        Ok(found) => found,
        Err(sentence) => {
            looked_at.push(sentence);
            return Err(HostError::NoWitness { looked_at: looked_at.join("; ") });
        }
    };
    let second = questions.loader.slot().map(|slot| (slot, "the loader's variables"));
    let third = slot_on_cmdline(questions.cmdline).map(|slot| (slot, "a word on the kernel command line"));
    match second.or(third) {
        Some((slot, witness)) => {
            let evidence = format!("{witness}, on {disk} ({})", looked_at.join("; "));
            Ok(Located { disk, layout, slot, evidence })
        }
        None => {
            looked_at.push("the loader's variables name no entry of ours".to_owned());
            looked_at.push("no `rauc.slot=` on the kernel command line".to_owned());
            Err(HostError::NoWitness { looked_at: looked_at.join("; ") })
        }
    }
}

/// The first witness: the partitions that `/` stands on.
fn beneath_root(questions: &Questions<'_>) -> Result<Located, String> {
    let root = questions.root;
    let beneath = questions
        .sysfs
        .partitions_beneath(root)
        .map_err(|error| format!("/ is on device {root}, which sysfs does not explain ({error})"))?;
    let Some(first) = beneath.first() else {
        return Err(format!("/ is on device {root}, which stands on no partition"));
    };
    let names = beneath.iter().map(|partition| partition.name.as_str()).collect::<Vec<_>>().join(" and ");
    let layout =
        (questions.layout_of)(&first.disk).map_err(|sentence| format!("/ is on {names}; {sentence}"))?;
    let mut slots = beneath
        .iter()
        .map(|partition| (partition.disk == first.disk).then(|| layout.slot_of(partition.number)).flatten());
    match slots.next().flatten() {
        Some(slot) if slots.all(|other| other == Some(slot)) => {
            let kind = if beneath.len() > 1 { "the dm-verity device of /" } else { "the device of /" };
            let evidence = format!("{kind} stands on {names}");
            Ok(Located { disk: first.disk.clone(), layout, slot, evidence })
        }
        _ => Err(format!("/ is on {names}, which is no slot of {}", first.disk)),
    }
}

/// Lets the other witnesses speak, for people; they change nothing.
fn cross_check(located: &mut Located, questions: &Questions<'_>) {
    let others = [
        (questions.loader.slot(), "the loader"),
        (slot_on_cmdline(questions.cmdline), "the kernel command line"),
    ];
    for (slot, who) in others {
        // Writing to a string does not fail.
        let _ = match slot {
            Some(slot) if slot == located.slot => write!(located.evidence, "; {who} agrees"),
            Some(slot) => write!(located.evidence, "; {who} says slot {slot} and is not believed"),
            None => Ok(()),
        };
    }
}

/// The disk the loader came from, or the only one with slots.
fn only_disk(questions: &Questions<'_>) -> Result<(String, DiskLayout), String> {
    let disks =
        questions.sysfs.partitioned_disks().map_err(|error| format!("sysfs lists no disks ({error})"))?;
    let mut found: Vec<_> = disks
        .into_iter()
        .filter_map(|disk| Some((disk.clone(), (questions.layout_of)(&disk).ok()?)))
        .collect();
    if let Some(guid) = questions.loader.loader_partition {
        found.retain(|(_, layout)| layout.esp.guid == guid);
    }
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err("no disk with two slots belongs to this start".to_owned()),
        (Some(_), more) => Err(format!("{} disks have two slots each", more + 1)),
    }
}

/// The slot that a command line of RAUC's kind names: `rauc.slot=A`, or a bootname that ends in it, `system-a`.
pub(crate) fn slot_on_cmdline(text: &str) -> Option<Slot> {
    let name = cmdline::last(text, "rauc.slot")?;
    name.rsplit(['-', '_', '.']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::fixture;
    use super::*;
    use switchback_partitions::layout::{Architecture, Completeness, Extent, SlotPartitions};
    use uuid::Uuid;

    const ESP: Uuid = Uuid::from_u128(0xe5b);

    fn layout() -> DiskLayout {
        let extent = |number: u32| Extent {
            number,
            offset: u64::from(number) << 20,
            len: 1 << 20,
            guid: if number == 1 { ESP } else { Uuid::from_u128(u128::from(number)) },
        };
        let slot = |root, verity| SlotPartitions {
            root: extent(root),
            verity: extent(verity),
            completeness: Completeness::Whole,
        };
        DiskLayout {
            sector_bytes: 512,
            architecture: Architecture::X86_64,
            esp: extent(1),
            slots: [slot(2, 3), slot(4, 5)],
            state: Some(extent(6)),
            data: None,
        }
    }

    struct Case {
        verity_over: Option<[u32; 2]>,
        root: (u64, u64),
        loader: Option<&'static str>,
        loader_disk: Uuid,
        cmdline: &'static str,
    }

    fn ask(case: &Case) -> Result<Located, String> {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fixture::machine(dir.path(), 6, case.verity_over);
        let loader = LoaderEvidence {
            speaks: case.loader.is_some(),
            entry_selected: case.loader.map(str::to_owned),
            boot_count_path: None,
            loader_partition: case.loader.map(|_| case.loader_disk),
        };
        locate(&Questions {
            sysfs: &sysfs,
            root: DeviceNumber { major: case.root.0, minor: case.root.1 },
            loader: &loader,
            cmdline: case.cmdline,
            layout_of: &|_| Ok(layout()),
        })
        .map_err(|error| error.to_string())
    }

    const VERITY: (u64, u64) = (254, 0);
    const OVERLAY: (u64, u64) = (0, 31);
    const CASE: Case = Case { verity_over: None, root: OVERLAY, loader: None, loader_disk: ESP, cmdline: "" };

    #[test]
    fn the_slot_beneath_the_verity_device_of_the_root_runs() {
        let case = Case { verity_over: Some([4, 5]), root: VERITY, ..CASE };
        let located = ask(&case).unwrap();
        assert_eq!(located.slot, Slot::B);
        assert_eq!(located.evidence, "the dm-verity device of / stands on vda4 and vda5");
    }

    #[test]
    fn without_verity_the_partition_of_the_root_says_it() {
        let located = ask(&Case { root: (253, 2), ..CASE }).unwrap();
        assert_eq!((located.slot, located.disk.as_str()), (Slot::A, "vda"));
    }

    #[test]
    fn a_loader_that_disagrees_with_the_kernel_is_named_and_not_believed() {
        let case = Case {
            verity_over: Some([4, 5]),
            root: VERITY,
            loader: Some("switchback-a-1.conf"),
            cmdline: "rauc.slot=B",
            ..CASE
        };
        let located = ask(&case).unwrap();
        assert_eq!(located.slot, Slot::B);
        assert!(
            located.evidence.contains("the loader says slot a and is not believed"),
            "{}",
            located.evidence
        );
        assert!(located.evidence.contains("the kernel command line agrees"), "{}", located.evidence);
    }

    #[test]
    fn under_an_overlay_the_loader_and_then_the_command_line_are_asked() {
        for (loader, cmdline, slot) in [
            (Some("switchback-b-4+2-1.conf"), "rauc.slot=A", Some(Slot::B)),
            (None, "quiet rauc.slot=system-a", Some(Slot::A)),
            (Some("debian.conf"), "quiet rauc.slot=rescue", None),
        ] {
            let answer = ask(&Case { loader, cmdline, ..CASE });
            assert_eq!(answer.ok().map(|located| located.slot), slot, "{loader:?} {cmdline}");
        }
    }

    #[test]
    fn a_loader_on_another_disk_says_nothing_about_this_one() {
        let stick = Uuid::from_u128(0xdead);
        let answer = ask(&Case { loader: Some("switchback-b-4.conf"), loader_disk: stick, ..CASE });
        assert!(answer.unwrap_err().contains("no disk with two slots belongs to this start"));
    }

    #[test]
    fn a_root_that_is_no_slot_or_half_of_two_is_no_witness() {
        for (verity_over, root) in [(None, (253, 6)), (Some([2, 5]), VERITY)] {
            let error = ask(&Case { verity_over, root, ..CASE }).unwrap_err();
            assert!(error.contains("which is no slot of vda"), "{error}");
            assert!(error.contains("the loader's variables name no entry of ours"), "{error}");
        }
    }
}
