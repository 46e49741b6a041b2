//! `make appliance`: the release and a disk, for whoever wants to start it by hand.

use std::process::ExitCode;

use anyhow::Result;
use switchback_tests::lab::fixtures::Lab;
use switchback_tests::lab::release::Loader;
use switchback_tests::lab::tools;

use crate::shape::Sizes;
use crate::stage::{FIRST, publish};

pub fn make() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the appliance could not be made: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<()> {
    let lab = Lab::open()?;
    publish(&lab)?;
    let disk = tools::lab_folder().join("appliance.img");
    lab.disk(&FIRST, Loader::V252, &disk)?;
    Sizes::of(&lab)?.print()?;
    println!("disk: {}", disk.display());
    Ok(())
}
