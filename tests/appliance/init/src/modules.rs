//! The kernel modules of the image, loaded in the order of its list.
//!
//! Not here: which, and in which order (whoever makes the image knows). Rule: one that is loaded already is no error; one that fails
//! does not keep the others from being loaded.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// Loads every module of the list; a missing list is an empty one.
pub fn load_all(list: &Path) -> Result<()> {
    if !list.exists() {
        return Ok(());
    }
    let text = std::fs::read_to_string(list).with_context(|| format!("while reading {}", list.display()))?;
    let failed: Vec<String> =
        paths(&text).iter().filter_map(|path| load(path).err()).map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// One path a line, `#` comments.
fn paths(list: &str) -> Vec<PathBuf> {
    let lines = list.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(PathBuf::from).collect()
}

fn load(path: &Path) -> Result<()> {
    let doing = || format!("while loading the kernel module {}", path.display());
    let file = File::open(path).with_context(doing)?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        // ENODEV: a driver of hardware that this machine does not have.
        Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => Ok(()),
        Err(errno) => Err(errno).with_context(doing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_paths_in_order_without_comments() {
        assert_eq!(
            paths("# first what others need\n/m/b.ko\n\n  /m/a.ko  \n"),
            [PathBuf::from("/m/b.ko"), PathBuf::from("/m/a.ko")]
        );
    }

    #[test]
    fn each_module_that_fails_is_named_and_no_list_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("modules");
        load_all(&list).unwrap();
        std::fs::write(&list, "/nonexistent/a.ko\n/nonexistent/b.ko\n").unwrap();
        let error = load_all(&list).unwrap_err().to_string();
        assert!(error.contains("a.ko") && error.contains("b.ko"), "{error}");
    }
}
