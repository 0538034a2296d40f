//! What a node and its relays allow each other: how many, how often, and for how long.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use byway::{Event, HostAddr, PeerAddr, RelayConfig, Target, Ticket};
use byway_sim::{NatConfig, Packet, Transport, Verdict};
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};

use crate::{
    common::{PORT, Peer, config, ms, peer, relay, scenario, secs},
    tcp_relay::{client, home, is_over_tls, office},
};

/// An address of the simulated network that nobody has.
pub(crate) const DEAD: &str = "11.200.200.200:4000";

/// A relay that nobody runs.
fn dead_relay(n: u8) -> PeerAddr {
    PeerAddr::new(config(n).identity.id(), [DEAD.parse::<SocketAddr>().unwrap()])
}

/// Dials as many peers that nobody is, each at a dead relay of its own; the errors.
fn dial_nobody(node: &Peer, count: u8) -> JoinSet<String> {
    let mut dials = JoinSet::new();
    for n in 0..count {
        let mut ticket = Ticket::new(config(100 + n).identity.id());
        ticket.relays = vec![dead_relay(200 + n)];
        let node = node.node.clone();
        dials.spawn(async move { node.dial(ticket).await.unwrap_err().to_string() });
    }
    dials
}

/// Waits for so long, in which no relay may be lost.
async fn keeps_its_relays(node: &Peer, time: Duration) {
    let mut events = node.node.events();
    let lost = async {
        loop {
            if let Some(Event::RelayDown { why, .. }) = events.recv().await {
                return why;
            }
        }
    };
    let lost = time::timeout(time, lost).await;
    assert!(lost.is_err(), "{lost:?}");
}

#[test]
fn a_node_uses_sixteen_relays_at_once_and_says_so_of_the_next() {
    scenario(1, secs(60), |world| async move {
        let a = peer(&world.host("a"), config(1)).await;
        let mut dials = dial_nobody(&a, 17);
        time::sleep(secs(1)).await;
        assert_eq!(a.node.status().await.relays.len(), 16);
        let mut errors = Vec::new();
        while let Some(error) = dials.join_next().await {
            errors.push(error.unwrap());
        }
        let refused = errors.iter().filter(|error| error.contains("one more than the 16 that a node uses"));
        assert_eq!(refused.count(), 1, "{errors:#?}");
    });
}

#[test]
fn the_last_relays_are_for_dials_and_not_for_a_second_way_to_a_peer() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let mut a = peer(&world.host("a"), config(1)).await;
        let b = client(&world.host("b"), 2, &addr).await;
        b.registered().await;
        let _dials = dial_nobody(&a, 12);
        time::sleep(ms(500)).await;
        a.node.dial(PeerAddr::new(b.id(), b.node.addrs())).await.unwrap();
        a.up().await;
        time::sleep(secs(2)).await;
        let relays = a.node.status().await.relays;
        assert!(relays.len() == 12 && relays.iter().all(|relay| relay.id != addr.id), "{relays:#?}");
    });
}

#[test]
fn a_dial_asks_at_three_relays_at_most() {
    scenario(1, secs(60), |world| async move {
        let a = peer(&world.host("a"), config(1)).await;
        let mut target = Target::from(config(77).identity.id());
        target.relays = (200..205).map(dead_relay).collect();
        let node = a.node.clone();
        let dial = tokio::spawn(async move { node.dial(target).await });
        time::sleep(secs(1)).await;
        assert_eq!(a.node.status().await.relays.len(), 3);
        dial.abort();
    });
}

#[test]
fn a_relays_name_that_leads_to_many_addresses_leads_to_four() {
    scenario(1, secs(60), |world| async move {
        for n in 0..8 {
            world.name("many.example", world.host(&format!("host {n}")).addr());
        }
        let host = world.host("a");
        let (side, asked) = (host.id(), Arc::new(Mutex::new(BTreeSet::new())));
        let seen = Arc::clone(&asked);
        world.rule(move |packet: &Packet<'_>| {
            if packet.sender == side && packet.to.port() == PORT {
                seen.lock().unwrap().insert((packet.transport, packet.to));
            }
            Verdict::Pass
        });
        let many = PeerAddr::new(config(9).identity.id(), ["many.example:4000".parse::<HostAddr>().unwrap()]);
        let _a = client(&host, 1, &many).await;
        time::sleep(secs(20)).await;
        let asked = asked.lock().unwrap().clone();
        for transport in [Transport::Udp, Transport::Tcp] {
            assert_eq!(asked.iter().filter(|(by, _)| *by == transport).count(), 4, "{asked:?}");
        }
    });
}

#[test]
fn a_relay_on_this_machine_that_a_peer_tells_of_is_not_looked_for() {
    scenario(1, secs(60), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let mut settings = config(9);
        settings.port = PORT + 1;
        let (node, _) = relay(&host_b, settings).await;
        let near = SocketAddr::from(([127, 0, 0, 1], PORT + 1));
        let addr = PeerAddr::new(node.id(), [SocketAddr::new(host_b.addr(), PORT + 1), near]);
        let trap = host_a.bind_udp(near).unwrap();
        let (mut a, b) = (peer(&host_a, config(1)).await, client(&host_b, 2, &addr).await);
        b.registered().await;
        a.node.dial(PeerAddr::new(b.id(), [SocketAddr::new(host_b.addr(), PORT)])).await.unwrap();
        a.up().await;
        time::sleep(secs(3)).await;
        let relays = a.node.status().await.relays;
        assert!(relays.len() == 1 && relays[0].registered, "its other address is taken: {relays:#?}");
        let said = time::timeout(ms(1), trap.recv_from(&mut [0; 2_048])).await;
        assert!(said.is_err(), "{said:?}");
    });
}

#[test]
fn a_relay_at_which_its_own_peer_is_registered_is_no_client_of_itself() {
    scenario(1, secs(60), |world| async move {
        let mut settings = config(9);
        settings.relay = Some(RelayConfig::default());
        let mut b = peer(&world.host("b"), settings).await;
        let addr = PeerAddr::new(b.id(), b.node.addrs());
        let mut a = client(&world.host("a"), 1, &addr).await;
        a.registered().await;
        a.node.dial(addr).await.unwrap();
        a.up().await;
        b.up().await;
        time::sleep(secs(5)).await;
        let relays = b.node.status().await.relays;
        assert!(relays.is_empty(), "{relays:#?}");
    });
}

#[test]
fn a_relay_of_a_peers_is_left_a_minute_after_the_peer() {
    scenario(1, secs(200), |world| async move {
        let (node, addr) = relay(&world.host("relay"), config(9)).await;
        let (mut a, b) = (peer(&world.host("a"), config(1)).await, client(&world.host("b"), 2, &addr).await);
        b.registered().await;
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        time::sleep(secs(5)).await;
        assert!(a.node.disconnect(b.id(), 0, "enough"));
        let clients = async || node.status().await.serving.unwrap().clients;
        time::sleep(secs(40)).await;
        assert_eq!(clients().await, 2, "who comes back finds it open");
        time::sleep(secs(50)).await;
        assert_eq!((clients().await, a.node.status().await.relays.len()), (1, 0));
    });
}

#[test]
fn a_relay_that_answers_no_registration_is_given_up_within_seconds() {
    scenario(1, secs(60), |world| async move {
        let (host, side) = (world.host("relay"), world.host("a"));
        let (_relay, addr) = relay(&host, config(9)).await;
        let (relay_id, side_id) = (host.id(), side.id());
        // What the relay says after the client's hello arrives, and nothing that the client says then.
        let (mut greeted, mut is_mute) = (None, false);
        world.rule(move |packet: &Packet<'_>| {
            let is_short = packet.payload.first().is_some_and(|first| first & 0xc0 == 0x40);
            if packet.sender == side_id && is_short {
                greeted.get_or_insert(packet.time);
            }
            is_mute |= packet.sender == relay_id && greeted.is_some_and(|at| packet.time > at);
            if is_mute && packet.sender == side_id { Verdict::Drop } else { Verdict::Pass }
        });
        let mut a = client(&side, 1, &addr).await;
        let began = Instant::now();
        let why = loop {
            if let Some(Event::RelayDown { why, .. }) = a.events.recv().await {
                break why;
            }
        };
        assert!(why.contains("did not answer the registration"), "{why}");
        assert!(began.elapsed() < secs(7), "{:?}", began.elapsed());
    });
}

#[test]
fn a_relay_that_drains_closes_its_last_links_at_the_deadline() {
    scenario(1, secs(60), |world| async move {
        let (node, addr) = relay(&world.host("relay"), config(9)).await;
        let a = client(&world.host("a"), 1, &addr).await;
        a.registered().await;
        let clients = async || node.status().await.serving.unwrap().clients;
        node.drain(secs(2));
        time::sleep(ms(1_500)).await;
        assert_eq!(clients().await, 1, "there is nowhere to go");
        time::sleep(secs(1)).await;
        let state = a.node.status().await.relays.remove(0).state;
        assert!(state.contains("the relay is about to stop: use another relay"), "{state}");
        assert_eq!(clients().await, 0);
    });
}

#[test]
fn a_way_that_a_relay_refuses_for_too_many_is_opened_again() {
    scenario(1, secs(60), |world| async move {
        let (node, addr) = relay(&world.host("relay"), config(9)).await;
        let mut limits = RelayConfig::default();
        limits.max_allocations_per_client = 1;
        node.set_relay(limits).unwrap();
        let mut settings = config(1).relay_at(addr.clone());
        settings.relay_only = true;
        let mut a = peer(&world.host("a"), settings).await;
        let (b, c) = (client(&world.host("b"), 2, &addr).await, client(&world.host("c"), 3, &addr).await);
        for client in [&a, &b, &c] {
            client.registered().await;
        }
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        let (dialling, ticket) = (a.node.clone(), c.node.ticket());
        let dial = tokio::spawn(async move { dialling.dial(ticket).await });
        time::sleep(ms(500)).await;
        assert!(!dial.is_finished(), "it has one way already");
        node.set_relay(RelayConfig::default()).unwrap();
        dial.await.unwrap().unwrap();
    });
}

#[test]
fn clients_over_tls_count_as_the_addresses_behind_them() {
    scenario(1, secs(60), |world| async move {
        let mut settings = config(9);
        (settings.gate.initial_rate, settings.gate.initial_burst) = (1, 1);
        let (node, addr) = relay(&world.host("relay"), settings).await;
        let mut limits = RelayConfig::default();
        limits.max_clients_per_source = 1;
        node.set_relay(limits).unwrap();
        let crowd = world.nat("crowd", NatConfig::udp_blocked());
        let (a, b) = (client(&crowd.host("a"), 1, &addr).await, client(&office(&world, "b"), 2, &addr).await);
        a.registered().await;
        b.registered().await;
        let dropped = node.status().await.dropped;
        assert!(!dropped.iter().any(|(why, count)| *why == "initial_rate" && *count > 0), "{dropped:?}");
        let c = client(&crowd.host("c"), 3, &addr).await;
        time::sleep(secs(7)).await;
        let state = c.node.status().await.relays.remove(0).state;
        assert!(state.contains("too many clients from this address"), "{state}");
        assert_eq!(node.status().await.serving.unwrap().clients, 2);
    });
}

#[test]
fn a_registration_over_tls_lasts_whether_it_began_there_or_moved_there() {
    for began_there in [true, false] {
        scenario(1, secs(600), |world| async move {
            let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
            let host = if began_there { office(&world, "a") } else { home(&world, "a") };
            let a = client(&host, 1, &addr).await;
            a.registered().await;
            let side = host.id();
            world.rule(move |packet: &Packet<'_>| match packet.transport {
                Transport::Udp if packet.sender == side || packet.receiver == Some(side) => Verdict::Drop,
                _ => Verdict::Pass,
            });
            time::sleep(secs(15)).await;
            assert!(is_over_tls(&a).await);
            keeps_its_relays(&a, secs(200)).await;
            assert!(is_over_tls(&a).await);
        });
    }
}

#[test]
fn a_node_over_tls_looks_for_the_way_back_to_udp_ever_less_often() {
    scenario(1, secs(5_000), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let host = office(&world, "a");
        let mut settings = config(1).relay_at(addr);
        settings.relay_only = true; // no survey looks for UDP besides
        let a = peer(&host, settings).await;
        a.registered().await;
        time::sleep(secs(600)).await;
        let before = host.traffic().sent;
        time::sleep(secs(3_600)).await;
        let sent = host.traffic().sent - before;
        assert!(sent < 500, "{sent} datagrams in an hour");
        assert!(is_over_tls(&a).await);
    });
}

#[test]
fn a_relay_whose_tcp_port_is_taken_serves_by_udp_all_the_same() {
    scenario(1, secs(60), |world| async move {
        let host = world.host("relay");
        let _taken = host.listen_tcp(SocketAddr::from(([0, 0, 0, 0], PORT))).unwrap();
        let (_relay, addr) = relay(&host, config(9)).await;
        let a = client(&home(&world, "a"), 1, &addr).await;
        a.registered().await;
        assert!(!is_over_tls(&a).await);
    });
}

#[test]
fn a_relay_whose_next_port_is_taken_answers_stun_on_another() {
    scenario(1, secs(60), |world| async move {
        let host = world.host("relay");
        let _taken = host.bind_udp(SocketAddr::from(([0, 0, 0, 0], PORT + 1))).unwrap();
        let (_relay, addr) = relay(&host, config(9)).await;
        let a = client(&home(&world, "a"), 1, &addr).await;
        a.registered().await;
        time::sleep(secs(10)).await;
        let report = a.node.status().await.nat.report.ipv4.unwrap();
        assert!(report.mapping.is_some(), "one port alone does not tell: {report:?}");
    });
}
