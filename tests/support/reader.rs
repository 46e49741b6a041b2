//! Somebody who types what a page says: an empty folder, the program in the search path, no root needed.
//!
//! Not here: which blocks, and what should come of them. Rule: nothing is prepared but what the page itself says, and what
//! its first block builds.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::lab::{containers, tools};

/// A reader at a desk of their own.
pub struct Reader {
    folder: TempDir,
}

impl Reader {
    /// An empty desk.
    pub fn new() -> Result<Reader> {
        let folder = tempfile::tempdir()?;
        for name in ["bin", "work", "home"] {
            std::fs::create_dir(folder.path().join(name))?;
        }
        std::os::unix::fs::symlink(tools::switchback()?, folder.path().join("bin/switchback"))?;
        Ok(Reader { folder })
    }

    /// A shell that runs `script` on the desk and stops at what fails; ends with the test.
    pub fn shell(&self, script: &str) -> Result<Command> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.folder.path().join("bin")).chain(std::env::split_paths(&path));
        let mut shell = tools::dies_with_us(&tools::program("sh", "dash")?)?;
        shell.args(["-eu", "-c", script]);
        shell.current_dir(self.folder.path().join("work"));
        shell.env("PATH", std::env::join_paths(folders)?).env("HOME", self.folder.path().join("home"));
        shell.env("SWITCHBACK_PROGRESS", "none");
        shell.envs(containers::environment(self.folder.path())?);
        // What the pages' first block sets: it builds, which was done before this test.
        shell.env("kernel", tools::fetched("kernel61")?).env("static", tools::device_binary()?);
        shell.env("units", tools::repository().join("updater/units")).env("mirror", tools::mirror()?);
        Ok(shell)
    }

    /// Types a script to its end.
    pub fn types(&self, script: &str) -> Result<()> {
        let output = self.shell(script)?.stdin(Stdio::null()).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "it ended with {}:\n{out}{err}", output.status);
        Ok(())
    }
}
