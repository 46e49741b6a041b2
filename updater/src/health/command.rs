//! A program as a check: its own process group, bounded output, nothing left behind at a timeout.
//!
//! Rule: dropping the future kills the whole group; a check that starts a shell that starts a sleep leaves no sleep.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::Context;

/// Most bytes of a program's output that are shown: the last ones.
pub(super) const OUTPUT_BYTES_MAX: usize = 4096;
/// How long output is awaited after the program has ended; a background child may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_millis(200);

/// Runs a program to its end.
pub(super) async fn run(
    argv: &[String],
    cwd: Option<&Path>,
    env: &BTreeMap<String, String>,
    context: &Context,
) -> Result<(), String> {
    let (status, tail) = finish(argv, cwd, env, context, OUTPUT_BYTES_MAX).await?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(tail.after(format!("exit status {code}"))),
        (None, signal) => Err(tail.after(format!("killed by signal {}", signal.unwrap_or(0)))),
    }
}

/// The last `limit` bytes that a program prints; nothing when it fails.
pub async fn last_words(argv: &[String], context: &Context, limit: usize) -> String {
    let finished = finish(argv, None, &BTreeMap::new(), context, limit).await;
    finished.map_or_else(
        |_| String::new(),
        |(status, tail)| if status.success() { tail.text() } else { String::new() },
    )
}

/// A program's end, and the last `limit` bytes that it printed.
async fn finish(
    argv: &[String],
    cwd: Option<&Path>,
    env: &BTreeMap<String, String>,
    context: &Context,
    limit: usize,
) -> Result<(ExitStatus, Tail), String> {
    let [program, arguments @ ..] = argv else { return Err("no program is named".into()) };
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(cwd.unwrap_or(&context.root))
        .env("SWITCHBACK_SLOT", context.slot.letter())
        .env("SWITCHBACK_VERSION", &context.version)
        .env("SWITCHBACK_ROOT", &context.root)
        .envs(env)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{program} could not be started: {error}"))?;
    let group = Group(child.id());
    let tail = Tail { limit, kept: Arc::default() };
    let readers = [tail.follow(child.stdout.take()), tail.follow(child.stderr.take())];
    let status = child.wait().await.map_err(|error| format!("{program}: {error}"))?;
    group.ended();
    let _ = tokio::time::timeout(DRAIN, futures_util::future::join_all(readers)).await;
    Ok((status, tail))
}

/// The process group of a running program: killed when dropped before the program has ended.
struct Group(Option<u32>);

impl Group {
    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // It may have ended at this very moment: then there is nothing to kill. Tokio reaps the leader.
            let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        }
    }
}

/// The last bytes of both outputs.
#[derive(Clone)]
struct Tail {
    limit: usize,
    kept: Arc<Mutex<VecDeque<u8>>>,
}

impl Tail {
    fn follow<R: AsyncRead + Unpin + Send + 'static>(
        &self,
        output: Option<R>,
    ) -> tokio::task::JoinHandle<()> {
        let tail = self.clone();
        tokio::spawn(async move {
            let Some(mut output) = output else { return };
            let mut buffer = [0; 1024];
            while let Ok(bytes @ 1..) = output.read(&mut buffer).await {
                let mut kept = tail.kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&buffer[..bytes]);
                let excess = kept.len().saturating_sub(tail.limit);
                kept.drain(..excess);
            }
        })
    }

    fn text(&self) -> String {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).trim().to_owned()
    }

    /// A sentence with what the program printed last.
    fn after(&self, what: String) -> String {
        let text = self.text();
        if text.is_empty() { what } else { format!("{what}: {text}") }
    }
}
