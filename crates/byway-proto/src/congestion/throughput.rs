//! What a flow delivers over seconds, and whether the path or the application held it to that.
//!
//! The model's own rate is a maximum over ten round trips and outlives the flow's pauses: right for a window, useless for a
//! comparison of paths. This one is a mean over a span, and says whether there was more to send all the while.

use core::time::Duration;

use super::Ack;
use crate::Instant;

/// The least length of a span: the bunches of radio links and the 200 ms in which the flow makes room even out …
const SPAN: Duration = Duration::from_secs(1);

/// … and the least in round trips, of which a start takes about as many.
const SPAN_RTTS: u32 = 4;

/// Spans whose best counts: one of them may be the start, another a lossy second.
const SPANS: usize = 3;

/// A span in which more than this fraction of the bytes was all that there was to send measures the application.
const APP_LIMITED: u64 = 10;

/// What the path delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Bytes per second: while the path is the limit the best of the last three spans, otherwise those of the last one.
    pub rate: u64,
    /// For how long without a break there was more to send than the path took.
    pub limited_for: Duration,
}

/// Measures the deliveries of one flow on one path.
#[derive(Debug, Clone, Default)]
pub struct Throughput {
    span: Option<Span>,
    /// When the first of the spans began in which the path was the limit.
    limited_since: Option<Instant>,
    latest: [u64; SPANS],
}

#[derive(Debug, Clone, Copy)]
struct Span {
    since: Instant,
    bytes: u64,
    /// Those of them after which nothing was left to send.
    app_limited: u64,
}

impl Throughput {
    /// Takes in an acknowledged packet; what was delivered, if a span ends with it.
    pub fn acked(&mut self, ack: &Ack, now: Instant) -> Option<Delivery> {
        let length = SPAN.max(ack.smoothed_rtt * SPAN_RTTS);
        let fresh = Span { since: now, bytes: 0, app_limited: 0 };
        let span = self.span.get_or_insert(fresh);
        let lasted = now.since(span.since);
        if lasted >= length * 2 {
            *self = Throughput { span: Some(fresh), ..Throughput::default() }; // nothing came for a while: a pause or an outage
            return None;
        }
        span.bytes += ack.bytes;
        span.app_limited += if ack.app_limited { ack.bytes } else { 0 };
        if lasted < length {
            return None;
        }
        let Span { since, bytes, app_limited } = core::mem::replace(span, fresh);
        let rate = (bytes as f64 / lasted.as_secs_f64()) as u64;
        if app_limited * APP_LIMITED > bytes {
            (self.limited_since, self.latest) = (None, [0; SPANS]);
            return Some(Delivery { rate, limited_for: Duration::ZERO });
        }
        self.latest.rotate_right(1);
        self.latest[0] = rate;
        let limited_since = *self.limited_since.get_or_insert(since);
        let best = self.latest.iter().copied().max().unwrap_or(rate);
        Some(Delivery { rate: best, limited_for: now.since(limited_since) })
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    fn at(ms: u64) -> Instant {
        Instant::after_start(Duration::from_millis(ms))
    }

    /// One packet of 1,000 bytes each `every` milliseconds from `from` to `to`; those for which `app_limited` says so were the last.
    fn flow(
        throughput: &mut Throughput,
        from: u64,
        to: u64,
        every: usize,
        app_limited: fn(u64) -> bool,
    ) -> Vec<Delivery> {
        let ack = |ms| Ack { sent: at(ms) - RTT, bytes: 1_000, app_limited: app_limited(ms), smoothed_rtt: RTT };
        (from..to).step_by(every).filter_map(|ms| throughput.acked(&ack(ms), at(ms))).collect()
    }

    #[test]
    fn a_full_path_tells_its_rate_and_for_how_long_it_was_full() {
        let deliveries = flow(&mut Throughput::default(), 1_000, 6_000, 10, |_| false);
        assert_eq!(deliveries.len(), 4);
        for (delivery, seconds) in deliveries.iter().zip(1..) {
            assert!((99_000..=101_000).contains(&delivery.rate), "{delivery:?}");
            assert!(delivery.limited_for.as_secs() == seconds, "{delivery:?}");
        }
    }

    #[test]
    fn an_application_that_runs_out_of_data_is_not_held_up_by_its_path() {
        let mut throughput = Throughput::default();
        let deliveries = flow(&mut throughput, 1_000, 6_000, 10, |ms| ms % 50 == 0);
        assert!(deliveries.len() == 4 && deliveries.iter().all(|delivery| delivery.limited_for.is_zero()));
        flow(&mut throughput, 6_000, 9_500, 10, |_| false);
        let last = flow(&mut throughput, 9_500, 10_500, 10, |ms| ms % 50 == 0);
        assert_eq!(last[0].limited_for, Duration::ZERO, "one such span breaks the row");
    }

    #[test]
    fn a_slow_second_is_forgiven_and_a_slow_path_is_not() {
        let mut throughput = Throughput::default();
        flow(&mut throughput, 1_000, 4_000, 10, |_| false);
        let slow = flow(&mut throughput, 4_000, 8_500, 100, |_| false);
        assert!(slow[1].rate > 90_000 && slow.last().unwrap().rate < 12_000, "{slow:?}");
    }

    #[test]
    fn a_pause_ends_the_row_and_measures_nothing() {
        let mut throughput = Throughput::default();
        flow(&mut throughput, 1_000, 4_500, 10, |_| false);
        let after = flow(&mut throughput, 9_000, 10_500, 10, |_| false);
        assert_eq!(after.len(), 1);
        assert!(after[0].rate > 90_000 && after[0].limited_for < Duration::from_millis(1_100), "{after:?}");
    }
}
