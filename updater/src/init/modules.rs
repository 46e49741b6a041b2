//! Kernel modules that the initramfs brings, loaded in the order of its list.
//!
//! Not here: which modules a machine needs and in which order (`publish::modules` writes the list). Rule: a module that
//! is loaded already is no error; one that fails is, unless its line says otherwise.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// The list: one module's path per line, dependencies first, `#` comments; `-` before a path: a failure is not an error.
pub const LIST: &str = "/etc/switchback/modules";

/// A list of a few dozen paths.
const LIST_BYTES_MAX: u64 = 64 * 1024;

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The uncompressed module file.
    pub path: PathBuf,
    /// Parameters for the module, as `insmod` takes them.
    pub parameters: String,
    /// A failure is only worth a line of the log (a driver that refuses on machines without its hardware).
    pub optional: bool,
}

/// A module that could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error("while loading the kernel module {path}")]
pub struct ModuleError {
    /// The module's file, or the list itself.
    pub path: PathBuf,
    /// The kernel's word.
    pub source: io::Error,
}

/// Loads every module of the list at `list`, in order; a missing list is an empty one (all drivers are built in).
/// `ignored` hears of optional modules that failed.
pub fn load_all(list: &Path, mut ignored: impl FnMut(&ModuleError)) -> Result<(), ModuleError> {
    for module in parse(&read_list(list)?) {
        match load(&module) {
            Err(error) if module.optional => ignored(&error),
            other => other?,
        }
    }
    Ok(())
}

/// The lines of a list.
pub fn parse(list: &str) -> Vec<Module> {
    let lines = list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (line, optional) = match line.strip_prefix('-') {
                Some(rest) => (rest, true),
                None => (line, false),
            };
            let (path, parameters) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            Module { path: path.into(), parameters: parameters.trim().into(), optional }
        })
        .collect()
}

fn read_list(list: &Path) -> Result<String, ModuleError> {
    let fail = |source| ModuleError { path: list.to_owned(), source };
    let mut text = String::new();
    match File::open(list) {
        Ok(file) => file.take(LIST_BYTES_MAX).read_to_string(&mut text).map_err(fail)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(text),
        Err(error) => return Err(fail(error)),
    };
    Ok(text)
}

fn load(module: &Module) -> Result<(), ModuleError> {
    let fail = |source| ModuleError { path: module.path.clone(), source };
    let parameters = std::ffi::CString::new(module.parameters.as_str()).map_err(|e| fail(e.into()))?;
    let file = File::open(&module.path).map_err(fail)?;
    match finit_module(&file, &parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(fail(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_module_with_its_parameters_and_whether_it_may_fail() {
        let module = |path: &str, parameters: &str, optional| Module {
            path: path.into(),
            parameters: parameters.into(),
            optional,
        };
        assert_eq!(
            parse("# disk\n/m/virtio.ko\n\n-/m/efivarfs.ko\n  /m/softdog.ko  soft_margin=20 nowayout=1\n"),
            [
                module("/m/virtio.ko", "", false),
                module("/m/efivarfs.ko", "", true),
                module("/m/softdog.ko", "soft_margin=20 nowayout=1", false),
            ]
        );
    }

    #[test]
    fn an_optional_module_that_is_missing_is_heard_of_and_a_needed_one_stops_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("modules");
        std::fs::write(&list, "-/nonexistent/a.ko\n/nonexistent/b.ko\n/nonexistent/c.ko\n").unwrap();
        let mut heard = Vec::new();
        let error = load_all(&list, |error| heard.push(error.path.clone())).unwrap_err();
        assert_eq!(heard, [PathBuf::from("/nonexistent/a.ko")]);
        assert_eq!(error.path, PathBuf::from("/nonexistent/b.ko"));
    }

    #[test]
    fn without_a_list_every_driver_is_built_in() {
        let heard = |error: &ModuleError| panic!("{error}");
        load_all(Path::new("/nonexistent/modules"), heard).unwrap();
    }
}
