//! Nodes over this machine's own sockets: connecting, ending, and what is left afterwards.
#![allow(clippy::unwrap_used)] // a test may panic

mod common;

use std::{net::Ipv6Addr, time::Duration};

use byway::{BindError, Node, PathKind, PeerEvent, RelayConfig, To};
use common::{Peer, V4, config, connected, exchange, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
    time::{self, Instant},
};

/// What is left of a connection is given up this long after its end.
const LINGER: Duration = Duration::from_secs(6);

/// Rounds of 25 connections until the allocator has what it needs for those that end, and those that are measured.
const WARM_UP: usize = 60;
const ROUNDS: usize = 40;

#[tokio::test]
async fn two_nodes_exchange_messages_and_streams_over_either_family() {
    for ip in [V4, Ipv6Addr::LOCALHOST.into()] {
        let (mut a, mut b) = connected(ip).await;
        for _ in 0..100 {
            exchange(&mut a, &mut b).await;
        }
        let mut there = a.peers.open(b.id()).await.unwrap();
        there.write_all(&[7; 1 << 20]).await.unwrap();
        there.shutdown().await.unwrap();
        let (from, mut here) = b.streams.accept().await.unwrap();
        let mut bytes = Vec::new();
        here.read_to_end(&mut bytes).await.unwrap();
        assert_eq!((from, bytes.len()), (a.id(), 1 << 20));
        here.write_all(b"thanks").await.unwrap();
        here.shutdown().await.unwrap();
        let mut answer = String::new();
        there.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "thanks");
        assert_eq!(a.path_to(b.id()).await, Some(PathKind::Direct));
        a.node.close().await;
        assert!(matches!(b.peers.next().await, Some(PeerEvent::Down { .. })));
        b.node.close().await;
    }
}

#[tokio::test]
async fn a_port_in_use_is_told_with_its_address() {
    let other = UdpSocket::bind((V4, 0)).await.unwrap();
    let addr = other.local_addr().unwrap();
    let mut settings = config(1, V4);
    settings.port = addr.port();
    let error = Node::bind(settings.clone()).await.unwrap_err();
    assert!(matches!(&error, BindError::PortInUse(taken) if *taken == addr), "{error}");
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    settings.any_port = true;
    assert_ne!(Node::bind(settings).await.unwrap().port(), addr.port());
}

#[tokio::test]
async fn closing_is_bounded_and_closing_again_does_nothing() {
    let (a, mut b) = connected(V4).await;
    let start = Instant::now();
    a.node.close().await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?} with a peer that answers");
    a.node.close().await;
    assert!(matches!(b.peers.next().await, Some(PeerEvent::Down { .. })));
    // A peer that was killed does not answer the goodbye.
    let c = Peer::bind(config(3, V4)).await;
    c.node.dial(b.node.ticket()).await.unwrap();
    let start = Instant::now();
    let twin = c.node.clone();
    tokio::join!(c.node.close(), twin.close());
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn dropping_the_last_handle_ends_a_node_and_tells_its_peers() {
    let (_relay, relay_addr) = common::relay(9, RelayConfig::default()).await;
    let before = tasks();
    {
        let mut b = Peer::bind(config(2, V4)).await;
        let (addr, port);
        {
            let mut a = Peer::bind(config(1, V4).relay_at(relay_addr.clone())).await;
            (addr, port) = (common::addr_of(&a.node), a.node.port());
            a.node.dial(b.node.ticket()).await.unwrap();
            b.up().await;
            exchange(&mut a, &mut b).await;
            // A receiver that nobody empties must not keep a reader, and with it the node, alive.
            for _ in 0..20_000 {
                let _ = b.tx.send(&To::All, vec![0; 100].into());
            }
            let clone = a.node.clone();
            drop(a);
            time::sleep(Duration::from_millis(300)).await;
            assert!(UdpSocket::bind(addr).await.is_err(), "a clone is a handle, too");
            drop(clone);
        }
        let down = time::timeout(Duration::from_secs(2), b.peers.next()).await.unwrap();
        assert!(matches!(down, Some(PeerEvent::Down { .. })));
        let end = Instant::now() + Duration::from_secs(8);
        while UdpSocket::bind((V4, port)).await.is_err() {
            assert!(Instant::now() < end, "the socket is still open");
            time::sleep(Duration::from_millis(50)).await;
        }
    }
    let end = Instant::now() + Duration::from_secs(8);
    while tasks() > before {
        assert!(Instant::now() < end, "{} tasks instead of {before}", tasks());
        time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_thousand_connections() {
    let mut settings = config(2, V4);
    (settings.gate.initial_rate, settings.gate.initial_burst) = (100_000, 100_000);
    let b = Peer::bind(settings).await;
    let ticket = b.node.ticket();
    let mut warm = 0.0;
    for round in 0..WARM_UP + ROUNDS {
        let mut dials = tokio::task::JoinSet::new();
        for n in 0..25 {
            let ticket = ticket.clone();
            dials.spawn(async move {
                let a = Peer::bind(config(10 + n, V4)).await;
                a.node.dial(ticket).await.unwrap();
            });
        }
        while let Some(ended) = dials.join_next().await {
            ended.unwrap();
        }
        until(&b.node, LINGER, |status| status.peers.is_empty()).await;
        if round == WARM_UP {
            warm = common::rss_mib();
        }
    }
    until(&b.node, LINGER, |status| status.aliases == 0).await;
    let (grown, end) = (|| common::rss_mib() - warm, Instant::now() + LINGER);
    while grown() >= 24.0 {
        // the last of the dialling nodes are still closing
        assert!(Instant::now() < end, "{:.1} MiB more after a thousand further connections", grown());
        time::sleep(Duration::from_millis(100)).await;
    }
    println!("{:.1} MiB more after a thousand further connections", grown());
}

/// Tasks of this test's runtime.
fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}
