//! A body as it arrives, with an eye on the clock.
//!
//! Not here: how many bytes are wanted. Rule: a sender that falls silent, or drips so slowly that the transfer would
//! never end, is a broken connection. Only time spent waiting for the sender counts, not the time the caller takes, nor
//! what a bandwidth cap makes us wait. Every byte is on the meter before anybody sees it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::Response;

use super::super::meter::Meter;
use super::super::{Patience, RegistryAccess, RegistryError};
use super::client::chain;

pub(super) struct Body {
    pieces: BoxStream<'static, reqwest::Result<Bytes>>,
    what: String,
    patience: Patience,
    meter: Meter,
    waited: Duration,
    received: u64,
}

/// Why a body does not go on.
pub(super) enum Stop {
    /// The connection; asking again may help.
    Broken(String),
    /// The budget; nothing is asked for any more.
    Spent(RegistryError),
}

impl Body {
    /// The body of an answer; `what` it is, for messages.
    pub(super) fn new(response: Response, access: &RegistryAccess, what: &str) -> Body {
        Body {
            pieces: response.bytes_stream().boxed(),
            what: what.to_owned(),
            patience: access.patience.clone(),
            meter: access.meter.clone(),
            waited: Duration::ZERO,
            received: 0,
        }
    }

    /// The next bytes, none at the end, or why there are no more.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Stop>> {
        let asked = Instant::now();
        let piece = tokio::time::timeout(self.patience.silence, self.pieces.next()).await;
        self.waited += asked.elapsed();
        match piece {
            Err(_) => Some(Err(Stop::Broken(format!("silent for {:?}", self.patience.silence)))),
            Ok(None) => None,
            Ok(Some(Err(error))) => Some(Err(Stop::Broken(chain(&error.without_url())))),
            Ok(Some(Ok(bytes))) => Some(self.accounted(bytes).await),
        }
    }

    async fn accounted(&mut self, bytes: Bytes) -> Result<Bytes, Stop> {
        let count = bytes.len() as u64;
        self.meter.came(count, &self.what).await.map_err(Stop::Spent)?;
        self.keeps_pace(count).map_err(Stop::Broken)?;
        Ok(bytes)
    }

    /// The whole body; none when it has more than `limit` bytes.
    pub(super) async fn whole(mut self, limit: u64) -> Result<Option<Vec<u8>>, Stop> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.next().await {
            let piece = piece?;
            if (bytes.len() + piece.len()) as u64 > limit {
                return Ok(None);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Some(bytes))
    }

    fn keeps_pace(&mut self, bytes: u64) -> Result<(), String> {
        self.received += bytes;
        let Patience { pace_window, pace_bytes, .. } = self.patience;
        if self.waited < pace_window {
            return Ok(());
        }
        let received = std::mem::take(&mut self.received);
        self.waited = Duration::ZERO;
        if received < pace_bytes {
            return Err(format!("only {received} bytes in {pace_window:?}"));
        }
        Ok(())
    }
}
