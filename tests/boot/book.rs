//! The book's first chapter, typed and booted: what it says a reader will see is what comes.
//!
//! Rule: commands, order and expected words are the page's own. A paragraph that begins with "Boot" is a power-on: what
//! it quotes as `… is up` must come, in that order.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use regex::Regex;
use switchback_tests::lab::qemu::{BOOT_TIMEOUT, Permit};
use switchback_tests::lab::serial::Serial;
use switchback_tests::page::{Block, Page};
use switchback_tests::reader::Reader;

use crate::scene::Scene;

const PAGE: &str = "docs/src/get-started.md";

/// The block that starts QEMU.
const STARTS: &str = "sh,boots";

/// Ctrl-A X, as the page says.
const QUIT: &[u8] = b"\x01x";

/// What the console shows beside what the page quotes, one row for each power-on.
const SHOWN: [&[&str]; 3] = [
    &[r"no trial is under way", r"\* slot a +first-os 1\.0"],
    &[r"first-os 1\.1 .* is healthy and confirmed", r"\* slot b +first-os 1\.1"],
    &[
        r"The trial is over: motto: /etc/motto does not contain",
        r"The machine came back",
        r"quarantined +1\.2",
    ],
];

/// One thing that the page has a reader do.
enum Step {
    /// Type a block.
    Types(String),
    /// Switch the machine on and see these come up, in this order.
    Boots(Vec<String>),
}

/// From an empty folder to a machine that was updated and came back.
pub fn get_started(scene: &mut Scene) -> Result<()> {
    let page = Page::read(PAGE);
    let steps = steps(&page)?;
    let qemu = page.blocks().into_iter().find(|block| block.info == STARTS);
    let qemu = qemu.with_context(|| format!("{PAGE} starts no machine"))?;
    let reader = Reader::new()?;
    let mut power_ons = 0;
    for step in steps {
        match step {
            Step::Types(script) => reader.types(&script)?,
            Step::Boots(expected) => {
                let shown = SHOWN.get(power_ons).with_context(|| format!("{PAGE} boots once more"))?;
                boots(&reader, &qemu, &expected, shown)
                    .with_context(|| format!("at power-on {}", power_ons + 1))?;
                power_ons += 1;
                scene.count_boots(expected.len());
            }
        }
    }
    ensure!(power_ons == SHOWN.len(), "{PAGE} has {power_ons} power-ons, not {}", SHOWN.len());
    Ok(())
}

/// The page from its first block that is typed to its last power-on.
fn steps(page: &Page) -> Result<Vec<Step>> {
    let quoted = Regex::new("`([^`]+ is up)`")?;
    let blocks = page.blocks();
    let mut steps = Vec::new();
    let mut line = 0;
    while let Some(text) = page.lines.get(line) {
        if let Some(block) = blocks.iter().find(|block| block.first == line) {
            if ["sh,tested", "sh,lab"].contains(&block.info.as_str()) {
                steps.push(Step::Types(block.script(&page.path)));
            }
            line += block.lines.len() + 1;
        } else if text.starts_with("Boot") {
            let paragraph: Vec<&str> =
                page.lines[line..].iter().map(String::as_str).take_while(|line| !line.is_empty()).collect();
            let paragraph = paragraph.join(" ");
            steps.push(Step::Boots(quoted.captures_iter(&paragraph).map(|found| found[1].into()).collect()));
            line += 1;
        } else {
            line += 1;
        }
    }
    Ok(steps)
}

fn boots(reader: &Reader, qemu: &Block, expected: &[String], shown: &[&str]) -> Result<()> {
    // In place of the shell, so that what ends the shell ends the machine.
    let script = qemu.script(PAGE).replace("\nqemu-", "\nexec qemu-");
    let _permit = Permit::wait()?;
    let mut shell = reader.shell(&script)?;
    let mut machine = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let output = machine.stdout.take().context("the machine has no console")?;
    let console = Serial::read(output, None, false, Instant::now());
    let seen = look(&console, expected, shown);
    let quit = machine.stdin.take().map(|mut keys| std::io::Write::write_all(&mut keys, QUIT));
    if seen.is_err() || !matches!(quit, Some(Ok(()))) {
        let _ = machine.kill();
    }
    machine.wait()?;
    seen
}

fn look(console: &Serial, expected: &[String], shown: &[&str]) -> Result<()> {
    let mut from = 0;
    for words in expected {
        (from, _) = console.wait_for(&regex::escape(words), from, BOOT_TIMEOUT)?;
    }
    for pattern in shown {
        console.wait_for(pattern, 0, BOOT_TIMEOUT)?;
    }
    Ok(())
}
