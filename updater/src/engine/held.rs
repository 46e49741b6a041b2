//! What a slot holds, as far as it can be told in passing: its documents, its boot files and its entry.
//!
//! Not here: the bytes of its partitions (`scrub`). Rule: `status`, `doctor` and `verify` share this one look. Only a slot
//! without any document, on which nothing counts, is empty; what an install left unfinished is never called damaged.

use switchback_bootloader::boot_state::{BootState, SlotBoot};
use switchback_bootloader::record::Bootloader;
use switchback_partitions::layout::{Completeness, DiskLayout};
use switchback_partitions::slot::Slot;

use super::answers::Content;
use super::chain;
use crate::facts::state_file;
use crate::host::state_dir::StateDir;
use crate::install::{InstallError, PASSPORT, Passport, Release, boot_files_of};
use crate::lifecycle::Phase;
use crate::trust::Policy;

/// One slot, looked at.
pub(crate) struct Held {
    /// In a word.
    pub content: Content,
    /// The release that its documents name, when they verify.
    pub release: Option<Release>,
    /// What is wrong with it.
    pub fault: Option<Fault>,
}

/// What is wrong with a slot that should hold a release.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Not all of the signed documents are there.
    #[error("{}", lost(.0))]
    Lost(Vec<&'static str>),
    /// They are there and not to be believed.
    #[error("its documents do not verify: {}", chain(.0))]
    Unverified(InstallError),
    /// They verify, and the slot has lost what it starts from.
    #[error("{0}")]
    NotWhole(String),
}

/// What is known before a slot is looked at.
pub(crate) struct Look<'a> {
    /// The machine's bootloader.
    pub bootloader: &'a dyn Bootloader,
    /// What it says of both slots.
    pub boot: BootState,
    /// The slot that runs, when that is known.
    pub running: Option<Slot>,
    /// The disk's layout, when it can be read.
    pub layout: Option<&'a DiskLayout>,
    /// Where the state file lies.
    pub state_dir: &'a dyn StateDir,
    /// Whose signatures count; without it a slot's content is not known.
    pub trust: Option<&'a Policy>,
}

impl Look<'_> {
    /// Looks at one slot.
    pub fn at(&self, slot: Slot) -> Held {
        let held = self.as_it_is(slot);
        let partial = self.layout.is_some_and(|it| it.slot(slot).completeness == Completeness::Partial);
        // Clearing takes the entry first: a slot that runs or that the loader may start was not given up.
        let unfinished = !self.is_counted_on(slot)
            && (partial || (held.fault.is_some() && being_installed(self.state_dir) == Some(slot)));
        match unfinished {
            // Documents and boot files are written before the entry: a release that misses something is not there, or it
            // would be "already there" and could never be armed.
            true => Held {
                content: Content::HalfWritten,
                release: held.release.filter(|_| held.fault.is_none()),
                fault: None,
            },
            false => held,
        }
    }

    /// As if no install could have been interrupted.
    fn as_it_is(&self, slot: Slot) -> Held {
        let damaged = |release, fault| Held { content: Content::Damaged, release, fault: Some(fault) };
        let bare = |content| Held { content, release: None, fault: None };
        let (documents, gone) = match self.documents(slot) {
            Ok(read) => read,
            Err(error) => return damaged(None, Fault::Unverified(error)),
        };
        let Some(passport) = documents else {
            return match gone.len() == PASSPORT.len() && !self.is_counted_on(slot) {
                true => bare(Content::Empty),
                false => damaged(None, Fault::Lost(gone)),
            };
        };
        let Some(trust) = self.trust else { return bare(Content::Unknown) };
        let release = match Release::from_passport(passport, trust) {
            Ok(release) => release,
            Err(error) => return damaged(None, Fault::Unverified(error)),
        };
        match self.bootloader.missing(slot, &boot_files_of(&release)) {
            Ok(None) => Held { content: Content::Release, release: Some(release), fault: None },
            Ok(Some(words)) => damaged(Some(release), Fault::NotWhole(words)),
            Err(error) => damaged(Some(release), Fault::NotWhole(chain(&error))),
        }
    }

    /// The documents when all are there, and the names of those that are not.
    fn documents(&self, slot: Slot) -> Result<(Option<Passport>, Vec<&'static str>), InstallError> {
        let (mut documents, mut gone) = (Vec::new(), Vec::new());
        for (name, limit) in PASSPORT {
            match self.bootloader.passport(slot, name, limit)? {
                Some(bytes) => documents.push(bytes),
                None => gone.push(name),
            }
        }
        let whole = <[Vec<u8>; 3]>::try_from(documents).ok();
        let passport = whole.map(|[manifest, config, signatures]| Passport { manifest, config, signatures });
        Ok((passport, gone))
    }

    /// True when the slot runs or the boot record names it: one without documents has lost them.
    fn is_counted_on(&self, slot: Slot) -> bool {
        self.running == Some(slot) || self.boot.slot(slot) != SlotBoot::Empty
    }
}

/// The slot that an update writes, or wrote when it was cut off. Read anew for each look: it may begin meanwhile.
fn being_installed(state_dir: &dyn StateDir) -> Option<Slot> {
    match state_file::load(state_dir).into_state().phase {
        Phase::Installing { slot, .. } => Some(slot),
        _ => None,
    }
}

fn lost(gone: &[&str]) -> String {
    match gone {
        [one] => format!("its signed document `{one}` is gone"),
        gone if gone.len() == PASSPORT.len() => "none of its signed documents is there".to_owned(),
        gone => format!("its signed documents `{}` are gone", gone.join("` and `")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use switchback_bootloader::esp::MountedEsp;
    use switchback_bootloader::slot_folder;
    use switchback_bootloader::systemd_boot::{SystemdBoot, pe};

    use super::*;
    use crate::digest::Digest;
    use crate::host::state_dir::Folder;
    use crate::lifecycle::{self, Goal, Purpose, State};

    struct Scene {
        esp: tempfile::TempDir,
        state: Folder,
        _state: tempfile::TempDir,
        loader: SystemdBoot,
    }

    impl Scene {
        /// Slot b has these documents; what they say is for the tests of the whole program.
        fn with(documents: &[&str]) -> Scene {
            let esp = tempfile::tempdir().unwrap();
            let folder = esp.path().join(slot_folder(Slot::B));
            std::fs::create_dir_all(&folder).unwrap();
            documents.iter().for_each(|name| std::fs::write(folder.join(name), "{}").unwrap());
            let loader = SystemdBoot::new(Arc::new(MountedEsp::new(esp.path())), pe::Machine::host());
            let state = tempfile::tempdir().unwrap();
            Scene { esp, state: Folder::new(state.path()), _state: state, loader }
        }

        /// What is seen of slot b: its content, and what is wrong.
        fn b(&self, boot: SlotBoot, running: Option<Slot>) -> (Content, String) {
            let look = Look {
                bootloader: &self.loader,
                boot: BootState { slots: [SlotBoot::Good, boot], wanted: Slot::A },
                running,
                layout: None,
                state_dir: &self.state,
                trust: None,
            };
            let held = look.at(Slot::B);
            (held.content, held.fault.map(|fault| fault.to_string()).unwrap_or_default())
        }

        /// The state file of an update that was cut off while it wrote slot b.
        fn interrupted(&self) {
            let release =
                lifecycle::Release { digest: Digest::of(b""), version: "1".into(), security_version: 0 };
            let (purpose, goal) = (Purpose::Update, Goal::Trial);
            let phase = Phase::Installing { release, slot: Slot::B, purpose, goal };
            state_file::store(&self.state, &State { phase, ..State::default() }).unwrap();
        }
    }

    const ALL: [&str; 3] = ["manifest.json", "config.json", "signatures.json"];

    #[test]
    fn only_a_slot_without_documents_on_which_nothing_counts_is_empty() {
        let nothing = Scene::with(&[]);
        assert_eq!(nothing.b(SlotBoot::Empty, Some(Slot::A)), (Content::Empty, String::new()));
        assert_eq!(nothing.b(SlotBoot::Empty, None).0, Content::Empty);
        for (boot, running) in [
            (SlotBoot::Good, Some(Slot::A)),
            (SlotBoot::Bad, Some(Slot::A)),
            (SlotBoot::Empty, Some(Slot::B)),
        ] {
            let found = nothing.b(boot, running);
            assert_eq!(found, (Content::Damaged, "none of its signed documents is there".into()));
        }
    }

    #[test]
    fn each_document_that_is_gone_is_named() {
        for gone in ALL {
            let rest: Vec<&str> = ALL.into_iter().filter(|name| *name != gone).collect();
            let (content, words) = Scene::with(&rest).b(SlotBoot::Empty, Some(Slot::A));
            assert_eq!((content, words), (Content::Damaged, format!("its signed document `{gone}` is gone")));
            let (_, words) = Scene::with(&[gone]).b(SlotBoot::Good, Some(Slot::A));
            assert_eq!(words, format!("its signed documents `{}` are gone", rest.join("` and `")));
        }
    }

    #[test]
    fn a_document_that_cannot_be_read_is_not_gone() {
        let scene = Scene::with(&[]);
        let path = scene.esp.path().join(slot_folder(Slot::B)).join(ALL[0]);
        std::fs::File::create(path).unwrap().set_len(PASSPORT[0].1 + 1).unwrap();
        let (content, words) = scene.b(SlotBoot::Empty, Some(Slot::A));
        assert_eq!(content, Content::Damaged);
        assert!(words.starts_with("its documents do not verify: while reading"), "{words}");
    }

    #[test]
    fn what_an_install_left_unfinished_is_not_damaged_unless_something_counts_on_it() {
        let scene = Scene::with(&ALL[..2]);
        scene.interrupted();
        assert_eq!(scene.b(SlotBoot::Empty, Some(Slot::A)), (Content::HalfWritten, String::new()));
        assert_eq!(scene.b(SlotBoot::Good, Some(Slot::A)).0, Content::Damaged, "the loader may start it");
        assert_eq!(scene.b(SlotBoot::Empty, Some(Slot::B)).0, Content::Damaged, "it runs");
        // Decided, and cut off before anything was cleared: nothing is wrong with what is there.
        let whole = Scene::with(&ALL);
        whole.interrupted();
        assert_eq!(whole.b(SlotBoot::Empty, Some(Slot::A)).0, Content::Unknown);
    }

    #[test]
    fn without_keys_whole_documents_are_unknown_and_gone_ones_are_still_gone() {
        assert_eq!(Scene::with(&ALL).b(SlotBoot::Good, Some(Slot::A)), (Content::Unknown, String::new()));
        assert_eq!(Scene::with(&ALL[1..]).b(SlotBoot::Good, Some(Slot::A)).0, Content::Damaged);
    }
}
