//! What waits to be sent to one peer: a lane for the control stream, one for each channel and each byte stream.
//!
//! Senders put messages in without waiting; the link's one writer takes them out in the order of the schedule. A lane whose
//! rate is used up is not in the schedule until it has tokens again; while the peer's own rate is used up, only lanes of
//! class control are.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use bytes::Bytes;
use byway_proto::{
    Instant,
    schedule::{Bucket, ChannelKey, Class, Rate, Schedule, Share},
};
use quinn::{SendStream, VarInt};
use tokio::sync::Notify;

use super::{
    queue::{FrameQueue, Queue},
    spool::{Part, Spool},
    tally::Tally,
};
use crate::protocol::STREAM_SHARE;

/// The lane of the control stream.
pub(crate) const CONTROL: ChannelKey = ChannelKey(0, 0);

/// The first number of every byte stream's lane; protocols have smaller numbers.
pub(crate) const STREAMS: u32 = u32::MAX;

/// Lanes of one link: as many streams as QUIC allows each way, and as many channels.
pub(crate) const MAX_LANES: usize = 1_024;

/// Bytes for which a rate is waited: a lane that got each token as it comes would send packets of one byte.
const LEAST_TURN: u64 = 1_200;

/// Everything that waits to be sent to one peer.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Told, while draining, when a lane is done.
    done: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Each by itself in memory: a node of the map has room for eleven.
    lanes: BTreeMap<ChannelKey, Box<Lane>>,
    schedule: Schedule,
    /// Lanes that wait for their rate, and until when.
    paused: BTreeSet<(Instant, ChannelKey)>,
    /// What the peer may be sent in all.
    peer: Option<Bucket>,
    /// What may wait for all peers.
    spool: Option<Arc<Spool>>,
    writer: Option<Waker>,
    closed: bool,
    /// Nothing more goes in.
    draining: bool,
    next_stream: u32,
}

/// What waits for one stream, or for one channel of datagrams.
#[derive(Debug)]
struct Lane {
    queue: Queue,
    end: Option<End>,
    stream: Option<Outlet>,
    class: Class,
    rate: Option<Bucket>,
    /// Until when it waits for its rate.
    paused: Option<Instant>,
    /// In the schedule's ring already, waiting for its rate, or in the writer's hands.
    busy: bool,
    space: Arc<Notify>,
    /// What it takes of the node's memory; the control stream's lane, which has a bound of its own, takes none.
    part: Option<Part>,
    /// A message was refused for the node's memory, though the lane has room.
    refused: bool,
    /// Counts what leaves; the control stream's lane has none.
    tally: Option<Arc<Tally>>,
}

/// What a lane begins with.
pub(crate) struct NewLane {
    pub(crate) share: Share,
    pub(crate) rate: Option<Rate>,
    pub(crate) queue: Queue,
    pub(crate) outlet: Outlet,
    pub(crate) tally: Option<Arc<Tally>>,
}

/// Where a lane's bytes go.
#[derive(Debug)]
pub(crate) enum Outlet {
    /// A stream that is open.
    Open(SendStream),
    /// A stream of one direction, which the writer opens when there is something to send; it begins with these bytes.
    Uni(Bytes),
    /// Datagrams, of which those are counted that do not fit.
    Datagrams(Arc<Tally>),
}

/// How a lane ends once its queue is empty, or at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The other side reads an end of stream.
    Finish,
    /// The other side reads an error with this code; what is queued is dropped.
    Reset(VarInt),
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    Queued,
    Full,
    /// It fits no packet of the connection; so many bytes do.
    TooLarge(usize),
    Closed,
}

/// What the writer is to do.
#[derive(Debug)]
pub(crate) enum Next {
    Turn(Turn),
    /// Nothing may be sent now; at this moment something may that waits for a rate.
    Wait(Option<Instant>),
}

/// A turn of one lane, as the writer takes it.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) key: ChannelKey,
    pub(crate) class: Class,
    pub(crate) stream: Option<Outlet>,
    pub(crate) end: Option<End>,
    /// Nothing is left in the lane.
    pub(crate) emptied: bool,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Outbox { state: Mutex::default(), done: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Limits what the peer is sent in all, for which control messages do not wait, but count; and what may wait for all peers.
    pub(crate) fn limit(&self, rate: Option<Rate>, spool: &Arc<Spool>) {
        let mut state = self.lock();
        (state.peer, state.spool) = (rate.map(Bucket::of), Some(Arc::clone(spool)));
    }

    /// Adds a lane unless it is there, for two senders may open it at once; `false` if it has been ended, or the link is closed or
    /// has [`MAX_LANES`].
    pub(crate) fn open(&self, key: ChannelKey, new: NewLane) -> bool {
        let NewLane { share, rate, queue, outlet, tally } = new;
        let mut state = self.lock();
        if state.closed || state.draining {
            return false;
        }
        if let Some(lane) = state.lanes.get(&key) {
            return lane.end.is_none();
        }
        if state.lanes.len() >= MAX_LANES || state.schedule.add(key, share).is_err() {
            return false;
        }
        let lane = Lane {
            queue,
            end: None,
            stream: Some(outlet),
            class: share.class,
            rate: rate.map(Bucket::of),
            paused: None,
            busy: false,
            space: Arc::new(Notify::new()),
            part: state.spool.as_ref().map(Part::new),
            refused: false,
            tally,
        };
        let begun = !lane.queue.is_empty();
        state.lanes.insert(key, Box::new(lane));
        if begun {
            state.ready(key); // a stream's header must not wait for its first byte
        }
        true
    }

    /// Adds a lane for a byte stream; `None` as with [`Outbox::open`].
    pub(crate) fn open_stream(&self, queue: FrameQueue, stream: SendStream, tally: Arc<Tally>) -> Option<ChannelKey> {
        let key = {
            let mut state = self.lock();
            state.next_stream = state.next_stream.wrapping_add(1);
            ChannelKey(STREAMS, state.next_stream)
        };
        let (queue, outlet) = (queue.into(), Outlet::Open(stream));
        self.open(key, NewLane { share: STREAM_SHARE, rate: None, queue, outlet, tally: Some(tally) }).then_some(key)
    }

    /// Queues a message with its length in front.
    pub(crate) fn push(&self, key: ChannelKey, message: &Bytes) -> Pushed {
        self.put(key, |queue| queue.push(message))
    }

    /// Queues bytes as they are.
    pub(crate) fn push_raw(&self, key: ChannelKey, bytes: &Bytes) -> Pushed {
        self.put(key, |queue| queue.push_raw(bytes))
    }

    fn put(&self, key: ChannelKey, push: impl FnOnce(&mut Queue) -> bool) -> Pushed {
        let mut state = self.lock();
        let is_draining = state.draining;
        let lane = state.lanes.get_mut(&key).filter(|lane| lane.end.is_none() && !is_draining);
        let Some(lane) = lane else { return Pushed::Closed };
        let waiting = lane.queue.len();
        if lane.part.as_ref().is_some_and(|part| !part.may_grow(waiting)) {
            lane.refused = true;
            return Pushed::Full;
        }
        if !push(&mut lane.queue) {
            return Pushed::Full;
        }
        if let Some(part) = &mut lane.part {
            part.fit(lane.queue.len());
        }
        if !lane.busy {
            state.ready(key);
        }
        Pushed::Queued
    }

    /// Ends a lane. A reset overtakes what is queued, an end of stream follows it.
    pub(crate) fn end(&self, key: ChannelKey, end: End) {
        let mut state = self.lock();
        let Some(lane) = state.lanes.get_mut(&key) else { return };
        if lane.end.is_none() || matches!(end, End::Reset(_)) {
            lane.end = Some(end);
            lane.space.notify_waiters();
            state.ready(key);
            if matches!(end, End::Reset(_)) {
                state.resume(key); // nothing is left that a rate could hold back
            }
            // A reset must reach a lane that is blocked in the writer's hands, too.
            if let Some(writer) = state.writer.take() {
                writer.wake();
            }
        }
    }

    /// Lets nothing more in, and ends each channel behind what is queued on it. Byte streams are their users' to end.
    pub(crate) fn drain(&self) {
        let channels: Vec<_> = {
            let mut state = self.lock();
            state.draining = true;
            state.lanes.iter().filter(|(key, _)| **key != CONTROL && key.0 != STREAMS).map(|(key, _)| *key).collect()
        };
        channels.into_iter().for_each(|key| self.end(key, End::Finish));
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.lock().draining
    }

    /// Waits, while draining, until QUIC has taken all that was queued.
    pub(crate) async fn drained(&self) {
        loop {
            let done = self.done.notified();
            if self.lock().lanes.values().all(|lane| !lane.busy && lane.queue.is_empty()) {
                return;
            }
            done.await;
        }
    }

    /// How a lane is to end, if it is to.
    pub(crate) fn end_of(&self, key: ChannelKey) -> Option<End> {
        self.lock().lanes.get(&key).and_then(|lane| lane.end)
    }

    /// What is told when the lane has room again, or is gone.
    pub(crate) fn space(&self, key: ChannelKey) -> Option<Arc<Notify>> {
        self.lock().lanes.get(&key).map(|lane| Arc::clone(&lane.space))
    }

    /// Messages and bytes that wait in a lane.
    pub(crate) fn waiting_in(&self, key: ChannelKey) -> (usize, usize) {
        self.lock().lanes.get(&key).map_or((0, 0), |lane| lane.queue.waiting())
    }

    /// Messages and bytes that wait in all the lanes that a tally counts.
    pub(crate) fn waiting(&self, of: &Arc<Tally>) -> (usize, usize) {
        let state = self.lock();
        let lanes = state.lanes.values().filter(|lane| lane.tally.as_ref().is_some_and(|tally| Arc::ptr_eq(tally, of)));
        let waits = lanes.map(|lane| lane.queue.waiting());
        waits.fold((0, 0), |sum, waits| (sum.0 + waits.0, sum.1 + waits.1))
    }

    /// Closes the box: nothing more goes in, and the writer ends.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for lane in std::mem::take(&mut state.lanes).into_values() {
            lane.space.notify_waiters();
        }
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
        self.done.notify_waiters();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The next lane's turn: about `quantum` bytes of it are moved to `out`, which is empty. Without one, `waker` is woken
    /// when a lane gets ready; for a rate the writer has to wait by itself.
    pub(crate) fn next(&self, now: Instant, out: &mut VecDeque<Bytes>, waker: &Waker) -> Next {
        let mut state = self.lock();
        let state = &mut *state;
        while state.paused.first().is_some_and(|(at, _)| *at <= now) {
            let due = state.paused.pop_first();
            due.into_iter().for_each(|(_, key)| state.resume(key));
        }
        let Some((key, quantum)) = state.eligible(now) else {
            if state.writer.as_ref().is_none_or(|known| !known.will_wake(waker)) {
                state.writer = Some(waker.clone());
            }
            return Next::Wait(state.resumes_at(now));
        };
        let Some(lane) = state.lanes.get_mut(&key) else { return Next::Wait(None) };
        if let Some(End::Reset(_)) = lane.end {
            lane.queue.take(usize::MAX, &mut VecDeque::new());
        }
        let had_room = lane.queue.has_room();
        let waited = lane.queue.waiting();
        lane.queue.take(quantum, out);
        if let Some(tally) = &lane.tally {
            let waits = lane.queue.waiting();
            let messages = if key.0 == STREAMS { 0 } else { waited.0 - waits.0 };
            tally.sent(messages, waited.1 - waits.1);
        }
        if let Some(part) = &mut lane.part {
            part.fit(lane.queue.len());
        }
        if std::mem::take(&mut lane.refused) || !had_room && lane.queue.has_room() {
            lane.space.notify_waiters();
        }
        let end = lane.end.filter(|_| lane.queue.is_empty());
        let emptied = lane.queue.is_empty();
        let turn = Turn { key, class: lane.class, stream: lane.stream.take(), end, emptied };
        let bytes: usize = out.iter().map(Bytes::len).sum();
        for bucket in lane.rate.iter_mut().chain(&mut state.peer) {
            bucket.spend(bytes as u64, now);
        }
        // The lane is in the writer's hands until all of it is sent. It has paid with this round's share, even if the others
        // have had their next turn by then.
        state.schedule.spent(key, bytes, false);
        Next::Turn(turn)
    }

    /// Ends a lane's turn; the lane waits for its next one if it has more.
    pub(crate) fn done(&self, key: ChannelKey) {
        let mut state = self.lock();
        let Some(lane) = state.lanes.get_mut(&key) else { return };
        let more = !lane.queue.is_empty() || lane.end.is_some();
        lane.busy = more;
        state.schedule.spent(key, 0, more);
        if state.draining {
            self.done.notify_waiters();
        }
    }

    /// Removes a lane whose stream has ended.
    pub(crate) fn remove(&self, key: ChannelKey) {
        let mut state = self.lock();
        state.schedule.remove(key);
        if let Some(lane) = state.lanes.remove(&key) {
            lane.paused.map(|at| state.paused.remove(&(at, key)));
            lane.space.notify_waiters();
        }
        if state.draining {
            self.done.notify_waiters();
        }
    }
}

impl State {
    fn ready(&mut self, key: ChannelKey) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if std::mem::replace(&mut lane.busy, true) {
            return;
        }
        self.schedule.ready(key);
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// The lane whose turn it is, and how many bytes it may send; lanes that wait for their rate are put aside.
    fn eligible(&mut self, now: Instant) -> Option<(ChannelKey, usize)> {
        let open = self.peer.as_ref().map_or(u64::MAX, |bucket| bucket.available(now));
        let is_open = self.peer.as_ref().is_none_or(|bucket| open >= bucket.least(LEAST_TURN));
        loop {
            let next = if is_open { self.schedule.next() } else { self.schedule.next_of(Class::Control) };
            let (key, quantum) = next?;
            let lane = self.lanes.get_mut(&key)?;
            let open = if lane.class == Class::Control { u64::MAX } else { open };
            let Some(bucket) = lane.rate.as_ref().filter(|_| !matches!(lane.end, Some(End::Reset(_)))) else {
                return Some((key, quantum.min(usize::try_from(open).unwrap_or(usize::MAX))));
            };
            let (least, own) = (bucket.least(LEAST_TURN.min(lane.queue.len() as u64)), bucket.available(now));
            if own >= least {
                return Some((key, quantum.min(usize::try_from(open.min(own)).unwrap_or(usize::MAX))));
            }
            let at = bucket.ready_at(least, now);
            lane.paused = Some(at);
            self.paused.insert((at, key));
            self.schedule.spent(key, 0, false);
        }
    }

    /// When something may be sent that waits for a rate.
    fn resumes_at(&mut self, now: Instant) -> Option<Instant> {
        let lane = self.paused.first().map(|(at, _)| *at);
        let waits = self.peer.is_some() && self.schedule.next().is_some();
        let peer = self.peer.as_ref().filter(|_| waits).map(|bucket| bucket.ready_at(bucket.least(LEAST_TURN), now));
        lane.into_iter().chain(peer).min()
    }

    /// Lets a lane that waits for its rate back into the schedule.
    fn resume(&mut self, key: ChannelKey) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if let Some(at) = lane.paused.take() {
            self.paused.remove(&(at, key));
            self.schedule.ready(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        task::Wake,
    };

    use super::*;

    #[test]
    fn a_reset_does_not_wait_for_a_rate() {
        let (outbox, key, mut out) = (Outbox::new(), ChannelKey(1, 1), VecDeque::new());
        let share = Share { class: Class::Bulk, weight: 1 };
        let queue = FrameQueue::new(100, 1 << 20).into();
        let rate = Some(Rate::new(1_000).burst(1_000));
        assert!(outbox.open(key, NewLane { share, rate, queue, outlet: Outlet::Uni(Bytes::new()), tally: None }));
        for _ in 0..2 {
            assert_eq!(outbox.push(key, &Bytes::from(vec![0; 998])), Pushed::Queued);
        }
        let mut next = || outbox.next(Instant::START, &mut out, Waker::noop());
        assert!(matches!(next(), Next::Turn(Turn { end: None, emptied: false, .. })));
        outbox.done(key);
        assert!(matches!(next(), Next::Wait(Some(_))), "the rate is used up");
        let end = End::Reset(VarInt::from_u32(1));
        outbox.end(key, end);
        assert!(matches!(next(), Next::Turn(Turn { end: Some(found), emptied: true, .. }) if found == end));
    }

    /// An outbox with a lane for a channel.
    fn outbox(spool: &Arc<Spool>) -> (Outbox, ChannelKey) {
        let (outbox, key) = (Outbox::new(), ChannelKey(1, 1));
        outbox.limit(None, spool);
        let (share, queue) = (Share { class: Class::Bulk, weight: 16 }, FrameQueue::new(10_000, 10 << 20).into());
        assert!(outbox.open(key, NewLane { share, rate: None, queue, outlet: Outlet::Uni(Bytes::new()), tally: None }));
        (outbox, key)
    }

    #[test]
    fn a_lane_that_two_senders_open_at_once_keeps_what_the_first_one_queued() {
        let (outbox, key) = outbox(&Spool::new(1 << 20));
        let open = || {
            let (share, queue) = (Share { class: Class::Bulk, weight: 1 }, FrameQueue::new(100, 1 << 20).into());
            outbox.open(key, NewLane { share, rate: None, queue, outlet: Outlet::Uni(Bytes::new()), tally: None })
        };
        assert_eq!(outbox.push(key, &Bytes::from_static(b"first")), Pushed::Queued);
        assert!(open(), "the other one may go on");
        assert_eq!(outbox.push(key, &Bytes::from_static(b"second")), Pushed::Queued);
        assert_eq!(outbox.waiting_in(key).0, 2);
        outbox.end(key, End::Finish);
        assert!(!open() && outbox.push(key, &Bytes::from_static(b"late")) == Pushed::Closed);
        assert_eq!(outbox.waiting_in(key).0, 2, "both are still to be sent");
    }

    /// How many messages of 4 KiB find room.
    fn fill((outbox, key): &(Outbox, ChannelKey)) -> usize {
        let message = Bytes::from(vec![0; 4 << 10]);
        (0..10_000).take_while(|_| outbox.push(*key, &message) == Pushed::Queued).count()
    }

    #[tokio::test]
    async fn what_waits_for_all_peers_is_bounded_and_a_lane_that_has_little_takes_more() {
        let spool = Spool::new(1 << 20);
        let [a, b] = [outbox(&spool), outbox(&spool)];
        assert!((250..=256).contains(&fill(&a)), "1 MiB, to the piece");
        assert_eq!(fill(&b), 16, "64 KiB whatever the others have");
        assert!(spool.used() <= (1 << 20) + (64 << 10) + 2 * (16 << 10));
        let space = b.0.space(b.1).unwrap();
        let told = space.notified();
        let mut out = VecDeque::new();
        assert!(matches!(b.0.next(Instant::START, &mut out, Waker::noop()), Next::Turn(_)));
        told.await; // who was refused is told, though the queue itself was never full
        assert!(fill(&b) > 0, "its own place is free again");
        a.0.close();
        assert!(fill(&b) > 200, "so is all that the other one had");
        b.0.close();
        assert_eq!(spool.used(), 0);
    }

    /// How often a task was woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn the_writer_is_woken_only_by_what_gets_ready_and_misses_nothing() {
        let (outbox, key) = outbox(&Spool::new(1 << 20));
        let [old, new] = [(); 2].map(|()| Arc::new(Wakes::default()));
        let wakes = || [&old, &new].map(|it| it.0.load(Relaxed));
        let mut out = VecDeque::new();
        let mut has_turn = |of: &Arc<Wakes>| {
            out.clear();
            matches!(outbox.next(Instant::START, &mut out, &Waker::from(Arc::clone(of))), Next::Turn(_))
        };
        let push = || assert_eq!(outbox.push(key, &Bytes::from_static(b"message")), Pushed::Queued);
        assert!(!has_turn(&old) && !has_turn(&new), "nothing waits");
        push();
        push();
        assert_eq!(wakes(), [0, 1], "once, and who waited last");
        assert!(has_turn(&new) && !has_turn(&new), "all is in the writer's hands");
        push();
        assert_eq!(wakes(), [0, 1], "the lane's turn has not ended");
        outbox.done(key);
        assert!(has_turn(&new), "what came meanwhile is not missed");
    }
}
