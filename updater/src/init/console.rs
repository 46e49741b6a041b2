//! Words for whoever watches the console or reads the kernel's log later.
//!
//! Not here: what is said. Rule: saying something never fails and never ends a start.

use std::fs::OpenOptions;
use std::io::Write;

/// A line of progress. Kept in the kernel's log; on the console unless the command line says `quiet`.
pub fn say(line: &str) {
    log(6, line);
}

/// A line that must be seen: the kernel's log at error level, which reaches the console even with `quiet`.
pub fn complain(line: &str) {
    log(3, line);
}

/// One `write` per line: each is one record of the kernel's log.
fn log(level: u8, line: &str) {
    let record = format!("<{level}>switchback: {}\n", line.replace('\n', " | "));
    let kernel =
        OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut log| log.write_all(record.as_bytes()));
    if kernel.is_err() {
        let _ = writeln!(std::io::stderr(), "switchback: {line}");
    }
}
