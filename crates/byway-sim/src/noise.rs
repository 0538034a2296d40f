//! The dice of the network: fast, seeded, and not meant to withstand anybody.

use std::time::Duration;

/// A generator of one `u64` of state (SplitMix64); every link direction and every NAT owns one, so that traffic on
/// one link does not change the luck of another.
#[derive(Debug, Clone)]
pub(crate) struct Noise(u64);

impl Noise {
    /// A generator that starts at `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Noise(seed)
    }

    /// A generator of its own for a new part of the network.
    pub(crate) fn split(&mut self) -> Self {
        Noise(self.next())
    }

    /// A number over the whole range.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..bound`, or 0 if `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Whether an event of this probability happens; draws nothing where the answer is certain.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        if probability <= 0.0 {
            return false;
        }
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        unit < probability
    }

    /// How long until the next of events that happen `per_second` times a second on average, whenever they like.
    pub(crate) fn wait(&mut self, per_second: u32) -> Duration {
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        Duration::from_secs_f64(-(1.0 - unit).ln() / f64::from(per_second.max(1)))
    }

    /// A duration in `0..=most`, to the nanosecond.
    pub(crate) fn up_to(&mut self, most: Duration) -> Duration {
        if most.is_zero() {
            return Duration::ZERO;
        }
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(self.below(nanos.saturating_add(1)))
    }
}
