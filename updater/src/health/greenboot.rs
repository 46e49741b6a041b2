//! greenboot's folders as they are: an image that was made for greenboot brings its checks along unchanged.
//!
//! Not here: the verdict (`mod`), when `green.d` and `red.d` run (`engine`). Rule: which files count, their order and the
//! names that switch them off are greenboot's; a check in `wanted.d` is told and never decides, whatever it does.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::{CheckOutcome, CheckResult, Context, run_check};
use crate::config::{Check, Probe};
use crate::host::bounded::read_bounded;

/// Where greenboot looks, beneath the root, in this order; what is added to a script's name to tell the two apart.
const FOLDERS: [(&str, &str); 2] = [("usr/lib/greenboot", ""), ("etc/greenboot", " (etc)")];
/// greenboot's configuration, beneath the root.
const CONFIG: &str = "etc/greenboot/greenboot.conf";
/// Bound of the configuration in bytes.
const CONFIG_BYTES_MAX: u64 = 64 << 10;
/// The variable that switches checks off, a list as bash writes it.
const DISABLED: &str = "DISABLED_HEALTHCHECKS=";
/// Most files of one folder that are looked at; more is a mistake and not a machine.
const FILES_MAX: usize = 256;
/// A required script has the time that all checks have together: greenboot itself sets none.
const REQUIRED_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// A wanted one is cut off before, so that a hang in it cannot use up the time of the checks that decide.
const WANTED_TIMEOUT: Duration = Duration::from_secs(60);
/// All scripts of `green.d` or `red.d` together: the way back must not wait for them longer.
pub const HOOKS_TIMEOUT: Duration = Duration::from_secs(120);

/// What runs after a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooks {
    /// After a confirmation.
    Green,
    /// After a verdict of failure, before the restart.
    Red,
}

/// The checks of greenboot's folders.
#[derive(Debug, Default)]
pub(super) struct Scripts {
    required: Vec<Check>,
    wanted: Vec<Check>,
    /// Results that are known without running anything: what is switched off, what could not be read.
    known: Vec<CheckResult>,
}

impl Scripts {
    /// Looks beneath `root`.
    pub(super) fn find(root: &Path) -> Scripts {
        let mut scripts = Scripts::default();
        let disabled = disabled(root);
        for (kind, timeout) in [("required.d", REQUIRED_TIMEOUT), ("wanted.d", WANTED_TIMEOUT)] {
            let (found, unreadable) = checks_in(root, &format!("check/{kind}"), kind, timeout);
            let (off, on): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|(file, _)| disabled.contains(file));
            scripts.known.extend(off.into_iter().map(|(_, check)| known(check.name, CheckOutcome::Disabled)));
            scripts.known.extend(unreadable.into_iter().map(|result| match kind {
                "wanted.d" => only_told(result),
                _ => result,
            }));
            let list = if kind == "wanted.d" { &mut scripts.wanted } else { &mut scripts.required };
            list.extend(on.into_iter().map(|(_, check)| check));
        }
        scripts
    }

    /// True when something here can fail the machine.
    pub(super) fn decide(&self) -> bool {
        !self.required.is_empty() || self.known.iter().any(|result| result.outcome == CheckOutcome::Failed)
    }

    /// Runs them one after another, as greenboot does: they may rely on their order. All of the required ones run, so
    /// that every failure is listed.
    pub(super) async fn run(&self, by: Instant, context: &Context) -> Vec<CheckResult> {
        let mut results = in_turn(&self.required, by, context).await;
        results.extend(in_turn(&self.wanted, by, context).await.into_iter().map(only_told));
        results.extend(self.known.iter().cloned());
        results
    }
}

/// Runs the scripts of `green.d` or `red.d`. Their results are told and change nothing.
pub async fn run_hooks(hooks: Hooks, context: &Context) -> Vec<CheckResult> {
    let kind = match hooks {
        Hooks::Green => "green.d",
        Hooks::Red => "red.d",
    };
    let (found, unreadable) = checks_in(&context.root, kind, kind, HOOKS_TIMEOUT);
    let checks: Vec<Check> = found.into_iter().map(|(_, check)| check).collect();
    let mut results = in_turn(&checks, Instant::now() + HOOKS_TIMEOUT, context).await;
    results.extend(unreadable);
    results
}

async fn in_turn(checks: &[Check], by: Instant, context: &Context) -> Vec<CheckResult> {
    let mut results = Vec::new();
    for check in checks {
        results.push(run_check(check, by, context).await);
    }
    results
}

/// A failure of what may fail.
fn only_told(result: CheckResult) -> CheckResult {
    let outcome = match result.outcome {
        CheckOutcome::Failed | CheckOutcome::DeadlineMissed => CheckOutcome::WantedFailed,
        other => other,
    };
    CheckResult { outcome, ..result }
}

fn known(name: String, outcome: CheckOutcome) -> CheckResult {
    CheckResult { name, outcome, attempts: 0, millis: 0, detail: String::new() }
}

/// The scripts of one folder beneath both of greenboot's, with their file names. A folder that cannot be read is a
/// failure and not a check less.
fn checks_in(
    root: &Path,
    folder: &str,
    kind: &str,
    timeout: Duration,
) -> (Vec<(String, Check)>, Vec<CheckResult>) {
    let (mut checks, mut unreadable) = (Vec::new(), Vec::new());
    for (base, mark) in FOLDERS {
        let path = root.join(base).join(folder);
        match files_in(&path) {
            Ok(files) => checks.extend(files.into_iter().map(|file| {
                let name = format!("{kind}/{file}{mark}");
                let check = check(name, &path.join(&file), timeout);
                (file, check)
            })),
            Err(error) => unreadable.push(CheckResult {
                detail: format!("while looking into {}: {error}", path.display()),
                ..known(format!("{kind}{mark}"), CheckOutcome::Failed)
            }),
        }
    }
    (checks, unreadable)
}

/// The names that count, in their order: `*.sh`, and whatever may be executed.
fn files_in(folder: &Path) -> io::Result<Vec<String>> {
    use io::ErrorKind::{InvalidData, NotADirectory, NotFound};
    let entries = match std::fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().into_string();
        let name = name
            .map_err(|name| io::Error::new(InvalidData, format!("{} is no readable name", name.display())))?;
        // Links count as what they lead to.
        let counts = std::fs::metadata(entry.path()).is_ok_and(|file| {
            file.is_file() && (name.ends_with(".sh") || file.permissions().mode() & 0o111 != 0)
        });
        if counts {
            names.push(name);
        }
        if names.len() > FILES_MAX {
            return Err(io::Error::new(InvalidData, format!("it holds more than {FILES_MAX} scripts")));
        }
    }
    names.sort();
    Ok(names)
}

/// A script is given to bash, which needs no permission to execute it; anything else starts by itself.
fn check(name: String, file: &Path, timeout: Duration) -> Check {
    let file = file.to_string_lossy().into_owned();
    let argv = if file.ends_with(".sh") { vec!["bash".to_owned(), file] } else { vec![file] };
    let probe = Probe::Command { argv, cwd: None, env: BTreeMap::new() };
    Check { name, probe, timeout, retries: 0, interval: Duration::ZERO, soak: Duration::ZERO }
}

/// The file names that `DISABLED_HEALTHCHECKS=("…" "…")` switches off. What cannot be understood switches nothing off.
fn disabled(root: &Path) -> Vec<String> {
    let path = root.join(CONFIG);
    let text = match read_bounded(&path, CONFIG_BYTES_MAX) {
        Ok(bytes) => String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "greenboot's configuration cannot be read");
            return Vec::new();
        }
    };
    let lines = text.lines().map(str::trim_start).filter(|line| !line.starts_with('#'));
    let text = lines.collect::<Vec<_>>().join("\n");
    let Some((_, value)) = text.rsplit_once(DISABLED) else { return Vec::new() };
    let list = value.strip_prefix('(').and_then(|value| value.split_once(')'));
    if list.is_none() && !value.lines().next().unwrap_or_default().trim().is_empty() {
        tracing::warn!(path = %path.display(), "{DISABLED} is no list in parentheses and switches nothing off");
    }
    let words = list.map_or("", |(list, _)| list).split_whitespace();
    words.map(|word| word.trim_matches(['"', '\'']).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use switchback_partitions::slot::Slot;

    use super::super::{BUILT_IN, Health, HealthReport, Limits, run};
    use super::*;
    use CheckOutcome::{DeadlineMissed, Disabled, Failed, Passed, WantedFailed};

    const LIMITS: Limits = Limits { deadline: Duration::from_secs(30), soak: Duration::ZERO };

    fn put(root: &Path, path: &str, text: &str, mode: u32) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn context(root: &Path) -> Context {
        Context { slot: Slot::B, version: "1.2".into(), root: root.to_owned() }
    }

    async fn run_in(root: &Path, limits: Limits) -> HealthReport {
        run(&[], limits, &context(root), async { Ok(()) }).await
    }

    fn outcomes(results: &[CheckResult]) -> Vec<(&str, CheckOutcome)> {
        results.iter().map(|result| (result.name.as_str(), result.outcome)).collect()
    }

    #[tokio::test]
    async fn required_then_wanted_run_by_name_in_the_images_folder_and_then_in_etc() {
        let root = tempfile::tempdir().unwrap();
        let tell = "echo $0 | sed 's:.*/::' >> \"$SWITCHBACK_ROOT/order\"\n";
        put(root.path(), "etc/greenboot/check/required.d/00.sh", tell, 0o644);
        put(root.path(), "usr/lib/greenboot/check/required.d/20.sh", tell, 0o644);
        put(root.path(), "usr/lib/greenboot/check/required.d/10.sh", tell, 0o755);
        put(root.path(), "usr/lib/greenboot/check/wanted.d/05.sh", tell, 0o644);
        put(
            root.path(),
            "usr/lib/greenboot/check/required.d/15_program",
            &format!("#!/bin/sh\n{tell}"),
            0o755,
        );
        put(root.path(), "usr/lib/greenboot/check/required.d/README", "no program\n", 0o644);
        fs::create_dir(root.path().join("usr/lib/greenboot/check/required.d/folder.sh")).unwrap();
        let report = run_in(root.path(), LIMITS).await;
        let names = [
            ("required.d/10.sh", Passed),
            ("required.d/15_program", Passed),
            ("required.d/20.sh", Passed),
            ("required.d/00.sh (etc)", Passed),
            ("wanted.d/05.sh", Passed),
        ];
        assert_eq!(outcomes(&report.checks), names);
        let order = fs::read_to_string(root.path().join("order")).unwrap();
        assert_eq!(order, "10.sh\n15_program\n20.sh\n00.sh\n05.sh\n");
    }

    #[tokio::test]
    async fn every_required_failure_is_listed_and_a_wanted_one_is_told_and_fails_nothing() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "etc/greenboot/check/wanted.d/a.sh", "echo no light; exit 4", 0o644);
        put(root.path(), "etc/greenboot/check/required.d/a.sh", "true", 0o644);
        let report = run_in(root.path(), LIMITS).await;
        assert_eq!(report.health(), Health::Healthy);
        assert_eq!(
            outcomes(&report.checks),
            [("required.d/a.sh (etc)", Passed), ("wanted.d/a.sh (etc)", WantedFailed)]
        );
        assert_eq!(report.checks[1].detail, "exit status 4: no light");
        put(root.path(), "etc/greenboot/check/required.d/b.sh", "exit 5", 0o644);
        put(root.path(), "etc/greenboot/check/required.d/c", "#!/bin/sh\nexit 6", 0o755);
        let why = run_in(root.path(), LIMITS).await.why().unwrap();
        assert_eq!(why.detail, "required.d/b.sh (etc): exit status 5; required.d/c (etc): exit status 6");
    }

    #[tokio::test]
    async fn a_name_that_the_configuration_disables_is_shown_and_not_run() {
        let root = tempfile::tempdir().unwrap();
        for name in ["01_dns.sh", "02_watchdog.sh", "03.sh"] {
            put(root.path(), &format!("usr/lib/greenboot/check/required.d/{name}"), "exit 1", 0o644);
        }
        let conf = |text: &str| put(root.path(), CONFIG, text, 0o644);
        for (text, failed) in [
            ("DISABLED_HEALTHCHECKS=()\n", 3),
            ("# DISABLED_HEALTHCHECKS=(\"03.sh\")\n", 3),
            ("DISABLED_HEALTHCHECKS=03.sh\n", 3),
            ("A=1\nDISABLED_HEALTHCHECKS=(\"01_dns.sh\" \"02_watchdog\")\nB=2\n", 2),
            ("DISABLED_HEALTHCHECKS=(\"01_dns.sh\"\n  '03.sh')\n", 1),
        ] {
            conf(text);
            let report = run_in(root.path(), LIMITS).await;
            let count = |outcome| report.checks.iter().filter(|check| check.outcome == outcome).count();
            assert_eq!((count(Failed), count(Disabled)), (failed, 3 - failed), "{text}");
        }
        conf("DISABLED_HEALTHCHECKS=(\"01_dns.sh\" \"02_watchdog.sh\" \"03.sh\")\n");
        let report = run_in(root.path(), LIMITS).await;
        assert_eq!(report.checks[0].name, BUILT_IN, "where nothing decides, the built-in check does");
        assert_eq!(report.checks.len(), 4);
    }

    #[tokio::test]
    async fn wanted_checks_alone_leave_the_verdict_to_the_built_in_one() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "usr/lib/greenboot/check/wanted.d/a.sh", "true", 0o644);
        let failing = async { Err("it cannot".to_owned()) };
        let report = run(&[], LIMITS, &context(root.path()), failing).await;
        assert_eq!(outcomes(&report.checks), [(BUILT_IN, Failed), ("wanted.d/a.sh", Passed)]);
    }

    #[tokio::test]
    async fn the_deadline_ends_a_script_that_hangs_and_only_a_required_one_fails_by_it() {
        let root = tempfile::tempdir().unwrap();
        let limits = Limits { deadline: Duration::from_millis(500), ..LIMITS };
        put(root.path(), "usr/lib/greenboot/check/required.d/a.sh", "true", 0o644);
        put(root.path(), "usr/lib/greenboot/check/wanted.d/a.sh", "sleep 100", 0o644);
        let report = run_in(root.path(), limits).await;
        assert_eq!(report.health(), Health::Healthy, "{report:?}");
        assert_eq!(report.checks[1].outcome, WantedFailed);
        put(root.path(), "usr/lib/greenboot/check/required.d/a.sh", "sleep 100", 0o644);
        let report = run_in(root.path(), limits).await;
        assert_eq!(report.checks[0].outcome, DeadlineMissed);
    }

    #[tokio::test]
    async fn hooks_run_all_whatever_fails_and_know_the_machine() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "usr/lib/greenboot/red.d/a.sh", "exit 3", 0o644);
        put(root.path(), "etc/greenboot/red.d/b.sh", "echo $SWITCHBACK_SLOT > \"$SWITCHBACK_ROOT/b\"", 0o644);
        put(root.path(), "etc/greenboot/green.d/c.sh", "exit 9", 0o644);
        let results = run_hooks(Hooks::Red, &context(root.path())).await;
        assert_eq!(outcomes(&results), [("red.d/a.sh", Failed), ("red.d/b.sh (etc)", Passed)]);
        assert_eq!(fs::read_to_string(root.path().join("b")).unwrap(), "b\n");
        let results = run_hooks(Hooks::Green, &context(root.path())).await;
        assert_eq!(outcomes(&results), [("green.d/c.sh (etc)", Failed)]);
    }

    #[tokio::test]
    async fn a_folder_with_more_scripts_than_anybody_writes_is_a_failure_and_no_check_less() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..=FILES_MAX {
            put(root.path(), &format!("etc/greenboot/check/required.d/{number}.sh"), "true", 0o644);
        }
        let report = run_in(root.path(), LIMITS).await;
        assert_eq!(outcomes(&report.checks), [("required.d (etc)", Failed)]);
        assert!(report.checks[0].detail.contains("more than 256 scripts"), "{report:?}");
    }
}
