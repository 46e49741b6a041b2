//! `image push --patch-from`, `image build --like` and `image diff`: what earlier releases are good for.
//!
//! Not here: how a patch is made (`publish::attach`), what a device does with it. Rule: numbers that are printed are those
//! of the plan that a device makes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Output;
use super::args::{BuildArgs, DiffArgs, PushArgs, RegistryArgs};
use super::image::found;
use super::progress::Display;
use super::render::bytes;
use crate::digest::Digest;
use crate::engine::Failure;
use crate::install::registry_reason;
use crate::progress::{Phase, Progress as _};
use crate::publish::attach::{AttachError, AttachEvent, Attached, attach_patches};
use crate::publish::bind::Part;
use crate::publish::build::ROOT;
use crate::publish::diff::{DiffError, Difference, SlotDifference, diff};
use crate::publish::inspect::ReadError;
use crate::publish::like::{self, Like, LikeError};
use crate::publish::patch::{PatchError, PatchOptions};
use crate::publish::raw_image::{RawImageError, temporary_folder};
use crate::reason::Reason;
use crate::registry::Registry;
use crate::registry::reference::Reference;

/// The releases that are named by `--like`. The raw root of the first one is of use for a root that is made of a folder.
pub(super) async fn like(args: &BuildArgs, output: &Path) -> Result<Like, Failure> {
    let releases = parts(&args.like, &args.registry).await?;
    let like = like::read(&releases, ROOT, output, args.partition.is_none()).await;
    like.map_err(|error| Failure::before(like_reason(&error), error))
}

/// Makes the patches of `--patch-from` and leaves them at the destination.
pub(super) async fn attach(
    args: &PushArgs,
    release: (&dyn Registry, &Digest),
    to: &dyn Registry,
    progress: &Display,
) -> Result<Vec<Attached>, Failure> {
    let bases = parts(&args.patch_from, &args.registry).await?;
    let begun = AtomicBool::new(false);
    let end = || {
        if begun.swap(false, Ordering::Relaxed) {
            progress.end();
        }
    };
    let begin = |phase, bytes| {
        end();
        begun.store(true, Ordering::Relaxed);
        progress.begin(phase, bytes);
    };
    let told = |event| match event {
        AttachEvent::Unpack { bytes } => begin(Phase::Unpack, bytes),
        AttachEvent::Encode { bytes } => begin(Phase::Patch, bytes),
        AttachEvent::Bytes(bytes) => progress.advance(bytes),
    };
    let options = PatchOptions::default();
    let attached = attach_patches(release, &bases, to, &temporary_folder(), &options, &told).await;
    end();
    attached.map_err(|error| Failure::before(attach_reason(&error), error))
}

/// A line for each earlier release.
pub(super) fn lines(attached: &[Attached]) -> String {
    let line = |of: &Attached| match of.patch {
        Some(_) => format!("patch from {}: {}, {} entries\n", of.from, bytes(of.bytes), of.entries),
        None => format!("no patch from {}: none is shorter than the release's own chunks\n", of.from),
    };
    attached.iter().map(line).collect()
}

pub(super) async fn run_diff(args: &DiffArgs) -> Result<Output, Failure> {
    let (from, to) = (part(&args.from, &args.registry).await?, part(&args.to, &args.registry).await?);
    let difference = diff(&from, &to).await;
    let difference = difference.map_err(|error| Failure::before(diff_reason(&error), error))?;
    let json = serde_json::to_value(&difference).unwrap_or_default();
    Ok(Output { text: describe(&difference), json, changed: false, reason: None })
}

fn describe(difference: &Difference) -> String {
    let Difference { from, to, slots, document_bytes, boot_bytes } = difference;
    let mut out = format!("{} {} to {} {}\n", from.name, from.version, to.name, to.version);
    slots.iter().for_each(|slot| out.push_str(&describe_slot(slot)));
    out.push_str(&format!("  documents          {} to fetch\n", bytes(*document_bytes)));
    out.push_str(&format!("  boot files         {} to fetch\n", bytes(*boot_bytes)));
    out
}

fn describe_slot(slot: &SlotDifference) -> String {
    let SlotDifference { name, raw_bytes, whole, chunks, patch, same_place_bytes } = slot;
    let copied = bytes(chunks.copy_bytes);
    let patch = match patch {
        None => "none".to_owned(),
        Some(patch) => format!(
            "{} to fetch (header {}, {} entries), {copied} to copy",
            bytes(patch.header_bytes + patch.cost.fetched()),
            bytes(patch.header_bytes),
            patch.entries
        ),
    };
    format!(
        "  slot {name:<13} {} raw, {} of it zero, {} to write\n    whole            {} to fetch\n    \
         chunks           {} to fetch, {copied} to copy\n    patch            {patch}\n    \
         in place         {} less to write where the slot holds the earlier release, too\n",
        bytes(*raw_bytes),
        bytes(whole.zero_bytes),
        bytes(chunks.write_bytes),
        bytes(whole.fetched()),
        bytes(chunks.fetched()),
        bytes(*same_place_bytes)
    )
}

async fn parts(references: &[Reference], args: &RegistryArgs) -> Result<Vec<Part>, Failure> {
    let mut parts = Vec::new();
    for reference in references {
        parts.push(part(reference, args).await?);
    }
    Ok(parts)
}

async fn part(reference: &Reference, args: &RegistryArgs) -> Result<Part, Failure> {
    let (registry, digest) = found(reference, args).await?;
    Ok(Part { registry, digest })
}

fn read_reason(error: &ReadError) -> Reason {
    match error {
        ReadError::Registry(error) => registry_reason(error),
        _ => Reason::FormatRefused,
    }
}

fn raw_reason(error: &RawImageError) -> Reason {
    match error {
        RawImageError::Registry(error) => registry_reason(error),
        RawImageError::Frame { .. } => Reason::CorruptBlob,
        RawImageError::File(_) => Reason::WriteFailed,
    }
}

fn like_reason(error: &LikeError) -> Reason {
    match error {
        LikeError::Release { source, .. } => read_reason(source),
        LikeError::Blob(error) => registry_reason(error),
        LikeError::Root(error) => raw_reason(error),
    }
}

fn attach_reason(error: &AttachError) -> Reason {
    match error {
        AttachError::Release { source, .. } => read_reason(source),
        AttachError::Same { .. } => Reason::NotSupported,
        AttachError::Unpack(error) => raw_reason(error),
        AttachError::Patch(PatchError::Read { .. } | PatchError::Write { .. }) => Reason::WriteFailed,
        AttachError::Patch(_) => Reason::Internal,
        AttachError::Push { source, .. } => registry_reason(source),
    }
}

fn diff_reason(error: &DiffError) -> Reason {
    match error {
        DiffError::Release { source, .. } => read_reason(source),
        DiffError::Patches { source, .. } => registry_reason(source),
        DiffError::Header(_) => Reason::FormatRefused,
    }
}
