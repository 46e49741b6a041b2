//! What the program's own help knows: its verbs and their flags.
//!
//! Rule: the help that people see is asked, not the code behind it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use regex::Regex;

/// Options whose value is the next word, as far as they may stand before the verb.
const GLOBAL_WITH_VALUE: [&str; 2] = ["--config", "--progress"];

/// Started by the kernel: not in the list of verbs, and without a help text of its own.
const BY_THE_KERNEL: &str = "init";

/// The help texts, each asked for once.
pub struct Help {
    switchback: PathBuf,
    known: BTreeMap<Vec<String>, Option<String>>,
}

impl Help {
    pub fn new(switchback: PathBuf) -> Help {
        let mut help = Help { switchback, known: BTreeMap::new() };
        help.read_all(&[]);
        help
    }

    /// Checks the verb and every flag of a command line; what is wrong with it otherwise.
    pub fn look_up(&mut self, command: &str) -> Result<(), String> {
        let words: Vec<&str> = command.split_whitespace().skip(1).collect();
        let mut verbs = Vec::new();
        let mut skip = false;
        for word in &words {
            let value = std::mem::replace(&mut skip, GLOBAL_WITH_VALUE.contains(word));
            let depth = if verbs.first().is_some_and(|verb| verb == "image") { 2 } else { 1 };
            let is_word = word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
            if !value && is_word && verbs.len() < depth {
                verbs.push(word.to_string());
            } else if !value && !word.starts_with('-') {
                break;
            }
        }
        if verbs == [BY_THE_KERNEL] {
            return Ok(());
        }
        let text = self.text(&verbs).ok_or_else(|| format!("there is no verb `{}`", verbs.join(" ")))?;
        let flag = Regex::new(r"^\[?(--[a-z][a-z-]*)").expect("regex");
        for word in words {
            if let Some(flag) = flag.captures(word)
                && !has(&text, &flag[1])
            {
                return Err(format!("`switchback {}` has no {}", verbs.join(" "), &flag[1]));
            }
        }
        Ok(())
    }

    /// True when any verb has the flag.
    pub fn is_flag(&self, flag: &str) -> bool {
        self.known.values().flatten().any(|text| has(text, flag))
    }

    /// What is missing in the help of a verb.
    pub fn shortcomings(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (verbs, text) in &self.known {
            let Some(text) = text else { continue };
            let says = |beginning: &str| text.lines().any(|line| line.starts_with(beginning));
            let name = format!("switchback {}", verbs.join(" "));
            if !says("Changes nothing") && !says("Changes: ") {
                missing.push(format!("{name} does not say what it changes"));
            }
            if says("Changes: ") && !says("Leaves alone: ") {
                missing.push(format!("{name} does not say what it leaves alone"));
            }
            if !says("Next: ") && !says("Example") {
                missing.push(format!("{name} has no next step and no example"));
            }
        }
        assert!(self.known.len() > 20, "only {} helps", self.known.len());
        missing
    }

    /// Every command line that the helps give as an example, joined where help broke the line.
    pub fn examples(&self) -> Vec<String> {
        let mut examples = Vec::<String>::new();
        for text in self.known.values().flatten() {
            let tail = text.lines().skip_while(|line| !line.starts_with("Example")).skip(1);
            for line in tail.take_while(|line| line.starts_with("  ")).map(str::trim) {
                match examples.last_mut() {
                    Some(last) if !line.starts_with("switchback ") => *last += &format!(" {line}"),
                    _ => examples.push(line.to_string()),
                }
            }
        }
        examples
    }

    fn read_all(&mut self, verbs: &[String]) {
        let text = self.text(verbs).expect("the program has help");
        let Some((_, list)) = text.split_once("Commands:\n") else { return };
        let names =
            list.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("     "));
        let names: Vec<String> =
            names.filter_map(|line| line.split_whitespace().next().map(str::to_string)).collect();
        assert!(!names.is_empty(), "help lists no verbs");
        for name in names.into_iter().filter(|name| name != "help") {
            self.read_all(&[verbs, &[name]].concat());
        }
    }

    fn text(&mut self, verbs: &[String]) -> Option<String> {
        let switchback = &self.switchback;
        let ask = || {
            let output =
                Command::new(switchback).args(verbs).arg("--help").output().expect("the program starts");
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        self.known.entry(verbs.to_vec()).or_insert_with(ask).clone()
    }
}

fn has(help: &str, flag: &str) -> bool {
    let mut options = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    options.any(|line| line.split([' ', ',']).take(3).any(|word| word.trim_end_matches("...") == flag))
}
