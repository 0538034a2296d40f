//! Nodes on this machine's loopback addresses that speak `echo`.
#![allow(dead_code)] // each test binary uses a part of it
#![allow(clippy::unwrap_used)] // a test may panic

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use byway::{
    Channel, Config, Identity, Node, NodeStatus, PathKind, PeerAddr, PeerEvent, PeerId, Peers, Protocol, Receiver,
    RelayConfig, Sender, Streams, To,
};
use tokio::time::{self, Instant};

pub(crate) const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A node that speaks `echo` on one channel, and takes byte streams.
pub(crate) struct Peer {
    pub(crate) node: Node,
    pub(crate) tx: Sender,
    pub(crate) rx: Receiver,
    pub(crate) peers: Peers,
    pub(crate) streams: Streams,
}

impl Peer {
    pub(crate) async fn bind(config: Config) -> Self {
        let node = Node::bind(config).await.unwrap();
        let mut echo = Protocol::new("echo", 1..=1);
        let (tx, rx) = echo.channel(Channel::new(1).queue(10_000));
        let streams = echo.streams();
        let peers = node.register(echo).unwrap();
        Peer { node, tx, rx, peers, streams }
    }

    pub(crate) fn id(&self) -> PeerId {
        self.node.id()
    }

    pub(crate) async fn up(&mut self) -> PeerId {
        match self.peers.next().await {
            Some(PeerEvent::Up { peer, .. }) => peer,
            other => panic!("{other:?} instead of a peer"),
        }
    }

    pub(crate) async fn path_to(&self, peer: PeerId) -> Option<PathKind> {
        self.node.status().await.peers.iter().find(|status| status.id == peer)?.path
    }
}

/// The settings of node `n` on a loopback address.
pub(crate) fn config(n: u8, ip: IpAddr) -> Config {
    Config::new(Identity::from_seed([n; 32])).listen((ip, 0).into())
}

/// A node that relays, and its address.
pub(crate) async fn relay(n: u8, relay: RelayConfig) -> (Node, PeerAddr) {
    let mut config = config(n, V4);
    config.relay = Some(relay);
    let node = Node::bind(config).await.unwrap();
    let addr = PeerAddr::new(node.id(), [addr_of(&node)]);
    (node, addr)
}

pub(crate) fn addr_of(node: &Node) -> SocketAddr {
    node.addrs()[0]
}

/// Two nodes, the first of which has dialled the second.
pub(crate) async fn connected(ip: IpAddr) -> (Peer, Peer) {
    let (mut a, mut b) = (Peer::bind(config(1, ip)).await, Peer::bind(config(2, ip)).await);
    a.node.dial(b.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    (a, b)
}

/// A message there and one back; how long that took.
pub(crate) async fn exchange(a: &mut Peer, b: &mut Peer) -> Duration {
    let start = Instant::now();
    assert_eq!(a.tx.send(&To::Peer(b.id()), "ping".into()).queued, 1);
    assert_eq!(b.rx.recv().await.unwrap(), (a.id(), "ping".into()));
    assert_eq!(b.tx.send(&To::Peer(a.id()), "pong".into()).queued, 1);
    assert_eq!(a.rx.recv().await.unwrap(), (b.id(), "pong".into()));
    start.elapsed()
}

/// How often something was dropped or turned away for a reason.
pub(crate) fn count(status: &NodeStatus, name: &str) -> u64 {
    status.dropped.iter().find(|(reason, _)| *reason == name).map_or(0, |(_, count)| *count)
}

/// Waits until a node's status is as wanted.
pub(crate) async fn until(node: &Node, limit: Duration, wanted: impl Fn(&NodeStatus) -> bool) {
    let end = Instant::now() + limit;
    loop {
        let status = node.status().await;
        if wanted(&status) {
            return;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {status:#?}");
        time::sleep(Duration::from_millis(20)).await;
    }
}

/// The memory that this process uses, in MiB.
pub(crate) fn rss_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).map_or(0.0, |kib| kib / 1_024.0)
}
