//! The fabric's clock: exact to the nanosecond, although tasks see it move in whole milliseconds.

use std::{ops::Add, time::Duration};

/// A moment, in nanoseconds since the world began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(u64);

impl Time {
    /// When the world began.
    pub(crate) const START: Time = Time(0);

    /// The moment `elapsed` after the world began, at most 584 years.
    pub(crate) fn after_start(elapsed: Duration) -> Self {
        Time(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// How long after the world began this moment lies.
    pub(crate) fn since_start(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// How long after `earlier` this moment lies; zero if it lies before.
    pub(crate) fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whole microseconds since the world began.
    pub(crate) fn micros(self) -> u64 {
        self.0 / 1_000
    }

    /// The millisecond at which tasks can see this moment: tokio's timers round up.
    pub(crate) fn tick(self) -> u64 {
        self.0.div_ceil(1_000_000)
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, rhs: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}
