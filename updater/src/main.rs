//! The `switchback` binary: hands the command line to `cli`, or becomes `init` when the kernel started it as PID 1.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if switchback::init::is_wanted(&arguments) {
        return switchback::init::main(&arguments);
    }
    switchback::cli::main()
}
