//! What a person sees on a terminal, and that a pipe gets the same words and nothing but words.
//!
//! Not here: the words (`golden`). The terminal is a real one, made by `script` of util-linux, and what is left upon it is
//! worked out by a small screen. Rule: when a verb has ended, a terminal of any width shows what a pipe got.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "terminal/screen.rs"]
mod screen;

use std::path::Path;
use std::process::{Command, Stdio};

use switchback_tests::lab::tools;
use switchback_tests::machine::text;
use switchback_tests::page::same;
use switchback_tests::story::{machine_with_1_0, publish};

use crate::screen::Screen;

const ESCAPE: char = '\u{1b}';

/// The program's arguments on a machine.
fn words<'a>(config: &'a str, typed: &[&'a str]) -> Vec<&'a str> {
    [&["--config", config][..], typed].concat()
}

/// Standard error, then standard output, of a run without a terminal.
fn piped(config: &Path, typed: &[&str]) -> String {
    let mut command = Command::new(tools::switchback().unwrap());
    command.args(words(config.to_str().unwrap(), typed)).env("TERM", "xterm-256color").env("COLUMNS", "100");
    let output = command.output().unwrap();
    format!("{}{}", text(&output.stderr), text(&output.stdout))
}

/// Every byte that a run sent to a terminal of so many columns.
fn on_terminal(config: &Path, typed: &[&str], columns: usize, colour: bool) -> String {
    let switchback = tools::switchback().unwrap();
    let quoted =
        words(config.to_str().unwrap(), typed).iter().map(|word| format!(" '{word}'")).collect::<String>();
    let typed = format!("stty cols {columns} rows 40; exec '{}'{quoted}", switchback.display());
    let mut script = Command::new(tools::program("script", "bsdutils").unwrap());
    script.args(["-q", "-e", "-c", &typed, "/dev/null"]).stdin(Stdio::null());
    script.env("TERM", "xterm-256color").env_remove("COLUMNS").env_remove("NO_COLOR");
    if !colour {
        script.env("NO_COLOR", "1");
    }
    text(&script.output().unwrap().stdout)
}

/// True where a colour or weight is set: `ESC [ … m`.
fn coloured(said: &str) -> bool {
    said.split(ESCAPE).skip(1).any(|rest| {
        let end = rest.trim_start_matches('[').trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        end.starts_with('m')
    })
}

#[test]
fn a_pipe_gets_words_and_no_escape_sequence() {
    let (scene, machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    let config = machine.config();
    for typed in [
        &["status"][..],
        &["history"],
        &["doctor"],
        &["updte"],
        &["--help"],
        &["-v", "-v", "update", "--dry-run"],
        &["-v", "-v", "update"],
        &["rollback", "--progress", "bar"],
    ] {
        let said = piped(&config, typed);
        assert!(!said.is_empty(), "{typed:?}");
        assert!(!said.contains([ESCAPE, '\r']), "{typed:?}: {said:?}");
        assert!(said.ends_with('\n'), "{typed:?}: {said:?}");
    }
}

#[test]
fn no_color_takes_every_colour_away_from_a_terminal() {
    let (scene, machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    let config = machine.config();
    assert!(coloured(&on_terminal(&config, &["updte"], 80, true)), "the terminal is none");
    for typed in [
        &["status"][..],
        &["history"],
        &["doctor"],
        &["updte"],
        &["update", "--help"],
        &["-v", "-v", "update", "--dry-run"],
        &["update"],
    ] {
        let said = on_terminal(&config, typed, 80, false);
        assert!(!said.is_empty() && !coloured(&said), "{typed:?}: {said:?}");
    }
}

#[test]
fn a_terminal_shows_what_a_pipe_gets_as_wide_as_it_is() {
    let (scene, machine) = machine_with_1_0();
    publish(&scene, "1.1", true);
    let config = machine.config();
    for columns in [80, 100, 132] {
        for typed in [&["status"][..], &["history"], &["check"], &["update", "--dry-run"], &["doctor"]] {
            let said = on_terminal(&config, typed, columns, true);
            assert!(said.ends_with("\r\n"), "{typed:?}: the last line has no end: {said:?}");
            let screen = Screen::shows(&said);
            let words = piped(&config, &[typed, &["--progress", "none"]].concat());
            // Where a line breaks is the terminal's; a size must not be broken when it is compared.
            let joined = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(
                same(&joined(&screen), &joined(&words)),
                "{typed:?} in {columns} columns\n{screen}---\n{words}"
            );
            let widest = screen.lines().map(|line| line.chars().count()).max().unwrap();
            if typed == ["doctor"] {
                assert!(screen.lines().any(|line| line.chars().count() > columns.min(120) - 15), "{screen}");
            }
            println!("{typed:?} in {columns}: {widest}");
        }
    }
}

#[test]
fn a_bar_fits_its_terminal_and_nothing_is_left_of_it() {
    for columns in [40, 80, 132] {
        let (scene, machine) = machine_with_1_0();
        publish(&scene, "1.1", true);
        let config = machine.config();
        let said = on_terminal(&config, &["update"], columns, true);
        assert!(said.contains("writing the slot"), "no bar was drawn: {said:?}");
        for drawn in Screen::drawn(&said).iter().filter(|line| line.contains('[')) {
            assert!(drawn.chars().count() <= columns, "{columns} columns: {drawn:?}");
        }
        let screen = Screen::shows(&said);
        let lines: Vec<&str> = screen.lines().collect();
        assert_eq!(lines.len(), 3, "{columns} columns:\n{screen}");
        assert_eq!(lines[0], "Writing demo-os 1.1 to slot b.");
        assert!(lines[1].contains(" is armed in slot b: "), "{screen}");
        assert_eq!(
            lines[2],
            "The next reboot starts its trial (3 starts at most). Reboot when it suits you."
        );
        assert!(said.ends_with("\r\n"), "the last line has no end: {said:?}");
        assert!(!coloured(&said), "{said:?}");
    }
}
