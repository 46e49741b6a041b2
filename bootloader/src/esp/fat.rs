//! A FAT boot partition inside an image file or on a disk that nobody has mounted.
//!
//! Not here: formatting one (`partitions::provision`). Rule: each call opens the file system, does one thing,
//! unmounts and flushes, so that a clean file system lies on the device whenever no call is running.

use std::cell::Cell;
use std::io::{self, Read, Seek, Write};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use fatfs::{Date, DateTime, Dir, DirEntry, FileSystem, FsOptions, Time, TimeProvider};
use switchback_partitions::device::{BlockDevice, DeviceStream};

use super::sectors::{NAME_BYTES, Order, Sectors};
use super::{EspDir, EspEntry, Space, check_count, check_limit, check_path, parent, unfinished_dir};

/// How much of a file is copied at a time, in bytes.
const COPY_BYTES: usize = 256 * 1024;

/// The date of every name: FAT's first day, so that the same calls make the same image on any day.
static FIRST_DAY: FirstDay = FirstDay;

/// fatfs by itself writes month 0 and day 0. EDK2 takes such a date as an invalid parameter when the loader renames
/// an entry: the loader prints "Failed to rename … ignoring", starts the entry, and its tries are never spent.
#[derive(Debug)]
struct FirstDay;

impl TimeProvider for FirstDay {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

/// A FAT file system on a block device that nobody else has open.
pub struct FatEsp {
    device: Arc<dyn BlockDevice>,
    /// Two file systems open on one device at once would overwrite each other's tables.
    one_at_a_time: Mutex<()>,
}

type Fat = FileSystem<Stream>;

impl FatEsp {
    /// The FAT file system that fills `device` (a partition, or a window of an image file).
    pub fn new(device: Arc<dyn BlockDevice>) -> FatEsp {
        FatEsp { device, one_at_a_time: Mutex::new(()) }
    }

    fn look<T>(&self, work: impl FnOnce(&Fat) -> io::Result<T>) -> io::Result<T> {
        // What unmounting would write without a change is not written.
        self.look_through(Stream::new(Arc::new(Sectors::new(self.device.clone(), Order::Any))), work)
    }

    fn look_through<T>(&self, stream: Stream, work: impl FnOnce(&Fat) -> io::Result<T>) -> io::Result<T> {
        let _guard = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let fat = FileSystem::new(stream, FsOptions::new().time_provider(&FIRST_DAY))?;
        let result = work(&fat)?;
        fat.unmount()?;
        Ok(result)
    }

    /// fatfs gives `.` and `..` long names and points `..` of a first-level directory at the root's cluster;
    /// the FAT specification forbids both and `fsck.vfat` then moves the directory's contents to lost files.
    fn repair_dot_entries(&self, dir: &str) -> io::Result<()> {
        let seen = Rc::new(Cell::new(None));
        let at = self.look_through(Stream::new(self.device.clone()).watched(&seen), |fat| {
            let folder = open_dir(fat, dir)?;
            // What the first look at its names reads first is the directory's first byte.
            seen.set(None);
            folder.iter().next().transpose()?;
            seen.get().ok_or_else(|| io::ErrorKind::InvalidData.into())
        })?;
        let sectors = Arc::new(Sectors::new(self.device.clone(), Order::NewFirst));
        let mut stream = Stream::new(sectors.clone());
        let mut entries = [0; 4 * NAME_BYTES];
        stream.seek(io::SeekFrom::Start(at))?;
        stream.read_exact(&mut entries)?;
        let Some(entries) = dots_without_long_names(entries, parent(dir).is_empty()) else { return Ok(()) };
        stream.seek(io::SeekFrom::Start(at))?;
        stream.write_all(&entries)?;
        sectors.commit()
    }

    fn change<T>(&self, order: Order, work: impl FnOnce(&Fat) -> io::Result<T>) -> io::Result<T> {
        let sectors = Arc::new(Sectors::new(self.device.clone(), order));
        let result = self.look_through(Stream::new(sectors.clone()), |fat| {
            // Counts the free clusters where the stored count is unknown: fatfs then keeps it right.
            fat.stats()?;
            work(fat)
        });
        // After a failure too: what was done before it (a name removed, a cluster taken) must not be half known.
        sectors.commit()?;
        result
    }
}

impl EspDir for FatEsp {
    fn read_into(&self, path: &str, limit: u64, sink: &mut dyn Write) -> io::Result<u64> {
        check_path(path)?;
        self.look(|fat| {
            let file = find_file(fat, path)?.ok_or(io::ErrorKind::NotFound)?;
            check_limit(path, file.len(), limit)?;
            copy(&mut file.to_file().take(limit), sink, file.len())
        })
    }

    fn file_bytes(&self, path: &str) -> io::Result<Option<u64>> {
        check_path(path)?;
        self.look(|fat| Ok(find_file(fat, path)?.map(|entry| entry.len())))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<EspEntry>> {
        check_path(dir)?;
        self.look(|fat| {
            let folder = match open_dir(fat, dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                other => other?,
            };
            let mut entries = Vec::new();
            for entry in folder.iter() {
                let entry = entry?;
                let name = entry.file_name();
                if name != "." && name != ".." {
                    entries.push(EspEntry { name, is_dir: entry.is_dir(), bytes: entry.len() });
                }
                check_count(dir, entries.len())?;
            }
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        })
    }

    fn write_tmp(&self, path: &str, source: &mut dyn Read) -> io::Result<u64> {
        check_path(path)?;
        // First its name alone: a directory that grows for it must not lead to what lay there before.
        self.change(Order::NewFirst, |fat| fat.root_dir().create_file(path).map(drop))?;
        self.change(Order::Any, |fat| {
            let mut file = fat.root_dir().open_file(path)?;
            file.truncate()?;
            let bytes = copy(source, &mut file, u64::MAX)?;
            file.flush()?;
            Ok(bytes)
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_path(from)?;
        check_path(to)?;
        // fatfs refuses to replace; the mounted file system does it.
        let replaces =
            !same_name(from, to) && self.file_bytes(to)?.is_some() && self.file_bytes(from)?.is_some();
        if replaces {
            self.remove(to)?;
        }
        self.change(Order::NewFirst, |fat| fat.root_dir().rename(from, &fat.root_dir(), to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        check_path(path)?;
        self.change(Order::GoneFirst, |fat| fat.root_dir().remove(path))
    }

    fn mkdir(&self, dir: &str) -> io::Result<()> {
        check_path(dir)?;
        let mut path = String::new();
        for part in dir.split('/') {
            let above = path.clone();
            path = if above.is_empty() { part.to_string() } else { format!("{above}/{part}") };
            let exists = self.list(&above)?.iter().any(|entry| entry.is_dir && same_name(&entry.name, part));
            if !exists {
                let unfinished = unfinished_dir(self, &above, &path)?;
                self.change(Order::NewFirst, |fat| {
                    fat.root_dir().create_dir(&unfinished)?;
                    Ok(())
                })?;
                self.repair_dot_entries(&unfinished)?;
                self.rename(&unfinished, &path)?;
            }
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        self.look(|fat| {
            let stats = fat.stats()?;
            let cluster_bytes = u64::from(stats.cluster_size());
            Ok(Space { cluster_bytes, free_bytes: cluster_bytes * u64::from(stats.free_clusters()) })
        })
    }

    fn drop_caches(&self, _path: &str) -> io::Result<()> {
        self.device.drop_caches()
    }
}

fn open_dir<'a>(fat: &'a Fat, dir: &str) -> io::Result<Dir<'a, Stream>> {
    if dir.is_empty() { Ok(fat.root_dir()) } else { fat.root_dir().open_dir(dir) }
}

/// The first four directory entries that fatfs writes (long name, `.`, long name, `..`) as they should be; `None`
/// when they are not those four, as in a later version of fatfs that does it right.
fn dots_without_long_names(
    entries: [u8; 4 * NAME_BYTES],
    above_is_root: bool,
) -> Option<[u8; 4 * NAME_BYTES]> {
    const LONG_NAME: u8 = 0x0f;
    let entry = |index: usize| &entries[index * NAME_BYTES..(index + 1) * NAME_BYTES];
    let as_known = entry(0)[11] == LONG_NAME
        && entry(1).starts_with(b".          ")
        && entry(2)[11] == LONG_NAME
        && entry(3).starts_with(b"..         ");
    if !as_known {
        return None;
    }
    let mut right = [0; 4 * NAME_BYTES];
    right[..NAME_BYTES].copy_from_slice(entry(1));
    right[NAME_BYTES..2 * NAME_BYTES].copy_from_slice(entry(3));
    if above_is_root {
        // Microsoft FAT specification, 6.5: `..` of a directory in the root has first cluster 0.
        let dot_dot = &mut right[NAME_BYTES..];
        dot_dot[20..22].fill(0);
        dot_dot[26..28].fill(0);
    }
    Some(right)
}

/// The name of a file; none where there is no such name or it is a directory's.
fn find_file<'a>(fat: &'a Fat, path: &str) -> io::Result<Option<DirEntry<'a, Stream>>> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let folder = match open_dir(fat, parent(path)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    for (count, entry) in folder.iter().enumerate() {
        let entry = entry?;
        check_count(parent(path), count)?;
        if same_name(&entry.file_name(), name) {
            return Ok(entry.is_file().then_some(entry));
        }
    }
    Ok(None)
}

/// FAT compares names without case; fatfs does it by Unicode upper case too.
fn same_name(a: &str, b: &str) -> bool {
    a.chars().flat_map(char::to_uppercase).eq(b.chars().flat_map(char::to_uppercase))
}

/// Copies all of `source`, which has about `expected` bytes.
fn copy(source: &mut dyn Read, sink: &mut dyn Write, expected: u64) -> io::Result<u64> {
    let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(expected).unwrap_or(COPY_BYTES)).max(1)];
    let mut total = 0;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => {
                sink.write_all(&buffer[..count])?;
                total += count as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// What fatfs reads and writes through. It reads names and table entries in pieces of a few bytes: the sector around the
/// last one is kept.
struct Stream {
    device: DeviceStream<Arc<dyn BlockDevice>>,
    sector: Vec<u8>,
    /// Which sector that is.
    kept: Option<u64>,
    /// Where the first read since it was emptied took place.
    first_read: Option<Rc<Cell<Option<u64>>>>,
}

impl Stream {
    fn new(device: Arc<dyn BlockDevice>) -> Stream {
        Stream { device: DeviceStream::new(device), sector: Vec::new(), kept: None, first_read: None }
    }

    fn watched(self, first_read: &Rc<Cell<Option<u64>>>) -> Stream {
        Stream { first_read: Some(first_read.clone()), ..self }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let position = self.device.stream_position()?;
        if let Some(seen) = &self.first_read {
            seen.set(seen.get().or(Some(position)));
        }
        let device = self.device.device();
        let sector_bytes = u64::from(device.sector_bytes());
        if buffer.len() as u64 >= sector_bytes || position >= device.len() {
            return self.device.read(buffer);
        }
        let (number, skip) = (position / sector_bytes, (position % sector_bytes) as usize);
        if self.kept != Some(number) {
            self.kept = None;
            self.sector.resize(sector_bytes as usize, 0);
            device.read_at(number * sector_bytes, &mut self.sector)?;
            self.kept = Some(number);
        }
        let count = buffer.len().min(self.sector.len() - skip);
        buffer[..count].copy_from_slice(&self.sector[skip..skip + count]);
        self.device.seek(io::SeekFrom::Current(count as i64))?;
        Ok(count)
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.kept = None;
        self.device.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        // fatfs flushes whenever it drops a file or folder, even one that was only read; `FatEsp::change` flushes
        // the device once, when everything of a call is written.
        Ok(())
    }
}

impl Seek for Stream {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.device.seek(to)
    }
}
