//! Bytes and trusted keys to verified values.
