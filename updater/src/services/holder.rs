//! A process beside a container that writes down how it ended: a container belongs to nobody's process, so that nobody else would
//! ever know.
//!
//! Not here: what follows from it (`orders`). Rule: it decides nothing and nothing needs it: where it was ended, the container runs
//! on, and its end counts as a failure.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

/// The hidden verb.
pub const VERB: &str = "hold";
/// In a container's bundle: the number of its process, and how it ended.
const NUMBER: &str = "pid";
const END: &str = "end";
/// What is said when the container is made.
const MADE: &[u8] = b"made";

/// Has the container `id` made by a holder that stays as long as it; true when it was made.
pub fn create(create: Command, id: &str, bundle: &Path, (output, errors): (File, File)) -> io::Result<bool> {
    forget(bundle)?;
    let (mut said, says) = io::pipe()?;
    let mut holder = Command::new("/proc/self/exe");
    holder.arg(VERB).arg(bundle).arg("--").arg(create.get_program()).args(create.get_args());
    holder.arg("--pid-file").arg(bundle.join(NUMBER)).arg(id);
    // Its standard input is where it answers: the outputs are the container's.
    let mut child = holder.stdin(says).stdout(output).stderr(errors).spawn()?;
    // With it goes this process's end for writing, for which the reading below would wait.
    drop(holder);
    let mut answer = Vec::new();
    said.read_to_end(&mut answer)?;
    let made = answer == MADE;
    if !made {
        child.wait()?;
    }
    Ok(made)
}

/// True when it is known that the container of `bundle` ended with status 0.
pub fn ended_well(bundle: &Path) -> bool {
    fs::read_to_string(bundle.join(END)).is_ok_and(|text| text == "0")
}

fn forget(bundle: &Path) -> io::Result<()> {
    for name in [NUMBER, END] {
        match fs::remove_file(bundle.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The holder itself: runs `words`, which make a container, inherits the container's process, and waits for its end.
pub fn run(bundle: &Path, words: &[OsString]) -> io::Result<()> {
    // Not ended with the terminal or the process group of an order.
    nix::unistd::setsid()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    if !Command::new(program).args(arguments).stdin(Stdio::null()).status()?.success() {
        return Ok(());
    }
    let number = fs::read_to_string(bundle.join(NUMBER))?;
    let number = number.trim().parse().map(Pid::from_raw).map_err(io::Error::other)?;
    let answer: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    File::from(answer).write_all(MADE)?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, status)) if pid == number => return end(bundle, &status.to_string()),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == number => return end(bundle, signal.as_str()),
            Ok(_) | Err(Errno::EINTR) => {}
            // Nothing left to wait for.
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn end(bundle: &Path, text: &str) -> io::Result<()> {
    let unfinished = bundle.join(format!("{END}.new"));
    fs::write(&unfinished, text)?;
    fs::rename(unfinished, bundle.join(END))
}
