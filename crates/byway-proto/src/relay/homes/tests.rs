//! What the choice of relays must do.

use alloc::vec;

use proptest::prelude::*;

use super::*;

#[test]
fn two_relays_are_used_without_measuring_which_is_nearer() {
    let mut bench = Bench::new(2);
    assert_eq!(bench.homes(), ids(&[0, 1]));
}

#[test]
fn the_first_two_that_answer_are_the_homes() {
    let mut bench = Bench::new(5);
    assert_eq!((bench.homes(), bench.measured.len()), (vec![], 5));
    bench.note(3, answers(20));
    assert_eq!(bench.homes(), ids(&[3]));
    bench.note(1, answers(30));
    bench.note(0, answers(40));
    assert_eq!(bench.homes(), ids(&[1, 3]));
    assert_eq!(bench.homes.by_promise()[..3], ids(&[3, 1, 0]), "a ticket names the one that would take a place, too");
}

#[test]
fn a_dead_relay_is_replaced_by_the_nearest_and_does_not_come_back_for_nothing() {
    let mut bench = Bench::settled(&[20, 30, 45, 40]);
    bench.note(0, Report::Silent);
    assert_eq!(bench.homes(), ids(&[0, 1, 3]), "until there are two again it may come back");
    bench.note(3, Report::Registered);
    assert_eq!(bench.homes(), ids(&[1, 3]));
    bench.note(0, answers(35));
    assert_eq!(bench.homes(), ids(&[1, 3]), "5 ms are not worth a move");
    bench.note(0, answers(20));
    assert_eq!(bench.homes(), ids(&[0, 1, 3]), "half the way is");
    bench.note(0, Report::Registered);
    assert_eq!(bench.homes(), ids(&[0, 1]));
}

#[test]
fn a_relay_that_was_silent_for_a_moment_keeps_its_place() {
    let mut bench = Bench::settled(&[20, 30, 40]);
    bench.note(1, Report::Silent);
    assert_eq!(bench.homes(), ids(&[0, 1, 2]));
    bench.note(1, Report::Registered);
    bench.wait(Duration::from_millis(10));
    bench.note(2, Report::Registered);
    assert_eq!(bench.homes(), ids(&[0, 1]));
}

#[test]
fn a_reserve_that_does_not_answer_within_a_second_is_not_waited_for() {
    let mut bench = Bench::settled(&[20, 30, 40, 50]);
    bench.note(0, Report::Failed);
    assert_eq!(bench.homes(), ids(&[0, 1, 2]));
    let (at, _) = bench.homes.poll_timeout(bench.now).unwrap();
    assert_eq!(at, bench.now + PATIENCE);
    bench.wait(PATIENCE);
    assert_eq!(bench.homes(), ids(&[0, 1, 2, 3]));
    bench.note(3, Report::Registered);
    assert_eq!(bench.homes(), ids(&[1, 3]));
}

#[test]
fn a_relay_that_drains_is_left_once_another_took_its_place() {
    let mut bench = Bench::settled(&[20, 30, 40]);
    bench.note(0, Report::Drains);
    assert_eq!(bench.homes(), ids(&[0, 1, 2]));
    bench.note(2, Report::Registered);
    assert_eq!(bench.homes(), ids(&[1, 2]));
}

#[test]
fn when_all_are_down_all_are_tried_and_two_are_kept() {
    let mut bench = Bench::settled(&[20, 30, 40, 50]);
    (0..4).for_each(|n| bench.note(n, Report::Failed));
    bench.wait(RETRY.1);
    assert_eq!(bench.homes(), ids(&[0, 1, 2, 3]));
    bench.note(3, Report::Registered);
    bench.note(2, Report::Registered);
    assert_eq!(bench.homes(), ids(&[2, 3]));
}

#[test]
fn a_relay_in_reserve_is_measured_rarely_and_ever_more_rarely_while_it_does_not_answer() {
    let mut bench = Bench::settled(&[20, 30, 40]);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let began = bench.now;
        bench.measured.clear();
        while !bench.measured.contains(&id(2)) {
            let (at, _) = bench.homes.poll_timeout(bench.now).unwrap();
            bench.wait(at.since(bench.now));
            for n in [0, 1] {
                if bench.measured.contains(&id(n)) {
                    bench.note(n, answers(20));
                }
            }
        }
        pauses.push(bench.now.since(began).as_secs());
        bench.note(2, Report::Failed);
    }
    assert_eq!(pauses, [1_800, 30, 60, 120, 240, 480, 960, 1_800, 1_800]);
}

#[test]
fn on_another_network_everything_is_measured_again() {
    let mut bench = Bench::settled(&[20, 30, 40]);
    bench.measured.clear();
    bench.homes.network_changed(bench.now);
    bench.homes();
    assert_eq!(bench.measured, ids(&[0, 1, 2]));
    bench.note(2, answers(5));
    assert_eq!(bench.homes(), ids(&[0, 1, 2]));
}

#[test]
fn another_list_keeps_what_is_on_both() {
    let mut bench = Bench::settled(&[20, 30, 40]);
    bench.homes.set([id(1), id(7)], bench.now);
    assert_eq!(bench.homes(), ids(&[1, 7]));
    assert_eq!(bench.homes.registered(), ids(&[1]));
}

#[test]
fn a_move_is_worth_a_fifth_of_the_way_and_ten_milliseconds_and_no_less() {
    for (nearest, farthest, other, is_worth_it) in
        [(20, 30, 21, false), (20, 30, 19, true), (150, 200, 161, false), (150, 200, 159, true)]
    {
        let mut bench = Bench::settled(&[nearest, farthest, farthest]);
        bench.note(2, answers(other));
        assert_eq!(bench.homes().contains(&id(2)), is_worth_it, "{other} ms instead of {farthest} ms");
    }
}

#[test]
fn one_relay_at_a_time_takes_the_place_of_another() {
    let mut bench = Bench::settled(&[20, 30, 40, 50]);
    bench.note(0, Report::Failed);
    bench.note(3, answers(5));
    assert_eq!(bench.homes(), ids(&[0, 1, 2]));
    bench.note(2, Report::Registered);
    assert_eq!(bench.homes(), ids(&[1, 2, 3]));
}

#[test]
fn a_relay_that_is_used_for_a_peers_sake_stays_in_reserve() {
    let mut bench = Bench::settled(&[20, 30, 40]);
    bench.note(2, Report::Registered);
    assert_eq!(bench.homes(), ids(&[0, 1]));
    bench.note(0, Report::Failed);
    assert_eq!(bench.homes(), ids(&[0, 1, 2]));
}

#[test]
fn failures_on_another_network_do_not_count() {
    let mut bench = Bench::settled(&[20, 30, 40]);
    (0..5).for_each(|_| bench.note(2, Report::Failed));
    bench.homes.network_changed(bench.now);
    bench.note(2, Report::Failed);
    bench.measured.clear();
    bench.wait(RETRY.0);
    assert_eq!(bench.measured, ids(&[2]));
}

#[test]
fn a_list_has_eight_relays_at_most_and_each_of_them_once() {
    let mut homes = Homes::default();
    homes.set((0..20).map(id), Instant::START);
    assert_eq!(homes.by_promise().len(), MAX_RELAYS);
    homes.set(ids(&[1, 1, 2]), Instant::START);
    assert_eq!(homes.by_promise().len(), 2);
}

#[test]
fn the_nearest_home_is_told_first() {
    assert_eq!(Bench::settled(&[30, 20, 40]).homes.registered(), ids(&[1, 0]));
}

proptest! {
    #[test]
    fn there_are_always_two_or_every_way_to_two_is_tried(
        steps in prop::collection::vec((0u8..6, 0u8..6, 0u64..3_000), 0..200),
    ) {
        let mut bench = Bench::new(6);
        for (n, what, ms) in steps {
            let report = match what {
                0 => answers(ms % 200),
                1 | 2 if bench.homes.relays[usize::from(n)].home => Report::Registered,
                3 => Report::Silent,
                4 => Report::Failed,
                5 => Report::Drains,
                _ => answers(50),
            };
            bench.note(n, report);
            bench.wait(Duration::from_millis(ms));
            let homes = bench.homes();
            prop_assert_eq!(&homes, &bench.homes(), "nothing was noted in between");
            let up = bench.homes.registered().len();
            let reserve = bench.homes.relays.iter().filter(|relay| relay.state == State::Reserve).count();
            prop_assert!(up <= WARM + 1);
            let promising = bench.homes.relays.iter().filter(|r| r.home && r.is_promising(bench.now)).count();
            prop_assert!(promising >= WARM || reserve == 0, "a relay in reserve is not used");
            prop_assert!(bench.homes.poll_timeout(bench.now).is_some() || homes.len() + bench.measured.len() >= 6);
        }
    }
}

struct Bench {
    homes: Homes,
    now: Instant,
    measured: Vec<PeerId>,
}

impl Bench {
    fn new(count: u8) -> Self {
        let mut homes = Homes::default();
        homes.set((0..count).map(id), Instant::START);
        let mut bench = Bench { homes, now: Instant::START, measured: Vec::new() };
        bench.homes();
        bench
    }

    /// Relays with these round trips in ms; the node is registered at the first two.
    fn settled(rtts: &[u64]) -> Self {
        let mut bench = Bench::new(rtts.len() as u8);
        for (n, rtt) in (0..).zip(rtts) {
            bench.note(n, answers(*rtt));
        }
        [0, 1].into_iter().for_each(|n| bench.note(n, Report::Registered));
        assert_eq!(bench.homes(), ids(&[0, 1]));
        bench
    }

    fn homes(&mut self) -> Vec<PeerId> {
        let plan = self.homes.plan(self.now);
        self.measured.extend(plan.measure);
        plan.homes
    }

    fn note(&mut self, n: u8, report: Report) {
        self.homes.note(id(n), report, self.now);
        self.homes();
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.homes();
    }
}

fn answers(ms: u64) -> Report {
    Report::Answers(Duration::from_millis(ms))
}

fn id(n: u8) -> PeerId {
    PeerId::ed25519([n; 32])
}

fn ids(list: &[u8]) -> Vec<PeerId> {
    list.iter().copied().map(id).collect()
}
