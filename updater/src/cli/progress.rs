//! How long work shows on a terminal (a bar with bytes, speed and remaining time) and elsewhere (JSON lines).
//!
//! Not here: the work. Rule: nothing is drawn when nobody watches; Ctrl-C only asks, the work stops where it is safe.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::args::ProgressStyle;
use crate::progress::{Phase, Progress};

/// JSON progress lines come at most this often.
const LINE_EVERY: Duration = Duration::from_millis(500);

/// What one line holds beside a bar of a few letters: title, two sizes, speed, time.
const COLUMNS_FOR_ALL: u16 = 80;
const WIDE: &str = "  {msg:<23} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const NARROW: &str = "  {msg:23!} {percent:>3}% [{wide_bar}]";

/// Draws on standard error.
pub struct Display {
    style: Style,
    stopped: Arc<AtomicBool>,
    now: Mutex<Option<Running>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Bar,
    Lines,
    Sentences,
}

struct Running {
    phase: Phase,
    total: u64,
    done: u64,
    began: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Display {
    /// Ctrl-C and SIGTERM ask the work to stop.
    pub fn new(wanted: ProgressStyle, json: bool) -> std::io::Result<Display> {
        let style = match (wanted, std::io::stderr().is_terminal()) {
            (ProgressStyle::Bar, _) => Style::Bar,
            (ProgressStyle::None, _) => Style::Sentences,
            (ProgressStyle::Auto, true) if !json => Style::Bar,
            (ProgressStyle::Auto | ProgressStyle::Json, _) => Style::Lines,
        };
        let stopped = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // The second Ctrl-C ends the program at once: every step is safe to lose, only slower to resume.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stopped))?;
            signal_hook::flag::register(signal, Arc::clone(&stopped))?;
        }
        Ok(Display { style, stopped, now: Mutex::new(None) })
    }

    fn line(&self, value: &serde_json::Value) {
        let _ = writeln!(std::io::stderr().lock(), "{value}");
    }

    fn with<T>(&self, change: impl FnOnce(&mut Option<Running>) -> T) -> T {
        change(&mut self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn report(&self, running: &mut Running, event: &str) {
        running.last_line = Instant::now();
        let seconds = running.began.elapsed().as_secs_f64();
        self.line(&serde_json::json!({
            "event": event, "phase": running.phase, "bytes": running.done, "total_bytes": running.total,
            "seconds": (seconds * 1000.0).round() / 1000.0,
        }));
    }
}

/// Columns of the terminal, where there is one.
fn width() -> Option<u16> {
    comfy_table::Table::new().width()
}

fn title(phase: Phase) -> &'static str {
    match phase {
        Phase::Check => "checking",
        Phase::Compare => "comparing what is there",
        Phase::Write => "writing the slot",
        Phase::Boot => "boot files",
        Phase::Prove => "reading it back",
        Phase::Layers => "container layers",
        Phase::Chunk => "cutting and compressing",
        Phase::Push => "copying",
        Phase::Unpack => "unpacking a release",
        Phase::Patch => "making a patch",
    }
}

impl Progress for Display {
    fn begin(&self, phase: Phase, total: u64) {
        let bar = (self.style == Style::Bar).then(|| {
            let bar = ProgressBar::new(total).with_message(title(phase));
            // The bar is what shrinks: a line that is longer than the terminal is drawn anew below itself.
            let narrow = width().is_some_and(|columns| columns < COLUMNS_FOR_ALL);
            let template = if narrow { NARROW } else { WIDE };
            if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        let now = Instant::now();
        let mut running = Running { phase, total, done: 0, began: now, last_line: now, bar };
        if self.style == Style::Lines {
            self.report(&mut running, "begin");
        }
        self.with(|slot| *slot = Some(running));
    }

    fn advance(&self, bytes: u64) {
        self.with(|slot| {
            let Some(running) = slot else { return };
            running.done += bytes;
            if let Some(bar) = &running.bar {
                bar.set_position(running.done);
            }
            if self.style == Style::Lines && running.last_line.elapsed() >= LINE_EVERY {
                self.report(running, "progress");
            }
        });
    }

    fn end(&self) {
        if let Some(mut running) = self.with(Option::take) {
            if let Some(bar) = &running.bar {
                bar.finish_and_clear();
            }
            if self.style == Style::Lines {
                self.report(&mut running, "end");
            }
        }
    }

    fn say(&self, sentence: &str) {
        match self.style {
            Style::Lines => self.line(&serde_json::json!({ "event": "message", "text": sentence })),
            _ => {
                let _ = writeln!(std::io::stderr().lock(), "{sentence}");
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}
