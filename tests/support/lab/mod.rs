//! The boot lab: real firmware, boot loader, kernel, registry and signer, on a host without KVM.
//!
//! Not here: the scenarios (`tests/boot`, `tests/appliance`). Rule: what the lab makes lies in `.lab`, and what it starts ends with it.

pub mod appliance;
pub mod block_log;
mod boot_files;
pub mod containers;
pub mod debian;
pub mod fixtures;
pub mod nginx;
pub mod qemu;
pub mod rebuilt;
pub mod registry;
pub mod release;
pub mod scene;
pub mod serial;
pub mod table;
pub mod tools;
