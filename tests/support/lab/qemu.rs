//! A machine under QEMU: firmware, disk, serial console, a second serial port that takes commands.
//!
//! Not here: what is on the disk. Rules: at most two machines run on this host at once; none outlives its test; a panic
//! of a guest that nobody asked for is never retried away.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use regex::Regex;
use tempfile::TempDir;

use super::serial::Serial;
use super::tools;

/// How long a boot may take on a busy host, firmware to commands. An idle one needs 8 seconds, and a minute with systemd.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(600);

/// How many machines may run on this host at once: each takes a whole core under emulation.
const MACHINES_MAX: usize = 2;

/// What the machine has besides a disk and a network.
#[derive(Debug, Clone, Default)]
pub struct Hardware {
    /// An i6300esb watchdog that resets the machine.
    pub watchdog: bool,
    /// Show the console on standard output as it comes.
    pub echo: bool,
    /// A sector of the disk that no write reaches: each that touches it is answered with an I/O error.
    pub broken_sector: Option<u64>,
    /// A file in which QEMU notes each write and flush of the disk, in order (`block_log` reads it).
    pub write_log: Option<PathBuf>,
    /// The text that a guest reads as its serial number: tells it which registry is its own.
    pub serial_number: String,
    /// Ports of the host's loopback that lead to ports of the guest.
    pub forwards: Vec<Forward>,
    /// Two processors in place of one.
    pub two_processors: bool,
}

/// A port of the host's loopback that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// On the host.
    pub host: u16,
    /// In the guest.
    pub guest: u16,
}

/// A machine that may be on or off: what survives a power cycle.
#[derive(Debug)]
pub struct Machine {
    folder: PathBuf,
    disk: PathBuf,
    variables: PathBuf,
    hardware: Hardware,
    starts: usize,
}

impl Machine {
    /// A machine with `disk`, and fresh firmware variables and logs in `folder`.
    pub fn new(folder: &Path, disk: &Path, hardware: Hardware) -> Result<Machine> {
        // Old variables would remember the disk of another test and wait in the firmware's shell for it.
        let variables = folder.join("variables.fd");
        std::fs::copy(tools::packaged_file("/usr/share/OVMF/OVMF_VARS_4M.fd", "ovmf")?, &variables)?;
        Ok(Machine { folder: folder.to_owned(), disk: disk.to_owned(), variables, hardware, starts: 0 })
    }

    /// The disk's image file; read it only while the machine is off.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Exchanges the hardware; the next start has it.
    pub fn rebuild(&mut self, change: impl FnOnce(&mut Hardware)) {
        change(&mut self.hardware);
    }

    /// Switches the machine on; waits while two others run.
    pub fn start(&mut self) -> Result<Vm> {
        let permit = Permit::wait()?;
        let started = Instant::now();
        self.starts += 1;
        // A socket's path has room for 100 bytes, which a deep folder would not leave.
        let sockets = tempfile::Builder::new().prefix("lab").tempdir()?;
        let socket = sockets.path().join("commands");
        let mut command = self.command(&socket)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(self.log("qemu.log")?)
            .spawn()
            .with_context(|| format!("while starting {command:?}"))?;
        let console = child.stdout.take().context("QEMU has no output")?;
        let mut log = self.log("serial.log")?;
        writeln!(log, "=== switched on, time {} ===", self.starts)?;
        let console = Serial::read(console, Some(log), self.hardware.echo, started);
        let channel = match connect(&socket, &mut child) {
            Ok(channel) => channel,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let answers = Serial::read(channel.try_clone()?, None, false, started);
        let commands = Mutex::new(Commands { channel, sent: 0, read: 0, log: self.log("commands.log")? });
        let said = self.folder.join("qemu.log");
        Ok(Vm { child, console, answers, commands, said, started, _sockets: sockets, _permit: permit })
    }

    fn log(&self, name: &str) -> Result<File> {
        let path = self.folder.join(name);
        let log = OpenOptions::new().create(true).append(true).open(&path);
        log.with_context(|| format!("while opening {}", path.display()))
    }

    fn command(&self, socket: &Path) -> Result<std::process::Command> {
        let firmware = tools::packaged_file("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf")?;
        let qemu = tools::program("qemu-system-x86_64", "qemu-system-x86")?;
        let mut command = tools::dies_with_us(&qemu)?;
        let mut add = |words: &str| {
            command.args(words.split(' '));
        };
        // Without `-cx16`, kernel 6.12 under this QEMU's emulation crashes in one boot of five.
        add("-nodefaults -no-user-config -display none -machine q35 -accel tcg,thread=multi");
        add("-cpu Nehalem,-cx16 -m 512");
        add(if self.hardware.two_processors { "-smp 2" } else { "-smp 1" });
        add("-chardev stdio,id=console,signal=off -serial chardev:console");
        add("-serial chardev:commands -device virtio-net-pci,netdev=n0,romfile=");
        // `bootindex`: else a changed device path ends in the firmware's shell, which waits for ever.
        add("-device virtio-blk-pci,drive=d0,bootindex=0");
        if self.hardware.watchdog {
            add("-device i6300esb -action watchdog=reset");
        }
        command.arg("-chardev").arg(option("socket,id=commands,server=on,wait=off,path=", socket));
        command.arg("-netdev").arg(self.network());
        command.arg("-drive").arg(self.drive());
        command.arg("-smbios").arg(format!("type=1,serial={}", self.hardware.serial_number));
        let code = option("if=pflash,format=raw,unit=0,readonly=on,file=", &firmware);
        let variables = option("if=pflash,format=raw,unit=1,file=", &self.variables);
        command.arg("-drive").arg(code).arg("-drive").arg(variables);
        Ok(command)
    }

    fn network(&self) -> String {
        let forward = |Forward { transport, host, guest }: &Forward| {
            format!(",hostfwd={transport}:127.0.0.1:{host}-:{guest}")
        };
        let forwards: String = self.hardware.forwards.iter().map(forward).collect();
        format!("user,id=n0{forwards}")
    }

    fn drive(&self) -> OsString {
        if let Some(log) = &self.hardware.write_log {
            // The log's own header is kept right at every flush: a log whose machine was killed is read as well.
            let words = "if=none,id=d0,driver=blklogwrites,log-sector-size=512,log-super-update-interval=1,\
                         log.driver=file,log.filename=";
            let image = option(",file.driver=raw,file.file.driver=file,file.file.filename=", &self.disk);
            return format!("{}{image}", option(words, log)).into();
        }
        let Some(sector) = self.hardware.broken_sector else {
            return option("if=none,id=d0,format=raw,file=", &self.disk).into();
        };
        let words = format!(
            "if=none,id=d0,format=raw,werror=report,file.driver=blkdebug,file.inject-error.0.event=write_aio,\
             file.inject-error.0.errno=5,file.inject-error.0.sector={sector},file.image.driver=file,\
             file.image.filename="
        );
        option(&words, &self.disk).into()
    }
}

/// QEMU reads a comma in an option's value as the next option, unless it is doubled.
fn option(words: &str, path: &Path) -> String {
    format!("{words}{}", path.display().to_string().replace(',', ",,"))
}

fn connect(socket: &Path, child: &mut Child) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok(channel) = UnixStream::connect(socket) {
            return Ok(channel);
        }
        ensure!(child.try_wait()?.is_none(), "QEMU ended at once: see qemu.log");
        ensure!(Instant::now() < deadline, "QEMU opens no command port");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a command in the guest did.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// What it printed, errors included.
    pub text: String,
}

impl Answer {
    /// The text, if the command succeeded.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "the command ended with {}:\n{}", self.code, self.text);
        Ok(self.text)
    }
}

/// A machine that is switched on; dropping it pulls the plug.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    console: Serial,
    answers: Serial,
    commands: Mutex<Commands>,
    /// QEMU's own complaints.
    said: PathBuf,
    started: Instant,
    _sockets: TempDir,
    _permit: Permit,
}

#[derive(Debug)]
struct Commands {
    channel: UnixStream,
    sent: usize,
    /// Lines of the answers that earlier waits have used up.
    read: usize,
    log: File,
}

impl Vm {
    /// What the machine says.
    pub fn console(&self) -> &Serial {
        &self.console
    }

    /// Since it was switched on.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The processor time that the machine has taken: on a busy host, wall time measures what others do.
    pub fn work(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Fields 14 and 15 of proc(5); the second one, a name in brackets, may hold blanks.
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = behind_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks = ticks.sum::<Result<u64, _>>()?;
        let second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Ok(Duration::from_secs_f64(ticks as f64 / second as f64))
    }

    /// Waits until the guest takes commands once more than at the last call; returns what its root says it is.
    pub fn wait_ready(&self, timeout: Duration) -> Result<String> {
        let mut commands = self.commands.lock().map_err(|_| poisoned())?;
        let waited = self.answers.wait_for("LAB-READY ", commands.read, timeout);
        let (number, line) = waited.with_context(|| self.last_words())?;
        commands.read = number + 1;
        Ok(line.text.split("LAB-READY ").nth(1).unwrap_or_default().to_owned())
    }

    /// Runs a shell script in the guest. A guest that reboots meanwhile is an error.
    pub fn run(&self, script: &str, timeout: Duration) -> Result<Answer> {
        let mut commands = self.commands.lock().map_err(|_| poisoned())?;
        let id = commands.send(script)?;
        let pattern = format!("LAB-DONE {id} |LAB-READY ");
        let waited = self.answers.wait_for(&pattern, commands.read, timeout);
        let (number, line) = waited.with_context(|| format!("while running in the guest:\n{script}"))?;
        commands.read = number + 1;
        let parts = Regex::new(r"LAB-DONE \d+ (\d+) ?(\S*)")?;
        let Some(parts) = parts.captures(&line.text) else {
            // The reboot is for the next `wait_ready` to see.
            commands.read = number;
            bail!("the guest rebooted while running:\n{script}");
        };
        let text = BASE64.decode(&parts[2]).context("the answer was garbled on its way")?;
        let answer = Answer { code: parts[1].parse()?, text: String::from_utf8_lossy(&text).into_owned() };
        writeln!(commands.log, "[{:8.2}] {} -> {}", self.age().as_secs_f64(), script, answer.code)?;
        writeln!(commands.log, "{}", answer.text)?;
        Ok(answer)
    }

    /// Starts a shell script whose end nobody waits for, such as a reboot; its output goes to the console.
    pub fn start(&self, script: &str) -> Result<()> {
        let mut commands = self.commands.lock().map_err(|_| poisoned())?;
        commands.send(&format!("( {script} ) </dev/null >/dev/ttyS0 2>&1 &")).map(drop)
    }

    /// Pulls the plug: the guest is gone between two instructions.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until the guest has switched itself off.
    pub fn wait_off(mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the guest does not switch itself off");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// For a guest that never took commands: the end of its console, and QEMU's own complaints.
    fn last_words(&self) -> String {
        let console = self.console.tail();
        let said = std::fs::read_to_string(&self.said).unwrap_or_default();
        format!("on the console:\n{console}{said}")
    }
}

impl Commands {
    fn send(&mut self, script: &str) -> Result<usize> {
        self.sent += 1;
        writeln!(self.channel, "LAB-RUN {} {}", self.sent, BASE64.encode(script))
            .context("while sending a command to the guest")?;
        Ok(self.sent)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail only when it is off already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn poisoned() -> anyhow::Error {
    anyhow::anyhow!("another thread of this test failed while it used the command port")
}

/// The right to run one machine: a lock on one of a few files, so that it holds between processes too.
#[derive(Debug)]
pub struct Permit {
    _lock: File,
}

impl Permit {
    /// Waits until fewer than two machines run.
    pub fn wait() -> Result<Permit> {
        let folder = tools::lab_folder();
        std::fs::create_dir_all(&folder)?;
        loop {
            for number in 0..MACHINES_MAX {
                let path = folder.join(format!("machine-{number}.lock"));
                let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
                match lock.try_lock() {
                    Ok(()) => return Ok(Permit { _lock: lock }),
                    Err(std::fs::TryLockError::WouldBlock) => {}
                    Err(std::fs::TryLockError::Error(error)) => return Err(error.into()),
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
