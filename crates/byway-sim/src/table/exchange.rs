//! How soon nodes that know one seed alone, which keeps nobody, are one connected graph by peer exchange.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use byway::{BindError, Config, Identity, Node, PeerAddr, PeerId};
use byway_proto::Rng;
use serde::Serialize;
use tokio::time;

use super::config;
use crate::World;

/// What the nodes have on the simulated clock.
pub const LIMIT: Duration = Duration::from_secs(600);

/// How often the graph is looked at, on the simulated clock.
const LOOK: Duration = Duration::from_secs(5);

/// Peers that a node has at most: whoever is new finds a place.
const PEERS: usize = 80;

/// One of so many is dialled out of the book: four, so that the graph is sparse.
const RATIO: usize = 20;

/// What a run found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Nodes beside the seed.
    pub nodes: usize,
    /// Simulated seconds until they were one graph, in steps of five.
    pub connected_s: u64,
    /// Links between them then.
    pub links: usize,
    /// Seconds that the run took on the real clock.
    pub wall_s: f64,
    /// The hash over everything sent, which the seed decides.
    pub hash: String,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { nodes, connected_s, links, wall_s, hash } = self;
        writeln!(f, "{:>7} {:>11} {:>7} {:>7}  hash", "nodes", "connected_s", "links", "wall_s")?;
        write!(f, "{nodes:>7} {connected_s:>11} {links:>7} {wall_s:>7.1}  {hash}")
    }
}

/// Why a run found nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// There is nobody to be one graph.
    #[error("there are no nodes; take at least 1")]
    None,
    /// A node did not start.
    #[error("a node did not start: {0}")]
    Bind(#[from] BindError),
    /// They are not one graph.
    #[error(
        "after {LIMIT:?} the first node's part of the graph has {reached} of {nodes} nodes, of {links} links in all"
    )]
    Parted {
        /// Nodes that the first one reaches.
        reached: usize,
        /// All nodes.
        nodes: usize,
        /// Links between them.
        links: usize,
    },
}

/// Runs `nodes` nodes beside a seed until they are one graph, and tells `progress` what goes on.
///
/// # Errors
///
/// If a node does not start, or they are not one graph within [`LIMIT`].
pub fn run(nodes: usize, seed: u64, progress: impl Fn(&str)) -> Result<Row, ExchangeError> {
    if nodes == 0 {
        return Err(ExchangeError::None);
    }
    let start = Instant::now();
    let mut row = World::run(seed, |world| async move { grow(&world, nodes, &progress).await })?;
    row.wall_s = start.elapsed().as_millis() as f64 / 1_000.0;
    Ok(row)
}

async fn grow(world: &World, nodes: usize, progress: &impl Fn(&str)) -> Result<Row, ExchangeError> {
    let mut rng = world.rng("exchange");
    let mut settings = settings(world, &mut rng);
    settings.peers.seed = true;
    let hub = Node::bind_on(world.host("seed").net(), settings).await?;
    let seeds = vec![PeerAddr::new(hub.id(), hub.addrs())];
    let mut all = Vec::with_capacity(nodes);
    for n in 0..nodes {
        let mut settings = self::settings(world, &mut rng);
        settings.peers.seeds.clone_from(&seeds);
        all.push(Node::bind_on(world.host(&format!("node {n}")).net(), settings).await?);
    }
    progress(&format!("{nodes} nodes are up"));
    let start = time::Instant::now();
    loop {
        time::sleep(LOOK).await;
        let (reached, links) = (reached(&all, hub.id()), all.iter().map(|node| node.peers().len()).sum::<usize>() / 2);
        if reached == nodes {
            let connected_s = start.elapsed().as_secs();
            return Ok(Row { nodes, connected_s, links, wall_s: 0.0, hash: world.hash().to_string() });
        }
        progress(&format!("{:?}: {reached} nodes of one graph, {links} links", start.elapsed()));
        if start.elapsed() >= LIMIT {
            return Err(ExchangeError::Parted { reached, nodes, links });
        }
    }
}

fn settings(world: &World, rng: &mut Rng) -> Config {
    let mut config = config(world, Identity::from_seed(rng.bytes()), rng).listen((Ipv4Addr::UNSPECIFIED, 4_242).into());
    (config.network, config.peer_exchange, config.lan, config.port_mapping) = ("exchange".into(), true, false, false);
    (config.peers.max_peers, config.peers.reserved, config.peers.dial_ratio) = (PEERS, 0, RATIO);
    // Simulated hosts are neighbours by their addresses.
    (config.peers.chosen_per_group, config.peers.inbound_per_group, config.peers.local) = (PEERS, 100, true);
    config
}

/// How many nodes the first one reaches by links among the nodes alone.
fn reached(nodes: &[Node], seed: PeerId) -> usize {
    let links: BTreeMap<_, _> = nodes.iter().map(|node| (node.id(), node.peers())).collect();
    let first = nodes.first().map(Node::id);
    let mut reached = BTreeSet::from_iter(first);
    let mut open = Vec::from_iter(first);
    while let Some(next) = open.pop() {
        for peer in links.get(&next).into_iter().flatten().filter(|peer| **peer != seed) {
            if reached.insert(*peer) {
                open.push(*peer);
            }
        }
    }
    reached.len()
}
