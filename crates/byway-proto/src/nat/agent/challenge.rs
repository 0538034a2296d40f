//! The pings to one address that the peer reported.

use core::{net::SocketAddr, time::Duration};

use super::ChallengeConfig;
use crate::{Instant, Rng};

/// Where one address stands in the schedule.
#[derive(Debug, Clone)]
pub(super) struct Challenge {
    pub(super) to: SocketAddr,
    sent: u32,
    next: Instant,
    interval: Duration,
}

impl Challenge {
    /// A schedule that begins now. Its first interval is up to 50 ms in 200 longer than the configured one.
    pub(super) fn new(to: SocketAddr, config: &ChallengeConfig, rng: &mut Rng, now: Instant) -> Self {
        let jitter = Duration::from_nanos(rng.below(config.interval.as_nanos() as u64 / 4));
        Challenge { to, sent: 0, next: now, interval: config.interval.saturating_add(jitter) }
    }

    /// When the next ping is due; `None` after the last.
    pub(super) fn due(&self, config: &ChallengeConfig) -> Option<Instant> {
        (self.sent <= config.retries).then_some(self.next)
    }

    /// Whether a ping has left.
    pub(super) fn is_begun(&self) -> bool {
        self.sent > 0
    }

    /// No further ping is of use.
    pub(super) fn end(&mut self) {
        self.sent = u32::MAX;
    }

    /// A ping has left.
    pub(super) fn count(&mut self, config: &ChallengeConfig, now: Instant) {
        self.sent = self.sent.saturating_add(1);
        self.next = now + self.interval;
        // `check` keeps it in range; a configuration that nobody checked must not panic here
        let next = self.interval.as_secs_f64() * config.backoff;
        self.interval = Duration::try_from_secs_f64(next).unwrap_or(Duration::MAX);
    }
}
