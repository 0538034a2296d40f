//! Links and rules between public hosts.

use std::time::Duration;

use super::{at, bind, drain, ms, next};
use crate::{DropReason, Link, Packet, Queue, Verdict, World};

#[test]
fn standard_network_takes_50_ms_one_way() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (from, to) = (bind(&a, 1), bind(&b, 1));
        from.send_to(b"x", at(&b, 1)).unwrap();
        assert_eq!(next(&to).await, Some(at(&a, 1)));
        assert_eq!(world.elapsed(), ms(50));
    });
}

#[test]
fn arrival_is_seen_at_the_next_millisecond() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        a.set_link(Link::lan().delay(Duration::from_micros(1_200)));
        b.set_link(Link::lan().delay(Duration::from_micros(900)));
        let (from, to) = (bind(&a, 1), bind(&b, 1));
        from.send_to(b"x", at(&b, 1)).unwrap();
        assert!(next(&to).await.is_some());
        assert_eq!(world.elapsed(), ms(3)); // 2.1: each hop is exact, only the end is rounded
    });
}

#[test]
fn two_lossy_links_lose_by_both_probabilities() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        a.edit_uplink(|link| *link = link.clone().loss(0.1));
        b.edit_downlink(|link| *link = link.clone().loss(0.1));
        let (from, to) = (bind(&a, 1), bind(&b, 1));
        for _ in 0..10_000 {
            from.send_to(b"x", at(&b, 1)).unwrap();
        }
        let received = drain(&to, ms(100)).await.len();
        assert!((7_950..8_250).contains(&received), "{received} of 10,000");
        let counters = world.counters();
        assert_eq!(counters.dropped(DropReason::Loss) + counters.delivered, 10_000);
    });
}

#[test]
fn rate_limits_throughput() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        b.set_link(Link::standard().rate(10_000_000).queue(Queue::Time(ms(50))));
        let (from, to) = (bind(&a, 1), bind(&b, 1));
        for _ in 0..1_000 {
            for _ in 0..3 {
                from.send_to(&[0; 972], at(&b, 1)).unwrap(); // 1,000 bytes on the wire: 24 Mbit/s
            }
            tokio::time::sleep(ms(1)).await;
        }
        let received = drain(&to, ms(200)).await.len();
        assert!((1_300..1_320).contains(&received), "{received}: 10 Mbit/s for 1 s and the queue's 50 ms is 1,312");
        assert_eq!(world.counters().dropped(DropReason::QueueFull) as usize, 3_000 - received);
    });
}

#[test]
fn reordering_link_reorders_and_plain_jitter_does_not() {
    let order = |reorder| {
        World::run(1, |world| async move {
            let (a, b) = (world.host("a"), world.host("b"));
            a.set_link(Link::standard().jitter(ms(10), reorder));
            let (from, to) = (bind(&a, 1), bind(&b, 1));
            for n in 0..100 {
                from.send_to(&[n], at(&b, 1)).unwrap();
            }
            drain(&to, ms(100)).await
        })
    };
    let sent: Vec<u8> = (0..100).collect();
    assert_eq!(order(false), sent);
    let mut reordered = order(true);
    assert_ne!(reordered, sent);
    reordered.sort_unstable();
    assert_eq!(reordered, sent);
}

#[test]
fn oversize_datagram_is_dropped_and_counted() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        b.edit_link(|link| link.mtu = 1_280);
        let (from, to) = (bind(&a, 1), bind(&b, 1));
        from.send_to(&[1; 1_252], at(&b, 1)).unwrap();
        from.send_to(&[2; 1_253], at(&b, 1)).unwrap();
        assert_eq!(drain(&to, ms(100)).await, [1]);
        assert_eq!(world.counters().dropped(DropReason::TooLong), 1);
    });
}

#[test]
fn cut_is_silent_and_ends_when_lifted() {
    World::run(1, |world| async move {
        let (a, b, c) = (world.host("a"), world.host("b"), world.host("c"));
        let (at_a, at_b, at_c) = (bind(&a, 1), bind(&b, 1), bind(&c, 1));
        let cut = world.cut(&a, &b);
        at_a.send_to(b"x", at(&b, 1)).unwrap();
        at_b.send_to(b"x", at(&a, 1)).unwrap();
        at_a.send_to(b"x", at(&c, 1)).unwrap();
        assert_eq!((next(&at_a).await, next(&at_b).await), (None, None));
        assert!(next(&at_c).await.is_some());
        assert_eq!(world.counters().dropped(DropReason::Rule), 2);
        cut.lift();
        at_a.send_to(b"x", at(&b, 1)).unwrap();
        assert!(next(&at_b).await.is_some());
        let _stays = world.cut_one_way(&a, &b);
        at_a.send_to(b"x", at(&b, 1)).unwrap();
        at_b.send_to(b"x", at(&a, 1)).unwrap();
        assert!(next(&at_a).await.is_some() && next(&at_b).await.is_none());
    });
}

#[test]
fn delays_of_rules_add_up() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (from, to) = (bind(&a, 1), bind(&b, 1));
        for _ in 0..2 {
            world.rule(|_: &Packet<'_>| Verdict::Delay(ms(15)));
        }
        from.send_to(b"x", at(&b, 1)).unwrap();
        assert!(next(&to).await.is_some());
        assert_eq!(world.elapsed(), ms(80));
    });
}

#[test]
fn host_that_is_down_neither_sends_nor_receives() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (at_a, at_b) = (bind(&a, 1), bind(&b, 1));
        at_a.send_to(b"under way", at(&b, 1)).unwrap();
        b.set_down();
        at_b.send_to(b"x", at(&a, 1)).unwrap();
        assert_eq!((next(&at_a).await, next(&at_b).await), (None, None));
        assert_eq!(world.counters().dropped(DropReason::Down), 2);
        b.set_up();
        at_b.send_to(b"x", at(&a, 1)).unwrap();
        assert!(next(&at_a).await.is_some());
    });
}

#[test]
fn renumbered_host_answers_at_its_new_address_only() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (at_a, at_b) = (bind(&a, 1), bind(&b, 1));
        let net = b.net();
        let changed = net.changed();
        let (old, new) = (at(&b, 1), (b.renumber(), 1).into());
        changed.await;
        assert!(net.interfaces().iter().any(|interface| interface.ip == b.addr()));
        at_a.send_to(b"x", old).unwrap();
        assert_eq!(next(&at_b).await, None);
        at_a.send_to(b"x", new).unwrap();
        assert!(next(&at_b).await.is_some());
        at_b.send_to(b"x", at(&a, 1)).unwrap();
        assert_eq!(next(&at_a).await, Some(new));
    });
}
