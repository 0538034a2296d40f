//! The scale table is a function of its seed.
#![allow(clippy::unwrap_used)] // a test may panic

use byway_sim::table::scale;

#[test]
fn fifty_nodes_of_one_seed_send_the_same_packets_twice_and_of_another_seed_others() {
    let run = |seed| scale::run(50, seed, |_| {}).unwrap();
    let (first, again, other) = (run(1), run(1), run(2));
    assert_eq!(first.hash, again.hash);
    assert_ne!(first.hash, other.hash);
    assert!(first.connections >= 150, "{first}");
    assert_eq!(first.messages, 10 * first.connections as u64);
}
