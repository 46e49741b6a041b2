//! Small files of the running system, read with a bound.
//!
//! Not here: what the files mean, and files of our own (`state_dir`). Rule: no file is trusted to end.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The content of `path`, or `None` when it does not exist. A file of more than `limit` bytes is an error.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {limit} bytes")));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_over_its_bound_is_refused_and_an_absent_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert!(read_bounded(&path, 3).unwrap().is_none());
        fs::write(&path, b"four").unwrap();
        assert!(read_bounded(&path, 3).is_err());
    }
}
