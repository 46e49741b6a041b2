//! A root folder → a reproducible EROFS image, by `mkfs.erofs`; unchanged files where an earlier release has them.
//!
//! Not here: other file systems (bring them as a partition image), dm-verity (`build`), places in the image
//! (`erofs_layout`), unpacking of modules (`plain_modules`). Rule: names, modes, owners and contents, and the earlier
//! release when one is named, decide every byte of the image; the moment, the machine and the order of the folder's
//! entries do not.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::erofs_layout::{self, Kept, LayoutError};
use super::plain_modules::{self, PlainError, PlainRoot};
use crate::engine::chain;
use crate::file::{self, FileError};

use crate::install::contract::ContractFile;
pub use crate::install::contract::{CONTRACT, CONTRACT_PATH};

/// Every image is whole blocks of this many bytes, the data block of its dm-verity tree.
pub const BLOCK_BYTES: u64 = 4096;

/// Folders that `switchback init` moves its mounts onto. Without one of them a release costs all its tries at boot.
const MOUNT_POINTS: [&str; 4] = ["dev", "proc", "sys", "run"];
const CONTRACT_BYTES_MAX: u64 = 4096;
/// EROFS on-disk format: superblock at 1024, magic first, log2 of the block size at byte 12.
pub(super) const SUPERBLOCK_AT: u64 = 1024;
pub(super) const EROFS_MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
pub(super) const BLOCK_BITS: u8 = 12;

/// How a folder becomes an image.
#[derive(Debug, Clone, Copy, Default)]
pub struct RootOptions<'a> {
    /// The raw root image of an earlier release: what did not change lies where it has it.
    pub previous: Option<&'a Path>,
    /// Packed kernel modules stay packed.
    pub keep_compressed_modules: bool,
}

/// A root image, and how it came about.
#[derive(Debug)]
pub struct MadeRoot {
    /// Length in bytes, whole blocks.
    pub bytes: u64,
    /// What became of the offsets of the earlier release.
    pub offsets: Offsets,
    /// What became of packed kernel modules.
    pub modules: Modules,
}

impl MadeRoot {
    /// What the author should know of it, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        match &self.modules {
            Modules::AsTheyAre => {}
            Modules::Unpacked { releases, modules } => notes.push(format!(
                "{modules} packed kernel modules of {} are plain files in the image: updates fetch less so.",
                releases.join(", ")
            )),
            Modules::LeftPacked(error) => {
                notes.push(format!(
                    "Kernel modules stay packed, so updates of the kernel fetch more: {}.",
                    chain(error)
                ));
            }
        }
        match &self.offsets {
            Offsets::Fresh => {}
            Offsets::Kept(kept) => notes.push(format!(
                "{} files lie where the earlier release has them; {} bytes of the image are the same at the same place.",
                kept.files, kept.bytes_in_place
            )),
            Offsets::NotKept(error) => notes.push(format!(
                "Files lie anew, so an update from the earlier release writes most of the slot: {}.",
                chain(error)
            )),
        }
        notes
    }
}

/// Whether unchanged files lie where an earlier release has them.
#[derive(Debug)]
pub enum Offsets {
    /// No earlier release was named.
    Fresh,
    /// They do.
    Kept(Kept),
    /// They do not, and the image is as `mkfs.erofs` made it: an update from that release writes most of it.
    NotKept(LayoutError),
}

/// What became of packed kernel modules.
#[derive(Debug)]
pub enum Modules {
    /// There are none, or they were to stay packed.
    AsTheyAre,
    /// They are plain files in the image, with an index of their own.
    Unpacked {
        /// Kernel releases that had packed ones.
        releases: Vec<String>,
        /// How many there were.
        modules: u64,
    },
    /// They stay packed, and why.
    LeftPacked(PlainError),
}

/// Why a folder does not become a root image. Nothing but the output file was touched.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The folder is no root that this updater can come back from.
    #[error(
        "while checking {folder}: it has no /{CONTRACT_PATH}, so nothing says that it can judge itself and update again; \
         put `contract = {CONTRACT}` there once it starts `switchback boot-check`, or say --foreign"
    )]
    NoContract {
        /// The folder.
        folder: PathBuf,
    },
    /// The contract file is not what it should be.
    #[error("while reading /{CONTRACT_PATH} of {folder}: {reason}; expected a line `contract = {CONTRACT}`")]
    BadContract {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The root was made for another updater.
    #[error(
        "while reading /{CONTRACT_PATH} of {folder}: the root asks for contract {found}, this updater keeps {CONTRACT}; build with an updater that knows {found}"
    )]
    OtherContract {
        /// The folder.
        folder: PathBuf,
        /// The contract asked for.
        found: u64,
    },
    /// A folder that the first process mounts on is missing.
    #[error(
        "while checking {folder}: it has no folder /{missing}, which is mounted over at boot; create it empty, or say --foreign"
    )]
    NoMountPoint {
        /// The folder.
        folder: PathBuf,
        /// The missing one.
        missing: &'static str,
    },
    /// The tool is not installed.
    #[error(
        "while looking for mkfs.erofs: not found in PATH, /usr/sbin or /sbin; `apt-get install erofs-utils` brings it"
    )]
    NoTool,
    /// The tool failed.
    #[error("while making an EROFS image of {folder}: mkfs.erofs ended with {status}: {stderr}")]
    Tool {
        /// The folder.
        folder: PathBuf,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// The tool made something that other machines might not mount.
    #[error(
        "while checking the EROFS image of {folder}: expected blocks of {BLOCK_BYTES} bytes, which every kernel mounts; found superblock {found}"
    )]
    OddImage {
        /// The folder.
        folder: PathBuf,
        /// The first bytes of the superblock, in hexadecimal.
        found: String,
    },
    /// A file of the folder could not be read, or the image not written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Refuses a root that could not judge itself, update again or even start: see the errors. `--foreign` skips this.
pub fn check_contract(folder: &Path) -> Result<(), RootfsError> {
    let text = read_inside(folder, CONTRACT_PATH).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            RootfsError::NoContract { folder: folder.to_owned() }
        }
        _ => FileError { doing: "reading", path: folder.join(CONTRACT_PATH), source }.into(),
    })?;
    let bad = |reason: String| RootfsError::BadContract { folder: folder.to_owned(), reason };
    let file: ContractFile = toml::from_str(&text).map_err(|e| bad(e.message().to_owned()))?;
    if file.contract != CONTRACT {
        return Err(RootfsError::OtherContract { folder: folder.to_owned(), found: file.contract });
    }
    for missing in MOUNT_POINTS {
        if !fs::symlink_metadata(folder.join(missing)).is_ok_and(|m| m.is_dir()) {
            return Err(RootfsError::NoMountPoint { folder: folder.to_owned(), missing });
        }
    }
    Ok(())
}

/// Writes the folder as an EROFS image to `image`: kernel modules unpacked and unchanged files where an earlier release
/// has them, unless `options` say otherwise. Neither of the two is worth a failed build: what cannot be done is told.
pub fn make_root(folder: &Path, image: &Path, options: &RootOptions<'_>) -> Result<MadeRoot, RootfsError> {
    let (plain, modules) = if options.keep_compressed_modules {
        (None, Modules::AsTheyAre)
    } else {
        match plain_modules::unpack(folder, folder_of(image)) {
            Ok(None) => (None, Modules::AsTheyAre),
            Ok(Some(plain)) => {
                let modules = Modules::Unpacked { releases: plain.releases.clone(), modules: plain.modules };
                (Some(plain), modules)
            }
            Err(error) => (None, Modules::LeftPacked(error)),
        }
    };
    let folder = plain.as_ref().map_or(folder, PlainRoot::path);
    let (bytes, offsets) = make_erofs_like(folder, image, options.previous)?;
    Ok(MadeRoot { bytes, offsets, modules })
}

/// [`make_erofs`], with unchanged files where `previous` has them, the raw root image of an earlier release.
pub fn make_erofs_like(
    folder: &Path,
    image: &Path,
    previous: Option<&Path>,
) -> Result<(u64, Offsets), RootfsError> {
    let Some(previous) = previous else { return Ok((make_erofs(folder, image)?, Offsets::Fresh)) };
    let work = tempfile::Builder::new().prefix(".erofs-").tempdir_in(folder_of(image));
    let work = work.map_err(FileError::of("making a folder beside", image))?;
    let fresh = work.path().join("root.erofs");
    make_erofs(folder, &fresh)?;
    let offsets = match erofs_layout::keep_offsets(&fresh, previous, image) {
        Ok(kept) => Offsets::Kept(kept),
        Err(LayoutError::File(error)) => return Err(error.into()),
        Err(error) => {
            fs::rename(&fresh, image).map_err(FileError::of("making", image))?;
            Offsets::NotKept(error)
        }
    };
    Ok((fs::metadata(image).map_err(FileError::of("reading", image))?.len(), offsets))
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes the folder as an EROFS image to `image` and gives its length, whole blocks of 4096 bytes. Uncompressed: an
/// update fetches compressed chunks anyway, and compressed files inside an image share nothing with their older selves.
///
/// Owners are kept when the folder itself belongs to root. A folder of an ordinary user becomes root's altogether: the
/// system's files must not belong to whoever has that user's number on the machine.
pub fn make_erofs(folder: &Path, image: &Path) -> Result<u64, RootfsError> {
    let uid = fs::metadata(folder).map_err(FileError::of("reading", folder))?.uid();
    let owners = if uid == 0 { Owners::Kept } else { Owners::AllRoot };
    let uuid = content_uuid(folder, owners)?;
    run_mkfs(folder, owners, &uuid, image)?;
    check_superblock(folder, image)?;
    pad(image).map_err(|e| FileError::of("padding", image)(e).into())
}

/// Who owns the files in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owners {
    Kept,
    AllRoot,
}

/// Reads a small text file as the booted root would see it: an absolute symbolic link inside the folder must not lead
/// to the build machine's own files.
fn read_inside(folder: &Path, path: &str) -> io::Result<String> {
    let mut text = String::new();
    let file = file::open_inside(folder, Path::new(path))?;
    file.take(CONTRACT_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// A file system UUID that follows from the contents, so that the same folder gives the same image and two releases
/// never share a UUID. Extended attributes are left out: they change the image, but alone not its UUID.
fn content_uuid(folder: &Path, owners: Owners) -> Result<Uuid, RootfsError> {
    let mut hash = Sha256::new();
    for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(folder).to_owned();
            FileError { doing: "reading", path, source: error.into() }
        })?;
        let path = entry.path();
        hash_entry(&mut hash, folder, path, owners).map_err(FileError::of("reading", path))?;
    }
    Ok(Uuid::new_v5(&Uuid::NAMESPACE_OID, &hash.finalize()))
}

fn hash_entry(hash: &mut Sha256, folder: &Path, path: &Path, owners: Owners) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let name = path.strip_prefix(folder).unwrap_or(path).as_os_str().as_bytes();
    let (uid, gid) = if owners == Owners::Kept { (meta.uid(), meta.gid()) } else { (0, 0) };
    let rdev =
        if meta.file_type().is_char_device() || meta.file_type().is_block_device() { meta.rdev() } else { 0 };
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
    for word in [u64::from(meta.mode()), u64::from(uid), u64::from(gid), rdev] {
        hash.update(word.to_le_bytes());
    }
    if meta.is_symlink() {
        let target = fs::read_link(path)?;
        hash.update((target.as_os_str().len() as u64).to_le_bytes());
        hash.update(target.as_os_str().as_bytes());
    } else if meta.is_file() {
        hash.update(file::sha256(File::open(path)?)?);
    }
    Ok(())
}

fn run_mkfs(folder: &Path, owners: Owners, uuid: &Uuid, image: &Path) -> Result<(), RootfsError> {
    let tool = file::program("mkfs.erofs").ok_or(RootfsError::NoTool)?;
    let mut command = Command::new(&tool);
    command.args(["--quiet", "-T0", "-U"]).arg(uuid.to_string());
    if owners == Owners::AllRoot {
        command.arg("--all-root");
    }
    // A leading dash in a name must not become an option: both paths are made absolute.
    let absolute = |path: &Path| std::path::absolute(path).map_err(FileError::of("naming", path));
    command.arg(absolute(image)?).arg(absolute(folder)?);
    let output = command
        .env_remove("SOURCE_DATE_EPOCH")
        .stdin(Stdio::null())
        .output()
        .map_err(FileError::of("starting", &tool))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(RootfsError::Tool { folder: folder.to_owned(), status: output.status, stderr });
    }
    Ok(())
}

/// On a machine with 16 or 64 KiB pages the tool's default block is a page, and kernels with 4 KiB pages refuse that.
fn check_superblock(folder: &Path, image: &Path) -> Result<(), RootfsError> {
    let mut superblock = [0; 16];
    let read = File::open(image).and_then(|mut file| {
        file.seek(SeekFrom::Start(SUPERBLOCK_AT))?;
        file.read_exact(&mut superblock)
    });
    read.map_err(FileError::of("reading", image))?;
    if superblock[..4] != EROFS_MAGIC || superblock[12] != BLOCK_BITS {
        return Err(RootfsError::OddImage { folder: folder.to_owned(), found: hex::encode(superblock) });
    }
    Ok(())
}

fn pad(image: &Path) -> io::Result<u64> {
    let file = File::options().write(true).open(image)?;
    let bytes = file.metadata()?.len().next_multiple_of(BLOCK_BYTES);
    file.set_len(bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A root with what a root may hold; `reverse` creates it in another order and at another time.
    fn folder(reverse: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mut files: Vec<(String, Vec<u8>)> =
            (0..300).map(|n| (format!("etc/f{n}"), vec![n as u8; n * 20])).collect();
        files.push((CONTRACT_PATH.into(), b"# made by a test\ncontract = 1\n".to_vec()));
        files.push(("usr/bin/tool".into(), (0..3_000_000u32).map(|n| (n ^ (n >> 7)) as u8).collect()));
        files.push(("usr/bin/empty".into(), vec![]));
        for dir in MOUNT_POINTS {
            fs::create_dir(root.join(dir)).unwrap();
        }
        if reverse {
            files.reverse();
        }
        for (name, bytes) in &files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(
                &path,
                fs::Permissions::from_mode(if name.contains("bin") { 0o4755 } else { 0o644 }),
            )
            .unwrap();
            if reverse {
                let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
                File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
            }
        }
        symlink("../etc/f1", root.join("usr/link")).unwrap();
        fs::hard_link(root.join("etc/f2"), root.join("usr/hard")).unwrap();
        dir
    }

    fn image_of(folder: &Path) -> Vec<u8> {
        let out = tempfile::tempdir().unwrap();
        let image = out.path().join("root.erofs");
        let bytes = make_erofs(folder, &image).unwrap();
        let fsck = Command::new("fsck.erofs").arg(&image).output().expect("apt-get install erofs-utils");
        assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stderr));
        let image = fs::read(image).unwrap();
        assert_eq!((bytes, bytes % BLOCK_BYTES), (image.len() as u64, 0));
        image
    }

    #[test]
    fn the_same_root_made_in_another_order_at_another_time_is_the_same_image_and_another_root_is_not() {
        let (first, second) = (folder(false), folder(true));
        let image = image_of(first.path());
        assert!(image == image_of(second.path()), "images differ");
        fs::write(second.path().join("etc/f1"), "x").unwrap();
        let changed = image_of(second.path());
        let uuid = |image: &[u8]| image[1024 + 48..1024 + 64].to_vec();
        assert_ne!(uuid(&image), uuid(&changed));
    }

    #[test]
    fn an_independent_reader_finds_every_file_in_the_image() {
        let folder = folder(false);
        let image = image_of(folder.path());
        let fs = erofs_rs::EroFS::new(erofs_rs::backend::SliceImage::new(&image)).unwrap();
        for name in ["etc/f0", "etc/f299", "usr/bin/tool", "usr/bin/empty", "usr/hard", CONTRACT_PATH] {
            let mut found = Vec::new();
            fs.open(format!("/{name}")).unwrap().read_to_end(&mut found).unwrap();
            assert!(found == std::fs::read(folder.path().join(name)).unwrap(), "{name}");
        }
    }

    fn owner_of(image: &[u8], name: &str) -> u32 {
        let fs = erofs_rs::EroFS::new(erofs_rs::backend::SliceImage::new(image)).unwrap();
        let (parent, file) = name.rsplit_once('/').unwrap();
        let mut entries = fs.read_dir(parent).unwrap().map(|entry| entry.unwrap().dir_entry);
        let entry = entries.find(|entry| entry.file_name() == file.as_bytes()).unwrap();
        fs.get_inode(entry.nid()).unwrap().uid()
    }

    #[test]
    fn a_root_folder_keeps_its_owners_and_a_users_folder_becomes_roots() {
        let folder = folder(false);
        let chown = |path: &Path, uid| std::os::unix::fs::chown(path, Some(uid), None);
        // An ordinary user cannot give files away, and has only folders of the second kind.
        if chown(&folder.path().join("etc/f1"), 5).is_ok() {
            assert_eq!(owner_of(&image_of(folder.path()), "/etc/f1"), 5);
            chown(folder.path(), 1000).unwrap();
        }
        assert_eq!(owner_of(&image_of(folder.path()), "/etc/f1"), 0);
    }

    #[test]
    fn a_root_is_refused_for_a_reason_that_names_the_cure() {
        type Break = fn(&Path);
        let table: [(&str, Break, &str); 5] = [
            ("no contract", |r| fs::remove_file(r.join(CONTRACT_PATH)).unwrap(), "--foreign"),
            ("other text", |r| fs::write(r.join(CONTRACT_PATH), "hello").unwrap(), "contract = 1"),
            (
                "a later contract",
                |r| fs::write(r.join(CONTRACT_PATH), "contract = 2").unwrap(),
                "asks for contract 2",
            ),
            ("no /proc", |r| fs::remove_dir(r.join("proc")).unwrap(), "/proc"),
            (
                "a link to the build machine's own contract",
                |r| {
                    let outside = r.with_extension("outside");
                    fs::write(&outside, "contract = 1").unwrap();
                    fs::remove_file(r.join(CONTRACT_PATH)).unwrap();
                    symlink(&outside, r.join(CONTRACT_PATH)).unwrap();
                },
                "has no /usr/lib/switchback/contract",
            ),
        ];
        for (why, break_it, expected) in table {
            let folder = folder(false);
            check_contract(folder.path()).unwrap();
            break_it(folder.path());
            let error = check_contract(folder.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{why}: {error}");
            let _ = fs::remove_file(folder.path().with_extension("outside"));
        }
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = make_erofs(Path::new("/no/such/root"), Path::new("x")).unwrap_err().to_string();
        assert!(error.contains("/no/such/root"), "{error}");
    }
}
