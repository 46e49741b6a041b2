//! Containers by an OCI runtime's command line (OCI runtime-spec 1.0, runtime.md): `crun`, `runc`, `youki`.
//!
//! Not here: what a container may do (`bundle`). Rule: a container belongs to nobody's process: it outlives the command that
//! started it and the daemon that watches it, and is found again by its name.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::Value;

/// Which are looked for when none is configured, the lightest first.
const PROGRAMS: [&str; 3] = ["crun", "runc", "youki"];
/// Between two looks at a process that was asked to end.
const LOOK: Duration = Duration::from_millis(20);

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
        let installed = || {
            let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
            let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
            let mut places =
                PROGRAMS.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
            places.find(|place| place.is_file())
        };
        let program = program.map(Path::to_owned).or_else(installed).ok_or(RuntimeError::None)?;
        Ok(Runtime { program, root: root.to_owned() })
    }

    /// Makes and starts the container `id` from `spec`, in the empty folder `bundle`, with its output in the file `log`.
    pub fn start(&self, id: &str, spec: &Value, bundle: &Path, log: &Path) -> Result<(), RuntimeError> {
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
        create.arg("create").arg("--bundle").arg(bundle).arg(id).stdout(output).stderr(errors);
        let status = create.status().map_err(failed("running", &self.program))?;
        if !status.success() {
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

/// The last line of a log, without reading all of it.
pub(super) fn last_line(log: &Path) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
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
