//! The cycle of probes: a little more than the path delivers for one round trip, a little less for the next, then six as much.

use core::time::Duration;

use super::rtt::FAR;
use crate::Instant;

/// Phases of a cycle, each a round trip long.
const PHASES: u32 = 8;

/// How far a probe goes at most: a quarter more than the path is known to deliver, as BBR's.
const STEP: f64 = 0.25;

/// What is left of the step when a probe overflowed the queue, and the least that remains of it.
const LESS: f64 = 0.6;
const LEAST: f64 = 0.1;

/// What a cycle without overflow adds to it again.
const MORE: f64 = 0.05;

/// The phase after a probe does not shrink below this, or another flow's queue would never be seen to empty.
const LEAST_DRAIN: f64 = 0.3;

/// Where the flow is in its cycle, and how far its probes go.
#[derive(Debug, Clone)]
pub(super) struct Cycle {
    phase: u32,
    began: Instant,
    /// The share of [`STEP`] that probes go: less where the queue is too short for a whole one.
    amplitude: f64,
    /// A probe of this cycle has overflowed the queue.
    overflowed: bool,
    /// The smallest round-trip time of this cycle.
    pub(super) min_rtt: Duration,
    seed: u64,
}

impl Cycle {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        Cycle { phase: 2, began: now, amplitude: 1.0, overflowed: false, min_rtt: FAR, seed }
    }

    /// Begins somewhere between two probes, so that flows which began together do not probe together.
    pub(super) fn restart(&mut self, now: Instant) {
        // Knuth's linear congruential generator: its high bits are good dice.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.phase = 2 + (self.seed >> 33) as u32 % (PHASES - 2);
        self.began = now;
        self.min_rtt = FAR;
    }

    /// What the window is, as a multiple of what the path holds.
    pub(super) fn gain(&self) -> f64 {
        match self.phase {
            0 => 1.0 + STEP * self.amplitude,
            1 => 1.0 - STEP * self.amplitude.max(LEAST_DRAIN),
            _ => 1.0,
        }
    }

    /// Goes on to the next phase when it is time; `full` says that the probe has filled its window or lost something. Returns
    /// the smallest round-trip time of a cycle that has ended.
    pub(super) fn advance(&mut self, full: bool, min_rtt: Duration, now: Instant) -> Option<Duration> {
        let elapsed = now.since(self.began);
        let over = elapsed > min_rtt && (self.phase != 0 || full || elapsed > 2 * min_rtt);
        if !over {
            return None;
        }
        self.phase = (self.phase + 1) % PHASES;
        self.began = now;
        if self.phase != 0 {
            return None;
        }
        if !self.overflowed {
            self.amplitude = (self.amplitude + MORE).min(1.0);
        }
        self.overflowed = false;
        Some(core::mem::replace(&mut self.min_rtt, FAR))
    }

    /// Notes that a round lost far more than usual: just after a probe that was the probe's doing.
    pub(super) fn lost_more(&mut self) {
        if self.phase <= 2 && !self.overflowed {
            self.overflowed = true;
            self.amplitude = (self.amplitude * LESS).max(LEAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    /// One cycle; the gains it had.
    fn cycle(cycle: &mut Cycle, from: Instant) -> (std::vec::Vec<f64>, Instant) {
        let (mut gains, mut now) = (std::vec![cycle.gain()], from);
        loop {
            now += Duration::from_millis(1);
            if cycle.advance(true, RTT, now).is_some() {
                return (gains, now);
            }
            if gains.last() != Some(&cycle.gain()) {
                gains.push(cycle.gain());
            }
        }
    }

    #[test]
    fn a_probe_is_followed_by_as_large_a_drain() {
        let mut probes = Cycle::new(1, Instant::START);
        let (_, now) = cycle(&mut probes, Instant::START);
        assert_eq!(cycle(&mut probes, now).0, [1.25, 0.75, 1.0]);
    }

    #[test]
    fn probes_shrink_where_they_overflow_the_queue_and_grow_again() {
        let mut probes = Cycle::new(1, Instant::START);
        let (_, mut now) = cycle(&mut probes, Instant::START);
        for _ in 0..10 {
            probes.lost_more();
            (_, now) = cycle(&mut probes, now);
        }
        assert!((probes.gain() - 1.0) < 0.05, "{}", probes.gain());
        for _ in 0..20 {
            (_, now) = cycle(&mut probes, now);
        }
        assert_eq!(probes.gain(), 1.25);
    }
}
