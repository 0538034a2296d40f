//! What days do to a node: hosts roam, NATs forget, relays are killed and started anew, and in between little is said.
//!
//! Two relays; of five nodes two are behind home routers, one behind a NAT that gives every destination another port, and two
//! have a public address. Each dials two others, and asks each of its peers something once a minute. On average once in
//! half an hour a node's network changes, and each relay is killed and started anew every hour. Nothing but the two ends'
//! own doing may end a connection: there is always a way, for the relays take turns. The last hour is quiet.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use byway::{
    BindError, Channel, DialError, Gone, Identity, Node, PeerAddr, PeerEvent, PeerId, Peers, Protocol, Receiver,
    RelayConfig, Sender, To,
};
use byway_proto::Rng;
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};
use tracing::debug;

use super::{config, memory_kib};
use crate::{Host, Link, Mapping, Nat, NatConfig, Ports, World};

const HOUR: Duration = Duration::from_secs(3_600);

/// The port of the relays.
const RELAY_PORT: u16 = 4_000;

/// Relays, of which at least one is always there.
const RELAYS: usize = 2;

/// How far down the ring the nodes are that each node dials.
const DIALS: [usize; 2] = [1, 3];

/// From one question to the next, to each peer.
const QUESTIONS: Duration = Duration::from_secs(60);

/// A question that is not answered for so long counts as unanswered; it is then asked by the next one anew.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The mean time between two changes of one node's network.
const CHANGE: Duration = Duration::from_secs(1_800);

/// How long a killed relay is away.
const RELAY_AWAY: Duration = Duration::from_secs(20);

/// How long the nodes have to register before the first dial.
const SETTLE: Duration = Duration::from_secs(5);

/// Hours before memory is watched: what every cache holds at most is there by then.
const WARM: u64 = 2;

/// What a run found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Simulated hours, the quiet one at the end among them.
    pub hours: u64,
    /// Connections that ended though there was a way.
    pub connections_lost: u64,
    /// What this process's memory grew by, in KiB an hour, by a line through its hourly samples after the second hour;
    /// `None` where the system does not tell, and for runs too short.
    pub rss_slope_kib_h: Option<f64>,
    /// Packets that a node sent in the quiet hour: four connections and two relays kept, on average.
    pub packets_idle_hour: u64,
    /// Nodes that ran.
    pub nodes: usize,
    /// Changes of nodes' networks, and relays killed.
    pub disturbances: u64,
    /// Questions asked.
    pub questions: u64,
    /// Questions of which no answer came in time.
    pub unanswered: u64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { hours, connections_lost: lost, packets_idle_hour: idle, nodes, disturbances, .. } = self;
        let slope = self.rss_slope_kib_h.map_or_else(|| "unknown".to_owned(), |slope| format!("{slope:.1}"));
        let (questions, unanswered) = (self.questions, self.unanswered);
        writeln!(f, "hours nodes disturbances lost questions unanswered rss_slope_kib_h packets_idle_hour")?;
        write!(
            f,
            "{hours:>5} {nodes:>5} {disturbances:>12} {lost:>4} {questions:>9} {unanswered:>10} {slope:>15} {idle:>17}"
        )
    }
}

/// Why a run found nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SoakError {
    /// Too short a run, or too few nodes.
    #[error("a soak takes at least 2 hours and 4 nodes")]
    TooLittle,
    /// A node did not start.
    #[error("a node did not start: {0}")]
    Bind(#[from] BindError),
    /// A first dial failed.
    #[error("a dial failed: {0}")]
    Dial(#[from] DialError),
}

/// What all tasks count.
#[derive(Debug, Default)]
struct Counts {
    /// Both ends of a connection count.
    lost: AtomicU64,
    questions: AtomicU64,
    unanswered: AtomicU64,
    disturbances: AtomicU64,
}

/// Runs `nodes` nodes for `hours` of simulated time, and tells `progress` what goes on.
///
/// # Errors
///
/// If a node does not start, or a first dial fails.
pub fn run(hours: u64, nodes: usize, seed: u64, progress: impl Fn(&str)) -> Result<Row, SoakError> {
    if hours < 2 || nodes <= DIALS[1] {
        return Err(SoakError::TooLittle);
    }
    World::run(seed, |world| async move { play(&world, hours, nodes, &progress).await })
}

async fn play(world: &World, hours: u64, nodes: usize, progress: &impl Fn(&str)) -> Result<Row, SoakError> {
    let (mut rng, counts) = (world.rng("soak"), Arc::new(Counts::default()));
    let mut relays = Vec::with_capacity(RELAYS);
    for n in 0..RELAYS {
        relays.push(Relay::start(world, n, &mut rng).await?);
    }
    let addrs: Vec<PeerAddr> = relays.iter().map(Relay::addr).collect();
    let (mut places, mut members) = (Vec::with_capacity(nodes), Vec::with_capacity(nodes));
    for n in 0..nodes {
        let place = Place::new(world, n);
        members.push(Member::start(world, &place.host, &addrs, &mut rng).await?);
        places.push(place);
    }
    time::sleep(SETTLE).await;
    for n in 0..nodes {
        for ahead in DIALS {
            members[n].node.dial(members[(n + ahead) % nodes].node.ticket()).await?;
        }
    }
    progress(&format!("{nodes} nodes are connected"));

    let quiet = Instant::now() + HOUR * u32::try_from(hours - 1).unwrap_or(u32::MAX);
    let mut tasks = JoinSet::new();
    members.into_iter().for_each(|member| drop(tasks.spawn(member.live(quiet, Arc::clone(&counts)))));
    for place in places {
        tasks.spawn(place.change(quiet, Rng::new(&rng.bytes(), "place"), Arc::clone(&counts)));
    }
    tasks.spawn(restart(relays, quiet, Arc::clone(&counts), world.clone(), Rng::new(&rng.bytes(), "relays")));

    let mut memory = Vec::new();
    for hour in 1..hours {
        time::sleep_until(quiet - HOUR * u32::try_from(hours - 1 - hour).unwrap_or(0)).await;
        memory.extend(memory_kib("VmRSS").filter(|_| hour > WARM).map(|kib| (hour as f64, kib)));
        let (lost, changes) = (counts.lost.load(Ordering::Relaxed), counts.disturbances.load(Ordering::Relaxed));
        progress(&format!("hour {hour}: {changes} disturbances, {lost} connections lost"));
    }
    let before = world.counters().sent;
    time::sleep(HOUR).await;
    Ok(Row {
        hours,
        connections_lost: counts.lost.load(Ordering::Relaxed).div_ceil(2),
        rss_slope_kib_h: slope(&memory),
        packets_idle_hour: (world.counters().sent - before) / nodes as u64,
        nodes,
        disturbances: counts.disturbances.load(Ordering::Relaxed),
        questions: counts.questions.load(Ordering::Relaxed),
        unanswered: counts.unanswered.load(Ordering::Relaxed),
    })
}

/// A relay, and the two hosts that it lives on in turns, with one address.
struct Relay {
    node: Node,
    identity: Identity,
    hosts: [Host; 2],
}

impl Relay {
    async fn start(world: &World, n: usize, rng: &mut Rng) -> Result<Self, BindError> {
        let hosts = ["", "again"].map(|turn| world.host(&format!("relay {n} {turn}")));
        hosts.iter().for_each(|host| host.set_link(Link::lan()));
        let identity = Identity::from_seed(rng.bytes());
        let node = Self::bind(world, &identity, &hosts[0], rng).await?;
        Ok(Relay { node, identity, hosts })
    }

    async fn bind(world: &World, identity: &Identity, host: &Host, rng: &mut Rng) -> Result<Node, BindError> {
        let mut config = config(world, identity.clone(), rng);
        config.relay = Some(RelayConfig::default());
        config.port = RELAY_PORT;
        Node::bind_on(host.net(), config).await
    }

    fn addr(&self) -> PeerAddr {
        PeerAddr::new(self.node.id(), [SocketAddr::new(self.hosts[0].addr(), RELAY_PORT)])
    }

    /// Kills the relay between two packets and, after a while, starts it anew at its address.
    async fn restart(&mut self, world: &World, rng: &mut Rng) -> Result<(), BindError> {
        self.hosts.rotate_left(1);
        let [new, old] = &self.hosts;
        debug!(at = ?world.elapsed(), host = old.name(), "the relay is killed");
        let ip = old.addr();
        old.set_down();
        old.remove_addr(ip);
        self.node.close().await;
        time::sleep(RELAY_AWAY).await;
        new.addrs().into_iter().for_each(|addr| new.remove_addr(addr));
        new.add_addr(ip);
        new.set_up();
        self.node = Self::bind(world, &self.identity, new, rng).await?;
        Ok(())
    }
}

/// Kills the relays in turns, each once an hour, until it is quiet.
async fn restart(mut relays: Vec<Relay>, quiet: Instant, counts: Arc<Counts>, world: World, mut rng: Rng) {
    let between = HOUR / RELAYS as u32;
    for turn in 0.. {
        time::sleep(between).await;
        if Instant::now() >= quiet {
            break;
        }
        relays[turn % RELAYS].restart(&world, &mut rng).await.expect("the address is free and the settings were good");
        counts.disturbances.fetch_add(1, Ordering::Relaxed);
    }
    std::future::pending::<()>().await; // they live as long as the run
}

/// Where a node is, and what may happen to its network.
struct Place {
    host: Host,
    nat: Option<Nat>,
}

impl Place {
    fn new(world: &World, n: usize) -> Self {
        let nat = match n % 5 {
            0 | 2 => Some(NatConfig::port_restricted()),
            4 => {
                let mut hard = NatConfig::port_restricted();
                (hard.mapping, hard.ports) = (Mapping::AddressAndPortDependent, Ports::Random);
                Some(hard)
            }
            _ => None,
        };
        let nat = nat.map(|config| world.nat(&format!("nat {n}"), config));
        let name = format!("node {n}");
        Place { host: nat.as_ref().map_or_else(|| world.host(&name), |nat| nat.host(&name)), nat }
    }

    /// Changes the network now and then, until it is quiet.
    async fn change(self, quiet: Instant, mut rng: Rng, counts: Arc<Counts>) {
        let began = Instant::now();
        loop {
            let wait = CHANGE.as_millis() as u64 / 2 + rng.below(CHANGE.as_millis() as u64);
            time::sleep(Duration::from_millis(wait)).await;
            if Instant::now() >= quiet {
                return std::future::pending().await;
            }
            match &self.nat {
                Some(nat) if rng.below(2) == 0 => {
                    debug!(at = ?began.elapsed(), host = self.host.name(), "its NAT forgets its mappings");
                    nat.forget_mappings();
                }
                _ => {
                    debug!(at = ?began.elapsed(), host = self.host.name(), "it gets another address");
                    self.host.renumber();
                }
            }
            counts.disturbances.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A node that asks its peers, and answers them.
struct Member {
    name: String,
    node: Node,
    peers: Peers,
    questions: (Sender, Receiver),
    answers: (Sender, Receiver),
}

impl Member {
    async fn start(world: &World, host: &Host, relays: &[PeerAddr], rng: &mut Rng) -> Result<Self, BindError> {
        let mut config = config(world, Identity::from_seed(rng.bytes()), rng);
        config.relays = relays.to_vec();
        let node = Node::bind_on(host.net(), config).await?;
        let mut protocol = Protocol::new("soak", 1..=1);
        let (questions, answers) = (protocol.channel(Channel::new(1)), protocol.channel(Channel::new(2)));
        let peers = node.register(protocol).expect("the protocol is a valid one, and the node's first");
        Ok(Member { name: host.name(), node, peers, questions, answers })
    }

    async fn live(mut self, quiet: Instant, counts: Arc<Counts>) {
        let (began, node) = (Instant::now(), self.node.id());
        debug!(?node, name = self.name, "lives");
        // Whom it waits for, and since when.
        let mut waiting: BTreeMap<PeerId, Instant> = BTreeMap::new();
        let mut next = Instant::now() + QUESTIONS;
        loop {
            tokio::select! {
                biased;
                Some((peer, question)) = self.questions.1.recv() => {
                    let _ = self.answers.0.send(&To::Peer(peer), question); // a lost one shows as unanswered
                }
                Some((peer, _)) = self.answers.1.recv() => {
                    if waiting.remove(&peer).is_some_and(|since| since.elapsed() > ANSWER_WITHIN) {
                        counts.unanswered.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Some(event) = self.peers.next() => {
                    let PeerEvent::Down { peer, reason } = event else { continue };
                    waiting.remove(&peer);
                    // Of two connections that were made at once, one is closed.
                    if !matches!(reason, Gone::Duplicate | Gone::Replaced) {
                        debug!(at = ?began.elapsed(), ?node, ?peer, %reason, "connection lost");
                        counts.lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
                () = time::sleep_until(next), if next < quiet => {
                    next += QUESTIONS;
                    for (peer, _) in self.peers.list() {
                        if waiting.insert(peer, Instant::now()).is_some() {
                            counts.unanswered.fetch_add(1, Ordering::Relaxed);
                        }
                        counts.questions.fetch_add(1, Ordering::Relaxed);
                        let _ = self.questions.0.send(&To::Peer(peer), Bytes::from_static(b"?")); // as with answers
                    }
                }
            }
        }
    }
}

/// The steepness of the line through the points that fits best.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
    (points.len() > 2).then_some((slope * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_line_and_needs_three_points() {
        assert_eq!(slope(&[(3.0, 10.0), (4.0, 30.0), (5.0, 50.0)]), Some(20.0));
        assert_eq!(slope(&[(3.0, 10.0), (4.0, 12.0), (5.0, 8.0), (6.0, 10.0)]), Some(-0.4));
        assert_eq!(slope(&[(3.0, 10.0), (4.0, 30.0)]), None);
    }
}
