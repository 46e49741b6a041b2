//! The loader itself: put on the partition once, when a disk is provisioned.
//!
//! Not here: updating it. Rule: no OS update ever touches the loader's binary: a power cut there has no fallback.

use super::pe::{self, Machine};
use crate::esp::{EspDir, parent};
use crate::record::BootError;
use crate::slot_files::at;

/// Where the loader reads its settings.
pub const LOADER_CONF: &str = "loader/loader.conf";

/// No menu and no editor (the kernel command line names the root hash), no entries that the loader finds by itself
/// (they could sort before ours), no Secure Boot keys enrolled from the partition. Never `default`: a fixed default
/// is started again and again, whatever its counter says.
const LOADER_CONF_TEXT: &str =
    "timeout 0\neditor no\nauto-entries no\nauto-firmware no\nsecure-boot-enroll off\n";

/// Puts the loader's binary where firmware and `bootctl` look for it, with its settings and the folder for entries.
/// Run again, it completes what is missing.
pub fn install_loader(esp: &dyn EspDir, binary: &[u8], machine: Machine) -> Result<(), BootError> {
    let head = &binary[..binary.len().min(pe::HEAD_BYTES as usize)];
    let not_bootable = |why| BootError::NotBootable { file: "the loader".to_string(), why };
    pe::check_head(head, machine).map_err(not_bootable)?;
    let [own, removable] = paths(machine);
    put(esp, &own, binary)?;
    put(esp, LOADER_CONF, LOADER_CONF_TEXT.as_bytes())?;
    esp.mkdir(super::entry::ENTRIES).map_err(at("creating", super::entry::ENTRIES))?;
    // Last: with this file the firmware finds the disk, and everything that it then needs is there.
    put(esp, &removable, binary)
}

/// Where the loader's binary lies: under its own name, and where firmware looks on a disk that it does not know.
pub fn paths(machine: Machine) -> [String; 2] {
    let suffix = machine.suffix();
    [
        format!("EFI/systemd/systemd-boot{suffix}.efi"),
        format!("EFI/BOOT/BOOT{}.EFI", suffix.to_ascii_uppercase()),
    ]
}

fn put(esp: &dyn EspDir, path: &str, bytes: &[u8]) -> Result<(), BootError> {
    let (folder, unfinished) = (parent(path), format!("{path}.tmp"));
    esp.mkdir(folder).map_err(at("creating", folder))?;
    esp.write_tmp(&unfinished, &mut &*bytes).map_err(at("writing", &unfinished))?;
    esp.rename(&unfinished, path).map_err(at("renaming", &unfinished))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::esp::MountedEsp;

    #[test]
    fn the_loader_lies_where_the_firmware_and_bootctl_look() {
        let folder = tempfile::tempdir().unwrap();
        let esp = MountedEsp::new(folder.path());
        let binary = pe::sample(Machine::X86_64, b"loader");
        install_loader(&esp, &binary, Machine::X86_64).unwrap();
        install_loader(&esp, &binary, Machine::X86_64).unwrap();
        for path in ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"] {
            assert_eq!(esp.read(path, 1000).unwrap(), binary, "{path}");
        }
        let settings = String::from_utf8(esp.read(LOADER_CONF, 1000).unwrap()).unwrap();
        assert!(settings.contains("timeout 0\n") && !settings.contains("default"), "{settings}");
        assert!(esp.list("loader").unwrap().iter().any(|entry| entry.is_dir && entry.name == "entries"));
    }

    #[test]
    fn a_loader_for_another_processor_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let esp = MountedEsp::new(folder.path());
        let arm = pe::sample(Machine::Arm64, b"");
        assert!(matches!(install_loader(&esp, &arm, Machine::X86_64), Err(BootError::NotBootable { .. })));
        assert_eq!(esp.list("").unwrap(), []);
    }
}
