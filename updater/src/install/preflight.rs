//! What is compared with the machine before the first byte is written.
//!
//! Not here: signatures, versions, quarantine. Rule: an error here means that the disk is byte-identical.

use std::path::Path;

use switchback_bootloader::record::Bootloader;
use switchback_partitions::slot::Slot;
use switchback_partitions::verity;

use super::release::Release;
use super::{InstallError, boot_files};
use crate::lifecycle::version;
use crate::reason::Reason;

/// Room in the state folder for the state file and the journal, each twice while it is replaced.
const STATE_ROOM_BYTES: u64 = 128 << 10;

/// What the machine offers to a release.
pub struct Offer<'a> {
    /// The slot that would be written.
    pub slot: Slot,
    /// Bytes of its root partition.
    pub root_bytes: u64,
    /// Bytes of its verity partition.
    pub verity_bytes: u64,
    /// Physical memory in bytes.
    pub ram_bytes: u64,
    /// The bootloader, which knows the room for boot files.
    pub bootloader: &'a dyn Bootloader,
    /// Where boot files are kept until the boot partition has them.
    pub state_dir: &'a Path,
}

/// Refuses a release that would not fit. Gives the bytes of the state folder that an install does not need: what may be kept
/// there besides.
pub fn preflight(release: &Release, offer: &Offer<'_>) -> Result<u64, InstallError> {
    let needs = &release.config.requirements;
    let refuse = |reason, detail: String| Err(InstallError::Requirement { reason, detail });
    if let Some(wanted) = &needs.updater {
        let own = env!("CARGO_PKG_VERSION");
        if version::compare(own, wanted).is_lt() {
            return refuse(
                Reason::UpdaterTooOld,
                format!("the release needs switchback {wanted}, this is {own}"),
            );
        }
    }
    if offer.ram_bytes < needs.ram_bytes {
        let detail =
            format!("it needs {} bytes of memory, the machine has {}", needs.ram_bytes, offer.ram_bytes);
        return refuse(Reason::RamTooSmall, detail);
    }
    for slot in &release.config.slots {
        let tree_bytes = match &slot.verity {
            Some(info) => verity::tree_bytes(&super::verity_params(info)).map_err(InstallError::tree)?,
            None => return Err(InstallError::NoSuchSlot { name: slot.name.clone() }),
        };
        for (what, needed, there) in
            [("root", slot.bytes, offer.root_bytes), ("verity", tree_bytes, offer.verity_bytes)]
        {
            if needed > there {
                let detail = format!("{what}-{} has {there} bytes, the release needs {needed}", offer.slot);
                return refuse(Reason::SlotTooSmall, detail);
            }
        }
    }
    let needed = STATE_ROOM_BYTES + boot_files::missing_bytes(&release.manifest.boot, offer.state_dir);
    // A file system that does not tell is asked by the first write.
    let room = fs4::available_space(offer.state_dir).unwrap_or(u64::MAX);
    if room < needed {
        let detail = format!(
            "{} has {room} bytes free, {needed} are needed until the boot partition has the boot files",
            offer.state_dir.display()
        );
        return refuse(Reason::StateFull, detail);
    }
    let documents = release.passport.documents().into_iter().map(|(_, bytes)| bytes.len() as u64);
    let sizes: Vec<u64> =
        release.manifest.boot.iter().map(|layer| layer.blob.size).chain(documents).collect();
    offer.bootloader.preflight(offer.slot, &sizes)?;
    Ok(room - needed)
}
