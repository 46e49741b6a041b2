//! What a unified kernel image says about itself: the sections of its PE file.
//!
//! Not here: making or signing one (`ukify`, `sbsign`). Rule: a UKI enters a release only with the release's own root
//! hash on its command line; any other would boot another release's root, or none, and cost all tries.

use goblin::pe::PE;

/// The word that names the root on the kernel command line: `switchback.roothash=<64 hex digits>`.
pub const ROOTHASH_WORD: &str = "switchback.roothash=";

/// Why a UKI does not fit the release. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum UkiError {
    /// The file is no PE file.
    #[error("while reading the UKI: it is no PE file")]
    NoPe(#[source] goblin::error::Error),
    /// The PE file lacks what makes it a UKI.
    #[error("while reading the UKI: it has no section {0}; make it with `ukify build`")]
    NoSection(&'static str),
    /// A section points outside the file.
    #[error("while reading the UKI: section {0} lies outside the file")]
    BadSection(&'static str),
    /// The command line is no text.
    #[error("while reading the UKI: its command line is not UTF-8")]
    NoText,
    /// The command line belongs to another root.
    #[error(
        "while comparing the UKI with the root: its command line must hold `{ROOTHASH_WORD}{expected}` once, and has {found}; \
         make it with `ukify build --linux=… --initrd=… --cmdline='{ROOTHASH_WORD}{expected} panic=-1'`"
    )]
    OtherRoot {
        /// The root hash of this release.
        expected: String,
        /// What the command line has instead.
        found: String,
    },
}

/// Checks that the UKI carries a kernel and this root hash (64 hexadecimal digits), and gives its command line.
pub fn check(uki: &[u8], roothash: &str) -> Result<String, UkiError> {
    let mut options = goblin::pe::options::ParseOptions::default();
    options.resolve_rva = false;
    let pe = PE::parse_with_opts(uki, &options).map_err(UkiError::NoPe)?;
    section(&pe, uki, ".linux")?;
    let cmdline = section(&pe, uki, ".cmdline")?;
    let cmdline = std::str::from_utf8(cmdline).map_err(|_| UkiError::NoText)?;
    let cmdline = cmdline.trim_end_matches('\0').trim().to_owned();
    check_roothash(&cmdline, roothash)?;
    Ok(cmdline)
}

/// The command line must name this root hash exactly once: of two words a kernel and an initramfs may each believe another.
fn check_roothash(cmdline: &str, roothash: &str) -> Result<(), UkiError> {
    let words: Vec<&str> =
        cmdline.split_whitespace().filter(|word| word.starts_with(ROOTHASH_WORD)).collect();
    match words[..] {
        [word] if word[ROOTHASH_WORD.len()..] == *roothash => Ok(()),
        [] => Err(UkiError::OtherRoot { expected: roothash.to_owned(), found: "none".into() }),
        _ => Err(UkiError::OtherRoot {
            expected: roothash.to_owned(),
            found: format!("`{}`", words.join(" ")),
        }),
    }
}

fn section<'a>(pe: &PE<'_>, uki: &'a [u8], name: &'static str) -> Result<&'a [u8], UkiError> {
    let header = pe
        .sections
        .iter()
        .find(|section| section.name().is_ok_and(|found| found == name))
        .ok_or(UkiError::NoSection(name))?;
    // The raw size is rounded up to the file's alignment; the virtual size is the true one where it is smaller.
    let start = header.pointer_to_raw_data as usize;
    let bytes = header.size_of_raw_data.min(header.virtual_size) as usize;
    start.checked_add(bytes).and_then(|end| uki.get(start..end)).ok_or(UkiError::BadSection(name))
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::Command;

    use super::*;

    const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

    /// A UKI with systemd's stub, as ukify makes it; the kernel and initrd are only names.
    pub(in super::super) fn uki(sections: &[(&str, &str)]) -> Vec<u8> {
        assert!(std::fs::exists(STUB).unwrap(), "{STUB} is missing: apt-get install systemd-boot-efi");
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("objcopy");
        for (n, (name, text)) in sections.iter().enumerate() {
            let file = dir.path().join(n.to_string());
            std::fs::write(&file, text).unwrap();
            command.arg("--add-section").arg(format!("{name}={}", file.display()));
            command.arg("--change-section-vma").arg(format!("{name}={:#x}", 0x20000 + n * 0x10000));
        }
        let out = dir.path().join("uki.efi");
        let status = command.arg(STUB).arg(&out).status().expect("apt-get install binutils");
        assert!(status.success());
        std::fs::read(out).unwrap()
    }

    #[test]
    fn a_uki_is_taken_with_this_root_hash_and_refused_with_any_other_form() {
        let hash = "ab".repeat(32);
        let word = format!("{ROOTHASH_WORD}{hash}");
        let good = uki(&[(".linux", "kernel"), (".cmdline", &format!("quiet {word}\n"))]);
        assert_eq!(check(&good, &hash).unwrap(), format!("quiet {word}"));

        let other = "cd".repeat(32);
        let table = [
            (
                "another root",
                uki(&[(".linux", "k"), (".cmdline", &format!("{ROOTHASH_WORD}{other}"))]),
                "ukify build",
            ),
            ("no root", uki(&[(".linux", "k"), (".cmdline", "quiet")]), "and has none"),
            (
                "two roots",
                uki(&[(".linux", "k"), (".cmdline", &format!("{word} {ROOTHASH_WORD}{other}"))]),
                &other,
            ),
            ("a longer word", uki(&[(".linux", "k"), (".cmdline", &format!("{word}00"))]), "and has `"),
            ("no command line", uki(&[(".linux", "k")]), "no section .cmdline"),
            ("no kernel", uki(&[(".cmdline", &word)]), "no section .linux"),
            ("no PE file", b"MZ not a program".to_vec(), "no PE file"),
            ("cut short", good[..good.len() / 2].to_vec(), "while reading the UKI"),
        ];
        for (why, bytes, expected) in table {
            let error = check(&bytes, &hash).unwrap_err().to_string();
            assert!(error.contains(expected), "{why}: {error}");
        }
    }
}
