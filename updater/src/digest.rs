//! A content digest: a strict type, so that no text from outside reaches a path or a URL unchecked.
//!
//! Not here: other algorithms; a release is addressed by SHA-256 (OCI image-spec, descriptor.md, "SHA-256").
//! Rule: a `Digest` in hand is 64 lower-case hexadecimal digits behind `sha256:`, nothing else.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// Fewer digits are more likely a mistyped version than a digest.
const TYPED_DIGITS_MIN: usize = 6;

/// A SHA-256 content digest; shown as `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no digest: expected `sha256:` and 64 lower-case hexadecimal digits")]
pub struct DigestError(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(sha2::Sha256::digest(bytes).into())
    }

    /// From the raw 32 bytes.
    pub fn from_raw(raw: [u8; 32]) -> Digest {
        Digest(raw)
    }

    /// The raw 32 bytes.
    pub fn raw(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// True when somebody who types `text` means this digest: all of it or its beginning, six digits at least, with or
    /// without what is printed around it.
    pub fn is_meant_by(&self, text: &str) -> bool {
        let hex = text.trim_start_matches('@').trim_end_matches('…');
        let hex = hex.strip_prefix("sha256:").unwrap_or(hex);
        hex.len() >= TYPED_DIGITS_MIN && self.hex().starts_with(hex)
    }

    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || DigestError(text.chars().take(80).collect());
        let hex_text = text.strip_prefix("sha256:").ok_or_else(wrong)?;
        if hex_text.len() != 64 || !hex_text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let mut raw = [0; 32];
        hex::decode_to_slice(hex_text, &mut raw).map_err(|_| wrong())?;
        Ok(Digest(raw))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_sha256_of_full_length_is_a_digest() {
        let good = Digest::of(b"");
        assert_eq!(good.to_string().parse(), Ok(good));
        for bad in [
            "",
            "sha256:",
            "sha512:00",
            "sha256:../../etc/passwd",
            &good.to_string().to_uppercase(),
            &good.to_string()[..70],
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
