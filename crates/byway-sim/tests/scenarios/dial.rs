//! Dialling: good, dead and one-way addresses, both sides at once, and every way in which it can fail.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use byway::{Channel, DialError, Event, Gone, PathKind, PeerAddr, PeerEvent, PeerId, Protocol, Target, Ticket, To};
use byway_proto::{
    addr::HostAddr,
    wire::{Kind, classify},
};
use byway_sim::{Loss, Packet, StunServer, Verdict, World};
use tokio::time::{self, Instant};

use crate::common::{Peer, config, exchange, ms, peer, relay, scenario, secs};

/// An address of the simulated network that nobody has.
const DEAD: &str = "11.200.200.200:4000";

async fn two(world: &World) -> (Peer, Peer) {
    (peer(&world.host("a"), config(1)).await, peer(&world.host("b"), config(2)).await)
}

/// Every Up and Down so far, in order, as `true` and `false`.
async fn ups(peer: &mut Peer) -> Vec<bool> {
    peer.pending().await.iter().map(|event| matches!(event, PeerEvent::Up { .. })).collect()
}

#[test]
fn a_dead_and_a_one_way_address_do_not_keep_a_dial_from_a_good_one() {
    let mut slowest = Duration::ZERO;
    for seed in 0..50 {
        let slowest = &mut slowest;
        scenario(seed, secs(60), |world| async move {
            let (host_a, host_b) = (world.host("a"), world.host("b"));
            for host in [&host_a, &host_b] {
                host.add_ipv6();
                host.edit_link(|link| link.loss = Loss::Random(0.05)); // 10 % on the way through both
            }
            let mute = if seed % 2 == 0 { host_a.id() } else { host_b.id() };
            world.rule(
                move |packet: &Packet<'_>| {
                    if packet.from.is_ipv6() && packet.sender == mute { Verdict::Drop } else { Verdict::Pass }
                },
            );
            let [config_a, config_b] = [1, 2].map(|n| {
                let mut config = config(n);
                config.ipv6 = Some(Ipv6Addr::UNSPECIFIED);
                config
            });
            let (mut a, mut b) = (peer(&host_a, config_a).await, peer(&host_b, config_b).await);
            let mut ticket = b.node.ticket();
            ticket.addrs.insert(0, DEAD.parse().unwrap());
            assert_eq!(ticket.addrs.len(), 3);
            let start = Instant::now();
            a.node.dial(ticket).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            *slowest = start.elapsed().max(*slowest);
            a.up().await;
            b.up().await;
            exchange(&mut a, &mut b).await;
            time::sleep(secs(12)).await;
            assert!(ups(&mut a).await.is_empty() && ups(&mut b).await.is_empty(), "seed {seed}: a second connection");
            assert_eq!((a.node.peers().len(), b.node.peers().len()), (1, 1));
        });
    }
    println!("the slowest of 50 took {slowest:?}");
}

#[test]
fn simultaneous_dials_end_as_one_link_that_neither_side_sees_replaced() {
    for seed in 0..50 {
        scenario(seed, secs(60), |world| async move {
            let (mut a, mut b) = two(&world).await;
            if seed % 5 == 4 {
                world.rule({
                    let mut rng = world.rng("loss");
                    move |_: &Packet<'_>| if rng.below(10) == 0 { Verdict::Drop } else { Verdict::Pass }
                });
            }
            let skew = ms(seed * 200 / 49);
            let (to_a, to_b) = (a.node.ticket(), b.node.ticket());
            let later = async {
                time::sleep(skew).await;
                b.node.dial(to_a).await
            };
            let (there, back) = tokio::join!(a.node.dial(to_b), later);
            assert!(there.is_ok() && back.is_ok(), "seed {seed}, skew {skew:?}: {there:?}, {back:?}");
            a.up().await;
            b.up().await;
            exchange(&mut a, &mut b).await;
            time::sleep(secs(15)).await;
            let (seen_a, seen_b) = (ups(&mut a).await, ups(&mut b).await);
            assert!(seen_a.is_empty() && seen_b.is_empty(), "seed {seed}, skew {skew:?}: {seen_a:?}, {seen_b:?}");
            assert_eq!((a.node.peers().len(), b.node.peers().len()), (1, 1));
            exchange(&mut a, &mut b).await;
        });
    }
}

#[test]
fn simultaneous_dials_through_a_relay_end_as_one_link() {
    for seed in 0..10 {
        scenario(seed, secs(60), |world| async move {
            let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
            let [config_a, config_b] = [1, 2].map(|n| {
                let mut config = config(n).relay_at(addr.clone());
                config.relay_only = true;
                config
            });
            let mut a = peer(&world.host("a"), config_a).await;
            let mut b = peer(&world.host("b"), config_b).await;
            a.registered().await;
            b.registered().await;
            let (to_a, to_b) = (a.node.ticket(), b.node.ticket());
            let later = async {
                time::sleep(ms(seed * 30)).await;
                b.node.dial(to_a).await
            };
            let (there, back) = tokio::join!(a.node.dial(to_b), later);
            assert!(there.is_ok() && back.is_ok(), "seed {seed}: {there:?}, {back:?}");
            a.up().await;
            b.up().await;
            time::sleep(secs(15)).await;
            assert!(ups(&mut a).await.is_empty() && ups(&mut b).await.is_empty(), "seed {seed}");
            exchange(&mut a, &mut b).await;
        });
    }
}

#[test]
fn a_ticket_is_tried_though_a_dial_of_the_same_peer_at_a_dead_address_is_under_way() {
    scenario(1, secs(60), |world| async move {
        let b = peer(&world.host("b"), config(2)).await;
        let mut settings = config(1);
        settings.peers.persistent = vec![PeerAddr::new(b.id(), [DEAD.parse::<SocketAddr>().unwrap()])];
        let a = peer(&world.host("a"), settings).await;
        time::sleep(secs(1)).await;
        let mut empty = b.node.ticket();
        empty.addrs = vec![DEAD.parse().unwrap()];
        let (joined, by_ticket) = tokio::join!(a.node.dial(empty), a.node.dial(b.node.ticket()));
        assert_eq!((joined.unwrap(), by_ticket.unwrap()), (b.id(), b.id()));
    });
}

#[test]
fn a_dial_waits_for_two_dials_at_most_however_many_join_it() {
    scenario(1, secs(120), |world| async move {
        let a = peer(&world.host("a"), config(1)).await;
        let target = |n: u8| {
            let mut target = Target::from(PeerId::ed25519([9; 32]));
            target.addrs = vec![SocketAddr::from(([11, 200, 200, n], 4_000))];
            target
        };
        let start = Instant::now();
        let first = a.node.dial(target(1));
        // Others join each dial with an address that it does not have.
        let node = a.node.clone();
        tokio::spawn(async move {
            for n in 2..20 {
                time::sleep(secs(2)).await;
                let (node, target) = (node.clone(), target(n));
                tokio::spawn(async move { drop(node.dial(target).await) });
            }
        });
        let error = first.await.unwrap_err();
        assert!(matches!(error, DialError::Unreached { .. }), "{error}");
        assert!(start.elapsed() > secs(5) && start.elapsed() < secs(25), "{:?}", start.elapsed());
    });
}

#[test]
fn dials_of_one_peer_at_once_share_one_connection() {
    scenario(1, secs(30), |world| async move {
        let (mut a, b) = two(&world).await;
        let ticket = b.node.ticket();
        let (one, two) = tokio::join!(a.node.dial(&ticket), a.node.dial(&ticket));
        assert_eq!((one.unwrap(), two.unwrap()), (b.id(), b.id()));
        a.up().await;
        assert!(ups(&mut a).await.is_empty());
    });
}

#[test]
fn a_peer_that_lost_its_side_of_the_connection_can_dial_anew() {
    scenario(1, secs(900), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let (mut a, mut b) = {
            let [mut config_a, config_b] = [1, 2].map(config);
            config_a.idle_timeout = secs(10);
            (peer(&host_a, config_a).await, peer(&host_b, config_b).await)
        };
        b.node.dial(a.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        // Only one side notices: its goodbye gets lost.
        let cut = world.cut(&host_a, &host_b);
        assert_eq!(a.down().await, Gone::TimedOut);
        time::sleep(secs(5)).await;
        cut.lift();
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        exchange(&mut a, &mut b).await;
    });
}

async fn fails(peer: &Peer, target: impl Into<Target>) -> (DialError, Duration) {
    let start = Instant::now();
    let error = peer.node.dial(target).await.unwrap_err();
    (error, start.elapsed())
}

#[test]
fn another_key_at_the_address_is_named_as_the_reason() {
    scenario(1, secs(30), |world| async move {
        let (a, b) = two(&world).await;
        let mut ticket = Ticket::new(config(77).identity.id());
        ticket.addrs = b.node.addrs();
        let (error, after) = fails(&a, &ticket).await;
        assert!(matches!(error, DialError::OtherKey { peer, .. } if peer == ticket.peer), "{error:?}");
        assert!(after < secs(1));
        assert!(error.to_string().contains("another key"));
    });
}

#[test]
fn a_peer_that_is_not_registered_at_its_relay_is_reported_as_such() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let a = peer(&world.host("a"), config(1).relay_at(addr.clone())).await;
        a.registered().await;
        let mut ticket = Ticket::new(config(77).identity.id());
        ticket.relays = vec![addr];
        let (error, after) = fails(&a, &ticket).await;
        assert!(matches!(error, DialError::Unreached { .. }), "{error:?}");
        assert!(error.to_string().contains("not registered"), "{error}");
        assert!(after <= secs(10), "{after:?}");
    });
}

#[test]
fn nobody_at_the_address_is_unreached_within_ten_seconds() {
    scenario(1, secs(30), |world| async move {
        let (a, _) = two(&world).await;
        let mut ticket = Ticket::new(config(77).identity.id());
        ticket.addrs = vec![DEAD.parse().unwrap()];
        let (error, after) = fails(&a, &ticket).await;
        assert!(matches!(error, DialError::Unreached { .. }), "{error:?}");
        assert!(after <= secs(10), "{after:?}");
    });
}

#[test]
fn a_node_that_dials_itself_is_told() {
    scenario(1, secs(30), |world| async move {
        let (a, _) = two(&world).await;
        assert!(matches!(fails(&a, a.node.ticket()).await.0, DialError::SelfDial));
    });
}

#[test]
fn a_peer_without_address_and_relay_has_no_way() {
    scenario(1, secs(30), |world| async move {
        let (a, b) = two(&world).await;
        assert!(matches!(fails(&a, b.id()).await.0, DialError::NoWay(peer) if peer == b.id()));
        // Link-local, multicast and the clouds' metadata service are no addresses to send to.
        let mut ticket = Ticket::new(b.id());
        ticket.addrs = ["169.254.169.254:80", "224.0.0.1:4000", "[fe80::1]:4000"].map(|a| a.parse().unwrap()).to_vec();
        assert!(matches!(fails(&a, &ticket).await.0, DialError::NoWay(_)));
    });
}

fn refused(a: byway::Config, b: byway::Config, protocols: [Option<Protocol>; 2], expected: &'static str) {
    scenario(1, secs(60), |world| async move {
        let (a, b) = (peer(&world.host("a"), a).await, peer(&world.host("b"), b).await);
        for (node, protocol) in [&a, &b].into_iter().zip(protocols) {
            if let Some(protocol) = protocol {
                node.node.register(protocol).unwrap();
            }
        }
        // Each side that dials reads the reason.
        for (from, to) in [(&a, &b), (&b, &a)] {
            let (error, after) = fails(from, to.node.ticket()).await;
            let DialError::Hello { reason: Gone::Refused(refusal), .. } = &error else { panic!("{error:?}") };
            assert!(format!("{refusal:?}").starts_with(expected), "{refusal:?}");
            assert!(after < secs(1), "{after:?}");
        }
    });
}

#[test]
fn another_network_is_refused_with_its_name() {
    let mut other = config(2);
    other.network = "elsewhere".into();
    refused(config(1), other, [None, None], "OtherNetwork");
}

#[test]
fn a_missing_required_protocol_is_refused_with_its_name() {
    let required = Protocol::new("needed", 1..=1).required();
    refused(config(1), config(2), [Some(required), None], "MissingProtocol");
}

#[test]
fn no_common_version_of_a_required_protocol_is_refused_with_both_ranges() {
    let [old, new] = [1..=2, 3..=4].map(|versions| Protocol::new("needed", versions).required());
    refused(config(1), config(2), [Some(old), Some(new)], "NoCommonVersion");
}

#[test]
fn a_relay_that_does_not_relay_is_named() {
    scenario(1, secs(60), |world| async move {
        let host_b = world.host("b");
        let b = peer(&host_b, config(2)).await;
        let addr = PeerAddr::new(b.id(), [SocketAddr::new(host_b.addr(), crate::common::PORT)]);
        let mut a = peer(&world.host("a"), config(1).relay_at(addr)).await;
        let why = loop {
            if let Some(Event::RelayDown { why, .. }) = a.events.recv().await {
                break why;
            }
        };
        assert!(why.contains("does not relay"), "{why}");
        assert!(!a.node.status().await.relays[0].registered);
    });
}

#[test]
fn an_unreachable_relay_is_named_and_tried_again() {
    scenario(1, secs(120), |world| async move {
        let host = world.host("relay");
        host.set_down();
        let (_relay, addr) = relay(&host, config(9)).await;
        let mut a = peer(&world.host("a"), config(1).relay_at(addr)).await;
        let Some(Event::RelayDown { why, .. }) = a.events.recv().await else { panic!() };
        assert!(why.contains("nobody answered"), "{why}");
        host.set_up();
        a.registers_anew().await;
    });
}

#[test]
fn a_protocol_that_is_registered_later_reaches_the_peer() {
    scenario(1, secs(30), |world| async move {
        let (mut a, mut b) = two(&world).await;
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        let late = |node: &Peer| {
            let mut late = Protocol::new("late", 1..=3);
            let (tx, rx) = late.channel(Channel::new(1));
            (node.node.register(late).unwrap(), tx, rx)
        };
        let (mut peers_a, tx, _rx) = late(&a);
        time::sleep(secs(1)).await;
        let (mut peers_b, _tx, mut rx) = late(&b);
        let up = |peer: PeerId| PeerEvent::Up { peer, version: 3 };
        assert_eq!(peers_a.next().await, Some(up(b.id())));
        assert_eq!(peers_b.next().await, Some(up(a.id())));
        assert_eq!(tx.send(&To::All, "late".into()).queued, 1);
        assert_eq!(&rx.recv().await.unwrap().1[..], b"late");
        assert_eq!(a.path().await, Some(PathKind::Direct));
    });
}

/// The first peer's only route.
async fn route(peer: &Peer) -> byway::RouteReport {
    let status = peer.node.status().await;
    let [route] = &status.peers[0].routes[..] else { panic!("{status:#?}") };
    route.clone()
}

#[test]
fn a_direct_connection_is_proven_and_measured_by_its_handshake_and_nothing_is_doubted() {
    scenario(1, secs(30), |world| async move {
        let (a, b) = two(&world).await;
        let (probes, doubts) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&probes), Arc::clone(&doubts));
        let _counting = world.rule(move |packet: &Packet<'_>| {
            let is_probe = matches!(classify(packet.payload), Kind::Probe | Kind::Fragment);
            counts.0.fetch_add(usize::from(is_probe), Ordering::Relaxed);
            counts.1.fetch_add(usize::from(is_probe && packet.payload[17] == 1), Ordering::Relaxed); // a ping with doubt
            Verdict::Pass
        });
        assert_eq!(b.node.ticket().addrs.len(), 1);
        a.node.dial(b.node.ticket()).await.unwrap();
        assert!(route(&a).await.rtt.is_some_and(|rtt| rtt < ms(200)), "{:?}", route(&a).await);
        time::sleep(ms(200)).await;
        assert_eq!(probes.load(Ordering::Relaxed), 0);
        assert!(route(&b).await.rtt.is_some_and(|rtt| rtt < ms(200)), "{:?}", route(&b).await);
        time::sleep(secs(3)).await;
        assert_eq!(doubts.load(Ordering::Relaxed), 0);
        assert_eq!([route(&a).await.mtu, route(&b).await.mtu], [1_200; 2], "nothing needed more");
    });
}

#[test]
fn a_direct_connection_takes_22_datagrams_until_its_first_ping() {
    scenario(1, secs(60), |world| async move {
        let (a, b) = (peer(&world.host("a"), config(1)).await, peer(&world.host("b"), config(2)).await);
        time::sleep(secs(5)).await; // what follows their start is over
        let before = world.counters().sent;
        a.node.dial(b.node.ticket()).await.unwrap();
        time::sleep(ms(900)).await; // the next ping leaves after a second
        let sent = world.counters().sent - before;
        assert!(sent <= 22, "{sent} datagrams");
    });
}

#[test]
fn what_a_node_learns_while_a_connection_is_made_reaches_its_peer() {
    for (dials, offset) in [true, false].into_iter().flat_map(|dials| (0..60).map(move |n| (dials, ms(50 * n)))) {
        scenario(1, secs(30), |world| async move {
            let servers = ["stun 1", "stun 2"].map(|name| StunServer::start(&world.host(name)).unwrap());
            let b = peer(&world.host("b"), config(2)).await;
            let mut asking = config(1);
            asking.stun = servers.iter().map(|server| HostAddr::Socket(server.addr())).collect();
            let a = peer(&world.host("a"), asking).await;
            time::sleep(offset).await; // a is being told meanwhile where it is
            let (from, to) = if dials { (&a, &b) } else { (&b, &a) };
            from.node.dial(to.node.ticket()).await.unwrap();
            let known = async {
                let ours = a.node.why(b.id()).await.map(|told| told.ours);
                ours.is_some() && b.node.why(a.id()).await.and_then(|told| told.theirs) == ours
            };
            let by = if dials { "a" } else { "b" };
            time::sleep(ms(200)).await;
            assert!(known.await, "dialled by {by} {offset:?} after a's start");
        });
    }
}

#[test]
fn a_relay_at_which_a_node_registers_while_a_connection_is_made_is_told_to_its_peer() {
    for (dials, offset) in [true, false].into_iter().flat_map(|dials| (0..16).map(move |n| (dials, ms(50 * n)))) {
        scenario(1, secs(60), move |world| async move {
            let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
            let b = peer(&world.host("b"), config(2)).await;
            let a = peer(&world.host("a"), config(1).relay_at(addr)).await;
            time::sleep(offset).await; // a is registering meanwhile
            let (from, to) = if dials { (&a, &b) } else { (&b, &a) };
            let mut ticket = to.node.ticket();
            ticket.relays.clear();
            from.node.dial(ticket).await.unwrap();
            time::sleep(secs(10)).await;
            let routes = &b.node.status().await.peers[0].routes;
            let by = if dials { "a" } else { "b" };
            let is_told = routes.iter().any(|route| route.path == PathKind::Relay);
            assert!(is_told, "dialled by {by} {offset:?} after a's start: {routes:#?}");
        });
    }
}
