//! What came in for one channel of a protocol: a bounded queue for each peer, served in turn.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use byway_proto::PeerId;
use tokio::sync::Notify;

use super::budget::{self, Held};

/// Messages that a receiver takes from one peer before it is another one's turn.
const TURN: usize = 32;

/// The queues of one channel, shared by its receiver and the peers' readers.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    readable: Notify,
    max_messages: usize,
    max_bytes: usize,
    /// How many messages the receiver has taken, if they are counted.
    taken: OnceLock<Arc<AtomicU64>>,
}

#[derive(Debug, Default)]
struct State {
    peers: BTreeMap<PeerId, Queue>,
    /// Peers with something to read, in the order of their turns.
    ready: VecDeque<PeerId>,
    /// How many messages the receiver was handed, if they are counted, and whose the last ones are.
    handed: (u64, Option<PeerId>),
    /// The receiver is gone, or the protocol is unregistered.
    closed: bool,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Bytes>,
    bytes: usize,
    /// The memory of what is in it.
    held: Option<Held>,
    /// Told when there is room again; the readers of the peer's last connection and of its present one may wait for it.
    space: Arc<Notify>,
    /// No reader feeds it any more; it goes once it is empty.
    orphaned: bool,
}

/// The messages of one peer's turn, in the receiver's hands.
#[derive(Debug, Default)]
pub(crate) struct Hand {
    messages: VecDeque<(PeerId, Bytes)>,
    held: Option<Held>,
    /// Where they are counted as they are taken, if they are.
    taken: Option<Arc<AtomicU64>>,
}

impl Hand {
    /// The next message; the memory of all comes back with the last one.
    pub(crate) fn pop(&mut self) -> Option<(PeerId, Bytes)> {
        let message = self.messages.pop_front();
        if self.messages.is_empty() {
            self.held = None;
        }
        if let Some(taken) = &self.taken
            && message.is_some()
        {
            taken.fetch_add(1, Relaxed);
        }
        message
    }
}

impl Inbox {
    /// Queues that hold `max_messages` and about `max_bytes` of each peer.
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Self {
        let (state, readable) = (Mutex::default(), Notify::new());
        Inbox { state, readable, max_messages, max_bytes, taken: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a peer's messages in, with the memory that was taken for them, waiting while its queue is full, and tells whether
    /// it had to; `None` if nobody will read them.
    pub(crate) async fn deliver(&self, batch: &mut VecDeque<Bytes>, held: &mut Held) -> Option<bool> {
        let peer = held.peer();
        let mut waited = false;
        while !batch.is_empty() {
            let space = {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                let state = &mut *state;
                let queue = state.peers.entry(peer).or_default();
                queue.orphaned = false;
                let was_empty = queue.messages.is_empty();
                let mut memory = 0;
                while queue.messages.len() < self.max_messages && queue.bytes < self.max_bytes {
                    let Some(message) = batch.pop_front() else { break };
                    queue.bytes += message.len();
                    memory += budget::cost(message.len());
                    queue.messages.push_back(message);
                }
                queue.hold(held.split(memory));
                if was_empty && !queue.messages.is_empty() {
                    state.ready.push_back(peer);
                    self.readable.notify_one();
                }
                if batch.is_empty() {
                    return Some(waited);
                }
                Arc::clone(&queue.space).notified_owned()
            };
            space.await;
            waited = true;
        }
        Some(waited)
    }

    /// Puts a message in without waiting; `false` if the peer's queue is full, or nobody will read it, or there is no memory
    /// for it.
    pub(crate) fn offer(&self, message: Bytes, held: &mut Held) -> bool {
        let peer = held.peer();
        let mut state = self.lock();
        let state = &mut *state;
        if state.closed {
            return false;
        }
        let queue = state.peers.entry(peer).or_default();
        queue.orphaned = false;
        let cost = budget::cost(message.len());
        if queue.messages.len() >= self.max_messages
            || queue.bytes >= self.max_bytes
            || !held.try_take(cost, queue.messages.is_empty())
        {
            return false;
        }
        queue.hold(held.split(cost));
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
    pub(crate) async fn take(&self, out: &mut Hand) -> Option<()> {
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
    pub(crate) fn try_take(&self, out: &mut Hand) -> bool {
        self.take_turn(&mut self.lock(), out)
    }

    fn take_turn(&self, state: &mut State, out: &mut Hand) -> bool {
        let Some(peer) = state.ready.pop_front() else { return false };
        let Some(queue) = state.peers.get_mut(&peer) else { return false };
        let was_full = queue.messages.len() >= self.max_messages || queue.bytes >= self.max_bytes;
        let (mut memory, mut handed) = (0, 0);
        for _ in 0..TURN {
            let Some(message) = queue.messages.pop_front() else { break };
            queue.bytes -= message.len();
            memory += budget::cost(message.len());
            handed += 1;
            out.messages.push_back((peer, message));
        }
        out.held = queue.held.as_mut().map(|held| held.split(memory));
        if let Some(taken) = self.taken.get() {
            state.handed = (state.handed.0 + handed, Some(peer));
            out.taken.get_or_insert_with(|| Arc::clone(taken));
        }
        if was_full {
            queue.space.notify_waiters(); // of two connections' readers the first may leave room for the other
        }
        if !queue.messages.is_empty() {
            state.ready.push_back(peer);
        } else if queue.orphaned {
            state.peers.remove(&peer);
        }
        true
    }

    /// Counts from now on what the receiver takes.
    pub(crate) fn count(&self) {
        self.taken.get_or_init(Arc::default);
    }

    /// How many messages the receiver has taken since they are counted, and the peers of whom some still wait, be it in the
    /// receiver's hands. Nobody waits for a receiver that is gone.
    pub(crate) fn progress(&self) -> (u64, Vec<PeerId>) {
        let state = self.lock();
        let taken = self.taken.get().map_or(0, |taken| taken.load(Relaxed));
        if state.closed {
            return (taken, Vec::new());
        }
        let (handed, last) = state.handed;
        let in_hand = last.filter(|_| handed > taken);
        (taken, state.ready.iter().copied().chain(in_hand).collect())
    }

    /// Whether nothing of a peer's is in it.
    pub(crate) fn is_empty_of(&self, peer: PeerId) -> bool {
        self.lock().peers.get(&peer).is_none_or(|queue| queue.messages.is_empty())
    }

    /// Ends the inbox and forgets what is in it: its receiver is gone.
    pub(crate) fn abandon(&self) {
        self.close();
        let mut state = self.lock();
        let abandoned = (std::mem::take(&mut state.peers), std::mem::take(&mut state.ready));
        drop(state);
        drop(abandoned);
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
            queue.space.notify_waiters();
        }
        drop(state);
        self.readable.notify_one();
    }
}

impl Queue {
    /// Takes over the memory of what was put in.
    fn hold(&mut self, held: Held) {
        match &mut self.held {
            Some(all) => all.join(held),
            None => self.held = Some(held),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::{super::budget::Budget, *};
    use crate::config::LinkConfig;

    fn peer(n: u8) -> PeerId {
        PeerId::ed25519([n; 32])
    }

    /// Some memory of a peer's.
    fn held(n: u8) -> Held {
        let mut held = Held::nothing(&Arc::new(Budget::new(&LinkConfig::default())), peer(n));
        assert!(held.try_take(1 << 20, false));
        held
    }

    fn batch(n: usize) -> VecDeque<Bytes> {
        (0..n).map(|i| Bytes::from(vec![i as u8])).collect()
    }

    #[test]
    fn what_finds_no_room_and_must_not_wait_is_refused() {
        let inbox = Inbox::new(2, 1 << 20);
        let offered = |n| inbox.offer(Bytes::from_static(b"x"), &mut held(n));
        assert!(offered(1) && offered(1) && !offered(1));
        assert!(offered(2), "another peer's queue is another one");
        let mut out = Hand::default();
        assert!(inbox.try_take(&mut out) && out.messages.len() == 2);
        assert!(offered(1));
        inbox.close();
        assert!(!offered(2));
    }

    #[test]
    fn what_must_not_wait_is_refused_where_its_bytes_have_no_room() {
        let inbox = Inbox::new(100, 3);
        let offered = |len| inbox.offer(Bytes::from(vec![0; len]), &mut held(1));
        assert!(offered(2) && offered(2), "one message may be on top");
        assert!(!offered(0));
        assert!(inbox.try_take(&mut Hand::default()) && offered(2), "it was read");
    }

    #[tokio::test]
    async fn a_queue_is_full_by_its_bytes_too() {
        let inbox = Inbox::new(100, 3);
        let mut waiting = batch(5);
        let mut memory = held(1);
        let mut delivering = Box::pin(inbox.deliver(&mut waiting, &mut memory));
        assert!((&mut delivering).now_or_never().is_none());
        assert_eq!(inbox.waiting(peer(1)), (3, 3));
        assert!(inbox.try_take(&mut Hand::default()));
        assert_eq!((&mut delivering).now_or_never(), Some(Some(true)));
    }

    #[test]
    fn what_must_not_wait_is_refused_where_there_is_no_memory() {
        let (peer_memory, memory) = (budget::RESERVE + 1_000_000, 10_000_000);
        let config = LinkConfig { peer_memory, memory, ..LinkConfig::default() };
        let budget = Arc::new(Budget::new(&config));
        let (inbox, mut held) = (Inbox::new(1 << 20, 1 << 30), Held::nothing(&budget, peer(1)));
        let offered = (0..100_000).take_while(|_| inbox.offer(Bytes::from_static(&[0; 100]), &mut held)).count();
        assert_eq!(offered, 1_000_000 / budget::cost(100));
        assert!(inbox.try_take(&mut Hand::default()) && inbox.offer(Bytes::new(), &mut held), "it comes back");
    }

    #[tokio::test]
    async fn a_flooding_peer_waits_while_a_quiet_one_gets_its_turn() {
        let inbox = Arc::new(Inbox::new(64, 1 << 20));
        let flood = Arc::clone(&inbox);
        let flooding = tokio::spawn(async move { flood.deliver(&mut batch(1_000), &mut held(1)).await });
        tokio::task::yield_now().await;
        assert_eq!(inbox.deliver(&mut batch(1), &mut held(2)).await, Some(false));
        let mut out = Hand::default();
        inbox.take(&mut out).await.unwrap();
        assert!(out.messages.iter().all(|(from, _)| *from == peer(1)));
        assert_eq!(out.messages.len(), TURN);
        out.messages.clear();
        inbox.take(&mut out).await.unwrap();
        assert_eq!(out.pop().unwrap().0, peer(2));
        let mut rest = 0;
        while rest < 1_000 - TURN {
            inbox.take(&mut out).await.unwrap();
            rest += out.messages.len();
            out.messages.clear();
        }
        assert_eq!(flooding.await.unwrap(), Some(true));
    }

    #[tokio::test]
    async fn a_peer_waits_until_the_program_has_taken_its_last_message_or_is_gone() {
        let inbox = Inbox::new(100, 1 << 20);
        inbox.count();
        assert_eq!(inbox.progress(), (0, vec![]));
        inbox.deliver(&mut batch(2), &mut held(1)).await;
        inbox.deliver(&mut batch(1), &mut held(2)).await;
        assert_eq!(inbox.progress(), (0, vec![peer(1), peer(2)]));
        let mut out = Hand::default();
        assert!(inbox.try_take(&mut out));
        assert_eq!(inbox.progress(), (0, vec![peer(2), peer(1)]), "those in the receiver's hands are not taken yet");
        assert!(out.pop().is_some());
        assert_eq!(inbox.progress(), (1, vec![peer(2), peer(1)]));
        assert!(out.pop().is_some() && out.pop().is_none());
        assert_eq!(inbox.progress(), (2, vec![peer(2)]));
        assert!(inbox.try_take(&mut out));
        assert_eq!(inbox.progress(), (2, vec![peer(2)]));
        inbox.abandon();
        assert_eq!(inbox.progress(), (2, vec![]), "the receiver is gone, with what it had in its hands");
    }

    #[tokio::test]
    async fn memory_comes_back_when_the_program_has_taken_a_turn_or_is_gone() {
        let budget = Arc::new(Budget::new(&LinkConfig::default()));
        let inbox = Inbox::new(100, 1 << 20);
        let mut reader = Held::nothing(&budget, peer(1));
        assert!(reader.try_take(40 * budget::cost(1), false));
        inbox.deliver(&mut batch(40), &mut reader).await;
        drop(reader);
        assert_eq!(budget.status().used, 40 * budget::cost(1));
        let mut out = Hand::default();
        assert!(inbox.try_take(&mut out));
        assert_eq!(budget.status().used, 40 * budget::cost(1), "it is still in our hands");
        while out.pop().is_some() {}
        assert_eq!(budget.status().used, 8 * budget::cost(1));
        inbox.abandon();
        assert_eq!(budget.status().used, 0);
    }

    /// Two readers of one peer's queue, of its last connection and of its present one, that wait for room; what becomes of
    /// them when `happen` has happened.
    async fn two_that_wait(happen: impl FnOnce(&Inbox)) -> [Option<Option<bool>>; 2] {
        let inbox = Inbox::new(2, 1 << 20);
        assert_eq!(inbox.deliver(&mut batch(2), &mut held(1)).await, Some(false));
        let (mut last, mut present) = ((batch(1), held(1)), (batch(1), held(1)));
        let mut old = Box::pin(inbox.deliver(&mut last.0, &mut last.1));
        let mut new = Box::pin(inbox.deliver(&mut present.0, &mut present.1));
        assert!((&mut old).now_or_never().is_none() && (&mut new).now_or_never().is_none());
        happen(&inbox);
        [(&mut old).now_or_never(), (&mut new).now_or_never()]
    }

    #[tokio::test]
    async fn two_readers_of_one_queue_both_go_on_where_there_is_room_for_both() {
        let read = |inbox: &Inbox| assert!(inbox.try_take(&mut Hand::default()));
        assert_eq!(two_that_wait(read).await, [Some(Some(true)); 2]);
    }

    #[tokio::test]
    async fn closing_ends_both_readers_of_one_queue() {
        assert_eq!(two_that_wait(Inbox::close).await, [Some(None); 2]);
    }

    #[tokio::test]
    async fn closing_ends_a_waiting_reader_and_the_receiver() {
        let inbox = Arc::new(Inbox::new(1, 1 << 20));
        let reader = Arc::clone(&inbox);
        let reading = tokio::spawn(async move { reader.deliver(&mut batch(5), &mut held(1)).await });
        tokio::task::yield_now().await;
        inbox.close();
        assert_eq!(reading.await.unwrap(), None);
        let mut out = Hand::default();
        assert!(inbox.take(&mut out).await.is_some());
        assert!(inbox.take(&mut out).await.is_none());
    }
}
