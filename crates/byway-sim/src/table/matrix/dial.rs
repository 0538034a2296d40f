//! One run: two strangers, one dial.

use std::{net::SocketAddr, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use byway::{
    BindError, Channel, Config, Identity, Node, PeerAddr, PeerEvent, PeerId, Peers, Protocol, Receiver, RelayConfig,
    Sender, To,
};
use byway_proto::{Rng, addr::HostAddr};
use tokio::time::{self, Instant, MissedTickBehavior};

use super::{
    Gate, Kind,
    gate::PATIENCE,
    watch::{MESSAGE, Watch},
};
use crate::{Host, Link, StunServer, World, table};

/// The relay's port.
const RELAY_PORT: u16 = 4_000;

/// How long nodes may take to register at their relay.
const REGISTER: Duration = Duration::from_secs(5);

/// Nodes have been running for this long, and up to a second longer, when one dials: what they find out about their NATs
/// once per network is done.
const SETTLE: Duration = Duration::from_secs(3);

/// How often each side sends a message.
const PERIOD: Duration = Duration::from_millis(20);

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// When one message each way had crossed without a relay, on the dial clock.
    pub(crate) direct: Option<Duration>,
    /// When the first message arrived by any path, on the dial clock.
    pub(crate) first_byte: Option<Duration>,
    /// Guesses of the host that made more: as its node counts them or as its packets show, whichever is more.
    pub(crate) probes: u64,
    /// Sockets that a host opened for the dial, of the host that opened more: by its node or by its system.
    pub(crate) mappings: u64,
    /// Guesses, openers and candidate pings within a second, of the host that sent more, as its node counts them.
    pub(crate) pps: u64,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// A node did not start.
    #[error("a node did not start: {0}")]
    Bind(#[from] BindError),
    /// A STUN server did not start.
    #[error("a STUN server did not start: {0}")]
    Stun(#[from] std::io::Error),
}

/// Dials once, in a world of its own.
pub(crate) fn run(a: Kind, b: Kind, seed: u64) -> Result<Outcome, MatrixError> {
    World::run(seed, |world| async move { play(&world, a, b).await })
}

async fn play(world: &World, a: Kind, b: Kind) -> Result<Outcome, MatrixError> {
    let mut rng = world.rng("matrix");
    let core = ["relay", "stun 1", "stun 2"].map(|name| {
        let host = world.host(name);
        host.set_link(Link::lan());
        host
    });
    let stun = [StunServer::start(&core[1])?, StunServer::start(&core[2])?];
    let mut config = config(world, &mut rng);
    config.relay = Some(RelayConfig::default());
    config.port = RELAY_PORT;
    let relay = Node::bind_on(core[0].net(), config).await?;
    let servers = Servers {
        relay: PeerAddr::new(relay.id(), [SocketAddr::new(core[0].addr(), RELAY_PORT)]),
        stun: stun.iter().map(|server| HostAddr::Socket(server.addr())).collect(),
    };

    let hosts = [a.host(world, "a"), b.host(world, "b")];
    let mut speakers = Vec::with_capacity(2);
    for host in &hosts {
        speakers.push(Speaker::start(world, host, &servers, &mut rng).await?);
    }
    let settled = Instant::now() + SETTLE + Duration::from_millis(rng.below(1_000));
    let registered = async { (speakers[0].registered().await, speakers[1].registered().await) };
    if time::timeout(REGISTER, registered).await.is_err() {
        return Ok(Outcome::default()); // who has no relay cannot be told of a dial
    }
    time::sleep_until(settled).await;

    let (watch, eye) = Watch::new([hosts[0].id(), hosts[1].id()], core.iter().map(Host::id).collect());
    world.rule(eye);
    let sockets = [0, 1].map(|side| hosts[side].traffic().sockets);
    let nodes = [0, 1].map(|side| speakers[side].node.clone());
    let mut outcome = dial(speakers, &watch, &Gate::of(a, b)).await;
    for (side, node) in nodes.iter().enumerate() {
        let spent = node.status().await.nat.spent;
        let opened = hosts[side].traffic().sockets - sockets[side];
        outcome.probes = outcome.probes.max(u64::from(spent.probes_max_per_dial)).max(watch.guesses(side));
        outcome.mappings = outcome.mappings.max(u64::from(spent.mappings_max_per_dial)).max(opened);
        outcome.pps = outcome.pps.max(u64::from(spent.per_second_max));
    }
    Ok(outcome)
}

/// Dials, and lets both talk until it is decided what the run came to.
async fn dial(speakers: Vec<Speaker>, watch: &Watch, gate: &Gate) -> Outcome {
    let start = Instant::now();
    let (dialler, ticket) = (speakers[0].node.clone(), speakers[1].node.ticket());
    let mut outcome = Outcome::default();
    let mut straight = [None; 2];
    let (heard, mut hears) = tokio::sync::mpsc::channel(1_024);
    let talks = speakers.into_iter().enumerate().map(|(side, speaker)| {
        let (watch, heard) = (watch.clone(), heard.clone());
        tokio::spawn(speaker.talk(move |since| {
            let _ = heard.try_send((1 - side, watch.was_straight(1 - side, since))); // enough for both sides' 10 s
        }))
    });
    let talks: Vec<_> = talks.collect();
    let decide = async {
        loop {
            // a first byte that comes after the row's time is late, but no failure
            let until = start + if outcome.first_byte.is_some() { gate.within } else { PATIENCE };
            let Ok(Some((side, is_straight))) = time::timeout_at(until, hears.recv()).await else { return };
            let now = start.elapsed();
            outcome.first_byte.get_or_insert(now);
            if is_straight && now <= gate.within {
                straight[side].get_or_insert(now);
            }
            if let [Some(there), Some(back)] = straight {
                outcome.direct = Some(Duration::max(there, back));
                return;
            }
        }
    };
    let dial = async {
        let _ = dialler.dial(ticket).await; // whoever is not reached is not heard, which is what counts
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = decide => {}
        () = dial => {}
    }
    talks.iter().for_each(tokio::task::JoinHandle::abort);
    outcome
}

/// What stands in the core.
struct Servers {
    relay: PeerAddr,
    stun: Vec<HostAddr>,
}

fn config(world: &World, rng: &mut Rng) -> Config {
    let mut config = table::config(world, Identity::from_seed(rng.bytes()), rng);
    config.ipv6 = None;
    config
}

/// A node that sends messages to whoever is connected to it.
struct Speaker {
    world: World,
    node: Node,
    peers: Peers,
    tx: Sender,
    rx: Receiver,
}

impl Speaker {
    async fn start(world: &World, host: &Host, servers: &Servers, rng: &mut Rng) -> Result<Self, BindError> {
        let mut config = config(world, rng).relay_at(servers.relay.clone());
        config.stun.clone_from(&servers.stun);
        let node = Node::bind_on(host.net(), config).await?;
        let mut protocol = Protocol::new("matrix", 1..=1);
        let (tx, rx) = protocol.channel(Channel::new(1));
        let peers = node.register(protocol).expect("the protocol is a valid one, and the node's first");
        Ok(Speaker { world: world.clone(), node, peers, tx, rx })
    }

    async fn registered(&self) {
        while !self.node.status().await.relays.iter().all(|relay| relay.registered) {
            time::sleep(PERIOD).await;
        }
    }

    /// Sends a message each [`PERIOD`] while a peer is up, and tells of each that arrives when it was handed over.
    async fn talk(mut self, arrived: impl Fn(Duration)) {
        let mut peer: Option<PeerId> = None;
        let mut ticks = time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some((_, message)) = self.rx.recv() => {
                    let since = message.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
                    arrived(Duration::from_nanos(since));
                }
                Some(event) = self.peers.next() => {
                    if let PeerEvent::Up { peer: up, .. } = event {
                        peer = Some(up);
                        ticks.reset_immediately();
                    }
                }
                _ = ticks.tick(), if peer.is_some() => {
                    let to = peer.expect("the branch asks for one");
                    let _ = self.tx.send(&To::Peer(to), message(self.world.elapsed())); // what is lost does not arrive
                }
            }
        }
    }
}

/// A message that says when it was handed over.
fn message(now: Duration) -> Bytes {
    let mut message = BytesMut::with_capacity(MESSAGE);
    message.put_u64_le(now.as_nanos() as u64);
    message.put_bytes(0, MESSAGE - 8);
    message.freeze()
}
