//! Files on the EFI system partition (or whatever file system the loader reads), each change durable when it returns.
//!
//! Not here: what the files mean. Rule: FAT has no journal, so whoever changes it flushes at once: a caller cannot forget
//! a flush that it is not asked for. Nothing is replaced in place: temporary name, then `rename`.

use std::io;

mod fat;
mod mounted;
mod sectors;

pub use fat::FatEsp;
pub use mounted::MountedEsp;

/// The most names that one directory may hold before it is refused as damaged or hostile.
pub const LIST_MAX: usize = 4096;

/// A path's longest form in bytes.
const PATH_BYTES_MAX: usize = 512;

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspEntry {
    /// The name as stored, upper and lower case kept.
    pub name: String,
    /// True for a directory.
    pub is_dir: bool,
    /// Length in bytes; 0 for a directory.
    pub bytes: u64,
}

/// How full the file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// A file's last part occupies a whole one of these (bytes).
    pub cluster_bytes: u64,
    /// Bytes that can still be written.
    pub free_bytes: u64,
}

impl Space {
    /// Bytes that a file of `bytes` occupies.
    pub fn rounded(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_bytes.max(1)).saturating_mul(self.cluster_bytes.max(1))
    }
}

/// A small file system that a firmware or loader reads.
///
/// Paths are relative to its root, parts joined by `/`, without `.` and `..`; `""` is the root. Names are found in
/// upper and lower case alike where the file system is FAT.
pub trait EspDir: Send + Sync {
    /// Copies the file's bytes into `sink` and returns their number. More than `limit` bytes is `FileTooLarge`,
    /// found before anything is read; a missing file is `NotFound`.
    fn read_into(&self, path: &str, limit: u64, sink: &mut dyn io::Write) -> io::Result<u64>;
    /// The file's length in bytes; `None` when there is no such file (a directory is none).
    fn file_bytes(&self, path: &str) -> io::Result<Option<u64>>;
    /// The names in a directory, sorted; none when the directory does not exist.
    fn list(&self, dir: &str) -> io::Result<Vec<EspEntry>>;
    /// Creates the file anew from all of `source`; on the medium when it returns. `path` is a temporary name: a power cut
    /// meanwhile leaves anything there.
    fn write_tmp(&self, path: &str, source: &mut dyn io::Read) -> io::Result<u64>;
    /// Gives a file of the same directory another name; a file that has it is replaced. Durable when it returns; a power
    /// cut before that leaves the old name, the new one or both. A kernel's vfat may leave the new one empty, see `MountedEsp`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Durable when it returns.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Creates the directory and its parents where missing. Durable when it returns.
    fn mkdir(&self, dir: &str) -> io::Result<()>;
    /// How full the file system is.
    fn space(&self) -> io::Result<Space>;
    /// Makes the next read of the file come from the medium.
    fn drop_caches(&self, path: &str) -> io::Result<()>;

    /// The whole file, at most `limit` bytes.
    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_into(path, limit, &mut bytes)?;
        Ok(bytes)
    }
}

/// A free name beside `path`, under which a directory is made before it gets its own: a power cut may leave a directory
/// whose clusters hold whatever lay there before, and every later install into it would fail.
fn unfinished_dir(esp: &dyn EspDir, above: &str, path: &str) -> io::Result<String> {
    let taken = esp.list(above)?;
    let names = (0..LIST_MAX).map(|number| format!("{path}.{number:03}"));
    let is_free = |name: &String| {
        let last = name.rsplit('/').next().unwrap_or(name);
        !taken.iter().any(|entry| entry.name.eq_ignore_ascii_case(last))
    };
    let mut free = names.filter(is_free);
    free.next().ok_or_else(|| io::Error::other(format!("no name is free beside `{path}`")))
}

/// Refuses a path that leaves the file system or that FAT cannot hold: entries written by others name paths too.
fn check_path(path: &str) -> io::Result<()> {
    let part_is_odd =
        |part: &str| part.is_empty() || part == "." || part == ".." || part.contains(['\\', '\0', ':']);
    if path.len() > PATH_BYTES_MAX || (!path.is_empty() && path.split('/').any(part_is_odd)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{path}` is no path on a boot partition"),
        ));
    }
    Ok(())
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn check_limit(path: &str, bytes: u64, limit: u64) -> io::Result<()> {
    if bytes > limit {
        let text = format!("`{path}` has {bytes} bytes, more than the {limit} that are read");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(())
}

fn check_count(dir: &str, count: usize) -> io::Result<()> {
    if count > LIST_MAX {
        let text = format!("`{dir}` holds more than {LIST_MAX} names");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
