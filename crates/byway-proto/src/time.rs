//! The clock of the pure machines.

use core::{
    ops::{Add, AddAssign, Sub},
    time::Duration,
};

/// A moment, as the time since the node started; comparable within one node only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// The moment at which the node started.
    pub const START: Instant = Instant(Duration::ZERO);

    /// The moment that lies `elapsed` after the node's start.
    pub const fn after_start(elapsed: Duration) -> Self {
        Instant(elapsed)
    }

    /// How long after the node's start this moment lies.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// How much time lies between `earlier` and this moment; zero if `earlier` is later.
    pub const fn since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(rhs))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_sub(rhs))
    }
}

/// A calendar time in whole seconds since 1970 (UTC), for what outlives the process: bans, and when a peer was seen last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// The end of time: what lasts until it is taken back.
    pub const NEVER: UnixTime = UnixTime(u64::MAX);

    /// How much time lies between `earlier` and this time; zero if the clock was set back meanwhile.
    pub const fn since(self, earlier: UnixTime) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for UnixTime {
    type Output = UnixTime;

    /// Rounds down to whole seconds.
    fn add(self, rhs: Duration) -> UnixTime {
        UnixTime(self.0.saturating_add(rhs.as_secs()))
    }
}
