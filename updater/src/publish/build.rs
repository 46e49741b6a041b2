//! `image build`: a root and a way to boot it → a release in an OCI layout folder.
//!
//! Not here: how a root folder becomes an image (`rootfs`), how it is cut into chunks (`layer`), signing, sending. Rule:
//! the same inputs give the same digest; the folder holds either the whole release under its tag or nothing under it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use switchback_bootloader::record::BootFileKind;
use switchback_partitions::verity::{self, VerityError, VerityParams};
use uuid::Uuid;

use super::initramfs::{self, InitramfsError, InitramfsRequest};
use super::layer::{self, LayerError, LayerOptions};
use super::like::Like;
use super::modules::Selection;
use super::rootfs::{self, BLOCK_BYTES, MadeRoot, RootOptions, RootfsError};
use super::uki::{self, ROOTHASH_WORD, UkiError};
use crate::digest::Digest;
use crate::file::{self, FileError};
use crate::image::config::{ConfigError, Kind, OsConfig, Requirements, SCHEMA, SlotContent, VerityInfo};
use crate::image::manifest::{
    self, BOOT_FILE_BYTES_MAX, BootLayer, CONFIG_MEDIA_TYPE, CREATED_ANNOTATION, MANIFEST_MEDIA_TYPE,
    ManifestError, OsManifest, SlotLayer, TITLE_ANNOTATION, VERSION_ANNOTATION,
};
use crate::registry::layout_dir::LayoutDir;
use crate::registry::{self, Registry, RegistryError};

/// The first updater that understands what is built here: it moves when the format gains something older ones lack.
const UPDATER_MIN: &str = "0.1.0";
/// The one slot partition of an OS image.
pub(crate) const ROOT: &str = "root";
/// Two blocks: a dm-verity tree over one block has no block of its own to know the slot by.
const ROOT_BYTES_MIN: u64 = 2 * BLOCK_BYTES;

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Which product it is for; machines take only their own.
    pub product: String,
    /// Title for people and boot menus.
    pub name: String,
    /// Version, and the tag where `tag` is `None`.
    pub version: String,
    /// Rises when going back would be dangerous.
    pub security_version: u64,
    /// Hardware it runs on; empty: any.
    pub compatible: Vec<String>,
    /// Memory it needs, in bytes; 0: any.
    pub ram_bytes: u64,
    /// The root file system.
    pub root: RootSource,
    /// Takes a root folder without the contract file.
    pub foreign: bool,
    /// Packed kernel modules of a root folder stay packed.
    pub keep_compressed_modules: bool,
    /// How it boots.
    pub boot: BootSource,
    /// dm-verity's salt; from the contents when `None`.
    pub verity_salt: Option<Vec<u8>>,
    /// Compression level of the chunks, 1 to 19.
    pub level: i32,
    /// Earlier releases of it, so that an update from one of them fetches and writes less.
    pub like: Like,
    /// The OCI layout folder; made when missing, added to when there.
    pub output: PathBuf,
    /// The tag in that folder; the version when `None`.
    pub tag: Option<String>,
}

/// Where the root comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A finished file system image.
    Partition(PathBuf),
    /// A folder, to become EROFS.
    Folder(PathBuf),
}

/// How the release boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootSource {
    /// A unified kernel image that carries the root hash of this root.
    Uki(PathBuf),
    /// A kernel with an initramfs.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// Its initramfs.
        initrd: InitrdSource,
        /// Its device tree.
        devicetree: Option<PathBuf>,
        /// Its command line, without the root hash.
        cmdline: String,
    },
}

/// Where the initramfs comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitrdSource {
    /// The author's own.
    File(PathBuf),
    /// One with `switchback init`.
    Packed(InitramfsRequest),
}

/// What is being done now, for a progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildStep {
    /// The root folder becomes an image.
    Root,
    /// The dm-verity root hash is computed.
    Verity,
    /// The initramfs is packed.
    Initramfs,
    /// The root is cut into chunks and compressed: raw bytes done, of all.
    Chunks {
        /// Raw bytes done.
        done: u64,
        /// Raw bytes of the root.
        total: u64,
    },
    /// The release is put into the folder.
    Store,
}

/// Told of each step as it begins, and of bytes within it.
pub type Progress = Arc<dyn Fn(BuildStep) + Send + Sync>;

/// A release in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The manifest's digest: what is signed.
    pub digest: Digest,
    /// The OCI layout folder.
    pub layout: PathBuf,
    /// The tag there.
    pub tag: String,
    /// The root image, in raw bytes.
    pub root_bytes: u64,
    /// All blobs of the release, in bytes: what a first download takes.
    pub stored_bytes: u64,
    /// The dm-verity root hash, 64 hexadecimal digits.
    pub roothash: String,
    /// The whole kernel command line.
    pub cmdline: String,
    /// Modules of the packed initramfs, when one was packed.
    pub modules: Option<Selection>,
    /// What became of the root folder on its way into the image, and of the earlier release's frames, a sentence each.
    pub notes: Vec<String>,
}

/// Why there is no release. Nothing is under the tag; what was there before still is.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The root folder.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The initramfs.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// The UKI.
    #[error(transparent)]
    Uki(#[from] UkiError),
    /// Product, name, version or another field of the config.
    #[error("while describing the release")]
    Config(#[from] ConfigError),
    /// Manifest and config do not fit each other.
    #[error("while describing the release")]
    Manifest(#[from] ManifestError),
    /// The command line already names a root.
    #[error(
        "while checking the command line: leave `{ROOTHASH_WORD}…` out, it is added with the root hash of this root"
    )]
    RoothashGiven,
    /// An empty root image.
    #[error("while reading the root {path}: it is empty")]
    EmptyRoot {
        /// The partition image.
        path: PathBuf,
    },
    /// Somebody wrote to the root image during the build.
    #[error(
        "while reading the root {path}: it changed during the build; build again when nothing writes to it"
    )]
    RootChanged {
        /// The partition image.
        path: PathBuf,
    },
    /// An input or a working file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The dm-verity root hash could not be computed, e.g. with this salt.
    #[error("while computing the root hash")]
    Verity(#[from] VerityError),
    /// The root could not be cut into chunks.
    #[error("while cutting the root into chunks")]
    Layer(#[from] LayerError),
    /// The folder could not be written.
    #[error("while writing the release to its folder")]
    Store(#[from] RegistryError),
    /// The work ended early.
    #[error("while building: the work was stopped")]
    Stopped(#[from] tokio::task::JoinError),
}

/// Builds the release and leaves it in the layout folder under its tag.
pub async fn build(request: BuildRequest, progress: Progress) -> Result<Built, BuildError> {
    let layout = LayoutDir::new(&request.output);
    let tag = request.tag.clone().unwrap_or_else(|| request.version.clone());
    let output = request.output.clone();
    let told = progress.clone();
    let staged = tokio::task::spawn_blocking(move || stage(&request, &told)).await??;
    progress(BuildStep::Store);
    let digest = store(&layout, &tag, &staged).await?;
    Ok(Built {
        digest,
        layout: output,
        tag,
        root_bytes: staged.config.slots.iter().map(|slot| slot.bytes).sum(),
        stored_bytes: staged.manifest.descriptors().map(|blob| blob.size).sum(),
        roothash: staged.roothash,
        cmdline: staged.cmdline,
        modules: staged.modules,
        notes: staged.notes,
    })
}

/// The dm-verity root hash that `build` would give this root, to make a UKI with.
pub fn roothash(root: &RootSource, foreign: bool, verity_salt: Option<&[u8]>) -> Result<String, BuildError> {
    let work = work_folder(&std::env::temp_dir())?;
    let (root, _) = RootImage::make(root, foreign, work.path(), &RootOptions::default())?;
    Ok(hex::encode(root.verity(verity_salt)?.root))
}

/// Everything made and checked, waiting in a working folder.
struct Staged {
    config: OsConfig,
    manifest: OsManifest,
    slot_blob: PathBuf,
    index: Vec<u8>,
    boot: Vec<(BootLayer, Vec<u8>)>,
    roothash: String,
    cmdline: String,
    modules: Option<Selection>,
    notes: Vec<String>,
    /// Holds `slot_blob`; emptied when this is dropped.
    _work: tempfile::TempDir,
}

/// The cheap refusals come first and the minutes of compression last.
fn stage(request: &BuildRequest, progress: &Progress) -> Result<Staged, BuildError> {
    check_words(request)?;
    let work = work_folder(&request.output)?;
    progress(BuildStep::Root);
    let options = RootOptions {
        previous: request.like.root.as_ref().map(|root| root.path()),
        keep_compressed_modules: request.keep_compressed_modules,
    };
    let (root, made) = RootImage::make(&request.root, request.foreign, work.path(), &options)?;
    progress(BuildStep::Verity);
    let verity = root.verity(request.verity_salt.as_deref())?;
    let roothash = hex::encode(verity.root);
    progress(BuildStep::Initramfs);
    let boot = BootSet::read(&request.boot, &roothash)?;

    let slot_blob = work.path().join("root.zst");
    let layer = write_slot(&root, &slot_blob, request, progress)?;
    let content = SlotContent {
        name: ROOT.into(),
        bytes: layer.raw_bytes,
        sha256: layer.raw_sha256,
        verity: Some(verity),
    };
    let notes = made.iter().flat_map(MadeRoot::notes).chain(taken_note(&request.like, &layer)).collect();
    let config = describe(request, content, &boot);
    config.check()?;
    let manifest = name_blobs(&config, &layer, &boot);
    manifest.check_config(&config)?;
    let BootSet { files, cmdline, modules, .. } = boot;
    let boot = manifest.boot.iter().cloned().zip(files.into_iter().map(|(_, bytes)| bytes)).collect();
    Ok(Staged {
        config,
        manifest,
        slot_blob,
        index: layer.index,
        boot,
        roothash,
        cmdline,
        modules,
        notes,
        _work: work,
    })
}

/// Whether the frames of an earlier release were taken over.
fn taken_note(like: &Like, layer: &layer::Layer) -> Option<String> {
    like.frames.as_ref()?;
    Some(match layer.taken {
        Some(taken) => format!(
            "{taken} of {} frames are taken from the earlier release as they are, the others compressed.",
            layer.statistics.frames
        ),
        None => "The earlier release was compressed at another level or by another zstd: every frame is compressed anew."
            .into(),
    })
}

/// Refuses what the author mistyped before anything is read.
fn check_words(request: &BuildRequest) -> Result<(), BuildError> {
    if let BootSource::Kernel { cmdline, .. } = &request.boot
        && cmdline.contains(ROOTHASH_WORD)
    {
        return Err(BuildError::RoothashGiven);
    }
    let content =
        SlotContent { name: ROOT.into(), bytes: BLOCK_BYTES, sha256: Digest::of(&[]), verity: None };
    let nothing = BootSet { files: Vec::new(), cmdline: String::new(), in_config: false, modules: None };
    Ok(describe(request, content, &nothing).check()?)
}

/// Beside the output, where there is room for a release: `/tmp` may be memory.
pub(crate) fn work_folder(output: &Path) -> Result<tempfile::TempDir, FileError> {
    std::fs::create_dir_all(output).map_err(FileError::of("making", output))?;
    tempfile::Builder::new()
        .prefix(".build-")
        .tempdir_in(output)
        .map_err(FileError::of("making a folder in", output))
}

/// A root image on disk, its length and the hash of what a slot will hold.
struct RootImage {
    path: PathBuf,
    file_bytes: u64,
    /// `file_bytes` up to whole blocks, at least two.
    bytes: u64,
    sha256: Digest,
}

impl RootImage {
    /// `options` are for a root folder; what came of them is told beside the image.
    fn make(
        root: &RootSource,
        foreign: bool,
        work: &Path,
        options: &RootOptions<'_>,
    ) -> Result<(RootImage, Option<MadeRoot>), BuildError> {
        let mut made = None;
        let path = match root {
            RootSource::Partition(path) => path.clone(),
            RootSource::Folder(path) => {
                if !foreign {
                    rootfs::check_contract(path)?;
                }
                let image = work.join("root.erofs");
                made = Some(rootfs::make_root(path, &image, options)?);
                image
            }
        };
        // Of a block device the metadata gives no length.
        let file_bytes = File::open(&path).and_then(|mut file| file.seek(SeekFrom::End(0)));
        let file_bytes = file_bytes.map_err(FileError::of("reading", &path))?;
        if file_bytes == 0 {
            return Err(BuildError::EmptyRoot { path });
        }
        let bytes = file_bytes.next_multiple_of(BLOCK_BYTES).max(ROOT_BYTES_MIN);
        let mut image = RootImage { path, file_bytes, bytes, sha256: Digest::of(&[]) };
        let sha256 = file::sha256(image.reader()?).map_err(FileError::of("reading", &image.path))?;
        image.sha256 = Digest::from_raw(sha256);
        Ok((image, made))
    }

    /// The raw bytes, in whole blocks.
    fn reader(&self) -> Result<impl Read + Send + use<>, FileError> {
        let file = File::open(&self.path).map_err(FileError::of("reading", &self.path))?;
        let padding = io::repeat(0).take(self.bytes - self.file_bytes);
        Ok(file.take(self.file_bytes).chain(padding))
    }

    /// Salt and UUID follow from the contents: random ones would give every build another digest.
    fn verity(&self, salt: Option<&[u8]>) -> Result<VerityInfo, BuildError> {
        let salt = salt.map_or_else(|| self.sha256.raw().to_vec(), <[u8]>::to_vec);
        let params = VerityParams {
            uuid: Uuid::new_v5(&Uuid::NAMESPACE_OID, self.sha256.raw()),
            salt,
            data_block_bytes: BLOCK_BYTES as u32,
            hash_block_bytes: BLOCK_BYTES as u32,
            data_blocks: self.bytes / BLOCK_BYTES,
        };
        let root = verity::root_hash_of(&params, self.reader()?)?;
        let VerityParams { salt, uuid, data_block_bytes, hash_block_bytes, data_blocks } = params;
        Ok(VerityInfo { root: root.0, salt, uuid, data_block_bytes, hash_block_bytes, data_blocks })
    }
}

/// The boot files in memory (some tens of MiB) and the command line they start with.
struct BootSet {
    files: Vec<(BootFileKind, Vec<u8>)>,
    cmdline: String,
    /// The command line belongs into the config; a UKI carries its own.
    in_config: bool,
    modules: Option<Selection>,
}

impl BootSet {
    fn read(source: &BootSource, roothash: &str) -> Result<BootSet, BuildError> {
        let read = |path: &Path| file::read(path, BOOT_FILE_BYTES_MAX);
        match source {
            BootSource::Uki(path) => {
                let bytes = read(path)?;
                let cmdline = uki::check(&bytes, roothash)?;
                Ok(BootSet {
                    files: vec![(BootFileKind::Uki, bytes)],
                    cmdline,
                    in_config: false,
                    modules: None,
                })
            }
            BootSource::Kernel { kernel, initrd, devicetree, cmdline } => {
                let (initrd, modules) = match initrd {
                    InitrdSource::File(path) => (read(path)?, None),
                    InitrdSource::Packed(request) => {
                        let packed = initramfs::pack(request)?;
                        (packed.bytes, Some(packed.modules))
                    }
                };
                let mut files = vec![(BootFileKind::Linux, read(kernel)?), (BootFileKind::Initrd, initrd)];
                if let Some(path) = devicetree {
                    files.push((BootFileKind::DeviceTree, read(path)?));
                }
                Ok(BootSet { files, cmdline: complete_cmdline(cmdline, roothash), in_config: true, modules })
            }
        }
    }
}

/// A kernel that panics and waits would wait for ever, on a machine that nobody stands beside.
fn complete_cmdline(cmdline: &str, roothash: &str) -> String {
    let mut words: Vec<&str> = cmdline.split_whitespace().collect();
    let roothash = format!("{ROOTHASH_WORD}{roothash}");
    words.push(&roothash);
    if !words.iter().any(|word| word.starts_with("panic=")) {
        words.push("panic=-1");
    }
    words.join(" ")
}

fn write_slot(
    root: &RootImage,
    blob: &Path,
    request: &BuildRequest,
    progress: &Progress,
) -> Result<layer::Layer, BuildError> {
    let total = root.bytes;
    let done = std::sync::atomic::AtomicU64::new(0);
    let told = |more: u64| {
        let done = more + done.fetch_add(more, std::sync::atomic::Ordering::Relaxed);
        progress(BuildStep::Chunks { done, total });
    };
    told(0);
    let out = io::BufWriter::new(File::create(blob).map_err(FileError::of("making", blob))?);
    let Like { known, frames, .. } = request.like.clone();
    let options = LayerOptions { level: request.level, known, frames, ..LayerOptions::default() };
    let layer = layer::write_layer(root.reader()?, out, &options, &told)?;
    if (layer.raw_bytes, layer.raw_sha256) != (root.bytes, root.sha256) {
        return Err(BuildError::RootChanged { path: root.path.clone() });
    }
    Ok(layer)
}

fn describe(request: &BuildRequest, content: SlotContent, boot: &BootSet) -> OsConfig {
    OsConfig {
        schema: SCHEMA,
        kind: Kind::Os,
        product: request.product.clone(),
        name: request.name.clone(),
        version: request.version.clone(),
        security_version: request.security_version,
        compatible: request.compatible.clone(),
        requirements: Requirements {
            ram_bytes: request.ram_bytes,
            slot_bytes: content.bytes,
            esp_bytes: boot.files.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
            updater: Some(UPDATER_MIN.into()),
        },
        slots: vec![content],
        cmdline: boot.in_config.then(|| boot.cmdline.clone()),
    }
}

fn name_blobs(config: &OsConfig, layer: &layer::Layer, boot: &BootSet) -> OsManifest {
    let bytes = config.to_json();
    let (blob, index) = layer.descriptors(ROOT);
    let boot_layer = |(kind, bytes): &(BootFileKind, Vec<u8>)| BootLayer {
        kind: *kind,
        blob: manifest::boot_descriptor(*kind, Digest::of(bytes), bytes.len() as u64),
    };
    OsManifest {
        config: manifest::config_descriptor(Digest::of(&bytes), bytes.len() as u64),
        slots: vec![SlotLayer { name: ROOT.into(), blob, index, index_root: layer.index_root }],
        boot: boot.files.iter().map(boot_layer).collect(),
        annotations: [
            (TITLE_ANNOTATION.to_owned(), config.name.clone()),
            (VERSION_ANNOTATION.to_owned(), config.version.clone()),
        ]
        .into_iter()
        .chain(created().map(|created| (CREATED_ANNOTATION.to_owned(), created)))
        .collect(),
    }
}

/// The time that a repeatable build is given; the time of this run would make every build another release.
fn created() -> Option<String> {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok()?.trim().parse().ok()?;
    jiff::Timestamp::from_second(given).ok().map(|created| created.to_string())
}

/// Blobs first, the manifest under its tag last: a folder never names what it does not hold.
async fn store(layout: &LayoutDir, tag: &str, staged: &Staged) -> Result<Digest, RegistryError> {
    for slot in &staged.manifest.slots {
        let blob = registry::describe(&slot.blob.media_type, slot.blob.digest, slot.blob.size);
        layout.push_blob_file(&blob, &staged.slot_blob).await?;
        layout.push_blob(&slot.index.media_type, &staged.index).await?;
    }
    for (layer, bytes) in &staged.boot {
        layout.push_blob(&layer.blob.media_type, bytes).await?;
    }
    layout.push_blob(CONFIG_MEDIA_TYPE, &staged.config.to_json()).await?;
    layout.push_manifest(Some(tag), MANIFEST_MEDIA_TYPE, &staged.manifest.to_json()).await
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
