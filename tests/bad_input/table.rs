//! One row: what was wrong, what the program said, which exit code, which bytes changed; and the page that shows them all.
//!
//! Not here: how the input is spoilt. Rule: a row asserts every byte: nothing but the slot that is not in use, its boot
//! files, and a line of history may differ, and that only where the row says so.

use std::borrow::Borrow;
use std::fmt::Write as _;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use regex::Regex;
use switchback::reason::Reason;
use switchback_tests::disk_shot::DiskShot;
use switchback_tests::lab::tools;
use switchback_tests::machine::{Answer, text};

use crate::ground::{IDLE, Place, RUNNING, Shot, records};

const PAGE: &str = "docs/src/bad-input.md";

/// Which bytes a row may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// None: the whole disk and every record is byte-identical.
    Nothing,
    /// The slot that is not in use, its boot files and its entry; the attempt is in the history.
    IdleSlot,
}

/// A section of the page.
pub struct Table {
    heading: &'static str,
    rows: Vec<(String, String)>,
}

impl Table {
    pub fn new(heading: &'static str) -> Table {
        Table { heading, rows: Vec::new() }
    }

    /// Runs `update` in the place and holds it to the row.
    pub fn refused(&mut self, input: &str, place: impl Borrow<Place>, reason: Reason, changed: Changed) {
        self.rows.push(refused(input, place.borrow(), reason, changed, false));
    }

    /// The same for rows that wait for a network: they run at once.
    pub fn refused_at_once(&mut self, rows: Vec<(&str, Place, Reason, Changed)>) {
        let done = std::thread::scope(|scope| {
            let run = |(input, place, reason, changed): (&str, Place, Reason, Changed)| {
                let input = input.to_owned();
                scope.spawn(move || refused(&input, &place, reason, changed, changed == Changed::Nothing))
            };
            let running: Vec<_> = rows.into_iter().map(run).collect();
            running.into_iter().map(|row| row.join()).collect::<Vec<_>>()
        });
        let broken = done.iter().filter(|row| row.is_err()).count();
        self.rows.extend(done.into_iter().flatten());
        assert_eq!(broken, 0, "{broken} rows failed, see above");
    }

    /// Runs `update` in the place: it is taken, although one might think that it should not.
    pub fn taken(&mut self, input: &str, place: &Place) {
        let output = place.command(&["update"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{input}: {}", text(&output.stderr));
        only_the_idle_slot(input, place);
        let row = format!("| {input} | none: it is taken | 0 | {} |", in_words(Changed::IdleSlot));
        self.rows.push((row, String::new()));
    }

    /// Prints the section and compares it with the page.
    pub fn finish(self) {
        let mut section =
            format!("## {}\n\n| input | error | exit | bytes changed |\n|---|---|---|---|\n", self.heading);
        self.rows.iter().for_each(|(row, _)| writeln!(section, "{row}").unwrap());
        println!("{section}");
        section.push_str("\n```text\n");
        let texts = self.rows.iter().map(|(_, text)| text.as_str()).filter(|text| !text.is_empty());
        section.push_str(&texts.collect::<Vec<_>>().join("\n"));
        section.push_str("```\n");
        compare(self.heading, &section);
    }
}

/// One row and the text that goes with it.
fn refused(input: &str, place: &Place, reason: Reason, changed: Changed, beside: bool) -> (String, String) {
    // A program asks the same: beside it, where both would wait for long, by `check`, which only looks.
    let mut for_programs = place.command(&[if beside { "check" } else { "update" }, "--json"]);
    let status = |place: &Place| Answer::of(&place.machine.run(&["status", "--json"]).unwrap()).unwrap().said;
    let before = status(place);
    for_programs.stdout(Stdio::piped()).stderr(Stdio::piped());
    let spawned = beside.then(|| for_programs.spawn().unwrap());
    let output = place.command(&["update"]).output().unwrap();
    let printed = text(&output.stderr);
    assert_eq!(output.status.code(), Some(i32::from(reason.exit_code())), "{input}: {printed}");
    assert_eq!(text(&output.stdout), "", "{input}");
    for (word, expected) in [
        ("switchback: ", reason.description()),
        ("  next   ", reason.remedy()),
        ("  safe   ", ""),
        ("  why    ", ""),
    ] {
        let line = printed.lines().find_map(|line| line.strip_prefix(word));
        let line = line.unwrap_or_else(|| panic!("{input}: no line `{word}` in {printed}"));
        assert!(!line.is_empty() && line.starts_with(expected), "{input}: {line}");
    }
    match changed {
        Changed::Nothing => nothing(input, place),
        Changed::IdleSlot => only_the_idle_slot(input, place),
    }
    let again = match spawned {
        Some(child) => child.wait_with_output().unwrap(),
        None => for_programs.output().unwrap(),
    };
    let again = Answer::of(&again).unwrap_or_else(|error| panic!("{input}: {error:?}"));
    assert_eq!(again.said["reason"], reason.name(), "{input}: {}", again.said);
    let now = status(place);
    for what in ["floor", "quarantine", "held"] {
        assert_eq!(before[what], now[what], "{input}: {what}");
    }
    let running = RUNNING.index();
    assert_eq!(before["slots"][running], now["slots"][running], "{input}: the running slot");
    let why = printed.lines().find_map(|line| line.strip_prefix("  why    ")).unwrap_or_default();
    let why = normalised(why, place).replace('|', "\\|");
    let row = format!("| {input} | `{reason}`: {why} | {} | {} |", reason.exit_code(), in_words(changed));
    (row, format!("{input}\n{}", normalised(&printed, place)))
}

fn in_words(changed: Changed) -> String {
    match changed {
        Changed::Nothing => "none".into(),
        Changed::IdleSlot => "only the idle slot".into(),
    }
}

fn nothing(input: &str, place: &Place) {
    let before = &place.before;
    assert_eq!(before.disk, sha256(place), "{input}: the disk is byte-identical");
    let records = records(place.records_after.as_deref().unwrap_or(&place.machine.state_dir()));
    for (name, bytes) in &before.records {
        assert!(records.get(name) == Some(bytes), "{input}: {name} is byte-identical");
    }
    let names = |records: &crate::ground::Records| records.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before.records), names(&records), "{input}: no file came or went");
}

fn sha256(place: &Place) -> String {
    switchback_tests::scene::sha256(&place.machine.disk()).unwrap()
}

fn only_the_idle_slot(input: &str, place: &Place) {
    let before = &place.before;
    let now = Shot::take(&place.machine, &before.records);
    assert!(
        before.files.of(RUNNING) == now.files.of(RUNNING),
        "{input}: the running slot and its boot files"
    );
    assert!(before.files.of(IDLE) != now.files.of(IDLE), "{input}: it had begun to write");
    let elsewhere = |shot: &DiskShot| {
        let idle = shot.of(IDLE).1;
        shot.esp
            .iter()
            .filter(|(path, _)| !idle.contains_key(*path))
            .map(|(p, d)| (p.clone(), *d))
            .collect::<Vec<_>>()
    };
    assert_eq!(elsewhere(&before.files), elsewhere(&now.files), "{input}: other files of the boot partition");
    let changed: Vec<&String> =
        before.parts.keys().filter(|label| before.parts[*label] != now.parts[*label]).collect();
    let allowed = |label: &str| label == "esp" || label.ends_with(&format!("-{IDLE}"));
    assert!(changed.iter().all(|label| allowed(label)), "{input}: changed partitions {changed:?}");
    assert!(before.parts.keys().eq(now.parts.keys()), "{input}: {:?}", now.parts.keys());
}

/// The text without what no two runs have in common.
fn normalised(text: &str, place: &Place) -> String {
    let folder = place.folder().display().to_string();
    let rules = [
        (regex::escape(&folder), "…"),
        (r"sha256:[0-9a-f]{64}".into(), "sha256:…"),
        (r"\b[0-9a-f]{12,64}\b".into(), "…"),
        (r"127\.0\.0\.1:\d+".into(), "127.0.0.1:PORT"),
        (r"\(process \d+\)".into(), "(process N)"),
        (r"20[1-8]\d-\d\d-\d\d \d\d:\d\d:\d\d".into(), "NOW"),
        (r"2100-01-01 \d\d:\d\d:\d\d".into(), "2100-01-01"),
        (r"\b\d{5,}\b".into(), "N"),
        // How long compressed random content is differs from build to build.
        (r"\b\d+ bytes\b".into(), "N bytes"),
        (r"(says|names|expected) \d+\b".into(), "$1 N"),
        (r"[ \t]+\n".into(), "\n"),
    ];
    rules.iter().fold(text.to_owned(), |text, (rule, word)| {
        Regex::new(rule).unwrap().replace_all(&text, *word).into_owned()
    })
}

static PAGE_LOCK: Mutex<()> = Mutex::new(());

/// Compares the section with the page; `UPDATE_GOLDEN=1` writes it there.
fn compare(heading: &str, section: &str) {
    let _one_at_a_time = PAGE_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let path = tools::repository().join(PAGE);
    let page = std::fs::read_to_string(&path).unwrap();
    let begins = page.find(&format!("## {heading}\n")).unwrap_or(page.len());
    let ends = page[begins..].find("\n## ").map_or(page.len(), |length| begins + length);
    let kept = page[begins..ends].trim_end();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let new = format!("{}\n\n{}\n{}", page[..begins].trim_end(), section.trim_end(), &page[ends..]);
        std::fs::write(&path, new.trim_end().to_owned() + "\n").unwrap();
        return;
    }
    assert_eq!(kept, section.trim_end(), "{PAGE} differs: UPDATE_GOLDEN=1 rewrites it");
}
