//! The `switchback` binary: hands the command line to `cli`, or becomes `init` when started as PID 1 of the initramfs.

use std::process::ExitCode;

use switchback::init;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if init::is_wanted(&arguments) {
        return init::main(&arguments);
    }
    ExitCode::SUCCESS
}
