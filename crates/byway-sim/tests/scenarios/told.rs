//! What a peer is told of a node along with the hello, and anew where that changed before the peer became one.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use byway::{DialError, Node, PeerAddr, PeerId, Protocol};
use byway_sim::{ActiveRule, Host, NatConfig, Packet, Verdict, World};
use tokio::{
    task::JoinHandle,
    time::{self, Instant},
};

use crate::{
    common::{PORT, Peer, config, ms, peer, relay, scenario, secs},
    tcp_relay::client,
};

/// Where a host's node is, without its relays.
fn addr(host: &Host, node: &Peer) -> PeerAddr {
    PeerAddr::new(node.id(), [SocketAddr::new(host.addr(), PORT)])
}

/// The relays that a node is connected to.
async fn relays(node: &Peer) -> Vec<PeerId> {
    node.node.status().await.relays.iter().map(|relay| relay.id).collect()
}

/// Begins a dial of which all that `to` says once `from` has introduced itself is lost, its hello above all, until the rule is
/// lifted.
async fn dial_held(
    world: &World,
    from: (&Host, &Peer),
    to: (&Host, &Peer),
) -> (ActiveRule, JoinHandle<Result<PeerId, DialError>>) {
    let (dialling, answering) = (from.0.id(), to.0.id());
    let mut is_introduced = false;
    let held = world.rule(move |packet: &Packet<'_>| {
        let is_short = packet.payload.first().is_some_and(|first| first & 0xc0 == 0x40);
        is_introduced |= packet.sender == dialling && packet.receiver == Some(answering) && is_short;
        let is_held = is_introduced && packet.sender == answering && packet.receiver == Some(dialling);
        if is_held { Verdict::Drop } else { Verdict::Pass }
    });
    let (node, target): (Node, PeerAddr) = (from.1.node.clone(), addr(to.0, to.1));
    let dial = tokio::spawn(async move { node.dial(target).await });
    time::sleep(ms(500)).await;
    assert!(!from.1.node.peers().contains(&to.1.id()), "its hello came through");
    (held, dial)
}

/// Notes whether a host sends anything to an address.
fn watch(world: &World, host: &Host, ip: IpAddr) -> (ActiveRule, Arc<AtomicBool>) {
    let (asked, asking) = (Arc::new(AtomicBool::new(false)), host.id());
    let seen = Arc::clone(&asked);
    let rule = world.rule(move |packet: &Packet<'_>| {
        if packet.sender == asking && packet.to.ip() == ip {
            seen.store(true, Ordering::Relaxed);
        }
        Verdict::Pass
    });
    (rule, asked)
}

#[test]
fn a_peer_is_told_the_relays_that_changed_before_it_became_one() {
    scenario(1, secs(200), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let (_first, first) = relay(&world.host("relay 1"), config(8)).await;
        let (_second, second) = relay(&world.host("relay 2"), config(9)).await;
        let mut settings = config(1);
        settings.relays = vec![first.clone(), second];
        let (mut a, b) = (peer(&host_a, settings).await, peer(&host_b, config(2)).await);
        a.registered().await;
        time::sleep(secs(20)).await; // the survey is over
        let (held, dial) = dial_held(&world, (&host_a, &a), (&host_b, &b)).await;
        a.node.set_relays(std::slice::from_ref(&first)).unwrap();
        time::sleep(ms(100)).await;
        held.lift();
        dial.await.unwrap().unwrap();
        a.up().await;
        time::sleep(secs(100)).await;
        assert_eq!(relays(&b).await, [first.id]);
    });
}

#[test]
fn a_peer_is_told_the_addresses_that_came_before_it_became_one() {
    scenario(1, secs(60), |world| async move {
        let (host_a, host_b, host_c) = (world.host("a"), world.host("b"), world.host("c"));
        let (mut a, b) = (peer(&host_a, config(1)).await, peer(&host_b, config(2)).await);
        let c = peer(&host_c, config(3)).await;
        a.node.dial(addr(&host_c, &c)).await.unwrap();
        a.up().await;
        time::sleep(secs(5)).await; // it has been told where it is seen
        let bridge: IpAddr = [172, 17, 0, 1].into(); // for which the network does not count as another one
        let (_watch, asked) = watch(&world, &host_b, bridge);
        let (held, dial) = dial_held(&world, (&host_a, &a), (&host_b, &b)).await;
        host_a.add_addr(bridge);
        time::sleep(ms(100)).await;
        held.lift();
        dial.await.unwrap().unwrap();
        a.up().await;
        time::sleep(secs(5)).await;
        assert!(asked.load(Ordering::Relaxed), "it was not told of {:?}", host_a.addrs());
    });
}

#[test]
fn a_peer_is_told_where_another_peer_saw_the_node_before_it_became_one() {
    scenario(1, secs(60), |world| async move {
        let mut cone = NatConfig::full_cone();
        cone.hairpin = true;
        let home = world.nat("home", cone);
        let (host_a, host_b, host_c) = (home.host("a"), home.host("b"), world.host("c"));
        let (mut a, b) = (peer(&host_a, config(1)).await, peer(&host_b, config(2)).await);
        let c = peer(&host_c, config(3)).await;
        let (_watch, asked) = watch(&world, &host_b, home.addr());
        let (held, dial) = dial_held(&world, (&host_a, &a), (&host_b, &b)).await;
        let start = Instant::now();
        a.node.dial(addr(&host_c, &c)).await.unwrap();
        assert_eq!(a.up().await, c.id());
        while !a.node.addrs().iter().any(|addr| addr.ip() == home.addr()) {
            assert!(start.elapsed() < secs(2), "not seen: {:?}", a.node.addrs());
            time::sleep(ms(10)).await;
        }
        held.lift();
        dial.await.unwrap().unwrap();
        assert_eq!(a.up().await, b.id());
        time::sleep(secs(5)).await;
        assert!(asked.load(Ordering::Relaxed), "it was not told of {:?}", a.node.addrs());
    });
}

#[test]
fn what_has_no_room_behind_the_hello_is_told_afterwards() {
    scenario(1, secs(60), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let (_relay, at) = relay(&world.host("relay"), config(9)).await;
        let (mut a, b) = (client(&host_a, 1, &at).await, peer(&host_b, config(2)).await);
        let _many: Vec<_> =
            (0..30).map(|n| a.node.register(Protocol::new(format!("{n:060}"), 1..=1)).unwrap()).collect();
        a.registered().await;
        time::sleep(secs(20)).await; // the survey is over
        a.node.dial(addr(&host_b, &b)).await.unwrap();
        a.up().await;
        time::sleep(secs(5)).await;
        assert_eq!(relays(&b).await, [at.id]);
    });
}

#[test]
fn a_lone_relay_that_comes_back_is_told_to_who_became_a_peer_meanwhile() {
    scenario(1, secs(120), |world| async move {
        let (host_a, host_b, host_relay) = (world.host("a"), world.host("b"), world.host("relay"));
        let (_relay, at) = relay(&host_relay, config(9)).await;
        let (mut a, b) = (client(&host_a, 1, &at).await, peer(&host_b, config(2)).await);
        a.registered().await;
        time::sleep(secs(20)).await; // the survey is over
        let cut = world.cut(&host_a, &host_relay);
        let start = Instant::now();
        while a.node.status().await.relays.iter().any(|relay| relay.registered) {
            assert!(start.elapsed() < secs(20), "its silence is not noticed");
            time::sleep(ms(100)).await;
        }
        a.node.dial(addr(&host_b, &b)).await.unwrap();
        a.up().await;
        time::sleep(secs(1)).await;
        assert!(relays(&b).await.is_empty(), "the relay is silent");
        cut.lift();
        a.registered().await;
        time::sleep(secs(5)).await;
        assert_eq!(relays(&b).await, [at.id]);
    });
}

#[test]
fn a_relay_that_a_peer_has_left_is_left_as_well_once_the_new_one_carries_the_connection() {
    scenario(1, secs(200), |world| async move {
        let (_old, old) = relay(&world.host("old relay"), config(8)).await;
        let (_new, new) = relay(&world.host("new relay"), config(9)).await;
        let hidden = |n| {
            let mut settings = config(n);
            settings.relay_only = true;
            settings
        };
        let a = peer(&world.host("a"), hidden(1).relay_at(old)).await;
        let mut b = peer(&world.host("b"), hidden(2)).await;
        a.registered().await;
        b.node.dial(a.node.ticket()).await.unwrap();
        b.up().await;
        time::sleep(secs(5)).await;
        a.node.set_relays(std::slice::from_ref(&new)).unwrap();
        time::sleep(secs(100)).await;
        assert_eq!((relays(&a).await, relays(&b).await), (vec![new.id], vec![new.id]));
        assert_eq!(b.node.peers(), [a.id()]);
    });
}

#[test]
fn a_relay_where_the_peer_alone_is_registered_is_kept_whoever_dialled() {
    for a_dials in [true, false] {
        scenario(1, secs(400), |world| async move {
            let (host_a, host_b) = (world.host("a"), world.host("b"));
            let (_relay, at) = relay(&world.host("relay"), config(9)).await;
            let (mut a, b) = (client(&host_a, 1, &at).await, peer(&host_b, config(2)).await);
            a.registered().await;
            match a_dials {
                true => a.node.dial(addr(&host_b, &b)).await.unwrap(),
                false => b.node.dial(addr(&host_a, &a)).await.unwrap(),
            };
            a.up().await;
            time::sleep(secs(200)).await;
            assert_eq!(relays(&b).await, [at.id]);
            b.node.disconnect(a.id(), 0, "");
            time::sleep(secs(100)).await;
            assert!(relays(&b).await.is_empty());
        });
    }
}
