//! What messages pin at the receiver is bounded for each peer and for the node, and nobody waits for ever.

use std::time::Duration;

use bytes::Bytes;
use byway::{Channel, Config, Delivery, Gone, Node, PeerEvent, PeerId, Peers, Protocol, Rate, Receiver, Sender, To};
use byway_sim::{Host, Link, World};
use tokio::time::{self, Instant};

use crate::common::{config, ms, scenario, secs};

const MIB: usize = 1 << 20;

/// Channels of large messages; a small one has the number 0.
const LARGE: u32 = 40;

struct Side {
    node: Node,
    tx: Vec<Sender>,
    rx: Vec<Receiver>,
    peers: Peers,
}

/// A node whose channels are changed by `edit`.
async fn side(host: &Host, config: Config, edit: impl Fn(&mut Channel)) -> Side {
    host.set_link(Link::standard().rate(1_000_000_000));
    let node = Node::bind_on(host.net(), config).await.unwrap();
    let mut one = Protocol::new("one", 1..=1);
    let channel = |id| {
        let mut channel = Channel::new(id).max_message(16 * MIB);
        edit(&mut channel);
        one.channel(channel)
    };
    let (tx, rx) = (0..=LARGE).map(channel).unzip();
    let peers = node.register(one).unwrap();
    Side { node, tx, rx, peers }
}

impl Side {
    async fn down(&mut self) -> Gone {
        loop {
            if let Some(PeerEvent::Down { reason, .. }) = self.peers.next().await {
                return reason;
            }
        }
    }

    async fn dial(&mut self, other: &Side) -> PeerId {
        self.node.dial(other.node.ticket()).await.unwrap();
        self.peers.next().await;
        other.node.id()
    }
}

/// A peer that begins messages of 16 MiB on all its channels, sends some of each, and then a thousand bytes a second.
async fn hostile(world: &World, n: u8, victim: &Side) -> Side {
    let slowly = |channel: &mut Channel| {
        channel.send_rate = (channel.id > 0).then(|| Rate::new(1_000).burst(3 * MIB as u64));
    };
    let mut config = config(n);
    config.link.evict_after = None;
    let mut hostile = side(&world.host("hostile"), config, slowly).await;
    let (to, message) = (hostile.dial(victim).await, Bytes::from(vec![0; 16 * MIB]));
    for tx in &hostile.tx[1..] {
        assert_eq!(tx.send(&To::Peer(to), message.clone()).queued, 1);
    }
    hostile
}

/// Sends small messages for `how_long`; the time that the slowest took.
async fn slowest(tx: &Sender, rx: &mut Receiver, to: PeerId, how_long: Duration) -> Duration {
    let (start, mut slowest) = (Instant::now(), Duration::ZERO);
    while start.elapsed() < how_long {
        let sent = Instant::now();
        assert_eq!(tx.send(&To::Peer(to), "small".into()).queued, 1);
        time::timeout(secs(30), rx.recv()).await.expect("a small message waits for ever").unwrap();
        slowest = slowest.max(sent.elapsed());
        time::sleep(ms(100)).await;
    }
    slowest
}

#[test]
fn a_peer_that_ends_no_message_on_any_channel_pins_its_budget_at_most_and_loses_its_connection() {
    scenario(1, secs(1_000), |world| async move {
        let mut victim = side(&world.host("victim"), config(1), |_| {}).await;
        let mut honest = side(&world.host("honest"), config(2), |_| {}).await;
        let to = honest.dial(&victim).await;
        let began = Instant::now();
        let mut hostile = hostile(&world, 3, &victim).await;
        let beside = slowest(&honest.tx[0], &mut victim.rx[0], to, secs(25)).await;
        assert!(beside < ms(120), "{beside:?}");
        let used = victim.node.status().await.memory;
        println!("{used:?}");
        assert!(used.used > 40 * MIB && used.peak <= 64 * MIB && used.waits > 0, "{used:?}");
        assert_eq!(hostile.down().await, Gone::Unfinished);
        // It hurt nobody but itself: what it holds, 48 MiB, may take as long as at 512 kbit/s.
        println!("after {:?}", began.elapsed());
        assert!((secs(30 + 768)..secs(30 + 768 + 5)).contains(&began.elapsed()), "{:?}", began.elapsed());
        time::sleep(secs(1)).await;
        assert_eq!(victim.node.peers(), [honest.node.id()]);
        let left = victim.node.status().await.memory;
        assert!(left.used == 0 && left.peak <= 64 * MIB, "{left:?}");
    });
}

#[test]
fn a_message_that_is_larger_than_its_channel_allows_ends_the_connection_before_it_is_taken_in() {
    scenario(1, secs(60), |world| async move {
        for delivery in [Delivery::Stream, Delivery::Datagram] {
            let of = |max| move |channel: &mut Channel| *channel = channel.clone().max_message(max).delivery(delivery);
            let small = side(&world.host("small"), config(1), of(1_000)).await;
            let mut large = side(&world.host("large"), config(2), of(1_100)).await;
            let to = large.dial(&small).await;
            assert_eq!(large.tx[1].send(&To::Peer(to), Bytes::from(vec![0; 1_001])).queued, 1);
            let reason = large.down().await;
            assert!(matches!(&reason, Gone::Misbehaved(why) if why.contains("1001 bytes")), "{delivery:?}: {reason:?}");
            assert_eq!((small.node.peers(), small.node.status().await.memory.used), (Vec::new(), 0));
            small.node.close().await;
            large.node.close().await;
        }
    });
}

#[test]
fn what_waits_for_peers_that_read_nothing_is_bounded_and_others_are_served() {
    scenario(1, secs(60), |world| async move {
        let mut short = config(1);
        short.link.send_memory = 8 * MIB;
        let mut a = side(&world.host("a"), short, |_| {}).await;
        let mut deaf = Vec::new();
        for n in 2..6 {
            deaf.push(side(&world.host(&format!("{n}")), config(n), |_| {}).await);
            a.dial(deaf.last().unwrap()).await;
        }
        for _ in 0..4_000 {
            let _ = a.tx[1].send(&To::All, Bytes::from(vec![0; 50_000]));
            let _ = a.tx[2].send(&To::All, Bytes::from(vec![0; 50_000]));
            time::sleep(ms(1)).await;
        }
        let memory = a.node.status().await.memory;
        println!("{memory:?}");
        // Eight lanes have 64 KiB and a message on top each.
        assert!(memory.sending > 7 * MIB && memory.sending <= 8 * MIB + 8 * (130 << 10), "{memory:?}");
        let mut heard = side(&world.host("heard"), config(9), |_| {}).await;
        let to = a.dial(&heard).await;
        let mut rx = heard.rx.remove(1);
        let reading = tokio::spawn(async move {
            for _ in 0..500 {
                time::timeout(secs(5), rx.recv()).await.expect("it waits for others").unwrap();
            }
        });
        for _ in 0..500 {
            a.tx[1].send_wait(to, Bytes::from(vec![0; 50_000])).await.unwrap();
        }
        reading.await.unwrap();
    });
}

#[test]
fn peers_that_use_the_nodes_memory_up_stop_no_small_messages_and_large_ones_not_for_ever() {
    scenario(1, secs(300), |world| async move {
        let mut short = config(1);
        short.link.memory = short.link.peer_memory;
        let mut victim = side(&world.host("victim"), short, |_| {}).await;
        let mut honest = side(&world.host("honest"), config(2), |_| {}).await;
        let to = honest.dial(&victim).await;
        let hostile = [hostile(&world, 3, &victim).await, hostile(&world, 4, &victim).await];
        time::sleep(secs(5)).await;
        assert!(victim.node.status().await.memory.waits > 0);
        // The first of the two holds 48 MiB, which it may for 30 s and as long as they take at 8 Mbit/s.
        assert_eq!(honest.tx[1].send(&To::Peer(to), Bytes::from(vec![0; 16 * MIB])).queued, 1);
        let sent = Instant::now();
        let beside = slowest(&honest.tx[0], &mut victim.rx[0], to, secs(10)).await;
        assert!(beside < ms(300), "{beside:?}");
        let large = time::timeout(secs(100), victim.rx[1].recv()).await.expect("a large message waits for ever");
        assert_eq!(large.unwrap().0, honest.node.id());
        println!("small {beside:?}, large {:?}", sent.elapsed());
        assert!(sent.elapsed() < secs(80), "{:?}", sent.elapsed());
        let memory = victim.node.status().await.memory;
        assert!(memory.peak <= 64 * MIB + 3 * 256 * 1_024, "{memory:?}");
        assert!(victim.node.peers().contains(&honest.node.id()));
        drop(hostile);
    });
}

#[test]
fn large_messages_on_many_channels_share_little_memory_and_all_arrive() {
    scenario(1, secs(300), |world| async move {
        let mut short = config(2);
        short.link.peer_memory = 24 * MIB;
        let mut a = side(&world.host("a"), config(1), |_| {}).await;
        let mut b = side(&world.host("b"), short, |_| {}).await;
        let to = a.dial(&b).await;
        let mut reading = tokio::task::JoinSet::new();
        for (tx, mut rx) in a.tx.drain(..8).zip(b.rx.drain(..8)) {
            tokio::spawn(async move {
                for n in 0..5 {
                    tx.send_wait(to, Bytes::from(vec![n; 4 * MIB])).await.unwrap();
                }
            });
            reading.spawn(async move {
                for n in 0..5 {
                    let (_, message) = time::timeout(secs(60), rx.recv()).await.expect("it waits for ever").unwrap();
                    assert!(message.len() == 4 * MIB && message[0] == n);
                }
            });
        }
        reading.join_all().await;
        let memory = b.node.status().await.memory;
        println!("{memory:?}");
        assert!(memory.peak <= 24 * MIB && memory.waits > 0, "{memory:?}");
        assert_eq!(a.node.peers(), [to]);
    });
}

#[test]
fn who_takes_a_message_slowly_by_a_rate_of_its_own_blames_nobody_for_it() {
    scenario(1, secs(1_000), |world| async move {
        let slow = |channel: &mut Channel| channel.receive_rate = (channel.id == 1).then(|| Rate::new(50_000));
        let mut short = config(2);
        short.link.peer_memory = 24 * MIB;
        let mut a = side(&world.host("a"), config(1), |_| {}).await;
        let mut b = side(&world.host("b"), short, slow).await;
        let to = a.dial(&b).await;
        for tx in &a.tx[1..3] {
            assert_eq!(tx.send(&To::Peer(to), Bytes::from(vec![0; 16 * MIB])).queued, 1);
            time::sleep(secs(1)).await; // the second one waits for the memory of the first
        }
        let start = Instant::now();
        b.rx[1].recv().await.unwrap();
        // A peer that took so long by itself would have had 30 s and as long as 16 MiB take at 512 kbit/s.
        assert!(start.elapsed() > secs(30 + 256), "{:?}", start.elapsed());
        b.rx[2].recv().await.unwrap();
        assert!(b.node.status().await.memory.waits > 0);
        assert_eq!(a.node.peers(), [to]);
    });
}

#[test]
fn a_peer_whose_program_leaves_all_memory_to_what_it_does_not_read_is_given_up() {
    scenario(1, secs(300), |world| async move {
        let endless = |channel: &mut Channel| (channel.queue, channel.queue_bytes) = (1 << 20, 1 << 30);
        let mut short = config(2);
        short.link.peer_memory = 24 * MIB;
        let mut a = side(&world.host("a"), config(1), |_| {}).await;
        let b = side(&world.host("b"), short, endless).await;
        let to = a.dial(&b).await;
        let tx = a.tx[1].clone();
        tokio::spawn(async move { while tx.send_wait(to, Bytes::from(vec![1; 100_000])).await.is_ok() {} });
        assert_eq!(a.down().await, Gone::Unread);
        assert!(b.node.status().await.memory.waits > 0);
    });
}

#[test]
fn a_channel_whose_queue_may_take_all_memory_stops_no_other_channel_while_nobody_reads_it() {
    // Messages that come in pieces, and messages of which many come at once.
    [100_000, 1_000].into_iter().for_each(nobody_reads);
}

fn nobody_reads(len: usize) {
    scenario(1, secs(300), move |world| async move {
        let endless = |channel: &mut Channel| {
            if channel.id == 1 {
                (channel.queue, channel.queue_bytes) = (1 << 20, 1 << 30);
            }
        };
        let mut a = side(&world.host("a"), config(1), |_| {}).await;
        let mut b = side(&world.host("b"), config(2), endless).await;
        let to = a.dial(&b).await;
        let (mut sent, mut moved) = (0, Instant::now());
        while moved.elapsed() < secs(5) {
            let queued = a.tx[1].send(&To::Peer(to), Bytes::from(vec![1; len])).queued;
            if queued == 0 {
                time::sleep(ms(10)).await;
            } else {
                (sent, moved) = (sent + queued, Instant::now());
            }
        }
        let memory = b.node.status().await.memory;
        assert!(memory.used > 50 * MIB && memory.peak <= 64 * MIB && memory.waits > 0, "{memory:?}");
        let beside = slowest(&a.tx[0], &mut b.rx[0], to, secs(60)).await;
        assert!(beside < ms(120), "{beside:?}");
        for _ in 0..sent {
            time::timeout(secs(10), b.rx[1].recv()).await.expect("a message is lost").unwrap();
        }
        assert_eq!(a.node.peers(), [to], "a program that does not read is not the peer's fault");
    });
}

#[test]
fn tiny_messages_of_which_more_come_than_are_paid_for_at_once_all_arrive_in_their_order() {
    scenario(1, secs(60), |world| async move {
        const MESSAGES: usize = 20_000;
        let mut a = side(&world.host("a"), config(1), |_| {}).await;
        let mut b = side(&world.host("b"), config(2), |_| {}).await;
        let to = a.dial(&b).await;
        let tx = a.tx[0].clone();
        let sending = tokio::spawn(async move {
            for n in 0..MESSAGES {
                tx.send_wait(to, Bytes::copy_from_slice(&[n as u8])).await.unwrap();
            }
        });
        time::sleep(secs(1)).await; // meanwhile the channel's queue is full, and the rest waits inside QUIC
        for n in 0..MESSAGES {
            let (_, message) = time::timeout(secs(5), b.rx[0].recv()).await.expect("the next one is lost").unwrap();
            assert_eq!(message[..], [n as u8], "message {n}");
        }
        sending.await.unwrap();
    });
}
