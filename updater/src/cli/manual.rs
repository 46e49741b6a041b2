//! Completion scripts and manual pages.
//!
//! Rule: both are made from the grammar that parses the command line, so that they cannot say anything else.

use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Output;
use super::args::Cli;
use crate::engine::Failure;
use crate::reason::Reason;

/// The completion script of a shell.
pub(super) fn completions(shell: Shell) -> Output {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "switchback", &mut script);
    let text = String::from_utf8_lossy(&script).into_owned();
    let json = serde_json::json!({ "answer": "completions", "script": text });
    Output { text, json, changed: false, reason: None }
}

/// Writes `switchback.1` and a page for each verb.
pub(super) fn pages(folder: &Path) -> Result<Output, Failure> {
    let failed = |e: std::io::Error| Failure {
        why: crate::reason::Why::new(
            Reason::WriteFailed,
            format!("while writing to {}: {e}", folder.display()),
        ),
        untouched: "Nothing but manual pages in that folder was written.",
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(failed)?;
    let text = format!("The manual pages are in {}.\n", folder.display());
    let json = serde_json::json!({ "answer": "man", "folder": folder });
    Ok(Output { text, json, changed: true, reason: None })
}
