//! Acknowledgements that come in bunches: what a bunch brings beyond the path's rate must fit into the window, or the
//! path runs empty while the next one is awaited.

use super::filter::MaxFilter;
use crate::Instant;

/// How far acknowledgements run ahead of the path's rate.
#[derive(Debug, Clone)]
pub(super) struct Aggregation {
    /// When the present bunch began, and what it has brought.
    began: Instant,
    bytes: f64,
    excess: MaxFilter,
}

impl Aggregation {
    pub(super) fn new(now: Instant) -> Self {
        Aggregation { began: now, bytes: 0.0, excess: MaxFilter::default() }
    }

    /// Notes that `bytes` were acknowledged, where the path delivers `bandwidth` bytes per second; more than `most` is not
    /// believed.
    pub(super) fn acked(&mut self, bytes: u64, bandwidth: f64, most: f64, now: Instant) {
        if self.bytes <= bandwidth * now.since(self.began).as_secs_f64() {
            self.began = now;
            self.bytes = 0.0;
        }
        self.bytes += bytes as f64;
        let expected = bandwidth * now.since(self.began).as_secs_f64();
        self.excess.update((self.bytes - expected).clamp(0.0, most.max(0.0)));
    }

    pub(super) fn end_round(&mut self) {
        self.excess.end_round();
    }

    /// Bytes that the largest bunch of the last rounds was ahead.
    pub(super) fn excess(&self) -> f64 {
        self.excess.max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    #[test]
    fn the_excess_is_the_size_of_a_bunch() {
        let mut aggregation = Aggregation::new(Instant::START);
        for bunch in 1..100 {
            // 10,000 bytes at once every 10 ms, at 1 MB/s.
            aggregation.acked(10_000, 1e6, 1e6, Instant::after_start(Duration::from_millis(10 * bunch)));
        }
        assert_eq!(aggregation.excess(), 10_000.0);
    }
}
