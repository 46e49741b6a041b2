//! The repository has tests of its own shape.
