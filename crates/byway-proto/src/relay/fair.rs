//! A rate that several clients share by max-min fairness: whoever wants less than its part gets what it wants, and what it
//! leaves is shared equally by the others.

use alloc::vec::Vec;
use core::time::Duration;

use super::clients::Slot;
use crate::time::Instant;

/// Over how much time shares are reckoned: long enough for some batches of each client, short enough that nobody notices.
const WINDOW: Duration = Duration::from_millis(100);

/// The shares of one rate.
#[derive(Debug)]
pub(super) struct Fair {
    /// Bytes in one window.
    total: u64,
    began: Instant,
    /// What each client may send in this window.
    share: u64,
    /// What each might send in the window before.
    last: u64,
    /// What each client of this window has asked for; bounded by the clients that there are.
    demands: Vec<(Slot, u64)>,
    scratch: Vec<u64>,
}

/// What one client has done in its latest window.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    window: Option<Instant>,
    place: usize,
    bytes: u64,
}

impl Fair {
    /// Shares of `rate` bytes a second.
    pub(super) fn new(rate: u64, now: Instant) -> Self {
        let total = rate / (1_000 / WINDOW.as_millis() as u64);
        Fair { total, began: now, share: total, last: total, demands: Vec::new(), scratch: Vec::new() }
    }

    /// Whether a client may send `len` more bytes: all of a batch while anything of its share is left, for a part cannot be sent; what
    /// that takes too much counts against its next windows, whether it sends in them or not.
    pub(super) fn take(&mut self, client: Slot, spent: &mut Spent, len: u64, now: Instant) -> bool {
        if now.since(self.began) >= WINDOW {
            self.turn(now);
        }
        if spent.window != Some(self.began) {
            let windows = spent.window.map_or(0, |began| self.began.since(began).as_millis() / WINDOW.as_millis());
            let paid = self.last.saturating_mul(u64::try_from(windows).unwrap_or(u64::MAX));
            let owed = spent.bytes.saturating_sub(paid);
            *spent = Spent { window: Some(self.began), place: self.demands.len(), bytes: owed };
            self.demands.push((client, 0));
        }
        if let Some((_, demand)) = self.demands.get_mut(spent.place) {
            *demand = demand.saturating_add(len);
        }
        let fits = spent.bytes < self.share;
        if fits {
            spent.bytes = spent.bytes.saturating_add(len);
        }
        fits
    }

    /// Begins a window; the demands of the last one say how it is shared.
    fn turn(&mut self, now: Instant) {
        let idle = now.since(self.began) >= 2 * WINDOW;
        self.last = self.share;
        self.began = now;
        self.scratch.clear();
        self.scratch.extend(self.demands.iter().map(|(_, demand)| *demand).filter(|_| !idle));
        self.demands.clear();
        self.share = level(self.total, &mut self.scratch);
    }
}

/// The most that each may have of `total`, so that nothing is left while anybody wants more.
fn level(total: u64, demands: &mut [u64]) -> u64 {
    demands.sort_unstable();
    let mut left = total;
    let mut others = demands.len() as u64;
    for demand in demands {
        let level = left / others.max(1);
        if *demand > level {
            return level;
        }
        left -= *demand;
        others -= 1;
    }
    total // all had what they wanted
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_demands_are_met_and_the_others_get_equal_parts() {
        for (total, demands, share) in [
            (90, vec![100, 100, 100], 30),
            (90, vec![10, 100, 100], 40),
            (90, vec![10, 20, 100], 60),
            (90, vec![10, 20, 30], 90),
            (90, vec![], 90),
        ] {
            assert_eq!(level(total, &mut demands.clone()), share, "{demands:?}");
        }
    }

    #[test]
    fn a_greedy_client_takes_nothing_from_a_modest_one() {
        let mut fair = Fair::new(1_000_000, Instant::START);
        let mut spent = [Spent::default(); 3];
        let wanted = [2_000_u64, 20_000, 60_000]; // bytes of 1,000 in each 10 ms
        let mut sent = [0_u64; 3];
        for step in 0..200 {
            let now = Instant::after_start(Duration::from_millis(10 * step));
            for n in 0..3 {
                for _ in 0..wanted[n] / 1_000 {
                    if fair.take(slot(n), &mut spent[n], 1_000, now) && step >= 20 {
                        sent[n] += 1_000;
                    }
                }
            }
        }
        let rates = sent.map(|bytes| bytes * 10 / 18); // over 1.8 s
        assert_eq!(rates[0], 200_000, "a fifth of the rate, all that it wanted");
        assert!(rates[1..].iter().all(|rate| (390_000..=400_000).contains(rate)), "{rates:?}");
    }

    #[test]
    fn a_batch_larger_than_a_share_passes_whole_and_is_paid_for_later() {
        let mut fair = Fair::new(100_000, Instant::START);
        let mut spent = Spent::default();
        let passed = (0..20).filter(|n| {
            let now = Instant::after_start(WINDOW * *n);
            fair.take(slot(0), &mut spent, 40_000, now)
        });
        assert_eq!(passed.count(), 5, "of 10,000 bytes in each window");
    }

    #[test]
    fn whoever_sends_in_every_other_window_takes_no_more_than_its_share() {
        let mut fair = Fair::new(100_000, Instant::START);
        let mut spent = [Spent::default(); 2];
        let passed = (0..40).filter(|n| {
            let now = Instant::after_start(WINDOW * *n);
            let _ = fair.take(slot(1), &mut spent[1], 1, now); // no window is idle
            n % 2 == 0 && fair.take(slot(0), &mut spent[0], 40_000, now)
        });
        assert!(passed.count() <= 11, "of 10,000 bytes in each window");
    }

    #[test]
    fn after_a_pause_nothing_of_what_was_before_counts() {
        let mut fair = Fair::new(100_000, Instant::START);
        let mut spent = Spent::default();
        let mut take = |at| fair.take(slot(0), &mut spent, 40_000, Instant::after_start(at));
        assert!(take(Duration::ZERO) && !take(WINDOW), "four windows' worth is owed");
        assert!(take(WINDOW + Duration::from_secs(1)));
    }

    #[test]
    fn after_a_pause_nobody_shares_with_whoever_wanted_something_before_it() {
        let mut fair = Fair::new(100_000, Instant::START);
        let mut spent = [Spent::default(); 2];
        let mut take = |n, at| fair.take(slot(n), &mut spent[n], 8_000, Instant::after_start(at));
        assert!(take(0, Duration::ZERO) && take(1, Duration::ZERO));
        let later = Duration::from_secs(1);
        assert!(take(0, later) && take(0, later), "all of it, and not the half");
    }

    proptest! {
        #[test]
        fn no_more_than_the_rate_is_given_and_nothing_is_left_while_somebody_wants_it(
            total in 1u64..10_000, demands in prop::collection::vec(0u64..5_000, 1..20),
        ) {
            let share = level(total, &mut demands.clone());
            let given: u64 = demands.iter().map(|demand| (*demand).min(share)).sum();
            prop_assert!(given <= total);
            let unmet = demands.iter().any(|demand| *demand > share);
            prop_assert!(!unmet || given + demands.len() as u64 > total);
        }
    }

    fn slot(n: usize) -> Slot {
        let slots: Vec<Slot> = super::super::clients::slots(3);
        slots[n]
    }
}
