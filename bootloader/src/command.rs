//! Runs a program with a time limit and bounded output.
//!
//! Not here: what it means. Rule: a program that hangs, or that writes without end, never takes this one with it.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The most that is kept of each output, in bytes.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;

/// How often a running program is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long output may still come after the program ended: a process that it left behind may hold the pipe open.
const AFTERGLOW: Duration = Duration::from_millis(500);

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It could not be started.
    #[error("it could not be started: {0}")]
    Start(io::Error),
    /// It failed or took too long; the text says which, with what it wrote to standard error.
    #[error("{0}")]
    End(String),
}

/// Runs `program`, looked for as a shell would, and returns what it printed (64 KiB at most), without surrounding white space.
///
/// # Errors
/// When it cannot be started, fails, or takes longer than `timeout`; it is killed then, with all that it started.
pub fn run(program: &Path, arguments: &[&str], timeout: Duration) -> Result<String, Failure> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: the time limit must also end what the script started.
        .process_group(0)
        .spawn()
        .map_err(Failure::Start)?;
    let output = collect(child.stdout.take());
    let errors = collect(child.stderr.take());
    let status = wait(&mut child, timeout).map_err(Failure::Start)?;
    let text = |from: Receiver<String>| from.recv_timeout(AFTERGLOW).unwrap_or_default().trim().to_string();
    let errors = text(errors);
    match status {
        Some(status) if status.success() => Ok(text(output)),
        Some(status) => Err(Failure::End(format!("{status}{}", said(&errors)))),
        None => {
            Err(Failure::End(format!("it took longer than {} s{}", timeout.as_secs_f32(), said(&errors))))
        }
    }
}

fn said(errors: &str) -> String {
    if errors.is_empty() { ", without a word".to_string() } else { format!(": {errors}") }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What comes after the limit is read and dropped, so that the program does not die of a full pipe.
            let _ = (&mut pipe).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
            let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
    });
    receiver
}

/// `None` when the time ran out and the program was killed.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            // It may have ended by itself in this moment: then there is nothing to kill.
            if let Ok(group) = i32::try_from(child.id()) {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> Result<String, Failure> {
        run(Path::new("/bin/sh"), &["-c", script], timeout)
    }

    #[test]
    fn output_comes_back_trimmed_and_failures_with_their_words() {
        let second = Duration::from_secs(5);
        assert_eq!(shell("echo ' A '", second).unwrap(), "A");
        let Err(Failure::End(why)) = shell("echo no bootenv >&2; exit 3", second) else { panic!() };
        assert!(why.contains("3") && why.contains("no bootenv"), "{why}");
        assert!(matches!(run(Path::new("/nowhere/at/all"), &[], second), Err(Failure::Start(_))));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_what_it_started() {
        let start = Instant::now();
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let script = format!("(sleep 2; touch {}) & sleep 60", mark.display());
        let Err(Failure::End(why)) = shell(&script, Duration::from_millis(200)) else { panic!() };
        assert!(why.contains("longer than 0.2 s"), "{why}");
        thread::sleep(Duration::from_millis(2500));
        assert!(!mark.exists(), "a process of the script lived on");
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn endless_output_is_cut() {
        let text = shell("head -c 1000000 /dev/zero | tr '\\0' x", Duration::from_secs(20)).unwrap();
        assert_eq!(text.len() as u64, OUTPUT_BYTES_MAX);
    }
}
