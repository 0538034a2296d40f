//! A connection outlives its direct path, and its relay.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use byway::{Event, PathKind};
use byway_sim::{Host, Packet, Verdict, World};
use tokio::time;

use crate::common::{Peer, config, config_anew, exchange, flow, flows, kill, ms, peer, relay, scenario, secs};

/// The longest silence that an application may see when a path dies.
const STALL: Duration = Duration::from_millis(1_500);

struct Pair {
    hosts: [Host; 3],
    a: Peer,
    b: Peer,
    relay: byway::Node,
}

/// Two nodes that are registered at one relay, connected and on a direct path.
async fn pair(world: &World, relay_only: bool) -> Pair {
    let hosts = ["a", "b", "relay"].map(|name| world.host(name));
    let (relay, addr) = relay(&hosts[2], config(9)).await;
    let [mut config_a, mut config_b] = [1, 2].map(|n| config(n).relay_at(addr.clone()));
    config_a.relay_only = relay_only;
    config_b.relay_only = relay_only;
    let (mut a, mut b) = (peer(&hosts[0], config_a).await, peer(&hosts[1], config_b).await);
    a.registered().await;
    b.registered().await;
    a.node.dial(b.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    time::sleep(secs(2)).await; // let both routes be proven
    let kind = if relay_only { PathKind::Relay } else { PathKind::Direct };
    a.goes(kind, secs(5)).await;
    b.goes(kind, secs(5)).await;
    Pair { hosts, a, b, relay }
}

#[test]
fn messages_go_on_over_the_relay_while_the_direct_path_is_cut() {
    for seed in 0..5 {
        scenario(seed, secs(120), |world| async move {
            let Pair { hosts, mut a, mut b, relay: _relay } = pair(&world, false).await;
            let cut = async {
                time::sleep(secs(2)).await;
                let cut = world.cut(&hosts[0], &hosts[1]);
                time::sleep(secs(8)).await;
                cut.lift();
            };
            let (seen, ()) = tokio::join!(flows(&mut a, &mut b, 1_500, ms(20)), cut);
            seen.iter().for_each(|gap| assert!(*gap < STALL, "seed {seed}: {seen:?}"));
            println!("seed {seed}: {seen:?}");
            a.goes(PathKind::Direct, secs(10)).await;
            b.goes(PathKind::Direct, secs(10)).await;
            assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the connection did not last");
        });
    }
}

#[test]
fn messages_go_on_while_one_direction_of_the_direct_path_is_cut() {
    for (seed, forward) in [(0, true), (1, false), (2, true), (3, false)] {
        scenario(seed, secs(120), |world| async move {
            let Pair { hosts, mut a, mut b, relay: _relay } = pair(&world, false).await;
            let cut = async {
                time::sleep(secs(2)).await;
                let (from, to) = if forward { (0, 1) } else { (1, 0) };
                let cut = world.cut_one_way(&hosts[from], &hosts[to]);
                time::sleep(secs(8)).await;
                cut.lift();
            };
            let (seen, ()) = tokio::join!(flows(&mut a, &mut b, 1_500, ms(20)), cut);
            println!("seed {seed}: {seen:?}");
            seen.iter().for_each(|gap| assert!(*gap < STALL, "seed {seed}: {seen:?}"));
            a.goes(PathKind::Direct, secs(10)).await;
            b.goes(PathKind::Direct, secs(10)).await;
            assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the connection did not last");
        });
    }
}

#[test]
fn a_one_way_flow_survives_the_death_of_its_direct_path() {
    scenario(7, secs(120), |world| async move {
        let Pair { hosts, a, mut b, relay: _relay } = pair(&world, false).await;
        let cut = async {
            time::sleep(secs(2)).await;
            let cut = world.cut(&hosts[0], &hosts[1]);
            time::sleep(secs(5)).await;
            cut.lift();
        };
        let to = b.id();
        let (seen, ()) = tokio::join!(flow(&a.tx, &mut b.rx, to, 1_000, ms(20)), cut);
        println!("{seen:?}");
        assert!(seen < STALL, "{seen:?}");
    });
}

#[test]
fn a_relayed_connection_goes_on_after_its_relay_was_killed_and_started_anew() {
    scenario(1, secs(300), |world| async move {
        let Pair { hosts, mut a, mut b, relay: _old } = pair(&world, true).await;
        let successor = world.host("successor");
        let restart = async {
            time::sleep(secs(2)).await;
            kill(&hosts[2], &successor);
            let (new, _) = relay(&successor, config_anew(9)).await;
            new
        };
        let (seen, new) = tokio::join!(flows(&mut a, &mut b, 200, ms(100)), restart);
        println!("{seen:?}");
        seen.iter().for_each(|gap| assert!(*gap < secs(5), "{seen:?}"));
        a.registered().await;
        b.registered().await;
        let serving = new.status().await.serving.unwrap();
        assert_eq!((serving.clients, serving.allocations), (2, 1));
        assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the connection did not last");
    });
}

#[test]
fn nodes_register_anew_within_seconds_of_their_relays_restart() {
    scenario(1, secs(300), |world| async move {
        let Pair { hosts, mut a, mut b, relay: _old } = pair(&world, false).await;
        time::sleep(secs(20)).await; // nothing but keep-alives for a while
        let successor = world.host("successor");
        let mut events = [a.node.events(), b.node.events()];
        kill(&hosts[2], &successor);
        let (new, _) = relay(&successor, config_anew(9)).await;
        let killed = time::Instant::now();
        for events in &mut events {
            while !matches!(events.recv().await.unwrap(), Event::RelayUp { .. }) {}
        }
        println!("registered anew after {:?}", killed.elapsed());
        assert!(killed.elapsed() < secs(7), "{:?}", killed.elapsed());
        time::sleep(secs(2)).await;
        assert_eq!(new.status().await.serving.unwrap().allocations, 1, "the standby route is open again");
        assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the direct connection did not last");
        assert_eq!(a.path().await, Some(PathKind::Direct));
    });
}

/// A restarted relay answers short packets of connections that it does not know (RFC 9000 §10.3). Where all that a client sends again
/// is of its handshake, or gets lost, something new has to be said.
#[test]
fn an_idle_node_registers_anew_though_nothing_that_it_sends_again_is_answered() {
    for seed in 0..4 {
        scenario(seed, secs(300), |world| async move {
            let hosts = ["a", "relay", "successor"].map(|name| world.host(name));
            let (_old, addr) = relay(&hosts[1], config(9)).await;
            let ip = hosts[1].addr();
            let killed = Arc::new(AtomicBool::new(false));
            let (is_killed, seen) = (Arc::clone(&killed), Mutex::new(BTreeSet::<Vec<u8>>::new()));
            world.rule(move |packet: &Packet<'_>| {
                let is_short = packet.payload.first().is_some_and(|first| first & 0xc0 == 0x40);
                if packet.to.ip() != ip || !is_short {
                    return Verdict::Pass;
                }
                let mut seen = seen.lock().unwrap();
                if !is_killed.load(Ordering::Relaxed) {
                    seen.insert(packet.payload.to_vec());
                }
                if is_killed.load(Ordering::Relaxed) && seen.contains(packet.payload) {
                    Verdict::Drop
                } else {
                    Verdict::Pass
                }
            });
            let a = peer(&hosts[0], config(1).relay_at(addr)).await;
            a.registered().await;
            time::sleep(secs(20) + ms(1_300) * seed as u32).await;
            let mut events = a.node.events();
            killed.store(true, Ordering::Relaxed);
            kill(&hosts[1], &hosts[2]);
            let (_new, _) = relay(&hosts[2], config_anew(9)).await;
            let since = time::Instant::now();
            while !matches!(events.recv().await.unwrap(), Event::RelayUp { .. }) {}
            println!("seed {seed}: registered anew after {:?}", since.elapsed());
            assert!(since.elapsed() < secs(8), "{:?}", since.elapsed());
        });
    }
}

#[test]
fn a_relayed_connection_goes_on_within_seconds_after_its_relay_was_away_for_a_minute() {
    scenario(1, secs(300), |world| async move {
        let Pair { hosts, mut a, mut b, relay: _old } = pair(&world, true).await;
        time::sleep(secs(5)).await;
        let successor = world.host("successor");
        kill(&hosts[2], &successor);
        time::sleep(secs(60)).await;
        let (_new, _) = relay(&successor, config_anew(9)).await;
        let returned = time::Instant::now();
        exchange(&mut a, &mut b).await;
        println!("answered after {:?}", returned.elapsed());
        assert!(returned.elapsed() < secs(4), "{:?}", returned.elapsed());
        assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the connection did not last");
    });
}

#[test]
fn the_standby_route_works_again_after_the_relay_came_back() {
    scenario(1, secs(300), |world| async move {
        let Pair { hosts, mut a, mut b, relay: _old } = pair(&world, false).await;
        let successor = world.host("successor");
        kill(&hosts[2], &successor);
        let _new = relay(&successor, config_anew(9)).await;
        time::sleep(secs(20)).await;
        let cut = async {
            time::sleep(secs(1)).await;
            drop(world.cut(&hosts[0], &hosts[1]));
        };
        let (seen, ()) = tokio::join!(flows(&mut a, &mut b, 500, ms(20)), cut);
        println!("{seen:?}");
        seen.iter().for_each(|gap| assert!(*gap < STALL, "{seen:?}"));
    });
}

#[test]
fn a_relay_that_stays_away_does_not_disturb_a_direct_connection() {
    scenario(1, secs(300), |world| async move {
        let Pair { hosts, mut a, mut b, relay: _relay } = pair(&world, false).await;
        let down = async {
            time::sleep(secs(2)).await;
            hosts[2].set_down();
        };
        let (seen, ()) = tokio::join!(flows(&mut a, &mut b, 1_500, ms(20)), down);
        seen.iter().for_each(|gap| assert!(*gap < ms(200), "{seen:?}"));
        assert_eq!(a.path().await, Some(PathKind::Direct));
    });
}
