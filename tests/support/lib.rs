//! Support for the system tests: the simulated machine and the boot lab.

pub mod certificates;
pub mod disk_shot;
pub mod faults;
pub mod fetching;
pub mod forge;
pub mod lab;
pub mod machine;
pub mod page;
pub mod power_cut;
pub mod reader;
pub mod scene;
pub mod service_image;
pub mod services;
pub mod signers;
pub mod slow_line;
pub mod small_release;
pub mod small_state;
pub mod story;
pub mod summary;
pub mod upstream;
