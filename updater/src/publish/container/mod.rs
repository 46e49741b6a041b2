//! A container image → a root folder, its kernel and its modules, for `image build --from-container`.
//!
//! Not here: how a root folder becomes a release (`build`, which does not know where the folder came from), how layers are
//! read (`crate::container`). Rule: boot files travel as boot files, so they leave the root before it is written.

mod kernel;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kernel::Kernel;

use crate::container::{self, ContainerError, ContainerRequest, Layers, Merged, make};
use crate::digest::Digest;
use crate::file::FileError;
use crate::progress::Progress;
use crate::registry::Registry;

/// Folders that a root needs and a container image may lack: what is mounted over at boot, with the mode of each.
const FOLDERS: [(&[u8], u32); 7] = [
    (b"dev", 0o755),
    (b"proc", 0o755),
    (b"sys", 0o755),
    (b"run", 0o755),
    (b"tmp", 0o1777),
    (b"efi", 0o755),
    (b"var/lib/switchback", 0o755),
];

/// Boot files are kept under these names and their kernel's version.
const KERNEL_PREFIX: &str = "vmlinuz-";
const INITRD_PREFIX: &str = "initrd.img-";

/// An image, unpacked.
#[derive(Debug)]
pub struct Container {
    /// Of its manifest, also when an index was named.
    pub digest: Digest,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// How many layers it has.
    pub layers: usize,
    /// The root, without boot files.
    pub root: PathBuf,
    kernels: BTreeMap<String, Kernel>,
    /// Where the boot files lie.
    boot: PathBuf,
}

/// A kernel of an image, as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerKernel {
    /// Its version.
    pub version: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its modules, inside the root.
    pub modules_dir: Option<PathBuf>,
    /// The image's own initramfs.
    pub initrd: Option<PathBuf>,
}

/// Fetches the image and unpacks it in `work`, an empty folder of the caller's that is kept as long as the result is used.
/// Needs a runtime of several threads, as it works on this one between waits.
pub async fn unpack(
    registry: &dyn Registry,
    request: &ContainerRequest,
    work: &Path,
    progress: &dyn Progress,
) -> Result<Container, ContainerError> {
    let image = container::describe(registry, request, progress).await?;
    let layers = Layers { folder: work, keep: false };
    let merged = container::merge(registry, (&image, request), layers, work, progress).await?;
    let (root, boot) = (work.join("root"), work.join("boot"));
    let kernels = tokio::task::block_in_place(|| finish(merged, &root, &boot))?;
    Ok(Container {
        digest: image.digest,
        labels: image.labels(),
        layers: image.layers().count(),
        root,
        kernels,
        boot,
    })
}

/// Boot files to `boot`, the rest to `root`.
fn finish(mut merged: Merged, root: &Path, boot: &Path) -> Result<BTreeMap<String, Kernel>, ContainerError> {
    let kernels = kernel::take(&mut merged.tree);
    make(boot)?;
    for (version, kernel) in &kernels {
        for (number, name) in [(kernel.kernel, KERNEL_PREFIX), (kernel.initrd, INITRD_PREFIX)] {
            let Some(number) = number else { continue };
            let (from, to) = (merged.contents.path(number), boot.join(format!("{name}{version}")));
            // Copied, for a link may have led to a file that stays in the root.
            fs::copy(from, &to).map_err(FileError::of("writing", &to))?;
        }
    }
    merged.ensure_folders(&FOLDERS)?;
    merged.write(root)?;
    Ok(kernels)
}

impl Container {
    /// The kernel of this version, or the only one. `packed`: its modules are to go into an initramfs.
    pub fn kernel(&self, version: Option<&str>, packed: bool) -> Result<ContainerKernel, ContainerError> {
        let (version, kernel) = self.one_kernel(version)?;
        if packed && kernel.modules.is_some() && !kernel.indexed {
            return Err(ContainerError::Kernel {
                wanted: format!("the modules of kernel {version}"),
                found: "they have no modules.dep".into(),
                remedy: format!("run `depmod {version}` in its recipe"),
            });
        }
        let file = |name: &str| self.boot.join(format!("{name}{version}"));
        let in_root = |names: &Vec<Vec<u8>>| {
            names.iter().fold(self.root.clone(), |path, name| path.join(OsStr::from_bytes(name)))
        };
        Ok(ContainerKernel {
            version: version.clone(),
            kernel: file(KERNEL_PREFIX),
            modules_dir: kernel.modules.as_ref().map(in_root),
            initrd: kernel.initrd.map(|_| file(INITRD_PREFIX)),
        })
    }

    fn one_kernel(&self, version: Option<&str>) -> Result<(&String, &Kernel), ContainerError> {
        let bootable: Vec<_> = self.kernels.iter().filter(|(_, kernel)| kernel.kernel.is_some()).collect();
        let fitting = bootable.iter().filter(|(name, _)| version.is_none_or(|version| version == *name));
        let fitting: Vec<_> = fitting.copied().collect();
        let remedy = match (&fitting[..], &bootable[..]) {
            ([only], _) => return Ok(*only),
            (_, []) => "install one in its recipe, or give --kernel",
            _ => "name one that it has with --kernel-version",
        };
        let names: Vec<&str> = bootable.iter().map(|(name, _)| name.as_str()).collect();
        let found = match names[..] {
            [] => "it has neither /usr/lib/modules/VERSION/vmlinuz nor /boot/vmlinuz-VERSION".into(),
            _ => format!("it has {}", names.join(", ")),
        };
        let wanted = version.map_or("the kernel".into(), |version| format!("kernel {version}"));
        Err(ContainerError::Kernel { wanted, found, remedy: remedy.into() })
    }
}

#[cfg(test)]
mod attacks;
#[cfg(test)]
pub(crate) mod tests;
