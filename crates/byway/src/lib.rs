//! Reach any machine by its public key.

pub mod net;
