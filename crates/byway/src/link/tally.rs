//! What a channel has carried: counted by the turn and by the batch, never by the message, and without a lock.

use std::{
    array,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::status::Flow;

/// The least time that a rate is taken over: less would show single bursts.
const SPAN: Duration = Duration::from_secs(1);

/// Why a channel did not carry a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The program sent it without waiting, and the queue was full.
    QueueFull,
    /// It is larger than the channel or the path allows.
    TooLarge,
    /// It came as a datagram, and the receiver was behind.
    ReceiverBehind,
    /// It came as a datagram, faster than the channel's or the peer's rate.
    OverRate,
    /// It was a datagram that no longer fit the path's packets when its turn came.
    Outgrown,
}

impl Refused {
    pub(crate) const ALL: [Refused; 5] =
        [Refused::QueueFull, Refused::TooLarge, Refused::ReceiverBehind, Refused::OverRate, Refused::Outgrown];

    /// The reason's name in `status --json`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Refused::QueueFull => "queue_full",
            Refused::TooLarge => "too_large",
            Refused::ReceiverBehind => "receiver_behind",
            Refused::OverRate => "over_rate",
            Refused::Outgrown => "outgrown",
        }
    }
}

/// What a channel, or a protocol's byte streams together, have carried between this node and one peer, or all peers.
#[derive(Debug)]
pub(crate) struct Tally {
    since: Instant,
    sent: Side,
    received: Side,
    refused: [AtomicU64; Refused::ALL.len()],
    /// The same of all peers.
    whole: Option<Arc<Tally>>,
}

impl Tally {
    /// Nothing yet; what will be is added to `whole`, too.
    pub(crate) fn new(whole: Option<Arc<Tally>>) -> Arc<Self> {
        let refused = array::from_fn(|_| AtomicU64::new(0));
        Arc::new(Tally { since: Instant::now(), sent: Side::default(), received: Side::default(), refused, whole })
    }

    /// Notes what the writer has taken.
    pub(crate) fn sent(&self, messages: usize, bytes: usize) {
        self.each(|tally| tally.sent.add(messages, bytes, tally.now()));
    }

    /// Notes what has come in.
    pub(crate) fn received(&self, messages: usize, bytes: usize) {
        self.each(|tally| tally.received.add(messages, bytes, tally.now()));
    }

    /// Notes a message that is not carried.
    pub(crate) fn refused(&self, why: Refused) {
        self.each(|tally| {
            tally.refused[why as usize].fetch_add(1, Relaxed);
        });
    }

    /// Both directions, without what waits.
    pub(crate) fn flows(&self) -> (Flow, Flow) {
        let now = self.now();
        (self.sent.read(now), self.received.read(now))
    }

    /// Messages that were not carried, by reason; reasons without any are left out.
    pub(crate) fn dropped(&self) -> Vec<(&'static str, u64)> {
        let counts = Refused::ALL.map(|why| (why.name(), self.refused[why as usize].load(Relaxed)));
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    fn each(&self, note: impl Fn(&Tally)) {
        note(self);
        self.whole.iter().for_each(|whole| note(whole));
    }

    fn now(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Side {
    messages: AtomicU64,
    bytes: AtomicU64,
    before: Mark,
    latest: Mark,
}

/// What had been carried at a moment, in milliseconds. Two threads that set one at once disagree by a batch.
#[derive(Debug, Default)]
struct Mark {
    at: AtomicU64,
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Side {
    fn add(&self, messages: usize, bytes: usize, now: u64) {
        if now.saturating_sub(self.latest.at.load(Relaxed)) >= SPAN.as_millis() as u64 {
            self.before.set(self.latest.get());
            self.latest.set((now, self.messages.load(Relaxed), self.bytes.load(Relaxed)));
        }
        self.messages.fetch_add(messages as u64, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// The rate is the mean since a mark that is one or two [`SPAN`]s old; nothing has come since a latest mark that is older.
    fn read(&self, now: u64) -> Flow {
        let span = SPAN.as_millis() as u64;
        let (messages, bytes) = (self.messages.load(Relaxed), self.bytes.load(Relaxed));
        let (before, latest) = (self.before.get(), self.latest.get());
        let mut flow = Flow { messages, bytes, ..Flow::default() };
        if now.saturating_sub(latest.0) <= 2 * span {
            let from = if latest.0.saturating_sub(before.0) < 2 * span { before } else { latest };
            let seconds = now.saturating_sub(from.0).max(span) as f64 / 1e3;
            flow.messages_per_second = messages.saturating_sub(from.1) as f64 / seconds;
            flow.bytes_per_second = bytes.saturating_sub(from.2) as f64 / seconds;
        }
        flow
    }
}

impl Mark {
    fn set(&self, (at, messages, bytes): (u64, u64, u64)) {
        self.at.store(at, Relaxed);
        self.messages.store(messages, Relaxed);
        self.bytes.store(bytes, Relaxed);
    }

    fn get(&self) -> (u64, u64, u64) {
        (self.at.load(Relaxed), self.messages.load(Relaxed), self.bytes.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= expected * 0.03, "{found} instead of {expected}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_that_of_the_last_one_to_three_seconds() {
        let tally = Tally::new(None);
        let step = Duration::from_millis(10);
        for _ in 0..500 {
            tally.sent(2, 200);
            tokio::time::advance(step).await;
        }
        near(tally.flows().0.bytes_per_second, 20_000.0);
        for _ in 0..300 {
            tally.sent(20, 2_000);
            tokio::time::advance(step).await;
        }
        near(tally.flows().0.bytes_per_second, 200_000.0);
        near(tally.flows().0.messages_per_second, 2_000.0);
        tokio::time::advance(3 * SPAN).await;
        assert_eq!(tally.flows().0.bytes_per_second, 0.0);
        tokio::time::advance(1_000 * SPAN).await;
        tally.sent(1, 100);
        near(tally.flows().0.bytes_per_second, 100.0); // one burst counts for a second, however long it was quiet before
        assert_eq!((tally.flows().0.messages, tally.flows().0.bytes), (7_001, 700_100));
        assert_eq!(tally.flows().1, Flow::default());
    }

    #[test]
    fn what_a_peer_costs_is_counted_for_all_peers_too() {
        let whole = Tally::new(None);
        let (one, two) = (Tally::new(Some(Arc::clone(&whole))), Tally::new(Some(Arc::clone(&whole))));
        one.received(1, 10);
        two.received(2, 20);
        two.refused(Refused::QueueFull);
        assert_eq!((whole.flows().1.messages, whole.flows().1.bytes), (3, 30));
        assert_eq!(two.dropped(), [("queue_full", 1)]);
        assert_eq!((one.dropped(), whole.dropped()), (vec![], vec![("queue_full", 1)]));
    }
}
