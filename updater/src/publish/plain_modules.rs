//! A root folder whose kernel modules are packed → the same root with plain `.ko` files, indexed anew.
//!
//! A packed module shares no byte with its next version, so that packed modules are most of what an update fetches; the
//! wire compresses anyway.
//!
//! Not here: modules in an initramfs (`modules`, which unpacks for itself), whether the author wants it (`rootfs`). Rule:
//! the author's folder is only read, and whatever is in the way leaves all modules as they are, with a word on the cure.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use walkdir::WalkDir;

use super::link_tree::{LinkTree, dress};
use super::modules::{self, ModulesError};
use crate::file::{self, FileError};

/// Where a root has its modules, a folder for each kernel release.
const PLACES: [&str; 2] = ["lib/modules", "usr/lib/modules"];
const PACKED: [&str; 3] = [".ko.xz", ".ko.zst", ".ko.gz"];
/// Where a root says how `depmod` is to go about it, the weightiest first (depmod.d(5)).
const CONFIG_PLACES: [&str; 5] =
    ["etc/depmod.d", "run/depmod.d", "usr/local/lib/depmod.d", "usr/lib/depmod.d", "lib/depmod.d"];
/// Bound of `modules.order` and of a file of configuration, in bytes.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// Why modules stay packed.
#[derive(Debug, thiserror::Error)]
pub enum PlainError {
    /// The tool is not installed.
    #[error(
        "while looking for depmod: not found in PATH, /usr/sbin or /sbin; `apt-get install kmod` brings it"
    )]
    NoTool,
    /// The tool failed.
    #[error("while indexing the modules of {release}: depmod ended with {status}: {stderr}")]
    Tool {
        /// The kernel release.
        release: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A module that is a link: its target would be gone.
    #[error(
        "while unpacking {path}: it is a link, whose target may be elsewhere; unpack these modules in the root"
    )]
    Link {
        /// The module.
        path: PathBuf,
    },
    /// A module that is there twice.
    #[error("while unpacking {path}: there is a plain one beside it; remove one of the two")]
    Twice {
        /// The packed module.
        path: PathBuf,
    },
    /// A module could not be unpacked.
    #[error(transparent)]
    Module(#[from] ModulesError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The root with plain modules, until it is dropped.
#[derive(Debug)]
pub struct PlainRoot {
    tree: LinkTree,
    /// Kernel releases whose modules were unpacked.
    pub releases: Vec<String>,
    /// How many modules were unpacked.
    pub modules: u64,
}

impl PlainRoot {
    /// The root folder. Its files are the author's own, by hard links: only to be read.
    pub fn path(&self) -> &Path {
        self.tree.path()
    }
}

/// The modules of one kernel.
struct Release {
    /// From the root, `lib/modules/<release>`.
    place: PathBuf,
    name: String,
}

/// Makes the root with plain modules in `work`. `None`: no module of `folder` is packed.
pub fn unpack(folder: &Path, work: &Path) -> Result<Option<PlainRoot>, PlainError> {
    let releases = packed_releases(folder)?;
    if releases.is_empty() {
        return Ok(None);
    }
    let depmod = file::program("depmod").ok_or(PlainError::NoTool)?;
    let mut modules = 0;
    let tree = LinkTree::make(folder, work, |name, to| {
        let Some(release) = releases.iter().find(|release| name.starts_with(&release.place)) else {
            return Ok(false);
        };
        instead(&folder.join(name), to, name.parent() == Some(&release.place), &mut modules)
    })?;
    for release in &releases {
        index(&depmod, folder, &tree, release, work)?;
    }
    tree.dress_folders()?;
    let releases = releases.into_iter().map(|release| release.name).collect();
    Ok(Some(PlainRoot { tree, releases, modules }))
}

/// The kernels of the root that have packed modules. A link on the way there may lead out of the root: not followed.
fn packed_releases(folder: &Path) -> Result<Vec<Release>, PlainError> {
    let mut releases = Vec::new();
    for place in PLACES.map(Path::new) {
        let real = |part: &Path| fs::symlink_metadata(folder.join(part)).is_ok_and(|meta| meta.is_dir());
        if !place.ancestors().all(real) {
            continue;
        }
        let found =
            fs::read_dir(folder.join(place)).map_err(FileError::of("reading", &folder.join(place)))?;
        for entry in found {
            let entry = entry.map_err(FileError::of("reading", &folder.join(place)))?;
            let place = place.join(entry.file_name());
            // A folder of another name is none that `depmod` knows.
            if let (true, Ok(name)) = (real(&place), modules::release_of(&place))
                && has_packed(&entry.path())?
            {
                releases.push(Release { place, name });
            }
        }
    }
    releases.sort_by(|one, other| one.place.cmp(&other.place));
    Ok(releases)
}

fn has_packed(dir: &Path) -> Result<bool, PlainError> {
    let mut found = false;
    for entry in WalkDir::new(dir) {
        let entry =
            entry.map_err(|error| FileError { doing: "reading", path: dir.into(), source: error.into() })?;
        let Some(plain) = plain_name(entry.path()) else { continue };
        if entry.file_type().is_symlink() {
            return Err(PlainError::Link { path: entry.into_path() });
        }
        if fs::symlink_metadata(plain).is_ok() {
            return Err(PlainError::Twice { path: entry.into_path() });
        }
        found |= entry.file_type().is_file();
    }
    Ok(found)
}

/// `x.ko` for `x.ko.xz`; nothing for what is not packed.
fn plain_name(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let ending = PACKED.iter().find(|ending| name.len() > ending.len() && name.ends_with(*ending))?;
    Some(path.with_file_name(&name[..name.len() - ending.len() + ".ko".len()]))
}

/// Makes what has to differ: packed modules, and the index, into which a link would let `depmod` write.
fn instead(from: &Path, to: &Path, top: bool, modules: &mut u64) -> Result<bool, PlainError> {
    let index = top && from.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"modules."));
    let (to, bytes) = match plain_name(to) {
        Some(plain) => {
            *modules += 1;
            (plain, modules::unpack(None, from)?)
        }
        None if index && fs::symlink_metadata(from).is_ok_and(|meta| meta.is_file()) => {
            let bytes = file::read(from, TEXT_BYTES_MAX)?;
            (to.to_owned(), if from.ends_with("modules.order") { plain_order(&bytes) } else { bytes })
        }
        None => return Ok(false),
    };
    fs::write(&to, bytes).map_err(FileError::of("writing", &to))?;
    dress(from, &to)?;
    Ok(true)
}

/// `modules.order` with the names of plain modules.
fn plain_order(order: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(order);
    let plain = |line: &str| plain_name(Path::new(line)).and_then(|path| path.to_str().map(str::to_owned));
    let lines = text.lines().map(|line| plain(line).unwrap_or_else(|| line.to_owned()) + "\n");
    lines.collect::<String>().into_bytes()
}

/// Runs `depmod` over the modules of one kernel, in a folder made for it: the root's own links might lead it elsewhere.
fn index(
    depmod: &Path,
    folder: &Path,
    tree: &LinkTree,
    release: &Release,
    work: &Path,
) -> Result<(), PlainError> {
    let base = tempfile::Builder::new().prefix(".depmod-").tempdir_in(work);
    let base = base.map_err(FileError::of("making a folder in", work))?;
    let (config, there) = (base.path().join("depmod.d"), base.path().join(PLACES[1]));
    for folder in [&config, &there] {
        fs::create_dir_all(folder).map_err(FileError::of("making", folder))?;
    }
    // Newer ones look into `usr/lib`, others into `lib`.
    symlink("usr/lib", base.path().join("lib")).map_err(FileError::of("making", base.path()))?;
    copy_config(folder, &config)?;
    let (place, there) = (tree.path().join(&release.place), there.join(&release.name));
    fs::rename(&place, &there).map_err(FileError::of("moving", &place))?;
    let mut command = Command::new(depmod);
    command.arg("-C").arg(&config).arg("-b").arg(base.path()).arg(&release.name);
    let output = command.stdin(Stdio::null()).output().map_err(FileError::of("starting", depmod))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(PlainError::Tool { release: release.name.clone(), status: output.status, stderr });
    }
    fs::rename(&there, &place).map_err(FileError::of("moving", &there))?;
    dress_index(&folder.join(&release.place), &place)
}

/// The root's own configuration, and not the machine's. Of two files with one name the weightier counts.
fn copy_config(folder: &Path, config: &Path) -> Result<(), PlainError> {
    let mut texts = BTreeMap::new();
    for place in CONFIG_PLACES.map(Path::new) {
        // A root without the folder, or with a link in its place, has no file there that counts.
        let real = |part: &Path| fs::symlink_metadata(folder.join(part)).is_ok_and(|meta| meta.is_dir());
        let Some(found) = place.ancestors().all(real).then(|| fs::read_dir(folder.join(place))) else {
            continue;
        };
        for entry in found.map_err(FileError::of("reading", &folder.join(place)))? {
            let entry = entry.map_err(FileError::of("reading", &folder.join(place)))?;
            if entry.path().extension().is_some_and(|ending| ending == "conf")
                && !texts.contains_key(&entry.file_name())
            {
                let text = file::read_inside(Some(folder), &entry.path(), TEXT_BYTES_MAX)?;
                texts.insert(entry.file_name(), text);
            }
        }
    }
    for (name, text) in texts {
        let path = config.join(name);
        fs::write(&path, text).map_err(FileError::of("writing", &path))?;
    }
    Ok(())
}

/// What `depmod` wrote belongs to whoever runs this, with a mode by their umask; neither may show in the image.
fn dress_index(original: &Path, made: &Path) -> Result<(), PlainError> {
    let owner = fs::metadata(original).map_err(FileError::of("reading", original))?;
    let mut names: Vec<_> = fs::read_dir(made)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(FileError::of("reading", made))?
        .into_iter()
        .map(|entry| entry.file_name())
        .filter(|name| name.as_encoded_bytes().starts_with(b"modules."))
        .collect();
    names.sort();
    for name in names {
        let (from, to) = (original.join(&name), made.join(&name));
        match fs::symlink_metadata(&from) {
            Ok(_) => dress(&from, &to)?,
            Err(_) => {
                let mine = fs::symlink_metadata(&to).map_err(FileError::of("reading", &to))?;
                if (mine.uid(), mine.gid()) != (owner.uid(), owner.gid()) {
                    lchown(&to, Some(owner.uid()), Some(owner.gid()))
                        .map_err(FileError::of("changing the owner of", &to))?;
                }
                let mode = Permissions::from_mode(0o644);
                fs::set_permissions(&to, mode).map_err(FileError::of("changing the permissions of", &to))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "plain_modules_tests.rs"]
mod tests;
