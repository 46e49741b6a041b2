//! The power-cut simulator: the updater as it ships, above a disk, a boot partition and a state folder whose every step
//! is written down, cut at each of them, and switched on again.
//!
//! Not here: the updater. Rule: nothing above the seams (`BlockDevice`, `EspDir`, `StateDir`, `host::Machine`) knows that it
//! is simulated; what is not modelled stands in the book's chapter on tests.

pub mod broken;
pub mod cuts;
pub mod devices;
mod guarded;
pub mod image;
pub mod judge;
pub mod machine;
mod memo;
pub mod promise;
pub mod recorder;
pub mod run;
pub mod scenario;
pub mod site;
pub mod sweep;
