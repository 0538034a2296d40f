//! Congestion control: how many bytes of a connection may be on their way.
//!
//! QUIC's usual controllers take a lost packet for a full queue. On a path that loses packets for other reasons they starve
//! (CUBIC keeps 3 of 100 Mbit/s at 1 % loss), and where queues are long they fill them. [`Model`] measures instead what BBR
//! measures (draft-ietf-ccwg-bbr): the rate at which the path delivers, and its round-trip time while its queue is empty.
//! Their product is what the path holds, and the window is that, with a little more for acknowledgements that come in
//! bunches. Unlike BBR it governs by the window alone, for QUIC below it paces by the window; so it never sends much more
//! than the path holds, and a full queue in front of it is somebody else's.
//!
//! The flow *starts* by more than doubling each round trip, until the rate no longer grows or a queue stands; *drains* that
//! queue; and then *cruises*: once in eight round trips it probes for a quarter more, and gives as much back in the next.
//! Where a probe overflows the queue the following ones are smaller. When the smallest round-trip time has not been seen
//! for ten seconds the window is halved for 200 ms, to see it again. Where the queue never empties although the flow
//! drains its own share, somebody fills it by the old rules, and the flow claims its share by those. More than a tenth lost
//! while a queue stands is congestion whatever the model says.
//!
//! What each constant is for stands beside it; what they come to together, `docs/congestion.md` tells with figures.

mod aggregation;
mod cycle;
mod filter;
mod rate;
mod rival;
mod rtt;
#[cfg(test)]
mod tests;
mod throughput;

use core::time::Duration;

use self::{
    aggregation::Aggregation,
    cycle::Cycle,
    filter::MaxFilter,
    rate::DeliveryRate,
    rival::Rival,
    rtt::{FAR, Rtt},
};
use crate::Instant;
pub use throughput::{Delivery, Throughput};

/// The first window in packets: what QUIC's largest deployments begin with, three times RFC 9002's; it is paced.
const INITIAL_PACKETS: u64 = 32;

/// The smallest window in packets: with fewer, one loss would wait for a timeout.
const MIN_PACKETS: u64 = 4;

/// What the window is beyond what the path holds, in packets: without an acknowledgement that comes late it runs empty.
const SLACK_PACKETS: u64 = 3;

/// The most of what the path holds that the window makes up for acknowledgements that come in bunches where a queue stands, unless
/// it may be somebody else's: where both directions are full the bunches are the queue's doing, and more of it makes them larger.
const MAX_EXCESS: f64 = 0.125;

/// Rounds that a queue which stood is remembered, a cycle of probes: it empties for one of them, and the larger window of the next
/// would fill it again.
const QUEUE_ROUNDS: u32 = 8;

/// The window while the flow still grows, as a multiple of what the path is known to hold: more than double each round
/// trip, for samples lag behind.
const STARTUP_GAIN: f64 = 2.5;

/// A start goes on while the rate grows by a quarter within [`STALLED_ROUNDS`].
const GROWTH: f64 = 1.25;
const STALLED_ROUNDS: u32 = 3;

/// Rounds of a start before the delay may end it, and samples that such a round needs: the first few tell nothing.
const DELAY_ROUNDS: u32 = 4;
const DELAY_SAMPLES: u32 = 16;

/// More loss than this together with a queue ends the start of a flow that does not use its whole window: 16 MiB of flow
/// control overflow a line of 12 MB for good otherwise.
const SOME_LOSS: f64 = 0.01;

/// The window that lets the queue of the start empty.
const DRAIN_GAIN: f64 = 0.75;

/// The window while the round-trip time of the empty path is measured, and for how long.
const PROBE_RTT_GAIN: f64 = 0.5;
const PROBE_RTT: Duration = Duration::from_millis(100);

/// A rate below this share of the known one is believed at once where the flow's own queue stands; what lies closer to it
/// is chance, or another flow's doing, and the filter forgets in time.
const SLOWER: f64 = 0.7;

/// More loss than this in a round with a queue is congestion whatever the model says; the window shrinks then to this
/// share, and grows by that each round again.
const HEAVY_LOSS: f64 = 0.10;
const CURB: f64 = 0.7;
const UNCURB: f64 = 1.15;

/// The largest window in bytes.
const MAX_WINDOW: f64 = (64_u64 << 20) as f64;

/// The shortest round trip that the window is made for: on a LAN timers and schedulers are slower than the path.
const MIN_RTT: Duration = Duration::from_millis(1);

/// The most that the window makes up for lost packets, which fill it until they are known to be lost.
const MAX_LOSS: f64 = 0.33;

/// What may be unacknowledged as a multiple of the window: half a window waits for its turn. Where packets get lost, what
/// has arrived behind a hole counts until the hole is filled, and that takes two round trips, or three where the
/// retransmission is lost too: with 1.5 a line with 3 % loss stood at 59 Mbit/s, with 4 at 89.
const SEND_WINDOW: f64 = 1.5;
const SEND_WINDOW_LOSSY: f64 = 4.0;

/// An acknowledged packet.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    /// When it was sent.
    pub sent: Instant,
    /// Its length in bytes.
    pub bytes: u64,
    /// Nothing was there to send, rather than no room in the window.
    pub app_limited: bool,
    /// The smoothed round-trip time of the connection.
    pub smoothed_rtt: Duration,
}

/// A model of one path.
#[derive(Debug, Clone)]
pub struct Model {
    mtu: u64,
    mode: Mode,
    window: u64,
    in_flight: u64,
    rate: DeliveryRate,
    rtt: Rtt,
    /// Bytes per second that the path delivers.
    bandwidth: MaxFilter,
    aggregation: Aggregation,
    /// How many of the rounds for which a queue is remembered are left since one did not empty.
    queued: u32,
    /// Bytes acknowledged since [`Model::end_acks`].
    newly_acked: u64,
    round: Round,
    cycle: Cycle,
    rival: Rival,
    /// The share of bytes that gets lost, smoothed.
    loss: f64,
    /// What heavy loss left of the window.
    limit: f64,
}

/// What the flow is about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// It looks for the path's rate, so far at least `rate`, which has not grown for `stalled` rounds.
    Startup { rate: f64, stalled: u32, rounds: u32 },
    /// It lets the queue of the start empty.
    Drain,
    /// It keeps the path full and looks now and then whether there is more.
    Cruise,
    /// It makes room until `until`, to see the round-trip time of the empty path.
    ProbeRtt { until: Instant, why: Why, before: Before },
}

/// Why the flow makes room.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Why {
    /// The smallest round-trip time is too old.
    Stale,
    /// The queue never empties: either the path has become slower, or somebody else fills it.
    Crowded,
}

/// How things stood when the flow made room.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Before {
    started: bool,
    window: u64,
    /// The rate that was delivered last.
    rate: f64,
}

/// What happened within one round trip.
#[derive(Debug, Clone, Default)]
struct Round {
    /// It ends with the acknowledgement of a packet sent when so much had been delivered.
    end: u64,
    sent: u64,
    lost: u64,
    acks: u32,
    min_rtt: Option<Duration>,
    max_rtt: Duration,
}

impl Mode {
    const START: Mode = Mode::Startup { rate: 0.0, stalled: 0, rounds: 0 };
}

impl Round {
    fn loss(&self) -> f64 {
        self.lost as f64 / self.sent.max(1) as f64
    }

    fn min_rtt(&self) -> Duration {
        self.min_rtt.unwrap_or(FAR)
    }
}

impl Model {
    /// A model of a path of which nothing is known. The seed decides when it probes.
    pub fn new(mtu: u16, seed: u64, now: Instant) -> Self {
        let mtu = u64::from(mtu);
        Model {
            mtu,
            mode: Mode::START,
            window: INITIAL_PACKETS * mtu,
            in_flight: 0,
            rate: DeliveryRate::new(now),
            rtt: Rtt::new(now),
            bandwidth: MaxFilter::default(),
            aggregation: Aggregation::new(now),
            queued: 0,
            newly_acked: 0,
            round: Round::default(),
            cycle: Cycle::new(seed, now),
            rival: Rival::default(),
            loss: 0.0,
            limit: MAX_WINDOW,
        }
    }

    /// Bytes that may be on their way.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// Bytes that an application may hand over before they are acknowledged, so that the window is always full and little
    /// waits behind it.
    pub fn send_window(&self) -> u64 {
        let lost_packets = self.loss * self.window as f64 / self.mtu as f64;
        let factor = SEND_WINDOW + (SEND_WINDOW_LOSSY - SEND_WINDOW) * lost_packets.min(1.0);
        (factor * self.window as f64) as u64
    }

    /// Bytes that the path is known to hold, if anything is known of it.
    pub fn known(&self) -> Option<u64> {
        (self.bandwidth.max() > 0.0).then(|| self.held() as u64)
    }

    /// Bytes per second that the path was seen to deliver at most of late; 0 if nothing is known of it.
    pub fn goodput(&self) -> u64 {
        self.bandwidth.max() as u64
    }

    /// Starts from `window` bytes rather than from nothing, unless the path is known or the window is larger already.
    pub fn start_from(&mut self, window: u64) {
        if self.known().is_none() {
            self.window = self.window.max(window);
        }
    }

    /// The window of a path of which nothing is known.
    pub fn initial_window(&self) -> u64 {
        INITIAL_PACKETS * self.mtu
    }

    /// Packets carry this many bytes from now on.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
    }

    /// Notes that `bytes` are sent.
    pub fn sent(&mut self, bytes: u64, now: Instant) {
        self.rate.sent(self.in_flight == 0, self.rtt.min().unwrap_or_default(), now);
        self.in_flight += bytes;
        self.round.sent += bytes;
    }

    /// Notes that a packet has arrived; [`Model::end_acks`] follows after the last of one acknowledgement.
    pub fn acked(&mut self, ack: &Ack, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(ack.bytes);
        self.newly_acked += ack.bytes;
        let rtt = now.since(ack.sent);
        self.rtt.update(rtt, ack.smoothed_rtt, now);
        self.round.acks += 1;
        self.round.min_rtt = Some(self.round.min_rtt().min(rtt));
        self.round.max_rtt = self.round.max_rtt.max(rtt);
        self.cycle.min_rtt = self.cycle.min_rtt.min(rtt);
        let Some(sample) = self.rate.acked(ack.bytes, ack.sent, now) else { return };
        if sample.prior >= self.round.end {
            self.end_round(ack.app_limited);
        }
        // A sample shorter than a round trip measures a burst.
        if sample.interval >= self.rtt.min().unwrap_or(FAR).min(Duration::from_secs(1)) && !sample.interval.is_zero() {
            let rate = sample.delivered as f64 / sample.interval.as_secs_f64();
            let known = self.bandwidth.max();
            if (!ack.app_limited && self.rate.delivered > 8 * self.mtu) || (rate > known && known > 0.0) {
                self.bandwidth.update(rate);
            }
        }
    }

    /// Draws the conclusions of one acknowledgement, after which `in_flight` bytes are on their way.
    pub fn end_acks(&mut self, in_flight: u64, now: Instant) {
        let acked = core::mem::take(&mut self.newly_acked);
        if acked == 0 {
            return;
        }
        self.in_flight = in_flight;
        self.aggregation.acked(acked, self.bandwidth.max(), self.held(), now);
        self.advance(now);
        self.window = self.target(now);
    }

    /// Notes that `bytes` got lost; `persistent` if nothing else has arrived for several timeouts (RFC 9002 §7.6).
    pub fn lost(&mut self, bytes: u64, persistent: bool) {
        self.round.lost += bytes;
        self.in_flight = self.in_flight.saturating_sub(bytes);
        if persistent {
            self.window = MIN_PACKETS * self.mtu;
            self.bandwidth = MaxFilter::default();
            self.mode = Mode::START;
            self.limit = MAX_WINDOW;
            self.rival = Rival::default();
        }
    }

    /// Lays the model aside while packets go another way: it keeps what it knows of the path, and little memory.
    pub fn park(&mut self) {
        self.in_flight = 0;
        self.newly_acked = 0;
        self.rate.forget();
    }

    /// Takes the model up again.
    pub fn resume(&mut self, now: Instant) {
        self.rate.restart(now);
        self.rtt.trust(now);
        self.round = Round { end: self.rate.delivered, ..Round::default() };
        self.mode = match self.mode {
            Mode::ProbeRtt { before: Before { started: false, .. }, .. } => Mode::START,
            Mode::Drain | Mode::ProbeRtt { .. } => Mode::Cruise,
            mode => mode,
        };
        self.cycle.restart(now);
        if self.bandwidth.max() > 0.0 {
            self.window = self.target(now);
        }
    }

    /// Bytes that the path itself holds, without a queue.
    fn held(&self) -> f64 {
        self.held_at(self.bandwidth.max())
    }

    fn held_at(&self, rate: f64) -> f64 {
        match (self.rtt.min(), rate) {
            (Some(min), rate) if rate > 0.0 => rate * min.max(MIN_RTT).as_secs_f64(),
            _ => self.initial_window() as f64,
        }
    }

    fn end_round(&mut self, app_limited: bool) {
        let round = core::mem::take(&mut self.round);
        self.round.end = self.rate.delivered;
        self.bandwidth.end_round();
        self.aggregation.end_round();
        self.rtt.end_round(round.min_rtt());
        let queues = self.rtt.is_raised(round.min_rtt());
        self.queued = if queues { QUEUE_ROUNDS } else { self.queued.saturating_sub(1) };
        let loss = round.loss();
        if loss > HEAVY_LOSS && queues {
            self.limit = (self.limit.min(self.window as f64) * CURB).max((MIN_PACKETS * self.mtu) as f64);
        } else {
            self.limit = (self.limit * UNCURB).min(MAX_WINDOW);
        }
        self.rival.end_round(round.lost > 0, self.window, self.mtu);
        self.judge_start(&round, app_limited);
        if self.mode == Mode::Cruise && round.lost > 3 * self.mtu && loss > 1.5 * self.loss + 0.01 {
            self.cycle.lost_more();
        }
        let weight = if loss > self.loss { 1.0 / 16.0 } else { 1.0 / 8.0 };
        self.loss += (loss.min(0.5) - self.loss) * weight;
    }

    /// Ends the start when the rate grows no more, when a queue stands, or when it overflows.
    fn judge_start(&mut self, round: &Round, app_limited: bool) {
        let known = self.bandwidth.max();
        let Mode::Startup { rate, stalled, rounds } = &mut self.mode else { return };
        if app_limited {
            // The rate is the application's, or flow control's; but a queue that overflows is one.
            if round.loss() > SOME_LOSS && self.rtt.is_raised(round.max_rtt) && round.acks >= DELAY_SAMPLES {
                self.mode = Mode::Drain;
            }
            return;
        }
        *rounds += 1;
        let grown = known > *rate * GROWTH;
        (*rate, *stalled) = if grown { (known, 0) } else { (*rate, *stalled + 1) };
        let queue = *rounds >= DELAY_ROUNDS && round.acks >= DELAY_SAMPLES && self.rtt.is_queueing(round.min_rtt());
        let overflow = round.loss() > HEAVY_LOSS && !grown && round.acks >= 2 * DELAY_SAMPLES;
        if *stalled >= STALLED_ROUNDS || queue || overflow {
            self.mode = Mode::Drain;
        }
    }

    fn advance(&mut self, now: Instant) {
        let held = self.held();
        match self.mode {
            Mode::Drain if self.in_flight as f64 <= held => {
                self.mode = Mode::Cruise;
                self.cycle.restart(now);
            }
            Mode::Cruise => {
                let full = self.round.lost > 0 || self.in_flight as f64 >= 0.95 * self.cycle.gain() * held;
                let ended = self.cycle.advance(full, self.rtt.min().unwrap_or_default(), now);
                if ended.is_some_and(|min| self.rival.end_cycle(self.rtt.is_crowded(min), self.window, now)) {
                    self.make_room(Why::Crowded, now);
                }
            }
            Mode::ProbeRtt { until, why, before } if now >= until => self.judge_room(why, before, now),
            _ => {}
        }
        if !matches!(self.mode, Mode::ProbeRtt { .. }) && self.rtt.is_stale(now) {
            self.make_room(Why::Stale, now);
        }
    }

    fn make_room(&mut self, why: Why, now: Instant) {
        let until = now + self.rtt.smoothed.max(PROBE_RTT) + PROBE_RTT;
        let started = !matches!(self.mode, Mode::Startup { .. });
        let before = Before { started, window: self.window, rate: self.bandwidth.latest() };
        self.mode = Mode::ProbeRtt { until, why, before };
        self.cycle.restart(now);
    }

    /// Believes what was seen while there was room.
    fn judge_room(&mut self, why: Why, before: Before, now: Instant) {
        let seen = self.cycle.min_rtt;
        match why {
            Why::Stale => self.rtt.renew(seen, now),
            Why::Crowded if self.rtt.is_crowded(seen) => self.rival.begin(before.window, now),
            // The queue was the flow's own: the path delivers less than it did.
            Why::Crowded if before.rate < SLOWER * self.bandwidth.max() => self.bandwidth = MaxFilter::of(before.rate),
            Why::Crowded => {}
        }
        self.mode = if before.started { Mode::Cruise } else { Mode::START };
        self.cycle.restart(now);
    }

    fn target(&self, now: Instant) -> u64 {
        let most = if self.queued > 0 && !self.rival.is_near(now) { MAX_EXCESS } else { 1.0 };
        let excess = self.aggregation.excess().min(most * self.held());
        let slack = excess + (SLACK_PACKETS * self.mtu) as f64;
        let held = self.held() / (1.0 - self.loss.min(MAX_LOSS));
        let target = match self.mode {
            Mode::Startup { .. } => (STARTUP_GAIN * held + slack).max(self.window as f64),
            Mode::Drain => DRAIN_GAIN * self.held(),
            Mode::ProbeRtt { before, .. } => PROBE_RTT_GAIN * self.held_at(before.rate),
            Mode::Cruise => (self.cycle.gain() * held + slack).max(self.rival.window().unwrap_or(0.0)),
        };
        target.min(self.limit).max((MIN_PACKETS * self.mtu) as f64) as u64
    }
}
