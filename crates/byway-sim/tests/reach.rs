//! Two nodes of the shipping stack reach each other in the simulator.

use std::time::Duration;

use byway::{
    Channel, Config, Identity, Node, PathKind, PeerAddr, PeerEvent, Peers, Protocol, Receiver, RelayConfig, Sender, To,
};
use byway_sim::{Host, NatConfig, World};
use tokio::time;

/// A node that speaks `echo` on one channel.
struct Peer {
    node: Node,
    tx: Sender,
    rx: Receiver,
    peers: Peers,
}

fn config(n: u8) -> Config {
    let mut config = Config::new(Identity::from_seed([n; 32]));
    config.seed = Some([n; 32]);
    config.port = 4_000;
    config.ipv6 = None;
    config
}

async fn peer(host: &Host, config: Config) -> Peer {
    let node = Node::bind_on(host.net(), config).await.unwrap();
    let mut echo = Protocol::new("echo", 1..=1);
    let (tx, rx) = echo.channel(Channel::new(1));
    let peers = node.register(echo).unwrap();
    Peer { node, tx, rx, peers }
}

async fn relay(host: &Host, n: u8) -> (Node, PeerAddr) {
    let mut config = config(n);
    config.relay = Some(RelayConfig::default());
    let node = Node::bind_on(host.net(), config).await.unwrap();
    let addr = PeerAddr::new(node.id(), [std::net::SocketAddr::new(host.addr(), 4_000)]);
    (node, addr)
}

async fn exchange(a: &mut Peer, b: &mut Peer) {
    assert_eq!(a.tx.send(&To::Peer(b.node.id()), "ping".into()).queued, 1);
    let (from, message) = b.rx.recv().await.unwrap();
    assert_eq!((from, &message[..]), (a.node.id(), &b"ping"[..]));
    assert_eq!(b.tx.send(&To::All, "pong".into()).queued, 1);
    assert_eq!(&a.rx.recv().await.unwrap().1[..], b"pong");
}

async fn up(peer: &mut Peer) {
    assert!(matches!(peer.peers.next().await, Some(PeerEvent::Up { version: 1, .. })));
}

async fn path(peer: &Peer) -> Option<PathKind> {
    peer.node.status().await.peers.first().and_then(|peer| peer.path)
}

fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

#[test]
fn a_message_crosses_a_direct_path_both_ways() {
    log();
    World::run(1, |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let (mut a, mut b) = (peer(&host_a, config(1)).await, peer(&host_b, config(2)).await);
        a.node.dial(b.node.ticket()).await.unwrap();
        up(&mut a).await;
        up(&mut b).await;
        exchange(&mut a, &mut b).await;
        assert_eq!(path(&a).await, Some(PathKind::Direct));
        a.node.close().await;
        assert!(matches!(b.peers.next().await, Some(PeerEvent::Down { .. })));
        b.node.close().await;
    });
}

#[test]
fn peers_behind_two_nats_meet_at_the_relay_and_then_directly() {
    log();
    World::run(2, |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), 9).await;
        let (nat_a, nat_b) =
            (world.nat("nat a", NatConfig::port_restricted()), world.nat("nat b", NatConfig::port_restricted()));
        let mut a = peer(&nat_a.host("a"), config(1).relay_at(addr.clone())).await;
        let mut b = peer(&nat_b.host("b"), config(2).relay_at(addr)).await;
        time::sleep(Duration::from_secs(1)).await;
        let start = time::Instant::now();
        a.node.dial(b.node.ticket()).await.unwrap();
        up(&mut a).await;
        exchange(&mut a, &mut b).await;
        println!("first answer after {:?}", start.elapsed());
        while path(&a).await != Some(PathKind::Direct) {
            time::sleep(Duration::from_millis(50)).await;
            assert!(start.elapsed() < Duration::from_secs(5), "still relayed: {:#?}", a.node.status().await);
        }
        println!("direct after {:?}", start.elapsed());
        exchange(&mut a, &mut b).await;
    });
}
