//! Container images made by buildah and kept in a real registry, against umoci's reading of the same layers.
//!
//! Not here: images that no tool makes (`publish::container`'s own tests), the recipes of the book (`documents`). Rule: the
//! other program decides what the root is.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use switchback_tests::lab::registry::Registry;
use switchback_tests::lab::{containers, tools};

/// Debian's `nobody`.
const NOBODY: u32 = 65534;

/// What engines do with layers, in one image: files replaced, removed, emptied folders, links, owners, modes.
const CONTAINERFILE: &str = r#"FROM scratch
LABEL io.switchback.product=container org.opencontainers.image.title="Container OS" org.opencontainers.image.version=3.1
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /etc/deep/er /usr/lib/switchback /opt && echo 1 >/etc/deep/er/gone && echo 1 >/etc/emptied && echo 1 >/etc/kept
RUN echo 'contract = 1' >/usr/lib/switchback/contract
RUN rm -r /etc/deep && mkdir /etc/deep && echo 2 >/etc/deep/new && echo 2 >/etc/emptied && rm /etc/kept
RUN ln /etc/emptied /etc/second-name && ln -s /etc/deep /opt/link && echo 3 >/opt/link/through-the-link
RUN chown 8:70 /opt && chmod 2750 /opt && echo x >/opt/setuid && chown 5 /opt/setuid && chmod 4711 /opt/setuid && mkfifo /opt/fifo
RUN mkdir -p /boot /usr/lib/modules/6.1-test && echo kernel >/boot/vmlinuz-6.1-test && echo initrd >/boot/initrd.img-6.1-test
RUN : >/usr/lib/modules/6.1-test/modules.dep
"#;

/// A folder with the image, built, in a layout folder `image`.
struct Kitchen {
    folder: tempfile::TempDir,
}

impl Kitchen {
    fn new() -> Kitchen {
        let folder = tempfile::tempdir().unwrap();
        let kitchen = Kitchen { folder };
        fs::create_dir(kitchen.path("context")).unwrap();
        let busybox = tools::program("busybox", "busybox-static").unwrap();
        fs::copy(busybox, kitchen.path("context/busybox")).unwrap();
        fs::write(kitchen.path("context/Containerfile"), CONTAINERFILE).unwrap();
        kitchen.buildah(&["bud", "--layers", "--tag", "os", kitchen.path("context").to_str().unwrap()]);
        kitchen.buildah(&["push", "os", &kitchen.layout()]);
        kitchen
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn layout(&self) -> String {
        format!("oci:{}:3.1", self.path("image").display())
    }

    fn buildah(&self, arguments: &[&str]) -> String {
        let mut buildah = containers::buildah(self.folder.path()).unwrap();
        tools::run(buildah.args(arguments).env("HOME", self.folder.path())).unwrap()
    }

    /// A release of what `source` names, built by `program` and all that stands before it.
    fn build(&self, output: &str, source: &[&str]) -> Value {
        let mut command = Command::new(tools::switchback().unwrap());
        build_words(&mut command, &self.path(output), source);
        serde_json::from_str(&tools::run(&mut command).unwrap()).unwrap()
    }
}

fn build_words(command: &mut Command, output: &Path, source: &[&str]) {
    command.args(["--json", "--progress", "none", "image", "build", "--level", "3"]).args(source);
    // Any static program: nothing is booted here.
    command.arg("--init-binary").arg(tools::program("busybox", "busybox-static").unwrap());
    command.arg("--output").arg(format!("oci:{}", output.display()));
}

/// Root, who alone can unpack what belongs to others and look at it.
fn expect_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "umoci keeps owners for root alone: run this test as root, or by `unshare --map-auto --map-root-user`"
    );
}

#[test]
fn the_root_of_a_container_image_is_the_one_that_umoci_unpacks_however_it_is_packed_and_fetched() {
    expect_root();
    let kitchen = Kitchen::new();
    let layout = kitchen.layout();
    let first = kitchen.build("first", &["--from-container", &layout]);
    assert_eq!(first["tag"], "3.1");
    assert_eq!(first["container"]["kernel"], "6.1-test");
    println!("{} layers, root hash {}", first["container"]["layers"], first["roothash"]);
    let untagged = layout.strip_suffix(":3.1").unwrap();
    assert_eq!(kitchen.build("again", &["--from-container", untagged])["digest"], first["digest"]);

    let bundle = kitchen.path("bundle");
    let mut umoci = Command::new(tools::program("umoci", "umoci").unwrap());
    umoci.args(["unpack", "--image", layout.strip_prefix("oci:").unwrap()]).arg(&bundle);
    tools::run(&mut umoci).unwrap();
    let root = bundle.join("rootfs");
    let kernel = kitchen.path("kernel");
    fs::rename(root.join("boot/vmlinuz-6.1-test"), &kernel).unwrap();
    fs::remove_file(root.join("boot/initrd.img-6.1-test")).unwrap();
    for folder in ["dev", "proc", "sys", "run", "efi", "tmp", "var/lib/switchback"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let modules = root.join("usr/lib/modules/6.1-test");
    let words = ["--product", "container", "--name", "Container OS", "--version", "3.1", "--root"];
    let more = ["--kernel", kernel.to_str().unwrap(), "--modules-dir", modules.to_str().unwrap()];
    let by_umoci = kitchen.build("umoci", &[&words[..], &[root.to_str().unwrap()], &more].concat());
    assert_eq!(by_umoci["roothash"], first["roothash"]);
    assert_eq!(by_umoci["digest"], first["digest"]);

    let registry = Registry::start(&kitchen.path("registry")).unwrap();
    for (tag, options) in [
        ("oci", &["--format", "oci"][..]),
        ("docker", &["--format", "v2s2"]),
        ("zstd", &["--format", "oci", "--compression-format", "zstd"]),
    ] {
        let place = format!("{}/os:{tag}", registry.host());
        let to = format!("docker://{place}");
        let words = [&["push", "--tls-verify=false"], options, &["os", &to]].concat();
        kitchen.buildah(&words);
        let fetched = kitchen.build(tag, &["--from-container", &place, "--plain-http", &registry.host()]);
        assert_eq!(fetched["digest"], first["digest"], "{tag}");
    }
}

#[test]
fn without_root_owners_are_refused_rather_than_lost_and_fakeroot_keeps_them() {
    let kitchen = Kitchen::new();
    let source = kitchen.layout();
    let by_root =
        nix::unistd::geteuid().is_root().then(|| kitchen.build("root", &["--from-container", &source]));
    // A copy, because the folder of the build may be closed to others.
    let program = kitchen.path("switchback");
    fs::copy(tools::switchback().unwrap(), &program).unwrap();
    let init = kitchen.path("context/busybox");
    let home = kitchen.path("home");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(kitchen.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for file in [&program, &init] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let build = |before: &[&Path]| {
        let mut words: Vec<PathBuf> = Vec::new();
        if by_root.is_some() {
            std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
            words.push(tools::program("setpriv", "util-linux").unwrap());
            for option in ["--reuid=65534", "--regid=65534", "--clear-groups", "--"] {
                words.push(option.into());
            }
        }
        words.extend(before.iter().map(|path| path.to_path_buf()));
        words.push(program.clone());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(&home).env("HOME", &home).env("TMPDIR", &home);
        command.args(["--json", "image", "build", "--level", "3", "--from-container", &source]);
        command.arg("--init-binary").arg(&init).args(["--output", "oci:release"]);
        command
    };
    let refused = build(&[]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stdout) + String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(74), "{said}");
    assert!(
        said.contains("/opt/fifo: it belongs to another user or group than root")
            && said.contains("fakeroot"),
        "{said}"
    );
    assert_eq!(fs::read_dir(home.join("release")).unwrap().count(), 0, "it leaves nothing behind");

    let fakeroot = tools::program("fakeroot", "fakeroot").unwrap();
    let built: Value = serde_json::from_str(&tools::run(&mut build(&[&fakeroot])).unwrap()).unwrap();
    if let Some(by_root) = by_root {
        assert_eq!(built["digest"], by_root["digest"]);
    }
}

#[test]
fn what_is_typed_wins_and_what_is_missing_is_named() {
    let kitchen = Kitchen::new();
    let bare = kitchen.path("context/bare");
    fs::write(&bare, "FROM scratch\nCOPY busybox /bin/busybox\n").unwrap();
    let context = kitchen.path("context");
    kitchen.buildah(&["bud", "--file", bare.to_str().unwrap(), "--tag", "bare", context.to_str().unwrap()]);
    let image = format!("oci:{}:1", kitchen.path("bare").display());
    kitchen.buildah(&["push", "bare", &image]);
    let run = |words: &[&str]| {
        let mut command = Command::new(tools::switchback().unwrap());
        build_words(&mut command, &kitchen.path("release"), words);
        let output = command.output().unwrap();
        (output.status.code().unwrap(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let names = ["--product", "p", "--name", "n", "--version", "1"];
    let kernel = kitchen.path("context/busybox");
    let kernel = ["--kernel", kernel.to_str().unwrap()];
    let from = ["--from-container", &image];
    let two = format!("oci:{}", kitchen.path("two").display());
    kitchen.buildah(&["push", "bare", &format!("{two}:a")]);
    kitchen.buildah(&["push", "os", &format!("{two}:b")]);
    let absent = format!("oci:{}:2", kitchen.path("bare").display());
    for (words, code, expected) in [
        (from.to_vec(), 74, "no label `io.switchback.product`, so give --product"),
        ([&from[..], &names].concat(), 74, "it has neither /usr/lib/modules/VERSION/vmlinuz nor"),
        (
            [&from[..], &names, &kernel].concat(),
            74,
            "while checking the container image: it has no /usr/lib/switchback/contract",
        ),
        (vec!["--from-container", &absent], 31, "it is not there"),
        (vec!["--from-container", &two], 74, "holds several images: name one of the tags a, b"),
        ([&from[..], &["--platform", "linux/s390x"]].concat(), 74, "found: linux/amd64"),
        ([&from[..], &["--container-limit", "1K"]].concat(), 74, "1024 are allowed"),
    ] {
        let (found, said) = run(&words);
        let detail = said["detail"].as_str().unwrap();
        assert!(found == code && detail.contains(expected), "{words:?}: {found} {said:#}");
    }
    let (code, built) = run(&[&from[..], &names, &kernel, &["--foreign"]].concat());
    assert_eq!((code, &built["container"]["kernel"]), (0, &Value::Null), "{built:#}");
    let (code, built) =
        run(&["--from-container", &kitchen.layout(), "--version", "9", "--initrd-from-image"]);
    assert_eq!((code, built["tag"].as_str()), (0, Some("9")), "{built:#}");
}
