//! A peer that was killed and started anew: the other side learns of it, and a new dial works without its help.

use std::time::Duration;

use byway::{Gone, Node, PeerAddr, PeerId, RelayConfig, Target, To};
use byway_sim::{Host, Packet, Verdict, World};
use tokio::time::{self, Instant};

use crate::common::{Peer, config, config_anew, exchange, kill, ms, peer, relay, scenario, secs};

/// How soon the end of the old connection is known once something is sent.
const NOTICED: Duration = Duration::from_secs(2);

/// Two connected nodes; the first has dialled.
struct Pair {
    host_b: Host,
    host_a: Host,
    relay_addr: PeerAddr,
    relay_host: Host,
    _relay: Node,
    a: Peer,
    b: Peer,
    relay_only: bool,
}

async fn pair(world: &World, relay_only: bool) -> Pair {
    let [host_a, host_b, relay_host] = ["a", "b", "relay"].map(|name| world.host(name));
    let (_relay, relay_addr) = relay(&relay_host, config(9)).await;
    let [mut config_a, mut config_b] = [1, 2].map(|n| config(n).relay_at(relay_addr.clone()));
    config_a.relay_only = relay_only;
    config_b.relay_only = relay_only;
    let (mut a, mut b) = (peer(&host_a, config_a).await, peer(&host_b, config_b).await);
    a.registered().await;
    b.registered().await;
    a.node.dial(b.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    exchange(&mut a, &mut b).await;
    time::sleep(secs(3)).await;
    Pair { host_a, host_b, relay_addr, relay_host, _relay, a, b, relay_only }
}

impl Pair {
    /// Kills node `n` (1 or 2) and starts it anew at the same address.
    async fn restart(&self, world: &World, n: u8) -> Peer {
        let successor = world.host("successor");
        kill(if n == 1 { &self.host_a } else { &self.host_b }, &successor);
        let mut config = config_anew(n).relay_at(self.relay_addr.clone());
        config.relay_only = self.relay_only;
        peer(&successor, config).await
    }
}

/// Keeps saying something to a peer until it is known to be gone; the reason and the time it took.
async fn talk_until_gone(peer: &mut Peer, to: PeerId) -> (Gone, Duration) {
    let (start, tx) = (Instant::now(), peer.tx.clone());
    let talking = async {
        loop {
            let _ = tx.send(&To::Peer(to), "still there?".into());
            time::sleep(ms(100)).await;
        }
    };
    tokio::select! {
        biased;
        reason = peer.down() => (reason, start.elapsed()),
        () = talking => unreachable!(),
    }
}

#[test]
fn whoever_talks_to_a_restarted_peer_learns_it_at_once_and_dials_anew() {
    for (seed, dead) in [(1, 1), (2, 2)] {
        scenario(seed, secs(60), |world| async move {
            let mut pair = pair(&world, false).await;
            let mut new = pair.restart(&world, dead).await;
            let other = if dead == 1 { &mut pair.b } else { &mut pair.a };
            let (reason, after) = talk_until_gone(other, new.id()).await;
            println!("node {dead} was restarted; noticed after {after:?}");
            assert_eq!(reason, Gone::Restarted);
            assert!(after < NOTICED, "{after:?}");
            other.node.dial(new.node.ticket()).await.unwrap();
            other.up().await;
            new.up().await;
            exchange(other, &mut new).await;
        });
    }
}

#[test]
fn a_stateless_reset_alone_tells_of_a_restart() {
    for (seed, relay_only) in [(1, false), (2, true)] {
        scenario(seed, secs(60), |world| async move {
            let mut pair = pair(&world, relay_only).await;
            // The relay can tell, too: let it be mute, apart from what it forwards.
            let (relay, a) = (pair.relay_host.id(), pair.host_a.id());
            world.rule(move |packet: &Packet<'_>| {
                let control = packet.payload.first().is_some_and(|first| first & 0x80 == 0);
                let told = packet.sender == relay && packet.receiver == Some(a) && control;
                if told { Verdict::Drop } else { Verdict::Pass }
            });
            let new = pair.restart(&world, 2).await;
            new.registered().await;
            let (reason, after) = talk_until_gone(&mut pair.a, new.id()).await;
            println!("relayed: {relay_only}; noticed after {after:?}");
            assert_eq!(reason, Gone::Restarted);
            assert!(after < NOTICED, "{after:?}");
        });
    }
}

#[test]
fn the_relay_tells_of_a_restart_although_nobody_talks() {
    for (seed, dead) in [(1, 1), (2, 2)] {
        scenario(seed, secs(60), |world| async move {
            let mut pair = pair(&world, true).await;
            let mut new = pair.restart(&world, dead).await;
            let start = Instant::now();
            let other = if dead == 1 { &mut pair.b } else { &mut pair.a };
            assert_eq!(other.down().await, Gone::Restarted);
            println!("told after {:?}", start.elapsed());
            assert!(start.elapsed() < NOTICED, "{:?}", start.elapsed());
            other.node.dial(new.node.ticket()).await.unwrap();
            other.up().await;
            new.up().await;
            exchange(other, &mut new).await;
        });
    }
}

#[test]
fn an_idle_connection_to_a_restarted_peer_ends_with_the_next_keep_alives() {
    scenario(1, secs(60), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let (mut a, b) = (peer(&host_a, config(1)).await, peer(&host_b, config(2)).await);
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        time::sleep(secs(30)).await; // without a word
        let successor = world.host("successor");
        kill(&host_b, &successor);
        let _new = peer(&successor, config_anew(2)).await;
        let start = Instant::now();
        assert_eq!(a.down().await, Gone::Restarted);
        println!("noticed after {:?}", start.elapsed());
        assert!(start.elapsed() < secs(13), "{:?}", start.elapsed());
    });
}

#[test]
fn a_restarted_peer_that_dials_replaces_its_old_connection() {
    for (seed, dead, relay_only) in [(1, 1, false), (2, 2, false), (3, 1, true), (4, 2, true)] {
        scenario(seed, secs(60), |world| async move {
            let mut pair = pair(&world, relay_only).await;
            let mut new = pair.restart(&world, dead).await;
            let other = if dead == 1 { &mut pair.b } else { &mut pair.a };
            new.node.dial(other.node.ticket()).await.unwrap();
            assert_eq!(other.down().await, Gone::Restarted);
            other.up().await;
            new.up().await;
            exchange(&mut new, other).await;
            time::sleep(secs(15)).await;
            assert!(other.pending().await.is_empty() && new.pending().await.is_empty(), "it did not last");
        });
    }
}

#[test]
fn a_restart_is_noticed_on_a_line_that_loses_every_tenth_packet() {
    for seed in 0..10 {
        scenario(seed, secs(120), |world| async move {
            let mut pair = pair(&world, seed % 2 == 0).await;
            let mut new = pair.restart(&world, 2).await;
            pair.host_a.edit_link(|link| link.loss = byway_sim::Loss::Random(0.1));
            let (reason, after) = talk_until_gone(&mut pair.a, new.id()).await;
            assert_eq!(reason, Gone::Restarted);
            assert!(after < secs(5), "seed {seed}: {after:?}");
            pair.a.node.dial(new.node.ticket()).await.unwrap();
            pair.a.up().await;
            new.up().await;
            exchange(&mut pair.a, &mut new).await;
        });
    }
}

#[test]
fn a_restarted_node_that_is_both_relay_and_peer_is_found_out_on_both_connections() {
    scenario(1, secs(60), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let friend = |mut config: byway::Config| {
            config.relay = Some(RelayConfig::default());
            config
        };
        let mut b = peer(&host_b, friend(config(2))).await;
        let addr = PeerAddr::new(b.id(), b.node.addrs());
        let mut a = peer(&host_a, config(1).relay_at(addr)).await;
        a.registered().await;
        a.node.dial(Target::from(&b.node.ticket())).await.unwrap();
        a.up().await;
        b.up().await;
        exchange(&mut a, &mut b).await;
        time::sleep(secs(5)).await;
        let successor = world.host("successor");
        kill(&host_b, &successor);
        let mut new = peer(&successor, friend(config_anew(2))).await;
        let start = Instant::now();
        let mut events = a.node.events();
        let (reason, after) = talk_until_gone(&mut a, new.id()).await;
        assert_eq!(reason, Gone::Restarted);
        assert!(after < NOTICED, "{after:?}");
        while !matches!(events.recv().await.unwrap(), byway::Event::RelayUp { .. }) {}
        println!("peer after {after:?}, relay after {:?}", start.elapsed());
        assert!(start.elapsed() < secs(5), "{:?}", start.elapsed());
        a.node.dial(new.node.ticket()).await.unwrap();
        a.up().await;
        exchange(&mut a, &mut new).await;
    });
}
