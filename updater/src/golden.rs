//! Pages of the book that are written by tests: a table in the code and its page cannot drift apart.
//!
//! Rule: `UPDATE_GOLDEN=1` rewrites a page; without it a difference fails the test and says so.

use std::path::Path;

/// Compares `docs/src/<page>` with `expected`.
pub fn compare(page: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src").join(page);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, expected).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or_else(|| found.lines().count().min(expected.lines().count())) + 1;
    assert!(
        found == expected,
        "docs/src/{page} differs from the code at line {line}:\n  page: {}\n  code: {}\nUPDATE_GOLDEN=1 rewrites it",
        found.lines().nth(line - 1).unwrap_or("(end)"),
        expected.lines().nth(line - 1).unwrap_or("(end)"),
    );
}
