//! A node: one identity, one port, any number of peers.

mod peer;
mod peers;
mod relay;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use byway_proto::{PeerId, Rng, Ticket, gate::Gate, nat::Explanation};
use futures_util::future::join_all;
use quinn::VarInt;
use tokio::time::Instant;

pub use self::peer::Peer;

use crate::{
    accept, agent,
    agent::PingReport,
    config::{Config, ConfigError},
    core::Core,
    dial::{DialError, Target},
    event::{EventStream, Events},
    gone::Gone,
    net::{
        Net, UdpSocket,
        lan::{self, LanRef},
        mux::{Clock, Mux, Welcome},
        os::Os,
        portmap::{self, PortMappings},
        routes::Routes,
        sockets::Sockets,
    },
    protocol::{Peers, Protocol, RegisterError, Registry},
    quic::endpoint::{Endpoint, EndpointError},
    relay::{
        listener,
        server::RelayShell,
        table::{self as relays, Relays},
    },
    status::NodeStatus,
    store::StoreError,
    stun,
    switch::{self, Command, SwitchRef, exchange::Exchange},
    tasks::Tasks,
};

/// How long closing a node waits for its goodbyes to leave, and then for its tasks to end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Bytes in the reason of [`Node::disconnect`]: with the rest of its frame it fits a packet (RFC 9000 §19.19).
pub const MAX_WHY: usize = byway_proto::hello::MAX_DETAIL;

/// How long a ping waits for its pong.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Ports that are tried until one is free for both address families.
const PORT_ATTEMPTS: usize = 16;

/// A node of the network; a clone is another handle to the same node.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use byway::{Config, Identity, Node};
///
/// let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// let peer = a.dial(b.ticket()).await?;
/// assert_eq!((peer, a.peers()), (b.id(), vec![b.id()]));
/// println!("{:?} by {}", a.ping(peer).await?.rtt, a.ping(peer).await?.path);
/// a.disconnect(peer, 7, "enough"); // which the other side's events tell as they are told here
/// b.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Node {
    core: Arc<Core>,
    started: Instant,
    life: Arc<Life>,
}

/// Ends with the last handle to a node; the node's tasks do not share it.
#[derive(Debug)]
struct Life {
    core: Arc<Core>,
    /// Somebody closes the node, and may still wait for what is queued.
    closing: AtomicBool,
    closed: AtomicBool,
}

impl Life {
    /// Stops all tasks, and lets QUIC say goodbye to all peers; `false` if that was done before.
    fn end(&self) -> bool {
        let first = !self.closed.swap(true, Ordering::Relaxed);
        if first {
            self.core.tasks.stop();
            self.core.endpoint.close(VarInt::from_u32(Gone::Closed.to_goodbye().code));
        }
        first
    }
}

impl Drop for Life {
    /// Tasks end by themselves once they are told to, and QUIC's own with the last connection.
    fn drop(&mut self) {
        self.end();
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The port is taken.
    #[error("UDP port {0} is in use by another program; stop it or choose another port")]
    PortInUse(SocketAddr),
    /// The socket cannot be opened.
    #[error("cannot open a UDP socket on {addr}: {source}")]
    Socket {
        /// The address.
        addr: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// QUIC cannot start.
    #[error(transparent)]
    Quic(#[from] EndpointError),
    /// The file of the address book cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a ping failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// The peer is not connected.
    #[error("{0} is not connected; dial it first")]
    Absent(PeerId),
    /// No pong came.
    #[error("no answer from {0} within {PING_TIMEOUT:?}; `status` tells the state of its routes")]
    Timeout(PeerId),
}

/// A pong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pong {
    /// From the ping to the pong.
    pub rtt: Duration,
    /// What it went through.
    pub path: crate::PathKind,
}

impl Node {
    /// Starts a node on the operating system's network.
    pub async fn bind(config: Config) -> Result<Node, BindError> {
        Node::bind_on(Arc::new(Os), config).await
    }

    /// Starts a node on any network, such as a simulated one.
    pub async fn bind_on(net: Arc<dyn Net>, config: Config) -> Result<Node, BindError> {
        config.check()?;
        let seed = config.seed.unwrap_or_else(random_seed);
        let peers::Kept { book, store, learned } = peers::open_store(&config, &seed)?;
        let sockets = bind_sockets(&*net, &config)?;
        let (clock, tasks, events) = (Clock::start(), Tasks::new(), Events::default());
        let routes = Routes::new(&seed, config.identity.derive("byway 1 alias key"));
        let gate = Gate::new(config.gate.clone(), Rng::new(&seed, "gate").bytes());
        let (mux, datagrams) = Mux::new(sockets, routes, gate, clock, Welcome::of(&config));
        let serving = config.relay.clone().map(|relay| RelayShell::new(relay, &mux, &*net));
        let endpoint = Endpoint::new(&config, &seed, Arc::clone(&mux), &tasks)?;
        let (switch, inlets) = SwitchRef::new();
        let setup = agent::Setup {
            mux: Arc::clone(&mux),
            net: Arc::clone(&net),
            datagrams,
            events: events.clone(),
            switch: switch.clone(),
            nat: config.nat.clone(),
            seed,
            clock: config.clock.clone(),
            store: store.clone(),
            learned,
        };
        let agent = agent::spawn(setup, &tasks);
        let (lan, lan_inlet) = LanRef::new();
        let (shell, from_links) = serving.unzip();
        let registry = Arc::new(Registry::new(&config.link, config.message_events.then(|| events.clone())));
        let relays = Relays::new(&config).map_err(EndpointError::from)?;
        let mut rng = Rng::new(&seed, "node");
        let core = Arc::new(Core {
            instance: rng.next_u64(),
            config,
            net,
            mux,
            endpoint,
            agent,
            registry,
            switch,
            relays,
            port_mappings: PortMappings::default(),
            lan,
            serving: shell,
            events,
            tasks: tasks.clone(),
            rng: Mutex::new(rng),
        });
        if core.config.peer_exchange
            && let Some(exchange) = Exchange::new(&core, &seed)
        {
            tasks.spawn(exchange.run(Arc::clone(&core)));
        }
        let setup = switch::Setup { book, seed: Rng::new(&seed, "peers").bytes(), store };
        tasks.spawn(switch::run(Arc::clone(&core), inlets, setup));
        lan::start(&core, lan_inlet);
        let mut listening = Vec::new();
        if let (Some(shell), Some(from_links)) = (&core.serving, from_links) {
            tasks.spawn(Arc::clone(shell).run(Arc::clone(&core), from_links));
            listening = listener::start(&core).await.map_err(EndpointError::from)?;
        }
        if core.config.accept {
            tasks.spawn(accept::run(Arc::clone(&core)));
        }
        if core.config.port_mapping && !core.config.relay_only {
            tasks.spawn(portmap::run(Arc::clone(&core), seed, listening));
        }
        core.relays.set(&core.config.relays, core.mux.now());
        core.relays.plan(&core);
        tasks.spawn(relays::run(Arc::clone(&core)));
        if !core.config.stun.is_empty() {
            tasks.spawn(stun::tell_all(Arc::clone(&core)));
        }
        let life =
            Arc::new(Life { core: Arc::clone(&core), closing: AtomicBool::new(false), closed: AtomicBool::new(false) });
        Ok(Node { core, started: Instant::now(), life })
    }

    /// The node's public key, which is its name.
    pub fn id(&self) -> PeerId {
        self.core.id()
    }

    /// The UDP port that the node listens on.
    pub fn port(&self) -> u16 {
        let sockets = &self.core.mux.sockets;
        let bound = sockets.v4.as_ref().or(sockets.v6.as_ref()).and_then(|socket| socket.local_addr().ok());
        bound.map_or(0, |addr| addr.port())
    }

    /// Where peers may reach the node, as far as it knows, best first.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.core.addrs(false)
    }

    /// What another machine needs to reach this node: its key, its addresses, and three of its relays at most, first those
    /// where it is registered.
    pub fn ticket(&self) -> Ticket {
        let mut ticket = Ticket::new(self.id());
        ticket.addrs = self.addrs();
        ticket.addrs.truncate(byway_proto::addr::MAX_ADDRS);
        ticket.relays = self.core.relays.promised();
        ticket
    }

    /// Connects to a peer, or finds it connected: its first packets go to all its addresses and relays at once. If a dial of it is under
    /// way, that one's end is waited for, and of one more to the addresses that it did not have.
    pub async fn dial(&self, target: impl Into<Target>) -> Result<PeerId, DialError> {
        self.core.switch.dial(target.into()).await
    }

    /// Registers a protocol; peers that are connected already learn of it.
    pub fn register(&self, protocol: Protocol) -> Result<Peers, RegisterError> {
        if self.life.closing.load(Ordering::Relaxed) {
            return Err(RegisterError::Closed);
        }
        let core = &self.core;
        let registered = core.registry.register(protocol)?;
        registered.watch(&core.tasks, &core.switch);
        self.announce();
        Ok(Peers::new(registered, Arc::clone(&core.registry), core.tasks.clone(), core.switch.clone()))
    }

    /// Ends a protocol: its receivers and peers end, what was queued is still sent, connected peers learn that it is spoken
    /// no longer. `false` if none of this name is registered.
    pub fn unregister(&self, protocol: &str) -> bool {
        let Some(failed) = self.core.registry.unregister(protocol) else { return false };
        failed.into_iter().for_each(|(peer, why)| self.core.tell_failure(peer, protocol, why));
        self.announce();
        true
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    fn announce(&self) {
        let core = Arc::clone(&self.core);
        self.core.tasks.spawn(async move { core.switch.send(Command::Announce).await });
    }

    /// The node's events from now on.
    pub fn events(&self) -> EventStream {
        self.core.events.subscribe()
    }

    /// The peers that are connected, in the order of their ids.
    pub fn peers(&self) -> Vec<PeerId> {
        self.core.switch.links().iter().map(|link| link.peer).collect()
    }

    /// Measures the path that a peer's connection takes now.
    pub async fn ping(&self, peer: PeerId) -> Result<Pong, PingError> {
        let link = self.core.switch.link(peer).ok_or(PingError::Absent(peer))?;
        let pong = tokio::time::timeout(PING_TIMEOUT, self.core.agent.ping(link.track.alias())).await;
        let PingReport { rtt, path } = pong.ok().flatten().ok_or(PingError::Timeout(peer))?;
        Ok(Pong { rtt, path })
    }

    /// Why the connection to a peer takes a direct path or does not, and what was tried; `None` if it is not connected.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
    /// # use byway::{Config, Identity, Node};
    /// # let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
    /// let peer = a.dial(b.ticket()).await?;
    /// if let Some(why) = a.why(peer).await {
    ///     println!("direct: {}, pinged: {:?}", why.direct, why.candidates);
    ///     why.attempts.iter().for_each(|attempt| println!("tried {}: {}", attempt.means, attempt.outcome));
    ///     why.remedies.iter().for_each(|remedy| println!("would help: {remedy}"));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn why(&self, peer: PeerId) -> Option<Explanation> {
        let link = self.core.switch.link(peer)?;
        self.core.agent.explain(link.track.alias()).await
    }

    /// The node's state.
    pub async fn status(&self) -> NodeStatus {
        let core = &self.core;
        let mut peers = Vec::new();
        for link in core.switch.links() {
            peers.push(peer::status(core, &link).await);
        }
        NodeStatus {
            id: self.id(),
            agent: core.config.agent.clone(),
            network: core.config.network.clone(),
            addrs: self.addrs(),
            uptime: self.started.elapsed(),
            relays: core.relays.status(core).await,
            mappings: core.port_mappings.status(core.mux.now()),
            protocols: core.registry.status(None),
            peers,
            nat: core.agent.nat().await,
            serving: core.serving.as_ref().map(|shell| shell.status()),
            dropped: core.dropped(),
            memory: core.registry.memory(),
            aliases: core.mux.routes.read().len(),
        }
    }

    /// Sends what is queued ([`Node::disconnect`] says what that is and how long it may take), says goodbye to all peers and
    /// ends all tasks, within four seconds more; closing twice does nothing. Dropping the last handle says goodbye at
    /// once and waits for nothing.
    pub async fn close(&self) {
        if self.life.closing.swap(true, Ordering::Relaxed) {
            return;
        }
        let links = self.core.switch.links();
        join_all(links.iter().map(|link| link.flush(self.core.config.link.flush))).await;
        if self.life.end() {
            self.core.endpoint.closed(CLOSE_DEADLINE).await;
            self.core.tasks.join(CLOSE_DEADLINE).await;
        }
    }
}

fn random_seed() -> [u8; 32] {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("the operating system gives randomness");
    seed
}

/// Opens one socket a family, both on one port.
fn bind_sockets(net: &dyn Net, config: &Config) -> Result<Sockets, BindError> {
    match bind_port(net, config, config.port) {
        Err(BindError::PortInUse(_)) if config.any_port && config.port != 0 => bind_port(net, config, 0),
        result => result,
    }
}

fn bind_port(net: &dyn Net, config: &Config, port: u16) -> Result<Sockets, BindError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let v4 = config.ipv4.map(|ip| bind(net, SocketAddr::new(ip.into(), port))).transpose()?;
        let shared = match &v4 {
            Some(socket) => socket.local_addr().map_err(|source| BindError::Socket {
                addr: SocketAddr::new(config.ipv4.map_or_else(|| [0, 0, 0, 0].into(), Into::into), port),
                source,
            })?,
            None => return Ok(Sockets::new(v4, config.ipv6.map(|ip| bind(net, (ip, port).into())).transpose()?)),
        };
        let Some(ip) = config.ipv6 else { return Ok(Sockets::new(v4, None)) };
        match bind(net, SocketAddr::new(ip.into(), shared.port())) {
            Ok(v6) => return Ok(Sockets::new(v4, Some(v6))),
            // The system chose a port that is free for one family only: let it choose again.
            Err(BindError::PortInUse(_)) if port == 0 && attempt < PORT_ATTEMPTS => {}
            // A machine without IPv6 is an ordinary one.
            Err(BindError::Socket { source, .. }) if no_family(&source) => return Ok(Sockets::new(v4, None)),
            Err(error) => return Err(error),
        }
    }
}

fn bind(net: &dyn Net, addr: SocketAddr) -> Result<Arc<dyn UdpSocket>, BindError> {
    net.bind_udp(addr).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::PortInUse(addr),
        _ => BindError::Socket { addr, source },
    })
}

/// Whether the system says that it has no IPv6 (EAFNOSUPPORT or EADDRNOTAVAIL).
fn no_family(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(97)
}
