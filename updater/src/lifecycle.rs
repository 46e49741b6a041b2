//! The pure step function.
