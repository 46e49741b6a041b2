//! The words of the kernel command line that concern Switchback.
//!
//! Not here: reading `/proc/cmdline`. Rule: pure; what is not understood is left to the kernel and to the system's own
//! init, what is ours and malformed is an error, never a silent default. There is no word that turns dm-verity off.

use std::path::PathBuf;
use std::time::Duration;

use switchback_partitions::verity::RootHash;

/// More bytes than any kernel accepts as its command line.
pub const CMDLINE_BYTES_MAX: u64 = 16 * 1024;

/// How long a trial may last before somebody ends it, unless `switchback.deadline=SECONDS` says otherwise: as long as
/// `boot.trial_deadline`, which ends it from inside. A shorter one would cut off checks that still have time.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10 * 60);

/// How long the initramfs may take, unless `switchback.init-deadline=SECONDS` says otherwise: several times what the
/// slowest disk needs to show up.
pub const INIT_DEADLINE_DEFAULT: Duration = Duration::from_secs(3 * 60);

/// The longest deadline accepted: a day. A longer one is a typing mistake that would leave a machine on a bad slot.
pub const DEADLINE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What the command line asks of `switchback init`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The dm-verity root hash of the release that is to run: `switchback.roothash=<64 hex digits>`.
    pub root_hash: RootHash,
    /// How long a trial may last, counted from the switch to the root: `switchback.deadline=SECONDS`.
    pub deadline: Duration,
    /// How long it may take from here to the root's init, on a trial or not: `switchback.init-deadline=SECONDS`.
    pub init_deadline: Duration,
    /// The program that becomes PID 1 on the root: `init=PATH`, else `/sbin/init`.
    pub init: PathBuf,
}

/// Why the command line cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// The word is not there at all.
    #[error("while reading the kernel command line: no `switchback.roothash=` names the root to start")]
    NoRootHash,
    /// The word is there twice with two meanings: something was appended to a release's own command line.
    #[error(
        "while reading the kernel command line: `switchback.roothash=` is given twice, {first} and {second}"
    )]
    TwoRootHashes {
        /// The first value.
        first: String,
        /// The other value.
        second: String,
    },
    /// A word of ours has a value that cannot be used.
    #[error("while reading the kernel command line: `{word}={value}` is not {wanted}")]
    Malformed {
        /// The word before the `=`.
        word: &'static str,
        /// What stands after it.
        value: String,
        /// What should stand there.
        wanted: &'static str,
    },
}

impl Request {
    /// Reads the whole text of `/proc/cmdline`.
    pub fn parse(text: &str) -> Result<Request, CmdlineError> {
        Ok(Request {
            root_hash: root_hash(text)?,
            deadline: deadline(text, "switchback.deadline")?.unwrap_or(DEADLINE_DEFAULT),
            init_deadline: deadline(text, "switchback.init-deadline")?.unwrap_or(INIT_DEADLINE_DEFAULT),
            init: match last(text, "init") {
                Some(value) if value.starts_with('/') => PathBuf::from(value),
                Some(value) => {
                    return Err(malformed("init", value, "an absolute path"));
                }
                None => PathBuf::from("/sbin/init"),
            },
        })
    }
}

/// The last value of `word=value`, the one the kernel's own parser would use; quotes around it are taken off.
pub fn last<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    all(text, word).last()
}

fn all<'a>(text: &'a str, word: &str) -> impl Iterator<Item = &'a str> {
    words(text).filter_map(move |item| {
        let (name, value) = item.split_once('=')?;
        (name.trim_start_matches('"') == word).then(|| value.trim_matches('"'))
    })
}

/// Splits at white space outside of double quotes, as the kernel does.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c: char| {
        quoted ^= c == '"';
        c.is_ascii_whitespace() && !quoted
    })
    .filter(|item| !item.is_empty())
}

fn root_hash(text: &str) -> Result<RootHash, CmdlineError> {
    let mut values = all(text, "switchback.roothash");
    let first = values.next().ok_or(CmdlineError::NoRootHash)?;
    // The last one would win in the kernel, the first one in a careless script: with two meanings nobody wins.
    if let Some(second) = values.find(|value| !value.eq_ignore_ascii_case(first)) {
        return Err(CmdlineError::TwoRootHashes { first: first.into(), second: second.into() });
    }
    let mut hash = [0; 32];
    hex::decode_to_slice(first, &mut hash)
        .map_err(|_| malformed("switchback.roothash", first, "64 hexadecimal digits"))?;
    Ok(RootHash(hash))
}

fn deadline(text: &str, word: &'static str) -> Result<Option<Duration>, CmdlineError> {
    let Some(value) = last(text, word) else { return Ok(None) };
    let seconds = value.parse().ok().map(Duration::from_secs);
    let accepted = seconds.filter(|deadline| !deadline.is_zero() && *deadline <= DEADLINE_MAX);
    accepted.map(Some).ok_or_else(|| malformed(word, value, "a number of seconds from 1 to 86400"))
}

fn malformed(word: &'static str, value: &str, wanted: &'static str) -> CmdlineError {
    CmdlineError::Malformed { word, value: value.into(), wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddee01";

    fn parse(rest: &str) -> Result<Request, CmdlineError> {
        Request::parse(&format!("quiet switchback.roothash={HASH} {rest}\n"))
    }

    #[test]
    fn a_plain_command_line_gives_the_root_hash_and_the_defaults() {
        let request = parse("console=ttyS0").unwrap();
        assert_eq!(hex::encode(request.root_hash.0), HASH);
        assert_eq!(request.deadline, Duration::from_secs(600));
        assert_eq!(request.init_deadline, Duration::from_secs(180));
        assert_eq!(request.init, PathBuf::from("/sbin/init"));
    }

    #[test]
    fn words_of_ours_are_read_and_others_are_left_alone() {
        let words = "switchback.deadline=90 switchback.init-deadline=30";
        let request = parse(&format!("{words} rdinit=/x init=/bin/sh dyndbg=\"init=/no +p\"")).unwrap();
        assert_eq!(request.deadline, Duration::from_secs(90));
        assert_eq!(request.init_deadline, Duration::from_secs(30));
        assert_eq!(request.init, PathBuf::from("/bin/sh"), "a quoted blank does not start a new word");
    }

    #[test]
    fn what_is_ours_and_malformed_is_refused_with_its_word() {
        for (rest, said) in [
            ("switchback.deadline=0", "switchback.deadline=0"),
            ("switchback.deadline=99999999", "99999999"),
            ("switchback.deadline=5min", "seconds"),
            ("switchback.init-deadline=-1", "switchback.init-deadline=-1"),
            ("init=bin/sh", "absolute"),
            ("switchback.roothash=aa", "twice"),
        ] {
            let error = parse(rest).unwrap_err().to_string();
            assert!(error.contains(said), "{rest}: {error}");
        }
        assert_eq!(Request::parse("quiet"), Err(CmdlineError::NoRootHash));
        assert!(Request::parse("switchback.roothash=abcd").is_err(), "too short");
    }

    #[test]
    fn the_same_root_hash_twice_is_one_root_hash() {
        assert!(parse(&format!("switchback.roothash={}", HASH.to_uppercase())).is_ok());
    }
}
