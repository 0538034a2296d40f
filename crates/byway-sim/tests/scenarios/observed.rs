//! Nodes that nobody tells where they are seen from but their peers.

use std::net::SocketAddr;

use byway::{HostAddr, PathKind, PeerAddr};
use byway_sim::{Nat, NatConfig, Packet, Ports, StunServer, Transport, Verdict, World};
use tokio::time::{self, Instant};

use crate::common::{PORT, Peer, config, exchange, ms, peer, relay, scenario, secs};

/// The addresses that a node tells which lie outside of its NAT.
fn outside(node: &Peer, nat: &Nat) -> Vec<SocketAddr> {
    node.node.addrs().into_iter().filter(|addr| addr.ip() == nat.addr()).collect()
}

/// Waits until a node tells an address outside of its NAT; how long that took.
async fn sees_itself(node: &Peer, nat: &Nat) -> std::time::Duration {
    let start = Instant::now();
    while outside(node, nat).is_empty() {
        assert!(start.elapsed() < secs(30), "nothing known of {}: {:?}", nat.addr(), node.node.addrs());
        time::sleep(ms(20)).await;
    }
    start.elapsed()
}

fn with_random_ports(mut nat: NatConfig) -> NatConfig {
    nat.ports = Ports::Random;
    nat
}

#[test]
fn a_stranger_reaches_a_node_where_its_first_peer_has_seen_it() {
    scenario(1, secs(120), |world| async move {
        let home = world.nat("home", with_random_ports(NatConfig::full_cone()));
        let mut a = peer(&home.host("a"), config(1)).await;
        let mut b = peer(&world.host("b"), config(2)).await;
        let mut c = peer(&world.nat("other", NatConfig::port_restricted()).host("c"), config(3)).await;
        assert_eq!(outside(&a, &home), [], "there is no relay, no server and no gateway");
        let in_vain = time::timeout(secs(20), c.node.dial(a.node.ticket())).await;
        assert!(!matches!(in_vain, Ok(Ok(_))), "nobody can know yet where the node is");

        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        let took = sees_itself(&a, &home).await;
        println!("seen after {took:?}");
        c.node.dial(a.node.ticket()).await.unwrap();
        c.up().await;
        a.up().await;
        assert_eq!(c.path().await, Some(PathKind::Direct));
        exchange(&mut c, &mut a).await;
    });
}

#[test]
fn a_node_without_relays_tells_where_stun_servers_see_it() {
    scenario(5, secs(60), |world| async move {
        let home = world.nat("home", with_random_ports(NatConfig::full_cone()));
        let servers = ["stun 1", "stun 2"].map(|name| StunServer::start(&world.host(name)).unwrap());
        let mut asking = config(1);
        asking.stun = servers.iter().map(|server| HostAddr::Socket(server.addr())).collect();
        let mut a = peer(&home.host("a"), asking).await;
        let mut b = peer(&world.nat("other", NatConfig::port_restricted()).host("b"), config(2)).await;
        let took = sees_itself(&a, &home).await;
        assert!(took < secs(3), "{took:?}");
        b.node.dial(a.node.ticket()).await.unwrap();
        b.up().await;
        a.up().await;
        assert_eq!(b.path().await, Some(PathKind::Direct));
        exchange(&mut b, &mut a).await;
    });
}

/// Two homes that reach their relay by TCP alone, so that it does not see where their packets come from, are connected over it.
async fn apart(world: &World) -> ([Nat; 2], [Peer; 2], byway::Node) {
    let host = world.host("relay");
    let (relay, addr) = relay(&host, config(9)).await;
    let at = SocketAddr::new(host.addr(), PORT);
    let deaf = world.rule(move |packet: &Packet<'_>| match packet.transport {
        Transport::Udp if packet.to == at => Verdict::Drop,
        _ => Verdict::Pass,
    });
    std::mem::forget(deaf); // to the end of the scenario
    let homes = ["home a", "home b"].map(|name| world.nat(name, with_random_ports(NatConfig::port_restricted())));
    let mut a = peer(&homes[0].host("a"), config(1).relay_at(addr.clone())).await;
    let mut b = peer(&homes[1].host("b"), config(2).relay_at(addr)).await;
    a.registered().await;
    b.registered().await;
    a.node.dial(b.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    (homes, [a, b], relay)
}

#[test]
fn two_homes_go_directly_once_a_third_peer_has_seen_both() {
    scenario(2, secs(400), |world| async move {
        let (homes, [mut a, mut b], _relay) = apart(&world).await;
        time::sleep(secs(30)).await;
        assert_eq!((a.path().await, b.path().await), (Some(PathKind::Relay), Some(PathKind::Relay)));
        let host = world.host("c");
        let mut c = peer(&host, config(3)).await;
        let addr = PeerAddr::new(c.id(), [SocketAddr::new(host.addr(), PORT)]);
        for (node, home) in [(&mut a, &homes[0]), (&mut b, &homes[1])] {
            node.node.dial(addr.clone()).await.unwrap();
            node.up().await;
            c.up().await;
            sees_itself(node, home).await;
        }
        let direct = async |node: &Peer, to| {
            let status = node.node.status().await;
            status.peers.iter().any(|peer| peer.id == to && peer.path == Some(PathKind::Direct))
        };
        let start = Instant::now();
        while !(direct(&a, b.id()).await && direct(&b, a.id()).await) {
            assert!(start.elapsed() < secs(10), "not direct: {:#?}", a.node.status().await);
            time::sleep(ms(20)).await;
        }
        println!("direct after {:?}", start.elapsed());
        exchange(&mut a, &mut b).await;
    });
}

#[test]
fn a_node_that_uses_relays_alone_tells_nobody_where_it_was_seen() {
    scenario(3, secs(120), |world| async move {
        let home = world.nat("home", NatConfig::full_cone());
        let mut config_a = config(1);
        config_a.relay_only = true;
        let a = peer(&home.host("a"), config_a).await;
        assert_eq!(a.node.addrs(), []);
    });
}
