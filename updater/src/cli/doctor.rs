//! `doctor`: what was found, as text in columns and as JSON.
//!
//! Not here: looking (`crate::doctor`). Rule: a line can be read on 80 columns; what is wrong stands there with what to do.

use std::path::Path;

use super::Output;
use super::args::DoctorArgs;
use super::render::width;
use crate::doctor::{Finding, Level, Place, Report, examine};
use crate::reason::Reason;

/// What every terminal has, and what a file should have.
const WIDTH: usize = 80;
/// Longer lines are tiring to read.
const WIDTH_MAX: usize = 120;
const RESULT_WIDTH: usize = 9;
const NAME_WIDTH: usize = 20;

pub(super) fn run(args: &DoctorArgs, config: Option<&Path>) -> Output {
    let report = examine(&Place::here(args.offline), config);
    let reason = (report.result == Level::Problem).then_some(Reason::NotUpdatable);
    let mut json = serde_json::to_value(&report).unwrap_or_default();
    if let Some(json) = json.as_object_mut() {
        json.insert("answer".into(), "doctor".into());
        json.insert("reason".into(), serde_json::json!(reason));
    }
    let terminal = width().map_or(WIDTH, usize::from);
    Output { text: text(&report, terminal.clamp(WIDTH, WIDTH_MAX)), json, changed: false, reason }
}

/// The whole report.
fn text(report: &Report, width: usize) -> String {
    let mut out = String::new();
    for findings in report.findings.chunk_by(|one, two| one.group == two.group) {
        out.push_str(findings[0].group.title());
        out.push('\n');
        findings.iter().for_each(|finding| out.push_str(&lines(finding, width)));
        out.push('\n');
    }
    out + &summary(report)
}

/// Result and name once, and beside them what was found and what to do.
fn lines(finding: &Finding, width: usize) -> String {
    let found = format!("{}: {}", finding.looked_at, finding.found);
    let remedy = finding.remedy.as_ref().map(|remedy| format!("-> {remedy}"));
    let room = width.saturating_sub(RESULT_WIDTH + NAME_WIDTH);
    let (mut result, mut name) = (label(finding.result), finding.name);
    let mut out = String::new();
    for line in [Some(found), remedy].into_iter().flatten().flat_map(|text| wrapped(&text, room)) {
        out.push_str(&format!("{result:RESULT_WIDTH$}{name:NAME_WIDTH$}{line}\n"));
        (result, name) = ("", "");
    }
    out
}

/// Lines of at most `width` characters. A word is never cut, because a path that is cut cannot be copied: one that is
/// longer has a line to itself.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// What must not be overlooked is in capitals.
fn label(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Note => "note",
        Level::Warning => "WARN",
        Level::Problem => "PROBLEM",
    }
}

fn summary(report: &Report) -> String {
    let count = |level, one: &str| match report.count(level) {
        1 => format!("1 {one}"),
        more => format!("{more} {one}s"),
    };
    let verdict = match report.result {
        Level::Problem => "This machine cannot be updated before the problems are solved.",
        Level::Warning => {
            "Nothing stands in the way of an update; what the warnings ask for may save it one day."
        }
        Level::Ok | Level::Note => "Nothing stands in the way of an update.",
    };
    let (problems, warnings) = (count(Level::Problem, "problem"), count(Level::Warning, "warning"));
    format!("{problems}, {warnings}, {}; nothing was changed.\n{verdict}\n", count(Level::Note, "note"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Group;

    #[test]
    fn the_text_has_groups_columns_and_remedies() {
        let report = Report::of(vec![
            Group::Source.at("clock", "the system clock").ok("can be right"),
            Group::Program.at("configuration", "/etc/switchback/config.toml").note("there is no such file; the defaults hold"),
            Group::Trust.at("trust-policy", "/usr/lib/switchback/trust").problem(
                "there is no key: nothing can be accepted",
                "Ship the public keys as *.pub in /a/path/that/is/longer/than/the/whole/column/and/is/not/cut.pub of the root.",
            ),
            Group::Return.at("panic", "/proc/sys/kernel/panic").warning("0: the machine stays in a panic for ever", "Say `panic=30`."),
        ]);
        let expected = "\
Program and settings
note     configuration       /etc/switchback/config.toml: there is no such file;
                             the defaults hold

The way back
WARN     panic               /proc/sys/kernel/panic: 0: the machine stays in a
                             panic for ever
                             -> Say `panic=30`.

Trust
PROBLEM  trust-policy        /usr/lib/switchback/trust: there is no key: nothing
                             can be accepted
                             -> Ship the public keys as *.pub in
                             /a/path/that/is/longer/than/the/whole/column/and/is/not/cut.pub
                             of the root.

Source and clock
ok       clock               the system clock: can be right

1 problem, 1 warning, 1 note; nothing was changed.
This machine cannot be updated before the problems are solved.
";
        assert_eq!(text(&report, WIDTH), expected);
        assert!(text(&report, WIDTH_MAX).contains("file; the defaults hold\n"), "a wider terminal is used");
    }

    #[test]
    fn without_a_problem_the_last_line_says_so() {
        let clock = || Group::Source.at("clock", "the system clock");
        let last =
            |findings| text(&Report::of(findings), WIDTH).lines().last().unwrap_or_default().to_owned();
        assert_eq!(last(vec![clock().ok("can be right")]), "Nothing stands in the way of an update.");
        assert!(last(vec![clock().warning("drifts", "Set it.")]).contains("what the warnings ask for"));
    }
}
