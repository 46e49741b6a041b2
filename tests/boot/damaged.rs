//! Good releases whose files are damaged after they were proven and armed: what the updater cannot see any more.
//!
//! Rule: the damage is done by the guest's own tools between arming and the reboot, and nobody helps afterwards.

use anyhow::Result;
use switchback_tests::lab::release::{Loader, Temper};

use crate::returns::{Bad, comes_back};
use crate::scene::{Scene, TRIES};

/// A file of the length that it had and with another beginning: what a file system that lost a block leaves.
const KERNEL_GARBAGE: &str = "mount -t vfat /dev/vda1 /efi && \
    dd if=/dev/urandom of=/efi/switchback/b/linux bs=4096 count=1 conv=notrunc && umount /efi";

const UKI_GARBAGE: &str = "mount -t vfat /dev/vda1 /efi && \
    dd if=/dev/urandom of=/efi/switchback/b/uki.efi bs=4096 count=1 conv=notrunc && umount /efi";

/// The kernel is gone: the loader hides the entry, and the old slot starts at once.
pub fn kernel_missing(scene: &mut Scene) -> Result<()> {
    const DAMAGE: &str = "mount -t vfat /dev/vda1 /efi && rm /efi/switchback/b/linux && umount /efi";
    comes_back(scene, Bad { boots_max: 1, ..damaged(DAMAGE, "loader-refused") })
}

/// The kernel's file is there and nothing can load it, under a loader that hands back to the firmware: the firmware has
/// to start the loader again, by the options that arming registered.
pub fn kernel_garbage(scene: &mut Scene) -> Result<()> {
    comes_back(scene, damaged(KERNEL_GARBAGE, "died-early"))
}

/// The same with a unified kernel image under systemd-boot 257. A kernel with an initrd beside it does not do here: 257
/// frees the initrd with its length in bytes for a number of pages, itself included, and is gone before it hands back.
pub fn uki_garbage_on_257(scene: &mut Scene) -> Result<()> {
    let bad = damaged(UKI_GARBAGE, "died-early");
    comes_back(scene, Bad { loader: Loader::V257, unified: true, ..bad })
}

/// The same under a loader that restarts the machine, so that nothing is registered.
pub fn kernel_garbage_on_262(scene: &mut Scene) -> Result<()> {
    comes_back(scene, Bad { loader: Loader::V262, ..damaged(KERNEL_GARBAGE, "died-early") })
}

/// The root's first block is other than the hash tree says: dm-verity panics at the first look at it.
pub fn root_broken(scene: &mut Scene) -> Result<()> {
    const DAMAGE: &str = "dd if=/dev/urandom of=/dev/vda4 bs=4096 count=1 conv=notrunc,fsync";
    comes_back(scene, damaged(DAMAGE, "died-in-initramfs"))
}

/// The command line names a root that no slot holds.
pub fn root_hash_wrong(scene: &mut Scene) -> Result<()> {
    const DAMAGE: &str = "mount -t vfat /dev/vda1 /efi && \
        sed -i 's/roothash=......../roothash=00000000/' /efi/loader/entries/switchback-b-*+3-0.conf && umount /efi";
    comes_back(scene, damaged(DAMAGE, "died-early"))
}

fn damaged(script: &'static str, reason: &'static str) -> Bad {
    Bad {
        temper: Temper::Good,
        loader: Loader::V252,
        unified: false,
        damage: Some(script),
        boots_max: TRIES + 1,
        comes_up: false,
        reason,
    }
}
