//! Memory for what comes in as messages: those in the making, and those that wait in inboxes for the program.
//!
//! A reader takes a message's bytes from the budget before it allocates them, all at once; they come back when the program has
//! taken the message. There is a limit for each peer and one for the node. QUIC's windows are not in it: they have bounds of their
//! own. Who finds the budget used up waits, takes nothing from QUIC meanwhile, and so makes the peer wait.
//!
//! Who could wait for ever?
//!
//! - *Half messages for each other.* None can: a message that was begun has all its memory.
//! - *For complete messages.* The program takes them. Until it does, its own channels are what is full.
//! - *A channel for another one of the same peer*, which the program does not read, or on which a large message comes slowly. A
//!   reader whose channel holds nothing gets [`SMALL`] bytes out of a [`RESERVE`] that nothing else touches, so channels of
//!   small messages go on.
//! - *A large message behind small ones*, each of which finds room sooner. Who waits is served in the order of arrival.
//! - *A peer for the others*, who hold the node's memory. The first [`GUARANTEED`] bytes of each peer need none of it.
//! - *For half messages that never end*: because the peer wants it so; or because those that wait hold the connection's window, so
//!   that nothing more can come (nine channels with messages of more than a stream's window, which do not fit the peer's memory at
//!   once). A peer that holds a half message for longer than [`unfinished_after`], and than everything it holds takes at a
//!   modest pace, while somebody waits for that memory, loses its connection ([`Gone::Unfinished`](crate::Gone::Unfinished)).
//!
//! [`unfinished_after`]: crate::LinkConfig::unfinished_after

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use byway_proto::PeerId;
use tokio::sync::{self, oneshot};

use crate::{config::LinkConfig, quic::endpoint::MAX_STREAMS, status::MemoryStatus};

/// What a message costs beside its bytes: its place in a queue, and a share of the piece of its stream that it keeps alive. Of the packet nothing
/// is kept: that lies with others in one allocation.
const OVERHEAD: usize = 64;

/// What a reader pays at once for messages that came whole; and the largest message, with its overhead, for which the reserve
/// is there.
pub(crate) const SMALL: usize = 64 << 10;

/// The part of a peer's memory that is there for small messages of channels that hold nothing: enough for every stream that the
/// peer may have open.
pub(crate) const RESERVE: usize = SMALL * MAX_STREAMS as usize;

/// What each peer may hold whatever the others do: 512 peers, as many as a node takes unless it is told otherwise, come to 128 MiB.
pub(crate) const GUARANTEED: usize = 256 << 10;

/// Bytes a second with which a peer has to fill what it holds while other peers wait for it: 8 Mbit/s, so that the 64 MiB of one
/// peer are free again in a minute and a half.
const PACE_FOR_OTHERS: usize = 1 << 20;

/// The same while only its own messages wait: 512 kbit/s. It hurts nobody else, and its line may be slow.
const PACE_FOR_ITSELF: usize = 64 << 10;

/// What a message takes from the budget.
pub(crate) const fn cost(len: usize) -> usize {
    len.saturating_add(OVERHEAD)
}

/// The memory of one node.
#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<State>,
    peer: usize,
    node: usize,
    pub(crate) unfinished_after: Duration,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    peak: usize,
    waits: u64,
    /// What each peer holds, if it holds anything.
    peers: BTreeMap<PeerId, usize>,
    /// In the order of their arrival, one of each peer: its readers take turns.
    waiting: VecDeque<Waiter>,
    /// Of each peer that has readers.
    turns: BTreeMap<PeerId, Weak<sync::Mutex<()>>>,
}

#[derive(Debug)]
struct Waiter {
    peer: PeerId,
    bytes: usize,
    granted: oneshot::Sender<Held>,
}

impl State {
    fn of(&self, peer: PeerId) -> usize {
        self.peers.get(&peer).copied().unwrap_or(0)
    }

    fn charge(&mut self, peer: PeerId, bytes: usize) {
        *self.peers.entry(peer).or_default() += bytes;
        self.used += bytes;
        self.peak = self.peak.max(self.used);
    }

    fn credit(&mut self, peer: PeerId, bytes: usize) {
        self.used = self.used.saturating_sub(bytes);
        let left = self.of(peer).saturating_sub(bytes);
        if left == 0 {
            self.peers.remove(&peer);
        } else {
            self.peers.insert(peer, left);
        }
    }
}

impl Budget {
    pub(crate) fn new(config: &LinkConfig) -> Self {
        Budget {
            state: Mutex::default(),
            peer: config.peer_memory,
            node: config.memory,
            unfinished_after: config.unfinished_after,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> MemoryStatus {
        let state = self.lock();
        MemoryStatus {
            used: state.used,
            peak: state.peak,
            limit: self.node,
            waits: state.waits,
            ..MemoryStatus::default()
        }
    }

    /// What the readers of a peer wait in turn by, also those of a connection that has ended and of the next one.
    pub(crate) fn turn(&self, peer: PeerId) -> Arc<sync::Mutex<()>> {
        let mut state = self.lock();
        if let Some(turn) = state.turns.get(&peer).and_then(Weak::upgrade) {
            return turn;
        }
        state.turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(sync::Mutex::new(()));
        state.turns.insert(peer, Arc::downgrade(&turn));
        turn
    }

    /// Whether the peer's own limit lets it have more.
    fn fits_peer(&self, state: &State, peer: PeerId, bytes: usize) -> bool {
        state.of(peer).saturating_add(bytes) <= self.peer - RESERVE
    }

    /// Whether the node's limit does; `behind` says that others have waited for that for longer.
    fn fits_node(&self, state: &State, (peer, bytes): (PeerId, usize), behind: bool) -> bool {
        let is_guaranteed = state.of(peer).saturating_add(bytes) <= GUARANTEED;
        is_guaranteed || !behind && state.used.saturating_add(bytes) <= self.node
    }

    /// Whether a peer has had a half message for so long that it has to go, for somebody waits for what it holds. On a slow line
    /// many large messages take long without anybody's fault: the time grows with all that the peer holds.
    pub(crate) fn is_overdue(&self, peer: PeerId, age: Duration) -> bool {
        if age < self.unfinished_after {
            return false;
        }
        let state = self.lock();
        let held = state.of(peer);
        let is_over = |rate: usize| age >= self.unfinished_after + Duration::from_secs((held / rate) as u64);
        state.waiting.iter().any(|waiter| match self.fits_peer(&state, waiter.peer, waiter.bytes) {
            true => held > GUARANTEED && is_over(PACE_FOR_OTHERS), // it waits for the node's memory
            false => waiter.peer == peer && is_over(PACE_FOR_ITSELF),
        })
    }

    /// Charges the peer if there is room; `spare` says that its channel holds nothing.
    fn try_take(&self, peer: PeerId, bytes: usize, spare: bool) -> bool {
        let mut state = self.lock();
        let is_small = spare && bytes <= SMALL && state.of(peer).saturating_add(bytes) <= self.peer;
        let waits = |waiter: &Waiter| waiter.peer == peer;
        let fits = is_small || self.fits_peer(&state, peer, bytes) && !state.waiting.iter().any(waits);
        let behind = state.waiting.iter().any(|waiter| self.fits_peer(&state, waiter.peer, waiter.bytes));
        let fits = fits && self.fits_node(&state, (peer, bytes), behind);
        if fits {
            state.charge(peer, bytes);
        }
        fits
    }

    fn give_back(self: &Arc<Self>, peer: PeerId, bytes: usize) {
        let mut state = self.lock();
        state.credit(peer, bytes);
        self.grant(&mut state);
    }

    /// Lets those go on for whom there is room, in their order; who waits for his own peer holds up nobody else.
    fn grant(self: &Arc<Self>, state: &mut State) {
        let mut behind = false;
        let mut index = 0;
        while let Some(waiter) = state.waiting.get(index) {
            let (peer, bytes, is_gone) = (waiter.peer, waiter.bytes, waiter.granted.is_closed());
            let fits_peer = self.fits_peer(state, peer, bytes);
            if !(is_gone || fits_peer && self.fits_node(state, (peer, bytes), behind)) {
                behind |= fits_peer;
                index += 1;
                continue;
            }
            let Some(waiter) = state.waiting.remove(index) else { return };
            if is_gone {
                continue;
            }
            state.charge(peer, bytes);
            if let Err(mut held) = waiter.granted.send(Held { budget: Arc::clone(self), peer, bytes }) {
                state.credit(peer, std::mem::take(&mut held.bytes)); // the reader has gone this moment
            }
        }
    }
}

/// Memory of one peer's that is taken; it comes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Budget>,
    peer: PeerId,
    bytes: usize,
}

impl Held {
    pub(crate) fn nothing(budget: &Arc<Budget>, peer: PeerId) -> Self {
        Held { budget: Arc::clone(budget), peer, bytes: 0 }
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.peer
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Takes so many bytes more if they are there; `spare` says that the channel holds nothing.
    pub(crate) fn try_take(&mut self, bytes: usize, spare: bool) -> bool {
        let taken = self.budget.try_take(self.peer, bytes, spare);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Takes so many bytes more, waiting for them if need be; the peer's readers wait in `turn`, one after the other.
    pub(crate) async fn take(&mut self, bytes: usize, spare: impl Fn() -> bool, turn: &sync::Mutex<()>) {
        if self.try_take(bytes, false) || bytes <= SMALL && self.try_take(bytes, spare()) {
            return;
        }
        let _turn = turn.lock().await;
        if self.try_take(bytes, spare()) {
            return;
        }
        let granted = {
            let mut state = self.budget.lock();
            let (granted, waiting) = oneshot::channel();
            state.waits += 1;
            state.waiting.push_back(Waiter { peer: self.peer, bytes, granted });
            self.budget.grant(&mut state); // something may have come back meanwhile
            waiting
        };
        if let Ok(mut held) = granted.await {
            self.bytes += std::mem::take(&mut held.bytes);
        }
    }

    /// Hands so many bytes over to whoever holds the memory now.
    pub(crate) fn split(&mut self, bytes: usize) -> Held {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Held { budget: Arc::clone(&self.budget), peer: self.peer, bytes }
    }

    /// Takes over what another one of the same peer holds.
    pub(crate) fn join(&mut self, mut other: Held) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(self.peer, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::ed25519([n; 32])
    }

    /// A budget with so much for large messages of one peer, and for all.
    fn budget(peer: usize, node: usize) -> Arc<Budget> {
        let config = LinkConfig { peer_memory: peer + RESERVE, memory: node, ..LinkConfig::default() };
        Arc::new(Budget::new(&config))
    }

    fn held(budget: &Arc<Budget>, n: u8) -> Held {
        Held::nothing(budget, peer(n))
    }

    #[test]
    fn a_peers_memory_is_bounded_and_comes_back() {
        let budget = budget(1_000_000, 10_000_000);
        let (mut first, mut second) = (held(&budget, 1), held(&budget, 1));
        assert!(first.try_take(600_000, true) && !second.try_take(500_000, true));
        assert!(held(&budget, 2).try_take(500_000, true), "another peer has its own");
        drop(first.split(200_000));
        assert!(second.try_take(500_000, true));
        drop((first, second));
        assert_eq!(budget.status().used, 0);
    }

    #[test]
    fn a_channel_that_holds_nothing_gets_a_small_message_through() {
        let budget = budget(1_000_000, 10_000_000);
        let mut large = held(&budget, 1);
        assert!(large.try_take(1_000_000, true));
        let mut readers: Vec<_> = (0..MAX_STREAMS).map(|_| held(&budget, 1)).collect();
        assert!(!readers[0].try_take(SMALL, false), "the reserve is for those alone");
        assert!(readers.iter_mut().all(|reader| reader.try_take(SMALL, true)));
        assert!(!readers[0].try_take(1, true), "it is bounded, too");
    }

    #[tokio::test]
    async fn who_waits_is_served_in_order_and_who_waits_for_its_own_peer_holds_up_nobody() {
        let budget = budget(1_000_000, 2_200_000);
        let turn = sync::Mutex::new(());
        let [mut a, mut b] = [held(&budget, 1), held(&budget, 2)];
        assert!(a.try_take(1_000_000, false) && b.try_take(850_000, false));
        let (mut c, mut d, mut e) = (held(&budget, 2), held(&budget, 3), held(&budget, 4));
        let other = [sync::Mutex::new(()), sync::Mutex::new(())];
        let mut large = Box::pin(c.take(900_000, || false, &turn)); // for its own peer
        assert!((&mut large).now_or_never().is_none());
        assert!(d.try_take(50_000, false));
        let mut first = Box::pin(d.take(900_000, || false, &other[0])); // for the node
        assert!((&mut first).now_or_never().is_none());
        assert!(!e.try_take(300_000, false), "it would overtake");
        assert!(e.try_take(GUARANTEED, false), "each peer may have that much");
        let mut second = Box::pin(e.take(500_000, || false, &other[1]));
        assert!((&mut second).now_or_never().is_none());
        drop(a);
        assert!((&mut first).now_or_never().is_some());
        assert!((&mut second).now_or_never().is_none() && (&mut large).now_or_never().is_none());
        drop(b);
        assert!((&mut large).now_or_never().is_some() && (&mut second).now_or_never().is_none());
    }

    #[tokio::test]
    async fn what_is_large_is_not_overtaken_by_what_is_smaller_and_came_later() {
        let budget = budget(1_000_000, 2_000_000);
        let [mut a, mut b, mut c, mut d] = [1, 2, 3, 4].map(|n| held(&budget, n));
        assert!(a.try_take(1_000_000, false) && b.try_take(900_000, false));
        let turns = [(); 2].map(sync::Mutex::new);
        let mut large = Box::pin(c.take(900_000, || false, &turns[0]));
        let mut later = Box::pin(d.take(300_000, || false, &turns[1]));
        assert!((&mut large).now_or_never().is_none() && (&mut later).now_or_never().is_none());
        drop(a.split(500_000));
        assert!((&mut later).now_or_never().is_none(), "there is room for it, but not for what came before");
        drop(b);
        assert!((&mut large).now_or_never().is_some() && (&mut later).now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_is_large_is_not_overtaken_by_its_own_peers_later_messages() {
        let budget = budget(1_000_000, 10_000_000);
        let [mut a, mut b, mut c] = [1; 3].map(|n| held(&budget, n));
        let turn = sync::Mutex::new(());
        assert!(a.try_take(600_000, false));
        let mut large = Box::pin(b.take(500_000, || false, &turn));
        assert!((&mut large).now_or_never().is_none());
        assert!(!c.try_take(100_000, false), "there is room for it, but not for what came before");
        assert!(c.take(SMALL, || true, &turn).now_or_never().is_some(), "a channel that holds nothing has the reserve");
        drop(a);
        assert!((&mut large).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_peers_readers_wait_as_one_however_many_they_are() {
        let budget = budget(1_000_000, 1_000_000);
        let [mut a, mut b, mut c, mut d] = [9, 1, 1, 2].map(|n| held(&budget, n));
        assert!(a.try_take(1_000_000, false));
        let turns = [(); 2].map(sync::Mutex::new);
        let mut first = Box::pin(b.take(400_000, || false, &turns[0]));
        let mut second = Box::pin(c.take(300_000, || false, &turns[0]));
        let mut other = Box::pin(d.take(300_000, || false, &turns[1]));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        assert!((&mut other).now_or_never().is_none());
        drop(a.split(400_000));
        assert!((&mut first).now_or_never().is_some() && (&mut second).now_or_never().is_none());
        drop(a.split(300_000));
        assert!((&mut other).now_or_never().is_some(), "it came before the first peer's next turn");
        assert!((&mut second).now_or_never().is_none());
        drop(a);
        assert!((&mut second).now_or_never().is_some());
    }

    #[test]
    fn the_readers_of_all_connections_of_a_peer_have_one_turn() {
        let budget = budget(1_000_000, 1_000_000);
        let turns = [1, 1, 2].map(|n| budget.turn(peer(n)));
        assert!(Arc::ptr_eq(&turns[0], &turns[1]) && !Arc::ptr_eq(&turns[0], &turns[2]));
        assert_eq!(budget.lock().turns.len(), 2);
        drop(turns);
        let _turn = budget.turn(peer(3));
        assert_eq!(budget.lock().turns.len(), 1, "those of peers that are gone are forgotten");
    }

    #[tokio::test]
    async fn a_reader_that_ends_while_it_waits_holds_nothing_up() {
        let budget = budget(1_000_000, 10_000_000);
        let turn = sync::Mutex::new(());
        let mut a = held(&budget, 1);
        assert!(a.try_take(1_000_000, false));
        let (mut b, mut c) = (held(&budget, 1), held(&budget, 1));
        assert!(b.take(900_000, || false, &turn).now_or_never().is_none());
        assert!(!budget.is_overdue(peer(2), Duration::MAX));
        drop(a);
        assert!(c.take(900_000, || false, &turn).now_or_never().is_some());
    }

    #[test]
    fn only_a_peer_that_holds_what_somebody_waits_for_is_at_fault_and_only_after_its_time() {
        const MIB: usize = 1 << 20;
        let budget = budget(20 * MIB, 20 * MIB);
        let mut holders = [held(&budget, 1), held(&budget, 2)];
        assert!(holders[0].try_take(16 * MIB, false) && holders[1].try_take(10_000, false));
        let over = |n| (0..1_000).find(|age| budget.is_overdue(peer(n), Duration::from_secs(*age)));
        assert_eq!([over(1), over(2)], [None, None], "nobody waits");
        let (turns, mut own, mut other) = ([(); 2].map(sync::Mutex::new), held(&budget, 1), held(&budget, 3));
        let mut own = Box::pin(own.take(10 * MIB, || false, &turns[0]));
        assert!((&mut own).now_or_never().is_none());
        assert_eq!([over(1), over(2), over(3)], [Some(30 + 16 * 16), None, None], "its own messages wait");
        let mut other = Box::pin(other.take(5 * MIB, || false, &turns[1]));
        assert!((&mut other).now_or_never().is_none());
        assert_eq!([over(1), over(2), over(3)], [Some(30 + 16), None, None], "another peer waits");
    }
}
