//! The release format.
