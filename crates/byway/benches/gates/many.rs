//! Many connections of one node: what their handshakes and their idleness cost, and how fast a message reaches them all.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use byway::{Channel, Config, Identity, Node, Peers, Protocol, Receiver, Sender, Ticket, To, net::Net, net::os::Os};
use cpu_time::ProcessTime;
use tokio::{sync::oneshot, time};

use crate::{child::Child, counting::Counting, load::Load, relay::on_a_runtime};

/// Handshakes of one run, each with a stranger.
const HANDSHAKES: usize = 200;

/// Idle connections of one run: enough for the page size not to matter.
const IDLE: usize = 256;

/// After the handshakes: what they needed is given back by then.
const REST: Duration = Duration::from_secs(6);

/// How long idle packets are counted, and how long after the connection was made.
const COUNTED: Duration = Duration::from_secs(60);
const CALM: Duration = Duration::from_secs(20);

/// Peers that a broadcast goes to, and its messages.
const PEERS: usize = 100;
const BROADCAST: Load = Load { size: 64, count: 20_000, bulk: false };

/// Messages that the slowest peer may be behind: half of a channel's queue, so that none is ever refused.
const AHEAD: u64 = 512;

/// A node with the benchmark's protocol.
pub(crate) struct Member {
    pub(crate) node: Node,
    tx: Sender,
    rx: Receiver,
    _peers: Peers,
}

impl Member {
    /// A node on `ip` alone, which looks for nobody and lets in as many as come.
    pub(crate) async fn new(net: Arc<dyn Net>, ip: Ipv4Addr) -> Member {
        let mut config = Config::new(Identity::generate()).listen((ip, 0).into());
        (config.lan, config.port_mapping) = (false, false);
        (config.peers.max_peers, config.peers.inbound_per_group) = (4_096, 100);
        let node = Node::bind_on(net, config).await.expect("a loopback port is free");
        let mut protocol = Protocol::new("bench", 1..=1);
        let (tx, rx) = protocol.channel(Channel::new(1));
        let _peers = node.register(protocol).expect("it is the only protocol");
        Member { node, tx, rx, _peers }
    }
}

/// A node that listens, on the operating system's network.
pub(crate) async fn listener() -> Member {
    Member::new(Arc::new(Os), Ipv4Addr::LOCALHOST).await
}

/// Nodes that will dial, each with an address of its own: the handshakes of one address are limited.
async fn diallers(net: &Arc<impl Net>, count: usize) -> Vec<Member> {
    let mut members = Vec::with_capacity(count);
    for n in 0..count {
        let ip = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + n as u32);
        members.push(Member::new(Arc::clone(net) as _, ip).await);
    }
    members
}

/// Connections made in a second of CPU time, of both ends together: handshake, agreement on protocols, first probes.
pub(crate) fn handshakes() -> f64 {
    let (tell, told) = mpsc::channel();
    let (end, ended) = oneshot::channel::<()>();
    let sent = Arc::new(AtomicU64::new(0));
    let net = Arc::new(Counting::new(&sent));
    let theirs = Arc::clone(&net);
    let accepting = thread::spawn(move || {
        on_a_runtime(async {
            let listener = Member::new(theirs, Ipv4Addr::LOCALHOST).await;
            tell.send(listener.node.ticket()).expect("the diallers wait");
            let _ = ended.await;
        });
    });
    let ticket: Ticket = told.recv().expect("the listener runs");
    let rate = on_a_runtime(async {
        let diallers = diallers(&net, HANDSHAKES).await;
        time::sleep(Duration::from_secs(1)).await; // what follows their start is over
        let before = sent.load(Ordering::Relaxed);
        let start = ProcessTime::now();
        for dialler in &diallers {
            dialler.node.dial(&ticket).await.expect("the listener answers");
        }
        let cpu = start.elapsed();
        let each = (sent.load(Ordering::Relaxed) - before) as f64 / HANDSHAKES as f64;
        eprintln!("handshakes: byway: {each:.1} datagrams each, in both directions together");
        HANDSHAKES as f64 / cpu.as_secs_f64()
    });
    let _ = end.send(());
    accepting.join().expect("the listener ends well");
    rate
}

/// KiB of a node's memory for each idle peer.
pub(crate) fn memory() -> f64 {
    let (child, ticket) = Child::start("node");
    let ticket: Ticket = ticket.parse().expect("it is a ticket");
    let before = child.rss_kib();
    on_a_runtime(async {
        let diallers = diallers(&Arc::new(Os), IDLE).await;
        for dialler in &diallers {
            dialler.node.dial(&ticket).await.expect("the child answers");
        }
        time::sleep(REST).await;
        (child.rss_kib() - before) / IDLE as f64
    })
}

/// Packets that both ends of an idle connection send in an hour, by those of a minute.
pub(crate) fn packets_an_hour() -> f64 {
    let sent = Arc::new(AtomicU64::new(0));
    on_a_runtime(async {
        let [a, b] = [(); 2].map(|()| Member::new(Arc::new(Counting::new(&sent)), Ipv4Addr::LOCALHOST));
        let (a, b) = (a.await, b.await);
        a.node.dial(b.node.ticket()).await.expect("it is there");
        time::sleep(CALM).await;
        let before = sent.load(Ordering::Relaxed);
        time::sleep(COUNTED).await;
        (sent.load(Ordering::Relaxed) - before) as f64 * 3_600.0 / COUNTED.as_secs_f64()
    })
}

/// Messages delivered in a second, all peers together; each peer checks that it gets all of them in order.
pub(crate) fn broadcast() -> f64 {
    let got: Arc<[AtomicU64]> = (0..PEERS).map(|_| AtomicU64::new(0)).collect();
    let counts = Arc::clone(&got);
    let (tell, told) = mpsc::channel();
    let (begin, begun) = oneshot::channel();
    let sending = thread::spawn(move || {
        on_a_runtime(async {
            let member = listener().await;
            tell.send(member.node.ticket()).expect("the receivers wait");
            begun.await.expect("all are connected");
            while member.node.peers().len() < PEERS {
                time::sleep(Duration::from_millis(1)).await;
            }
            let start = Instant::now();
            send_to_all(&member.tx, &counts).await;
            (PEERS as u64 * BROADCAST.count) as f64 / start.elapsed().as_secs_f64()
        })
    });
    let ticket = told.recv().expect("the sender runs");
    on_a_runtime(async {
        let mut receivers = Vec::new();
        for (n, member) in diallers(&Arc::new(Os), PEERS).await.into_iter().enumerate() {
            member.node.dial(&ticket).await.expect("the sender answers");
            receivers.push(tokio::spawn(receive_all(member, Arc::clone(&got), n)));
        }
        begin.send(()).expect("the sender waits");
        for receiver in receivers {
            receiver.await.expect("everything arrives in order");
        }
    });
    sending.join().expect("the sender ends well")
}

async fn send_to_all(tx: &Sender, got: &[AtomicU64]) {
    let slowest = || got.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap_or(0);
    for number in 0..BROADCAST.count {
        while number >= slowest() + AHEAD {
            time::sleep(Duration::from_millis(1)).await;
        }
        let sent = tx.send(&To::All, BROADCAST.message(number));
        assert_eq!(sent.queued, PEERS, "a queue is full, or a peer is gone");
    }
    while slowest() < BROADCAST.count {
        time::sleep(Duration::from_millis(1)).await;
    }
}

async fn receive_all(mut member: Member, got: Arc<[AtomicU64]>, n: usize) {
    for number in 0..BROADCAST.count {
        let (_, message) = member.rx.recv().await.expect("the node is open");
        assert_eq!(message[..8], number.to_le_bytes(), "a message was lost, doubled or reordered");
        got[n].store(number + 1, Ordering::Relaxed);
    }
    member.node.close().await;
}

/// The same with bare quinn: after the handshake 64 bytes go each way on a stream, as Byway's hellos do.
pub(crate) mod bare {
    use quinn::{Connection, Endpoint};

    use super::*;
    use crate::bare::quinn::{Quinn, client, endpoint};
    use crate::end::Library;

    const HELLO: [u8; 64] = [7; 64];

    /// An endpoint that answers everybody, for as long as the runtime lives.
    pub(crate) async fn listener() -> std::net::SocketAddr {
        let (endpoint, addr) = Quinn::listen().await;
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(async move {
                    let connection = incoming.await.expect("the handshake succeeds");
                    let (mut send, mut recv) = connection.accept_bi().await.expect("a stream comes");
                    recv.read_exact(&mut [0; HELLO.len()]).await.expect("the other side says hello");
                    send.write_all(&HELLO).await.expect("the connection is open");
                    connection.closed().await;
                });
            }
        });
        addr
    }

    async fn dial(endpoint: &Endpoint, config: ::quinn::ClientConfig, addr: std::net::SocketAddr) -> Connection {
        let connecting = endpoint.connect_with(config, addr, "bench.invalid").expect("it is a name");
        let connection = connecting.await.expect("the handshake succeeds");
        let (mut send, mut recv) = connection.open_bi().await.expect("the connection is open");
        send.write_all(&HELLO).await.expect("the connection is open");
        recv.read_exact(&mut [0; HELLO.len()]).await.expect("the other side answers");
        connection
    }

    /// As [`super::handshakes`].
    pub(crate) fn handshakes() -> f64 {
        let (tell, told) = mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        let accepting = thread::spawn(move || {
            on_a_runtime(async {
                tell.send(listener().await).expect("the diallers wait");
                let _ = ended.await;
            });
        });
        let addr = told.recv().expect("the listener runs");
        let rate = on_a_runtime(async {
            // A configuration each, so that nobody has a ticket.
            let diallers: Vec<_> = (0..HANDSHAKES).map(|_| (endpoint(None), client())).collect();
            let mut connections = Vec::with_capacity(HANDSHAKES);
            let start = ProcessTime::now();
            for (endpoint, config) in &diallers {
                connections.push(dial(endpoint, config.clone(), addr).await);
            }
            let cpu = start.elapsed();
            let datagrams = |stats: ::quinn::ConnectionStats| stats.udp_tx.datagrams + stats.udp_rx.datagrams;
            let all: u64 = connections.iter().map(|connection| datagrams(connection.stats())).sum();
            let each = all as f64 / HANDSHAKES as f64;
            eprintln!("handshakes: quinn: {each:.1} datagrams each, in both directions together");
            HANDSHAKES as f64 / cpu.as_secs_f64()
        });
        let _ = end.send(());
        accepting.join().expect("the listener ends well");
        rate
    }

    /// As [`super::memory`].
    pub(crate) fn memory() -> f64 {
        let (child, addr) = Child::start("quinn");
        let addr = addr.parse().expect("it is an address");
        let before = child.rss_kib();
        on_a_runtime(async {
            let endpoint = endpoint(None);
            let mut connections = Vec::with_capacity(IDLE);
            for _ in 0..IDLE {
                connections.push(dial(&endpoint, client(), addr).await);
            }
            time::sleep(REST).await;
            (child.rss_kib() - before) / IDLE as f64
        })
    }
}
