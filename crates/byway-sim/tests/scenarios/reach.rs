//! Two nodes of the shipping stack reach each other in the simulator.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use byway::{PathKind, PeerEvent, Ticket};
use byway_proto::wire::{Kind, classify};
use byway_sim::{NatConfig, Packet, Verdict};
use tokio::time::{self, Instant};

use crate::common::{PORT, config, exchange, peer, relay, scenario, secs};

#[test]
fn a_message_crosses_a_direct_path_both_ways() {
    scenario(1, secs(60), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let (mut a, mut b) = (peer(&host_a, config(1)).await, peer(&host_b, config(2)).await);
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        exchange(&mut a, &mut b).await;
        assert_eq!(a.path().await, Some(PathKind::Direct));
        a.node.close().await;
        assert!(matches!(b.peers.next().await, Some(PeerEvent::Down { .. })));
        b.node.close().await;
    });
}

#[test]
fn peers_behind_two_nats_meet_at_the_relay_and_then_directly() {
    scenario(2, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let (nat_a, nat_b) =
            (world.nat("nat a", NatConfig::port_restricted()), world.nat("nat b", NatConfig::port_restricted()));
        let mut a = peer(&nat_a.host("a"), config(1).relay_at(addr.clone())).await;
        let mut b = peer(&nat_b.host("b"), config(2).relay_at(addr)).await;
        a.registered().await;
        b.registered().await;
        let start = Instant::now();
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        exchange(&mut a, &mut b).await;
        println!("first answer after {:?}", start.elapsed());
        a.goes(PathKind::Direct, secs(5)).await;
        println!("direct after {:?}", start.elapsed());
        exchange(&mut a, &mut b).await;
    });
}

#[test]
fn two_nodes_that_dial_each_other_at_once_keep_one_connection_within_a_second() {
    scenario(3, secs(60), |world| async move {
        let (mut a, mut b) = (peer(&world.host("a"), config(1)).await, peer(&world.host("b"), config(2)).await);
        let start = Instant::now();
        let (to_b, to_a) = tokio::join!(a.node.dial(b.node.ticket()), b.node.dial(a.node.ticket()));
        to_b.unwrap();
        to_a.unwrap();
        assert!(start.elapsed() < secs(1), "took {:?}", start.elapsed());
        tokio::time::sleep(secs(1)).await; // the other connection is gone
        exchange(&mut a, &mut b).await;
    });
}

#[test]
fn an_idle_connection_lasts_for_hours_and_costs_few_packets() {
    scenario(4, secs(10_000), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let (mut a, mut b) = (peer(&host_a, config(1)).await, peer(&host_b, config(2)).await);
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        tokio::time::sleep(secs(60)).await;
        let sent = || [&host_a, &host_b].map(|host| host.traffic().sent);
        let before = sent();
        tokio::time::sleep(secs(3_600)).await;
        let hour = [sent()[0] - before[0], sent()[1] - before[1]];
        println!("packets in an idle hour: {hour:?}");
        assert!(hour.iter().all(|sent| *sent < 1_200), "{hour:?}");
        tokio::time::sleep(secs(3_600)).await;
        assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the connection did not last");
        exchange(&mut a, &mut b).await;
    });
}

#[test]
fn late_copies_of_a_handshake_do_not_end_its_connection() {
    for seed in 0..20 {
        scenario(seed, secs(60), |world| async move {
            let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
            let mut a = peer(&world.host("a"), config(1).relay_at(addr.clone())).await;
            let mut b = peer(&world.host("b"), config(2).relay_at(addr)).await;
            a.registered().await;
            b.registered().await;
            // What the relay forwards of the dial arrives when the direct path has long carried it.
            world.rule(|packet: &Packet<'_>| match packet.payload {
                [0x81, _, _, _, _, _, _, _, _, first, ..] if first & 0x80 != 0 => Verdict::Delay(secs(2)),
                _ => Verdict::Pass,
            });
            a.node.dial(b.node.ticket()).await.unwrap();
            a.up().await;
            b.up().await;
            tokio::time::sleep(secs(4)).await;
            exchange(&mut a, &mut b).await;
        });
    }
}

#[test]
fn a_node_that_uses_relays_alone_never_shows_itself_to_a_peer() {
    scenario(3, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let mut hidden = config(1).relay_at(addr.clone());
        hidden.relay_only = true;
        let (mut a, mut b) = (peer(&host_a, hidden).await, peer(&host_b, config(2).relay_at(addr)).await);
        a.registered().await;
        b.registered().await;
        let (ip_a, ip_b) = (host_a.addr(), host_b.addr());
        world.rule(move |packet: &Packet<'_>| {
            assert!((packet.from.ip(), packet.to.ip()) != (ip_a, ip_b), "it gave its address away");
            Verdict::Pass
        });
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        exchange(&mut a, &mut b).await;
        time::sleep(secs(20)).await;
        assert_eq!((a.path().await, b.path().await), (Some(PathKind::Relay), Some(PathKind::Relay)));
    });
}

#[test]
fn a_node_that_uses_relays_alone_answers_no_ping_of_a_peer_that_knows_its_address() {
    scenario(4, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let mut hidden = config(1).relay_at(addr.clone());
        hidden.relay_only = true;
        let (mut a, mut b) = (peer(&host_a, hidden).await, peer(&host_b, config(2).relay_at(addr.clone())).await);
        a.registered().await;
        b.registered().await;
        let pings = Arc::new(AtomicU32::new(0));
        let (ip_a, ip_b, count) = (host_a.addr(), host_b.addr(), Arc::clone(&pings));
        world.rule(move |packet: &Packet<'_>| {
            assert!((packet.from.ip(), packet.to.ip()) != (ip_a, ip_b), "it answered from its own address");
            if (packet.from.ip(), packet.to.ip()) == (ip_b, ip_a) && classify(packet.payload) == Kind::Probe {
                count.fetch_add(1, Ordering::Relaxed);
            }
            Verdict::Pass
        });
        let mut ticket = Ticket::new(a.id());
        ticket.addrs = vec![SocketAddr::new(ip_a, PORT)];
        ticket.relays = a.node.ticket().relays;
        b.node.dial(ticket).await.unwrap();
        a.up().await;
        b.up().await;
        exchange(&mut b, &mut a).await;
        time::sleep(secs(20)).await;
        assert_eq!(pings.load(Ordering::Relaxed), 6);
        assert_eq!((a.path().await, b.path().await), (Some(PathKind::Relay), Some(PathKind::Relay)));
    });
}

#[test]
fn a_survey_that_found_udp_blocked_is_made_again_after_a_while() {
    scenario(3, secs(180), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let host = world.nat("nat", NatConfig::port_restricted()).host("a");
        let a = peer(&host, config(1).relay_at(addr)).await;
        let public = async || a.node.status().await.nat.report.ipv4.and_then(|family| family.public);
        a.registered().await;
        time::sleep(secs(5)).await;
        assert!(public().await.is_some());
        let blocked = world.rule(|_: &Packet<'_>| Verdict::Drop);
        host.renumber();
        time::sleep(secs(10)).await;
        assert_eq!(public().await, None);
        blocked.lift();
        time::sleep(secs(70)).await;
        assert!(public().await.is_some());
    });
}
