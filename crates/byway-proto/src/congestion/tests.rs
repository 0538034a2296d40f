//! The model on a simulated path: a rate, a queue, a round-trip time, loss; a sender that paces as quinn does.

use std::{collections::VecDeque, vec::Vec};

use proptest::prelude::*;

use super::*;

/// Bytes of a packet.
const PACKET: u64 = 1_443;

/// A path under fake time, in ticks of a millisecond.
struct Path {
    /// Bytes a millisecond.
    rate: f64,
    rtt: u64,
    /// Bytes that may wait.
    queue: f64,
    loss: f64,
    now: u64,
    waiting: f64,
    tokens: f64,
    in_flight: u64,
    /// When acknowledgements arrive, and when losses are noticed.
    acks: VecDeque<(f64, u64)>,
    losses: VecDeque<(u64, u64)>,
    dice: u64,
    delivered: u64,
    lost: u64,
}

impl Path {
    /// So many Mbit/s, milliseconds of round-trip time and milliseconds of queue.
    fn new(mbit_s: f64, rtt: u64, queue: f64) -> Self {
        let rate = mbit_s * 125.0;
        Path {
            rate,
            rtt,
            queue: rate * queue,
            loss: 0.0,
            now: 0,
            waiting: 0.0,
            tokens: 0.0,
            in_flight: 0,
            acks: VecDeque::new(),
            losses: VecDeque::new(),
            dice: 1,
            delivered: 0,
            lost: 0,
        }
    }

    fn now(&self) -> Instant {
        Instant::after_start(Duration::from_millis(self.now))
    }

    fn is_lost(&mut self) -> bool {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.dice >> 33) as f64) < self.loss * (1_u64 << 31) as f64
    }

    fn tick(&mut self, model: &mut Model, smoothed: Duration) {
        self.now += 1;
        let now = self.now();
        self.waiting = (self.waiting - self.rate).max(0.0);
        while self.acks.front().is_some_and(|(at, _)| *at <= self.now as f64) {
            let (_, sent) = self.acks.pop_front().unwrap();
            self.in_flight -= PACKET;
            self.delivered += PACKET;
            let sent = Instant::after_start(Duration::from_millis(sent));
            model.acked(&Ack { sent, bytes: PACKET, app_limited: false, smoothed_rtt: smoothed }, now);
        }
        model.end_acks(self.in_flight, now);
        while self.losses.front().is_some_and(|(at, _)| *at <= self.now) {
            self.losses.pop_front();
            self.in_flight -= PACKET;
            self.lost += PACKET;
            model.lost(PACKET, false);
        }
        let pace = 1.875 * model.window() as f64 / smoothed.as_millis().max(1) as f64;
        self.tokens = (self.tokens + pace).min((3.0 * pace).max(10.0 * PACKET as f64));
        while self.in_flight + PACKET < model.window() && self.tokens >= PACKET as f64 {
            self.tokens -= PACKET as f64;
            self.in_flight += PACKET;
            model.sent(PACKET, now);
            if self.waiting + PACKET as f64 > self.queue || self.is_lost() {
                let noticed = self.now + self.rtt + (self.waiting / self.rate) as u64 + self.rtt / 8;
                self.losses.push_back((noticed, self.now));
            } else {
                self.waiting += PACKET as f64;
                self.acks.push_back((self.now as f64 + self.rtt as f64 + self.waiting / self.rate, self.now));
            }
        }
    }

    /// Lets time pass: the share of the line that was used, and the mean wait in milliseconds.
    fn run(&mut self, model: &mut Model, ms: u64) -> (f64, f64) {
        let (before, mut waits, mut smoothed) = (self.delivered, 0.0, self.rtt as f64);
        for _ in 0..ms {
            smoothed += (self.rtt as f64 + self.waiting / self.rate - smoothed) / 16.0;
            self.tick(model, Duration::from_micros((smoothed * 1_000.0) as u64));
            waits += self.waiting / self.rate;
        }
        ((self.delivered - before) as f64 / (self.rate * ms as f64), waits / ms as f64)
    }
}

fn model() -> Model {
    Model::new(PACKET as u16, 7, Instant::START)
}

#[test]
fn a_clean_line_is_full_within_half_a_second_and_its_queue_is_not() {
    let (mut path, mut model) = (Path::new(100.0, 50, 1_000.0), model());
    path.run(&mut model, 500);
    let (used, wait) = path.run(&mut model, 20_000);
    assert!(used > 0.93, "{used}");
    assert!(wait < 15.0, "{wait} ms of a queue that could hold 1,000");
}

#[test]
fn random_loss_costs_no_more_than_what_is_lost() {
    for loss in [0.001, 0.01, 0.03, 0.05] {
        let (mut path, mut model) = (Path::new(100.0, 50, 100.0), model());
        path.loss = loss;
        path.run(&mut model, 1_000);
        let (used, _) = path.run(&mut model, 20_000);
        assert!(used > 0.92 * (1.0 - loss), "{used} at {loss}");
    }
}

#[test]
fn a_short_queue_is_not_made_to_overflow_again_and_again() {
    let (mut path, mut model) = (Path::new(100.0, 50, 5.0), model());
    path.run(&mut model, 3_000);
    let (lost, delivered) = (path.lost, path.delivered);
    let (used, _) = path.run(&mut model, 20_000);
    let share = (path.lost - lost) as f64 / (path.delivered - delivered) as f64;
    assert!(used > 0.85, "{used}");
    assert!(share < 0.02, "{share} of all packets overflow a queue of 5 ms");
}

#[test]
fn a_path_that_becomes_slower_is_overrun_for_two_seconds_at_most() {
    let (mut path, mut model) = (Path::new(100.0, 50, 1_000.0), model());
    path.run(&mut model, 3_000);
    (path.rate, path.queue) = (path.rate / 5.0, path.queue / 5.0);
    path.run(&mut model, 2_000);
    let (used, wait) = path.run(&mut model, 5_000);
    assert!(used > 0.9, "{used}");
    assert!(wait < 30.0, "{wait} ms still wait");
}

#[test]
fn a_path_that_becomes_longer_is_believed_after_ten_seconds() {
    let (mut path, mut model) = (Path::new(50.0, 20, 100.0), model());
    path.run(&mut model, 3_000);
    path.rtt = 80;
    path.run(&mut model, 14_000);
    let (used, _) = path.run(&mut model, 5_000);
    assert!(used > 0.85, "{used}");
}

#[test]
fn a_model_taken_up_again_needs_no_start() {
    let (mut path, mut model) = (Path::new(100.0, 50, 100.0), model());
    path.run(&mut model, 5_000);
    model.park();
    // The connection was elsewhere for a minute.
    let mut later = Path { now: path.now + 60_000, ..Path::new(100.0, 50, 100.0) };
    model.resume(later.now());
    let (used, wait) = later.run(&mut model, 1_000);
    assert!(used > 0.85, "{used}");
    assert!(wait < 20.0, "{wait}");
}

#[test]
fn a_model_taken_up_after_a_long_time_does_not_make_room_first() {
    let (mut path, mut model) = (Path::new(20.0, 100, 100.0), model());
    path.run(&mut model, 3_000);
    model.park();
    let mut later = Path::new(20.0, 100, 100.0);
    later.now = path.now + 60_000;
    model.resume(later.now());
    let least = model.window();
    later.run(&mut model, 300);
    assert!(!matches!(model.mode, Mode::ProbeRtt { .. }));
    assert!(model.window() > least / 2, "{} of {least}", model.window());
}

#[test]
fn a_round_trip_time_of_another_way_back_is_forgotten_when_the_model_is_taken_up_again() {
    let (mut path, mut model) = (Path::new(20.0, 100, 100.0), model());
    path.run(&mut model, 3_000);
    model.rtt.renew(Duration::from_millis(55), path.now()); // the peer had left the path already, and answered by a faster one
    model.park();
    let mut later = Path { now: path.now + 1_000, ..Path::new(20.0, 100, 100.0) };
    model.resume(later.now());
    later.run(&mut model, 400);
    let (used, _) = later.run(&mut model, 1_000);
    assert!(used > 0.85, "{used}");
}

#[test]
fn a_path_of_which_nothing_is_known_may_start_from_what_another_one_held() {
    let (mut path, mut known) = (Path::new(20.0, 100, 100.0), model());
    path.run(&mut known, 3_000);
    let held = known.known().unwrap();
    assert!((230_000..280_000).contains(&held), "{held}");
    let mut fresh = model();
    assert_eq!(fresh.known(), None);
    fresh.start_from(held / 2);
    assert_eq!(fresh.window(), held / 2);
    let before = known.window();
    known.start_from(1 << 20);
    assert_eq!(known.window(), before, "what was measured counts for more");
}

#[test]
fn persistent_congestion_starts_over_from_a_few_packets() {
    let (mut path, mut model) = (Path::new(100.0, 50, 100.0), model());
    path.run(&mut model, 5_000);
    model.lost(0, true);
    assert_eq!(model.window(), MIN_PACKETS * PACKET);
    let (used, _) = path.run(&mut model, 5_000);
    assert!(used > 0.8, "{used}");
}

#[test]
fn half_the_packets_lost_in_a_full_queue_make_the_window_small() {
    let (mut path, mut model) = (Path::new(100.0, 50, 100.0), model());
    path.run(&mut model, 5_000);
    // A policer: it delays, and drops what comes on top.
    (path.rate, path.queue) = (path.rate / 20.0, path.queue / 200.0);
    path.run(&mut model, 3_000);
    let (lost, delivered) = (path.lost, path.delivered);
    path.run(&mut model, 5_000);
    let share = (path.lost - lost) as f64 / (path.delivered - delivered) as f64;
    assert!(share < 0.2, "{share}");
}

#[test]
fn more_may_wait_behind_a_hole_than_on_a_clean_line() {
    let (mut path, mut model) = (Path::new(100.0, 50, 100.0), model());
    path.run(&mut model, 3_000);
    assert!(model.send_window() < 2 * model.window());
    path.loss = 0.03;
    path.run(&mut model, 3_000);
    assert!(model.send_window() > 3 * model.window());
}

/// The window of a line that is full, in multiples of what it holds, if acknowledgements come in bunches of half of that; whether a
/// queue stands, and somebody else was there.
fn window_with_bunches(queues: bool, rival: bool) -> f64 {
    let (mut path, mut model) = (Path::new(100.0, 50, 100.0), model());
    path.run(&mut model, 3_000);
    if rival {
        model.rival.begin(0, path.now());
    }
    let held = model.held();
    for _ in 0..4 {
        path.now += 25;
        model.aggregation.acked(held as u64 / 2, model.bandwidth.max(), held, path.now());
    }
    model.queued = u32::from(queues);
    model.mode = Mode::Cruise;
    model.cycle = Cycle::new(1, path.now()); // between two probes
    model.target(path.now()) as f64 / held
}

#[test]
fn bunches_make_the_window_larger_by_an_eighth_at_most_where_the_flows_own_queue_stands() {
    let own = window_with_bunches(true, false);
    assert!((1.1..1.2).contains(&own), "{own}");
    for [queues, rival] in [[false, false], [true, true]] {
        let other = window_with_bunches(queues, rival);
        assert!(other > 1.4, "{other}");
    }
}

#[test]
fn a_queue_that_stood_is_remembered_for_a_cycle_of_probes() {
    let (mut path, mut model) = (Path::new(100.0, 50, 100.0), model());
    path.run(&mut model, 3_000);
    model.mode = Mode::Cruise;
    model.cycle = Cycle::new(1, path.now()); // its first probe comes after six round trips
    model.queued = QUEUE_ROUNDS;
    path.run(&mut model, 200);
    assert!((1..QUEUE_ROUNDS).contains(&model.queued), "{}", model.queued);
}

proptest! {
    #[test]
    fn no_course_of_events_leads_out_of_the_windows_bounds(
        events in prop::collection::vec((0..7_u8, 0..100_000_u64, 0..2_000_u64), 0..300),
    ) {
        let (mut model, mut now) = (model(), Instant::START);
        let mut sent = Vec::from([now]);
        for (what, bytes, ms) in events {
            now += Duration::from_millis(ms);
            match what {
                0 | 1 => {
                    model.sent(bytes, now);
                    sent.push(now);
                }
                2 | 3 => {
                    let sent = sent[bytes as usize % sent.len()];
                    let smoothed_rtt = Duration::from_millis(bytes % 1_000);
                    model.acked(&Ack { sent, bytes, app_limited: ms % 2 == 0, smoothed_rtt }, now);
                    model.end_acks(bytes, now);
                }
                4 => model.lost(bytes, ms % 5 == 0),
                5 => model.set_mtu(1_200 + (bytes % 300) as u16),
                _ => {
                    model.park();
                    model.resume(now);
                }
            }
            prop_assert!(model.window() >= MIN_PACKETS * 1_200);
            prop_assert!(model.window() <= MAX_WINDOW as u64);
            prop_assert!(model.send_window() >= model.window());
        }
    }
}
