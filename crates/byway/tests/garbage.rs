//! A million datagrams of garbage, while honest peers talk.
#![allow(clippy::unwrap_used)] // a test may panic

mod common;

use std::{
    io::IoSliceMut,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use byway::{
    PeerAddr, RelayConfig,
    net::{Net, UdpSocket, os::Os},
};
use byway_proto::{Rng, wire::stun};
use common::{Peer, V4, addr_of, config, connected, count, exchange, relay, rss_mib, until};
use quinn::udp::{RecvMeta, Transmit};
use tokio::time::{self, Instant};

/// Datagrams to each of the two victims.
const DATAGRAMS: u64 = 500_000;

/// The flood ends after this long, however far it came on a slow machine.
const LIMIT: Duration = Duration::from_secs(15);

/// Sockets that send them; to the gate they are one source.
const SOURCES: usize = 8;

/// Datagrams in one send.
const BATCH: usize = 32;

/// What may stay behind in memory, in MiB: the tables of sources and strangers, and what the allocator keeps.
const GROWTH: f64 = 24.0;

/// Answers a second and at once to packets of unknown connections, and to STUN: the mux's own constants, rounded up.
const RESETS: (u64, u64) = (1_000, 200);
const STUN: (u64, u64) = (200, 100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_stops_nobody_and_earns_no_more_than_allowed() {
    let panicked = panics();
    let (relay, at) = relay(9, RelayConfig::default()).await;
    let (mut a, mut b) = connected(V4).await;
    let (c, d) = relayed_pair(&at).await;
    let captured = Arc::new(capture(&mut a, &mut b).await);
    for _ in 0..100 {
        exchange(&mut a, &mut b).await;
    }
    let before = rss_mib();
    let start = Instant::now();
    let attacks = [addr_of(&b.node), addr_of(&relay)].map(|victim| attack(victim, Arc::clone(&captured)));
    let [to_node, to_relay] = attacks;
    let flood = async { tokio::join!(to_node, to_relay) };
    let (mut trips, mut relayed, mut longest) = (0, 0, Duration::ZERO);
    let talk = async {
        loop {
            longest = longest.max(exchange(&mut a, &mut b).await);
            trips += 1;
        }
    };
    let talk_relayed = async {
        loop {
            c.node.ping(d.id()).await.ok();
            relayed += 1;
        }
    };
    let (node_earned, relay_earned) = tokio::select! {
        biased;
        earned = flood => earned,
        () = talk => unreachable!("it goes on forever"),
        () = talk_relayed => unreachable!("it goes on forever"),
    };
    let took = start.elapsed();
    println!("{took:?}: to a node {node_earned:?}; to a relay {relay_earned:?}");
    println!("{trips} round trips, the longest {longest:?}; {relayed} pings through the relay");
    assert!(trips > 20 && longest < Duration::from_secs(3), "{trips} round trips, the longest {longest:?}");
    node_earned.check(took, false);
    relay_earned.check(took, true);
    exchange(&mut a, &mut b).await;
    c.node.ping(d.id()).await.unwrap();
    for node in [&b.node, &relay] {
        let status = node.status().await;
        println!("{:?}, {} aliases", status.dropped, status.aliases);
        for reason in ["junk", "unknown_connection", "unknown_probe", "unknown_handshake"] {
            assert!(count(&status, reason) > 0, "{reason} is not counted: {:?}", status.dropped);
        }
        assert!(status.aliases <= 1_024 + 300, "{} aliases", status.aliases);
    }
    assert_eq!(relay.status().await.serving.unwrap().clients, 2);
    time::sleep(Duration::from_secs(1)).await;
    let grown = rss_mib() - before;
    println!("{grown:.1} MiB more");
    assert!(grown < GROWTH, "{grown:.1} MiB more");
    assert!(!panicked.load(Ordering::Relaxed), "a task panicked");
    until(&b.node, Duration::from_secs(30), |status| count(status, "handshake_failed") > 0 || status.aliases < 64)
        .await;
}

/// Notes any panic: one inside a task would otherwise go unseen.
fn panics() -> Arc<AtomicBool> {
    let panicked = Arc::new(AtomicBool::new(false));
    let (note, default) = (Arc::clone(&panicked), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        note.store(true, Ordering::Relaxed);
        default(info);
    }));
    panicked
}

/// Two nodes that know each other through the relay only.
async fn relayed_pair(relay: &PeerAddr) -> (Peer, Peer) {
    let [mut c, mut d] = [3, 4].map(|n| config(n, V4).relay_at(relay.clone()));
    (c.relay_only, d.relay_only) = (true, true);
    let (mut c, mut d) = (Peer::bind(c).await, Peer::bind(d).await);
    c.node.dial(d.node.ticket()).await.unwrap();
    c.up().await;
    d.up().await;
    (c, d)
}

/// Real datagrams: a dial through a tap, and what follows it, both ways; and some of every other kind.
async fn capture(a: &mut Peer, b: &mut Peer) -> Vec<Vec<u8>> {
    let tap = tokio::net::UdpSocket::bind((V4, 0)).await.unwrap();
    let (victim, tapped) = (addr_of(&b.node), Mutex::new(Vec::new()));
    let forward = async {
        let mut dialler = None;
        let mut buf = [0; 2_048];
        loop {
            let (len, from) = tap.recv_from(&mut buf).await.unwrap();
            tapped.lock().unwrap().push(buf[..len].to_vec());
            let to = if from == victim { dialler } else { Some(victim) };
            dialler = dialler.or(Some(from));
            if let Some(to) = to {
                tap.send_to(&buf[..len], to).await.unwrap();
            }
        }
    };
    let talk = async {
        let mut e = Peer::bind(config(5, V4)).await;
        e.node.dial(PeerAddr::new(b.id(), [tap.local_addr().unwrap()])).await.unwrap();
        e.up().await;
        for _ in 0..20 {
            exchange(&mut e, b).await;
        }
        time::sleep(Duration::from_millis(200)).await; // probes
        e.node.close().await;
    };
    tokio::select! {
        biased;
        () = talk => {}
        () = forward => unreachable!("it goes on forever"),
    }
    exchange(a, b).await;
    let mut captured = std::mem::take(&mut *tapped.lock().unwrap());
    for first in [0xc0, 0x40, 0x80] {
        assert!(captured.iter().any(|datagram| datagram[0] & 0xc0 == first & 0xc0), "nothing like {first:#x}");
    }
    // The other types of a handshake: early data, Handshake, Retry.
    let initial = captured.iter().find(|datagram| datagram[0] & 0xf0 == 0xc0).unwrap().clone();
    captured.extend([0xd0, 0xe0, 0xf0].map(|first| [&[first | initial[0] & 0x0f], &initial[1..]].concat()));
    let relayed: Vec<_> =
        captured.iter().map(|datagram| [&[0x81, 1, 2, 3, 4, 5, 6, 7, 8][..], datagram].concat()).collect();
    captured.extend(relayed);
    captured.push(stun::binding_request([7; 12]));
    captured.push([&[0x82][..], &[3; 200]].concat());
    captured
}

/// What came back to one attacker.
#[derive(Debug, Default)]
struct Earned {
    sent: u64,
    /// Bytes of Initials that were sent.
    initials: u64,
    answers: AtomicU64,
    long: AtomicU64,
    resets: AtomicU64,
    longest_reset: AtomicU64,
    stun: AtomicU64,
    other: AtomicU64,
}

impl Earned {
    fn note(&self, datagram: &[u8]) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        match datagram[0] {
            0xc0.. => drop(self.long.fetch_add(datagram.len() as u64, Ordering::Relaxed)),
            0x40..0x80 => {
                self.resets.fetch_add(1, Ordering::Relaxed);
                self.longest_reset.fetch_max(datagram.len() as u64, Ordering::Relaxed);
            }
            0..0x40 => drop(self.stun.fetch_add(1, Ordering::Relaxed)),
            _ => drop(self.other.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// DESIGN §8.3: silence, or no more than the question; QUIC's threefold and STUN's answer excepted, at a rate.
    fn check(&self, took: Duration, relay: bool) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let most = |(rate, burst): (u64, u64)| burst + rate * (took.as_secs() + 2);
        assert!(self.sent >= DATAGRAMS / 5, "a flood of {} is none", self.sent);
        assert!(of(&self.long) <= 3 * self.initials, "{self:?}");
        assert!(of(&self.resets) <= most(RESETS) && of(&self.longest_reset) < 1_500, "{self:?}");
        assert!(of(&self.stun) <= if relay { most(STUN) } else { 0 }, "{self:?}");
        assert_eq!(of(&self.other), 0, "{self:?}");
    }
}

/// Sends random and mutated datagrams, and counts what comes back.
async fn attack(victim: SocketAddr, captured: Arc<Vec<Vec<u8>>>) -> Earned {
    let sockets: Vec<_> = (0..SOURCES).map(|_| Os.bind_udp((V4, 0).into()).unwrap()).collect();
    let mut earned = Earned::default();
    let mut rng = Rng::new(&[7; 32], &victim.port().to_string());
    let noise: Vec<u8> = (0..1 << 16).map(|_| rng.next_u64() as u8).collect();
    let mut batch = Vec::new();
    let end = Instant::now() + LIMIT;
    while earned.sent < DATAGRAMS && Instant::now() < end {
        let segment = 1 + rng.below(1_452) as usize;
        batch.clear();
        (0..BATCH).for_each(|_| garbage(&mut rng, &captured, &noise, segment, &mut batch));
        let initials = batch.chunks(segment).filter(|d| d[0] & 0xf0 == 0xc0 && d.len() >= 1_200).count();
        let socket = &sockets[rng.below(SOURCES as u64) as usize];
        let transmit =
            Transmit { destination: victim, ecn: None, contents: &batch, segment_size: Some(segment), src_ip: None };
        if socket.try_send(&transmit).is_ok() {
            earned.sent += BATCH as u64;
            earned.initials += (initials * segment) as u64;
        } else {
            let _ = Arc::clone(socket).writable().await;
        }
        tokio::task::yield_now().await;
        drain(&**socket, &earned);
    }
    time::sleep(Duration::from_secs(1)).await;
    sockets.iter().for_each(|socket| drain(&**socket, &earned));
    earned
}

/// Appends a datagram of `len` bytes: random, or a real one that was changed, cut or lengthened.
fn garbage(rng: &mut Rng, captured: &[Vec<u8>], noise: &[u8], len: usize, batch: &mut Vec<u8>) {
    let start = batch.len();
    if rng.below(8) > 0 {
        let real = &captured[rng.below(captured.len() as u64) as usize];
        batch.extend_from_slice(&real[..len.min(real.len())]);
    }
    let missing = start + len - batch.len();
    let from = rng.below((noise.len() - missing) as u64) as usize;
    batch.extend_from_slice(&noise[from..from + missing]);
    for _ in 0..rng.below(4) {
        batch[start + rng.below(len.min(40) as u64) as usize] ^= 1 << rng.below(8);
    }
}

fn drain(socket: &dyn UdpSocket, earned: &Earned) {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut buf = [0; 65_536];
    let mut meta = [RecvMeta::default()];
    while let std::task::Poll::Ready(Ok(_)) = socket.poll_recv(&mut cx, &mut [IoSliceMut::new(&mut buf)], &mut meta) {
        buf[..meta[0].len].chunks(meta[0].stride.max(1)).for_each(|datagram| earned.note(datagram));
    }
}
