//! The `switchback` binary: hands the command line to `cli`, or becomes `init` when started as PID 1 of the initramfs.

fn main() {}
