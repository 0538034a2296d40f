//! Peer exchange among many nodes: they find each other by one seed that keeps nobody.
#![allow(clippy::unwrap_used)] // a test may panic

use byway_sim::table::exchange;

/// Nodes of the run that every test run makes; CI makes one of a thousand (`cargo xtask check sim`).
const NODES: usize = 100;

#[test]
fn nodes_that_know_a_seed_alone_become_one_graph_and_a_second_run_is_the_same() {
    let first = exchange::run(NODES, 1, |_| {}).unwrap();
    println!("{first}");
    let again = exchange::run(NODES, 1, |_| {}).unwrap();
    assert_eq!((first.hash, first.connected_s), (again.hash, again.connected_s));
}
