//! What the switch holds to whatever happens: its limits, its bans, its slots, and the order of a link's life.

#[path = "switch/model.rs"]
mod model;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_inputs_in_any_order_exceed_a_limit_let_a_banned_peer_in_or_remove_a_link_twice(
        bytes in proptest::collection::vec(any::<u8>(), 0..1_200),
    ) {
        model::run(&bytes);
    }
}
