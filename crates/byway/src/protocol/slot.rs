//! What a protocol keeps about each of its peers.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use byway_proto::PeerId;

/// A protocol's state about each peer: made before the peer's first message can be received, dropped after
/// [`PeerEvent::Down`](super::PeerEvent::Down) is told. Clones share it.
///
/// ```
/// use byway::{Protocol, Slot};
///
/// let mut gossip = Protocol::new("gossip", 1..=1);
/// let seen: Slot<u64> = gossip.slot(|_peer| 0);
/// // when a message of `peer` comes:
/// # let peer = byway::Identity::generate().id();
/// let count = seen.with(peer, |count| { *count += 1; *count });
/// assert_eq!(count, None, "the peer is not connected");
/// ```
pub struct Slot<T> {
    states: Arc<States<T>>,
}

/// The lock of each peer's state is its own: whoever holds one keeps nobody from another peer's.
struct States<T> {
    peers: RwLock<BTreeMap<PeerId, Arc<Mutex<T>>>>,
    make: Box<dyn Fn(PeerId) -> T + Send + Sync>,
}

/// A slot of any type.
pub(crate) trait PerPeer: Send + Sync {
    /// Makes the peer's state.
    fn init(&self, peer: PeerId);
    /// Drops it.
    fn remove(&self, peer: PeerId);
}

impl<T: Send + 'static> Slot<T> {
    pub(super) fn new(make: impl Fn(PeerId) -> T + Send + Sync + 'static) -> Self {
        Slot { states: Arc::new(States { peers: RwLock::default(), make: Box::new(make) }) }
    }

    pub(super) fn states(&self) -> Arc<dyn PerPeer> {
        self.states.clone()
    }

    /// Does something with a peer's state; `None` if the peer is not connected or does not speak the protocol. The state is
    /// locked meanwhile: `act` must not ask for the same peer's again.
    pub fn with<R>(&self, peer: PeerId, act: impl FnOnce(&mut T) -> R) -> Option<R> {
        let peers = self.states.peers.read().unwrap_or_else(PoisonError::into_inner);
        let state = Arc::clone(peers.get(&peer)?);
        drop(peers);
        let result = act(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
        Some(result)
    }
}

impl<T: Send> PerPeer for States<T> {
    fn init(&self, peer: PeerId) {
        let state = Arc::new(Mutex::new((self.make)(peer)));
        self.peers.write().unwrap_or_else(PoisonError::into_inner).insert(peer, state);
    }

    fn remove(&self, peer: PeerId) {
        self.peers.write().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Slot { states: Arc::clone(&self.states) }
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}
