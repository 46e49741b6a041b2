//! One question to a registry: sent, redirected, authorised, retried.
//!
//! Not here: what is asked. Rule: the `Authorization` header goes to the registry itself and to no other origin; plain
//! HTTP goes to named hosts alone; a redirect never leads from TLS to plain HTTP.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder, Retryable};
use http::{HeaderValue, Method, StatusCode, header};
use reqwest::Response;
use url::Url;

use super::super::{RegistryAccess, RegistryError};
use super::body::{Body, Stop};
use super::tls;
use crate::digest::Digest;
use crate::host::clock;

/// How many redirects of one question are followed.
const REDIRECTS_MAX: usize = 5;
/// How many redirected addresses are remembered.
const LOCATED_MAX: usize = 256;

/// A client for one repository.
pub(super) struct Client {
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) access: RegistryAccess,
    /// Set when the registry answered a range with everything.
    pub(super) ranges_ignored: AtomicBool,
    pub(super) authorization: tokio::sync::Mutex<Option<HeaderValue>>,
    pub(super) http: reqwest::Client,
    base: Url,
    located: Mutex<HashMap<Digest, Url>>,
}

/// A question.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: Option<&'static str>,
    pub(super) range: Option<Range<u64>>,
    /// What is asked for, for messages.
    pub(super) what: String,
}

impl Ask {
    pub(super) fn get(url: Url, what: String) -> Ask {
        Ask { method: Method::GET, url, accept: None, range: None, what }
    }
}

/// Why one attempt failed, and whether another may help.
pub(super) struct Failure {
    error: RegistryError,
    retry: Option<Retry>,
}

/// How a registry wants to be asked again.
#[derive(Clone, Copy)]
struct Retry {
    after: Option<Duration>,
}

impl Failure {
    pub(super) fn fatal(error: RegistryError) -> Failure {
        Failure { error, retry: None }
    }

    pub(super) fn transient(what: &str, detail: String) -> Failure {
        let error = RegistryError::Unreachable { what: what.to_owned(), detail };
        Failure { error, retry: Some(Retry { after: None }) }
    }

    /// The server wants to be left alone for `after`; a wait of more than `most` is reported instead, so that the caller can
    /// go on.
    fn transient_after(what: &str, mut detail: String, after: Option<Duration>, most: Duration) -> Failure {
        let too_long = after.filter(|after| *after > most);
        if let Some(wait) = too_long {
            detail.push_str(&format!(", which wants to be left alone for {} s", wait.as_secs()));
        }
        let error = RegistryError::Unreachable { what: what.to_owned(), detail };
        Failure { error, retry: too_long.is_none().then_some(Retry { after }) }
    }

    pub(super) fn stopped(what: &str, stop: Stop) -> Failure {
        match stop {
            Stop::Broken(detail) => Failure::transient(what, detail),
            Stop::Spent(error) => Failure::fatal(error),
        }
    }

    pub(super) fn into_error(self) -> RegistryError {
        self.error
    }
}

impl Client {
    pub(super) fn new(host: &str, repository: &str, access: RegistryAccess) -> Result<Client, RegistryError> {
        let plain = access.plain_http.iter().any(|named| named == host);
        let scheme = if plain { "http" } else { "https" };
        // The registry of docker.io answers under another name.
        let server = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let base = Url::parse(&format!("{scheme}://{server}/v2/{repository}/")).map_err(|err| {
            RegistryError::Refused { what: format!("{host}/{repository}"), detail: err.to_string() }
        })?;
        Ok(Client {
            host: host.to_owned(),
            repository: repository.to_owned(),
            http: build(&access)?,
            access,
            ranges_ignored: AtomicBool::new(false),
            authorization: tokio::sync::Mutex::new(None),
            base,
            located: Mutex::new(HashMap::new()),
        })
    }

    /// An address beneath the repository. The parts are digests and checked tags.
    pub(super) fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// Waits between attempts: each about twice the one before, with jitter so that a fleet does not return as one.
    pub(super) fn backoff(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(self.access.patience.first_delay)
            .with_max_delay(self.access.patience.longest_delay)
            .with_max_times(self.access.patience.attempts.saturating_sub(1))
            .with_jitter()
    }

    /// Asks until there is a good answer or no hope, and gives the answer's head.
    pub(super) async fn send(&self, ask: &Ask) -> Result<Response, RegistryError> {
        self.retried(|| self.attempt(ask)).await
    }

    /// Asks and reads the whole body of at most `limit` bytes; a body that breaks is asked for again.
    pub(super) async fn fetch(&self, ask: Ask, limit: u64) -> Result<Vec<u8>, RegistryError> {
        self.retried(|| self.attempt_whole(&ask, limit)).await
    }

    async fn retried<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        attempt: impl FnMut() -> F,
    ) -> Result<T, RegistryError> {
        attempt
            .retry(self.backoff())
            .when(|failure: &Failure| failure.retry.is_some())
            .adjust(|failure: &Failure, planned| {
                let asked = failure.retry.and_then(|retry| retry.after);
                planned.map(|planned| asked.map_or(planned, |asked| asked.max(planned)))
            })
            .notify(|failure, wait| tracing::debug!(error = %failure.error, ?wait, "asking again"))
            .await
            .map_err(Failure::into_error)
    }

    async fn attempt_whole(&self, ask: &Ask, limit: u64) -> Result<Vec<u8>, Failure> {
        let response = self.attempt(ask).await?;
        if response.status() != StatusCode::OK {
            let detail = format!("status {} where 200 was expected", response.status().as_u16());
            return Err(Failure::fatal(RegistryError::Broken { what: ask.what.clone(), detail }));
        }
        // A login page or a proxy's: its bytes would be taken for a manifest that nobody signed.
        if ask.accept.is_some() && is_web_page(&response) {
            return Err(broken(
                &ask.what,
                "a web page came instead; a login page or proxy may be in between".into(),
            ));
        }
        let too_large = || Failure::fatal(RegistryError::TooLarge { what: ask.what.clone(), limit });
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let body = Body::new(response, &self.access, &ask.what).whole(limit).await;
        body.map_err(|stop| Failure::stopped(&ask.what, stop))?.ok_or_else(too_large)
    }

    /// One attempt: a 401 of the registry itself is answered with an authorisation, once.
    async fn attempt(&self, ask: &Ask) -> Result<Response, Failure> {
        let sent = self.authorization.lock().await.clone();
        let response = self.follow(ask, sent.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !self.is_registry(response.url()) {
            return self.judged(response, &ask.what);
        }
        let renewed = self.authorize(response.headers(), sent.as_ref(), &ask.what).await?;
        self.judged(self.follow(ask, Some(&renewed)).await?, &ask.what)
    }

    fn judged(&self, response: Response, what: &str) -> Result<Response, Failure> {
        judged(response, what, self.access.patience.longest_asked)
    }

    async fn follow(&self, ask: &Ask, authorization: Option<&HeaderValue>) -> Result<Response, Failure> {
        let mut url = ask.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            self.allowed(&url, &ask.what)?;
            let response = self.send_once(ask, &url, authorization).await?;
            let Some(location) = redirection(&response) else { return Ok(response) };
            let next = url.join(location).map_err(|err| broken(&ask.what, format!("redirect: {err}")))?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(refused(&ask.what, format!("it redirects from TLS to {}", origin(&next))));
            }
            url = next;
        }
        Err(broken(&ask.what, format!("more than {REDIRECTS_MAX} redirects")))
    }

    async fn send_once(
        &self,
        ask: &Ask,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut request = self.http.request(ask.method.clone(), url.clone());
        // A body that is compressed on the way has other lengths than the ranges speak of.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(accept) = ask.accept {
            request = request.header(header::ACCEPT, accept);
        }
        if let Some(range) = &ask.range {
            request = request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        if let Some(authorization) = authorization.filter(|_| self.is_registry(url)) {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        answered(request, &self.access, &ask.what).await
    }

    /// True for addresses at the registry itself: the only ones that see its credentials.
    pub(super) fn is_registry(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    pub(super) fn allowed(&self, url: &Url, what: &str) -> Result<(), Failure> {
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.named_for_plain_http(url) => Ok(()),
            "http" => Err(refused(
                what,
                format!(
                    "{} would be plain HTTP; name that host under `plain_http` if this is meant",
                    origin(url)
                ),
            )),
            other => Err(refused(what, format!("it leads to `{other}:`"))),
        }
    }

    fn named_for_plain_http(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let with_port = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        self.access.plain_http.contains(&with_port)
    }

    /// Where a blob was last found: a storage's address that the registry gave.
    pub(super) fn located(&self, digest: &Digest) -> Option<Url> {
        self.located.lock().ok()?.get(digest).cloned()
    }

    pub(super) fn remember(&self, digest: Digest, url: Option<Url>) {
        let Ok(mut located) = self.located.lock() else { return };
        match url {
            Some(url) if located.len() < LOCATED_MAX => located.insert(digest, url),
            _ => located.remove(&digest),
        };
    }
}

pub(super) fn build(access: &RegistryAccess) -> Result<reqwest::Client, RegistryError> {
    let refused = |detail: String| RegistryError::Refused { what: "an HTTP client".into(), detail };
    let tls = tls::config(extra_roots(access)?, access.signed_unix_secs);
    reqwest::Client::builder()
        .user_agent(concat!("switchback/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(access.patience.connect)
        .tls_backend_preconfigured(tls.map_err(|error| refused(chain(&error)))?)
        .build()
        .map_err(|error| refused(chain(&error.without_url())))
}

fn extra_roots(
    access: &RegistryAccess,
) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, RegistryError> {
    let Some(path) = &access.ca_file else { return Ok(Vec::new()) };
    let pem = fs::read(path).map_err(|source| RegistryError::Io {
        doing: "reading the certificates in",
        path: path.clone(),
        source,
    })?;
    let unusable = |detail: String| RegistryError::Refused {
        what: format!("the certificates in {}", path.display()),
        detail,
    };
    match tls::certificates(&pem) {
        Ok(roots) if roots.is_empty() => Err(unusable("there is none in PEM form".into())),
        Ok(roots) => Ok(roots),
        Err(error) => Err(unusable(error)),
    }
}

/// Sends a request and waits for the head of the answer.
pub(super) async fn answered(
    request: reqwest::RequestBuilder,
    access: &RegistryAccess,
    what: &str,
) -> Result<Response, Failure> {
    access.meter.asks(what).map_err(Failure::fatal)?;
    let silence = access.patience.silence;
    match tokio::time::timeout(silence, request.send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) if error.is_builder() => Err(broken(what, chain(&error.without_url()))),
        Ok(Err(error)) => Err(match tls::final_fault(&error) {
            Some(fault) => broken(what, fault),
            None => Failure::transient(what, unanswered(error)),
        }),
        Err(_) => Err(Failure::transient(what, format!("silent for {silence:?}"))),
    }
}

/// Why no connection came to be, without the layers that only pass it on.
fn unanswered(error: reqwest::Error) -> String {
    let host = error.url().and_then(Url::host_str).unwrap_or_default().to_owned();
    let connecting = error.is_connect();
    let error = error.without_url();
    let text = chain(&error);
    if connecting && text.contains("dns error") {
        return format!("the name {host} could not be resolved");
    }
    let mut cause: &(dyn std::error::Error + 'static) = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if connecting { cause.to_string() } else { text }
}

fn judged(response: Response, what: &str, longest_asked: Duration) -> Result<Response, Failure> {
    let status = response.status();
    let host = response.url().host_str().unwrap_or_default();
    let mut detail = format!("status {} from {host}", status.as_u16());
    // What a server that speaks TLS says to a request in the clear.
    if status == StatusCode::BAD_REQUEST && response.url().scheme() == "http" {
        detail.push_str("; if it speaks TLS, it must not be named under `plain_http`");
    }
    let busy = |detail| Failure::transient_after(what, detail, retry_after(&response), longest_asked);
    let what = || what.to_owned();
    match status {
        _ if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => Err(Failure::fatal(RegistryError::Absent { what: what() })),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(Failure::fatal(RegistryError::Denied { what: what(), detail }))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(busy(detail)),
        _ if status.is_server_error() => Err(busy(detail)),
        _ => Err(broken(&what(), detail)),
    }
}

/// RFC 9110, section 10.2.3: seconds, or a date.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let now = i64::try_from(clock::judged_unix_secs(0)).ok()?;
    date.duration_since(jiff::Timestamp::from_second(now).ok()?).try_into().ok()
}

fn is_web_page(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

fn redirection(response: &Response) -> Option<&str> {
    let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    response.headers().get(header::LOCATION).filter(|_| moved)?.to_str().ok()
}

/// Where an address leads, without its path and query, which may hold a signed secret.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

pub(super) fn broken(what: &str, detail: String) -> Failure {
    Failure::fatal(RegistryError::Broken { what: what.to_owned(), detail })
}

fn refused(what: &str, detail: String) -> Failure {
    Failure::fatal(RegistryError::Refused { what: what.to_owned(), detail })
}

/// An error with its causes in one line: the outer one of an HTTP client says only "error sending request".
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The waits between attempts to go on with a broken body.
pub(super) type Waits = <ExponentialBuilder as BackoffBuilder>::Backoff;
