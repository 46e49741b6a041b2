//! What is on the disk: block devices, GPT, the two slots, dm-verity trees, provisioning of a blank disk.
//!
//! Not here: which slot boots next (crate `switchback-bootloader`), where an image comes from (crate `switchback`).
//! Rule: nothing in this crate guesses which slot is running; callers say so, with the witness they have.

pub mod device;
pub mod gpt;
pub mod inactive_slot;
pub mod layout;
pub mod provision;
pub mod slot;
pub mod verity;

#[cfg(test)]
mod testing;
