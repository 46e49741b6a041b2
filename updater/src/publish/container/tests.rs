//! Container images made entry by entry: what engines agree on.
//!
//! Not here: hostile images (`attacks`), images made by real tools (the system tests). Rule: what is expected is what
//! other engines make of the same layers.

use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use tar::EntryType;

use super::*;
use crate::file::tests::chain;
use crate::progress::{Phase, Silent};
use crate::publish::build::{BootSource, BuildRequest, Built, InitrdSource, RootSource, build};
use crate::publish::initramfs::InitramfsRequest;
use crate::publish::initramfs::tests::static_program;
use crate::registry::MANIFEST_MEDIA_TYPE;
use crate::registry::layout_dir::LayoutDir;

pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LIMIT: u64 = 32 << 20;
pub(crate) const KNOB: &str = "--container-limit";

/// One entry of a layer.
#[derive(Clone)]
pub(crate) struct Item {
    pub(crate) kind: EntryType,
    pub(crate) path: Vec<u8>,
    pub(crate) target: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) device: (u32, u32),
    pub(crate) pax: Vec<(String, Vec<u8>)>,
}

pub(crate) fn item(kind: EntryType, path: impl AsRef<[u8]>) -> Item {
    let path = path.as_ref().to_vec();
    let (target, bytes, pax) = (Vec::new(), Vec::new(), Vec::new());
    Item { kind, path, target, bytes, mode: 0o644, owner: (0, 0), device: (0, 0), pax }
}

pub(crate) fn file(path: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> Item {
    Item { bytes: bytes.as_ref().to_vec(), ..item(EntryType::Regular, path) }
}

pub(crate) fn folder(path: impl AsRef<[u8]>, mode: u32) -> Item {
    Item { mode, ..item(EntryType::Directory, path) }
}

pub(crate) fn link(kind: EntryType, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { target: target.as_ref().to_vec(), ..item(kind, path) }
}

/// A pax record counts its own length.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n).unwrap();
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

pub(crate) fn append(out: &mut Vec<u8>, item: &Item) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(item.kind);
    header.set_size(item.bytes.len() as u64);
    header.set_mode(item.mode);
    header.set_uid(item.owner.0);
    header.set_gid(item.owner.1);
    header.set_mtime(1_000_000);
    header.set_device_major(item.device.0).unwrap();
    header.set_device_minor(item.device.1).unwrap();
    // Not by the crate's own setters, which refuse what an attacker writes.
    let old = header.as_old_mut();
    old.name[..item.path.len()].copy_from_slice(&item.path);
    old.linkname[..item.target.len()].copy_from_slice(&item.target);
    header.set_cksum();
    if !item.pax.is_empty() {
        let bytes = item.pax.iter().flat_map(|(key, value)| record(key, value)).collect();
        append(out, &Item { bytes, ..super::tests::item(EntryType::XHeader, "pax") });
    }
    out.extend(header.as_bytes());
    out.extend(&item.bytes);
    out.resize(out.len().next_multiple_of(512), 0);
}

pub(crate) fn archive(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    items.iter().for_each(|item| append(&mut out, item));
    out.resize(out.len() + 1024, 0);
    out
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image in a layout folder, and a place to unpack it in.
pub(crate) struct Stage {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) layout: LayoutDir,
    pub(crate) runtime: tokio::runtime::Runtime,
}

/// A blob, its media type and the digest of what is in it.
pub(crate) type Layer = (Vec<u8>, String, Digest);

pub(crate) fn plain(items: &[Item]) -> Layer {
    let bytes = archive(items);
    let digest = Digest::of(&bytes);
    (bytes, OCI_LAYER.into(), digest)
}

impl Stage {
    pub(crate) fn new() -> Stage {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/file"), "as it was").unwrap();
        let layout = LayoutDir::new(dir.path().join("layout"));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        Stage { dir, layout, runtime }
    }

    pub(crate) fn push(&self, media_type: &str, bytes: &[u8]) -> Value {
        let blob = self.runtime.block_on(self.layout.push_blob(media_type, bytes)).unwrap();
        json!({ "mediaType": blob.media_type, "digest": blob.digest, "size": blob.size })
    }

    pub(crate) fn manifest(&self, tag: &str, value: &Value) -> Digest {
        let bytes = value.to_string();
        let pushed = self.layout.push_manifest(Some(tag), MANIFEST_MEDIA_TYPE, bytes.as_bytes());
        self.runtime.block_on(pushed).unwrap()
    }

    pub(crate) fn image(&self, layers: &[Layer]) -> Digest {
        self.image_for("amd64", OCI_CONFIG, layers)
    }

    pub(crate) fn image_for(&self, architecture: &str, config_type: &str, layers: &[Layer]) -> Digest {
        let diff_ids: Vec<_> = layers.iter().map(|(_, _, diff_id)| diff_id).collect();
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": { "Labels": { "org.opencontainers.image.version": "7", "org.opencontainers.image.title": "Seven" } },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.push(config_type, config.to_string().as_bytes());
        let layers: Vec<_> = layers.iter().map(|(bytes, kind, _)| self.push(kind, bytes)).collect();
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.manifest(&format!("image-{architecture}"), &manifest)
    }

    pub(crate) fn unpack(&self, digest: Digest) -> Result<Container, ContainerError> {
        self.unpack_for("linux/amd64", digest, LIMIT)
    }

    pub(crate) fn unpack_for(
        &self,
        platform: &str,
        digest: Digest,
        bytes_max: u64,
    ) -> Result<Container, ContainerError> {
        let work = self.dir.path().join("work");
        let _ = std::fs::remove_dir_all(&work);
        std::fs::create_dir(&work).unwrap();
        let request = ContainerRequest { digest, platform: platform.parse().unwrap(), bytes_max, knob: KNOB };
        self.runtime.block_on(unpack(&self.layout, &request, &work, &Silent))
    }

    pub(crate) fn unpacked(&self, layers: &[Layer]) -> Container {
        let digest = self.image(layers);
        self.unpack(digest).unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    pub(crate) fn refusal(&self, layers: &[Layer]) -> String {
        let digest = self.image(layers);
        chain(&self.unpack(digest).unwrap_err())
    }

    /// Nothing was made or changed beside the working folder.
    pub(crate) fn outside_is_as_it_was(&self) -> bool {
        let names = std::fs::read_dir(self.dir.path().join("outside")).unwrap().count();
        names == 1 && std::fs::read(self.dir.path().join("outside/file")).unwrap() == b"as it was"
    }
}

/// Every path below a folder, with what it is.
pub(crate) fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name().min_depth(1) {
        let entry = entry.unwrap();
        let name = entry.path().strip_prefix(root).unwrap().display().to_string();
        let meta = entry.path().symlink_metadata().unwrap();
        let mode = meta.mode() & 0o7777;
        lines.push(match std::fs::read_link(entry.path()) {
            Ok(target) => format!("{name} -> {}", target.display()),
            Err(_) if meta.is_dir() => format!("{name}/ {mode:o}"),
            Err(_) if meta.is_file() => {
                format!("{name} {mode:o} {}", String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()))
            }
            Err(_) if meta.file_type().is_fifo() => format!("{name} {mode:o} fifo"),
            Err(_) => format!("{name} {mode:o} device"),
        });
    }
    let made = ["dev/ 755", "efi/ 755", "proc/ 755", "run/ 755", "sys/ 755", "tmp/ 1777", "var/ 755"];
    let made = [&made[..], &["var/lib/ 755", "var/lib/switchback/ 755"]].concat();
    for line in &made {
        assert!(lines.contains(&(*line).to_owned()), "{line} is missing: {lines:#?}");
    }
    lines.retain(|line| !made.contains(&line.as_str()));
    lines
}

#[test]
fn layers_are_put_on_top_of_each_other_as_engines_do() {
    let stage = Stage::new();
    let below = plain(&[
        folder("./", 0o755),
        folder("usr/lib/", 0o755),
        link(EntryType::Symlink, "lib", "usr/lib"),
        file("etc/kept", "1"),
        file("etc/gone", "1"),
        file("etc/changed", "1"),
        folder("opaque", 0o700),
        file("opaque/below", "1"),
        file("tree/a/b/c", "1"),
        file("was-folder/x", "1"),
        file("was-file", "1"),
        link(EntryType::Symlink, "absolute", "/etc"),
    ]);
    let above = plain(&[
        file("opaque/above", "2"),
        file("opaque/.wh..wh..opq", ""),
        file("etc/.wh.gone", ""),
        Item { mode: 0o4755, ..file("./etc/changed", "2") },
        file(".wh.tree", ""),
        file("tree/a/new", "2"),
        file("lib/through-a-link", "2"),
        file("absolute/through-another", "2"),
        file("was-folder", "2"),
        folder("was-file", 0o711),
        file(".wh..wh.aufs", "book-keeping"),
        link(EntryType::Link, "etc/hard", "etc/kept"),
        file(".wh.never-there", ""),
        item(EntryType::Fifo, "fifo"),
    ]);
    // A change of the one name leaves the other as it was.
    let third = plain(&[file("etc/kept", "3"), file("was-file/.wh..wh..opq", "")]);
    let container = stage.unpacked(&[below, above, third]);
    let expected = [
        "absolute -> /etc",
        "etc/ 755",
        "etc/changed 4755 2",
        "etc/hard 644 1",
        "etc/kept 644 3",
        "etc/through-another 644 2",
        "fifo 644 fifo",
        "lib -> usr/lib",
        "opaque/ 700",
        "opaque/above 644 2",
        "tree/ 755",
        "tree/a/ 755",
        "tree/a/new 644 2",
        "usr/ 755",
        "usr/lib/ 755",
        "usr/lib/through-a-link 644 2",
        "was-file/ 711",
        "was-folder 644 2",
    ];
    assert_eq!(listing(&container.root), expected);
    assert_eq!(container.layers, 3);
    assert!(stage.outside_is_as_it_was());
}

#[test]
fn hard_links_attributes_and_long_names_survive() {
    let stage = Stage::new();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let pax = |key: &str, value: &[u8]| vec![(key.to_owned(), value.to_vec())];
    let container = stage.unpacked(&[plain(&[
        file("first", "x"),
        link(EntryType::Link, "second", "./first"),
        Item { pax: pax("path", long.as_bytes()), ..file("short", "long") },
        // A line feed inside a binary value is no end of it.
        Item { pax: pax("SCHILY.xattr.user.binary", b"a\n\n\0b"), ..file("attributes", "") },
        Item {
            pax: pax("comment", b"of the archive"),
            ..item(EntryType::XGlobalHeader, "pax_global_header")
        },
        file("last", ""),
    ])]);
    let at = |name: &str| container.root.join(name);
    assert_eq!(at("first").metadata().unwrap().ino(), at("second").metadata().unwrap().ino());
    assert_eq!(std::fs::read(at(&long)).unwrap(), b"long");
    assert!(at("last").exists() && !at("short").exists());
    let mut value = [0; 16];
    let bytes = rustix::fs::lgetxattr(at("attributes"), "user.binary", &mut value).unwrap();
    assert_eq!(&value[..bytes], b"a\n\n\0b");
}

#[test]
fn owners_and_devices_are_kept_by_root_and_refused_to_others_with_the_way_out() {
    let stage = Stage::new();
    let owned = plain(&[Item { owner: (7, 70_000), mode: 0o2755, ..file("owned", "x") }]);
    let device = Item { device: (1, 3), mode: 0o666, ..item(EntryType::Char, "null") };
    if nix::unistd::geteuid().is_root() {
        let container = stage.unpacked(&[owned, plain(&[device])]);
        let meta = container.root.join("owned").metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (7, 70_000, 0o2755));
        let meta = container.root.join("null").metadata().unwrap();
        assert!(meta.file_type().is_char_device());
        assert_eq!((meta.rdev(), meta.mode() & 0o7777), (nix::sys::stat::makedev(1, 3), 0o666));
    } else {
        let refusal = stage.refusal(&[owned]);
        assert!(refusal.contains("/owned") && refusal.contains("fakeroot"), "{refusal}");
        let refusal = stage.refusal(&[plain(&[device])]);
        assert!(refusal.contains("/null") && refusal.contains("fakeroot"), "{refusal}");
    }
}

#[test]
fn every_packing_by_either_name_and_the_right_image_of_an_index_give_the_same_root() {
    let stage = Stage::new();
    let bytes = archive(&[file("etc/motd", "hello"), folder("usr", 0o755)]);
    let diff_id = Digest::of(&bytes);
    // Two members one after the other are one stream, for both.
    let (start, end) = bytes.split_at(700);
    let gzipped = [gzip(start), gzip(end)].concat();
    let zstd = [zstd::encode_all(start, 3).unwrap(), zstd::encode_all(end, 3).unwrap()].concat();
    let docker = "application/vnd.docker.image.rootfs.diff.tar";
    for (packed, suffixes) in [(bytes, ["", ""]), (gzipped, ["+gzip", ".gzip"]), (zstd, ["+zstd", ".zstd"])] {
        for (prefix, suffix) in [OCI_LAYER, docker].iter().zip(suffixes) {
            let layer = (packed.clone(), format!("{prefix}{suffix}"), diff_id);
            let root = stage.unpacked(&[layer]).root;
            assert_eq!(listing(&root), ["etc/ 755", "etc/motd 644 hello", "usr/ 755"], "{prefix}{suffix}");
        }
    }
    let docker_config = "application/vnd.docker.container.image.v1+json";
    let amd64 = stage.image(&[plain(&[file("amd64", "")])]);
    let arm64 = stage.image_for("arm64", docker_config, &[plain(&[file("arm64", "")])]);
    let entry = |digest, platform: Value| {
        let size = std::fs::metadata(stage.layout.blob_path(digest)).unwrap().len();
        json!({ "mediaType": MANIFEST_MEDIA_TYPE, "digest": digest, "size": size, "platform": platform })
    };
    let index = stage.manifest(
        "index",
        &json!({ "schemaVersion": 2, "manifests": [
            entry(&arm64, json!({ "architecture": "arm64", "os": "linux", "variant": "v8" })),
            entry(&amd64, json!({ "architecture": "amd64", "os": "linux" })),
            entry(&amd64, json!({ "architecture": "unknown", "os": "unknown" })),
        ] }),
    );
    assert_eq!(stage.unpack(index).unwrap().digest, amd64);
    assert_eq!(stage.unpack_for("linux/arm64", index, LIMIT).unwrap().digest, arm64);
    assert_eq!(stage.unpack_for("linux/arm64/v8", index, LIMIT).unwrap().digest, arm64);
    let error = stage.unpack_for("linux/riscv64", index, LIMIT).unwrap_err().to_string();
    assert!(
        error.contains("not for linux/riscv64") && error.contains("linux/arm64/v8, linux/amd64"),
        "{error}"
    );
    let error = stage.unpack(arm64).unwrap_err().to_string();
    assert!(error.contains("linux/arm64") && error.contains("--platform"), "{error}");
}

#[test]
fn kernels_are_found_by_either_custom_and_several_are_listed() {
    let stage = Stage::new();
    let bootc = |version: &str| {
        vec![
            file(format!("usr/lib/modules/{version}/vmlinuz"), format!("kernel {version}")),
            file(format!("usr/lib/modules/{version}/initramfs.img"), "initrd"),
            file(format!("usr/lib/modules/{version}/modules.dep"), ""),
        ]
    };
    let debian = |version: &str| {
        vec![
            link(EntryType::Symlink, "lib", "usr/lib"),
            file(format!("boot/vmlinuz-{version}"), format!("kernel {version}")),
            file(format!("boot/initrd.img-{version}"), "initrd"),
            file(format!("boot/config-{version}"), "CONFIG_X=y"),
            file(format!("usr/lib/modules/{version}/modules.dep"), ""),
        ]
    };
    for (items, version) in [(bootc("6.1.0-1"), "6.1.0-1"), (debian("6.12.9+deb13"), "6.12.9+deb13")] {
        let container = stage.unpacked(&[plain(&items)]);
        let kernel = container.kernel(None, true).unwrap();
        assert_eq!(kernel.version, version);
        assert_eq!(std::fs::read(kernel.kernel).unwrap(), format!("kernel {version}").as_bytes());
        assert_eq!(std::fs::read(kernel.initrd.unwrap()).unwrap(), b"initrd");
        let modules = kernel.modules_dir.unwrap();
        assert_eq!(modules, container.root.join("usr/lib/modules").join(version));
        // Boot files travel as boot files, and are not in the root a second time.
        let names: Vec<_> =
            std::fs::read_dir(modules).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["modules.dep"]);
        assert!(std::fs::read_dir(container.root.join("boot")).map_or(0, Iterator::count) == 0);
    }
    let container = stage.unpacked(&[plain(&[bootc("6.1.0-1"), debian("6.12.9+deb13")].concat())]);
    let error = container.kernel(None, true).unwrap_err().to_string();
    assert!(error.contains("6.1.0-1, 6.12.9+deb13") && error.contains("--kernel-version"), "{error}");
    assert_eq!(container.kernel(Some("6.12.9+deb13"), true).unwrap().version, "6.12.9+deb13");
    let error = container.kernel(Some("5.10"), true).unwrap_err().to_string();
    assert!(error.contains("kernel 5.10") && error.contains("6.1.0-1"), "{error}");

    let error = stage.unpacked(&[plain(&[])]).kernel(None, true).unwrap_err().to_string();
    assert!(error.contains("/boot/vmlinuz-VERSION") && error.contains("--kernel"), "{error}");
    let unindexed = stage.unpacked(&[plain(&bootc("6.1")[..2])]);
    let error = unindexed.kernel(None, true).unwrap_err().to_string();
    assert!(error.contains("`depmod 6.1`"), "{error}");
    unindexed.kernel(None, false).unwrap();
}

#[test]
fn a_kernel_that_is_a_link_is_read_inside_the_image() {
    let stage = Stage::new();
    let boot = link(EntryType::Symlink, "boot", "usr");
    let container =
        stage.unpacked(&[plain(&[boot, file("usr/vmlinuz-5.10", "kernel"), file("usr/kept", "")])]);
    assert_eq!(container.kernel(None, true).unwrap().version, "5.10");
    assert!(container.root.join("usr/kept").exists());
    let secret = stage.dir.path().join("outside/file");
    let modules = "usr/lib/modules/6.1";
    let container = stage.unpacked(&[plain(&[
        link(EntryType::Symlink, format!("{modules}/vmlinuz"), secret.as_os_str().as_bytes()),
        link(EntryType::Symlink, "boot/vmlinuz-6.1", "/usr/share/kernel"),
        file("usr/share/kernel", "kernel"),
        file(format!("{modules}/modules.dep"), ""),
    ])]);
    let kernel = container.kernel(None, true).unwrap();
    assert_eq!(std::fs::read(kernel.kernel).unwrap(), b"kernel");
    assert_eq!(std::fs::read(container.root.join("usr/share/kernel")).unwrap(), b"kernel");
}

/// What makes a release of an unpacked image.
fn release(stage: &Stage, root: &Path, kernel: &ContainerKernel, output: &str) -> Built {
    let init = stage.dir.path().join("init");
    std::fs::write(&init, static_program()).unwrap();
    let request = BuildRequest {
        product: "example-os".into(),
        name: "Example OS".into(),
        version: "1".into(),
        security_version: 0,
        compatible: vec![],
        ram_bytes: 0,
        root: RootSource::Folder(root.to_owned()),
        foreign: false,
        keep_compressed_modules: false,
        boot: BootSource::Kernel {
            kernel: kernel.kernel.clone(),
            initrd: InitrdSource::Packed(InitramfsRequest {
                init_binary: Some(init),
                modules_dir: kernel.modules_dir.clone(),
                modules_root: Some(root.to_owned()),
                extra_modules: vec![],
            }),
            devicetree: None,
            cmdline: String::new(),
        },
        verity_salt: None,
        level: 3,
        like: Default::default(),
        output: stage.dir.path().join(output),
        tag: None,
    };
    stage
        .runtime
        .block_on(build(request, std::sync::Arc::new(|_| ())))
        .unwrap_or_else(|e| panic!("{}", chain(&e)))
}

#[test]
fn the_same_image_gives_the_same_release_and_a_folder_with_the_same_files_the_same_root_hash() {
    let stage = Stage::new();
    let layers = || {
        let modules = "usr/lib/modules/6.1.0-test";
        [
            plain(&[
                file("usr/lib/switchback/contract", "contract = 1\n"),
                Item { mode: 0o4755, ..file("usr/bin/tool", vec![7; 70_000]) },
                link(EntryType::Link, "usr/bin/same-tool", "usr/bin/tool"),
                link(EntryType::Symlink, "bin", "usr/bin"),
                folder("srv", 0o2770),
                file("usr/share/old", "old"),
            ]),
            plain(&[
                file(format!("{modules}/vmlinuz"), "kernel"),
                file(format!("{modules}/modules.dep"), "kernel/vfat.ko:\n"),
                file(format!("{modules}/kernel/vfat.ko"), "vfat"),
                file("usr/share/.wh.old", ""),
            ]),
        ]
    };
    let built = |output: &str| {
        let container = stage.unpacked(&layers());
        let kernel = container.kernel(None, true).unwrap();
        assert_eq!(container.labels["org.opencontainers.image.title"], "Seven");
        release(&stage, &container.root, &kernel, output)
    };
    let first = built("first");
    let second = built("second");
    assert_eq!(first.digest, second.digest);
    assert_eq!(first.modules.unwrap().modules[0].bytes, b"vfat");

    // The same files, by hand and in another order.
    let root = stage.dir.path().join("by-hand");
    let at = |name: &str| root.join(name);
    for name in [
        "var/lib/switchback",
        "tmp",
        "efi",
        "sys",
        "run",
        "proc",
        "dev",
        "srv",
        "usr/share",
        "usr/bin",
        "usr/lib/switchback",
        "usr/lib/modules/6.1.0-test/kernel",
    ] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    let write = |name: &str, bytes: &[u8], mode| {
        std::fs::write(at(name), bytes).unwrap();
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    write("usr/lib/modules/6.1.0-test/modules.dep", b"kernel/vfat.ko:\n", 0o644);
    write("usr/lib/modules/6.1.0-test/kernel/vfat.ko", b"vfat", 0o644);
    write("usr/bin/same-tool", &[7; 70_000], 0o4755);
    std::fs::hard_link(at("usr/bin/same-tool"), at("usr/bin/tool")).unwrap();
    write("usr/lib/switchback/contract", b"contract = 1\n", 0o644);
    std::os::unix::fs::symlink("usr/bin", at("bin")).unwrap();
    for entry in walkdir::WalkDir::new(&root).into_iter().filter_entry(|entry| entry.file_type().is_dir()) {
        std::fs::set_permissions(entry.unwrap().path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (name, mode) in [("tmp", 0o1777), ("srv", 0o2770)] {
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let roothash = crate::publish::build::roothash(&RootSource::Folder(root.clone()), false, None).unwrap();
    assert_eq!(roothash, first.roothash);
}

/// Asks to stop once so many bytes are done.
struct Impatient {
    after: u64,
    done: std::sync::atomic::AtomicU64,
}

impl Progress for Impatient {
    fn begin(&self, _: Phase, _: u64) {}
    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    }
    fn end(&self) {}
    fn say(&self, _: &str) {}
    fn stopped(&self) -> bool {
        self.done.load(std::sync::atomic::Ordering::Relaxed) >= self.after
    }
}

#[test]
fn a_wish_to_stop_is_heard_in_the_middle_of_a_layer() {
    let stage = Stage::new();
    let layer = plain(&[file("large", vec![1; 8 << 20])]);
    let bytes = layer.0.len() as u64;
    let digest = stage.image(&[layer]);
    let work = stage.dir.path().join("work");
    let request =
        ContainerRequest { digest, platform: "linux/amd64".parse().unwrap(), bytes_max: LIMIT, knob: KNOB };
    // After the fetch, in the middle of the second reading.
    for (after, heard) in [(bytes + bytes / 2, true), (3 * bytes, false)] {
        let progress = Impatient { after, done: 0.into() };
        std::fs::create_dir(&work).unwrap();
        let unpacked = stage.runtime.block_on(unpack(&stage.layout, &request, &work, &progress));
        assert_eq!(matches!(unpacked, Err(ContainerError::Interrupted)), heard);
        assert_eq!(unpacked.is_ok(), !heard);
        let done = progress.done.into_inner();
        assert_eq!(done, if heard { done.min(2 * bytes - 1) } else { 2 * bytes });
        std::fs::remove_dir_all(&work).unwrap();
    }
}
