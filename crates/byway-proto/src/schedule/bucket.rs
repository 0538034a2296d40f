//! The token bucket of every rate limit: bytes, datagrams or requests a second.

use core::time::Duration;

use thiserror::Error;

use crate::time::Instant;

/// The part of a second whose bytes a burst holds at least: timers tick in milliseconds, and what a full bucket gains
/// between two ticks is lost.
pub const LEAST_BURST: u64 = 100;

/// Bytes that may pass at once unless a [`Rate`] says otherwise, if a tenth of a second's worth is less: a few packets.
pub const SMALL_BURST: u64 = 16 << 10;

/// How many bytes may pass a second, and how many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rate {
    /// Bytes a second.
    pub bytes_per_second: u64,
    /// Bytes that may pass at once after a pause. A message that is larger passes too, and what follows waits the longer.
    pub burst: u64,
}

/// Why a rate cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RateError {
    /// Nothing would ever pass.
    #[error("a rate of 0 bytes a second lets nothing pass; leave the rate out, or do not open the channel")]
    Nothing,
    /// The burst is so small that the rate would not be reached.
    #[error("its burst is below a hundredth of its bytes a second, with which timers lose a part of it; raise `burst`")]
    Burst,
}

impl Rate {
    /// A rate whose burst is a tenth of a second's worth, at least [`SMALL_BURST`].
    pub fn new(bytes_per_second: u64) -> Self {
        Rate { bytes_per_second, burst: (bytes_per_second / 10).max(SMALL_BURST) }
    }

    /// Changes the bytes that may pass at once.
    pub fn burst(mut self, bytes: u64) -> Self {
        self.burst = bytes;
        self
    }

    /// Checks what no type can.
    pub fn check(self) -> Result<(), RateError> {
        if self.bytes_per_second == 0 {
            return Err(RateError::Nothing);
        }
        if self.burst == 0 || self.burst < self.bytes_per_second / LEAST_BURST {
            return Err(RateError::Burst);
        }
        Ok(())
    }
}

/// A token bucket; it starts full, and what its tokens stand for is the caller's business.
///
/// It counts in billionths of a token, so that refilling on the packet path needs no division and loses no fraction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    rate: u64,
    burst: u64,
    /// Billionths of a token, never more than `burst` tokens; negative after [`Bucket::spend`] took what was not there.
    level: i128,
    filled: Instant,
}

impl Bucket {
    /// A full bucket that refills at `rate` tokens a second and holds at most `burst` tokens.
    pub fn new(rate: u64, burst: u64, now: Instant) -> Self {
        Bucket { rate, burst, level: billionths(burst), filled: now }
    }

    /// A bucket for a rate that has been full since the node started.
    pub fn of(rate: Rate) -> Self {
        Bucket::new(rate.bytes_per_second, rate.burst, Instant::START)
    }

    /// Tokens gained a second.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// `n` tokens, or the burst if that is less: what is worth waiting for.
    pub fn least(&self, n: u64) -> u64 {
        n.min(self.burst)
    }

    /// Takes `n` tokens if that many are there; otherwise takes none and says `false`.
    pub fn take(&mut self, n: u64, now: Instant) -> bool {
        self.refill(now);
        let enough = self.level >= billionths(n);
        if enough {
            self.level -= billionths(n);
        }
        enough
    }

    /// Takes `n` tokens whether they are there or not; what is missing is paid back before others are there. So what is
    /// larger than the burst passes as well.
    pub fn spend(&mut self, n: u64, now: Instant) {
        self.refill(now);
        self.level = self.level.saturating_sub(billionths(n));
    }

    /// When `n` tokens will be there if none are taken until then; the end of time if they never fit the bucket.
    pub fn ready_at(&self, n: u64, now: Instant) -> Instant {
        let mut then = self.clone();
        then.refill(now);
        let missing = u128::try_from(billionths(n).saturating_sub(then.level)).unwrap_or(0);
        if missing == 0 {
            return now;
        }
        if n > self.burst || self.rate == 0 {
            return Instant::after_start(Duration::MAX);
        }
        // At a slow rate that may be more nanoseconds than a u64 holds.
        let nanos = missing.div_ceil(u128::from(self.rate));
        now + u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
    }

    /// Whole tokens that could be taken now.
    pub fn available(&self, now: Instant) -> u64 {
        let mut then = self.clone();
        then.refill(now);
        u64::try_from(then.level.max(0) / BILLION).unwrap_or(u64::MAX)
    }

    fn refill(&mut self, now: Instant) {
        if now <= self.filled {
            return; // a clock reading taken before the last one must not refill twice
        }
        let gained = now.since(self.filled).as_nanos().saturating_mul(u128::from(self.rate));
        let gained = i128::try_from(gained).unwrap_or(i128::MAX);
        self.level = self.level.saturating_add(gained).min(billionths(self.burst));
        self.filled = now;
    }
}

fn billionths(tokens: u64) -> i128 {
    i128::from(tokens) * BILLION
}

const BILLION: i128 = 1_000_000_000;

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
    fn what_is_larger_than_the_burst_passes_and_is_paid_back() {
        let mut bucket = Bucket::new(1_000, 10, at(0));
        bucket.spend(1_010, at(0));
        assert_eq!(bucket.available(at(999)), 0);
        assert_eq!(bucket.ready_at(1, at(0)), at(1_001));
        assert!(!bucket.take(1, at(1_000)) && bucket.take(1, at(1_001)));
    }

    #[test]
    fn a_rate_that_lets_nothing_pass_or_loses_bytes_is_an_error() {
        assert_eq!(Rate::new(0).check(), Err(RateError::Nothing));
        assert_eq!(Rate::new(1_000_000).burst(9_999).check(), Err(RateError::Burst));
        assert_eq!(Rate::new(50).burst(0).check(), Err(RateError::Burst));
        assert_eq!(Rate::new(1_000_000).burst(10_000).check(), Ok(()));
        assert_eq!([50, 1_000_000].map(|rate| Rate::new(rate).burst), [SMALL_BURST, 100_000]);
        assert_eq!(Rate::new(u64::MAX).check(), Ok(()));
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
            bucket.spend(n, now);
            bucket.spend(u64::MAX, now);
            bucket.available(now);
            bucket.take(n, Instant::after_start(Duration::MAX));
        }
    }
}
