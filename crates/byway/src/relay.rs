//! Relays: how a node uses them, and how it is one.

pub(crate) mod client;
pub(crate) mod server;
