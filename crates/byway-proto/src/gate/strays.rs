//! Answers to packets of connections that this node does not know.

use super::{Source, source::Sources};
use crate::{schedule::Bucket, time::Instant};

/// Answers a second to packets of unknown connections (stateless resets, RFC 9000 §10.3), and how many at once: each is
/// shorter than its question, and a restarted relay owes one to every client.
pub const STRAY_RATE: (u64, u64) = (1_000, 1_000);

/// The share of one source, so that 31 are needed to keep the answers from all others.
pub const STRAY_RATE_PER_SOURCE: (u64, u64) = (32, 64);

/// Decides which packets of unknown connections are answered.
#[derive(Debug)]
pub(super) struct Strays {
    sources: Sources,
    all: Bucket,
}

impl Strays {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Strays { sources: Sources::new(seed), all: Bucket::new(STRAY_RATE.0, STRAY_RATE.1, Instant::START) }
    }

    pub(super) fn take(&mut self, source: Source, now: Instant) -> bool {
        let (rate, burst) = STRAY_RATE_PER_SOURCE;
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

    #[test]
    fn one_source_does_not_use_up_the_answers_to_the_others() {
        let mut strays = Strays::new([1; 32]);
        let mut now = Instant::START;
        for _ in 0..20_000 {
            now += Duration::from_micros(500);
            strays.take(v4(1), now);
        }
        assert!((2..34).all(|n| strays.take(v4(n), now)), "32 clients of a restarted relay");
    }

    #[test]
    fn all_sources_together_get_a_thousand_answers_a_second() {
        let mut strays = Strays::new([1; 32]);
        let at_once = (0..5_000).filter(|n| strays.take(v4(*n), Instant::START)).count();
        assert_eq!(at_once as u64, STRAY_RATE.1);
        let later = Instant::START + Duration::from_secs(1);
        assert_eq!((0..5_000).filter(|n| strays.take(v4(*n), later)).count() as u64, STRAY_RATE.0);
    }
}
