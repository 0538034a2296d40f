//! Outages, sleep and changes of network: what a node does about them, and what it tells.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use byway::{Event, PathKind, WallClock};
use byway_sim::{NatConfig, Ports, World};
use tokio::time;

use crate::common::{config, exchange, flows, ms, peer, relay, scenario, secs};

#[test]
fn an_outage_of_all_routes_is_told_and_so_is_its_end() {
    scenario(1, secs(120), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let (mut a, mut b) = (peer(&host_a, config(1)).await, peer(&host_b, config(2)).await);
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        exchange(&mut a, &mut b).await;
        let mut events = a.node.events();
        let cut = world.cut(&host_a, &host_b);
        let _ = a.tx.send(&b.id().into(), "lost for now".into());
        let since = loop {
            if let Event::Stalled { peer, since } = time::timeout(secs(5), events.recv()).await.unwrap().unwrap() {
                assert_eq!(peer, b.id());
                break since;
            }
        };
        assert!(since <= SystemTime::now());
        time::sleep(secs(20)).await;
        cut.lift();
        let after = loop {
            if let Event::Resumed { after, .. } = time::timeout(secs(2), events.recv()).await.unwrap().unwrap() {
                break after;
            }
        };
        assert!((secs(22)..secs(26)).contains(&after), "{after:?}");
        assert_eq!(&time::timeout(secs(1), b.rx.recv()).await.unwrap().unwrap().1[..], b"lost for now");
    });
}

/// Packets that node a sends in the moment after it has spoken for the first time since `asleep`.
async fn packets_after(world: &World, asleep: Duration) -> u64 {
    let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
    let (host_a, host_b) = (world.host("a"), world.host("b"));
    let uncounted = Arc::new(AtomicU64::new(0));
    let (clock, slept) = (world.clone(), Arc::clone(&uncounted));
    let mut sleeper = config(1).relay_at(addr.clone());
    sleeper.clock = WallClock::new(move || {
        SystemTime::UNIX_EPOCH + clock.elapsed() + Duration::from_secs(slept.load(Ordering::Relaxed))
    });
    let (mut a, mut b) = (peer(&host_a, sleeper).await, peer(&host_b, config(2).relay_at(addr)).await);
    a.registered().await;
    b.registered().await;
    a.node.dial(b.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    a.goes(PathKind::Direct, secs(5)).await;
    time::sleep(secs(20)).await;
    uncounted.store(asleep.as_secs(), Ordering::Relaxed);
    let before = host_a.traffic().sent;
    exchange(&mut a, &mut b).await;
    host_a.traffic().sent - before
}

#[test]
fn a_node_that_has_slept_surveys_its_network_and_asks_all_its_routes_again() {
    scenario(1, secs(120), |world| async move {
        let awake = packets_after(&world, Duration::ZERO).await;
        assert!(awake < 8, "{awake}");
    });
    scenario(1, secs(120), |world| async move {
        let asleep = packets_after(&world, secs(3_600)).await;
        println!("{asleep} packets after an hour of sleep");
        assert!(asleep > 12, "{asleep}");
    });
}

#[test]
fn a_router_that_forgets_everything_and_a_new_address_are_a_pause_of_less_than_a_second() {
    for seed in 0..10 {
        scenario(seed, secs(120), |world| async move {
            let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
            let mut home = NatConfig::port_restricted();
            home.ports = Ports::Random; // a mapping made anew is another one
            let (nat_a, nat_b) = (world.nat("nat a", home.clone()), world.nat("nat b", home));
            let host_a = nat_a.host("a");
            let mut a = peer(&host_a, config(1).relay_at(addr.clone())).await;
            let mut b = peer(&nat_b.host("b"), config(2).relay_at(addr)).await;
            a.registered().await;
            b.registered().await;
            a.node.dial(b.node.ticket()).await.unwrap();
            a.up().await;
            b.up().await;
            a.goes(PathKind::Direct, secs(5)).await;
            b.goes(PathKind::Direct, secs(5)).await;
            time::sleep(secs(5)).await;
            for what in ["router", "address"] {
                let trouble = tokio::spawn({
                    let (nat_a, host_a) = (nat_a.clone(), host_a.clone());
                    async move {
                        time::sleep(secs(1)).await;
                        if what == "router" {
                            nat_a.forget_mappings();
                        } else {
                            host_a.renumber();
                        }
                    }
                });
                let gaps = flows(&mut a, &mut b, 200, ms(20)).await;
                println!("seed {seed}, {what}: {gaps:?}");
                assert!(gaps.iter().all(|gap| *gap < ms(900)), "seed {seed}, {what}: {gaps:?}");
                trouble.await.unwrap();
                time::sleep(secs(10)).await;
            }
        });
    }
}
