//! How fast a link's readers take what comes in: each channel by its own rate, all together by the peer's.
//!
//! A reader that has to wait takes nothing from QUIC, so the stream's window closes and the sender waits: nothing is lost.
//! A datagram cannot wait; one that comes too early is dropped and counted.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use byway_proto::{
    Instant,
    schedule::{Bucket, Class, Rate},
};
use tokio::time;

use crate::net::{mux::Clock, track::Track};

/// Bytes for which a reader waits, and which it takes then: fewer would be a wake-up for each piece of a packet.
pub(crate) const LEAST_READ: u64 = 1_200;

/// How often a reader that is slow for a rate's or its program's sake shows the peer that it reads: QUIC itself says so only after an
/// eighth of a stream's window, and the peer would think that nobody does.
const SIGN_EVERY: Duration = Duration::from_secs(5);

/// What all readers of one link may take together.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    clock: Clock,
    bucket: Option<Arc<Mutex<Bucket>>>,
}

impl Shared {
    pub(crate) fn new(clock: Clock, rate: Option<Rate>) -> Self {
        Shared { clock, bucket: rate.map(|rate| Arc::new(Mutex::new(receiving(rate)))) }
    }

    fn lock(&self) -> Option<MutexGuard<'_, Bucket>> {
        self.bucket.as_ref().map(|bucket| bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What one reader may take.
///
/// What it took has to be paid before it takes more, with what others took before it, but not with what they took since: so the
/// readers of one peer take turns.
#[derive(Debug)]
pub(crate) struct Pace {
    own: Option<Bucket>,
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
    /// A reader of a channel of this class with this rate of its own.
    pub(crate) fn new(class: Class, own: Option<Rate>, shared: Shared, track: Arc<Track>) -> Self {
        let (is_control, signed) = (class == Class::Control, time::Instant::now());
        Pace { own: own.map(receiving), shared, is_control, until: Instant::START, turn: 0, track, signed }
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
        let spend = |bucket: &mut Bucket| {
            bucket.spend(bytes as u64, now);
            bucket.ready_at(bucket.least(LEAST_READ), now)
        };
        let shared = self.shared.lock().map(|mut bucket| spend(&mut bucket)).filter(|_| !self.is_control);
        self.until = self.own.as_mut().map(spend).into_iter().chain(shared).fold(now, Instant::max);
    }
}

/// The network may bunch what left evenly: twice the burst keeps it from being too fast for the same rate.
fn receiving(rate: Rate) -> Bucket {
    Bucket::new(rate.bytes_per_second, rate.burst.saturating_mul(2), Instant::START)
}
