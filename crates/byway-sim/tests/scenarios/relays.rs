//! A node is registered at the nearest two of its relays, and each connection has a route by two: one relay's death, or its
//! farewell, is a switch.

use std::{net::SocketAddr, time::Duration};

use byway::{Access, Event, Node, PathKind, PeerAddr, PeerId, RelayConfig, Ticket};
use byway_sim::{Host, Link, Loss, World};
use tokio::time::{self, Instant};

use crate::{
    common::{PORT, Peer, config, config_anew, exchange, flows, ms, peer, relay, scenario, secs},
    relay_rules::DEAD,
};

/// The gate of `relay-death`.
const STALL: Duration = Duration::from_millis(1_000);

struct Relay {
    host: Host,
    node: Node,
    addr: PeerAddr,
}

/// Relays whose access links have these delays in ms.
async fn relays(world: &World, delays: &[u64]) -> Vec<Relay> {
    let mut relays = Vec::new();
    for (n, delay) in (0u8..).zip(delays) {
        let host = world.host(&format!("relay {n}"));
        host.set_link(Link::standard().delay(ms(*delay)));
        let (node, addr) = relay(&host, config(100 + n)).await;
        relays.push(Relay { host, node, addr });
    }
    relays
}

/// Node `n`, which may be reached through relays alone and chooses from these.
async fn relayed(world: &World, n: u8, relays: &[&Relay]) -> Peer {
    on_line(world, n, relays, 0.01).await
}

/// As [`relayed`], on a line that loses this share of packets.
async fn on_line(world: &World, n: u8, relays: &[&Relay], loss: f64) -> Peer {
    let host = world.host(&format!("node {n}"));
    host.edit_link(|link| link.loss = Loss::Random(loss));
    let mut config = config(n);
    config.relay_only = true;
    config.relays = relays.iter().map(|relay| relay.addr.clone()).collect();
    let peer = peer(&host, config).await;
    settles(&peer, relays.len().min(2)).await;
    peer
}

/// Where a node is registered and wants to be.
async fn homes(peer: &Peer) -> Vec<PeerId> {
    let relays = peer.node.status().await.relays;
    relays.iter().filter(|relay| relay.home && relay.registered).map(|relay| relay.id).collect()
}

/// Waits until a node is registered at so many relays; how long that took.
async fn settles(peer: &Peer, count: usize) -> Duration {
    let start = Instant::now();
    while homes(peer).await.len() != count {
        assert!(start.elapsed() < secs(10), "{:#?}", peer.node.status().await.relays);
        time::sleep(ms(20)).await;
    }
    start.elapsed()
}

/// The relays of a node's first peer that answer, the selected one first.
async fn ways(peer: &Peer, relays: &[Relay]) -> Vec<PeerId> {
    let status = peer.node.status().await;
    let Some(peer) = status.peers.first() else { return Vec::new() };
    let proven = peer.routes.iter().filter(|route| route.path == PathKind::Relay && route.proven && route.alive);
    let mut alive: Vec<_> = proven.collect();
    alive.sort_by_key(|route| (!route.selected, route.remote));
    let id = |ip| relays.iter().find(|relay| relay.host.addrs().contains(&ip)).map(|relay| relay.addr.id);
    let mut ways: Vec<_> = alive.iter().filter_map(|route| id(route.remote.ip())).collect();
    ways.dedup(); // both sides may have opened the same relay
    ways
}

/// Waits until a node's first peer answers by two relays.
async fn has_two_ways(peer: &Peer, relays: &[Relay]) -> Vec<PeerId> {
    let start = Instant::now();
    loop {
        let ways = ways(peer, relays).await;
        if ways.len() == 2 {
            return ways;
        }
        assert!(start.elapsed() < secs(15), "{ways:?} {:#?}", peer.node.status().await);
        time::sleep(ms(50)).await;
    }
}

async fn connected(a: &mut Peer, b: &mut Peer) {
    a.node.dial(b.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    exchange(a, b).await;
}

/// How often a relay refuses a node in five minutes.
async fn refusals(peer: &Peer) -> usize {
    let mut events = peer.node.events();
    let mut refused = 0;
    let listening = async {
        loop {
            refused += usize::from(matches!(events.recv().await, Some(Event::RelayDown { .. })));
        }
    };
    assert!(time::timeout(secs(300), listening).await.is_err());
    refused
}

fn of(relays: &[Relay], id: PeerId) -> &Relay {
    relays.iter().find(|relay| relay.addr.id == id).unwrap()
}

#[test]
fn a_node_registers_at_the_nearest_two_of_its_relays() {
    scenario(1, secs(60), |world| async move {
        let relays = relays(&world, &[80, 10, 60, 30]).await;
        let mut a = relayed(&world, 1, &relays.iter().collect::<Vec<_>>()).await;
        let nearest = [relays[1].addr.clone(), relays[3].addr.clone()];
        let mut registered = homes(&a).await;
        registered.sort_by_key(|id| nearest.iter().position(|relay| relay.id == *id));
        assert_eq!(registered, nearest.clone().map(|relay| relay.id));
        time::sleep(secs(2)).await;
        assert_eq!(a.node.ticket().relays[..2], nearest);
        assert_eq!(a.node.ticket().relays[2], relays[2].addr, "the one that would take a place");
        let mut dialler = relayed(&world, 2, &[]).await;
        connected(&mut dialler, &mut a).await;
    });
}

#[test]
fn a_relays_death_under_load_is_a_short_pause() {
    for seed in 0..12 {
        scenario(seed, secs(120), |world| async move {
            let relays = relays(&world, &[0, 0]).await;
            let all: Vec<_> = relays.iter().collect();
            let (mut a, mut b) = (relayed(&world, 1, &all).await, relayed(&world, 2, &all).await);
            connected(&mut a, &mut b).await;
            let ways = has_two_ways(&a, &relays).await;
            has_two_ways(&b, &relays).await;
            let kill = async {
                time::sleep(ms(2_000 + 37 * seed)).await;
                of(&relays, ways[0]).host.set_down();
            };
            let (seen, ()) = tokio::join!(flows(&mut a, &mut b, 400, ms(10)), kill);
            println!("seed {seed}: {seen:?}");
            seen.iter().for_each(|gap| assert!(*gap <= STALL, "seed {seed}: {seen:?}"));
            assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the connection did not last");
        });
    }
}

#[test]
fn a_dead_relay_is_replaced_by_the_next_and_the_connection_has_two_again() {
    scenario(1, secs(120), |world| async move {
        let relays = relays(&world, &[20, 25, 40]).await;
        let all: Vec<_> = relays.iter().collect();
        let (mut a, mut b) = (relayed(&world, 1, &all).await, relayed(&world, 2, &all).await);
        connected(&mut a, &mut b).await;
        let dead = has_two_ways(&a, &relays).await[0];
        let spare = relays[2].addr.id;
        of(&relays, dead).host.set_down();
        let load = async { flows(&mut a, &mut b, 300, ms(10)).await };
        let seen = load.await;
        seen.iter().for_each(|gap| assert!(*gap <= STALL, "{seen:?}"));
        for peer in [&a, &b] {
            assert!(homes(peer).await.contains(&spare), "{:#?}", peer.node.status().await.relays);
            let ways = has_two_ways(peer, &relays).await;
            assert!(ways.contains(&spare) && !ways.contains(&dead), "{ways:?}");
        }
        assert_eq!(a.node.ticket().relays.iter().position(|relay| relay.id == dead), Some(2));
    });
}

#[test]
fn when_both_relays_of_a_peer_die_the_diallers_own_are_left() {
    scenario(1, secs(120), |world| async move {
        let relays = relays(&world, &[20, 25, 25, 30]).await;
        let (theirs, own) = relays.split_at(2);
        let mut a = relayed(&world, 1, &own.iter().collect::<Vec<_>>()).await;
        let mut b = relayed(&world, 2, &theirs.iter().collect::<Vec<_>>()).await;
        connected(&mut a, &mut b).await;
        has_two_ways(&b, &relays).await;
        theirs.iter().for_each(|relay| relay.host.set_down());
        let seen = flows(&mut a, &mut b, 300, ms(10)).await;
        println!("{seen:?}");
        seen.iter().for_each(|gap| assert!(*gap < secs(4), "{seen:?}"));
        let ways = has_two_ways(&a, &relays).await;
        assert!(own.iter().all(|relay| ways.contains(&relay.addr.id)), "{ways:?}");
        assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the connection did not last");
    });
}

#[test]
fn clients_move_from_a_draining_relay_without_a_pause() {
    for count in [2, 3] {
        scenario(count, secs(120), |world| async move {
            let relays = relays(&world, &[20, 25, 40][..count as usize]).await;
            let all: Vec<_> = relays.iter().collect();
            // Nothing is lost but by the move: two losses of one message in a row would take longer than that may.
            let (mut a, mut b) = (on_line(&world, 1, &all, 0.0).await, on_line(&world, 2, &all, 0.0).await);
            connected(&mut a, &mut b).await;
            let ways = has_two_ways(&a, &relays).await;
            has_two_ways(&b, &relays).await;
            let leaving = of(&relays, ways[0]);
            let drain = async {
                time::sleep(secs(1)).await;
                leaving.node.drain(secs(5));
                time::sleep(secs(4)).await;
                let clients = leaving.node.status().await.serving.unwrap().clients;
                time::sleep(secs(2)).await;
                leaving.host.set_down();
                clients
            };
            let (seen, clients) = tokio::join!(flows(&mut a, &mut b, 800, ms(10)), drain);
            println!("{count} relays: {:?}, {clients} clients left", seen);
            seen.iter().for_each(|gap| assert!(*gap < ms(350), "{seen:?}"));
            assert!(count == 2 || clients == 0, "with another relay to go to nobody stays to the end");
            assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the connection did not last");
        });
    }
}

#[test]
fn an_idle_registration_costs_few_packets_and_a_death_is_noticed_in_time() {
    scenario(1, secs(8_000), |world| async move {
        let relays = relays(&world, &[25]).await;
        let host = world.host("node");
        let mut config = config(1);
        config.relays = vec![relays[0].addr.clone()];
        config.relay_only = true;
        let a = peer(&host, config).await;
        settles(&a, 1).await;
        time::sleep(secs(60)).await;
        let packets = |host: &Host| host.traffic().sent + host.traffic().received;
        let before = packets(&host);
        time::sleep(secs(3_600)).await;
        let cost = packets(&host) - before;
        println!("{cost} packets an hour");
        assert!(cost <= 2_000, "{cost} packets an hour");
        relays[0].host.set_down();
        let noticed = settles(&a, 0).await;
        assert!(noticed < secs(8), "{noticed:?}");
    });
}

#[test]
fn a_relay_for_friends_tells_strangers_that_it_is_one() {
    scenario(1, secs(60), |world| async move {
        let host = world.host("relay");
        let mut settings = config(100);
        let mut relay = RelayConfig::default();
        relay.access = Access::Friends([config(1).identity.id()].into());
        settings.relay = Some(relay);
        let node = Node::bind_on(host.net(), settings).await.unwrap();
        let addr = PeerAddr::new(node.id(), [std::net::SocketAddr::new(host.addr(), crate::common::PORT)]);
        let friend = peer(&world.host("friend"), config(1).relay_at(addr.clone())).await;
        let stranger = peer(&world.host("stranger"), config(2).relay_at(addr)).await;
        settles(&friend, 1).await;
        time::sleep(secs(5)).await;
        let relays = stranger.node.status().await.relays;
        assert!(!relays[0].registered && relays[0].state.contains("serves its friends only"), "{relays:#?}");
        node.set_relay(RelayConfig::default()).unwrap();
        settles(&stranger, 1).await;
        assert_eq!(node.status().await.serving.unwrap().clients, 2);
    });
}

#[test]
fn a_changed_rate_takes_hold_on_a_live_client() {
    scenario(1, secs(60), |world| async move {
        let relays = relays(&world, &[0]).await;
        let all: Vec<_> = relays.iter().collect();
        let (mut a, mut b) = (on_line(&world, 1, &all, 0.0).await, on_line(&world, 2, &all, 0.0).await);
        connected(&mut a, &mut b).await;
        let (to, tx) = (b.node.id(), a.tx.clone());
        let flood = tokio::spawn(async move { while tx.send_wait(to, vec![0; 10_000].into()).await.is_ok() {} });
        let drain = tokio::spawn(async move { while b.rx.recv().await.is_some() {} });
        let relay = &relays[0].node;
        let bytes = async || relay.status().await.serving.unwrap().bytes;
        let mut per_second = Vec::new();
        for rate in [1_000_000, 100_000] {
            let mut limits = RelayConfig::default();
            (limits.client_rate, limits.client_burst) = (rate, 1 << 16);
            relay.set_relay(limits).unwrap();
            time::sleep(secs(3)).await;
            let before = bytes().await;
            time::sleep(secs(5)).await;
            per_second.push((bytes().await - before) / 5);
        }
        println!("{per_second:?} bytes a second");
        assert!((500_000..1_100_000).contains(&per_second[0]), "{per_second:?}");
        assert!((50_000..120_000).contains(&per_second[1]), "{per_second:?}");
        assert_eq!(relay.status().await.serving.unwrap().clients, 2, "nobody was dropped");
        let mut nonsense = RelayConfig::default();
        nonsense.client_burst = 1;
        assert!(relay.set_relay(nonsense).unwrap_err().to_string().contains("client_burst is 1"));
        flood.abort();
        drain.abort();
    });
}

#[test]
fn a_relay_that_refuses_is_asked_ever_less_often_until_the_network_changes() {
    scenario(1, secs(900), |world| async move {
        let host = world.host("relay");
        let mut settings = config(100);
        let mut limits = RelayConfig::default();
        limits.access = Access::Friends([].into());
        settings.relay = Some(limits);
        let node = Node::bind_on(host.net(), settings).await.unwrap();
        let addr = PeerAddr::new(node.id(), [std::net::SocketAddr::new(host.addr(), crate::common::PORT)]);
        let home = world.host("stranger");
        let stranger = peer(&home, config(1).relay_at(addr)).await;
        let asked = refusals(&stranger).await;
        assert!((8..=14).contains(&asked), "{asked} times in five minutes");
        let state = stranger.node.status().await.relays.remove(0).state;
        assert!(state.contains("serves its friends only") && state.ends_with("trying again in 60 s"), "{state}");
        node.set_relay(RelayConfig::default()).unwrap();
        home.renumber();
        assert!(settles(&stranger, 1).await < secs(2));
    });
}

#[test]
fn a_node_that_is_no_relay_is_asked_ever_less_often_too() {
    scenario(1, secs(900), |world| async move {
        let other = peer(&world.host("no relay"), config(100)).await;
        let addr = PeerAddr::new(other.id(), other.node.addrs());
        let a = peer(&world.host("node"), config(1).relay_at(addr)).await;
        let asked = refusals(&a).await;
        assert!((8..=14).contains(&asked), "{asked} times in five minutes");
    });
}

#[test]
fn a_relay_that_was_silent_for_a_moment_is_in_use_again() {
    scenario(1, secs(120), |world| async move {
        let relays = relays(&world, &[0]).await;
        let a = on_line(&world, 1, &[&relays[0]], 0.0).await;
        relays[0].host.set_down();
        settles(&a, 0).await;
        relays[0].host.set_up();
        settles(&a, 1).await;
    });
}

#[test]
fn nodes_that_are_given_other_relays_leave_the_old_ones_and_their_connection_moves() {
    scenario(1, secs(300), |world| async move {
        let relays = relays(&world, &[20, 25, 30, 35]).await;
        let (old, new) = relays.split_at(2);
        let used: Vec<_> = old.iter().collect();
        let (mut a, mut b) = (relayed(&world, 1, &used).await, relayed(&world, 2, &used).await);
        connected(&mut a, &mut b).await;
        has_two_ways(&a, &relays).await;
        let list: Vec<_> = new.iter().map(|relay| relay.addr.clone()).collect();
        [&a, &b].into_iter().for_each(|peer| peer.node.set_relays(&list).unwrap());
        let seen = flows(&mut a, &mut b, 2_000, ms(10)).await;
        seen.iter().for_each(|gap| assert!(*gap <= STALL, "{seen:?}"));
        for peer in [&a, &b] {
            let (homes, ways) = (homes(peer).await, has_two_ways(peer, &relays).await);
            let is_new = |id: &PeerId| list.iter().any(|relay| relay.id == *id);
            assert!(homes.len() == 2 && homes.iter().chain(&ways).all(is_new), "{homes:?}, {ways:?}");
        }
        time::sleep(secs(80)).await;
        for relay in old {
            assert_eq!(relay.node.status().await.serving.unwrap().clients, 0);
        }
        assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the connection did not last");
    });
}

#[test]
fn a_relay_is_not_left_for_one_that_cannot_be_reached() {
    scenario(1, secs(120), |world| async move {
        let relays = relays(&world, &[20, 25]).await;
        let mut config = config(1).relay_at(relays[0].addr.clone());
        config.relay_only = true;
        let host = world.host("a");
        let (mut a, mut b) = (peer(&host, config).await, relayed(&world, 2, &[&relays[0]]).await);
        settles(&a, 1).await;
        connected(&mut a, &mut b).await;
        let blocked = world.cut(&host, &relays[1].host);
        [&a, &b].into_iter().for_each(|peer| peer.node.set_relays(&[relays[1].addr.clone()]).unwrap());
        let seen = flows(&mut a, &mut b, 2_000, ms(10)).await;
        seen.iter().for_each(|gap| assert!(*gap <= STALL, "{seen:?}"));
        blocked.lift();
        let start = Instant::now();
        while ways(&a, &relays).await != [relays[1].addr.id] {
            assert!(start.elapsed() < secs(60), "{:#?}", a.node.status().await);
            time::sleep(ms(100)).await;
        }
    });
}

#[test]
fn two_nodes_of_one_identity_do_not_chase_each_other_from_their_relay() {
    scenario(1, secs(400), |world| async move {
        let relays = relays(&world, &[0]).await;
        let a = peer(&world.host("a"), config(1).relay_at(relays[0].addr.clone())).await;
        let _twin = peer(&world.host("twin"), config_anew(1).relay_at(relays[0].addr.clone())).await;
        let lost = refusals(&a).await;
        assert!(lost < 30, "{lost} times in five minutes");
    });
}

#[test]
fn a_relay_whose_address_was_corrected_is_found_there() {
    scenario(1, secs(60), |world| async move {
        let relays = relays(&world, &[0]).await;
        let wrong = PeerAddr::new(relays[0].addr.id, [DEAD.parse::<SocketAddr>().unwrap()]);
        let a = peer(&world.host("node"), config(1).relay_at(wrong)).await;
        time::sleep(secs(2)).await;
        a.node.set_relays(&[relays[0].addr.clone()]).unwrap();
        settles(&a, 1).await;
    });
}

#[test]
fn two_relays_that_are_each_others_clients_are_reached_through_each_other() {
    scenario(1, secs(60), |world| async move {
        let hosts = ["one", "two"].map(|name| world.host(name));
        let secrets = [101, 102];
        let addr = |n: usize| PeerAddr::new(config(secrets[n]).identity.id(), [SocketAddr::new(hosts[n].addr(), PORT)]);
        let mut both = Vec::new();
        for (n, host) in hosts.iter().enumerate() {
            let mut settings = config(secrets[n]).relay_at(addr(1 - n));
            settings.relay = Some(RelayConfig::default());
            both.push(peer(host, settings).await);
        }
        for node in &both {
            node.registered().await;
        }
        let c = peer(&world.host("c"), config(1)).await;
        let mut ticket = Ticket::new(both[1].id());
        ticket.relays = vec![addr(0)];
        c.node.dial(ticket).await.unwrap();
    });
}
