//! The systemd units are accepted by systemd itself, and they name the files that the program really uses.

use std::path::Path;
use std::process::Command;

use switchback::init::{ON_TRIAL, keeper};

const UNITS: [&str; 6] = [
    "switchback-boot-check.service",
    "switchback-trial-deadline.service",
    "switchback-trial-deadline.timer",
    "switchback-verify.service",
    "switchback-verify.timer",
    "switchback-daemon.service",
];

fn unit(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("units").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn systemd_accepts_the_units_and_sees_no_loop_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("systemd-analyze");
    command.arg("verify").arg("--man=no").env("SYSTEMD_UNIT_PATH", format!("{}:", dir.path().display()));
    for name in UNITS {
        let path = dir.path().join(name);
        // The machine that runs the tests need not have the program installed.
        std::fs::write(&path, unit(name).replace("/usr/bin/switchback", "/bin/true")).unwrap();
        command.arg(path);
    }
    let wants = dir.path().join("multi-user.target.wants");
    std::fs::create_dir(&wants).unwrap();
    std::os::unix::fs::symlink(dir.path().join(UNITS[0]), wants.join(UNITS[0])).unwrap();
    let run = command.arg("multi-user.target").output();
    let run = run.unwrap_or_else(|error| panic!("systemd-analyze: {error}; apt-get install systemd"));
    let said = String::from_utf8_lossy(&run.stderr);
    let ours: Vec<_> =
        said.lines().filter(|line| line.contains("switchback") || line.contains("cycle")).collect();
    assert!(run.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn the_units_look_at_the_files_that_the_program_writes() {
    let (timer, service) = (unit(UNITS[2]), unit(UNITS[1]));
    assert!(timer.contains(&format!("ConditionPathExists=|{ON_TRIAL}\n")));
    assert!(service.contains(&format!("ConditionPathExists=!{}\n", keeper::CONFIRMED)));
    let inside = switchback::config::Boot::default().trial_deadline;
    assert!(switchback::init::cmdline::DEADLINE_DEFAULT >= inside, "the outer deadline cuts off no check");
    let minutes = switchback::init::cmdline::DEADLINE_DEFAULT.as_secs() / 60;
    assert!(timer.contains(&format!("OnBootSec={minutes}min\n")), "one deadline with and without systemd");
}

#[test]
fn the_cables_that_networkd_leaves_alone_are_ours() {
    let network = unit("10-switchback-cables.network");
    assert!(network.contains(&format!("Name={}*\n", switchback::services::network::CABLE)));
    assert!(network.contains("Unmanaged=yes\n"));
}

#[test]
fn the_health_check_gates_the_confirmation_by_systemd() {
    let service = unit(UNITS[0]);
    assert!(service.contains("Before=boot-complete.target\n"));
    assert!(service.contains("RequiredBy=boot-complete.target\n"));
}

#[test]
fn the_health_check_waits_for_a_state_partition_that_the_system_mounts() {
    let state_dir = switchback::config::Machine::default().state_dir;
    let mount = state_dir.to_string_lossy().trim_start_matches('/').replace('/', "-") + ".mount";
    assert!(unit(UNITS[0]).contains(&format!("After={mount}\n")));
    // The recipe mounts it there, and after `/var`, which would hide it.
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/recipes/debian-trixie");
    let recipe = std::fs::read_to_string(recipe).unwrap();
    let mounts = |label: &str, dir: &str| {
        recipe.lines().any(|line| line.split_whitespace().take(2).eq([&*format!("PARTLABEL={label}"), dir]))
    };
    assert!(mounts("data", "/var") && mounts("state", &state_dir.to_string_lossy()), "{recipe}");
}
