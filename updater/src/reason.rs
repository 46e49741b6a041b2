//! The closed set of reasons.
