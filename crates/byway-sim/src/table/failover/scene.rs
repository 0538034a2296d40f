//! Two nodes, their relays and the flows between them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use byway::{
    BindError, Channel, Config, Delivery, Event, Identity, Node, PathKind, PeerAddr, PeerEvent, Peers, Protocol,
    Receiver, RelayConfig, Sender, Streams,
    tunnel::{Access, Tunnel},
};
use byway_proto::Rng;
use quinn::{Connection, ConnectionError};
use tokio::{io, sync::watch, task::JoinHandle, time};

use super::{
    Case, FailoverError,
    datagrams::{self, Voice},
    flow::{self, Book, DATAGRAMS, Phase, Phases},
    wire::Wire,
};
use crate::{
    ActiveRule, Host, Link, Nat, NatConfig, Ports, World,
    bare::{self, BareError},
    table,
};

/// The port of every node.
const PORT: u16 = 4_000;

/// The name of the service that the TCP connection leads to.
const SERVICE: &str = "echo";

/// Where that service listens on b, and where a's end of the tunnel does.
const TCP: &str = "127.0.0.1:7000";

/// How long a run may take to get its connection and its path.
const SETUP: Duration = Duration::from_secs(30);

/// How long the connection is left alone before the flows begin: surveys are done, routes are proven.
const SETTLE: Duration = Duration::from_secs(5);

/// Datagrams that may wait: more than are sent during the longest outage.
const QUEUE: usize = 8_192;

/// How long the last datagrams may be on their way.
const LAST: Duration = Duration::from_secs(1);

/// A run's world, with a connection at rest.
pub(super) struct Scene {
    pub(super) world: World,
    pub(super) hosts: [Host; 2],
    pub(super) nats: [Option<Nat>; 2],
    pub(super) relays: Vec<Relay>,
    pub(super) book: Book,
    pub(super) wire: Wire,
    /// In force while nothing passes between the hosts directly.
    pub(super) cut: Option<ActiveRule>,
    pub(super) rng: Rng,
    /// None where QUIC is bare.
    nodes: Vec<Node>,
    phases: watch::Sender<Phase>,
    tasks: Vec<JoinHandle<()>>,
    flows: Vec<JoinHandle<()>>,
    logs: [Log; 2],
}

/// A relay, and what it was started with.
pub(super) struct Relay {
    pub(super) host: Host,
    _node: Node,
    key: [u8; 32],
}

/// What a node has told of its connection.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    paths: Vec<(Duration, PathKind)>,
    downs: u64,
}

/// One node with what it speaks by.
struct Speaker {
    node: Node,
    peers: Peers,
    tx: Sender,
    rx: Receiver,
    streams: Streams,
    tunnel: Tunnel,
}

impl Scene {
    /// Builds the world of `case`; `None` if no connection of the wanted kind came to be.
    pub(super) async fn start(world: &World, case: Case, hedging: bool) -> Result<Option<Self>, FailoverError> {
        let mut rng = world.rng("failover");
        let mut relays = Vec::new();
        for number in 0..case.relays() {
            let host = world.host(&format!("relay {number}"));
            host.set_link(case.relay_link());
            relays.push(Relay::start(world, host, rng.bytes(), &mut rng).await?);
        }
        let (mut hosts, mut nats) = (Vec::new(), Vec::new());
        for (name, home) in ["a", "b"].into_iter().zip(case.behind_nat()) {
            let (host, nat) = attach(world, name, home, case.access());
            hosts.push(host);
            nats.push(nat);
        }
        let (hosts, nats) = (pair(hosts), pair(nats));
        let mut speakers = Vec::new();
        for host in &hosts {
            speakers.push(Speaker::start(world, host, &relays, hedging, &mut rng).await?);
        }
        let [a, b] = pair(speakers);
        let cut = (!case.begins_direct()).then(|| world.cut(&hosts[0], &hosts[1]));
        let nodes = vec![a.node.clone(), b.node.clone()];
        let wanted = if case.begins_direct() { PathKind::Direct } else { PathKind::Relay };
        let connected = async {
            for node in &nodes {
                while !node.status().await.relays.iter().all(|relay| relay.registered) {
                    time::sleep(Duration::from_millis(20)).await;
                }
            }
            time::sleep(SETTLE).await;
            while nodes[0].dial(nodes[1].ticket()).await.is_err() {}
            while !(path_of(&nodes[0]).await == Some(wanted) && path_of(&nodes[1]).await == Some(wanted)) {
                time::sleep(Duration::from_millis(20)).await;
            }
            time::sleep(SETTLE).await;
        };
        if time::timeout(SETUP, connected).await.is_err() {
            return Ok(None);
        }
        let (mut scene, follow) = Scene::at_rest(world, (hosts, nats), relays, rng);
        (scene.cut, scene.nodes) = (cut, nodes);
        let flowing = time::timeout(SETUP, scene.prepare(case, [a, b], &follow)).await;
        Ok(flowing.ok().transpose()?.map(|()| scene))
    }

    /// The same flows over one connection of bare quinn, on the direct path; `None` if it did not come to be.
    pub(super) async fn start_bare(world: &World, case: Case) -> Result<Option<Self>, FailoverError> {
        let mut rng = world.rng("failover");
        let (a, nat) = attach(world, "a", case.behind_nat()[0], case.access());
        let (b, _) = attach(world, "b", false, case.access()); // without a relay somebody has to be reachable
        let open = |host: &Host, seed| bare::endpoint(&*host.net(), ([0, 0, 0, 0], PORT).into(), seed);
        let (dialling, listening) = (open(&a, rng.bytes())?, open(&b, rng.bytes())?);
        let addr = (b.addr(), PORT).into();
        let (mut scene, follow) = Scene::at_rest(world, ([a, b], [nat, None]), Vec::new(), rng);
        let accept = async {
            let incoming = listening.accept().await.ok_or(ConnectionError::LocallyClosed)?;
            Ok::<_, BareError>(incoming.await?)
        };
        let connected = time::timeout(SETUP, async { tokio::try_join!(bare::dial(&dialling, addr), accept) });
        let Ok(connected) = connected.await else { return Ok(None) };
        let (dialled, accepted) = connected?;
        time::sleep(SETTLE).await;
        scene.prepare_bare(case, [dialled, accepted], &follow).await?;
        Ok(Some(scene))
    }

    /// A scene in which nothing is connected yet, and what its flows follow.
    fn at_rest(
        world: &World,
        (hosts, nats): ([Host; 2], [Option<Nat>; 2]),
        relays: Vec<Relay>,
        rng: Rng,
    ) -> (Self, Phases) {
        let (wire, eye) =
            Wire::new([hosts[0].id(), hosts[1].id()], relays.iter().map(|relay| relay.host.id()).collect());
        world.rule(eye);
        let (phases, follow) = watch::channel(Phase::Wait);
        let scene = Scene {
            world: world.clone(),
            book: Book::new(world),
            wire,
            cut: None,
            rng,
            nodes: Vec::new(),
            phases,
            tasks: Vec::new(),
            flows: Vec::new(),
            logs: Default::default(),
            hosts,
            nats,
            relays,
        };
        (scene, Phases(follow))
    }

    /// Opens the flows; a second stream stands for the TCP connection, for which bare QUIC has nothing.
    async fn prepare_bare(
        &mut self,
        case: Case,
        connections: [Connection; 2],
        phases: &Phases,
    ) -> Result<(), FailoverError> {
        let load = case.load();
        for (flow, paces) in [(0, load.stream), (2, load.others)] {
            let (mut send, recv) = connections[0].open_bi().await.map_err(BareError::from)?;
            // The other side learns of a stream by its first byte.
            send.write_all(&[0]).await.map_err(|error| FailoverError::Flow(error.to_string()))?;
            let (sending, mut receiving) = connections[1].accept_bi().await.map_err(BareError::from)?;
            receiving.read_exact(&mut [0]).await.map_err(|error| FailoverError::Flow(error.to_string()))?;
            for (side, (recv, send)) in [(recv, send), (receiving, sending)].into_iter().enumerate() {
                let page = self.book.page(flow, side);
                self.flows.push(tokio::spawn(flow::play(recv, send, paces[side], phases.clone(), page)));
            }
        }
        for (side, connection) in connections.into_iter().enumerate() {
            let (voice, page) = (Voice::Bare(connection.clone()), self.book.page(DATAGRAMS, side));
            let talk = datagrams::talk(voice, load.others[side], phases.clone(), page);
            self.tasks.push(tokio::spawn(talk));
            let log = self.logs[side].clone();
            self.tasks.push(tokio::spawn(async move {
                connection.closed().await;
                log.lock().downs += 1;
            }));
        }
        Ok(())
    }

    /// Opens the flows; nothing is written yet.
    async fn prepare(&mut self, case: Case, speakers: [Speaker; 2], phases: &Phases) -> Result<(), FailoverError> {
        let load = case.load();
        let [a, b] = speakers;
        let [id_a, id_b] = [a.node.id(), b.node.id()];
        let pages = |flow| [0, 1].map(|side| self.book.page(flow, side));

        let [page_a, page_b] = pages(0);
        let opened = a.peers.open(id_b).await.map_err(|error| FailoverError::Flow(error.to_string()))?;
        let (read, write) = opened.into_split();
        self.flows.push(tokio::spawn(flow::play(read, write, load.stream[0], phases.clone(), page_a)));
        let (mut streams, follow) = (b.streams, phases.clone());
        self.flows.push(tokio::spawn(async move {
            let Some((_, accepted)) = streams.accept().await else { return };
            let (read, write) = accepted.into_split();
            flow::play(read, write, load.stream[1], follow, page_b).await;
        }));

        let [page_a, page_b] = pages(DATAGRAMS);
        let voice = Voice::Byway { tx: a.tx, rx: a.rx, to: id_b };
        let talk = datagrams::talk(voice, load.others[0], phases.clone(), page_a);
        self.tasks.push(tokio::spawn(talk));
        let voice = Voice::Byway { tx: b.tx, rx: b.rx, to: id_a };
        let talk = datagrams::talk(voice, load.others[1], phases.clone(), page_b);
        self.tasks.push(tokio::spawn(talk));

        let [page_a, page_b] = pages(2);
        let addr: SocketAddr = TCP.parse().expect("the constant is an address");
        let service = self.hosts[1].listen_tcp(addr)?;
        let mut offered = b.tunnel.listen(SERVICE, Access::Anyone).expect("the name is a valid one, and the first");
        let (tunnel_b, host_b) = (b.tunnel.clone(), self.hosts[1].clone());
        self.tasks.push(tokio::spawn(async move {
            let Some(session) = offered.accept().await else { return };
            let Ok(tcp) = host_b.connect_tcp(addr).await else { return };
            tunnel_b.forward(session.stream, Box::new(tcp)).await;
        }));
        let entrance = self.hosts[0].listen_tcp(addr)?;
        let tunnel_a = a.tunnel.clone();
        self.tasks.push(tokio::spawn(async move {
            let Ok(tcp) = entrance.accept().await else { return };
            let Ok(stream) = tunnel_a.dial(id_b, SERVICE, None).await else { return };
            tunnel_a.forward(stream, Box::new(tcp)).await;
        }));
        let near = self.hosts[0].connect_tcp(addr).await?;
        let far = service.accept().await?;
        for (side, (tcp, page)) in [(near, page_a), (far, page_b)].into_iter().enumerate() {
            let (read, write) = io::split(tcp);
            self.flows.push(tokio::spawn(flow::play(read, write, load.others[side], phases.clone(), page)));
        }
        for (side, (node, mut peers)) in [(a.node, a.peers), (b.node, b.peers)].into_iter().enumerate() {
            self.listen(side, &node, async move {
                while !matches!(peers.next().await, Some(PeerEvent::Down { .. }) | None) {}
            });
        }
        Ok(())
    }

    /// Writes down what a node tells; `ended` waits for the end of its connection.
    fn listen(&mut self, side: usize, node: &Node, ended: impl Future<Output = ()> + Send + 'static) {
        let (mut events, log, world) = (node.events(), self.logs[side].clone(), self.world.clone());
        self.tasks.push(tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let Event::PathBest { path, .. } = event {
                    log.lock().paths.push((world.elapsed(), path));
                }
            }
        }));
        let log = self.logs[side].clone();
        self.tasks.push(tokio::spawn(async move {
            ended.await;
            log.lock().downs += 1;
        }));
    }

    /// Lets the flows write, or write no more.
    pub(super) fn enter(&self, phase: Phase) {
        self.phases.send_replace(phase);
    }

    /// Waits until everything that was written has arrived, and for both ends of every flow, but no longer than `limit`.
    pub(super) async fn drain(&mut self, limit: Duration) {
        let flows = std::mem::take(&mut self.flows);
        let aborts: Vec<_> = flows.iter().map(JoinHandle::abort_handle).collect();
        let book = self.book.clone();
        let all = async move {
            for flow in flows {
                let _ = flow.await; // one that panicked is missed in the ledger
            }
            // A datagram's ledger counts no bytes that were written.
            let missing = || book.read().iter().flatten().any(|ledger| ledger.lost() > 0);
            while missing() {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        if time::timeout(limit, all).await.is_err() {
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
        time::sleep(LAST).await;
    }

    /// When node `side` chose another kind of path, after `from`.
    pub(super) fn switches(&self, side: usize, from: Duration) -> Vec<(Duration, PathKind)> {
        self.logs[side].lock().paths.iter().filter(|(at, _)| *at >= from).copied().collect()
    }

    /// Connections that have ended.
    pub(super) fn lost_connections(&self) -> u64 {
        u64::from(self.logs.iter().any(|log| log.lock().downs > 0))
    }

    /// The relay, by its place in [`Scene::relays`], that carries the connection at node a.
    pub(super) async fn relay_in_use(&self) -> usize {
        let status = self.nodes[0].status().await;
        let routes = status.peers.iter().flat_map(|peer| &peer.routes);
        let remote = routes.filter(|route| route.selected).map(|route| route.remote.ip()).next();
        self.relays.iter().position(|relay| Some(relay.host.addr()) == remote).unwrap_or(0)
    }

    /// Kills a relay between two packets, as `kill -9` does, and starts it anew at the same address.
    pub(super) async fn restart_relay(&mut self, number: usize) -> Result<(), FailoverError> {
        let Some(relay) = self.relays.get(number) else { return Ok(()) };
        let (old, key, ip) = (relay.host.clone(), relay.key, relay.host.addr());
        old.set_down();
        old.remove_addr(ip);
        let host = self.world.host("relay anew");
        host.set_link(Link::lan());
        let own = host.addr();
        host.add_addr(ip);
        host.remove_addr(own);
        self.relays[number] = Relay::start(&self.world, host, key, &mut self.rng).await?;
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.tasks.iter().chain(&self.flows).for_each(JoinHandle::abort);
    }
}

impl Relay {
    async fn start(world: &World, host: Host, key: [u8; 32], rng: &mut Rng) -> Result<Self, FailoverError> {
        let mut config = config(world, key, rng);
        config.relay = Some(RelayConfig::default());
        let node = Node::bind_on(host.net(), config).await?;
        Ok(Relay { host, _node: node, key })
    }

    fn addr(&self) -> PeerAddr {
        PeerAddr::new(Identity::from_seed(self.key).id(), [SocketAddr::new(self.host.addr(), PORT)])
    }
}

impl Speaker {
    async fn start(
        world: &World,
        host: &Host,
        relays: &[Relay],
        hedging: bool,
        rng: &mut Rng,
    ) -> Result<Self, BindError> {
        let mut config = config(world, rng.bytes(), rng);
        config.paths.hedging = hedging;
        config = relays.iter().fold(config, |config, relay| config.relay_at(relay.addr()));
        let node = Node::bind_on(host.net(), config).await?;
        let mut protocol = Protocol::new("failover", 1..=1);
        let (tx, rx) = protocol.channel(Channel::new(1).delivery(Delivery::Datagram).queue(QUEUE));
        let streams = protocol.streams();
        let peers = node.register(protocol).expect("the protocol is a valid one, and the node's first");
        let tunnel = Tunnel::new(&node).expect("the node has no tunnel yet");
        Ok(Speaker { node, peers, tx, rx, streams, tunnel })
    }
}

impl Log {
    fn lock(&self) -> std::sync::MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn config(world: &World, key: [u8; 32], rng: &mut Rng) -> Config {
    let mut config = table::config(world, Identity::from_seed(key), rng);
    config.port = PORT;
    config.ipv6 = None;
    config
}

/// A host with the access link, which is its router's if it is at home.
fn attach(world: &World, name: &str, home: bool, access: Link) -> (Host, Option<Nat>) {
    if !home {
        let host = world.host(name);
        host.set_link(access);
        return (host, None);
    }
    let mut router = NatConfig::port_restricted();
    router.ports = Ports::Random; // a mapping made anew is another one
    let nat = world.nat(name, router);
    nat.set_link(access);
    (nat.host(name), Some(nat))
}

async fn path_of(node: &Node) -> Option<PathKind> {
    node.status().await.peers.first().and_then(|peer| peer.path)
}

fn pair<T>(two: Vec<T>) -> [T; 2] {
    two.try_into().unwrap_or_else(|_| unreachable!("there are two hosts"))
}
