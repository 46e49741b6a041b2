//! The update whose disk is replayed: recorded once, kept when a disk that it left does not start.
//!
//! Rule: nothing of the recording is written once it is there; what is booted are copies.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use switchback::digest::Digest;
use switchback_tests::lab::fixtures::Lab;
use switchback_tests::lab::rebuilt::Recording;
use switchback_tests::lab::release::{Loader, Recipe, Temper};
use switchback_tests::lab::tools;

use crate::good;
use crate::scene::Scene;

/// The recording's name among those that failed.
pub const NAME: &str = "boot_replay";

/// The release that is on the disk before the story.
pub const OLD: &str = "1.0";
/// The release that it moves to.
pub const NEW: &str = "1.1";

/// The disk before its first start.
const IMAGE: &str = "base.img";
const LOG: &str = "writes.log";

/// Room for more than all that the story writes; a file with nothing in it takes no room.
const LOG_BYTES: u64 = 8 << 30;

/// Plays a good update from the first start to the orderly switching off, and writes down what reaches the disk.
pub fn record(scene: &mut Scene) -> Result<Recording> {
    let disk = scene.bring(|disk, lab| lab.disk(&Recipe::new(OLD, Temper::Good), Loader::V252, disk))?;
    let (image, log) = (scene.folder().join(IMAGE), scene.folder().join(LOG));
    tools::copy_image(&disk, &image)?;
    std::fs::File::create(&log)?.set_len(LOG_BYTES)?;
    let noted = log.clone();
    scene.rebuild(|hardware| hardware.write_log = Some(noted))?;
    scene.power_on()?;
    scene.expect_ready(OLD)?;
    good::from_first_start(scene, &Recipe::new(NEW, Temper::Good)).context("while recording the update")?;
    let recording = Recording::open(&image, &log)?;
    // What was written and is not in the log would make every later disk a disk that never was.
    recording.is_all_of(&disk)?;
    Ok(recording)
}

/// The recording that a failed run left.
pub fn kept() -> Option<Result<Recording>> {
    let folder = tools::lab_folder().join("failed").join(NAME);
    let open = |folder: &Path| Recording::open(&folder.join(IMAGE), &folder.join(LOG));
    folder.join(LOG).is_file().then(|| open(&folder))
}

/// The digests that the boot files of the new release have to have.
pub fn boot_files(lab: &Lab) -> Result<BTreeMap<String, Digest>> {
    let digests = lab.boot_files(&Recipe::new(NEW, Temper::Good))?;
    ensure!(!digests.is_empty(), "the release has no boot files");
    Ok(digests)
}
