//! The repository has tests of its own shape: what a review would otherwise have to look for each time.
//!
//! Not here: what the compiler or clippy can say (`Cargo.toml`, `clippy.toml`), licences and bans (`deny.toml`).
//! Rule: every finding names file and line, and says what to do.

#![expect(clippy::expect_used, reason = "a test's own machinery: failing loudly is its job")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;

/// Lines of code, tests at a file's end not counted.
const FILE_LINES_MAX: usize = 600;

/// Files that may be longer, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// Files and folders whose code must give the same answer for the same input: no files, network, clock, processes.
const PURE: &[&str] = &[
    "bootloader/src/boot_state.rs",
    "updater/src/digest.rs",
    "updater/src/image",
    "updater/src/lifecycle.rs",
    "updater/src/lifecycle",
    "updater/src/reason.rs",
    "updater/src/schedule",
    "updater/src/trust.rs",
    "updater/src/trust",
];

/// Which of our crates each of our crates may build on.
const ARROW: &[(&str, &[&str])] = &[
    ("switchback-partitions", &[]),
    ("switchback-bootloader", &["switchback-partitions"]),
    ("switchback", &["switchback-partitions", "switchback-bootloader"]),
    ("switchback-tests", &["switchback-partitions", "switchback-bootloader", "switchback"]),
    ("switchback-appliance-init", &[]),
];

#[test]
fn crates_depend_in_one_direction_only() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ARROW.iter().copied().collect();
    assert_eq!(
        ours,
        allowed.keys().copied().collect(),
        "a crate came or went: say in ARROW what it may build on"
    );
    for package in packages {
        let name = package["name"].as_str().expect("name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let on = dependency["name"].as_str().expect("name");
            assert!(!ours.contains(on) || allowed[name].contains(&on), "{name} may not depend on {on}");
        }
    }
}

#[test]
fn nothing_depends_on_the_command_line() {
    let uses = Regex::new(r"crate::cli\b").expect("regex");
    let inside = |path: &str| path.starts_with("updater/src/cli") || path == "updater/src/main.rs";
    report(rust_files().iter().filter(|f| f.path.starts_with("updater/src") && !inside(&f.path)).flat_map(
        |file| {
            file.code().filter(|(_, line)| uses.is_match(line)).map(|(n, line)| finding(&file.path, n, &line))
        },
    ));
}

#[test]
fn pure_modules_touch_no_files_network_clock_or_processes() {
    let direct = Regex::new(r"\bstd\s*::\s*(fs|net|time|process)\b").expect("regex");
    let grouped = Regex::new(r"\bstd\s*::\s*\{[^;]*\b(fs|net|time|process)\b").expect("regex");
    let runtime = Regex::new(r"\b(tokio|reqwest|nix|rustix)\s*::").expect("regex");
    let is_pure = |path: &str| PURE.iter().any(|p| path == *p || path.starts_with(&format!("{p}/")));
    let pure: Vec<_> = rust_files().into_iter().filter(|f| is_pure(&f.path)).collect();
    assert!(pure.len() >= 4, "PURE no longer names the pure modules");
    report(pure.iter().flat_map(|file| {
        let whole: String = file.code().map(|(_, line)| line).collect::<Vec<_>>().join("\n");
        [&direct, &grouped, &runtime]
            .into_iter()
            .filter_map(|r| r.find(&whole))
            .map(|found| finding(&file.path, line_of(&whole, found.start()), found.as_str()))
            .collect::<Vec<_>>()
    }));
}

#[test]
fn every_source_file_says_what_it_is() {
    report(
        rust_files()
            .iter()
            .filter(|f| !f.text.starts_with("//! "))
            .map(|f| finding(&f.path, 1, "starts with no `//! ` header")),
    );
}

#[test]
fn files_stay_readable_in_one_sitting() {
    let excused: BTreeSet<&str> = LONG_FILES.iter().map(|(path, _)| *path).collect();
    report(rust_files().iter().filter(|f| !excused.contains(f.path.as_str())).filter_map(|file| {
        let lines = file.before_tests().lines().count();
        (lines > FILE_LINES_MAX)
            .then(|| finding(&file.path, lines, "is too long: look for the second idea in it"))
    }));
}

#[test]
fn unsafe_code_stays_in_the_device_modules() {
    let word = Regex::new(r"\bunsafe\b").expect("regex");
    report(rust_files().iter().filter(|f| !f.path.starts_with("partitions/src/device")).flat_map(|file| {
        file.code()
            .filter(|(_, line)| word.is_match(line))
            .map(|(n, line)| finding(&file.path, n, &line))
            .collect::<Vec<_>>()
    }));
}

#[test]
fn nothing_is_left_for_later_and_no_test_is_skipped() {
    // In two halves, so that this file does not find itself.
    let marks =
        Regex::new(&["\\bTO", "DO\\b|\\bFIX", "ME\\b|\\bXX", "X\\b|#\\[ig", "nore"].concat()).expect("regex");
    report(text_files().iter().flat_map(|file| {
        let found = file.text.lines().enumerate().filter(|(_, line)| marks.is_match(line));
        found.map(|(n, line)| finding(&file.path, n + 1, line)).collect::<Vec<_>>()
    }));
}

#[test]
fn nothing_names_a_machine_or_a_mirror() {
    let names = [
        "/wo",
        "rk/|/tmp/",
        "wt\\b|\\.",
        "debian\\.org|/",
        "/crates\\.io|(static|index)\\.",
        "crates\\.io|py",
        "pi\\.org|registry\\.",
        "npmjs",
    ];
    let names = Regex::new(&names.concat()).expect("regex");
    report(text_files().iter().flat_map(|file| {
        let found = file.text.lines().enumerate().filter(|(_, line)| names.is_match(line));
        found.map(|(n, line)| finding(&file.path, n + 1, line)).collect::<Vec<_>>()
    }));
}

#[test]
fn links_in_documents_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").expect("regex");
    let mut findings = Vec::new();
    for file in text_files().iter().filter(|f| f.path.ends_with(".md")) {
        for (n, line) in file.text.lines().enumerate() {
            for target in link.captures_iter(line).map(|c| c[1].to_owned()) {
                let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let full = root().join(&file.path);
                let full = if path.is_empty() {
                    full
                } else {
                    full.parent().expect("a file has a folder").join(path)
                };
                let leads = full.exists() && (anchor.is_empty() || anchors(&full).contains(anchor));
                if !leads {
                    findings.push(finding(&file.path, n + 1, &format!("leads nowhere: {target}")));
                }
            }
        }
    }
    report(findings);
}

#[test]
fn every_page_of_the_book_is_in_its_contents() {
    let book = root().join("docs/src");
    let contents = std::fs::read_to_string(book.join("SUMMARY.md")).expect("docs/src/SUMMARY.md");
    let pages = text_files().into_iter().filter_map(|f| f.path.strip_prefix("docs/src/").map(str::to_owned));
    report(
        pages
            .filter(|page| {
                page.ends_with(".md") && page != "SUMMARY.md" && !contents.contains(&format!("({page})"))
            })
            .map(|page| finding(&format!("docs/src/{page}"), 1, "is not in docs/src/SUMMARY.md")),
    );
}

#[test]
fn every_test_that_the_documents_name_exists() {
    let name = Regex::new(r"`([a-z_/]+\.rs)::([a-z0-9_]+)`").expect("regex");
    let mut findings = Vec::new();
    let mut named = 0;
    for file in text_files().iter().filter(|f| f.path.starts_with("docs/") && f.path.ends_with(".md")) {
        let mut rules = false;
        for (n, line) in file.text.lines().enumerate() {
            let tests: Vec<(String, String)> =
                name.captures_iter(line).map(|c| (c[1].to_owned(), c[2].to_owned())).collect();
            named += tests.len();
            rules = line.starts_with('|') && (rules || line.ends_with("| proven by |"));
            if rules && tests.is_empty() && !line.ends_with("| proven by |") && !line.starts_with("|--") {
                findings.push(finding(&file.path, n + 1, "says what no test proves"));
            }
            let missing = tests.iter().filter(|(path, test)| !has_test(path, test));
            findings.extend(
                missing.map(|(path, test)| finding(&file.path, n + 1, &format!("{path} has no test {test}"))),
            );
        }
    }
    assert!(named > 40, "only {named} tests are named in the documents");
    report(findings);
}

/// True when a file has a test of that name: a function, one of proptest's, or a scenario of the boot lab.
fn has_test(path: &str, test: &str) -> bool {
    let text = std::fs::read_to_string(root().join(path)).unwrap_or_default();
    let attributes = r"#\[(tokio::)?test(\([^)]*\))?\]\s*(#\[[^\n]*\]\s*)*(async )?";
    let function = Regex::new(&format!(r"{attributes}fn {test}\(")).expect("regex");
    function.is_match(&text) || text.contains(&format!("row(\"{test}\""))
}

/// A file of the repository as text.
struct TextFile {
    /// From the repository's root.
    path: String,
    text: String,
}

impl TextFile {
    /// All before the unit tests, which stand at a file's end.
    fn before_tests(&self) -> &str {
        match self.text.find("\n#[cfg(test)]\nmod ") {
            Some(end) => &self.text[..end],
            None => &self.text,
        }
    }

    /// Numbered lines of code, without comments, string contents and the unit tests.
    fn code(&self) -> impl Iterator<Item = (usize, String)> {
        let strings = Regex::new(r#""(\\.|[^"\\])*""#).expect("regex");
        let lines = self.before_tests().lines().enumerate();
        let lines: Vec<_> = lines
            .map(|(n, line)| {
                let line = strings.replace_all(line, "\"\"");
                (n + 1, line.split("//").next().unwrap_or_default().to_owned())
            })
            .collect();
        lines.into_iter()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the repository").to_owned()
}

/// What git would commit, so that neither build output nor a lab's disks are read.
fn text_files() -> Vec<TextFile> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs: apt-get install git");
    assert!(output.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("names are UTF-8");
    let mut files = Vec::new();
    for path in names.split('\0').filter(|p| !p.is_empty() && *p != "Cargo.lock") {
        // Binary test data and files deleted but not yet committed have no text.
        if let Ok(text) = std::fs::read_to_string(root().join(path)) {
            files.push(TextFile { path: path.to_owned(), text });
        }
    }
    assert!(files.len() > 20, "git lists hardly any file: is this a clone?");
    files
}

fn rust_files() -> Vec<TextFile> {
    text_files().into_iter().filter(|f| f.path.ends_with(".rs")).collect()
}

/// The names that a page's headings can be linked by.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(page).unwrap_or_default();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.collect::<String>().replace(' ', "-")
        })
        .collect()
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

fn finding(path: &str, line: usize, what: &str) -> String {
    format!("{path}:{line}: {}", what.trim())
}

fn report(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<String> = findings.into_iter().collect();
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}
