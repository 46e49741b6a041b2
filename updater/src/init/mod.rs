//! `switchback init`: PID 1 of the initramfs, from the kernel to the init of a verified root.
//!
//! Not here: any choice of a release; the kernel command line names its root hash and whichever slot holds it is
//! started. Rule: there is no way on but the whole way. Whatever fails, a panic included, says why and restarts the
//! machine, so that the loader counts the try and comes back to the other slot.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use switchback_partitions::device::watchdog::Watchdog;
use switchback_partitions::slot::Slot;

use crate::host::loader::{EFIVARS, LoaderEvidence};
use crate::host::state_dir::Folder;
use crate::host::sysfs::{Sysfs, read_attribute};
use cmdline::Request;
use console::{complain, say};
use stage::{Mark, Stage};

pub mod cmdline;
mod console;
pub mod filesystem;
pub mod find_slot;
pub mod keeper;
pub mod modules;
mod root;
pub mod stage;
mod watchdog;

/// The running kernel's id of this boot.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// `switchback init` creates this file when the loader counts this start, or when no loader says. The deadline's unit
/// looks at it.
pub const ON_TRIAL: &str = "/run/switchback/on-trial";

/// How long the reason stays on the console before the restart.
const READING_TIME: Duration = Duration::from_secs(2);

/// Where the state partition is while the root is not mounted yet.
const STATE_EARLY: &str = "/state";

/// Why a start did not reach its root.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Started somewhere else than in an initramfs.
    #[error("while starting: this is PID 1 of an initramfs, and {found}")]
    NotAnInitramfs {
        /// What was found instead.
        found: String,
    },
    /// The kernel refused something, or a file could not be used.
    #[error("while {doing}")]
    Io {
        /// What was being done to what.
        doing: String,
        /// The system's word.
        source: io::Error,
    },
    /// The command line cannot be obeyed.
    #[error(transparent)]
    Cmdline(#[from] cmdline::CmdlineError),
    /// A driver is missing.
    #[error(transparent)]
    Module(#[from] modules::ModuleError),
    /// No slot holds the root that was asked for.
    #[error("while looking for the root {root_hash}: no slot holds it after {waited_secs} s: {looked_at}")]
    NoSlot {
        /// What was asked for.
        root_hash: String,
        /// How long it was waited for, in seconds.
        waited_secs: u64,
        /// Each disk and what was found there.
        looked_at: String,
    },
    /// The verified device holds nothing that could be mounted.
    #[error("while mounting {device}: no erofs, squashfs or ext4 is on it")]
    UnknownFileSystem {
        /// The device.
        device: String,
    },
    /// The root lacks folders that a running system needs.
    #[error("while switching to the root: it has no folder {missing}")]
    RootIncomplete {
        /// The missing folders.
        missing: String,
    },
}

/// Puts what was being done before the system's word.
trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, InitError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, InitError> {
        self.map_err(|error| InitError::Io { doing: doing(), source: error.into() })
    }
}

/// True when these arguments (program name first) ask for anything in this module: the kernel's `/init`, or
/// `switchback init …`.
pub fn is_wanted(arguments: &[String]) -> bool {
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    arguments.get(1).is_some_and(|verb| verb == "init")
        || (std::process::id() == 1 && name == Some("init".as_ref()))
}

/// Becomes PID 1 of the initramfs, or the keeper of the watchdog. Comes back only when it refused to be either.
pub fn main(arguments: &[String]) -> ExitCode {
    if arguments.get(2).is_some_and(|word| word == keeper::WORD) {
        return match keeper::Order::from_arguments(&arguments[3..]) {
            Some(order) => keeper::keep(&order),
            None => refuse("the keeper is started by `switchback init` and by nobody else"),
        };
    }
    if std::process::id() != 1 {
        return refuse("`init` is PID 1 of an initramfs; on a running system it has nothing to do");
    }
    run(arguments)
}

fn refuse(reason: &str) -> ExitCode {
    eprintln!("switchback: {reason}");
    ExitCode::from(64)
}

/// From the kernel to the root's init. Never returns: it becomes that init, or restarts the machine.
fn run(arguments: &[String]) -> ! {
    // A panic of PID 1 would be a kernel panic, which waits for ever where `panic=` is not set.
    std::panic::set_hook(Box::new(|panic| give_up(&panic.to_string())));
    // Lives here, not in `start`: whatever happens after a failure, the watchdog stays open and counts down.
    let mut dog = None;
    let Err(error) = start(arguments, &mut dog);
    give_up(&with_causes(&error))
}

fn start(arguments: &[String], dog: &mut Option<Watchdog>) -> Result<Infallible, InitError> {
    root::require_initramfs()?;
    root::mount_early()?;
    let text = read_attribute_of_any_length("/proc/cmdline", cmdline::CMDLINE_BYTES_MAX)?;
    let request = Request::parse(&text)?;
    end_by(request.init_deadline);
    modules::load_all(Path::new(modules::LIST), |ignored| say(&with_causes(ignored)))?;
    root::mount_efivars();
    let sysfs = Sysfs::of_this_machine();
    *dog = watchdog::open(&sysfs);

    let loader = LoaderEvidence::read(Path::new(EFIVARS));
    let found = find_slot::wait_for(&sysfs, &request.root_hash, &loader, || watchdog::pet(dog))?;
    say(&format!("root {} is in slot {} on {}", hex::encode(request.root_hash.0), found.slot, found.disk));

    let marks = Marks::begin(&found, &request);
    marks.write(Stage::Initramfs);
    let device = found.open_verity(&request.root_hash)?;
    root::mount_verified(&device)?;
    marks.write(Stage::RootMounted);
    watchdog::pet(dog);

    let deadline = loader.on_trial().unwrap_or(true).then_some(request.deadline);
    if deadline.is_some() {
        root::write_flag(Path::new(ON_TRIAL))?;
    }
    root::switch(marks.mounted)?;
    watchdog::hand_over(
        dog.take(),
        keeper::Order { deadline, slot: found.slot, watchdog: false },
        &request.init,
    )?;
    root::become_init(&request.init, arguments)
}

/// The stage marks of this start. A machine without a usable state partition starts all the same: losing state costs a
/// check, never a boot.
struct Marks {
    mark: Mark,
    mounted: bool,
}

impl Marks {
    fn begin(found: &find_slot::Found, request: &Request) -> Marks {
        let mounted = match found.mount_state(Path::new(STATE_EARLY)) {
            Ok(mounted) => mounted,
            Err(error) => {
                complain(&format!("going on without the state partition: {}", with_causes(&error)));
                false
            }
        };
        let boot_id = read_attribute(Path::new(BOOT_ID)).unwrap_or_default();
        let root_hash = hex::encode(request.root_hash.0);
        Marks { mark: Mark { slot: found.slot, boot_id, root_hash, stage: Stage::Initramfs }, mounted }
    }

    fn write(&self, stage: Stage) {
        if !self.mounted {
            return;
        }
        let mark = Mark { stage, ..self.mark.clone() };
        if let Err(error) = mark.write(&Folder::new(STATE_EARLY)) {
            complain(&format!("going on without the stage mark {stage}: {error}"));
        }
    }
}

/// Restarts the machine when this program is still here after `deadline`: a driver that never comes back hangs its
/// loading for ever, and before the watchdog's own driver is loaded nothing else would end that. Becoming the root's
/// init ends this thread with the program.
fn end_by(deadline: Duration) {
    let waiting = std::thread::Builder::new().spawn(move || {
        std::thread::sleep(deadline);
        complain(&format!("the initramfs did not end in {} s; restarting the machine", deadline.as_secs()));
        keeper::restart_by_force()
    });
    if let Err(error) = waiting {
        complain(&format!("going on without a deadline for the initramfs: {error}"));
    }
}

/// Says why, flushes what can be flushed, restarts.
fn give_up(reason: &str) -> ! {
    complain(&format!("{reason}; restarting the machine"));
    // In a thread of its own: with a dead disk `sync` may hang, and the restart must not.
    let flushed = std::thread::Builder::new().spawn(nix::unistd::sync);
    drop(flushed);
    std::thread::sleep(READING_TIME);
    let Err(errno) = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
    complain(&format!("the kernel does not restart: {errno}"));
    keeper::restart_by_force()
}

/// An error and everything beneath it in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        next = cause.source();
    }
    line
}

fn read_attribute_of_any_length(path: &str, limit: u64) -> Result<String, InitError> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_string(&mut text))
        .doing(|| format!("reading {path}"))?;
    Ok(text)
}

/// For the keeper's last word; the slot's mark goes on from where it was.
fn mark_deadline_passed(state_dir: &Path, slot: Slot) {
    let state_dir = &Folder::new(state_dir);
    if let Ok(Some(mark)) = Mark::read_all(state_dir, slot).map(|mut marks| marks.pop()) {
        let _ = Mark { stage: Stage::DeadlinePassed, ..mark }.write(state_dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn only_the_word_init_asks_for_this_module_outside_of_an_initramfs() {
        assert!(is_wanted(&arguments(&["/usr/bin/switchback", "init"])));
        assert!(!is_wanted(&arguments(&["/usr/bin/switchback", "status"])));
        assert!(!is_wanted(&arguments(&["/init"])), "the tests are not PID 1");
        assert!(!is_wanted(&[]));
    }

    #[test]
    fn on_a_running_system_init_refuses_and_touches_nothing() {
        for words in [&["switchback", "init"][..], &["switchback", "init", keeper::WORD, "nonsense"]] {
            assert_eq!(main(&arguments(words)), ExitCode::from(64));
        }
    }

    #[test]
    fn an_error_is_said_with_all_its_causes() {
        let error = InitError::Io { doing: "mounting /x".into(), source: io::Error::other("no such device") };
        assert_eq!(with_causes(&error), "while mounting /x: no such device");
    }
}
