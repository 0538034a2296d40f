//! The peers that speak one protocol: who comes and goes, a byte stream to one of them, a task for each.

use std::sync::Arc;

use bytes::BytesMut;
use byway_proto::PeerId;
use tokio::sync::Notify;

use super::registry::{Registered, Registry};
use crate::{gone::Gone, link::queue::put_varint, stream::Stream, switch::SwitchRef, tasks::Tasks};

/// A peer came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerEvent {
    /// The peer is connected and speaks the protocol.
    Up {
        /// The peer.
        peer: PeerId,
        /// The version both sides speak.
        version: u32,
    },
    /// The peer is gone, or speaks the protocol no longer.
    Down {
        /// The peer.
        peer: PeerId,
        /// The reason.
        reason: Gone,
    },
}

/// The peers that speak a registered protocol.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// use byway::{Config, Identity, Node, PeerEvent, Protocol};
///
/// let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// let mut peers = a.register(Protocol::new("presence", 1..=2))?;
/// let _theirs = b.register(Protocol::new("presence", 1..=1))?;
/// let peer = a.dial(b.ticket()).await?;
/// assert_eq!(peers.next().await, Some(PeerEvent::Up { peer, version: 1 }));
/// assert!(peers.contains(peer) && peers.list() == [(peer, 1)]);
/// b.close().await;
/// assert!(matches!(peers.next().await, Some(PeerEvent::Down { .. })));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Peers {
    pub(super) protocol: Arc<Registered>,
    pub(super) tasks: Tasks,
    pub(super) switch: SwitchRef,
    closed: Arc<Notify>,
    registry: Arc<Registry>,
}

/// Why a byte stream cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The peer is not connected, or does not speak the protocol.
    #[error("{0} is not connected or does not speak the protocol; dial it first")]
    Absent(PeerId),
    /// The connection ended meanwhile.
    #[error("the connection ended: {0}")]
    Gone(Gone),
    /// The link has as many streams as it may have.
    #[error("too many streams to {0} are open; close some")]
    TooMany(PeerId),
}

impl Peers {
    pub(crate) fn new(protocol: Arc<Registered>, registry: Arc<Registry>, tasks: Tasks, switch: SwitchRef) -> Self {
        Peers { protocol, tasks, switch, closed: registry.closed(), registry }
    }

    /// Waits until a peer comes or goes; `None` once the protocol is unregistered or the node closed.
    pub async fn next(&mut self) -> Option<PeerEvent> {
        loop {
            let closed = self.closed.notified();
            let changed = self.protocol.changed.notified();
            if let Some(event) = self.protocol.events().pop_front() {
                return Some(event);
            }
            if !self.registry.has(&self.protocol) {
                return None;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = closed => {}
            }
        }
    }

    /// The peers that speak the protocol now, with the version spoken, in the order of their ids.
    pub fn list(&self) -> Vec<(PeerId, u32)> {
        self.protocol.members().iter().map(|(peer, member)| (*peer, member.version)).collect()
    }

    /// Whether the peer is connected and speaks the protocol.
    pub fn contains(&self, peer: PeerId) -> bool {
        self.protocol.members().contains_key(&peer)
    }

    /// Opens a byte stream to a peer; waits while the peer allows no further one.
    pub async fn open(&self, peer: PeerId) -> Result<Stream, OpenError> {
        self.handle().open(peer).await
    }

    /// What opens streams and tells of peers, for another task.
    pub fn handle(&self) -> PeersHandle {
        PeersHandle { protocol: Arc::clone(&self.protocol) }
    }
}

/// Opens byte streams from any task.
#[derive(Debug, Clone)]
pub struct PeersHandle {
    protocol: Arc<Registered>,
}

impl PeersHandle {
    /// Opens a byte stream to a peer; waits while the peer allows no further one.
    pub async fn open(&self, peer: PeerId) -> Result<Stream, OpenError> {
        let member = self.protocol.member(peer).ok_or(OpenError::Absent(peer))?;
        let mut header = BytesMut::new();
        put_varint(&mut header, u64::from(member.ours));
        member.link.open_stream(header.freeze(), Arc::clone(member.tallies.of(None))).await
    }

    /// Whether the peer is connected and speaks the protocol.
    pub fn contains(&self, peer: PeerId) -> bool {
        self.protocol.members().contains_key(&peer)
    }
}
