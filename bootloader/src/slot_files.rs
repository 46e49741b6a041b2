//! A slot's folder on the boot partition: its boot files and its passport, for every backend that keeps them there.
//!
//! Not here: boot entries. Rule: a file reaches its final name only whole and flushed, and nothing of the other
//! slot is ever opened for writing.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};
use switchback_partitions::slot::Slot;

use crate::esp::{EspDir, Space};
use crate::record::{BootError, BootFile, BootFileKind, BootFiles};

/// The folder above both slots' folders.
pub const FOLDER: &str = "switchback";

/// The longest name of a passport document, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Ends the name of a file that is still being written.
const UNFINISHED: &str = ".tmp";

/// One name in a FAT directory (bytes); a long name takes one more for each 13 characters.
const DIR_ENTRY_BYTES: u64 = 32;
const NAMES_PER_FILE: u64 = 1 + (NAME_BYTES_MAX as u64).div_ceil(13);

/// The slot's folder: `switchback/a` or `switchback/b`.
pub fn folder(slot: Slot) -> String {
    format!("{FOLDER}/{slot}")
}

/// The path of a file in the slot's folder.
pub fn path(slot: Slot, name: &str) -> String {
    format!("{FOLDER}/{slot}/{name}")
}

/// Refuses a set of files from which no entry can be made, before anything is written.
pub fn check(slot: Slot, files: &BootFiles) -> Result<(), BootError> {
    let bad = |why: String| Err(BootError::BadFiles { slot, why });
    let mut kinds: Vec<BootFileKind> = files.files.iter().map(|file| file.kind).collect();
    kinds.sort();
    if kinds.windows(2).any(|pair| pair[0] == pair[1]) {
        return bad(format!("two boot files of one kind: {kinds:?}"));
    }
    for (index, (name, _)) in files.passport.iter().enumerate() {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        let taken = kinds.iter().any(|kind| kind.file_name() == name)
            || files.passport[..index].iter().any(|(earlier, _)| earlier == name);
        if name.is_empty()
            || name.len() > NAME_BYTES_MAX
            || name.starts_with('.')
            || !name.chars().all(is_plain)
        {
            return bad(format!("`{name}` is no name for a passport document"));
        }
        if taken || name.ends_with(UNFINISHED) {
            return bad(format!("the passport document's name `{name}` is taken"));
        }
    }
    Ok(())
}

/// Writes boot files, then the passport, under their final names, flushed. A file that already has the right bytes
/// stays untouched, so a second run after a crash writes only what is missing.
pub fn write(esp: &dyn EspDir, slot: Slot, files: &BootFiles) -> Result<(), BootError> {
    let folder = folder(slot);
    esp.mkdir(&folder).map_err(at("creating", &folder))?;
    remove_all_but(esp, slot, files)?;
    for file in &files.files {
        let name = file.kind.file_name();
        let source = || File::open(&file.source).map(|source| source.take(file.bytes.saturating_add(1)));
        write_one(esp, slot, name, &Content::of(file), || {
            source().map_err(|source| BootError::Source { path: file.source.clone(), source })
        })?;
    }
    for (name, bytes) in &files.passport {
        write_one(esp, slot, name, &Content::of_bytes(bytes), || Ok(bytes.as_slice()))?;
    }
    Ok(())
}

/// Reads every file back past the cache and compares it with what the release names.
pub fn verify(esp: &dyn EspDir, slot: Slot, files: &BootFiles) -> Result<(), BootError> {
    let boot_files = files.files.iter().map(|file| (file.kind.file_name(), Content::of(file)));
    let passport = files.passport.iter().map(|(name, bytes)| (name.as_str(), Content::of_bytes(bytes)));
    for (name, expected) in boot_files.chain(passport) {
        let found = stored(esp, slot, name, &expected)?;
        if found.as_ref() != Some(&expected) {
            return Err(mismatch(slot, name, &expected, found.as_ref()));
        }
    }
    Ok(())
}

/// The first boot file that is not there in its length, in words.
pub fn missing(esp: &dyn EspDir, slot: Slot, files: &[BootFile]) -> Result<Option<String>, BootError> {
    for file in files {
        let name = file.kind.file_name();
        let path = path(slot, name);
        match esp.file_bytes(&path).map_err(at("looking at", &path))? {
            None => return Ok(Some(format!("its boot file `{name}` is gone"))),
            Some(bytes) if bytes != file.bytes => {
                let words =
                    format!("its boot file `{name}` has {bytes} bytes and should have {}", file.bytes);
                return Ok(Some(words));
            }
            Some(_) => {}
        }
    }
    Ok(None)
}

/// Removes everything in the slot's folder, flushed. Its entries must be gone and flushed before.
pub fn forget(esp: &dyn EspDir, slot: Slot) -> Result<(), BootError> {
    let folder = folder(slot);
    let names = esp.list(&folder).map_err(at("listing", &folder))?;
    for name in names.iter().filter(|entry| !entry.is_dir) {
        let path = path(slot, &name.name);
        esp.remove(&path).map_err(at("removing", &path))?;
    }
    Ok(())
}

/// Copies a file of the slot's folder into `sink`; `None` when it is not there.
pub fn copy(
    esp: &dyn EspDir,
    slot: Slot,
    name: &str,
    limit: u64,
    sink: &mut dyn io::Write,
) -> Result<Option<u64>, BootError> {
    let path = path(slot, name);
    match esp.read_into(&path, limit, sink) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at("reading", &path)(e)),
    }
}

/// Would files of these sizes, and `more` bytes for entries, fit once the slot is forgotten?
pub fn preflight(esp: &dyn EspDir, slot: Slot, sizes: &[u64], more: &Room) -> Result<(), BootError> {
    let folder = folder(slot);
    let space = esp.space().map_err(at("measuring", ""))?;
    let files: u64 = sizes.iter().map(|bytes| space.rounded(*bytes)).sum();
    // One name more than files: the temporary one. A directory never shrinks, so its growth counts in full.
    let names = (sizes.len() as u64 + 1) * NAMES_PER_FILE * DIR_ENTRY_BYTES;
    let needed = files + space.rounded(names) + missing_folders(esp, &folder, &space)? + more.needed(&space);
    let present = esp.list(&folder).map_err(at("listing", &folder))?;
    let given_back: u64 = present.iter().map(|entry| space.rounded(entry.bytes)).sum();
    let available = space.free_bytes.saturating_add(given_back).saturating_add(more.given_back);
    if needed > available { Err(BootError::NoSpace { slot, needed, available }) } else { Ok(()) }
}

/// What a backend needs besides the slot's folder.
#[derive(Debug, Default)]
pub struct Room {
    /// How many small files (entries) it will write.
    pub small_files: u64,
    /// Bytes that its own files of the slot give back when the slot is forgotten.
    pub given_back: u64,
}

impl Room {
    fn needed(&self, space: &Space) -> u64 {
        if self.small_files == 0 {
            return 0;
        }
        let names = self.small_files * NAMES_PER_FILE * DIR_ENTRY_BYTES;
        self.small_files * space.rounded(1) + space.rounded(names)
    }
}

/// Names what was being done when a call on the boot partition failed.
pub fn at(doing: &'static str, path: &str) -> impl FnOnce(io::Error) -> BootError {
    let path = path.to_string();
    move |source| BootError::Esp { doing, path, source }
}

/// Length and SHA-256 of a file.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    bytes: u64,
    sha256: [u8; 32],
}

impl Content {
    fn of(file: &BootFile) -> Content {
        Content { bytes: file.bytes, sha256: file.sha256 }
    }

    fn of_bytes(bytes: &[u8]) -> Content {
        Content { bytes: bytes.len() as u64, sha256: Sha256::digest(bytes).into() }
    }
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, sha256:{}", self.bytes, hex::encode(self.sha256))
    }
}

fn mismatch(slot: Slot, name: &str, expected: &Content, found: Option<&Content>) -> BootError {
    let mut text = String::new();
    match found {
        Some(found) => drop(write!(text, "{found}")),
        None => text.push_str("no such file, or one that is larger"),
    }
    BootError::Mismatch { slot, file: name.to_string(), expected: expected.to_string(), found: text }
}

/// What lies on the medium under that name; `None` when there is no file or a larger one than expected.
fn stored(
    esp: &dyn EspDir,
    slot: Slot,
    name: &str,
    expected: &Content,
) -> Result<Option<Content>, BootError> {
    let path = path(slot, name);
    match esp.file_bytes(&path).map_err(at("reading", &path))? {
        Some(bytes) if bytes <= expected.bytes => {}
        _ => return Ok(None),
    }
    esp.drop_caches(&path).map_err(at("reading", &path))?;
    let mut sink = HashSink(Sha256::new());
    let bytes = esp.read_into(&path, expected.bytes, &mut sink).map_err(at("reading", &path))?;
    Ok(Some(Content { bytes, sha256: sink.0.finalize().into() }))
}

fn write_one<R: Read>(
    esp: &dyn EspDir,
    slot: Slot,
    name: &str,
    expected: &Content,
    open: impl FnOnce() -> Result<R, BootError>,
) -> Result<(), BootError> {
    let (path, unfinished) = (path(slot, name), path(slot, &format!("{name}{UNFINISHED}")));
    match stored(esp, slot, name, expected)? {
        Some(found) if found == *expected => return Ok(()),
        // Removed first: the partition need not hold the old and the new file at once.
        _ => remove_if_there(esp, &path)?,
    }
    let mut source = HashSource { source: open()?, hash: Sha256::new() };
    let bytes = esp.write_tmp(&unfinished, &mut source).map_err(at("writing", &unfinished))?;
    let written = Content { bytes, sha256: source.hash.finalize().into() };
    if written != *expected {
        remove_if_there(esp, &unfinished)?;
        return Err(mismatch(slot, name, expected, Some(&written)));
    }
    esp.rename(&unfinished, &path).map_err(at("renaming", &unfinished))
}

fn remove_if_there(esp: &dyn EspDir, path: &str) -> Result<(), BootError> {
    match esp.file_bytes(path).map_err(at("reading", path))? {
        Some(_) => esp.remove(path).map_err(at("removing", path)),
        None => Ok(()),
    }
}

/// Removes what an earlier release or an interrupted run left: it would take the space that `preflight` promised.
fn remove_all_but(esp: &dyn EspDir, slot: Slot, files: &BootFiles) -> Result<(), BootError> {
    let folder = folder(slot);
    for entry in esp.list(&folder).map_err(at("listing", &folder))? {
        let is_kept = files.files.iter().any(|file| entry.name.eq_ignore_ascii_case(file.kind.file_name()))
            || files.passport.iter().any(|(name, _)| entry.name.eq_ignore_ascii_case(name));
        if !is_kept && !entry.is_dir {
            let path = path(slot, &entry.name);
            esp.remove(&path).map_err(at("removing", &path))?;
        }
    }
    Ok(())
}

/// A cluster for each folder on the way that is still to be made, and one for the growth of the last that exists.
fn missing_folders(esp: &dyn EspDir, folder: &str, space: &Space) -> Result<u64, BootError> {
    let mut above = String::new();
    let mut missing = 0;
    for part in folder.split('/') {
        let names = esp.list(&above).map_err(at("listing", &above))?;
        if !names.iter().any(|entry| entry.is_dir && entry.name.eq_ignore_ascii_case(part)) {
            missing += 1;
        }
        above = if above.is_empty() { part.to_string() } else { format!("{above}/{part}") };
    }
    Ok(if missing == 0 { 0 } else { (missing + 1) * space.rounded(1) })
}

struct HashSink(Sha256);

impl io::Write for HashSink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct HashSource<R> {
    source: R,
    hash: Sha256,
}

impl<R: Read> Read for HashSource<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
