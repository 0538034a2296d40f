//! How long a NAT keeps an idle mapping, and how often idle routes are pinged for it.

use byway::PathKind;
use byway_sim::{NatConfig, Ports};
use tokio::time;

use crate::common::{config, exchange, ms, peer, relay, scenario, secs};

/// A home whose router forgets idle mappings after `lives` seconds.
fn forgetful(lives: u64) -> NatConfig {
    let mut nat = NatConfig::port_restricted();
    nat.timeout = secs(lives);
    nat
}

#[test]
fn a_relay_alone_is_enough_to_learn_how_long_a_nat_that_preserves_ports_keeps_a_mapping() {
    for (lives, found) in [(600, 240_000), (20, 15_000), (5, 3_750)] {
        scenario(lives, secs(1_000), |world| async move {
            let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
            let host = world.nat("home", forgetful(lives)).host("a");
            let a = peer(&host, config(1).relay_at(addr)).await;
            a.registered().await;
            time::sleep(secs(600)).await;
            let report = a.node.status().await.nat.report.ipv4.unwrap();
            assert_eq!(report.lifetime, Some(ms(found)), "a NAT of {lives} s");
        });
    }
}

/// An idle path through two NATs that forget mappings after `lives` seconds, once that is known; how many packets one side sends in
/// ten minutes, in which nothing may happen to the path.
fn idle_path(lives: u64) -> u64 {
    let (tell, told) = std::sync::mpsc::channel();
    scenario(2, secs(1_000), move |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let hosts = ["a", "b"].map(|name| world.nat(name, forgetful(lives)).host(name));
        let mut a = peer(&hosts[0], config(1).relay_at(addr.clone())).await;
        let mut b = peer(&hosts[1], config(2).relay_at(addr)).await;
        time::sleep(secs(120)).await; // the lifetime is known by then
        a.registered().await;
        b.registered().await;
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        a.goes(PathKind::Direct, secs(5)).await;
        b.goes(PathKind::Direct, secs(5)).await;
        time::sleep(secs(10)).await;
        let before = hosts[0].traffic().sent;
        a.keeps_its_path(secs(600)).await;
        tell.send(hosts[0].traffic().sent - before).unwrap();
        exchange(&mut a, &mut b).await;
        assert_eq!((a.path().await, b.path().await), (Some(PathKind::Direct), Some(PathKind::Direct)));
    });
    told.recv().unwrap()
}

#[test]
fn an_idle_path_is_kept_by_as_many_pings_as_its_nats_need() {
    // To the relay and to the peer, and what these two ask: for a NAT of 20 s 12 a minute each, and the same in answers to the
    // peer. Pinged each 10 s, as where no lifetime is known, it would send fewer behind a NAT of 8 s.
    for (lives, least, most) in [(20, 240, 720), (8, 650, 1_500)] {
        let packets = idle_path(lives);
        assert!((least..=most).contains(&packets), "{packets} packets behind NATs of {lives} s");
    }
}

#[test]
fn without_any_server_a_connection_learns_itself_how_often_its_way_needs_a_ping() {
    for (seed, ports) in [(3, Ports::Preserving), (4, Ports::Random)] {
        scenario(seed, secs(2_000), |world| async move {
            let mut nat = forgetful(6);
            nat.ports = ports;
            let host = world.nat("home", nat).host("a");
            let (mut a, mut b) = (peer(&host, config(1)).await, peer(&world.host("b"), config(2)).await);
            a.node.dial(b.node.ticket()).await.unwrap();
            a.up().await;
            b.up().await;
            time::sleep(secs(300)).await;
            let mut latest = ms(0);
            for n in 0..10 {
                time::sleep(secs(60) + ms(1_370 * n)).await;
                let sent = time::Instant::now();
                assert_eq!(b.tx.send(&a.id().into(), "are you there?".into()).queued, 1);
                time::timeout(secs(30), a.rx.recv()).await.unwrap().unwrap();
                latest = latest.max(sent.elapsed());
            }
            println!("{ports:?}: the latest first message took {latest:?}");
            assert!(latest < ms(100), "a message after a silence found the way closed: {latest:?}");
            let before = host.traffic().sent;
            time::sleep(secs(600)).await;
            let minute = (host.traffic().sent - before) / 10;
            assert!((10..=60).contains(&minute), "{minute} packets in a minute");
        });
    }
}
