//! A page of Markdown as the tests see it: its blocks, the commands in it, and when two outputs are the same.
//!
//! Not here: running anything. Rule: what differs from run to run (digests, times, sizes of random content) is no
//! difference, everything else is.
#![expect(clippy::expect_used, reason = "a test's own machinery: failing loudly is its job")]

use std::path::Path;

use regex::Regex;

use crate::lab::tools;

/// One page.
pub struct Page {
    /// From the repository's root.
    pub path: String,
    /// Its lines without their ends.
    pub lines: Vec<String>,
}

/// One fenced block.
pub struct Block {
    /// The words behind the fence.
    pub info: String,
    /// Number of its first line in the page, from 1.
    pub line: usize,
    /// Index of its first line in [`Page::lines`].
    pub first: usize,
    /// The lines between the fences.
    pub lines: Vec<String>,
    /// Comments `<!-- … -->` between the block before and this one.
    pub directives: Vec<String>,
}

impl Page {
    /// The page at `path` from the repository's root.
    pub fn read(path: &str) -> Page {
        let text = std::fs::read_to_string(tools::repository().join(path)).expect(path);
        Page { path: path.into(), lines: text.lines().map(str::to_string).collect() }
    }

    /// README and every page of the book.
    pub fn all() -> Vec<Page> {
        let mut paths = vec!["README.md".to_string(), "CONTRIBUTING.md".to_string()];
        for folder in ["docs/src", "docs/src/decisions"] {
            let entries = std::fs::read_dir(tools::repository().join(folder)).expect(folder);
            let names =
                entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
            let pages = names.filter(|name| Path::new(name).extension().is_some_and(|e| e == "md"));
            paths.extend(pages.map(|name| format!("{folder}/{name}")));
        }
        paths.iter().map(|path| Page::read(path)).collect()
    }

    /// Its fenced blocks, in order.
    pub fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut directives) = (Vec::<Block>::new(), Vec::new());
        let mut inside = false;
        for (n, line) in self.lines.iter().enumerate() {
            match (line.strip_prefix("```"), inside) {
                (Some(info), false) => {
                    let directives = std::mem::take(&mut directives);
                    blocks.push(Block {
                        info: info.into(),
                        line: n + 2,
                        first: n + 1,
                        lines: Vec::new(),
                        directives,
                    });
                    inside = true;
                }
                (Some(_), true) => inside = false,
                (None, true) => blocks.last_mut().expect("a block is open").lines.push(line.clone()),
                (None, false) => directives.extend(comment(line)),
            }
        }
        assert!(!inside, "{}: a block is not closed", self.path);
        blocks
    }

    /// Every command `switchback …` in blocks and in code between backticks, with its line.
    pub fn commands(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for block in self
            .blocks()
            .iter()
            .filter(|block| block.info.starts_with("sh") || block.info.starts_with("console"))
        {
            let text = block.lines.join("\n").replace("\\\n", " ");
            let commands = text.lines().map(|line| line.trim_start().trim_start_matches("$ "));
            let commands = commands.filter(|line| line.starts_with("switchback "));
            found.extend(
                commands.map(|line| (block.line, line.split(" #").next().unwrap_or(line).to_string())),
            );
        }
        let span = |code: &str| code.strip_prefix("switchback ").map(|_| code.to_string());
        found.extend(self.code().into_iter().filter_map(|(line, code)| Some((line, span(&code)?))));
        found
    }

    /// Every `--flag` that begins a piece of code between backticks.
    pub fn flags(&self) -> Vec<(usize, String)> {
        let flag = Regex::new(r"^--[a-z][a-z-]*").expect("regex");
        let find = |(line, code): (usize, String)| flag.find(&code).map(|m| (line, m.as_str().to_string()));
        self.code().into_iter().filter_map(find).collect()
    }

    /// The targets of every `make …`.
    pub fn targets(&self) -> Vec<(usize, Vec<String>)> {
        let lines = self.lines.iter().enumerate().map(|(n, line)| (n + 1, line.clone()));
        let lines = lines.filter(|(_, line)| line.starts_with("make "));
        let made = lines.chain(self.code()).filter_map(|(n, code)| {
            let words = code.strip_prefix("make ")?.split_whitespace();
            Some((
                n,
                words
                    .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
                    .map(str::to_string)
                    .collect(),
            ))
        });
        made.collect()
    }

    fn code(&self) -> Vec<(usize, String)> {
        let span = Regex::new("`([^`]+)`").expect("regex");
        let mut found = Vec::new();
        let mut inside = false;
        for (n, line) in self.lines.iter().enumerate() {
            if line.starts_with("```") {
                inside = !inside;
            } else if !inside {
                found.extend(span.captures_iter(line).map(|c| (n + 1, c[1].to_string())));
            }
        }
        found
    }
}

impl Block {
    /// The block as a script that stops at what fails. A line that ends in `# exit code N` must end with N, all others
    /// with 0.
    pub fn script(&self, page: &str) -> String {
        let mut script = format!("echo '== {page}:{}' >&2\n", self.line);
        for line in &self.lines {
            match line.split_once("# exit code ") {
                Some((command, code)) => script.push_str(&format!(
                    "code=0; {command} || code=$?\n[ $code = {code} ] || {{ echo \"exit code $code, not {code}: \"; exit 1; }}\n",
                )),
                None => script.push_str(&format!("{line}\n")),
            }
        }
        script
    }
}

fn comment(line: &str) -> Option<String> {
    Some(line.trim().strip_prefix("<!--")?.strip_suffix("-->")?.trim().to_string())
}

/// True when two outputs say the same, but for what no two runs have in common.
pub fn same(one: &str, other: &str) -> bool {
    without_chance(one) == without_chance(other)
}

fn without_chance(text: &str) -> String {
    let rules = [
        // The whole number, so that a table's columns do not matter either.
        (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME"),
        (r"[0-9a-f]{12,}", "DIGEST"),
        (r"\b\d+(\.\d+)? s\b", "SECONDS"),
        (r"\b\d+\.\d\d [KMG]iB", "SIZE"),
        // A small chunk that two roots share is found or not by what lies beside it, which is no two times the same.
        (r" \((SIZE|\d+ B) of it from this machine\)", ""),
        (r#"("(seconds|fetched|copied|written|zero)": )\d+(\.\d+)?"#, "${1}NUMBER"),
        (r"(passed|FAILED|TOO LATE)\s+(\d+)\s+\d+", "$1 $2 MILLIS"),
        (r"\s+", " "),
    ];
    rules.iter().fold(text.to_string(), |text, (rule, word)| {
        Regex::new(rule).expect("regex").replace_all(&text, *word).into_owned()
    })
}
