//! Who a peer is: a public key.

/// The kind of key that a [`PeerId`] carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum KeyKind {
    /// Ed25519 (RFC 8032), 32 bytes.
    Ed25519,
}

/// A peer's public key: its identity and its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    kind: KeyKind,
    key: [u8; 32],
}
