//! A body as it arrives, with an eye on the clock.
//!
//! Not here: how many bytes are wanted. Rule: a sender that falls silent, or drips so slowly that the transfer would
//! never end, is a broken connection. Only time spent waiting for the sender counts, not the time the caller takes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::Response;

use super::super::Patience;
use super::client::chain;

pub(super) struct Body {
    pieces: BoxStream<'static, reqwest::Result<Bytes>>,
    patience: Patience,
    waited: Duration,
    received: u64,
}

impl Body {
    pub(super) fn new(response: Response, patience: &Patience) -> Body {
        Body {
            pieces: response.bytes_stream().boxed(),
            patience: patience.clone(),
            waited: Duration::ZERO,
            received: 0,
        }
    }

    /// The next bytes, none at the end, or what is wrong with the connection.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, String>> {
        let asked = Instant::now();
        let piece = tokio::time::timeout(self.patience.silence, self.pieces.next()).await;
        self.waited += asked.elapsed();
        match piece {
            Err(_) => Some(Err(format!("silent for {:?}", self.patience.silence))),
            Ok(None) => None,
            Ok(Some(Err(error))) => Some(Err(chain(&error.without_url()))),
            Ok(Some(Ok(bytes))) => Some(self.keeps_pace(bytes.len() as u64).map(|()| bytes)),
        }
    }

    /// The whole body; none when it has more than `limit` bytes.
    pub(super) async fn whole(mut self, limit: u64) -> Result<Option<Vec<u8>>, String> {
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
