//! Hosts behind NATs.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{at, bind, ms, next};
use crate::{DropReason, Filtering, Host, Link, Mapping, NatConfig, Packet, Ports, UdpSocket, Verdict, World};

const MAPPINGS: [Mapping; 3] =
    [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];

const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

#[test]
fn host_behind_a_nat_is_seen_by_the_nats_address() {
    World::run(1, |world| async move {
        let home = world.nat("home", NatConfig::default());
        let (inner, server) = (home.host("inner"), world.host("server"));
        let (at_inner, at_server) = (bind(&inner, 5_000), bind(&server, 1));
        at_inner.send_to(b"x", at(&server, 1)).unwrap();
        let seen = next(&at_server).await.unwrap();
        assert_eq!(seen.ip(), home.addr());
        at_server.send_to(b"x", seen).unwrap();
        assert_eq!(next(&at_inner).await, Some(at(&server, 1)));
        assert_eq!(world.elapsed(), ms(100));
    });
}

#[test]
fn stranger_is_filtered_until_it_was_sent_to() {
    World::run(1, |world| async move {
        let home = world.nat("home", NatConfig::port_restricted());
        let (inner, server, stranger) = (home.host("inner"), world.host("server"), world.host("stranger"));
        let (at_inner, at_server, at_stranger) = (bind(&inner, 5_000), bind(&server, 1), bind(&stranger, 1));
        at_inner.send_to(b"x", at(&server, 1)).unwrap();
        let seen = next(&at_server).await.unwrap();
        at_stranger.send_to(b"x", seen).unwrap();
        assert_eq!(next(&at_inner).await, None);
        assert_eq!(world.counters().dropped(DropReason::Filtered), 1);
        at_inner.send_to(b"x", at(&stranger, 1)).unwrap();
        assert_eq!(next(&at_stranger).await, Some(seen)); // the same mapping: independent of the endpoint
        at_stranger.send_to(b"x", seen).unwrap();
        assert_eq!(next(&at_inner).await, Some(at(&stranger, 1)));
    });
}

#[test]
fn mapping_expires_and_a_restart_forgets_it() {
    World::run(1, |world| async move {
        let mut config = NatConfig::port_restricted();
        config.timeout = Duration::from_secs(30);
        let home = world.nat("home", config);
        let (inner, server) = (home.host("inner"), world.host("server"));
        let (at_inner, at_server) = (bind(&inner, 5_000), bind(&server, 1));
        at_inner.send_to(b"x", at(&server, 1)).unwrap();
        let seen = next(&at_server).await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        at_server.send_to(b"x", seen).unwrap();
        assert_eq!(next(&at_inner).await, None);
        at_inner.send_to(b"x", at(&server, 1)).unwrap();
        assert!(next(&at_server).await.is_some());
        assert_eq!(home.mappings(), 1);
        home.forget_mappings();
        at_server.send_to(b"x", seen).unwrap();
        assert_eq!(next(&at_inner).await, None);
        assert_eq!(world.counters().dropped(DropReason::NoMapping), 2);
    });
}

#[test]
fn hosts_behind_one_nat_meet_on_the_lan() {
    World::run(1, |world| async move {
        let home = world.nat("home", NatConfig::default());
        let (a, b) = (home.host("a"), home.host("b"));
        let (from, to) = (bind(&a, 1), bind(&b, 1));
        home.set_down();
        from.send_to(b"x", at(&b, 1)).unwrap();
        assert_eq!(next(&to).await, Some(at(&a, 1)));
        assert_eq!(world.elapsed(), ms(0));
        let _cut = world.cut(&a, &b);
        from.send_to(b"x", at(&b, 1)).unwrap();
        assert_eq!(next(&to).await, None);
    });
}

#[test]
fn hairpin_is_off_by_default() {
    let arrives = |hairpin| {
        World::run(1, |world| async move {
            let mut config = NatConfig::full_cone();
            config.hairpin = hairpin;
            let home = world.nat("home", config);
            let (a, b, server) = (home.host("a"), home.host("b"), world.host("server"));
            let (at_a, at_b, at_server) = (bind(&a, 5_000), bind(&b, 6_000), bind(&server, 1));
            at_b.send_to(b"x", at(&server, 1)).unwrap();
            let outer_b = next(&at_server).await.unwrap();
            at_a.send_to(b"x", outer_b).unwrap();
            let seen = next(&at_b).await;
            assert_eq!(world.counters().dropped(DropReason::Hairpin), u64::from(!hairpin));
            (seen, (home.addr(), 5_000).into())
        })
    };
    assert_eq!(arrives(false).0, None);
    let (seen, outer_a) = arrives(true);
    assert_eq!(seen, Some(outer_a));
}

/// RFC 4787 REQ-9: whoever is reached by the outer address sees an outer address, whatever the kind of NAT.
#[test]
fn hairpin_shows_the_outer_address_for_every_mapping_and_filtering() {
    for (mapping, filtering) in MAPPINGS.into_iter().flat_map(|m| FILTERINGS.map(|f| (m, f))) {
        World::run(1, |world| async move {
            let mut config = NatConfig { mapping, filtering, ..NatConfig::default() };
            config.hairpin = true;
            let home = world.nat("home", config);
            let (a, b) = (home.host("a"), home.host("b"));
            let (at_a, at_b) = (bind(&a, 5_000), bind(&b, 6_000));
            // Port-preserving, so each can tell where the other's first packet leaves.
            let (outer_a, outer_b) = ((home.addr(), 5_000).into(), (home.addr(), 6_000).into());
            at_a.send_to(b"opens", outer_b).unwrap();
            at_b.send_to(b"passes", outer_a).unwrap();
            assert_eq!(next(&at_a).await, Some(outer_b), "{mapping:?}, {filtering:?}");
            at_a.send_to(b"answers", outer_b).unwrap();
            assert_eq!(next(&at_b).await, Some(outer_a), "{mapping:?}, {filtering:?}");
        });
    }
}

#[test]
fn a_rule_sees_what_turns_back_at_a_nat() {
    World::run(1, |world| async move {
        let mut config = NatConfig::full_cone();
        config.hairpin = true;
        let home = world.nat("home", config);
        let (a, b) = (home.host("a"), home.host("b"));
        let (at_a, at_b) = (bind(&a, 5_000), bind(&b, 6_000));
        at_b.send_to(b"opens", (world.host("server").addr(), 1).into()).unwrap();
        let cut = world.cut(&a, &b);
        at_a.send_to(b"x", (home.addr(), 6_000).into()).unwrap();
        assert_eq!(next(&at_b).await, None);
        cut.lift();
        world.rule(|_: &Packet<'_>| Verdict::Delay(ms(7)));
        at_a.send_to(b"x", (home.addr(), 6_000).into()).unwrap();
        let start = world.elapsed();
        assert!(next(&at_b).await.is_some());
        assert_eq!(world.elapsed() - start, ms(7));
    });
}

#[test]
fn blocked_udp_passes_neither_way_while_tcp_does() {
    World::run(1, |world| async move {
        let office = world.nat("office", NatConfig::udp_blocked());
        let (inner, other, server) = (office.host("inner"), office.host("other"), world.host("server"));
        let (at_inner, at_other, at_server) = (bind(&inner, 5_000), bind(&other, 1), bind(&server, 1));
        let (inner_v6, server_v6) = (inner.add_ipv6(), server.add_ipv6());
        let from_v6 = server.bind_udp(([0_u16; 8], 1).into()).unwrap();
        let to_v6 = inner.bind_udp(([0_u16; 8], 1).into()).unwrap();
        at_inner.send_to(b"x", at(&server, 1)).unwrap();
        to_v6.send_to(b"x", (server_v6, 1).into()).unwrap();
        from_v6.send_to(b"x", (inner_v6, 1).into()).unwrap();
        assert_eq!((next(&at_server).await, next(&to_v6).await), (None, None));
        assert_eq!(world.counters().dropped(DropReason::UdpBlocked), 3);
        at_inner.send_to(b"x", at(&other, 1)).unwrap();
        assert_eq!(next(&at_other).await, Some(at(&inner, 5_000))); // their own network
        let listener = server.listen_tcp(([0; 4], 443).into()).unwrap();
        assert!(inner.connect_tcp(at(&server, 443)).await.is_ok());
        drop(listener);
    });
}

#[test]
fn two_layers_translate_twice() {
    World::run(1, |world| async move {
        let carrier = world.nat("carrier", NatConfig::default());
        carrier.set_link(Link::lan());
        let home = carrier.nat("home", NatConfig::default());
        let (inner, server) = (home.host("inner"), world.host("server"));
        let (at_inner, at_server) = (bind(&inner, 5_000), bind(&server, 1));
        at_inner.send_to(b"x", at(&server, 1)).unwrap();
        let seen = next(&at_server).await.unwrap();
        assert_eq!(seen.ip(), carrier.addr());
        at_server.send_to(b"x", seen).unwrap();
        assert_eq!(next(&at_inner).await, Some(at(&server, 1)));
        assert_eq!(world.elapsed(), ms(100));
    });
}

#[test]
fn cut_finds_the_host_behind_a_nat() {
    World::run(1, |world| async move {
        let home = world.nat("home", NatConfig::default());
        let (a, b, server) = (home.host("a"), home.host("b"), world.host("server"));
        let (at_a, at_b, at_server) = (bind(&a, 1_111), bind(&b, 2_222), bind(&server, 1));
        at_a.send_to(b"x", at(&server, 1)).unwrap();
        at_b.send_to(b"x", at(&server, 1)).unwrap();
        let outer = [next(&at_server).await.unwrap(), next(&at_server).await.unwrap()];
        let _cut = world.cut(&server, &a);
        for outer in outer {
            at_server.send_to(b"x", outer).unwrap();
        }
        assert_eq!((next(&at_a).await, next(&at_b).await), (None, Some(at(&server, 1))));
    });
}

#[test]
fn ipv6_passes_a_nat_without_a_firewall_unchanged() {
    World::run(1, |world| async move {
        let open = NatConfig { ipv6_firewall: false, ..NatConfig::default() };
        let home = world.nat("home", open);
        let (inner, server) = (home.host("inner"), world.host("server"));
        let (inner_ip, server_ip) = (inner.add_ipv6(), server.add_ipv6());
        let from = server.bind_udp(([0_u16; 8], 1).into()).unwrap();
        let to = inner.bind_udp(([0_u16; 8], 1).into()).unwrap();
        from.send_to(b"x", (inner_ip, 1).into()).unwrap();
        assert_eq!(next(&to).await, Some((server_ip, 1).into()));
        assert_eq!(world.elapsed(), ms(50));
    });
}

#[test]
fn networks_behind_two_nats_may_have_the_same_addresses() {
    World::run(1, |world| async move {
        let mut config = NatConfig::full_cone();
        config.lan = Some([192, 168, 1, 0].into());
        let (left, right) = (world.nat("left", config.clone()), world.nat("right", config));
        let (a, b) = (left.host("a"), right.host("b"));
        assert_eq!(a.addr(), b.addr());
        let (at_a, at_b) = (bind(&a, 5_000), bind(&b, 6_000));
        at_b.send_to(b"opens", at(&world.host("server"), 1)).unwrap();
        at_a.send_to(b"x", (right.addr(), 6_000).into()).unwrap();
        assert_eq!(next(&at_b).await, Some((left.addr(), 5_000).into()));
    });
}

/// A host with an IPv6 address and a socket on port 1.
fn on_ipv6(host: &Host) -> (SocketAddr, Arc<UdpSocket>) {
    let at = SocketAddr::new(host.add_ipv6().into(), 1);
    (at, host.bind_udp(([0_u16; 8], 1).into()).unwrap())
}

#[test]
fn unsolicited_ipv6_stays_outside_and_who_was_sent_to_may_answer_for_a_while() {
    for filtering in FILTERINGS {
        World::run(1, |world| async move {
            let home = world.nat("home", NatConfig { filtering, ..NatConfig::default() });
            let ((inner, at_inner), (server, at_server)) = (on_ipv6(&home.host("a")), on_ipv6(&world.host("server")));
            let (_, at_stranger) = on_ipv6(&world.host("stranger"));
            at_server.send_to(b"unsolicited", inner).unwrap();
            assert_eq!(next(&at_inner).await, None);
            assert_eq!(world.counters().dropped(DropReason::Filtered), 1);
            at_inner.send_to(b"opens", server).unwrap();
            assert_eq!(next(&at_server).await, Some(inner)); // nobody translates
            at_server.send_to(b"answer", inner).unwrap();
            assert_eq!(next(&at_inner).await, Some(server));
            at_stranger.send_to(b"x", inner).unwrap();
            assert_eq!(next(&at_inner).await.is_some(), filtering == Filtering::EndpointIndependent);
            tokio::time::sleep(Duration::from_secs(120)).await;
            at_server.send_to(b"late", inner).unwrap();
            assert_eq!(next(&at_inner).await, None);
        });
    }
}

#[test]
fn two_hosts_that_send_first_meet_through_two_ipv6_firewalls_and_neighbours_need_not() {
    World::run(1, |world| async move {
        let (left, right) = (world.nat("left", NatConfig::default()), world.nat("right", NatConfig::default()));
        let ((a, at_a), (b, at_b)) = (on_ipv6(&left.host("a")), on_ipv6(&right.host("b")));
        at_a.send_to(b"lost", b).unwrap();
        assert_eq!(next(&at_b).await, None);
        at_b.send_to(b"x", a).unwrap();
        assert_eq!(next(&at_a).await, Some(b));
        let (_, at_neighbour) = on_ipv6(&left.host("neighbour"));
        at_neighbour.send_to(b"x", a).unwrap();
        assert!(next(&at_a).await.is_some());
    });
}

#[test]
fn a_storm_of_ipv6_sessions_is_held_to_the_limit_and_evicts_the_oldest() {
    World::run(1, |world| async move {
        let small = NatConfig { max_sessions: 3, ..NatConfig::default() };
        let home = world.nat("home", small);
        let (inner, at_inner) = on_ipv6(&home.host("a"));
        let servers: Vec<_> = (0..4).map(|n| on_ipv6(&world.host(&format!("server {n}")))).collect();
        for (to, _) in &servers {
            at_inner.send_to(b"x", *to).unwrap();
            tokio::time::sleep(ms(1)).await;
        }
        let mut heard = Vec::new();
        for (at, socket) in &servers {
            socket.send_to(b"x", inner).unwrap();
            heard.push(next(&at_inner).await == Some(*at));
        }
        assert_eq!(heard, [false, true, true, true]);
    });
}

#[test]
fn mapping_of_a_carrier_with_a_limit_dies_of_age_whatever_flows() {
    World::run(1, |world| async move {
        let mut config = NatConfig::port_restricted();
        (config.ports, config.max_age) = (Ports::Random, Some(Duration::from_secs(590)));
        let carrier = world.nat("carrier", config);
        let (inner, server) = (carrier.host("inner"), world.host("server"));
        let (at_inner, at_server) = (bind(&inner, 5_000), bind(&server, 1));
        let mut ports = Vec::new();
        for _ in 0..7 {
            at_inner.send_to(b"x", at(&server, 1)).unwrap();
            let seen = next(&at_server).await.unwrap();
            at_server.send_to(b"x", seen).unwrap();
            assert_eq!(next(&at_inner).await, Some(at(&server, 1)));
            ports.push(seen);
            tokio::time::sleep(Duration::from_secs(99)).await;
        }
        assert!(ports[..6].iter().all(|port| *port == ports[0]));
        at_server.send_to(b"x", ports[0]).unwrap();
        assert_eq!(next(&at_inner).await, None);
        assert_eq!(world.counters().dropped(DropReason::NoMapping), 1);
        assert_ne!(ports[6], ports[0]);
    });
}
