//! The binary that ships on devices is small, stands alone and has no author's verbs.
//!
//! Not here: what it does (`boot.rs` runs it). Rule: it is the file that `make device` made, not one built for the test.

use std::process::Command;

use switchback_tests::lab::tools;

/// What a small machine's root can spare.
const DEVICE_BYTES_MAX: u64 = 9 << 20;

#[test]
fn the_device_binary_is_under_nine_mebibytes() {
    let binary = tools::device_binary().expect("the device's binary is built");
    let bytes = std::fs::metadata(&binary).expect("its size").len();
    assert!(bytes < DEVICE_BYTES_MAX, "{} has {bytes} bytes", binary.display());
}

#[test]
fn the_device_binary_needs_no_library_and_no_loader() {
    let binary = tools::device_binary().expect("the device's binary is built");
    let bytes = std::fs::read(binary).expect("it is readable");
    let interpreter = b"/lib64/ld-linux";
    assert!(
        !bytes.windows(interpreter.len()).any(|window| window == interpreter),
        "it asks for a dynamic loader"
    );
}

#[test]
fn the_device_binary_runs_and_leaves_authoring_to_authors() {
    let binary = tools::device_binary().expect("the device's binary is built");
    let version = tools::run(Command::new(&binary).arg("--version")).expect("it runs");
    assert!(version.starts_with("switchback "), "{version}");
    tools::run(Command::new(&binary).args(["image", "build", "--help"])).expect_err("no author's verbs");
}
