//! Hosts, and the [`Net`] that a node on a host sees.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use byway::net::{self, BoxFuture, Interface, InterfaceKind, Net};

use crate::{
    attachment::attachment,
    fabric::NodeId,
    oracle::Side,
    socket::UdpSocket,
    tcp::{TcpListener, TcpStream},
    world::Shared,
};

/// The number of every host's loopback interface.
const LOOPBACK_INDEX: u32 = 1;

/// The number of every host's interface to its network.
const LINK_INDEX: u32 = 2;

/// The network of a bridge for containers, as Docker's first has it, and that interface's number.
const BRIDGE: [u8; 2] = [172, 17];
const BRIDGE_INDEX: u32 = 9;

/// A machine in a world; clones are handles to the same one. Made by [`World::host`](crate::World::host) and
/// [`Nat::host`](crate::Nat::host).
///
/// ```
/// use std::time::Duration;
/// use byway_sim::World;
///
/// # fn main() -> std::io::Result<()> {
/// World::run(1, |world| async move {
///     let (phone, server) = (world.host("phone"), world.host("server"));
///     phone.edit_uplink(|link| link.delay = Duration::from_millis(80));
///     let from = phone.bind_udp((phone.addr(), 0).into())?;
///     let to = server.bind_udp((server.addr(), 7).into())?;
///     from.send_to(b"hello", to.local_addr())?;
///     let (len, source) = to.recv_from(&mut [0; 100]).await?;
///     assert_eq!((len, source), (5, from.local_addr()));
///     assert!(world.elapsed() >= Duration::from_millis(80 + 25));
///     assert_ne!(phone.renumber(), source.ip(), "another network");
///     Ok(())
/// })
/// # }
/// ```
#[derive(Clone)]
pub struct Host {
    shared: Arc<Shared>,
    id: NodeId,
}

/// What the UDP sockets of a host have carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Sockets opened, those included that are closed again.
    pub sockets: u64,
    /// Datagrams sent, those included that were dropped on their way.
    pub sent: u64,
    /// Bytes of payload in them.
    pub sent_bytes: u64,
    /// Datagrams that reached an inbox.
    pub received: u64,
    /// Bytes of payload in them.
    pub received_bytes: u64,
}

impl Host {
    pub(crate) fn new(shared: Arc<Shared>, id: NodeId) -> Self {
        Host { shared, id }
    }

    /// What a node that runs on this host takes for its network.
    pub fn net(&self) -> Arc<dyn Net> {
        Arc::new(HostNet { host: self.clone() })
    }

    /// Opens a UDP socket on `addr`; port 0 lets the host choose one.
    ///
    /// # Errors
    ///
    /// `AddrNotAvailable` if the address is not this host's, `AddrInUse` if the port is taken.
    pub fn bind_udp(&self, addr: SocketAddr) -> io::Result<Arc<UdpSocket>> {
        UdpSocket::bind(&self.shared, self.id, addr).map(Arc::new)
    }

    /// Opens a UDP socket that hears what hosts behind the same NAT send to the multicast `group`, itself included, and
    /// that sends from its own address `from` with the group's port. Several sockets may join one group.
    ///
    /// # Errors
    ///
    /// `AddrNotAvailable` if `from` is not this host's, `InvalidInput` if `group` is no multicast address of its family.
    pub fn join(&self, group: SocketAddr, from: IpAddr) -> io::Result<Arc<UdpSocket>> {
        UdpSocket::join(&self.shared, self.id, group, from).map(Arc::new)
    }

    /// Opens a TCP connection to `addr`.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` if nobody listens there, `TimedOut` if nothing answers, `AddrNotAvailable` if this host has
    /// no address of that family.
    pub async fn connect_tcp(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(&self.shared, self.id, addr).await
    }

    /// Opens a TCP listener on `addr`; port 0 lets the host choose one.
    ///
    /// # Errors
    ///
    /// `AddrNotAvailable` if the address is not this host's, `AddrInUse` if the port is taken.
    pub fn listen_tcp(&self, addr: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::bind(&self.shared, self.id, addr)
    }

    /// The name it was given.
    pub fn name(&self) -> String {
        self.shared.name_of(self.id)
    }

    /// Its first address: the IPv4 address it was made with, unless that was taken away.
    ///
    /// # Panics
    ///
    /// If all its addresses were taken away.
    pub fn addr(&self) -> IpAddr {
        *self.addrs().first().expect("the scenario has left this host an address")
    }

    /// All its addresses but loopback.
    pub fn addrs(&self) -> Vec<IpAddr> {
        self.shared.look(|fabric| fabric.topology.host(self.id).addrs.clone())
    }

    /// Gives it one more address; one in 172.17.0.0/16 is a bridge for containers.
    ///
    /// # Panics
    ///
    /// If somebody in its network has the address.
    pub fn add_addr(&self, ip: IpAddr) {
        let added = self.enter_topology(|topology, id| topology.add_addr(id, ip));
        assert!(added, "{ip} belongs to somebody in this network");
    }

    /// Gives it one more IPv4 address of its network.
    pub fn add_ipv4(&self) -> Ipv4Addr {
        self.enter_topology(|topology, id| {
            let addr = topology.fresh_ipv4(topology.node(id).parent);
            topology.add_addr(id, addr.into());
            addr
        })
    }

    /// Gives it a public IPv6 address, in a /48 of its own; no NAT translates it, but most filter
    /// ([`NatConfig::ipv6_firewall`](crate::NatConfig)).
    pub fn add_ipv6(&self) -> Ipv6Addr {
        self.enter_topology(|topology, id| {
            let addr = topology.fresh_ipv6();
            topology.add_addr(id, addr.into());
            addr
        })
    }

    /// Takes an address away: what comes to it, or is sent from it, is dropped.
    pub fn remove_addr(&self, ip: IpAddr) {
        self.enter_topology(|topology, id| topology.remove_addr(id, ip));
    }

    /// Replaces its IPv4 addresses by a new one of the same network, as a change of network does.
    pub fn renumber(&self) -> IpAddr {
        self.enter_topology(|topology, id| {
            let parent = topology.node(id).parent;
            let addr = IpAddr::V4(topology.fresh_ipv4(parent));
            let old: Vec<_> = topology.host(id).addrs.iter().copied().filter(IpAddr::is_ipv4).collect();
            old.into_iter().for_each(|old| topology.remove_addr(id, old));
            topology.add_addr(id, addr);
            addr
        })
    }

    /// Lets sending say `WouldBlock` while more than `bytes` wait on the uplink, until half of that is gone; `None`,
    /// as at first, is never. Without a rate on the uplink nothing waits.
    pub fn set_send_buffer(&self, bytes: Option<usize>) {
        self.enter_topology(|topology, id| topology.host_mut(id).send_buffer = bytes);
    }

    /// Bytes that wait on its uplink for the link's rate.
    pub fn backlog(&self) -> usize {
        self.shared.enter(|fabric, now| fabric.topology.node(self.id).up.backlog(now))
    }

    /// What stands between it and the core, for [`can_punch`](crate::can_punch).
    pub fn side(&self) -> Side {
        self.enter_topology(|topology, id| {
            Side::of(topology.nats_above(id), topology.host(id).addrs.iter().any(IpAddr::is_ipv6))
        })
    }

    /// How many UDP sockets are open on it, those of multicast groups not counted.
    pub fn sockets(&self) -> usize {
        self.shared.look(|fabric| fabric.topology.host(self.id).udp.len())
    }

    /// What its UDP sockets have carried so far.
    pub fn traffic(&self) -> Traffic {
        self.enter_topology(|topology, id| topology.host(id).traffic)
    }

    fn enter_topology<R>(&self, work: impl FnOnce(&mut crate::fabric::topology::Topology, NodeId) -> R) -> R {
        self.shared.enter(|fabric, _| work(&mut fabric.topology, self.id))
    }
}

attachment!(Host);

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Host").field(&self.name()).finish()
    }
}

/// A host as its nodes see it.
#[derive(Debug)]
struct HostNet {
    host: Host,
}

impl Net for HostNet {
    fn gateways(&self) -> Vec<net::Gateway> {
        self.host.enter_topology(|topology, id| {
            let Some(nat) = topology.node(id).parent else { return Vec::new() };
            let role = topology.nat_mut(nat);
            let inner = [IpAddr::V4(role.inner()), IpAddr::V6(role.inner_ipv6())];
            let addrs = &topology.host(id).addrs;
            let gateway = |addr: IpAddr| {
                let local = addrs.iter().copied().find(|local| local.is_ipv4() == addr.is_ipv4())?;
                Some(net::Gateway { addr, scope: 0, local })
            };
            inner.into_iter().filter_map(gateway).collect()
        })
    }

    fn bind_udp(&self, addr: SocketAddr) -> io::Result<Arc<dyn net::UdpSocket>> {
        Ok(self.host.bind_udp(addr)?)
    }

    fn bind_multicast(&self, group: SocketAddr, interface: &Interface) -> io::Result<Arc<dyn net::UdpSocket>> {
        let socket = UdpSocket::join(&self.host.shared, self.host.id, group, interface.ip)?;
        Ok(Arc::new(socket))
    }

    fn connect_tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn net::TcpStream>>> {
        Box::pin(async move { Ok(Box::new(self.host.connect_tcp(addr).await?) as Box<dyn net::TcpStream>) })
    }

    fn listen_tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn net::TcpListener>>> {
        Box::pin(async move { Ok(Box::new(self.host.listen_tcp(addr)?) as Box<dyn net::TcpListener>) })
    }

    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            let literal = host.trim_start_matches('[').trim_end_matches(']').parse();
            let ips = match literal {
                Ok(ip) => vec![ip],
                Err(_) if host == "localhost" => vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
                Err(_) => self.host.shared.look(|fabric| fabric.names.get(host).cloned()).unwrap_or_default(),
            };
            if ips.is_empty() {
                let problem = format!("no address is known for the name {host}: give it one with World::name");
                return Err(io::Error::new(io::ErrorKind::NotFound, problem));
            }
            Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
        })
    }

    fn interfaces(&self) -> Vec<Interface> {
        let (addrs, is_behind_nat) = self.host.shared.look(|fabric| {
            let topology = &fabric.topology;
            (topology.host(self.host.id).addrs.clone(), topology.node(self.host.id).parent.is_some())
        });
        let loopback = |ip: IpAddr, prefix| Interface::new(ip, prefix, LOOPBACK_INDEX, InterfaceKind::Loopback);
        let mut all = vec![loopback(Ipv4Addr::LOCALHOST.into(), 8)];
        if addrs.iter().any(IpAddr::is_ipv6) {
            all.push(loopback(Ipv6Addr::LOCALHOST.into(), 128));
        }
        all.extend(addrs.into_iter().map(|ip| {
            let prefix = match ip {
                IpAddr::V4(_) if is_behind_nat => 24,
                IpAddr::V4(_) => 32, // hosts in the core have no neighbours
                IpAddr::V6(_) => 64,
            };
            if matches!(ip, IpAddr::V4(ip) if ip.octets()[..2] == BRIDGE) {
                return Interface::new(ip, 16, BRIDGE_INDEX, InterfaceKind::Container);
            }
            Interface::new(ip, prefix, LINK_INDEX, InterfaceKind::Physical)
        }));
        all
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        // Each waiter counts from here, not from its first poll, and for itself.
        let mut changes = self.host.shared.look(|fabric| fabric.topology.host(self.host.id).changes.subscribe());
        Box::pin(async move {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await; // the world is gone
            }
        })
    }
}
