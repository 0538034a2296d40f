//! Peer exchange among many nodes: they find each other by one seed that keeps nobody.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

use byway::{Config, Identity, Node, PeerAddr, PeerId, WallClock};
use byway_sim::World;
use tokio::time;

/// Nodes of the run that every test run makes; the release run of a thousand is `a_thousand_nodes…`.
const NODES: usize = 100;

/// Simulated time in which they have to be one graph.
const LIMIT: Duration = Duration::from_secs(600);

#[test]
fn nodes_that_know_a_seed_alone_become_one_graph_and_a_second_run_is_the_same() {
    let first = grow(NODES, 1);
    println!("{NODES} nodes: {first:?}");
    assert_eq!(first, grow(NODES, 1));
}

/// `cargo test --release -p byway-sim --test exchange -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes without optimisation"]
fn a_thousand_nodes_become_one_connected_graph_within_ten_minutes() {
    println!("1000 nodes: {:?}", grow(1_000, 1));
}

/// How long it took, and how many links there were.
#[derive(Debug, PartialEq)]
struct Grown {
    after: Duration,
    links: usize,
    hash: String,
}

fn grow(nodes: usize, seed: u64) -> Grown {
    World::run(seed, |world| async move {
        let host = world.host("seed");
        let hub = Node::bind_on(host.net(), settings(&world, 0, |config| config.peers.seed = true)).await.unwrap();
        let seeds = vec![PeerAddr::new(hub.id(), hub.addrs())];
        let mut all = Vec::new();
        for n in 1..=nodes as u16 {
            let host = world.host("node");
            let settings = settings(&world, n, |config| config.peers.seeds.clone_from(&seeds));
            all.push(Node::bind_on(host.net(), settings).await.unwrap());
        }
        let start = time::Instant::now();
        loop {
            time::sleep(Duration::from_secs(5)).await;
            let links = all.iter().map(|node| node.peers().len()).sum::<usize>() / 2;
            if is_one(&all, hub.id()) {
                return Grown { after: start.elapsed(), links, hash: world.hash().to_string() };
            }
            assert!(start.elapsed() < LIMIT, "{} nodes of one graph, {links} links", reached(&all, hub.id()).len());
        }
    })
}

fn settings(world: &World, n: u16, change: impl FnOnce(&mut Config)) -> Config {
    let mut key = [0; 32];
    key[..2].copy_from_slice(&n.to_be_bytes());
    let mut config = Config::new(Identity::from_seed(key)).listen((Ipv4Addr::UNSPECIFIED, 4_242).into());
    config.seed = Some(key);
    let clock = world.clone();
    config.clock = WallClock::new(move || SystemTime::UNIX_EPOCH + clock.elapsed());
    (config.network, config.peer_exchange, config.lan, config.port_mapping) = ("exchange".into(), true, false, false);
    // Four are chosen, so that the graph is sparse; whoever is new finds a place.
    (config.peers.max_peers, config.peers.reserved, config.peers.dial_ratio) = (80, 0, 20);
    config.peers.chosen_per_group = 80;
    config.peers.inbound_per_group = 100;
    config.peers.local = true;
    change(&mut config);
    config
}

/// Whether every node is reached from the first by links among the nodes alone.
fn is_one(nodes: &[Node], seed: PeerId) -> bool {
    reached(nodes, seed).len() == nodes.len()
}

fn reached(nodes: &[Node], seed: PeerId) -> BTreeSet<PeerId> {
    let links: BTreeMap<_, _> = nodes.iter().map(|node| (node.id(), node.peers())).collect();
    let mut reached = BTreeSet::from([nodes[0].id()]);
    let mut open = vec![nodes[0].id()];
    while let Some(next) = open.pop() {
        for peer in links.get(&next).into_iter().flatten().filter(|peer| **peer != seed) {
            if reached.insert(*peer) {
                open.push(*peer);
            }
        }
    }
    reached
}
