//! The life of one update: fetch, verify, write, arm, try, confirm or return.
//!
//! Not here: disk formats (`switchback-partitions`), boot records (`switchback-bootloader`). Rule: one flow for every
//! update; what differs is an action or a backend, never a parallel copy.

pub mod byte_size;
pub mod cli;
pub mod config;
pub mod container;
pub mod daemon;
pub mod digest;
pub mod doctor;
pub mod engine;
pub mod facts;
pub mod file;
pub mod fleet;
#[cfg(test)]
mod golden;
pub mod health;
pub mod host;
pub mod image;
pub mod init;
pub mod install;
pub mod lifecycle;
pub mod logs;
pub mod progress;
#[cfg(feature = "author")]
pub mod publish;
pub mod reason;
pub mod registry;
pub mod schedule;
pub mod services;
pub mod trust;
