//! What the NAT agent holds: how often each schedule gets through and what it costs, and what it owes whatever it is told.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "agent/model.rs"]
mod model;

use std::time::Duration;

use byway_proto::nat::{Filtering, Mapping, Ports};
use model::{NatKind, punch};
use proptest::prelude::*;

const fn nat(mapping: Mapping, filtering: Filtering, ports: Ports) -> NatKind {
    NatKind { mapping, filtering, ports }
}

const HOME: NatKind = nat(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, Ports::Preserving);
const RANDOM: NatKind = nat(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent, Ports::Random);

const fn counting(step: i16) -> NatKind {
    nat(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent, Ports::Sequential { step })
}

/// The share of runs that were direct in time, in both orders.
fn share(a: NatKind, b: NatKind, runs: u64, within: u64) -> f64 {
    let mut direct = 0;
    for seed in 0..runs {
        let kinds = if seed % 2 == 0 { [a, b] } else { [b, a] };
        let ran = punch(kinds, seed, within + 3_000);
        for why in &ran.why {
            assert_eq!(why.as_ref().unwrap().direct, ran.direct.is_some(), "seed {seed}");
        }
        direct += u64::from(ran.direct.is_some_and(|it| it <= Duration::from_millis(within)));
    }
    direct as f64 / runs as f64
}

#[test]
fn two_homes_meet_every_time() {
    assert_eq!(share(HOME, HOME, 500, 2_000), 1.0);
}

#[test]
fn a_nat_that_counts_is_met_at_a_predicted_port() {
    for step in [1, -1, 3] {
        assert!(share(HOME, counting(step), 500, 2_000) >= 0.99);
    }
}

#[test]
fn two_nats_that_count_are_met_where_both_aim() {
    assert!(share(counting(1), counting(2), 500, 3_000) >= 0.97);
}

#[test]
fn a_nat_with_random_ports_is_met_by_many_guesses() {
    assert!(share(HOME, RANDOM, 500, 5_000) >= 0.98);
}

proptest! {
    // what is left of a failure by shrinking says little more than the whole
    #![proptest_config(ProptestConfig { cases: 500, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_can_meet_without_guessing_does_in_time_and_nothing_told_in_any_order_breaks_a_budget(
        bytes in proptest::collection::vec(any::<u8>(), 0..800),
    ) {
        model::run(&bytes);
    }
}
