//! Completion scripts and manual pages.
//!
//! Rule: both are made from the grammar that parses the command line, so that they cannot say anything else.

use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::Output;
use super::args::Cli;
use crate::engine::Failure;
use crate::reason::{Reason, Why};

/// The completion script of a shell.
pub(super) fn completions(shell: Shell) -> Output {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "switchback", &mut script);
    let text = String::from_utf8_lossy(&script).into_owned();
    let json = serde_json::json!({ "answer": "completions", "script": text });
    Output { text, json, changed: false, reason: None }
}

/// The main page on standard output; with a folder `switchback.1` and a page for each verb there.
pub(super) fn run(folder: Option<&Path>) -> Result<Output, Failure> {
    match folder {
        Some(folder) => write(folder),
        None => print(),
    }
}

fn print() -> Result<Output, Failure> {
    let pages = pages().map_err(|e| Failure::before(Reason::Internal, e))?;
    let main = pages.into_iter().find(|(name, _)| name == "switchback.1");
    let text = main.map(|(_, page)| String::from_utf8_lossy(&page).into_owned()).unwrap_or_default();
    let json = serde_json::json!({ "answer": "man", "page": text });
    Ok(Output { text, json, changed: false, reason: None })
}

/// A page that is there already and says the same is not written again.
fn write(folder: &Path) -> Result<Output, Failure> {
    let failed = |e: std::io::Error| Failure {
        why: Why::new(Reason::WriteFailed, format!("while writing to {}: {e}", folder.display())),
        untouched: "Nothing but manual pages in that folder was written.",
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut written = 0;
    for (name, page) in pages().map_err(failed)? {
        let place = folder.join(name);
        if std::fs::read(&place).is_ok_and(|there| there == page) {
            continue;
        }
        std::fs::write(&place, page).map_err(failed)?;
        written += 1;
    }
    let text = match written {
        0 => format!("Nothing changed. The manual pages are in {}.\n", folder.display()),
        _ => format!("The manual pages are in {}; written: {written}.\n", folder.display()),
    };
    let json = serde_json::json!({ "answer": "man", "folder": folder, "written": written });
    Ok(Output { text, json, changed: written > 0, reason: None })
}

/// Name and content of each page.
fn pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut main = Cli::command().disable_help_subcommand(true);
    main.build();
    let mut pages = Vec::new();
    let mut commands = vec![main];
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned());
        // The whole program's version: a verb has none of its own.
        let page = Man::new(command).source(concat!("switchback ", env!("CARGO_PKG_VERSION")));
        let mut content = Vec::new();
        page.render(&mut content)?;
        pages.push((page.get_filename(), content));
    }
    Ok(pages)
}
