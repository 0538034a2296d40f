//! Peer exchange among many nodes: they find each other by one seed that keeps nobody.

use std::net::SocketAddr;

use byway::{Channel, Config, DialError, Gone, Node, PeerId, Protocol, To, book::Record};
use byway_sim::table::exchange;
use tokio::time;

use crate::common::{Peer, config, kill, peer, scenario, secs};

/// Nodes of the run that every test run makes; CI makes one of a thousand (`cargo xtask check sim`).
const NODES: usize = 100;

#[test]
fn nodes_that_know_a_seed_alone_become_one_graph_and_a_second_run_is_the_same() {
    let first = exchange::run(NODES, 1, |_| {}).unwrap();
    println!("{first}");
    let again = exchange::run(NODES, 1, |_| {}).unwrap();
    assert_eq!((first.hash, first.connected_s), (again.hash, again.connected_s));
}

/// The settings of a node that speaks of peers, on a network where neighbours may.
fn talkative(n: u8) -> Config {
    let mut config = config(n);
    (config.network, config.peer_exchange, config.lan, config.port_mapping) = ("talk".into(), true, false, false);
    (config.peers.local, config.peers.inbound_per_group, config.peers.chosen_per_group) = (true, 100, 8);
    config
}

async fn record(node: &Node, of: PeerId) -> Option<Record> {
    node.known_peers().await.into_iter().find(|record| record.peer == of)
}

#[test]
fn a_seed_keeps_nobody_and_those_whom_it_names_keep_each_other() {
    scenario(1, secs(600), |world| async move {
        let mut settings = talkative(9);
        settings.peers.seed = true;
        let seed = peer(&world.host("seed"), settings).await;
        let mut nodes = Vec::new();
        for n in 1..=3 {
            let mut settings = talkative(n);
            settings.peers.seeds = vec![byway::PeerAddr::new(seed.id(), seed.node.addrs())];
            settings.peers.dial_ratio = 2;
            nodes.push(peer(&world.host(&format!("{n}")), settings).await);
        }
        time::sleep(secs(300)).await;
        assert_eq!(seed.node.peers(), [], "a seed hangs up");
        for node in &nodes {
            assert_eq!(node.node.peers().len(), 2, "{:?}", node.node.peers());
        }
    });
}

#[test]
fn who_takes_nobody_in_is_named_to_nobody() {
    scenario(1, secs(120), |world| async move {
        let a = peer(&world.host("a"), talkative(1)).await;
        let mut closed = talkative(2);
        closed.accept = false;
        let open = peer(&world.host("open"), talkative(3)).await;
        let closed = peer(&world.host("closed"), closed).await;
        for node in [&open, &closed] {
            node.node.dial(a.node.ticket()).await.unwrap();
        }
        time::sleep(secs(60)).await;
        assert!(record(&a.node, open.id()).await.is_some());
        assert_eq!(record(&a.node, closed.id()).await, None);
    });
}

#[test]
fn who_breaks_the_rules_of_the_exchange_loses_the_connection_and_is_told_why() {
    scenario(1, secs(60), |world| async move {
        let a = peer(&world.host("a"), talkative(1)).await;
        let mut settings = talkative(2);
        settings.peer_exchange = false;
        let mut b: Peer = peer(&world.host("b"), settings).await;
        let mut own = Protocol::new("byway.pex", 1..=1);
        let (tx, _rx) = own.channel(Channel::new(1));
        let _peers = b.node.register(own).unwrap();
        b.node.dial(a.node.ticket()).await.unwrap();
        b.up().await;
        assert_eq!(tx.send(&To::Peer(a.id()), vec![0xff; 10].into()).queued, 1);
        assert!(matches!(b.down().await, Gone::Misbehaved(_)));
        assert_eq!(a.node.peers(), []);
    });
}

#[test]
fn a_named_address_where_another_key_answers_rests_at_once() {
    scenario(1, secs(300), |world| async move {
        let hub = peer(&world.host("hub"), talkative(1)).await;
        let (old, new) = (world.host("old"), world.host("new"));
        let gone = peer(&old, talkative(7)).await;
        gone.node.dial(hub.node.ticket()).await.unwrap();
        time::sleep(secs(10)).await;
        assert!(record(&hub.node, gone.id()).await.is_some());
        kill(&old, &new);
        let _other = peer(&new, talkative(8)).await;
        let a = peer(&world.host("a"), talkative(2)).await;
        a.node.dial(hub.node.ticket()).await.unwrap();
        time::sleep(secs(60)).await;
        // One try counts for eight: it rests for an hour.
        let found = record(&a.node, gone.id()).await.map(|record| record.attempts);
        assert_eq!(found, Some(8));
        let mut wrong = byway::Ticket::new(gone.id());
        wrong.addrs = vec![(new.addr(), crate::common::PORT).into()];
        let error = a.node.dial(wrong).await.unwrap_err();
        assert!(matches!(error, DialError::OtherKey { .. }), "{error:?}");
    });
}

#[test]
fn a_node_that_knows_a_thousand_peers_asks_for_more_no_sooner_than_it_must() {
    for (known, expected) in [(900, 3), (1_100, 2)] {
        scenario(1, secs(120), move |world| async move {
            let a = peer(&world.host("a"), talkative(1)).await;
            for n in 0..known {
                let mut key = [0xaa; 32];
                key[..2].copy_from_slice(&u16::to_be_bytes(n));
                let addr = SocketAddr::from(([20 + (n / 200) as u8, (n % 200) as u8, 0, 1], 7));
                a.node.add_peer(byway::PeerAddr::new(PeerId::ed25519(key), [addr]).into()).await.unwrap();
            }
            let mut asked = 0;
            let mut others = Vec::new();
            for n in 2..=4 {
                let mut settings = talkative(n);
                settings.peer_exchange = false;
                let mut other: Peer = peer(&world.host("other"), settings).await;
                let mut own = Protocol::new("byway.pex", 1..=1);
                let (tx, rx) = own.channel(Channel::new(1));
                let peers = other.node.register(own).unwrap();
                other.node.dial(a.node.ticket()).await.unwrap();
                other.up().await;
                // Where it is: now the node looks at how many it knows.
                tx.send_wait(a.id(), vec![0x0a, 9, 0x0a, 7, 4, 192, 0, 2, 1, 0, 9].into()).await.unwrap();
                others.push((other, tx, rx, peers));
            }
            time::sleep(secs(30)).await;
            for (.., rx, _) in &mut others {
                asked += std::iter::from_fn(|| rx.try_recv()).filter(|(_, message)| message[..] == [0x12, 0]).count();
            }
            assert_eq!(asked, expected, "with {known} known");
        });
    }
}
