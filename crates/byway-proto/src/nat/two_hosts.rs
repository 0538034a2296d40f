//! Two agents behind NATs, under fake time: how often each schedule gets through, and what it costs.
//!
//! Each host has an access link, of 25 ms unless a test says otherwise, that loses 1 % in each direction on the inside of its NAT,
//! the hardest place: a lost opener opens nothing. The peer's report arrives 200 ms after the dial, over a relay whose path takes 50 ms one way.

use alloc::{collections::BTreeMap, vec, vec::Vec};
use core::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::{BinaryHeap, HashSet};

use proptest::prelude::*;

use super::{
    Agent, AgentConfig, Counters, Explanation, Filtering, Input, LinkId, Mapping, NatReport, Output, Ports, Signal,
    SocketId,
};
use crate::{Instant, PeerId, Rng, wire::stun};

const LINK: LinkId = LinkId(1);
const MS: u64 = 1_000_000;

/// A connection with a peer that lies.
const LIAR: LinkId = LinkId(2);

/// A socket, and the other end of what it sends or receives.
type Pair = (SocketId, SocketAddr);

/// A NAT by the axes of RFC 4787.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NatKind {
    pub(super) mapping: Mapping,
    pub(super) filtering: Filtering,
    pub(super) ports: Ports,
}

struct Nat {
    kind: NatKind,
    ip: IpAddr,
    /// Inside address, and as much of the destination as the mapping depends on; to the public port.
    mappings: BTreeMap<(SocketAddr, Option<IpAddr>, u16), u16>,
    /// Public port to inside address.
    inside: BTreeMap<u16, SocketAddr>,
    sent_to: HashSet<(u16, SocketAddr)>,
    counter: u16,
    counted: Instant,
}

impl Nat {
    fn out(&mut self, from: SocketAddr, to: SocketAddr, now: Instant, rng: &mut Rng) -> SocketAddr {
        let key = match self.kind.mapping {
            Mapping::EndpointIndependent => (from, None, 0),
            Mapping::AddressDependent => (from, Some(to.ip()), 0),
            Mapping::AddressAndPortDependent => (from, Some(to.ip()), to.port()),
        };
        let port = match self.mappings.get(&key) {
            Some(port) => *port,
            None => self.new_port(from, now, rng),
        };
        self.mappings.insert(key, port);
        self.inside.insert(port, from);
        self.sent_to.insert((port, to));
        SocketAddr::new(self.ip, port)
    }

    fn new_port(&mut self, from: SocketAddr, now: Instant, rng: &mut Rng) -> u16 {
        let random = |rng: &mut Rng| 1_024 + rng.below(64_512) as u16;
        let mut port = match self.kind.ports {
            Ports::Preserving => from.port(),
            Ports::Random => random(rng),
            Ports::Sequential { step } => {
                // 5 mappings a second by other hosts, Poisson by thin slices
                let slices = now.since(self.counted).as_millis() as u64;
                let others = (0..slices).filter(|_| rng.below(200) == 0).count() as i32;
                self.counted = now;
                let next = i32::from(self.counter) + (others + 1) * i32::from(step);
                self.counter = (1_024 + (next - 1_024).rem_euclid(64_512)) as u16;
                self.counter
            }
        };
        while self.inside.contains_key(&port) {
            port = random(rng);
        }
        port
    }

    fn lets_in(&self, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        let inside = *self.inside.get(&port)?;
        let mut sent = self.sent_to.iter().filter(|(by, _)| *by == port).map(|(_, to)| *to);
        let open = match self.kind.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => sent.any(|to| to.ip() == from.ip()),
            Filtering::AddressAndPortDependent => sent.any(|to| to == from),
        };
        open.then_some(inside)
    }
}

struct Node {
    agent: Agent,
    nat: Nat,
    local: SocketAddr,
    sockets: BTreeMap<SocketId, SocketAddr>,
    /// The route machine's own pings: transaction id to socket and remote.
    own: BTreeMap<u64, Pair>,
    known: HashSet<Pair>,
    direct: Option<Instant>,
    /// When each packet of the agent to the peer left, and whether the peer's public address is hit by a guess.
    sent: Vec<Instant>,
}

enum Event {
    Tell(usize, Input),
    /// Arrives at the NAT of the public address, or at a server.
    Core {
        from: SocketAddr,
        to: SocketAddr,
        payload: Payload,
    },
    Inside {
        node: usize,
        to: SocketAddr,
        from: SocketAddr,
        payload: Payload,
    },
    RoutePing {
        node: usize,
        socket: SocketId,
        remote: SocketAddr,
        left: u32,
    },
    Timer(usize),
    /// The host's clock jumps ahead.
    Jump(usize),
}

#[derive(Clone)]
enum Payload {
    Ping(u64),
    Pong(u64),
    Stun(Vec<u8>),
}

struct World {
    nodes: [Node; 2],
    events: BinaryHeap<(Reverse<(Instant, u64)>, usize)>,
    held: BTreeMap<usize, Event>,
    serial: usize,
    rng: Rng,
    conditions: Conditions,
    /// How far each host's clock has jumped ahead.
    ahead: [Duration; 2],
}

/// What makes a dial hard beside the two NATs.
#[derive(Debug, Clone, Copy)]
struct Conditions {
    /// Of each access link in each direction, in thousandths.
    loss: u64,
    /// Of each access link one way.
    delay: Duration,
    /// How much later than others a signal may come, so that one overtakes another; half of them come twice.
    jitter: u64,
    /// One host's clock jumps by this while pings are under way: the machine was suspended.
    jump: Duration,
    /// How often either host hears a lie from a third peer.
    lies: u64,
}

impl Default for Conditions {
    fn default() -> Self {
        Conditions { loss: 10, delay: Duration::from_millis(25), jitter: 0, jump: Duration::ZERO, lies: 0 }
    }
}

/// What came out.
pub(super) struct Ran {
    /// When both sides had a direct route, after the dial.
    pub(super) direct: Option<Duration>,
    pub(super) counters: [Counters; 2],
    pub(super) why: [Explanation; 2],
    sent: [Vec<Instant>; 2],
}

fn at(ms: u64) -> Instant {
    Instant::after_start(Duration::from_millis(ms))
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn servers() -> [SocketAddr; 2] {
    [addr("203.0.113.1:3478"), addr("203.0.113.2:3478")]
}

impl World {
    fn new(kinds: [NatKind; 2], config: &AgentConfig, conditions: Conditions, seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut rng = Rng::new(&bytes, "world");
        let mut node = |index: u8| {
            bytes[31] = index + 1;
            let local = SocketAddr::new(IpAddr::from([192, 168, index, 2]), 7_777);
            let ip = IpAddr::from([192, 0, 2, index + 1]);
            let counter = 1_024 + rng.below(60_000) as u16;
            let kind = kinds[usize::from(index)];
            let (mappings, inside) = (BTreeMap::new(), BTreeMap::new());
            let nat = Nat { kind, ip, mappings, inside, sent_to: HashSet::new(), counter, counted: at(0) };
            Node {
                agent: Agent::new(config.clone(), &bytes, at(0)),
                nat,
                local,
                sockets: [(SocketId::MAIN, local)].into(),
                own: BTreeMap::new(),
                known: HashSet::new(),
                direct: None,
                sent: Vec::new(),
            }
        };
        let nodes = [node(0), node(1)];
        let (events, held) = (BinaryHeap::new(), BTreeMap::new());
        World { nodes, events, held, serial: 0, rng, conditions, ahead: [Duration::ZERO; 2] }
    }

    fn after(&mut self, when: Instant, event: Event) {
        self.serial += 1;
        self.held.insert(self.serial, event);
        self.events.push((Reverse((when, self.serial as u64)), self.serial));
    }

    fn lost(&mut self) -> bool {
        self.rng.below(1_000) < self.conditions.loss
    }

    fn send(&mut self, node: usize, (socket, to): Pair, payload: Payload, now: Instant) {
        if self.lost() {
            return;
        }
        let from = self.nodes[node].sockets[&socket];
        let from = self.nodes[node].nat.out(from, to, now, &mut self.rng);
        self.after(now + self.conditions.delay, Event::Core { from, to, payload });
    }

    /// Hands over an input and carries out what follows.
    fn tell(&mut self, node: usize, input: Input, now: Instant) {
        let clock = now + self.ahead[node];
        self.nodes[node].agent.handle_input(input, clock);
        while let Some(output) = self.nodes[node].agent.poll_output() {
            match output {
                Output::Open { socket, .. } => {
                    let local = SocketAddr::new(self.nodes[node].local.ip(), 20_000 + socket.0 as u16);
                    self.nodes[node].sockets.insert(socket, local);
                    self.nodes[node].agent.handle_input(Input::Opened { socket, local: Some(local) }, clock);
                }
                Output::Close { socket } => {
                    self.nodes[node].sockets.remove(&socket);
                }
                Output::Stun { socket, to, datagram } => self.send(node, (socket, to), Payload::Stun(datagram), now),
                Output::Ping { link, socket, to, txid, .. } => {
                    self.nodes[node].sent.push(clock);
                    if link == LINK {
                        self.send(node, (socket, to), Payload::Ping(txid), now); // nobody has the liar's key
                    }
                }
                Output::Route { socket, remote, .. } => self.learn(node, socket, remote, now),
                Output::Signal { link, signal } if link == LINK => {
                    let copies = if self.conditions.jitter > 0 { 1 + self.rng.below(2) } else { 1 };
                    for _ in 0..copies {
                        let late = self.rng.below(self.conditions.jitter + 1);
                        let signal = Input::Signal { link: LINK, signal: signal.clone() };
                        self.after(now + Duration::from_millis(50 + late), Event::Tell(1 - node, signal));
                    }
                }
                Output::Signal { .. } => {}
                Output::Report(_) => {}
            }
        }
        if let Some((at, _)) = self.nodes[node].agent.poll_timeout() {
            // timers fire at the next millisecond
            let at = at.since_start().saturating_sub(self.ahead[node]);
            let ms = at.as_nanos().div_ceil(u128::from(MS)) as u64;
            self.after(Instant::after_start(Duration::from_millis(ms)).max(now), Event::Timer(node));
        }
    }

    fn learn(&mut self, node: usize, socket: SocketId, remote: SocketAddr, now: Instant) {
        if self.nodes[node].known.insert((socket, remote)) {
            self.after(now, Event::RoutePing { node, socket, remote, left: 6 });
        }
    }

    fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Tell(node, input) => self.tell(node, input, now),
            Event::Jump(node) => {
                self.ahead[node] = self.conditions.jump;
                self.tell(node, Input::Timeout, now);
            }
            Event::Timer(node) => {
                let clock = now + self.ahead[node];
                if self.nodes[node].agent.poll_timeout().is_some_and(|(at, _)| at <= clock) {
                    self.tell(node, Input::Timeout, now);
                }
            }
            Event::Core { from, to, payload } => self.cross(from, to, payload, now),
            Event::Inside { node, to, from, payload } => self.receive(node, (to, from), payload, now),
            Event::RoutePing { node, socket, remote, left } => {
                let side = &mut self.nodes[node];
                if side.direct.is_some() || left == 0 || !side.sockets.contains_key(&socket) {
                    return;
                }
                let txid = self.rng.next_u64();
                self.nodes[node].own.insert(txid, (socket, remote));
                self.send(node, (socket, remote), Payload::Ping(txid), now);
                let again = Event::RoutePing { node, socket, remote, left: left - 1 };
                self.after(now + Duration::from_millis(150), again);
            }
        }
    }

    fn cross(&mut self, from: SocketAddr, to: SocketAddr, payload: Payload, now: Instant) {
        if let (true, Payload::Stun(request)) = (servers().contains(&to), &payload) {
            let Some(txid) = stun::parse_request(request) else { return };
            let answer = Payload::Stun(stun::binding_response(txid, from));
            return self.enter(to, from, answer, now);
        }
        self.enter(from, to, payload, now);
    }

    fn enter(&mut self, from: SocketAddr, to: SocketAddr, payload: Payload, now: Instant) {
        let Some(node) = self.nodes.iter().position(|node| node.nat.ip == to.ip()) else { return };
        let Some(inside) = self.nodes[node].nat.lets_in(from, to.port()) else { return };
        if !self.lost() {
            self.after(now + self.conditions.delay, Event::Inside { node, to: inside, from, payload });
        }
    }

    fn receive(&mut self, node: usize, (to, from): (SocketAddr, SocketAddr), payload: Payload, now: Instant) {
        let Some(socket) = self.nodes[node].sockets.iter().find(|(_, local)| **local == to).map(|(id, _)| *id) else {
            return;
        };
        match payload {
            Payload::Ping(txid) => {
                self.send(node, (socket, from), Payload::Pong(txid), now);
                self.learn(node, socket, from, now);
            }
            Payload::Pong(txid) => match self.nodes[node].own.remove(&txid) {
                Some(route) if route == (socket, from) => {
                    self.nodes[node].direct.get_or_insert(now);
                    self.tell(node, Input::Direct { link: LINK, socket, remote: from }, now);
                }
                _ => self.tell(node, Input::Pong { link: LINK, socket, from, txid }, now),
            },
            Payload::Stun(datagram) => self.tell(node, Input::Stun { socket, from, datagram }, now),
        }
    }

    /// A clock that jumps, and a third peer that lies: it says that it is at the other host's address, and wants every kind of punch.
    fn plan_trouble(&mut self, reports: &[NatReport; 2]) {
        if !self.conditions.jump.is_zero() {
            let when = at(DIAL + 200 + self.rng.below(500));
            let node = self.rng.below(2) as usize;
            self.after(when, Event::Jump(node));
        }
        let lies = self.conditions.lies;
        for (node, theirs) in reports.iter().rev().enumerate().filter(|_| lies > 0) {
            let Some(ip) = theirs.ipv4.as_ref().and_then(|it| it.public).map(|it| it.ip()) else { continue };
            let mut lie = theirs.clone();
            lie.ipv4.as_mut().unwrap().ports = Some(Ports::Random);
            let addrs = (0..8).map(|port| SocketAddr::new(ip, 100 + port)).collect();
            let first = [
                Input::Up { link: LIAR, peer: PeerId::ed25519([9; 32]), dialled: false, loopback: false },
                Input::Theirs { link: LIAR, report: lie },
                Input::Candidates { link: LIAR, addrs },
            ];
            first.into_iter().for_each(|input| self.after(at(DIAL + 100), Event::Tell(node, input)));
            for number in 0..lies {
                let attempt = number as u32;
                let signal = match self.rng.below(5) {
                    0 => Signal::Go { attempt, ip },
                    1 => Signal::Spray { attempt },
                    2 => Signal::Counter { attempt, ip, base: 5_000, step: 3 },
                    3 => Signal::Guess { attempt, ip, ports: (1..=64).collect() },
                    _ => Signal::Busy { attempt },
                };
                let when = at(DIAL + 100 + self.rng.below(3_000));
                self.after(when, Event::Tell(node, Input::Signal { link: LIAR, signal }));
            }
        }
    }

    fn run(&mut self, end: Instant) {
        while let Some((Reverse((now, _)), id)) = self.events.peek().copied() {
            let both = self.nodes.iter().all(|node| node.direct.is_some());
            if now > end || both {
                return;
            }
            self.events.pop();
            if let Some(event) = self.held.remove(&id) {
                self.handle(event, now);
            }
        }
    }
}

/// When the dial begins: the surveys are through by then, but for the lifetime of mappings.
const DIAL: u64 = 10_000;

/// Runs two hosts that dial at once; `end` is that many milliseconds later.
pub(super) fn punch(kinds: [NatKind; 2], config: &AgentConfig, seed: u64, end: u64) -> Ran {
    punch_under(Conditions::default(), kinds, config, (seed, end))
}

fn punch_under(conditions: Conditions, kinds: [NatKind; 2], config: &AgentConfig, (seed, end): (u64, u64)) -> Ran {
    let mut world = World::new(kinds, config, conditions, seed);
    for node in 0..2 {
        let local = world.nodes[node].local;
        for input in [Input::Network(vec![local.ip()]), Input::Servers(servers().to_vec())] {
            world.after(at(0), Event::Tell(node, input));
        }
    }
    world.run(at(DIAL + 200));
    let reports = [0, 1].map(|node: usize| world.nodes[node].agent.report().clone());
    for node in 0..2 {
        let theirs = reports[1 - node].clone();
        let public = theirs.ipv4.as_ref().and_then(|it| it.public).unwrap();
        let addrs = vec![world.nodes[1 - node].local, public];
        for input in [
            Input::Up { link: LINK, peer: PeerId::ed25519([node as u8; 32]), dialled: node == 0, loopback: false },
            Input::Theirs { link: LINK, report: theirs },
            Input::Candidates { link: LINK, addrs },
        ] {
            world.after(at(DIAL + 200), Event::Tell(node, input));
        }
    }
    world.plan_trouble(&reports);
    world.run(at(DIAL + end));
    let [a, b] = world.nodes;
    let direct = a.direct.zip(b.direct).map(|(a, b)| a.max(b).since(at(DIAL)));
    let why = [&a, &b].map(|node| node.agent.explain(LINK).unwrap());
    Ran { direct, counters: [a.agent.counters(), b.agent.counters()], why, sent: [a.sent, b.sent] }
}

const fn nat(mapping: Mapping, filtering: Filtering, ports: Ports) -> NatKind {
    NatKind { mapping, filtering, ports }
}

const HOME: NatKind = nat(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, Ports::Preserving);
const RANDOM: NatKind = nat(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent, Ports::Random);

const fn counting(step: i16) -> NatKind {
    nat(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent, Ports::Sequential { step })
}

/// The share of runs that were direct in time, in both orders; checks the budget of each.
fn share(a: NatKind, b: NatKind, runs: u64, within: u64) -> f64 {
    let mut direct = 0;
    let mut times = Vec::new();
    for seed in 0..runs {
        let kinds = if seed % 2 == 0 { [a, b] } else { [b, a] };
        let ran = punch(kinds, &AgentConfig::default(), seed, within + 3_000);
        for (counters, sent) in ran.counters.iter().zip(&ran.sent) {
            assert!(counters.mappings_max_per_dial <= 256 && counters.probes_max_per_dial <= 1_200, "seed {seed}");
            assert!(sent.windows(251).all(|it| it[250].since(it[0]) > Duration::from_secs(1)), "seed {seed}");
        }
        for why in &ran.why {
            assert_eq!(why.direct, ran.direct.is_some(), "seed {seed}");
        }
        times.push(ran.direct.unwrap_or(Duration::MAX));
        direct += u64::from(ran.direct.is_some_and(|it| it <= Duration::from_millis(within)));
    }
    times.sort();
    std::println!("{a:?} x {b:?}: {direct} of {runs}, p50 {:?}", times[times.len() / 2]);
    direct as f64 / runs as f64
}

#[test]
fn two_homes_meet_every_time() {
    assert_eq!(share(HOME, HOME, 500, 2_000), 1.0);
}

#[test]
fn a_nat_that_counts_is_met_at_a_predicted_port() {
    for step in [1, -1, 3] {
        assert!(share(HOME, counting(step), 500, 2_000) >= 0.99);
    }
}

#[test]
fn two_nats_that_count_are_met_where_both_aim() {
    assert!(share(counting(1), counting(2), 500, 3_000) >= 0.97);
}

#[test]
fn a_nat_with_random_ports_is_met_by_many_guesses() {
    assert!(share(HOME, RANDOM, 500, 5_000) >= 0.98);
}

/// Whether two hosts come to a direct path without a guess, by the axes alone; byway-sim's `oracle` says why.
fn meet_without_guessing(a: NatKind, b: NatKind) -> bool {
    let steady = |nat: NatKind| nat.mapping <= Mapping::AddressDependent;
    let any_port = |nat: NatKind| nat.filtering <= Filtering::AddressDependent;
    let everybody = |nat: NatKind| nat.filtering == Filtering::EndpointIndependent;
    let hears = |a, b| everybody(a) && any_port(b);
    match [a, b].map(|nat| nat.mapping == Mapping::EndpointIndependent) {
        [true, true] => true,
        [true, false] => any_port(a),
        [false, true] => any_port(b),
        [false, false] => (hears(a, b) || hears(b, a)) && (steady(a) || steady(b)),
    }
}

fn any_nat() -> impl Strategy<Value = NatKind> {
    let mapping = prop::sample::select(vec![
        Mapping::EndpointIndependent,
        Mapping::AddressDependent,
        Mapping::AddressAndPortDependent,
    ]);
    let filtering = prop::sample::select(vec![
        Filtering::EndpointIndependent,
        Filtering::AddressDependent,
        Filtering::AddressAndPortDependent,
    ]);
    let steps = [Ports::Sequential { step: 1 }, Ports::Sequential { step: -3 }];
    let ports = prop::sample::select([vec![Ports::Preserving, Ports::Random], steps.to_vec()].concat());
    (mapping, filtering, ports).prop_map(|(mapping, filtering, ports)| NatKind { mapping, filtering, ports })
}

prop_compose! {
    fn any_conditions()(
        loss in prop::sample::select(vec![0_u64, 10, 10, 10, 50]),
        delay in 1..=75_u64,
        jitter in 0..=400_u64,
        jump in prop::sample::select(vec![0, 0, 1, 30, 3_600]),
        lies in prop::sample::select(vec![0, 3, 30]),
    ) -> Conditions {
        let (delay, jump) = (Duration::from_millis(delay), Duration::from_secs(jump));
        Conditions { loss, delay, jitter, jump, lies }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn what_can_meet_without_guessing_is_direct_within_two_seconds_and_every_budget_holds(
        a in any_nat(),
        b in any_nat(),
        conditions in any_conditions(),
        seed: u64,
    ) {
        let ran = punch_under(conditions, [a, b], &AgentConfig::default(), (seed, 12_000));
        for (counters, sent) in ran.counters.iter().zip(&ran.sent) {
            prop_assert!(counters.mappings_max_per_dial <= 256 && counters.probes_max_per_dial <= 1_200);
            prop_assert!(sent.windows(251).all(|it| it[250].since(it[0]) > Duration::from_secs(1)));
        }
        if meet_without_guessing(a, b) && conditions.loss <= 10 {
            // from when both were told of the other, 200 ms after the dial
            prop_assert!(ran.direct.is_some_and(|it| it <= Duration::from_millis(2_200)), "{:?}", ran.direct);
        }
    }
}
