//! What no two runs have in common, and what stands for it.
//!
//! Rule: this is the only place; whatever is not named here is compared letter by letter, blanks included.

use regex::Regex;

/// Digests by what they are of: kept apart, so that a page that names the wrong release differs.
#[derive(Default)]
pub struct Digests(Vec<(String, String)>);

impl Digests {
    /// From now on `hex` reads as `sign` repeated.
    pub fn name(&mut self, hex: &str, sign: &str) {
        let hex = hex.trim_start_matches("sha256:");
        self.0.push((hex.to_string(), sign.repeat(hex.len()).chars().take(hex.len()).collect()));
    }

    /// A digest or its beginning; one that has no name reads as zeros.
    fn replace(&self, text: &str) -> String {
        let run = Regex::new(r"\b[0-9a-f]{12,64}\b").unwrap();
        let stand_in = |found: &regex::Captures<'_>| {
            let beginning = &found[0];
            let known = self.0.iter().find(|(hex, _)| hex.starts_with(beginning));
            known.map_or_else(|| "0".repeat(beginning.len()), |(_, name)| name[..beginning.len()].to_string())
        };
        run.replace_all(text, stand_in).into_owned()
    }
}

/// A text without chance.
pub fn without_chance(text: &str, digests: &Digests) -> String {
    let rules = [
        // As wide as what they stand for, so that tables keep their columns.
        (r"\d{4}-\d\d-\d\d", "YYYY-MM-DD"),
        (r"\d\d:\d\d:\d\d", "HH:MM:SS"),
        (r"(HH:MM:SS)\.\d+Z", "${1}Z"),
        // What depends on the build and on the file system's own identity; a column of sizes is lined up to the right.
        (r"(?m)^(  [a-z-]+) +\d+\.\d\d [KMG]iB from", "$1  SIZE from"),
        (r"\b\d+\.\d\d [KMG]iB", "SIZE"),
        // Whether a block that two roots share is a chunk by itself depends on its neighbour, which holds a file system's own identity.
        (r" \((SIZE|\d+ B) of it from this machine\)", ""),
        (r"\b\d+ chunks\b", "COUNT chunks"),
        (r"\b\d+\.\d s\b", "SECONDS s"),
        (
            r#"("(seconds|fetched|copied|written|kept|zero|millis|chunks|frames|zero_runs|[a-z_]*bytes[a-z_]*)": )\d+(\.\d+)?"#,
            "${1}NUMBER",
        ),
        (r"switchback \d+\.\d+\.\d+", "switchback VERSION"),
        (r#""updater": "\d+\.\d+\.\d+""#, r#""updater": "VERSION""#),
        // What the disk that the test runs on has free, in the report of `doctor`.
        (r"(: )SIZE free(, SIZE needed)", "${1}FREE$2"),
        // A check's milliseconds may have more digits than their column's name: then all behind them moves.
        (r"(?m)^( check +result +attempts)  ms +detail$", "$1  ms  detail"),
        (r"(?m)^( \w+ +(?:passed|FAILED) +\d+ +)\d+$", "${1}MS"),
        (r"(?m)^( \w+ +(?:passed|FAILED) +\d+ +)\d+ +", "${1}MS  "),
    ];
    let text = joined(&digests.replace(text));
    rules
        .iter()
        .fold(text, |text, (rule, word)| Regex::new(rule).unwrap().replace_all(&text, *word).into_owned())
}

/// Where a row is broken in the doctor's report depends on the folder's name, and in a table of checks on how many digits
/// the milliseconds have: these rows are one line each here.
fn joined(text: &str) -> String {
    let row = Regex::new(r"^(ok|note|WARN|PROBLEM) +[a-z-]+ |^ \w+ +(passed|FAILED) ").unwrap();
    let (mut lines, mut in_row) = (Vec::<String>::new(), false);
    for line in text.lines() {
        let continued = in_row && line.starts_with("                         ");
        match lines.last_mut() {
            Some(last) if continued => {
                last.push(' ');
                last.push_str(line.trim_start());
            }
            _ => {
                in_row = row.is_match(line);
                lines.push(line.to_string());
            }
        }
    }
    lines.into_iter().map(|line| line + "\n").collect()
}
