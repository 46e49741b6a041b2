//! Lines that come from a guest, each with the host's time.
//!
//! Not here: what the lines mean. Rule: the guest's clock is never asked: under emulation it runs wrong.

use std::fs::File;
use std::io::{Read, Write as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use regex::Regex;

/// A line longer than this is cut in two: a guest that prints without end must not fill the host's memory.
const LINE_BYTES_MAX: usize = 1 << 20;

/// How much of the end of a console an error shows.
const TAIL_LINES: usize = 25;

/// One line without its end and without escape sequences.
#[derive(Debug, Clone)]
pub struct Line {
    /// Since the machine was switched on.
    pub after: Duration,
    /// The text.
    pub text: String,
}

/// Everything that came from one serial port since the machine was switched on; a thread keeps reading.
#[derive(Debug, Clone)]
pub struct Serial {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    closed: bool,
}

impl Serial {
    /// Reads `source` on a thread until it ends, and writes each line to `log` too, and with `echo` to standard output.
    pub fn read(
        mut source: impl Read + Send + 'static,
        mut log: Option<File>,
        echo: bool,
        started: Instant,
    ) -> Serial {
        let serial = Serial { shared: Arc::default() };
        let kept = serial.clone();
        std::thread::spawn(move || {
            let mut pending = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                pending.extend_from_slice(&buffer[..count]);
                while let Some(end) = line_end(&pending) {
                    let bytes: Vec<u8> = pending.drain(..=end).collect();
                    kept.push(&bytes, started, &mut log, echo);
                }
            }
            kept.push(&pending, started, &mut log, echo);
            kept.lock().closed = true;
            kept.shared.changed.notify_all();
        });
        serial
    }

    fn push(&self, bytes: &[u8], started: Instant, log: &mut Option<File>, echo: bool) {
        let text = plain(&String::from_utf8_lossy(bytes));
        if text.is_empty() {
            return;
        }
        let after = started.elapsed();
        if let Some(log) = log {
            // A full disk must not end the reading; the test ends by its own timeout.
            let _ = writeln!(log, "[{:8.2}] {text}", after.as_secs_f64());
        }
        if echo {
            println!("    console [{:8.2}] {text}", after.as_secs_f64());
        }
        self.lock().lines.push(Line { after, text });
        self.shared.changed.notify_all();
    }

    /// How many lines have come: where a later `wait_for` may start.
    pub fn len(&self) -> usize {
        self.lock().lines.len()
    }

    /// True before the first line.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last lines, for an error.
    pub fn tail(&self) -> String {
        tail(&self.lock().lines)
    }

    /// True when nothing more will come.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// How many lines match.
    pub fn count(&self, pattern: &str) -> Result<usize> {
        let pattern = Regex::new(pattern)?;
        Ok(self.lock().lines.iter().filter(|line| pattern.is_match(&line.text)).count())
    }

    /// The first line from number `from` on that matches, and its number.
    pub fn wait_for(&self, pattern: &str, from: usize, timeout: Duration) -> Result<(usize, Line)> {
        let wanted = Regex::new(pattern)?;
        let deadline = Instant::now() + timeout;
        let mut seen = from;
        let mut state = self.lock();
        loop {
            let fresh = state.lines.iter().enumerate().skip(seen);
            if let Some((number, line)) = fresh.into_iter().find(|(_, line)| wanted.is_match(&line.text)) {
                return Ok((number, line.clone()));
            }
            seen = state.lines.len().max(from);
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let why = if state.closed { "the machine went off" } else { "it took too long" };
                bail!(
                    "while waiting {timeout:?} for `{pattern}`: {why}; last lines:\n{}",
                    tail(&state.lines)
                );
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn line_end(pending: &[u8]) -> Option<usize> {
    let end = pending.iter().position(|byte| *byte == b'\n');
    end.or_else(|| (pending.len() > LINE_BYTES_MAX).then_some(LINE_BYTES_MAX))
}

/// Text without the escape sequences of firmware and loader menus, and without control characters. Of a line that was
/// drawn over and over, such as a progress bar, the last state.
fn plain(text: &str) -> String {
    let text = text.trim_end_matches(['\r', '\n']);
    let text = text.rsplit('\r').next().unwrap_or(text);
    let mut kept = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' if characters.peek() == Some(&'[') => {
                characters.next();
                // Parameters, then one letter that ends the sequence.
                while characters.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            c if c.is_control() && c != '\t' => {}
            c => kept.push(c),
        }
    }
    kept.trim().to_owned()
}

fn tail(lines: &[Line]) -> String {
    let shown = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    shown.iter().map(|line| format!("  [{:8.2}] {}\n", line.after.as_secs_f64(), line.text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(bytes: &'static [u8]) -> Serial {
        Serial::read(bytes, None, false, Instant::now())
    }

    #[test]
    fn escape_sequences_are_gone_and_the_text_stays() {
        let serial = reading(b"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: \x1b[0mstarting\r\n");
        let (number, line) = serial.wait_for("^BdsDxe: starting$", 0, Duration::from_secs(5)).unwrap();
        assert_eq!((number, line.text.as_str()), (0, "BdsDxe: starting"));
    }

    #[test]
    fn of_a_progress_bar_the_last_state_stays() {
        let serial = reading(b"10 %\r50 %\r100 %\r\n");
        let (_, line) = serial.wait_for("%", 0, Duration::from_secs(5)).unwrap();
        assert_eq!(line.text, "100 %");
    }

    #[test]
    fn a_wait_starts_where_it_is_told() {
        let serial = reading(b"boot 1\nboot 2\n");
        let wait = |from| serial.wait_for("^boot", from, Duration::from_secs(5)).map(|(_, line)| line.text);
        assert_eq!((wait(0).unwrap(), wait(1).unwrap()), ("boot 1".into(), "boot 2".into()));
        assert!(wait(2).unwrap_err().to_string().contains("boot 2"), "an error shows what came last");
    }

    #[test]
    fn a_line_without_an_end_is_still_seen_when_the_machine_goes_off() {
        assert_eq!(reading(b"Kernel panic - not").wait_for("panic", 0, Duration::from_secs(5)).unwrap().0, 0);
    }
}
