//! Relays: how a node uses them, and how it is one.

pub(crate) mod client;
mod links;
pub(crate) mod server;
pub(crate) mod table;
