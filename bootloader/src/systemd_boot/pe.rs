//! Can this machine's firmware load that file at all?
//!
//! Not here: signatures. Rule: checked before an entry is armed. A *missing* kernel hides its entry and costs nothing;
//! one that is *there but cannot be loaded* makes some loaders spend a try and end in the firmware's shell, where no
//! counter brings the machine back.

use goblin::pe::header::{COFF_MACHINE_ARM64, COFF_MACHINE_RISCV64, COFF_MACHINE_X86_64, Header};

/// How much of the file's beginning is read: the headers of kernels and UKIs lie in the first few kilobytes.
pub const HEAD_BYTES: u64 = 64 * 1024;

/// A processor as PE files name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// x86-64.
    X86_64,
    /// 64-bit Arm.
    Arm64,
    /// 64-bit RISC-V.
    Riscv64,
}

impl Machine {
    /// The processor that this program was built for.
    pub fn host() -> Machine {
        if cfg!(target_arch = "aarch64") {
            Machine::Arm64
        } else if cfg!(target_arch = "riscv64") {
            Machine::Riscv64
        } else {
            Machine::X86_64
        }
    }

    fn number(self) -> u16 {
        match self {
            Machine::X86_64 => COFF_MACHINE_X86_64,
            Machine::Arm64 => COFF_MACHINE_ARM64,
            Machine::Riscv64 => COFF_MACHINE_RISCV64,
        }
    }

    /// What the firmware looks for on removable media: `BOOTX64.EFI` and friends.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Machine::X86_64 => "x64",
            Machine::Arm64 => "aa64",
            Machine::Riscv64 => "riscv64",
        }
    }
}

/// Checks the first [`HEAD_BYTES`] of a kernel or UKI: DOS and PE header, and the right processor.
pub fn check_head(head: &[u8], machine: Machine) -> Result<(), String> {
    if !head.starts_with(b"MZ") {
        return Err("it has no MZ header: no EFI program, or a kernel without EFI stub".to_string());
    }
    let header = Header::parse(head).map_err(|e| format!("its PE header is damaged: {e}"))?;
    let found = header.coff_header.machine;
    if found != machine.number() {
        return Err(format!("it is for machine type {found:#06x}, this machine is {machine:?}"));
    }
    Ok(())
}

/// The smallest file that [`check_head`] accepts, for simulators: headers, then `tail`. No firmware runs it.
pub fn sample(machine: Machine, tail: &[u8]) -> Vec<u8> {
    const PE_AT: usize = 0x80;
    let mut bytes = vec![0; PE_AT];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c..0x40].copy_from_slice(&(PE_AT as u32).to_le_bytes());
    bytes.extend_from_slice(b"PE\0\0");
    bytes.extend_from_slice(&machine.number().to_le_bytes());
    // No sections, no symbols, no optional header.
    bytes.extend_from_slice(&[0; 18]);
    bytes.extend_from_slice(tail);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_a_pe_file_for_this_processor_is_accepted() {
        let good = sample(Machine::X86_64, b"kernel");
        assert_eq!(check_head(&good, Machine::X86_64), Ok(()));
        for (bytes, why) in [
            (b"\x7fELF".to_vec(), "an ELF kernel"),
            (Vec::new(), "an empty file"),
            (good[..0x60].to_vec(), "cut before the PE header"),
            (sample(Machine::Arm64, b""), "another processor"),
        ] {
            assert!(check_head(&bytes, Machine::X86_64).is_err(), "{why}");
        }
    }

    #[test]
    fn the_installed_loader_is_accepted() {
        let path = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
        let loader =
            std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}: apt-get install systemd-boot-efi"));
        assert_eq!(check_head(&loader, Machine::X86_64), Ok(()));
    }

    proptest! {
        #[test]
        fn damaged_headers_are_refused_without_a_panic(mut at in 0usize..200, byte in any::<u8>(), cut in 0usize..300) {
            let mut bytes = sample(Machine::X86_64, &[0; 64]);
            at %= bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut);
            let _ = check_head(&bytes, Machine::X86_64);
        }
    }
}
