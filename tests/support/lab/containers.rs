//! Container images by `buildah`, which needs no daemon: with its images in a folder of the test's own.
//!
//! Rule: none of the host's own images is seen or changed (root's `buildah` keeps a cache of where blobs are, without any, in
//! `/var/lib/containers/cache`), and no layer needs more than a plain folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::tools;

/// What makes `buildah`, however it is started, keep its images below `folder` and need no runtime.
pub fn environment(folder: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let file = folder.join("containers-storage.conf");
    let (images, run) = (folder.join("container-images"), folder.join("container-run"));
    let text = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
        images.display(),
        run.display()
    );
    std::fs::write(&file, text)?;
    Ok(vec![("CONTAINERS_STORAGE_CONF", file), ("BUILDAH_ISOLATION", "chroot".into())])
}

/// `buildah` with its images below `folder`.
pub fn buildah(folder: &Path) -> Result<Command> {
    let mut command = Command::new(tools::program("buildah", "buildah")?);
    command.envs(environment(folder)?);
    Ok(command)
}
