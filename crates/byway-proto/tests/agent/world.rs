//! Two hosts behind their NATs, and what lies between them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use byway_proto::{
    Instant, PeerId, Rng,
    nat::{Agent, AgentConfig, Counters, Explanation, Input, LinkId, NatReport, Output, SocketId},
    wire::stun,
};

use super::{
    chaos::Chaos,
    nat::{Nat, NatKind},
    watch::Watch,
};

/// The connection between the two.
pub(super) const LINK: LinkId = LinkId(1);

/// When the dial begins, in milliseconds: the surveys are through by then, but for the lifetime of mappings.
pub(super) const DIAL: u64 = 10_000;

/// When both know of each other.
pub(super) const MET: u64 = DIAL + 200;

/// Turns in one millisecond after which the agent would keep its driver busy for nothing.
const MAX_TURNS: usize = 64;

/// Ways by which a host answers the other, several times what a route machine holds at a time: two NATs that give each destination
/// another port would make each other's hosts learn of new ones without end.
const MAX_KNOWN: usize = 64;

/// STUN requests remembered for servers that lie.
const REQUESTS: usize = 64;

/// A socket, and the other end of what it sends or receives.
type Pair = (SocketId, SocketAddr);

/// What makes a dial hard beside the two NATs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    /// Of each access link in each direction, in thousandths.
    pub(crate) loss: u64,
    /// How many packets are lost at most once the two know of each other.
    pub(crate) most_lost: u64,
    /// Of each access link one way.
    pub(crate) delay: Duration,
    /// How much later than others a signal may come, so that one overtakes another; half of them come twice.
    pub(crate) jitter: u64,
    /// Of so many sockets the system refuses one, and another is never heard of again; 0 is none.
    pub(crate) refused: u32,
}

impl Default for Conditions {
    fn default() -> Self {
        Conditions { loss: 10, most_lost: u64::MAX, delay: Duration::from_millis(25), jitter: 0, refused: 0 }
    }
}

/// What came out.
pub(crate) struct Ran {
    /// When both sides had a direct route, after the dial.
    pub(crate) direct: Option<Duration>,
    pub(crate) counters: [Counters; 2],
    pub(crate) why: [Option<Explanation>; 2],
}

pub(super) struct Node {
    pub(super) agent: Agent,
    pub(super) watch: Watch,
    pub(super) nat: Nat,
    local: SocketAddr,
    sockets: BTreeMap<SocketId, SocketAddr>,
    /// The route machine's own pings: transaction id to socket and remote.
    own: BTreeMap<u64, Pair>,
    known: HashSet<Pair>,
    direct: Option<Instant>,
    /// How far its clock has jumped ahead.
    pub(super) ahead: Duration,
    /// The last requests to servers.
    pub(super) requests: Vec<(SocketId, SocketAddr, Vec<u8>)>,
    /// The last turn by timer, and how many came at that time.
    turns: (Instant, usize),
}

pub(super) enum Event {
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
    /// Somebody makes trouble.
    Trouble,
}

#[derive(Clone)]
pub(super) enum Payload {
    Ping(u64),
    Pong(u64),
    Stun(Vec<u8>),
}

pub(super) struct World<'a> {
    pub(super) nodes: [Node; 2],
    events: BinaryHeap<(Reverse<(Instant, u64)>, u64)>,
    held: BTreeMap<u64, Event>,
    serial: u64,
    pub(super) rng: Rng,
    pub(super) conditions: Conditions,
    lost: u64,
    pub(super) chaos: Chaos<'a>,
}

pub(super) fn at(ms: u64) -> Instant {
    Instant::after_start(Duration::from_millis(ms))
}

pub(super) fn servers() -> [SocketAddr; 2] {
    [([203, 0, 113, 1], 3_478).into(), ([203, 0, 113, 2], 3_478).into()]
}

impl<'a> World<'a> {
    pub(super) fn new(kinds: [NatKind; 2], conditions: Conditions, seed: u64, chaos: Chaos<'a>) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut rng = Rng::new(&bytes, "world");
        let mut node = |index: u8| {
            bytes[31] = index + 1;
            let local = SocketAddr::new(IpAddr::from([192, 168, index, 2]), 7_777);
            let ip = IpAddr::from([192, 0, 2, index + 1]);
            Node {
                agent: Agent::new(AgentConfig::default(), &bytes, at(0)),
                watch: Watch::default(),
                nat: Nat::new(kinds[usize::from(index)], ip, &mut rng),
                local,
                sockets: [(SocketId::MAIN, local)].into(),
                own: BTreeMap::new(),
                known: HashSet::new(),
                direct: None,
                ahead: Duration::ZERO,
                requests: Vec::new(),
                turns: (at(0), 0),
            }
        };
        let nodes = [node(0), node(1)];
        let (events, held) = (BinaryHeap::new(), BTreeMap::new());
        World { nodes, events, held, serial: 0, rng, conditions, lost: 0, chaos }
    }

    /// Has both surveyed, and dial at once; `end` is that many milliseconds later.
    pub(super) fn dial(&mut self, end: u64) {
        for node in 0..2 {
            let local = self.nodes[node].local;
            for input in [Input::Network(vec![local.ip()]), Input::Servers(servers().to_vec())] {
                self.after(at(0), Event::Tell(node, input));
            }
        }
        if let Some(begin) = self.chaos.begin() {
            self.after(begin, Event::Trouble);
        }
        self.run(at(MET));
        let reports = [0, 1].map(|node: usize| self.nodes[node].agent.report().clone());
        for node in 0..2 {
            let theirs: NatReport = reports[1 - node].clone();
            let public = theirs.ipv4.as_ref().and_then(|it| it.public);
            let addrs = [self.nodes[1 - node].local].into_iter().chain(public).collect();
            for input in [
                Input::Up { link: LINK, peer: PeerId::ed25519([node as u8; 32]), dialled: node == 0, loopback: false },
                Input::Theirs { link: LINK, report: theirs },
                Input::Candidates { link: LINK, addrs },
            ] {
                self.after(at(MET), Event::Tell(node, input));
            }
        }
        self.run(at(DIAL + end));
    }

    pub(super) fn ran(&self) -> Ran {
        let [a, b] = &self.nodes;
        let direct = a.direct.zip(b.direct).map(|(a, b)| a.max(b).since(at(DIAL)));
        let why = [a, b].map(|node| node.agent.explain(LINK));
        Ran { direct, counters: [a.agent.counters(), b.agent.counters()], why }
    }

    pub(super) fn after(&mut self, when: Instant, event: Event) {
        self.serial += 1;
        self.held.insert(self.serial, event);
        self.events.push((Reverse((when, self.serial)), self.serial));
    }

    fn lose(&mut self, now: Instant) -> bool {
        let met = now >= at(MET);
        let lost = self.rng.below(1_000) < self.conditions.loss && (!met || self.lost < self.conditions.most_lost);
        self.lost += u64::from(lost && met);
        lost
    }

    fn send(&mut self, node: usize, (socket, to): Pair, payload: Payload, now: Instant) {
        let Some(from) = self.nodes[node].sockets.get(&socket).copied().filter(|_| !self.lose(now)) else { return };
        let from = self.nodes[node].nat.out(from, to, now, &mut self.rng);
        self.after(now + self.conditions.delay, Event::Core { from, to, payload });
    }

    /// Hands over an input and carries out what follows.
    pub(super) fn tell(&mut self, node: usize, input: Input, now: Instant) {
        let clock = now + self.nodes[node].ahead;
        self.hand(node, input, clock);
        while let Some(output) = self.nodes[node].agent.poll_output() {
            self.nodes[node].watch.check(&output);
            self.carry_out(node, output, now);
        }
        let Node { agent, ahead, .. } = &self.nodes[node];
        if let Some((at, _)) = agent.poll_timeout() {
            // timers fire at the next millisecond
            let ms = at.since_start().saturating_sub(*ahead).as_nanos().div_ceil(1_000_000) as u64;
            self.after(self::at(ms).max(now), Event::Timer(node));
        }
    }

    fn hand(&mut self, node: usize, input: Input, clock: Instant) {
        let Node { agent, watch, .. } = &mut self.nodes[node];
        watch.told(&input, clock);
        agent.handle_input(input, clock);
    }

    fn carry_out(&mut self, node: usize, output: Output, now: Instant) {
        match output {
            Output::Open { socket, .. } => {
                let refused = self.conditions.refused;
                let local = match socket.0.checked_rem(refused) {
                    Some(0) => None,
                    Some(1) => return,
                    _ => Some(SocketAddr::new(self.nodes[node].local.ip(), 20_000 + (socket.0 % 40_000) as u16)),
                };
                self.nodes[node].sockets.extend(local.map(|local| (socket, local)));
                self.hand(node, Input::Opened { socket, local }, now + self.nodes[node].ahead);
            }
            Output::Close { socket } => {
                self.nodes[node].sockets.remove(&socket);
            }
            Output::Stun { socket, to, datagram } => {
                let requests = &mut self.nodes[node].requests;
                requests.push((socket, to, datagram.clone()));
                requests.drain(..requests.len().saturating_sub(REQUESTS));
                self.send(node, (socket, to), Payload::Stun(datagram), now);
            }
            // nobody has the keys of other connections
            Output::Ping { link, socket, to, txid, .. } if link == LINK => {
                self.send(node, (socket, to), Payload::Ping(txid), now);
            }
            Output::Route { link, socket, remote, .. } if link == LINK => self.learn(node, socket, remote, now),
            Output::Signal { link, signal } if link == LINK => {
                let copies = if self.conditions.jitter > 0 { 1 + self.rng.below(2) } else { 1 };
                for _ in 0..copies {
                    let late = self.rng.below(self.conditions.jitter + 1);
                    let signal = Input::Signal { link: LINK, signal: signal.clone() };
                    self.after(now + Duration::from_millis(50 + late), Event::Tell(1 - node, signal));
                }
            }
            Output::Ping { .. } | Output::Route { .. } | Output::Signal { .. } => {}
            Output::Report(_) | Output::Observed(_) | Output::Renew { .. } => {}
        }
    }

    fn learn(&mut self, node: usize, socket: SocketId, remote: SocketAddr, now: Instant) {
        let known = &mut self.nodes[node].known;
        if known.len() < MAX_KNOWN && known.insert((socket, remote)) {
            self.after(now, Event::RoutePing { node, socket, remote, left: 6 });
        }
    }

    fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Tell(node, input) => self.tell(node, input, now),
            Event::Trouble => self.trouble(now),
            Event::Timer(node) => {
                let Node { agent, ahead, turns, .. } = &mut self.nodes[node];
                let due = agent.poll_timeout().filter(|(at, _)| *at <= now + *ahead);
                let Some((_, why)) = due else { return };
                *turns = if turns.0 == now { (now, turns.1 + 1) } else { (now, 0) };
                assert!(turns.1 < MAX_TURNS, "the agent asks for a turn again and again: {why}");
                self.tell(node, Input::Timeout, now);
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
        if !self.lose(now) {
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

    pub(super) fn run(&mut self, end: Instant) {
        while let Some((Reverse((now, _)), id)) = self.events.peek().copied() {
            let both = self.nodes.iter().all(|node| node.direct.is_some()) && !self.chaos.goes_on();
            if now > end || both {
                return;
            }
            self.events.pop();
            if let Some(event) = self.held.remove(&id) {
                self.handle(event, now);
            }
        }
    }

    /// All connections end: nothing names them any more, and no socket of theirs stays open.
    pub(super) fn forget_all(&mut self, now: Instant) {
        for node in 0..2 {
            self.nodes[node].direct = None;
            let links: Vec<_> = self.nodes[node].watch.links.keys().copied().collect();
            for link in links {
                assert!(self.nodes[node].agent.explain(link).is_some());
                self.tell(node, Input::Forget { link }, now);
                assert!(self.nodes[node].agent.explain(link).is_none());
            }
            assert_eq!(self.nodes[node].agent.punching(), None);
        }
        self.run(now + Duration::from_secs(30));
    }
}
