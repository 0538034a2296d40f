//! How fast the path delivers: samples of the delivery rate (draft-ietf-ccwg-bbr, "Delivery Rate Samples").

use alloc::collections::VecDeque;
use core::time::Duration;

use crate::Instant;

/// Sends that are told apart within one smallest round-trip time: packets that leave closer together share a record.
const RECORDS_PER_RTT: u32 = 64;

/// Records that are kept: four round trips of them.
const MAX_RECORDS: usize = 4 * RECORDS_PER_RTT as usize;

/// What had been delivered when packets were sent.
#[derive(Debug, Clone, Copy)]
struct Record {
    sent: Instant,
    /// Bytes delivered by then, and when the last of them were.
    delivered: u64,
    delivered_at: Instant,
    /// When the packet that was acknowledged last by then had been sent.
    first_sent: Instant,
}

/// A measurement that one acknowledged packet made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RateSample {
    /// Bytes delivered since the packet was sent.
    pub(super) delivered: u64,
    /// The time over which they were sent and acknowledged, whichever took longer: neither a burst of sends nor one of
    /// acknowledgements looks like a fast path.
    pub(super) interval: Duration,
    /// Bytes delivered when the packet was sent.
    pub(super) prior: u64,
}

/// Bytes delivered, and what was on the way when.
#[derive(Debug, Clone)]
pub(super) struct DeliveryRate {
    pub(super) delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    records: VecDeque<Record>,
}

impl DeliveryRate {
    pub(super) fn new(now: Instant) -> Self {
        DeliveryRate { delivered: 0, delivered_at: now, first_sent: now, records: VecDeque::new() }
    }

    /// Notes that packets are sent; `idle` if none was on the way, `min_rtt` tells how close sends may share a record.
    pub(super) fn sent(&mut self, idle: bool, min_rtt: Duration, now: Instant) {
        if idle {
            self.first_sent = now;
            self.delivered_at = now;
        }
        if self.records.back().is_some_and(|last| now.since(last.sent) < min_rtt / RECORDS_PER_RTT || now == last.sent)
        {
            return;
        }
        if self.records.len() == MAX_RECORDS {
            self.records.pop_front();
        }
        let (delivered, delivered_at, first_sent) = (self.delivered, self.delivered_at, self.first_sent);
        self.records.push_back(Record { sent: now, delivered, delivered_at, first_sent });
    }

    /// Notes that `bytes` sent at `sent` have arrived; `None` if it is forgotten when they were sent.
    pub(super) fn acked(&mut self, bytes: u64, sent: Instant, now: Instant) -> Option<RateSample> {
        self.delivered += bytes;
        self.delivered_at = now;
        let after = self.records.partition_point(|record| record.sent <= sent);
        let record = *self.records.get(after.checked_sub(1)?)?;
        self.first_sent = sent;
        let interval = sent.since(record.first_sent).max(now.since(record.delivered_at));
        Some(RateSample { delivered: self.delivered - record.delivered, interval, prior: record.delivered })
    }

    /// Forgets what was sent so far, and gives its memory back.
    pub(super) fn forget(&mut self) {
        self.records = VecDeque::new();
    }

    /// Begins anew after a break.
    pub(super) fn restart(&mut self, now: Instant) {
        self.delivered_at = now;
        self.first_sent = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::after_start(Duration::from_millis(ms))
    }

    const RTT: Duration = Duration::from_millis(50);

    #[test]
    fn a_steady_flow_gives_its_rate_however_acknowledgements_are_bunched() {
        let mut rate = DeliveryRate::new(at(0));
        // 1,000 bytes a millisecond; acknowledgements come after 50 ms, ten at once.
        let mut samples = std::vec::Vec::new();
        for ms in 0..500 {
            rate.sent(ms == 0, RTT, at(ms));
            if ms >= 60 && ms % 10 == 0 {
                samples.extend((ms - 60..ms - 50).filter_map(|sent| rate.acked(1_000, at(sent), at(ms))));
            }
        }
        let best = samples.iter().filter(|sample| sample.interval >= RTT);
        let best = best.map(|sample| sample.delivered as f64 / sample.interval.as_secs_f64()).fold(0.0, f64::max);
        assert!((0.9e6..1.25e6).contains(&best), "{best} bytes/s");
    }

    #[test]
    fn records_are_bounded_and_what_is_older_gives_no_sample() {
        let mut rate = DeliveryRate::new(at(0));
        (0..10_000).for_each(|ms| rate.sent(false, RTT, at(ms)));
        assert_eq!(rate.records.len(), MAX_RECORDS);
        assert_eq!(rate.acked(1_000, at(5), at(10_000)), None);
        assert!(rate.acked(1_000, at(9_990), at(10_000)).is_some());
    }
}
