//! What the kernel says of block devices, watchdogs and the board, read from sysfs.
//!
//! Not here: which partition is which slot. Rule: only reads; the folder is a parameter, so that tests imitate a machine.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Attributes in sysfs and procfs that are read here fit in a page.
const ATTRIBUTE_BYTES_MAX: u64 = 4096;

/// dm devices stand on dm devices at most this deep; more is a loop or nothing of ours.
const STACK_DEPTH_MAX: usize = 8;

/// The kernel's number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// Major number: the driver.
    pub major: u64,
    /// Minor number: the device.
    pub minor: u64,
}

impl DeviceNumber {
    /// From the `st_dev` or `st_rdev` of a `stat` call.
    pub fn from_raw(raw: u64) -> Self {
        DeviceNumber { major: nix::sys::stat::major(raw), minor: nix::sys::stat::minor(raw) }
    }
}

impl std::fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A partition, as the kernel numbers it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelPartition {
    /// Its name beneath `/dev`: `vda2`.
    pub name: String,
    /// The name of its disk: `vda`.
    pub disk: String,
    /// Its number in the partition table, from 1.
    pub number: u32,
}

/// A folder in the form of `/sys`.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    /// The running machine's `/sys`.
    pub fn of_this_machine() -> Self {
        Sysfs::at("/sys")
    }

    /// A folder that imitates `/sys`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Sysfs { root: root.into() }
    }

    /// The partitions that a block device stands on: itself when it is one, else those beneath its `slaves` (a
    /// dm-verity device stands on its data and its hash partition). Sorted, each once; empty for a whole disk.
    pub fn partitions_beneath(&self, device: DeviceNumber) -> io::Result<Vec<KernelPartition>> {
        let start = fs::canonicalize(self.root.join("dev/block").join(device.to_string()))?;
        let mut found = Vec::new();
        collect_partitions(&start, STACK_DEPTH_MAX, &mut found)?;
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Names of the whole disks that the kernel found partitions on, sorted.
    pub fn partitioned_disks(&self) -> io::Result<Vec<String>> {
        let mut disks = Vec::new();
        for entry in fs::read_dir(self.root.join("class/block"))? {
            let folder = fs::canonicalize(entry?.path())?;
            if let Some(partition) = read_partition(&folder)? {
                disks.push(partition.disk);
            }
        }
        disks.sort();
        disks.dedup();
        Ok(disks)
    }

    /// The kernel's name of partition `number` on `disk`: `vda2`, `nvme0n1p2`.
    pub fn partition_name(&self, disk: &str, number: u32) -> io::Result<String> {
        let folder = self.root.join("class/block").join(to_sysfs(disk));
        for entry in fs::read_dir(&folder)? {
            if let Some(partition) = read_partition(&fs::canonicalize(entry?.path())?)?
                && partition.number == number
            {
                return Ok(partition.name);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("the kernel knows no partition {number} on {disk}"),
        ))
    }

    /// The kernel's number of the block device called `name`.
    pub fn device_number(&self, name: &str) -> io::Result<DeviceNumber> {
        let path = self.root.join("class/block").join(to_sysfs(name)).join("dev");
        let text = read_attribute(&path)?;
        parse_device_number(&text).ok_or_else(|| invalid(&path, &text))
    }

    /// Watchdog devices, the one to use first: a hardware one before `softdog`, which cannot restart a dead kernel.
    pub fn watchdogs(&self) -> Vec<Watchdog> {
        let Ok(entries) = fs::read_dir(self.root.join("class/watchdog")) else { return Vec::new() };
        let mut found: Vec<_> = entries.flatten().map(|entry| Watchdog::read(&entry.path())).collect();
        found.sort_by_key(|dog| (dog.is_software(), dog.name.clone()));
        found
    }

    /// Names the board gives itself: every device tree `compatible`, then DMI vendor and product.
    pub fn board_names(&self) -> Vec<String> {
        let tree = read_attribute(&self.root.join("firmware/devicetree/base/compatible")).unwrap_or_default();
        let dmi = |name: &str| read_attribute(&self.root.join("class/dmi/id").join(name)).unwrap_or_default();
        let (vendor, product) = (dmi("sys_vendor"), dmi("product_name"));
        let mut names: Vec<_> = tree.split('\0').map(str::trim).map(str::to_owned).collect();
        names.push(product.clone());
        if !vendor.is_empty() && !product.is_empty() {
            names.push(format!("{vendor} {product}"));
        }
        names.retain(|name| !name.is_empty());
        names
    }
}

/// A watchdog device as sysfs describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchdog {
    /// Its name beneath `/dev`: `watchdog0`.
    pub name: String,
    /// What it calls itself: `i6300ESB timer`, `Software Watchdog`. Empty where the kernel does not say.
    pub identity: String,
    /// True while it runs: somebody holds it, or it cannot be stopped.
    pub active: bool,
    /// True when it reset the machine, and so began this start.
    pub reset: bool,
}

/// `WDIOF_CARDRESET` of the kernel's watchdog API.
const CARD_RESET: u32 = 0x20;

impl Watchdog {
    fn read(folder: &Path) -> Self {
        let attribute = |name: &str| read_attribute(&folder.join(name)).unwrap_or_default();
        Watchdog {
            name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            identity: attribute("identity"),
            active: attribute("state") == "active",
            reset: attribute("bootstatus").parse().is_ok_and(|status: u32| status & CARD_RESET != 0),
        }
    }

    /// True for the kernel's `softdog`.
    pub fn is_software(&self) -> bool {
        self.identity.eq_ignore_ascii_case("software watchdog")
    }
}

/// Reads a small attribute file whole, without the white space at its end. Longer than a page is an error.
pub fn read_attribute(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(ATTRIBUTE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > ATTRIBUTE_BYTES_MAX {
        return Err(invalid(path, "more than a page"));
    }
    Ok(text.trim_end().to_owned())
}

fn collect_partitions(folder: &Path, depth: usize, found: &mut Vec<KernelPartition>) -> io::Result<()> {
    if let Some(partition) = read_partition(folder)? {
        found.push(partition);
        return Ok(());
    }
    let Some(depth) = depth.checked_sub(1) else {
        return Err(invalid(folder, "devices upon devices without end"));
    };
    match fs::read_dir(folder.join("slaves")) {
        Ok(slaves) => {
            for slave in slaves {
                collect_partitions(&fs::canonicalize(slave?.path())?, depth, found)?;
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The partition that a device folder describes, or `None` for anything else.
fn read_partition(folder: &Path) -> io::Result<Option<KernelPartition>> {
    let path = folder.join("partition");
    let text = match read_attribute(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let number = text.parse().map_err(|_| invalid(&path, &text))?;
    let disk = folder.parent().ok_or_else(|| invalid(folder, "a partition without a disk"))?;
    Ok(Some(KernelPartition { name: device_name(folder), disk: device_name(disk), number }))
}

/// sysfs writes the `/` of names like `cciss/c0d0` as `!`.
fn device_name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().replace('!', "/")
}

fn to_sysfs(name: &str) -> String {
    name.replace('/', "!")
}

fn parse_device_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

fn invalid(path: &Path, found: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: not understood: {found}", path.display()))
}

#[cfg(test)]
pub(crate) mod fixture {
    //! A folder in the form of `/sys` with the disks a test needs.

    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::Sysfs;

    /// A machine with disk `vda` (partitions 1..=count) and, when asked, a dm-verity device `dm-0` (254:0) over two.
    pub fn machine(root: &Path, partitions: u32, verity_over: Option<[u32; 2]>) -> Sysfs {
        for folder in ["dev/block", "class/block", "class/watchdog", "class/dmi/id"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let disk = "devices/pci0/virtio0/block/vda";
        device(root, disk, "253:0");
        for number in 1..=partitions {
            let folder = format!("{disk}/vda{number}");
            device(root, &folder, &format!("253:{number}"));
            fs::write(root.join(&folder).join("partition"), format!("{number}\n")).unwrap();
        }
        if let Some(numbers) = verity_over {
            device(root, "devices/virtual/block/dm-0", "254:0");
            let slaves = root.join("devices/virtual/block/dm-0/slaves");
            fs::create_dir_all(&slaves).unwrap();
            for number in numbers {
                symlink(root.join(disk).join(format!("vda{number}")), slaves.join(format!("vda{number}")))
                    .unwrap();
            }
        }
        Sysfs::at(root)
    }

    fn device(root: &Path, folder: &str, number: &str) {
        let path = root.join(folder);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("dev"), format!("{number}\n")).unwrap();
        symlink(&path, root.join("dev/block").join(number)).unwrap();
        symlink(&path, root.join("class/block").join(path.file_name().unwrap())).unwrap();
    }

    /// Adds a watchdog device.
    pub fn watchdog(root: &Path, name: &str, identity: &str, state: &str) {
        let folder = root.join("class/watchdog").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("identity"), format!("{identity}\n")).unwrap();
        fs::write(folder.join("state"), format!("{state}\n")).unwrap();
        fs::write(folder.join("bootstatus"), "0\n").unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> DeviceNumber {
        parse_device_number(text).unwrap()
    }

    #[test]
    fn beneath_a_verity_device_lie_its_data_and_its_hash_partition() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fixture::machine(dir.path(), 5, Some([2, 3]));
        let found = sysfs.partitions_beneath(number("254:0")).unwrap();
        let numbers: Vec<_> = found.iter().map(|p| (p.disk.as_str(), p.number)).collect();
        assert_eq!(numbers, [("vda", 2), ("vda", 3)]);
    }

    #[test]
    fn a_partition_stands_on_itself_and_a_whole_disk_on_none() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fixture::machine(dir.path(), 2, None);
        assert_eq!(sysfs.partitions_beneath(number("253:2")).unwrap()[0].name, "vda2");
        assert_eq!(sysfs.partitions_beneath(number("253:0")).unwrap(), []);
        let gone = sysfs.partitions_beneath(number("0:31")).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound, "an overlay or tmpfs root has no block device");
    }

    #[test]
    fn a_dm_device_upon_itself_is_an_error_and_no_endless_walk() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fixture::machine(dir.path(), 2, Some([1, 2]));
        let dm = dir.path().join("devices/virtual/block/dm-0");
        std::os::unix::fs::symlink(&dm, dm.join("slaves/dm-0")).unwrap();
        let error = sysfs.partitions_beneath(number("254:0")).unwrap_err();
        assert!(error.to_string().contains("without end"), "{error}");
    }

    #[test]
    fn disks_and_partition_names_come_from_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fixture::machine(dir.path(), 3, Some([2, 3]));
        assert_eq!(sysfs.partitioned_disks().unwrap(), ["vda"]);
        assert_eq!(sysfs.partition_name("vda", 3).unwrap(), "vda3");
        assert_eq!(sysfs.partition_name("vda", 9).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(sysfs.device_number("vda3").unwrap(), number("253:3"));
    }

    #[test]
    fn a_hardware_watchdog_goes_before_softdog_whatever_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fixture::machine(dir.path(), 1, None);
        assert_eq!(sysfs.watchdogs(), []);
        fixture::watchdog(dir.path(), "watchdog0", "Software Watchdog", "inactive");
        fixture::watchdog(dir.path(), "watchdog1", "i6300ESB timer", "active");
        let names: Vec<_> = sysfs.watchdogs().into_iter().map(|dog| (dog.name, dog.active)).collect();
        assert_eq!(names, [("watchdog1".to_owned(), true), ("watchdog0".to_owned(), false)]);
    }

    #[test]
    fn a_watchdog_that_reset_the_machine_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fixture::machine(dir.path(), 1, None);
        fixture::watchdog(dir.path(), "watchdog0", "i6300ESB timer", "active");
        for (status, reset) in [("0", false), ("32", true), ("33", true), ("2", false), ("what", false)] {
            fs::write(dir.path().join("class/watchdog/watchdog0/bootstatus"), format!("{status}\n")).unwrap();
            assert_eq!(sysfs.watchdogs()[0].reset, reset, "{status}");
        }
        fs::remove_file(dir.path().join("class/watchdog/watchdog0/bootstatus")).unwrap();
        assert!(!sysfs.watchdogs()[0].reset, "a driver that does not say");
    }

    #[test]
    fn the_board_answers_to_its_device_tree_and_dmi_names() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = fixture::machine(dir.path(), 1, None);
        assert!(sysfs.board_names().is_empty());
        let tree = dir.path().join("firmware/devicetree/base");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("compatible"), "acme,box-2\0acme,box\0").unwrap();
        fs::write(dir.path().join("class/dmi/id/sys_vendor"), "QEMU\n").unwrap();
        fs::write(dir.path().join("class/dmi/id/product_name"), "Standard PC\n").unwrap();
        assert_eq!(sysfs.board_names(), ["acme,box-2", "acme,box", "Standard PC", "QEMU Standard PC"]);
    }

    #[test]
    fn an_attribute_longer_than_a_page_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        fs::write(&path, vec![b'x'; 5000]).unwrap();
        assert_eq!(read_attribute(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
