//! Trouble, from bytes: peers that lie, answers that were never asked for, clocks that jump.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use byway_proto::{
    Instant, PeerId,
    nat::{FamilyReport, Filtering, Input, LinkId, Mapping, NatReport, Ports, Signal, SocketId},
    wire::stun,
};

use super::{
    GATE,
    world::{DIAL, Event, LINK, MET, World, at, servers},
};

/// Addresses of liars that an honest dial must bear beside its own: their pings come out of the same 250 a second.
const BEARABLE: usize = 16;

/// The bytes that are left to say what happens.
pub(super) struct Chaos<'a> {
    bytes: &'a [u8],
    /// It concerns the two hosts' own connection, their servers and their networks as well.
    is_wild: bool,
    /// The last connection with a liar.
    numbered: u64,
    /// What the two had to bear while they looked for each other: connections with liars, their addresses, jumps.
    liars: usize,
    lied: usize,
    jumps: usize,
}

impl<'a> Chaos<'a> {
    pub(super) fn new(bytes: &'a [u8], is_wild: bool) -> Self {
        Chaos { bytes, is_wild, numbered: LINK.0, liars: 0, lied: 0, jumps: 0 }
    }

    /// When the trouble begins.
    pub(super) fn begin(&self) -> Option<Instant> {
        self.goes_on().then_some(at(if self.is_wild { 100 } else { DIAL + 100 }))
    }

    pub(super) fn goes_on(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Whether the two hosts have to find each other all the same.
    pub(super) fn is_bearable(&self) -> bool {
        !self.is_wild && self.lied <= BEARABLE && self.jumps <= 1 && self.liars <= 1
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn byte(&mut self) -> u8 {
        let (first, rest) = self.bytes.split_first().unwrap_or((&0, &[]));
        self.bytes = rest;
        *first
    }

    /// One of the last connections with liars; if all is allowed, perhaps the true one.
    fn link(&mut self) -> LinkId {
        let back = u64::from(self.byte() % 4);
        let link = LinkId(self.numbered.saturating_sub(back).max(LINK.0));
        if self.is_wild || link != LINK { link } else { LinkId(LINK.0 + 1) }
    }

    fn addr(&mut self) -> SocketAddr {
        // the first two are the hosts' own
        const IPS: [&str; 10] = [
            "192.0.2.1",
            "192.0.2.2",
            "192.168.1.2",
            "198.51.100.7",
            "203.0.113.9",
            "10.0.0.2",
            "127.0.0.1",
            "169.254.169.254",
            "2001:db8::5",
            "::",
        ];
        let (ip, port) = (self.byte() % 10, u16::from(self.byte()) * 257);
        SocketAddr::new(IPS[usize::from(ip)].parse().expect("constant"), port)
    }

    fn up(&mut self) -> Input {
        self.numbered += 1;
        self.liars += 1;
        let peer = PeerId::ed25519([9 + self.byte() % 4; 32]);
        Input::Up { link: LinkId(self.numbered), peer, dialled: self.numbered.is_multiple_of(2), loopback: false }
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

    fn theirs(&mut self) -> Input {
        self.lied += 1;
        let (link, found) = (self.link(), self.family());
        let report = match found.public {
            Some(addr) if addr.is_ipv6() => NatReport { ipv4: None, ipv6: Some(found) },
            _ => NatReport { ipv4: Some(found), ipv6: None },
        };
        Input::Theirs { link, report }
    }

    fn candidates(&mut self) -> Input {
        let (link, count) = (self.link(), usize::from(self.byte() % 32));
        self.lied += count;
        Input::Candidates { link, addrs: (0..count).map(|_| self.addr()).collect() }
    }

    fn signal(&mut self) -> Input {
        let link = self.link();
        let (attempt, ip) = (u32::from(self.byte()), self.addr().ip());
        let attempt = if attempt == 255 { u32::MAX } else { attempt };
        let port = |byte: u8| u16::from(byte) * 257;
        let signal = match self.byte() % 5 {
            0 => {
                let (base, step) = (port(self.byte()), i16::from(self.byte() as i8) * 255);
                Signal::Counter { attempt, ip, base, step }
            }
            1 => {
                let (first, count) = (port(self.byte()), u16::from(self.byte() % 65));
                Signal::Guess { attempt, ip, ports: (0..count).map(|it| first.wrapping_add(it)).collect() }
            }
            2 => Signal::Spray { attempt },
            3 => Signal::Go { attempt, ip },
            _ => Signal::Busy { attempt },
        };
        Input::Signal { link, signal }
    }

    fn network(&mut self) -> Vec<Input> {
        let mut ips = vec![IpAddr::from([192, 168, 1, 2])];
        if self.byte() & 1 == 1 {
            ips.push(self.addr().ip());
        }
        let further: SocketAddr = "[2001:db8::1]:3478".parse().expect("constant");
        vec![Input::Servers(servers().into_iter().chain([further]).collect()), Input::Network(ips)]
    }
}

impl World<'_> {
    /// Does what the next bytes say, and plans what follows.
    pub(super) fn trouble(&mut self, now: Instant) {
        let (node, is_wild) = (usize::from(self.chaos.byte() & 1), self.chaos.is_wild);
        let Chaos { liars, lied, jumps, .. } = self.chaos;
        let inputs = match self.chaos.byte() % 22 {
            0 | 1 => vec![self.chaos.up()],
            2 | 3 => vec![self.chaos.theirs()],
            4 => vec![self.chaos.candidates()],
            5..=7 => vec![self.chaos.signal()],
            8 | 9 => self.true_pong(node).into_iter().collect(),
            10 => {
                let (link, socket, from) = (self.chaos.link(), self.socket(node), self.chaos.addr());
                vec![Input::Pong { link, socket, from, txid: 1 }]
            }
            11 => {
                let (link, socket, remote) = (self.chaos.link(), self.socket(node), self.chaos.addr());
                vec![Input::Direct { link, socket, remote }]
            }
            12 => vec![Input::Relayed { link: self.chaos.link() }],
            13 => vec![Input::RelayLoss { link: self.chaos.link(), per_mille: u16::from(self.chaos.byte()) * 4 }],
            14 => vec![Input::Forget { link: self.chaos.link() }],
            15 if is_wild => vec![Input::Unused { socket: self.socket(node) }],
            16 if is_wild => self.chaos.network(),
            17 if is_wild => self.lying_servers(node),
            18 => {
                self.chaos.jumps += 1;
                let jump = [1, 30, 3_600, 90_000][usize::from(self.chaos.byte() % 4)];
                self.nodes[node].ahead += Duration::from_secs(jump);
                vec![Input::Timeout]
            }
            19 | 20 => {
                let (link, remote, addr) = (self.chaos.link(), self.chaos.addr(), self.chaos.addr());
                vec![Input::Observed { link, remote, addr }]
            }
            _ => vec![Input::Timeout],
        };
        if now > at(MET + GATE) {
            (self.chaos.liars, self.chaos.lied, self.chaos.jumps) = (liars, lied, jumps);
        }
        inputs.into_iter().for_each(|input| self.tell(node, input, now));
        if self.chaos.goes_on() {
            let pause = u64::from(self.chaos.byte()) * if is_wild { 16 } else { 8 };
            self.after(now + Duration::from_millis(pause), Event::Trouble);
        }
    }

    fn socket(&mut self, node: usize) -> SocketId {
        let position = usize::from(self.chaos.byte());
        let open = &self.nodes[node].watch.sockets;
        open.keys().nth(position % (open.len() + 1)).copied().unwrap_or(SocketId::MAIN)
    }

    /// A true pong to one of the last pings to a liar.
    fn true_pong(&mut self, node: usize) -> Option<Input> {
        let (position, is_wild) = (usize::from(self.chaos.byte()), self.chaos.is_wild);
        let pings = self.nodes[node].watch.pings.iter().rev().filter(|(link, ..)| is_wild || *link != LINK);
        let (link, socket, from, txid) = pings.copied().nth(position)?;
        Some(Input::Pong { link, socket, from, txid })
    }

    /// Servers answer what they were asked, with any address.
    fn lying_servers(&mut self, node: usize) -> Vec<Input> {
        let (count, seen, spread) = (self.chaos.byte() % 16, self.chaos.addr(), self.chaos.byte());
        let requests = std::mem::take(&mut self.nodes[node].requests);
        let answers = requests.into_iter().rev().take(usize::from(count)).enumerate();
        let answers = answers.filter_map(|(index, (socket, from, request))| {
            let port = seen.port().wrapping_add(index as u16 * u16::from(spread));
            let datagram = stun::binding_response(stun::parse_request(&request)?, SocketAddr::new(seen.ip(), port));
            Some(Input::Stun { socket, from, datagram })
        });
        answers.collect()
    }
}
