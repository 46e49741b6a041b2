//! Durable facts in two copies.
