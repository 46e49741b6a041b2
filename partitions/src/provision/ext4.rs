//! ext4 for `state` and `data`, by e2fsprogs' own `mkfs.ext4`.
//!
//! Not here: mounting. Rule: the program is looked for before the first write to the disk.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{ProvisionError, io_error};
use crate::device::disk::Disk;
use crate::layout::Extent;

const PROGRAM: &str = "mkfs.ext4";
/// How much of what the program says is repeated in an error.
const MESSAGE_CHARS_MAX: usize = 500;

/// Finds `mkfs.ext4`, also where an unprivileged user's `PATH` does not lead.
pub(super) fn find_program() -> Result<PathBuf, ProvisionError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let missing = ProvisionError::MissingProgram { program: PROGRAM, package: "e2fsprogs" };
    folders.map(|folder| folder.join(PROGRAM)).find(|candidate| candidate.is_file()).ok_or(missing)
}

/// Makes an empty ext4 labelled `name` in a partition.
pub(super) fn format(
    program: &Path,
    disk: &dyn Disk,
    extent: &Extent,
    name: &'static str,
) -> Result<(), ProvisionError> {
    let (path, offset) = disk.path_of(extent).map_err(io_error("finding a partition's node"))?;
    let mut command = Command::new(program);
    command.args(["-q", "-F", "-L", name]);
    if offset != 0 {
        // Discarding would reach beyond the partition in versions that forget the offset; a new image is sparse anyway.
        command.args(["-E", &format!("offset={offset},nodiscard")]);
    }
    command.arg(&path).arg(format!("{}k", extent.len / 1024));
    let output = command.stdin(Stdio::null()).output().map_err(io_error("starting mkfs.ext4"))?;
    if !output.status.success() {
        let message =
            String::from_utf8_lossy(&output.stderr).trim().chars().take(MESSAGE_CHARS_MAX).collect();
        return Err(ProvisionError::ProgramFailed { program: PROGRAM, name, message });
    }
    Ok(())
}
