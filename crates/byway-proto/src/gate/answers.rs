//! Answers to strangers that cost no handshake, shared among those who ask.

use super::{Source, source::Sources};
use crate::{schedule::Bucket, time::Instant};

/// Answers a second to packets of unknown connections (stateless resets, RFC 9000 §10.3), and how many at once: each is
/// shorter than its question, and a restarted relay owes one to every client.
pub const STRAY_RATE: (u64, u64) = (1_000, 1_000);

/// The share of one source, so that 31 are needed to keep the answers from all others.
pub const STRAY_RATE_PER_SOURCE: (u64, u64) = (32, 64);

/// STUN questions that a relay answers per second, and at once: a hundred clients may come in one moment, with some two dozen
/// each. An answer has at most 24 bytes more than its question.
pub const STUN_RATE: (u64, u64) = (5_000, 2_500);

/// The share of one source, so that five are needed to keep the answers from all others: fifty clients behind one NAT.
pub const STUN_RATE_PER_SOURCE: (u64, u64) = (1_000, 1_250);

/// Decides which questions of one kind are answered.
#[derive(Debug)]
pub(super) struct Answers {
    sources: Sources,
    per_source: (u64, u64),
    all: Bucket,
}

impl Answers {
    pub(super) fn new(seed: [u8; 32], (rate, burst): (u64, u64), per_source: (u64, u64)) -> Self {
        Answers { sources: Sources::new(seed), per_source, all: Bucket::new(rate, burst, Instant::START) }
    }

    pub(super) fn take(&mut self, source: Source, now: Instant) -> bool {
        let (rate, burst) = self.per_source;
        self.sources.bucket(source, now, || Bucket::new(rate, burst, now)).take(1, now) && self.all.take(1, now)
    }
}

#[cfg(test)]
mod tests {
    use core::{net::Ipv4Addr, time::Duration};

    use super::*;

    fn v4(n: u32) -> Source {
        Source::of((Ipv4Addr::from_bits(n), 1).into())
    }

    fn strays() -> Answers {
        Answers::new([1; 32], STRAY_RATE, STRAY_RATE_PER_SOURCE)
    }

    #[test]
    fn one_source_does_not_use_up_the_answers_to_the_others() {
        let mut strays = strays();
        let mut now = Instant::START;
        for _ in 0..20_000 {
            now += Duration::from_micros(500);
            strays.take(v4(1), now);
        }
        assert!((2..34).all(|n| strays.take(v4(n), now)), "32 clients of a restarted relay");
    }

    #[test]
    fn all_sources_together_get_a_thousand_answers_a_second() {
        let mut strays = strays();
        let at_once = (0..5_000).filter(|n| strays.take(v4(*n), Instant::START)).count();
        assert_eq!(at_once as u64, STRAY_RATE.1);
        let later = Instant::START + Duration::from_secs(1);
        assert_eq!((0..5_000).filter(|n| strays.take(v4(*n), later)).count() as u64, STRAY_RATE.0);
    }
}
