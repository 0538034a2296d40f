//! What all connections of a host share: its budget, its sockets' numbers, its report, its memory and its outputs.

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};
use core::net::{IpAddr, SocketAddr};

use super::{AgentConfig, MAX_MAPPINGS, MAX_PER_SECOND, MAX_PROBES, flight::Flight};
use crate::{
    Instant, Rng,
    nat::{
        FamilyReport, LinkId, NatReport, Output, SocketId, SocketIds,
        ages::Ages,
        budget::{Budget, Denied, Purpose},
        memory::Memory,
        survey::is_outward,
    },
};

/// The most servers that are kept: two answers make a verdict, the others stand in for dead ones.
const MAX_SERVERS: usize = 8;

/// A STUN server.
#[derive(Debug, Clone, Copy)]
struct Server {
    addr: SocketAddr,
    /// Requests of punches since it last answered.
    unanswered: u32,
}

#[derive(Debug)]
pub(in crate::nat) struct Host {
    pub(in crate::nat) config: AgentConfig,
    pub(in crate::nat) budget: Budget,
    pub(in crate::nat) rng: Rng,
    pub(in crate::nat) sockets: SocketIds,
    /// Whose punch a socket was opened for.
    pub(in crate::nat) owners: BTreeMap<SocketId, LinkId>,
    pub(in crate::nat) report: NatReport,
    pub(in crate::nat) memory: Memory,
    pub(in crate::nat) ages: Ages,
    servers: Vec<Server>,
    /// How far the node's sockets for IPv4 and for IPv6 lead.
    families: [Reach; 2],
    /// Bounded by what one input can cause: the packets of a second and the sockets of a punch, for the driver drains it.
    pub(in crate::nat) outputs: VecDeque<Output>,
}

/// How far a socket leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Nowhere,
    ThisMachine,
    /// To others; assumed until the node is told of a network.
    Out,
}

impl Reach {
    fn of(ips: &[IpAddr], ipv6: bool) -> Self {
        let reach = |ip: &IpAddr| if is_outward(ip) { Reach::Out } else { Reach::ThisMachine };
        let family = ips.iter().map(IpAddr::to_canonical).filter(|ip| ip.is_ipv6() == ipv6);
        family.map(|ip| reach(&ip)).max().unwrap_or(Reach::Nowhere)
    }
}

/// A ping that is to leave.
#[derive(Debug, Clone, Copy)]
pub(in crate::nat) struct Packet {
    pub(in crate::nat) purpose: Purpose,
    pub(in crate::nat) socket: SocketId,
    pub(in crate::nat) to: SocketAddr,
    pub(in crate::nat) hop_limit: Option<u8>,
}

impl Host {
    pub(super) fn new(mut config: AgentConfig, seed: &[u8; 32]) -> Self {
        let limits = &mut config.budget;
        limits.mappings = limits.mappings.min(MAX_MAPPINGS);
        limits.probes = limits.probes.min(MAX_PROBES);
        limits.per_second = limits.per_second.min(MAX_PER_SECOND);
        Host {
            budget: Budget::new(limits.clone()),
            config,
            rng: Rng::new(seed, "nat agent"),
            sockets: SocketIds::default(),
            owners: BTreeMap::new(),
            report: NatReport::default(),
            memory: Memory::default(),
            ages: Ages::default(),
            servers: Vec::new(),
            families: [Reach::Out; 2],
            outputs: VecDeque::new(),
        }
    }

    pub(super) fn set_servers(&mut self, servers: &[SocketAddr]) {
        let known = |addr: &SocketAddr| self.servers.iter().find(|server| server.addr == *addr).copied();
        let server = |addr: &SocketAddr| known(addr).unwrap_or(Server { addr: *addr, unanswered: 0 });
        self.servers = servers.iter().take(MAX_SERVERS).map(server).collect();
    }

    /// The servers of a family to ask now: those that left the fewest requests unanswered, else in order of preference.
    pub(in crate::nat) fn ask_servers<const N: usize>(&mut self, ipv6: bool) -> [Option<SocketAddr>; N] {
        let mut servers: Vec<_> = self.servers.iter_mut().filter(|server| server.addr.is_ipv6() == ipv6).collect();
        servers.sort_by_key(|server| server.unanswered);
        let mut servers = servers.into_iter();
        core::array::from_fn(|_| {
            let server = servers.next()?;
            server.unanswered = server.unanswered.saturating_add(1);
            Some(server.addr)
        })
    }

    /// A server has answered a request of a punch.
    pub(in crate::nat) fn heard_server(&mut self, from: SocketAddr) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        self.servers.iter_mut().filter(|server| server.addr == from).for_each(|server| server.unanswered = 0);
    }

    /// Takes in which addresses the node's sockets are bound to.
    pub(super) fn set_families(&mut self, ips: &[IpAddr]) {
        self.families = [false, true].map(|ipv6| Reach::of(ips, ipv6));
    }

    /// Whether the node has a socket that sends there.
    pub(super) fn reaches(&self, addr: SocketAddr) -> bool {
        let [ipv4, ipv6] = self.families;
        let wanted = if addr.ip().is_loopback() { Reach::ThisMachine } else { Reach::Out };
        wanted <= if addr.is_ipv6() { ipv6 } else { ipv4 }
    }

    pub(super) fn family(&self, ipv6: bool) -> Option<&FamilyReport> {
        if ipv6 { self.report.ipv6.as_ref() } else { self.report.ipv4.as_ref() }
    }

    /// Where servers see the node's own socket.
    pub(in crate::nat) fn public(&self, ipv6: bool) -> Option<SocketAddr> {
        self.family(ipv6)?.public
    }

    /// Sends a ping, if the budget allows it.
    pub(in crate::nat) fn ping(&mut self, flight: &mut Flight, packet: &Packet, now: Instant) -> Result<(), Denied> {
        self.budget.take(packet.purpose, &mut flight.allowance, now)?;
        *if packet.purpose == Purpose::Candidate { &mut flight.pings } else { &mut flight.others } += 1;
        let Packet { socket, to, hop_limit, .. } = *packet;
        let txid = self.rng.next_u64();
        flight.send(txid, socket, to, now);
        self.outputs.push_back(Output::Ping { link: flight.link, socket, to, txid, hop_limit });
        Ok(())
    }

    /// Closes a socket that was opened for a punch.
    pub(super) fn close(&mut self, socket: SocketId) {
        if self.owners.remove(&socket).is_some() {
            // what has not left yet would find no socket
            self.outputs.retain(|output| match output {
                Output::Ping { socket: by, .. } | Output::Stun { socket: by, .. } => *by != socket,
                _ => true,
            });
            self.outputs.push_back(Output::Close { socket });
        }
    }

    /// Takes back what names a connection that is over.
    pub(super) fn forget(&mut self, gone: LinkId) {
        self.outputs.retain(|output| match output {
            Output::Ping { link, .. } | Output::Route { link, .. } => *link != gone,
            Output::Signal { link, .. } | Output::Renew { link, .. } => *link != gone,
            Output::Open { .. } | Output::Close { .. } | Output::Stun { .. } => true,
            Output::Report(_) | Output::Observed(_) => true,
        });
    }
}
