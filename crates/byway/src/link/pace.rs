//! How fast a link's readers take what comes in: each channel by its own rate, all together by the peer's.
//!
//! A peer may open a channel many times, at once or one after the other: all its readers have the channel's rate together, and each
//! begins behind what was taken before it.
//!
//! A reader that has to wait takes nothing from QUIC, so the stream's window closes and the sender waits: nothing is lost.
//! A datagram cannot wait; one that comes too early is dropped and counted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use byway_proto::{
    Instant,
    hello::MAX_DECLARED,
    schedule::{Bucket, ChannelKey, Class, Rate},
};
use tokio::time;

use crate::net::{mux::Clock, track::Track};

/// Bytes for which a reader waits, and which it takes then: fewer would be a wake-up for each piece of a packet.
pub(crate) const LEAST_READ: u64 = 1_200;

/// How often a reader that is slow for a rate's or its program's sake, or a node that is asked, shows the peer that it reads: QUIC itself says so only after an
/// eighth of a stream's window, and the peer would think that nobody does.
const SIGN_EVERY: Duration = Duration::from_secs(5);

/// Channels whose rates a link remembers: as many as there are at once. Only a program that registers its own protocols anew faster
/// than their bursts come back has more.
const MAX_RATED: usize = MAX_DECLARED;

/// A bucket from which several readers take.
type Common = Arc<Mutex<Bucket>>;

/// What all readers of one link may take together, and all readers of each channel.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    clock: Clock,
    bucket: Option<Common>,
    /// By our number of the protocol and the channel's number, those with a rate of their own.
    channels: Arc<Mutex<BTreeMap<ChannelKey, Common>>>,
}

impl Shared {
    pub(crate) fn new(clock: Clock, rate: Option<Rate>) -> Self {
        Shared { clock, bucket: rate.map(receiving), channels: Arc::default() }
    }

    /// What the readers of a channel with this rate may take together.
    pub(super) fn of_channel(&self, key: ChannelKey, rate: Rate) -> Common {
        let mut channels = lock(&self.channels);
        if channels.len() >= MAX_RATED && !channels.contains_key(&key) {
            let now = self.clock.now();
            channels.retain(|_, bucket| Arc::strong_count(bucket) > 1 || !is_full(&lock(bucket), now));
            if channels.len() >= MAX_RATED {
                channels.pop_first(); // the protocol that was registered first
            }
        }
        Arc::clone(channels.entry(key).or_insert_with(|| receiving(rate)))
    }
}

/// What one reader may take.
///
/// What it took has to be paid before it takes more, with what others took before it, but not with what they took since: so the
/// readers of one peer take turns.
#[derive(Debug)]
pub(crate) struct Pace {
    own: Option<Common>,
    shared: Shared,
    /// It counts for the peer's rate, but does not wait for it.
    is_control: bool,
    until: Instant,
    /// Bytes that it has taken in its present turn.
    turn: usize,
    track: Arc<Track>,
    /// When it was shown last that this side reads.
    signed: time::Instant,
}

impl Pace {
    /// A reader of a channel of this class, which may have a rate of its own.
    pub(super) fn new(class: Class, own: Option<Common>, shared: Shared, track: Arc<Track>) -> Self {
        let (is_control, signed) = (class == Class::Control, time::Instant::now());
        let mut pace = Pace { own, shared, is_control, until: Instant::START, turn: 0, track, signed };
        pace.spend(0); // what was taken before has to be paid by whoever comes next
        pace
    }

    /// Whether any rate holds for it; for most readers none does, and no clock is read for them.
    pub(crate) fn is_limited(&self) -> bool {
        self.own.is_some() || self.shared.bucket.is_some()
    }

    /// The most bytes that the reader may take at once: QUIC hands over what came in one piece, and a rate's readers take turns.
    pub(crate) fn piece(&self) -> usize {
        if self.is_limited() { LEAST_READ as usize - self.turn } else { usize::MAX }
    }

    /// From when on the reader may take something; `None` if it may now.
    pub(crate) fn until(&self) -> Option<time::Instant> {
        let clock = self.shared.clock;
        (self.is_limited() && self.until > clock.now()).then(|| clock.at(self.until))
    }

    /// Waits until the reader may take something.
    pub(crate) async fn wait(&self) {
        while let Some(until) = self.until() {
            time::sleep_until(until).await;
        }
    }

    /// Notes that the reader has taken so many bytes of a stream, for the rates and for the peer to see. It waits once its turn is
    /// over: in whatever pieces the bytes come, a turn is as large as any other reader's.
    pub(crate) fn take(&mut self, bytes: usize) {
        if !self.is_limited() {
            return;
        }
        let paid = self.until;
        self.spend(bytes);
        self.turn += bytes;
        if self.turn < LEAST_READ as usize {
            self.until = paid;
        } else {
            self.turn = 0;
        }
        self.sign();
    }

    /// Shows the peer now and then that this side reads.
    pub(crate) fn sign(&mut self) {
        if self.signed.elapsed() >= SIGN_EVERY {
            self.signed = time::Instant::now();
            self.track.revived.notify_one();
        }
    }

    /// Notes that the reader has taken so many bytes; what was too much is made up for before it takes more.
    pub(crate) fn spend(&mut self, bytes: usize) {
        if !self.is_limited() {
            return;
        }
        let now = self.shared.clock.now();
        let spend = |bucket: &Common| {
            let mut bucket = lock(bucket);
            bucket.spend(bytes as u64, now);
            bucket.ready_at(bucket.least(LEAST_READ), now)
        };
        let shared = self.shared.bucket.as_ref().map(spend).filter(|_| !self.is_control);
        self.until = self.own.as_ref().map(spend).into_iter().chain(shared).fold(now, Instant::max);
    }
}

/// The network may bunch what left evenly: twice the burst keeps it from being too fast for the same rate.
fn receiving(rate: Rate) -> Common {
    Arc::new(Mutex::new(Bucket::new(rate.bytes_per_second, rate.burst.saturating_mul(2), Instant::START)))
}

fn is_full(bucket: &Bucket, now: Instant) -> bool {
    bucket.available(now) >= bucket.least(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_readers_of_a_channel_have_one_rate_which_is_forgotten_no_sooner_than_it_is_full_again() {
        let (shared, rate) = (Shared::new(Clock::start(), None), Rate::new(1_000).burst(1_000));
        let of = |protocol| shared.of_channel(ChannelKey(protocol, 1), rate);
        let [first, second] = [of(1), of(1)];
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &of(2)));
        lock(&first).spend(2_000, shared.clock.now());
        drop((first, second));
        (2..=MAX_RATED as u32).for_each(|protocol| drop(of(protocol)));
        drop(of(u32::MAX));
        assert_eq!(lock(&shared.channels).len(), 2, "the others are as new ones would be");
        assert_eq!(lock(&of(1)).available(shared.clock.now()), 0, "a peer that comes back has to wait");
    }
}
