//! The files that the answers are compared with.
//!
//! Rule: no file without an answer and no answer without a file; `UPDATE_GOLDEN=1` writes what was said.

use std::collections::BTreeSet;
use std::path::PathBuf;

use switchback_tests::lab::tools;

/// The files, and what of them was found to differ.
pub struct Kept {
    folder: PathBuf,
    rewrite: bool,
    seen: BTreeSet<String>,
    differences: Vec<String>,
}

impl Kept {
    pub fn new() -> Kept {
        Kept {
            folder: tools::repository().join("tests/golden"),
            rewrite: std::env::var_os("UPDATE_GOLDEN").is_some(),
            seen: BTreeSet::new(),
            differences: Vec::new(),
        }
    }

    /// Compares one page with its file.
    pub fn page(&mut self, name: &str, said: String) {
        let file = format!("{name}.txt");
        let path = self.folder.join(&file);
        assert!(self.seen.insert(file), "two pages are called {name}");
        if self.rewrite {
            std::fs::write(&path, said).unwrap();
            return;
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = kept.lines().zip(said.lines()).position(|(kept, said)| kept != said);
        let at = differs.unwrap_or_else(|| kept.lines().count().min(said.lines().count()));
        if kept != said {
            let line = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_string();
            let (kept, said) = (line(&kept), line(&said));
            self.differences
                .push(format!("tests/golden/{name}.txt:{}\n  kept: {kept}\n  said: {said}", at + 1));
        }
    }

    /// Fails with the first difference of each page.
    pub fn finish(mut self) {
        for entry in std::fs::read_dir(&self.folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".txt") && !self.seen.contains(&name) {
                self.differences.push(format!("tests/golden/{name}: nothing is said that it keeps"));
            }
        }
        assert!(
            self.differences.is_empty(),
            "\n{}\nUPDATE_GOLDEN=1 rewrites what is kept",
            self.differences.join("\n")
        );
    }
}
