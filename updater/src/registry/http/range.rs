//! A closed range of a blob as a stream that goes on where a broken body stopped.
//!
//! Not here: verification; the caller knows the digests of the parts. Rule: exactly as many bytes as the range has come
//! out, from an answer that says which bytes it holds, or brings just so many; or an error.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use backon::BackoffBuilder;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{StatusCode, header};
use reqwest::Response;

use super::super::{ByteStream, Descriptor, RegistryError};
use super::body::{Body, Stop};
use super::client::{Ask, Client, Waits};

/// Progress in bytes after which a broken body counts as the first of its kind again.
const PROGRESS_BYTES: u64 = 1 << 20;

/// Opens the range: the first answer is awaited here, so that its errors are this call's.
pub(super) async fn open(
    client: Arc<Client>,
    descriptor: &Descriptor,
    range: Range<u64>,
    what: String,
) -> Result<ByteStream, RegistryError> {
    // An empty range cannot be asked for: `bytes=5-4` is no range, and registries answer it in their own ways.
    if range.is_empty() {
        return Ok(stream::empty().boxed());
    }
    let mut reading = Reading {
        waits: client.backoff().build(),
        client,
        descriptor: descriptor.clone(),
        progress: range.start + PROGRESS_BYTES,
        left: range,
        what,
        body: None,
    };
    reading.body = Some(reading.ask().await?);
    Ok(stream::try_unfold(reading, next).boxed())
}

struct Reading {
    client: Arc<Client>,
    descriptor: Descriptor,
    /// What is still to come.
    left: Range<u64>,
    what: String,
    body: Option<Opened>,
    waits: Waits,
    /// The position at which enough came for the waits to start anew.
    progress: u64,
}

struct Opened {
    body: Body,
    /// Bytes before the wanted ones, of an answer that holds everything.
    skip: u64,
}

async fn next(mut reading: Reading) -> Result<Option<(Bytes, Reading)>, RegistryError> {
    while !reading.left.is_empty() {
        let mut opened = match reading.body.take() {
            Some(opened) => opened,
            None => reading.ask().await?,
        };
        match opened.body.next().await {
            Some(Ok(piece)) => {
                let wanted = reading.wanted(&mut opened, piece);
                reading.body = Some(opened);
                if !wanted.is_empty() {
                    return Ok(Some((wanted, reading)));
                }
            }
            Some(Err(Stop::Broken(detail))) => reading.pause(detail).await?,
            Some(Err(Stop::Spent(error))) => return Err(error),
            None => reading.pause("the body ended early".into()).await?,
        }
    }
    Ok(None)
}

impl Reading {
    /// Asks for what is left: at the storage that the registry named last time, else at the registry.
    async fn ask(&mut self) -> Result<Opened, RegistryError> {
        let digest = self.descriptor.digest;
        if let Some(url) = self.client.located(&digest) {
            match self.ask_at(url).await {
                // Addresses of a storage expire: the registry gives a new one.
                Err(RegistryError::Denied { .. } | RegistryError::Absent { .. }) => {
                    self.client.remember(digest, None);
                }
                other => return other,
            }
        }
        self.ask_at(self.client.url(&["blobs", &digest.to_string()])).await
    }

    async fn ask_at(&mut self, url: url::Url) -> Result<Opened, RegistryError> {
        let whole = self.left == (0..self.descriptor.size);
        let range = (!whole).then(|| self.left.clone());
        let ask = Ask { range, ..Ask::get(url, self.what.clone()) };
        let response = self.client.send(&ask).await?;
        if !self.client.is_registry(response.url()) {
            self.client.remember(self.descriptor.digest, Some(response.url().clone()));
        }
        let skip = self.skip_of(&response, whole)?;
        Ok(Opened { body: Body::new(response, &self.client.access, &self.what), skip })
    }

    /// How many bytes of the answer come before the wanted ones.
    fn skip_of(&self, response: &Response, whole: bool) -> Result<u64, RegistryError> {
        if response.headers().get(header::CONTENT_ENCODING).is_some_and(|it| it != "identity") {
            return Err(self.broken("it is compressed on the way, which was not asked for".into()));
        }
        match response.status() {
            StatusCode::PARTIAL_CONTENT => self.check_content_range(response).map(|()| 0),
            StatusCode::OK => {
                if !whole {
                    self.client.ranges_ignored.store(true, Ordering::Relaxed);
                }
                match response.content_length() {
                    Some(length) if length != self.descriptor.size => Err(self.broken(format!(
                        "{length} bytes are announced, the manifest says {}",
                        self.descriptor.size
                    ))),
                    _ => Ok(self.left.start),
                }
            }
            other => Err(self.broken(format!("status {} to a range", other.as_u16()))),
        }
    }

    /// RFC 9110, section 14.4. An answer with other bytes than the wanted ones would be taken for them.
    fn check_content_range(&self, response: &Response) -> Result<(), RegistryError> {
        let found = response.headers().get(header::CONTENT_RANGE).and_then(|it| it.to_str().ok());
        if found.is_none() && self.is_just_as_long(response) {
            return Ok(());
        }
        let wanted = format!("bytes {}-{}/", self.left.start, self.left.end - 1);
        let total = found.and_then(|found| found.strip_prefix(&wanted));
        if total.is_some_and(|total| total == "*" || total.parse() == Ok(self.descriptor.size)) {
            return Ok(());
        }
        let found: String = found.unwrap_or("nothing").chars().take(100).collect();
        Err(self
            .broken(format!("its Content-Range says `{found}`, expected `{wanted}{}`", self.descriptor.size)))
    }

    /// Some proxies strip the header from a right answer. One that brings as many bytes as were asked for is taken at its
    /// status: the digests tell if it is wrong. What is wrapped as `multipart/byteranges` is longer.
    fn is_just_as_long(&self, response: &Response) -> bool {
        let is_wrapped = |kind: &str| kind.trim_start().to_ascii_lowercase().starts_with("multipart/");
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        response.content_length() == Some(self.left.end - self.left.start) && !kind.is_some_and(is_wrapped)
    }

    /// Cuts from a piece what is wanted of it.
    fn wanted(&mut self, opened: &mut Opened, mut piece: Bytes) -> Bytes {
        let before = opened.skip.min(piece.len() as u64);
        opened.skip -= before;
        let _ = piece.split_to(before as usize);
        piece.truncate((self.left.end - self.left.start).min(piece.len() as u64) as usize);
        self.left.start += piece.len() as u64;
        piece
    }

    /// Waits before the body is asked for again, or gives up.
    async fn pause(&mut self, detail: String) -> Result<(), RegistryError> {
        if self.left.start >= self.progress {
            self.waits = self.client.backoff().build();
            self.progress = self.left.start + PROGRESS_BYTES;
        }
        let Some(wait) = self.waits.next() else {
            let detail = format!("{detail}, at byte {} of {}", self.left.start, self.descriptor.size);
            return Err(RegistryError::Unreachable { what: self.what.clone(), detail });
        };
        tracing::debug!(what = self.what, detail, at = self.left.start, "going on with a broken body");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn broken(&self, detail: String) -> RegistryError {
        RegistryError::Broken { what: self.what.clone(), detail }
    }
}
