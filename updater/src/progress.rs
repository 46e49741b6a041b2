//! What long work tells the person who waits, and how that person stops it.
//!
//! Not here: bars or JSON (`cli::progress`). Rule: work asks `stopped` at every chunk and leaves everything resumable.

use std::time::Duration;

use serde::Serialize;

/// How soon a wish to stop is heard while nothing comes in.
const STOP_HEARD_WITHIN: Duration = Duration::from_millis(100);

/// The phases of long work: those of an update in their order, then the author's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Finding the release, its signature, its index.
    Check,
    /// Comparing what an earlier, interrupted run left in the slot.
    Compare,
    /// Fetching, verifying and writing the slot.
    Write,
    /// Fetching the boot files.
    Boot,
    /// Reading all of it back.
    Prove,
    /// The author's side: fetching a container's layers and putting them on top of each other.
    Layers,
    /// The author's side: cutting a root into chunks and compressing them.
    Chunk,
    /// The author's side: copying a release.
    Push,
    /// The author's side: unpacking a release that a patch is made of.
    Unpack,
    /// The author's side: making a patch.
    Patch,
}

/// Listens to long work. All calls may come from several threads.
pub trait Progress: Send + Sync {
    /// A phase begins; `total` bytes are ahead (0 = unknown).
    fn begin(&self, phase: Phase, total: u64);
    /// `bytes` more are done.
    fn advance(&self, bytes: u64);
    /// The phase ended.
    fn end(&self);
    /// A sentence for the person.
    fn say(&self, sentence: &str);
    /// True once the person asked to stop (Ctrl-C).
    fn stopped(&self) -> bool;
}

/// Waits for `work`, or until the person asks to stop (`None`): a registry that says nothing would else hold a Ctrl-C up
/// for as long as all its timeouts and retries last.
pub async fn until_stopped<T>(progress: &dyn Progress, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(STOP_HEARD_WITHIN, work.as_mut()).await {
            Ok(done) => return Some(done),
            Err(_) if progress.stopped() => return None,
            Err(_) => {}
        }
    }
}

/// Says nothing and never stops: for tests and for callers that only want the answer.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: Phase, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn say(&self, _: &str) {}
    fn stopped(&self) -> bool {
        false
    }
}
