//! Sizes as people write them: `512`, `64M`, `2 GiB`; and paces: `2 MB/s`.
//!
//! Not here: sizes for people to read (`cli::render`). Rule: powers of 1024, whole numbers, nothing that overflows.

use std::num::NonZeroU64;

use serde::Deserialize;

/// A size typed by a person: a number with an optional K, M, G or T (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ByteSize(
    /// In bytes.
    pub u64,
);

impl TryFrom<String> for ByteSize {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong =
            || format!("`{text}` is no size: a number of bytes, or one with K, M, G or T, such as 512M");
        let trimmed = text.trim().trim_end_matches("iB").trim_end_matches('B');
        let (digits, shift) = match trimmed.chars().last().map(|c| c.to_ascii_uppercase()) {
            Some('K') => (&trimmed[..trimmed.len() - 1], 10),
            Some('M') => (&trimmed[..trimmed.len() - 1], 20),
            Some('G') => (&trimmed[..trimmed.len() - 1], 30),
            Some('T') => (&trimmed[..trimmed.len() - 1], 40),
            _ => (trimmed, 0),
        };
        let number: u64 = digits.trim_end().parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(ByteSize).ok_or_else(wrong)
    }
}

/// A pace typed by a person: a size and `/s`; never 0, at which nothing would ever come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BytePace(
    /// In bytes a second.
    pub NonZeroU64,
);

impl TryFrom<String> for BytePace {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let size = text.trim().strip_suffix("/s").and_then(|size| size.parse::<ByteSize>().ok());
        let pace = size.and_then(|size| NonZeroU64::new(size.0)).map(BytePace);
        pace.ok_or_else(|| format!("`{text}` is no pace: a size above 0 and `/s`, such as 2M/s"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4K", 4096),
            ("2G", 2 << 30),
            ("512MiB", 512 << 20),
            ("500 MB", 500 << 20),
            ("1T", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "99999999999T", "5 0M"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pace_is_a_size_in_a_second_and_never_nothing() {
        for (text, bytes) in [("2 MB/s", 2 << 20), ("64K/s", 64 << 10), ("1 /s", 1)] {
            assert_eq!(BytePace::try_from(text.to_owned()).map(|pace| pace.0.get()), Ok(bytes), "{text}");
        }
        for text in ["2M", "0/s", "/s", "2M/m", "16 Mbit/s"] {
            assert!(BytePace::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
