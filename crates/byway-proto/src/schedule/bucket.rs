//! The token bucket of every rate limit: bytes, datagrams or requests a second.

use core::time::Duration;

use crate::time::Instant;

/// A token bucket; it starts full, and what its tokens stand for is the caller's business.
///
/// It counts in billionths of a token, so that refilling on the packet path needs no division and loses no fraction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    rate: u64,
    burst: u64,
    /// Billionths of a token, never more than `burst` tokens.
    level: u128,
    filled: Instant,
}

impl Bucket {
    /// A full bucket that refills at `rate` tokens a second and holds at most `burst` tokens.
    pub fn new(rate: u64, burst: u64, now: Instant) -> Self {
        Bucket { rate, burst, level: billionths(burst), filled: now }
    }

    /// Tokens gained a second.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Takes `n` tokens if that many are there; otherwise takes none and says `false`.
    pub fn take(&mut self, n: u64, now: Instant) -> bool {
        self.refill(now);
        match self.level.checked_sub(billionths(n)) {
            Some(left) => {
                self.level = left;
                true
            }
            None => false,
        }
    }

    /// When `n` tokens will be there if none are taken until then; the end of time if they never fit the bucket.
    pub fn ready_at(&self, n: u64, now: Instant) -> Instant {
        let mut then = self.clone();
        then.refill(now);
        let missing = billionths(n).saturating_sub(then.level);
        if missing == 0 {
            return now;
        }
        if n > self.burst || self.rate == 0 {
            return Instant::after_start(Duration::MAX);
        }
        // `missing` is at most 2^64 tokens in billionths; at a slow rate that is more nanoseconds than a u64 holds.
        let nanos = missing.div_ceil(u128::from(self.rate));
        now + u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
    }

    /// Whole tokens that could be taken now.
    pub fn available(&self, now: Instant) -> u64 {
        let mut then = self.clone();
        then.refill(now);
        u64::try_from(then.level / BILLION).unwrap_or(u64::MAX)
    }

    fn refill(&mut self, now: Instant) {
        if now <= self.filled {
            return; // a clock reading taken before the last one must not refill twice
        }
        let gained = now.since(self.filled).as_nanos().saturating_mul(u128::from(self.rate));
        self.level = self.level.saturating_add(gained).min(billionths(self.burst));
        self.filled = now;
    }
}

fn billionths(tokens: u64) -> u128 {
    u128::from(tokens) * BILLION
}

const BILLION: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::after_start(Duration::from_millis(ms))
    }

    #[test]
    fn a_fresh_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(10, 5, at(0));
        assert_eq!((0..10).filter(|_| bucket.take(1, at(0))).count(), 5);
        assert!(!bucket.take(1, at(99)));
        assert!(bucket.take(1, at(100)));
        assert!(!bucket.take(1, at(100)));
    }

    #[test]
    fn a_refused_take_costs_nothing() {
        let mut bucket = Bucket::new(1, 10, at(0));
        assert!(!bucket.take(11, at(0)));
        assert!(bucket.take(10, at(0)));
    }

    #[test]
    fn an_earlier_clock_reading_refills_nothing() {
        let mut bucket = Bucket::new(1_000, 10, at(50));
        assert!(bucket.take(10, at(50)));
        assert!(!bucket.take(1, at(0)));
        assert!(!bucket.take(1, at(50)));
    }

    #[test]
    fn what_never_fits_is_never_ready() {
        let never = Instant::after_start(Duration::MAX);
        assert_eq!(Bucket::new(1, 10, at(0)).ready_at(11, at(0)), never);
        let mut dry = Bucket::new(0, 1, at(0));
        assert!(dry.take(1, at(0)));
        assert_eq!(dry.ready_at(1, at(0)), never);
    }

    proptest! {
        #[test]
        fn tokens_are_there_when_ready_at_says_and_not_before(
            rate in 1u64..1 << 40, burst in 1u64..1 << 40, first in 0u64..1 << 40, then in 1u64..1 << 40,
        ) {
            let mut bucket = Bucket::new(rate, burst, at(0));
            bucket.take(first, at(0));
            let then = 1 + then % burst;
            let ready = bucket.ready_at(then, at(0));
            prop_assert!(bucket.clone().take(then, ready));
            if ready > at(0) {
                prop_assert!(!bucket.take(then, ready - Duration::from_nanos(1)));
            }
        }

        #[test]
        fn no_input_panics(rate: u64, burst: u64, n: u64, ns: u64) {
            let now = Instant::after_start(Duration::from_nanos(ns));
            let mut bucket = Bucket::new(rate, burst, Instant::START);
            bucket.take(n, now);
            bucket.ready_at(n, now);
            bucket.take(n, Instant::after_start(Duration::MAX));
        }
    }
}
