//! The programs that the lab runs, and where things lie.
//!
//! Rule: a program that is missing fails with the line that installs it; a program that fails is quoted in full.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// Where root's programs lie, which an ordinary user's PATH leaves out.
const MORE_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The repository's root.
pub fn repository() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// Where the lab keeps what it fetched, what it makes and what failed.
pub fn lab_folder() -> PathBuf {
    std::env::var_os("SWITCHBACK_LAB").map_or_else(|| repository().join(".lab"), PathBuf::from)
}

/// The path of a program of Debian's `package`.
pub fn program(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(MORE_FOLDERS.map(PathBuf::from));
    let found = folders.map(|folder| folder.join(name)).find(|file| file.is_file());
    found.with_context(|| {
        format!("{name} is not installed: apt-get install --no-install-recommends {package}")
    })
}

/// A file of Debian's `package`.
pub fn packaged_file(path: &str, package: &str) -> Result<PathBuf> {
    let file = PathBuf::from(path);
    ensure!(file.is_file(), "{path} is not there: apt-get install --no-install-recommends {package}");
    Ok(file)
}

/// What `tests/tools/fetch NAME` brings.
pub fn fetched(name: &str) -> Result<PathBuf> {
    let mut fetch = Command::new(repository().join("tests/tools/fetch"));
    Ok(PathBuf::from(run(fetch.arg(name))?.trim_end()))
}

/// The Debian mirror that this machine's own apt uses: no page and no test names one.
pub fn mirror() -> Result<String> {
    let mut targets = Command::new(program("apt-get", "apt")?);
    targets.args(["indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"]);
    let uris = run(&mut targets)?;
    let mut uris = uris.lines().map(|uri| uri.trim_end_matches('/'));
    let found = uris.find(|uri| uri.ends_with("/debian"));
    Ok(found.context("no Debian archive is among this machine's apt sources")?.to_owned())
}

/// The command line with the author's verbs, built beside the tests.
pub fn switchback() -> Result<PathBuf> {
    let beside = || {
        let test = std::env::current_exe().ok()?;
        Some(test.parent()?.parent()?.join("switchback"))
    };
    let file = std::env::var_os("SWITCHBACK").map(PathBuf::from).or_else(beside).unwrap_or_default();
    ensure!(file.is_file(), "{} is not built: cargo build -p switchback", file.display());
    Ok(file)
}

/// The static binary that ships on devices.
pub fn device_binary() -> Result<PathBuf> {
    let built = || for_devices("switchback");
    let file = std::env::var_os("SWITCHBACK_DEVICE").map_or_else(built, PathBuf::from);
    ensure!(file.is_file(), "{} is not built: make device", file.display());
    Ok(file)
}

/// PID 1 of the reference appliance, static too.
pub fn appliance_init() -> Result<PathBuf> {
    let file = for_devices("switchback-appliance-init");
    ensure!(file.is_file(), "{} is not built: make appliance-init", file.display());
    Ok(file)
}

fn for_devices(name: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("x86_64-unknown-linux-gnu/device").join(name)
}

/// Runs a program to its end and returns what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("while starting {command:?}"))?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{command:?} ended with {}\n{out}{err}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} printed what is not text"))
}

/// Copies an image; what is empty in it takes no room in the copy.
pub fn copy_image(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("--sparse=always").arg(from).arg(to)).map(drop)
}

/// A command that the kernel kills when the thread that started it is gone, so that no test leaves a machine or a
/// server behind, however it dies.
pub fn dies_with_us(program: &Path) -> Result<Command> {
    let mut command = Command::new(self::program("setpriv", "util-linux")?);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    Ok(command)
}
