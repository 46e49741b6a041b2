//! The contract suite that every backend passes.
