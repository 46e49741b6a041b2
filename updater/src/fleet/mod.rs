//! What machines of a fleet agree on with servers: one file per engine.
//!
//! Not here: deciding (`schedule`, `lifecycle`). Rules: a machine is complete without any of this; no server is needed for a way
//! back; what a server says is bounded and shown as text, never obeyed beyond its protocol.

pub mod lock;
mod node;

pub use node::NodeId;
