//! A state folder on a file system of its own size, for one command.
//!
//! Not here: what the command does. Rule: it is mounted in a namespace of that command, so nobody else sees it and it is
//! gone with it; what the command left there is copied out.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::lab::tools;

/// Fills what is left, to the last block.
pub const FILL: &str = "dd if=/dev/zero of=filler bs=4k 2>/dev/null || true";

/// How the state folder is for the command.
#[derive(Debug, Clone)]
pub struct SmallState {
    unshare: PathBuf,
    script: String,
    /// What lay in the state folder when the command was done.
    pub after: PathBuf,
}

impl SmallState {
    /// The content of `state` on a file system of `size` (`2m`) after `prepare` was run in it. `folder` has room for it.
    pub fn new(state: &Path, folder: &Path, size: &str, prepare: &str) -> Result<SmallState> {
        let (mount, after) = (folder.join("mount"), folder.join("after"));
        std::fs::create_dir_all(&mount)?;
        let script = format!(
            r#"
mount -t tmpfs -o size={size} tmpfs {mount}
cp -a {state}/. {mount}/
mount --bind {mount} {state}
cd {state}
{prepare}
code=0
"$@" || code=$?
rm -rf {after}
mkdir {after}
for file in *; do [ "$file" = filler ] || cp -r "$file" {after}/; done
exit $code
"#,
            mount = mount.display(),
            state = state.display(),
            after = after.display(),
        );
        Ok(SmallState { unshare: tools::program("unshare", "util-linux")?, script, after })
    }

    /// The command, there.
    pub fn command(&self, command: &Command) -> Command {
        let mut wrapped = Command::new(&self.unshare);
        if !nix::unistd::geteuid().is_root() {
            wrapped.arg("--map-root-user");
        }
        wrapped.args(["--mount", "sh", "-euc", &self.script, "sh"]);
        wrapped.arg(command.get_program()).args(command.get_args());
        wrapped
    }
}
