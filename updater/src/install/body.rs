//! One range request, cut into pieces as it arrives.
//!
//! Not here: what the bytes are worth. Rule: pieces are asked for in ascending order; what lies between them is passed over as
//! it comes, never collected.

use std::ops::Range;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;

use super::InstallError;
use crate::image::manifest::Descriptor;
use crate::registry::{ByteStream, Registry};

/// An open range of a blob.
pub struct Body {
    stream: ByteStream,
    buffer: BytesMut,
    /// First byte that was neither taken nor passed over.
    pub at: u64,
    /// First byte behind the range.
    pub end: u64,
}

impl Body {
    /// Asks for `range` of `blob`.
    pub async fn open(
        registry: &dyn Registry,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Body, InstallError> {
        let (at, end) = (range.start, range.end);
        let stream = registry.blob_range(blob, range).await?;
        Ok(Body { stream, buffer: BytesMut::new(), at, end })
    }

    /// The bytes of one piece.
    pub async fn take(&mut self, piece: Range<u64>) -> Result<Bytes, InstallError> {
        let want = (piece.end - piece.start) as usize;
        loop {
            let before = piece.start.saturating_sub(self.at).min(self.buffer.len() as u64) as usize;
            self.buffer.advance(before);
            self.at += before as u64;
            if self.at == piece.start && self.buffer.len() >= want {
                break;
            }
            let missing = piece.end - self.at;
            let more = self.stream.next().await.ok_or(InstallError::ShortBody { missing })?;
            self.buffer.extend_from_slice(&more?);
        }
        self.at = piece.end;
        // A view, not a copy: pieces under way would else each hold as much memory as a whole piece of the body has.
        Ok(self.buffer.split_to(want).freeze())
    }
}
