//! A container image → a folder with its root: for releases made from one, and for services.
//!
//! Not here: what the folder becomes (`publish::container`, `services`), what any layer would run. Rule: the image is hostile
//! until its folder is written: verified before it is parsed, bounded before it is read, and merged in memory, where no path
//! of it can reach the machine that unpacks it.

pub(crate) mod layer;
mod source;
mod spec;
pub(crate) mod tree;
pub(crate) mod write;

use std::fs;
use std::path::Path;

pub use layer::LayerError;
pub use source::{Image, Platform};
pub use spec::ImageConfig;
pub use write::WriteError;

use layer::{Budget, Contents};
use tree::Tree;

use crate::digest::Digest;
use crate::file::FileError;
use crate::install::registry_reason;
use crate::progress::{Phase, Progress, until_stopped};
use crate::reason::Reason;
use crate::registry::{Registry, RegistryError};

/// Which image, and how much of it.
#[derive(Debug, Clone)]
pub struct ContainerRequest {
    /// The manifest or index.
    pub digest: Digest,
    /// Which image of an index.
    pub platform: Platform,
    /// The most bytes that the layers may have together, packed and unpacked.
    pub bytes_max: u64,
    /// What the person changes to allow more: a flag, or a key of the configuration.
    pub knob: &'static str,
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
        "while reading the container image {digest}: its layers have {bytes} bytes, and {limit} are allowed; raise {knob} if that is right"
    )]
    TooLarge {
        /// Of its manifest.
        digest: Digest,
        /// What the manifest says.
        bytes: u64,
        /// The limit.
        limit: u64,
        /// What raises it.
        knob: &'static str,
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
    #[cfg(feature = "author")]
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

impl ContainerError {
    /// The public reason.
    pub fn reason(&self) -> Reason {
        match self {
            ContainerError::Registry(error) => registry_reason(error),
            ContainerError::Interrupted => Reason::Interrupted,
            ContainerError::File(_) => Reason::WriteFailed,
            _ => Reason::NotSupported,
        }
    }
}

/// Reads manifest and config of the image, for the platform if it is an index.
pub async fn describe(
    registry: &dyn Registry,
    request: &ContainerRequest,
    progress: &dyn Progress,
) -> Result<Image, ContainerError> {
    let image = source::describe_image(registry, request);
    until_stopped(progress, image).await.ok_or(ContainerError::Interrupted)?
}

/// Where layers lie while they are read, and whether they stay there: the next image may have some of them too.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// Kept, for the next image.
    pub keep: bool,
}

/// Fetches the layers and puts them on top of each other. `work` is an empty folder of the caller's that is kept as long as the
/// result is used. Needs a runtime of several threads, as it works on this one between waits.
pub async fn merge(
    registry: &dyn Registry,
    (image, request): (&Image, &ContainerRequest),
    layers: Layers<'_>,
    work: &Path,
    progress: &dyn Progress,
) -> Result<Merged, ContainerError> {
    // Each layer is read twice: its digest is right before it is parsed.
    progress.begin(Phase::Layers, 2 * image.layers.iter().map(|(blob, _, _)| blob.size).sum::<u64>());
    let merged = put_together(registry, (image, request), layers, work, progress).await;
    progress.end();
    merged
}

async fn put_together(
    registry: &dyn Registry,
    (image, request): (&Image, &ContainerRequest),
    layers: Layers<'_>,
    work: &Path,
    progress: &dyn Progress,
) -> Result<Merged, ContainerError> {
    let folder = work.join("contents");
    make(&folder)?;
    let mut merged =
        Merged { digest: image.digest, tree: Tree::new(), contents: Contents { folder, count: 0 } };
    let mut budget = Budget { limit: request.bytes_max, left: request.bytes_max, knob: request.knob };
    for (at, (blob, packing, diff_id)) in image.layers.iter().enumerate() {
        let fetched = source::fetch(registry, blob, layers.folder, progress);
        let fetched = until_stopped(progress, fetched).await.ok_or(ContainerError::Interrupted)??;
        let Merged { tree, contents, .. } = &mut merged;
        tokio::task::block_in_place(|| {
            layer::apply((&fetched.path, *packing), diff_id, &mut budget, (tree, contents), progress)
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
        if fetched.is_copy && !layers.keep {
            fs::remove_file(&fetched.path).map_err(FileError::of("removing", &fetched.path))?;
        }
    }
    Ok(merged)
}

/// The layers of an image, on top of each other.
pub struct Merged {
    digest: Digest,
    pub(crate) tree: Tree,
    pub(crate) contents: Contents,
}

impl Merged {
    /// Makes folders where nothing has their name: path and mode.
    pub fn ensure_folders(&mut self, folders: &[(&[u8], u32)]) -> Result<(), ContainerError> {
        folders.iter().try_for_each(|(path, mode)| {
            self.tree.ensure_folder(path, *mode).map_err(|reason| {
                source::not(self.digest, format!("while making /{}: {reason}", tree::show(path)))
            })
        })
    }

    /// Writes all of it into `root`, which is made.
    pub fn write(&self, root: &Path) -> Result<(), ContainerError> {
        make(root)?;
        Ok(write::write(&self.tree, &self.contents, root)?)
    }
}

pub(crate) fn make(folder: &Path) -> Result<(), FileError> {
    fs::create_dir(folder).map_err(FileError::of("making", folder))
}
