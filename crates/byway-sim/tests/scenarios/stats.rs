//! What a peer's figures say of its channels, streams and paths, against what the application saw.

use bytes::Bytes;
use byway::{
    Channel, ChannelStatus, Class, Delivery, Direction, Event, EventStream, Node, PathKind, PeerId, Protocol, To,
};
use byway_sim::Link;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time,
};

use crate::common::{config, exchange, ms, peer, relay, scenario, secs};

async fn channel(node: &Node, peer: PeerId, protocol: &str, channel: Option<u32>) -> ChannelStatus {
    let stats = node.peer(peer).expect("it is connected").stats().await;
    let found = stats.channels.iter().find(|it| it.protocol == protocol && it.channel == channel);
    found.unwrap_or_else(|| panic!("{protocol} {channel:?} in {:#?}", stats.channels)).clone()
}

async fn goodput(node: &Node, peer: PeerId) -> Option<u64> {
    let stats = node.peer(peer).expect("it is connected").stats().await;
    stats.routes.iter().find(|route| route.selected).and_then(|route| route.goodput)
}

/// The only metric of this name with these labels, as Prometheus reads it; figures of one peer are asked for.
async fn figure(node: &Node, name: &str, labels: &[(&str, &str)]) -> f64 {
    let page = node.metrics(1).await.to_string();
    let label = |line: &&str| labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")));
    let named = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let lines: Vec<_> = page.lines().filter(named).filter(label).collect();
    assert_eq!(lines.len(), 1, "{name} {labels:?} in {page}");
    lines[0].rsplit_once(' ').unwrap().1.parse().unwrap()
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= expected * 0.05, "{found} instead of {expected}");
}

#[test]
fn a_channels_counts_and_rates_are_those_that_the_application_saw() {
    scenario(1, secs(120), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let (a, mut b) = (peer(&host_a, config(1)).await, peer(&host_b, config(2)).await);
        let to = a.node.dial(b.node.ticket()).await.unwrap();
        for _ in 0..500 {
            assert_eq!(a.tx.send(&To::Peer(to), Bytes::from(vec![7; 998])).queued, 1);
            time::sleep(ms(10)).await;
        }
        let sent = channel(&a.node, to, "echo", Some(1)).await;
        near(sent.sent.messages_per_second, 100.0);
        near(sent.sent.bytes_per_second, 100_000.0); // two bytes of length in front of each
        time::sleep(secs(1)).await;
        let (sent, received) =
            (channel(&a.node, to, "echo", Some(1)).await, channel(&b.node, a.id(), "echo", Some(1)).await);
        assert_eq!((sent.sent.messages, sent.sent.bytes), (500, 500_000));
        assert_eq!((received.received.messages, received.received.bytes), (500, 500_000));
        assert_eq!((received.received.waiting_messages, received.received.waiting_bytes), (500, 499_000));
        assert_eq!((sent.received.messages, received.sent.messages), (0, 0));
        for _ in 0..500 {
            b.rx.recv().await.unwrap();
        }
        time::sleep(secs(3)).await;
        let (sent, received) =
            (channel(&a.node, to, "echo", Some(1)).await, channel(&b.node, a.id(), "echo", Some(1)).await);
        assert_eq!((received.received.waiting_messages, received.received.waiting_bytes), (0, 0));
        assert_eq!((sent.sent.bytes_per_second, received.received.bytes_per_second), (0.0, 0.0));
        assert_eq!((sent.share.class, sent.share.weight, sent.delivery), (Class::Bulk, 16, Delivery::Stream));

        // The same as the node's status, and gone with the connection.
        let (one, all) = (a.node.peer(to).unwrap().stats().await, a.node.status().await);
        assert_eq!(one.channels, all.peers[0].channels);
        let route = one.routes.iter().find(|route| route.selected).unwrap();
        assert_eq!(route.path, PathKind::Direct);
        assert!(route.rtt.is_some_and(|rtt| rtt >= ms(100)) && !route.why.is_empty(), "{route:?}");
        let connection = a.node.peer(to).unwrap();
        a.node.disconnect(to, 0, "enough");
        time::sleep(secs(5)).await;
        assert!(a.node.peer(to).is_none() && connection.stats().await.channels.is_empty());
    });
}

#[test]
fn what_a_full_channel_does_not_carry_is_counted_by_reason() {
    scenario(2, secs(120), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        host_a.set_link(Link::standard().rate(1_000_000));
        let mut nodes = Vec::new();
        for (n, host) in [(1, &host_a), (2, &host_b)] {
            let node = Node::bind_on(host.net(), config(n)).await.unwrap();
            let mut protocol = Protocol::new("game", 1..=1);
            let stream = protocol.channel(Channel::new(1).queue(4).max_message(1_000));
            let datagram = protocol.channel(Channel::new(2).delivery(Delivery::Datagram).queue(4));
            let peers = node.register(protocol).unwrap();
            nodes.push((node, stream, datagram, peers));
        }
        let (mut b, a) = (nodes.pop().unwrap(), nodes.pop().unwrap());
        let to = a.0.dial(b.0.ticket()).await.unwrap();
        time::sleep(secs(1)).await;
        let mut refused = 0;
        for _ in 0..20 {
            refused += a.1.0.send(&To::Peer(to), Bytes::from(vec![7; 900])).full as u64;
        }
        assert!(refused > 10, "{refused}");
        let _ = a.1.0.send(&To::Peer(to), Bytes::from(vec![7; 1_001]));
        let now = channel(&a.0, to, "game", Some(1)).await;
        assert_eq!(now.dropped, [("queue_full", refused), ("too_large", 1)]);
        assert_eq!(now.sent.messages + now.sent.waiting_messages as u64, 20 - refused);
        assert!(a.1.0.send_wait(to, Bytes::from(vec![7; 900])).await.is_ok());
        assert_eq!(channel(&a.0, to, "game", Some(1)).await.dropped, now.dropped, "who waits loses nothing");

        for _ in 0..8 {
            let _ = a.2.0.send(&To::Peer(to), Bytes::from_static(b"position"));
            time::sleep(ms(100)).await;
        }
        time::sleep(secs(1)).await;
        let there = channel(&b.0, a.0.id(), "game", Some(2)).await;
        assert_eq!((there.received.messages, there.dropped), (4, vec![("receiver_behind", 4)]));
        assert_eq!(
            figure(&a.0, "byway_channel_dropped_total", &[("channel", "1"), ("reason", "queue_full")]).await,
            refused as f64
        );
        assert_eq!(figure(&b.0, "byway_channel_dropped_total", &[("channel", "2")]).await, 4.0);
        assert_eq!(figure(&b.0, "byway_dropped_total", &[("reason", "channel_full")]).await, 4.0);
        assert_eq!(figure(&a.0, "byway_peer_dropped_total", &[]).await, refused as f64 + 1.0);

        // What the path delivers is known once the line was full.
        assert_eq!(goodput(&a.0, to).await, None);
        let sending = async {
            for _ in 0..400 {
                a.1.0.send_wait(to, Bytes::from(vec![7; 900])).await.unwrap();
            }
        };
        let reading = async {
            for _ in 0..400 {
                b.1.1.recv().await.unwrap();
            }
        };
        let watching = async {
            time::sleep(ms(300)).await;
            let now = channel(&a.0, to, "game", Some(1)).await.sent;
            assert!((1..=4).contains(&now.waiting_messages), "{now:?}");
            assert_eq!(now.waiting_bytes, now.waiting_messages * 902);
        };
        tokio::join!(sending, reading, watching);
        let found = goodput(&a.0, to).await.unwrap();
        assert!((90_000..=150_000).contains(&found), "{found} bytes per second on a line of 125,000");
        assert_eq!(figure(&a.0, "byway_peer_goodput_bytes_per_second", &[]).await, found as f64);
    });
}

#[test]
fn the_metrics_are_the_figures_of_the_status() {
    scenario(5, secs(120), |world| async move {
        let (hub, addr) = relay(&world.host("relay"), config(9)).await;
        let mut wordy = config(1).relay_at(addr.clone());
        wordy.message_events = true;
        let mut a = peer(&world.host("a"), wordy).await;
        let mut b = peer(&world.host("b"), config(2).relay_at(addr.clone())).await;
        let mut hidden = config(3).relay_at(addr);
        hidden.relay_only = true;
        let c = peer(&world.host("c"), hidden).await;
        a.registered().await;
        b.registered().await;
        c.registered().await;
        let (direct, relayed) =
            (a.node.dial(b.node.ticket()).await.unwrap(), c.node.dial(a.node.ticket()).await.unwrap());
        assert_eq!(relayed, a.id());
        time::sleep(secs(2)).await;
        exchange(&mut a, &mut b).await;
        for _ in 0..1_500 {
            a.tx.send_wait(direct, "hello".into()).await.unwrap();
        }
        for _ in 0..600 {
            b.rx.recv().await.unwrap();
        }
        time::sleep(secs(2)).await;

        let of = |path| [("path", path)];
        assert_eq!(figure(&a.node, "byway_peers", &of("direct")).await, 1.0);
        assert_eq!(figure(&a.node, "byway_peers", &of("relay")).await, 1.0);
        assert_eq!(figure(&a.node, "byway_peers", &of("none")).await, 0.0);
        assert_eq!(figure(&a.node, "byway_relays", &[("registered", "yes")]).await, 1.0);
        assert_eq!(figure(&a.node, "byway_peers_unlisted", &[]).await, 1.0);
        assert_eq!(a.node.metrics(0).await.to_string().matches("byway_peer_direct").count(), 0);
        assert_eq!(a.node.metrics(1).await.to_string().matches("byway_peer_direct{").count(), 1);
        assert_eq!(a.node.metrics(9).await.to_string().matches("byway_peer_direct{").count(), 2);
        for (node, direction, messages) in
            [(&a.node, "sent", 1_501), (&a.node, "received", 1), (&b.node, "received", 1_501)]
        {
            let labels = [("protocol", "echo"), ("channel", "1"), ("direction", direction)];
            assert_eq!(figure(node, "byway_channel_messages_total", &labels).await, f64::from(messages));
        }
        let inbox = channel(&b.node, a.id(), "echo", Some(1)).await.received;
        let labels = [("channel", "1"), ("direction", "received")];
        assert_eq!(figure(&b.node, "byway_channel_waiting_messages", &labels).await, inbox.waiting_messages as f64);
        assert!(inbox.waiting_messages > 0);
        let stats = b.node.peer(a.id()).unwrap().stats().await;
        assert_eq!(figure(&b.node, "byway_peer_rtt_seconds", &[]).await, stats.rtt.unwrap().as_secs_f64());
        let received: u64 = stats.channels.iter().map(|channel| channel.received.bytes).sum();
        assert_eq!(figure(&b.node, "byway_peer_bytes_total", &[("direction", "received")]).await, received as f64);
        let sent: u64 = stats.channels.iter().map(|channel| channel.sent.bytes).sum();
        assert_eq!(figure(&b.node, "byway_peer_bytes_total", &[("direction", "sent")]).await, sent as f64);
        assert!(sent > 0 && received > sent);
        // Nobody has listened to more events than the queue holds.
        a.events.recv().await.unwrap();
        let missed = figure(&a.node, "byway_events_missed_total", &[]).await;
        assert!(missed > 400.0, "{missed}");
        let serving = hub.status().await.serving.unwrap();
        assert_eq!(figure(&hub, "byway_relay_clients", &[]).await, 3.0);
        assert_eq!(figure(&hub, "byway_relay_bytes_total", &[]).await, serving.bytes as f64);
        assert!(serving.bytes > 0);
    });
}

#[test]
fn byte_streams_are_counted_together() {
    scenario(3, secs(120), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let a = peer(&host_a, config(1)).await;
        let node = Node::bind_on(host_b.net(), config(2)).await.unwrap();
        let mut echo = Protocol::new("echo", 1..=1);
        let (_channel, mut streams) = (echo.channel(Channel::new(1)), echo.streams());
        let _peers = node.register(echo).unwrap();
        let to = a.node.dial(node.ticket()).await.unwrap();
        for _ in 0..2 {
            let mut out = a.peers.open(to).await.unwrap();
            out.write_all(&[7; 10_000]).await.unwrap();
            out.shutdown().await.unwrap();
            let (_, mut stream) = streams.accept().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            assert_eq!(all.len(), 10_000);
        }
        let (sent, received) = (channel(&a.node, to, "echo", None).await, channel(&node, a.id(), "echo", None).await);
        assert_eq!((sent.sent.messages, received.received.messages), (2, 2));
        assert_eq!((sent.sent.bytes, received.received.bytes), (20_002, 20_000)); // each begins with the protocol's number
        near(received.received.bytes_per_second, received.received.bytes as f64);

        // What QUIC does not take of one that nobody reads waits.
        let mut out = a.peers.open(to).await.unwrap();
        let unread = async { while out.write_all(&[7; 10_000]).await.is_ok() {} };
        assert!(time::timeout(secs(5), unread).await.is_err());
        let waits = channel(&a.node, to, "echo", None).await.sent.waiting_bytes;
        assert!((256 << 10..300 << 10).contains(&waits), "{waits}");
    });
}

/// The messages among the events that have come within a second.
async fn messages(events: &mut EventStream) -> Vec<(PeerId, String, u32, usize, Direction)> {
    let mut found = Vec::new();
    while let Ok(Some(event)) = time::timeout(secs(1), events.recv()).await {
        if let Event::Message { peer, protocol, channel, len, direction } = event {
            found.push((peer, protocol, channel, len, direction));
        }
    }
    found
}

#[test]
fn messages_are_events_only_where_that_is_asked_for() {
    scenario(4, secs(60), |world| async move {
        let mut wordy = config(1);
        wordy.message_events = true;
        let (mut a, mut b) = (peer(&world.host("a"), wordy).await, peer(&world.host("b"), config(2)).await);
        let to = a.node.dial(b.node.ticket()).await.unwrap();
        assert_eq!(a.tx.send(&To::All, Bytes::from_static(b"question")).queued, 1);
        let (from, _) = b.rx.recv().await.unwrap();
        b.tx.send_wait(from, Bytes::from_static(b"an answer")).await.unwrap();
        a.rx.recv().await.unwrap();
        let told = messages(&mut a.events).await;
        let expected =
            [(to, "echo".to_owned(), 1, 8, Direction::Sent), (to, "echo".to_owned(), 1, 9, Direction::Received)];
        assert_eq!(told, expected);
        assert_eq!(messages(&mut b.events).await, []);
    });
}
