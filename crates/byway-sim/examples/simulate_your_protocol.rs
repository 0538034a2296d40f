//! A protocol of your own on the shipping node, in a network that you draw: two homes, a bad line, a relay; one run a seed.
//!
//! `cargo run --release -p byway-sim --example simulate_your_protocol`
#![allow(clippy::print_stdout)] // an example shows what it does

use std::{net::SocketAddr, time::Duration};

use byway::{Channel, Config, Identity, Node, PathKind, PeerAddr, Protocol, Receiver, RelayConfig, Sender};
use byway_sim::{Host, Link, NatConfig, TraceHash, World};
use tokio::time::Instant;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What one run shows.
struct Outcome {
    slowest: Duration,
    path: Option<PathKind>,
    hash: TraceHash,
}

/// The settings of node `n`: its key and its chance follow from it alone, so that a run can be had again.
fn config(n: u8) -> Config {
    let mut config = Config::new(Identity::from_seed([n; 32]));
    config.seed = Some([n; 32]);
    config.ipv6 = None;
    config
}

async fn counting(host: &Host, config: Config) -> Result<(Node, Sender, Receiver), Error> {
    let node = Node::bind_on(host.net(), config).await?;
    let mut protocol = Protocol::new("count", 1..=1);
    let (tx, rx) = protocol.channel(Channel::new(1));
    node.register(protocol)?;
    Ok((node, tx, rx))
}

async fn scenario(world: World) -> Result<Outcome, Error> {
    let mut settings = config(9);
    (settings.port, settings.relay) = (4_477, Some(RelayConfig::default()));
    let relay_host = world.host("relay");
    let relay = Node::bind_on(relay_host.net(), settings).await?;
    let relay = PeerAddr::new(relay.id(), [SocketAddr::new(relay_host.addr(), 4_477)]);

    let homes =
        [world.nat("router a", NatConfig::port_restricted()), world.nat("router b", NatConfig::port_restricted())];
    homes[0].set_link(Link::standard().rate(20_000_000).loss(0.02));
    let (a, b) = (homes[0].host("a"), homes[1].host("b"));
    let (a, tx, _rx) = counting(&a, config(1).relay_at(relay.clone())).await?;
    let (b, _tx, mut rx) = counting(&b, config(2).relay_at(relay)).await?;
    tokio::time::sleep(Duration::from_secs(5)).await; // both are registered and have looked at their NATs
    let peer = a.dial(b.ticket()).await?;

    let mut slowest = Duration::ZERO;
    for n in 0..1_000_u32 {
        let start = Instant::now();
        tx.send_wait(peer, n.to_be_bytes().to_vec().into()).await?;
        let (_, message) = rx.recv().await.ok_or("the node was closed")?;
        assert_eq!(message[..], n.to_be_bytes(), "messages keep their order");
        slowest = slowest.max(start.elapsed());
    }
    let path = a.status().await.peers.first().and_then(|peer| peer.path);
    Ok(Outcome { slowest, path, hash: world.hash() })
}

fn main() -> Result<(), Error> {
    for seed in 1..=3 {
        let Outcome { slowest, path, hash } = World::run(seed, scenario)?;
        println!("seed {seed}: 1,000 messages {path:?}, the slowest took {slowest:?}, packets {hash}");
    }
    Ok(())
}
