//! One channel over several streams, where the line holds more than one stream's window.

use std::iter;

use bytes::Bytes;
use byway::{Channel, MAX_CHANNELS, Node, PeerId, Peers, Protocol, Receiver, Sender, To};
use byway_sim::{Host, Link};
use tokio::time::{self, Instant};

use crate::common::{config, scenario, secs};

const MESSAGE: usize = 50_000;

/// What one stream's window of 4 MiB lets through each second at a round trip of 400 ms.
const ONE_STREAM: usize = (4 << 20) * 10 / 4;

struct Two {
    node: Node,
    peers: Peers,
    bulk: (Sender, Receiver),
    other: (Sender, Receiver),
}

async fn two(host: &Host, n: u8) -> Two {
    let node = Node::bind_on(host.net(), config(n)).await.unwrap();
    let mut protocol = Protocol::new("two", 1..=1);
    let (bulk, other) = (protocol.channel(Channel::new(1)), protocol.channel(Channel::new(2)));
    Two { peers: node.register(protocol).unwrap(), node, bulk, other }
}

/// Sends messages that begin with their number, and whose length differs, until the peer is gone.
fn send_numbered(tx: Sender, to: PeerId) {
    tokio::spawn(async move {
        for n in 0_usize.. {
            let mut message = vec![n as u8; MESSAGE + n % 1_000];
            message[..8].copy_from_slice(&(n as u64).to_be_bytes());
            if tx.send_wait(to, Bytes::from(message)).await.is_err() {
                return;
            }
        }
    });
}

/// Takes numbered messages until `end`; how many bytes came.
async fn take_until(rx: &mut Receiver, expected: &mut usize, end: Instant) -> usize {
    let mut bytes = 0;
    while let Ok(Some((_, message))) = time::timeout_at(end, rx.recv()).await {
        assert_eq!(message[..8], (*expected as u64).to_be_bytes(), "lost, doubled or out of order");
        assert_eq!((message.len(), message[8]), (MESSAGE + *expected % 1_000, *expected as u8));
        *expected += 1;
        bytes += message.len();
    }
    bytes
}

#[test]
fn a_channel_fills_a_line_that_holds_more_than_one_streams_window_and_keeps_its_order() {
    scenario(1, secs(120), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        host_a.set_link(Link::standard().delay(crate::common::ms(175)).rate(200_000_000));
        let (mut a, mut b) = (two(&host_a, 1).await, two(&host_b, 2).await);
        a.node.dial(b.node.ticket()).await.unwrap();
        a.peers.next().await;
        let to = b.node.id();
        send_numbered(a.bulk.0.clone(), to);
        let (rx, mut expected) = (&mut b.bulk.1, 0);
        take_until(rx, &mut expected, Instant::now() + secs(8)).await;
        let bytes = take_until(rx, &mut expected, Instant::now() + secs(3)).await;
        assert!(bytes > ONE_STREAM * 3 * 3 / 2, "{bytes} bytes in 3 s");

        // An outage holds all streams up; they go on where they were.
        let outage = world.cut(&host_a, &host_b);
        take_until(rx, &mut expected, Instant::now() + secs(3)).await;
        outage.lift();
        let bytes = take_until(rx, &mut expected, Instant::now() + secs(8)).await;
        assert!(bytes > ONE_STREAM, "{bytes} bytes in 8 s after the outage");

        // Nobody reads it: its windows fill up, and the other channel does not notice.
        time::sleep(secs(5)).await;
        for n in 0..100_u8 {
            assert_eq!(a.other.0.send(&To::Peer(to), Bytes::copy_from_slice(&[n])).queued, 1);
            let (_, message) =
                time::timeout(secs(2), b.other.1.recv()).await.expect("the other channel waits").unwrap();
            assert_eq!(message[..], [n]);
        }
        take_until(rx, &mut expected, Instant::now() + secs(2)).await;
    });
}

/// A node with as many channels as one protocol may have.
async fn many(host: &Host, n: u8) -> (Node, Peers, Vec<(Sender, Receiver)>) {
    let node = Node::bind_on(host.net(), config(n)).await.unwrap();
    let mut protocol = Protocol::new("many", 1..=1);
    let channels = (0..MAX_CHANNELS as u32).map(|id| protocol.channel(Channel::new(id))).collect();
    let peers = node.register(protocol).unwrap();
    (node, peers, channels)
}

#[test]
fn channels_that_carry_little_leave_each_other_streams_where_the_line_holds_many_windows() {
    scenario(1, secs(120), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        host_a.set_link(Link::standard().delay(crate::common::ms(175)).rate(200_000_000));
        let (a, mut peers, sending) = many(&host_a, 1).await;
        let (b, _peers, mut receiving) = many(&host_b, 2).await;
        a.dial(b.ticket()).await.unwrap();
        peers.next().await;
        let to = b.id();
        send_numbered(sending[0].0.clone(), to);
        let mut expected = 0;
        take_until(&mut receiving[0].1, &mut expected, Instant::now() + secs(8)).await;
        for (tx, _) in &sending[1..] {
            assert_eq!(tx.send(&To::Peer(to), "one each".into()).queued, 1);
        }
        for (n, (_, rx)) in iter::zip(1.., &mut receiving[1..]) {
            let came = time::timeout(secs(10), rx.recv()).await;
            assert_eq!(came.unwrap_or_else(|_| panic!("channel {n} has no stream")).unwrap().1, "one each");
        }
    });
}
