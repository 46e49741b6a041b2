//! What every simulated machine begins with: signed releases in a folder, and a disk that the real program provisioned.
//!
//! Not here: what is tried with it. Rule: everything is made once by the real `switchback`, then only read; it is as small
//! as the formats allow, so that an update is hundreds of steps and not tens of thousands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustc_hash::FxHashSet;
use switchback::config::{self, Config, Expect, Probe};
use switchback::engine::provision::Wish;
use switchback::registry::RegistryAccess;
use switchback_bootloader::record::BootFileKind;
use switchback_bootloader::systemd_boot::pe::{Machine as Pe, sample};
use switchback_partitions::device::{Access, FileDevice};
use switchback_partitions::gpt::Table;
use switchback_partitions::layout::{DiskLayout, Extent};
use switchback_partitions::slot::Slot;
use switchback_partitions::verity::{VerityParams, tree_bytes};

use super::image::{Base, Image};
use super::recorder::{BOOT_BEGINS_BYTES, Guard};
use crate::scene::Scene;
use crate::small_release::{SmallRelease, noise};

/// Bytes of each root file system.
const ROOT_BYTES: u64 = 256 << 10;
/// The releases: version, security version.
const RELEASES: [(&str, &str); 3] = [("1.0", "1"), ("1.1", "2"), ("1.2", "2")];
/// A file that a root has when its health check passes.
const WELL: &str = "well";

/// One release.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its version.
    pub version: &'static str,
    /// Compared with the floor.
    pub security_version: u64,
    /// The hash of its root's tree, in hex digits, as the boot entry names it.
    pub root_hash: String,
}

/// The prepared world.
pub struct Site {
    scene: Scene,
    /// Bytes of a sector.
    pub sector_bytes: usize,
    /// The disk with 1.0 in slot A, confirmed.
    pub fresh: Image,
    /// The disk before that: nothing is on it.
    pub blank: Image,
    /// Where the parts of the disk lie.
    pub layout: DiskLayout,
    /// The releases in the order of their versions.
    pub releases: Vec<Known>,
    /// Kernel and initramfs of every release: name and content.
    pub boot_files: [(&'static str, Vec<u8>); 2],
    boot_begins: Arc<FxHashSet<Vec<u8>>>,
}

impl Site {
    /// Builds releases and disk for sectors of 512 or 4096 bytes.
    pub fn new(sector_bytes: usize) -> Result<Site> {
        let scene = Scene::new()?;
        let (kernel, initrd) = (sample(Pe::host(), &noise(1, 1500)), noise(2, 900));
        std::fs::write(scene.desk.path("vmlinuz"), &kernel)?;
        std::fs::write(scene.desk.path("initrd"), &initrd)?;
        let mut releases = Vec::new();
        for (version, security_version) in RELEASES {
            let image =
                scene.desk.root_image(&SmallRelease { version, healthy: true, root_bytes: ROOT_BYTES })?;
            scene.desk.build_partition(version, &image, &["--security-version", security_version])?;
            scene.desk.sign(&scene.desk.reference(version), &[])?;
            let shown = scene.desk.run(&["image", "inspect", &scene.desk.reference(version)])?;
            let root_hash = root_hash(&shown).with_context(|| format!("no root hash in {shown}"))?;
            releases.push(Known { version, security_version: security_version.parse()?, root_hash });
        }
        for root in ["well", "unwell"] {
            std::fs::create_dir_all(scene.folder().join(root))?;
        }
        std::fs::write(scene.folder().join("well").join(WELL), "")?;
        let disk = provision(&scene, sector_bytes)?;
        let base = Base::of_file(&disk, sector_bytes)?;
        let device = FileDevice::open_image(&disk, Access::Read, sector_bytes as u32)?;
        let layout = DiskLayout::discover(&Table::read(&device)?)?;
        let (blank, fresh) = (Image::new(Arc::new(base.blank())), Image::new(Arc::new(base)));
        std::fs::remove_file(&disk)?;
        let boot_files =
            [(BootFileKind::Linux.file_name(), kernel), (BootFileKind::Initrd.file_name(), initrd)];
        let sectors = boot_files.iter().flat_map(|(_, file)| file.chunks(sector_bytes));
        let begins = sectors.filter_map(|sector| Some(sector.get(..BOOT_BEGINS_BYTES)?.to_vec()));
        let boot_begins = Arc::new(begins.collect());
        Ok(Site { scene, sector_bytes, fresh, blank, layout, releases, boot_files, boot_begins })
    }

    /// The folder that stands for a running root: one that is well, or one that is not.
    pub fn root(&self, well: bool) -> PathBuf {
        self.scene.folder().join(if well { "well" } else { "unwell" })
    }

    /// A folder for what need not survive a power cut.
    pub fn scratch(&self) -> Result<tempfile::TempDir> {
        let memory = Path::new("/dev/shm");
        let within = if memory.is_dir() { memory } else { self.scene.folder() };
        Ok(tempfile::Builder::new().prefix("switchback-cut-").tempdir_in(within)?)
    }

    /// The machine's configuration when it looks for `version`.
    pub fn config(&self, version: &str) -> Config {
        let key = self.scene.desk.path("os.pub");
        let mut config = Config::default();
        config.source.image = Some(self.scene.desk.reference(version));
        config.trust.policy.os = Some(config::TrustPolicy { keys: vec![key], threshold: 1 });
        config.machine.product = Some("demo".into());
        config.health.checks = vec![config::Check {
            name: "well".into(),
            probe: Probe::File { path: WELL.into(), expect: Expect::Exists },
            timeout: std::time::Duration::from_secs(5),
            interval: std::time::Duration::from_millis(1),
            retries: 0,
            soak: std::time::Duration::ZERO,
        }];
        config
    }

    /// The order by which the disk was made, and is made again over whatever is there.
    pub fn wish(&self, scratch: &Path) -> Result<Wish> {
        let sizes = sizes(self.sector_bytes);
        Ok(Wish {
            target: scratch.join("not-there"),
            size: Some(sizes.disk_bytes),
            release: self.scene.desk.reference("1.0").parse()?,
            trust: vec![self.scene.desk.path("os.pub")],
            threshold: 1,
            slot_bytes: Some(sizes.slot_bytes),
            esp_bytes: Some(sizes.esp_bytes),
            state_bytes: Some(sizes.state_bytes),
            sector_bytes: self.sector_bytes as u32,
            loader: self.scene.desk.path("loader.efi"),
            access: RegistryAccess::default(),
            force: true,
            dry_run: false,
        })
    }

    /// The release with that hash in its boot entry.
    pub fn by_root_hash(&self, root_hash: &str) -> Option<&Known> {
        self.releases.iter().find(|release| release.root_hash == root_hash)
    }

    /// The release with that version.
    ///
    /// # Panics
    /// When the site has none.
    #[expect(clippy::expect_used, reason = "scenarios name the releases of this file")]
    pub fn release(&self, version: &str) -> &Known {
        self.releases.iter().find(|release| release.version == version).expect("a release of the site")
    }

    /// Where each slot lies, and what of it a release fills.
    pub fn guard(&self) -> Result<Guard> {
        let params = VerityParams {
            salt: vec![0; 32],
            uuid: uuid::Uuid::nil(),
            data_block_bytes: 4096,
            hash_block_bytes: 4096,
            data_blocks: ROOT_BYTES / 4096,
        };
        let tree_bytes = tree_bytes(&params)?;
        let row_bytes = self.sector_bytes as u64;
        let rows = |extent: &Extent, from: u64, to: u64| {
            (extent.offset + from) / row_bytes..(extent.offset + to) / row_bytes
        };
        let slots = Slot::ALL.map(|slot| {
            let parts = self.layout.slot(slot);
            vec![rows(&parts.root, 0, parts.root.len), rows(&parts.verity, 0, parts.verity.len)]
        });
        // Of the superblock's block nothing but its first sector is anything.
        let content = Slot::ALL.map(|slot| {
            let parts = self.layout.slot(slot);
            vec![rows(&parts.root, 0, ROOT_BYTES), rows(&parts.verity, 4096, tree_bytes)]
        });
        Ok(Guard { slots, content, boot: self.boot_begins.clone(), running: None, confirmed: false })
    }
}

/// A disk with 1.0 in slot A, as small as its sectors allow.
fn provision(scene: &Scene, sector_bytes: usize) -> Result<PathBuf> {
    let key = scene.desk.path("os.pub");
    let machine = scene.machine(&scene.desk.reference("1.0"), &[&key], "")?;
    let sizes = sizes(sector_bytes);
    let words = [
        ("--size", sizes.disk_bytes),
        ("--slot-size", sizes.slot_bytes),
        ("--esp-size", sizes.esp_bytes),
        ("--state-size", sizes.state_bytes),
        ("--sector-size", sector_bytes as u64),
    ];
    let words = words.map(|(word, number)| [word.to_owned(), number.to_string()]);
    let words: Vec<&str> = words.iter().flatten().map(String::as_str).collect();
    scene.provision(&machine, &scene.desk.reference("1.0"), &key, &words)?;
    Ok(machine.disk())
}

/// The parts of a disk, in bytes: as small as its sectors allow.
struct Sizes {
    disk_bytes: u64,
    slot_bytes: u64,
    esp_bytes: u64,
    state_bytes: u64,
}

fn sizes(sector_bytes: usize) -> Sizes {
    let (disk, esp) = if sector_bytes == 512 { (96, 36) } else { (330, 264) };
    Sizes { disk_bytes: disk << 20, slot_bytes: 1 << 20, esp_bytes: esp << 20, state_bytes: 16 << 20 }
}

fn root_hash(shown: &serde_json::Value) -> Option<String> {
    shown["slots"][0]["verity_root"].as_str().map(str::to_owned)
}
