//! A relay: what a core forwards, what an idle client costs in memory, and how a relayed path compares with a direct one.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use byway::{Channel, Config, Identity, Node, PeerAddr, PeerEvent, Protocol, RelayConfig};
use cpu_time::ThreadTime;
use tokio::{runtime, sync::oneshot, time};

use crate::child::Child;

/// Bytes of one message, and of one run.
const MESSAGE: usize = 64 << 10;
const BULK: usize = 256 << 20;

/// Clients that register at once: more would only wait for the relay's admission of strangers.
const AT_ONCE: usize = 32;

/// What one bulk transfer over a relay has cost.
pub(crate) struct Relayed {
    /// What a core of the relay forwards.
    pub(crate) gbit_a_core: f64,
    pub(crate) mib_s: f64,
}

fn relay_config() -> Config {
    let mut relay = RelayConfig::default();
    (relay.client_rate, relay.client_burst) = (100_000_000_000, 1_000_000_000);
    (relay.max_clients, relay.max_clients_per_source) = (20_000, 20_000);
    let mut config = Config::new(Identity::generate()).listen((Ipv4Addr::LOCALHOST, 0).into());
    config.relay = Some(relay);
    config
}

pub(crate) async fn relay() -> (Node, PeerAddr) {
    let node = Node::bind(relay_config()).await.expect("a loopback port is free");
    let addr = PeerAddr::new(node.id(), [SocketAddr::from((Ipv4Addr::LOCALHOST, node.port()))]);
    (node, addr)
}

/// Sends [`BULK`] from one node to another; `relay` says by which relay alone.
pub(crate) fn bulk(relay: Option<PeerAddr>) -> f64 {
    let settings = move || {
        let mut config = Config::new(Identity::generate()).listen((Ipv4Addr::LOCALHOST, 0).into());
        config.relay_only = relay.is_some();
        config.relays = relay.clone().into_iter().collect();
        config
    };
    let (tell, told) = mpsc::channel();
    let (finish, finished) = oneshot::channel();
    let theirs = settings.clone();
    let receiving = thread::spawn(move || {
        on_a_runtime(async {
            let node = Node::bind(theirs()).await.expect("a loopback port is free");
            let mut protocol = Protocol::new("bench", 1..=1);
            let (_, mut rx) = protocol.channel(Channel::new(1));
            let _peers = node.register(protocol).expect("it is the only protocol");
            registered(&node).await;
            tell.send(node.ticket()).expect("the other side waits");
            rx.recv().await.expect("the node is open");
            let start = Instant::now();
            let mut got = 0;
            while got < BULK {
                got += rx.recv().await.expect("the node is open").1.len();
            }
            let took = start.elapsed();
            let _ = finish.send(());
            node.close().await;
            BULK as f64 / f64::from(1 << 20) / took.as_secs_f64()
        })
    });
    let ticket = told.recv().expect("the receiving side runs");
    on_a_runtime(async {
        let node = Node::bind(settings()).await.expect("a loopback port is free");
        let mut protocol = Protocol::new("bench", 1..=1);
        let (tx, _rx) = protocol.channel(Channel::new(1));
        let mut peers = node.register(protocol).expect("it is the only protocol");
        registered(&node).await;
        node.dial(ticket).await.expect("the other side is there");
        let Some(PeerEvent::Up { peer, .. }) = peers.next().await else { panic!("the peer did not come up") };
        time::sleep(Duration::from_millis(500)).await;
        let message = Bytes::from(vec![7; MESSAGE]);
        for _ in 0..=BULK / MESSAGE {
            tx.send_wait(peer, message.clone()).await.expect("the peer is connected");
        }
        finished.await.expect("the receiving side gets everything");
    });
    receiving.join().expect("the receiving side ends well")
}

/// One bulk transfer over a relay that has a thread of its own.
pub(crate) fn forward() -> Relayed {
    let (tell, told) = mpsc::channel();
    let (end, ended) = oneshot::channel::<()>();
    let relaying = thread::spawn(move || {
        on_a_runtime(async {
            let (node, addr) = relay().await;
            tell.send(addr).expect("the clients wait");
            let start = ThreadTime::now();
            let _ = ended.await;
            let cpu = start.elapsed();
            let bytes = node.status().await.serving.expect("it relays").bytes;
            bytes as f64 * 8e-9 / cpu.as_secs_f64()
        })
    });
    let addr = told.recv().expect("the relay runs");
    let mib_s = bulk(Some(addr));
    let _ = end.send(());
    Relayed { gbit_a_core: relaying.join().expect("the relay ends well"), mib_s }
}

/// KiB of the relay's memory for each of `clients` that are registered and idle.
pub(crate) fn memory(clients: usize) -> f64 {
    let (child, line) = Child::start("relay");
    let addr: PeerAddr = line.parse().expect("it is an address");
    let before = child.rss_kib();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let after = runtime.block_on(async {
        let mut nodes = Vec::with_capacity(clients);
        for first in (0..clients).step_by(AT_ONCE) {
            let last = (first + AT_ONCE).min(clients);
            for n in first..last {
                nodes.push(client(n, &addr).await);
            }
            for node in &nodes[first..last] {
                registered(node).await;
            }
        }
        time::sleep(Duration::from_secs(6)).await; // what the handshakes needed is given back by then
        child.rss_kib()
    });
    (after - before) / clients as f64
}

async fn client(n: usize, relay: &PeerAddr) -> Node {
    // An address each: a relay slows down the handshakes of one.
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + n as u32);
    let mut config = Config::new(Identity::generate()).listen((ip, 0).into()).relay_at(relay.clone());
    (config.relay_only, config.lan, config.port_mapping) = (true, false, false);
    Node::bind(config).await.expect("a loopback port is free")
}

async fn registered(node: &Node) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !node.status().await.relays.iter().all(|relay| relay.registered) {
        assert!(Instant::now() < limit, "not registered: {:?}", node.status().await.relays);
        time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime
        .block_on(async { time::timeout(Duration::from_secs(120), work).await.expect("a run ends within its limit") })
}
