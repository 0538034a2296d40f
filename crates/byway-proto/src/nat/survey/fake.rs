//! A host, a NAT by the axes of RFC 4787, and servers in the core, for the survey's tests.

use alloc::{collections::BTreeMap, vec::Vec};
use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::Survey;
use crate::{
    Instant, Rng,
    nat::{Filtering, Input, Mapping, NatReport, Output, Ports, SocketId, SocketIds},
    wire::stun::{Request, Response},
};

pub(super) const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub(super) const PUBLIC_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
pub(super) const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);
const ONE_WAY: Duration = Duration::from_millis(25);

#[derive(Debug, Clone)]
pub(super) struct Nat {
    pub(super) mapping: Mapping,
    pub(super) filtering: Filtering,
    pub(super) ports: Ports,
    pub(super) hairpin: bool,
    pub(super) lifetime: Duration,
    /// Mappings that other hosts take each second.
    pub(super) others: u64,
    pub(super) counter: u16,
    pub(super) made: Instant,
    pub(super) table: Vec<Entry>,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    socket: SocketId,
    key: (Option<IpAddr>, Option<u16>),
    port: u16,
    sent_to: Vec<SocketAddr>,
    last: Instant,
}

impl Nat {
    pub(super) fn new(mapping: Mapping, filtering: Filtering, ports: Ports) -> Self {
        Nat {
            mapping,
            filtering,
            ports,
            hairpin: false,
            lifetime: Duration::from_secs(120),
            others: 5,
            counter: 20_000,
            made: Instant::START,
            table: Vec::new(),
        }
    }

    fn out(&mut self, (socket, local): (SocketId, u16), to: SocketAddr, rng: &mut Rng, now: Instant) -> u16 {
        let key = match self.mapping {
            Mapping::EndpointIndependent => (None, None),
            Mapping::AddressDependent => (Some(to.ip()), None),
            Mapping::AddressAndPortDependent => (Some(to.ip()), Some(to.port())),
        };
        self.table.retain(|entry| now.since(entry.last) < self.lifetime);
        if !self.table.iter().any(|entry| (entry.socket, entry.key) == (socket, key)) {
            let port = self.allot(local, rng, now);
            self.table.push(Entry { socket, key, port, sent_to: Vec::new(), last: now });
        }
        let entry = self.table.iter_mut().find(|entry| (entry.socket, entry.key) == (socket, key)).unwrap();
        entry.sent_to.push(to);
        entry.last = now;
        entry.port
    }

    fn allot(&mut self, local: u16, rng: &mut Rng, now: Instant) -> u16 {
        let taken = |port: u16, table: &[Entry]| port < 1_024 || table.iter().any(|entry| entry.port == port);
        let mut port = match self.ports {
            Ports::Preserving => local,
            Ports::Sequential { step } => {
                let milliseconds = now.since(self.made).as_millis() as u64;
                let others = (0..milliseconds.min(10_000)).filter(|_| rng.below(1_000) < self.others).count() as u16;
                self.made = now;
                self.counter = self.counter.wrapping_add((step as u16).wrapping_mul(1 + others));
                while taken(self.counter, &self.table) {
                    self.counter = self.counter.wrapping_add(step as u16);
                }
                self.counter
            }
            Ports::Random => 0,
        };
        while taken(port, &self.table) {
            port = 1_024 + rng.below(64_512) as u16;
        }
        port
    }

    fn back(&mut self, from: SocketAddr, port: u16, now: Instant) -> Option<SocketId> {
        self.table.retain(|entry| now.since(entry.last) < self.lifetime);
        let entry = self.table.iter().find(|entry| entry.port == port)?;
        let passes = match self.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => entry.sent_to.iter().any(|to| to.ip() == from.ip()),
            Filtering::AddressAndPortDependent => entry.sent_to.contains(&from),
        };
        passes.then_some(entry.socket)
    }
}

/// A server; one with another address does what RFC 5780 says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    /// Whether it answers to another port if that is asked for, as relays do.
    pub(super) elsewhere: bool,
    pub(super) other: Option<SocketAddr>,
    pub(super) alive: bool,
    /// What it says instead of the truth.
    pub(super) lie: Option<SocketAddr>,
}

pub(super) fn server(addr: &str) -> Server {
    Server { addr: addr.parse().unwrap(), elsewhere: false, other: None, alive: true, lie: None }
}

pub(super) struct World {
    pub(super) survey: Survey,
    pub(super) nat: Option<Nat>,
    pub(super) servers: Vec<Server>,
    /// Per mille, each way.
    pub(super) loss: u64,
    pub(super) now: Instant,
    /// With their times.
    pub(super) reports: Vec<(Duration, NatReport)>,
    /// All STUN messages that left, with their times.
    pub(super) sent: Vec<(Duration, SocketId, SocketAddr, Vec<u8>)>,
    pub(super) open: BTreeMap<SocketId, u16>,
    /// Whether the system refuses further sockets.
    pub(super) refuses: bool,
    ids: SocketIds,
    rng: Rng,
    flying: BTreeMap<(Instant, usize), (SocketId, SocketAddr, Vec<u8>)>,
}

impl World {
    pub(super) fn new(nat: Option<Nat>, servers: Vec<Server>, seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let mut rng = Rng::new(&bytes, "fake");
        let nat = nat.map(|nat| Nat { counter: rng.below(65_536) as u16, ..nat });
        World {
            survey: Survey::new(&bytes),
            nat,
            servers,
            loss: 0,
            now: Instant::after_start(Duration::from_secs(1)),
            reports: Vec::new(),
            sent: Vec::new(),
            open: BTreeMap::from([(SocketId::MAIN, 4_433)]),
            refuses: false,
            ids: SocketIds::default(),
            rng,
            flying: BTreeMap::new(),
        }
    }

    /// Tells the survey of its network and servers, and runs for a while.
    pub(super) fn start(&mut self, run: Duration) -> &NatReport {
        let own = if self.nat.is_some() { PRIVATE } else { PUBLIC };
        self.input(Input::Network([own.into()].into()));
        self.input(Input::Servers(self.servers.iter().map(|server| server.addr).collect()));
        self.run(run);
        self.survey.report()
    }

    pub(super) fn input(&mut self, input: Input) {
        self.survey.handle_input(&input, &mut self.ids, self.now);
        while let Some(output) = self.survey.poll_output() {
            match output {
                Output::Open { socket, .. } => {
                    let port = 32_768 + self.rng.below(28_000) as u16;
                    let local = (!self.refuses).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
                    if !self.refuses {
                        assert_eq!(self.open.insert(socket, port), None);
                    }
                    self.survey.handle_input(&Input::Opened { socket, local }, &mut self.ids, self.now);
                }
                Output::Close { socket } => {
                    self.open.remove(&socket);
                }
                Output::Stun { socket, to, datagram } => {
                    self.sent.push((self.now.since_start(), socket, to, datagram.clone()));
                    self.send(socket, to, datagram);
                }
                Output::Report(report) => self.reports.push((self.now.since_start(), report)),
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) fn run(&mut self, run: Duration) {
        let end = self.now + run;
        loop {
            let due = self.survey.poll_timeout().map(|(at, _)| at);
            assert!(
                due.is_none_or(|at| at > self.now),
                "{:?} is not later than {:?}",
                self.survey.poll_timeout(),
                self.now
            );
            let lands = self.flying.keys().next().copied();
            match (due, lands) {
                (_, Some(key)) if key.0 <= end && due.is_none_or(|at| key.0 <= at) => {
                    self.now = key.0;
                    let (socket, from, datagram) = self.flying.remove(&key).unwrap();
                    if self.open.contains_key(&socket) {
                        self.input(Input::Stun { socket, from, datagram });
                    }
                }
                (Some(at), _) if at <= end => {
                    self.now = at;
                    self.input(Input::Timeout);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn send(&mut self, socket: SocketId, to: SocketAddr, datagram: Vec<u8>) {
        let Some(local) = self.open.get(&socket).copied() else { panic!("sent by a closed socket") };
        if self.rng.below(1_000) < self.loss {
            return;
        }
        if to.is_ipv6() {
            self.send_ipv6(socket, to, &datagram);
            return;
        }
        let port = match &mut self.nat {
            Some(nat) => nat.out((socket, local), to, &mut self.rng, self.now),
            None => local,
        };
        let from = SocketAddr::from((PUBLIC, port));
        if to.ip() == PUBLIC {
            if self.nat.as_ref().is_some_and(|nat| nat.hairpin) {
                self.land(from, to, datagram, Duration::from_millis(1));
            }
            return;
        }
        let known = self.servers.iter().find(|server| {
            let other = server.other.unwrap_or(server.addr);
            server.alive
                && [server.addr.ip(), other.ip()].contains(&to.ip())
                && [server.addr.port(), other.port()].contains(&to.port())
        });
        let (Some(server), Some(request)) = (known, Request::parse(&datagram)) else { return };
        let response_port = request.response_port.filter(|_| server.elsewhere);
        let plain = Request { txid: request.txid, response_port, ..Request::default() };
        if (server.other.is_none() && request != plain) || self.rng.below(1_000) < self.loss {
            return;
        }
        let other = server.other.unwrap_or(server.addr);
        let pick = |change: bool, is_own: bool| change != is_own;
        let ip = if pick(request.change_ip, to.ip() == server.addr.ip()) { server.addr.ip() } else { other.ip() };
        let own_port = pick(request.change_port, to.port() == server.addr.port());
        let origin = SocketAddr::new(ip, if own_port { server.addr.port() } else { other.port() });
        let mapped = server.lie.unwrap_or(from);
        let response = Response { txid: request.txid, mapped, origin: Some(origin), other: server.other };
        let to = SocketAddr::new(from.ip(), request.response_port.unwrap_or(port));
        self.land(origin, to, response.to_bytes(), ONE_WAY * 2);
    }

    /// IPv6 is not translated.
    fn send_ipv6(&mut self, socket: SocketId, to: SocketAddr, datagram: &[u8]) {
        let answers = self.servers.iter().any(|server| server.addr == to && server.alive);
        if let Some(request) = Request::parse(datagram).filter(|_| answers) {
            let mapped = SocketAddr::new(PUBLIC_IPV6.into(), self.open[&socket]);
            let response = Response { txid: request.txid, mapped, origin: None, other: None };
            let order = self.sent.len() + self.flying.len();
            self.flying.insert((self.now + ONE_WAY, order), (socket, to, response.to_bytes()));
        }
    }

    fn land(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>, delay: Duration) {
        let socket = match &mut self.nat {
            Some(nat) => nat.back(from, to.port(), self.now),
            None => self.open.iter().find(|(_, port)| **port == to.port()).map(|(socket, _)| *socket),
        };
        if let Some(socket) = socket {
            let order = self.sent.len() + self.flying.len();
            self.flying.insert((self.now + delay, order), (socket, from, datagram));
        }
    }
}
