//! The congestion control of one connection: a model of `byway-proto` for each route that carries it, behind quinn's trait.
//!
//! QUIC sees one path for life. The agent tells through a [`Line`] which route carries the connection and since when; the
//! model of the route before is parked, and taken up again should the connection return to it. What was sent before the
//! switch says nothing about the new route: its acknowledgements and losses are not shown to the new model, and until they
//! are in, its bytes take no room in the new window.

use std::{
    any::Any,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant as SystemInstant},
};

use byway_proto::{
    Instant,
    congestion::{Ack, Delivery, Model, Throughput},
};
use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use crate::net::{mux::Clock, routes::Via};

/// A route of which nothing is known starts with this fraction of what the one before held: the line that both share is
/// the narrow one as a rule, and where it is not, half is made up for in one round trip (draft-ietf-tsvwg-careful-resume).
const GUESS: u64 = 2;

/// Models that are kept for routes which carry nothing now: two direct ones and two relays.
const MAX_PARKED: usize = 4;

/// A model parked for longer is forgotten: by then the path has other users.
const PARKED_LIFE: Duration = Duration::from_secs(300);

/// How long after a switch bytes of the old route may still be on their way.
const STALE_LIFE: Duration = Duration::from_secs(5);

/// quinn paces by the window, at 1.25 windows a round trip, and gives what it saved up away whenever a timer of a
/// millisecond is late: a window just as large as what the path holds came to 85 of 100 Mbit/s. So while there is room it
/// is shown half a window more, with which it came to 92. The room itself is what the model says.
const PACING: (u64, u64) = (3, 2);

/// Packets that ask, after a silence, what of the old route's has arrived, until half of it is accounted for: with more the
/// window would be full of what comes last by the time the holes are known.
const ASKING: u64 = 4;

/// quinn sends no acknowledgement while the window is full and there is data to send, for it would put both into one packet.
/// Where both sides are in that state each waits for the other, at worst until a timeout. So where an acknowledgement is owed
/// and nothing was sent for this long, there is room for one packet more …
const ACK_DELAY: Duration = Duration::from_millis(5);

/// … as long as less than this fraction of the window is on its way beyond it; and without that limit for this many packets
/// a round trip, which the smallest window allows too.
const ACK_ROOM: u64 = 8;
const ACK_PACKETS: u32 = 4;

/// What the agent tells the congestion control of one connection.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Counts the switches, so that a look at each packet costs one load.
    epoch: AtomicU64,
    switch: Mutex<Switch>,
    /// The congestion window and [`Model::send_window`], for the link's writer; 0 before the first acknowledgement.
    window: AtomicU64,
    send_window: AtomicU64,
    /// Bytes per second that the selected route was seen to deliver; 0 if that is not known.
    goodput: AtomicU64,
    /// What was measured last and nobody has read yet, and after how many switches.
    delivery: Mutex<Option<(u64, Delivery)>>,
    /// Datagrams of the peer's that call for an acknowledgement.
    heard: AtomicU64,
}

/// The route that carries the connection, and the moment from which what is sent tells about it.
#[derive(Debug, Clone, Copy, Default)]
struct Switch {
    route: Option<Via>,
    since: Instant,
    /// The route before was silent: what was on its way is lost, which QUIC learns by the next acknowledgement.
    silent: bool,
}

impl Line {
    /// Notes that `route` carries the connection, and since when, if that is the end of a silence; what was sent before took
    /// another, or is lost.
    pub(crate) fn select(&self, route: Via, silent: Option<Instant>, now: Instant) {
        let mut switch = self.switch.lock().unwrap_or_else(PoisonError::into_inner);
        *switch = Switch { route: Some(route), since: silent.unwrap_or(now), silent: silent.is_some() };
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Bytes that may be on their way.
    pub(crate) fn window(&self) -> u64 {
        self.window.load(Ordering::Relaxed)
    }

    /// Bytes that QUIC should be given before they are acknowledged.
    pub(crate) fn send_window(&self) -> u64 {
        self.send_window.load(Ordering::Relaxed)
    }

    /// Bytes per second that the selected route was seen to deliver at most of late.
    pub(crate) fn goodput(&self) -> Option<u64> {
        Some(self.goodput.load(Ordering::Relaxed)).filter(|goodput| *goodput > 0)
    }

    /// What the route that carries the connection delivered, if that was measured since the last call and the last switch.
    pub(crate) fn take_delivery(&self) -> Option<Delivery> {
        let measured = self.delivery.lock().unwrap_or_else(PoisonError::into_inner).take();
        measured.filter(|(epoch, _)| *epoch == self.epoch()).map(|(_, delivery)| delivery)
    }

    fn tell_delivery(&self, epoch: u64, delivery: Delivery) {
        *self.delivery.lock().unwrap_or_else(PoisonError::into_inner) = Some((epoch, delivery));
    }

    /// Notes a datagram that is large enough to call for an acknowledgement.
    pub(crate) fn hear(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }
}

/// Makes the congestion control of one connection.
#[derive(Debug)]
pub(crate) struct Congestion {
    line: Arc<Line>,
    clock: Clock,
    seed: u64,
}

impl Congestion {
    pub(crate) fn new(line: Arc<Line>, clock: Clock, alias: SocketAddr) -> Arc<Self> {
        // An alias is drawn at random, by the node's seed.
        let seed = match alias {
            SocketAddr::V6(alias) => alias.ip().to_bits() as u64,
            SocketAddr::V4(alias) => alias.ip().to_bits().into(),
        };
        Arc::new(Congestion { line, clock, seed })
    }
}

impl ControllerFactory for Congestion {
    fn build(self: Arc<Self>, now: SystemInstant, mtu: u16) -> Box<dyn Controller> {
        let now = self.clock.of(now);
        let seen =
            Seen { epoch: self.line.epoch(), switch: Switch { route: None, since: now, silent: false }, at: now };
        let model = Model::new(mtu, self.seed, now);
        Box::new(Routed {
            shared: self,
            seen,
            model,
            throughput: Throughput::default(),
            mtu,
            in_flight: 0,
            stale: 0,
            asks_above: u64::MAX,
            asked: Instant::START,
            smoothed_rtt: Duration::ZERO,
            latest: Latest { at: now, heard: 0 },
            parked: Vec::new(),
        })
    }
}

/// The models of one connection's routes.
#[derive(Debug, Clone)]
struct Routed {
    shared: Arc<Congestion>,
    seen: Seen,
    /// The selected route's.
    model: Model,
    throughput: Throughput,
    mtu: u16,
    /// All bytes on their way, and those of them that were sent before the last switch was seen.
    in_flight: u64,
    stale: u64,
    /// While more than this is stale, a silence has ended and QUIC has yet to learn what it has cost.
    asks_above: u64,
    /// When the last packet left that had to do with the room for questions: what it measures is not what the route carries.
    asked: Instant,
    smoothed_rtt: Duration,
    latest: Latest,
    parked: Vec<Parked>,
}

/// The last packets that were sent: when, and how many of the peer's had been heard by then.
#[derive(Debug, Clone, Copy)]
struct Latest {
    at: Instant,
    heard: u64,
}

/// The last switch that was acted on, and when.
#[derive(Debug, Clone, Copy)]
struct Seen {
    epoch: u64,
    switch: Switch,
    at: Instant,
}

/// The model of a route that carries nothing now.
#[derive(Debug, Clone)]
struct Parked {
    route: Via,
    since: Instant,
    model: Model,
}

impl Routed {
    /// Changes the model if another route carries the connection now.
    fn follow(&mut self, now: Instant) {
        let epoch = self.shared.line.epoch();
        if epoch == self.seen.epoch {
            return;
        }
        let switch = *self.shared.line.switch.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut self.seen, Seen { epoch, switch, at: now }).switch.route;
        let Some(route) = switch.route else { return };
        self.throughput = Throughput::default();
        if before == Some(route) {
            // It was silent: what was sent meanwhile is lost, and takes no room until QUIC knows that.
            self.set_stale();
            self.model.park();
            self.model.resume(now);
            return self.publish();
        }
        // The handshake's route is the one that answered it.
        let Some(before) = before else { return };
        self.parked.retain(|parked| parked.route != before && now.since(parked.since) < PARKED_LIFE);
        let guess = self.model.known().unwrap_or_default() / GUESS;
        let mut next = match self.parked.iter().position(|parked| parked.route == route) {
            Some(index) => {
                let mut model = self.parked.swap_remove(index).model;
                model.set_mtu(self.mtu);
                model.resume(now);
                model
            }
            None => Model::new(self.mtu, self.shared.seed, now),
        };
        next.start_from(guess);
        let mut model = std::mem::replace(&mut self.model, next);
        model.park();
        if self.parked.len() == MAX_PARKED {
            let oldest = self.parked.iter().enumerate().min_by_key(|(_, parked)| parked.since);
            let oldest = oldest.map_or(0, |(index, _)| index);
            self.parked.swap_remove(oldest);
        }
        self.parked.push(Parked { route: before, since: now, model });
        self.set_stale();
        self.publish();
    }

    /// Whatever is on its way took the route before.
    fn set_stale(&mut self) {
        self.stale = self.in_flight;
        self.asks_above = if self.seen.switch.silent { self.stale / 2 } else { u64::MAX };
    }

    /// Tells the link's writer how much QUIC can use.
    fn publish(&self) {
        let line = &self.shared.line;
        line.window.store(self.model.window() + self.stale, Ordering::Relaxed);
        line.send_window.store(self.model.send_window() + self.stale, Ordering::Relaxed);
        line.goodput.store(self.model.goodput(), Ordering::Relaxed);
    }

    fn sent(&mut self, bytes: u64, now: Instant) {
        self.follow(now);
        self.in_flight += bytes;
        if self.is_asking() {
            self.asked = now;
        }
        self.latest = Latest { at: now, heard: self.shared.line.heard() };
        self.model.sent(bytes, now);
    }

    fn acked(&mut self, ack: &Ack, now: Instant) {
        self.follow(now);
        self.in_flight = self.in_flight.saturating_sub(ack.bytes);
        self.smoothed_rtt = ack.smoothed_rtt;
        if ack.sent < self.seen.at {
            self.take_stale(ack.bytes);
        }
        if ack.sent >= self.seen.switch.since {
            let app_limited = ack.app_limited || ack.sent <= self.asked;
            let ack = Ack { app_limited, ..*ack };
            self.model.acked(&ack, now);
            if let Some(delivery) = self.throughput.acked(&ack, now) {
                self.shared.line.tell_delivery(self.seen.epoch, delivery);
            }
        }
    }

    /// Whether only a few packets may go out, which ask what has arrived of the old route's.
    fn is_asking(&self) -> bool {
        self.stale > self.asks_above
    }

    fn end_acks(&mut self, in_flight: u64, now: Instant) {
        self.in_flight = in_flight;
        self.stale = if now.since(self.seen.at) < STALE_LIFE { self.stale.min(in_flight) } else { 0 };
        self.model.end_acks(in_flight - self.stale, now);
        self.publish();
    }

    /// Notes that `bytes` got lost, the last of which were sent at `sent`.
    fn lost(&mut self, bytes: u64, is_persistent: bool, sent: Instant, now: Instant) {
        self.follow(now);
        self.in_flight = self.in_flight.saturating_sub(bytes);
        let of_this_route = bytes - self.take_stale(bytes); // the first may be of the old one
        if sent >= self.seen.switch.since && (of_this_route > 0 || is_persistent) {
            self.model.lost(of_this_route, is_persistent);
        }
    }

    /// Whether an acknowledgement has been waiting for room for long enough.
    fn owes_ack(&self, window: u64) -> bool {
        if self.latest.heard == self.shared.line.heard() {
            return false;
        }
        let waited = self.shared.clock.now().since(self.latest.at);
        let little = self.in_flight < window + window / ACK_ROOM;
        waited >= ACK_DELAY && (little || waited >= self.smoothed_rtt / ACK_PACKETS)
    }

    /// Notes that `bytes` of the old route are no longer on their way; how many of them there were.
    fn take_stale(&mut self, bytes: u64) -> u64 {
        let taken = bytes.min(self.stale);
        self.stale -= taken;
        taken
    }
}

impl Controller for Routed {
    fn on_sent(&mut self, now: SystemInstant, bytes: u64, _: u64) {
        self.sent(bytes, self.shared.clock.of(now));
    }

    fn on_ack(&mut self, now: SystemInstant, sent: SystemInstant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        let clock = self.shared.clock;
        let ack = Ack { sent: clock.of(sent), bytes, app_limited, smoothed_rtt: rtt.get() };
        self.acked(&ack, clock.of(now));
    }

    fn on_end_acks(&mut self, now: SystemInstant, in_flight: u64, _: bool, _: Option<u64>) {
        self.end_acks(in_flight, self.shared.clock.of(now));
    }

    fn on_congestion_event(&mut self, now: SystemInstant, sent: SystemInstant, is_persistent: bool, lost: u64) {
        let clock = self.shared.clock;
        self.lost(lost, is_persistent, clock.of(sent), clock.of(now));
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = mtu;
        self.model.set_mtu(mtu);
    }

    fn window(&self) -> u64 {
        if self.shared.line.epoch() != self.seen.epoch {
            return self.in_flight + ASKING * u64::from(self.mtu); // the next packet will see the switch
        }
        let mtu = u64::from(self.mtu);
        let window = if self.is_asking() { ASKING * mtu } else { self.model.window() } + self.stale;
        if self.in_flight + mtu < window {
            window / PACING.1 * PACING.0
        } else if self.owes_ack(window) {
            self.in_flight + 2 * mtu
        } else {
            window
        }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.model.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a packet; one is sent each millisecond.
    const PACKET: u64 = 1_200;
    const RTT: Duration = Duration::from_millis(50);

    /// A connection's congestion control, and a path that loses nothing.
    struct Bench {
        line: Arc<Line>,
        routed: Routed,
        now: Instant,
        on_way: Vec<Instant>,
    }

    impl Bench {
        fn new() -> Self {
            let line = Arc::new(Line::default());
            let alias = SocketAddr::from(([0x100, 0, 0, 0, 1, 2, 3, 4], 1));
            let congestion = Congestion::new(Arc::clone(&line), Clock::start(), alias);
            let routed = congestion.build(SystemInstant::now(), PACKET as u16).into_any().downcast();
            let mut bench = Bench {
                line,
                routed: *routed.expect("it builds its own kind"),
                now: Instant::START + RTT,
                on_way: Vec::new(),
            };
            bench.select(1);
            bench
        }

        fn select(&mut self, n: u16) {
            self.line.select(Via::Direct(([192, 0, 2, 1], n).into()), None, self.now);
        }

        /// Sends for so many milliseconds; what was sent one round trip before is acknowledged if `heard`.
        fn run(&mut self, ms: u64, heard: bool) {
            for _ in 0..ms {
                self.now += Duration::from_millis(1);
                self.routed.sent(PACKET, self.now);
                self.on_way.push(self.now);
                while heard && self.now.since(self.on_way[0]) >= RTT {
                    let ack = Ack { sent: self.on_way.remove(0), bytes: PACKET, app_limited: false, smoothed_rtt: RTT };
                    self.routed.acked(&ack, self.now);
                    self.routed.end_acks(self.on_way.len() as u64 * PACKET, self.now);
                }
            }
        }
    }

    #[test]
    fn a_new_route_begins_with_a_model_of_its_own_and_the_old_one_keeps_its() {
        let mut bench = Bench::new();
        bench.run(1_000, true);
        let first = bench.routed.model.window();
        assert_ne!(first, bench.routed.initial_window());
        bench.select(2);
        bench.run(1, true);
        assert_eq!(bench.routed.model.window(), bench.routed.initial_window());
        bench.run(10, true);
        bench.select(1);
        bench.run(1, true);
        let again = bench.routed.model.window();
        assert!(again.abs_diff(first) < first / 3, "{again} instead of about {first}");
    }

    #[test]
    fn what_the_route_delivers_is_told_once_and_not_of_the_route_before() {
        let mut bench = Bench::new();
        bench.run(3_500, true);
        let delivery = bench.line.take_delivery().expect("three seconds were measured");
        let expected = PACKET * 1_000;
        assert!(delivery.rate.abs_diff(expected) < expected / 50, "{delivery:?}");
        assert_eq!(delivery.limited_for.as_secs(), 3);
        assert_eq!(bench.line.take_delivery(), None);
        bench.run(2_000, true);
        bench.select(2);
        assert_eq!(bench.line.take_delivery(), None, "it was the other route's");
        bench.run(1_300, true);
        let delivery = bench.line.take_delivery().expect("a second was measured");
        assert_eq!(delivery.limited_for.as_secs(), 1, "it began with the switch");
    }

    #[test]
    fn what_was_sent_before_the_switch_takes_no_room_and_tells_nothing() {
        let mut bench = Bench::new();
        bench.run(1_000, true);
        bench.run(20, false); // the route is dead
        let on_way = bench.on_way.len() as u64 * PACKET;
        bench.select(2);
        let initial = bench.routed.initial_window();
        assert!(bench.routed.window() > on_way + PACKET, "before a packet has seen the switch");
        bench.run(1, false);
        assert_eq!((bench.routed.stale, bench.routed.model.window()), (on_way, initial));
        let (before, now) = (bench.routed.seen.switch.since - Duration::from_millis(1), bench.now);
        bench.routed.lost(on_way, true, before, now);
        assert_eq!((bench.routed.stale, bench.routed.model.window()), (0, initial), "not the new route's loss");
        bench.routed.lost(PACKET, true, now, now);
        assert!(bench.routed.model.window() < initial, "the new route's own");
    }

    #[test]
    fn a_new_route_starts_from_half_of_what_the_old_one_held() {
        let mut bench = Bench::new();
        bench.run(1_000, true);
        bench.run(1_000, true);
        let held = bench.routed.model.known().expect("it was measured");
        bench.routed.model.start_from(0);
        let mut fresh = Model::new(PACKET as u16, 1, bench.now);
        fresh.start_from(held / GUESS);
        bench.select(2);
        bench.run(1, true);
        assert_eq!(bench.routed.model.window(), fresh.window());
    }

    #[test]
    fn after_a_silence_a_few_packets_ask_what_has_arrived_before_the_window_opens() {
        let mut bench = Bench::new();
        bench.run(1_000, true);
        let hedged = bench.now;
        bench.run(20, false);
        bench.line.select(Via::Direct(([192, 0, 2, 1], 2).into()), Some(hedged), bench.now);
        bench.run(1, false);
        let on_way = bench.routed.stale;
        assert!(bench.routed.window() <= (on_way + ASKING * PACKET) / PACING.1 * PACING.0);
        bench.run(4, false);
        assert_eq!(bench.routed.window(), on_way + ASKING * PACKET, "they are on their way");
        bench.routed.lost(on_way / 2, false, hedged, bench.now);
        assert!(bench.routed.window() > on_way / 2 + bench.routed.model.window());
    }

    #[test]
    fn the_packets_that_ask_do_not_tell_how_much_the_route_carries() {
        let mut bench = Bench::new();
        bench.run(1_000, true);
        let hedged = bench.now;
        bench.run(20, false);
        bench.line.select(Via::Direct(([192, 0, 2, 1], 2).into()), Some(hedged), bench.now);
        let lost = bench.on_way.len() as u64 * PACKET; // which QUIC is slow to see
        for _ in 0..8 {
            bench.on_way.clear();
            bench.run(ASKING, false);
            bench.now += RTT;
            for sent in std::mem::take(&mut bench.on_way) {
                let ack = Ack { sent, bytes: PACKET, app_limited: false, smoothed_rtt: RTT };
                bench.routed.acked(&ack, bench.now);
                bench.routed.end_acks(lost, bench.now);
            }
        }
        assert!(bench.routed.is_asking());
        bench.routed.lost(bench.routed.stale, false, hedged, bench.now);
        bench.run(120, true);
        let carried = RTT.as_millis() as u64 * PACKET;
        assert!(bench.routed.model.window() > 2 * carried, "it looks for more: {}", bench.routed.model.window());
    }

    #[test]
    fn an_acknowledgement_that_is_owed_finds_room_beside_a_full_window() {
        let mut bench = Bench::new();
        while bench.routed.in_flight + PACKET < bench.routed.model.window() {
            bench.run(1, false);
        }
        let full = bench.routed.window();
        bench.routed.latest.at = Instant::START; // the bench's time runs ahead of the clock
        std::thread::sleep(ACK_DELAY * 2);
        assert_eq!(bench.routed.window(), full, "nothing is owed");
        bench.line.hear();
        assert_eq!(bench.routed.window(), bench.routed.in_flight + 2 * PACKET);
        bench.routed.smoothed_rtt = Duration::from_secs(600);
        bench.routed.in_flight = full + full / ACK_ROOM;
        assert_eq!(bench.routed.window(), full, "more than enough are on their way");
        bench.routed.sent(PACKET, Instant::START);
        bench.routed.in_flight = full;
        assert_eq!(bench.routed.window(), full, "it has just been sent");
    }

    #[test]
    fn packets_of_the_hedge_belong_to_the_new_route() {
        let mut bench = Bench::new();
        bench.run(1_000, true);
        let hedged = bench.now;
        bench.run(10, false);
        bench.line.select(Via::Direct(([192, 0, 2, 1], 2).into()), Some(hedged), bench.now);
        bench.run(60, true);
        assert_eq!(bench.routed.stale, 0);
        assert_ne!(bench.routed.model.window(), bench.routed.initial_window(), "their answers were heard");
    }

    #[test]
    fn parked_models_are_bounded() {
        let mut bench = Bench::new();
        for n in 0..20 {
            bench.select(n);
            bench.run(5, true);
        }
        assert_eq!(bench.routed.parked.len(), MAX_PARKED);
        bench.now += PARKED_LIFE;
        bench.select(99);
        bench.run(1, true);
        assert_eq!(bench.routed.parked.len(), 1, "the others are forgotten");
    }
}
