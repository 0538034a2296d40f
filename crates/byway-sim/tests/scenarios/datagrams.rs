//! Channels of datagrams: lost with their packets and never doubled, in a fair share of the line, in nobody's way.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use byway::{
    Channel, Class, Delivery, LARGEST_DATAGRAM, MAX_DATAGRAM, Node, PeerId, Peers, Protocol, Rate, Receiver, Refusal,
    RegisterError, SendError, Sender, To,
};
use byway_proto::wire::{Kind, classify};
use byway_sim::{Host, Link, Packet, Verdict, World};
use tokio::{
    task::JoinHandle,
    time::{self, Instant},
};

use crate::common::{config, ms, scenario, secs};

/// A node with some channels of one protocol.
struct Side<const N: usize> {
    node: Node,
    tx: [Sender; N],
    rx: [Receiver; N],
    peers: Peers,
}

async fn side<const N: usize>(host: &Host, n: u8, channels: [Channel; N]) -> Side<N> {
    let node = Node::bind_on(host.net(), config(n)).await.unwrap();
    let mut game = Protocol::new("game", 1..=1);
    let (tx, rx): (Vec<_>, Vec<_>) = channels.into_iter().map(|channel| game.channel(channel)).unzip();
    let peers = node.register(game).unwrap();
    Side { node, tx: tx.try_into().unwrap(), rx: rx.try_into().unwrap(), peers }
}

/// A channel of datagrams.
fn datagrams(id: u32) -> Channel {
    Channel::new(id).delivery(Delivery::Datagram)
}

/// The access link of both nodes: 20 Mbit/s, 25 ms.
fn line() -> Link {
    Link::standard().rate(20_000_000)
}

/// Two connected nodes, and the id of the second.
async fn pair<const N: usize>(hosts: [&Host; 2], link: Link, channels: [Channel; N]) -> (Side<N>, Side<N>, PeerId) {
    hosts.into_iter().for_each(|host| host.set_link(link.clone()));
    let mut a = side(hosts[0], 1, channels.clone()).await;
    let b = side(hosts[1], 2, channels).await;
    a.node.dial(b.node.ticket()).await.unwrap();
    a.peers.next().await;
    let to = b.node.id();
    (a, b, to)
}

fn hosts(world: &World) -> [Host; 2] {
    ["a", "b"].map(|name| world.host(name))
}

#[test]
fn what_is_sent_before_the_first_ping_is_answered_arrives() {
    scenario(1, secs(60), |world| async move {
        let hosts = hosts(&world);
        let start = Instant::now();
        let deaf = world.rule(move |packet: &Packet<'_>| match classify(packet.payload) {
            Kind::Probe if start.elapsed() < secs(2) => Verdict::Drop,
            _ => Verdict::Pass,
        });
        let (a, mut b, to) = pair(hosts.each_ref(), line(), [datagrams(1)]).await;
        for _ in 0..500 {
            assert_eq!(a.tx[0].send(&To::Peer(to), Bytes::from(vec![0; 1_000])).queued, 1);
        }
        let mut arrived = 0;
        while let Ok(Some(_)) = time::timeout(secs(1), b.rx[0].recv()).await {
            arrived += 1;
        }
        assert_eq!(arrived, 500);
        deaf.lift();
    });
}

#[test]
fn a_message_keeps_nothing_alive_of_what_was_received_with_it() {
    scenario(1, secs(60), |world| async move {
        let hosts = hosts(&world);
        let (a, mut b, to) = pair(hosts.each_ref(), line(), [datagrams(1)]).await;
        assert_eq!(a.tx[0].send(&To::Peer(to), "brief".into()).queued, 1);
        let (_, message) = time::timeout(secs(5), b.rx[0].recv()).await.expect("nothing arrives").unwrap();
        assert_eq!(message[..], *b"brief");
        let memory = message.try_into_mut().expect("nobody else has a part of it");
        assert_eq!(memory.capacity(), 5);
    });
}

/// What arrived of numbered messages of 1,000 bytes.
#[derive(Debug, Default)]
struct Arrived {
    numbers: Vec<u64>,
    took: Vec<Duration>,
}

impl Arrived {
    fn p99(&mut self) -> Duration {
        self.took.sort();
        self.took[self.took.len() * 99 / 100]
    }
}

/// Sends `count` of them, one each `every`, and waits for the last ones.
async fn numbered(tx: &Sender, rx: &mut Receiver, to: PeerId, count: u64, every: Duration) -> Arrived {
    let (tx, start) = (tx.clone(), Instant::now());
    let sending = tokio::spawn(async move {
        for number in 0..count {
            let mut message = vec![0; 1_000];
            message[..8].copy_from_slice(&number.to_be_bytes());
            message[8..16].copy_from_slice(&(start.elapsed().as_micros() as u64).to_be_bytes());
            assert_eq!(tx.send(&To::Peer(to), message.into()).queued, 1);
            time::sleep(every).await;
        }
    });
    let mut arrived = Arrived::default();
    while let Ok(Some((_, message))) = time::timeout(secs(2), rx.recv()).await {
        let number = |at: usize| u64::from_be_bytes(message[at..at + 8].try_into().unwrap());
        assert_eq!(message.len(), 1_000);
        arrived.numbers.push(number(0));
        arrived.took.push(start.elapsed() - Duration::from_micros(number(8)));
    }
    sending.await.unwrap();
    arrived
}

/// Sends as much as is taken, for ever.
fn saturate(tx: &Sender, to: PeerId, len: usize) -> JoinHandle<()> {
    let tx = tx.clone();
    tokio::spawn(async move {
        loop {
            tx.send_wait(to, vec![0; len].into()).await.unwrap();
        }
    })
}

/// Bytes that arrive until `end`.
async fn received(rx: &mut Receiver, end: Instant) -> usize {
    let mut bytes = 0;
    while let Ok(Some((_, message))) = time::timeout_at(end, rx.recv()).await {
        bytes += message.len();
    }
    bytes
}

#[test]
fn datagrams_are_lost_with_their_packets_only_and_never_doubled() {
    scenario(1, secs(300), |world| async move {
        let link = line().jitter(ms(5), true);
        let hosts = hosts(&world);
        let channels = [datagrams(1).share(Class::Interactive, 1), Channel::new(2)];
        let (a, mut b, to) = pair(hosts.each_ref(), link, channels).await;
        let lost = Arc::new(AtomicU64::new(0));
        let (count, mut seen, ids) = (Arc::clone(&lost), 0u64, hosts.map(|host| host.id()));
        world.rule(move |packet: &Packet<'_>| {
            if packet.sender != ids[0] || packet.receiver != Some(ids[1]) {
                return Verdict::Pass;
            }
            seen += 1;
            if !seen.is_multiple_of(29) {
                return Verdict::Pass;
            }
            count.fetch_add(1, Ordering::Relaxed);
            Verdict::Drop
        });
        let [datagrams, bulk] = &mut b.rx;
        let saturating = saturate(&a.tx[1], to, 16 << 10);
        let reading = async {
            loop {
                bulk.recv().await.unwrap();
            }
        };
        let arrived = tokio::select! {
            arrived = numbered(&a.tx[0], datagrams, to, 5_000, ms(4)) => arrived,
            () = reading => unreachable!("it reads for ever"),
        };
        saturating.abort();
        let distinct: BTreeSet<u64> = arrived.numbers.iter().copied().collect();
        assert_eq!(distinct.len(), arrived.numbers.len(), "a datagram came twice");
        let (missing, lost) = (5_000 - distinct.len() as u64, lost.load(Ordering::Relaxed));
        println!("{missing} datagrams missing, {lost} packets lost, in order: {}", arrived.numbers.is_sorted());
        assert!(missing > 50 && missing <= lost, "{missing} datagrams missing, {lost} packets lost");
        assert!(!arrived.numbers.is_sorted(), "a datagram that was overtaken did not wait for its elders");
    });
}

#[test]
fn bulk_beside_them_does_not_delay_datagrams() {
    scenario(1, secs(300), |world| async move {
        // A queue on the way may hold what the congestion control tries out: 15 ms of it.
        let fast = line().delay(ms(5)).rate(100_000_000);
        let channels = [datagrams(1).share(Class::Interactive, 1), Channel::new(2), datagrams(3)];
        let (a, mut b, to) = pair(hosts(&world).each_ref(), fast, channels).await;
        let [datagrams, bulk, bulk_datagrams] = &mut b.rx;
        let calm = numbered(&a.tx[0], datagrams, to, 1_000, ms(20)).await.p99();
        let saturating = [saturate(&a.tx[1], to, 16 << 10), saturate(&a.tx[2], to, MAX_DATAGRAM)];
        let end = Instant::now() + secs(25);
        let (mut beside, one, other) = tokio::join!(
            numbered(&a.tx[0], datagrams, to, 1_000, ms(20)),
            received(bulk, end),
            received(bulk_datagrams, end)
        );
        let bytes = one + other;
        saturating.iter().for_each(JoinHandle::abort);
        println!("p99 {calm:?} calm, {:?} beside {bytes} bytes of bulk", beside.p99());
        assert!(bytes > 25 * 10_000_000, "bulk fills the line: {bytes}");
        assert!(beside.p99() <= calm + ms(15), "{:?} beside bulk, {calm:?} without", beside.p99());
        assert_eq!(beside.numbers.len(), 1_000);
    });
}

#[test]
fn bulk_datagrams_take_their_weight_of_the_line_and_no_more() {
    scenario(1, secs(300), |world| async move {
        let channels = [datagrams(1).share(Class::Bulk, 4), Channel::new(2).share(Class::Bulk, 12)];
        let (a, mut b, to) = pair(hosts(&world).each_ref(), line(), channels).await;
        let saturating = [saturate(&a.tx[0], to, MAX_DATAGRAM), saturate(&a.tx[1], to, 16 << 10)];
        let [datagrams, stream] = &mut b.rx;
        let end = Instant::now() + secs(5);
        tokio::join!(received(datagrams, end), received(stream, end));
        let end = Instant::now() + secs(20);
        let (few, many) = tokio::join!(received(datagrams, end), received(stream, end));
        let share = few as f64 / (few + many) as f64;
        println!("{few} bytes of datagrams beside {many}: {:.1} %", 100.0 * share);
        assert!((share - 0.25).abs() < 0.0125, "{share} instead of a quarter");
        assert!(few + many > 20 * 2_000_000, "{} bytes in 20 s", few + many);
        // Nobody reads the stream any more: what is left of the line is theirs.
        received(datagrams, Instant::now() + secs(10)).await;
        let alone = received(datagrams, Instant::now() + secs(10)).await;
        assert!(alone > 10 * 2_000_000, "{alone} bytes in 10 s beside a stream that nobody reads");
        saturating.iter().for_each(JoinHandle::abort);
    });
}

#[test]
fn what_finds_no_room_is_refused_here_and_counted_there() {
    scenario(1, secs(60), |world| async move {
        let (a, mut b, to) = pair(hosts(&world).each_ref(), line(), [datagrams(1).queue(8), Channel::new(2)]).await;
        let sent: usize = (0..100).map(|_| a.tx[0].send(&To::Peer(to), "x".into()).queued).sum();
        assert_eq!(sent, 8, "the newest are refused");
        time::sleep(secs(1)).await;
        for _ in 0..100 {
            assert_eq!(a.tx[0].send(&To::Peer(to), "x".into()).full + a.tx[1].send(&To::Peer(to), "y".into()).full, 0);
            time::sleep(ms(20)).await;
        }
        time::sleep(secs(1)).await;
        let dropped = b.node.status().await.dropped;
        assert!(dropped.contains(&("channel_full", 100)), "{dropped:?}");
        for _ in 0..8 {
            assert_eq!(b.rx[0].recv().await.unwrap().1, "x");
        }
        assert!(b.rx[0].try_recv().is_none());
        for _ in 0..100 {
            b.rx[1].recv().await.unwrap();
        }
    });
}

#[test]
fn a_message_that_fits_no_packet_is_refused_with_the_limit() {
    scenario(1, secs(60), |world| async move {
        let mut large = datagrams(1);
        assert_eq!(large.max_message, MAX_DATAGRAM);
        large = large.max_message(LARGEST_DATAGRAM);
        let (a, mut b, to) = pair(hosts(&world).each_ref(), line(), [large.clone()]).await;
        let wait = |len: usize| a.tx[0].send_wait(to, Bytes::from(vec![1; len]));
        let error = wait(LARGEST_DATAGRAM + 1).await.unwrap_err();
        assert_eq!(error, SendError::TooLarge { len: LARGEST_DATAGRAM + 1, max: LARGEST_DATAGRAM });
        assert_eq!(a.tx[0].send(&To::All, vec![0; LARGEST_DATAGRAM + 1].into()).full, 1);
        wait(LARGEST_DATAGRAM).await.unwrap();
        assert_eq!(b.rx[0].recv().await.unwrap().1.len(), LARGEST_DATAGRAM);

        let mut other = Protocol::new("other", 1..=1);
        let _unused = other.channel(large.max_message(LARGEST_DATAGRAM + 1));
        assert!(matches!(a.node.register(other), Err(RegisterError::Channel { channel: 1, .. })));
    });
}

#[test]
fn datagrams_that_fit_no_packet_any_more_by_their_turn_are_dropped_and_counted() {
    scenario(1, secs(120), |world| async move {
        let large = |id| datagrams(id).max_message(LARGEST_DATAGRAM);
        let mut slow = large(1);
        slow.send_rate = Some(Rate::new(2_000));
        let (a, _b, to) = pair(hosts(&world).each_ref(), line(), [slow, large(2)]).await;
        let send = |channel: usize, len: usize| a.tx[channel].send(&To::Peer(to), vec![0; len].into()).queued;
        assert_eq!(send(1, LARGEST_DATAGRAM), 1);
        time::sleep(secs(2)).await; // the route has shown that it carries the largest packets
        assert_eq!((0..100).map(|_| send(0, LARGEST_DATAGRAM)).sum::<usize>(), 100);
        let _narrow = world.rule(|packet: &Packet<'_>| match packet.payload.len() {
            ..=1_250 => Verdict::Pass,
            _ => Verdict::Drop,
        });
        let start = Instant::now();
        while send(1, LARGEST_DATAGRAM) == 1 {
            assert!(start.elapsed() < secs(30), "QUIC does not find out that its packets are too large");
            time::sleep(ms(20)).await;
            send(1, 10);
            time::sleep(ms(20)).await;
        }
        time::sleep(secs(5)).await;
        let stats = a.node.peer(to).unwrap().stats().await;
        let slow = stats.channels.iter().find(|it| it.channel == Some(1)).unwrap();
        assert!(matches!(slow.dropped[..], [("outgrown", 1..)]), "{:?}", slow.dropped);
    });
}

#[test]
fn sides_that_deliver_a_channel_differently_do_not_speak_its_protocol() {
    scenario(1, secs(60), |world| async move {
        let mut nodes = Vec::new();
        for (n, delivery) in [(1, Delivery::Datagram), (2, Delivery::Stream)] {
            let node = Node::bind_on(world.host("host").net(), config(n)).await.unwrap();
            let mut chat = Protocol::new("chat", 1..=1).required();
            let channel = chat.channel(Channel::new(7).delivery(delivery));
            let peers = node.register(chat).unwrap();
            nodes.push((node, channel, peers));
        }
        let error = nodes[0].0.dial(nodes[1].0.ticket()).await.unwrap_err().to_string();
        assert!(error.contains("channel 7 of protocol \"chat\" is delivered as datagrams by us"), "{error}");
        let refusal =
            Refusal::OtherDelivery { name: "chat".into(), channel: 7, datagrams_at: byway_proto::hello::Side::Ours };
        assert!(error.contains(&refusal.to_string()), "{error}");
    });
}
