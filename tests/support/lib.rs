//! Support for the system tests: the simulated machine and the boot lab.

pub mod faults;
pub mod lab;
pub mod machine;
pub mod signers;
pub mod small_release;
