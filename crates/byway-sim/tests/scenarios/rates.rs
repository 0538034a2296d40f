//! Rates of channels and of peers, measured by the receiving application over a limited line.

use std::time::Duration;

use bytes::Bytes;
use byway::{
    Channel, Class, Config, Delivery, LinkConfig, Node, PeerId, Peers, Protocol, Rate, RateError, Receiver,
    RegisterError, Sender, Streams, To,
};
use byway_sim::{Host, Link, World};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{self, Instant},
};

use crate::common::{config, ms, scenario, secs};

/// Bytes of a message, and of what stands in front of it on a stream.
const MESSAGE: usize = 1_000;
const FRAMED: usize = MESSAGE + 2;

/// A node with some channels of one protocol.
struct Side<const N: usize> {
    host: Host,
    node: Node,
    tx: [Sender; N],
    rx: [Receiver; N],
    peers: Peers,
    streams: Streams,
}

async fn side<const N: usize>(host: &Host, config: Config, channels: [Channel; N]) -> Side<N> {
    host.set_link(Link::standard().rate(20_000_000));
    let node = Node::bind_on(host.net(), config).await.unwrap();
    let mut one = Protocol::new("one", 1..=1);
    let (tx, rx): (Vec<_>, Vec<_>) = channels.into_iter().map(|channel| one.channel(channel)).unzip();
    let streams = one.streams();
    let peers = node.register(one).unwrap();
    Side { host: host.clone(), node, tx: tx.try_into().unwrap(), rx: rx.try_into().unwrap(), peers, streams }
}

async fn pair<const N: usize>(
    world: &World,
    [of_a, of_b]: [LinkConfig; 2],
    [channels_a, channels_b]: [[Channel; N]; 2],
) -> (Side<N>, Side<N>, PeerId) {
    let (mut config_a, mut config_b) = (config(1), config(2));
    (config_a.link, config_b.link) = (of_a, of_b);
    let mut a = side(&world.host("a"), config_a, channels_a).await;
    let b = side(&world.host("b"), config_b, channels_b).await;
    a.node.dial(b.node.ticket()).await.unwrap();
    a.peers.next().await;
    let to = b.node.id();
    (a, b, to)
}

/// Sends numbered messages as fast as they are taken, for ever.
fn saturate(tx: &Sender, to: PeerId) {
    let tx = tx.clone();
    tokio::spawn(async move {
        for number in 0_u64.. {
            let mut message = vec![0; MESSAGE];
            message[..8].copy_from_slice(&number.to_be_bytes());
            tx.send_wait(to, message.into()).await.unwrap();
        }
    });
}

/// When measuring begins, for the burst is over then and the line's speed known, and when it ends.
const FROM: Duration = Duration::from_secs(5);
const TO: Duration = Duration::from_secs(25);

/// Bytes a second of messages in their frames; a message that is missing is told.
async fn measure(rx: &mut Receiver) -> f64 {
    let (start, mut expected, mut bytes) = (Instant::now(), 0, 0);
    while let Ok(Some((_, message))) = time::timeout_at(start + TO, rx.recv()).await {
        assert_eq!(u64::from_be_bytes(message[..8].try_into().unwrap()), expected, "a message is lost or out of order");
        expected += 1;
        if start.elapsed() >= FROM {
            bytes += FRAMED;
        }
    }
    bytes as f64 / (TO - FROM).as_secs_f64()
}

fn assert_rate(measured: f64, rate: u64) {
    assert!((measured / rate as f64 - 1.0).abs() <= 0.02, "{measured:.0} of {rate} bytes a second");
}

fn sending(rate: u64) -> Channel {
    let mut channel = Channel::new(1);
    channel.send_rate = Some(Rate::new(rate));
    channel
}

fn receiving(rate: u64) -> Channel {
    let mut channel = Channel::new(1);
    channel.receive_rate = Some(Rate::new(rate));
    channel
}

#[test]
fn a_channel_is_sent_at_its_rate_and_leaves_the_rest_of_the_line_to_others() {
    scenario(1, secs(60), |world| async move {
        let channels = [[sending(500_000), Channel::new(2)], [Channel::new(1), Channel::new(2)]];
        let (a, mut b, to) = pair(&world, Default::default(), channels).await;
        a.tx.iter().for_each(|tx| saturate(tx, to));
        let [slow, fast] = &mut b.rx;
        let (slow, fast) = tokio::join!(measure(slow), measure(fast));
        assert_rate(slow, 500_000);
        assert!(fast > 1_700_000.0, "{fast}");
    });
}

#[test]
fn a_channel_is_taken_at_its_rate_and_nothing_of_it_is_lost() {
    scenario(1, secs(60), |world| async move {
        let channels = [[Channel::new(1), Channel::new(2)], [receiving(500_000), Channel::new(2)]];
        let (a, mut b, to) = pair(&world, Default::default(), channels).await;
        a.tx.iter().for_each(|tx| saturate(tx, to));
        let [slow, fast] = &mut b.rx;
        let (slow, fast) = tokio::join!(measure(slow), measure(fast));
        assert_rate(slow, 500_000);
        assert!(fast > 1_200_000.0, "{fast}"); // the line still brings what fills the slow one's windows
    });
}

#[test]
fn a_channel_that_is_opened_anew_has_no_burst_anew() {
    scenario(1, secs(60), |world| async move {
        let channels = [[Channel::new(1)], [receiving(100_000)]];
        let (mut a, mut b, to) = pair(&world, Default::default(), channels).await;
        let start = Instant::now();
        for _ in 0..20 {
            for _ in 0..30 {
                assert_eq!(a.tx[0].send(&To::Peer(to), Bytes::from(vec![0; MESSAGE])).queued, 1);
            }
            for _ in 0..30 {
                b.rx[0].recv().await.unwrap();
            }
            assert!(a.node.unregister("one"));
            let mut one = Protocol::new("one", 1..=1);
            let (tx, rx) = one.channel(Channel::new(1));
            (a.tx, a.rx, a.peers) = ([tx], [rx], a.node.register(one).unwrap());
            a.peers.next().await.unwrap();
        }
        let took = start.elapsed().as_secs_f64();
        assert!((5.5..9.0).contains(&took), "{took} s instead of (600 messages - the burst of 32 KiB) / 100 kB/s");
    });
}

#[test]
fn byte_streams_that_are_short_and_many_keep_the_peers_rate_together() {
    scenario(1, secs(60), |world| async move {
        let configs = [LinkConfig::default(), of_peer(None, Some(5_000))];
        let (a, mut b, to) = pair(&world, configs, [[Channel::new(1)], [Channel::new(1)]]).await;
        let start = Instant::now();
        for _ in 0..100 {
            let mut written = a.peers.open(to).await.unwrap();
            written.write_all(&[0; 1_000]).await.unwrap();
            written.shutdown().await.unwrap();
            let (_, mut read) = b.streams.accept().await.unwrap();
            assert_eq!(read.read_to_end(&mut Vec::new()).await.unwrap(), 1_000);
        }
        let took = start.elapsed().as_secs_f64();
        assert!((13.0..17.0).contains(&took), "{took} s instead of (100,000 bytes - the burst of 32 KiB) / 5 kB/s");
    });
}

#[test]
fn the_same_rate_on_both_sides_is_reached() {
    scenario(1, secs(60), |world| async move {
        let channels = || [Channel::new(1).rate(Rate::new(500_000))];
        let (a, mut b, to) = pair(&world, Default::default(), [channels(), channels()]).await;
        saturate(&a.tx[0], to);
        let before = a.host.traffic();
        assert_rate(measure(&mut b.rx[0]).await, 500_000);
        let after = a.host.traffic();
        let (packets, bytes) = (after.sent - before.sent, after.sent_bytes - before.sent_bytes);
        assert!(bytes / packets > 650, "{} bytes a packet: each token is sent as it comes", bytes / packets);
    });
}

#[test]
fn datagrams_above_the_rate_are_dropped_and_counted() {
    scenario(1, secs(60), |world| async move {
        let slow = |channel: Channel| channel.delivery(Delivery::Datagram).queue(64);
        let channels = [[slow(Channel::new(1))], [slow(receiving(100_000))]];
        let (a, mut b, to) = pair(&world, Default::default(), channels).await;
        let tx = a.tx[0].clone();
        let sending = tokio::spawn(async move {
            for _ in 0..11_000 {
                assert_eq!(tx.send(&To::Peer(to), Bytes::from(vec![0; MESSAGE])).queued, 1);
                time::sleep(ms(2)).await;
            }
        });
        let (start, mut all, mut bytes) = (Instant::now(), 0, 0);
        while let Ok(Some(_)) = time::timeout_at(start + secs(22), b.rx[0].recv()).await {
            all += 1;
            bytes += if start.elapsed() >= secs(2) { MESSAGE } else { 0 };
        }
        assert_rate(bytes as f64 / 20.0, 100_000);
        sending.await.unwrap();
        time::sleep(secs(1)).await;
        while b.rx[0].try_recv().is_some() {
            all += 1;
        }
        let dropped = b.node.status().await.dropped;
        assert_eq!(dropped, [("over_rate", 11_000 - all)]);
        let stats = b.node.peer(a.node.id()).unwrap().stats().await;
        assert_eq!(stats.channels[0].dropped, [("over_rate", 11_000 - all)]);
    });
}

#[test]
fn datagrams_are_sent_at_their_rate() {
    scenario(1, secs(60), |world| async move {
        let datagrams = |channel: Channel| channel.delivery(Delivery::Datagram);
        let channels = [[datagrams(sending(100_000))], [datagrams(Channel::new(1))]];
        let (a, mut b, to) = pair(&world, Default::default(), channels).await;
        saturate(&a.tx[0], to);
        assert_rate(measure(&mut b.rx[0]).await, 100_000); // with two bytes in front, too
    });
}

fn of_peer(send: Option<u64>, receive: Option<u64>) -> LinkConfig {
    let mut config = LinkConfig::default();
    (config.send_rate, config.receive_rate) = (send.map(Rate::new), receive.map(Rate::new));
    config
}

/// Two channels of weight 1 and 3 and a byte stream of weight 16, of which the peer takes 500,000 bytes a second in all, while a
/// control message a tenth of a second goes beside them.
async fn shared_rate(world: World, configs: [LinkConfig; 2]) -> [f64; 3] {
    let channels = || {
        [
            Channel::new(1).share(Class::Bulk, 4),
            Channel::new(2).share(Class::Bulk, 12),
            Channel::new(3).share(Class::Control, 1),
        ]
    };
    let (a, mut b, to) = pair(&world, configs, [channels(), channels()]).await;
    let [first, second, control] = &mut b.rx;
    a.tx[..2].iter().for_each(|tx| saturate(tx, to));
    let (tx, began) = (a.tx[2].clone(), Instant::now());
    let asking = tokio::spawn(async move {
        for _ in 0..200 {
            assert_eq!(tx.send(&To::Peer(to), Bytes::from(began.elapsed().as_millis().to_string())).queued, 1);
            time::sleep(ms(100)).await;
        }
    });
    let answers = async {
        let mut worst = Duration::ZERO;
        for _ in 0..200 {
            let (_, sent) = control.recv().await.unwrap();
            worst = worst.max(began.elapsed() - ms(String::from_utf8_lossy(&sent).parse().unwrap()));
        }
        worst
    };
    let stream = a.peers.open(to);
    let bytes = async {
        let (mut written, (_, mut read)) = (stream.await.unwrap(), b.streams.accept().await.unwrap());
        tokio::spawn(async move { while written.write_all(&[0; 10_000]).await.is_ok() {} });
        let (mut sum, mut buf) = (0, vec![0; 1 << 16]);
        while let Ok(count) = time::timeout_at(began + TO, read.read(&mut buf)).await {
            sum += if began.elapsed() >= FROM { count.unwrap() } else { 0 };
        }
        sum as f64 / (TO - FROM).as_secs_f64()
    };
    let (first, second, bytes, worst) = tokio::join!(measure(first), measure(second), bytes, answers);
    asking.await.unwrap();
    assert_rate(first + second + bytes, 500_000);
    [second / first, bytes / first, worst.as_secs_f64()]
}

#[test]
fn all_that_a_peer_is_sent_keeps_its_rate_and_its_shares_and_control_does_not_wait() {
    scenario(1, secs(60), |world| async move {
        let [ratio, stream, worst] = shared_rate(world, [of_peer(Some(500_000), None), LinkConfig::default()]).await;
        assert!((ratio / 3.0 - 1.0).abs() <= 0.05, "{ratio}");
        assert!((stream / 4.0 - 1.0).abs() <= 0.05, "{stream}");
        assert!(worst <= 0.08, "a control message took {worst} s of 50 ms");
    });
}

#[test]
fn all_that_is_taken_from_a_peer_keeps_its_rate_and_control_does_not_wait() {
    scenario(1, secs(60), |world| async move {
        let [ratio, stream, worst] = shared_rate(world, [LinkConfig::default(), of_peer(None, Some(500_000))]).await;
        assert!((ratio - 1.0).abs() <= 0.05, "{ratio}: the channels' readers take turns");
        assert!((stream - 1.0).abs() <= 0.05, "{stream}: and the stream's does");
        assert!(worst <= 0.3, "a control message took {worst} s of 50 ms");
    });
}

#[test]
fn control_messages_do_not_wait_for_the_peers_rate_and_others_make_up_for_them() {
    scenario(1, secs(60), |world| async move {
        let channels = || [Channel::new(1).share(Class::Control, 1), Channel::new(2)];
        let configs = [of_peer(Some(20_000), None), LinkConfig::default()];
        let (a, mut b, to) = pair(&world, configs, [channels(), channels()]).await;
        let start = Instant::now();
        for _ in 0..100 {
            assert_eq!(a.tx[0].send(&To::Peer(to), Bytes::from(vec![0; MESSAGE])).queued, 1);
        }
        for _ in 0..100 {
            b.rx[0].recv().await.unwrap();
        }
        assert!(start.elapsed() < ms(200), "{:?} for five seconds' worth", start.elapsed());
        assert_eq!(a.tx[1].send(&To::Peer(to), "bulk".into()).queued, 1);
        b.rx[1].recv().await.unwrap();
        assert!(start.elapsed() > secs(4), "{:?}: control messages were not counted", start.elapsed());
    });
}

#[test]
fn a_message_that_is_larger_than_the_burst_passes_in_its_time() {
    scenario(1, secs(60), |world| async move {
        let slow = |channel: fn(u64) -> Channel| channel(100_000);
        for [channel_a, channel_b] in [[slow(sending), Channel::new(1)], [Channel::new(1), slow(receiving)]] {
            let world = world.clone();
            let (a, mut b, to) = pair(&world, Default::default(), [[channel_a], [channel_b]]).await;
            let start = Instant::now();
            assert_eq!(a.tx[0].send(&To::Peer(to), Bytes::from(vec![0; 1 << 20])).queued, 1);
            b.rx[0].recv().await.unwrap();
            let took = start.elapsed().as_secs_f64();
            println!("{took:.2} s");
            assert!((10.1..10.6).contains(&took), "{took} s instead of (1 MiB - the burst of 16 or 32 KiB) / 100 kB/s");
            a.node.close().await;
            b.node.close().await;
        }
    });
}

#[test]
fn a_message_on_an_idle_link_takes_as_long_as_the_line_and_no_longer() {
    scenario(1, secs(60), |world| async move {
        let (a, mut b, to) = pair(&world, Default::default(), [[Channel::new(1)], [Channel::new(1)]]).await;
        for _ in 0..5 {
            time::sleep(secs(7)).await;
            let sent = Instant::now();
            assert_eq!(a.tx[0].send(&To::Peer(to), Bytes::from(vec![0; 100])).queued, 1);
            b.rx[0].recv().await.unwrap();
            assert!(sent.elapsed() <= ms(52), "{:?} on a line of 50 ms", sent.elapsed());
        }
    });
}

#[test]
fn a_rate_that_is_of_no_use_is_refused() {
    scenario(1, secs(60), |world| async move {
        let mut wrong = config(1);
        wrong.link.send_rate = Some(Rate::new(0));
        assert!(Node::bind_on(world.host("a").net(), wrong).await.is_err());
        let node = Node::bind_on(world.host("a").net(), config(1)).await.unwrap();
        let mut one = Protocol::new("one", 1..=1);
        let _unused = one.channel(Channel::new(7).rate(Rate::new(1_000_000).burst(1)));
        let refused = node.register(one).unwrap_err();
        assert_eq!(refused, RegisterError::Rate { name: "one".into(), channel: 7, why: RateError::Burst });
    });
}
#[test]
fn who_takes_bytes_slowly_by_the_peers_rate_is_not_given_up() {
    scenario(1, secs(2_000), |world| async move {
        let configs = [LinkConfig::default(), of_peer(None, Some(2_000))];
        let channels = || [Channel::new(1)];
        let (a, mut b, to) = pair(&world, configs, [channels(), channels()]).await;
        saturate(&a.tx[0], to);
        let mut written = a.peers.open(to).await.unwrap();
        tokio::spawn(async move { while written.write_all(&[0; 10_000]).await.is_ok() {} });
        let (_, mut read) = b.streams.accept().await.unwrap();
        tokio::spawn(async move { while read.read(&mut [0; 1_000]).await.is_ok_and(|count| count > 0) {} });
        // QUIC's own word would come after an eighth of a window, which takes four minutes.
        while b.rx[0].recv().await.is_some() && a.node.status().await.uptime < secs(1_000) {}
        assert_eq!(a.node.peers(), [to]);
    });
}
