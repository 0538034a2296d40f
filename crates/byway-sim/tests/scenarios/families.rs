//! Address families that are switched off, and addresses that nobody should send to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use byway::{Config, DialError, PeerAddr, Ticket};
use byway_sim::{DropReason, Host, World};
use tokio::time;

use crate::common::{PORT, config, exchange, peer, relay, scenario, secs};

/// The settings of node `n` with these families.
fn families(n: u8, ipv4: bool, ipv6: bool) -> Config {
    let mut config = config(n);
    config.ipv4 = ipv4.then_some(Ipv4Addr::UNSPECIFIED);
    config.ipv6 = ipv6.then_some(Ipv6Addr::UNSPECIFIED);
    config
}

/// A host with one address of each family.
fn host(world: &World, name: &str) -> (Host, [IpAddr; 2]) {
    let host = world.host(name);
    let ipv4 = host.addr();
    let ipv6 = host.add_ipv6().into();
    (host, [ipv4, ipv6])
}

#[test]
fn a_family_that_is_off_is_neither_bound_nor_advertised_nor_answered() {
    for (seed, ipv4) in [(1, true), (2, false)] {
        scenario(seed, secs(120), |world| async move {
            let ((host_a, _), (host_b, addrs)) = (host(&world, "a"), host(&world, "b"));
            let (off, on) = if ipv4 { (addrs[1], addrs[0]) } else { (addrs[0], addrs[1]) };
            let mut a = peer(&host_a, families(1, true, true)).await;
            let mut b = peer(&host_b, families(2, ipv4, !ipv4)).await;
            assert_eq!(b.node.addrs(), [SocketAddr::new(on, PORT)]);
            assert_eq!(b.node.ticket().addrs, [SocketAddr::new(on, PORT)]);

            // The other family's port is nobody's.
            let mut ticket = Ticket::new(b.id());
            ticket.addrs = vec![SocketAddr::new(off, PORT)];
            let before = world.counters().dropped(DropReason::NoSocket);
            assert!(matches!(a.node.dial(&ticket).await, Err(DialError::Unreached { .. })));
            assert!(world.counters().dropped(DropReason::NoSocket) > before);
            assert_eq!(host_b.traffic().sent, 0);

            // And it is no way out.
            let mut ticket = Ticket::new(a.id());
            ticket.addrs = a.node.addrs().into_iter().filter(|addr| addr.ip().is_ipv4() != ipv4).collect();
            assert_eq!(ticket.addrs.len(), 1);
            assert!(matches!(b.node.dial(&ticket).await, Err(DialError::NoWay(_))));

            b.node.dial(a.node.ticket()).await.unwrap();
            a.up().await;
            b.up().await;
            exchange(&mut a, &mut b).await;
            time::sleep(secs(5)).await;
            for node in [&a.node, &b.node] {
                let routes = &node.status().await.peers[0].routes;
                assert!(routes.iter().all(|route| route.remote.is_ipv4() == ipv4), "{routes:#?}");
            }
        });
    }
}

#[test]
fn both_families_give_two_routes() {
    scenario(1, secs(60), |world| async move {
        let ((host_a, _), (host_b, _)) = (host(&world, "a"), host(&world, "b"));
        let (mut a, mut b) =
            (peer(&host_a, families(1, true, true)).await, peer(&host_b, families(2, true, true)).await);
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        exchange(&mut a, &mut b).await;
        time::sleep(secs(3)).await;
        let routes = &a.node.status().await.peers[0].routes;
        assert_eq!(routes.iter().filter(|route| route.proven).count(), 2, "{routes:#?}");
    });
}

#[test]
fn relayed_data_comes_from_the_family_that_the_relay_sees() {
    for seed in 1..=20 {
        scenario(seed, secs(60), |world| async move {
            let (host_r, addrs) = host(&world, "relay");
            let (node, mut at) = relay(&host_r, families(9, true, true)).await;
            at = PeerAddr::new(at.id, addrs.map(|ip| SocketAddr::new(ip, PORT)));
            let relayed = |n| {
                let mut config = families(n, true, true);
                config.relays = vec![at.clone()];
                config.relay_only = true;
                config
            };
            let ((host_a, _), (host_b, _)) = (host(&world, "a"), host(&world, "b"));
            let (mut a, mut b) = (peer(&host_a, relayed(1)).await, peer(&host_b, relayed(2)).await);
            a.node.dial(b.node.ticket()).await.unwrap();
            a.up().await;
            b.up().await;
            exchange(&mut a, &mut b).await;
            let dropped = node.status().await.dropped;
            assert!(dropped.iter().all(|(why, _)| *why != "relay_not_in_pair"), "seed {seed}: {dropped:?}");
        });
    }
}

#[test]
fn addresses_that_nobody_should_send_to_are_never_candidates() {
    scenario(1, secs(60), |world| async move {
        let ((host_a, _), (host_b, addrs)) = (host(&world, "a"), host(&world, "b"));
        for refused in ["169.254.7.7", "fe80::7", "100::7", "224.0.0.7", "ff02::7"] {
            host_b.add_addr(refused.parse().unwrap());
        }
        let mut a = peer(&host_a, families(1, true, true)).await;
        let mut b = peer(&host_b, families(2, true, true)).await;
        assert_eq!(b.node.addrs(), addrs.map(|ip| SocketAddr::new(ip, PORT)));
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        exchange(&mut a, &mut b).await;
        time::sleep(secs(3)).await;
        let routes = &a.node.status().await.peers[0].routes;
        assert!(routes.iter().all(|route| addrs.contains(&route.remote.ip())), "{routes:#?}");
    });
}
