//! A container image → a root folder, its kernel and its modules, for `image build --from-container`.
//!
//! Not here: how a root folder becomes a release (`build`, which does not know where the folder came from), what any layer
//! would run. Rule: the image is hostile until its folder is written: verified before it is parsed, bounded before it is
//! read, and merged in memory, where no path of it can reach the machine that builds.

mod kernel;
mod layer;
mod source;
mod tree;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

pub use layer::LayerError;
pub use source::Platform;
pub use write::WriteError;

use kernel::Kernel;
use layer::{Budget, Contents};
use source::Image;
use tree::Tree;

use super::file::FileError;
use crate::digest::Digest;
use crate::progress::{Phase, Progress, until_stopped};
use crate::registry::{Registry, RegistryError};

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

/// Which image, and how much of it.
#[derive(Debug, Clone)]
pub struct ContainerRequest {
    /// The manifest or index.
    pub digest: Digest,
    /// Which image of an index.
    pub platform: Platform,
    /// The most bytes that the layers may have together, packed and unpacked.
    pub bytes_max: u64,
}

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

/// Why an image did not become a root. Nothing but a working folder was written.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The registry or folder.
    #[error("while fetching the container image")]
    Registry(#[from] RegistryError),
    /// It is something else.
    #[error("while reading the container image {digest}: {detail}")]
    NotAnImage {
        /// Of its manifest or index.
        digest: Digest,
        /// What is wrong with it.
        detail: String,
    },
    /// It is for other machines.
    #[error(
        "while reading the container image {digest}: it is not for {wanted} (found: {found}); name another one with --platform"
    )]
    NoPlatform {
        /// Of its manifest or index.
        digest: Digest,
        /// The platform asked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// More bytes than the caller allows.
    #[error(
        "while reading the container image {digest}: its layers have {bytes} bytes, and {limit} are allowed; raise --container-limit if that is right"
    )]
    TooLarge {
        /// Of its manifest.
        digest: Digest,
        /// What the manifest says.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A layer is refused.
    #[error("while applying layer {number} of {count} ({digest})")]
    Layer {
        /// From 1.
        number: usize,
        /// Of so many.
        count: usize,
        /// Its digest.
        digest: Digest,
        /// Why.
        source: Box<LayerError>,
    },
    /// The merged tree could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// No kernel inside, or not the one asked for.
    #[error("while looking for {wanted} in the container image: {found}; {remedy}")]
    Kernel {
        /// What was looked for.
        wanted: String,
        /// What there is.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A working file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The person asked to stop.
    #[error("while unpacking the container image: stopped, as asked; the next try begins from the start")]
    Interrupted,
}

/// Fetches the image and unpacks it in `work`, an empty folder of the caller's that is kept as long as the result is used.
/// Needs a runtime of several threads, as it works on this one between waits.
pub async fn unpack(
    registry: &dyn Registry,
    request: &ContainerRequest,
    work: &Path,
    progress: &dyn Progress,
) -> Result<Container, ContainerError> {
    let ContainerRequest { digest, platform, bytes_max } = request;
    let image = source::describe_image(registry, *digest, platform, *bytes_max);
    let image = until_stopped(progress, image).await.ok_or(ContainerError::Interrupted)??;
    // Each layer is read twice: its digest is right before it is parsed.
    progress.begin(Phase::Layers, 2 * image.layers.iter().map(|(blob, _, _)| blob.size).sum::<u64>());
    let merged = merge(registry, &image, *bytes_max, work, progress).await;
    progress.end();
    let (root, boot) = (work.join("root"), work.join("boot"));
    let kernels = tokio::task::block_in_place(|| merged?.finish(image.digest, &root, &boot))?;
    Ok(Container {
        digest: image.digest,
        labels: image.labels,
        layers: image.layers.len(),
        root,
        kernels,
        boot,
    })
}

/// Puts the layers on top of each other.
async fn merge(
    registry: &dyn Registry,
    image: &Image,
    limit: u64,
    work: &Path,
    progress: &dyn Progress,
) -> Result<Merge, ContainerError> {
    let folder = work.join("contents");
    make(&folder)?;
    let mut contents = Contents { folder, count: 0 };
    let mut tree = Tree::new();
    let mut budget = Budget { limit, left: limit };
    let copy = work.join("layer");
    for (at, (blob, packing, diff_id)) in image.layers.iter().enumerate() {
        let file = source::fetch(registry, blob, &copy, progress);
        let file = until_stopped(progress, file).await.ok_or(ContainerError::Interrupted)??;
        tokio::task::block_in_place(|| {
            layer::apply((&file, *packing), diff_id, &mut budget, (&mut tree, &mut contents), progress)
        })
        .map_err(|source| match progress.stopped() {
            true => ContainerError::Interrupted,
            false => ContainerError::Layer {
                number: at + 1,
                count: image.layers.len(),
                digest: blob.digest,
                source: Box::new(source),
            },
        })?;
        // There is none when the source's own file was read.
        let _ = fs::remove_file(&copy);
    }
    Ok(Merge { tree, contents })
}

/// The layers, merged.
struct Merge {
    tree: Tree,
    contents: Contents,
}

impl Merge {
    fn finish(
        mut self,
        digest: Digest,
        root: &Path,
        boot: &Path,
    ) -> Result<BTreeMap<String, Kernel>, ContainerError> {
        let kernels = kernel::take(&mut self.tree);
        make(boot)?;
        for (version, kernel) in &kernels {
            for (number, name) in [(kernel.kernel, KERNEL_PREFIX), (kernel.initrd, INITRD_PREFIX)] {
                let Some(number) = number else { continue };
                let (from, to) = (self.contents.path(number), boot.join(format!("{name}{version}")));
                // Copied, for a link may have led to a file that stays in the root.
                fs::copy(from, &to).map_err(FileError::of("writing", &to))?;
            }
        }
        for (path, mode) in FOLDERS {
            self.tree.ensure_folder(path, mode).map_err(|reason| {
                source::not(digest, format!("while making /{}: {reason}", tree::show(path)))
            })?;
        }
        make(root)?;
        write::write(&self.tree, &self.contents, root)?;
        Ok(kernels)
    }
}

fn make(folder: &Path) -> Result<(), FileError> {
    fs::create_dir(folder).map_err(FileError::of("making", folder))
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
mod tests;
