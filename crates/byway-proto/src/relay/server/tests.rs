//! What the machine of a relay must do.

mod bench;
mod model;

use alloc::{string::ToString, vec};
use core::net::Ipv4Addr;

use proptest::prelude::*;

use self::bench::{Bench, LOAD, addr, failed, peer};
use super::*;
use crate::{
    hello::OpenFailure,
    relay::{
        ALLOCATION_IDLE, Access, FAREWELL, HOLD, MAX_ALLOCATIONS_PER_CLIENT, MAX_HELD, MAX_HELD_BYTES,
        MAX_HELD_PER_ALLOCATION, MAX_HELD_PER_CLIENT, MAX_UNANSWERED,
    },
};

const ID: AllocId = AllocId(77);

#[test]
fn datagrams_go_to_the_other_end_and_back_under_one_id() {
    let mut relay = Bench::with_pair();
    assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
    assert_eq!(relay.data(2, ID), Forward::To(addr(1)));
    let counters = relay.server.counters();
    assert_eq!((counters.datagrams_forwarded, counters.bytes_forwarded), (2, 2_400));
}

#[test]
fn a_batch_counts_its_datagrams() {
    let mut relay = Bench::with_pair();
    let forward = relay.server.forward(addr(1), ID, Load { len: 12_000, segments: 10 }, relay.now);
    assert_eq!(forward, Forward::To(addr(2)));
    assert_eq!(relay.server.counters().datagrams_forwarded, 10);
}

#[test]
fn the_other_end_is_told_who_opened() {
    let mut relay = Bench::with_clients(&[1, 2]);
    let opened = Control::Opened { alloc: ID, peer: peer(1), instance: 100 };
    assert_eq!(relay.open(1, ID, 2), [Output::Send { conn: 2, message: opened }]);
}

#[test]
fn a_client_learns_its_address_and_its_rate() {
    let mut relay = Bench::with_clients(&[]);
    relay.connect(1, 1, 100);
    let max_rate = relay.config().client_rate;
    let registered = Control::Registered { observed: addr(1), max_rate, stun_port: None };
    assert_eq!(relay.control(1, Control::Register), [Output::Send { conn: 1, message: registered }]);
}

#[test]
fn strangers_and_third_clients_get_nothing_through() {
    let mut relay = Bench::with_pair();
    relay.client(3);
    assert_eq!(relay.data(9, ID), Forward::Drop(RelayDrop::NotInPair));
    assert_eq!(relay.data(3, ID), Forward::Drop(RelayDrop::NotInPair));
    assert_eq!(relay.data(9, AllocId(1)), Forward::Drop(RelayDrop::Stranger));
    let drops = &relay.server.counters().drops;
    assert_eq!((drops.not_in_pair, drops.stranger, drops.total()), (2, 1, 3));
}

#[test]
fn a_link_that_has_not_registered_is_a_stranger() {
    let mut relay = Bench::with_clients(&[2]);
    relay.connect(1, 1, 100);
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::Stranger));
    assert_eq!(relay.open(1, ID, 2), [failed(1, ID, 2, OpenFailure::Misuse)]);
}

#[test]
fn a_client_that_sends_too_much_is_slowed_and_its_peer_is_not() {
    let mut relay = Bench::with_pair();
    assert_eq!(relay.data(2, ID), Forward::To(addr(1)));
    let sent = (0..10_000).filter(|_| matches!(relay.data(1, ID), Forward::To(_))).count();
    assert_eq!(sent as u64, relay.config().client_burst / 1_200);
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::RateLimited));
    assert_eq!(relay.data(2, ID), Forward::To(addr(1)));
    relay.wait(Duration::from_secs(1));
    assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
}

#[test]
fn whoever_does_not_answer_is_sent_no_more_than_a_dial_needs() {
    let mut relay = Bench::with_pair();
    let sent = (0..1_000).filter(|_| matches!(relay.data(1, ID), Forward::To(_))).count();
    assert_eq!(sent as u64, MAX_UNANSWERED / 1_200);
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::Unanswered));
    relay.open(1, ID, 2);
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::Unanswered), "to open it again is no answer");
    assert_eq!(relay.data(2, ID), Forward::To(addr(1)), "nobody bounds the answer");
    assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
    assert_eq!(relay.server.counters().drops.unanswered, 1_002 - sent as u64);
}

#[test]
fn data_ahead_of_its_open_is_held_and_then_sent_on_in_order() {
    let mut relay = Bench::with_clients(&[1, 2]);
    for n in 0..3 {
        assert_eq!(relay.data(1, ID), Forward::Hold);
        relay.server.hold(addr(1), ID, &[n; 50], relay.now).unwrap();
    }
    let outputs = relay.open(1, ID, 2);
    let sent: Vec<_> = outputs[1..].to_vec();
    let expected: Vec<_> = (0..3).map(|n| Output::Transmit { to: addr(2), bytes: vec![n; 50] }).collect();
    assert_eq!(sent, expected);
    assert_eq!(relay.server.held(), 0);
    assert_eq!(relay.server.hold(addr(1), ID, &[9; 50], relay.now), Ok(()));
    assert_eq!(relay.drained(), [Output::Transmit { to: addr(2), bytes: vec![9; 50] }]);
}

#[test]
fn held_data_is_dropped_after_200_ms() {
    let mut relay = Bench::with_clients(&[1, 2]);
    relay.hold(1, ID).unwrap();
    assert_eq!(relay.server.poll_timeout(), Some((relay.now + HOLD, "held datagrams")));
    relay.wait(HOLD - Duration::from_millis(1));
    assert_eq!(relay.server.held(), 1);
    relay.wait(Duration::from_millis(1));
    assert_eq!((relay.server.held(), relay.server.counters().drops.hold_expired), (0, 1));
    assert_eq!(relay.server.poll_timeout(), None);
}

#[test]
fn held_data_is_not_sent_on_when_somebody_else_opens() {
    let mut relay = Bench::with_clients(&[1, 2, 3]);
    relay.hold(1, ID).unwrap();
    assert_eq!(relay.open(3, ID, 2).len(), 1);
    assert_eq!(relay.server.counters().drops.hold_orphaned, 1);
}

#[test]
fn a_refused_open_drops_what_was_held_for_it() {
    let mut relay = Bench::with_clients(&[1, 3]);
    relay.hold(1, ID).unwrap();
    assert_eq!(relay.open(3, ID, 2), [failed(3, ID, 2, OpenFailure::NotRegistered)]);
    assert_eq!(relay.server.held(), 1, "another client's refusal is no reason");
    assert_eq!(relay.open(1, ID, 2), [failed(1, ID, 2, OpenFailure::NotRegistered)]);
    assert_eq!(relay.server.held(), 0);
}

#[test]
fn holding_is_bounded_by_allocation_client_and_in_all() {
    let mut relay = Bench::with_clients(&(0..80).collect::<Vec<_>>());
    for _ in 0..MAX_HELD_PER_ALLOCATION {
        relay.hold(1, ID).unwrap();
    }
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::HoldFull));
    relay.wait(HOLD);
    for client in 0..80 {
        for n in 0..100 {
            let _ = relay.hold(client, AllocId(1_000 + u64::from(client) * 100 + n));
        }
        assert!(relay.server.held() <= (usize::from(client) + 1) * MAX_HELD_PER_CLIENT);
    }
    assert_eq!(relay.server.held(), MAX_HELD);
    relay.wait(HOLD);
    let long = [0; MAX_HELD_BYTES + 1];
    assert_eq!(relay.server.hold(addr(1), ID, &long, relay.now), Err(RelayDrop::HoldFull));
    assert_eq!(relay.server.hold(addr(200), ID, &[0; 9], relay.now), Err(RelayDrop::Stranger));
}

#[test]
fn opening_again_changes_nothing_for_the_pair_and_fails_for_others() {
    let mut relay = Bench::with_pair();
    relay.client(3);
    assert_eq!(relay.open(1, ID, 2).len(), 1);
    assert_eq!(relay.open(2, ID, 1).len(), 1);
    assert_eq!(relay.open(3, ID, 2), [failed(3, ID, 2, OpenFailure::Taken)]);
    assert_eq!(relay.open(1, ID, 3), [failed(1, ID, 3, OpenFailure::Taken)]);
    assert_eq!((relay.server.allocations(), relay.server.counters().opened), (1, 1));
}

#[test]
fn nobody_opens_to_itself() {
    let mut relay = Bench::with_clients(&[1]);
    assert_eq!(relay.open(1, ID, 1), [failed(1, ID, 1, OpenFailure::Misuse)]);
}

#[test]
fn allocations_are_bounded_by_client_and_in_all() {
    let mut relay = Bench::with_clients(&[1, 2]);
    for n in 0..MAX_ALLOCATIONS_PER_CLIENT as u64 {
        relay.open(1, AllocId(n), 2);
    }
    relay.wait(Duration::from_secs(10));
    assert_eq!(relay.open(1, AllocId(9_999), 2), [failed(1, AllocId(9_999), 2, OpenFailure::TooMany)]);
    assert!(matches!(relay.open(2, AllocId(9_999), 1)[..], [Output::Send { conn: 1, .. }]));

    let mut relay = Bench::new(RelayConfig { max_allocations: 1, ..RelayConfig::default() }, &[1, 2, 3]);
    relay.open(1, ID, 2);
    assert_eq!(relay.open(3, AllocId(1), 2), [failed(3, AllocId(1), 2, OpenFailure::TooMany)]);
}

#[test]
fn opening_is_limited_a_second() {
    let mut relay = Bench::with_clients(&[1, 2]);
    let told = (0..1_000).map(|_| relay.open(1, ID, 2)).filter(|o| matches!(o[0], Output::Send { conn: 2, .. }));
    assert_eq!(told.count() as u64, OPEN_BURST);
}

#[test]
fn the_newest_registration_wins() {
    let mut relay = Bench::with_pair();
    relay.connect_at(10, 1, 100, addr(11));
    assert_eq!(relay.data(1, ID), Forward::To(addr(2)), "connecting alone changes nothing");
    let outputs = relay.control(10, Control::Register);
    assert_eq!(outputs[0], Output::Close { conn: 1, reason: CloseReason::Replaced });
    assert_eq!(outputs.len(), 2, "the same instance is no news to the others");
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::NotInPair));
    assert_eq!(relay.data(2, ID), Forward::To(addr(11)));
    relay.input(Input::Disconnected { conn: 1 });
    assert_eq!(relay.data(2, ID), Forward::To(addr(11)), "the old link's end is not the new one's");
}

#[test]
fn allocations_outlive_a_restart_and_the_other_end_is_told() {
    let mut relay = Bench::with_pair();
    relay.input(Input::Disconnected { conn: 1 });
    assert_eq!(relay.data(2, ID), Forward::Drop(RelayDrop::PeerAbsent));
    relay.connect_at(10, 1, 555, addr(11));
    let anew = Control::PeerAnew { alloc: ID, peer: peer(1), instance: 555 };
    assert_eq!(relay.control(10, Control::Register)[1..], [Output::Send { conn: 2, message: anew }]);
    assert_eq!(relay.data(2, ID), Forward::To(addr(11)));
}

#[test]
fn a_new_address_takes_the_place_of_the_old() {
    let mut relay = Bench::with_pair();
    let told = relay.input(Input::Rebound { conn: 1, addr: addr(11), source: Source::of(addr(11)) });
    let registered = Control::Registered { observed: addr(11), max_rate: relay.config().client_rate, stun_port: None };
    assert_eq!(told, [Output::Send { conn: 1, message: registered }]);
    assert_eq!(relay.data(2, ID), Forward::To(addr(11)));
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::NotInPair));
}

#[test]
fn an_address_belongs_to_who_proved_it_last() {
    let mut relay = Bench::with_pair();
    relay.connect_at(10, 3, 100, addr(1));
    relay.control(10, Control::Register);
    assert_eq!(relay.data(2, ID), Forward::Drop(RelayDrop::PeerAbsent));
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::NotInPair));
}

#[test]
fn what_a_client_says_on_leaving_comes_behind_its_goodbye_to_the_relay_and_gets_through() {
    let mut relay = Bench::with_pair();
    relay.input(Input::Disconnected { conn: 1 });
    assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
    assert_eq!(relay.data(2, ID), Forward::Drop(RelayDrop::PeerAbsent), "nothing goes to it any more");
    relay.wait(FAREWELL);
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::NotInPair));
}

#[test]
fn registering_again_does_not_refill_the_rate() {
    let mut relay = Bench::with_pair();
    assert_eq!(relay.data(2, ID), Forward::To(addr(1)));
    while relay.data(1, ID) == Forward::To(addr(2)) {}
    relay.connect(10, 1, 100);
    relay.control(10, Control::Register);
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::RateLimited));
}

#[test]
fn idle_allocations_are_forgotten_and_busy_ones_are_not() {
    let mut relay = Bench::with_pair();
    relay.client(3);
    relay.open(3, AllocId(3), 2);
    for _ in 0..20 {
        relay.wait(ALLOCATION_IDLE / 10);
        assert_eq!(relay.data(3, AllocId(3)), Forward::To(addr(2)));
    }
    assert_eq!((relay.server.allocations(), relay.server.counters().forgotten), (1, 1));
    assert_eq!(relay.data(1, ID), Forward::Hold);
}

#[test]
fn both_ends_are_told_of_a_forgotten_allocation() {
    let mut relay = Bench::with_pair();
    relay.now += ALLOCATION_IDLE;
    relay.server.handle_input(Input::Timeout, relay.now);
    let told = [failed(1, ID, 2, OpenFailure::Idle), failed(2, ID, 1, OpenFailure::Idle)];
    assert_eq!(relay.drained(), told);
}

#[test]
fn an_absent_client_is_forgotten_with_its_last_allocation() {
    let mut relay = Bench::with_pair();
    relay.input(Input::Disconnected { conn: 1 });
    assert_eq!((relay.server.clients(), relay.server.clients.len()), (1, 2));
    relay.wait(ALLOCATION_IDLE + SWEEP);
    assert_eq!(relay.server.clients.len(), 1);
    relay.input(Input::Disconnected { conn: 2 });
    assert_eq!(relay.server.clients.len(), 0);
}

#[test]
fn a_full_relay_refuses_links_and_gives_the_place_of_the_absent_to_newcomers() {
    let mut relay = Bench::new(RelayConfig { max_clients: 2, ..RelayConfig::default() }, &[1, 2]);
    assert_eq!(relay.connect(3, 3, 100), [Output::Close { conn: 3, reason: CloseReason::Full }]);
    relay.connect(10, 1, 100);
    assert_eq!(relay.control(10, Control::Register).len(), 2, "who is a client already may come back");
    relay.open(10, ID, 2);
    relay.input(Input::Disconnected { conn: 10 });
    relay.connect(3, 3, 100);
    assert_eq!(relay.control(3, Control::Register)[0], failed(2, ID, 1, OpenFailure::Idle));
    assert_eq!((relay.server.clients(), relay.server.allocations()), (2, 0));
}

#[test]
fn a_relay_for_friends_refuses_strangers_by_name() {
    let config = RelayConfig { access: Access::Friends([peer(1), peer(2)].into()), ..RelayConfig::default() };
    let mut relay = Bench::new(config, &[1, 2]);
    assert_eq!(relay.connect(3, 3, 100), [Output::Close { conn: 3, reason: CloseReason::Stranger }]);
    relay.open(1, ID, 2);
    assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
    let access = Access::Friends([peer(1), peer(3)].into());
    let closed = relay.input(Input::Configure(RelayConfig { access, ..RelayConfig::default() }));
    assert_eq!(closed, [Output::Close { conn: 2, reason: CloseReason::Stranger }]);
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::PeerAbsent));
    assert_eq!(relay.connect(3, 3, 100), []);
}

#[test]
fn other_limits_hold_at_once_and_drop_nobody() {
    let mut relay = Bench::new(RelayConfig { stun_port: Some(9), ..RelayConfig::default() }, &[1, 2]);
    relay.open(1, ID, 2);
    let (client_rate, client_burst) = (1_200, 2_400);
    let config = RelayConfig { client_rate, client_burst, max_clients: 1, ..RelayConfig::default() };
    let told = |n: u8| {
        let message = Control::Registered { observed: addr(n), max_rate: client_rate, stun_port: Some(9) };
        Output::Send { conn: n.into(), message }
    };
    assert_eq!(relay.input(Input::Configure(config.clone())), [told(1), told(2)]);
    let sent = (0..10).filter(|_| relay.data(1, ID) == Forward::To(addr(2))).count();
    assert_eq!(sent, 2, "the new burst");
    relay.wait(Duration::from_secs(1));
    let sent = (0..10).filter(|_| relay.data(1, ID) == Forward::To(addr(2))).count();
    assert_eq!(sent, 1, "the new rate");
    assert_eq!(relay.connect(3, 3, 100), [Output::Close { conn: 3, reason: CloseReason::Full }]);
    let shared = RelayConfig { total_rate: Some(12_000), ..config };
    assert_eq!(relay.input(Input::Configure(shared)), [], "with the same rate there is nothing to tell");
    relay.wait(Duration::from_secs(1));
    assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
    assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::RateLimited), "the rate that all share holds as well");
}

#[test]
fn limits_out_of_their_range_are_named() {
    RelayConfig::default().check().unwrap();
    for (config, key) in [
        (
            RelayConfig { client_burst: 65_535, ..RelayConfig::default() },
            "client_burst is 65535, but its range is 65536 to",
        ),
        (RelayConfig { client_rate: 0, ..RelayConfig::default() }, "client_rate"),
        (RelayConfig { total_rate: Some(1), ..RelayConfig::default() }, "total_rate"),
        (RelayConfig { max_clients: 0, ..RelayConfig::default() }, "max_clients is 0"),
        (RelayConfig { allocation_idle: Duration::ZERO, ..RelayConfig::default() }, "allocation_idle"),
    ] {
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn one_address_cannot_take_all_places() {
    let mut relay = Bench::new(RelayConfig { max_clients_per_source: 2, ..RelayConfig::default() }, &[]);
    let at = |port| SocketAddr::from((Ipv4Addr::new(192, 0, 2, 9), port));
    for n in 1..=2 {
        relay.connect_at(n.into(), n, 100, at(n.into()));
        relay.control(n.into(), Control::Register);
    }
    assert_eq!(relay.connect_at(3, 3, 100, at(3)), [Output::Close { conn: 3, reason: CloseReason::Crowded }]);
    assert_eq!(relay.connect_at(4, 4, 100, addr(4)), [], "others are not concerned");
    assert_eq!(relay.connect_at(5, 1, 101, at(5)), [], "who has a place may come back");
    for conn in [1, 5] {
        relay.input(Input::Disconnected { conn });
    }
    assert_eq!(relay.connect_at(6, 3, 100, at(3)), []);
    relay.input(Input::Rebound { conn: 4, addr: at(4), source: Source::of(at(4)) });
    (1..7).for_each(|conn| drop(relay.input(Input::Disconnected { conn })));
    assert!(relay.server.sources.is_empty());
}

#[test]
fn clients_share_a_total_rate_equally() {
    let config = RelayConfig { total_rate: Some(2_400_000), ..RelayConfig::default() };
    let mut relay = Bench::new(config, &[1, 2, 3, 4]);
    relay.open(1, ID, 2);
    relay.open(3, AllocId(3), 4);
    for (from, id) in [(2, ID), (4, AllocId(3))] {
        assert_eq!(relay.data(from, id), Forward::To(addr(from - 1)));
    }
    let mut sent = [0; 2];
    for ms in 0..2_000 {
        // 1 wants four times as much as 3, and both want more than half.
        for (n, from, id, count) in [(0, 1, ID, 8), (1, 3, AllocId(3), 2)] {
            for _ in 0..count {
                sent[n] += usize::from(relay.data(from, id) == Forward::To(addr(from + 1)) && ms >= 200);
            }
        }
        relay.now += Duration::from_millis(1);
    }
    assert!(sent.iter().all(|sent| (1_750..=1_800).contains(sent)), "{sent:?}: 1,800 datagrams each are half");
}

#[test]
fn what_is_held_counts_as_sent() {
    let mut relay = Bench::new(RelayConfig { total_rate: Some(20_000), ..RelayConfig::default() }, &[1, 2]);
    let held: Vec<_> = (0..3).map(|_| relay.server.hold(addr(1), ID, &[0; 1_200], relay.now)).collect();
    assert_eq!(held, [Ok(()), Ok(()), Err(RelayDrop::RateLimited)], "2,000 bytes are the share of a window");
}

#[test]
fn clients_count_as_what_stands_behind_their_addresses() {
    let mut relay = Bench::new(RelayConfig { max_clients_per_source: 1, ..RelayConfig::default() }, &[]);
    let inside = |n: u8| SocketAddr::from(([0x100, 0, 0, 1, 0, 0, 0, u16::from(n)], 1));
    let mut connect = |n: u8, source: u8| {
        let (addr, source) = (inside(n), Source::of(addr(source)));
        relay.input(Input::Connected { conn: n.into(), peer: peer(n), instance: 100, addr, source })
    };
    assert_eq!((connect(1, 1), connect(2, 2)), (vec![], vec![]), "addresses of one prefix that stand for two hosts");
    assert_eq!(connect(3, 2), [Output::Close { conn: 3, reason: CloseReason::Crowded }]);
}

#[test]
fn one_identity_cannot_take_all_links() {
    let mut relay = Bench::with_clients(&[1]);
    for conn in 10..1_000 {
        relay.connect_at(conn, 1, 100, addr(11));
    }
    assert_eq!(relay.server.links.len(), 2);
}

#[test]
fn draining_refuses_what_is_new_and_closes_at_the_deadline() {
    let mut relay = Bench::with_pair();
    relay.connect(3, 3, 100);
    let within = Duration::from_secs(30);
    let told: Vec<_> = (1..4).map(|conn| Output::Send { conn, message: Control::Drain { deadline: within } }).collect();
    assert_eq!(relay.input(Input::Drain { within }), told);
    assert_eq!(relay.input(Input::Drain { within }), []);
    let closed = |conn| Output::Close { conn, reason: CloseReason::Draining };
    assert_eq!(relay.connect(4, 4, 100), [closed(4)]);
    assert_eq!(relay.control(3, Control::Register), [closed(3)]);
    let again = Control::Registered { observed: addr(1), max_rate: relay.server.config.client_rate, stun_port: None };
    assert_eq!(relay.control(1, Control::Register), [Output::Send { conn: 1, message: again }], "it is no newcomer");
    assert_eq!(relay.open(1, AllocId(9), 2), [failed(1, AllocId(9), 2, OpenFailure::Draining)]);
    assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
    relay.now += within;
    assert_eq!(relay.input(Input::Timeout), [closed(1), closed(2)]);
    assert_eq!((relay.server.allocations(), relay.server.clients.len()), (0, 0));
    assert_eq!(relay.server.poll_timeout(), None);
    assert_eq!(relay.connect(5, 5, 100), [closed(5)]);
}

#[test]
fn messages_that_are_not_for_a_relay_are_counted() {
    let mut relay = Bench::with_clients(&[1]);
    assert_eq!(relay.control(1, Control::Drain { deadline: HOLD }), []);
    assert_eq!(relay.control(50, Control::Register), []);
    assert_eq!(relay.open(50, ID, 1), []);
    assert_eq!(relay.server.counters().control_ignored, 3);
}

#[test]
fn a_flood_of_strangers_costs_no_memory() {
    let mut relay = Bench::with_pair();
    for n in 0..100_000 {
        let from = SocketAddr::from((Ipv4Addr::from_bits(n), 7));
        assert!(matches!(relay.server.forward(from, AllocId(n.into()), LOAD, relay.now), Forward::Drop(_)));
        assert!(relay.server.hold(from, AllocId(n.into()), &[0; 1_200], relay.now).is_err());
    }
    assert_eq!((relay.server.held(), relay.server.allocations(), relay.server.clients.len()), (0, 1, 2));
    assert_eq!(relay.server.counters().drops.total(), 200_000);
}

#[test]
fn what_a_client_has_held_goes_with_it() {
    let mut relay = Bench::with_clients(&[1, 2]);
    relay.hold(1, ID).unwrap();
    relay.input(Input::Disconnected { conn: 1 });
    assert_eq!((relay.server.held(), relay.server.counters().drops.hold_orphaned), (0, 1));
}

#[test]
fn nobody_adds_to_what_another_has_held_under_an_id() {
    let mut relay = Bench::with_clients(&[1, 2, 3]);
    relay.hold(1, ID).unwrap();
    assert_eq!(relay.data(3, ID), Forward::Drop(RelayDrop::HoldFull));
    assert_eq!(relay.hold(3, ID), Err(RelayDrop::HoldFull));
    assert_eq!(relay.open(1, ID, 2).len(), 2, "the other end is told, and gets the one datagram of its opener");
}

#[test]
fn what_is_held_counts_against_the_clients_own_rate() {
    let limits = RelayConfig { client_rate: 1_000, client_burst: 2_400, ..RelayConfig::default() };
    let mut relay = Bench::new(limits, &[1, 2]);
    let held: Vec<_> = (0..3).map(|_| relay.server.hold(addr(1), ID, &[0; 1_200], relay.now)).collect();
    assert_eq!(held, [Ok(()), Ok(()), Err(RelayDrop::RateLimited)]);
}

#[test]
fn what_is_dropped_keeps_no_allocation_alive() {
    let mut relay = Bench::with_pair();
    relay.input(Input::Disconnected { conn: 2 });
    for _ in 0..20 {
        relay.wait(ALLOCATION_IDLE / 10);
        let _ = relay.data(1, ID);
    }
    assert_eq!((relay.server.allocations(), relay.server.clients.len()), (0, 1));
}

#[test]
fn a_link_that_never_registered_ends_without_a_trace() {
    let mut relay = Bench::with_pair();
    relay.connect_at(10, 1, 100, addr(11));
    relay.input(Input::Rebound { conn: 10, addr: addr(12), source: Source::of(addr(12)) });
    relay.input(Input::Disconnected { conn: 10 });
    assert_eq!(relay.data(2, ID), Forward::To(addr(1)));
    assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
}

#[test]
fn a_client_that_moves_counts_where_it_is() {
    let mut relay = Bench::new(RelayConfig { max_clients_per_source: 1, ..RelayConfig::default() }, &[1]);
    relay.input(Input::Rebound { conn: 1, addr: addr(2), source: Source::of(addr(2)) });
    assert_eq!(relay.connect_at(3, 3, 100, addr(2)), [Output::Close { conn: 3, reason: CloseReason::Crowded }]);
    assert_eq!(relay.connect_at(4, 4, 100, addr(1)), []);
}

#[test]
fn a_place_that_its_owner_took_back_is_nobody_elses() {
    let mut relay = Bench::new(RelayConfig { max_clients: 2, ..RelayConfig::default() }, &[1, 2]);
    relay.open(1, ID, 2);
    relay.input(Input::Disconnected { conn: 1 });
    assert_eq!(relay.connect(3, 3, 100), []);
    relay.connect(10, 1, 100);
    relay.control(10, Control::Register);
    assert_eq!(relay.control(3, Control::Register), [Output::Close { conn: 3, reason: CloseReason::Full }]);
    assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
}

#[test]
fn of_two_absent_clients_the_one_that_left_first_gives_its_place() {
    let mut relay = Bench::new(RelayConfig { max_clients: 3, ..RelayConfig::default() }, &[1, 2, 3]);
    relay.open(1, ID, 3);
    relay.open(2, AllocId(2), 3);
    for conn in [2, 1] {
        relay.input(Input::Disconnected { conn });
        relay.wait(Duration::from_secs(1));
    }
    relay.connect(4, 4, 100);
    assert_eq!(relay.control(4, Control::Register)[0], failed(3, AllocId(2), 2, OpenFailure::Idle));
    assert_eq!(relay.server.allocations(), 1);
}

#[test]
fn a_relay_may_stop_sooner_than_it_said_and_not_later() {
    let mut relay = Bench::with_clients(&[1]);
    let [soon, late] = [10, 60].map(Duration::from_secs);
    for (within, told) in [(late, 1), (soon, 1), (late, 0)] {
        assert_eq!(relay.input(Input::Drain { within }).len(), told);
    }
    relay.wait(soon);
    assert_eq!(relay.server.clients(), 0);
}

#[test]
fn a_relay_that_drains_takes_no_other_link_of_its_own_clients_either() {
    let mut relay = Bench::with_clients(&[1]);
    relay.input(Input::Drain { within: HOLD });
    assert_eq!(relay.connect(10, 1, 100), [Output::Close { conn: 10, reason: CloseReason::Draining }]);
}

#[test]
fn what_is_open_is_opened_again_at_a_full_relay_and_at_one_that_drains() {
    let mut relay = Bench::new(RelayConfig { max_allocations: 1, ..RelayConfig::default() }, &[1, 2]);
    let opened = relay.open(1, ID, 2);
    assert!(matches!(opened[..], [Output::Send { conn: 2, .. }]));
    assert_eq!(relay.open(1, ID, 2), opened);
    relay.input(Input::Drain { within: HOLD });
    assert_eq!(relay.open(1, ID, 2), opened);
}

#[test]
fn nobody_opens_to_who_is_absent() {
    let mut relay = Bench::with_pair();
    relay.client(3);
    relay.input(Input::Disconnected { conn: 2 });
    for (conn, id) in [(1, ID), (3, AllocId(3))] {
        assert_eq!(relay.open(conn, id, 2), [failed(conn, id, 2, OpenFailure::NotRegistered)]);
    }
}

#[test]
fn a_forgotten_allocation_gives_its_place_to_another() {
    let limits = RelayConfig { max_allocations_per_client: 1, max_allocations: 1, ..RelayConfig::default() };
    let mut relay = Bench::new(limits, &[1, 2]);
    relay.open(1, ID, 2);
    relay.wait(ALLOCATION_IDLE + SWEEP);
    assert!(matches!(relay.open(1, AllocId(2), 2)[..], [Output::Send { conn: 2, .. }]));
}

#[test]
fn behind_a_burst_allocations_are_opened_at_a_rate() {
    let mut relay = Bench::with_clients(&[1, 2]);
    let mut opened = 0;
    for _ in 0..2 {
        let told = (0..1_000).map(|_| relay.open(1, ID, 2)).filter(|o| matches!(o[0], Output::Send { conn: 2, .. }));
        opened = told.count() as u64;
        relay.wait(Duration::from_secs(1));
    }
    assert_eq!(opened, OPEN_RATE);
}

#[test]
fn no_limit_may_be_nothing_or_without_end() {
    let settings: [fn(&mut RelayConfig, u64); 8] = [
        |config, value| config.max_clients = value as usize,
        |config, value| config.max_clients_per_source = value as usize,
        |config, value| config.max_allocations_per_client = value as usize,
        |config, value| config.max_allocations = value as usize,
        |config, value| config.client_rate = value,
        |config, value| config.client_burst = value,
        |config, value| config.total_rate = Some(value),
        |config, value| config.allocation_idle = Duration::from_secs(value),
    ];
    for (n, set) in settings.iter().enumerate() {
        for value in [0, u64::MAX] {
            let mut config = RelayConfig::default();
            set(&mut config, value);
            assert!(config.check().is_err(), "setting {n} may be {value}");
        }
    }
}

#[test]
fn a_rate_that_all_share_is_set_and_changed_and_taken_away_at_once() {
    let mut relay = Bench::with_pair();
    assert_eq!(relay.data(2, ID), Forward::To(addr(1)));
    let sent = [Some(24_000), Some(48_000), None].map(|total_rate| {
        relay.wait(Duration::from_secs(1));
        relay.input(Input::Configure(RelayConfig { total_rate, ..RelayConfig::default() }));
        (0..10).filter(|_| matches!(relay.data(1, ID), Forward::To(_))).count()
    });
    assert_eq!(sent, [2, 4, 10], "of what a tenth of a second may carry");
}
