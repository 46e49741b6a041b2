//! Pieces of strict JSON that manifest and config share.
//!
//! Not here: the documents. Rule: a text that two parsers could read in two ways is refused.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, Visitor};

/// A map of texts in which no key comes twice: another tool might take the first where we take the last.
pub(super) fn unique_keys<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Unique;
    impl<'de> Visitor<'de> for Unique {
        type Value = BTreeMap<String, String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of texts")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((key, value)) = entries.next_entry::<String, String>()? {
                if map.contains_key(&key) {
                    return Err(A::Error::custom(format!("the key `{key}` comes twice")));
                }
                map.insert(key, value);
            }
            Ok(map)
        }
    }
    from.deserialize_map(Unique)
}

/// True for a name that can stand in a file name, a partition label or an annotation without any quoting:
/// lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
pub(super) fn is_plain_name(text: &str, bytes_max: usize) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    !text.is_empty()
        && text.len() <= bytes_max
        && text.bytes().all(plain)
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// True for one line of visible text. A line break in a title or command line would add lines to a loader entry.
pub(super) fn is_one_line(text: &str, bytes_max: usize) -> bool {
    text.len() <= bytes_max && !text.chars().any(char::is_control)
}

/// 32 bytes as 64 lower-case hexadecimal digits.
pub(super) mod hex32 {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(raw: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(raw))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        let mut raw = [0; 32];
        hex::decode_to_slice(&text, &mut raw)
            .map_err(|_| D::Error::custom("expected 64 hexadecimal digits"))?;
        Ok(raw)
    }
}

/// Bytes as hexadecimal digits.
pub(super) mod hex_bytes {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(raw: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(raw))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        hex::decode(&text).map_err(|_| D::Error::custom("expected an even number of hexadecimal digits"))
    }
}
