//! What lies on the boot partition besides the state it spells: for a person who asks whether it is sound.
//!
//! Not here: mending (`write` does, when it next changes something), and how bad a finding is. Rule: only reads.

use switchback_partitions::slot::Slot;

use super::catalogue::Catalogue;
use super::entry::{Ending, OurName};
use super::loader::{LOADER_CONF, paths};
use super::pe::Machine;
use crate::boot_state::BootState;
use crate::esp::EspDir;
use crate::record::BootError;
use crate::slot_files::at;

/// The largest loader that is read, in bytes: systemd-boot has about 200 KiB.
const LOADER_BYTES_MAX: u64 = 8 << 20;
/// The largest `loader.conf` that is read, in bytes.
const CONF_BYTES_MAX: u64 = 64 << 10;
/// Where the loader finds UKIs by itself.
const UKI_FOLDER: &str = "EFI/Linux";
/// Around the name and version in the loader's binary (systemd, `bootctl.c` looks for the same).
const INFO_MARKS: [&[u8]; 2] = [b"#### LoaderInfo: ", b" ####"];

/// What was found on a boot partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The state that the entries spell.
    pub state: BootState,
    /// Entries of ours of which a second name exists: a plain and a counted one of one id.
    pub torn: Vec<String>,
    /// Entries of ours that the loader should see and does not, because their text or their kernel is gone.
    pub hidden: Vec<(Slot, String)>,
    /// Entries of others that the loader starts before any of ours.
    pub first: Vec<String>,
    /// Entries of others behind ours.
    pub behind: Vec<String>,
    /// UKIs in `EFI/Linux`, from which the loader makes entries by itself.
    pub ukis: Vec<String>,
    /// Lines of `loader.conf` that make the loader start one entry whatever its counter says.
    pub fixed: Vec<String>,
    /// What the loader's binary calls itself, where the firmware looks for it: `systemd-boot 257.9`. `None` for a binary
    /// that does not say; no element for one that is not there.
    pub loaders: Vec<(String, Option<String>)>,
}

/// Looks at the partition of a loader for `machine`.
pub fn look(esp: &dyn EspDir, machine: Machine) -> Result<Look, BootError> {
    let catalogue = Catalogue::load(esp)?;
    let is_ours = |file_name: &str| OurName::parse(file_name).is_some();
    let ours_begin = catalogue.shown.iter().position(|entry| is_ours(&entry.file_name));
    let foreign = |range: &[super::entry::LoaderEntry]| -> Vec<String> {
        let names = range.iter().map(|entry| entry.file_name.clone());
        names.filter(|name| !is_ours(name)).collect()
    };
    // Without an entry of ours there is nothing that a foreign one could go before.
    let (first, behind) = catalogue.shown.split_at(ours_begin.unwrap_or(0));
    let hidden = catalogue.ours.iter().filter(|file| !file.visible && file.name.ending != Ending::Prepared);
    Ok(Look {
        state: catalogue.state(),
        torn: catalogue.torn().map(|file| file.file_name.clone()).collect(),
        hidden: hidden.map(|file| (file.name.slot, file.file_name.clone())).collect(),
        first: foreign(first),
        behind: foreign(behind),
        ukis: ukis(esp)?,
        fixed: fixed(esp)?,
        loaders: loaders(esp, machine)?,
    })
}

fn ukis(esp: &dyn EspDir) -> Result<Vec<String>, BootError> {
    let files = esp.list(UKI_FOLDER).map_err(at("listing", UKI_FOLDER))?;
    let names = files.into_iter().filter(|file| !file.is_dir).map(|file| file.name);
    Ok(names.filter(|name| name.to_ascii_lowercase().ends_with(".efi")).collect())
}

fn fixed(esp: &dyn EspDir) -> Result<Vec<String>, BootError> {
    let bytes = match esp.read(LOADER_CONF, CONF_BYTES_MAX) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(at("reading", LOADER_CONF))?,
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim);
    Ok(lines
        .filter(|line| line.starts_with("default ") || line.starts_with("preferred "))
        .map(String::from)
        .collect())
}

fn loaders(esp: &dyn EspDir, machine: Machine) -> Result<Vec<(String, Option<String>)>, BootError> {
    let mut found = Vec::new();
    for path in paths(machine) {
        if esp.file_bytes(&path).map_err(at("reading", &path))?.is_some() {
            let binary = esp.read(&path, LOADER_BYTES_MAX).map_err(at("reading", &path))?;
            let info = info(&binary);
            found.push((path, info));
        }
    }
    Ok(found)
}

/// What a loader's binary calls itself.
fn info(binary: &[u8]) -> Option<String> {
    let [begin, end] = INFO_MARKS;
    let from = binary.windows(begin.len()).position(|window| window == begin)? + begin.len();
    let rest = binary.get(from..)?;
    let to = rest.windows(end.len()).take(256).position(|window| window == end)?;
    std::str::from_utf8(rest.get(..to)?).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::esp::MountedEsp;
    use crate::systemd_boot::{entry::ENTRIES, loader, pe};

    const KERNEL: &str = "vmlinuz";

    fn esp() -> (tempfile::TempDir, MountedEsp) {
        let folder = tempfile::tempdir().unwrap();
        let esp = MountedEsp::new(folder.path());
        let binary = pe::sample(Machine::X86_64, b"..#### LoaderInfo: systemd-boot 257.9-1 ####..");
        loader::install_loader(&esp, &binary, Machine::X86_64).unwrap();
        std::fs::write(folder.path().join(KERNEL), "kernel").unwrap();
        (folder, esp)
    }

    fn entry(folder: &tempfile::TempDir, name: &str, sort_key: &str, kernel: &str) {
        let text = format!("title x\nsort-key {sort_key}\nversion 1\nlinux /{kernel}\n");
        std::fs::write(folder.path().join(ENTRIES).join(name), text).unwrap();
    }

    #[test]
    fn a_sound_partition_shows_its_loader_and_nothing_else() {
        let (folder, esp) = esp();
        entry(&folder, "switchback-a-1.conf", "switchback", KERNEL);
        let look = look(&esp, Machine::X86_64).unwrap();
        let version = Some("systemd-boot 257.9-1".to_string());
        assert_eq!(
            look.loaders,
            [
                ("EFI/systemd/systemd-bootx64.efi".into(), version.clone()),
                ("EFI/BOOT/BOOTX64.EFI".into(), version)
            ]
        );
        assert_eq!((look.torn.len(), look.hidden.len(), look.first.len(), look.behind.len()), (0, 0, 0, 0));
        assert_eq!((look.ukis.len(), look.fixed.len()), (0, 0));
        assert_eq!(look.state.choose(), Some(Slot::A));
    }

    #[test]
    fn everything_that_is_not_sound_is_named() {
        let (folder, esp) = esp();
        entry(&folder, "switchback-a-1.conf", "switchback", KERNEL);
        entry(&folder, "switchback-b-2.conf", "switchback", KERNEL);
        entry(&folder, "switchback-b-2+2-1.conf", "switchback", KERNEL);
        entry(&folder, "switchback-a-3+3-0.conf", "switchback", "gone");
        entry(&folder, "debian.conf", "debian", KERNEL);
        entry(&folder, "zeta.conf", "zeta", KERNEL);
        std::fs::create_dir_all(folder.path().join(UKI_FOLDER)).unwrap();
        std::fs::write(folder.path().join(UKI_FOLDER).join("os.efi"), "").unwrap();
        std::fs::write(folder.path().join(LOADER_CONF), "timeout 3\ndefault debian.conf\n#default x\n")
            .unwrap();
        let look = look(&esp, Machine::X86_64).unwrap();
        assert_eq!(look.torn, ["switchback-b-2+2-1.conf"], "the plain one goes first");
        assert_eq!(look.hidden, [(Slot::A, "switchback-a-3+3-0.conf".to_string())]);
        assert_eq!(
            (look.first.as_slice(), look.behind.as_slice()),
            (&["debian.conf".to_string()][..], &["zeta.conf".to_string()][..])
        );
        assert_eq!(look.ukis, ["os.efi"]);
        assert_eq!(look.fixed, ["default debian.conf"]);
    }

    #[test]
    fn a_binary_that_does_not_say_what_it_is_has_no_version() {
        for bytes in
            [&b""[..], b"#### LoaderInfo: ", b"#### LoaderInfo: endless", b"#### LoaderInfo: \xff ####"]
        {
            assert_eq!(info(bytes), None, "{bytes:?}");
        }
    }
}
