//! Nodes behind gateways that map ports for them, tell lies, restart, or say nothing.

use std::net::{Ipv6Addr, SocketAddr};

use byway::{Event, PathKind, PeerAddr, RelayConfig};
use byway_proto::{
    nat::portmap::Transport,
    wire::{natpmp, pcp},
};
use byway_sim::{Gateway, Manner, Nat, NatConfig, Ports, World};
use tokio::time;

use crate::common::{PORT, Peer, config, exchange, peer, relay, scenario, secs};

/// The hardest NAT, with a gateway that answers as `change` has it.
fn symmetric(world: &World, change: impl FnOnce(&mut Gateway)) -> Nat {
    let mut gateway = Gateway::default();
    change(&mut gateway);
    let mut nat = NatConfig::symmetric(Ports::Random);
    nat.gateway = Some(gateway);
    world.nat("hard", nat)
}

/// Waits until the gateway has mapped the node's port; where to.
async fn mapped(peer: &mut Peer) -> SocketAddr {
    let found = async {
        loop {
            if let Some(Event::MappingAdded { external, .. }) = peer.events.recv().await {
                return external;
            }
        }
    };
    time::timeout(secs(30), found).await.expect("the gateway maps the port")
}

async fn lost(peer: &mut Peer) -> String {
    loop {
        if let Some(Event::MappingLost { why, .. }) = peer.events.recv().await {
            return why;
        }
    }
}

#[test]
fn node_behind_the_hardest_nat_is_reached_directly_by_its_mapped_port() {
    for (seed, natpmp) in [(1, false), (2, true)] {
        scenario(seed, secs(60), |world| async move {
            let hard = symmetric(&world, |gateway| (gateway.natpmp, gateway.pcp) = (natpmp, !natpmp));
            let home = world.nat("home", NatConfig::port_restricted());
            let mut a = peer(&hard.host("a"), config(1)).await;
            let mut b = peer(&home.host("b"), config(2)).await;
            let external = mapped(&mut a).await;
            assert_eq!(external, SocketAddr::new(hard.addr(), PORT));
            assert_eq!(a.node.ticket().addrs.first(), Some(&external));
            b.node.dial(a.node.ticket()).await.unwrap();
            a.up().await;
            exchange(&mut a, &mut b).await;
            assert_eq!(b.path().await, Some(PathKind::Direct));
        });
    }
}

#[test]
fn stranger_reaches_a_node_behind_an_ipv6_firewall_by_the_pinhole_that_it_asked_for_and_nobody_once_it_is_closed() {
    scenario(6, secs(60), |world| async move {
        let hard = symmetric(&world, |gateway| gateway.natpmp = false);
        let (inside, outside) = (hard.host("a"), world.host("b"));
        let there = SocketAddr::new(inside.add_ipv6().into(), PORT);
        outside.add_ipv6();
        let both = |n| {
            let mut config = config(n);
            config.ipv6 = Some(Ipv6Addr::UNSPECIFIED);
            config
        };
        let mut a = peer(&inside, both(1)).await;
        let found = async { while mapped(&mut a).await != there {} };
        time::timeout(secs(30), found).await.expect("the gateway opens a pinhole");
        let mut b = peer(&outside, both(2)).await;
        b.node.dial(PeerAddr::new(a.id(), [there])).await.unwrap();
        a.up().await;
        exchange(&mut a, &mut b).await;
        a.node.close().await;
        assert_eq!(hard.mapped_ports(), 0);
        drop(a);
        time::sleep(secs(5)).await; // the port is free again
        let socket = inside.bind_udp(there).unwrap();
        let stranger = outside.bind_udp(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 9)).unwrap();
        stranger.send_to(b"x", there).unwrap();
        assert!(time::timeout(secs(1), socket.recv_from(&mut [0; 9])).await.is_err(), "a stranger gets in");
    });
}

#[test]
fn gateway_that_restarts_maps_the_port_again_within_two_minutes() {
    scenario(3, secs(300), |world| async move {
        let hard = symmetric(&world, |_| {});
        let mut a = peer(&hard.host("a"), config(1)).await;
        mapped(&mut a).await;
        time::sleep(secs(100)).await;
        hard.forget_mappings();
        assert_eq!(hard.mapped_ports(), 0);
        let why = time::timeout(secs(61), lost(&mut a)).await.unwrap();
        assert!(why.contains("restarted"), "{why}");
        mapped(&mut a).await;
        assert_eq!(hard.mapped_ports(), 1);
    });
}

#[test]
fn mapping_is_renewed_as_long_as_the_node_runs() {
    scenario(4, secs(2_000), |world| async move {
        let hard = symmetric(&world, |gateway| gateway.max_lifetime = secs(60));
        let mut a = peer(&hard.host("a"), config(1)).await;
        mapped(&mut a).await;
        for _ in 0..100 {
            time::sleep(secs(10)).await;
            assert_eq!(hard.mapped_ports(), 1);
        }
    });
}

#[test]
fn neighbours_forged_answer_is_not_believed() {
    scenario(5, secs(60), |world| async move {
        let home = world.nat("home", NatConfig::port_restricted());
        let (host, neighbour) = (home.host("a"), home.host("neighbour"));
        let victim = host.addr();
        // The gateway says nothing; the neighbour sends every port of the node all that it may be waiting for, in NAT-PMP, which
        // has no nonce.
        let a = peer(&host, config(1)).await;
        let socket = neighbour.bind_udp(SocketAddr::new(neighbour.addr(), pcp::PORT)).unwrap();
        let map =
            natpmp::Map { transport: Transport::Udp, internal_port: PORT, external_port: PORT, lifetime: secs(3_600) };
        let forged = [natpmp::Body::ExternalAddress([11, 6, 6, 6].into()), natpmp::Body::Map(map)]
            .map(|body| natpmp::encode_response(&natpmp::Response { epoch: 1, body }));
        for _ in 0..5 {
            for port in 1_024..=u16::MAX {
                let to = SocketAddr::new(victim, port);
                forged.iter().for_each(|forged| socket.send_to(forged, to).unwrap());
            }
            time::sleep(secs(1)).await;
        }
        time::sleep(secs(30)).await;
        let status = a.node.status().await;
        assert!(status.mappings.iter().all(|mapping| mapping.external.is_none()), "{:?}", status.mappings);
        assert!(status.mappings[0].state.contains("neither PCP"), "{:?}", status.mappings);
    });
}

#[test]
fn closing_removes_the_mapping_and_a_dead_gateway_does_not_hold_it_up() {
    scenario(6, secs(60), |world| async move {
        let hard = symmetric(&world, |_| {});
        let mut a = peer(&hard.host("a"), config(1)).await;
        mapped(&mut a).await;
        assert_eq!(hard.mapped_ports(), 1);
        a.node.close().await;
        assert_eq!(hard.mapped_ports(), 0);

        let mut b = peer(&hard.host("b"), config(2)).await;
        mapped(&mut b).await;
        hard.set_down();
        let begun = time::Instant::now();
        b.node.close().await;
        assert!(begun.elapsed() <= secs(4), "{:?}", begun.elapsed());
    });
}

#[test]
fn mapping_behind_a_carriers_nat_is_told_but_not_offered_as_public() {
    scenario(7, secs(60), |world| async move {
        let carrier = world.nat("carrier", NatConfig::symmetric(Ports::Random));
        let mut config_of_home = NatConfig::port_restricted();
        config_of_home.gateway = Some(Gateway::default());
        let home = carrier.nat("home", config_of_home);
        let mut a = peer(&home.host("a"), config(1)).await;
        let external = mapped(&mut a).await;
        assert_eq!(external.ip(), home.addr());
        let status = a.node.status().await;
        assert!(status.mappings[0].carrier);
        assert!(!a.node.addrs().contains(&external));
    });
}

#[test]
fn the_survey_learns_from_the_gateway_whether_a_carriers_nat_stands_before_it() {
    scenario(7, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let carrier = world.nat("carrier", NatConfig::symmetric(Ports::Random));
        let mut home = NatConfig::port_restricted();
        home.gateway = Some(Gateway::default());
        let homes = [carrier.nat("behind", home.clone()), world.nat("home", home)];
        for (n, (home, is_behind)) in (1..).zip(homes.iter().zip([true, false])) {
            let mut a = peer(&home.host("a"), config(n).relay_at(addr.clone())).await;
            a.registered().await;
            mapped(&mut a).await;
            time::sleep(secs(5)).await;
            let found = a.node.status().await.nat.report.ipv4.unwrap();
            assert_eq!(found.carrier, Some(is_behind), "{found:?}");
        }
    });
}

#[test]
fn node_without_a_gateway_asks_nobody_and_a_silent_one_costs_eight_datagrams() {
    scenario(8, secs(3_600), |world| async move {
        let host = world.host("public");
        let _a = peer(&host, config(1)).await;
        let home = world.nat("home", NatConfig::port_restricted());
        let silent = home.host("b");
        let _b = peer(&silent, config(2)).await;
        let off = home.host("c");
        let mut without = config(3);
        without.port_mapping = false;
        let _c = peer(&off, without).await;
        time::sleep(secs(3_000)).await;
        let other_duties = off.traffic().sent;
        assert_eq!(host.traffic().sent, other_duties);
        assert_eq!(silent.traffic().sent - other_duties, 8);
    });
}

#[test]
fn another_nodes_port_is_passed_over() {
    scenario(9, secs(60), |world| async move {
        let hard = symmetric(&world, |_| {});
        let mut a = peer(&hard.host("a"), config(1)).await;
        let mut b = peer(&hard.host("b"), config(2)).await;
        let ports = [mapped(&mut a).await.port(), mapped(&mut b).await.port()];
        assert_eq!(ports, [PORT, PORT + 1]);
    });
}

#[test]
fn relay_behind_a_gateway_is_reached_over_tls_by_its_mapped_tcp_port() {
    scenario(11, secs(60), |world| async move {
        let hard = symmetric(&world, |_| {});
        let mut serving = config(9);
        serving.relay = Some(RelayConfig::default());
        let mut relay = peer(&hard.host("relay"), serving).await;
        let external = [mapped(&mut relay).await, mapped(&mut relay).await];
        assert_eq!(external, [SocketAddr::new(hard.addr(), PORT); 2]);
        let transports: Vec<_> = relay.node.status().await.mappings.iter().map(|mapping| mapping.transport).collect();
        assert_eq!(transports, [Transport::Udp, Transport::Tcp]);
        let blocked = world.nat("office", NatConfig::udp_blocked());
        let client = config(1).relay_at(PeerAddr::new(relay.id(), [external[0]]));
        let client = peer(&blocked.host("a"), client).await;
        client.registered().await;
        assert!(client.node.status().await.relays[0].over_tls);
        relay.node.close().await;
        assert_eq!(hard.mapped_ports(), 0);
    });
}

#[test]
fn node_that_is_no_relay_maps_no_tcp_port() {
    scenario(12, secs(60), |world| async move {
        let hard = symmetric(&world, |_| {});
        let mut a = peer(&hard.host("a"), config(1)).await;
        mapped(&mut a).await;
        time::sleep(secs(30)).await;
        assert_eq!((hard.mapped_ports(), a.node.status().await.mappings.len()), (1, 1));
    });
}

#[test]
fn gateway_that_lies_leaves_the_node_as_reachable_as_without_it() {
    scenario(10, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let mut lying = NatConfig::port_restricted();
        lying.ports = Ports::Random; // so that the port that it boasts of is not the node's by chance
        let mut gateway = Gateway::default();
        gateway.manner = Manner::Boastful;
        lying.gateway = Some(gateway);
        let home = world.nat("home", lying);
        let mut a = peer(&home.host("a"), config(1).relay_at(addr.clone())).await;
        let other = world.nat("other", NatConfig::port_restricted());
        let mut b = peer(&other.host("b"), config(2).relay_at(addr)).await;
        let external = mapped(&mut a).await;
        // It is told as the gateway's word, and one candidate among others.
        let status = a.node.status().await;
        assert_eq!((home.mapped_ports(), status.mappings[0].external), (0, Some(external)));
        assert!(status.mappings[0].state.contains("says"), "{}", status.mappings[0].state);
        assert!(a.node.addrs().contains(&external));
        a.registered().await;
        b.registered().await;
        // Beside what the gateway boasts of it tells where its relay really sees it.
        let seen = a.node.status().await.relays[0].observed.unwrap();
        assert_ne!(seen, external);
        assert!(a.node.addrs().contains(&seen), "{seen} is not among {:?}", a.node.addrs());
        b.node.dial(a.node.ticket()).await.unwrap();
        a.up().await;
        exchange(&mut a, &mut b).await;
        b.goes(PathKind::Direct, secs(5)).await;
        exchange(&mut a, &mut b).await;
    });
}

#[test]
fn gateway_that_lies_does_not_hide_where_a_peer_has_seen_the_node() {
    scenario(13, secs(60), |world| async move {
        let mut lying = NatConfig::full_cone();
        lying.ports = Ports::Random;
        let mut gateway = Gateway::default();
        gateway.manner = Manner::Boastful;
        lying.gateway = Some(gateway);
        let home = world.nat("home", lying);
        let mut a = peer(&home.host("a"), config(1)).await;
        let boasted = mapped(&mut a).await;
        let b = peer(&world.host("b"), config(2)).await;
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        time::sleep(secs(5)).await;
        let seen = b.node.status().await.peers[0].routes[0].remote;
        let told = a.node.ticket().addrs;
        assert!(seen != boasted && told.contains(&boasted) && told.contains(&seen), "{seen}, {boasted}: {told:?}");
        let mut c = peer(&world.nat("other", NatConfig::port_restricted()).host("c"), config(3)).await;
        c.node.dial(a.node.ticket()).await.unwrap();
        c.up().await;
        exchange(&mut c, &mut a).await;
    });
}
