//! What was queued before a connection is ended on purpose still arrives, and nobody can hold its end up.

use bytes::Bytes;
use byway::{Channel, Delivery, Gone, Node, PeerEvent, PeerId, Peers, Protocol, Receiver, Sender, Streams, To};
use byway_sim::{Host, Link, Loss, World};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{self, Instant},
};

use crate::common::{config, ms, scenario, secs};

/// A node with a channel, a channel of datagrams and byte streams.
struct Side {
    node: Node,
    tx: [Sender; 2],
    rx: [Receiver; 2],
    peers: Peers,
    streams: Streams,
}

async fn side(host: &Host, n: u8) -> Side {
    let node = Node::bind_on(host.net(), config(n)).await.unwrap();
    let mut one = Protocol::new("one", 1..=1);
    let first = one.channel(Channel::new(1).queue(4_000));
    let second = one.channel(Channel::new(2).delivery(Delivery::Datagram));
    let streams = one.streams();
    let peers = node.register(one).unwrap();
    Side { node, tx: [first.0, second.0], rx: [first.1, second.1], peers, streams }
}

/// Two connected nodes on a line of 20 Mbit/s that loses 1 %.
async fn pair(world: &World) -> (Side, Side, PeerId) {
    pair_with(world, Loss::Random(0.01)).await
}

async fn pair_with(world: &World, loss: Loss) -> (Side, Side, PeerId) {
    let hosts = ["a", "b"].map(|name| world.host(name));
    for host in &hosts {
        host.set_link(Link::standard().rate(20_000_000));
        host.edit_link(|link| link.loss = loss);
    }
    let (mut a, mut b) = (side(&hosts[0], 1).await, side(&hosts[1], 2).await);
    a.node.dial(b.node.ticket()).await.unwrap();
    a.peers.next().await;
    b.peers.next().await;
    let to = b.node.id();
    (a, b, to)
}

/// Queues 2 MB: the line needs 0.8 s for it.
fn queue(tx: &Sender, to: PeerId) {
    for number in 0..2_000_u64 {
        let mut message = vec![0; 1_000];
        message[..8].copy_from_slice(&number.to_be_bytes());
        assert_eq!(tx.send(&To::Peer(to), message.into()).queued, 1);
    }
}

/// Reads numbered messages until none comes for a second; how many there were.
async fn count(rx: &mut Receiver) -> u64 {
    let mut count = 0;
    while let Ok(Some((_, message))) = time::timeout(secs(1), rx.recv()).await {
        assert_eq!(u64::from_be_bytes(message[..8].try_into().unwrap()), count, "a message is lost or out of order");
        count += 1;
    }
    count
}

#[test]
fn what_was_queued_before_a_disconnect_arrives_and_then_the_reason() {
    scenario(1, secs(60), |world| async move {
        let (a, mut b, to) = pair(&world).await;
        queue(&a.tx[0], to);
        assert!(a.node.disconnect(to, 7, "that was all"));
        assert_eq!(a.tx[0].send(&To::Peer(to), "late".into()).absent, 1, "nothing more goes in");
        assert_eq!(count(&mut b.rx[0]).await, 2_000);
        let Some(PeerEvent::Down { reason, .. }) = b.peers.next().await else { panic!("no end") };
        assert_eq!(reason, Gone::Dismissed { code: 7, why: "that was all".into() });
        assert!(a.node.peers().is_empty());
    });
}

#[test]
fn what_was_queued_before_a_close_arrives() {
    scenario(1, secs(60), |world| async move {
        let (a, mut b, to) = pair(&world).await;
        let mut stream = a.peers.open(to).await.unwrap();
        stream.write_all(&[7; 100_000]).await.unwrap();
        stream.shutdown().await.unwrap();
        queue(&a.tx[0], to);
        let start = Instant::now();
        a.node.close().await;
        assert!(start.elapsed() < secs(3), "{:?}", start.elapsed());
        let mut bytes = Vec::new();
        b.streams.accept().await.unwrap().1.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes.len(), 100_000);
        assert_eq!(count(&mut b.rx[0]).await, 2_000);
        assert!(matches!(b.peers.next().await, Some(PeerEvent::Down { reason: Gone::Closed, .. })));
    });
}

#[test]
fn datagrams_that_were_queued_leave_before_the_end() {
    scenario(1, secs(60), |world| async move {
        let (a, mut b, to) = pair_with(&world, Loss::Random(0.0)).await;
        for _ in 0..500 {
            assert_eq!(a.tx[1].send(&To::Peer(to), Bytes::from(vec![0; 1_000])).queued, 1);
        }
        a.node.disconnect(to, 0, "");
        let mut arrived = 0;
        while let Ok(Some(_)) = time::timeout(secs(1), b.rx[1].recv()).await {
            arrived += 1;
        }
        assert_eq!(arrived, 500);
    });
}

#[test]
fn a_peer_that_does_not_read_holds_a_close_up_for_the_deadline_and_no_longer() {
    scenario(1, secs(120), |world| async move {
        let (a, _b, to) = pair(&world).await;
        let mut moved = Instant::now();
        while moved.elapsed() < secs(3) {
            match a.tx[0].send(&To::Peer(to), Bytes::from(vec![0; 10_000])).queued {
                1 => moved = Instant::now(),
                _ => time::sleep(ms(10)).await,
            }
        }
        let start = Instant::now();
        a.node.close().await;
        println!("closed after {:?}", start.elapsed());
        assert!((secs(2)..secs(4)).contains(&start.elapsed()), "{:?}", start.elapsed());
        let again = Instant::now();
        a.node.close().await;
        assert!(again.elapsed() < ms(10));
    });
}

/// Sends numbered messages, of which a queue that nobody reads holds 420, and QUIC's window almost as many.
async fn send_large(tx: &Sender, to: PeerId, count: u64) {
    for number in 0..count {
        let mut message = vec![0; 10_000];
        message[..8].copy_from_slice(&number.to_be_bytes());
        tx.send_wait(to, message.into()).await.unwrap();
    }
    time::sleep(secs(3)).await; // all of it is at the peer
}

#[test]
fn a_program_that_is_behind_when_its_peer_leaves_has_ten_seconds_and_keeps_what_its_queue_holds() {
    [(9, 750), (11, 420)].into_iter().for_each(|(pause, expected)| {
        scenario(1, secs(60), move |world| async move {
            let (a, mut b, to) = pair_with(&world, Loss::Random(0.0)).await;
            send_large(&a.tx[0], to, 750).await;
            assert!(a.node.disconnect(to, 0, ""));
            assert!(matches!(b.peers.next().await, Some(PeerEvent::Down { .. })));
            time::sleep(secs(pause)).await;
            assert_eq!(count(&mut b.rx[0]).await, expected);
        });
    });
}

#[test]
fn what_a_peer_leaves_unread_again_and_again_is_kept_of_its_last_connection_alone() {
    scenario(1, secs(60), |world| async move {
        let (mut a, mut b, to) = pair_with(&world, Loss::Random(0.0)).await;
        send_large(&a.tx[0], to, 750).await;
        assert!(a.node.disconnect(to, 0, ""));
        assert!(matches!(b.peers.next().await, Some(PeerEvent::Down { .. })));
        assert!(matches!(a.peers.next().await, Some(PeerEvent::Down { .. })));
        a.node.dial(b.node.ticket()).await.unwrap();
        for side in [&mut a, &mut b] {
            assert!(matches!(side.peers.next().await, Some(PeerEvent::Up { .. })));
        }
        send_large(&a.tx[0], to, 100).await;
        assert!(a.node.disconnect(to, 0, ""));
        assert!(matches!(b.peers.next().await, Some(PeerEvent::Down { .. })));
        time::sleep(ms(100)).await;
        let mut read = Vec::new();
        while let Ok(Some((_, message))) = time::timeout(secs(1), b.rx[0].recv()).await {
            read.push(u64::from_be_bytes(message[..8].try_into().unwrap()));
        }
        assert_eq!(read, (0..420).chain(0..100).collect::<Vec<u64>>());
    });
}

#[test]
fn where_nothing_is_queued_the_end_does_not_wait() {
    scenario(1, secs(60), |world| async move {
        let (a, mut b, to) = pair(&world).await;
        let start = Instant::now();
        a.node.disconnect(to, 0, "");
        assert!(matches!(b.peers.next().await, Some(PeerEvent::Down { .. })));
        assert!(start.elapsed() < ms(300), "{:?}", start.elapsed());
    });
}
