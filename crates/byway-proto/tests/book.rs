//! What the address book holds to whatever it is told: its limits, its bans, and that its rows are the book.

#[path = "book/model.rs"]
mod model;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_inputs_in_any_order_break_a_limit_or_choose_a_banned_peer(
        bytes in proptest::collection::vec(any::<u8>(), 0..800),
    ) {
        model::run(&bytes);
    }
}
