//! A bootloader of your own: one executable that speaks RAUC's verbs, so an existing board script works as it is.
//!
//! | call | must do |
//! |---|---|
//! | `get-primary` | print the name of the slot that is started next |
//! | `set-primary NAME` | start NAME next, with all its tries, even if it was bad |
//! | `get-state NAME` | print `good` or `bad` |
//! | `set-state NAME good\|bad` | bad: never start NAME while the other is good; good: NAME is confirmed |
//! | `get-current` | print the name of the slot that runs |
//!
//! **What is atomic:** what the script makes atomic; arming commits with `set-primary`, all else with `set-state`.
//! **Who lowers the tries, and what happens at zero:** the board's boot script; at zero `get-state` must print `bad`.
//!
//! The verbs know no trial and no empty slot. So a record beside the slot's folder notes, *before* `set-primary`,
//! that the slot goes on trial and, after `set-state bad`, that it is empty; it is gone once a trial is decided.
//! Not here: counting. A trial reads as the tries that were asked for. Rule: the script's word goes before the record's.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use switchback_partitions::slot::Slot;

use crate::boot_state::{BootState, Change, SlotBoot};
use crate::command::{self, Failure};
use crate::esp::EspDir;
use crate::record::{BootError, BootFile, BootFiles, Bootloader};
use crate::slot_files::{self, Room, at};

/// How long a board script may take unless configured otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The largest record that is read, in bytes.
const RECORD_BYTES_MAX: u64 = 4096;

/// A board script and the place where a slot's boot files and passport are kept for it.
pub struct Custom {
    program: PathBuf,
    names: [String; 2],
    timeout: Duration,
    files: Arc<dyn EspDir>,
}

/// What the verbs cannot say of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "record")]
enum Record {
    /// Forgotten by an install.
    Empty,
    /// Armed, not yet confirmed or reverted.
    Trial {
        tries: u8,
        /// What the slot reads as while `set-primary` has not happened.
        before: SlotBoot,
        /// False until `set-primary` is known to have happened: a bad slot was then not tried, it was bad before.
        armed: bool,
    },
}

impl Custom {
    /// The script at `program`; `names` are what it calls slot A and slot B. Boot files and passports are kept in
    /// `files`, in `switchback/a` and `switchback/b`, where a boot script can load them from.
    pub fn new(
        program: impl Into<PathBuf>,
        names: [String; 2],
        timeout: Duration,
        files: Arc<dyn EspDir>,
    ) -> Custom {
        Custom { program: program.into(), names, timeout, files }
    }

    /// The slot that runs, as the script says: a cross-check, never the first witness.
    pub fn current(&self) -> Result<Slot, BootError> {
        self.ask_slot("get-current")
    }

    fn name_of(&self, slot: Slot) -> &str {
        &self.names[slot.index()]
    }

    fn run(&self, arguments: &[&str]) -> Result<String, BootError> {
        let program = || self.program.display().to_string();
        let verb = || arguments.join(" ");
        command::run(&self.program, arguments, self.timeout).map_err(|failure| match failure {
            Failure::Start(source) => BootError::BoardStart { program: program(), verb: verb(), source },
            Failure::End(why) => BootError::Board { program: program(), verb: verb(), why },
        })
    }

    fn answer_error(&self, verb: String, answer: &str, known: &str) -> BootError {
        let why = format!("it answered `{answer}`, expected {known}");
        BootError::Board { program: self.program.display().to_string(), verb, why }
    }

    fn ask_slot(&self, verb: &str) -> Result<Slot, BootError> {
        let answer = self.run(&[verb])?;
        let known = || format!("`{}` or `{}`", self.names[0], self.names[1]);
        let found = Slot::ALL.into_iter().find(|slot| self.name_of(*slot) == answer);
        found.ok_or_else(|| self.answer_error(verb.to_string(), &answer, &known()))
    }

    fn is_good(&self, slot: Slot) -> Result<bool, BootError> {
        let name = self.name_of(slot);
        match self.run(&["get-state", name])?.as_str() {
            "good" => Ok(true),
            "bad" => Ok(false),
            answer => Err(self.answer_error(format!("get-state {name}"), answer, "`good` or `bad`")),
        }
    }

    fn set_state(&self, slot: Slot, state: &str) -> Result<(), BootError> {
        self.run(&["set-state", self.name_of(slot), state]).map(drop)
    }

    fn set_primary(&self, slot: Slot) -> Result<(), BootError> {
        self.run(&["set-primary", self.name_of(slot)]).map(drop)
    }

    fn read_slot(&self, slot: Slot, primary: Slot) -> Result<SlotBoot, BootError> {
        Ok(match (self.record(slot)?, self.is_good(slot)?) {
            (Some(Record::Empty), _) => SlotBoot::Empty,
            (Some(Record::Trial { before, armed: false, .. }), false) => before,
            (_, false) => SlotBoot::Bad,
            (None, true) => SlotBoot::Good,
            (Some(Record::Trial { tries, .. }), true) if primary == slot => {
                SlotBoot::Trial { tries_left: tries, tries_done: 0 }
            }
            (Some(Record::Trial { before, .. }), true) => before,
        })
    }

    fn apply(&self, change: Change, from: &BootState, wanted: Slot) -> Result<(), BootError> {
        match change {
            Change::None => Ok(()),
            Change::Arm { slot, tries_left, .. } => self.arm(slot, tries_left, from.slot(slot)),
            Change::Confirm(slot) => {
                self.set_state(slot, "good")?;
                if wanted == slot && self.ask_slot("get-primary")? != slot {
                    self.set_primary(slot)?;
                }
                self.set_record(slot, None)
            }
            Change::Revert(slot) => {
                self.set_state(slot, "bad")?;
                self.set_record(slot, None)
            }
            Change::Prefer(slot) => self.set_primary(slot),
            Change::Forget(slot) => {
                // Bad first: a slot that is only noted as empty would still be started, half-written.
                self.set_state(slot, "bad")?;
                self.set_record(slot, Some(Record::Empty))
            }
        }
    }

    fn arm(&self, slot: Slot, tries: u8, before: SlotBoot) -> Result<(), BootError> {
        // Noted first: if `set-primary` came first, a cut in between would leave an unproven slot that reads good.
        self.set_record(slot, Some(Record::Trial { tries, before, armed: false }))?;
        self.set_primary(slot)?;
        if !self.is_good(slot)? {
            self.set_state(slot, "good")?;
        }
        self.set_record(slot, Some(Record::Trial { tries, before, armed: true }))
    }

    fn record_path(slot: Slot) -> String {
        format!("{}/custom-{slot}.json", slot_files::FOLDER)
    }

    fn record(&self, slot: Slot) -> Result<Option<Record>, BootError> {
        let path = Custom::record_path(slot);
        match self.files.read(&path, RECORD_BYTES_MAX) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at("reading", &path)(e)),
            // A record that cannot be read says nothing; then the script's word stands alone.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        }
    }

    fn set_record(&self, slot: Slot, record: Option<Record>) -> Result<(), BootError> {
        if self.record(slot)? == record {
            return Ok(());
        }
        let (path, unfinished) = (Custom::record_path(slot), format!("{}.tmp", Custom::record_path(slot)));
        self.files.mkdir(slot_files::FOLDER).map_err(at("creating", slot_files::FOLDER))?;
        match record {
            None => self.files.remove(&path).map_err(at("removing", &path)),
            Some(record) => {
                let text = serde_json::to_vec(&record).map_err(|e| at("writing", &path)(e.into()))?;
                self.files
                    .write_tmp(&unfinished, &mut text.as_slice())
                    .map_err(at("writing", &unfinished))?;
                self.files.rename(&unfinished, &path).map_err(at("renaming", &unfinished))
            }
        }
    }
}

impl Bootloader for Custom {
    fn name(&self) -> &'static str {
        "custom"
    }

    fn read(&self) -> Result<BootState, BootError> {
        let wanted = self.ask_slot("get-primary")?;
        let slots = [self.read_slot(Slot::A, wanted)?, self.read_slot(Slot::B, wanted)?];
        Ok(BootState { slots, wanted }.normalise())
    }

    fn write(&self, state: &BootState) -> Result<(), BootError> {
        let (from, mut expected) = (self.read()?, state.normalise());
        let change = from.change_to(&expected)?;
        self.apply(change, &from, expected.wanted)?;
        let found = self.read()?;
        if let Change::Arm { slot, tries_left, .. } = change {
            // The script counts; used tries are not ours to write.
            expected.slots[slot.index()] = SlotBoot::Trial { tries_left, tries_done: 0 };
        }
        if found.means_the_same_as(&expected) { Ok(()) } else { Err(BootError::NotTaken { expected, found }) }
    }

    fn preflight(&self, slot: Slot, sizes: &[u64]) -> Result<(), BootError> {
        slot_files::preflight(&*self.files, slot, sizes, &Room { small_files: 2, given_back: 0 })
    }

    fn forget(&self, slot: Slot) -> Result<(), BootError> {
        if self.record(slot)? != Some(Record::Empty) {
            self.apply(Change::Forget(slot), &BootState::EMPTY, slot.other())?;
        }
        slot_files::forget(&*self.files, slot)
    }

    fn prepare(&self, slot: Slot, files: &BootFiles) -> Result<(), BootError> {
        slot_files::check(slot, files)?;
        if self.record(slot)? != Some(Record::Empty) {
            return Err(BootError::NotForgotten { slot, entry: self.name_of(slot).to_string() });
        }
        slot_files::write(&*self.files, slot, files)
    }

    fn verify(&self, slot: Slot, files: &BootFiles) -> Result<(), BootError> {
        slot_files::verify(&*self.files, slot, files)
    }

    /// The board's script keeps the entries.
    fn missing(&self, slot: Slot, files: &[BootFile]) -> Result<Option<String>, BootError> {
        slot_files::missing(&*self.files, slot, files)
    }

    fn copy(
        &self,
        slot: Slot,
        name: &str,
        limit: u64,
        sink: &mut dyn io::Write,
    ) -> Result<Option<u64>, BootError> {
        slot_files::copy(&*self.files, slot, name, limit, sink)
    }
}

#[cfg(test)]
mod tests;
