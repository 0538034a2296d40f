//! The round-trip time of the empty path.

use core::time::Duration;

use crate::Instant;

/// How long a smallest round-trip time is believed in: as long as BBR does, for routes change without telling.
const LIFE: Duration = Duration::from_secs(10);

/// A round-trip time this much above the smallest confirms it: what clocks and timers blur (and 1 % of it).
const BLUR: Duration = Duration::from_micros(200);

/// Stands for the smallest of none.
pub(super) const FAR: Duration = Duration::from_secs(3_600);

/// The smallest round-trip time, until it is too old, and how much the others differ.
#[derive(Debug, Clone)]
pub(super) struct Rtt {
    min: Duration,
    confirmed: Instant,
    pub(super) smoothed: Duration,
    /// Until a round has shown the smallest one anew: the old one may be of a time when acknowledgements came another way.
    anew: bool,
    /// The mean distance between samples and the smoothed round-trip time.
    deviation: Duration,
}

impl Rtt {
    pub(super) fn new(now: Instant) -> Self {
        Rtt { min: FAR, confirmed: now, smoothed: Duration::from_millis(100), anew: false, deviation: Duration::ZERO }
    }

    pub(super) fn update(&mut self, sample: Duration, smoothed: Duration, now: Instant) {
        self.smoothed = smoothed;
        self.deviation = (self.deviation * 15 + sample.abs_diff(smoothed)) / 16;
        if sample < self.min + BLUR.max(self.min / 100) {
            self.min = self.min.min(sample);
            self.confirmed = now;
        }
    }

    /// The smallest round-trip time, once there is one.
    pub(super) fn min(&self) -> Option<Duration> {
        (self.min < FAR).then_some(self.min)
    }

    /// Whether nothing near the smallest was seen for so long that the path may have become longer.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        now.since(self.confirmed) > LIFE
    }

    /// Believes in the smallest again, for nothing could confirm it while packets went another way; and only for a round.
    pub(super) fn trust(&mut self, now: Instant) {
        self.confirmed = now;
        self.anew = true;
    }

    /// Takes in the smallest round-trip time of a round.
    pub(super) fn end_round(&mut self, min: Duration) {
        if core::mem::take(&mut self.anew) {
            self.replace(min);
        }
    }

    fn replace(&mut self, min: Duration) {
        if min < FAR {
            self.min = min;
        }
    }

    /// Believes in what was measured with an empty queue, or in the old one where nothing was.
    pub(super) fn renew(&mut self, min: Duration, now: Instant) {
        self.replace(min);
        self.confirmed = now;
    }

    /// Whether a smallest round-trip time of a whole round says that the queue no longer empties: a start goes on until
    /// then. Jitter must not look like a queue.
    pub(super) fn is_queueing(&self, sample: Duration) -> bool {
        sample > self.min + self.min / 4 + Duration::from_millis(2) + 3 * self.deviation
    }

    /// Whether a smallest round-trip time of many rounds lies above what an empty queue and jitter explain.
    pub(super) fn is_crowded(&self, sample: Duration) -> bool {
        let slack = (self.min / 10).max(Duration::from_millis(3)).max(self.deviation.min(self.min / 4));
        sample < FAR && sample > self.min + slack
    }

    /// Whether a round-trip time shows a queue at all.
    pub(super) fn is_raised(&self, sample: Duration) -> bool {
        sample < FAR && sample > self.min + self.min / 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::after_start(Duration::from_millis(ms))
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_smallest_round_trip_time_lives_while_it_is_confirmed() {
        let mut rtt = Rtt::new(at(0));
        rtt.update(ms(50), ms(50), at(0));
        rtt.update(Duration::from_micros(50_400), ms(50), at(9_000));
        assert!(!rtt.is_stale(at(15_000)));
        rtt.update(ms(80), ms(60), at(18_000));
        assert!(rtt.is_stale(at(19_001)));
        rtt.renew(ms(70), at(19_100));
        assert_eq!((rtt.min(), rtt.is_stale(at(19_200))), (Some(ms(70)), false));
    }

    #[test]
    fn jitter_is_no_queue() {
        let mut rtt = Rtt::new(at(0));
        (0..1_000).for_each(|n| rtt.update(ms(50 + n * 7 % 10), ms(55), at(n)));
        assert!(!rtt.is_queueing(ms(62)));
        assert!(rtt.is_queueing(ms(80)));
    }
}
