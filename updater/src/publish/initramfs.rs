//! The initramfs that `switchback init` starts from: the static binary as `/init`, its modules and nothing else.
//!
//! Not here: what happens at boot (`crate::init`), which modules (`modules`). Rule: the same inputs give the same bytes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use goblin::elf::Elf;

use super::modules::{self, Module, ModulesError, Selection};
use crate::file::{self, FileError};

/// The list of modules inside the initramfs: one absolute path a line, in loading order, with the module's parameters
/// behind it. A line that starts with `-` names a module whose refusal by the kernel is passed over.
pub const MODULE_LIST: &str = "etc/switchback/modules";

const INIT_BYTES_MAX: u64 = 256 << 20;
/// Window 8 MiB, which every kernel with zstd support takes (its own limit is 128 MiB).
const ZSTD_LEVEL: i32 = 19;
const FOLDERS: [&str; 7] = ["dev", "proc", "sys", "run", "sysroot", "etc", "etc/switchback"];
/// `/dev/console`: the kernel opens it for the first process before devtmpfs is mounted; without it panics are mute.
const CONSOLE: (u32, u32) = (5, 1);
/// `/dev/null`: on a machine without any console the first process starts with no open file, and Rust's runtime ends a
/// program that it can give neither these nor `/dev/null`: a kernel panic before `main`.
const NULL: (u32, u32) = (1, 3);

/// What goes into an initramfs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InitramfsRequest {
    /// The static `switchback` binary; the running program when `None`.
    pub init_binary: Option<PathBuf>,
    /// `…/lib/modules/<kernel release>` of the kernel that it is for; `None` for a kernel with everything built in.
    pub modules_dir: Option<PathBuf>,
    /// The root that they come from, when links among them must not lead out of it.
    pub modules_root: Option<PathBuf>,
    /// Modules beside the default set, loaded after it: `NAME [PARAMETERS]`, or `-NAME …` when the kernel may refuse it.
    pub extra_modules: Vec<String>,
}

/// A packed initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initramfs {
    /// The archive: newc cpio, zstd.
    pub bytes: Vec<u8>,
    /// What was taken, in loading order, and what was passed over.
    pub modules: Selection,
}

/// Why no initramfs was packed. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The running program could not be found.
    #[error("while finding the running program to pack it; name a static switchback with --init-binary")]
    NoProgram(#[source] io::Error),
    /// The init binary cannot start alone.
    #[error(
        "while checking {path} as the first process: {reason}; an initramfs has no libraries, so name a static switchback \
         with --init-binary (`make device` builds one)"
    )]
    NotStatic {
        /// The binary.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Modules were asked for without the folder they lie in.
    #[error(
        "while packing modules: {names} asked for, but no --modules-dir …/lib/modules/<kernel release> to take them from"
    )]
    NoModulesDir {
        /// The names.
        names: String,
    },
    /// The modules could not be packed.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive could not be made.
    #[error("while packing the initramfs")]
    Pack(#[source] io::Error),
}

/// Packs the initramfs in memory (some MiB).
pub fn pack(request: &InitramfsRequest) -> Result<Initramfs, InitramfsError> {
    let init = read_init(request.init_binary.as_deref())?;
    let modules = match &request.modules_dir {
        Some(dir) => modules::select(dir, request.modules_root.as_deref(), &request.extra_modules)?,
        None if request.extra_modules.is_empty() => Selection::default(),
        None => return Err(InitramfsError::NoModulesDir { names: request.extra_modules.join(", ") }),
    };
    let bytes = archive(&init, &modules.modules).map_err(InitramfsError::Pack)?;
    Ok(Initramfs { bytes, modules })
}

fn read_init(path: Option<&Path>) -> Result<Vec<u8>, InitramfsError> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().map_err(InitramfsError::NoProgram)?,
    };
    let bytes = file::read(&path, INIT_BYTES_MAX)?;
    match why_not_static(&bytes) {
        None => Ok(bytes),
        Some(reason) => Err(InitramfsError::NotStatic { path, reason }),
    }
}

/// A program that asks for a loader or a library ends the boot with "no init found", seen only on a console.
fn why_not_static(bytes: &[u8]) -> Option<String> {
    match Elf::parse(bytes) {
        Err(error) => Some(format!("it is no ELF program ({error})")),
        Ok(elf) if elf.program_headers.is_empty() => Some("it is an ELF file, but no program".into()),
        Ok(elf) => match (elf.interpreter, elf.libraries.first()) {
            (Some(loader), _) => Some(format!("it needs the loader {loader}")),
            (None, Some(library)) => Some(format!("it needs the library {library}")),
            (None, None) => None,
        },
    }
}

fn archive(init: &[u8], modules: &[Module]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    let mut archive = Archive { out: encoder, entries: 0, folders: Vec::new() };
    for folder in FOLDERS {
        archive.folder(folder)?;
    }
    archive.device("dev/console", 0o600, CONSOLE)?;
    archive.device("dev/null", 0o666, NULL)?;
    archive.file("init", 0o755, init)?;
    for module in modules {
        archive.file(&module.path, 0o644, &module.bytes)?;
    }
    archive.file(MODULE_LIST, 0o644, module_list(modules).as_bytes())?;
    cpio::newc::trailer(archive.out)?.finish()
}

fn module_list(modules: &[Module]) -> String {
    let line = |module: &Module| {
        let may_fail = if module.required { "" } else { "-" };
        format!("{may_fail}/{} {}", module.path, module.parameters).trim_end().to_owned() + "\n"
    };
    modules.iter().map(line).collect()
}

/// newc entries with nothing of this machine in them: owner 0, time 0, inode numbers in order.
struct Archive<W: Write> {
    out: W,
    entries: u32,
    folders: Vec<String>,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, name: &str, mode: u32) -> cpio::newc::Builder {
        self.entries += 1;
        cpio::newc::Builder::new(name).ino(self.entries).mode(mode)
    }

    fn put(&mut self, entry: cpio::newc::Builder, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut writer = entry.write(&mut self.out, length);
        writer.write_all(bytes)?;
        writer.finish()?;
        Ok(())
    }

    fn folder(&mut self, path: &str) -> io::Result<()> {
        if self.folders.iter().any(|known| known == path) {
            return Ok(());
        }
        self.folders.push(path.to_owned());
        let entry = self.entry(path, 0o040_755).nlink(2);
        self.put(entry, &[])
    }

    /// The kernel does not make the folders above a file; they must come first.
    fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        for (end, _) in path.match_indices('/') {
            self.folder(&path[..end])?;
        }
        let entry = self.entry(path, 0o100_000 | mode);
        self.put(entry, bytes)
    }

    fn device(&mut self, path: &str, mode: u32, (major, minor): (u32, u32)) -> io::Result<()> {
        let entry = self.entry(path, 0o020_000 | mode).rdev_major(major).rdev_minor(minor);
        self.put(entry, &[])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::publish::modules::tests::small_kernel;

    /// The smallest static program: an ELF header and one segment.
    pub(in super::super) fn static_program() -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[16] = 2; // executable
        elf[18] = 62; // x86-64
        elf[20] = 1;
        elf[32] = 64; // program headers start here
        elf[52] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1; // a segment to load
        elf
    }

    fn request(root: &Path) -> InitramfsRequest {
        let init = root.join("switchback");
        std::fs::write(&init, static_program()).unwrap();
        InitramfsRequest {
            init_binary: Some(init),
            modules_dir: Some(small_kernel(root)),
            modules_root: None,
            extra_modules: vec!["my-driver depth=3".into()],
        }
    }

    /// What the real `cpio` makes of an archive.
    fn cpio(archive: &[u8], arguments: &[&str], dir: &Path) -> String {
        let raw = zstd::decode_all(archive).unwrap();
        let mut child = Command::new("cpio")
            .args(arguments)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("apt-get install cpio");
        child.stdin.take().unwrap().write_all(&raw).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn cpio_lists_folders_before_files_and_finds_the_program_and_the_modules_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let packed = pack(&request(dir.path())).unwrap();
        let listing = cpio(&packed.bytes, &["--list", "--quiet"], dir.path());
        let k = "lib/modules/6.1.0-test/kernel";
        let expected = format!(
            "dev\nproc\nsys\nrun\nsysroot\netc\netc/switchback\ndev/console\ndev/null\ninit\nlib\nlib/modules\n\
             lib/modules/6.1.0-test\n{k}\n{k}/virtio_ring.ko\n{k}/virtio.ko\n{k}/virtio_pci.ko\n{k}/virtio_blk.ko\n\
             {k}/fat.ko\n{k}/vfat.ko\n{k}/efivarfs.ko\n{k}/crc-tables.ko\n{k}/crc32c-intel.ko\n{k}/my-driver.ko\netc/switchback/modules\n"
        );
        assert_eq!(listing, expected);
        let long = cpio(&packed.bytes, &["--list", "--verbose", "--quiet", "dev/*", "init"], dir.path());
        assert!(
            long.contains("crw-------   1 root     root       5,   1 Jan  1  1970 dev/console"),
            "{long}"
        );
        assert!(long.contains("crw-rw-rw-   1 root     root       1,   3 Jan  1  1970 dev/null"), "{long}");
        assert!(long.contains("-rwxr-xr-x   1 root     root"), "{long}");

        let out = tempfile::tempdir().unwrap();
        let files = ["init", "etc/switchback/modules", "lib/*"];
        cpio(
            &packed.bytes,
            &[&["--extract", "--make-directories", "--quiet"], &files[..]].concat(),
            out.path(),
        );
        assert_eq!(std::fs::read(out.path().join("init")).unwrap(), static_program());
        let list = std::fs::read_to_string(out.path().join(MODULE_LIST)).unwrap();
        assert_eq!(list.lines().nth(6), Some(format!("-/{k}/efivarfs.ko").as_str()));
        assert_eq!(list.lines().last(), Some(format!("/{k}/my-driver.ko depth=3").as_str()));
        assert_eq!(std::fs::read(out.path().join(k).join("fat.ko")).unwrap(), b"fat module");
    }

    #[test]
    fn the_same_inputs_elsewhere_give_the_same_bytes() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(pack(&request(here.path())).unwrap() == pack(&request(there.path())).unwrap());
    }

    #[test]
    fn a_program_that_could_not_start_alone_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("script");
        std::fs::write(&text, "#!/bin/sh\n").unwrap();
        let dynamic = PathBuf::from("/bin/sh");
        for (path, expected) in [(text, "no ELF program"), (dynamic, "needs the loader")] {
            let request = InitramfsRequest { init_binary: Some(path), ..Default::default() };
            let error = pack(&request).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("--init-binary"), "{error}");
        }
    }

    #[test]
    fn modules_asked_for_without_a_folder_are_not_dropped_silently() {
        let dir = tempfile::tempdir().unwrap();
        let request = InitramfsRequest { modules_dir: None, ..request(dir.path()) };
        assert!(pack(&request).unwrap_err().to_string().contains("my-driver"));
    }
}
