//! One machine that has lived, and copies of it: each row of the table spoils one thing in a copy of its own.
//!
//! Not here: the rows. Rule: the machine and the releases are made once for all rows that run together, by the real
//! program; a row changes only its copy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use switchback::digest::Digest;
use switchback::registry::layout_dir::LayoutDir;
use switchback_partitions::slot::Slot;
use switchback_tests::disk_shot::{DiskShot, partitions};
use switchback_tests::forge::{Draft, Forge};
use switchback_tests::lab::registry::Registry;
use switchback_tests::lab::tools;
use switchback_tests::machine::Machine;
use switchback_tests::scene::{SMALL_DISK, Scene, sha256};
use switchback_tests::small_release::SmallRelease;

pub const ROOT_BYTES: u64 = 8 << 20;
/// The slot that runs, and the one that may be written.
pub const RUNNING: Slot = Slot::B;
pub const IDLE: Slot = Slot::A;

/// The machine runs 1.1 from slot B, confirmed: its floor is 2. Slot A holds 1.0, the fallback. 1.2 failed its trial here.
/// The releases lie in the layout, and 1.3 in the store of a real registry.
pub struct Ground {
    pub scene: Scene,
    machine: Machine,
    shot: Shot,
}

/// What must not change, or only in its part.
#[derive(Clone, PartialEq)]
pub struct Shot {
    pub disk: String,
    pub parts: BTreeMap<String, Digest>,
    pub files: DiskShot,
    pub records: Records,
}

/// The state folder, but for its lock.
pub type Records = BTreeMap<String, Vec<u8>>;

static GROUND: Mutex<Weak<Ground>> = Mutex::new(Weak::new());

impl Ground {
    /// The ground that all tests of this process share, for as long as one of them holds it: then its folder goes.
    pub fn get() -> Arc<Ground> {
        let mut shared = GROUND.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let ground = Arc::new(Ground::make());
            *shared = Arc::downgrade(&ground);
            ground
        })
    }

    fn make() -> Ground {
        let scene = Scene::new().unwrap();
        for (version, security, healthy) in
            [("1.0", "1", true), ("1.1", "2", true), ("1.2", "2", false), ("1.3", "2", true)]
        {
            if version == "1.3" {
                scene.desk.boot_files(30).unwrap();
            }
            build(&scene, version, healthy, &["--security-version", security]);
            scene.desk.sign(&scene.desk.reference(version), &[]).unwrap();
        }
        let key = scene.desk.path("os.pub");
        let mut machine = scene.machine(&scene.desk.reference("stable"), &[&key], "").unwrap();
        scene.provision(&machine, &scene.desk.reference("1.0"), &key, &SMALL_DISK).unwrap();
        machine.power_on().unwrap();
        for (version, runs) in [("1.2", Slot::A), ("1.1", RUNNING)] {
            scene.desk.publish(version).unwrap();
            let moved = machine.run(&["update", "--reboot"]).unwrap();
            assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
            assert_eq!(machine.power_on().unwrap().slot, runs, "after {version}");
        }
        let registry = Registry::start(&scene.folder().join("registry")).unwrap();
        let host = registry.host();
        let more = ["--plain-http", &host, "--with-signatures"];
        scene.desk.push("1.3", &format!("{host}/os"), &more).unwrap();
        let shot = Shot::take(&machine, &records(&machine.state_dir()));
        Ground { scene, machine, shot }
    }

    /// A registry with 1.3 as `os`. Each test has a server of its own, as one ends with the thread that started it.
    pub fn registry(&self, folder: &Path, more: &str) -> Registry {
        std::fs::create_dir_all(folder).unwrap();
        let store = self.scene.folder().join("registry/blobs");
        std::os::unix::fs::symlink(store, folder.join("blobs")).unwrap();
        Registry::start_with(folder, more).unwrap()
    }

    pub fn key(&self) -> PathBuf {
        self.scene.desk.path("os.pub")
    }
}

/// Builds a release of the story with more arguments, unsigned.
pub fn build(scene: &Scene, version: &str, healthy: bool, more: &[&str]) -> Digest {
    let release = SmallRelease { version, healthy, root_bytes: ROOT_BYTES };
    let image = scene.desk.root_image(&release).unwrap();
    scene.desk.build_partition(version, &image, more).unwrap()
}

impl Shot {
    pub fn take(machine: &Machine, records: &Records) -> Shot {
        Shot {
            disk: sha256(&machine.disk()).unwrap(),
            parts: partitions(machine).unwrap(),
            files: DiskShot::take(machine).unwrap(),
            records: records.clone(),
        }
    }
}

/// Every file of a state folder but the lock, whose only content is who held it last.
pub fn records(folder: &Path) -> Records {
    let mut records = Records::new();
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry.unwrap();
        let name = entry.path().strip_prefix(folder).unwrap().to_string_lossy().into_owned();
        if name != "lock" && entry.file_type().is_file() {
            records.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    records
}

/// A copy of the ground's machine and of its releases.
pub struct Place {
    pub ground: Arc<Ground>,
    pub machine: Machine,
    /// What the machine and its disk were before the row's command.
    pub before: Shot,
    folder: tempfile::TempDir,
    /// Where the records lie after the command, when that saw another state folder.
    pub records_after: Option<PathBuf>,
    /// Programs that the command is run under.
    pub under: Option<Under>,
}

/// Makes the program's command into one that runs it elsewhere: in a namespace, with another clock.
pub type Under = Box<dyn Fn(&Command) -> Command + Send + Sync>;

impl Place {
    /// A copy that looks for releases under the tag `stable` of its own layout.
    pub fn new(ground: &Arc<Ground>) -> Place {
        let folder = tempfile::Builder::new().prefix("switchback-row-").tempdir().unwrap();
        let images = folder.path().join("images");
        // Hard links: whoever changes a blob puts another file in its place.
        let from = ground.scene.desk.path("images");
        tools::run(Command::new("cp").arg("-al").arg(&from).arg(&images)).unwrap();
        let settings = settings(&format!("oci:{}:stable", images.display()), "", &ground.key());
        let machine = ground.machine.copy(&folder.path().join("machine"), &settings).unwrap();
        Place {
            ground: Arc::clone(ground),
            machine,
            before: ground.shot.clone(),
            folder,
            records_after: None,
            under: None,
        }
    }

    /// The same machine, which looks for releases elsewhere. `more` are lines of the section `[source]`.
    pub fn looks_at(self, image: &str, more: &str) -> Place {
        let settings = settings(image, more, &self.ground.key());
        Place { machine: self.reconfigured(&settings), ..self }
    }

    /// The same machine, which looks at a host over plain HTTP for `os:1.3`.
    pub fn looks_at_host(self, host: &str) -> Place {
        self.looks_at(&format!("{host}/os:1.3"), &format!("plain_http = [\"{host}\"]"))
    }

    fn reconfigured(&self, settings: &str) -> Machine {
        let folder = self.machine.config().parent().unwrap().to_path_buf();
        Machine::new(&folder, &tools::switchback().unwrap(), settings).unwrap()
    }

    /// The same machine after its disk or records were changed by the test.
    pub fn seen_anew(mut self) -> Place {
        self.before = Shot::take(&self.machine, &records(&self.machine.state_dir()));
        self
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn images(&self) -> PathBuf {
        self.folder.path().join("images")
    }

    /// The layout as a destination of `image push`.
    pub fn images_reference(&self) -> String {
        format!("oci:{}", self.images().display())
    }

    pub fn forge(&self) -> Forge {
        Forge::new(&self.images(), &self.ground.scene.desk.path("os.key")).unwrap()
    }

    /// Publishes 1.3, changed, under `stable`.
    pub fn offers(self, change: impl FnOnce(&Forge, &mut Draft)) -> Place {
        let forge = self.forge();
        let mut draft = forge.draft("1.3").unwrap();
        change(&forge, &mut draft);
        forge.publish("stable", &draft).unwrap();
        self
    }

    /// Publishes the release of another tag under `stable` as it is.
    pub fn offers_tag(self, tag: &str) -> Place {
        self.forge().retag(tag, "stable").unwrap();
        self
    }

    /// The file of a blob in this place's layout.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        LayoutDir::new(self.images()).blob_path(digest)
    }

    /// Publishes 1.3 as it is and puts other bytes in the place of one blob.
    pub fn spoils(self, which: impl FnOnce(&Draft) -> Digest, change: impl FnOnce(&mut Vec<u8>)) -> Place {
        let place = self.offers_tag("1.3");
        let path = place.blob(&which(&place.forge().draft("stable").unwrap()));
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        place
    }

    /// The program on this machine, under whatever the row runs it under.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let command = self.machine.command(arguments);
        let mut command =
            self.under.as_ref().map_or(command, |under| under(&self.machine.command(arguments)));
        command.env("SWITCHBACK_PROGRESS", "none").env("SWITCHBACK_LOG", "off");
        command
    }
}

fn settings(image: &str, more: &str, key: &Path) -> String {
    format!("[source]\nimage = \"{image}\"\n{more}\n[trust.policy.os]\nkeys = [{key:?}]\n")
}
