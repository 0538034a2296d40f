//! The NAT agent against a model of what it owes: any inputs in any order, from bytes.
//!
//! The model knows which sockets are open, which connections exist and what each peer has told, and holds every output
//! against that. It keeps its own count of packets.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use byway_proto::{
    Instant, PeerId,
    addr::candidate::is_probeable,
    nat::{
        Agent, AgentConfig, FamilyReport, Filtering, Input, LinkId, Mapping, NatReport, Output, Ports, Signal, SocketId,
    },
    wire::stun,
};

const SECOND: Duration = Duration::from_secs(1);
const GAP: Duration = Duration::from_secs(20);

/// More than one input can cause: the packets of a second, the sockets of a punch opened and closed, and the survey's.
const MAX_OUTPUTS: usize = 2_000;

/// Turns without progress after which the agent would keep its driver busy for nothing.
const MAX_TURNS: usize = 32;

#[derive(Default)]
struct Told {
    addrs: BTreeSet<SocketAddr>,
    ips: BTreeSet<IpAddr>,
}

struct Model<'a> {
    bytes: &'a [u8],
    agent: Agent,
    now: Instant,
    numbered: u64,
    links: BTreeMap<LinkId, Told>,
    /// Sockets that are open, by the driver's view; the value says whether it told so.
    sockets: BTreeMap<SocketId, bool>,
    numbers: BTreeSet<SocketId>,
    second: VecDeque<Instant>,
    guesses: VecDeque<Instant>,
    pings: Vec<(LinkId, SocketId, SocketAddr, u64)>,
    requests: Vec<(SocketId, SocketAddr, Vec<u8>)>,
}

/// Feeds the agent with what the bytes say.
///
/// # Panics
///
/// Panics where the agent does what it must not.
pub(crate) fn run(bytes: &[u8]) {
    let agent = Agent::new(AgentConfig::default(), &[7; 32], Instant::START);
    let mut model = Model {
        bytes,
        agent,
        now: Instant::START,
        numbered: 0,
        links: BTreeMap::new(),
        sockets: BTreeMap::new(),
        numbers: BTreeSet::new(),
        second: VecDeque::new(),
        guesses: VecDeque::new(),
        pings: Vec::new(),
        requests: Vec::new(),
    };
    model.settle();
    while !model.bytes.is_empty() {
        model.step();
    }
    let counters = model.agent.counters();
    assert!(counters.mappings_max_per_dial <= 256 && counters.probes_max_per_dial <= 1_200);
    assert!(counters.per_second_max <= 250);
    for link in model.links.keys().copied().collect::<Vec<_>>() {
        assert!(model.agent.explain(link).is_some());
        model.links.remove(&link);
        model.feed(Input::Forget { link });
        assert!(model.agent.explain(link).is_none());
    }
}

impl Model<'_> {
    /// Lets the survey find a NAT of the kind that the first byte says, and one peer come up, so that punches are soon reached.
    fn settle(&mut self) {
        let kind = self.byte();
        if kind >= 0xc0 {
            return;
        }
        self.network();
        let mut next: u16 = 20_000;
        for _ in 0..20 {
            for (socket, from, request) in std::mem::take(&mut self.requests) {
                let Some(txid) = stun::parse_request(&request) else { continue };
                next = next.wrapping_add([0, 1, 7_919][usize::from(kind % 3)]);
                let seen = SocketAddr::new(IpAddr::from([192, 0, 2, 1]), next.max(1_024));
                self.feed(Input::Stun { socket, from, datagram: stun::binding_response(txid, seen) });
            }
            self.now = self.agent.poll_timeout().map_or(self.now, |(at, _)| at.max(self.now));
            self.feed(Input::Timeout);
        }
        self.up();
        self.theirs(LinkId(self.numbered));
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.bytes.split_first().unwrap_or((&0, &[]));
        self.bytes = rest;
        *first
    }

    fn step(&mut self) {
        let link = LinkId(self.numbered.saturating_sub(u64::from(self.byte() % 4)));
        match self.byte() % 20 {
            0 | 1 => self.up(),
            2 | 3 => self.theirs(link),
            4 => self.candidates(link),
            5..=7 => self.signal(link),
            8 => self.answer(),
            9 => {
                let (socket, from) = (self.socket(), self.addr());
                self.feed(Input::Pong { link, socket, from, txid: 1 });
            }
            10 => {
                let socket = self.socket();
                let remote = self.addr();
                self.feed(Input::Direct { link, socket, remote });
            }
            11 => self.feed(Input::Relayed { link }),
            12 => {
                let socket = self.socket();
                self.feed(Input::Unused { socket });
            }
            13 => {
                let per_mille = u16::from(self.byte()) * 4;
                self.feed(Input::RelayLoss { link, per_mille });
            }
            14 => {
                self.links.remove(&link);
                self.feed(Input::Forget { link });
            }
            15 => self.network(),
            16 => self.serve(),
            _ => self.wait(),
        }
    }

    fn up(&mut self) {
        self.numbered += 1;
        let link = LinkId(self.numbered);
        self.links.insert(link, Told::default());
        let peer = PeerId::ed25519([self.byte() % 4; 32]);
        self.feed(Input::Up { link, peer, dialled: self.numbered.is_multiple_of(2), loopback: false });
    }

    fn addr(&mut self) -> SocketAddr {
        const IPS: [&str; 8] = [
            "192.0.2.1",
            "198.51.100.7",
            "203.0.113.9",
            "10.0.0.2",
            "127.0.0.1",
            "169.254.169.254",
            "2001:db8::5",
            "::",
        ];
        let (ip, port) = (self.byte() % 8, u16::from(self.byte()) * 257);
        SocketAddr::new(IPS[usize::from(ip)].parse().expect("constant"), port)
    }

    fn socket(&mut self) -> SocketId {
        let position = usize::from(self.byte());
        let open: Vec<_> = self.sockets.keys().copied().collect();
        open.get(position % (open.len() + 1)).copied().unwrap_or(SocketId::MAIN)
    }

    fn family(&mut self) -> FamilyReport {
        let (public, bits) = (self.addr(), self.byte());
        let mapping = [None, Some(Mapping::EndpointIndependent), Some(Mapping::AddressAndPortDependent)];
        let filtering = [None, Some(Filtering::AddressDependent), Some(Filtering::AddressAndPortDependent)];
        let step = i16::from(self.byte() as i8) * 255;
        let ports = [None, Some(Ports::Preserving), Some(Ports::Random), Some(Ports::Sequential { step })];
        FamilyReport {
            public: Some(public).filter(|_| bits & 0x80 == 0),
            untranslated: bits & 0x40 != 0,
            mapping: mapping[usize::from(bits % 3)],
            filtering: filtering[usize::from(bits / 3 % 3)],
            ports: ports[usize::from(bits / 9 % 4)],
            ..FamilyReport::default()
        }
    }

    fn theirs(&mut self, link: LinkId) {
        let found = self.family();
        if let (Some(told), Some(public)) = (self.links.get_mut(&link), found.public) {
            told.addrs.insert(public);
            told.ips.insert(public.ip());
        }
        let report = match found.public {
            Some(addr) if addr.is_ipv6() => NatReport { ipv4: None, ipv6: Some(found) },
            _ => NatReport { ipv4: Some(found), ipv6: None },
        };
        self.feed(Input::Theirs { link, report });
    }

    fn candidates(&mut self, link: LinkId) {
        let count = self.byte() % 32;
        let addrs: Vec<_> = (0..count).map(|_| self.addr()).collect();
        if let Some(told) = self.links.get_mut(&link) {
            told.addrs.extend(&addrs);
            told.ips.extend(addrs.iter().map(SocketAddr::ip));
        }
        self.feed(Input::Candidates { link, addrs });
    }

    fn signal(&mut self, link: LinkId) {
        let (attempt, ip) = (u32::from(self.byte()), self.addr().ip());
        let attempt = if attempt == 255 { u32::MAX } else { attempt };
        let signal = match self.byte() % 5 {
            0 => Signal::Counter {
                attempt,
                ip,
                base: u16::from(self.byte()) * 257,
                step: i16::from(self.byte() as i8) * 255,
            },
            1 => {
                let first = u16::from(self.byte()) * 257;
                let ports = (0..self.byte() % 65).map(|it| first.wrapping_add(u16::from(it))).collect();
                Signal::Guess { attempt, ip, ports }
            }
            2 => Signal::Spray { attempt },
            3 => Signal::Go { attempt, ip },
            _ => Signal::Busy { attempt },
        };
        self.feed(Input::Signal { link, signal });
    }

    /// A true pong to one of the last pings.
    fn answer(&mut self) {
        let position = usize::from(self.byte());
        if let Some((link, socket, from, txid)) = self.pings.iter().rev().nth(position).copied() {
            self.feed(Input::Pong { link, socket, from, txid });
        }
    }

    fn network(&mut self) {
        let mut ips = vec![IpAddr::from([192, 168, 1, 2])];
        if self.byte() & 1 == 1 {
            ips.push(self.addr().ip());
        }
        let servers = ["203.0.113.1:3478", "203.0.113.2:3478", "[2001:db8::1]:3478"];
        let servers = servers.iter().map(|it| it.parse().expect("constant")).collect();
        self.feed(Input::Servers(servers));
        self.feed(Input::Network(ips));
    }

    /// Servers answer what they were asked, with any address.
    fn serve(&mut self) {
        let (count, seen, spread) = (self.byte() % 16, self.addr(), self.byte());
        let requests = std::mem::take(&mut self.requests);
        for (index, (socket, from, request)) in requests.into_iter().rev().take(usize::from(count)).enumerate() {
            let Some(txid) = stun::parse_request(&request) else { continue };
            let port = seen.port().wrapping_add(index as u16 * u16::from(spread));
            let datagram = stun::binding_response(txid, SocketAddr::new(seen.ip(), port));
            self.feed(Input::Stun { socket, from, datagram });
        }
    }

    fn wait(&mut self) {
        let how = self.byte();
        let (until, stepwise) = match how % 4 {
            0 => (self.now + Duration::from_millis(u64::from(how)), true),
            1 => (self.now + Duration::from_secs(u64::from(how % 16)), true),
            2 => (self.now + Duration::from_secs(u64::from(how) * 60), false),
            _ => (self.agent.poll_timeout().map_or(self.now, |(at, _)| at.max(self.now)), false),
        };
        // a driver calls at the timers on the way, or is suspended and finds that much time gone
        let mut turns = 0;
        while let Some((at, why)) = self.agent.poll_timeout().filter(|(at, _)| stepwise && *at <= until) {
            turns = if at > self.now { 0 } else { turns + 1 };
            assert!(turns < MAX_TURNS, "the agent asks for a turn again and again: {why}");
            self.now = self.now.max(at);
            self.feed(Input::Timeout);
        }
        self.now = self.now.max(until);
        self.feed(Input::Timeout);
    }

    fn feed(&mut self, input: Input) {
        self.agent.handle_input(input, self.now);
        let mut count = 0;
        while let Some(output) = self.agent.poll_output() {
            count += 1;
            assert!(count < MAX_OUTPUTS, "one input causes too much");
            self.check(output);
        }
    }

    fn check(&mut self, output: Output) {
        match output {
            Output::Open { socket, .. } => {
                assert!(socket != SocketId::MAIN && self.numbers.insert(socket), "a number is used twice");
                self.sockets.insert(socket, false);
                let local = SocketAddr::new(IpAddr::from([192, 168, 1, 2]), 1 + (socket.0 % 65_535) as u16);
                match socket.0 % 13 {
                    0 => {} // the driver forgets to answer
                    1 => {
                        self.sockets.remove(&socket);
                        self.agent.handle_input(Input::Opened { socket, local: None }, self.now);
                    }
                    _ => {
                        self.sockets.insert(socket, true);
                        self.agent.handle_input(Input::Opened { socket, local: Some(local) }, self.now);
                    }
                }
            }
            Output::Close { socket } => assert!(self.sockets.remove(&socket).is_some(), "{socket:?} is not open"),
            Output::Stun { socket, to, datagram } => {
                self.check_socket(socket);
                self.requests.push((socket, to, datagram));
                self.requests.drain(..self.requests.len().saturating_sub(64));
            }
            Output::Ping { link, socket, to, txid, .. } => {
                self.check_socket(socket);
                self.check_ping(link, to);
                self.pings.push((link, socket, to, txid));
                self.pings.drain(..self.pings.len().saturating_sub(256));
            }
            Output::Route { link, socket, remote, .. } => {
                self.check_socket(socket);
                assert!(self.links.contains_key(&link), "a route of {link:?}, which is over");
                assert!(self.pings.iter().any(|it| (it.0, it.1, it.2) == (link, socket, remote)), "nobody pinged it");
            }
            Output::Signal { link, .. } => assert!(self.links.contains_key(&link), "a word to {link:?}, which is over"),
            Output::Report(_) => {}
        }
    }

    fn check_socket(&self, socket: SocketId) {
        assert!(socket == SocketId::MAIN || self.sockets.get(&socket) == Some(&true), "{socket:?} is not open");
    }

    fn check_ping(&mut self, link: LinkId, to: SocketAddr) {
        let told = self.links.get(&link).expect("a ping for a connection that is over");
        assert_eq!(is_probeable(to, false), Ok(()));
        assert!(told.ips.contains(&to.ip()), "{to} is not the peer's");
        let now = self.now;
        let count = |ring: &mut VecDeque<Instant>, window: Duration| {
            ring.push_back(now);
            while ring.front().is_some_and(|at| now.since(*at) > window) {
                ring.pop_front();
            }
            ring.len()
        };
        assert!(count(&mut self.second, SECOND) <= 250, "more than 250 packets in a second");
        if !told.addrs.contains(&to) {
            assert!(count(&mut self.guesses, GAP) <= 1_200, "more than 1,200 guesses in 20 s");
        }
    }
}
