//! `make demo` by somebody who may do nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use switchback_tests::lab::tools;

/// Debian's `nobody`.
const NOBODY: u32 = 65534;

#[test]
fn the_demo_needs_no_privilege() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    // Copies, because the folder of the build may be closed to others.
    let programs = [Path::new(env!("CARGO_BIN_EXE_demo")).to_owned(), tools::switchback().unwrap()];
    for program in &programs {
        let copy = folder.path().join(program.file_name().unwrap());
        fs::copy(program, &copy).unwrap();
        fs::set_permissions(copy, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut demo = match nix::unistd::geteuid().is_root() {
        true => {
            std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
            let mut setpriv = Command::new(tools::program("setpriv", "util-linux").unwrap());
            setpriv.args([
                &format!("--reuid={NOBODY}"),
                &format!("--regid={NOBODY}"),
                "--clear-groups",
                "--no-new-privs",
            ]);
            setpriv.arg(folder.path().join("demo"));
            setpriv
        }
        false => Command::new(folder.path().join("demo")),
    };
    let began = Instant::now();
    demo.arg(folder.path().join("switchback")).current_dir(&home).env("HOME", &home).env("TMPDIR", &home);
    let said = tools::run(&mut demo).unwrap();
    println!("the demo as an unprivileged user: {:.1} s", began.elapsed().as_secs_f64());
    for word in [
        "1.0",
        "1.1",
        "1.2",
        "slot a",
        "slot b",
        "MiB fetched",
        "cannot find its database",
        "quarantined  1.2 sha256:",
    ] {
        assert!(said.contains(word), "no {word:?} in:\n{said}");
    }
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0, "it leaves nothing behind");
}
