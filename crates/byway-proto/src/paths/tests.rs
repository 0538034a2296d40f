//! The machine alone, under fake time.

use alloc::{collections::BTreeSet, vec, vec::Vec};
use core::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::congestion::Delivery;

mod goodput;

const A: RouteId = RouteId(0);
const B: RouteId = RouteId(1);

#[test]
fn dial_sends_on_every_route_until_the_handshake() {
    let mut one = Driven::new();
    one.add(A, RouteKind::Direct);
    assert_eq!(one.add(B, RouteKind::Relay), []);
    assert_eq!((one.paths.plan(), one.paths.poll_timeout()), (Plan::All, None));
    let outputs = one.input(Input::Established { heard: B });
    assert_eq!(outputs[0], Output::Selected { from: None, to: B, why: Why::Handshake, hedge_began: None });
    assert_eq!(pinged(&outputs), [A, B]);
    assert_eq!(one.paths.plan(), Plan::All, "no route is proven yet");
}

#[test]
fn handshake_heard_on_an_unknown_route_falls_back_to_the_best() {
    let mut one = Driven::new();
    one.add(B, RouteKind::Relay);
    one.add(A, RouteKind::Direct);
    one.input(Input::Established { heard: RouteId(9) });
    assert_eq!(one.paths.selected(), Some(A));
}

#[test]
fn hedge_copies_to_proven_routes_only() {
    let mut one = Driven::established();
    one.add(RouteId(7), RouteKind::Direct);
    let outputs = one.silence();
    assert!(outputs.contains(&Output::Hedged(HedgeWhy::Silence)));
    assert_eq!(one.paths.plan(), Plan::Several([A, B].into_iter().collect()));
    assert_eq!(pinged(&outputs), [A, B, RouteId(7)]);
    // what left before the patience and one and a half round trips QUIC has sent anew itself
    let replayed = |output: &Output| matches!(output, Output::Replay { route: B, last: usize::MAX, max_age, .. } if *max_age == ms(300));
    assert_eq!(outputs.iter().filter(|output| matches!(output, Output::Replay { .. })).count(), 1);
    assert!(outputs.iter().any(replayed));
}

#[test]
fn pong_on_the_selected_route_ends_the_hedge() {
    let mut one = Driven::established();
    let hedge = one.silence();
    one.wait(60);
    let outputs = one.pong(&hedge, A);
    assert!(outputs.contains(&Output::Unhedged) && outputs.contains(&Output::ClearUnanswered));
    assert!(outputs.contains(&Output::Replay { route: A, last: 2, max_age: Duration::MAX, budgeted: true }));
    assert_eq!((one.paths.plan(), one.paths.watching()), (Plan::One(A), false));
}

#[test]
fn pong_to_a_ping_from_before_the_hedge_does_not_end_it() {
    let mut one = Driven::established();
    one.wait(5_000);
    let before = one.sample(Sample { last_sent: Some(one.now), ..Sample::default() });
    assert_eq!(pinged(&before), [A]);
    one.silence();
    one.pong(&before, A);
    assert!(matches!(one.paths.plan(), Plan::Several(_)));
}

#[test]
fn switch_waits_for_patience_and_slack_and_is_dated_at_the_hedge() {
    let mut one = Driven::established();
    let hedge = one.silence();
    let began = one.now;
    one.wait(100);
    assert!(!one.pong(&hedge, B).iter().any(|output| matches!(output, Output::Selected { .. })));
    let mut switch = None;
    while switch.is_none() {
        let outputs = one.next();
        switch = outputs.into_iter().find(|output| matches!(output, Output::Selected { .. }));
    }
    assert_eq!(switch, Some(Output::Selected { from: Some(A), to: B, why: Why::Silent, hedge_began: Some(began) }));
    assert_eq!(one.now.since(began), ms(300));
    assert_eq!(one.paths.plan(), Plan::One(B));
}

#[test]
fn first_answer_elsewhere_is_given_time_for_the_selected_route_to_answer_too() {
    let mut one = Driven::established();
    one.silence();
    let mut hedge = vec![];
    for _ in 0..5 {
        hedge = one.next(); // a line that both routes share is out for as long as a death takes to decide
    }
    one.wait(100);
    one.pong(&hedge, B);
    one.wait(40);
    assert_eq!(one.paths.selected(), Some(A), "the answer by the other route was merely the first");
    assert!(one.pong(&hedge, A).contains(&Output::Unhedged));
}

#[test]
fn a_route_that_answers_carries_all_instead_of_copies_until_the_silent_one_answers_too() {
    let mut one = Driven::established();
    let hedge = one.silence();
    one.wait(60);
    one.pong(&hedge, B);
    assert_eq!((one.paths.plan(), one.paths.selected()), (Plan::Instead(B), Some(A)), "no verdict yet");
    one.wait(20);
    one.pong(&hedge, A);
    assert_eq!(one.paths.plan(), Plan::One(A));
}

#[test]
fn a_route_on_which_the_peer_is_heard_carries_all_for_as_long_as_its_pong_may_take() {
    let mut one = Driven::established();
    one.silence();
    one.wait(30);
    let heard = Sample { heard: vec![(B, one.now)], ..Sample::default() };
    one.sample(heard.clone());
    assert_eq!(one.paths.plan(), Plan::Instead(B));
    one.wait(149);
    one.sample(heard);
    assert_eq!(one.paths.plan(), Plan::Instead(B));
    one.wait(1);
    one.sample(Sample { heard: vec![(B, one.now)], ..Sample::default() });
    assert_eq!(one.paths.plan(), Plan::Several([A, B].into_iter().collect()), "it is heard, and does not answer");
}

#[test]
fn a_route_on_which_the_peer_was_heard_before_the_doubt_is_none_to_rely_on() {
    let mut one = Driven::established();
    let heard = Sample { heard: vec![(B, one.now)], ..Sample::default() };
    one.wait(1);
    one.silence();
    one.sample(heard);
    assert_eq!(one.paths.plan(), Plan::Several([A, B].into_iter().collect()));
}

#[test]
fn copies_go_on_after_a_handshake_whichever_route_answers_first() {
    let mut one = Driven::new();
    one.add(A, RouteKind::Direct);
    one.add(B, RouteKind::Relay);
    let hedge = one.input(Input::Established { heard: A });
    one.wait(30);
    one.pong(&hedge, B);
    assert_eq!(one.paths.plan(), Plan::Several([A, B].into_iter().collect()));
}

#[test]
fn a_doubt_that_arrives_right_after_a_switch_is_about_the_route_before() {
    let mut one = Driven::established();
    let hedge = one.silence();
    one.wait(100);
    one.pong(&hedge, B);
    while one.paths.selected() == Some(A) {
        one.next();
    }
    one.wait(100);
    let doubt = Input::Ping { route: B, doubt: true };
    assert!(!one.input(doubt.clone()).contains(&Output::Hedged(HedgeWhy::PeerDoubts)));
    one.wait(100);
    assert!(one.input(doubt).contains(&Output::Hedged(HedgeWhy::PeerDoubts)), "it is about this one by now");
}

#[test]
fn an_answer_elsewhere_shortens_the_wait_that_follows_false_alarms() {
    let mut one = Driven::established();
    let hedge = one.silence();
    one.wait(60);
    one.pong(&hedge, A);
    one.wait(1_000);
    let asks = one.silence();
    one.wait(20);
    one.pong(&asks, B);
    one.wait(49);
    one.sample(Sample::default());
    assert_eq!(one.paths.plan(), Plan::One(A));
    one.wait(1);
    one.sample(Sample::default());
    assert_eq!(one.paths.plan(), Plan::Instead(B));
}

#[test]
fn after_a_false_alarm_the_next_hedge_asks_before_it_copies() {
    let mut one = Driven::established();
    let hedge = one.silence();
    one.wait(60);
    one.pong(&hedge, A);
    one.wait(1_000);
    let asks = one.silence();
    let began = one.now;
    assert_eq!((pinged(&asks), one.paths.plan()), (vec![A, B], Plan::One(A)));
    assert!(!asks.iter().any(|output| matches!(output, Output::Replay { .. })));
    let copies = loop {
        let outputs = one.next();
        if matches!(one.paths.plan(), Plan::Several(_)) {
            break outputs;
        }
    };
    assert!((ms(100)..ms(200)).contains(&one.now.since(began)), "{:?}", one.now.since(began));
    assert!(copies.iter().any(|output| matches!(output, Output::Replay { route: B, last: usize::MAX, .. })));
    while !one.next().iter().any(|output| matches!(output, Output::Ping { route: A, .. })) {}
    let (route, txid) = *one.pings.iter().rev().find(|(route, _)| *route == A).unwrap();
    one.wait(100);
    one.input(Input::Pong { route, txid });
    one.wait(130_000);
    one.silence();
    assert!(matches!(one.paths.plan(), Plan::Several(_)), "old alarms are forgotten");
}

#[test]
fn peer_that_pings_from_a_new_address_and_is_silent_at_the_old_one_is_followed_at_once() {
    let moved = RouteId(4);
    let add = Input::Add { route: moved, kind: RouteKind::Direct, trusted: false, rtt: None };
    for heard_at_the_old_one in [false, true] {
        let mut one = Driven::established();
        one.wait(5_000);
        one.input(add.clone());
        let asked = one.input(Input::Ping { route: moved, doubt: false });
        let asked = if pinged(&asked).is_empty() { one.next() } else { asked };
        one.wait(50);
        if heard_at_the_old_one {
            one.sample(Sample { heard: vec![(A, one.now)], ..Sample::default() });
        }
        one.wait(50);
        let (_, txid) = *one.pings.iter().rev().find(|(route, _)| *route == moved).unwrap();
        let outputs = one.input(Input::Pong { route: moved, txid });
        let followed =
            outputs.contains(&Output::Selected { from: Some(A), to: moved, why: Why::Moved, hedge_began: None });
        assert_eq!(followed, !heard_at_the_old_one, "{asked:?} {outputs:?}");
    }
}

#[test]
fn a_peer_that_pings_by_a_relay_has_not_moved_there() {
    let mut one = Driven::established();
    one.wait(5_000);
    let by_relay = RouteId(4);
    one.input(Input::Add { route: by_relay, kind: RouteKind::Relay, trusted: false, rtt: None });
    one.input(Input::Ping { route: by_relay, doubt: false });
    one.wait(100);
    let (_, txid) = *one.pings.iter().rev().find(|(route, _)| *route == by_relay).unwrap();
    one.input(Input::Pong { route: by_relay, txid });
    assert_eq!(one.paths.selected(), Some(A));
}

#[test]
fn in_another_network_what_answered_before_is_no_longer_relied_on() {
    let mut one = Driven::established();
    let hedge = one.silence();
    one.wait(60);
    one.pong(&hedge, B);
    assert_eq!(one.paths.plan(), Plan::Instead(B));
    one.input(Input::NetworkChanged);
    assert_eq!(one.paths.plan(), Plan::Several([A, B].into_iter().collect()));
}

/// Keeps a connection busy for `time`; routes answer their pings after so many milliseconds, those that are left out not at all.
fn keep_busy(one: &mut Driven, time: u64, rtts: &[(RouteId, u64)]) -> Vec<RouteId> {
    keep_flowing(one, time, rtts, |_| None)
}

/// The same while the selected route delivers what `deliver` says whenever the machine looks.
fn keep_flowing(
    one: &mut Driven,
    time: u64,
    rtts: &[(RouteId, u64)],
    mut deliver: impl FnMut(&Driven) -> Option<Delivery>,
) -> Vec<RouteId> {
    let (end, mut waiting, mut all) = (one.now + ms(time), vec![], vec![]);
    while one.now < end {
        one.wait(10);
        let due = one.paths.poll_timeout().is_some_and(|(at, _)| at <= one.now);
        let delivery = if due { deliver(one) } else { None };
        let sample = Sample { last_sent: Some(one.now), delivery, ..Sample::default() };
        let outputs = if due { one.sample(sample) } else { vec![] };
        all.extend(pinged(&outputs));
        for output in outputs {
            let Output::Ping { route, txid, .. } = output else { continue };
            let rtt = rtts.iter().find(|(known, _)| *known == route).map(|(_, rtt)| ms(*rtt));
            waiting.extend(rtt.map(|rtt| (one.now + rtt, route, txid)));
        }
        let (now, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(at, ..)| *at <= one.now);
        waiting = later;
        now.into_iter().for_each(|(_, route, txid)| drop(one.input(Input::Pong { route, txid })));
    }
    all
}

#[test]
fn a_route_left_for_a_better_one_is_barred_and_both_are_measured_alike_before() {
    let mut one = Driven::established();
    one.sample(Sample { last_sent: Some(one.now), ..Sample::default() });
    let pings = keep_busy(&mut one, 1_900, &[(A, 600), (B, 20)]);
    let count = |pings: &[RouteId], route| pings.iter().filter(|pinged| **pinged == route).count();
    assert_eq!(one.paths.selected(), Some(A));
    assert!(count(&pings, A) >= 4, "{pings:?}");
    keep_busy(&mut one, 8_000, &[(A, 600), (B, 20)]);
    assert_eq!(one.paths.selected(), Some(B));
    assert!(one.paths.routes[&A].standing.flaps == 1 && one.paths.routes[&A].standing.barred > Instant::START);
}

#[test]
fn a_dead_route_is_asked_ever_less_often() {
    let mut one = Driven::established();
    let hedge = one.silence();
    one.wait(100);
    one.pong(&hedge, B);
    while one.paths.selected() == Some(A) {
        one.next();
    }
    let pings = keep_busy(&mut one, 60_000, &[(B, 100)]);
    let tries = pings.iter().filter(|route| **route == A).count();
    assert!((4..=9).contains(&tries), "{tries} pings of a dead route in a minute: after 1, 2, 4, 8 … seconds");
}

#[test]
fn change_of_network_doubts_every_route_at_once_although_all_was_well() {
    let mut one = Driven::established();
    let outputs = one.input(Input::NetworkChanged);
    assert!(outputs.contains(&Output::Hedged(HedgeWhy::NetworkChanged)));
    assert!([A, B].iter().all(|route| pinged(&outputs).contains(route)));
    assert!(matches!(one.paths.plan(), Plan::Several(_)));
    for _ in 0..20 {
        one.next();
    }
    assert!(pinged(&one.input(Input::NetworkChanged)).contains(&B), "a second change begins anew");
}

#[test]
fn a_change_of_network_makes_a_hedge_of_a_guess_and_its_end_is_no_false_alarm() {
    let mut one = Driven::established();
    for _ in 0..2 {
        one.silence();
        one.wait(20);
        let changed = one.input(Input::NetworkChanged);
        assert!(matches!(one.paths.plan(), Plan::Several(_)), "copies go out at once");
        one.wait(60);
        one.pong(&changed, A);
        assert_eq!(one.paths.plan(), Plan::One(A));
        one.wait(1_000);
    }
    one.silence();
    assert!(matches!(one.paths.plan(), Plan::Several(_)), "an alarm was counted");
    // A real one: from now on a hedge asks first, unless the network changes meanwhile.
    one.wait(20);
    let doubted = one.next();
    one.wait(60);
    one.pong(&doubted, A);
    one.wait(1_000);
    one.silence();
    assert_eq!(one.paths.plan(), Plan::One(A));
    one.input(Input::NetworkChanged);
    assert!(matches!(one.paths.plan(), Plan::Several(_)));
}

#[test]
fn silence_of_all_routes_is_told_and_so_is_its_end() {
    let mut one = Driven::established();
    one.silence();
    let began = one.now;
    let mut told = None;
    let mut last = vec![];
    while told.is_none() {
        last = one.next();
        told = last.iter().find(|output| matches!(output, Output::Stalled { .. })).cloned();
    }
    assert_eq!(told, Some(Output::Stalled { since: began }));
    assert!((STALLED_AFTER..STALLED_AFTER + ms(600)).contains(&one.now.since(began)));
    while pinged(&last).is_empty() {
        last = one.next();
    }
    one.wait(60);
    assert!(one.pong(&last, B).contains(&Output::Resumed));
}

#[test]
fn routes_that_come_and_go_are_told() {
    let mut one = Driven::established();
    let hedge = one.silence();
    one.wait(60);
    one.pong(&hedge, B);
    while one.paths.selected() == Some(A) {
        let outputs = one.next();
        assert_eq!(one.paths.selected() == Some(B), outputs.contains(&Output::Down { route: A }));
    }
    one.wait(1_000);
    let (_, txid) = *one.pings.iter().rev().find(|(route, _)| *route == A).unwrap();
    assert!(one.input(Input::Pong { route: A, txid }).contains(&Output::Up { route: A }));
}

#[test]
fn unanswered_tiny_datagrams_are_asked_about_before_a_hedge() {
    let mut one = Driven::established();
    let mark = Sample { unanswered_small: Some(one.now), ..Sample::default() };
    one.sample(mark.clone());
    one.wait(150);
    let asked = one.sample(mark.clone());
    assert_eq!(pinged(&asked), [A]);
    assert_eq!(one.paths.plan(), Plan::One(A));
    one.wait(150);
    assert!(one.sample(mark).contains(&Output::Hedged(HedgeWhy::Asked)));
}

#[test]
fn peer_heard_on_another_route_is_asked_before_a_hedge() {
    let mut one = Driven::established();
    let mark = Sample { unanswered_large: Some(one.now), heard: vec![(B, one.now + ms(10))], ..Sample::default() };
    one.wait(150);
    let asked = one.sample(mark.clone());
    assert_eq!((pinged(&asked), one.paths.plan()), (vec![A], Plan::One(A)));
    one.wait(100);
    assert!(one.pong(&asked, A).contains(&Output::ClearUnanswered));
    assert!(!one.paths.watching());
}

#[test]
fn received_ping_is_no_answer() {
    let mut one = Driven::established();
    let mark = Sample { unanswered_large: Some(one.now), ..Sample::default() };
    one.sample(mark.clone());
    one.wait(150);
    one.input(Input::Ping { route: A, doubt: false });
    assert!(one.sample(mark).contains(&Output::Hedged(HedgeWhy::Silence)));
}

#[test]
fn the_peers_first_ping_after_a_handshake_is_followed_by_one_at_once_and_the_next_is_not() {
    let mut one = Driven::new();
    one.add(A, RouteKind::Direct);
    one.add(B, RouteKind::Relay);
    one.input(Input::Established { heard: A }); // pings, which may come before the peer has its keys
    let ping = Input::Ping { route: A, doubt: false };
    one.wait(1);
    let back = one.input(ping.clone());
    assert_eq!(pinged(&back), [A]);
    assert_eq!(pinged(&one.input(ping)), [], "a peer cannot make us send as much as it likes");
    one.pong(&back, A);
    assert_eq!(one.paths.plan(), Plan::One(A), "no more copies");
}

#[test]
fn doubting_ping_is_contradicted_by_a_fresh_proof_only() {
    let mut one = Driven::established();
    assert!(one.input(Input::Ping { route: B, doubt: true }).is_empty());
    one.wait(500);
    let outputs = one.input(Input::Ping { route: B, doubt: true });
    assert!(outputs.contains(&Output::Hedged(HedgeWhy::PeerDoubts)));
    assert!(!outputs.iter().any(|output| matches!(output, Output::Ping { doubt: true, .. })));
}

#[test]
fn lone_route_is_pinged_and_replayed_on_until_it_answers() {
    let mut one = Driven::relayed();
    let outputs = one.silence();
    assert!(outputs.contains(&Output::Replay { route: B, last: 2, max_age: Duration::MAX, budgeted: false }));
    assert_eq!(one.paths.plan(), Plan::One(B));
    let began = one.now;
    let (mut pings, mut replays) = (1, 0);
    while one.now < began + ms(60_000) {
        let outputs = one.next();
        pings += pinged(&outputs).len();
        let unbudgeted = |output: &&Output| matches!(output, Output::Replay { budgeted: false, .. });
        replays += outputs.iter().filter(unbudgeted).count(); // an idle connection earns none
    }
    assert_eq!(pings, 99, "eight in a burst, two a second for half a minute, then one a second");
    assert_eq!(replays, pings - 1, "each but the first, which came with a replay of its own, has something of QUIC's");
}

#[test]
fn lone_route_of_a_busy_connection_pays_for_its_replays() {
    let mut one = Driven::relayed();
    one.sample(Sample { last_sent: Some(one.now + ms(200)), ..Sample::default() });
    let outputs = one.silence();
    assert!(
        outputs.iter().any(|output| matches!(output, Output::Replay { route: B, budgeted: true, .. })),
        "{outputs:?}"
    );
}

#[test]
fn lost_keep_alive_is_followed_up_before_the_next_one_is_due() {
    let mut one = Driven::established();
    while !pinged(&one.next()).contains(&A) {}
    let pinged_at = one.now;
    while !one.next().contains(&Output::Hedged(HedgeWhy::PingsLost)) {
        assert!(one.now < pinged_at + ms(1_500), "three lost pings are not found out");
    }
}

/// Lets an idle connection sleep for so long. A ping of A is answered if its mapping was used within `lives`; otherwise the peer's
/// side opens only 700 ms later. The times between the first pings after a silence.
fn idle(one: &mut Driven, seconds: u64, lives: u64) -> Vec<u64> {
    let (end, mut used, mut asked, mut closed, mut gaps) =
        (one.now + ms(seconds * 1_000), one.now, one.now, None, vec![]);
    while one.now < end {
        for output in one.next() {
            let Output::Ping { route, txid, .. } = output else { continue };
            if route == A {
                if closed.is_none() {
                    gaps.push(one.now.since(asked).as_millis() as u64);
                    asked = one.now;
                }
                closed = closed.or((one.now.since(used) > ms(lives)).then_some(one.now));
                if closed.take_if(|since| one.now.since(*since) >= ms(700)).is_none() && closed.is_some() {
                    continue;
                }
                used = one.now;
            }
            one.input(Input::Pong { route, txid });
        }
    }
    gaps
}

#[test]
fn an_idle_connection_learns_how_often_its_way_needs_a_ping() {
    let mut one = Driven::established();
    assert!(idle(&mut one, 120, 30_000).iter().all(|gap| *gap >= 9_000), "ten seconds do");
    let gaps = idle(&mut one, 300, 6_000);
    let last = &gaps[gaps.len() - 20..];
    assert!(last.iter().all(|gap| (2_000..6_000).contains(gap)), "{gaps:?}");
    assert_eq!(one.paths.selected(), Some(A));
}

#[test]
fn the_keep_alives_of_the_two_sides_do_not_stay_in_step() {
    let spacing = |dialled: bool| {
        let mut one = Driven::established();
        if dialled {
            one.input(Input::GiveWay);
        }
        *idle(&mut one, 60, 30_000).last().unwrap()
    };
    assert_eq!([false, true].map(spacing), [10_000, 9_000]);
}

#[test]
fn a_peer_that_sees_another_port_after_a_silence_has_its_idle_route_pinged_more_often() {
    let mut one = Driven::established();
    idle(&mut one, 60, 30_000);
    while !pinged(&one.next()).contains(&A) {}
    one.input(Input::Remapped { route: A });
    assert_eq!(one.paths.keep_alive.every(), ms(5_000));
    one.sample(Sample { last_sent: Some(one.now), ..Sample::default() });
    one.input(Input::Remapped { route: A });
    assert_eq!(one.paths.keep_alive.every(), ms(5_000), "a busy one tells nothing");
}

#[test]
fn a_way_that_stayed_open_for_minutes_and_closes_once_does_not_do_so_for_being_idle() {
    let mut one = Driven::established();
    idle(&mut one, 120, 30_000);
    for every in [10_000, 5_000] {
        while !pinged(&one.next()).contains(&A) {}
        one.input(Input::Remapped { route: A });
        assert_eq!(one.paths.keep_alive.every(), ms(every));
    }
}

#[test]
fn an_idle_way_that_closed_for_good_tells_as_much_until_the_network_changes() {
    let mut one = Driven::established();
    idle(&mut one, 60, 30_000);
    while one.paths.selected() == Some(A) {
        let outputs = one.next();
        let pings = outputs.iter().filter_map(|output| match output {
            Output::Ping { route: B, txid, .. } => Some(*txid),
            _ => None,
        });
        pings.for_each(|txid| drop(one.input(Input::Pong { route: B, txid })));
    }
    assert_eq!(one.paths.keep_alive.every(), ms(5_000));
    one.input(Input::NetworkChanged);
    assert_eq!(one.paths.keep_alive.every(), ms(10_000));
}

#[test]
fn pings_that_a_busy_connection_loses_tell_nothing_of_idle_ways() {
    let mut one = Driven::established();
    one.sample(Sample { last_sent: Some(one.now), ..Sample::default() });
    keep_busy(&mut one, 3_000, &[(A, 100), (B, 100)]);
    keep_busy(&mut one, 2_200, &[(B, 100)]);
    assert!(one.paths.routes[&A].tally.misses >= 2 && one.paths.selected() == Some(A));
    keep_busy(&mut one, 3_000, &[(A, 100), (B, 100)]);
    assert_eq!(one.paths.keep_alive.every(), ms(10_000));
}

#[test]
fn route_that_never_answers_is_dropped_after_ten_seconds() {
    let mut one = Driven::established();
    one.add(RouteId(5), RouteKind::Direct);
    let added = one.now;
    let mut pings = 0;
    loop {
        let outputs = one.next();
        pings += pinged(&outputs).iter().filter(|route| **route == RouteId(5)).count();
        if outputs.contains(&Output::Drop { route: RouteId(5), why: DropWhy::NeverAnswered }) {
            break;
        }
    }
    assert_eq!(one.now.since(added), ms(10_000));
    assert!((10..=20).contains(&pings), "{pings}");
    assert_eq!(one.paths.status(one.now).len(), 2);
}

#[test]
fn full_table_makes_room_for_a_trusted_route_only() {
    let mut one = Driven::new();
    for id in 0..MAX_ROUTES {
        one.input(Input::Add { route: RouteId(id as u8), kind: RouteKind::Direct, trusted: id < 8, rtt: None });
    }
    let add = |id, trusted| Input::Add { route: RouteId(id), kind: RouteKind::Direct, trusted, rtt: None };
    let refused = |id| Output::Drop { route: RouteId(id), why: DropWhy::Full };
    assert_eq!(one.input(add(20, false)), [refused(20)]);
    assert_eq!(one.input(add(21, true))[0], refused(15));
    assert_eq!(one.input(add(40, true)), [refused(40)], "the id is out of range");
    assert_eq!(one.paths.status(one.now).len(), MAX_ROUTES);
}

#[test]
fn a_newcomer_takes_the_place_of_what_is_dead_or_had_its_time_to_answer() {
    let mut one = Driven::established();
    let add = |id| Input::Add { route: RouteId(id), kind: RouteKind::Direct, trusted: false, rtt: None };
    let used: Vec<u8> = one.paths.status(one.now).iter().map(|status| status.route.0).collect();
    let free: Vec<u8> = (0..RouteId::LIMIT).filter(|id| !used.contains(id)).collect();
    let room = MAX_ROUTES - used.len();
    for id in &free[..room] {
        one.input(add(*id));
    }
    assert!(!one.input(add(free[room])).is_empty() && !one.paths.knows(RouteId(free[room])), "all are too young to go");
    one.now += TIME_TO_ANSWER;
    one.input(add(free[room + 1]));
    assert!(one.paths.knows(RouteId(free[room + 1])), "they had their time");
    used.into_iter().for_each(|id| assert!(one.paths.knows(RouteId(id)), "what works stays"));

    let mut one = Driven::established();
    const C: RouteId = RouteId(2);
    let first = one.add(C, RouteKind::Direct);
    one.pong(&first, C);
    let is_alive = |one: &Driven| one.paths.status(one.now).iter().any(|status| status.route == C && status.alive);
    assert!(is_alive(&one));
    (0..200).for_each(|_| drop(is_alive(&one).then(|| one.next())));
    assert!(!is_alive(&one) && one.paths.knows(C) && one.paths.selected() != Some(C));
    for id in 0..MAX_ROUTES {
        one.input(Input::Add { route: RouteId(id as u8 + 3), kind: RouteKind::Direct, trusted: true, rtt: None });
    }
    assert!(!one.paths.knows(C) && one.paths.knows(A) && one.paths.knows(B), "the dead one went first");
}

#[test]
fn a_direct_route_that_a_punch_has_proven_takes_over_from_the_relay_at_once() {
    let mut one = Driven::new();
    one.add(A, RouteKind::Relay);
    let first = one.input(Input::Established { heard: A });
    one.pong(&first, A);
    let outputs = one.input(Input::Add { route: B, kind: RouteKind::Direct, trusted: true, rtt: Some(ms(80)) });
    assert!(outputs.contains(&Output::Selected { from: Some(A), to: B, why: Why::FirstDirect, hedge_began: None }));
    assert!(outputs.iter().any(|output| matches!(output, Output::Ping { route: B, padded: true, .. })));
    assert!(one.paths.proven().contains(B));
}

#[test]
fn a_fresh_route_takes_over_once_it_is_proven_and_the_old_one_is_not_gone_back_to() {
    const C: RouteId = RouteId(2);
    let mut one = Driven::established();
    one.input(Input::GiveWay);
    let first = one.add(C, RouteKind::Direct);
    assert_eq!(one.input(Input::Renew { route: C }), [], "it is not proven yet");
    one.wait(100);
    let outputs = one.pong(&first, C);
    assert!(outputs.contains(&Output::Selected { from: Some(A), to: C, why: Why::Renewed, hedge_began: None }));
    assert_eq!(one.paths.plan(), Plan::One(C), "nothing is copied");
    let began = one.now;
    while one.now < began + ms(5_000) {
        one.wait(100);
        one.sample(Sample { heard: vec![(A, one.now)], last_sent: Some(one.now), ..Sample::default() });
    }
    assert_eq!(one.paths.selected(), Some(C), "though the peer still sends by the old one");
}

#[test]
fn a_fresh_direct_route_does_not_take_over_from_a_relay() {
    let mut one = Driven::established();
    let hedge = one.silence();
    one.wait(60);
    one.pong(&hedge, B);
    while one.paths.selected() == Some(A) {
        one.next();
    }
    one.input(Input::Renew { route: RouteId(9) });
    let add = Input::Add { route: RouteId(3), kind: RouteKind::Direct, trusted: true, rtt: Some(ms(100)) };
    one.input(add);
    one.input(Input::Renew { route: RouteId(3) });
    assert_eq!(one.paths.selected(), Some(B));
}

#[test]
fn removal_of_the_selected_route_moves_on_and_doubts() {
    let mut one = Driven::established();
    let outputs = one.input(Input::Remove { route: A });
    assert_eq!(outputs[0], Output::Selected { from: Some(A), to: B, why: Why::Removed, hedge_began: None });
    assert!(outputs.contains(&Output::Hedged(HedgeWhy::Removed)));
    one.input(Input::Remove { route: B });
    assert_eq!((one.paths.selected(), one.paths.plan()), (None, Plan::All));
    let outputs = one.add(RouteId(2), RouteKind::Direct);
    assert_eq!(outputs[0], Output::Selected { from: None, to: RouteId(2), why: Why::Only, hedge_began: None });
}

#[test]
fn padded_ping_follows_the_first_pong_and_its_pong_proves_the_mtu() {
    let mut one = Driven::new();
    one.add(A, RouteKind::Direct);
    let first = one.input(Input::Established { heard: A });
    let padded = one.pong(&first, A);
    assert!(one.paths.proven().contains(A));
    assert!(padded.iter().any(|output| matches!(output, Output::Ping { padded: true, .. })));
    one.wait(100);
    assert!(one.pong(&padded, A).contains(&Output::MtuProven { route: A }));
    assert!(one.paths.status(one.now)[0].mtu_proven);
}

#[test]
fn route_that_the_handshake_has_measured_is_proven_and_is_asked_for_its_mtu_once_something_is_split_for_it() {
    let mut one = Driven::new();
    one.input(Input::Add { route: A, kind: RouteKind::Direct, trusted: true, rtt: Some(ms(80)) });
    let outputs = one.input(Input::Established { heard: A });
    assert!(outputs.contains(&Output::Up { route: A }));
    assert_eq!((pinged(&outputs), pinged_padded(&outputs)), (vec![], vec![]));
    assert_eq!((one.paths.status(one.now)[0].srtt, one.paths.patience()), (Some(ms(80)), ms(150)));
    let established = one.now;
    one.wait(80);
    assert_eq!(one.input(Input::Ping { route: A, doubt: false }), []);
    let quiet = Sample { last_sent: Some(established), ..Sample::default() };
    assert_eq!(pinged_padded(&one.sample(quiet.clone())), [], "nothing is too large yet");
    let split = Sample { split: [A].into_iter().collect(), ..quiet.clone() };
    let outputs = one.sample(split.clone());
    assert_eq!((pinged(&outputs), pinged_padded(&outputs)), (vec![], vec![A]));
    assert_eq!(pinged_padded(&one.sample(split.clone())), [], "it is on its way");
    one.wait(80);
    assert!(one.pong(&outputs, A).contains(&Output::MtuProven { route: A }));
    one.wait(840);
    let outputs = one.sample(split);
    assert_eq!((pinged(&outputs), pinged_padded(&outputs)), (vec![A], vec![]));
}

#[test]
fn padded_ping_that_is_lost_is_sent_three_times_in_all() {
    let mut one = Driven::new();
    one.input(Input::Add { route: A, kind: RouteKind::Direct, trusted: true, rtt: Some(ms(80)) });
    one.input(Input::Established { heard: A });
    let split = Sample { split: [A].into_iter().collect(), ..Sample::default() };
    let mut sent = pinged_padded(&one.sample(split)).len();
    let until = one.now + ms(10_000);
    while one.now < until {
        sent += pinged_padded(&one.next()).len();
    }
    assert_eq!(sent, 3);
}

#[test]
fn every_route_is_explained() {
    let mut one = Driven::established();
    one.add(RouteId(7), RouteKind::Direct);
    one.wait(3_000);
    let whys: Vec<_> = one.paths.status(one.now).into_iter().map(|status| status.why).collect();
    assert_eq!(
        whys,
        [
            "selected because the handshake was heard on it",
            "standby: no better than the selected one",
            "has not answered for 3 s"
        ]
    );
}

#[derive(Debug, Clone)]
enum Step {
    Add {
        route: u8,
        relay: bool,
        trusted: bool,
    },
    Remove(u8),
    Establish(u8),
    /// Answers one of the latest pings.
    Pong(usize),
    StrayPong(u8, u64),
    NetworkChanged,
    Ping(u8, bool),
    /// A sample after some time: marks and the last send that much earlier, in milliseconds.
    Sample {
        after: u64,
        large: Option<u64>,
        small: Option<u64>,
        sent: Option<u64>,
        heard: u8,
    },
    /// A sample at the polled time.
    Timeout {
        large: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let route = || 0..36u8;
    let ago = || proptest::option::of(0..2_000u64);
    prop_oneof![
        4 => (route(), any::<bool>(), any::<bool>())
            .prop_map(|(route, relay, trusted)| Step::Add { route, relay, trusted }),
        1 => route().prop_map(Step::Remove),
        1 => route().prop_map(Step::Establish),
        6 => (0..20usize).prop_map(Step::Pong),
        1 => (route(), any::<u64>()).prop_map(|(route, txid)| Step::StrayPong(route, txid)),
        1 => Just(Step::NetworkChanged),
        3 => (route(), any::<bool>()).prop_map(|(route, doubt)| Step::Ping(route, doubt)),
        4 => (0..4_000u64, ago(), ago(), ago(), route())
            .prop_map(|(after, large, small, sent, heard)| Step::Sample { after, large, small, sent, heard }),
        12 => any::<bool>().prop_map(|large| Step::Timeout { large }),
    ]
}

proptest! {
    #[test]
    fn any_order_of_inputs_keeps_the_promises(steps in proptest::collection::vec(step(), 1..120)) {
        let mut one = Driven::new();
        for step in steps {
            one.step(step);
        }
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The routes of the unpadded pings among `outputs`.
fn pinged_padded(outputs: &[Output]) -> Vec<RouteId> {
    let route = |output: &Output| match output {
        Output::Ping { route, padded: true, .. } => Some(*route),
        _ => None,
    };
    outputs.iter().filter_map(route).collect()
}

fn pinged(outputs: &[Output]) -> Vec<RouteId> {
    let route = |output: &Output| match output {
        Output::Ping { route, padded: false, .. } => Some(*route),
        _ => None,
    };
    outputs.iter().filter_map(route).collect()
}

/// A machine with what its driver would know, checked after every input.
struct Driven {
    paths: Paths,
    now: Instant,
    routes: BTreeSet<RouteId>,
    plan: Plan,
    selected: Option<RouteId>,
    hedging: bool,
    stalled: bool,
    pings: Vec<(RouteId, u64)>,
}

impl Driven {
    fn new() -> Self {
        let now = Instant::after_start(ms(1_000));
        Driven {
            paths: Paths::new(PathsConfig::default(), &[7; 32], now),
            now,
            routes: BTreeSet::new(),
            plan: Plan::All,
            selected: None,
            hedging: false,
            stalled: false,
            pings: vec![],
        }
    }

    /// A connection by a relay, its only route, that has answered a ping.
    fn relayed() -> Self {
        let mut one = Driven::new();
        one.add(B, RouteKind::Relay);
        let first = one.input(Input::Established { heard: B });
        one.pong(&first, B);
        one
    }

    /// Direct route A selected, relay route B beside it, both proven and full datagrams too, round trip 100 ms.
    fn established() -> Self {
        let mut one = Driven::new();
        one.add(A, RouteKind::Direct);
        one.add(B, RouteKind::Relay);
        let first = one.input(Input::Established { heard: A });
        one.wait(100);
        let padded = [one.pong(&first, A), one.pong(&first, B)].concat();
        one.wait(100);
        for route in [A, B] {
            one.pong(&padded, route);
        }
        assert_eq!((one.paths.selected(), one.paths.plan(), one.paths.watching()), (Some(A), Plan::One(A), false));
        one
    }

    fn add(&mut self, route: RouteId, kind: RouteKind) -> Vec<Output> {
        self.input(Input::Add { route, kind, trusted: true, rtt: None })
    }

    fn wait(&mut self, time: u64) {
        self.now += ms(time);
    }

    /// Lets a large datagram go unanswered for as long as it takes.
    fn silence(&mut self) -> Vec<Output> {
        let mark = Sample { unanswered_large: Some(self.now), ..Sample::default() };
        self.sample(mark.clone());
        self.now += self.paths.patience();
        self.sample(mark)
    }

    fn sample(&mut self, sample: Sample) -> Vec<Output> {
        self.input(Input::Sample(sample))
    }

    /// Sleeps until the machine's next timeout.
    fn next(&mut self) -> Vec<Output> {
        let (at, why) = self.paths.poll_timeout().unwrap();
        self.now = self.now.max(at);
        let outputs = self.sample(Sample::default());
        let next = self.paths.poll_timeout();
        assert!(next.is_none_or(|(next, _)| next > self.now), "{why} spins: {next:?} at {:?}", self.now);
        outputs
    }

    /// Answers the last of `outputs`' pings on `route`.
    fn pong(&mut self, outputs: &[Output], route: RouteId) -> Vec<Output> {
        let ping = |output: &Output| match output {
            Output::Ping { route: pinged, txid, .. } if *pinged == route => Some(*txid),
            _ => None,
        };
        let txid = outputs.iter().rev().find_map(ping).unwrap();
        self.input(Input::Pong { route, txid })
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        match &input {
            Input::Add { route, .. } => _ = self.routes.insert(*route),
            Input::Remove { route } => _ = self.routes.remove(route),
            _ => {}
        }
        self.paths.handle_input(input, self.now);
        let outputs: Vec<_> = core::iter::from_fn(|| self.paths.poll_output()).collect();
        for output in &outputs {
            match output {
                Output::Ping { route, txid, .. } => {
                    assert!(self.routes.contains(route), "ping on an unknown route");
                    self.pings.push((*route, *txid));
                }
                Output::Plan(plan) => self.plan = *plan,
                Output::Selected { from, to, .. } => {
                    assert_eq!(*from, self.selected);
                    self.selected = Some(*to);
                }
                Output::Hedged(_) => assert!(!core::mem::replace(&mut self.hedging, true)),
                Output::Unhedged => assert!(core::mem::replace(&mut self.hedging, false)),
                Output::Drop { route, .. } => assert!(self.routes.remove(route)),
                Output::Replay { route, .. } | Output::MtuProven { route } => {
                    assert!(self.routes.contains(route));
                }
                Output::Stalled { .. } => assert!(!core::mem::replace(&mut self.stalled, true)),
                Output::Resumed => assert!(core::mem::replace(&mut self.stalled, false)),
                Output::Up { route } | Output::Down { route } => assert!(self.routes.contains(route)),
                Output::ClearUnanswered => {}
            }
        }
        if self.routes.is_empty() {
            self.selected = None;
        }
        self.check(&outputs);
        outputs
    }

    fn check(&self, outputs: &[Output]) {
        assert!(outputs.len() <= 4 * MAX_ROUTES, "{} outputs of one input", outputs.len());
        assert!(self.routes.len() <= MAX_ROUTES);
        assert_eq!(self.plan, self.paths.plan());
        assert!(self.paths.selected().is_none_or(|route| self.routes.contains(&route)));
        match self.plan {
            Plan::One(route) => assert!(self.routes.contains(&route)),
            Plan::Several(routes) => {
                assert!(routes.len() > 1 && self.hedging && routes.iter().all(|route| self.routes.contains(&route)));
            }
            Plan::Instead(route) => {
                assert!(self.hedging && self.routes.contains(&route) && self.paths.selected() != Some(route));
            }
            Plan::All => {}
        }
        let known: BTreeSet<_> = self.paths.status(self.now).into_iter().map(|status| status.route).collect();
        assert_eq!(known, self.routes);
    }

    fn step(&mut self, step: Step) {
        let ago = |now: Instant, time: Option<u64>| time.map(|time| now - ms(time));
        match step {
            Step::Add { route, relay, trusted } => {
                let kind = if relay { RouteKind::Relay } else { RouteKind::Direct };
                let rtt = (trusted && route % 3 == 1).then_some(ms(80));
                self.input(Input::Add { route: RouteId(route), kind, trusted, rtt });
            }
            Step::Remove(route) => _ = self.input(Input::Remove { route: RouteId(route) }),
            Step::Establish(route) => _ = self.input(Input::Established { heard: RouteId(route) }),
            Step::Pong(back) => {
                if let Some((route, txid)) = self.pings.iter().rev().nth(back).copied() {
                    self.input(Input::Pong { route, txid });
                }
            }
            Step::StrayPong(route, txid) => _ = self.input(Input::Pong { route: RouteId(route), txid }),
            Step::NetworkChanged => _ = self.input(Input::NetworkChanged),
            Step::Ping(route, doubt) => _ = self.input(Input::Ping { route: RouteId(route), doubt }),
            Step::Sample { after, large, small, sent, heard } => {
                self.wait(after);
                self.sample(Sample {
                    unanswered_large: ago(self.now, large),
                    unanswered_small: ago(self.now, small),
                    last_sent: ago(self.now, sent),
                    heard: vec![(RouteId(heard), self.now)],
                    delivery: large.map(|rate| Delivery { rate: rate * 1_000, limited_for: ms(after) }),
                    split: if large.is_some() { [RouteId(heard)].into_iter().collect() } else { RouteSet::default() },
                });
            }
            Step::Timeout { large } => {
                let Some((at, why)) = self.paths.poll_timeout() else { return };
                self.now = self.now.max(at);
                let unanswered_large = large.then_some(self.now - ms(1));
                let sample = Sample { unanswered_large, last_sent: unanswered_large, ..Sample::default() };
                self.sample(sample);
                let next = self.paths.poll_timeout();
                assert!(next.is_none_or(|(next, _)| next > self.now), "{why} spins: {next:?} at {:?}", self.now);
                let idle = unanswered_large.is_none() && !self.hedging && self.selected.is_some();
                assert!(!idle || !self.paths.watching());
            }
        }
    }
}
