//! Who is attached where: hosts and NATs, their links and addresses.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    task::Waker,
};

use tokio::sync::watch;

use super::{NodeId, ports::PortTable};
use crate::{
    host::Traffic,
    link::{Link, Pipe},
    nat::{NatConfig, firewall::Firewall, table::Table},
    noise::Noise,
    rule::Transport,
    time::Time,
};

/// Most nodes behind one NAT: its network is a /24 without the network, gateway and broadcast addresses.
pub(crate) const MAX_BEHIND_NAT: u8 = 253;

/// The tree of hosts and NATs below the public core.
#[derive(Debug)]
pub(crate) struct Topology {
    nodes: Vec<Node>,
    /// Owners of public addresses, and of all IPv6 addresses; looked up, never iterated.
    public: HashMap<IpAddr, NodeId>,
    noise: Noise,
    next_ipv4: u32,
    next_ipv6: u32,
    next_lan: u16,
}

/// A host or NAT and its link to what lies above.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// The NAT above; `None` is the core.
    pub(crate) parent: Option<NodeId>,
    pub(crate) up: Pipe,
    pub(crate) down: Pipe,
    /// Switched off: everything that passes is dropped.
    pub(crate) off: bool,
    pub(crate) role: Role,
}

/// What a node does with packets.
#[derive(Debug)]
pub(crate) enum Role {
    /// Sends and receives them.
    Host(Box<HostRole>),
    /// Translates them.
    Nat(Box<NatRole>),
}

/// The state of a host.
#[derive(Debug)]
pub(crate) struct HostRole {
    /// Its addresses, without loopback; the first of a family is the default source.
    pub(crate) addrs: Vec<IpAddr>,
    /// Counts changes of `addrs`.
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) udp: PortTable,
    /// Multicast groups with their ports, and the sockets that hear them.
    pub(crate) groups: Vec<(SocketAddr, u64)>,
    pub(crate) tcp: PortTable,
    /// TCP connections by (local, remote).
    pub(crate) connections: BTreeMap<(SocketAddr, SocketAddr), u64>,
    /// Bytes on the uplink at which sockets say that sending would block; `None` is never.
    pub(crate) send_buffer: Option<usize>,
    pub(crate) writers: Vec<Waker>,
    /// Whether an event will wake the writers.
    pub(crate) writable_due: bool,
    pub(crate) traffic: Traffic,
}

/// The state of a NAT.
#[derive(Debug)]
pub(crate) struct NatRole {
    pub(crate) table: Table,
    pub(crate) firewall: Firewall,
    /// Its address in the network above.
    pub(crate) outer: Ipv4Addr,
    /// Owners of the addresses inside.
    inside: BTreeMap<IpAddr, NodeId>,
    lan: Ipv4Addr,
    next_host: u8,
}

impl Topology {
    /// A core with nothing attached.
    pub(crate) fn new(noise: Noise) -> Self {
        Topology { nodes: Vec::new(), public: HashMap::new(), noise, next_ipv4: 0, next_ipv6: 0, next_lan: 0 }
    }

    /// Attaches a host with one IPv4 address.
    pub(crate) fn add_host(&mut self, name: &str, parent: Option<NodeId>, link: Link) -> NodeId {
        let role = HostRole {
            addrs: Vec::new(),
            changes: watch::Sender::new(0),
            udp: PortTable::new(self.noise.next()),
            groups: Vec::new(),
            tcp: PortTable::new(self.noise.next()),
            connections: BTreeMap::new(),
            send_buffer: None,
            writers: Vec::new(),
            writable_due: false,
            traffic: Traffic::default(),
        };
        let id = self.attach(name, parent, link, Role::Host(Box::new(role)));
        let addr = self.fresh_ipv4(parent);
        self.add_addr(id, addr.into());
        id
    }

    /// Attaches a NAT.
    pub(crate) fn add_nat(&mut self, name: &str, parent: Option<NodeId>, link: Link, config: NatConfig) -> NodeId {
        let outer = self.fresh_ipv4(parent);
        let lan = config.lan.unwrap_or_else(|| {
            let [high, low] = self.next_lan.to_be_bytes();
            self.next_lan = self.next_lan.wrapping_add(1);
            Ipv4Addr::new(10, high, low, 0)
        });
        let table = Table::new(config, self.noise.split());
        let role = NatRole { table, firewall: Firewall::default(), outer, inside: BTreeMap::new(), lan, next_host: 2 };
        let id = self.attach(name, parent, link, Role::Nat(Box::new(role)));
        self.register(id, outer.into());
        id
    }

    /// A node; ids come from this topology and nodes stay, so there always is one.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// A node, to be changed.
    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// The state of a host.
    pub(crate) fn host(&self, id: NodeId) -> &HostRole {
        match &self.node(id).role {
            Role::Host(host) => host,
            Role::Nat(_) => unreachable!("host handles and sockets carry the ids of hosts"),
        }
    }

    /// The state of a host, to be changed.
    pub(crate) fn host_mut(&mut self, id: NodeId) -> &mut HostRole {
        match &mut self.node_mut(id).role {
            Role::Host(host) => host,
            Role::Nat(_) => unreachable!("host handles and sockets carry the ids of hosts"),
        }
    }

    /// The state of a NAT.
    pub(crate) fn nat_mut(&mut self, id: NodeId) -> &mut NatRole {
        match &mut self.node_mut(id).role {
            Role::Nat(nat) => nat,
            Role::Host(_) => unreachable!("NAT handles carry the ids of NATs"),
        }
    }

    /// The node directly below `above` through which `ip` is reached.
    pub(crate) fn below(&self, above: Option<NodeId>, ip: IpAddr) -> Option<NodeId> {
        let mut node = match above.map(|id| &self.node(id).role) {
            Some(Role::Nat(nat)) if ip.is_ipv4() => *nat.inside.get(&ip)?,
            _ => *self.public.get(&ip)?,
        };
        while self.node(node).parent != above {
            node = self.node(node).parent?;
        }
        Some(node)
    }

    /// The NATs above a node, from it outwards.
    pub(crate) fn nats_above(&self, id: NodeId) -> Vec<(NodeId, NatConfig)> {
        let mut nats = Vec::new();
        let mut node = self.node(id);
        while let Some(above) = node.parent {
            node = self.node(above);
            if let Role::Nat(nat) = &node.role {
                nats.push((above, nat.table.config.clone()));
            }
        }
        nats
    }

    /// The hosts of `sender`'s network that hear the group `to`, without itself; nobody's in the core.
    pub(crate) fn neighbours(&self, sender: NodeId, to: SocketAddr) -> Vec<NodeId> {
        let Some(Role::Nat(nat)) = self.node(sender).parent.map(|nat| &self.node(nat).role) else { return Vec::new() };
        let hears = |id: &NodeId| match &self.node(*id).role {
            Role::Host(host) => *id != sender && host.groups.iter().any(|(group, _)| *group == to),
            Role::Nat(_) => false,
        };
        let mut neighbours: Vec<NodeId> = nat.inside.values().copied().filter(hears).collect();
        neighbours.sort_unstable();
        neighbours.dedup();
        neighbours
    }

    /// The host that a packet to `to` reaches below `node`, whatever filters say.
    pub(crate) fn locate(&self, mut node: NodeId, transport: Transport, mut to: SocketAddr) -> Option<NodeId> {
        while let Role::Nat(nat) = &self.node(node).role {
            if to.is_ipv4() {
                to = nat.table.inner(transport, to.port())?;
            }
            node = self.below(Some(node), to.ip())?;
        }
        Some(node)
    }

    /// An unused IPv4 address in the network of `parent`.
    pub(crate) fn fresh_ipv4(&mut self, parent: Option<NodeId>) -> Ipv4Addr {
        if let Some(parent) = parent {
            return self.nat_mut(parent).fresh();
        }
        self.next_ipv4 += 1;
        let [_, high, net, low] = self.next_ipv4.to_be_bytes(); // neighbours in number differ in their /24
        let addr = Ipv4Addr::new(11, net, low, high.saturating_add(1));
        if self.public.contains_key(&addr.into()) { self.fresh_ipv4(None) } else { addr }
    }

    /// An unused public IPv6 address, in a /48 of its own.
    pub(crate) fn fresh_ipv6(&mut self) -> Ipv6Addr {
        self.next_ipv6 += 1;
        let (high, low) = ((self.next_ipv6 >> 16) as u16, self.next_ipv6 as u16);
        let addr = Ipv6Addr::new(0x2a11, high, low, 0, 0, 0, 0, 1);
        if self.public.contains_key(&addr.into()) { self.fresh_ipv6() } else { addr }
    }

    /// Gives a host one more address; `false` if somebody in its network has it.
    pub(crate) fn add_addr(&mut self, host: NodeId, ip: IpAddr) -> bool {
        if !self.register(host, ip) {
            return false;
        }
        let host = self.host_mut(host);
        host.addrs.push(ip);
        host.changes.send_modify(|count| *count += 1);
        true
    }

    /// Takes an address from a host.
    pub(crate) fn remove_addr(&mut self, id: NodeId, ip: IpAddr) {
        let host = self.host_mut(id);
        let Some(at) = host.addrs.iter().position(|addr| *addr == ip) else { return };
        host.addrs.remove(at);
        host.changes.send_modify(|count| *count += 1);
        match self.node(id).parent {
            Some(nat) if ip.is_ipv4() => self.nat_mut(nat).inside.remove(&ip),
            _ => self.public.remove(&ip),
        };
    }

    /// Gives a NAT another address in the network above it, which its mappings do not outlive.
    pub(crate) fn renumber_nat(&mut self, id: NodeId, now: Time) -> Ipv4Addr {
        let parent = self.node(id).parent;
        let outer = self.fresh_ipv4(parent);
        let old = std::mem::replace(&mut self.nat_mut(id).outer, outer).into();
        match parent {
            Some(above) => self.nat_mut(above).inside.remove(&old),
            None => self.public.remove(&old),
        };
        self.register(id, outer.into());
        self.nat_mut(id).restart(now);
        outer
    }

    fn attach(&mut self, name: &str, parent: Option<NodeId>, link: Link, role: Role) -> NodeId {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("four thousand million nodes do not fit into memory"));
        let up = Pipe::new(link.clone(), self.noise.split());
        let down = Pipe::new(link, self.noise.split());
        self.nodes.push(Node { name: name.to_owned(), parent, up, down, off: false, role });
        id
    }

    fn register(&mut self, owner: NodeId, ip: IpAddr) -> bool {
        let parent = self.node(owner).parent;
        let taken = match parent {
            Some(nat) if ip.is_ipv4() => self.nat_mut(nat).inside.contains_key(&ip),
            _ => self.public.contains_key(&ip),
        };
        if !taken {
            match parent {
                Some(nat) if ip.is_ipv4() => self.nat_mut(nat).inside.insert(ip, owner),
                _ => self.public.insert(ip, owner),
            };
        }
        !taken
    }
}

impl HostRole {
    /// Whether `ip` is this host: one of its addresses, or loopback.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addrs.contains(&ip)
    }

    /// The source address of a packet to `to` from a socket bound to `bound`.
    pub(crate) fn source(&self, bound: IpAddr, to: IpAddr) -> Option<IpAddr> {
        if !bound.is_unspecified() {
            return Some(bound);
        }
        if self.is_own(to) {
            return Some(to);
        }
        self.addrs.iter().copied().find(|addr| addr.is_ipv4() == to.is_ipv4())
    }
}

impl NatRole {
    /// Its address in the network below it.
    pub(crate) fn inner(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.lan.octets();
        Ipv4Addr::new(a, b, c, 1)
    }

    /// Its IPv6 address there, for its port mapping service (RFC 4193).
    pub(crate) fn inner_ipv6(&self) -> Ipv6Addr {
        let [a, b, c, _] = self.lan.octets();
        Ipv6Addr::new(0xfd11, u16::from_be_bytes([a, b]), u16::from(c), 0, 0, 0, 0, 1)
    }

    /// Forgets what it knows, as a router does that restarts.
    pub(crate) fn restart(&mut self, now: Time) {
        self.table.restart(now);
        self.firewall.restart();
    }

    fn fresh(&mut self) -> Ipv4Addr {
        let [a, b, c, _] = self.lan.octets();
        loop {
            assert!(self.next_host < u8::MAX, "a NAT has room for {MAX_BEHIND_NAT} nodes behind it");
            let addr = Ipv4Addr::new(a, b, c, self.next_host);
            self.next_host += 1;
            if !self.inside.contains_key(&addr.into()) {
                return addr;
            }
        }
    }
}
