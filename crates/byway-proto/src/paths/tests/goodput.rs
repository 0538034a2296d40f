//! Routes that carry less than their pings promise.

use super::*;

/// 1 and 20 Mbit/s, in bytes per second.
const SLOW: u64 = 125_000;
const FAST: u64 = 2_500_000;

/// Lets data flow for so many seconds; what A and B deliver, and whether there is always more. The moments of the switches.
fn flow(one: &mut Driven, seconds: u64, rates: [u64; 2], is_full: bool) -> Vec<(Instant, RouteId)> {
    let (mut since, mut selected, mut switches) = (one.now, one.paths.selected(), vec![]);
    keep_flowing(one, seconds * 1_000, &[(A, 20), (B, 60)], |one| {
        if one.paths.selected() != selected {
            (since, selected) = (one.now, one.paths.selected());
            switches.extend(selected.map(|to| (one.now, to)));
        }
        let rate = rates[usize::from(selected?.0)];
        Some(Delivery { rate, limited_for: if is_full { one.now.since(since) } else { Duration::ZERO } })
    });
    switches
}

/// Direct route A selected, after relay route B has delivered this much.
fn after_the_relay(delivered: u64) -> Driven {
    let mut one = Driven::relayed();
    flow(&mut one, 5, [0, delivered], true);
    one.input(Input::Add { route: A, kind: RouteKind::Direct, trusted: true, rtt: Some(ms(20)) });
    assert_eq!(one.paths.selected(), Some(A), "the first direct route");
    one
}

/// The seconds between those moments.
fn spaces(switches: &[(Instant, RouteId)]) -> Vec<u64> {
    switches.windows(2).map(|pair| pair[1].0.since(pair[0].0).as_secs()).collect()
}

#[test]
fn a_direct_route_that_carries_a_twentieth_is_left_and_tried_again_ever_less_often() {
    let mut one = after_the_relay(FAST);
    let began = one.now;
    let switches = flow(&mut one, 600, [SLOW, FAST], true);
    let routes: Vec<_> = switches.iter().map(|(_, to)| *to).collect();
    assert_eq!(routes, [B, A, B, A, B, A, B], "{:?}", spaces(&switches));
    assert!(switches[0].0.since(began) < ms(7_000), "{:?}", switches[0].0.since(began));
    let spaces = spaces(&switches);
    let (relayed, direct): (Vec<_>, Vec<_>) =
        (spaces.iter().step_by(2).collect(), spaces[1..].iter().step_by(2).collect());
    assert!(direct.iter().all(|seconds| **seconds <= 7), "{direct:?}");
    for (seconds, least) in relayed.into_iter().zip([60, 120, 240]) {
        assert!((least..least + 10).contains(seconds), "{seconds} s instead of {least}");
    }
}

#[test]
fn a_route_that_has_become_fast_again_is_kept_and_its_past_forgiven() {
    let mut one = after_the_relay(FAST);
    flow(&mut one, 30, [SLOW, FAST], true);
    assert_eq!(one.paths.selected(), Some(B));
    assert!(one.paths.status(one.now)[0].why.contains("delivered 1.0 Mbit/s where the selected one delivered 20.0"));
    let switches = flow(&mut one, 120, [FAST, FAST], true);
    assert_eq!(switches.len(), 1);
    assert_eq!((one.paths.selected(), one.paths.routes[&A].carried.slow_times()), (Some(A), 0));
}

#[test]
fn an_application_that_sends_little_leaves_no_route() {
    let mut one = after_the_relay(FAST);
    assert_eq!(flow(&mut one, 60, [SLOW, FAST], false), []);
}

#[test]
fn a_relay_that_carries_half_as_much_again_is_no_reason_to_leave_the_direct_route() {
    let mut one = after_the_relay(FAST);
    assert_eq!(flow(&mut one, 60, [FAST / 3 * 2, FAST], true), []);
}

#[test]
fn a_route_of_which_nothing_is_known_is_tried_where_the_direct_one_delivers_little() {
    let mut one = Driven::established();
    let switches = flow(&mut one, 40, [SLOW, FAST], true);
    assert_eq!(switches.iter().map(|(_, to)| *to).collect::<Vec<_>>(), [B], "and kept, for it is faster");

    let mut one = Driven::established();
    let switches = flow(&mut one, 400, [SLOW, SLOW], true);
    assert_eq!(switches.iter().map(|(_, to)| *to).collect::<Vec<_>>(), [B, A], "and not again for ten minutes");
    assert!((9..16).contains(&spaces(&switches)[0]), "{switches:?}");

    let mut one = Driven::established();
    assert_eq!(flow(&mut one, 60, [4 * SLOW, FAST], true), [], "what an ordinary line carries is enough");
}

#[test]
fn what_a_relay_delivered_an_hour_ago_tells_nothing() {
    let mut one = after_the_relay(FAST);
    flow(&mut one, 3_600, [4 * SLOW, FAST], false);
    assert_eq!(flow(&mut one, 60, [4 * SLOW, FAST], true), []);
}

#[test]
fn in_another_network_every_route_begins_anew() {
    let mut one = after_the_relay(FAST);
    flow(&mut one, 30, [SLOW, FAST], true);
    assert_eq!(one.paths.selected(), Some(B));
    one.input(Input::NetworkChanged);
    flow(&mut one, 8, [SLOW, FAST], false);
    assert_eq!(one.paths.selected(), Some(A));
}

#[test]
fn the_peers_choice_of_a_slow_route_is_not_taken_over() {
    let mut one = after_the_relay(FAST);
    one.input(Input::GiveWay);
    flow(&mut one, 30, [SLOW, FAST], true);
    assert_eq!(one.paths.selected(), Some(B));
    for _ in 0..5 {
        one.wait(1_000);
        one.sample(Sample { heard: vec![(A, one.now)], ..Sample::default() });
    }
    assert_eq!(one.paths.selected(), Some(B));
}

#[test]
fn of_several_routes_of_which_nothing_is_known_one_is_tried_in_ten_minutes() {
    let mut one = Driven::established();
    for route in [RouteId(2), RouteId(3)] {
        one.add(route, RouteKind::Relay);
    }
    let rtts = [(A, 20), (B, 60), (RouteId(2), 60), (RouteId(3), 60)];
    let (mut selected, mut since, mut switches) = (one.paths.selected(), one.now, 0);
    keep_flowing(&mut one, 400_000, &rtts, |one| {
        if one.paths.selected() != selected {
            (selected, since, switches) = (one.paths.selected(), one.now, switches + 1);
        }
        Some(Delivery { rate: SLOW, limited_for: one.now.since(since) })
    });
    assert_eq!(switches, 2, "there and back");
}

#[test]
fn a_chat_over_the_relay_does_not_show_what_that_carries() {
    let mut one = Driven::relayed();
    flow(&mut one, 5, [0, 10_000], false);
    one.input(Input::Add { route: A, kind: RouteKind::Direct, trusted: true, rtt: Some(ms(20)) });
    assert_eq!(one.paths.selected(), Some(A));
    let switches = flow(&mut one, 40, [SLOW, FAST], true);
    assert_eq!(switches.iter().map(|(_, to)| *to).collect::<Vec<_>>(), [B]);
}

#[test]
fn a_route_that_has_delivered_more_since_is_not_limited_to_what_it_was() {
    let mut one = Driven::established();
    let now = one.now;
    let carried = &mut one.paths.routes.get_mut(&A).unwrap().carried;
    carried.note(&Delivery { rate: SLOW, limited_for: ms(5_000) }, now);
    carried.note(&Delivery { rate: SLOW, limited_for: Duration::ZERO }, now);
    assert_eq!(carried.limit(), Some(SLOW));
    carried.note(&Delivery { rate: FAST, limited_for: Duration::ZERO }, now);
    assert_eq!(carried.limit(), None, "an outage of seconds is over");
}

#[test]
fn a_route_that_was_not_heard_of_for_long_or_is_dead_is_not_tried() {
    for (is_dead, age) in [(false, 60_000), (true, 0)] {
        let mut one = Driven::established();
        one.wait(60_000);
        let (now, other) = (one.now, one.paths.routes.get_mut(&B).unwrap());
        (other.proof, other.standing.dead) = (Some(now - ms(age)), is_dead);
        let full = Delivery { rate: SLOW, limited_for: ms(5_000) };
        one.sample(Sample { delivery: Some(full), last_sent: Some(now), ..Sample::default() });
        assert_eq!(one.paths.selected(), Some(A), "{is_dead} {age}");
    }
    let mut one = Driven::established();
    one.sample(Sample { delivery: Some(Delivery { rate: SLOW, limited_for: ms(5_000) }), ..Sample::default() });
    assert_eq!(one.paths.selected(), Some(B), "one that answers is");
}
