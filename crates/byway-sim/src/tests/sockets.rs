//! UDP sockets, as a node sees them through the seam.

use std::{
    future::poll_fn,
    io::{ErrorKind, IoSliceMut},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use byway::net::UdpSocket as _;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use tokio::time::timeout;

use super::{at, bind, drain, ms, next};
use crate::{DropReason, Link, MAX_INBOX, Queue, World};

fn transmit(destination: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
    Transmit { destination, ecn: Some(EcnCodepoint::Ect0), contents, segment_size, src_ip: None }
}

#[test]
fn batch_arrives_as_its_segments() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (from, to) = (a.net().bind_udp(([0; 4], 1).into()).unwrap(), b.net().bind_udp(([0; 4], 1).into()).unwrap());
        from.try_send(&transmit(at(&b, 1), &[7; 2_500], Some(1_000))).unwrap();
        let mut storage = [[0; 1_500]; 4];
        let mut bufs = storage.each_mut().map(|buf| IoSliceMut::new(buf));
        let mut meta = [RecvMeta::default(); 4];
        let count = poll_fn(|cx| to.poll_recv(cx, &mut bufs, &mut meta)).await.unwrap();
        assert_eq!(
            meta[..count].iter().map(|meta| (meta.len, meta.stride)).collect::<Vec<_>>(),
            [(1_000, 1_000), (1_000, 1_000), (500, 500)]
        );
        assert_eq!((meta[0].addr, meta[0].dst_ip), (at(&a, 1), Some(b.addr())));
        assert_eq!(meta[0].ecn, Some(EcnCodepoint::Ect0));
        assert_eq!(world.counters().sent, 3);
    });
}

#[test]
fn empty_datagram_arrives() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (from, to) = (bind(&a, 1), bind(&b, 1));
        from.send_to(b"", at(&b, 1)).unwrap();
        assert_eq!(to.recv_from(&mut [0; 10]).await.unwrap(), (0, at(&a, 1)));
    });
}

#[test]
fn impossible_transmits_are_refused() {
    World::run(1, |world| async move {
        let host = world.host("a");
        let socket = bind(&host, 1);
        let to = at(&host, 2);
        let refused = [
            transmit("[::1]:1".parse().unwrap(), b"x", None),
            transmit(SocketAddr::new(to.ip(), 0), b"x", None),
            transmit(to, &[0; 65_508], None),
            transmit(to, &[0; 65], Some(1)),
            transmit(to, b"x", Some(0)),
        ];
        for transmit in refused {
            assert_eq!(socket.try_send(&transmit).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(world.counters().sent, 0);
    });
}

#[test]
fn inbox_is_bounded() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (from, to) = (bind(&a, 1), bind(&b, 1));
        for _ in 0..5_000 {
            from.send_to(&[0; 1_200], at(&b, 1)).unwrap();
        }
        let received = drain(&to, ms(100)).await.len();
        assert_eq!(received, MAX_INBOX / (1_200 + 128));
        assert_eq!(world.counters().dropped(DropReason::InboxFull) as usize, 5_000 - received);
    });
}

#[test]
fn loopback_stays_on_the_host_and_takes_no_time() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (local, remote, sender) = (bind(&a, 7), bind(&b, 7), bind(&a, 1));
        let loopback = "127.0.0.1:7".parse().unwrap();
        sender.send_to(b"x", loopback).unwrap();
        assert_eq!(next(&local).await, Some("127.0.0.1:1".parse().unwrap()));
        sender.send_to(b"x", at(&a, 7)).unwrap();
        assert_eq!(next(&local).await, Some(at(&a, 1)));
        assert_eq!(world.elapsed(), ms(0));
        assert_eq!(next(&remote).await, None);
    });
}

#[test]
fn nobody_at_the_port_and_nobody_at_the_address_differ() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let socket = bind(&a, 1);
        drop(bind(&b, 1));
        socket.send_to(b"x", at(&b, 1)).unwrap();
        socket.send_to(b"x", "12.0.0.1:1".parse().unwrap()).unwrap();
        tokio::time::sleep(ms(100)).await;
        let counters = world.counters();
        assert_eq!((counters.dropped(DropReason::NoSocket), counters.dropped(DropReason::NoRoute)), (1, 1));
        assert_eq!(counters.dropped_total(), 2);
    });
}

#[test]
fn missing_address_family_is_no_route() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let to = b.add_ipv6();
        let socket = a.bind_udp(([0_u16; 8], 1).into()).unwrap();
        socket.send_to(b"x", (to, 1).into()).unwrap();
        assert_eq!(world.counters().dropped(DropReason::NoRoute), 1);
    });
}

#[test]
fn only_own_and_free_addresses_can_be_bound() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let _taken = bind(&a, 1);
        assert_eq!(a.bind_udp(at(&a, 1)).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(a.bind_udp(at(&b, 2)).unwrap_err().kind(), ErrorKind::AddrNotAvailable);
        assert_ne!(bind(&a, 0).local_addr().port(), 0);
    });
}

#[test]
fn full_send_buffer_blocks_and_wakes_every_waiter() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        a.set_link(Link::standard().rate(8_000_000).queue(Queue::Bytes(1_000_000)));
        a.set_send_buffer(Some(20_000));
        let socket = bind(&a, 1);
        let sent = (0..100).take_while(|_| socket.send_to(&[0; 972], at(&b, 1)).is_ok()).count();
        assert_eq!(sent, 21);
        let waiters: Vec<_> = (0..3).map(|_| tokio::spawn(Arc::clone(&socket).writable())).collect();
        for waiter in waiters {
            timeout(ms(100), waiter).await.unwrap().unwrap().unwrap();
        }
        assert_eq!(world.elapsed(), ms(11)); // from 21,000 bytes to half of 20,000 at 1,000 a millisecond
        assert!(socket.send_to(&[0; 972], at(&b, 1)).is_ok());
        assert_eq!(world.counters().dropped_total(), 0);
    });
}

#[test]
fn names_resolve_as_told() {
    World::run(1, |world| async move {
        let relay = world.host("relay");
        world.name("relay.example", relay.addr());
        let net = world.host("a").net();
        assert_eq!(net.resolve("relay.example", 443).await.unwrap(), [at(&relay, 443)]);
        assert_eq!(net.resolve("[::1]", 1).await.unwrap(), ["[::1]:1".parse().unwrap()]);
        world.forget_name("relay.example");
        assert_eq!(net.resolve("relay.example", 443).await.unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn change_of_addresses_is_told_once_to_everyone_who_waits_by_then() {
    World::run(1, |world| async move {
        let host = world.host("a");
        let net = host.net();
        let told = async |change: byway::net::BoxFuture<'_, ()>| timeout(Duration::from_secs(1), change).await.is_ok();
        assert!(!told(net.changed()).await);
        // waiting begins with the call, not with the first poll, and one waiter takes nothing from another
        let (one, other) = (net.changed(), net.changed());
        host.add_ipv6();
        assert!(told(one).await && told(other).await);
        assert!(!told(net.changed()).await);
        let waiting = host.net();
        let told = tokio::spawn(async move { waiting.changed().await });
        tokio::time::sleep(ms(1)).await;
        host.renumber();
        timeout(ms(1), told).await.unwrap().unwrap();
    });
}

#[test]
fn traffic_is_counted_per_host() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (from, to) = (bind(&a, 1), bind(&b, 1));
        from.send_to(b"four", at(&b, 1)).unwrap();
        from.send_to(b"lost", at(&b, 2)).unwrap();
        assert!(next(&to).await.is_some());
        assert_eq!((a.traffic().sent, a.traffic().sent_bytes), (2, 8));
        assert_eq!((b.traffic().received, b.traffic().received_bytes), (1, 4));
    });
}
