//! The release format: manifest, config, chunk index, frames, patches. `docs/src/registry-format.md` gives it field by field.
//!
//! Not here: fetching (`registry`), signatures (`trust`), making a release (`publish`). Rule: pure code that reads bytes
//! of bounded length, allocates nothing by a length it has not checked, and refuses each lie by name.

pub mod chunker;
pub mod config;
mod fields;
pub mod frame;
pub mod index;
pub mod lookup;
pub mod manifest;
pub mod patch;
pub mod plan;
pub mod release;

mod text;

/// dm-verity's and the chunker's block: every raw length of a release is a multiple of this many bytes.
pub const BLOCK_BYTES: u32 = 4096;
