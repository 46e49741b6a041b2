//! Tells the program when it was built: no clock that is earlier than that can be right.
//!
//! Rule: `SOURCE_DATE_EPOCH` decides where it is set, so that a build can be repeated bit for bit.

use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rerun-if-changed=build.rs");
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.trim().parse::<u64>().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    println!("cargo::rustc-env=SWITCHBACK_BUILT_UNIX_SECS={}", given.unwrap_or_else(now));
}
