//! A peer that takes nothing of what waits for it is given up after two minutes, and nobody else is.

use std::time::Duration;

use bytes::Bytes;
use byway::{Channel, Config, Gone, Node, PeerEvent, PeerId, Peers, Protocol, Receiver, Sender, Stream, Streams, To};
use byway_sim::{Host, Loss, World};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{self, Instant},
};

use crate::common::{config, ms, scenario, secs};

/// The deadline of a node that is told nothing, and how late it may be: it is looked every five seconds.
const DEADLINE: Duration = Duration::from_secs(120);
const LATE: Duration = Duration::from_secs(8);

/// A node with two channels and byte streams of one protocol.
struct Side {
    node: Node,
    tx: [Sender; 2],
    rx: [Receiver; 2],
    peers: Peers,
    streams: Streams,
}

async fn side(host: &Host, config: Config) -> Side {
    let node = Node::bind_on(host.net(), config).await.unwrap();
    let mut one = Protocol::new("one", 1..=1);
    let [first, second] = [1, 2].map(|id| one.channel(Channel::new(id)));
    let streams = one.streams();
    let peers = node.register(one).unwrap();
    Side { node, tx: [first.0, second.0], rx: [first.1, second.1], peers, streams }
}

impl Side {
    async fn down(&mut self) -> Gone {
        loop {
            if let Some(PeerEvent::Down { reason, .. }) = self.peers.next().await {
                return reason;
            }
        }
    }
}

async fn pair(world: &World, of_a: Config) -> (Side, Side, PeerId) {
    pair_on(&world.host("a"), &world.host("b"), of_a).await
}

async fn pair_on(first: &Host, second: &Host, of_a: Config) -> (Side, Side, PeerId) {
    let (mut a, b) = (side(first, of_a).await, side(second, config(2)).await);
    a.node.dial(b.node.ticket()).await.unwrap();
    a.peers.next().await;
    let to = b.node.id();
    (a, b, to)
}

/// Fills a channel that nobody reads until nothing moves; the last moment when something did.
async fn fill(tx: &Sender, to: PeerId, len: usize) -> Instant {
    let mut moved = Instant::now();
    while moved.elapsed() < secs(5) {
        if tx.send(&To::Peer(to), Bytes::from(vec![1; len])).queued == 1 {
            moved = Instant::now();
        } else {
            time::sleep(ms(10)).await;
        }
    }
    moved
}

#[test]
fn a_peer_that_reads_nothing_is_gone_after_two_minutes_and_both_sides_know_why() {
    // What QUIC does last before nothing moves any more depends on the size.
    [4_096, 100, 50_000].into_iter().for_each(reads_nothing);
}

fn reads_nothing(len: usize) {
    scenario(1, secs(600), move |world| async move {
        let (mut a, mut b, to) = pair(&world, config(1)).await;
        let stuck = fill(&a.tx[0], to, len).await;
        assert_eq!(a.down().await, Gone::Unread);
        assert!((DEADLINE - secs(1)..DEADLINE + LATE).contains(&stuck.elapsed()), "{:?}", stuck.elapsed());
        assert_eq!(b.down().await, Gone::Unread);
    });
}

#[test]
fn a_channel_that_nobody_reads_beside_one_that_is_read_costs_no_connection() {
    scenario(1, secs(900), |world| async move {
        let (a, mut b, to) = pair(&world, config(1)).await;
        fill(&a.tx[0], to, 4_096).await;
        for _ in 0..20 {
            time::sleep(secs(30)).await;
            assert_eq!(a.tx[1].send(&To::Peer(to), "hello".into()).queued, 1);
            assert!(b.rx[1].recv().await.is_some());
        }
        assert_eq!(a.node.peers(), [to]);
    });
}

/// A byte stream that is written until nothing moves, for its other end is held and not read.
async fn pause(a: &Side, b: &mut Side, to: PeerId) -> (Stream, Stream) {
    let mut written = a.peers.open(to).await.unwrap();
    let endless = async { while written.write_all(&[7; 10_000]).await.is_ok() {} };
    assert!(time::timeout(secs(5), endless).await.is_err());
    (written, b.streams.accept().await.unwrap().1)
}

#[test]
fn a_peer_that_needs_a_hundred_streams_at_once_gets_them_though_it_may_open_few_at_first() {
    scenario(1, secs(60), |world| async move {
        let (a, mut b, to) = pair(&world, config(1)).await;
        let mut open = Vec::new();
        for n in 0..99 {
            let mut stream = time::timeout(secs(2), a.peers.open(to)).await.expect("no more are granted").unwrap();
            stream.write_all(&[n]).await.unwrap();
            let (_, mut other) = b.streams.accept().await.unwrap();
            assert_eq!(other.read_u8().await.unwrap(), n);
            open.push((stream, other));
        }
    });
}

#[test]
fn a_byte_stream_that_is_paused_for_an_hour_costs_neither_connection_nor_packets_and_goes_on() {
    scenario(1, secs(8_000), |world| async move {
        let host = world.host("a");
        let (a, mut b, to) = pair_on(&host, &world.host("b"), config(1)).await;
        let hour = async || {
            time::sleep(secs(60)).await;
            let before = host.traffic().sent;
            time::sleep(secs(3_600)).await;
            host.traffic().sent - before
        };
        let idle = hour().await;
        let (_written, mut read) = pause(&a, &mut b, to).await;
        let paused = hour().await;
        assert_eq!(a.node.peers(), [to]);
        assert!(paused < idle + 400, "{paused} packets, {idle} in an idle hour: the peer is asked every five seconds");
        // More than the stream's window: it comes out of the queue at the sender, too.
        let mut bytes = vec![0; (4 << 20) + 200_000];
        time::timeout(secs(30), read.read_exact(&mut bytes)).await.expect("it does not go on").unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
    });
}

#[test]
fn byte_streams_whose_pause_keeps_channels_waiting_cost_no_connection() {
    scenario(1, secs(1_000), |world| async move {
        let (a, mut b, to) = pair(&world, config(1)).await;
        let mut paused = Vec::new();
        for _ in 0..9 {
            paused.push(pause(&a, &mut b, to).await);
        }
        assert_eq!(a.tx[0].send(&To::Peer(to), Bytes::from(vec![1; 100_000])).queued, 1);
        assert!(time::timeout(secs(600), b.rx[0].recv()).await.is_err(), "the connection's window has room");
        assert_eq!(a.node.peers(), [to]);
        drop(paused);
        time::timeout(secs(30), b.rx[0].recv()).await.expect("the channel does not go on").unwrap();
    });
}

#[test]
fn a_handler_that_takes_a_second_for_each_small_message_costs_no_connection() {
    scenario(1, secs(3_000), |world| async move {
        let (a, mut b, to) = pair(&world, config(1)).await;
        fill(&a.tx[0], to, 100).await;
        // QUIC says nothing of what was read before it is an eighth of a window: 5,000 of these messages.
        for _ in 0..1_000 {
            assert!(b.rx[0].recv().await.is_some());
            time::sleep(secs(1)).await;
        }
        assert_eq!(a.node.peers(), [to]);
    });
}

#[test]
fn an_outage_is_no_reluctance() {
    scenario(1, secs(900), |world| async move {
        let host = world.host("a");
        let (mut a, b, to) = pair_on(&host, &world.host("b"), config(1)).await;
        let stuck = fill(&a.tx[0], to, 4_096).await;
        time::sleep_until(stuck + secs(60)).await;
        host.edit_link(|link| link.loss = Loss::Random(1.0));
        time::sleep(secs(150)).await;
        host.edit_link(|link| link.loss = Loss::Random(0.0));
        time::sleep(secs(10)).await;
        assert_eq!(a.node.peers(), [to], "an outage was counted");
        assert_eq!(a.down().await, Gone::Unread);
        println!("after {:?}", stuck.elapsed());
        // The peer's first word after an outage is a window grown by a byte, as of one that reads: the two minutes begin anew.
        let end = secs(60 + 150) + DEADLINE;
        assert!((end - secs(1)..end + LATE).contains(&stuck.elapsed()), "{:?}", stuck.elapsed());
        drop(b);
    });
}

#[test]
fn without_a_deadline_nobody_is_given_up() {
    scenario(1, secs(900), |world| async move {
        let mut patient = config(1);
        patient.link.evict_after = None;
        let (a, _b, to) = pair(&world, patient).await;
        fill(&a.tx[0], to, 4_096).await;
        time::sleep(secs(600)).await;
        assert_eq!(a.node.peers(), [to]);
    });
}
