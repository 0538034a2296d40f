//! Channels, peers and streams that do not disturb each other.

use std::{
    io::ErrorKind,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use byway::{Channel, Malformed, Message, Node, PeerId, Peers, Protocol, Receiver, Sender, Streams, To};
use byway_sim::{Host, Link, Loss};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{self, Instant},
};

use crate::common::{config, ms, peer, scenario, secs};

/// A node with two channels of one protocol, and one of another.
struct Three {
    node: Node,
    tx: [Sender; 3],
    rx: [Receiver; 3],
    peers: Peers,
    _second: Peers,
}

async fn three(host: &Host, n: u8) -> Three {
    let node = Node::bind_on(host.net(), config(n)).await.unwrap();
    let (mut one, mut two) = (Protocol::new("one", 1..=1), Protocol::new("two", 1..=1));
    let (first, second, third) =
        (one.channel(Channel::new(1)), one.channel(Channel::new(2)), two.channel(Channel::new(1)));
    let (peers, _second) = (node.register(one).unwrap(), node.register(two).unwrap());
    Three { node, tx: [first.0, second.0, third.0], rx: [first.1, second.1, third.1], peers, _second }
}

/// Sends `count` small messages, one each 50 ms; how long the slowest but one percent took.
async fn p99(tx: &Sender, rx: &mut Receiver, to: PeerId, count: usize) -> Duration {
    let tx = tx.clone();
    let start = Instant::now();
    let sending = tokio::spawn(async move {
        for _ in 0..count {
            let stamp = start.elapsed().as_micros() as u64;
            assert_eq!(tx.send(&To::Peer(to), Bytes::copy_from_slice(&stamp.to_be_bytes())).queued, 1);
            time::sleep(ms(50)).await;
        }
    });
    let mut took = Vec::new();
    for n in 0..count {
        let received = time::timeout(secs(10), rx.recv()).await.unwrap_or_else(|_| panic!("no message {n}"));
        let sent = u64::from_be_bytes(received.unwrap().1[..].try_into().unwrap());
        took.push(start.elapsed() - Duration::from_micros(sent));
    }
    sending.await.unwrap();
    took.sort();
    took[count * 99 / 100 - 1]
}

#[test]
fn a_reader_that_stalls_for_a_minute_disturbs_no_other_channel() {
    scenario(1, secs(600), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let line = Link::standard().rate(100_000_000);
        host_a.set_link(line.clone());
        host_b.set_link(line);
        host_a.edit_link(|link| link.loss = Loss::Random(0.01));
        let (mut a, mut b) = (three(&host_a, 1).await, three(&host_b, 2).await);
        a.node.dial(b.node.ticket()).await.unwrap();
        a.peers.next().await;
        let to = b.node.id();
        time::sleep(secs(2)).await;
        let [stalled, second, third] = &mut b.rx;
        let calm = [p99(&a.tx[1], second, to, 600).await, p99(&a.tx[2], third, to, 600).await];
        // Nobody reads the first channel, until its queues are full all the way and nothing moves any more.
        let (mut sent, mut moved) = (0, Instant::now());
        while moved.elapsed() < secs(5) {
            let queued = a.tx[0].send(&To::Peer(to), Bytes::from(vec![1; 4_096])).queued;
            if queued == 0 {
                time::sleep(ms(10)).await;
            } else {
                (sent, moved) = (sent + queued, Instant::now());
            }
        }
        let start = Instant::now();
        let (second, third) = tokio::join!(p99(&a.tx[1], second, to, 1_200), p99(&a.tx[2], third, to, 1_200));
        assert!(start.elapsed() >= secs(60));
        println!("p99: calm {calm:?}, stalled {:?}", [second, third]);
        assert!(second <= calm[0] * 2 && third <= calm[1] * 2, "calm {calm:?}, stalled {:?}", [second, third]);
        // It reads again, and nothing was lost.
        let mut read = 0;
        while let Ok(Some((_, message))) = time::timeout(secs(2), stalled.recv()).await {
            assert_eq!(message.len(), 4_096);
            read += 1;
        }
        assert_eq!(read, sent);
        assert_eq!(a.node.peers(), [to], "the connection did not last");
    });
}

#[test]
fn a_flooding_peer_starves_no_quiet_one() {
    scenario(1, secs(300), |world| async move {
        let mut server = peer(&world.host("server"), config(1)).await;
        let [mut flood, mut quiet] =
            [peer(&world.host("flood"), config(2)).await, peer(&world.host("quiet"), config(3)).await];
        for client in [&mut flood, &mut quiet] {
            client.node.dial(server.node.ticket()).await.unwrap();
            client.up().await;
        }
        let (to, tx) = (server.id(), flood.tx.clone());
        let flooding = tokio::spawn(async move {
            loop {
                tx.send_wait(to, Bytes::from(vec![0; 100])).await.unwrap();
            }
        });
        time::sleep(secs(2)).await; // the queues are full
        let (tx, id) = (quiet.tx.clone(), quiet.id());
        let start = Instant::now();
        let asking = tokio::spawn(async move {
            for _ in 0..200 {
                let stamp = start.elapsed().as_micros() as u64;
                assert_eq!(tx.send(&To::Peer(to), Bytes::copy_from_slice(&stamp.to_be_bytes())).queued, 1);
                time::sleep(ms(50)).await;
            }
        });
        // The server is slower than the flood: a thousand messages a second.
        let (mut worst, mut seen, mut others) = (Duration::ZERO, 0, 0);
        while seen < 200 {
            let (from, message) = server.rx.recv().await.unwrap();
            time::sleep(ms(1)).await;
            if from == id {
                let sent = u64::from_be_bytes(message[..].try_into().unwrap());
                worst = worst.max(start.elapsed() - Duration::from_micros(sent));
                seen += 1;
            } else {
                others += 1;
            }
        }
        asking.await.unwrap();
        flooding.abort();
        println!("the slowest of 200 took {worst:?}, beside {others} of the flood");
        assert!(worst < ms(200), "{worst:?}");
        assert!(others > 1_000, "the flood is not starved either: {others}");
    });
}

/// A number, of which the test counts how often it is encoded.
#[derive(Debug, PartialEq)]
struct Number(u64);

static ENCODED: AtomicUsize = AtomicUsize::new(0);

impl Message for Number {
    fn encode(&self) -> Bytes {
        ENCODED.fetch_add(1, Ordering::Relaxed);
        Bytes::copy_from_slice(&self.0.to_be_bytes())
    }

    fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let bytes = bytes[..].try_into().map_err(|_| Malformed("a number has eight bytes"))?;
        Ok(Number(u64::from_be_bytes(bytes)))
    }
}

#[test]
fn a_value_for_all_is_encoded_once_and_a_malformed_one_costs_only_itself() {
    scenario(1, secs(60), |world| async move {
        let numbers = async |n: u8| {
            let node = Node::bind_on(world.host("host").net(), config(n)).await.unwrap();
            let mut one = Protocol::new("numbers", 1..=1);
            let channel = one.typed::<Number>(Channel::new(1));
            let peers = node.register(one).unwrap();
            (node, channel, peers)
        };
        let (hub, (tx, mut rx), mut peers) = numbers(1).await;
        let mut spokes = Vec::new();
        for n in 2..=4 {
            spokes.push(numbers(n).await);
        }
        for (spoke, ..) in &spokes {
            hub.dial(spoke.ticket()).await.unwrap();
            peers.next().await.unwrap();
        }
        assert_eq!(tx.send(&To::All, &Number(7)).queued, 3);
        assert_eq!(ENCODED.load(Ordering::Relaxed), 1);
        for (_, (_, received), _) in &mut spokes {
            assert_eq!(received.recv().await.unwrap(), (hub.id(), Ok(Number(7))));
        }

        let node = Node::bind_on(world.host("host").net(), config(5)).await.unwrap();
        let mut bytes = Protocol::new("numbers", 1..=1);
        let (raw, _unread) = bytes.channel(Channel::new(1));
        let _peers = node.register(bytes).unwrap();
        node.dial(hub.ticket()).await.unwrap();
        raw.send_wait(hub.id(), "seven".into()).await.unwrap();
        raw.send_wait(hub.id(), Number(8).encode()).await.unwrap();
        assert_eq!(rx.recv().await.unwrap(), (node.id(), Err(Malformed("a number has eight bytes"))));
        assert_eq!(rx.recv().await.unwrap(), (node.id(), Ok(Number(8))));
    });
}

/// A node that takes byte streams.
async fn streams(host: &Host, n: u8) -> (Node, Peers, Streams) {
    let node = Node::bind_on(host.net(), config(n)).await.unwrap();
    let mut pipe = Protocol::new("pipe", 1..=1);
    let streams = pipe.streams();
    let peers = node.register(pipe).unwrap();
    (node, peers, streams)
}

#[test]
fn many_streams_end_half_by_half_or_are_reset_as_their_users_say() {
    scenario(1, secs(300), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        host_a.edit_link(|link| link.loss = Loss::Random(0.01));
        let (a, mut peers, _unused) = streams(&host_a, 1).await;
        let (b, _peers, mut accepted) = streams(&host_b, 2).await;
        a.dial(b.ticket()).await.unwrap();
        peers.next().await;
        let serving = tokio::spawn(async move {
            while let Some((_, stream)) = accepted.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    let mut bytes = Vec::new();
                    write.write_all(b"hello").await.unwrap();
                    match read.read_to_end(&mut bytes).await {
                        Ok(_) if bytes.first() == Some(&1) => write.reset(7),
                        Ok(count) => {
                            write.write_all(&(count as u64).to_be_bytes()).await.unwrap();
                            write.shutdown().await.unwrap();
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                            write.write_all(b"reset").await.unwrap();
                            write.shutdown().await.unwrap();
                        }
                    }
                });
            }
        });
        let (handle, to) = (peers.handle(), b.id());
        let mut users = tokio::task::JoinSet::new();
        for n in 0..300_usize {
            let handle = handle.clone();
            users.spawn(async move {
                let (mut read, mut write) = handle.open(to).await.unwrap().into_split();
                let len = 1 + n * 97;
                write.write_all(&vec![u8::from(n % 3 == 1); len]).await.unwrap();
                let mut answer = Vec::new();
                // A reset overtakes everything, also the name of the protocol: let it be there first.
                read.read_exact(&mut [0; 5]).await.unwrap();
                match n % 3 {
                    0 => {
                        write.shutdown().await.unwrap();
                        read.read_to_end(&mut answer).await.unwrap();
                        assert_eq!(answer, (len as u64).to_be_bytes());
                    }
                    1 => {
                        write.shutdown().await.unwrap();
                        let error = read.read_to_end(&mut answer).await.unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                    }
                    _ => {
                        write.reset(9);
                        read.read_to_end(&mut answer).await.unwrap();
                        assert_eq!(answer, b"reset");
                    }
                }
            });
        }
        while let Some(user) = users.join_next().await {
            user.unwrap();
        }
        assert_eq!(a.peers(), [to]);
        serving.abort();
    });
}
