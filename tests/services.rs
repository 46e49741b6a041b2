//! Services as slots, with real ones: dnsmasq, unbound and chrony in containers of `runc`, moved while clients ask.
//!
//! Not here: what one module does (its own tests). Rule: what counts is what a client sees; a run in which nothing is moved comes
//! first, so that a loss is ours.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "services/bad.rs"]
mod bad;
#[path = "services/declared.rs"]
mod declared;
#[path = "services/kills.rs"]
mod kills;
#[path = "services/moves.rs"]
mod moves;
#[path = "services/pushed.rs"]
mod pushed;
#[path = "services/scene.rs"]
mod scene;
#[path = "services/schemas.rs"]
mod schemas;
