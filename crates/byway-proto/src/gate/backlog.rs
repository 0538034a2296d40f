//! How many datagrams wait for a connection that is slow to take them.

use core::time::Duration;

use crate::time::Instant;

/// Datagrams that may wait for one connection: 1.4 MiB, what a 100 Mbit/s line brings in 120 ms.
pub const BACKLOG: u64 = 1_024;

/// How often datagrams that no connection will ever count are written off.
pub const BACKLOG_WINDOW: Duration = Duration::from_secs(1);

/// Delivered minus consumed datagrams of one connection or source, with an upper bound.
///
/// What we deliver and what the connection counts drift apart: QUIC answers some datagrams itself (a stateless reset, a
/// Retry) and counts them nowhere. A connection that runs empties its queue, so the smallest backlog seen in a window
/// in which it ran is drift, and is written off: at most a sixteenth of the limit each window, in case it was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    limit: u64,
    delivered: u64,
    consumed: u64,
    /// Delivered, never to be consumed.
    written_off: u64,
    /// The smallest backlog of this window, once something was consumed in it.
    lowest: Option<u64>,
    window_ends: Instant,
}

impl Backlog {
    /// An empty backlog of at most `limit` datagrams ([`BACKLOG`] unless there is a reason).
    pub fn new(limit: u64, now: Instant) -> Self {
        let window_ends = now + BACKLOG_WINDOW;
        Backlog { limit, delivered: 0, consumed: 0, written_off: 0, lowest: None, window_ends }
    }

    /// Counts one datagram as delivered if there is room; otherwise it is to be dropped and counted by the caller.
    pub fn deliver(&mut self) -> bool {
        let room = self.waiting() < self.limit;
        if room {
            self.delivered = self.delivered.saturating_add(1);
        }
        room
    }

    /// Tells how many datagrams the connection has taken since it was made (`stats().udp_rx.datagrams`).
    pub fn consumed(&mut self, total: u64, now: Instant) {
        let ran = total > self.consumed;
        self.consumed = self.consumed.max(total);
        if now >= self.window_ends {
            let drift = self.lowest.take().unwrap_or(0).min(self.limit / 16);
            self.written_off = self.written_off.saturating_add(drift);
            self.window_ends = now + BACKLOG_WINDOW;
        }
        if ran || self.lowest.is_some() {
            let waiting = self.waiting();
            self.lowest = Some(self.lowest.map_or(waiting, |lowest| lowest.min(waiting)));
        }
    }

    /// Datagrams that wait now, as far as known.
    pub fn waiting(&self) -> u64 {
        self.delivered.saturating_sub(self.consumed).saturating_sub(self.written_off)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::after_start(Duration::from_millis(ms))
    }

    #[test]
    fn a_connection_that_takes_nothing_gets_the_limit_and_no_more() {
        let mut backlog = Backlog::new(100, at(0));
        for ms in 0..10_000 {
            backlog.deliver();
            backlog.consumed(0, at(ms));
        }
        assert_eq!(backlog.waiting(), 100);
        assert!(!backlog.deliver());
    }

    #[test]
    fn consumed_datagrams_make_room() {
        let mut backlog = Backlog::new(2, at(0));
        assert!(backlog.deliver() && backlog.deliver() && !backlog.deliver());
        backlog.consumed(1, at(1));
        assert!(backlog.deliver() && !backlog.deliver());
    }

    #[test]
    fn datagrams_that_nobody_counts_do_not_close_a_running_connection() {
        let mut backlog = Backlog::new(64, at(0));
        let mut consumed = 0;
        for ms in 0..100_000 {
            assert!(backlog.deliver(), "closed after {ms} ms");
            consumed += u64::from(ms % 1_000 != 0); // one a second is a stateless reset for somebody else
            backlog.consumed(consumed, at(ms));
        }
        assert!(backlog.waiting() <= 2);
    }

    #[test]
    fn a_connection_that_counts_more_than_was_delivered_has_no_backlog() {
        let mut backlog = Backlog::new(4, at(0));
        backlog.deliver();
        backlog.consumed(10, at(0));
        assert_eq!(backlog.waiting(), 0);
    }

    proptest! {
        #[test]
        fn the_backlog_never_passes_its_limit(
            limit in 0u64..100, steps in prop::collection::vec((any::<bool>(), any::<u64>(), 0u64..3_000), 0..300),
        ) {
            let mut backlog = Backlog::new(limit, at(0));
            let mut now = at(0);
            for (deliver, total, ms) in steps {
                now += Duration::from_millis(ms);
                if deliver {
                    backlog.deliver();
                } else {
                    backlog.consumed(total, now);
                }
                prop_assert!(backlog.waiting() <= limit);
            }
        }
    }
}
