//! Images of services, unpacked once for all slots that use them.
//!
//! Not here: whether an image is trusted (`trust`), what runs from it (`bundle`). Rule: an image has its name only when all of it
//! is on the medium; what was fetched for one image is not fetched again for another, nor after an interruption.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::service::Name;
use crate::container::{self, ContainerError, ContainerRequest, Image, ImageConfig, Layers};
use crate::digest::Digest;
use crate::file::{self, FileError};
use crate::progress::Progress;
use crate::registry::Registry;

/// The longest description that is read, in bytes: an image's config, of at most 4 MiB, and its layers' names.
const ABOUT_BYTES_MAX: u64 = 8 << 20;
/// Where images, layers and half-written images lie in the store.
const IMAGES: &str = "images";
const LAYERS: &str = "layers";
/// In front of a half-written image's name.
const UNFINISHED: &str = "new-";
/// Of an image: its root, and what is known about it.
const ROOT: &str = "root";
const ABOUT: &str = "image.json";

/// In front of a volume's name: the label that says which schema an image's data has in it.
const SCHEMA_LABEL: &str = "io.switchback.schema.";

/// Folders that an OCI runtime mounts over and an image may lack, with the mode of each.
const FOLDERS: [(&[u8], u32); 6] =
    [(b"dev", 0o755), (b"proc", 0o755), (b"sys", 0o755), (b"run", 0o755), (b"tmp", 0o1777), (b"etc", 0o755)];

/// The store.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// An unpacked image.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Of its manifest.
    pub digest: Digest,
    /// Its root file system.
    pub root: PathBuf,
    /// What it says of itself: what to run, and how.
    pub config: ImageConfig,
    layers: Vec<Digest>,
}

impl Stored {
    /// The schema that its data in a volume has, by the label `io.switchback.schema.NAME`; without one it is 0.
    pub fn schema(&self, volume: &Name) -> Result<u32, SchemaError> {
        let text = self.config.label(&format!("{SCHEMA_LABEL}{volume}"));
        let wrong = |text: &str| SchemaError { volume: volume.clone(), text: text.to_owned() };
        text.map_or(Ok(0), |text| text.parse().map_err(|_| wrong(text)))
    }

    #[cfg(test)]
    pub(super) fn of(digest: Digest, root: &Path, config: ImageConfig) -> Stored {
        Stored { digest, root: root.to_owned(), config, layers: Vec::new() }
    }
}

/// A schema that is no number.
#[derive(Debug, thiserror::Error)]
#[error("while looking at the image: its label {SCHEMA_LABEL}{volume} is `{text}`, which is no number")]
pub struct SchemaError {
    volume: Name,
    text: String,
}

#[derive(Serialize, Deserialize)]
struct About {
    config: ImageConfig,
    layers: Vec<Digest>,
}

impl Store {
    /// The store in `folder`.
    pub fn at(folder: &Path) -> Store {
        Store { folder: folder.to_owned() }
    }

    /// Makes the store's folders where they are missing. Only their owner may look into them: a service's set-user-ID programs
    /// are nobody else's.
    pub fn make(&self) -> Result<(), FileError> {
        [IMAGES, LAYERS].iter().try_for_each(|name| {
            let path = self.folder.join(name);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(FileError::of("making", &path))
        })
    }

    /// The image with this manifest, when it is here.
    pub fn find(&self, digest: &Digest) -> Result<Option<Stored>, FileError> {
        let folder = self.image(digest);
        if !folder.exists() {
            return Ok(None);
        }
        let path = folder.join(ABOUT);
        let bytes = file::read(&path, ABOUT_BYTES_MAX)?;
        let about = serde_json::from_slice(&bytes).map_err(io::Error::other);
        let About { config, layers } = about.map_err(FileError::of("reading", &path))?;
        Ok(Some(Stored { digest: *digest, root: folder.join(ROOT), config, layers }))
    }

    /// Fetches and unpacks the image that `request` names, unless it is here; on the medium when it returns. Needs a runtime of
    /// several threads.
    ///
    /// # Errors
    /// As [`container::merge`]; no image has come into the store then, and layers that were fetched stay for the next try.
    pub async fn admit(
        &self,
        registry: &dyn Registry,
        request: &ContainerRequest,
        progress: &dyn Progress,
    ) -> Result<Stored, ContainerError> {
        let image = container::describe(registry, request, progress).await?;
        if let Some(stored) = self.find(&image.digest)? {
            return Ok(stored);
        }
        let work = self.folder.join(IMAGES).join(format!("{UNFINISHED}{}", image.digest.hex()));
        remove(&work)?;
        container::make(&work)?;
        let layers = self.folder.join(LAYERS);
        let layers = Layers { folder: &layers, keep: true };
        let mut merged = container::merge(registry, (&image, request), layers, &work, progress).await?;
        merged.ensure_folders(&FOLDERS)?;
        tokio::task::block_in_place(|| {
            merged.write(&work.join(ROOT))?;
            self.finish(&image, &work)
        })
    }

    /// From a folder with all of an image in it to an image of the store.
    fn finish(&self, image: &Image, work: &Path) -> Result<Stored, ContainerError> {
        let contents = work.join("contents");
        fs::remove_dir_all(&contents).map_err(FileError::of("removing", &contents))?;
        let about = About { config: image.config.clone(), layers: image.layers().collect() };
        let path = work.join(ABOUT);
        let bytes = serde_json::to_vec(&about).map_err(io::Error::other);
        bytes.and_then(|bytes| fs::write(&path, bytes)).map_err(FileError::of("writing", &path))?;
        // One call for thousands of files: flushed one by one they would take minutes on a slow disk.
        let synced = File::open(work).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
        synced.map_err(FileError::of("flushing", work))?;
        let to = self.image(&image.digest);
        fs::rename(work, &to).map_err(FileError::of("renaming", work))?;
        let above = self.folder.join(IMAGES);
        File::open(&above).and_then(|folder| folder.sync_all()).map_err(FileError::of("flushing", &above))?;
        let About { config, layers } = about;
        Ok(Stored { digest: image.digest, root: to.join(ROOT), config, layers })
    }

    /// Removes every image but these, what is half written, and layers that no image has. Gives the removed images.
    ///
    /// # Errors
    /// The first file that could not be removed; what was removed before it is gone.
    pub fn keep_only(&self, kept: &BTreeSet<Digest>) -> Result<Vec<Digest>, FileError> {
        let mut layers = BTreeSet::new();
        for digest in kept {
            layers.extend(self.find(digest)?.into_iter().flat_map(|stored| stored.layers));
        }
        let mut removed = Vec::new();
        for (name, path) in names(&self.folder.join(IMAGES))? {
            let digest = digest_of(&name);
            if digest.is_none_or(|digest| !kept.contains(&digest)) {
                remove(&path)?;
                removed.extend(digest);
            }
        }
        for (name, path) in names(&self.folder.join(LAYERS))? {
            if digest_of(&name).is_none_or(|digest| !layers.contains(&digest)) {
                fs::remove_file(&path).map_err(FileError::of("removing", &path))?;
            }
        }
        Ok(removed)
    }

    fn image(&self, digest: &Digest) -> PathBuf {
        self.folder.join(IMAGES).join(digest.hex())
    }
}

fn digest_of(name: &str) -> Option<Digest> {
    format!("sha256:{name}").parse().ok()
}

fn names(folder: &Path) -> Result<Vec<(String, PathBuf)>, FileError> {
    let list = || fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>();
    let entries = list().map_err(FileError::of("listing", folder))?;
    Ok(entries
        .into_iter()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect())
}

/// Removes a folder with all that is in it, if there is one.
fn remove(folder: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(FileError::of("removing", folder)),
    }
}

#[cfg(test)]
#[cfg(feature = "author")]
mod tests {
    use super::*;
    use crate::container::Platform;
    use crate::progress::Silent;
    use crate::publish::container::tests::{LIMIT, Layer, Stage, file as item, plain};

    struct Scene {
        stage: Stage,
        store: Store,
    }

    impl Scene {
        fn new() -> Scene {
            let stage = Stage::new();
            let store = Store::at(&stage.dir.path().join("store"));
            store.make().unwrap();
            Scene { stage, store }
        }

        fn admit(&self, digest: Digest, bytes_max: u64) -> Result<Stored, ContainerError> {
            let platform: Platform = "linux/amd64".parse().unwrap();
            let request = ContainerRequest { digest, platform, bytes_max, knob: "the knob" };
            self.stage.runtime.block_on(self.store.admit(&self.stage.layout, &request, &Silent))
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = super::names(&self.store.folder.join(IMAGES))
                .unwrap()
                .into_iter()
                .map(|(name, _)| name)
                .collect();
            names.sort();
            names
        }
    }

    fn layer(text: &str) -> Layer {
        plain(&[item("program", text)])
    }

    #[test]
    fn an_image_is_there_once_whole_and_goes_when_nothing_counts_on_it() {
        let scene = Scene::new();
        let (one, two) = (scene.stage.image(&[layer("one")]), scene.stage.image(&[layer("two")]));
        let stored = scene.admit(one, LIMIT).unwrap();
        assert_eq!(fs::read(stored.root.join("program")).unwrap(), b"one");
        assert!(stored.root.join("proc").is_dir(), "what a runtime mounts over is there");
        assert_eq!(scene.store.find(&one).unwrap().unwrap().root, stored.root);
        assert!(scene.store.find(&two).unwrap().is_none());
        // Taken again it is the same folder, not a second one.
        let before = fs::metadata(&stored.root).unwrap().modified().unwrap();
        assert_eq!(fs::metadata(scene.admit(one, LIMIT).unwrap().root).unwrap().modified().unwrap(), before);
        scene.admit(two, LIMIT).unwrap();
        assert_eq!(scene.store.keep_only(&BTreeSet::from([two])).unwrap(), [one]);
        assert_eq!(scene.names(), [two.hex()]);
    }

    #[test]
    fn what_is_half_written_has_no_name_and_is_no_obstacle() {
        let scene = Scene::new();
        let digest = scene.stage.image(&[layer("one"), layer("two")]);
        assert!(matches!(
            scene.admit(digest, 700),
            Err(ContainerError::TooLarge { .. } | ContainerError::Layer { .. })
        ));
        assert!(scene.store.find(&digest).unwrap().is_none());
        let left = scene.store.folder.join(IMAGES).join(format!("{UNFINISHED}{}", digest.hex()));
        fs::create_dir_all(left.join("root/half")).unwrap();
        let stored = scene.admit(digest, LIMIT).unwrap();
        assert!(!stored.root.join("half").exists());
        assert_eq!(scene.names(), [digest.hex()]);
        fs::create_dir_all(left.join("root")).unwrap();
        scene.store.keep_only(&BTreeSet::from([digest])).unwrap();
        assert_eq!(scene.names(), [digest.hex()], "what an interruption left goes with the rest");
    }
}
