//! FleetLock, protocol version 1: at most so many machines of a group restart at once.
//!
//! Not here: when to ask (`schedule`), and when to ask again: a refusal is final for one call. Rules: this machine's turn is an
//! answer of 200 that is no web page, and nothing else; what may have been granted without our hearing of it is not taken for
//! refused. The protocol knows no lease: whoever holds the lock and never comes back keeps it until an operator takes it away,
//! so it has to be given back on every way that does not lead to a restart.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use reqwest::Response;
use serde::Deserialize;
use url::Url;

use super::NodeId;
use crate::config::schedule::LockServer;
use crate::registry::http::chain;
use crate::schedule::Lock;

/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// The longest part of an answer that is shown, in characters.
const SHOWN_CHARS_MAX: usize = 200;

/// How long is waited, and how often is asked.
#[derive(Debug, Clone)]
pub struct Patience {
    /// For a whole answer. Some servers move a machine's work elsewhere before they grant its turn.
    pub answer: Duration,
    /// How often a question is asked whose answer did not come; at least 1.
    pub attempts: usize,
    /// Before the second attempt; then about twice as long each time.
    pub first_delay: Duration,
    /// The longest wait between two attempts.
    pub longest_delay: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            answer: Duration::from_secs(30 * 60),
            attempts: 4,
            first_delay: Duration::from_secs(2),
            longest_delay: Duration::from_secs(60),
        }
    }
}

/// Why a lock server did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// It said no, or is no lock server.
    #[error("{0}")]
    Refused(
        /// In its words, as far as they can be shown.
        String,
    ),
    /// It could not be asked.
    #[error("it cannot be reached: {0}")]
    Unreached(
        /// What went wrong.
        String,
    ),
    /// It was asked, and what became of that is not known.
    #[error("its answer is missing: {0}")]
    Unanswered(
        /// What went wrong.
        String,
    ),
}

/// What a machine asks of a lock server.
#[derive(Debug)]
pub struct LockClient {
    http: reqwest::Client,
    base: Url,
    body: Vec<u8>,
    patience: Patience,
}

/// The body of a refusal.
#[derive(Deserialize)]
struct Refusal {
    kind: String,
    #[serde(default)]
    value: String,
}

/// One attempt that failed, and whether another may help.
struct Failure {
    error: LockError,
    passes: bool,
}

impl LockClient {
    /// A client that speaks for `node` by `http`, which must follow no redirects: one that ends at a login page would answer 200.
    pub fn new(http: reqwest::Client, server: &LockServer, node: &NodeId, patience: Patience) -> LockClient {
        let params = serde_json::json!({ "id": node.as_str(), "group": server.group.as_str() });
        let body = serde_json::json!({ "client_params": params }).to_string().into_bytes();
        LockClient { http, base: server.url.base().clone(), body, patience }
    }

    /// Asks for this machine's turn. Whoever has it already is granted it again, so it is asked again after a start.
    pub async fn ask(&self) -> Lock {
        // A lost answer stays lost, whatever becomes of the attempts after it, unless the server speaks.
        let lost = std::sync::Mutex::new(None);
        let remember = |failure: &Failure| {
            if let (LockError::Unanswered(_), Ok(mut lost)) = (&failure.error, lost.lock()) {
                *lost = Some(failure.error.to_string());
            }
        };
        let answer = self.asked("v1/pre-reboot", remember).await;
        match (answer, lost.into_inner().unwrap_or_default()) {
            (Ok(()), _) => Lock::Held,
            (Err(error @ LockError::Unanswered(_)), _) => Lock::HolderUnknown(error.to_string()),
            (Err(LockError::Unreached(_)), Some(lost)) => Lock::HolderUnknown(lost),
            (Err(error), _) => Lock::Refused(error.to_string()),
        }
    }

    /// Gives this machine's turn back. Whoever has none is answered the same, so it may be said more than once.
    ///
    /// # Errors
    /// When the server did not say that it heard: others may wait for this machine until it is said again.
    pub async fn give_back(&self) -> Result<(), LockError> {
        self.asked("v1/steady-state", |_| ()).await
    }

    async fn asked(&self, path: &str, remember: impl Fn(&Failure)) -> Result<(), LockError> {
        let url = self.base.join(path).map_err(|error| LockError::Unreached(error.to_string()))?;
        let waits = ExponentialBuilder::default()
            .with_min_delay(self.patience.first_delay)
            .with_max_delay(self.patience.longest_delay)
            .with_max_times(self.patience.attempts.saturating_sub(1))
            .with_jitter();
        let attempt = || self.attempt(url.clone());
        let answer = attempt.retry(waits).when(|failure| failure.passes).notify(|failure, wait| {
            remember(failure);
            tracing::debug!(%url, error = %failure.error, ?wait, "asking the lock server again");
        });
        answer.await.map_err(|failure| failure.error)
    }

    async fn attempt(&self, url: Url) -> Result<(), Failure> {
        let request = self
            .http
            .post(url)
            .timeout(self.patience.answer)
            .header("fleet-lock-protocol", HeaderValue::from_static("true"))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(self.body.clone());
        let response = request.send().await.map_err(unsent)?;
        let status = response.status();
        if is_web_page(&response) {
            // A proxy's or a login page, whatever its status is.
            let told = format!("a web page came instead of an answer (status {})", status.as_u16());
            return Err(Failure { error: LockError::Refused(told), passes: false });
        }
        if status == StatusCode::OK {
            return Ok(());
        }
        Err(refused(status, &beginning(response).await))
    }
}

/// A connection that never came to be carried no question; any other failure may have come after it was heard.
fn unsent(error: reqwest::Error) -> Failure {
    let (connecting, late) = (error.is_connect(), error.is_timeout());
    let told = chain(&error.without_url());
    match (connecting, late) {
        (true, _) => Failure { error: LockError::Unreached(told), passes: true },
        // Its patience was long; the next one belongs to whoever decides to ask again.
        (false, late) => Failure { error: LockError::Unanswered(told), passes: !late },
    }
}

/// Servers answer 500 for "all slots are taken" as well as for a broken database: their words alone tell them apart from a proxy
/// that lost the answer on its way.
fn refused(status: StatusCode, body: &[u8]) -> Failure {
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { kind, value }) => {
            let told = match value.is_empty() {
                true => shown(&kind),
                false => format!("{} ({})", shown(&value), shown(&kind)),
            };
            Failure { error: LockError::Refused(told), passes: false }
        }
        Err(_) if status.is_server_error() => {
            let told = format!("status {} without a word of the lock server", status.as_u16());
            Failure { error: LockError::Unanswered(told), passes: true }
        }
        Err(_) => {
            let told =
                format!("status {}, which is no answer of a lock server: check its `url`", status.as_u16());
            Failure { error: LockError::Refused(told), passes: false }
        }
    }
}

/// As much of the body as is read at most; nothing when it does not come.
async fn beginning(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() <= ANSWER_BYTES_MAX
        && let Ok(Some(piece)) = response.chunk().await
    {
        body.extend_from_slice(&piece);
    }
    body.truncate(ANSWER_BYTES_MAX);
    body
}

fn is_web_page(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

/// Foreign text for a terminal and a log: one line, no control characters, bounded.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_CHARS_MAX).collect()
}
