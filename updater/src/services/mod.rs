//! Services as slots: each is an OCI image in one of two slots, run by an OCI runtime, moved and moved back like the OS.
//!
//! Not here: how an image is read (`container`), what an update's life is (`lifecycle`, the same `step` as the OS). Rule:
//! nothing here touches the OS boot record; what a service may do is what its declaration grants (`config::service`).

pub mod asked;
pub mod bundle;
pub mod follow;
pub mod holder;
pub mod host;
pub mod life;
pub mod network;
pub mod orders;
pub mod probe;
pub mod refused;
pub mod runtime;
pub mod set;
pub mod store;
pub mod volume;
