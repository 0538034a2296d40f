//! What a protocol keeps about each of its peers.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard},
};

use byway_proto::PeerId;

use super::run::guarded;

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

/// A peer's state. The lock is its own: whoever holds it keeps nobody from another peer's.
type State<T> = Arc<Mutex<T>>;

/// The states of a protocol's peers.
struct States<T> {
    peers: RwLock<BTreeMap<PeerId, State<T>>>,
    make: Box<dyn Fn(PeerId) -> T + Send + Sync>,
}

/// A slot of any type. What is made and dropped is the program's: an error is the panic of that.
pub(crate) trait PerPeer: Send + Sync {
    /// Makes the peer's state.
    fn init(&self, peer: PeerId) -> Result<(), String>;
    /// Drops it.
    fn remove(&self, peer: PeerId) -> Result<(), String>;
}

/// Makes a peer's state in each slot, or in none.
pub(super) fn init(slots: &[Arc<dyn PerPeer>], peer: PeerId) -> Result<(), String> {
    let made = slots.iter().try_for_each(|slot| slot.init(peer));
    if made.is_err() {
        let _ = remove(slots, peer); // what failed first is told
    }
    made
}

/// Drops a peer's state in each slot, whatever becomes of the others.
pub(super) fn remove(slots: &[Arc<dyn PerPeer>], peer: PeerId) -> Result<(), String> {
    let outcomes: Vec<_> = slots.iter().map(|slot| slot.remove(peer)).collect();
    outcomes.into_iter().collect()
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

impl<T> States<T> {
    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<PeerId, State<T>>> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send> PerPeer for States<T> {
    fn init(&self, peer: PeerId) -> Result<(), String> {
        let state = guarded(|| Arc::new(Mutex::new((self.make)(peer))))?;
        let before = self.write().insert(peer, state);
        guarded(|| drop(before)) // there is one only if the protocol is unregistered at this moment
    }

    fn remove(&self, peer: PeerId) -> Result<(), String> {
        let state = self.write().remove(&peer);
        guarded(|| drop(state)) // outside the lock
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
