//! The logs of starts that failed, as text.
//!
//! Rule: one log in full, and how the others are called: several would only scroll each other away.

use std::fmt::Write as _;

use super::checks;
use crate::logs::StartLog;

/// The newest log in full, after one line for each of the others.
pub(super) fn text(logs: &[StartLog]) -> String {
    let Some((newest, others)) = logs.split_last() else {
        return "No log is kept of such a start.\n".to_owned();
    };
    let mut out = String::new();
    for log in others {
        // Writing to a string does not fail.
        let _ = writeln!(out, "also kept: {} (`switchback logs {}`)", head(log), log.name());
    }
    if !others.is_empty() {
        out.push('\n');
    }
    let _ = writeln!(out, "{}", head(newest));
    if let Some(why) = &newest.why {
        let _ = writeln!(out, "{why}");
    }
    for (title, results) in [("Health checks", &newest.checks), ("After the verdict", &newest.hooks)] {
        if !results.is_empty() {
            let _ = write!(out, "\n{title}:\n{}\n", checks(results));
        }
    }
    for (title, text) in [
        ("Crash record of the kernel", &newest.crash),
        ("End of the kernel's log", &newest.kernel),
        ("End of the journal", &newest.journal),
    ] {
        if !text.is_empty() {
            let _ = write!(out, "\n{title}:\n{}\n", plain(text));
        }
    }
    out
}

fn head(log: &StartLog) -> String {
    let digest = log.digest.map(|digest| format!(" (sha256:{}…)", digest.short())).unwrap_or_default();
    let version = if log.version.is_empty() { "an unknown release" } else { &log.version };
    let what = if log.outcome.is_some() { "failed its trial" } else { "crashed" };
    format!("{version}{digest} in slot {} {what}; kept at {}", log.slot, log.at.strftime("%Y-%m-%d %H:%M:%S"))
}

/// Without what could move a terminal's cursor: a log holds whatever a broken program printed.
pub(in crate::cli) fn plain(text: &str) -> String {
    text.chars()
        .map(|sign| if sign.is_control() && sign != '\n' && sign != '\t' { '?' } else { sign })
        .collect()
}

#[cfg(test)]
mod tests {
    use switchback_partitions::slot::Slot;

    use super::*;
    use crate::digest::Digest;
    use crate::health::{CheckOutcome, CheckResult};
    use crate::reason::{Reason, Why};

    fn log(version: &str, outcome: Option<u64>) -> StartLog {
        let blank = StartLog::blank(Slot::B, jiff::Timestamp::from_second(1_700_000_000).unwrap());
        StartLog { outcome, version: version.into(), digest: Some(Digest::of(version.as_bytes())), ..blank }
    }

    fn result(name: &str, outcome: CheckOutcome, detail: &str) -> CheckResult {
        CheckResult { name: name.into(), outcome, attempts: 1, millis: 7, detail: detail.into() }
    }

    #[test]
    fn the_newest_log_is_shown_in_full_and_the_others_are_named() {
        let newest = StartLog {
            why: Some(Why::new(Reason::HealthFailed, "web: exit status 1: no database")),
            checks: vec![
                result("web", CheckOutcome::Failed, "exit status 1: no database"),
                result("wanted.d/01.sh", CheckOutcome::WantedFailed, "exit status 2"),
                result("required.d/02.sh", CheckOutcome::Disabled, ""),
            ],
            hooks: vec![result("red.d/tell.sh", CheckOutcome::Passed, "")],
            crash: "Panic#1 Part1\n<0>the end".into(),
            kernel: "[    1.000000] hello \u{1b}[2J".into(),
            journal: "[    2.000000] demo web[1]: no database".into(),
            ..log("1.2", Some(7))
        };
        let shown = text(&[log("1.1", None), newest]);
        let shown: Vec<&str> = shown.lines().map(str::trim_end).collect();
        let expected = "\
also kept: 1.1 (sha256:DIGEST_1_1…) in slot b crashed; kept at 2023-11-14 22:13:20 (`switchback logs 1.1`)

1.2 (sha256:DIGEST_1_2…) in slot b failed its trial; kept at 2023-11-14 22:13:20
web: exit status 1: no database (health-failed)

Health checks:
 check             result               attempts  ms  detail
 web               FAILED               1         7   exit status 1: no database
 wanted.d/01.sh    failed, only wanted  1         7   exit status 2
 required.d/02.sh  disabled             1         7

After the verdict:
 check          result  attempts  ms  detail
 red.d/tell.sh  passed  1         7

Crash record of the kernel:
Panic#1 Part1
<0>the end

End of the kernel's log:
[    1.000000] hello ?[2J

End of the journal:
[    2.000000] demo web[1]: no database
";
        let [first, second] = ["1.1", "1.2"].map(|version| Digest::of(version.as_bytes()).short());
        let expected = expected.replace("DIGEST_1_1", &first).replace("DIGEST_1_2", &second);
        assert_eq!(shown, expected.lines().collect::<Vec<_>>());
        assert_eq!(text(&[]), "No log is kept of such a start.\n");
    }
}
