//! What will boot next: one pure boot state, one trait, one file per bootloader, one contract that all of them pass.
//!
//! Not here: policy (when to arm, when to return): that is `updater::lifecycle`. Rule: `write` is one durable step.

pub mod boot_state;
pub mod contract;
pub mod custom;
pub mod esp;
pub mod record;
pub mod systemd_boot;

pub mod command;
mod slot_files;

pub use slot_files::folder as slot_folder;

#[cfg(test)]
mod test_disk;
