//! Who is let in and who is not, by where they come from and when.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use byway::{DialError, Filter, Gone, HostAddr, PathKind, PeerAddr, Protocol, SourceFilter, Ticket};
use tokio::time::{self, Instant};

use crate::common::{PORT, config, exchange, kill, ms, peer, relay, scenario, secs};

#[test]
fn a_filter_of_sources_is_asked_before_the_handshake_and_holds_up_nobody_else() {
    scenario(1, secs(60), |world| async move {
        let (refused, silent, broken) = (world.host("refused"), world.host("silent"), world.host("broken"));
        let (no, never, oops) = (refused.addr(), silent.addr(), broken.addr());
        let mut settings = config(1);
        settings.source_filter = Some(SourceFilter::new(move |origin| async move {
            match origin.remote.ip() {
                ip if ip == no => false,
                ip if ip == never => std::future::pending().await,
                ip if ip == oops => panic!("a filter's own mistake"),
                _ => !origin.relayed,
            }
        }));
        let host = world.host("a");
        let mut a = peer(&host, settings).await;
        let ticket = a.node.ticket();
        for (n, host) in [(2, &refused), (3, &silent), (4, &broken)] {
            let stranger = peer(host, config(n)).await;
            let ticket = ticket.clone();
            tokio::spawn(async move {
                let error = stranger.node.dial(ticket).await.unwrap_err();
                assert!(matches!(error, DialError::Unreached { .. }), "{error}");
            });
        }
        time::sleep(ms(200)).await; // the filter thinks about one of them
        assert_eq!(host.traffic().sent, 0, "a stranger was answered");
        let mut welcome = peer(&world.host("welcome"), config(5)).await;
        let start = Instant::now();
        welcome.node.dial(&ticket).await.unwrap();
        assert!(start.elapsed() < ms(500), "{:?}", start.elapsed());
        a.up().await;
        welcome.up().await;
        exchange(&mut a, &mut welcome).await;
        time::sleep(secs(15)).await;
        assert_eq!(a.node.peers(), [welcome.id()]);
        let dropped = a.node.status().await.dropped;
        assert!(dropped.iter().any(|(why, count)| *why == "handshake_failed" && *count >= 3), "{dropped:?}");
    });
}

#[test]
fn a_filter_of_sources_is_told_who_comes_by_a_relay_and_by_which() {
    scenario(1, secs(60), |world| async move {
        let host = world.host("relay");
        let (_relay, addr) = relay(&host, config(9)).await;
        let mut settings = config(1).relay_at(addr.clone());
        let told = Arc::new(Mutex::new(BTreeSet::new()));
        let origins = Arc::clone(&told);
        settings.source_filter = Some(SourceFilter::new(move |origin| {
            origins.lock().unwrap().insert((origin.remote.ip(), origin.relayed));
            async move { !origin.relayed }
        }));
        let a = peer(&world.host("a"), settings).await;
        a.registered().await;
        let mut ticket = Ticket::new(a.id());
        ticket.relays = vec![addr];
        let mut relayed = config(2);
        relayed.relay_only = true;
        let relayed = peer(&world.host("relayed"), relayed).await;
        let error = relayed.node.dial(&ticket).await.unwrap_err();
        assert!(matches!(error, DialError::Unreached { .. }), "{error}");
        assert_eq!(*told.lock().unwrap(), BTreeSet::from([(host.addr(), true)]));
        let elsewhere = world.host("direct");
        let direct = peer(&elsewhere, config(3)).await;
        let mut straight = a.node.ticket();
        straight.relays.clear();
        direct.node.dial(straight).await.unwrap();
        assert_eq!(a.node.peers(), [direct.id()]);
        let expected = BTreeSet::from([(host.addr(), true), (elsewhere.addr(), false)]);
        assert_eq!(*told.lock().unwrap(), expected);
    });
}

#[test]
fn one_peer_for_each_address_counts_neither_relayed_ones_nor_those_that_are_gone() {
    scenario(1, secs(120), |world| async move {
        let (hub, addr) = relay(&world.host("relay"), config(9)).await;
        let mut settings = config(1).relay_at(addr.clone());
        settings.filter = Some(Filter::one_per_ip());
        let a = peer(&world.host("a"), settings).await;
        a.registered().await;
        let mut ticket = Ticket::new(a.id());
        ticket.relays = vec![addr];
        let mut straight = a.node.ticket();
        straight.relays.clear();
        for n in [2, 3, 7] {
            let mut relayed = config(n);
            relayed.relay_only = true;
            let relayed = peer(&world.host(&format!("{n}")), relayed).await;
            relayed.node.dial(&ticket).await.unwrap();
            std::mem::forget(relayed);
            if n == 3 {
                hub.dial(&straight).await.expect("nobody else is at the relay's own address");
            }
        }
        let host = world.host("one");
        for n in [4, 5] {
            let mut config = config(n);
            config.port += u16::from(n);
            let one = peer(&host, config).await;
            one.node.dial(a.node.ticket()).await.unwrap();
            let mut second = crate::common::config(6);
            second.port += u16::from(n) + 10;
            let second = peer(&host, second).await;
            let error = second.node.dial(a.node.ticket()).await.unwrap_err();
            assert!(matches!(error, DialError::Hello { reason: Gone::Filtered(_), .. }), "{error}");
            second.node.close().await;
            one.node.close().await;
            time::sleep(secs(1)).await;
        }
    });
}

#[test]
fn of_two_strangers_that_come_from_one_address_at_once_one_is_let_in() {
    scenario(1, secs(60), |world| async move {
        let mut settings = config(1);
        settings.filter = Some(Filter::one_per_ip());
        let a = peer(&world.host("a"), settings).await;
        let host = world.host("both");
        let mut second = config(3);
        second.port = PORT + 1;
        let (b, c) = (peer(&host, config(2)).await, peer(&host, second).await);
        let (b, c) = tokio::join!(b.node.dial(a.node.ticket()), c.node.dial(a.node.ticket()));
        let errors: Vec<_> = [b, c].into_iter().filter_map(Result::err).collect();
        assert!(matches!(errors[..], [DialError::Hello { reason: Gone::Filtered(_), .. }]), "{errors:?}");
        assert_eq!(a.node.peers().len(), 1);
    });
}

#[test]
fn a_stranger_that_was_let_in_and_came_to_nothing_keeps_its_address_from_nobody() {
    scenario(1, secs(60), |world| async move {
        let mut settings = config(1);
        settings.filter = Some(Filter::one_per_ip());
        let a = peer(&world.host("a"), settings).await;
        let _needs = a.node.register(Protocol::new("needed", 1..=1).required()).unwrap();
        let host = world.host("both");
        let refused = peer(&host, config(2)).await.node.dial(a.node.ticket()).await.unwrap_err();
        assert!(matches!(refused, DialError::Hello { reason: Gone::Refused(_), .. }), "{refused}");
        let mut second = config(3);
        second.port = PORT + 1;
        let b = peer(&host, second).await;
        let _speaks = b.node.register(Protocol::new("needed", 1..=1)).unwrap();
        b.node.dial(a.node.ticket()).await.unwrap();
        assert_eq!(a.node.peers(), [b.id()]);
    });
}

#[test]
fn a_persistent_peer_is_found_where_its_name_leads_now() {
    scenario(1, secs(600), |world| async move {
        let (old, new) = (world.host("old"), world.host("new"));
        world.name("home.example", old.addr());
        let b = peer(&old, config(2)).await;
        let mut settings = config(1);
        let name: HostAddr = format!("home.example:{PORT}").parse().unwrap();
        settings.peers.persistent = vec![PeerAddr { id: b.id(), addrs: vec![name] }];
        let mut a = peer(&world.host("a"), settings).await;
        a.up().await;
        b.node.close().await;
        a.down().await;
        old.set_down();
        // Its address belongs to somebody else by now, and its name leads elsewhere.
        let other = world.host("other");
        kill(&old, &other);
        let _stranger = peer(&other, config(7)).await;
        time::sleep(secs(30)).await;
        world.forget_name("home.example");
        world.name("home.example", new.addr());
        let mut b = peer(&new, config(2)).await;
        let start = Instant::now();
        assert_eq!(a.up().await, b.id());
        assert!(start.elapsed() < secs(70), "{:?}", start.elapsed());
        b.up().await;
        exchange(&mut a, &mut b).await;
    });
}

#[test]
fn a_peer_that_goes_direct_leaves_its_relays_share_to_others() {
    scenario(1, secs(120), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let mut settings = config(1).relay_at(addr.clone());
        // Three strangers in all, one of them from one group of addresses: the relay's, as long as it is the way.
        (settings.peers.max_peers, settings.peers.reserved, settings.peers.inbound_per_group) = (4, 1, 34);
        let a = peer(&world.host("a"), settings).await;
        a.registered().await;
        let mut ticket = Ticket::new(a.id());
        ticket.relays = vec![addr];
        let elsewhere = world.host("b");
        elsewhere.remove_addr(elsewhere.addr());
        elsewhere.add_addr("12.1.0.1".parse().unwrap());
        let mut b = peer(&elsewhere, config(2)).await;
        b.node.dial(&ticket).await.unwrap();
        b.up().await;
        let mut relayed = config(3);
        relayed.relay_only = true;
        let c = peer(&world.host("c"), relayed).await;
        let mut d = config(4);
        d.relay_only = true;
        let d = peer(&world.host("d"), d).await;
        b.goes(PathKind::Direct, secs(10)).await;
        time::sleep(secs(1)).await;
        c.node.dial(&ticket).await.expect("the first one is no longer at the relay");
        let full = d.node.dial(&ticket).await.unwrap_err();
        assert!(matches!(full, DialError::Hello { reason: Gone::Full, .. }), "{full}");
        assert_eq!(a.node.peers().len(), 2);
    });
}
