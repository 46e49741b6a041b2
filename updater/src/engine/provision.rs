//! A blank disk made bootable from a release: the same install as an update, into slot A of a disk that nobody runs.
//!
//! Not here: partition table and file systems (`partitions::provision`). Rule: release, sizes and loader are checked
//! before the first write; afterwards slot A is filled, proven and confirmed, slot B is empty.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use switchback_bootloader::esp::FatEsp;
use switchback_bootloader::record::Bootloader;
use switchback_bootloader::systemd_boot::SystemdBoot;
use switchback_bootloader::systemd_boot::loader::install_loader;
use switchback_bootloader::systemd_boot::pe;
use switchback_partitions::device::BlockDevice;
use switchback_partitions::device::disk::{BlockDisk, Disk, ImageDisk};
use switchback_partitions::inactive_slot::InactiveSlot;
use switchback_partitions::layout::DiskLayout;
use switchback_partitions::provision::{self as disk_plan, Existing, Plan, ProvisionError};
use switchback_partitions::slot::{RunningSlot, Slot};

use super::source::{open, policy_of, resolve};
use super::{Failure, NOTHING_CHANGED};
use crate::host::bounded::read_bounded;
use crate::host::state_dir::Folder;
use crate::install::{Install, InstallError, Release, ReleaseName, Survey, Target, Traffic};
use crate::progress::Progress;
use crate::reason::{Reason, Why};
use crate::registry::RegistryAccess;
use crate::registry::reference::Reference;

/// Bound of a loader binary in bytes; systemd-boot's has about 150 KiB.
const LOADER_BYTES_MAX: u64 = 16 * 1024 * 1024;
const NOT_WHOLE: &str = "The target was begun and is not whole: run the same command again with --force.";

/// What `provision` was asked.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Whole disk or image file.
    pub target: PathBuf,
    /// Size of an image file that is to be made, in bytes.
    pub size: Option<u64>,
    /// The release for slot A.
    pub release: Reference,
    /// Key files.
    pub trust: Vec<PathBuf>,
    /// How many distinct keys.
    pub threshold: usize,
    /// Bytes of a root slot; default: a quarter of the disk.
    pub slot_bytes: Option<u64>,
    /// Bytes of the ESP; default: 128 MiB, or room for three sets of boot files.
    pub esp_bytes: Option<u64>,
    /// Bytes of the state partition.
    pub state_bytes: Option<u64>,
    /// Sector size of an image file.
    pub sector_bytes: u32,
    /// The systemd-boot binary.
    pub loader: PathBuf,
    /// How registries are reached.
    pub access: RegistryAccess,
    /// Overwrite a disk that holds a partition table.
    pub force: bool,
    /// Only plan.
    pub dry_run: bool,
}

/// What `provision` did, or would do.
#[derive(Debug, Clone, Serialize)]
pub struct Provisioned {
    /// The disk.
    pub target: PathBuf,
    /// False for a plan.
    pub done: bool,
    /// The release in slot A.
    pub release: ReleaseName,
    /// Each partition: name, first byte, bytes.
    pub partitions: Vec<(String, u64, u64)>,
    /// What writing slot A cost.
    pub traffic: Traffic,
}

/// Plans, and unless it is a dry run makes, the disk.
pub fn provision(wish: &Wish, progress: &dyn Progress) -> Result<Provisioned, Failure> {
    let existing = if wish.force { Existing::Overwrite } else { Existing::Refuse };
    provision_with(wish, progress, &|plan| {
        let disk = make_disk(wish)?;
        let layout = plan.execute(&*disk, existing).map_err(refused)?;
        Ok((disk, layout))
    })
}

/// A disk that was made by a plan, and its layout as read back from it.
pub type Made = (Arc<dyn Disk>, DiskLayout);

/// The same on a disk that `execute` makes by the plan.
pub fn provision_with(
    wish: &Wish,
    progress: &dyn Progress,
    execute: &dyn Fn(&Plan) -> Result<Made, Failure>,
) -> Result<Provisioned, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Failure::before(Reason::Internal, e))?;
    let policy = policy_of(&wish.trust, wish.threshold)?;
    let registry = open(&wish.release, &wish.access)?;
    let failed = |error: InstallError| Failure::before(error.reason(), error);
    let digest = runtime.block_on(resolve(&*registry, &wish.release))?;
    let release = runtime.block_on(Release::fetch(&*registry, digest, &policy)).map_err(failed)?;
    let state = tempfile::tempdir().map_err(io)?;
    let state_dir = Folder::new(state.path());
    // A new disk has nothing of the release.
    let empty = Survey { state_dir: &state_dir, target: Slot::A, grounds: Vec::new(), keep: false };
    let surveyed = empty.of(&release, &*registry, runtime.handle(), progress).map_err(failed)?;
    let loader = loader(&wish.loader)?;

    let plan = Plan::new(&disk_request(wish, &release)?).map_err(refused)?;
    let mut answer = Provisioned {
        target: wish.target.clone(),
        done: false,
        release: release.name(),
        partitions: plan.summary().into_iter().map(|part| (part.name, part.offset, part.bytes)).collect(),
        traffic: Traffic::default(),
    };
    if wish.dry_run {
        return Ok(answer);
    }
    let (disk, layout) = execute(&plan)?;
    let esp: Arc<dyn BlockDevice> = disk.partition(&layout.esp).map_err(io)?;
    let esp = Arc::new(FatEsp::new(esp));
    install_loader(&*esp, &loader, pe::Machine::host()).map_err(|e| written(InstallError::from(e)))?;
    let bootloader = Arc::new(SystemdBoot::new(esp, pe::Machine::host()));
    // Nobody runs this disk: "slot B runs" is what makes slot A the one that may be written.
    let running = RunningSlot { slot: Slot::B, confirmed: true };
    let slot =
        InactiveSlot::open(disk, &layout, running).map_err(|e| Failure::before(Reason::SlotInUse, e))?;
    let target = Target { slot, bootloader: bootloader.clone(), state_dir: &state_dir };
    answer.traffic = Install::clear(release, target)
        .and_then(|cleared| cleared.write(&*registry, &surveyed, runtime.handle(), progress))
        .and_then(|written| written.prove(progress))
        .and_then(|proven| proven.arm(1))
        .map_err(written)?;
    let confirmed = bootloader.read().and_then(|state| bootloader.write(&state.confirm(Slot::A)));
    confirmed.map_err(|e| written(InstallError::from(e)))?;
    answer.done = true;
    Ok(answer)
}

fn make_disk(wish: &Wish) -> Result<Arc<dyn Disk>, Failure> {
    let block = std::fs::metadata(&wish.target).is_ok_and(|meta| !meta.is_file());
    if block {
        return Ok(Arc::new(BlockDisk::open(&wish.target).map_err(io)?));
    }
    if let Some(size) = wish.size {
        let file = std::fs::File::create_new(&wish.target).map_err(io)?;
        file.set_len(size).map_err(io)?;
    }
    Ok(Arc::new(ImageDisk::open(&wish.target, wish.sector_bytes).map_err(io)?))
}

fn disk_request(wish: &Wish, release: &Release) -> Result<disk_plan::Request, Failure> {
    let (disk_bytes, sector_bytes) = match (std::fs::metadata(&wish.target), wish.size) {
        (Ok(meta), None) if meta.is_file() => (meta.len(), wish.sector_bytes),
        (Ok(_), None) => {
            let whole = BlockDisk::open(&wish.target).and_then(|disk| disk.whole()).map_err(io)?;
            (whole.len(), whole.sector_bytes())
        }
        (Ok(_), Some(_)) => {
            let detail = "the target exists; --size is for a new image file: leave it out, and say --force to \
                          overwrite what is there";
            return Err(unable(detail.into()));
        }
        (Err(_), Some(size)) => (size, wish.sector_bytes),
        (Err(error), None) => {
            return Err(unable(format!(
                "while opening {}: {error}; a new image file needs --size",
                wish.target.display()
            )));
        }
    };
    let mut request = disk_plan::Request::usual(disk_bytes, sector_bytes);
    let boot_bytes: u64 = release.manifest.boot.iter().map(|layer| layer.blob.size).sum();
    let root_bytes = release.config.slots.iter().map(|slot| slot.bytes).max().unwrap_or(0);
    // Two sets of boot files, and room for the next kernel to be larger.
    request.esp_bytes = wish.esp_bytes.unwrap_or(request.esp_bytes.max(3 * boot_bytes));
    request.slot_bytes = wish.slot_bytes.unwrap_or(request.slot_bytes.max(root_bytes));
    request.state_bytes = wish.state_bytes.unwrap_or(request.state_bytes.max(2 * boot_bytes));
    if request.slot_bytes < root_bytes {
        let detail =
            format!("the release needs slots of {root_bytes} bytes, {} were asked for", request.slot_bytes);
        return Err(Failure::refused(Why::new(Reason::SlotTooSmall, detail)));
    }
    Ok(request)
}

fn loader(path: &Path) -> Result<Vec<u8>, Failure> {
    match read_bounded(path, LOADER_BYTES_MAX) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(unable(format!(
            "there is no loader at {}: install the package systemd-boot-efi, or name one with --loader",
            path.display()
        ))),
        Err(error) => Err(unable(format!("while reading {}: {error}", path.display()))),
    }
}

fn unable(detail: String) -> Failure {
    Failure::refused(Why::new(Reason::NotSupported, detail))
}

/// What a disk's refusal, or its failure, is to the person who asked.
pub fn refused(error: ProvisionError) -> Failure {
    let reason = match &error {
        ProvisionError::Io { .. } | ProvisionError::Table(_) | ProvisionError::ProgramFailed { .. } => {
            Reason::WriteFailed
        }
        ProvisionError::InUse => Reason::SlotInUse,
        _ => Reason::NotSupported,
    };
    match reason {
        Reason::WriteFailed => Failure { why: Why::new(reason, super::chain(&error)), untouched: NOT_WHOLE },
        _ => Failure::before(reason, error),
    }
}

fn io(error: std::io::Error) -> Failure {
    Failure { why: Why::new(Reason::WriteFailed, error.to_string()), untouched: NOTHING_CHANGED }
}

fn written(error: InstallError) -> Failure {
    Failure { why: Why::new(error.reason(), super::chain(&error)), untouched: NOT_WHOLE }
}
