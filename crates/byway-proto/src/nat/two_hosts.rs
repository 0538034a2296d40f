//! Two agents behind NATs, under fake time: how often each schedule gets through, and what it costs.
//!
//! Each host has an access link of 25 ms that loses 1 % in each direction on the inside of its NAT, the hardest place: a lost
//! opener opens nothing. The peer's report arrives 200 ms after the dial, over a relay whose path takes 50 ms one way.

use alloc::{collections::BTreeMap, vec, vec::Vec};
use core::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::{BinaryHeap, HashSet};

use super::{Agent, AgentConfig, Counters, Explanation, Filtering, Input, LinkId, Mapping, Output, Ports, SocketId};
use crate::{Instant, PeerId, Rng, wire::stun};

const LINK: LinkId = LinkId(1);
const MS: u64 = 1_000_000;

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
    loss: u64,
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
    fn new(kinds: [NatKind; 2], config: &AgentConfig, seed: u64) -> Self {
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
        World { nodes, events: BinaryHeap::new(), held: BTreeMap::new(), serial: 0, rng, loss: 10 }
    }

    fn after(&mut self, when: Instant, event: Event) {
        self.serial += 1;
        self.held.insert(self.serial, event);
        self.events.push((Reverse((when, self.serial as u64)), self.serial));
    }

    fn lost(&mut self) -> bool {
        self.rng.below(1_000) < self.loss
    }

    fn send(&mut self, node: usize, (socket, to): Pair, payload: Payload, now: Instant) {
        if self.lost() {
            return;
        }
        let from = self.nodes[node].sockets[&socket];
        let from = self.nodes[node].nat.out(from, to, now, &mut self.rng);
        self.after(now + Duration::from_millis(25), Event::Core { from, to, payload });
    }

    /// Hands over an input and carries out what follows.
    fn tell(&mut self, node: usize, input: Input, now: Instant) {
        self.nodes[node].agent.handle_input(input, now);
        while let Some(output) = self.nodes[node].agent.poll_output() {
            match output {
                Output::Open { socket, .. } => {
                    let local = SocketAddr::new(self.nodes[node].local.ip(), 20_000 + socket.0 as u16);
                    self.nodes[node].sockets.insert(socket, local);
                    self.nodes[node].agent.handle_input(Input::Opened { socket, local: Some(local) }, now);
                }
                Output::Close { socket } => {
                    self.nodes[node].sockets.remove(&socket);
                }
                Output::Stun { socket, to, datagram } => self.send(node, (socket, to), Payload::Stun(datagram), now),
                Output::Ping { socket, to, txid, .. } => {
                    self.nodes[node].sent.push(now);
                    self.send(node, (socket, to), Payload::Ping(txid), now);
                }
                Output::Route { socket, remote, .. } => self.learn(node, socket, remote, now),
                Output::Signal { signal, .. } => {
                    self.after(
                        now + Duration::from_millis(50),
                        Event::Tell(1 - node, Input::Signal { link: LINK, signal }),
                    );
                }
                Output::Report(_) => {}
            }
        }
        if let Some((at, _)) = self.nodes[node].agent.poll_timeout() {
            // timers fire at the next millisecond
            let ms = at.since_start().as_nanos().div_ceil(u128::from(MS)) as u64;
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
            Event::Timer(node) => {
                if self.nodes[node].agent.poll_timeout().is_some_and(|(at, _)| at <= now) {
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
            self.after(now + Duration::from_millis(25), Event::Inside { node, to: inside, from, payload });
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
    let mut world = World::new(kinds, config, seed);
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
