//! Two machines over a small seeded network: both sides of a connection, and what its application sees.

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec,
    vec::Vec,
};
use core::time::Duration;

use super::*;

const DIRECT: RouteId = RouteId(0);
const RELAY: RouteId = RouteId(1);
const KINDS: [RouteKind; 2] = [RouteKind::Direct, RouteKind::Relay];

#[test]
fn death_of_the_direct_route_moves_both_sides_to_the_relay() {
    for traffic in [Traffic::PingPong, Traffic::BulkUp, Traffic::BulkDown] {
        for (up, down) in [(true, true), (true, false), (false, true)] {
            let mut stalls = Vec::new();
            let mut switches = Vec::new();
            for seed in 0..40 {
                let mut pair = Pair::established(traffic, seed);
                let death = pair.now + ms(u64::from(seed) * 7);
                pair.run_until(death);
                pair.links[0][0].dead = up;
                pair.links[0][1].dead = down;
                pair.run_for(ms(5_000));
                assert_eq!(pair.selected(), [Some(RELAY); 2], "{traffic:?} up {up} down {down} seed {seed}");
                let switched = pair.sides.iter().flat_map(|side| &side.switches).map(|(at, ..)| *at).max();
                switches.push(switched.unwrap().since(death));
                stalls.push(pair.longest_gap(death));
            }
            switches.sort();
            stalls.sort();
            // answers under way 100, patience 150, patience and slack 300, the doubting ping's way to the other side 50
            let figures = [switches[20], switches[39], stalls[20], stalls[39]].map(|time| time.as_millis());
            std::println!("{traffic:?} up {up} down {down}: switch p50, max; stall p50, max: {figures:?}");
            assert!(switches[20] <= ms(600) && switches[39] <= ms(900), "{traffic:?} {up} {down} {figures:?}");
            assert!(stalls[20] <= ms(500) && stalls[39] <= ms(900), "{traffic:?} {up} {down} {figures:?}");
        }
    }
}

#[test]
fn three_percent_loss_for_ten_minutes_switches_nothing() {
    for traffic in [Traffic::BulkUp, Traffic::PingPong, Traffic::Idle] {
        let mut pair = Pair::established(traffic, 7);
        pair.set_loss(30);
        let hedges = pair.sides.each_ref().map(|side| side.hedges);
        pair.run_for(ms(600_000));
        let switches: Vec<_> = pair.sides.iter().flat_map(|side| &side.switches).collect();
        assert!(switches.is_empty(), "{traffic:?}: {switches:?}");
        std::println!("{traffic:?}: hedges {hedges:?} → {:?}", pair.sides.each_ref().map(|side| side.hedges));
        if traffic == Traffic::BulkUp {
            assert_eq!(hedges, pair.sides.each_ref().map(|side| side.hedges), "bulk hedges nothing");
        }
    }
}

#[test]
fn blackout_ends_within_a_second_of_the_return_of_one_route() {
    for (returning, seed) in [DIRECT, RELAY].into_iter().zip(0..) {
        let mut pair = Pair::established(Traffic::PingPong, seed);
        pair.links.iter_mut().flatten().for_each(|link| link.dead = true);
        pair.run_for(ms(20_000));
        let back = pair.now;
        pair.links[usize::from(returning.0)].iter_mut().for_each(|link| link.dead = false);
        pair.run_for(ms(5_000));
        let resumed = pair.sides[0].delivered.range(back..).next().unwrap();
        std::println!("{returning}: resumed after {:?}", resumed.since(back));
        assert!(resumed.since(back) < ms(1_000), "{:?}", resumed.since(back));
        assert_eq!(pair.selected(), [Some(returning); 2]);
    }
}

#[test]
fn blackout_of_the_only_route_ends_within_a_second_of_its_return() {
    let mut pair = Pair::new(Traffic::PingPong, 3);
    pair.links[0].iter_mut().for_each(|link| link.dead = true);
    pair.add(RELAY);
    pair.establish(RELAY);
    pair.run_for(ms(5_000));
    pair.links[1].iter_mut().for_each(|link| link.dead = true);
    pair.run_for(ms(20_000));
    let back = pair.now;
    pair.links[1].iter_mut().for_each(|link| link.dead = false);
    pair.run_for(ms(5_000));
    assert!(pair.sides[0].delivered.range(back..).next().unwrap().since(back) < ms(1_000));
}

#[test]
fn first_direct_route_is_selected_at_its_first_pong() {
    let mut pair = Pair::new(Traffic::PingPong, 1);
    pair.add(RELAY);
    pair.establish(RELAY);
    pair.run_for(ms(3_000));
    pair.add(DIRECT);
    let added = pair.now;
    pair.run_for(ms(1_000));
    for side in &pair.sides {
        let [(at, from, why)] = side.switches[..] else { panic!("{:?}", side.switches) };
        assert_eq!((from, why, at.since(added)), (Some(RELAY), Why::FirstDirect, ms(100)));
    }
}

#[test]
fn returned_route_is_selected_only_after_a_row_of_pongs() {
    let mut pair = Pair::established(Traffic::PingPong, 5);
    pair.links[0].iter_mut().for_each(|link| link.dead = true);
    pair.run_for(ms(4_000));
    assert_eq!(pair.selected(), [Some(RELAY); 2]);
    pair.links[0].iter_mut().for_each(|link| link.dead = false);
    let back = pair.now;
    pair.run_for(ms(1_900));
    assert_eq!(pair.selected(), [Some(RELAY); 2]);
    pair.run_for(ms(10_000));
    assert_eq!(pair.selected(), [Some(DIRECT); 2]);
    for side in &pair.sides {
        let (at, from, why) = *side.switches.last().unwrap();
        assert_eq!((from, why), (Some(RELAY), Why::Better));
        assert!(at.since(back) >= ms(2_000), "{:?}", at.since(back));
        assert_eq!(side.switches.len(), 2);
    }
}

#[test]
fn bursts_of_loss_switch_less_than_six_times_a_minute() {
    let mut pair = Pair::established(Traffic::PingPong, 11);
    for _ in 0..300 {
        // a fifth of the time the direct route passes next to nothing
        pair.links[0].iter_mut().for_each(|link| link.loss = 900);
        pair.run_for(ms(400));
        pair.links[0].iter_mut().for_each(|link| link.loss = 0);
        pair.run_for(ms(1_600));
    }
    for side in &pair.sides {
        std::println!("{} switches in ten minutes of bursts", side.switches.len());
        assert!(side.switches.len() <= 60, "{} switches in ten minutes", side.switches.len());
    }
}

#[test]
fn idle_connection_lets_the_machine_sleep() {
    let mut pair = Pair::established(Traffic::Idle, 1);
    pair.run_for(ms(20_000));
    let before = pair.sides.each_ref().map(|side| (side.pings, side.looks));
    pair.run_for(ms(60_000));
    for (side, (pings, looks)) in pair.sides.iter().zip(before) {
        assert!(!side.paths.watching());
        assert_eq!(side.pings - pings, 12, "six on the selected route, six on the standby");
        assert!(side.looks - looks <= 12, "{} looks", side.looks - looks);
    }
}

#[test]
fn death_while_idle_is_survived_by_the_next_message() {
    let mut pair = Pair::established(Traffic::Idle, 2);
    pair.run_for(ms(20_000));
    pair.links[0].iter_mut().for_each(|link| link.dead = true);
    pair.run_for(ms(3_000));
    pair.traffic = Traffic::PingPong;
    let sent = pair.now;
    pair.request(1);
    pair.run_for(ms(3_000));
    let answered = pair.sides[0].delivered.range(sent..).next().unwrap();
    assert!(answered.since(sent) < ms(1_000), "{:?}", answered.since(sent));
}

#[test]
fn same_seed_gives_the_same_decisions() {
    let run = || {
        let mut pair = Pair::established(Traffic::PingPong, 9);
        pair.set_loss(100);
        pair.run_for(ms(60_000));
        pair.sides.map(|side| (side.pings, side.hedges, side.switches, side.delivered))
    };
    assert_eq!(run(), run());
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What the application does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Traffic {
    Idle,
    /// Side 0 asks, side 1 answers, at once; what is lost is repeated after 175 ms, 350 ms and so on.
    PingPong,
    /// Side 0 sends a datagram every 5 ms; every second one is acknowledged by a tiny one.
    BulkUp,
    /// The same from side 1.
    BulkDown,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    delay: Duration,
    /// In thousandths.
    loss: u64,
    dead: bool,
}

#[derive(Debug, Clone, Copy)]
struct Datagram {
    number: u64,
    body: Body,
}

#[derive(Debug, Clone, Copy)]
enum Body {
    Ask(u64),
    Reply(u64),
    Bulk,
    Ack,
}

#[derive(Debug, Clone, Copy)]
enum Packet {
    Quic(Datagram),
    Ping { txid: u64, doubt: bool },
    Pong { txid: u64 },
}

#[derive(Debug)]
enum Event {
    Arrive { to: usize, route: RouteId, packet: Packet },
    Timer { side: usize },
    Repeat { side: usize, turn: u64, after: Duration },
    Bulk,
}

/// One side: the machine, and what mux, agent and application would hold.
#[derive(Debug)]
struct Side {
    paths: Paths,
    plan: Plan,
    routes: RouteSet,
    track: Sample,
    ring: VecDeque<(Instant, Datagram)>,
    timer: Option<Instant>,
    /// The latest turn of a ping-pong that this side has sent or answered.
    turn: u64,
    seen: BTreeSet<u64>,
    delivered: BTreeSet<Instant>,
    switches: Vec<(Instant, Option<RouteId>, Why)>,
    hedges: u32,
    pings: u32,
    looks: u32,
    looks_now: (Instant, u32),
}

#[derive(Debug)]
struct Pair {
    now: Instant,
    traffic: Traffic,
    sides: [Side; 2],
    /// By route, then by sender.
    links: [[Link; 2]; 2],
    queue: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    rng: Rng,
}

impl Pair {
    fn new(traffic: Traffic, seed: u8) -> Self {
        let now = Instant::after_start(ms(1_000));
        let side = |salt: u8| Side {
            paths: Paths::new(PathsConfig::default(), &[seed.wrapping_mul(2).wrapping_add(salt); 32], now),
            plan: Plan::All,
            routes: RouteSet::default(),
            track: Sample::default(),
            ring: VecDeque::new(),
            timer: None,
            turn: 0,
            seen: BTreeSet::new(),
            delivered: BTreeSet::new(),
            switches: vec![],
            hedges: 0,
            pings: 0,
            looks: 0,
            looks_now: (now, 0),
        };
        let link = Link { delay: ms(50), loss: 0, dead: false };
        Pair {
            now,
            traffic,
            sides: [side(0), side(1)],
            links: [[link; 2]; 2],
            queue: BTreeMap::new(),
            sequence: 0,
            rng: Rng::new(&[seed; 32], "network"),
        }
    }

    /// A connection at rest on its direct route, 1 % loss, the handshake just over on both sides.
    fn established(traffic: Traffic, seed: u8) -> Self {
        let mut pair = Pair::new(traffic, seed);
        pair.set_loss(10);
        pair.add(DIRECT);
        pair.add(RELAY);
        pair.establish(DIRECT);
        pair.run_for(ms(10_000));
        assert_eq!(pair.selected(), [Some(DIRECT); 2]);
        pair.sides.iter_mut().for_each(|side| side.switches.clear());
        pair
    }

    fn add(&mut self, route: RouteId) {
        for side in 0..2 {
            self.sides[side].routes.insert(route);
            self.input(side, Input::Add { route, kind: KINDS[usize::from(route.0)], trusted: true, rtt: None });
        }
    }

    fn establish(&mut self, heard: RouteId) {
        for side in 0..2 {
            self.input(side, Input::Established { heard });
            self.sides[side].switches.clear();
        }
        match self.traffic {
            Traffic::Idle => {}
            Traffic::PingPong => self.request(1),
            Traffic::BulkUp | Traffic::BulkDown => self.after(ms(0), Event::Bulk),
        }
    }

    fn set_loss(&mut self, thousandths: u64) {
        self.links.iter_mut().flatten().for_each(|link| link.loss = thousandths);
    }

    fn selected(&self) -> [Option<RouteId>; 2] {
        self.sides.each_ref().map(|side| side.paths.selected())
    }

    /// The longest time from `from` on in which the application got nothing new.
    fn longest_gap(&self, from: Instant) -> Duration {
        let side = usize::from(self.traffic == Traffic::BulkUp);
        let delivered = &self.sides[side].delivered;
        let before = delivered.range(..from).next_back().copied().unwrap();
        let mut times: Vec<_> = delivered.range(from..).copied().collect();
        times.insert(0, before);
        times.push(self.now);
        times.windows(2).map(|pair| pair[1].since(pair[0])).max().unwrap()
    }

    fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    fn run_until(&mut self, end: Instant) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            self.now = entry.key().0;
            let event = entry.remove();
            self.happen(event);
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { to, route, packet } => match packet {
                Packet::Quic(datagram) => self.arrive(to, route, datagram),
                Packet::Ping { txid, doubt } => {
                    self.transmit(to, route, Packet::Pong { txid });
                    self.input(to, Input::Ping { route, doubt });
                }
                Packet::Pong { txid } => self.input(to, Input::Pong { route, txid }),
            },
            Event::Timer { side } if self.sides[side].timer == Some(self.now) => {
                self.sides[side].timer = None;
                self.look(side);
            }
            Event::Timer { .. } => {}
            Event::Repeat { side, turn, after } if turn == self.sides[side].turn => {
                let body = if side == 0 { Body::Ask(turn) } else { Body::Reply(turn) };
                self.send(side, 100, body);
                self.after(after * 2, Event::Repeat { side, turn, after: after * 2 });
            }
            Event::Repeat { .. } => {}
            Event::Bulk => {
                self.send(usize::from(self.traffic == Traffic::BulkDown), 1_200, Body::Bulk);
                self.after(ms(5), Event::Bulk);
            }
        }
    }

    fn request(&mut self, turn: u64) {
        self.turn(0, turn, Body::Ask(turn));
    }

    fn turn(&mut self, side: usize, turn: u64, body: Body) {
        self.sides[side].turn = turn;
        self.send(side, 100, body);
        self.after(ms(175), Event::Repeat { side, turn, after: ms(175) });
    }

    fn arrive(&mut self, to: usize, route: RouteId, datagram: Datagram) {
        let side = &mut self.sides[to];
        side.track.heard.retain(|(known, _)| *known != route);
        side.track.heard.push((route, self.now));
        if side.plan == Plan::All || side.paths.selected() == Some(route) {
            (side.track.unanswered_large, side.track.unanswered_small) = (None, None);
        }
        if !side.seen.insert(datagram.number) {
            return; // QUIC drops duplicates
        }
        match datagram.body {
            Body::Ask(turn) if turn > side.turn => self.turn(1, turn, Body::Reply(turn)),
            Body::Reply(turn) if turn == side.turn => {
                side.delivered.insert(self.now);
                self.request(turn + 1);
            }
            Body::Ask(_) | Body::Reply(_) | Body::Ack => {}
            Body::Bulk => {
                side.delivered.insert(self.now);
                if datagram.number.is_multiple_of(2) {
                    self.send(to, 40, Body::Ack);
                }
            }
        }
    }

    /// QUIC hands a datagram to the mux.
    fn send(&mut self, from: usize, len: usize, body: Body) {
        self.sequence += 1;
        let datagram = Datagram { number: self.sequence, body };
        let side = &mut self.sides[from];
        let quiet = side.track.unanswered_large.is_none() && side.track.unanswered_small.is_none();
        let mark = if len > SMALL { &mut side.track.unanswered_large } else { &mut side.track.unanswered_small };
        mark.get_or_insert(self.now);
        side.track.last_sent = Some(self.now);
        if side.ring.len() == 16 {
            side.ring.pop_front();
        }
        side.ring.push_back((self.now, datagram));
        let routes = match side.plan {
            Plan::One(route) | Plan::Instead(route) => [route].into_iter().collect(),
            Plan::Several(routes) => routes,
            Plan::All => side.routes,
        };
        let wake = quiet && !side.paths.watching();
        routes.iter().for_each(|route| self.transmit(from, route, Packet::Quic(datagram)));
        if wake {
            self.look(from);
        }
    }

    fn look(&mut self, side: usize) {
        let at = &mut self.sides[side];
        at.looks += 1;
        at.looks_now = if at.looks_now.0 == self.now { (self.now, at.looks_now.1 + 1) } else { (self.now, 1) };
        assert!(at.looks_now.1 < 8, "the machine spins");
        let sample = at.track.clone();
        self.input(side, Input::Sample(sample));
    }

    fn input(&mut self, from: usize, input: Input) {
        self.sides[from].paths.handle_input(input, self.now);
        while let Some(output) = self.sides[from].paths.poll_output() {
            self.carry_out(from, output);
        }
        let side = &mut self.sides[from];
        let wanted = side.paths.poll_timeout().map(|(at, _)| at.max(self.now));
        if let Some(at) = wanted.filter(|at| side.timer != Some(*at)) {
            side.timer = Some(at);
            self.after(at.since(self.now), Event::Timer { side: from });
        }
    }

    fn carry_out(&mut self, from: usize, output: Output) {
        let side = &mut self.sides[from];
        match output {
            Output::Ping { route, txid, doubt, .. } => {
                side.pings += 1;
                self.transmit(from, route, Packet::Ping { txid, doubt });
            }
            Output::Plan(plan) => side.plan = plan,
            Output::Replay { route, last, max_age, .. } => {
                let skipped = side.ring.len().saturating_sub(last);
                let young = side.ring.iter().skip(skipped).filter(|(sent, _)| self.now.since(*sent) <= max_age);
                let datagrams: Vec<_> = young.map(|(_, datagram)| *datagram).collect();
                datagrams.into_iter().for_each(|datagram| self.transmit(from, route, Packet::Quic(datagram)));
            }
            Output::ClearUnanswered => {
                (side.track.unanswered_large, side.track.unanswered_small) = (None, None);
            }
            Output::Selected { from, why, .. } => side.switches.push((self.now, from, why)),
            Output::Hedged(_) => side.hedges += 1,
            Output::Unhedged | Output::MtuProven { .. } => {}
            Output::Stalled { .. } | Output::Resumed | Output::Up { .. } | Output::Down { .. } => {}
            Output::Drop { route, .. } => side.routes = side.routes.iter().filter(|known| *known != route).collect(),
        }
    }

    fn transmit(&mut self, from: usize, route: RouteId, packet: Packet) {
        let link = self.links[usize::from(route.0)][from];
        let lost = self.rng.below(1_000) < link.loss;
        if !lost && !link.dead {
            self.after(link.delay, Event::Arrive { to: 1 - from, route, packet });
        }
    }

    fn after(&mut self, time: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + time, self.sequence), event);
    }
}
