//! PID 1 of the reference appliance: mounts, modules and network, then one child that it keeps alive, until it is told to end.
//!
//! Not here: services (`switchback daemon`, its child, runs them), the judgement of a start (`switchback boot-check`), the watchdog
//! (`switchback init` left a keeper). Rule: whatever fails is said on the console, and PID 1 goes on; whether a machine that came up
//! like this is good enough is for `boot-check` to say.

mod child;
mod end;
mod modules;
mod mounts;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use child::{Child, buried};
use end::End;

/// Where programs are looked for, here and in all that is started from here.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// What the image wants done before the supervisor starts: the network. A shell script.
const START: &str = "/etc/appliance/start";
/// The kernel modules of the image, one path a line, in loading order.
const MODULES: &str = "/etc/appliance/modules";
/// The one child.
const SUPERVISOR: [&str; 2] = ["switchback", "daemon"];
/// Run once when that child is up.
const BOOT_CHECK: [&str; 2] = ["switchback", "boot-check"];

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("this is PID 1 of the appliance; the kernel starts it, nobody else");
        return ExitCode::FAILURE;
    }
    // Before anything is started: a child that ends unheard would never be buried.
    match listen() {
        Ok(signals) => run(&signals),
        Err(error) => {
            // PID 1 that ends is a panic: the machine restarts, and on a trial the loader counts the try.
            say(&format!("signals cannot be heard: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Signals as they come, on a thread of their own: handlers, unlike a mask of blocked signals, do not pass to children.
fn listen() -> Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGCHLD, SIGTERM, SIGUSR1, SIGUSR2, SIGINT])?;
    let (send, receive) = channel();
    std::thread::Builder::new().spawn(move || {
        for signal in signals.forever() {
            // Nobody listens any more only once the machine goes down.
            let _ = send.send(signal);
        }
    })?;
    Ok(receive)
}

fn run(signals: &Receiver<i32>) -> ExitCode {
    mounts::mount_missing();
    if let Err(error) = modules::load_all(Path::new(MODULES)) {
        say(&format!("{error:#}"));
    }
    if let Err(error) = start_script() {
        say(&format!("{error:#}"));
    }
    gather_entropy();
    let mut supervisor = Child::new(program(&SUPERVISOR));
    say("the machine is set up; the supervisor is started");
    start(&mut supervisor);
    if let Err(error) = program(&BOOT_CHECK).spawn().context("while starting boot-check") {
        say(&format!("{error:#}"));
    }
    let end = keep(&mut supervisor, signals);
    say(end.words());
    end::end(end, &supervisor);
    ExitCode::FAILURE
}

/// A kernel without a source of its own gathers entropy at once when somebody reads, and takes minutes where programs only poll for it.
/// On a thread: it is no reason to wait here.
fn gather_entropy() {
    let read = || File::open("/dev/random").and_then(|mut random| random.read_exact(&mut [0]));
    let thread = std::thread::Builder::new().spawn(move || {
        if let Err(error) = read() {
            say(&format!("no entropy: {error}"));
        }
    });
    if let Err(error) = thread {
        say(&format!("no entropy: {error}"));
    }
}

/// Keeps the supervisor alive and buries the dead, until a signal says how this ends.
fn keep(supervisor: &mut Child, signals: &Receiver<i32>) -> End {
    loop {
        match signals.recv_timeout(supervisor.due_in(Instant::now())) {
            Ok(SIGCHLD) => {
                for (pid, how) in buried() {
                    if supervisor.is(pid) {
                        let pause = supervisor.ended(Instant::now());
                        say(&format!("the supervisor ended ({how}); it is started again in {pause:?}"));
                    }
                }
            }
            Ok(signal) => {
                if let Some(end) = End::asked_by(signal) {
                    return end;
                }
            }
            Err(RecvTimeoutError::Timeout) => start(supervisor),
            // The thread that hears signals does not end; if it did, nobody could be obeyed any more.
            Err(RecvTimeoutError::Disconnected) => return End::Reboot,
        }
    }
}

fn start(child: &mut Child) {
    if let Err(error) = child.start(Instant::now()) {
        say(&format!("{error:#}"));
    }
}

/// Runs the image's own script to its end, and buries what it leaves.
fn start_script() -> Result<()> {
    if !Path::new(START).exists() {
        return Ok(());
    }
    let child = program(&["/bin/sh", START]).spawn().with_context(|| format!("while starting {START}"))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    loop {
        if let Some((_, how)) = buried().into_iter().find(|(dead, _)| *dead == pid) {
            anyhow::ensure!(how.is_success(), "{START} ended with {how}");
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn program(words: &[&str]) -> Command {
    let mut command = Command::new(words.first().copied().unwrap_or_default());
    command.args(words.iter().skip(1)).env("PATH", PATH).env("HOME", "/root").stdin(Stdio::null());
    command
}

/// A line on the console.
fn say(words: &str) {
    eprintln!("init: {words}");
}
