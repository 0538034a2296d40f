//! (stub to be replaced)
/// A peer and where it may be reached.
pub struct PeerAddr;
