//! Which kernel modules an initramfs needs, in the order in which they must be loaded.
//!
//! Not here: loading (`switchback init`), packing (`initramfs`). Rule: a module stands behind everything it depends on,
//! and is stored uncompressed, so that the first process needs no decoder and an update shares its bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::file::{self, FileError};

/// What a root behind dm-verity on common hardware and every QEMU machine needs before the root is mounted, in loading
/// order; built in or absent ones are passed over. `false`: the kernel may refuse it (no such hardware, no UEFI).
const DEFAULT_MODULES: [(&str, bool); 21] = [
    ("virtio_pci", true),
    ("virtio_blk", true),
    ("virtio_scsi", true),
    ("sd_mod", true),
    ("nvme", true),
    ("ahci", true),
    ("mmc_block", true),
    // The ESP. FAT asks for its two code pages by name when it mounts, so no dependency leads to them.
    ("nls_cp437", true),
    ("nls_ascii", true),
    ("vfat", true),
    ("efivarfs", false),
    // Asked for by name through the crypto layer, so no dependency leads to them either.
    ("crc32c_generic", true),
    ("crc32c_intel", false),
    ("sha256_generic", true),
    ("sha256_ssse3", false),
    ("dm_mod", true),
    ("dm_verity", true),
    ("erofs", true),
    ("squashfs", true),
    ("ext4", true),
    ("i6300esb", false),
];

const LIST_BYTES_MAX: u64 = 16 << 20;
/// The largest modules of distribution kernels (graphics drivers) are under 20 MiB.
const MODULE_BYTES_MAX: u64 = 64 << 20;
/// The xz decoder's dictionary; kernels compress modules with 1 to 8 MiB.
const XZ_MEMORY_KIB_MAX: u32 = 128 << 10;

/// Why the modules cannot be packed. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// The folder was never indexed.
    #[error("while reading {dir}: it has no modules.dep; make it with `depmod -b {base} {release}`")]
    NoIndex {
        /// The modules folder.
        dir: PathBuf,
        /// The folder above `lib/modules`.
        base: PathBuf,
        /// The kernel release.
        release: String,
    },
    /// The folder's name is no kernel release.
    #[error(
        "while reading {dir}: expected a folder lib/modules/<kernel release>, whose last name is plain text"
    )]
    NoRelease {
        /// The folder given.
        dir: PathBuf,
    },
    /// A line of `modules.dep` is broken.
    #[error("while reading modules.dep of {dir}: line {line} is not `path: paths`")]
    BadIndex {
        /// The modules folder.
        dir: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A module asked for by name is not there.
    #[error("while looking for module {name} in {dir}: neither in modules.dep nor built in")]
    NoModule {
        /// The module.
        name: String,
        /// The modules folder.
        dir: PathBuf,
    },
    /// A form of compression that is not read here.
    #[error(
        "while unpacking {path}: only .ko, .ko.xz, .ko.zst and .ko.gz are read; unpack the modules and run depmod again"
    )]
    Compression {
        /// The module.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// One module to pack, uncompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Where it lies, and is to lie in the initramfs: `lib/modules/<release>/kernel/…/x.ko`.
    pub path: String,
    /// Parameters, as `insmod` takes them.
    pub parameters: String,
    /// A failure to load it stops the boot.
    pub required: bool,
    /// The ELF file.
    pub bytes: Vec<u8>,
}

/// What was chosen, in loading order, and what was passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Dependencies first.
    pub modules: Vec<Module>,
    /// Names that the kernel has built in.
    pub built_in: Vec<String>,
    /// Names of the default set that this kernel does not have.
    pub absent: Vec<String>,
}

/// The default set and then `extra`, each with what it depends on, from `…/lib/modules/<release>`.
///
/// An entry of `extra` is `NAME [PARAMETERS]`, or `-NAME [PARAMETERS]` where the kernel may refuse the module; the name must
/// exist. A name of the default set keeps that set's word on refusal.
///
/// `root`, when there is one, is the only place that a link among the modules may lead to.
pub fn select(dir: &Path, root: Option<&Path>, extra: &[String]) -> Result<Selection, ModulesError> {
    let index = Index::read(dir, root)?;
    let mut order = Order { index: &index, required: BTreeMap::new(), paths: Vec::new() };
    let mut parameters = BTreeMap::new();
    let mut selection = Selection::default();
    let defaults = DEFAULT_MODULES.iter().map(|&(name, required)| Wanted {
        name: name.into(),
        parameters: "",
        required,
    });
    let count = DEFAULT_MODULES.len();
    for (number, wanted) in defaults.chain(extra.iter().map(|entry| Wanted::parse(entry))).enumerate() {
        if let Some(path) = index.by_name.get(&wanted.name) {
            order.add(path, wanted.required);
            parameters.insert(path, wanted.parameters);
        } else if index.built_in.contains(&wanted.name) {
            selection.built_in.push(wanted.name);
        } else if number < count {
            selection.absent.push(wanted.name);
        } else {
            return Err(ModulesError::NoModule { name: wanted.name, dir: dir.to_owned() });
        }
    }
    selection.built_in.dedup();
    for path in &order.paths {
        selection.modules.push(Module {
            path: format!("lib/modules/{}/{}", index.release, uncompressed_name(path)),
            parameters: parameters.get(path).copied().unwrap_or_default().to_owned(),
            required: order.required[path],
            bytes: unpack(root, &dir.join(path))?,
        });
    }
    Ok(selection)
}

/// A module by name, and what is to be done with it.
struct Wanted<'a> {
    /// In its canonical form.
    name: String,
    parameters: &'a str,
    required: bool,
}

impl Wanted<'_> {
    fn parse(entry: &str) -> Wanted<'_> {
        let (entry, required) = entry.strip_prefix('-').map_or((entry, true), |rest| (rest, false));
        let (name, parameters) = entry.split_once(char::is_whitespace).unwrap_or((entry, ""));
        let name = canonical(name);
        let default = DEFAULT_MODULES.iter().find(|(known, _)| *known == name);
        Wanted {
            name,
            parameters: parameters.trim(),
            required: default.map_or(required, |(_, required)| *required),
        }
    }
}

/// `modules.dep` and `modules.builtin` of one kernel (kmod, modules.dep(5)).
struct Index {
    release: String,
    /// Path → the paths it depends on.
    depends: BTreeMap<String, Vec<String>>,
    /// Canonical name → path.
    by_name: BTreeMap<String, String>,
    built_in: BTreeSet<String>,
}

impl Index {
    fn read(dir: &Path, root: Option<&Path>) -> Result<Index, ModulesError> {
        let release = release_of(dir)?;
        let depends = match file::read_inside(root, &dir.join("modules.dep"), LIST_BYTES_MAX) {
            Ok(bytes) => parse_depends(dir, &String::from_utf8_lossy(&bytes))?,
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
                return Err(no_index(dir, release));
            }
            Err(error) => return Err(error.into()),
        };
        let by_name = depends.keys().map(|path| (canonical(path), path.clone())).collect();
        let built_in = match file::read_inside(root, &dir.join("modules.builtin"), LIST_BYTES_MAX) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).lines().map(canonical).collect(),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Index { release, depends, by_name, built_in })
    }
}

/// The kernel release that a modules folder is named by.
pub(super) fn release_of(dir: &Path) -> Result<String, ModulesError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_+~".contains(c);
    dir.file_name()
        .and_then(|name| name.to_str())
        .filter(|name| name.chars().all(plain))
        .map(str::to_owned)
        .ok_or_else(|| ModulesError::NoRelease { dir: dir.to_owned() })
}

fn no_index(dir: &Path, release: String) -> ModulesError {
    let above =
        |path: &Path| path.ends_with("lib/modules").then(|| path.ancestors().nth(2).map(Path::to_owned));
    let base = dir.parent().and_then(above).flatten().unwrap_or_else(|| "FOLDER".into());
    ModulesError::NoIndex { dir: dir.to_owned(), base, release }
}

fn parse_depends(dir: &Path, text: &str) -> Result<BTreeMap<String, Vec<String>>, ModulesError> {
    let mut depends = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let bad = || ModulesError::BadIndex { dir: dir.to_owned(), line: number + 1 };
        let (path, needs) = line.split_once(':').ok_or_else(bad)?;
        // A path that climbs would read, and then pack, a file from outside the folder.
        let inside = |path: &str| {
            !path.starts_with('/') && !path.split('/').any(|part| matches!(part, "" | "." | ".."))
        };
        let needs: Vec<String> = needs.split_whitespace().map(str::to_owned).collect();
        if !inside(path) || !needs.iter().all(|need| inside(need)) {
            return Err(bad());
        }
        depends.insert(path.to_owned(), needs);
    }
    Ok(depends)
}

/// Post-order over the dependency graph: each path is listed once, behind what it needs.
struct Order<'a> {
    index: &'a Index,
    /// Every path seen, and whether anything that must load wants it.
    required: BTreeMap<String, bool>,
    paths: Vec<String>,
}

impl Order<'_> {
    fn add(&mut self, path: &str, required: bool) {
        match self.required.get(path) {
            Some(known) if *known || !required => return,
            Some(_) => {
                self.required.insert(path.to_owned(), true);
            }
            None => {
                self.required.insert(path.to_owned(), required);
                self.add_needs(path, required);
                self.paths.push(path.to_owned());
                return;
            }
        }
        self.add_needs(path, required);
    }

    fn add_needs(&mut self, path: &str, required: bool) {
        for need in self.index.depends.get(path).into_iter().flatten() {
            self.add(need, required);
        }
    }
}

/// `kernel/crypto/crc32c-intel.ko.xz` and `crc32c_intel` are one module: the kernel makes no difference between `-`
/// and `_`.
fn canonical(path_or_name: &str) -> String {
    let file = path_or_name.rsplit('/').next().unwrap_or(path_or_name);
    let name = file.find(".ko").map_or(file, |end| &file[..end]);
    name.replace('-', "_")
}

fn uncompressed_name(path: &str) -> &str {
    path.find(".ko").map_or(path, |at| &path[..at + ".ko".len()])
}

/// The module in that file, unpacked when its name says that it is packed.
pub(super) fn unpack(root: Option<&Path>, path: &Path) -> Result<Vec<u8>, ModulesError> {
    let packed = file::read_inside(root, path, MODULE_BYTES_MAX)?;
    let unpacked = match path.extension().and_then(|e| e.to_str()) {
        Some("ko") => Ok(packed),
        Some("xz") => read_capped(lzma_rust2::XzReader::new_mem_limit(&packed[..], true, XZ_MEMORY_KIB_MAX)),
        Some("zst") => zstd::stream::read::Decoder::new(&packed[..]).and_then(read_capped),
        Some("gz") => read_capped(flate2::read::MultiGzDecoder::new(&packed[..])),
        _ => return Err(ModulesError::Compression { path: path.to_owned() }),
    };
    Ok(unpacked.map_err(FileError::of("unpacking", path))?)
}

fn read_capped(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MODULE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MODULE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// A modules folder of a small kernel: some built in, one for each form of compression.
    pub(in super::super) fn small_kernel(root: &Path) -> PathBuf {
        let dir = root.join("lib/modules/6.1.0-test");
        std::fs::create_dir_all(dir.join("kernel")).unwrap();
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::default()).unwrap();
        xz.write_all(b"fat module").unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(b"efivarfs module").unwrap();
        for (name, bytes) in [
            ("kernel/vfat.ko", b"vfat module".to_vec()),
            ("kernel/fat.ko.xz", xz.finish().unwrap()),
            ("kernel/virtio_pci.ko.zst", zstd::encode_all(&b"virtio_pci module"[..], 3).unwrap()),
            ("kernel/virtio_ring.ko", b"virtio_ring module".to_vec()),
            ("kernel/virtio.ko", b"virtio module".to_vec()),
            ("kernel/virtio_blk.ko", b"virtio_blk module".to_vec()),
            ("kernel/crc32c-intel.ko", b"crc32c-intel module".to_vec()),
            ("kernel/crc-tables.ko", b"crc-tables module".to_vec()),
            ("kernel/efivarfs.ko.gz", gz.finish().unwrap()),
            ("kernel/my-driver.ko", b"my-driver module".to_vec()),
            ("kernel/other.ko", b"other module".to_vec()),
            ("kernel/old.ko.lz4", b"packed otherwise".to_vec()),
        ] {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        let dep = "kernel/vfat.ko: kernel/fat.ko.xz\nkernel/fat.ko.xz:\n\
                   kernel/virtio_pci.ko.zst: kernel/virtio_ring.ko kernel/virtio.ko\n\
                   kernel/virtio.ko: kernel/virtio_ring.ko\nkernel/virtio_ring.ko:\n\
                   kernel/virtio_blk.ko: kernel/virtio_ring.ko kernel/virtio.ko\n\
                   kernel/crc32c-intel.ko: kernel/crc-tables.ko\nkernel/crc-tables.ko:\nkernel/efivarfs.ko.gz:\nkernel/my-driver.ko: kernel/crc32c-intel.ko\nkernel/old.ko.lz4:\nkernel/other.ko:\n";
        std::fs::write(dir.join("modules.dep"), dep).unwrap();
        std::fs::write(
            dir.join("modules.builtin"),
            "kernel/fs/ext4/ext4.ko\nkernel/drivers/nvme/host/nvme.ko\n",
        )
        .unwrap();
        dir
    }

    fn names(selection: &Selection) -> Vec<(&str, bool)> {
        selection.modules.iter().map(|m| (m.path.rsplit('/').next().unwrap(), m.required)).collect()
    }

    #[test]
    fn each_module_stands_once_behind_what_it_needs_and_is_required_when_anything_required_needs_it() {
        let root = tempfile::tempdir().unwrap();
        let selection = select(
            &small_kernel(root.path()),
            None,
            &["my_driver depth=3  mode=1".into(), "ext4".into(), "efivarfs".into(), "-other".into()],
        )
        .unwrap();
        let expected = [
            ("virtio_ring.ko", true),
            ("virtio.ko", true),
            ("virtio_pci.ko", true),
            ("virtio_blk.ko", true),
            ("fat.ko", true),
            ("vfat.ko", true),
            ("efivarfs.ko", false),
            ("crc-tables.ko", true),
            ("crc32c-intel.ko", true), // may fail by itself, needed by the driver asked for
            ("my-driver.ko", true),
            ("other.ko", false),
        ];
        assert_eq!(names(&selection), expected);
        let with_parameters = selection.modules.iter().filter(|module| !module.parameters.is_empty());
        assert_eq!(with_parameters.map(|m| m.parameters.as_str()).collect::<Vec<_>>(), ["depth=3  mode=1"]);
        for module in &selection.modules {
            let name = module.path.rsplit('/').next().unwrap().trim_end_matches(".ko");
            assert_eq!(module.bytes, format!("{name} module").as_bytes(), "stored uncompressed");
            assert!(module.path.starts_with("lib/modules/6.1.0-test/kernel/"), "{}", module.path);
        }
        assert_eq!(selection.built_in, ["nvme", "ext4"]);
        assert!(selection.absent.contains(&"erofs".to_owned()));
    }

    #[test]
    fn a_link_among_the_modules_of_an_image_is_followed_inside_the_image_alone() {
        let machine = tempfile::tempdir().unwrap();
        std::fs::write(machine.path().join("secret"), "of the build machine").unwrap();
        let root = tempfile::tempdir_in(machine.path()).unwrap();
        let dir = small_kernel(root.path());
        std::fs::create_dir(root.path().join("extra")).unwrap();
        std::fs::write(root.path().join("extra/vfat.ko"), "a newer vfat").unwrap();
        let link = |target: &str| {
            std::fs::remove_file(dir.join("kernel/vfat.ko")).unwrap();
            std::os::unix::fs::symlink(target, dir.join("kernel/vfat.ko")).unwrap();
            select(&dir, Some(root.path()), &[])
        };
        let selection = link("/extra/vfat.ko").unwrap();
        assert!(selection.modules.iter().any(|module| module.bytes == b"a newer vfat"));
        let absolute = machine.path().join("secret").display().to_string();
        for outside in [absolute.as_str(), "../../../../../secret"] {
            let error = link(outside).unwrap_err().to_string();
            assert!(error.contains("vfat.ko"), "{outside}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_packed_is_refused_for_a_reason_that_names_the_cure() {
        type Break = fn(&Path);
        let table: [(&str, Break, &str, &str); 5] = [
            ("never indexed", |d| std::fs::remove_file(d.join("modules.dep")).unwrap(), "vfat", "depmod -b "),
            ("unknown name", |_| (), "no_such", "module no_such"),
            ("lz4", |_| (), "old", "only .ko, .ko.xz, .ko.zst and .ko.gz"),
            ("broken line", |d| std::fs::write(d.join("modules.dep"), "a.ko:\nb.ko").unwrap(), "a", "line 2"),
            (
                "climbing path",
                |d| std::fs::write(d.join("modules.dep"), "../../x.ko:").unwrap(),
                "x",
                "line 1",
            ),
        ];
        for (why, break_it, name, expected) in table {
            let root = tempfile::tempdir().unwrap();
            let dir = small_kernel(root.path());
            break_it(&dir);
            let error = select(&dir, None, &[name.into()]).unwrap_err().to_string();
            assert!(error.contains(expected), "{why}: {error}");
        }
    }
}
