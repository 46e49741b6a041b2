//! `image build --from-container`: from typed text to an unpacked image and the boot files in it.
//!
//! Not here: how an image is fetched and unpacked (`publish::container`). Rule: what the author types wins over what the
//! image says.

use std::path::Path;

use super::args::BuildArgs;
use super::image::{access, refused};
use super::progress::Display;
use crate::container::{ContainerError, ContainerRequest};
use crate::engine::Failure;
use crate::engine::source::{open, resolve};
use crate::install::registry_reason;
use crate::publish::build::{BootSource, InitrdSource, work_folder};
use crate::publish::container::{Container, unpack};
use crate::publish::initramfs::InitramfsRequest;
use crate::reason::{Reason, Why};
use crate::registry::layout_dir::LayoutDir;
use crate::registry::reference::{Reference, Source};

/// The label that names the product; the other two are OCI's own.
const PRODUCT_LABEL: &str = "io.switchback.product";
const TITLE_LABEL: &str = "org.opencontainers.image.title";
const VERSION_LABEL: &str = "org.opencontainers.image.version";

/// An unpacked image, as long as this is held.
pub(super) struct Unpacked {
    pub image: Container,
    _work: tempfile::TempDir,
}

/// Fetches and unpacks beside the output, where there is room.
pub(super) async fn fetch(
    args: &BuildArgs,
    reference: &Reference,
    output: &Path,
    progress: &Display,
) -> Result<Unpacked, Failure> {
    let registry = open(reference, &access(&args.registry))?;
    let digest = match alone(reference)? {
        Some(digest) => digest,
        None => resolve(&*registry, reference).await?,
    };
    let request = ContainerRequest {
        digest,
        platform: args.platform.clone(),
        bytes_max: args.container_limit.0,
        knob: "--container-limit",
    };
    let work = work_folder(output).map_err(|e| Failure::before(Reason::WriteFailed, e))?;
    let image = unpack(&*registry, &request, work.path(), progress).await.map_err(failed)?;
    Ok(Unpacked { image, _work: work })
}

/// A layout folder that holds one image needs no tag to tell which.
fn alone(reference: &Reference) -> Result<Option<crate::digest::Digest>, Failure> {
    let (Source::Layout(folder), None) = (&reference.source, &reference.version) else { return Ok(None) };
    let failed = |e| Failure::before(registry_reason(&e), e);
    let layout = LayoutDir::new(folder);
    if let Some(digest) = layout.only().map_err(failed)? {
        return Ok(Some(digest));
    }
    let tags = layout.tags().map_err(failed)?;
    if tags.is_empty() || tags.iter().any(|tag| tag == "latest") {
        return Ok(None);
    }
    Err(refused(format!("{reference} holds several images: name one of the tags {}", tags.join(", "))))
}

fn failed(error: ContainerError) -> Failure {
    Failure::before(error.reason(), error)
}

/// How the release boots: by what is typed, else by the kernel in the image.
pub(super) fn boot(args: &BuildArgs, image: &Container) -> Result<(BootSource, String), Failure> {
    let packed = args.initrd.is_none() && !args.initrd_from_image;
    let own_modules = packed && args.modules_dir.is_none();
    let found = image.kernel(args.kernel_version.as_deref(), own_modules).map_err(failed)?;
    let initrd = match (&args.initrd, args.initrd_from_image) {
        (Some(file), _) => InitrdSource::File(file.clone()),
        (None, true) => InitrdSource::File(found.initrd.ok_or_else(|| {
            refused(format!(
                "the container image has no initramfs for kernel {0}: neither /usr/lib/modules/{0}/initramfs.img nor \
                 /boot/initrd.img-{0}; leave --initrd-from-image out, and one with `switchback init` is packed",
                found.version
            ))
        })?),
        (None, false) => InitrdSource::Packed(InitramfsRequest {
            init_binary: args.init_binary.clone(),
            modules_dir: args.modules_dir.clone().or(found.modules_dir),
            modules_root: own_modules.then(|| image.root.clone()),
            extra_modules: args.modules.clone(),
        }),
    };
    let boot = BootSource::Kernel {
        kernel: found.kernel,
        initrd,
        devicetree: args.devicetree.clone(),
        cmdline: args.cmdline.clone(),
    };
    Ok((boot, found.version))
}

/// What is said of the working folder is said of the image: nobody knows the folder, and it is gone when it is read of.
pub(super) fn named(failure: Failure, image: Option<&Container>) -> Failure {
    let Some(image) = image else { return failure };
    let detail = failure.why.detail.replace(&image.root.display().to_string(), "the container image");
    Failure { why: Why::new(failure.why.reason, detail), ..failure }
}

/// Product, name and version: as typed, else from the image's labels.
pub(super) fn words(
    args: &BuildArgs,
    image: Option<&Container>,
) -> Result<(String, String, String), Failure> {
    let word = |typed: &Option<String>, flag: &str, label: &str| {
        let labelled = || image.and_then(|image| image.labels.get(label).cloned());
        typed.clone().or_else(labelled).ok_or_else(|| {
            refused(format!("the container image has no label `{label}`, so give --{flag} (or add the label to its recipe)"))
        })
    };
    Ok((
        word(&args.product, "product", PRODUCT_LABEL)?,
        word(&args.name, "name", TITLE_LABEL)?,
        word(&args.version, "version", VERSION_LABEL)?,
    ))
}
