//! The recorder as a disk and as a state folder: what production code is given instead of the real ones.
//!
//! Not here: any promise. Rule: behaves as a device and a folder do, bounds included, and keeps nothing of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use switchback::host::state_dir::{StateDir, Store};
use switchback_partitions::device::disk::Disk;
use switchback_partitions::device::{BlockDevice, Window};
use switchback_partitions::layout::Extent;

use super::broken::Broken;
use super::recorder::{Domain, Op, Recorder};

/// The recorded disk.
#[derive(Debug, Clone)]
pub struct CutDisk {
    recorder: Arc<Recorder>,
    domain: Domain,
    len: u64,
    sector_bytes: u32,
}

impl CutDisk {
    /// The disk, reached as `domain` says.
    pub fn new(recorder: Arc<Recorder>, domain: Domain) -> CutDisk {
        let (len, sector_bytes) = recorder.geometry();
        CutDisk { recorder, domain, len, sector_bytes: sector_bytes as u32 }
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl BlockDevice for CutDisk {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check(offset, buffer.len() as u64)?;
        self.recorder.read(self.domain, offset, buffer, false);
        Ok(())
    }

    fn read_past_cache(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check(offset, buffer.len() as u64)?;
        self.recorder.read(self.domain, offset, buffer, true);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len() as u64)?;
        if data.is_empty() { Ok(()) } else { self.recorder.write(self.domain, offset, data) }
    }

    fn flush(&self) -> io::Result<()> {
        self.recorder.flush(self.domain)
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        self.write_at(offset, &vec![0; len as usize])
    }

    /// A medium may do nothing, and then what was there stays: the worse case for whoever relies on it.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)
    }

    fn drop_caches(&self) -> io::Result<()> {
        self.recorder.drop_caches(self.domain);
        Ok(())
    }
}

/// The recorded disk with its nodes, as the updater opens them.
pub struct CutNodes {
    /// What happens is written down here.
    pub recorder: Arc<Recorder>,
    /// Which mistake the updater makes.
    pub broken: Option<Broken>,
}

impl CutNodes {
    /// The node of a partition, or 0 for the whole disk's: all of the disk is there, reached through it.
    pub fn node(&self, number: u32) -> Arc<dyn BlockDevice> {
        let disk = CutDisk::new(self.recorder.clone(), Domain::Disk(number));
        match self.broken {
            Some(broken) => broken.device(disk),
            None => Arc::new(disk),
        }
    }
}

impl Disk for CutNodes {
    fn whole(&self) -> io::Result<Arc<dyn BlockDevice>> {
        Ok(self.node(0))
    }

    fn partition(&self, extent: &Extent) -> io::Result<Arc<dyn BlockDevice>> {
        Ok(Arc::new(Window::new(self.node(extent.number), extent.offset, extent.len)?))
    }
}

/// The recorded state folder. What need not survive (the lock, downloads) lies in a real one.
#[derive(Debug, Clone)]
pub struct CutFolder {
    recorder: Arc<Recorder>,
    scratch: PathBuf,
}

impl CutFolder {
    /// The folder, with `scratch` for what need not survive.
    pub fn new(recorder: Arc<Recorder>, scratch: &Path) -> CutFolder {
        CutFolder { recorder, scratch: scratch.to_path_buf() }
    }

    fn find(&self, name: &str) -> io::Result<u32> {
        self.recorder.find_file(name).map(|(file, _)| file).ok_or(io::ErrorKind::NotFound.into())
    }
}

impl StateDir for CutFolder {
    fn path(&self) -> &Path {
        &self.scratch
    }

    fn make(&self) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        match self.recorder.read_file(name) {
            Some(bytes) if bytes.len() as u64 > limit => Err(io::ErrorKind::InvalidData.into()),
            other => Ok(other),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let file = self.recorder.create(name)?;
        self.recorder.write_file(file, 0, bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.recorder.step(Op::Flush(Domain::File(self.find(name)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.find(from)?;
        self.recorder.step(Op::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match self.find(name) {
            Ok(_) => self.recorder.step(Op::Unlink(name.to_owned())),
            Err(_) => Ok(()),
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.recorder.step(Op::Flush(Domain::Names))
    }

    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Store>>> {
        let found = self.recorder.find_file(name);
        Ok(found
            .map(|(file, _)| Box::new(CutFile { recorder: self.recorder.clone(), file }) as Box<dyn Store>))
    }
}

struct CutFile {
    recorder: Arc<Recorder>,
    file: u32,
}

impl Store for CutFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.recorder.file_len(self.file))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset + buffer.len() as u64 > self.len()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.recorder.read_file_at(self.file, offset, buffer);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.recorder.write_file(self.file, offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.recorder.step(Op::Flush(Domain::File(self.file)))
    }
}
