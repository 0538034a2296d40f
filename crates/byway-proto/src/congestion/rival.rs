//! Beside flows that fill the queue until it overflows (CUBIC, Reno), who keeps to what the path holds gets nothing.

use core::time::Duration;

use crate::Instant;

/// Cycles in a row in which the queue never emptied, until somebody else may be filling it: the flow's own drains empty
/// what it put there, unless the path has become slower.
const CROWDED_CYCLES: u32 = 2;

/// What is left of the window after a round with loss, as CUBIC's (RFC 9438 §4.6).
const DECREASE: f64 = 0.7;

/// What a round without loss adds: one packet, and on long lines a hundredth of the window, for one packet would take
/// minutes there.
const INCREASE: f64 = 0.01;

/// How long a rival is remembered after it left room: CUBIC empties the queue for a moment after each loss, and to make
/// room for another look each time would leave the line to it.
const MEMORY: Duration = Duration::from_secs(10);

/// Whether another flow keeps the queue full, and the window that holds its own beside it: additive increase,
/// multiplicative decrease.
#[derive(Debug, Clone, Default)]
pub(super) struct Rival {
    crowded: u32,
    window: Option<f64>,
    /// When it was there last.
    seen: Option<Instant>,
}

impl Rival {
    /// The window that the rival leaves, while there is one.
    pub(super) fn window(&self) -> Option<f64> {
        self.window
    }

    /// Whether somebody else may be filling the queue, or did so a moment ago.
    pub(super) fn is_near(&self, now: Instant) -> bool {
        self.crowded >= CROWDED_CYCLES || self.seen.is_some_and(|seen| now.since(seen) <= MEMORY)
    }

    /// Judges a cycle, at whose end `window` was in force; `true` if there may be a rival that is not known yet.
    pub(super) fn end_cycle(&mut self, crowded: bool, window: u64, now: Instant) -> bool {
        if !crowded {
            *self = Rival { seen: self.seen, ..Rival::default() };
            return false;
        }
        self.crowded = self.crowded.saturating_add(1);
        if self.window.is_some() {
            self.seen = Some(now);
        } else if self.crowded >= CROWDED_CYCLES {
            if self.seen.is_none_or(|seen| now.since(seen) > MEMORY) {
                return true;
            }
            self.begin(window, now);
        }
        false
    }

    /// There is a rival: the flow has made room, and the queue did not empty. `window` was in force before.
    pub(super) fn begin(&mut self, window: u64, now: Instant) {
        self.window = Some(window as f64);
        self.seen = Some(now);
    }

    /// Adapts the rival's window after a round at whose end `window` was in force.
    pub(super) fn end_round(&mut self, lost: bool, window: u64, mtu: u64) {
        if let Some(own) = &mut self.window {
            *own = if lost { *own * DECREASE } else { own.min(window as f64) + (*own * INCREASE).max(mtu as f64) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_queue_that_stands_for_two_cycles_may_be_a_rivals() {
        let mut rival = Rival::default();
        let at = |ms| Instant::after_start(Duration::from_millis(ms));
        for _ in 0..5 {
            assert!(!rival.end_cycle(true, 100_000, at(0)));
            assert!(!rival.end_cycle(false, 100_000, at(0)));
        }
        assert!(!rival.end_cycle(true, 100_000, at(400)));
        assert!(rival.end_cycle(true, 100_000, at(800)));
        rival.begin(100_000, at(1_000));
        assert_eq!((rival.end_cycle(true, 1, at(1_200)), rival.window()), (false, Some(100_000.0)));
        rival.end_cycle(false, 1, at(1_600));
        assert_eq!(rival.window(), None);
        // It is known, and needs no second look, for ten seconds.
        assert!(!rival.end_cycle(true, 1, at(2_000)) && !rival.end_cycle(true, 70_000, at(2_400)));
        assert_eq!(rival.window(), Some(70_000.0));
        rival.end_cycle(false, 1, at(2_800));
        assert!(!rival.end_cycle(true, 1, at(13_000)) && rival.end_cycle(true, 1, at(13_400)));
    }

    #[test]
    fn the_share_grows_by_a_packet_or_a_hundredth_and_shrinks_with_loss() {
        let mut rival = Rival { crowded: 2, window: Some(100_000.0), seen: None };
        rival.end_round(false, u64::MAX, 1_443);
        assert_eq!(rival.window(), Some(101_443.0));
        rival.end_round(true, u64::MAX, 1_443);
        assert_eq!(rival.window(), Some(101_443.0 * DECREASE));
        let mut long = Rival { crowded: 2, window: Some(10_000_000.0), seen: None };
        long.end_round(false, u64::MAX, 1_443);
        assert_eq!(long.window(), Some(10_100_000.0));
    }
}
