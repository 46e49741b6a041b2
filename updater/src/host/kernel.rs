//! What the kernel tells of this start and of the one before: its log, crash records, the watchdog's boot status.
//!
//! Not here: what follows from it (`engine`). Rule: every read has a bound and never waits; what cannot be read is not
//! there, for this only makes a reason less exact.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::sysfs::Sysfs;

/// Most crash records that are looked at: a panic leaves a handful of parts.
const RECORDS_MAX: usize = 64;
/// Most bytes of one record: what a backend keeps of one part is far less.
const RECORD_BYTES_MAX: u64 = 64 << 10;
/// Most bytes of the kernel's log that are read before the last of them are kept: its buffer is seldom larger.
const LOG_BYTES_MAX: usize = 16 << 20;

/// Where the kernel shows these things.
#[derive(Debug, Clone)]
pub struct KernelView {
    pstore: PathBuf,
    log: PathBuf,
    sysfs: Sysfs,
    /// True where systemd's journal can be asked.
    pub journal: bool,
}

/// A crash record, as the kernel left it in persistent memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashRecord {
    /// Where it lies; removing the file frees the memory.
    pub path: PathBuf,
    /// True when the kernel panicked; an "Oops" alone need not have ended the start.
    pub panic: bool,
    /// What it says.
    pub text: String,
}

impl KernelView {
    /// The running machine's.
    pub fn of_this_machine(journal: bool) -> KernelView {
        let sysfs = Sysfs::of_this_machine();
        KernelView { pstore: "/sys/fs/pstore".into(), log: "/dev/kmsg".into(), sysfs, journal }
    }

    /// A folder that imitates it: `pstore/`, `kmsg`, `sys/`.
    pub fn at(folder: &Path) -> KernelView {
        let sysfs = Sysfs::at(folder.join("sys"));
        KernelView { pstore: folder.join("pstore"), log: folder.join("kmsg"), sysfs, journal: false }
    }

    /// True when a watchdog reset the machine, and so began this start.
    pub fn watchdog_reset(&self) -> bool {
        self.sysfs.watchdogs().iter().any(|watchdog| watchdog.reset)
    }

    /// The crash records, those of the newest crash first and each crash in the order of its words: the kernel numbers
    /// the parts of a crash backwards.
    pub fn crash_records(&self) -> Vec<CrashRecord> {
        let Ok(entries) = fs::read_dir(&self.pstore) else { return Vec::new() };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"dmesg-"))
        });
        paths.sort();
        paths.reverse();
        paths.truncate(RECORDS_MAX);
        paths.into_iter().filter_map(|path| CrashRecord::read(path).ok()).collect()
    }

    /// The last `limit` bytes of the kernel's log, a line each with its time.
    pub fn log_tail(&self, limit: usize) -> String {
        // Without the flag the last read would wait for the next message.
        let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&self.log);
        let Ok(mut file) = opened else { return String::new() };
        let (mut kept, mut read, mut buffer) = (Vec::new(), 0, [0; 8192]);
        while read < LOG_BYTES_MAX {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => {
                    read += bytes;
                    kept.extend_from_slice(&buffer[..bytes]);
                    // Records carry a prefix that is not kept, so twice as much is held until the end.
                    if kept.len() > 4 * limit {
                        kept.drain(..kept.len() - 2 * limit);
                    }
                }
                // Messages were overwritten while reading: the next read goes on behind them.
                Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => read += 1,
                Err(_) => break,
            }
        }
        let lines: Vec<String> = String::from_utf8_lossy(&kept).lines().filter_map(message).collect();
        tail(&lines.join("\n"), limit).to_owned()
    }
}

impl CrashRecord {
    fn read(path: PathBuf) -> std::io::Result<CrashRecord> {
        let mut bytes = Vec::new();
        File::open(&path)?.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
        let text = match path.extension().is_some_and(|extension| extension == "z") {
            true => format!("({} bytes that the kernel could not unpack)", bytes.len()),
            false => String::from_utf8_lossy(&bytes).trim_end().to_owned(),
        };
        Ok(CrashRecord { panic: text.starts_with("Panic#"), path, text })
    }
}

/// `[   12.345678] text` of a line of /dev/kmsg (`6,339,12345678,-;text`); none for a line of properties, or for half a
/// line.
fn message(line: &str) -> Option<String> {
    let (prefix, text) = line.split_once(';')?;
    let micros: u64 = prefix.split(',').nth(2)?.parse().ok()?;
    Some(format!("[{:5}.{:06}] {text}", micros / 1_000_000, micros % 1_000_000))
}

/// The last `limit` bytes of a text, from the beginning of a line where there is one.
pub fn tail(text: &str, limit: usize) -> &str {
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    match (start, text[start..].find('\n')) {
        (1.., Some(end)) => &text[start + end + 1..],
        _ => &text[start..],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dir: &Path) -> KernelView {
        fs::create_dir(dir.join("pstore")).unwrap();
        KernelView::at(dir)
    }

    #[test]
    fn crash_records_read_in_the_order_of_their_words_and_only_a_panic_counts_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let view = view(dir.path());
        assert_eq!(view.crash_records(), []);
        for (name, text) in [
            ("dmesg-efi_pstore-170000000001001", "Panic#1 Part1\n<0>the end\n"),
            ("dmesg-efi_pstore-170000000002001", "Panic#1 Part2\n<4>before\n"),
            ("dmesg-efi_pstore-160000000001001", "Oops#1 Part1\n<1>a bad pointer\n"),
            ("console-ramoops-0", "not a crash\n"),
        ] {
            fs::write(dir.path().join("pstore").join(name), text).unwrap();
        }
        fs::write(dir.path().join("pstore/dmesg-erst-1.enc.z"), [1, 2, 3]).unwrap();
        let found: Vec<_> = view.crash_records().into_iter().map(|r| (r.panic, r.text)).collect();
        let expected = [
            (false, "(3 bytes that the kernel could not unpack)"),
            (true, "Panic#1 Part2\n<4>before"),
            (true, "Panic#1 Part1\n<0>the end"),
            (false, "Oops#1 Part1\n<1>a bad pointer"),
        ];
        assert_eq!(found, expected.map(|(panic, text)| (panic, text.to_owned())));
    }

    #[test]
    fn records_without_end_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let view = view(dir.path());
        for number in 0..100 {
            fs::write(dir.path().join(format!("pstore/dmesg-x-{number}")), vec![b'x'; 100_000]).unwrap();
        }
        let records = view.crash_records();
        assert_eq!(records.len(), RECORDS_MAX);
        assert!(records.iter().all(|record| record.text.len() as u64 <= RECORD_BYTES_MAX));
    }

    #[test]
    fn the_log_is_its_last_messages_with_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let view = view(dir.path());
        assert_eq!(view.log_tail(100), "", "there is none");
        let mut log = String::new();
        for number in 0..50_000 {
            log.push_str(&format!("6,{number},{},-;message {number}\n SUBSYSTEM=cpu\n", number * 1000));
        }
        fs::write(dir.path().join("kmsg"), &log).unwrap();
        assert_eq!(
            view.log_tail(70),
            "[   49.998000] message 49998\n[   49.999000] message 49999",
            "whole lines only"
        );
        assert!(view.log_tail(8000).len() > 7900);
    }

    #[test]
    fn a_log_that_nobody_writes_to_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let view = view(dir.path());
        nix::unistd::mkfifo(&dir.path().join("kmsg"), nix::sys::stat::Mode::from_bits_truncate(0o600))
            .unwrap();
        // A writer that says nothing: only a read that does not wait comes back.
        let _writer = OpenOptions::new().read(true).write(true).open(dir.path().join("kmsg")).unwrap();
        assert_eq!(view.log_tail(100), "");
    }
}
