//! Containers by an OCI runtime's command line (OCI runtime-spec 1.0, runtime.md): `crun`, `runc`, `youki`.
//!
//! Not here: what a container may do (`bundle`). Rule: a container belongs to nobody's process: it outlives the command that
//! started it and the daemon that watches it, and is found again by its name.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::fs::OFlags;
use serde::Deserialize;
use serde_json::Value;

use super::holder;

/// Which are looked for when none is configured, the lightest first.
const PROGRAMS: [&str; 3] = ["crun", "runc", "youki"];
/// Between two looks at a process that was asked to end.
const LOOK: Duration = Duration::from_millis(20);
/// What is kept of a program's output, and what a pipe holds (pipe(7)), in bytes.
const TAIL_BYTES_MAX: usize = 4 << 10;
const PIPE_BYTES: usize = 64 << 10;

/// Why a container could not be started, seen or ended.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No runtime is installed.
    #[error("while looking for an OCI runtime: neither of {} is installed", PROGRAMS.join(", "))]
    None,
    /// The program could not be run, or a file of it.
    #[error("while {doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Which file or program.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It refused.
    #[error("while {doing} the container {id}: {program} says: {said}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// Which container.
        id: String,
        /// The runtime.
        program: String,
        /// Its last words.
        said: String,
    },
}

/// An OCI runtime, with the folder where it keeps what it knows of its containers.
#[derive(Debug, Clone)]
pub struct Runtime {
    program: PathBuf,
    root: PathBuf,
}

/// What `state` answers (runtime.md, "State"), as far as it is asked here.
#[derive(Deserialize)]
struct State {
    status: String,
    #[serde(default)]
    pid: i32,
}

/// A container that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// True while its process runs.
    pub runs: bool,
    /// Its first process, as this machine counts; `None` once it has ended.
    pub pid: Option<i32>,
}

impl Runtime {
    /// The configured program, or the first that is installed. `root` is where it keeps its records; gone with a restart.
    pub fn new(program: Option<&Path>, root: &Path) -> Result<Runtime, RuntimeError> {
        let installed = || PROGRAMS.iter().find_map(|name| crate::file::program(name));
        let program = program.map(Path::to_owned).or_else(installed).ok_or(RuntimeError::None)?;
        Ok(Runtime { program, root: root.to_owned() })
    }

    /// Which program it is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Makes and starts the container `id` from `spec`, in the empty folder `bundle`, with its output in the file `log`. With
    /// `held`, a process stays beside it and writes down how it ends.
    pub fn start(
        &self,
        id: &str,
        spec: &Value,
        (bundle, log): (&Path, &Path),
        held: bool,
    ) -> Result<(), RuntimeError> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| RuntimeError::Io { doing, path, source }
        };
        std::fs::create_dir_all(bundle).map_err(failed("making", bundle))?;
        let config = bundle.join("config.json");
        let text = serde_json::to_vec(spec).map_err(io::Error::other);
        text.and_then(|text| std::fs::write(&config, text)).map_err(failed("writing", &config))?;
        let output = File::options().append(true).create(true).open(log).map_err(failed("opening", log))?;
        let errors = output.try_clone().map_err(failed("opening", log))?;
        // A container inherits what its runtime has: a pipe would keep whoever reads it waiting for the service's end.
        let mut create = self.command();
        create.arg("create").arg("--bundle").arg(bundle);
        let created = match held {
            false => create.arg(id).stdout(output).stderr(errors).status().map(|status| status.success()),
            true => holder::create(create, id, bundle, (output, errors)),
        };
        if !created.map_err(failed("running", &self.program))? {
            let said = last_line(log);
            let _ = self.remove(id);
            return Err(self.refused("creating", id, said));
        }
        self.run("starting", id, &["start", id]).map(drop)
    }

    /// The container, if there is one.
    pub fn find(&self, id: &str) -> Result<Option<Found>, RuntimeError> {
        let output = self.output(&["state", id])?;
        if !output.status.success() {
            return Ok(None);
        }
        let state: State = serde_json::from_slice(&output.stdout)
            .map_err(|error| self.refused("looking at", id, format!("no state: {error}")))?;
        let runs = matches!(&state.status[..], "running" | "created");
        Ok(Some(Found { runs, pid: Some(state.pid).filter(|pid| runs && *pid > 0) }))
    }

    /// Runs a program of the container in it, as its own user and with no more rights; it ends with status 0 within `patience`.
    /// In `bundle` its number is written down meanwhile.
    ///
    /// # Errors
    /// A sentence with the last line that it printed.
    pub fn exec(&self, id: &str, words: &[String], bundle: &Path, patience: Duration) -> Result<(), String> {
        let failed = |error: io::Error| format!("{} could not be run: {error}", self.program.display());
        let number = tempfile::NamedTempFile::new_in(bundle).map_err(failed)?;
        let (output, errors) = std::io::pipe().map_err(failed)?;
        let copy = errors.try_clone().map_err(failed)?;
        let mut command = self.command();
        command
            .arg("exec")
            .arg("--pid-file")
            .arg(number.path())
            .arg(id)
            .args(words)
            .stdout(errors)
            .stderr(copy);
        let child = command.spawn().map_err(failed)?;
        // With it goes this process's end for writing: the last reader must not wait for itself.
        drop(command);
        let mut tail = Tail::of(output).map_err(failed)?;
        let (began, mut child) = (Instant::now(), child);
        loop {
            let ended = child.try_wait().map_err(failed)?;
            tail.read();
            match ended {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(tail.after(&ended_with(status))),
                None if began.elapsed() >= patience => {
                    end(&mut child, number.path());
                    let seconds = patience.as_secs_f64();
                    return Err(tail.after(&format!("it has not ended within {seconds:.0} s")));
                }
                None => std::thread::sleep(LOOK),
            }
        }
    }

    /// Asks the container to end, ends it after `patience`, and removes it. None is no error.
    pub fn stop(&self, id: &str, signal: Signal, patience: Duration) -> Result<(), RuntimeError> {
        let Some(found) = self.find(id)? else { return Ok(()) };
        if found.runs {
            // It may end by itself at this very moment.
            let _ = self.output(&["kill", id, signal.as_str()])?;
            let began = Instant::now();
            while began.elapsed() < patience && self.find(id)?.is_some_and(|found| found.runs) {
                std::thread::sleep(LOOK);
            }
        }
        self.remove(id)
    }

    /// Ends the container at once and removes it.
    pub fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        match self.find(id)? {
            None => Ok(()),
            Some(_) => self.run("removing", id, &["delete", "--force", id]).map(drop),
        }
    }

    fn run(&self, doing: &'static str, id: &str, words: &[&str]) -> Result<Output, RuntimeError> {
        let output = self.output(words)?;
        match output.status.success() {
            true => Ok(output),
            false => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(self.refused(doing, id, said))
            }
        }
    }

    fn output(&self, words: &[&str]) -> Result<Output, RuntimeError> {
        let output = self.command().args(words).output();
        output.map_err(|source| RuntimeError::Io { doing: "running", path: self.program.clone(), source })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).stdin(Stdio::null());
        command
    }

    fn refused(&self, doing: &'static str, id: &str, said: String) -> RuntimeError {
        let program = self.program.file_name().unwrap_or(self.program.as_os_str());
        let program = program.to_string_lossy().into_owned();
        RuntimeError::Refused { doing, id: id.to_owned(), program, said }
    }
}

fn ended_with(status: ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| format!("exit status {code}"))
}

/// Ends a program in a container. The runtime's own process goes with it; killed first, it would leave the program behind.
fn end(child: &mut Child, number: &Path) {
    let number = std::fs::read_to_string(number).unwrap_or_default();
    if let Ok(pid @ 1..) = number.trim().parse() {
        // It may end by itself at this very moment.
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The end of what a program prints. Nobody waits for it: what the program started may hold the other end for ever.
struct Tail {
    output: io::PipeReader,
    kept: Vec<u8>,
}

impl Tail {
    fn of(output: io::PipeReader) -> io::Result<Tail> {
        let flags = rustix::fs::fcntl_getfl(&output)?;
        rustix::fs::fcntl_setfl(&output, flags | OFlags::NONBLOCK)?;
        Ok(Tail { output, kept: Vec::new() })
    }

    /// Takes what is there; no more than a pipe holds at once, however fast a program prints.
    fn read(&mut self) {
        let mut buffer = [0; TAIL_BYTES_MAX];
        for _ in 0..PIPE_BYTES / TAIL_BYTES_MAX {
            let Ok(bytes @ 1..) = self.output.read(&mut buffer) else { return };
            self.kept.extend(&buffer[..bytes]);
            let excess = self.kept.len().saturating_sub(TAIL_BYTES_MAX);
            self.kept.drain(..excess);
        }
    }

    fn after(&self, what: &str) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("{what}: {}", line.trim()),
            None => what.to_owned(),
        }
    }
}

/// The last line of a log, without reading all of it.
pub(super) fn last_line(log: &Path) -> String {
    use std::io::{Seek as _, SeekFrom};
    let read = || {
        let mut file = File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(4096);
        file.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        file.take(4096).read_to_end(&mut text)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&text).into_owned())
    };
    let text = read().unwrap_or_default();
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A "runtime" that runs the words after the container's name on this machine: what is tested is how a program's end is told.
    fn exec(script: &str, patience: Duration) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("runtime");
        // --root R exec --pid-file F ID WORDS…
        std::fs::write(&program, "#!/bin/sh\nfile=$5\nshift 6\n\"$@\" & echo $! >\"$file\"\nwait $!\n")
            .unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let runtime = Runtime::new(Some(&program), dir.path()).unwrap();
        runtime.exec("x", &["/bin/sh".into(), "-c".into(), script.into()], dir.path(), patience)
    }

    #[test]
    fn a_program_that_ends_well_is_well_and_any_other_end_has_its_last_line() {
        let (long, short) = (Duration::from_secs(20), Duration::from_millis(300));
        assert_eq!(exec("echo fine", long), Ok(()));
        assert_eq!(exec("echo one; echo two >&2; exit 3", long), Err("exit status 3: two".into()));
        assert_eq!(exec("exit 4", long), Err("exit status 4".into()));
        let began = Instant::now();
        let late = exec("echo begun; exec sleep 1000", short);
        assert_eq!(late, Err("it has not ended within 0 s: begun".into()));
        // What it leaves running holds its output open; nobody waits for that.
        assert_eq!(exec("sleep 30 & exit 0", long), Ok(()));
        // More than a pipe holds.
        let much =
            exec("i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; echo end; exit 1", long);
        assert_eq!(much, Err("exit status 1: end".into()));
        assert!(began.elapsed() < long);
    }
}
