//! The Debian package: made, looked at by `lintian`, installed into a fresh Debian 12, used there, removed and purged.
//!
//! Not here: what the program in it does (all other tests). Rule: a real `dpkg` in a root that `mmdebstrap` made a moment
//! ago from this machine's own Debian archive; its files are listed before and after.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use switchback::config::Config;
use switchback_tests::lab::tools;
use switchback_tests::machine::{Answer, text};

/// The exit code of `not-updatable`.
const NOT_UPDATABLE: i32 = 77;
const CONFFILE: &str = "/etc/switchback/config.toml";
/// What dpkg itself rewrites with every package, and what a package's files are not.
const BOOKKEEPING: [&str; 3] = ["/var/lib/dpkg", "/var/log", "/var/cache"];

/// Builds the package into `folder`.
fn build(folder: &Path) -> PathBuf {
    let mut script = Command::new(tools::repository().join("packaging/deb"));
    PathBuf::from(tools::run(script.arg(tools::device_binary().unwrap()).arg(folder)).unwrap().trim_end())
}

/// A fresh Debian 12 with systemd in `root`.
fn debian(root: &Path) {
    assert!(nix::unistd::geteuid().is_root(), "a Debian root is made by root: run this test as root");
    let mirror = tools::run(Command::new("apt-get").args([
        "indextargets",
        "--no-release-info",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]));
    let mirror = mirror.unwrap();
    let mirror = mirror.lines().map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    let mirror = mirror.expect("an archive of Debian among this machine's apt sources");
    let mut make = Command::new(tools::program("mmdebstrap", "mmdebstrap").unwrap());
    make.args(["--quiet", "--variant=minbase", "--include=systemd,ca-certificates", "bookworm"])
        .arg(root)
        .arg(mirror);
    tools::run(&mut make).unwrap();
}

fn inside(root: &Path, command: &[&str]) -> Output {
    let mut chroot = Command::new(tools::program("unshare", "util-linux").unwrap());
    // Mounts of its own: `/proc` is there for the command and gone with it.
    chroot.args(["--mount", "--pid", "--fork", "--kill-child"]);
    chroot.arg(format!("--mount-proc={}", root.join("proc").display())).arg("--").arg("chroot");
    chroot
        .arg(root)
        .args(command)
        .env("LC_ALL", "C.UTF-8")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap()
}

fn succeeds(root: &Path, command: &[&str]) -> String {
    let output = inside(root, command);
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Result and words of the doctor's finding `boot-check`.
fn boot_check(root: &Path) -> (String, String) {
    let doctor = Answer::of(&inside(root, &["switchback", "--json", "doctor", "--offline"])).unwrap();
    let findings = doctor.said["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["name"] == "boot-check").unwrap();
    let word = |key: &str| finding[key].as_str().unwrap().to_owned();
    (word("result"), word("found"))
}

/// Every path of the root but bookkeeping.
fn paths(root: &Path) -> BTreeSet<String> {
    let found = succeeds(root, &["find", "/", "-xdev", "-printf", "%p\n"]);
    let kept = |path: &&str| !BOOKKEEPING.iter().any(|folder| path.starts_with(folder));
    found.lines().filter(kept).map(str::to_owned).collect()
}

fn new(now: &BTreeSet<String>, before: &BTreeSet<String>) -> Vec<String> {
    now.difference(before).cloned().collect()
}

#[test]
fn the_package_is_the_same_twice_and_lintian_has_nothing_to_say() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| build(&folder.path().join(name)));
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap(), "two runs make the same bytes");
    let mut lintian = Command::new(tools::program("lintian", "lintian").unwrap());
    let output = lintian.args(["--allow-root", "--fail-on=error,warning"]).arg(&one).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn its_configuration_is_the_documented_one_with_every_line_commented() {
    let folder = tempfile::tempdir().unwrap();
    let package = build(folder.path());
    tools::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(folder.path().join("root")))
        .unwrap();
    let file = folder.path().join("root").join(CONFFILE.trim_start_matches('/'));
    assert_eq!(Config::load(&file).unwrap(), Config::default(), "installed, it changes nothing");
    let documented = std::fs::read_to_string(tools::repository().join("docs/src/config.toml")).unwrap();
    let shipped = std::fs::read_to_string(&file).unwrap();
    assert_eq!(shipped.lines().count(), documented.lines().count());
    for (shipped, documented) in shipped.lines().zip(documented.lines()) {
        assert!(shipped.is_empty() || shipped.starts_with('#'), "{shipped}");
        assert!(shipped.ends_with(documented), "{shipped} is not {documented}");
    }
}

#[test]
fn a_fresh_debian_installs_it_asks_the_doctor_and_is_rid_of_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    debian(&root);
    let package = build(folder.path());
    std::fs::copy(&package, root.join("root/switchback.deb")).unwrap();
    let before = paths(&root);

    succeeds(&root, &["dpkg", "-i", "/root/switchback.deb"]);
    assert_eq!(
        succeeds(&root, &["dpkg", "--verify", "switchback"]),
        "",
        "what is installed is what was packed"
    );
    assert!(succeeds(&root, &["switchback", "--version"]).starts_with("switchback "));
    let enabled: Vec<_> = new(&paths(&root), &before)
        .into_iter()
        .filter(|path| path.contains(".wants") || path.contains(".requires"))
        .collect();
    assert_eq!(enabled, [""; 0], "nothing is enabled by installing it");

    let installed = paths(&root);
    let doctor = inside(&root, &["switchback", "doctor", "--offline"]);
    let said = text(&doctor.stdout);
    assert_eq!(doctor.status.code(), Some(NOT_UPDATABLE), "{said}{}", text(&doctor.stderr));
    for missing in [
        "PROBLEM  layout",
        "PROBLEM  running-slot",
        "PROBLEM  boot-check",
        "PROBLEM  trust-policy",
        "PROBLEM  source",
    ] {
        assert!(said.contains(missing), "{missing}: {said}");
    }
    assert_eq!(
        boot_check(&root),
        ("problem".into(), "installed and not enabled: nobody judges a start".into())
    );
    assert_eq!(new(&paths(&root), &installed), [""; 0], "the doctor leaves nothing behind");
    println!("{said}");

    // What an administrator does and what the updater leaves must not stay for ever.
    succeeds(
        &root,
        &["systemctl", "enable", "switchback-boot-check.service", "switchback-trial-deadline.timer"],
    );
    assert!(
        root.join("etc/systemd/system/sysinit.target.wants/switchback-trial-deadline.timer").is_symlink()
    );
    std::fs::write(root.join("var/lib/switchback/facts-1"), "what the updater remembers").unwrap();
    assert_eq!(
        boot_check(&root),
        ("ok".into(), "enabled for boot-complete.target, multi-user.target".into())
    );

    succeeds(&root, &["dpkg", "--remove", "switchback"]);
    let left = ["/etc/switchback", CONFFILE, "/var/lib/switchback", "/var/lib/switchback/facts-1"];
    assert_eq!(new(&paths(&root), &before), left, "removed: the conffile and the records stay");
    succeeds(&root, &["dpkg", "--purge", "switchback"]);
    assert_eq!(new(&paths(&root), &before), [""; 0], "purged: nothing stays");
    assert_eq!(new(&before, &paths(&root)), [""; 0], "and nothing else went");
}
