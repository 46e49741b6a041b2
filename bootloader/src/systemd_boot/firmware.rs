//! The machine's side of the protocol, for simulators and tests: what systemd-boot does when the power comes on.
//!
//! Not here: starting anything. Rule: the answer of the loader's own order and that of `BootState::choose` are
//! compared at each start, so the model that proofs use cannot drift from the names on the partition.

use switchback_partitions::slot::Slot;

use super::catalogue::Catalogue;
use super::entry::{ENTRIES, LoaderEntry, OurName};
use crate::esp::EspDir;
use crate::record::BootError;
use crate::slot_files::at;

/// A firmware with systemd-boot on it.
#[derive(Debug, Clone, Copy, Default)]
pub struct SimulatedFirmware;

/// What was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The slot; `None` for an entry that is not ours.
    pub slot: Option<Slot>,
    /// The entry, its name as it is after the loader counted the start.
    pub entry: LoaderEntry,
}

impl SimulatedFirmware {
    /// One power-on: takes the first entry in the loader's order, renames a counted one (`+3-0` → `+2-1`) and
    /// "starts" it. `None` when there is nothing to start: a machine that stays in its firmware.
    ///
    /// # Panics
    /// When `BootState::choose` and `spend` would have done something else: the simulation then proves nothing.
    pub fn power_on(&self, esp: &dyn EspDir) -> Result<Option<Start>, BootError> {
        let before = Catalogue::load(esp)?;
        let Some(mut entry) = before.shown.first().cloned() else { return Ok(None) };
        if let Some(tries) = entry.tries {
            let spent = tries.spent();
            let renamed = format!("{}+{}-{}.conf", stem(&entry), spent.left, spent.done);
            rename(esp, &entry.file_name, &renamed)?;
            (entry.tries, entry.file_name) = (Some(spent), renamed);
        }
        let slot = OurName::parse(&entry.file_name).map(|name| name.slot);
        if slot.is_some() {
            let state = before.state();
            assert_eq!(
                slot,
                state.choose(),
                "the loader takes {} although the state is {state:?}",
                entry.file_name
            );
            let (after, spent) = (Catalogue::load(esp)?.state(), state.spend());
            assert!(
                after.means_the_same_as(&spent),
                "{after:?} after the start of {}, not {spent:?}",
                entry.file_name
            );
        }
        Ok(Some(Start { slot, entry }))
    }
}

/// The file name up to the counter, upper and lower case kept.
fn stem(entry: &LoaderEntry) -> &str {
    entry.file_name.get(..entry.id.len()).unwrap_or(&entry.id)
}

fn rename(esp: &dyn EspDir, from: &str, to: &str) -> Result<(), BootError> {
    let from = format!("{ENTRIES}/{from}");
    esp.rename(&from, &format!("{ENTRIES}/{to}")).map_err(at("renaming", &from))
}
