//! One Switchback at a time on a machine.
//!
//! Not here: the lock on the disk itself (`partitions::gpt`). Rule: the kernel's lock decides, so that a killed holder
//! frees it; the process id in the file is only for the message.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::HostError;

/// A process id and a line end; anything longer is not ours.
const HOLDER_BYTES_MAX: u64 = 32;

/// The lock, held until dropped.
#[derive(Debug)]
pub struct InstanceLock {
    _file: File,
}

impl InstanceLock {
    /// Takes the lock `lock` in the state folder at once, or says who holds it.
    pub fn take(state_dir: &Path) -> Result<InstanceLock, HostError> {
        let path = state_dir.join("lock");
        let io = |doing| {
            let path = path.clone();
            move |source| HostError::Io { doing, path, source }
        };
        // Never truncated at open: until the lock is ours the holder's id in it must stay readable.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("opening"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(HostError::Busy { path: path.clone(), holder: holder(&file) });
            }
            Err(TryLockError::Error(source)) => return Err(io("locking")(source)),
        }
        write_holder(&mut file).map_err(io("writing"))?;
        Ok(InstanceLock { _file: file })
    }
}

fn write_holder(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

fn holder(file: &File) -> String {
    let mut text = String::new();
    match file.take(HOLDER_BYTES_MAX).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_instance_is_told_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let held = InstanceLock::take(dir.path()).unwrap();
        match InstanceLock::take(dir.path()).unwrap_err() {
            HostError::Busy { holder, .. } => assert_eq!(holder, std::process::id().to_string()),
            other => panic!("{other}"),
        }
        drop(held);
        InstanceLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_left_over_lock_file_without_a_holder_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lock"), "4294967295\n").unwrap();
        InstanceLock::take(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("lock")).unwrap();
        assert_eq!(text.trim(), std::process::id().to_string());
    }
}
