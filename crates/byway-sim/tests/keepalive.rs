//! How long a NAT keeps an idle mapping, and how often idle routes are pinged for it.
#![allow(clippy::unwrap_used)] // a test may panic

mod common;

use byway::{Event, PathKind};
use byway_sim::NatConfig;
use common::{config, exchange, ms, peer, relay, scenario, secs};
use tokio::time;

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

#[test]
fn an_idle_path_through_nats_that_forget_after_twenty_seconds_is_kept_by_a_ping_each_five() {
    scenario(2, secs(1_000), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let hosts = ["a", "b"].map(|name| world.nat(name, forgetful(20)).host(name));
        let mut a = peer(&hosts[0], config(1).relay_at(addr.clone())).await;
        let mut b = peer(&hosts[1], config(2).relay_at(addr)).await;
        a.registered().await;
        b.registered().await;
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        a.goes(PathKind::Direct, secs(5)).await;
        b.goes(PathKind::Direct, secs(5)).await;
        time::sleep(secs(120)).await; // the lifetime is known by then
        let before = hosts[0].traffic().sent;
        let mut events = a.node.events();
        let changes = async {
            loop {
                match events.recv().await {
                    Some(Event::PathDown { .. } | Event::PathBest { .. }) | None => return,
                    Some(_) => {}
                }
            }
        };
        assert!(time::timeout(secs(600), changes).await.is_err(), "an idle path changed");
        // To the relay and to the peer, and what these two ask: 12 a minute each, and the same in answers to the peer.
        let minute = (hosts[0].traffic().sent - before) / 10;
        assert!((24..=72).contains(&minute), "{minute} packets in a minute");
        exchange(&mut a, &mut b).await;
        assert_eq!((a.path().await, b.path().await), (Some(PathKind::Direct), Some(PathKind::Direct)));
    });
}
