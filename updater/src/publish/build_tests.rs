//! Whole releases: built, parsed by the device's own code, and looked at by zstd and veritysetup.
//!
//! Not here: chunks (`layer`), the folder's own rules (`registry::layout_dir`). Rule: what a tool reads is what went in.

use std::process::Command;

use super::*;
use crate::file::tests::chain;
use crate::publish::bind::Part;
use crate::publish::initramfs::tests::static_program;
use crate::publish::like;
use crate::publish::modules::tests::small_kernel;
use crate::publish::uki::tests::uki;

/// Inputs in a folder of their own.
struct Inputs {
    dir: tempfile::TempDir,
}

impl Inputs {
    fn new() -> Inputs {
        let dir = tempfile::tempdir().unwrap();
        // No whole number of blocks, with a run of zeros.
        let mut root: Vec<u8> =
            (0..300_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        root.extend([0; 200_000]);
        root.extend(b"the end");
        std::fs::write(dir.path().join("root.img"), root).unwrap();
        std::fs::write(dir.path().join("vmlinuz"), "kernel").unwrap();
        std::fs::write(dir.path().join("board.dtb"), "device tree").unwrap();
        std::fs::write(dir.path().join("init"), static_program()).unwrap();
        small_kernel(dir.path());
        Inputs { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn request(&self) -> BuildRequest {
        BuildRequest {
            product: "example-os".into(),
            name: "Example OS".into(),
            version: "1.1".into(),
            security_version: 3,
            compatible: vec!["qemu-q35".into()],
            ram_bytes: 256 << 20,
            root: RootSource::Partition(self.path("root.img")),
            foreign: false,
            keep_compressed_modules: false,
            boot: BootSource::Kernel {
                kernel: self.path("vmlinuz"),
                initrd: InitrdSource::Packed(InitramfsRequest {
                    init_binary: Some(self.path("init")),
                    modules_dir: Some(self.path("lib/modules/6.1.0-test")),
                    modules_root: None,
                    extra_modules: vec![],
                }),
                devicetree: Some(self.path("board.dtb")),
                cmdline: " console=ttyS0  quiet".into(),
            },
            verity_salt: None,
            level: 3,
            like: Like::default(),
            output: self.path("release"),
            tag: None,
        }
    }
}

fn built(request: BuildRequest) -> Result<Built, BuildError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(build(request, Arc::new(|_| ())))
}

/// Manifest and config as a device reads them.
fn parsed(built: &Built) -> (LayoutDir, OsManifest, OsConfig) {
    let layout = LayoutDir::new(&built.layout);
    let manifest = OsManifest::parse(&std::fs::read(layout.blob_path(&built.digest)).unwrap()).unwrap();
    let config = OsConfig::parse(&std::fs::read(layout.blob_path(&manifest.config.digest)).unwrap()).unwrap();
    manifest.check_config(&config).unwrap();
    (layout, manifest, config)
}

#[test]
fn a_release_holds_what_it_was_built_from_and_asks_for_the_room_that_takes() {
    let inputs = Inputs::new();
    let built = built(inputs.request()).unwrap();
    let (layout, manifest, config) = parsed(&built);
    assert_eq!(layout.tags().unwrap(), ["1.1"]);

    let mut raw = std::fs::read(inputs.path("root.img")).unwrap();
    raw.resize(raw.len().next_multiple_of(4096), 0);
    let unzstd =
        Command::new("zstd").args(["-dcq"]).arg(layout.blob_path(&manifest.slots[0].blob.digest)).output();
    assert!(unzstd.expect("apt-get install zstd").stdout == raw, "zstd -d gives another root");
    assert_eq!((built.root_bytes, config.slots[0].sha256), (raw.len() as u64, Digest::of(&raw)));

    let boot = |kind| manifest.boot.iter().find(|file| file.kind == kind).unwrap().blob.clone();
    let stored = |kind| std::fs::read(layout.blob_path(&boot(kind).digest)).unwrap();
    assert_eq!(stored(BootFileKind::Linux), b"kernel");
    assert_eq!(stored(BootFileKind::DeviceTree), b"device tree");
    let esp_bytes = manifest.boot.iter().map(|file| file.blob.size).sum();
    let requirements = Requirements {
        ram_bytes: 256 << 20,
        slot_bytes: raw.len() as u64,
        esp_bytes,
        updater: Some(UPDATER_MIN.into()),
    };
    assert_eq!(config.requirements, requirements);
    assert_eq!(
        config.cmdline,
        Some(format!("console=ttyS0 quiet {ROOTHASH_WORD}{} panic=-1", built.roothash))
    );
    assert!(built.modules.unwrap().modules.iter().any(|module| module.path.ends_with("virtio_blk.ko")));
    let left: Vec<_> =
        std::fs::read_dir(&built.layout).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".build-")), "{left:?}");
}

#[test]
fn veritysetup_computes_the_root_hash_that_the_release_names() {
    let inputs = Inputs::new();
    let built = built(inputs.request()).unwrap();
    let (layout, manifest, config) = parsed(&built);
    let verity = config.slots[0].verity.as_ref().unwrap();
    assert_eq!(hex::encode(verity.root), built.roothash);
    let raw = std::fs::read(layout.blob_path(&manifest.slots[0].blob.digest)).unwrap();
    std::fs::write(inputs.path("raw"), zstd::decode_all(&raw[..]).unwrap()).unwrap();
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let format = Command::new("veritysetup")
        .env("PATH", path)
        .args(["format", "--salt", &hex::encode(&verity.salt), "--uuid", &verity.uuid.to_string()])
        .args([inputs.path("raw"), inputs.path("tree")])
        .output()
        .expect("apt-get install cryptsetup-bin");
    let text = String::from_utf8_lossy(&format.stdout);
    assert!(text.contains(&built.roothash), "{text}{}", String::from_utf8_lossy(&format.stderr));
}

#[test]
fn the_same_inputs_elsewhere_give_the_same_digest_and_a_salt_another_root_hash() {
    let (here, there) = (Inputs::new(), Inputs::new());
    let first = built(here.request()).unwrap();
    let second = built(there.request()).unwrap();
    assert_eq!((first.digest, &first.roothash), (second.digest, &second.roothash));
    assert_eq!(roothash(&here.request().root, false, None).unwrap(), first.roothash);
    let salted = built(BuildRequest { verity_salt: Some(vec![7; 32]), ..here.request() }).unwrap();
    assert_ne!(salted.roothash, first.roothash);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_takes_the_frames_of_the_one_that_it_is_like_and_is_the_same_as_without_them() {
    let inputs = Inputs::new();
    let silent = || -> Progress { Arc::new(|_| ()) };
    let first = build(inputs.request(), silent()).await.unwrap();
    assert_eq!(first.notes, [""; 0]);
    let mut raw = std::fs::read(inputs.path("root.img")).unwrap();
    raw[500_000] ^= 1;
    std::fs::write(inputs.path("root.img"), raw).unwrap();

    let parts = [Part { registry: Box::new(LayoutDir::new(&first.layout)), digest: first.digest }];
    let like = like::read(&parts, ROOT, inputs.dir.path(), false).await.unwrap();
    let next = |like: &Like, level| {
        let request = BuildRequest { version: "1.2".into(), like: like.clone(), level, ..inputs.request() };
        build(request, silent())
    };
    let taken = next(&like, 3).await.unwrap();
    let compressed = next(&Like { frames: None, ..like.clone() }, 3).await.unwrap();
    assert_eq!((taken.digest, &compressed.notes[..]), (compressed.digest, &[][..]));
    let (_, words) = taken.notes[0].split_once(" of ").unwrap();
    assert!(words.ends_with("frames are taken from the earlier release as they are, the others compressed."));
    assert!(!taken.notes[0].starts_with("0 of"), "{:?}", taken.notes);
    let other = next(&like, 9).await.unwrap();
    assert!(other.notes[0].contains("at another level or by another zstd"), "{:?}", other.notes);
}

#[test]
fn a_root_folder_becomes_a_release_when_it_keeps_the_contract_or_is_called_foreign() {
    let inputs = Inputs::new();
    let folder = inputs.path("rootfs");
    for name in ["dev", "proc", "sys", "run", "usr/lib/switchback"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
    }
    let root = RootSource::Folder(folder.clone());
    let request = BuildRequest { root, ..inputs.request() };
    let error = built(request.clone()).unwrap_err().to_string();
    assert!(error.contains("--foreign"), "{error}");
    built(BuildRequest { foreign: true, ..request.clone() }).unwrap();
    std::fs::write(folder.join(rootfs::CONTRACT_PATH), "contract = 1\n").unwrap();
    let (_, _, config) = parsed(&built(request).unwrap());
    assert_eq!(config.slots[0].bytes % 4096, 0);
}

#[test]
fn a_uki_is_taken_when_it_carries_the_root_hash_and_the_refusal_names_it() {
    let inputs = Inputs::new();
    let request = BuildRequest { boot: BootSource::Uki(inputs.path("os.efi")), ..inputs.request() };
    let roothash = roothash(&request.root, false, None).unwrap();
    let make =
        |cmdline: &str| std::fs::write(inputs.path("os.efi"), uki(&[(".linux", "k"), (".cmdline", cmdline)]));

    make("quiet").unwrap();
    let error = built(request.clone()).unwrap_err().to_string();
    assert!(
        error.contains(&format!("ukify build --linux=… --initrd=… --cmdline='{ROOTHASH_WORD}{roothash}")),
        "{error}"
    );

    make(&format!("{ROOTHASH_WORD}{roothash} panic=-1")).unwrap();
    let built = built(request).unwrap();
    let (_, manifest, config) = parsed(&built);
    assert_eq!(config.cmdline, None, "the signed one counts");
    assert_eq!(manifest.boot.iter().map(|file| file.kind).collect::<Vec<_>>(), [BootFileKind::Uki]);
    assert_eq!(built.cmdline, format!("{ROOTHASH_WORD}{roothash} panic=-1"));
}

#[test]
fn what_cannot_be_released_is_refused_by_name_and_leaves_nothing_under_the_tag() {
    type Break = fn(&Inputs, &mut BuildRequest);
    fn with_cmdline(request: &mut BuildRequest, text: &str) {
        if let BootSource::Kernel { cmdline, .. } = &mut request.boot {
            *cmdline = text.into();
        }
    }
    let table: [(&str, Break, &str); 6] = [
        ("empty root", |i, _| std::fs::write(i.path("root.img"), "").unwrap(), "it is empty"),
        ("no root", |i, _| std::fs::remove_file(i.path("root.img")).unwrap(), "root.img"),
        ("no kernel", |i, _| std::fs::remove_file(i.path("vmlinuz")).unwrap(), "vmlinuz"),
        ("bad version", |_, r| r.version = "1.1 beta".into(), "is no version"),
        (
            "a root hash of one's own",
            |_, r| with_cmdline(r, "switchback.roothash=00"),
            "leave `switchback.roothash=…` out",
        ),
        ("a line too long", |_, r| with_cmdline(r, &"x".repeat(3000)), "no single line of at most"),
    ];
    for (why, break_it, expected) in table {
        let inputs = Inputs::new();
        let mut request = inputs.request();
        break_it(&inputs, &mut request);
        let error = chain(&built(request).unwrap_err());
        assert!(error.contains(expected), "{why}: {error}");
        assert!(LayoutDir::new(inputs.path("release")).tags().map_or(true, |tags| tags.is_empty()), "{why}");
    }
}

#[test]
fn the_authors_own_word_on_panics_is_kept() {
    for (given, expected) in [
        ("", "switchback.roothash=00 panic=-1"),
        ("panic=10", "panic=10 switchback.roothash=00"),
        ("oops=panic", "oops=panic switchback.roothash=00 panic=-1"),
    ] {
        assert_eq!(complete_cmdline(given, "00"), expected);
    }
}
