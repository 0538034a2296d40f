//! What the scenarios share: nodes that speak `echo`, relays, flows of numbered messages, and bounds on virtual time.

use std::{cell::RefCell, future::Future, net::SocketAddr, time::Duration};

use bytes::Bytes;
use byway::{
    Channel, Config, Event, EventStream, Gone, Identity, Node, PathKind, PeerAddr, PeerEvent, PeerId, Peers, Protocol,
    Receiver, RelayConfig, Sender, To,
};
use byway_sim::{Host, World};
use tokio::time::{self, Instant};
use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

/// The port of every node.
pub(crate) const PORT: u16 = 4_000;

/// Runs a scenario that has to end within `limit` of virtual time, so that one that hangs fails and says so.
pub(crate) fn scenario<F, Fut>(seed: u64, limit: Duration, story: F)
where
    F: FnOnce(World) -> Fut,
    Fut: Future<Output = ()>,
{
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_timer(VirtualTime)
        .with_test_writer()
        .try_init();
    World::run(seed, |world| async move {
        START.set(Some(Instant::now()));
        let ended = time::timeout(limit, story(world)).await;
        assert!(ended.is_ok(), "seed {seed}: the scenario still hangs after {limit:?} of virtual time");
    });
}

/// Stamps log lines with the time since the world began, as far as this thread has one.
struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        let now = Instant::now();
        let start = START.with(|start| *start.borrow_mut().get_or_insert(now));
        write!(w, "{:10.3}", (now - start).as_secs_f64())
    }
}

thread_local! {
    static START: RefCell<Option<Instant>> = const { RefCell::new(None) };
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// The settings of node `n`, IPv4 only.
pub(crate) fn config(n: u8) -> Config {
    let mut config = Config::new(Identity::from_seed([n; 32]));
    config.seed = Some([n; 32]);
    config.port = PORT;
    config.ipv6 = None;
    config
}

/// The settings of node `n` after a restart: the same key, other randomness.
pub(crate) fn config_anew(n: u8) -> Config {
    let mut config = config(n);
    config.seed = Some([n ^ 0x80; 32]);
    config
}

/// A node that speaks `echo` on one channel.
pub(crate) struct Peer {
    pub(crate) node: Node,
    pub(crate) tx: Sender,
    pub(crate) rx: Receiver,
    pub(crate) peers: Peers,
    pub(crate) events: EventStream,
}

pub(crate) async fn peer(host: &Host, config: Config) -> Peer {
    let node = Node::bind_on(host.net(), config).await.unwrap();
    let events = node.events();
    let mut echo = Protocol::new("echo", 1..=1);
    let (tx, rx) = echo.channel(Channel::new(1));
    let peers = node.register(echo).unwrap();
    Peer { node, tx, rx, peers, events }
}

impl Peer {
    pub(crate) fn id(&self) -> PeerId {
        self.node.id()
    }

    /// Waits for the next peer to come up.
    pub(crate) async fn up(&mut self) -> PeerId {
        match self.peers.next().await {
            Some(PeerEvent::Up { peer, version: 1 }) => peer,
            other => panic!("{other:?} instead of a peer that comes up"),
        }
    }

    /// Waits for the next peer to go; the reason.
    pub(crate) async fn down(&mut self) -> Gone {
        match self.peers.next().await {
            Some(PeerEvent::Down { reason, .. }) => reason,
            other => panic!("{other:?} instead of a peer that goes"),
        }
    }

    /// What the first peer's connection goes through.
    pub(crate) async fn path(&self) -> Option<PathKind> {
        self.node.status().await.peers.first().and_then(|peer| peer.path)
    }

    /// Waits until the first peer's connection goes through `kind`.
    pub(crate) async fn goes(&self, kind: PathKind, limit: Duration) {
        let start = Instant::now();
        while self.path().await != Some(kind) {
            assert!(start.elapsed() < limit, "not {kind} after {limit:?}: {:#?}", self.node.status().await);
            time::sleep(ms(20)).await;
        }
    }

    /// Waits for so long, in which nothing may happen to any path.
    pub(crate) async fn keeps_its_path(&self, time: Duration) {
        let mut events = self.node.events();
        let changes = async {
            loop {
                match events.recv().await {
                    Some(Event::PathDown { .. } | Event::PathBest { .. }) | None => return,
                    Some(_) => {}
                }
            }
        };
        assert!(time::timeout(time, changes).await.is_err(), "an idle path changed");
    }

    /// Waits until the node is registered at its relays.
    pub(crate) async fn registered(&self) {
        let registered = async |node: &Node| node.status().await.relays.iter().all(|relay| relay.registered);
        let start = Instant::now();
        while !registered(&self.node).await {
            assert!(start.elapsed() < secs(40), "not registered: {:#?}", self.node.status().await.relays);
            time::sleep(ms(20)).await;
        }
    }

    /// Waits for the next time the node has registered at a relay.
    pub(crate) async fn registers_anew(&mut self) {
        loop {
            if let Event::RelayUp { .. } = self.events.recv().await.expect("the node runs") {
                return;
            }
        }
    }

    /// The peer events that have come so far.
    pub(crate) async fn pending(&mut self) -> Vec<PeerEvent> {
        let mut events = Vec::new();
        while let Ok(Some(event)) = time::timeout(Duration::ZERO, self.peers.next()).await {
            events.push(event);
        }
        events
    }
}

/// A relay for others on `host`, and its address.
pub(crate) async fn relay(host: &Host, config: Config) -> (Node, PeerAddr) {
    let mut config = config;
    config.relay = Some(RelayConfig::default());
    let node = Node::bind_on(host.net(), config).await.unwrap();
    let addr = PeerAddr::new(node.id(), [SocketAddr::new(host.addr(), PORT)]);
    (node, addr)
}

/// Kills whatever runs on `old` between two packets, as `kill -9` does, and lets `new` have its address.
pub(crate) fn kill(old: &Host, new: &Host) {
    let ip = old.addr();
    old.set_down();
    old.remove_addr(ip);
    new.addrs().into_iter().for_each(|addr| new.remove_addr(addr));
    new.add_addr(ip);
}

/// One message each way.
pub(crate) async fn exchange(a: &mut Peer, b: &mut Peer) {
    let limit = secs(10);
    assert_eq!(a.tx.send(&To::Peer(b.id()), "ping".into()).queued, 1, "{:#?}", a.node.status().await);
    let (from, message) = time::timeout(limit, b.rx.recv()).await.expect("the ping is lost").unwrap();
    assert_eq!((from, &message[..]), (a.id(), &b"ping"[..]));
    assert_eq!(b.tx.send(&To::Peer(a.id()), "pong".into()).queued, 1, "{:#?}", b.node.status().await);
    assert_eq!(&time::timeout(limit, a.rx.recv()).await.expect("the pong is lost").unwrap().1[..], b"pong");
}

/// Sends `count` numbered messages from `tx` to `rx`, one each `every`, and tells the longest time between two arrivals;
/// panics if any is lost, doubled or out of order.
pub(crate) async fn flow(tx: &Sender, rx: &mut Receiver, to: PeerId, count: u64, every: Duration) -> Duration {
    let tx = tx.clone();
    let sending = tokio::spawn(async move {
        for number in 0..count {
            let message = Bytes::copy_from_slice(&number.to_be_bytes());
            tx.send_wait(to, message).await.unwrap_or_else(|error| panic!("message {number}: {error}"));
            time::sleep(every).await;
        }
    });
    let mut last = Instant::now();
    let mut longest = Duration::ZERO;
    for expected in 0..count {
        let received = time::timeout(secs(30), rx.recv()).await;
        let (_, message) = received.unwrap_or_else(|_| panic!("no message {expected} within 30 s")).unwrap();
        let number = u64::from_be_bytes(message[..].try_into().unwrap());
        assert_eq!(number, expected, "a message is lost, doubled or out of order");
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    sending.await.unwrap();
    longest
}

/// [`flow`] in both directions at once.
pub(crate) async fn flows(a: &mut Peer, b: &mut Peer, count: u64, every: Duration) -> [Duration; 2] {
    let (id_a, id_b) = (a.id(), b.id());
    let there = flow(&a.tx, &mut b.rx, id_b, count, every);
    let back = flow(&b.tx, &mut a.rx, id_a, count, every);
    let (there, back) = tokio::join!(there, back);
    [there, back]
}
