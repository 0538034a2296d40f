//! What copies may cost: doubts are false more often than not, and an application pays for its own bytes only.

use core::time::Duration;

use crate::Instant;

/// One byte of copies is earned by this many that are sent: a hundredth at most goes into false doubts for good.
const SHARE: u64 = 100;

/// The most that is copied ahead of what was earned, and that is saved up: the 1,100 full datagrams that a failover at
/// 20 Mbit/s may take.
const FAILOVER: u64 = 1_100 * 1_452;

/// How long a connection's bytes count as what it is sending now; up to twice this, for they are counted in steps.
const NOW: Duration = Duration::from_secs(1);

/// What may be copied ahead in any case: the last two datagrams of a connection that says little.
const LEAST: u64 = 300;

/// For how long after a handshake copies are not counted: they find the route that it was heard on, and are no doubt's.
const OPENING: Duration = Duration::from_secs(1);

/// Bytes that a connection may still copy to further routes: a bucket that fills with a share of what is sent. A doubt may
/// overdraw it by what the connection has sent in the last second, and a debt is earned back before anything else; so a
/// death under load is copied whole, and all copies of a connection stay below a hundredth of what it sends, one second's
/// bytes and two small datagrams.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Bytes in hand, times [`SHARE`]; negative while copies are ahead.
    level: i64,
    counted: Instant,
    /// Bytes sent since `counted`, and in the [`NOW`] before.
    sent: [u64; 2],
    opening: Instant,
}

impl Budget {
    /// The budget of a connection whose handshake is done at `now`.
    pub fn new(now: Instant) -> Self {
        Budget { level: 0, counted: now, sent: [0; 2], opening: now + OPENING }
    }

    /// Notes that `bytes` are sent for the first time.
    pub fn earn(&mut self, bytes: usize, now: Instant) {
        self.roll(now);
        let bytes = bytes as u64;
        let [latest, _] = &mut self.sent;
        *latest = latest.saturating_add(bytes);
        self.level = self.level.saturating_add_unsigned(bytes).min(units(FAILOVER));
    }

    /// Takes what a copy of `bytes` costs; `false` if that is too much.
    pub fn copy(&mut self, bytes: usize, now: Instant) -> bool {
        if now < self.opening {
            return true;
        }
        self.roll(now);
        let credit = self.sent.iter().sum::<u64>().clamp(LEAST, FAILOVER);
        let left = self.level.saturating_sub(units(bytes as u64));
        let granted = left >= -units(credit);
        if granted {
            self.level = left;
        }
        granted
    }

    fn roll(&mut self, now: Instant) {
        let elapsed = now.since(self.counted);
        if elapsed >= NOW {
            let [latest, _] = self.sent;
            self.sent = [0, if elapsed < 2 * NOW { latest } else { 0 }];
            self.counted = now;
        }
    }
}

fn units(bytes: u64) -> i64 {
    i64::try_from(bytes.saturating_mul(SHARE)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: usize = 1_452;

    fn at(ms: u64) -> Instant {
        Instant::after_start(Duration::from_millis(ms))
    }

    /// Copies that are granted, of `wanted` full datagrams at `ms`.
    fn copies(budget: &mut Budget, wanted: usize, ms: u64) -> usize {
        (0..wanted).filter(|_| budget.copy(FULL, at(ms))).count()
    }

    /// A connection that sends a full datagram at 20 Mbit/s for so many seconds.
    fn loaded(seconds: u64) -> Budget {
        let mut budget = Budget::new(at(0));
        (0..seconds * 1_700).for_each(|n| budget.earn(FULL, at(n * 10 / 17)));
        budget
    }

    #[test]
    fn a_failover_under_load_is_copied_whole_and_a_second_one_soon_after_in_part() {
        let mut budget = loaded(5);
        assert_eq!(copies(&mut budget, 1_100, 5_000), 1_100);
        let soon = copies(&mut budget, 1_100, 5_100);
        assert!((1..200).contains(&soon), "{soon}");
        assert_eq!(copies(&mut budget, 10, 5_100), 0, "nothing is left");
    }

    #[test]
    fn copies_of_a_connection_that_says_little_stay_below_two_hundredths() {
        let mut budget = Budget::new(at(0));
        let (mut sent, mut copied) = (0, 0);
        for n in 0..600_000 / 250 {
            let now = at(2_000 + n * 250);
            budget.earn(120, now);
            sent += 120;
            // as much as there is of it, as if every datagram were doubted
            copied += (0..40).filter(|_| budget.copy(120, now)).count() * 120;
        }
        assert!(copied * 50 < sent, "{copied} of {sent}");
        assert!(copied * 200 > sent, "but copies are made");
    }

    #[test]
    fn what_is_saved_up_is_bounded_and_a_quiet_connection_has_next_to_no_credit() {
        let mut budget = loaded(3_600);
        assert_eq!(copies(&mut budget, 5_000, 3_700_000), 1_100);
        assert_eq!(copies(&mut Budget::new(at(0)), 5, 10_000), 0);
        let mut budget = Budget::new(at(0));
        assert!(budget.copy(LEAST as usize, at(10_000)));
        assert!(!budget.copy(1, at(10_000)));
    }

    #[test]
    fn the_end_of_a_handshake_costs_nothing() {
        let mut budget = Budget::new(at(0));
        assert_eq!(copies(&mut budget, 100, 999), 100);
        assert_eq!(copies(&mut budget, 100, 1_000), 0);
    }
}
