//! When a survey of the NATs is made anew, and what is known until then.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use byway::{HostAddr, PathKind};
use byway_sim::{Nat, NatConfig, Ports, StunServer, World};
use tokio::time::{self, Instant};

use crate::common::{Peer, config, exchange, ms, peer, relay, scenario, secs};

/// Where the survey sees a node.
async fn seen_at(node: &Peer) -> Option<IpAddr> {
    node.node.status().await.nat.report.ipv4?.public.map(|public| public.ip())
}

/// Waits until the survey knows that the node is behind this NAT; how long that took.
async fn knows(node: &Peer, nat: &Nat) -> Duration {
    let start = Instant::now();
    while seen_at(node).await != Some(nat.addr()) {
        assert!(start.elapsed() < secs(60), "still {:?}, not {}", seen_at(node).await, nat.addr());
        time::sleep(ms(50)).await;
    }
    start.elapsed()
}

fn stun_servers(world: &World) -> ([StunServer; 2], Vec<HostAddr>) {
    let servers = ["stun 1", "stun 2"].map(|name| StunServer::start(&world.host(name)).unwrap());
    let addrs = servers.iter().map(|server| HostAddr::Socket(server.addr())).collect();
    (servers, addrs)
}

#[test]
fn a_router_that_gets_another_address_is_surveyed_anew_as_soon_as_the_relay_sees_it() {
    scenario(1, secs(200), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let home = world.nat("home", NatConfig::symmetric(Ports::Random));
        let a = peer(&home.host("a"), config(1).relay_at(addr)).await;
        a.registered().await;
        knows(&a, &home).await;
        time::sleep(secs(100)).await;
        home.renumber();
        let took = knows(&a, &home).await;
        assert!(took < secs(15), "{took:?}");
        assert_eq!(a.node.status().await.nat.report.ipv4.unwrap().lifetime, None, "nobody has looked yet");
    });
}

#[test]
fn a_router_that_gets_another_address_while_a_lifetime_is_learned_teaches_none() {
    // The looks come after 15, 45, 105 s and so on: whichever wait the change falls into.
    for at in [8, 20, 60, 150] {
        scenario(at, secs(1_500), |world| async move {
            let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
            let mut config_of_home = NatConfig::port_restricted();
            config_of_home.timeout = secs(600);
            let home = world.nat("home", config_of_home);
            let a = peer(&home.host("a"), config(1).relay_at(addr)).await;
            a.registered().await;
            time::sleep(secs(at)).await;
            home.renumber();
            time::sleep(secs(900)).await;
            let found = a.node.status().await.nat.report.ipv4.unwrap().lifetime;
            assert_eq!(found, Some(secs(240)), "changed after {at} s");
        });
    }
}

#[test]
fn a_node_without_relays_keeps_the_mapping_that_its_ticket_tells_and_follows_the_router() {
    scenario(2, secs(2_000), |world| async move {
        let mut forgetful = NatConfig::full_cone();
        forgetful.timeout = secs(60);
        let home = world.nat("home", forgetful);
        let (_servers, addrs) = stun_servers(&world);
        let mut asking = config(1);
        asking.stun = addrs;
        let mut a = peer(&home.host("a"), asking).await;
        knows(&a, &home).await;
        let ticket = a.node.ticket();
        time::sleep(secs(900)).await;
        let mut b = peer(&world.nat("other", NatConfig::port_restricted()).host("b"), config(2)).await;
        b.node.dial(ticket).await.unwrap();
        b.up().await;
        a.up().await;
        assert_eq!(b.path().await, Some(PathKind::Direct));
        exchange(&mut b, &mut a).await;
        home.renumber();
        let took = knows(&a, &home).await;
        assert!(took <= secs(25), "{took:?}");
        assert!(a.node.addrs().iter().any(|addr| addr.ip() == home.addr()), "{:?}", a.node.addrs());
    });
}

#[test]
fn a_bridge_for_containers_is_no_other_network_and_an_address_of_the_line_is() {
    scenario(3, secs(100), |world| async move {
        let (servers, addrs) = stun_servers(&world);
        let asked = Arc::new(AtomicU32::new(0));
        let (count, ips) = (Arc::clone(&asked), servers.each_ref().map(|server| server.addr().ip()));
        let _rule = world.rule(move |packet: &byway_sim::Packet<'_>| {
            count.fetch_add(ips.contains(&packet.to.ip()).into(), Ordering::Relaxed);
            byway_sim::Verdict::Pass
        });
        let host = world.host("a");
        let mut asking = config(1);
        asking.stun = addrs;
        let a = peer(&host, asking).await;
        time::sleep(secs(5)).await;
        assert_eq!(seen_at(&a).await, Some(host.addr()));
        let bridge: IpAddr = [172, 17, 0, 1].into();
        let before = asked.load(Ordering::Relaxed);
        for _ in 0..3 {
            host.add_addr(bridge);
            time::sleep(secs(5)).await;
            assert!(a.node.addrs().iter().any(|addr| addr.ip() == bridge), "{:?}", a.node.addrs());
            host.remove_addr(bridge);
            time::sleep(secs(5)).await;
        }
        assert_eq!(asked.load(Ordering::Relaxed) - before, 0, "packets for a bridge");
        host.add_ipv4();
        time::sleep(secs(5)).await;
        assert!(asked.load(Ordering::Relaxed) > before, "no packet for a new address");
    });
}

#[test]
fn in_a_network_that_is_not_known_yet_idle_paths_are_pinged_as_often_as_at_first() {
    scenario(4, secs(2_000), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let [home, other] = ["home", "other"].map(|name| {
            let mut nat = NatConfig::full_cone();
            nat.timeout = secs(600);
            world.nat(name, nat)
        });
        let mut a = peer(&home.host("a"), config(1).relay_at(addr.clone())).await;
        let mut b = peer(&other.host("b"), config(2).relay_at(addr)).await;
        a.registered().await;
        b.registered().await;
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        time::sleep(secs(900)).await;
        let learned = a.node.status().await.nat.report.ipv4.unwrap().lifetime;
        assert_eq!(learned, Some(secs(240)));
        home.set_timeout(secs(20));
        home.renumber();
        knows(&a, &home).await;
        a.goes(PathKind::Direct, secs(60)).await;
        time::sleep(secs(2)).await;
        a.keeps_its_path(secs(300)).await;
    });
}
