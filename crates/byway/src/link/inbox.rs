//! What came in for one channel of a protocol: a bounded queue for each peer, served in turn.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use byway_proto::PeerId;
use tokio::sync::Notify;

/// Messages that a receiver takes from one peer before it is another one's turn.
const TURN: usize = 32;

/// The queues of one channel, shared by its receiver and the peers' readers.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    readable: Notify,
    max_messages: usize,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    peers: BTreeMap<PeerId, Queue>,
    /// Peers with something to read, in the order of their turns.
    ready: VecDeque<PeerId>,
    /// The receiver is gone, or the protocol is unregistered.
    closed: bool,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Bytes>,
    bytes: usize,
    space: Arc<Notify>,
    /// No reader feeds it any more; it goes once it is empty.
    orphaned: bool,
}

impl Inbox {
    /// Queues that hold `max_messages` and about `max_bytes` of each peer.
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Inbox { state: Mutex::default(), readable: Notify::new(), max_messages, max_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a peer's messages in, waiting while its queue is full; `false` if nobody will read them.
    pub(crate) async fn deliver(&self, peer: PeerId, batch: &mut VecDeque<Bytes>) -> bool {
        while !batch.is_empty() {
            let space = {
                let mut state = self.lock();
                if state.closed {
                    return false;
                }
                let state = &mut *state;
                let queue = state.peers.entry(peer).or_default();
                queue.orphaned = false;
                let was_empty = queue.messages.is_empty();
                while queue.messages.len() < self.max_messages && queue.bytes < self.max_bytes {
                    let Some(message) = batch.pop_front() else { break };
                    queue.bytes += message.len();
                    queue.messages.push_back(message);
                }
                if was_empty && !queue.messages.is_empty() {
                    state.ready.push_back(peer);
                    self.readable.notify_one();
                }
                if batch.is_empty() {
                    return true;
                }
                Arc::clone(&queue.space).notified_owned()
            };
            space.await;
        }
        true
    }

    /// Puts a message in without waiting; `false` if the peer's queue is full, or nobody will read it.
    pub(crate) fn offer(&self, peer: PeerId, message: Bytes) -> bool {
        let mut state = self.lock();
        let state = &mut *state;
        if state.closed {
            return false;
        }
        let queue = state.peers.entry(peer).or_default();
        queue.orphaned = false;
        if queue.messages.len() >= self.max_messages || queue.bytes >= self.max_bytes {
            return false;
        }
        queue.bytes += message.len();
        queue.messages.push_back(message);
        if queue.messages.len() == 1 {
            state.ready.push_back(peer);
            self.readable.notify_one();
        }
        true
    }

    /// Messages of a peer that wait, and their bytes.
    pub(crate) fn waiting(&self, peer: PeerId) -> (usize, usize) {
        self.lock().peers.get(&peer).map_or((0, 0), |queue| (queue.messages.len(), queue.bytes))
    }

    /// Takes the messages of the peer whose turn it is; waits for one, and `None` once the inbox is closed and empty.
    pub(crate) async fn take(&self, out: &mut VecDeque<(PeerId, Bytes)>) -> Option<()> {
        loop {
            {
                let mut state = self.lock();
                if self.take_turn(&mut state, out) {
                    return Some(());
                }
                if state.closed {
                    return None;
                }
            }
            self.readable.notified().await;
        }
    }

    /// Takes what is there without waiting; `false` if there is nothing.
    pub(crate) fn try_take(&self, out: &mut VecDeque<(PeerId, Bytes)>) -> bool {
        self.take_turn(&mut self.lock(), out)
    }

    fn take_turn(&self, state: &mut State, out: &mut VecDeque<(PeerId, Bytes)>) -> bool {
        let Some(peer) = state.ready.pop_front() else { return false };
        let Some(queue) = state.peers.get_mut(&peer) else { return false };
        let was_full = queue.messages.len() >= self.max_messages || queue.bytes >= self.max_bytes;
        for _ in 0..TURN {
            let Some(message) = queue.messages.pop_front() else { break };
            queue.bytes -= message.len();
            out.push_back((peer, message));
        }
        if was_full {
            queue.space.notify_one();
        }
        if !queue.messages.is_empty() {
            state.ready.push_back(peer);
        } else if queue.orphaned {
            state.peers.remove(&peer);
        }
        true
    }

    /// Notes that no reader feeds this peer's queue any more; what is in it can still be read.
    pub(crate) fn orphan(&self, peer: PeerId) {
        let mut state = self.lock();
        if let Some(queue) = state.peers.get_mut(&peer) {
            queue.orphaned = true;
            if queue.messages.is_empty() {
                state.peers.remove(&peer);
            }
        }
    }

    /// Ends the inbox: readers stop, and the receiver gets what is left, then `None`.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for queue in state.peers.values() {
            queue.space.notify_one();
        }
        drop(state);
        self.readable.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::ed25519([n; 32])
    }

    fn batch(n: usize) -> VecDeque<Bytes> {
        (0..n).map(|i| Bytes::from(vec![i as u8])).collect()
    }

    #[test]
    fn what_finds_no_room_and_must_not_wait_is_refused() {
        let inbox = Inbox::new(2, 1 << 20);
        let offered = |n| inbox.offer(peer(n), Bytes::from_static(b"x"));
        assert!(offered(1) && offered(1) && !offered(1));
        assert!(offered(2), "another peer's queue is another one");
        let mut out = VecDeque::new();
        assert!(inbox.try_take(&mut out) && out.len() == 2);
        assert!(offered(1));
        inbox.close();
        assert!(!offered(2));
    }

    #[tokio::test]
    async fn a_flooding_peer_waits_while_a_quiet_one_gets_its_turn() {
        let inbox = Arc::new(Inbox::new(64, 1 << 20));
        let flood = Arc::clone(&inbox);
        let flooding = tokio::spawn(async move { flood.deliver(peer(1), &mut batch(1_000)).await });
        tokio::task::yield_now().await;
        assert!(inbox.deliver(peer(2), &mut batch(1)).await);
        let mut out = VecDeque::new();
        inbox.take(&mut out).await.unwrap();
        assert!(out.iter().all(|(from, _)| *from == peer(1)));
        assert_eq!(out.len(), TURN);
        out.clear();
        inbox.take(&mut out).await.unwrap();
        assert_eq!(out.pop_front().unwrap().0, peer(2));
        let mut rest = 0;
        while rest < 1_000 - TURN {
            inbox.take(&mut out).await.unwrap();
            rest += out.len();
            out.clear();
        }
        assert!(flooding.await.unwrap());
    }

    #[tokio::test]
    async fn closing_ends_a_waiting_reader_and_the_receiver() {
        let inbox = Arc::new(Inbox::new(1, 1 << 20));
        let reader = Arc::clone(&inbox);
        let reading = tokio::spawn(async move { reader.deliver(peer(1), &mut batch(5)).await });
        tokio::task::yield_now().await;
        inbox.close();
        assert!(!reading.await.unwrap());
        let mut out = VecDeque::new();
        assert!(inbox.take(&mut out).await.is_some());
        assert!(inbox.take(&mut out).await.is_none());
    }
}
